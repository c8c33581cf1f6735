// Package libvirt loads computers that are QEMU virtual machines of a libvirt host.
//
// A load defines a domain under the computer's name, gives it a copy-on-write disk on the image's master and, for images with
// cloud-init, a NoCloud seed, and starts it. The domain's metadata bear the fencing mark from the call that defines it; it is
// defined before its volumes are made and undefined after they are deleted, so that whatever a lost worker left is found by
// the domain. To start it is the last thing that a load does: a running domain with our mark is loaded.
//
// The image's master is brought to the host once, whatever number of loads asks for it. It goes by libvirt's own
// streams, so hosts anywhere are served, and counts as there only once its digest has been checked on the host.
package libvirt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/ssh"

	"berth/provisioners"
	"berth/provisioners/libvirt/dial"
	"berth/reservation"
)

// Type is the provisioner type that this module is registered as.
const Type = "libvirt"

// What counts where a Site or an image does not say.
const (
	DefaultLoads     = 8 // a start reads the whole boot from the disk: more at once make all of them slower
	DefaultPool      = "default"
	DefaultCPUs      = 1
	DefaultMemoryMiB = 1024
)

// How a guest is run.
const (
	AccelAuto = "auto" // KVM where the host has it
	AccelKVM  = "kvm"
	AccelTCG  = "tcg" // by emulation: for hosts whose /dev/kvm is there and does not work, too
)

// Site is one libvirt host.
type Site struct {
	Name string
	URI  string // as dial.Parse reads it
	// For qemu+tls: the authorities of the host's certificate, the name that it bears ("" is the URI's host), and our
	// certificate and key as PEM, asked at each connection.
	CAFile      string
	ServerName  string
	Certificate func() ([]byte, error)
	// For qemu+ssh: our key, asked at each login, and the host's: one authorized_keys line, or a known_hosts file.
	Key            func() (ssh.Signer, error)
	HostKey        string
	KnownHostsFile string

	Pool  string // the storage pool of masters, disks and seeds; "" is DefaultPool
	Accel string // AccelAuto, AccelKVM or AccelTCG; "" is AccelAuto
	Loads int    // that make and start a domain at once, over all workers; 0 is DefaultLoads
}

// Options are what a Module is made of.
type Options struct {
	Sites  []Site
	Logger zerolog.Logger
	// ControlKey returns the public half of the key that the control channel logs in with, as an authorized_keys line: guests
	// with cloud-init are given it. "" if the secret of that name is a password. It may be nil.
	ControlKey func(credential string) (string, error)
}

// Module loads domains. It is a provisioners.Provisioner, Aborter, Unloader, PowerResetter, AfterResponder, Checker and
// Validator, and safe for concurrent use.
type Module struct {
	hosts      map[string]*host
	controlKey func(credential string) (string, error)
	http       *http.Client
	log        zerolog.Logger
}

// New checks the options and returns a Module. It reads the files of authorities and known hosts but reaches no host: the
// first call that needs one connects. Its error holds every fault of the sites, joined.
func New(options Options) (*Module, error) {
	m := &Module{hosts: map[string]*host{}, controlKey: options.ControlKey, http: &http.Client{},
		log: options.Logger.With().Str("provisioner", Type).Logger()}
	if m.controlKey == nil {
		m.controlKey = func(string) (string, error) { return "", nil }
	}
	var faults []error
	if len(options.Sites) == 0 {
		faults = append(faults, &reservation.FieldError{Field: "sites", Value: "",
			Remedy: "name one host at least for provisioner " + Type})
	}
	for i, site := range options.Sites {
		field := fmt.Sprintf("sites[%d]", i)
		if err := reservation.CheckName(field+".name", site.Name); err != nil {
			faults = append(faults, err)
		}
		if _, twice := m.hosts[site.Name]; twice {
			faults = append(faults, &reservation.FieldError{Field: field + ".name", Value: site.Name,
				Remedy: "give each site a name of its own"})
			continue
		}
		h, err := newHost(field, site, m.log)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		m.hosts[site.Name] = h
	}
	if err := errors.Join(faults...); err != nil {
		m.Close(context.Background())
		return nil, err
	}
	return m, nil
}

// Close ends all connections. Calls that are still running end with an error. It may be called again.
func (m *Module) Close(context.Context) {
	for _, h := range m.hosts {
		h.close()
	}
}

// Check connects to every host, and looks at its storage pool and at how it can run guests. It returns every fault, joined.
func (m *Module) Check(ctx context.Context) error {
	var faults []error
	for _, name := range m.sites() {
		h := m.hosts[name]
		if _, err := h.pool(ctx, h.site.Pool); err != nil {
			faults = append(faults, Classify(err))
			continue
		}
		if _, err := h.virtType(ctx, ""); err != nil {
			faults = append(faults, Classify(err))
		}
	}
	return errors.Join(faults...)
}

