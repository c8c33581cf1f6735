package simsite

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/vmware/govmomi/vim25"
	"golang.org/x/crypto/ssh"

	"berth/internal/simsite/guestos"
	"berth/internal/simsite/winos"
	"berth/internal/simsite/xcatmn"
)

// User is who logs in to the simulated vCenter.
const User = "berth@vsphere.local"

// Options say what Start starts. The zero value is a site of one computer that works.
type Options struct {
	// Dir holds the site's keys, its password, its certificate and the catalog; they are made if they are not there.
	// "" takes a new temporary folder, which Stop removes.
	Dir string
	// Script says what there is and how it behaves; nil is a script without anything. Without templates there is one,
	// debian12-template with the snapshots r1 to r3.
	Script *Script
	// Computers adds as many computers that work, after those of the script: vm-01, vm-02 and so on, skipping names that
	// are taken. A site with no computer at all gets one.
	Computers int
	// Network is what the site answers on in place of the loopback: 256 or more addresses that are all this machine's, on
	// a network that nobody else is on, such as that of a container. The zero value is the loopback.
	Network netip.Prefix
	// Listen is the vCenter's address; "" is 127.0.0.1 and a free port, or port 8989 of the first address of Network.
	// It must be a loopback address, or one of Network.
	Listen string
	// Control is the address of the control API; "" is none, "127.0.0.1:0" takes a free port. It must be a loopback
	// address; with Network it may be one of this machine's, too.
	Control string
	// Guests is where the first computer's guest answers; each further one takes the port after it. "" takes a loopback
	// address that nobody uses (on Linux all of 127.0.0.0/8 is there), and ports from 22001.
	Guests string
	Logger zerolog.Logger
}

// Counts are what happened to the VM of a name, over all clones of that name.
type Counts struct {
	CloneCalls  int `json:"clone_calls"` // calls of CloneVM_Task that made a task
	Clones      int `json:"clones"`      // clones that were made
	PowerOns    int `json:"power_ons"`   // without those of resets
	PowerOffs   int `json:"power_offs"`  // likewise
	Resets      int `json:"resets"`
	Destroys    int `json:"destroys"`
	Reboots     int `json:"reboots"`     // from within the guest
	Connections int `json:"connections"` // to the guest's port
	Logins      int `json:"logins"`      // by SSH or WinRM that succeeded
	Commands    int `json:"commands"`    // begun; counted before their clients hear of it
	Finished    int `json:"finished"`    // of these, those that have run to their end; likewise

	Unknown int `json:"unknown,omitempty"` // commands and scripts that a Windows guest does not know
}

// Guest is how a computer's guest stands.
type Guest struct {
	Name      string `json:"name"`
	Address   string `json:"address,omitempty"`
	VM        string `json:"vm"` // the managed object's ID
	Template  string `json:"template"`
	Snapshot  string `json:"snapshot,omitempty"`
	Linked    bool   `json:"linked"`
	Mark      string `json:"mark,omitempty"`
	Power     string `json:"power"`          // on or off
	Load      int    `json:"load"`           // which load of the name it is, from 1
	Boots     int    `json:"boots"`          // of this clone
	Answering bool   `json:"answering"`      // its port is open
	Hung      bool   `json:"hung,omitempty"` // it died and stays powered on
	BootID    string `json:"boot_id,omitempty"`
	Hostname  string `json:"hostname,omitempty"`
	HostKey   string `json:"host_key,omitempty"` // fingerprint of the key on its disk
	Setup     string `json:"setup,omitempty"`    // of a Windows: the state of its set-up
	Fault     string `json:"fault,omitempty"`    // why its port is not open though it should be

	PoweredOn  time.Time `json:"powered_on,omitzero"`  // this boot's begin
	Opened     time.Time `json:"opened,omitzero"`      // when its port opened: from here on it answers
	Connected  time.Time `json:"connected,omitzero"`   // the first connection of this boot
	FirstLogin time.Time `json:"first_login,omitzero"` // the first login of this boot that succeeded
	Completed  time.Time `json:"completed,omitzero"`   // of a Windows: when its set-up said that it is over
}

