package xcat

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"berth/provisioners"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// fake is a management node as the module sees it through the client: xCAT's commands with the answers of the transcripts,
// for nodes that follow nodeset and rpower. Tests run it in a bubble of testing/synctest, so its minutes take no time.
type fake struct {
	mu       sync.Mutex
	nodes    map[string]*fakeNode
	images   map[string]map[string]string
	down     bool                            // xcatd does not answer
	refuse   func(xcatd.Command) *xcatd.Line // an error to answer with
	before   func(xcatd.Command)             // called before each command, without the lock
	after    func(xcatd.Command)             // called after each command that was run, with the lock
	takes    time.Duration                   // how long an answer takes
	end      func()                          // called when try's load has ended
	commands []string
}

// fakeNode is a machine and its rows in xCAT's tables.
type fakeNode struct {
	mac, mgt, arch         string
	state, method          string
	status, stamp, comment string
	on                     bool
	device                 string // what it boots from next; "" is its disk
	line                   string // what its installer says
	services               string
	installs, shared       int
	nodesets, boots, offs  int
	generation             int // counts boots: what an earlier boot had planned does not happen
	install                []step
	told                   map[string]string // what lsdef tells until then, whatever is so
	toldUntil              time.Time
	lossy                  int  // reads of the status that come back blank, each second one
	stuck                  bool // nothing that is written to the status can be read back
}

// step is something that happens to a machine a while after it has begun to install.
type step struct {
	after time.Duration
	do    func(n *fakeNode)
}

const (
	osimage = "rocky9.4-x86_64-install-compute"
	armed   = "install rocky9.4-x86_64-compute"
)

func newFake() *fake {
	f := &fake{nodes: map[string]*fakeNode{}, images: map[string]map[string]string{
		osimage:                           {"provmethod": "install", "osarch": "x86_64"},
		"alma9-x86_64-install-compute":    {"provmethod": "install", "osarch": "x86_64"},
		"rocky9.4-x86_64-netboot-compute": {"provmethod": "netboot", "osarch": "x86_64"},
		"rocky9.4-ppc64le-install":        {"provmethod": "install", "osarch": "ppc64le"},
	}}
	f.nodes["n01"] = &fakeNode{mac: "02:00:00:00:00:01", mgt: "ipmi", arch: "x86_64", state: "boot", services: "noping", install: works()}
	return f
}

// The modes of the transcripts.

func says(line string) func(*fakeNode)    { return func(n *fakeNode) { n.line = line } }
func notes(status string) func(*fakeNode) { return func(n *fakeNode) { n.set(status) } }

func (n *fakeNode) set(status string) {
	if n.stuck {
		return
	}
	n.status, n.stamp = status, time.Now().Format("01-02-2006 15:04:05")
}

// next is the note that the bits are on the disk.
func next(n *fakeNode) { n.state = stateBoot; n.set("booting") }

func works() []step {
	return []step{
		{3 * time.Minute, func(n *fakeNode) { n.set("installing"); n.line = "installing prep"; n.services = armed }},
		{5 * time.Minute, says("installing glibc (10%)")},
		{8 * time.Minute, says("installing kernel (40%)")},
		{11 * time.Minute, says("installing post scripts")},
		{12 * time.Minute, next},
		{13 * time.Minute, says("")},
		{14 * time.Minute, notes("booted")},
	}
}

func hangs() []step { return works()[:3] }

func postFails() []step { return append(works()[:4], step{12 * time.Minute, notes("failed")}) }

// silent never notes anything, and its installer answers nobody.
func silent() []step {
	return []step{{3 * time.Minute, func(n *fakeNode) { n.services = armed }}, {9 * time.Minute, func(n *fakeNode) { n.state = stateBoot }}}
}

// Run is part of xcatd.Transport.
func (f *fake) Run(ctx context.Context, command xcatd.Command) (xcatd.Answer, error) {
	f.mu.Lock()
	before := f.before
	f.commands = append(f.commands, command.String())
	f.mu.Unlock()
	if before != nil {
		before(command)
	}
	if f.takes > 0 {
		_ = pause(ctx, f.takes)
	}
	if ctx.Err() != nil {
		return xcatd.Answer{}, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return xcatd.Answer{}, &xcatd.Error{Kind: xcatd.Connection, Command: command.String(), Text: "connection refused"}
	}
	if f.refuse != nil {
		if line := f.refuse(command); line != nil {
			line.Kind = xcatd.Failure
			return xcatd.Answer{Lines: []xcatd.Line{*line}, Code: 1, Done: true}, nil
		}
	}
	lines, err := f.answer(command)
	if f.after != nil {
		f.after(command)
	}
	if err != "" {
		return xcatd.Answer{Lines: []xcatd.Line{{Kind: xcatd.Failure, Text: err}}, Code: 1, Done: true}, nil
	}
	return xcatd.Answer{Lines: lines, Done: true}, nil
}

