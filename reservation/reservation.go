package reservation

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Reservation is a user's claim on a computer with an image until an end. It is the input of one workflow, so it holds
// no secret: credentials are named in it and read by the worker.
type Reservation struct {
	Name     string    `json:"name"`
	User     string    `json:"user"`
	Computer Computer  `json:"computer"`
	Image    Image     `json:"image"`
	End      time.Time `json:"end"` // when the computer is taken back unless somebody extends it
}

// Hardware tells a virtual computer from a physical one; time limits depend on it.
type Hardware string

// The kinds of hardware.
const (
	Virtual  Hardware = "virtual"
	Physical Hardware = "physical"
)

// Computer is a VM or a physical node that can be loaded.
type Computer struct {
	Name        string   `json:"name"`
	Provisioner string   `json:"provisioner"`    // the type of the module that loads it: vmware, xcat, libvirt
	Site        string   `json:"site,omitempty"` // which vCenter, management node or host; "" is the type's only one
	Hardware    Hardware `json:"hardware"`
	Address     string   `json:"address"`            // control address: a host name or IP address, with ":port" where the image's port does not apply
	MACs        []string `json:"macs,omitempty"`     // one an interface, in order
	Networks    []string `json:"networks,omitempty"` // one an interface, in order; the names are the provisioner's
	CPUs        int      `json:"cpus,omitempty"`     // 0 leaves the image's own
	MemoryMiB   int      `json:"memory_mib,omitempty"`
	// Placement says where the provisioner puts it, in the provisioner's own words (vmware: folder, resource_pool,
	// datastore, host). The provisioner checks them.
	Placement map[string]string `json:"placement,omitempty"`
	Public    *PublicNetwork    `json:"public,omitempty"` // a fixed public address; Windows guests only
}

// PublicNetwork is a fixed address of a computer's public interface.
type PublicNetwork struct {
	Interface string   `json:"interface"` // as the guest names it, such as "Ethernet 2"
	Address   string   `json:"address"`   // address/bits
	Gateway   string   `json:"gateway,omitempty"`
	DNS       []string `json:"dns,omitempty"`
}

// OSFamily chooses the OS module.
type OSFamily string

// The OS families that have a module or are to have one.
const (
	Linux   OSFamily = "linux"
	Windows OSFamily = "windows"
)

// OS is what an image runs once it is loaded.
type OS struct {
	Family       OSFamily `json:"family"`
	Version      string   `json:"version"`                // as its makers write it: "debian12", "10", "2008r2"
	Architecture string   `json:"architecture,omitempty"` // "" is x86_64
}

// String returns "family version".
func (o OS) String() string { return strings.TrimSpace(string(o.Family) + " " + o.Version) }

// Image is what is put on a disk: a name and a revision, what it runs, and where each provisioner finds its bits.
type Image struct {
	Name     string `json:"name"`
	Revision int    `json:"revision"`
	OS       OS     `json:"os"`
	Sysprep  bool   `json:"sysprep,omitempty"`
	// Sources says for each provisioner type where it finds the bits, in the provisioner's own words (vmware: template,
	// snapshot, clone). The provisioner checks them.
	Sources  map[string]map[string]string `json:"sources"`
	Control  Control                      `json:"control"`
	Attempts int                          `json:"attempts,omitempty"` // 0 means DefaultAttempts
	Limits   Limits                       `json:"limits,omitzero"`    // what is not zero replaces the table's figure
	PostLoad PostLoadOptions              `json:"post_load,omitzero"`
}

// DefaultAttempts is how often an image is loaded before a reservation fails (VCL 2010, xCAT.pm: rinstall_attempts, 3).
const DefaultAttempts = 3

// MaxAttempts bounds an image's own number of attempts: a mistyped 300 must not load a computer for weeks.
const MaxAttempts = 10

// String returns "name-rREVISION", the way load logs and VM notes name an image.
func (i Image) String() string { return fmt.Sprintf("%s-r%d", i.Name, i.Revision) }

// MaxAttempts returns how many attempts the image gets.
func (i Image) MaxAttempts() int {
	if i.Attempts == 0 {
		return DefaultAttempts
	}
	return i.Attempts
}

// Where the SSH host key of a load comes from.
const (
	// HostKeyHanded means that the provisioner makes a key for this load and hands it to the guest, which is then
	// verified from its first packet. The image must take the key from its provisioner (vSphere: guestinfo).
	HostKeyHanded = "handed"
	// HostKeyFirst means that the key shown at the attempt's first handshake is pinned for the rest of the reservation.
	HostKeyFirst = "first-handshake"
)