// Status is how the whole site stands.
type Status struct {
	Guests []Guest           `json:"guests"` // one for each clone, by name
	Counts map[string]Counts `json:"counts"` // by the VM's name
	Calls  map[string]int    `json:"calls"`  // of the vSphere API, by method
	// MostClones is how many clones have run at once so far, at most.
	MostClones int `json:"most_clones"`
	// Metal is the xCAT management node; nil if there is none.
	Metal *MetalStatus `json:"xcat,omitempty"`
}

// MetalStatus is how a management node stands.
type MetalStatus struct {
	MostArmed int                   `json:"most_armed"` // nodes that were armed at once so far, at most
	Nodes     map[string]NodeStatus `json:"nodes"`
}

// NodeStatus is how a physical node stands, and what happened to it.
type NodeStatus struct {
	xcatmn.State
	xcatmn.Counts
}

// Site is a simulated site that runs. It is safe for concurrent use.
type Site struct {
	log           zerolog.Logger
	dir           string
	temporary     bool
	keep          *keep
	authorizedKey string
	script        Script
	ctx           context.Context
	cancel        context.CancelFunc
	group         group
	vcenter       *vcenter
	metal         *metal // nil if the script has no management node
	servers       []*http.Server
	url           string
	control       string

	writing sync.Mutex // the catalog: one writer at a time

	mu        sync.Mutex
	computers map[string]Computer
	order     []string
	counts    map[string]*Counts
	loads     map[string]int
	nextGuest netip.AddrPort
	stopped   bool
	failed    error
}

// group waits for goroutines, and takes no more once it waits.
type group struct {
	mu     sync.Mutex
	closed bool
	wait   sync.WaitGroup
}

// Go runs f unless the group waits already.
func (g *group) Go(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wait.Go(f)
	}
}

// Wait refuses further goroutines and waits for those that run.
func (g *group) Wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wait.Wait()
}