func (f *fake) answer(command xcatd.Command) (lines []xcatd.Line, err string) {
	plain := func(texts ...string) {
		for _, text := range texts {
			lines = append(lines, xcatd.Line{Text: text})
		}
	}
	var node *fakeNode
	if len(command.Nodes) == 1 {
		if node = f.nodes[command.Nodes[0]]; node == nil {
			return nil, "Invalid nodes and/or groups in noderange: " + command.Nodes[0]
		}
	}
	of := func(text string) ([]xcatd.Line, string) {
		return []xcatd.Line{{Node: command.Nodes[0], Text: text}}, ""
	}
	switch command.Name {
	case "lsdef":
		kind, name := command.Args[1], command.Args[3]
		attributes := f.images[name]
		if n := f.nodes[name]; kind == "node" && n != nil {
			if attributes = n.attributes(); time.Now().Before(n.toldUntil) {
				attributes = n.told
			}
		}
		if attributes == nil {
			return nil, fmt.Sprintf("Could not find an object named '%s' of type '%s'.", name, kind)
		}
		plain("Object name: " + name)
		for _, key := range strings.Split(command.Args[5], ",") {
			plain("    " + key + "=" + attributes[key])
		}
	case "tabdump":
		plain("#node,groups,status,statustime,appstatus,appstatustime,primarysn,hidden,updatestatus,updatestatustime,zonename,comments,disable")
		name := strings.TrimPrefix(command.Args[1], "node==")
		if n := f.nodes[name]; n != nil {
			status := n.status
			if n.lossy++; n.lossy%2 == 0 && status == "installing" {
				status = ""
			}
			plain(fmt.Sprintf(`"%s","all","%s","%s",,,,,,,,"%s",`, name, status, n.stamp, n.comment))
		}
	case "chdef":
		n := f.nodes[command.Args[3]]
		for _, change := range command.Args[4:] {
			key, value, _ := strings.Cut(change, "=")
			switch key {
			case "status", "statustime":
				if !n.stuck {
					n.status, n.stamp = "", ""
				}
			case "usercomment":
				n.comment = value
			}
		}
		plain("1 object definitions have been created or modified.")
	case "nodeset":
		switch what := command.Args[0]; {
		case what == "stat":
		case what == "boot":
			node.state = stateBoot
		default:
			name := strings.TrimPrefix(what, "osimage=")
			if f.images[name] == nil {
				return nil, "Cannot find the OS image " + name + " in the osimage table."
			}
			node.nodesets++
			node.arm(name)
		}
		return of(node.state)
	case "rsetboot":
		node.device = command.Args[0]
		return of(map[string]string{"net": "Network", "hd": "Hard Drive"}[node.device])
	case "rpower":
		return of(node.power(f, command.Args[0]))
	case "makeknownhosts":
		node.shared++
	case "nodestat":
		return of(node.services)
	default:
		return nil, "Unsupported request"
	}
	return lines, ""
}

func (n *fakeNode) attributes() map[string]string {
	return map[string]string{"mac": n.mac, "mgt": n.mgt, "arch": n.arch, "currstate": n.state, "provmethod": n.method}
}

// cache has lsdef tell for a while what is so now.
func (n *fakeNode) cache(d time.Duration) { n.told, n.toldUntil = n.attributes(), time.Now().Add(d) }

func (n *fakeNode) arm(image string) {
	parts := strings.Split(image, "-")
	n.state, n.method = fmt.Sprintf("%s %s-%s-compute", parts[2], parts[0], parts[1]), image
}

func (n *fakeNode) power(f *fake, action string) string {
	answer := "off"
	if n.on {
		answer = "on"
	}
	switch action {
	case "off":
		n.on, n.line, n.services = false, "", "noping"
		n.offs++
		n.generation++
		return "off"
	case "boot":
		if n.on {
			answer = "reset"
		} else {
			answer = "on"
		}
		n.boots++
		n.on, n.line, n.services = true, "", "noping"
		n.set("powering-on")
		n.generation++
		device := n.device
		n.device = ""
		if device == "net" && arms(n.state) {
			n.installs++
			n.play(f)
		}
	}
	return answer
}

