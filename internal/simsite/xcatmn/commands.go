package xcatmn

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// bmcTimeout is how long xCAT asks a BMC that does not answer (ipmiretries 3, ipmitimeout 2).
const bmcTimeout = 14 * time.Second

func from(elements ...element) response {
	return append(elements, element{name: "xcatdsource", text: source})
}

func failed(text string) response {
	return from(element{name: "error", text: text}, element{name: "errorcode", text: "1"})
}

// end is the last response. A request that is refused as a whole is told so in it.
func end(r request, why ...element) response {
	last := append(response(why), element{name: "serverdone"})
	if r.TransID != "" {
		last = append(last, element{name: "transid", text: r.TransID})
	}
	return last
}

// refused is a request that is not run.
func refused(r request, text string) response {
	return end(r, element{name: "error", text: text}, element{name: "errorcode", text: "1"})
}

// ofNode is an answer about one node: its elements in order of their names.
func ofNode(name string, elements ...element) response {
	elements = append(elements, element{name: "name", text: name})
	slices.SortStableFunc(elements, func(a, b element) int { return strings.Compare(a.name, b.name) })
	return from(element{name: "node", children: elements})
}

func data(text string) element { return element{name: "data", text: text} }

// contents is how rpower and rsetboot answer.
func contents(text string) element {
	return element{name: "data", children: []element{{name: "contents", text: text}}}
}

// run runs a command.
func (m *Manager) run(ctx context.Context, r request, write func(response)) {
	m.mu.Lock()
	known := true
	if user := r.Become.User; user != "" {
		known = m.options.Passwords[user] == r.Become.Password && r.Become.Password != ""
		r.cn = user
	}
	if r.changes() {
		m.note("%s (%s)", r, r.cn)
	}
	allowed := m.allowed(r)
	knownHosts := slices.Clone(m.knownHosts) // makeknownhosts reads it, and writes it back a while later: there is no lock
	nodes, unknown := m.nodeRange(r.Nodes)
	slow := slices.ContainsFunc(nodes, func(n *machine) bool { return n.Mode == Slow }) || m.about(r) != nil && m.about(r).Mode == Slow
	m.mu.Unlock()
	wait := answerTime
	if slow {
		wait = slowTime
	}
	if !m.pause(ctx, wait) {
		return
	}
	reads := map[string]func(request, []*machine) []response{"nodeset": m.nodeset, "nodestat": m.nodestat, "nodels": m.nodels,
		"lsdef": m.lsdef, "tabdump": m.tabdump, "chdef": m.chdef,
		"makeknownhosts": func(r request, nodes []*machine) []response { return m.makeknownhosts(r, nodes, knownHosts) }}
	bmcs := map[string]func(request, *machine) response{"rpower": m.rpower, "rsetboot": m.rsetboot}
	plain, asksBMC := reads[r.Command], bmcs[r.Command]
	switch {
	case !known:
		write(refused(r, "Authentication failure"))
	case !allowed:
		write(refused(r, "Permission denied for request"))
	case r.Command == "authcheck":
		write(append(append(response{data("Authenticated")}, end(r)...), element{name: "username", text: r.cn}))
	case plain == nil && asksBMC == nil:
		write(end(r, element{name: "error", text: "Unsupported request"}))
	case unknown != "":
		write(refused(r, "Invalid nodes and/or groups in noderange: "+unknown))
	case asksBMC != nil:
		m.bmc(ctx, r, nodes, write, asksBMC)
		write(end(r))
	default:
		m.mu.Lock()
		answers := plain(r, nodes)
		for _, n := range nodes {
			if r.Command == "nodeset" && r.changes() && n.interrupts(r.Command) {
				m.unlock()
				return
			}
		}
		m.unlock()
		for _, answer := range answers {
			write(answer)
		}
		write(end(r))
	}
}

// changes says whether a command is none that merely reads.
func (r request) changes() bool {
	switch r.Command {
	case "rpower", "rsetboot", "nodeset":
		return !slices.Equal(r.Args, []string{"stat"})
	case "lsdef", "tabdump", "nodels", "nodestat", "authcheck":
		return false
	}
	return true
}

