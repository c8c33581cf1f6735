// Package vmware loads computers that are virtual machines of a vCenter.
//
// A load is one clone of a template's snapshot that powers itself on. Everything that a successor needs stands in the
// vCenter or in what the reporter keeps: the VM's name is the computer's, its extraConfig bears the fencing mark, and
// the clone's task is found again by its reference or among the template's running tasks. So Load can be stopped at any
// point and called again in another process, and there is one clone and one power-on.
//
// One Module holds one session per vCenter for the whole process, one wait for updates, and one queue for clones.
package vmware

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"berth/provisioners"
	"berth/reservation"
)

// Type is the provisioner type that this module is registered as.
const Type = "vmware"

// How many clones run at once where a Site does not say. A host of ESXi runs eight clones or migrations that share a
// datastore at once and queues the rest; half of it leaves room for others.
const (
	DefaultClones        = 8
	DefaultClonesPerHost = 4
)

// Keys of a VM's extraConfig. The guest reads those under guestinfo with `vmware-rpctool "info-get <key>"`.
const (
	KeyMark          = "berth.mark"                  // reservation.Mark.String(): whose VM it is
	KeyHostKey       = "guestinfo.berth.hostkey"     // private host key, OpenSSH PEM; cleared by AfterResponse
	KeyHostKeyPublic = "guestinfo.berth.hostkey.pub" // its public half, an authorized_keys line
	KeyReservation   = "guestinfo.berth.reservation" // the reservation's name
	KeyImage         = "guestinfo.berth.image"       // the image's name and revision
	KeyHostname      = "guestinfo.berth.hostname"    // the computer's name
)

// Site is one vCenter.
type Site struct {
	Name     string
	URL      string // https://host[:port]/sdk
	User     string
	Password func() (string, error) // asked at each login, so that a changed secret needs no restart
	// How the server's certificate is checked: against the authorities in CAFile, or by its Thumbprint (SHA-256 or
	// SHA-1, hex, with or without colons), or not at all if Insecure, which warns. With none of them the system's
	// authorities count. At most one may be set.
	CAFile     string
	Thumbprint string
	Insecure   bool
	Datacenter string // "" is the only one
	// Clones that run at once in the vCenter and on one host; 0 means the default.
	Clones        int
	ClonesPerHost int
}

// Options are what a Module is made of.
type Options struct {
	Sites  []Site
	Logger zerolog.Logger
	// Observe is called once for each vSphere API call that is sent, with the site's name. It may be nil. It must not
	// block and is called from many goroutines.
	Observe func(vcenter, method string)
}

// Module loads VMs. It is a provisioners.Provisioner, Aborter, Unloader, PowerResetter, AfterResponder, Checker and
// Validator, and safe for concurrent use.
type Module struct {
	vcenters map[string]*vcenter
	log      zerolog.Logger
}

// New checks the options and returns a Module. It reads the CA files but reaches no vCenter: the first call that needs
// one logs in. Its error holds every fault of the sites, joined.
func New(options Options) (*Module, error) {
	m := &Module{vcenters: map[string]*vcenter{}, log: options.Logger.With().Str("provisioner", Type).Logger()}
	observe := options.Observe
	if observe == nil {
		observe = func(string, string) {}
	}
	var faults []error
	if len(options.Sites) == 0 {
		faults = append(faults, &reservation.FieldError{Field: "sites", Value: "", Remedy: "name one vCenter at least for provisioner " + Type})
	}
	for i, site := range options.Sites {
		field := fmt.Sprintf("sites[%d]", i)
		if err := reservation.CheckName(field+".name", site.Name); err != nil {
			faults = append(faults, err)
		}
		if _, twice := m.vcenters[site.Name]; twice {
			faults = append(faults, &reservation.FieldError{Field: field + ".name", Value: site.Name, Remedy: "give each site a name of its own"})
			continue
		}
		vc, err := newVCenter(field, site, m.log, observe)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		m.vcenters[site.Name] = vc
	}
	if err := errors.Join(faults...); err != nil {
		for _, vc := range m.vcenters {
			vc.close(context.Background())
		}
		return nil, err
	}
	return m, nil
}

// Close ends the waits and logs out of every vCenter. Calls that are still running end with an error. It may be called
// again.
func (m *Module) Close(ctx context.Context) {
	for _, vc := range m.vcenters {
		vc.close(ctx)
	}
}

// Check logs in to every site and finds its datacenter. It returns every fault, joined.
func (m *Module) Check(ctx context.Context) error {
	var faults []error
	for _, name := range m.sites() {
		if _, err := m.vcenters[name].inventory.datacenter(ctx); err != nil {
			faults = append(faults, Classify(err))
		}
	}
	return errors.Join(faults...)
}

func (m *Module) sites() []string {
	names := make([]string, 0, len(m.vcenters))
	for name := range m.vcenters {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// What an image's source and a computer's placement may hold.
const (
	sourceTemplate = "template" // name or inventory path of the VM or template to clone
	sourceSnapshot = "snapshot" // name of its snapshot; needed for a linked clone
	sourceClone    = "clone"    // cloneLinked (default) or cloneFull

	cloneLinked = "linked"
	cloneFull   = "full"

	placeFolder    = "folder"        // "" or vm: the datacenter's VM folder; a path under it; or an absolute inventory path
	placePool      = "resource_pool" // name or path; "" is the pool of the host, else the template's
	placeDatastore = "datastore"     // "" is the template's
	placeHost      = "host"          // "" leaves it to the vCenter
)

// ValidateSource is part of provisioners.Validator.
func (m *Module) ValidateSource(source map[string]string) error {
	const field = "image.sources." + Type
	faults := known(field, source, sourceTemplate, sourceSnapshot, sourceClone)
	if source[sourceTemplate] == "" {
		faults = append(faults, &reservation.FieldError{Field: field + "." + sourceTemplate, Value: "",
			Remedy: "give the name or the inventory path of the VM or template to clone"})
	}
	switch source[sourceClone] {
	case "", cloneLinked:
		if source[sourceSnapshot] == "" {
			faults = append(faults, &reservation.FieldError{Field: field + "." + sourceSnapshot, Value: "",
				Remedy: "give the name of the template's snapshot, which a linked clone grows from, or write clone: " + cloneFull})
		}
	case cloneFull:
	default:
		faults = append(faults, &reservation.FieldError{Field: field + "." + sourceClone, Value: source[sourceClone],
			Remedy: "write " + cloneLinked + " or " + cloneFull + ", or leave it out for " + cloneLinked})
	}
	return errors.Join(faults...)
}

// ValidatePlacement is part of provisioners.Validator.
func (m *Module) ValidatePlacement(placement map[string]string) error {
	return errors.Join(known("computer.placement", placement, placeFolder, placePool, placeDatastore, placeHost)...)
}

func known(field string, values map[string]string, keys ...string) []error {
	faults := provisioners.UnknownKeys(Type, field, values, keys...)
	for key, value := range values {
		if slices.Contains(keys, key) && strings.ContainsAny(value, `*?[]\`) {
			faults = append(faults, &reservation.FieldError{Field: field + "." + key, Value: value,
				Remedy: `write the whole name: * ? [ ] \ would be read as a pattern`})
		}
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return faults
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

// limitOr returns n, or what stands in for 0.
func limitOr(n, fallback int) int {
	if n == 0 {
		return fallback
	}
	return n
}
