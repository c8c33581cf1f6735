package simsite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/crypto/ssh"

	"berth/internal/simsite/guestos"
	"berth/internal/simsite/winos"
	"berth/reservation"
)

// system is a guest's operating system: a *guestos.Machine or a *winos.Machine.
type system interface {
	BootID() string
	Hostname() string
	ReadFile(path string) ([]byte, error)
	HostKey() (ssh.Signer, error)
	SetHostKey(pem []byte) error
	ForgetHostKey() error
	Authorized(user string, key ssh.PublicKey) bool
	Login(user, password string) bool
	Run(ctx context.Context, line string, in io.Reader, out, errOut io.Writer, env []string) int
}

// image is what a template's disk holds: the one or the other.
type image struct {
	linux   *guestos.Image
	windows *winos.Image
	channel string // of a Windows: ssh or winrm
}

// load is one call that clones to a computer's name: it decides how the guest behaves.
type load struct {
	number     int // from 0
	behaviours Behaviours
	defaults   Behaviour
}

// behaviour is that of the load, or of its first boot.
func (l *load) behaviour() Behaviour { return l.boot(0) }

// boot is how the n-th boot of the load's clone goes, from 0.
func (l *load) boot(n int) Behaviour {
	if len(l.behaviours.Boots) > 0 {
		return at(l.behaviours.Boots, n).over(l.defaults)
	}
	return at(l.behaviours.Loads, l.number).over(l.defaults)
}

// guest is the operating system of one clone. It follows the VM's power state.
type guest struct {
	site    *Site
	name    string
	ref     types.ManagedObjectReference
	address string // "" when the VM's name is no computer of the site's: nobody can reach it
	image   *image
	load    *load
	off     func() error // cuts its power from within

	template, snapshot string
	linked             bool

	mu        sync.Mutex
	machine   system // nil before the first power-on
	powered   bool
	reset     bool // a reset is under way
	wasCycled bool // it was powered off and on again
	boots     int
	rebooted  int
	boot      *boot
	mark      string
	wrong     ssh.Signer
	gone      bool
}

// boot is the guest's time from one start of its kernel to its end.
type boot struct {
	guest     *guest
	number    int
	behaviour Behaviour
	began     time.Time
	ctx       context.Context
	cancel    context.CancelFunc

	mu       sync.Mutex
	address  string // where its port is to be open; "" is nowhere
	listener net.Listener
	conns    map[net.Conn]struct{}
	opened   time.Time // its port
	login    time.Time // the first one that succeeded
	banner   time.Time // the first connection
	hung     chan struct{}
	fault    string
	winrm    *winrmService // nil before the first connection
}

func (s *Site) newGuest(name string, ref types.ManagedObjectReference, l *load, image *image) *guest {
	g := &guest{site: s, name: name, ref: ref, image: image, load: l, off: func() error { return s.vcenter.switchOff(ref) }}
	s.mu.Lock()
	if c, ok := s.computers[name]; ok {
		g.address = c.Address
	}
	s.mu.Unlock()
	return g
}

// next is how the boot that comes next goes.
func (g *guest) next() Behaviour {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.load.boot(g.boots)
}

func (g *guest) resetting(on bool) {
	if g == nil {
		return
	}
	g.mu.Lock()
	g.reset = on
	g.mu.Unlock()
	if on {
		g.site.count(g.name, func(c *Counts) { c.Resets++ })
	}
}

func (g *guest) setMark(mark string) {
	g.mu.Lock()
	g.mark = mark
	g.mu.Unlock()
}

// powerOn starts the guest. It is called under locks of the simulator's and must not wait.
func (g *guest) powerOn(h hardware) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.powered || g.gone {
		return
	}
	g.powered = true
	g.mark = h.mark
	g.wasCycled = g.boots > 0
	if !g.reset {
		g.site.count(g.name, func(c *Counts) { c.PowerOns++ })
	}
	if g.image == nil {
		return // an empty disk: it is on, and nothing starts
	}
	b := g.load.boot(g.boots)
	if g.machine == nil {
		g.machine = g.install(b, h)
	}
	if h.hostKey != "" {
		if err := g.machine.SetHostKey([]byte(h.hostKey)); err != nil {
			g.site.log.Warn().Str("computer", g.name).Err(err).Msg("the host key in the VM's configuration is none")
		}
	}
	g.start(b, b.Late.Std())
}