// nodeRange returns the nodes of a noderange, all for none, and the names that are no node's. The lock is held.
func (m *Manager) nodeRange(text string) (nodes []*machine, unknown string) {
	names := strings.Split(text, ",")
	if text == "" || text == "all" {
		names = slices.Sorted(maps.Keys(m.nodes))
	}
	var not []string
	for _, name := range names {
		if n := m.nodes[name]; n != nil {
			nodes = append(nodes, n)
		} else {
			not = append(not, name)
		}
	}
	return nodes, strings.Join(not, ",")
}

// about returns the node that lsdef, chdef or tabdump names in its arguments, or nil. The lock is held.
func (m *Manager) about(r request) *machine {
	for i, arg := range r.Args {
		if name, ok := strings.CutPrefix(arg, "node=="); ok {
			return m.nodes[name]
		}
		if arg == "-o" && i+1 < len(r.Args) {
			return m.nodes[r.Args[i+1]]
		}
	}
	return nil
}

// bmc runs a command that asks each node's BMC, all at the same time.
func (m *Manager) bmc(ctx context.Context, r request, nodes []*machine, write func(response), do func(request, *machine) response) {
	var dead []*machine
	for _, n := range nodes {
		m.mu.Lock()
		if n.Mode == BMCDead {
			dead = append(dead, n)
			m.mu.Unlock()
			continue
		}
		answer := do(r, n)
		lost := r.Command == "rpower" && slices.Equal(r.Args, []string{"boot"}) && n.interrupts("rpower boot")
		m.unlock()
		if !lost {
			write(answer)
		}
	}
	if len(dead) == 0 || !m.pause(ctx, bmcTimeout) {
		return
	}
	for _, n := range dead {
		write(bmcError(n, "ERROR: timeout"))
	}
}

func bmcError(n *machine, text string) response {
	return ofNode(n.Name, element{name: "error", text: text}, element{name: "errorcode", text: "1"})
}