func (m *Module) sites() []string { return slices.Sorted(maps.Keys(m.hosts)) }

// dialer returns the dialer of a site, and the URI that its daemon is asked to open.
func dialer(field string, site Site) (dial.Dialer, dial.URI, error) {
	uri, err := dial.Parse(field+".uri", site.URI)
	if err != nil {
		return nil, uri, err
	}
	fault := func(name, value, remedy string, cause error) error {
		err := error(&reservation.FieldError{Field: field + "." + name, Value: value, Remedy: remedy})
		if cause != nil {
			err = fmt.Errorf("%w: %w", err, cause)
		}
		return err
	}
	switch uri.Transport {
	case dial.TLS:
		if site.Certificate == nil {
			return nil, uri, fault("credential", "", "name the secret that holds our certificate and its key", nil)
		}
		authorities := x509.NewCertPool()
		pem, err := os.ReadFile(site.CAFile)
		if err != nil || !authorities.AppendCertsFromPEM(pem) {
			return nil, uri, fault("ca_file", site.CAFile,
				"give a PEM file of the authority of the host's certificate, such as a copy of its /etc/pki/CA/cacert.pem", err)
		}
		return dial.NewTLS(dial.TLSOptions{Address: uri.Address, ServerName: site.ServerName, Authorities: authorities,
			Certificate: func() (tls.Certificate, error) {
				pem, err := site.Certificate()
				if err != nil {
					return tls.Certificate{}, err
				}
				return tls.X509KeyPair(pem, pem)
			}}), uri, nil
	case dial.SSH:
		if site.Key == nil {
			return nil, uri, fault("credential", "", "name the secret that holds our private key", nil)
		}
		var keys dial.HostKeys
		if site.HostKey != "" {
			if keys, err = dial.PinnedKey(site.HostKey); err != nil {
				return nil, uri, fault("host_key", site.HostKey,
					"write the host's public key as ssh-keyscan prints it, without the name: ssh-ed25519 AAAA...", err)
			}
		} else if keys, err = dial.KnownHosts(site.KnownHostsFile, uri.Address); err != nil {
			return nil, uri, fault("known_hosts_file", site.KnownHostsFile,
				"give a known_hosts file that has the host's key, or write the key itself as host_key", err)
		}
		return dial.NewSSH(dial.SSHOptions{Address: uri.Address, User: uri.User, Socket: uri.Socket, Signer: site.Key,
			HostKeys: keys}), uri, nil
	default:
		return dial.NewUnix(uri.Socket), uri, nil
	}
}

// What an image's source may hold.
const (
	sourceMaster    = "master"     // where the image's bits are: an absolute path on the worker, or a URL
	sourceVolume    = "volume"     // or the name of a volume that is in the host's pool already
	sourceSHA256    = "sha256"     // the digest of the bits
	sourceSize      = "size"       // their number in bytes; "" is what the source says
	sourceFormat    = "format"     // formatQCOW2 (default) or formatRaw
	sourceCloudInit = "cloud_init" // true: the guest is told its name and keys by a NoCloud seed
	sourceMachine   = "machine"    // "" is q35, on other architectures the host's own choice
	sourceFirmware  = "firmware"   // firmwareBIOS (default), firmwareUEFI or firmwareSecure
	sourceDiskBus   = "disk_bus"   // virtio (default), scsi, sata or ide
	sourceNIC       = "nic"        // the model of the interfaces; virtio if ""
	sourceCPU       = "cpu"        // host-model, host-passthrough, maximum, or a model's name
	sourceCPUs      = "cpus"       // where the computer does not say
	sourceMemory    = "memory_mib" // where the computer does not say
	sourceDisk      = "disk_gib"   // the disk's size; "" is the master's
	sourceGraphics  = "graphics"   // vnc (default) or none

	formatQCOW2 = "qcow2"
	formatRaw   = "raw"

	firmwareBIOS   = "bios"
	firmwareUEFI   = "uefi"
	firmwareSecure = "uefi-secure"

	graphicsVNC  = "vnc"
	graphicsNone = "none"
)

// What a computer's placement may hold.
const (
	placePool    = "pool"    // storage pool of its disk and seed and of the master; "" is the site's
	placeAddress = "address" // address/bits that the seed gives the first interface; "": the guest asks DHCP
	placeGateway = "gateway"
	placeDNS     = "dns" // addresses with spaces between
)

// bridgePrefix marks a network of a computer as one of the host's bridges; without it the name is a libvirt network's.
const bridgePrefix = "bridge:"