// install puts the image onto the guest's disk.
func (g *guest) install(b Behaviour, h hardware) system {
	if g.image.windows != nil {
		return g.installWindows(b, h)
	}
	return guestos.New(guestos.Options{Image: g.image.linux, Name: g.name, Interfaces: g.interfaces(h.macs), Offset: b.ClockOffset.Std(), Port: g.port(),
		Hooks: guestos.Hooks{Reboot: func() { g.restart(0) }, PowerOff: func() { g.die(diesOff) }, CloudInit: g.cloudInit, Executing: g.executing}})
}

func (g *guest) port() int {
	if a, err := netip.ParseAddrPort(g.address); err == nil {
		return int(a.Port())
	}
	return 22
}

// interfaces are the guest's: one a card. The last has the public address and the default route; one that is not the last
// is private. The control address is the loopback of the machine that runs the simulation, and on no card.
func (g *guest) interfaces(macs []string) []guestos.Interface {
	all := []guestos.Interface{{Name: "lo", MAC: "00:00:00:00:00:00", Address: netip.MustParsePrefix("127.0.0.1/8")}}
	n := g.site.index(g.name) + 2
	for i, mac := range macs {
		card := guestos.Interface{Name: fmt.Sprintf("ens%d", 192+32*i), MAC: mac}
		if i == len(macs)-1 {
			card.Address = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), 15) // RFC 2544: for tests
			card.Default = netip.AddrFrom4([4]byte{198, 18, 0, 1})
		} else {
			card.Address = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(77 + i), byte(n >> 8), byte(n)}), 16)
		}
		all = append(all, card)
	}
	return all
}

// start begins a boot whose port opens after a while. The guest's lock must be held.
func (g *guest) start(b Behaviour, late time.Duration) {
	ctx, cancel := context.WithCancel(g.site.ctx)
	linux, isLinux := g.machine.(*guestos.Machine)
	if isLinux {
		linux.Boot()
	}
	if b.KeyChanges && g.boots > 0 {
		_ = g.machine.ForgetHostKey()
	}
	g.boots++
	t := &boot{guest: g, number: g.boots, behaviour: b, began: time.Now(), ctx: ctx, cancel: cancel, conns: map[net.Conn]struct{}{}, hung: make(chan struct{})}
	g.boot = t
	silent := b.Silent || b.AnswersAfterReset && !g.wasCycled
	if silent || g.address == "" {
		return
	}
	begin := func() { t.open(g.address) }
	if windows, ok := g.machine.(*winos.Machine); ok {
		begin = func() { g.site.group.Go(func() { windows.Live(ctx) }) } // it says itself when its port opens
	}
	timer := time.AfterFunc(late, begin)
	context.AfterFunc(ctx, func() { timer.Stop() })
}

// powerOff ends the guest at once, as pulling the plug does.
func (g *guest) powerOff() {
	g.mu.Lock()
	t := g.boot
	was := g.powered
	g.boot, g.powered = nil, false
	reset := g.reset
	g.mu.Unlock()
	if was && !reset {
		g.site.count(g.name, func(c *Counts) { c.PowerOffs++ })
	}
	if t != nil {
		t.end()
	}
}

// destroy forgets the guest's disk.
func (g *guest) destroy() {
	g.powerOff()
	g.mu.Lock()
	g.gone = true
	g.machine = nil
	g.mu.Unlock()
	g.site.count(g.name, func(c *Counts) { c.Destroys++ })
}

// restart reboots the guest from within. It returns at once. It takes as long as the script says unless takes is given.
func (g *guest) restart(takes time.Duration) {
	g.site.group.Go(func() {
		g.mu.Lock()
		t := g.boot
		g.mu.Unlock()
		if t == nil {
			return
		}
		t.end()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.boot != t || g.machine == nil {
			return // its power went in the meantime
		}
		g.rebooted++
		g.site.count(g.name, func(c *Counts) { c.Reboots++ })
		b := g.load.boot(g.boots)
		g.start(b, cmp.Or(takes, b.RebootTakes.Std(), 300*time.Millisecond))
	})
}

