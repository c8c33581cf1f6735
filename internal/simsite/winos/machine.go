package winos

import (
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Image is what a template's disk holds.
type Image struct {
	Version  Version
	Sysprep  bool   // generalized: its clones set themselves up first
	User     string // who may log in, beside Administrator; "" is nobody else
	Password string // that user's
	// AuthorizedKeys is what administrators_authorized_keys holds; "" is none.
	AuthorizedKeys string
	Revision       string
}

// Adapter is a network adapter of a guest.
type Adapter struct {
	Name     string
	MAC      string
	Address  netip.Prefix
	Gateway  netip.Addr // of the default route, on the adapter that has it
	DNS      []string
	DHCP     bool
	Category string // Public, Private or DomainAuthenticated
}

// Service is a Windows service.
type Service struct {
	Name    string
	Start   string // Automatic, Manual or Disabled
	Running bool
}

// User is a local account.
type User struct {
	Name     string
	Password string
	Disabled bool
	Groups   []string
}

// Rule is a rule of Windows Firewall.
type Rule struct {
	Name      string
	Direction string // in or out
	Action    string // allow or block
	Protocol  string // TCP, UDP, ICMPv4 or any
	LocalPort string // "any" or a number
	Remote    string // "any" or addresses with commas between
	Enabled   bool
}

// Hooks are what a guest asks of the hypervisor that runs it. Each may be nil; they are called without locks held.
type Hooks struct {
	Reboot  func(takes time.Duration)         // the guest restarts: its power stays, and Live is called again after a while
	Channel func(open bool, address string)   // its control channel opened or closed; "" is the computer's own address
	Drop    func()                            // every connection is reset, and the port stays open
	Running func(script string) (alive bool)  // a script is about to run; false: the guest is dead
	Unknown func(what string)                 // a command or a script that it does not know
	Ran     func(script, result, text string) // a script ran
}

// Options say what a new guest is.
type Options struct {
	Image    Image
	Name     string // the VM's: what a set-up calls the computer unless the image keeps a name of its own
	Adapters []Adapter
	Offset   time.Duration    // how wrong its clock is
	Setup    []Stage          // how its set-up goes; none takes DefaultSetup
	Port     int              // of the control channel: the image's firewall lets everybody in there
	Codes    map[string][]int // by script: what Windows returns to it, call by call; the last repeats, none is 0: all went well
	CutsIn   string           // the connection is reset once, after this script has done its work
	LogEvery time.Duration    // how often a running set-up writes to its log; 0 means 500ms
	Hooks    Hooks
}

// Machine is one guest: its disk, which outlives boots, and its running state, which does not. It is safe for
// concurrent use.
type Machine struct {
	image   Image
	name    string
	hooks   Hooks
	scripts map[string]Script
	cutsIn  string
	codes   map[string][]int
	log     time.Duration

	life sync.Mutex // held by the boot that goes on

	mu       sync.Mutex
	registry map[string]map[string]Value // key in lower case -> name in lower case
	files    map[string]file             // path in lower case
	services map[string]Service
	users    map[string]User
	rules    []Rule
	profiles map[string]bool // the firewall's, on or off
	adapters []Adapter
	offset   time.Duration
	hostname string
	domain   string
	booted   time.Time // by the guest's clock
	boots    int
	shutdown int // the boot that is about to end, because somebody has asked for it
	open     bool
	address  string
	setup    setup
	cut      bool           // the connection was cut by the script already
	called   map[string]int // how often Codes were asked for
	unknown  []string
	state    map[string]string // what has no place of its own: power plan, activation
}

type file struct {
	path    string
	content []byte
	changed time.Time // by the guest's clock
}

// New makes a guest with a disk of its own. It has not booted yet.
func New(o Options) *Machine {
	if o.Image.User == "" {
		o.Image.User = "Administrator"
	}
	m := &Machine{image: o.Image, name: o.Name, hooks: o.Hooks, cutsIn: o.CutsIn, codes: o.Codes, called: map[string]int{}, log: o.LogEvery, adapters: slices.Clone(o.Adapters), offset: o.Offset,
		registry: map[string]map[string]Value{}, files: map[string]file{}, services: map[string]Service{}, users: map[string]User{},
		profiles: map[string]bool{"domain": true, "private": true, "public": true}, state: map[string]string{}, scripts: map[string]Script{}}
	if m.log == 0 {
		m.log = 500 * time.Millisecond
	}
	for _, s := range Scripts() {
		m.scripts[s.Digest] = s
	}
	m.setup.stages = o.Setup
	if len(m.setup.stages) == 0 {
		m.setup.stages = DefaultSetup(o.Image.Version, o.Image.Sysprep)
	}
	m.install(o.Port)
	return m
}

// install puts on the disk what the image holds.
func (m *Machine) install(port int) {
	r := m.image.Version.release()
	const current = `HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion`
	m.setReg(current, "ProductName", r.product)
	m.setReg(current, "CurrentVersion", fmt.Sprintf("%d.%d", min(r.major, 6), map[bool]int{true: r.minor, false: 3}[r.major < 10]))
	m.setReg(current, "CurrentBuildNumber", r.build)
	m.setReg(current, "CurrentBuild", r.build)
	if r.major >= 10 {
		m.setDword(current, "CurrentMajorVersionNumber", r.major)
		m.setDword(current, "CurrentMinorVersionNumber", r.minor)
	}
	m.setReg(`HKLM\SOFTWARE\Microsoft\PowerShell\1\PowerShellEngine`, "PowerShellVersion", r.powershell)
	m.setReg(winlogon, "AutoAdminLogon", "1")
	m.setReg(winlogon, "DefaultUserName", m.image.User)
	m.setReg(winlogon, "DefaultPassword", m.image.Password)
	m.setDword(winlogon, "AutoLogonCount", 3)
	m.setDword(terminalServer, "fDenyTSConnections", 1)
	m.setDword(terminalServer+`\WinStations\RDP-Tcp`, "PortNumber", 3389)
	for _, s := range []Service{{"sshd", "Manual", true}, {"WinRM", "Manual", true}, {"TermService", "Manual", true}, {"W32Time", "Manual", false},
		{"MpsSvc", "Automatic", true}, {"EventLog", "Automatic", true}, {"LanmanServer", "Automatic", true}, {"wuauserv", "Manual", false}} {
		if m.image.Version.Old() && s.Name == "MpsSvc" {
			s.Name = "SharedAccess"
		}
		m.services[strings.ToLower(s.Name)] = s
	}
	admin := User{Name: m.image.User, Password: m.image.Password, Groups: []string{"Administrators"}}
	m.users[strings.ToLower(admin.Name)] = admin
	if _, ok := m.users["administrator"]; !ok {
		m.users["administrator"] = User{Name: "Administrator", Password: m.image.Password, Groups: []string{"Administrators"}}
	}
	m.users["guest"] = User{Name: "Guest", Disabled: true, Groups: []string{"Guests"}}
	answers := `C:\Windows\Panther\unattend.xml`
	switch {
	case m.image.Version.Old():
		answers = `C:\sysprep\sysprep.inf`
		m.write(answers, []byte("[GuiUnattended]\r\nAdminPassword="+m.image.Password+"\r\n"))
	default:
		text := []byte("<unattend><AdministratorPassword><Value>" + m.image.Password + "</Value></AdministratorPassword></unattend>")
		m.write(answers, text)
		m.write(`C:\Windows\System32\Sysprep\unattend.xml`, text)
	}
	m.write(`C:\image-release.txt`, []byte(m.image.Revision+"\r\n"))
	if m.image.AuthorizedKeys != "" {
		m.write(authorizedKeysPath, []byte(m.image.AuthorizedKeys+"\r\n"))
	}
	in := func(name, protocol, port string, enabled bool) Rule {
		return Rule{Name: name, Direction: "in", Action: "allow", Protocol: protocol, LocalPort: port, Remote: "any", Enabled: enabled}
	}
	m.rules = []Rule{in("Core Networking - Echo Request", "ICMPv4", "any", true), in("Remote Desktop - User Mode", "TCP", "3389", true), in("The image's own", "TCP", strconv.Itoa(port), true)}
	if r.major*10+r.minor >= 62 {
		m.rules = append(m.rules, in("Remote Desktop - User Mode", "UDP", "3389", true))
	}
	m.hostname = "WIN-" + strings.ToUpper(strings.ReplaceAll(m.name, ".", "-"))
	if !m.image.Sysprep {
		m.hostname = "GOLDEN"
	}
	m.setReg(computerNames+`\ComputerName`, "ComputerName", m.hostname)
	m.setReg(SetupKey, "UnattendFile", answers)
	m.generalized()
}

// computerNames is above two keys: ComputerName is the name from the next boot on, ActiveComputerName that of this one.
const computerNames = `HKLM\SYSTEM\CurrentControlSet\Control\ComputerName`

// ---- what others may look at

// Version returns which Windows it is.
func (m *Machine) Version() Version { return m.image.Version }

// Hostname returns the computer's name as of this boot.
func (m *Machine) Hostname() string { return locked(m, func() string { return m.hostname }) }

// Domain returns the domain that it is a member of; "" is none.
func (m *Machine) Domain() string { return locked(m, func() string { return m.domain }) }

// BootID tells boots apart: it is the boot time.
func (m *Machine) BootID() string { return m.BootTime().Format(time.RFC3339Nano) }

// BootTime returns when the boot that goes on began, by the guest's clock.
func (m *Machine) BootTime() time.Time { return locked(m, func() time.Time { return m.booted }) }

// Now returns the guest's clock.
func (m *Machine) Now() time.Time { return locked(m, m.now) }

func (m *Machine) now() time.Time { return time.Now().Add(m.offset).UTC() }

// Reg returns a registry value; "" when there is none. Names are read as Windows does, without regard to case.
func (m *Machine) Reg(key, name string) string {
	return locked(m, func() string { return m.reg(key, name) })
}

// Service returns a service; the zero value when there is none.
func (m *Machine) Service(name string) Service {
	return locked(m, func() Service { return m.services[strings.ToLower(name)] })
}

// User returns an account.
func (m *Machine) User(name string) (User, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, ok := m.users[strings.ToLower(name)]
	return u, ok
}

// Rules returns the firewall's rules, in order.
func (m *Machine) Rules() []Rule { return locked(m, func() []Rule { return slices.Clone(m.rules) }) }

// Adapters returns the network adapters.
func (m *Machine) Adapters() []Adapter {
	return locked(m, func() []Adapter { return slices.Clone(m.adapters) })
}

// State returns a setting that has no place of its own, such as "power-plan" or "activation".
func (m *Machine) State(name string) string { return locked(m, func() string { return m.state[name] }) }

// Files returns the paths of all files.
func (m *Machine) Files() []string {
	return locked(m, func() []string {
		var all []string
		for _, f := range m.files {
			all = append(all, f.path)
		}
		slices.Sort(all)
		return all
	})
}

// Unknown returns the commands and scripts that were asked for and are not known.
func (m *Machine) Unknown() []string {
	return locked(m, func() []string { return slices.Clone(m.unknown) })
}

func locked[T any](m *Machine, get func() T) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	return get()
}

