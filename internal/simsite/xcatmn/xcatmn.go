// Package xcatmn is a simulated xCAT management node with the machines that it manages, for tests and for a simulated site.
//
// xcatd answers on TLS as xCAT 2.19 does, the texts and the stream of its answers byte for byte. The machines have BMCs that
// follow rpower and rsetboot, boot from the net or from their disk as nodeset says, show an installer that answers "stat", and
// send their notes to the monitor port from addresses of their own. A mode gives a machine one of the faults of a machine room.
package xcatmn

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mode is how a node behaves.
type Mode string

// The modes.
const (
	Works          Mode = "works"
	NoPXE          Mode = "no-pxe"           // gets no answer from the net: nothing ever starts
	PXELostOnce    Mode = "pxe-lost-once"    // its first boot from the net gets none
	PXELostTwice   Mode = "pxe-lost-twice"   // its first two get none
	Hangs          Mode = "hangs"            // the installer stops at 40 %
	HangsOnce      Mode = "hangs-once"       // the first install does
	PostFails      Mode = "post-fails"       // a post script fails: status failed, and the node stays in the installer
	NextLost       Mode = "next-lost"        // the note that the disk is loaded gets lost: the node stays armed
	NeverCallsBack Mode = "never-calls-back" // no status; only the provisioning state moves
	SlowSSHD       Mode = "slow-sshd"        // its OS answers late
	BMCDead        Mode = "bmc-dead"         // rpower and rsetboot time out after 14 s
	BMCRefuses     Mode = "bmc-refuses"      // the BMC answers, and does not power on
	BlankStatus    Mode = "blank-status"     // each second lsdef says that the status is blank
	StaleCache     Mode = "stale-cache"      // lsdef tells what was so up to 5 s ago
	Slow           Mode = "slow"             // each command takes 30 s
	Restarts       Mode = "xcatd-restarts"   // xcatd restarts in nodeset, in rpower boot and while the node installs; what was asked is done
	MonitorHangs   Mode = "monitor-hangs"    // the monitor port takes its notes, and nothing comes of them
	OwnHostKeys    Mode = "own-host-keys"    // its OS has SSH host keys of its own, not the management node's shared ones
	OtherAdminArms Mode = "other-admin-arms" // somebody arms another osimage right after each nodeset
)

// Modes returns all modes.
func Modes() []Mode {
	return []Mode{Works, NoPXE, PXELostOnce, PXELostTwice, Hangs, HangsOnce, PostFails, NextLost, NeverCallsBack, SlowSSHD, BMCDead,
		BMCRefuses, BlankStatus, StaleCache, Slow, Restarts, MonitorHangs, OwnHostKeys, OtherAdminArms}
}

// Node is one machine.
type Node struct {
	Name string
	// Address is an IP of its own on the loopback network, such as 127.0.1.11: its notes come from there, and its installer
	// answers there.
	Address string
	MAC     string // "" is one made of the address
	Mode    Mode   // "" is Works
	// NetworkFirst says that it boots from the net where its BMC was told nothing, and else from its disk.
	NetworkFirst bool
	// Disk is the osimage that is on its disk at first; "" is an empty disk.
	Disk string
	// On says that it is powered on at first.
	On bool
	// OS starts what is on the node's disk, and returns what stops it. It is called each time the node boots from its disk;
	// stop is called when its power goes. It may be nil.
	OS func(Boot) (stop func())
}

// Boot is what a node boots from its disk.
type Boot struct {
	OSImage string
	// HostKey is the management node's shared SSH host key, PEM, which the installer has put there; nil if the system has keys
	// of its own.
	HostKey []byte
}

// Row is a row of the table policy: who may do what.
type Row struct {
	CN       string   // of the client's certificate
	Commands []string // nil is all
}

// Options are what a management node is made of.
type Options struct {
	Listen  string // of xcatd, TLS; "" is 127.0.0.1:0
	Monitor string // of the port that nodes send their notes to; "" is 127.0.0.1:0
	// Network is where nodes may have addresses besides the loopback; all of its addresses are this machine's.
	Network netip.Prefix
	// InstallerPort is where each node's installer answers "stat", at the node's address; 0 is 3054.
	InstallerPort int
	Nodes         []Node
	// OSImages are the names of the osimages, each os-arch-provmethod-profile, such as rocky9.4-x86_64-install-compute.
	OSImages []string
	// Speed divides all times of the machines and of the commands; 0 is 1: an install then takes ten minutes.
	Speed  float64
	Policy []Row // with no row that allows it a command is refused
	// Passwords are those of the table passwd, key xcat, by user: a request may name one (becomeuser) in place of a certificate.
	Passwords map[string]string
}