// play has the steps of an install happen, until the machine boots again.
func (n *fakeNode) play(f *fake) {
	generation := n.generation
	for _, s := range n.install {
		time.AfterFunc(s.after, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if n.generation == generation {
				s.do(n)
			}
		})
	}
}

// with runs a change under the lock.
func (f *fake) with(change func(n *fakeNode)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.nodes["n01"])
}

func (f *fake) count(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, command := range f.commands {
		if strings.HasPrefix(command, prefix) {
			n++
		}
	}
	return n
}

// module returns a module whose only site, mn, is the fake.
func (f *fake) module() *Module {
	m := &Module{nodes: map[string]*management{}, limits: DefaultLimits(), log: zerolog.Nop()}
	m.installer = func(context.Context, string) string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.nodes["n01"].line
	}
	m.add(Site{Name: "mn"}, f)
	return m
}

// order returns a request for the node n01, which each change may alter.
func order(changes ...func(*provisioners.Request)) provisioners.Request {
	r := provisioners.Request{
		Reservation: reservation.Reservation{
			Name: "r1", User: "ada",
			Computer: reservation.Computer{Name: "n01", Provisioner: Type, Hardware: reservation.Physical, Address: "127.0.1.11", MACs: []string{"02:00:00:00:00:01"}},
			Image:    reservation.Image{Name: "rocky9", Revision: 1, Sources: map[string]map[string]string{Type: {sourceOSImage: osimage}}},
		},
		Mark:     reservation.Mark{Reservation: "r1", Run: "run-1", Attempt: 1},
		Attempt:  reservation.Attempt{Number: 1, Of: 3},
		Limit:    2 * time.Hour,
		Deadline: time.Now().Add(2 * time.Hour),
	}
	for _, change := range changes {
		change(&r)
	}
	return r
}

func source(key, value string) func(*provisioners.Request) {
	return func(r *provisioners.Request) {
		r.Reservation.Image.Sources = map[string]map[string]string{Type: maps.Clone(r.Reservation.Image.Sources[Type])}
		r.Reservation.Image.Sources[Type][key] = value
	}
}

func placement(key, value string) func(*provisioners.Request) {
	return func(r *provisioners.Request) { r.Reservation.Computer.Placement = map[string]string{key: value} }
}

// reporter is a reservation.Reporter that remembers, and that a test can look over the shoulder of.
type reporter struct {
	on func(call int) // called in each call, before anything is done; it may be nil

	mu     sync.Mutex
	calls  int
	stages []string
	at     []time.Time // when each was shown
	kept   map[string]string
	sure   map[string]string // what Confirm has delivered
	lost   bool              // somebody else has taken over
}

func newReporter() *reporter { return &reporter{kept: map[string]string{}, sure: map[string]string{}} }

func (r *reporter) call() {
	r.mu.Lock()
	r.calls++
	call := r.calls
	r.mu.Unlock()
	if r.on != nil {
		r.on(call)
	}
}

// freeze has the reporter deliver nothing more.
func (r *reporter) freeze() { r.on = func(int) { runtime.Goexit() } }

// Stage is part of reservation.Reporter.
func (r *reporter) Stage(name, detail string) {
	r.call()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stages, r.at = append(r.stages, strings.TrimSuffix(name+": "+detail, ": ")), append(r.at, time.Now())
}

// Keep is part of reservation.Reporter.
func (r *reporter) Keep(key, value string) {
	r.call()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept[key] = value
}

// Kept is part of reservation.Reporter.
func (r *reporter) Kept(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept[key]
}

// Confirm is part of reservation.Reporter.
func (r *reporter) Confirm(ctx context.Context) error {
	r.call()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost {
		return fmt.Errorf("another worker has taken over")
	}
	r.sure = maps.Clone(r.kept)
	return ctx.Err()
}

// saw says whether a stage, or its detail, has been shown.
func (r *reporter) saw(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.stages, func(s string) bool { return strings.Contains(s, text) })
}

// showed says whether a stage was shown in a stretch of time.
func (r *reporter) showed(stage string, from, to time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, one := range r.stages {
		if one == stage && !r.at[i].Before(from) && !r.at[i].After(to) {
			return true
		}
	}
	return false
}

// successor returns the reporter of the worker that goes on: with all that was kept, or only what was surely delivered.
func (r *reporter) successor(all bool) *reporter {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := newReporter()
	next.kept = maps.Clone(r.sure)
	if all {
		next.kept = maps.Clone(r.kept)
	}
	return next
}
