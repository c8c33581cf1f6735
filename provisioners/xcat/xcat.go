// Package xcat loads computers that are physical nodes of an xCAT management node.
//
// A load arms the node for an osimage, powers it on from the net and waits until the installer has told the management node
// that the bits are on the disk: the node's provisioning state (currstate) is then boot. Everything else that xCAT tells is
// taken where it comes and never waited for: its statuses may be blank, late, or never come.
//
// The fencing mark stands in the node's attribute usercomment, beside whatever else stands there, together with the osimage
// that the node was armed for. So a load can be stopped at any point and called again in another process, and an install
// that somebody else has begun is seen.
package xcat

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"berth/provisioners"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// Type is the provisioner type that this module is registered as.
const Type = "xcat"

// DefaultInstalls is how many nodes of a management node install at once (VCL xCAT.pm: throttle 10).
const DefaultInstalls = 10

// DefaultKnownHosts is the file that xCAT keeps on the management node.
const DefaultKnownHosts = "/root/.ssh/known_hosts"

// Site is one management node.
type Site struct {
	Name string
	// How xcatd is reached: at Address (host or host:port), where its certificate must be signed by an authority in CAFile
	// and bear ServerName ("" is Address's host). Certificate returns what we show: certificate and key as PEM, as in xCAT's
	// client-cred.pem. With no Address the Tools are used.
	Address     string
	ServerName  string
	CAFile      string
	Certificate func() ([]byte, error)
	// Tools are the command-line tools, here or by SSH on the management node. They are needed where there is no Address, and
	// for images whose known_hosts is own.
	Tools *xcatd.Tools
	// KnownHosts is the management node's known_hosts file; "" is DefaultKnownHosts.
	KnownHosts string
	InFlight   int // commands at once; 0 is xcatd.DefaultInFlight
	Installs   int // installs at once; 0 is DefaultInstalls
	// CountArmed is a noderange, such as a group's name: its nodes count among the installs when they are armed, whoever armed
	// them. "" counts Berth's own alone.
	CountArmed string
}

// Options are what a Module is made of.
type Options struct {
	Sites  []Site
	Limits Limits // zero figures are DefaultLimits'
	Logger zerolog.Logger
	// InstallerPorts are asked for the installer's progress, in order; empty is DefaultInstallerPorts.
	InstallerPorts []int
}

// DefaultInstallerPorts returns where xCAT's installers answer "stat": 3054 since xCAT 2.13, 3001 before.
func DefaultInstallerPorts() []int { return []int{3054, 3001} }

// Limits are a load's time limits and paces. Start, NoProgress and Overall are those of a first attempt.
type Limits struct {
	Start         time.Duration // from power-on to the first sign of the installer
	NoProgress    time.Duration // without any change; an image's expected minutes where they are more
	Overall       time.Duration // twice the image's expected minutes where that is more
	PowerOn       time.Duration // from rpower to a BMC that says on (or off)
	NextLate      time.Duration // how long a loaded system may run before the management node has heard that its disk is loaded
	InstallerGone time.Duration // how long an installer may go on answering after the bits are on the disk
	PollPower     time.Duration
	PollStart     time.Duration // until the installation has started
	PollInstall   time.Duration
	Retry         time.Duration // between two tries at a BMC, on average
}

// DefaultLimits returns the limits that count where nothing else is said.
func DefaultLimits() Limits {
	return Limits{
		Start:         10 * time.Minute, // UEFI's self test takes big machines 5 to 8 minutes
		NoProgress:    10 * time.Minute,
		Overall:       60 * time.Minute, // VCL xCAT.pm, xcatprobe osdeploy: 60 min
		PowerOn:       60 * time.Second,
		NextLate:      3 * time.Minute, // nodes repeat a note for 100 s (updateflag.awk: 10 times 10 s)
		InstallerGone: 2 * time.Minute,
		PollPower:     5 * time.Second,
		PollStart:     5 * time.Second,
		PollInstall:   20 * time.Second,
		Retry:         10 * time.Second,
	}
}

func (l Limits) orDefault() Limits {
	usual := DefaultLimits()
	for mine, theirs := range map[*time.Duration]time.Duration{
		&l.Start: usual.Start, &l.NoProgress: usual.NoProgress, &l.Overall: usual.Overall, &l.PowerOn: usual.PowerOn,
		&l.NextLate: usual.NextLate, &l.InstallerGone: usual.InstallerGone, &l.PollPower: usual.PollPower, &l.PollStart: usual.PollStart,
		&l.PollInstall: usual.PollInstall, &l.Retry: usual.Retry,
	} {
		if *mine == 0 {
			*mine = theirs
		}
	}
	return l
}