func power(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// rpower is xCAT's, with its silent refusals: reset of a node that is off, and on of one that is on, do nothing and succeed.
func (m *Manager) rpower(r request, n *machine) response {
	action := strings.Join(r.Args, " ")
	begins := action == "boot" || action == "reset" && n.on || action == "on" && !n.on
	if begins && n.Mode == BMCRefuses {
		if action != "reset" {
			n.set("powering-on")
		}
		return bmcError(n, "Timeout while processing command, response unavailable")
	}
	text := power(n.on)
	switch action {
	case "stat", "state":
	case "on":
		n.set("powering-on")
		if !n.on {
			n.powerOn()
		}
		text = "on"
	case "off":
		n.set("powering-off")
		if n.on {
			n.powerOff()
		}
		text = "off"
	case "reset":
		if n.on {
			n.set("powering-on")
			n.powerOn()
			text = "reset"
		}
	case "boot":
		text = "on"
		if n.on {
			text = "reset"
		}
		n.set("powering-on")
		n.powerOn()
	case "":
		return from(data(n.Name+": Please enter an action (eg: boot,off,on, etc) when using mgt=ipmi."), element{name: "errorcode", text: "1"})
	default:
		return from(data(fmt.Sprintf("%s: Error: Unsupported command: rpower %s when using mgt=ipmi.", n.Name, action)),
			element{name: "errorcode", text: "1"})
	}
	return ofNode(n.Name, contents(text))
}

func (m *Manager) rsetboot(r request, n *machine) response {
	args := slices.DeleteFunc(slices.Clone(r.Args), func(a string) bool { return a == "-u" })
	names := map[string]string{"net": "Network", "hd": "Hard Drive", "": "BIOS default"}
	switch device := strings.Join(args, " "); device {
	case "stat":
	case "net", "hd":
		n.device = device
		n.say("bmc bootdev " + map[string]string{"net": "network", "hd": "disk"}[device])
	default:
		return bmcError(n, "unsupported command setboot "+device)
	}
	return ofNode(n.Name, contents(names[n.device]))
}

func (m *Manager) nodeset(r request, nodes []*machine) []response {
	what := strings.Join(r.Args, " ")
	name, toImage := strings.CutPrefix(what, "osimage=")
	switch {
	case toImage && m.images[name].name == "":
		return []response{failed("Cannot find the OS image " + name + " in the osimage table.")}
	case what == "":
		return []response{from(data("Usage: nodeset <noderange> [shell|boot|runcmd=bmcsetup|osimage[=<imagename>]|offline]")),
			failed("Invalid argument: ''")}
	case what == "install", what == "netboot", what == "statelite":
		return []response{failed(`The options "install", "netboot", and "statelite" have been deprecated, use "osimage=<osimage_name>" instead.`)}
	case !toImage && what != "stat" && what != "boot" && what != "offline":
		return []response{failed("Unknown state " + what + " requested")}
	}
	var answers []response
	for _, n := range nodes {
		var elements []element
		switch {
		case what == "stat":
		case toImage:
			n.counts.Nodesets++
			n.arm(m.images[name])
			elements = []element{{name: "destiny", text: n.currstate}, {name: "imgserver", text: "127.0.0.1"}}
		default:
			n.currstate = what
			elements = []element{{name: "destiny", text: n.currstate}}
		}
		answers = append(answers, ofNode(n.Name, append(elements, data(n.currstate))...))
		if toImage && n.Mode == OtherAdminArms {
			m.armOther(n, name)
		}
	}
	return answers
}

// armOther arms a node for another osimage than that one, in another administrator's name. The lock is held.
func (m *Manager) armOther(n *machine, than string) {
	for _, name := range slices.Sorted(maps.Keys(m.images)) {
		if name != than {
			m.note("nodeset %s osimage=%s (another administrator)", n.Name, name)
			n.arm(m.images[name])
			return
		}
	}
}

func (m *Manager) nodestat(r request, nodes []*machine) []response {
	var answers []response
	for _, n := range nodes {
		text := n.services(slices.Contains(r.Args, "-p"))
		answers = append(answers, ofNode(n.Name, data(text)))
	}
	return answers
}

func (m *Manager) nodels(_ request, nodes []*machine) []response {
	var answers []response
	for _, n := range nodes {
		answers = append(answers, ofNode(n.Name))
	}
	return append(answers, counted(len(nodes)))
}

// makeknownhosts writes the shared host key under the nodes' names, or with -d takes it away, in a copy of the file that it has
// read before. It says nothing.
func (m *Manager) makeknownhosts(r request, nodes []*machine, lines []string) []response {
	shared, err := m.hostKey()
	if err != nil {
		return []response{failed("/etc/xcat/hostkeys/ssh_host_rsa_key.pub is missing")}
	}
	for _, n := range nodes {
		names := n.Name + "," + n.Name + ".cluster.test," + n.Address
		lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, n.Name+",") })
		if !slices.Contains(r.Args, "-d") {
			lines = append(lines, names+" "+shared.public+" ")
		}
	}
	m.knownHosts = lines
	return nil
}

func counted(nodes int, elements ...element) response {
	return from(append(elements, element{name: "numofnodes", text: fmt.Sprint(nodes)})...)
}

func info(text string) element { return element{name: "info", text: text} }

// flags reads "-t node -o X -i a,b" and returns the flags' values and the rest.
func flags(args []string) (values map[string]string, rest []string) {
	values = map[string]string{}
	for i := 0; i < len(args); i++ {
		if strings.HasPrefix(args[i], "-") && i+1 < len(args) {
			values[args[i]] = args[i+1]
			i++
			continue
		}
		rest = append(rest, args[i])
	}
	return values, rest
}

