//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/demo/internal/programs"
	"berth/internal/devserver"
	"berth/internal/guestimage"
	"berth/internal/hostkey"
	"berth/internal/libvirthost"
	"berth/internal/loadlog"
	"berth/internal/process"
	"berth/provisioners/libvirt"
	"berth/reservation"
)

const (
	startLimit = 2 * time.Minute  // for each of the programs
	loadLimit  = 20 * time.Minute // for all loads: a full Debian takes a minute where every instruction is translated
	stopGrace  = 5 * time.Second
	showEvery  = 5 * time.Second  // a console's line that is a new one, while the stage is the same
	health     = "127.0.0.1:9464" // the network is our own
)

// show is one demonstration, inside.
type show struct {
	options
	out     io.Writer
	env     []string // without any BERTH_ variable
	ports   []string // outside, in the order of doors
	host    *libvirthost.Host
	server  *devserver.Server
	worker  *process.Process
	key     string // path of the private key that logs in to guests
	catalog string
	began   time.Time

	mu       sync.Mutex
	consoles map[string]string // the last line of each computer's
	shown    map[string]shown
	views    map[string]loadlog.View
}

// shown is what was last shown of a computer.
type shown struct {
	doing, console string
	at             time.Time
}

// run shows the demonstration. Whatever it started has ended when it returns.
func run(ctx context.Context, o options, ports string, environment []string, out io.Writer) error {
	s := &show{options: o, out: out, ports: strings.Split(ports, ","), began: time.Now(),
		env: programs.Plain(environment), consoles: map[string]string{}, shown: map[string]shown{}, views: map[string]loadlog.View{}}
	built, err := images(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.start(ctx, built); err != nil {
		return err
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	unexpected := s.table(ctx)
	if o.once {
		return unexpected
	}
	s.staying()
	<-ctx.Done()
	s.say("Ending everything that was started ...")
	return unexpected
}

func (s *show) say(format string, values ...any) { fmt.Fprintf(s.out, format+"\n", values...) }

func (s *show) path(name string) string { return filepath.Join(s.dir, name) }

// start starts everything and returns when the worker serves.
func (s *show) start(ctx context.Context, built *guestimage.Images) error {
	s.say("Starting libvirtd, a Temporal server and a worker (logs: %s) ...", s.dir)
	var err error
	if s.host, err = libvirthost.Start(ctx, libvirthost.Options{Dir: s.path("libvirt")}); err != nil {
		return err
	}
	if s.host.Accel == libvirthost.AccelTCG {
		s.say("KVM does not work here: QEMU translates every instruction of the guests, so all of them are ten times slower.")
	}
	if s.server, err = devserver.Start(ctx, devserver.Options{UI: true, Database: s.path("temporal.db"), Log: s.path("temporal.log")}); err != nil {
		return err
	}
	for n, d := range doors(s.options) {
		address := d.address
		switch n {
		case doorTemporal:
			address = s.server.Address
		case doorWebUI:
			address = strings.TrimPrefix(s.server.WebUI, "http://")
		}
		listener, err := net.Listen("unix", d.socket)
		if err != nil {
			return err
		}
		go libvirthost.Relay(listener, "tcp", address)
	}
	if err := s.writeCatalog(built); err != nil {
		return err
	}
	s.worker, err = process.Start(process.Options{Path: filepath.Join(s.bin, "worker"), Log: s.path("worker.log"),
		Env: s.environment("BERTH_PROVISIONERS="+libvirt.Type, "BERTH_LISTEN="+health, "BERTH_STOP_TIMEOUT=2s")})
	if err != nil {
		return err
	}
	return programs.Serves(ctx, startLimit, "the worker", s.worker, health)
}

func (s *show) environment(more ...string) []string {
	env := append([]string{}, s.env...)
	env = append(env, "BERTH_CATALOG="+s.catalog, "BERTH_USER=demo",
		"BERTH_TEMPORAL_ADDRESS="+s.server.Address, "BERTH_TEMPORAL_NAMESPACE="+s.server.Namespace)
	return append(env, more...)
}

// names are the computers' names: small-1, small-2, ..., debian-1. Guest n of the host is the nth of them.
func (s *show) names() []string {
	var names []string
	for n := range s.small {
		names = append(names, fmt.Sprintf("small-%d", n+1))
	}
	if s.debian {
		names = append(names, "debian-1")
	}
	return names
}

func imageOf(computer string) string {
	name, _, _ := strings.Cut(computer, "-")
	return name
}

// writeCatalog writes the catalog, and the key that logs in to the guests.
func (s *show) writeCatalog(built *guestimage.Images) error {
	pair, err := hostkey.New("demo") // any ed25519 key
	if err != nil {
		return err
	}
	s.key = s.path("login")
	if err := os.WriteFile(s.key, []byte(pair.Private), 0o600); err != nil {
		return err
	}
	image := func(name, memory string, master guestimage.Image) reservation.Image {
		return reservation.Image{Name: name, Revision: 1, OS: reservation.OS{Family: reservation.Linux, Version: "12", Architecture: "x86_64"},
			Sources: map[string]map[string]string{libvirt.Type: {"master": master.Path, "sha256": master.SHA256,
				"cloud_init": "true", "graphics": "none", "memory_mib": memory}},
			Control: reservation.Control{Channel: "ssh", User: "root", Credential: "login", HostKey: reservation.HostKeyHanded},
			// Where every instruction is translated, several at once on two processors take minutes.
			Limits: reservation.Limits{Load: limit(10), Response: limit(10), ResponseAgain: limit(10), Configure: limit(5),
				InitialDelay: reservation.Duration(time.Second), Settle: reservation.Duration(time.Second)},
			PostLoad: reservation.PostLoadOptions{Hostname: true}}
	}
	var computers []reservation.Computer
	for i, name := range s.names() {
		computers = append(computers, reservation.Computer{Name: name, Site: "here", Address: libvirthost.Address(i + 1),
			MACs: []string{libvirthost.MAC(i + 1)}, Networks: []string{libvirthost.Network}})
	}
	text, err := json.MarshalIndent(map[string]any{ // JSON is YAML
		"secrets": map[string]any{"login": map[string]string{"file": s.key}},
		"sites": []any{map[string]any{"name": "here", "provisioner": libvirt.Type,
			"libvirt": map[string]string{"uri": libvirthost.URI, "pool": libvirthost.Pool, "accel": s.host.Accel}}},
		"images":    []reservation.Image{image("small", "256", built.Small), image("debian", "512", built.Debian)},
		"computers": computers,
	}, "", "  ")
	if err != nil {
		return err
	}
	s.catalog = s.path("catalog.yaml")
	return os.WriteFile(s.catalog, text, 0o644)
}

func limit(minutes int) reservation.Duration {
	return reservation.Duration(time.Duration(minutes) * time.Minute)
}

// load reserves all computers and shows how they are loaded, until each is ready or over.
func (s *show) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loadLimit, fmt.Errorf("not all computers are ready after %s", loadLimit))
	defer cancel()
	for _, name := range s.names() {
		go func() {
			_ = s.host.Console(ctx, name, func(line string) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.consoles[name] = line
				s.show(name)
			})
		}()
	}
	s.say("")
	for _, name := range s.names() {
		reserve := []string{"reserve", imageOf(name), name, "--for", "2h"}
		s.command(reserve...)
		if err := s.starter(ctx, io.Discard, reserve...); err != nil {
			return err
		}
	}
	s.say("")
	reader, writer := io.Pipe()
	watched := make(chan error, 1)
	go func() {
		watched <- s.starter(ctx, writer, append([]string{"-o", "json", "watch", "--until", "ready"}, s.names()...)...)
		writer.Close()
	}()
	for views := json.NewDecoder(reader); ; {
		var view loadlog.View
		if err := views.Decode(&view); err != nil {
			break
		}
		s.mu.Lock()
		s.views[view.Computer] = view
		s.show(view.Computer)
		s.mu.Unlock()
	}
	err := <-watched
	if programs.ExitCode(err) == 1 {
		return nil // one did not become ready: the table says which
	}
	return err
}