// of returns the limits of an attempt at an image, whose source has been validated.
func (l Limits) of(attempt int, source map[string]string) Limits {
	var minutes int
	_, _ = fmt.Sscan(source[sourceExpected], &minutes)
	expected := time.Duration(minutes) * time.Minute
	l.NoProgress, l.Overall = max(l.NoProgress, expected), max(l.Overall, 2*expected)
	for key, mine := range map[string][]*time.Duration{
		sourceStart: {&l.Start}, sourceNoProgress: {&l.NoProgress}, sourceOverall: {&l.Overall}, sourcePoll: {&l.PollStart, &l.PollInstall},
	} {
		if d, err := durationOf(source[key]); err == nil && d > 0 {
			for _, one := range mine {
				*one = d
			}
		}
	}
	stretch := func(d time.Duration) time.Duration {
		return reservation.Limits{Load: reservation.Duration(d)}.Stretched(attempt).Load.Std()
	}
	l.Start = stretch(l.Start)
	l.NoProgress = stretch(l.NoProgress)
	l.Overall = stretch(l.Overall)
	return l
}

// Module loads nodes. It is a provisioners.Provisioner, Aborter, Unloader, PowerResetter, AfterResponder, Checker and
// Validator, and safe for concurrent use.
type Module struct {
	nodes     map[string]*management
	limits    Limits
	log       zerolog.Logger
	installer func(ctx context.Context, host string) string // what the node's installer says; "" if nothing answers
}

// management is one management node.
type management struct {
	name       string
	client     *xcatd.Client
	tools      *xcatd.Tools // nil if there are none
	knownHosts string
	installs   int
	countArmed string
	log        zerolog.Logger

	mu     sync.Mutex
	silent int // loads in a row in which no installation has started
}

// gate names the gate of its installs.
func (mn *management) gate() string { return Type + "/" + mn.name }

// armingGate names the gate of who counts the armed nodes, and arms one more.
func (mn *management) armingGate() string { return mn.gate() + "/arming" }

// keysGate names the gate of what rewrites its known_hosts: xCAT and ssh-keygen do that without a lock.
func (mn *management) keysGate() string { return mn.gate() + "/known_hosts" }