// Control says how a loaded image's OS is reached.
type Control struct {
	Channel     string `json:"channel"`               // ChannelSSH or ChannelWinRM
	User        string `json:"user"`                  // who the channel logs in as
	Port        int    `json:"port,omitempty"`        // 0 is the channel's own (ssh: 22, winrm: 5986)
	Credential  string `json:"credential"`            // the name of the worker's secret to log in with
	HostKey     string `json:"host_key,omitempty"`    // ssh: HostKeyHanded or HostKeyFirst; "" lets the provisioner choose
	Certificate string `json:"certificate,omitempty"` // winrm: HostKeyFirst pins the first one shown, as does ""; else a PEM file of authorities
	Auth        string `json:"auth,omitempty"`        // winrm: AuthNTLM or AuthBasic; "" is AuthNTLM
}

// The control channels.
const (
	ChannelSSH   = "ssh"
	ChannelWinRM = "winrm"
)

// How WinRM logs in; both inside TLS.
const (
	AuthNTLM  = "ntlm"
	AuthBasic = "basic"
)

// PostLoadOptions are an image's wishes for its configuration.
type PostLoadOptions struct {
	Hostname          bool     `json:"hostname,omitempty"`           // set the host name to the computer's name
	PublicInterface   string   `json:"public_interface,omitempty"`   // "" is the one with the default route
	ManagementSources []string `json:"management_sources,omitempty"` // CIDRs that may reach the control port; empty: the worker's own address
	Scripts           []string `json:"scripts,omitempty"`            // site script sets to run beside "all"; each names a folder

	// For Windows images only.
	RDPPort    int         `json:"rdp_port,omitempty"`    // 0 is 3389
	RDPSources []string    `json:"rdp_sources,omitempty"` // CIDRs that Remote Desktop is allowed from; empty: left as the image has it
	Domain     *Domain     `json:"domain,omitempty"`
	Activation *Activation `json:"activation,omitempty"`
	Updates    string      `json:"updates,omitempty"` // the image's folder of update packages (.cab) to install
}

// Domain is an Active Directory domain that a guest joins.
type Domain struct {
	Name       string `json:"name"`         // its DNS name
	OU         string `json:"ou,omitempty"` // where the computer's account is made, such as "OU=Lab,DC=example,DC=org"
	User       string `json:"user"`         // who may join computers
	Credential string `json:"credential"`   // the name of the worker's secret that is the password
}

// Activation says how a Windows is activated: by KMS servers, the first that does it, or with a key of its own.
type Activation struct {
	KMS []string `json:"kms,omitempty"` // host or host:port (1688), in order
	Key string   `json:"key,omitempty"` // the volume licence's public client key that goes with KMS; "": the image's own
	MAK string   `json:"mak,omitempty"` // the name of the worker's secret that is the key
}

// Limits are the time limits of one attempt. A zero means "not said here".
type Limits struct {
	Load          Duration `json:"load,omitzero"`           // bits on the disk, powered on
	InitialDelay  Duration `json:"initial_delay,omitzero"`  // before the first look at the guest is due; earlier answers are taken
	Response      Duration `json:"response,omitzero"`       // how long the OS may take to answer and finish its set-up
	NoProgress    Duration `json:"no_progress,omitzero"`    // how long nothing may change while the OS sets itself up; 0: not watched
	ResponseAgain Duration `json:"response_again,omitzero"` // the second wait, after a power reset; 0 in a table row means no reset
	Configure     Duration `json:"configure,omitzero"`      // configuring the OS once it has answered
	Settle        Duration `json:"settle,omitzero"`         // how long the guest's boot must stay the same before it counts as up
	Queue         Duration `json:"queue,omitzero"`          // how long a phase may wait for a worker before "no worker serves ..."
}

// Over returns l with each figure of other that is not zero in place of its own.
func (l Limits) Over(other Limits) Limits {
	pick := func(mine *Duration, theirs Duration) {
		if theirs != 0 {
			*mine = theirs
		}
	}
	pick(&l.Load, other.Load)
	pick(&l.InitialDelay, other.InitialDelay)
	pick(&l.Response, other.Response)
	pick(&l.NoProgress, other.NoProgress)
	pick(&l.ResponseAgain, other.ResponseAgain)
	pick(&l.Configure, other.Configure)
	pick(&l.Settle, other.Settle)
	pick(&l.Queue, other.Queue)
	return l
}

