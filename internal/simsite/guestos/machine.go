package guestos

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Distribution is which Linux an image holds.
type Distribution string

// The distributions. They differ in /etc/os-release, in their services and in which firewall tools are there.
const (
	Debian12   Distribution = "debian12"   // nftables and iptables
	Ubuntu2404 Distribution = "ubuntu2404" // ufw, nftables and iptables
	Rocky9     Distribution = "rocky9"     // firewalld and nftables
)

// Distributions returns all there are.
func Distributions() []Distribution { return []Distribution{Debian12, Ubuntu2404, Rocky9} }

// Image is what a template's disk holds: files and commands that all its clones share. Make it with NewImage.
type Image struct {
	Distribution Distribution
	root         *node
	commands     map[string]command
	units        map[string]unit
	firewalld    *firewalldState
}

// ImageOptions say what NewImage puts into an image.
type ImageOptions struct {
	Distribution   Distribution
	Revision       string   // for /etc/image-release
	AuthorizedKeys string   // what /root/.ssh/authorized_keys holds
	Without        []string // commands that this image lacks, such as "nft" or "cloud-init"
}

// Interface is a network interface of a guest.
type Interface struct {
	Name    string
	MAC     string
	Address netip.Prefix
	Default netip.Addr // the gateway of the default route, on the interface that has it
}

// CloudInit is what cloud-init says of this boot.
type CloudInit struct {
	Running bool
	Error   string // "" when it went well
}

// Hooks are what a guest asks of the hypervisor that runs it. Each may be nil.
type Hooks struct {
	Reboot    func()                                         // the guest asked to be rebooted
	PowerOff  func()                                         // the guest asked to be powered off
	CloudInit func() CloudInit                               // how its set-up stands
	Executing func(ctx context.Context, command string) bool // a command is about to run; false: the guest is dead
}

// Options say what a new guest is.
type Options struct {
	Image      *Image
	Name       string // what its host name is before anybody sets one
	Interfaces []Interface
	Offset     time.Duration // how wrong its clock is
	Port       int           // where sshd listens unless its configuration says otherwise
	Hooks      Hooks
}

// Machine is one guest: its disk, which outlives boots, and its running state, which does not. It is safe for
// concurrent use.
type Machine struct {
	image *Image
	hooks Hooks
	disk  *fileSystem
	port  int

	mu         sync.Mutex
	hostname   string
	interfaces []Interface
	offset     time.Duration
	synced     bool
	bootID     string
	booted     time.Time
	units      map[string]unit
	packets    packetFilters
	firewalld  *firewalldState
	ufw        ufwState
	sysctl     map[string]string
	zone       string
}

// New makes a guest with a disk of its own that shares the image's files. It has not booted yet.
func New(o Options) *Machine {
	m := &Machine{image: o.Image, hooks: o.Hooks, port: o.Port, interfaces: o.Interfaces, offset: o.Offset, synced: o.Offset == 0,
		hostname: o.Name, zone: "Etc/UTC", sysctl: map[string]string{}}
	m.disk = &fileSystem{machine: m, root: o.Image.root}
	return m
}

// Boot starts the guest, or starts it again: a new boot ID, and nothing left of what lived in memory only.
func (m *Machine) Boot() {
	m.disk.restore("run")
	m.disk.restore("tmp")
	if name, err := m.disk.readFile("/etc/hostname"); err == nil {
		if text := strings.TrimSpace(string(name)); text != "" {
			m.setKernelHostname(text)
		}
	}
	m.mu.Lock()
	m.bootID = newUUID()
	m.booted = time.Now()
	m.packets = packetFilters{}
	m.sysctl = map[string]string{}
	if m.units == nil {
		m.units = maps.Clone(m.image.units)
	}
	if m.firewalld == nil {
		m.firewalld = m.image.firewalld
	}
	if m.firewalld != nil {
		m.firewalld = m.firewalld.reloaded()
	}
	for name, u := range m.units {
		u.active = u.enabled && !u.masked
		m.units[name] = u
	}
	loadRules := m.units["nftables.service"].active
	m.mu.Unlock()
	if rules, err := m.disk.readFile("/etc/nftables.conf"); err == nil && loadRules {
		_ = m.loadNft(string(rules))
	}
}

// BootID returns the kernel's random ID of this boot.
func (m *Machine) BootID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bootID
}

// Hostname returns the kernel's host name.
func (m *Machine) Hostname() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hostname
}

func (m *Machine) setKernelHostname(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hostname = name
}

// Now returns the guest's clock.
func (m *Machine) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.offset).UTC()
}

func (m *Machine) setClock(offset time.Duration, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.offset, m.synced = offset, synced
}

// ReadFile returns a file of the guest's disk. Its error is an *fs.PathError.
func (m *Machine) ReadFile(name string) ([]byte, error) { return m.disk.readFile(name) }

// WriteFile replaces a file of the guest's disk, with the directories above it.
func (m *Machine) WriteFile(name string, data []byte, mode fs.FileMode) error {
	if i := strings.LastIndexByte(name, '/'); i > 0 {
		if err := m.disk.mkdirAll(name[:i], 0o755); err != nil {
			return err
		}
	}
	if err := m.disk.writeFile(name, data, mode); err != nil {
		return err
	}
	return m.disk.change(name, true, func(n *node) { n.mode = mode.Perm() })
}

// Stat describes a file of the guest's disk, through links.
func (m *Machine) Stat(name string) (fs.FileInfo, error) { return m.disk.stat(name, true) }

// Ruleset returns the kernel's nftables rules as "nft list ruleset" prints them.
func (m *Machine) Ruleset() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.packets.nft.String()
}

// CheckPassword says whether a user could log in with a password.
func (m *Machine) CheckPassword(user, password string) bool {
	shadow, err := m.disk.readFile("/etc/shadow")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(shadow)) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), ":")
		if len(fields) < 2 || fields[0] != user {
			continue
		}
		parts := strings.Split(fields[1], "$")
		if len(parts) != 4 || parts[1] != "6" {
			return false
		}
		return subtle.ConstantTimeCompare([]byte(hashPassword(password, parts[2])), []byte(fields[1])) == 1
	}
	return false
}

// Login says whether sshd lets a user in with a password.
func (m *Machine) Login(user, password string) bool {
	return m.PasswordLogin(user) && m.CheckPassword(user, password)
}

// hashPassword returns a field for /etc/shadow. It has the looks of SHA-512 crypt and is a single salted SHA-256: a
// simulated guest's passwords need no protection from guessing.
func hashPassword(password, salt string) string {
	sum := sha256.Sum256([]byte(salt + "$" + password))
	return "$6$" + salt + "$" + base64.RawStdEncoding.EncodeToString(sum[:])
}

func (m *Machine) randomBytes(p []byte) (int, error) { return io.ReadFull(rand.Reader, p) }

func (m *Machine) cloudInit() CloudInit {
	if m.hooks.CloudInit == nil {
		return CloudInit{}
	}
	return m.hooks.CloudInit()
}

func (m *Machine) uptime() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.booted)
}

func (m *Machine) networks() []Interface {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.interfaces)
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func randomText(n int, alphabet string) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b)
}