// die ends the guest the way the script says.
func (g *guest) die(how string) {
	g.mu.Lock()
	t := g.boot
	g.mu.Unlock()
	if t == nil {
		return
	}
	if how == diesHang {
		t.hang()
		return
	}
	g.site.group.Go(func() {
		if err := g.off(); err != nil {
			g.site.log.Debug().Str("computer", g.name).Err(err).Msg("a guest that died was off already")
		}
	})
}

// current returns the boot that goes on, or nil.
func (g *guest) current() *boot {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.boot
}

func (g *guest) cloudInit() guestos.CloudInit {
	g.mu.Lock()
	t, rebooted := g.boot, g.rebooted
	g.mu.Unlock()
	if t == nil {
		return guestos.CloudInit{}
	}
	t.mu.Lock()
	opened := t.opened
	t.mu.Unlock()
	b := t.behaviour
	return guestos.CloudInit{Running: rebooted < b.Reboots || opened.IsZero() || time.Since(opened) < b.SlowCloudInit.Std(), Error: b.CloudInitError}
}

// executing is asked before a command runs.
func (g *guest) executing(_ context.Context, command string) bool {
	t := g.current()
	if t == nil {
		return false
	}
	if t.behaviour.DiesIn != "" && t.behaviour.DiesIn == command {
		g.die(t.behaviour.Dies)
		<-t.ctx.Done() // a dead guest reports no exit code
		return false
	}
	return true
}

// open opens the port at an address: from here on the guest answers there, and nowhere else.
func (t *boot) open(address string) {
	t.shut()
	t.mu.Lock()
	t.address = address
	t.mu.Unlock()
	t.listen(address)
}

func (t *boot) listen(address string) {
	g := t.guest
	listener, err := (&net.ListenConfig{}).Listen(t.ctx, "tcp", address)
	if err != nil {
		if t.ctx.Err() != nil {
			return
		}
		t.mu.Lock()
		wanted := t.address == address
		if wanted {
			t.fault = err.Error()
		}
		t.mu.Unlock()
		if !wanted {
			return
		}
		g.site.log.Warn().Str("computer", g.name).Err(err).Msg("the guest's port cannot be opened; trying again")
		timer := time.AfterFunc(200*time.Millisecond, func() { t.listen(address) })
		context.AfterFunc(t.ctx, func() { timer.Stop() })
		return
	}
	t.mu.Lock()
	if t.ctx.Err() != nil || t.address != address {
		t.mu.Unlock()
		listener.Close()
		return
	}
	first := t.opened.IsZero()
	if first {
		t.opened = time.Now()
	}
	t.listener, t.fault = listener, ""
	t.mu.Unlock()
	g.site.group.Go(func() { t.accept(listener) })
	if !first {
		return
	}
	if linux, ok := g.machineNow().(*guestos.Machine); ok {
		g.site.group.Go(func() { linux.StartUnits(t.ctx) })
	}

	after := func(d time.Duration, do func()) {
		timer := time.AfterFunc(d, do)
		context.AfterFunc(t.ctx, func() { timer.Stop() })
	}
	b := t.behaviour
	g.mu.Lock()
	again := g.rebooted < b.Reboots
	g.mu.Unlock()
	if again {
		d := b.RebootsAfter.Std()
		if d == 0 {
			d = time.Second
		}
		after(d, func() { g.restart(0) })
	} else if b.DiesAfter > 0 {
		after(b.DiesAfter.Std(), func() { g.die(b.Dies) })
	}
}

func (g *guest) machineNow() system {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil {
		if g.image.windows != nil {
			return winos.New(winos.Options{Image: *g.image.windows})
		}
		return guestos.New(guestos.Options{Image: g.image.linux}) // it was destroyed this moment: whatever asks talks to an empty room
	}
	return g.machine
}