// Start starts a site: its vCenter serves and the catalog is written when it returns. The site ends with Stop; when ctx
// ends, its servers and guests do. A process may hold several sites, but must start them one after the other: govmomi's
// simulator has tables that belong to the process.
func Start(ctx context.Context, o Options) (*Site, error) {
	s := &Site{log: o.Logger, computers: map[string]Computer{}, counts: map[string]*Counts{}, loads: map[string]int{}}
	if o.Script != nil {
		s.script = *o.Script
	}
	if len(s.script.Templates) == 0 {
		s.script.Templates = []Template{{Name: "debian12-template", Distribution: guestos.Debian12, Snapshots: []string{"r1", "r2", "r3"}}}
	}
	if err := s.script.Check(); err != nil {
		return nil, err
	}
	if o.Network.IsValid() && (!o.Network.Addr().Is4() || o.Network.Bits() > 24) {
		return nil, fmt.Errorf("network is %q: give 256 or more addresses of IPv4, such as 172.18.255.0/24", o.Network)
	}
	network := o.Network.Masked()
	listen, control := o.Listen, o.Control
	if listen == "" {
		listen = "127.0.0.1:0"
		if network.IsValid() {
			listen = netip.AddrPortFrom(network.Addr().Next(), vcenterPort).String()
		}
	}
	for name, address := range map[string]string{"listen": listen, "control": control, "guests": o.Guests} {
		if err := checkAddress(address, network, name == "control"); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	var err error
	if s.nextGuest, err = guestBase(o.Guests, network); err != nil {
		return nil, err
	}
	s.dir = o.Dir
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "simsite-"); err != nil {
			return nil, err
		}
		s.temporary = true
	}
	ok := false
	s.ctx, s.cancel = context.WithCancel(ctx)
	defer func() {
		if !ok {
			s.Stop()
		}
	}()
	if s.keep, err = openKeep(s.dir); err != nil {
		return nil, err
	}
	s.authorizedKey = s.keep.authorizedKey
	if err := s.AddComputers(s.script.Computers...); err != nil {
		return nil, err
	}
	more := o.Computers
	if more == 0 && len(s.script.Computers) == 0 {
		more = 1
	}
	if err := s.AddComputers(s.plain(more)...); err != nil {
		return nil, err
	}
	if s.vcenter, err = newVCenter(s.ctx, s, &s.script, User, s.keep.password); err != nil {
		return nil, err
	}
	if s.script.Metal != nil {
		base, err := nodeBase(network)
		if err == nil {
			err = s.startMetal(s.ctx, *s.script.Metal, base, network)
		}
		if err != nil {
			return nil, fmt.Errorf("xCAT management node: %w", err)
		}
	}
	address, err := s.serve(listen, s.sdk(), &tls.Config{Certificates: []tls.Certificate{s.keep.certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	if err != nil {
		return nil, fmt.Errorf("vCenter: %w", err)
	}
	s.url = "https://" + address + vim25.Path
	if control != "" {
		if s.control, err = s.serve(control, s.controlAPI(), nil); err != nil {
			return nil, fmt.Errorf("control API: %w", err)
		}
		s.control = "http://" + s.control
	}
	if err := s.WriteCatalog(); err != nil {
		return nil, err
	}
	context.AfterFunc(s.ctx, s.close)
	ok = true
	return s, nil
}

// checkAddress refuses what others than this machine could reach, unless network is where they may: the guests' image has
// a known password. any lets every address of the machine pass then.
func checkAddress(address string, network netip.Prefix, any bool) error {
	if address == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is no address: write one such as 127.0.0.1:8989", address)
	}
	ip, err := netip.ParseAddr(host)
	if network.IsValid() && err == nil && (any || network.Contains(ip)) {
		return nil
	}
	if err != nil || !ip.IsLoopback() {
		return fmt.Errorf("%q is not on the loopback: write an address of 127.0.0.0/8, such as 127.0.0.1:8989", address)
	}
	return nil
}

// The ports of a site that has a network of its own; the guests' is everybody's.
const (
	vcenterPort    = 8989
	firstGuestPort = 22001
)

// guestBase returns where the first guest answers.
func guestBase(address string, network netip.Prefix) (netip.AddrPort, error) {
	switch {
	case address != "":
		return netip.ParseAddrPort(address)
	case network.IsValid():
		return netip.AddrPortFrom(network.Addr().Next(), firstGuestPort), nil
	}
	// Each site takes an address of its own out of 127.64.0.0/10, so that sites of tests that run side by side do not meet.
	for range 20 {
		ip := netip.AddrFrom4([4]byte{127, byte(64 + rand.IntN(64)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))}) //nolint:gosec // no secret
		base := netip.AddrPortFrom(ip, firstGuestPort)
		if probe, err := net.Listen("tcp", base.String()); err == nil {
			probe.Close()
			return base, nil
		}
	}
	return netip.AddrPort{}, errors.New("no address of 127.64.0.0/10 can be listened on: say where the guests may answer (guests: 127.0.0.1:22001)")
}

// nodeBase returns the address before that of the first physical node. Each node has one of its own, because a management
// node knows its nodes by their addresses; sites that run side by side take theirs out of different networks.
func nodeBase(network netip.Prefix) (netip.Addr, error) {
	if network.IsValid() {
		return network.Addr().Next(), nil // which is the vCenter's and the guests'
	}
	for range 20 {
		ip := netip.AddrFrom4([4]byte{127, byte(192 + rand.IntN(63)), byte(rand.IntN(256)), 0}) //nolint:gosec // no secret
		if probe, err := net.Listen("tcp", netip.AddrPortFrom(ip.Next(), metalSSHPort).String()); err == nil {
			probe.Close()
			return ip, nil
		}
	}
	return netip.Addr{}, errors.New("no address of 127.192.0.0/10 can be listened on")
}

// plain returns n computers that work.
func (s *Site) plain(n int) []Computer {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Computer
	for i := 1; len(all) < n; i++ {
		name := fmt.Sprintf("vm-%02d", i)
		if _, taken := s.computers[name]; !taken {
			all = append(all, Computer{Name: name})
		}
	}
	return all
}