// Stretched returns the limits of attempt n: attempt 2 gets 1.5 times, attempt 3 and later twice. The delay, the settle
// time and the queue's limit stay: they do not depend on how slow the computer is.
func (l Limits) Stretched(n int) Limits {
	stretch := func(d Duration) Duration {
		switch {
		case n <= 1:
			return d
		case n == 2:
			return d + d/2
		default:
			return 2 * d
		}
	}
	l.Load = stretch(l.Load)
	l.Response = stretch(l.Response)
	l.NoProgress = stretch(l.NoProgress)
	l.ResponseAgain = stretch(l.ResponseAgain)
	l.Configure = stretch(l.Configure)
	return l
}

// Of returns the limit of one phase: its activity's StartToClose timeout. A phase without a limit of its own returns 0.
func (l Limits) Of(p Phase) Duration {
	switch p {
	case PhaseLoad:
		return l.Load
	case PhasePostLoad:
		return l.InitialDelay + l.Response + l.ResponseAgain + l.Configure
	default:
		return 0
	}
}

// Validate returns every fault of the reservation, joined, each a *FieldError; nil if there is none. now is the time to
// hold End against.
func (r Reservation) Validate(now time.Time) error {
	faults := []error{
		CheckName("reservation.name", r.Name),
		CheckUser("reservation.user", r.User),
	}
	if !r.End.After(now) {
		faults = append(faults, &FieldError{Field: "reservation.end", Value: r.End.UTC().Format(time.RFC3339),
			Remedy: "give an end after now (" + now.UTC().Format(time.RFC3339) + ")"})
	}
	faults = append(faults, r.Computer.Validate(), r.Image.Validate())
	if r.Computer.Provisioner != "" {
		if _, ok := r.Image.Sources[r.Computer.Provisioner]; !ok {
			faults = append(faults, &FieldError{Field: "image.sources", Value: r.Image.Name,
				Remedy: fmt.Sprintf("computer %s is loaded by %s: say where %s finds this image", r.Computer.Name, r.Computer.Provisioner, r.Computer.Provisioner)})
		}
	}
	return errors.Join(faults...)
}

// Validate returns every fault of the computer, joined, each a *FieldError.
func (c Computer) Validate() error {
	faults := []error{
		CheckName("computer.name", c.Name),
		CheckName("computer.provisioner", c.Provisioner),
	}
	if c.Site != "" {
		faults = append(faults, CheckName("computer.site", c.Site))
	}
	if c.Hardware != Virtual && c.Hardware != Physical {
		faults = append(faults, &FieldError{Field: "computer.hardware", Value: string(c.Hardware), Remedy: "write virtual or physical"})
	}
	if err := CheckAddress("computer.address", c.Address); err != nil {
		faults = append(faults, err)
	}
	for i, mac := range c.MACs {
		if hw, err := net.ParseMAC(mac); err != nil || len(hw) != 6 {
			faults = append(faults, &FieldError{Field: fmt.Sprintf("computer.macs[%d]", i), Value: mac, Remedy: "write six pairs of hex digits, such as 00:50:56:01:02:03"})
		}
	}
	if c.CPUs < 0 || c.CPUs > 1024 {
		faults = append(faults, &FieldError{Field: "computer.cpus", Value: strconv.Itoa(c.CPUs), Remedy: "give 1 to 1024, or leave it out to keep the image's own"})
	}
	if c.MemoryMiB < 0 || c.MemoryMiB > 64<<20 {
		faults = append(faults, &FieldError{Field: "computer.memory_mib", Value: strconv.Itoa(c.MemoryMiB), Remedy: "give the memory in MiB, or leave it out to keep the image's own"})
	}
	faults = append(faults, c.Public.validate())
	return errors.Join(faults...)
}

func (n *PublicNetwork) validate() error {
	if n == nil {
		return nil
	}
	var faults []error
	if !plain(n.Interface, 64) {
		faults = append(faults, &FieldError{Field: "computer.public.interface", Value: n.Interface, Remedy: "write the interface's name as the guest shows it, such as Ethernet 2"})
	}
	if prefix, err := netip.ParsePrefix(n.Address); err != nil || !prefix.Addr().Is4() {
		faults = append(faults, &FieldError{Field: "computer.public.address", Value: n.Address, Remedy: "write an IPv4 address with its bits, such as 192.0.2.7/24"})
	}
	address := func(field, value string) {
		if ip, err := netip.ParseAddr(value); err != nil || !ip.Is4() {
			faults = append(faults, &FieldError{Field: field, Value: value, Remedy: "write an IPv4 address, such as 192.0.2.1"})
		}
	}
	if n.Gateway != "" {
		address("computer.public.gateway", n.Gateway)
	}
	for i, server := range n.DNS {
		address(fmt.Sprintf("computer.public.dns[%d]", i), server)
	}
	return errors.Join(faults...)
}