// Manager is a running management node.
type Manager struct {
	Address string // of xcatd
	Monitor string // where the nodes' notes are taken
	CA      []byte // the authority that signed xcatd's certificate and the clients', PEM

	options   Options
	authority *authority
	tls       *tls.Config
	ctx       context.Context // ends with Close
	end       context.CancelFunc
	running   sync.WaitGroup

	mu         sync.Mutex
	nodes      map[string]*machine
	images     map[string]osimage
	listener   net.Listener // nil while xcatd restarts
	conns      map[net.Conn]struct{}
	mostArmed  int
	history    []string
	knownHosts []string       // lines of root's known_hosts
	observe    func(*machine) // called for each node after each change, if it is not nil; the lock is held
	restarting sync.Mutex

	hostKey func() (sharedKey, error)
}

// Counts is what a node has been told and has done.
type Counts struct {
	PowerOns, PowerOffs, Resets int // that changed something: rpower on of a node that is on is none
	Nodesets                    int // nodeset osimage=
	Installs                    int // installers that came up
}

// State is a node at this moment.
type State struct {
	Currstate  string // the provisioning state: boot, offline, "install rocky9.4-x86_64-compute"
	Provmethod string // the osimage that it was last armed for
	Status     string
	Device     string // what its BMC boots from next: net, hd, or "" for the node's own order
	Disk       string // the osimage on its disk
	Power      bool
}

// Armed says whether the node installs at its next boot from the net, or does so now.
func (s State) Armed() bool { return arms(s.Currstate) }

// Start starts a management node, which runs until ctx ends or Close.
func Start(ctx context.Context, options Options) (*Manager, error) {
	options.Listen = cmp.Or(options.Listen, "127.0.0.1:0")
	options.Monitor = cmp.Or(options.Monitor, "127.0.0.1:0")
	options.InstallerPort = cmp.Or(options.InstallerPort, 3054)
	options.Speed = cmp.Or(options.Speed, 1)
	if options.Speed < 0 {
		return nil, fmt.Errorf("xcatmn: speed %g is no factor: give one above 0", options.Speed)
	}
	m := &Manager{options: options, nodes: map[string]*machine{}, images: map[string]osimage{}, conns: map[net.Conn]struct{}{},
		hostKey: sync.OnceValues(newSharedKey)}
	for _, name := range options.OSImages {
		image, err := parseOSImage(name)
		if err != nil {
			return nil, err
		}
		m.images[name] = image
	}
	for _, node := range options.Nodes {
		if err := m.add(node); err != nil {
			return nil, err
		}
	}
	var err error
	if m.authority, err = newAuthority(); err != nil {
		return nil, err
	}
	m.CA = m.authority.pem
	host, _, err := net.SplitHostPort(options.Listen)
	if err != nil {
		return nil, fmt.Errorf("xcatmn: listen address %q: %w", options.Listen, err)
	}
	if m.tls, err = m.authority.server(host); err != nil {
		return nil, err
	}
	monitor, err := net.Listen("tcp", options.Monitor)
	if err != nil {
		return nil, fmt.Errorf("xcatmn: monitor port: %w", err)
	}
	m.Monitor = monitor.Addr().String()
	listener, err := net.Listen("tcp", options.Listen)
	if err != nil {
		monitor.Close()
		return nil, fmt.Errorf("xcatmn: xcatd: %w", err)
	}
	m.Address = listener.Addr().String()
	m.listener = listener
	m.ctx, m.end = context.WithCancel(ctx)
	m.running.Go(func() { m.serve(listener) })
	m.running.Go(func() { m.monitor(monitor) })
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.nodes {
		if n.On {
			n.begin()
		}
	}
	context.AfterFunc(m.ctx, func() {
		monitor.Close()
		m.drop()
	})
	return m, nil
}

func (m *Manager) add(node Node) error {
	ip, err := netip.ParseAddr(node.Address)
	node.Mode = cmp.Or(node.Mode, Works)
	switch {
	case node.Name == "" || m.nodes[node.Name] != nil:
		return fmt.Errorf("xcatmn: node name %q is empty or taken: give each node a name of its own", node.Name)
	case err != nil || !ip.IsLoopback() && !m.options.Network.Contains(ip):
		return fmt.Errorf("xcatmn: node %s: address %q is no loopback IP: give it one of its own, such as 127.0.1.11", node.Name, node.Address)
	case m.at(node.Address) != nil:
		return fmt.Errorf("xcatmn: node %s: address %s is taken: give each node one of its own", node.Name, node.Address)
	case !slices.Contains(Modes(), node.Mode):
		return fmt.Errorf("xcatmn: node %s: there is no mode %q: use one of %v", node.Name, node.Mode, Modes())
	case node.Disk != "" && m.images[node.Disk].name == "":
		return fmt.Errorf("xcatmn: node %s: there is no osimage %q for its disk: name one of the osimages", node.Name, node.Disk)
	}
	if node.MAC == "" {
		ip := ip.As16()
		node.MAC = fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", ip[12], ip[13], ip[14], ip[15])
	}
	// The transcripts' nodes were offline before anything was done to them; one with a disk was loaded some day.
	n := &machine{Node: node, manager: m, disk: node.Disk, currstate: "offline"}
	if node.Disk != "" {
		n.currstate, n.provmethod = "boot", node.Disk
	}
	m.nodes[node.Name] = n
	return nil
}