// show writes a computer's line when its stage is another one, or when its console says something new and a while has passed.
// The lock is held.
func (s *show) show(name string) {
	view, known := s.views[name]
	if !known {
		return
	}
	doing := string(view.Phase)
	if view.Live != nil && view.Live.Stage != "" {
		doing += ": " + view.Live.Stage
		if view.Live.Stage == "configure" || view.Live.Stage == "fetch image" {
			doing += ", " + view.Live.Detail
		}
	}
	was, console := s.shown[name], s.consoles[name]
	ready := view.Phase == reservation.PhaseReady || view.Over()
	if doing == was.doing && (console == was.console || ready || time.Since(was.at) < showEvery) {
		return
	}
	s.shown[name] = shown{doing, console, time.Now()}
	paint := loadlog.Plain
	if ready {
		paint = loadlog.Good
		if view.Outcome != reservation.OutcomeReady {
			paint = loadlog.Bad
		}
	}
	// Padded before it is painted: what paints has a width, too.
	s.say("%7s  %-10s %s %s", time.Since(s.began).Round(100*time.Millisecond), name,
		s.style.Paint(paint, fmt.Sprintf("%-44s", cut(doing, 44))), s.style.Paint(loadlog.Faint, cut(console, 90)))
}

func cut(text string, most int) string {
	if runes := []rune(loadlog.Clean(text)); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return loadlog.Clean(text)
}