func (m *Manager) lsdef(r request, _ []*machine) []response {
	values, _ := flags(r.Args)
	kind, name := values["-t"], values["-o"]
	attributes := m.definition(kind, name)
	if attributes == nil {
		return []response{from(element{name: "error", text: fmt.Sprintf("Could not find an object named '%s' of type '%s'.", name, kind)},
			element{name: "errorcode", text: "1"}, info("No object definitions have been found"))}
	}
	asked := slices.Sorted(maps.Keys(attributes))
	if values["-i"] != "" {
		asked = slices.Sorted(slices.Values(strings.Split(values["-i"], ",")))
	}
	lines := []element{info("Object name: " + name)}
	var faults []element
	for _, key := range asked {
		value, is := attributes[key]
		switch {
		case !is:
			faults = append(faults, element{name: "error", text: fmt.Sprintf("'%s' is not a valid attribute name for an object type of '%s'.", key, kind)},
				element{name: "errorcode", text: "1"})
		case value != "" || values["-i"] != "":
			lines = append(lines, info("    "+key+"="+value))
		}
	}
	return []response{counted(1, append(faults, lines...)...)}
}

// definition returns the attributes of a node or an osimage, or nil.
func (m *Manager) definition(kind, name string) map[string]string {
	if kind == "osimage" {
		image := m.images[name]
		if image.name == "" {
			return nil
		}
		return map[string]string{"provmethod": image.provmethod, "osarch": image.arch, "osvers": image.os, "profile": image.profile,
			"imagetype": "linux", "osname": "Linux"}
	}
	n := m.nodes[name]
	if kind != "node" || n == nil {
		return nil
	}
	if now := time.Now(); n.Mode == StaleCache && n.cached != nil && now.Before(n.cachedAt.Add(m.scaled(cacheTime))) {
		return n.cached
	}
	status := n.status
	if n.reads++; n.Mode == BlankStatus && n.reads%2 == 0 {
		status = ""
	}
	n.cachedAt = time.Now()
	n.cached = map[string]string{"groups": "all,compute", "mac": n.MAC, "mgt": "ipmi", "bmc": n.Name + "-bmc", "arch": "x86_64", "netboot": "xnba",
		"ip": n.Address, "os": m.images[n.provmethod].os, "currstate": n.currstate, "currchain": "", "provmethod": n.provmethod,
		"status": status, "statustime": n.statustime, "usercomment": n.remark, "installnic": "mac", "primarynic": "mac"}
	return n.cached
}

func (m *Manager) tabdump(r request, _ []*machine) []response {
	values, rest := flags(r.Args)
	if len(rest) != 1 || rest[0] != "nodelist" {
		return []response{failed("No such table: " + strings.Join(rest, " "))}
	}
	lines := []element{data("#node,groups,status,statustime,appstatus,appstatustime,primarysn,hidden,updatestatus,updatestatustime,zonename,comments,disable")}
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		if where := values["-w"]; where != "" && where != "node=="+name {
			continue
		}
		n := m.nodes[name]
		lines = append(lines, data(row(n.Name, "all,compute", n.status, n.statustime, "", "", "", "", "", "", "", n.remark, "")))
	}
	return []response{from(lines...)}
}

// row writes a line of a table: what is set in quotes.
func row(fields ...string) string {
	for i, field := range fields {
		if field != "" {
			fields[i] = `"` + strings.ReplaceAll(field, `"`, `""`) + `"`
		}
	}
	return strings.Join(fields, ",")
}

func (m *Manager) chdef(r request, _ []*machine) []response {
	values, rest := flags(r.Args)
	n := m.nodes[values["-o"]]
	if values["-t"] != "node" || n == nil {
		return []response{from(
			element{name: "error", text: "Attribute 'groups' is not specified for node '" + values["-o"] + "', skipping to the next node."},
			element{name: "error", text: "One or more errors occured when attempting to create or modify xCAT object definitions."},
			element{name: "errorcode", text: "1"})}
	}
	places := map[string]*string{"status": &n.status, "statustime": &n.statustime, "usercomment": &n.remark, "mac": &n.MAC,
		"provmethod": &n.provmethod}
	for _, change := range rest {
		key, value, _ := strings.Cut(change, "=")
		place := places[key]
		if place == nil {
			return []response{failed("'" + key + "' is not a valid attribute name for an object type of 'node'.")}
		}
		*place = value
	}
	return []response{counted(1, info("1 object definitions have been created or modified."))}
}