// AddComputers adds computers to the site, or replaces those of the same names. The catalog does not hold them until
// WriteCatalog is called.
func (s *Site) AddComputers(computers ...Computer) error {
	var errs []error
	for i, c := range computers {
		for _, f := range c.faults(fmt.Sprintf("computers[%d].", i)) {
			errs = append(errs, f)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	used := map[string]bool{}
	for _, c := range s.computers {
		used[c.Address] = true
	}
	for _, c := range computers {
		used[c.Address] = true
	}
	for _, c := range computers {
		known, ok := s.computers[c.Name]
		if !ok {
			s.order = append(s.order, c.Name)
		}
		if c.Address == "" && ok {
			c.Address = known.Address
		}
		for c.Address == "" {
			if !used[s.nextGuest.String()] {
				c.Address = s.nextGuest.String()
				used[c.Address] = true
			}
			next := s.nextGuest.Port() + 1
			if next == 0 {
				return errors.New("there are no more ports for guests")
			}
			s.nextGuest = netip.AddrPortFrom(s.nextGuest.Addr(), next)
		}
		s.computers[c.Name] = c
	}
	return nil
}

// index returns a computer's place in the order in which they were added.
func (s *Site) index(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Index(s.order, name)
}

// beginLoad counts one more load of a name.
func (s *Site) beginLoad(name string) *load {
	s.count(name, func(c *Counts) { c.CloneCalls++ })
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &load{number: s.loads[name], behaviours: s.computers[name].Behaviours, defaults: s.script.Defaults}
	s.loads[name]++
	return l
}

func (s *Site) count(name string, add func(*Counts)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts[name] == nil {
		s.counts[name] = &Counts{}
	}
	add(s.counts[name])
}

// pause waits, or returns when the site ends.
func (s *Site) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
}

// sdk is what the vCenter serves over HTTPS.
func (s *Site) sdk() http.Handler {
	service := s.vcenter.model.Service
	service.RegisterSDK(s.vcenter.registry, vim25.Path+"/vimService")
	service.ServeMux.HandleFunc(vim25.Path+"/vimServiceVersions.xml", service.ServiceVersions)
	service.ServeMux.HandleFunc("/about", service.About)
	return service.ServeMux
}

// serve listens and serves until the site ends. It returns the address.
func (s *Site) serve(address string, handler http.Handler, config *tls.Config) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(s.ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("%w: is another site running there? Choose another address", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	at := listener.Addr().String()
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	s.mu.Lock()
	s.servers = append(s.servers, server)
	s.mu.Unlock()
	s.group.Go(func() {
		if err := server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.mu.Lock()
			s.failed = err
			s.mu.Unlock()
			s.cancel()
		}
	})
	return at, nil
}

// close closes every port of the site.
func (s *Site) close() {
	s.mu.Lock()
	servers := s.servers
	s.mu.Unlock()
	for _, server := range servers {
		_ = server.Close()
	}
	if s.vcenter == nil {
		return
	}
	for _, g := range s.vcenter.guests() {
		if t := g.current(); t != nil {
			t.end()
		}
	}
}

// Stop ends the site: its servers, its guests, and a temporary folder. It may be called again.
func (s *Site) Stop() {
	s.mu.Lock()
	stopped := s.stopped
	s.stopped = true
	s.mu.Unlock()
	s.cancel()
	if stopped {
		return
	}
	s.close()
	s.group.Wait()
	if s.vcenter != nil {
		s.vcenter.close()
	}
	if m := s.Metal(); m != nil {
		m.Close()
	}
	if s.temporary {
		_ = os.RemoveAll(s.dir)
	}
}

// Done is closed when the site ends: by Stop, with Start's context, or because a server of its broke (see Err).
func (s *Site) Done() <-chan struct{} { return s.ctx.Done() }

// Err returns why the site ended by itself; nil if it did not.
func (s *Site) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// URL returns the vCenter's, as https://ADDRESS/sdk, without user and password.
func (s *Site) URL() string { return s.url }

// Control returns the control API's URL; "" when there is none.
func (s *Site) Control() string { return s.control }

// Thumbprint returns the SHA-256 fingerprint of the vCenter's certificate, as pairs of hex digits.
func (s *Site) Thumbprint() string { return s.keep.thumbprint }

// Password returns the password of User.
func (s *Site) Password() string { return s.keep.password }

// WindowsPassword returns the password of the administrator of Windows guests.
func (s *Site) WindowsPassword() string { return s.keep.windows }

// PrivateKey returns the key, as PEM, that logs in to the guests as root.
func (s *Site) PrivateKey() []byte { return slices.Clone(s.keep.privateKey) }

// Dir returns the folder of the site's files.
func (s *Site) Dir() string { return s.dir }

// Catalog returns the path of the catalog.
func (s *Site) Catalog() string { return filepath.Join(s.dir, catalogFile) }

// Computers returns the site's computers, in order, with their addresses.
func (s *Site) Computers() []Computer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Computer, len(s.order))
	for i, name := range s.order {
		all[i] = s.computers[name]
	}
	return all
}