// plain says whether a text has 1 to most characters, none of which is a control character.
func plain(text string, most int) bool {
	return text != "" && len(text) <= most && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// Validate returns every fault of the image, joined, each a *FieldError.
func (i Image) Validate() error {
	faults := []error{CheckName("image.name", i.Name)}
	if i.Revision < 1 {
		faults = append(faults, &FieldError{Field: "image.revision", Value: strconv.Itoa(i.Revision), Remedy: "give the image's revision, 1 or more"})
	}
	if i.OS.Family != Linux && i.OS.Family != Windows {
		faults = append(faults, &FieldError{Field: "image.os.family", Value: string(i.OS.Family), Remedy: "write linux or windows"})
	}
	if i.Sysprep && i.OS.Family != Windows {
		faults = append(faults, &FieldError{Field: "image.sysprep", Value: "true", Remedy: "only a Windows image can be Sysprepped: leave it out"})
	}
	if i.Attempts < 0 || i.Attempts > MaxAttempts {
		faults = append(faults, &FieldError{Field: "image.attempts", Value: strconv.Itoa(i.Attempts), Remedy: fmt.Sprintf("give 1 to %d, or leave it out for %d", MaxAttempts, DefaultAttempts)})
	}
	if len(i.Sources) == 0 {
		faults = append(faults, &FieldError{Field: "image.sources", Value: "", Remedy: "say for one provisioner at least where it finds the bits"})
	}
	if err := CheckName("image.control.channel", i.Control.Channel); err != nil {
		faults = append(faults, err)
	}
	if i.Control.Port < 0 || i.Control.Port > 65535 {
		faults = append(faults, &FieldError{Field: "image.control.port", Value: strconv.Itoa(i.Control.Port), Remedy: "give a TCP port, 1 to 65535, or leave it out"})
	}
	switch i.Control.HostKey {
	case "", HostKeyHanded, HostKeyFirst:
	default:
		faults = append(faults, &FieldError{Field: "image.control.host_key", Value: i.Control.HostKey, Remedy: "write " + HostKeyHanded + " or " + HostKeyFirst + ", or leave it out"})
	}
	for n, cidr := range i.PostLoad.ManagementSources {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			faults = append(faults, &FieldError{Field: fmt.Sprintf("image.post_load.management_sources[%d]", n), Value: cidr, Remedy: "write a network as address/bits, such as 10.1.0.0/16"})
		}
	}
	for n, set := range i.PostLoad.Scripts {
		faults = append(faults, CheckName(fmt.Sprintf("image.post_load.scripts[%d]", n), set))
	}
	faults = append(faults, i.Control.validate(i.OS.Family), i.PostLoad.validateWindows(i.OS.Family), i.Limits.validate())
	return errors.Join(faults...)
}

// validate checks what only one channel has.
func (c Control) validate(family OSFamily) error {
	var faults []error
	fault := func(field, value, remedy string) {
		faults = append(faults, &FieldError{Field: "image.control." + field, Value: value, Remedy: remedy})
	}
	if c.Channel != ChannelWinRM {
		if c.Certificate != "" {
			fault("certificate", c.Certificate, "only winrm shows a certificate: leave it out")
		}
		if c.Auth != "" {
			fault("auth", c.Auth, "only winrm has it: leave it out")
		}
		return errors.Join(faults...)
	}
	if family == Linux {
		fault("channel", c.Channel, "Linux images are controlled by ssh")
	}
	if c.HostKey != "" {
		fault("host_key", c.HostKey, "winrm has no host key: leave it out, or write certificate")
	}
	if c.Auth != "" && c.Auth != AuthNTLM && c.Auth != AuthBasic {
		fault("auth", c.Auth, "write "+AuthNTLM+" or "+AuthBasic+", or leave it out for "+AuthNTLM)
	}
	return errors.Join(faults...)
}