// ValidateSource is part of provisioners.Validator.
func (m *Module) ValidateSource(source map[string]string) error {
	const field = "image.sources." + Type
	faults := provisioners.UnknownKeys(Type, field, source, sourceMaster, sourceVolume, sourceSHA256, sourceSize, sourceFormat, sourceCloudInit,
		sourceMachine, sourceFirmware,
		sourceDiskBus, sourceNIC, sourceCPU, sourceCPUs, sourceMemory, sourceDisk, sourceGraphics)
	fault := func(key, remedy string) {
		faults = append(faults, &reservation.FieldError{Field: field + "." + key, Value: source[key], Remedy: remedy})
	}
	switch master, volume := source[sourceMaster], source[sourceVolume]; {
	case master == "" && volume == "":
		fault(sourceMaster, "say where the bits are: an absolute path on the worker or an http(s) URL, or volume: a volume that is in the host's pool")
	case master != "" && volume != "":
		fault(sourceVolume, "it has both master and volume: keep one")
	case volume != "" && (strings.ContainsAny(volume, "/<&") || volume[0] == '.'):
		fault(sourceVolume, "write the name of a volume, as `virsh vol-list` shows it")
	case strings.Contains(master, "://"):
		u, err := url.Parse(master)
		switch {
		case err != nil || u.User != nil:
			faults = append(faults, &reservation.FieldError{Field: field + "." + sourceMaster, Value: "",
				Remedy: "write an http(s) URL without user and password"})
		case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			fault(sourceMaster, "write an http(s) URL, or an absolute path on the worker")
		}
	case master != "" && !filepath.IsAbs(master):
		fault(sourceMaster, "write an absolute path on the worker, or an http(s) URL")
	}
	if digest := source[sourceSHA256]; len(digest) != 64 || strings.Trim(digest, "0123456789abcdef") != "" {
		fault(sourceSHA256, "give the bits' SHA-256 as 64 lower-case hex digits, as sha256sum prints it")
	}
	number := func(key string, most uint64, what string) {
		if text := source[key]; text != "" {
			if n, err := strconv.ParseUint(text, 10, 64); err != nil || n < 1 || n > most {
				fault(key, fmt.Sprintf("give %s, 1 to %d, or leave it out", what, most))
			}
		}
	}
	number(sourceSize, 1<<50, "the number of bytes")
	number(sourceCPUs, 1024, "how many CPUs it gets where the computer does not say")
	number(sourceMemory, 64<<20, "the memory in MiB where the computer does not say")
	number(sourceDisk, 1<<20, "the disk's size in GiB")
	one := func(key string, values ...string) {
		if value := source[key]; value != "" && !slices.Contains(values, value) {
			fault(key, fmt.Sprintf("write one of %s, or leave it out for %s", strings.Join(values, ", "), values[0]))
		}
	}
	one(sourceFormat, formatQCOW2, formatRaw)
	one(sourceCloudInit, "false", "true")
	one(sourceFirmware, firmwareBIOS, firmwareUEFI, firmwareSecure)
	one(sourceDiskBus, "virtio", "scsi", "sata", "ide")
	one(sourceGraphics, graphicsVNC, graphicsNone)
	for _, key := range []string{sourceMachine, sourceNIC, sourceCPU} {
		if strings.ContainsFunc(source[key], func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
		}) {
			fault(key, "write one word of QEMU's, or leave it out")
		}
	}
	return errors.Join(faults...)
}

// ValidatePlacement is part of provisioners.Validator.
func (m *Module) ValidatePlacement(placement map[string]string) error {
	const field = "computer.placement"
	faults := provisioners.UnknownKeys(Type, field, placement, placePool, placeAddress, placeGateway, placeDNS)
	fault := func(key, remedy string) {
		faults = append(faults, &reservation.FieldError{Field: field + "." + key, Value: placement[key], Remedy: remedy})
	}
	if text := placement[placeAddress]; text != "" {
		if _, err := netip.ParsePrefix(text); err != nil {
			fault(placeAddress, "write an address with its bits, such as 192.0.2.7/24, or leave it out: the guest then asks DHCP")
		}
	} else {
		for _, key := range []string{placeGateway, placeDNS} {
			if placement[key] != "" {
				fault(key, "it is of use with address only: add that, or leave this out")
			}
		}
	}
	if text := placement[placeGateway]; text != "" && net.ParseIP(text) == nil {
		fault(placeGateway, "write an address, such as 192.0.2.1")
	}
	for _, text := range strings.Fields(placement[placeDNS]) {
		if net.ParseIP(text) == nil {
			fault(placeDNS, "write addresses with spaces between, such as 192.0.2.1 192.0.2.2")
			break
		}
	}
	return errors.Join(faults...)
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