// end closes the port and resets every connection. Connections go first: what the boot's end does to commands is nothing that
// their clients could be told.
func (t *boot) end() {
	t.shut()
	t.cancel()
	t.shut() // what came in between
	t.endWinRM()
}

// shut closes the port and resets every connection; the boot goes on.
func (t *boot) shut() {
	t.mu.Lock()
	listener := t.listener
	t.listener, t.address = nil, ""
	conns := t.conns
	t.conns = map[net.Conn]struct{}{}
	t.mu.Unlock()
	if listener != nil {
		listener.Close()
	}
	for conn := range conns {
		drop(conn)
	}
}

// reset resets every connection, and the port stays open.
func (t *boot) reset() {
	t.mu.Lock()
	conns := slices.Collect(maps.Keys(t.conns))
	t.mu.Unlock()
	for _, conn := range conns {
		drop(conn)
	}
}

// drop resets a connection: the peer gets an error, not an end.
func drop(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

func (t *boot) hang() {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-t.hung:
	default:
		close(t.hung)
	}
}

func (t *boot) isHung() bool {
	select {
	case <-t.hung:
		return true
	default:
		return false
	}
}

func (t *boot) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			if t.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				t.guest.site.pause(10 * time.Millisecond) // out of descriptors, perhaps
				continue
			}
			return
		}
		t.mu.Lock()
		if t.ctx.Err() != nil || t.listener != listener {
			t.mu.Unlock()
			drop(conn)
			return
		}
		t.conns[conn] = struct{}{}
		if t.banner.IsZero() {
			t.banner = time.Now()
		}
		t.mu.Unlock()
		t.guest.site.count(t.guest.name, func(c *Counts) { c.Connections++ })
		t.guest.site.group.Go(func() {
			defer func() {
				t.mu.Lock()
				delete(t.conns, conn)
				t.mu.Unlock()
				_ = conn.Close()
			}()
			t.serve(conn)
		})
	}
}

// gate is a connection of a guest that may hang: then it takes and gives nothing more, and stays open.
type gate struct {
	net.Conn
	t *boot
}

func (g gate) wait() error {
	if g.t.isHung() {
		<-g.t.ctx.Done()
		return net.ErrClosed
	}
	return nil
}

func (g gate) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if hung := g.wait(); hung != nil {
		return 0, hung
	}
	return n, err
}

func (g gate) Write(p []byte) (int, error) {
	if err := g.wait(); err != nil {
		return 0, err
	}
	return g.Conn.Write(p)
}

// signer returns the host key that this boot shows.
func (t *boot) signer() (ssh.Signer, error) {
	g := t.guest
	if !t.behaviour.WrongKey {
		return g.machineNow().HostKey()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wrong == nil {
		signer, err := guestos.NewSigner()
		if err != nil {
			return nil, err
		}
		g.wrong = signer
	}
	return g.wrong, nil
}

func (t *boot) serve(conn net.Conn) {
	b := t.behaviour
	if b.Refuses == refusesConnections {
		drop(conn)
		return
	}
	if b.BannerHang || t.isHung() {
		<-t.ctx.Done()
		return
	}
	if t.guest.image.channel == reservation.ChannelWinRM {
		t.serveWinRM(conn)
		return
	}
	machine := t.guest.machineNow()
	signer, err := t.signer()
	if err != nil {
		t.guest.site.log.Error().Str("computer", t.guest.name).Err(err).Msg("no host key")
		return
	}
	version := "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3"
	if t.guest.image.windows != nil {
		version = "SSH-2.0-OpenSSH_for_Windows_9.5"
	}
	config := &ssh.ServerConfig{
		ServerVersion: version,
		PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if !t.lets() {
				return nil, errors.New("not yet")
			}
			if !machine.Authorized(c.User(), key) {
				return nil, errors.New("key not authorized")
			}
			return nil, nil
		},
		PasswordCallback: func(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if !t.lets() {
				return nil, errors.New("not yet")
			}
			if !machine.Login(c.User(), string(password)) {
				return nil, errors.New("wrong password")
			}
			return nil, nil
		},
	}
	config.AddHostKey(signer)
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute)) // sshd's LoginGraceTime
	server, channels, requests, err := ssh.NewServerConn(gate{conn, t}, config)
	if err != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	t.loggedIn()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	go ssh.DiscardRequests(requests)
	for channel := range channels {
		if channel.ChannelType() != "session" {
			_ = channel.Reject(ssh.UnknownChannelType, "only sessions here")
			continue
		}
		ch, requests, err := channel.Accept()
		if err != nil {
			return
		}
		sessions.Go(func() { t.session(server, machine, ch, requests) })
	}
}