// Counts returns what happened to the VM of a name.
func (s *Site) Counts(name string) Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.counts[name]; c != nil {
		return *c
	}
	return Counts{}
}

// Calls returns how often each method of the vSphere API was called.
func (s *Site) Calls() map[string]int { return s.vcenter.Calls() }

// ResetCalls begins to count the calls of the vSphere API anew.
func (s *Site) ResetCalls() {
	s.vcenter.mu.Lock()
	s.vcenter.calls = map[string]int{}
	s.vcenter.mu.Unlock()
}

// Status returns how the site stands.
func (s *Site) Status() Status {
	st := Status{Guests: []Guest{}, Counts: map[string]Counts{}, Calls: s.Calls(), MostClones: s.vcenter.mostClones()}
	for _, g := range s.guests() {
		st.Guests = append(st.Guests, g.describe())
	}
	if s.metal != nil {
		st.Metal = s.metal.status()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range s.counts {
		st.Counts[name] = *c
	}
	return st
}

// NoGuestError says that there is no VM of a name.
type NoGuestError struct{ Name string }

func (e *NoGuestError) Error() string {
	return fmt.Sprintf("the site has no VM %q now: it was not cloned yet, or was destroyed", e.Name)
}

// guests returns the operating systems of all computers that have one.
func (s *Site) guests() []*guest {
	all := s.vcenter.guests()
	if s.metal != nil {
		all = append(all, s.metal.guests()...)
	}
	return all
}

func (s *Site) find(name string) (*guest, error) {
	for _, g := range s.guests() {
		if g.name == name {
			return g, nil
		}
	}
	return nil, &NoGuestError{Name: name}
}

func (s *Site) findMachine(name string) (*guest, system, error) {
	g, err := s.find(name)
	if err != nil {
		return nil, nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.machine == nil {
		return nil, nil, fmt.Errorf("%s was never powered on: there is nothing on its disk yet", name)
	}
	return g, g.machine, nil
}

// Guest returns how the guest of a name stands. Its error is a *NoGuestError.
func (s *Site) Guest(name string) (Guest, error) {
	g, err := s.find(name)
	if err != nil {
		return Guest{}, err
	}
	return g.describe(), nil
}

func (g *guest) describe() Guest {
	g.mu.Lock()
	t, machine := g.boot, g.machine
	d := Guest{Name: g.name, Address: g.address, VM: g.ref.Value, Template: g.template, Snapshot: g.snapshot, Linked: g.linked, Mark: g.mark,
		Power: "off", Load: g.load.number + 1, Boots: g.boots}
	if g.powered {
		d.Power = "on"
	}
	g.mu.Unlock()
	if machine != nil {
		d.Hostname = machine.Hostname()
		d.HostKey = fingerprint(machine)
		if windows, ok := machine.(*winos.Machine); ok {
			setup := windows.Setup()
			d.Setup, d.Completed = setup.State, setup.Completed
			if setup.Failed {
				d.Setup += ", failed"
			}
		}
	}
	if t != nil {
		d.BootID = machine.BootID()
		t.mu.Lock()
		defer t.mu.Unlock()
		d.Answering = t.listener != nil && !t.isHung()
		d.Hung, d.Fault = t.isHung(), t.fault
		d.PoweredOn, d.Opened, d.Connected, d.FirstLogin = t.began, t.opened, t.banner, t.login
	}
	return d
}

// fingerprint returns the fingerprint of the host key on a guest's disk; "" when there is none yet.
func fingerprint(machine system) string {
	path := guestos.HostKeyPath
	if _, ok := machine.(*winos.Machine); ok {
		path = winos.HostKeyPath
	}
	text, err := machine.ReadFile(path)
	if err != nil {
		return ""
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(key.PublicKey())
}

// Machine returns a Linux guest's operating system: its files, firewall and passwords. Its error is a *NoGuestError, or
// says that it was never powered on or is no Linux.
func (s *Site) Machine(name string) (*guestos.Machine, error) {
	_, machine, err := s.findMachine(name)
	if err != nil {
		return nil, err
	}
	linux, ok := machine.(*guestos.Machine)
	if !ok {
		return nil, fmt.Errorf("%s is a Windows guest: ask for it with Windows", name)
	}
	return linux, nil
}

// Windows returns a Windows guest's operating system, as Machine does.
func (s *Site) Windows(name string) (*winos.Machine, error) {
	_, machine, err := s.findMachine(name)
	if err != nil {
		return nil, err
	}
	windows, ok := machine.(*winos.Machine)
	if !ok {
		return nil, fmt.Errorf("%s is a Linux guest: ask for it with Machine", name)
	}
	return windows, nil
}

// ReadFile returns a file of a guest's disk. On a Windows guest /C:/folder/file is C:\folder\file.
func (s *Site) ReadFile(name, path string) ([]byte, error) {
	_, machine, err := s.findMachine(name)
	if err != nil {
		return nil, err
	}
	if _, ok := machine.(*winos.Machine); ok {
		path = strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", `\`)
	}
	return machine.ReadFile(path)
}

// SetGuest changes how a computer behaves, from its next load (or, for Boots, its next boot) on; loads count from the
// first again.
func (s *Site) SetGuest(name string, b Behaviours) error {
	var errs []error
	for _, f := range b.faults("") {
		errs = append(errs, f)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.mu.Lock()
	c, ok := s.computers[name]
	if !ok {
		s.mu.Unlock()
		return fmt.Errorf("the site has no computer %q: add it first", name)
	}
	c.Behaviours = b
	s.computers[name] = c
	s.loads[name] = 0
	s.mu.Unlock()
	if g, err := s.find(name); err == nil && len(b.Boots) > 0 {
		g.mu.Lock()
		g.load = &load{number: g.load.number, behaviours: b, defaults: g.load.defaults}
		g.mu.Unlock()
	}
	return nil
}

// Do does something to a guest that is powered on: "reboot", "power-off", "hang", "drop" (its connections are reset) or
// "new-key" (another host key, from the next connection on).
func (s *Site) Do(name, action string) error {
	g, machine, err := s.findMachine(name)
	if err != nil {
		return err
	}
	t := g.current()
	if t == nil {
		return fmt.Errorf("%s is powered off", name)
	}
	switch action {
	case "reboot":
		g.restart(0)
	case "power-off":
		return g.off()
	case "hang":
		t.hang()
	case "drop":
		t.reset()
	case "new-key":
		return machine.ForgetHostKey()
	default:
		return fmt.Errorf("action is %q: use reboot, power-off, hang, drop or new-key", action)
	}
	return nil
}

// ExpireSessions ends every session of the vCenter, and returns how many there were. What their owners call next is
// answered with NotAuthenticated.
func (s *Site) ExpireSessions() int { return s.vcenter.expireSessions() }

// AddFault makes calls of the vSphere API, or their tasks, fail from now on.
func (s *Site) AddFault(f Fault) error {
	var errs []error
	for _, fault := range f.faults("fault") {
		errs = append(errs, fault)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.vcenter.addFault(f)
	return nil
}

// ClearFaults removes every fault, those of the script too.
func (s *Site) ClearFaults() { s.vcenter.clearFaults() }

// SetAPIDelay delays the answer of each call of the vSphere API.
func (s *Site) SetAPIDelay(d time.Duration) {
	s.vcenter.mu.Lock()
	s.vcenter.delay = d
	s.vcenter.mu.Unlock()
}