// validateWindows checks what only Windows images have.
func (o PostLoadOptions) validateWindows(family OSFamily) error {
	var faults []error
	fault := func(field, value, remedy string) {
		faults = append(faults, &FieldError{Field: "image.post_load." + field, Value: value, Remedy: remedy})
	}
	if family == Linux {
		// In a fixed order: workflows validate, too.
		for _, one := range []struct {
			field string
			there bool
		}{
			{"rdp_port", o.RDPPort != 0}, {"rdp_sources", len(o.RDPSources) > 0}, {"domain", o.Domain != nil},
			{"activation", o.Activation != nil}, {"updates", o.Updates != ""},
		} {
			if one.there {
				fault(one.field, "", "only a Windows image has it: leave it out")
			}
		}
		return errors.Join(faults...)
	}
	if o.RDPPort < 0 || o.RDPPort > 65535 {
		fault("rdp_port", strconv.Itoa(o.RDPPort), "give a TCP port, 1 to 65535, or leave it out for 3389")
	}
	if o.RDPPort != 0 && len(o.RDPSources) == 0 {
		fault("rdp_sources", "", "say from which networks Remote Desktop is allowed, such as 10.0.0.0/8, or leave rdp_port out, too")
	}
	for n, cidr := range o.RDPSources {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			fault(fmt.Sprintf("rdp_sources[%d]", n), cidr, "write a network as address/bits, such as 10.1.0.0/16")
		}
	}
	if o.Updates != "" && (!plain(o.Updates, 200) || len(o.Updates) < 4 || o.Updates[1:3] != `:\`) {
		fault("updates", o.Updates, `write a folder of the image, such as C:\Updates`)
	}
	if d := o.Domain; d != nil {
		if !dotted(d.Name) || len(d.Name) > 253 {
			fault("domain.name", d.Name, "write the domain's DNS name, such as ad.example.org")
		}
		if d.OU != "" && !plain(d.OU, 1024) {
			fault("domain.ou", d.OU, "write the place's distinguished name, such as OU=Lab,DC=example,DC=org")
		}
		if !plain(d.User, 256) {
			fault("domain.user", d.User, `name who joins computers, such as join@ad.example.org`)
		}
		faults = append(faults, CheckName("image.post_load.domain.credential", d.Credential))
	}
	if a := o.Activation; a != nil {
		if len(a.KMS) == 0 && a.MAK == "" {
			fault("activation", "", "give kms, a list of servers, or mak, the name of the secret that is the key")
		}
		for n, server := range a.KMS {
			faults = append(faults, CheckAddress(fmt.Sprintf("image.post_load.activation.kms[%d]", n), server))
		}
		if a.Key != "" && !productKey(a.Key) {
			fault("activation.key", a.Key, "write the client key as five groups of five characters")
		}
		if a.MAK != "" {
			faults = append(faults, CheckName("image.post_load.activation.mak", a.MAK))
		}
	}
	return errors.Join(faults...)
}

// productKey says whether a text is XXXXX-XXXXX-XXXXX-XXXXX-XXXXX.
func productKey(text string) bool {
	groups := strings.Split(text, "-")
	for _, group := range groups {
		if len(group) != 5 || strings.Trim(group, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
			return false
		}
	}
	return len(groups) == 5
}

func (l Limits) validate() error {
	var faults []error
	check := func(name string, d Duration) {
		if d < 0 || d.Std() > 48*time.Hour {
			faults = append(faults, &FieldError{Field: "image.limits." + name, Value: d.String(), Remedy: "give a duration up to 48h, or leave it out for the table's"})
		}
	}
	check("load", l.Load)
	check("initial_delay", l.InitialDelay)
	check("response", l.Response)
	check("no_progress", l.NoProgress)
	check("response_again", l.ResponseAgain)
	check("configure", l.Configure)
	check("settle", l.Settle)
	check("queue", l.Queue)
	return errors.Join(faults...)
}

// CheckAddress returns a *FieldError unless value is a host name or an IP address, with or without ":port".
func CheckAddress(field, value string) error {
	host := value
	if h, port, err := net.SplitHostPort(value); err == nil {
		if n, perr := strconv.Atoi(port); perr != nil || n < 1 || n > 65535 {
			return &FieldError{Field: field, Value: value, Remedy: "the port must be 1 to 65535"}
		}
		host = h
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if CheckName(field, strings.ToLower(host)) != nil && !(len(host) <= 253 && dotted(host)) {
		return &FieldError{Field: field, Value: value, Remedy: "write a host name or an IP address, with :port where it is not the usual one"}
	}
	return nil
}

func dotted(host string) bool {
	for _, label := range strings.Split(host, ".") {
		if CheckName("", strings.ToLower(label)) != nil {
			return false
		}
	}
	return true
}