// New checks the options and returns a Module. It reads the CA files but reaches no management node. Its error holds every
// fault of the sites, joined.
func New(options Options) (*Module, error) {
	ports := options.InstallerPorts
	if len(ports) == 0 {
		ports = DefaultInstallerPorts()
	}
	m := &Module{nodes: map[string]*management{}, limits: options.Limits.orDefault(),
		log: options.Logger.With().Str("provisioner", Type).Logger(), installer: installer(ports)}
	var faults []error
	if len(options.Sites) == 0 {
		faults = append(faults, &reservation.FieldError{Field: "sites", Value: "", Remedy: "name one management node at least for provisioner " + Type})
	}
	for i, site := range options.Sites {
		field := fmt.Sprintf("sites[%d]", i)
		if err := reservation.CheckName(field+".name", site.Name); err != nil {
			faults = append(faults, err)
		}
		if _, twice := m.nodes[site.Name]; twice {
			faults = append(faults, &reservation.FieldError{Field: field + ".name", Value: site.Name, Remedy: "give each site a name of its own"})
			continue
		}
		transport, err := transport(field, site)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		m.add(site, transport)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Module) add(site Site, transport xcatd.Transport) {
	mn := &management{name: site.Name, client: xcatd.NewClient(transport, site.InFlight), tools: site.Tools, knownHosts: site.KnownHosts,
		installs: site.Installs, countArmed: site.CountArmed, log: m.log.With().Str("site", site.Name).Logger()}
	if mn.knownHosts == "" {
		mn.knownHosts = DefaultKnownHosts
	}
	if mn.installs == 0 {
		mn.installs = DefaultInstalls
	}
	m.nodes[site.Name] = mn
}

func transport(field string, site Site) (xcatd.Transport, error) {
	if site.Address == "" {
		if site.Tools == nil {
			return nil, &reservation.FieldError{Field: field + ".address", Value: "", Remedy: "give the management node's address, or say where its command-line tools are"}
		}
		return site.Tools, nil
	}
	var faults []error
	if err := reservation.CheckAddress(field+".address", site.Address); err != nil {
		faults = append(faults, err)
	}
	if site.Certificate == nil {
		faults = append(faults, &reservation.FieldError{Field: field + ".credential", Value: "", Remedy: "name the secret that holds our certificate and its key"})
	}
	authorities := x509.NewCertPool()
	pem, err := os.ReadFile(site.CAFile)
	switch {
	case err != nil:
		faults = append(faults, fmt.Errorf("%w: %w", &reservation.FieldError{Field: field + ".ca_file", Value: site.CAFile,
			Remedy: "give a readable PEM file: a copy of the management node's /etc/xcat/cert/ca.pem"}, err))
	case !authorities.AppendCertsFromPEM(pem):
		faults = append(faults, &reservation.FieldError{Field: field + ".ca_file", Value: site.CAFile, Remedy: "give a PEM file that holds a certificate"})
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return &xcatd.Native{Address: site.Address, ServerName: site.ServerName, CA: authorities, Certificate: func() (tls.Certificate, error) {
		pem, err := site.Certificate()
		if err != nil {
			return tls.Certificate{}, err
		}
		return tls.X509KeyPair(pem, pem)
	}}, nil
}

// Check asks every management node whether it knows us and lets us read. It returns every fault, joined.
func (m *Module) Check(ctx context.Context) error {
	var faults []error
	for _, name := range m.sites() {
		if err := m.nodes[name].client.Greet(ctx); err != nil {
			faults = append(faults, fmt.Errorf("site %s: %w", name, Classify(err)))
		}
	}
	return errors.Join(faults...)
}

func (m *Module) sites() []string { return slices.Sorted(maps.Keys(m.nodes)) }

// What an image's source and a computer's placement may hold.
const (
	sourceOSImage    = "osimage"          // xCAT's name of what is installed
	sourceExpected   = "expected_minutes" // how long an install takes; "" is at most 10
	sourceStart      = "start_limit"      // in place of Limits.Start, such as 15m
	sourceNoProgress = "no_progress"      // in place of Limits.NoProgress and the expected minutes
	sourceOverall    = "overall"          // in place of Limits.Overall and twice the expected minutes
	sourcePoll       = "poll"             // in place of Limits.PollStart and Limits.PollInstall
	sourceKnownHosts = "known_hosts"      // what is done to the management node's: "" nothing, hostKeysOwn or hostKeysShared

	hostKeysOwn    = "own"    // the image has keys of its own: they are scanned on the management node
	hostKeysShared = "shared" // the image has xCAT's shared keys: makeknownhosts

	placeNode      = "node"       // xCAT's name of the node; "" is the computer's
	placeFirmware  = "firmware"   // "" or bios, or uefi: rsetboot -u
	placeBootOrder = "boot_order" // networkFirst: it boots from the net even when its BMC cannot be told to

	networkFirst = "network-first"
)

// maxExpected keeps a mistyped figure from holding a computer for days.
const maxExpected = 24 * 60

// ValidateSource is part of provisioners.Validator.
func (m *Module) ValidateSource(source map[string]string) error {
	const field = "image.sources." + Type
	faults := provisioners.UnknownKeys(Type, field, source, sourceOSImage, sourceExpected, sourceStart, sourceNoProgress, sourceOverall, sourcePoll, sourceKnownHosts)
	fault := func(key, remedy string) {
		faults = append(faults, &reservation.FieldError{Field: field + "." + key, Value: source[key], Remedy: remedy})
	}
	if !isWord(source[sourceOSImage]) {
		fault(sourceOSImage, "give the name of an osimage of xCAT's, as `lsdef -t osimage` lists it")
	}
	if text := source[sourceExpected]; text != "" {
		if n, err := strconv.Atoi(text); err != nil || n < 1 || n > maxExpected {
			fault(sourceExpected, fmt.Sprintf("give how many minutes an install takes, 1 to %d, or leave it out", maxExpected))
		}
	}
	for _, key := range []string{sourceStart, sourceNoProgress, sourceOverall, sourcePoll} {
		if _, err := durationOf(source[key]); err != nil {
			fault(key, "give a duration from 1s to 24h, such as 15m, or leave it out")
		}
	}
	switch source[sourceKnownHosts] {
	case "", hostKeysOwn, hostKeysShared:
	default:
		fault(sourceKnownHosts, "write "+hostKeysOwn+" or "+hostKeysShared+", or leave it out: the management node's known_hosts is then not touched")
	}
	return errors.Join(faults...)
}

// durationOf reads a duration of an image's source; "" is 0.
func durationOf(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err == nil && (d < time.Second || d > 24*time.Hour) {
		err = errors.New("out of range")
	}
	return d, err
}

// ValidatePlacement is part of provisioners.Validator.
func (m *Module) ValidatePlacement(placement map[string]string) error {
	const field = "computer.placement"
	faults := provisioners.UnknownKeys(Type, field, placement, placeNode, placeFirmware, placeBootOrder)
	fault := func(key, remedy string) {
		faults = append(faults, &reservation.FieldError{Field: field + "." + key, Value: placement[key], Remedy: remedy})
	}
	if name := placement[placeNode]; name != "" && !isWord(name) {
		fault(placeNode, "write the name of one node, as `nodels` lists it")
	}
	switch placement[placeFirmware] {
	case "", "bios", "uefi":
	default:
		fault(placeFirmware, "write bios or uefi, or leave it out for bios")
	}
	switch placement[placeBootOrder] {
	case "", networkFirst:
	default:
		fault(placeBootOrder, "write "+networkFirst+", or leave it out")
	}
	return errors.Join(faults...)
}

// isWord says whether a name can be nothing but one name: xCAT reads commas, brackets, @ and more as a range of nodes.
func isWord(name string) bool {
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r) {
			return false
		}
	}
	return name != "" && name[0] != '-'
}

// The module is everything that the worker asks for.
var (
	_ provisioners.Provisioner    = (*Module)(nil)
	_ provisioners.Aborter        = (*Module)(nil)
	_ provisioners.Unloader       = (*Module)(nil)
	_ provisioners.PowerResetter  = (*Module)(nil)
	_ provisioners.AfterResponder = (*Module)(nil)
	_ provisioners.Checker        = (*Module)(nil)
	_ provisioners.Validator      = (*Module)(nil)
)