// Close stops everything, the nodes' systems included, and waits for it.
func (m *Manager) Close() {
	m.end()
	m.running.Wait()
}

// ClientCertificate returns a certificate with its key, PEM, for a client of that name.
func (m *Manager) ClientCertificate(cn string) ([]byte, error) { return m.authority.client(cn) }

// Counts returns what a node has been told and has done.
func (m *Manager) Counts(node string) Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.nodes[node]; n != nil {
		return n.counts
	}
	return Counts{}
}

// State returns how a node is now.
func (m *Manager) State(node string) State {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[node]
	if n == nil {
		return State{}
	}
	return State{Currstate: n.currstate, Provmethod: n.provmethod, Status: n.status, Device: n.device, Disk: n.disk, Power: n.on}
}

// MostArmed returns how many nodes were armed or installing at once, at most, so far.
func (m *Manager) MostArmed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mostArmed
}

// SetMode changes how a node behaves from its next boot or command on.
func (m *Manager) SetMode(node string, mode Mode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[node]
	if n == nil || !slices.Contains(Modes(), mode) {
		return fmt.Errorf("xcatmn: no node %q or no mode %q: name a node and one of %v", node, mode, Modes())
	}
	n.Mode, n.netBoots, n.installs, n.restarted = mode, 0, 0, nil
	return nil
}

// ArmByHand arms a node for an osimage as another administrator would.
func (m *Manager) ArmByHand(node, osimage string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, image := m.nodes[node], m.images[osimage]
	if n == nil || image.name == "" {
		return fmt.Errorf("xcatmn: no node %q or no osimage %q", node, osimage)
	}
	m.note("nodeset %s osimage=%s (another administrator)", node, osimage)
	n.arm(image)
	return nil
}

// Disarm sets a node to boot from its disk, as another administrator would.
func (m *Manager) Disarm(node string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[node]
	if n == nil {
		return fmt.Errorf("xcatmn: no node %q", node)
	}
	m.note("nodeset %s boot (another administrator)", node)
	n.currstate = "boot"
	return nil
}

// PowerOff cuts a node's power, as its system does when it is told to shut down.
func (m *Manager) PowerOff(node string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[node]
	if n == nil {
		return fmt.Errorf("xcatmn: no node %q", node)
	}
	if n.on {
		n.powerOff()
	}
	return nil
}

// History returns what has happened, a line each: commands that change something with who gave them, and what the nodes did.
func (m *Manager) History() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.history)
}

// KnownHosts returns the lines of the management node's known_hosts that makeknownhosts has written.
func (m *Manager) KnownHosts() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.knownHosts)
}

// unlock releases the lock after a change.
func (m *Manager) unlock() {
	if m.observe != nil {
		for _, n := range m.nodes {
			m.observe(n)
		}
	}
	m.mu.Unlock()
}

// note adds a line to the history. The lock is held.
func (m *Manager) note(format string, values ...any) {
	m.history = append(m.history, fmt.Sprintf(format, values...))
}

// scaled returns how long something takes here that takes d in a machine room.
func (m *Manager) scaled(d time.Duration) time.Duration {
	return time.Duration(float64(d) / m.options.Speed)
}

// pause waits for a time of a machine room; it returns whether ctx has not ended.
func (m *Manager) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(m.scaled(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// at returns the node of an address, or nil.
func (m *Manager) at(address string) *machine {
	for _, n := range m.nodes {
		if n.Address == address {
			return n
		}
	}
	return nil
}

type osimage struct{ name, os, arch, provmethod, profile string }

func parseOSImage(name string) (osimage, error) {
	parts := strings.SplitN(name, "-", 4)
	if len(parts) != 4 || slices.Contains(parts, "") {
		return osimage{}, fmt.Errorf("xcatmn: osimage %q: write os-arch-provmethod-profile, such as rocky9.4-x86_64-install-compute", name)
	}
	return osimage{name, parts[0], parts[1], parts[2], parts[3]}, nil
}

// state returns the provisioning state of a node that is armed for the osimage.
func (i osimage) state() string {
	return fmt.Sprintf("%s %s-%s-%s", i.provmethod, i.os, i.arch, i.profile)
}

func arms(state string) bool { return strings.Contains(state, " ") }