// lets says whether anybody may log in now.
func (t *boot) lets() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.behaviour.Refuses != refusesLogins && time.Since(t.opened) >= t.behaviour.AuthLate.Std()
}

func (t *boot) loggedIn() {
	t.mu.Lock()
	if t.login.IsZero() {
		t.login = time.Now()
	}
	t.mu.Unlock()
	t.guest.site.count(t.guest.name, func(c *Counts) { c.Logins++ })
}

// session serves one session: environment, then a command or a shell.
func (t *boot) session(conn *ssh.ServerConn, machine system, ch ssh.Channel, requests <-chan *ssh.Request) {
	defer ch.Close()
	remote, local := conn.RemoteAddr().(*net.TCPAddr), conn.LocalAddr().(*net.TCPAddr)
	env := []string{fmt.Sprintf("SSH_CONNECTION=%s %d %s %d", remote.IP, remote.Port, local.IP, local.Port),
		fmt.Sprintf("SSH_CLIENT=%s %d %d", remote.IP, remote.Port, local.Port)}
	for request := range requests {
		line := ""
		switch request.Type {
		case "env":
			var v struct{ Name, Value string }
			if ssh.Unmarshal(request.Payload, &v) == nil && (v.Name == "LANG" || strings.HasPrefix(v.Name, "LC_")) {
				env = append(env, v.Name+"="+v.Value)
			}
			_ = request.Reply(true, nil)
			continue
		case "pty-req":
			_ = request.Reply(true, nil)
			continue
		case "exec":
			var v struct{ Command string }
			if t.behaviour.Refuses == refusesCommands || ssh.Unmarshal(request.Payload, &v) != nil {
				_ = request.Reply(false, nil)
				continue
			}
			line = v.Command
		case "shell":
			if t.behaviour.Refuses == refusesCommands {
				_ = request.Reply(false, nil)
				continue
			}
			line = "sh -s"
		default:
			_ = request.Reply(false, nil)
			continue
		}
		t.guest.site.count(t.guest.name, func(c *Counts) { c.Commands++ })
		_ = request.Reply(true, nil)
		go ssh.DiscardRequests(requests)
		status := t.run(t.ctx, machine, line, ch, ch, ch.Stderr(), env)
		t.guest.site.count(t.guest.name, func(c *Counts) { c.Finished++ })
		_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)})) //nolint:gosec // 0 to 255
		return
	}
}

// run runs one command line. It goes on when the client is lost, as it does under sshd, and ends with the boot, or with ctx.
func (t *boot) run(ctx context.Context, machine system, line string, input io.Reader, out, errOut io.Writer, env []string) int {
	const killed = 137
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	began := time.Now()
	if t.guest.image.linux != nil {
		if text := t.behaviour.DiesIn; text != "" && strings.Contains(line, text) && !slices.Contains(guestos.Commands(), text) {
			t.guest.die(t.behaviour.Dies)
			<-t.ctx.Done()
			return killed
		}
		// The interpreter reads its input from a file of the system's: a reader of ours would be drained ahead of the script.
		in, feed, err := os.Pipe()
		if err != nil {
			return killed
		}
		defer in.Close()
		stop := context.AfterFunc(ctx, func() { _ = in.Close() })
		defer stop()
		from := input
		go func() {
			_, _ = io.Copy(feed, from)
			_ = feed.Close()
		}()
		input = in
	}
	status := machine.Run(ctx, line, input, out, errOut, env)
	if d := t.behaviour.ExecTakes.Std() - time.Since(began); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return killed
		}
	}
	if t.isHung() {
		<-t.ctx.Done()
	}
	return status
}