// table logs in to each computer past Berth, and shows what came of all. Its error names who is not ready.
func (s *show) table(ctx context.Context) error {
	table := loadlog.Table{Header: []string{"COMPUTER", "OUTCOME", "ATTEMPT", "READY AFTER", "ITS OWN WORD, BY ANOTHER LOGIN"}, Indent: "  "}
	var wrong []error
	for i, name := range s.names() {
		view := s.views[name]
		outcome, paint, took, word := string(view.Outcome), loadlog.Good, "", ""
		if view.Outcome != reservation.OutcomeReady {
			paint = loadlog.Bad
			wrong = append(wrong, fmt.Errorf("%s is not ready: %s %s", name, view.Phase, view.Reason))
			word = view.Reason
		} else {
			took = loadlog.Span(view.Ready.Sub(view.Began))
			out, err := exec.CommandContext(ctx, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR",
				"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i", s.key, "root@"+libvirthost.Address(i+1),
				`echo "$(hostname), Linux $(uname -r), up $(cut -d ' ' -f 1 /proc/uptime) s, $(grep -o '"attempt": [0-9]*' /etc/berth/load.json)"`).CombinedOutput()
			word = strings.TrimSpace(string(out))
			if err != nil {
				wrong = append(wrong, fmt.Errorf("%s lets nobody in: %w: %s", name, err, word))
			}
		}
		table.Row(loadlog.Cell{Text: name, Paint: loadlog.Strong}, loadlog.Cell{Text: outcome, Paint: paint}, loadlog.Cell{Text: view.Attempt.String()},
			loadlog.Cell{Text: took}, loadlog.Cell{Text: cut(word, 100)})
	}
	s.say("")
	_ = table.Write(s.out, s.style)
	s.say("")
	domains, err := s.host.Virsh(ctx, "list", "--all")
	if err == nil {
		s.say("%s\n%s\n", s.style.Paint(loadlog.Strong, "$ virsh list --all"), domains)
	}
	return errors.Join(append(wrong, err)...)
}

// staying says what a person can do now.
func (s *show) staying() {
	s.say("Everything goes on until Ctrl-C. Try it, in another terminal:")
	s.say("  export BERTH_TEMPORAL_ADDRESS=127.0.0.1:%s BERTH_CATALOG=%s BERTH_USER=demo", s.ports[doorTemporal], s.catalog)
	s.say("  %s list", filepath.Join(s.bin, "starter"))
	if names := s.names(); len(names) > 0 {
		s.say("  %s release %s", filepath.Join(s.bin, "starter"), names[0])
		s.say("  ssh -o UserKnownHostsFile=/dev/null -i %s -p %s root@127.0.0.1     # %s",
			s.key, s.ports[doorGuests+len(names)-1], names[len(names)-1])
	}
	s.say("Temporal's Web UI: %s", s.style.Paint(loadlog.Strong, "http://127.0.0.1:"+s.ports[doorWebUI]))
}

func (s *show) command(args ...string) {
	s.say("%s", s.style.Paint(loadlog.Strong, "$ starter "+strings.Join(args, " ")))
}

// starter runs the production command line to its end.
func (s *show) starter(ctx context.Context, out io.Writer, args ...string) error {
	return programs.Starter(ctx, s.bin, s.environment(), out, args...)
}

// stop ends everything, the worker before what it works with.
func (s *show) stop() {
	if s.worker != nil {
		s.worker.Stop(stopGrace)
	}
	if s.host != nil {
		s.host.Stop()
	}
	if s.server != nil {
		s.server.Stop()
	}
}