// ---- registry, files: the lock must be held

// Value is a registry value.
type Value struct {
	Name, Kind, Data string // Kind is String, DWord or MultiString
}

func (m *Machine) reg(key, name string) string {
	return m.registry[strings.ToLower(key)][strings.ToLower(name)].Data
}

func (m *Machine) set(key string, v Value) {
	k := strings.ToLower(key)
	if m.registry[k] == nil {
		m.registry[k] = map[string]Value{}
	}
	m.registry[k][strings.ToLower(v.Name)] = v
}

func (m *Machine) setReg(key, name, data string) { m.set(key, Value{name, "String", data}) }

func (m *Machine) setDword(key, name string, data int) {
	m.set(key, Value{name, "DWord", fmt.Sprint(data)})
}

// deleteReg removes a value and says whether it was there.
func (m *Machine) deleteReg(key, name string) bool {
	values := m.registry[strings.ToLower(key)]
	_, ok := values[strings.ToLower(name)]
	delete(values, strings.ToLower(name))
	return ok
}

func (m *Machine) write(path string, content []byte) {
	m.files[strings.ToLower(path)] = file{path, content, m.now()}
}

func (m *Machine) read(path string) (string, bool) {
	f, ok := m.files[strings.ToLower(path)]
	return string(f.content), ok
}

func (m *Machine) append(path, text string) {
	before, _ := m.read(path)
	m.write(path, []byte(before+text))
}

// remove deletes a file, or all below a folder, and says how many there were.
func (m *Machine) remove(path string) int {
	p := strings.ToLower(path)
	before := len(m.files)
	maps.DeleteFunc(m.files, func(name string, _ file) bool {
		return name == p || strings.HasPrefix(name, strings.TrimSuffix(p, `\`)+`\`)
	})
	return before - len(m.files)
}

// ReadFile returns a file of the guest's disk. Its error is an *fs.PathError.
func (m *Machine) ReadFile(path string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.files[strings.ToLower(path)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return slices.Clone(f.content), nil
}
