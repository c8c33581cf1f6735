// Package catalog reads the catalog: the YAML file that names a site's secrets, sites, images and computers. A catalog is
// checked whole, and every fault is reported at once with its file and line.
package catalog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/internal/secrets"
	"berth/provisioners"
	"berth/reservation"
)

// maxSize is far above any catalog (100,000 computers take 30 MB) and keeps a mistaken path out of memory.
const maxSize = 64 << 20

// Options are what a catalog is checked with.
type Options struct {
	// Validators check what only a provisioner understands: images' sources and computers' placements, by provisioner
	// type. What has no validator is not checked here; the worker that serves it checks it at its start.
	Validators map[string]provisioners.Validator
}

// Catalog is a catalog without faults. Treat it as read-only; it is then safe for concurrent use.
type Catalog struct {
	Path      string                    // as it was given to Load
	Secrets   map[string]secrets.Source // where each named secret is read; files with the catalog's folder before them
	Sites     []Site
	Images    []reservation.Image // with every revision
	Computers []reservation.Computer
}

// Site is everything that one vCenter, management node or host can reach.
type Site struct {
	Name        string   `json:"name"`
	Provisioner string   `json:"provisioner"` // the type of the module that serves it
	VMware      *VMware  `json:"vmware"`      // for the type vmware only
	XCAT        *XCAT    `json:"xcat"`        // for the type xcat only
	Libvirt     *Libvirt `json:"libvirt"`     // for the type libvirt only
}

// Libvirt says how a libvirt host is reached, and how guests are run on it.
type Libvirt struct {
	URI        string `json:"uri"`              // qemu:///system, qemu+tls://HOST/system or qemu+ssh://USER@HOST/system
	Credential string `json:"credential"`       // the name of the secret: by TLS our certificate and key as PEM, by SSH our private key
	CAFile     string `json:"ca_file"`          // TLS: PEM of the host's authority; relative to the catalog's folder
	ServerName string `json:"server_name"`      // TLS: that the host's certificate bears; "" is the URI's host
	HostKey    string `json:"host_key"`         // SSH: the host's public key
	KnownHosts string `json:"known_hosts_file"` // SSH: that has the host's key; relative to the catalog's folder
	Pool       string `json:"pool"`             // storage pool; "" is the module's default
	Accel      string `json:"accel"`            // auto, kvm or tcg; "" is auto
	Loads      int    `json:"loads"`            // that make and start a guest at a time; 0 is the module's default
}

// XCAT says how a management node is reached: by its daemon at an address, or by its command-line tools, or by both.
type XCAT struct {
	Address    string     `json:"address"`     // of xcatd: host or host:port; "" where only the tools are used
	ServerName string     `json:"server_name"` // that its certificate bears; "" is the address's host
	CAFile     string     `json:"ca_file"`     // PEM: xCAT's own authority; relative to the catalog's folder
	Credential string     `json:"credential"`  // the name of the secret that is our certificate and its key, as PEM
	Tools      *XCATTools `json:"tools"`
	KnownHosts string     `json:"known_hosts_file"` // on the management node; "" is the module's default
	InFlight   int        `json:"in_flight"`        // commands at a time; 0 is the module's default
	Installs   int        `json:"installs"`         // nodes that install at a time; 0 is the module's default
	CountArmed string     `json:"count_armed"`      // a noderange whose armed nodes count among them, whoever armed them
}

// XCATTools says where xCAT's command-line tools are run.
type XCATTools struct {
	Path         string `json:"path"`             // folders with colons between; "" is the module's default
	SSH          string `json:"ssh"`              // user@host of the management node; "" is this machine
	Port         int    `json:"port"`             // of its sshd; 0 is 22
	IdentityFile string `json:"identity_file"`    // private key; relative to the catalog's folder
	KnownHosts   string `json:"known_hosts_file"` // that has the management node's key; relative to the catalog's folder
}

// VMware says how a vCenter is reached.
type VMware struct {
	URL           string `json:"url"` // https://HOST/sdk, without user or password
	User          string `json:"user"`
	Credential    string `json:"credential"` // the name of the secret that is the password
	CAFile        string `json:"ca_file"`    // PEM; relative to the catalog's folder
	Thumbprint    string `json:"thumbprint"` // SHA-256 or SHA-1 of the server's certificate, as pairs of hex digits
	Insecure      bool   `json:"insecure"`   // verify nothing: anybody in between reads the password
	Datacenter    string `json:"datacenter"`
	Clones        int    `json:"clones"`          // running at a time; 0 is the module's default
	ClonesPerHost int    `json:"clones_per_host"` // running at a time on one host; 0 is the module's default
}

// content is the file as it is written.
type content struct {
	Secrets   map[string]secrets.Source `json:"secrets"`
	Sites     []Site                    `json:"sites"`
	Images    []reservation.Image       `json:"images"`
	Computers []reservation.Computer    `json:"computers"`
}

// Load reads and checks a catalog. The error is an *Error that holds every fault. It may be called again: each call
// reads the file anew.
func Load(path string, options Options) (*Catalog, error) {
	text, err := read(path)
	if err != nil {
		return nil, &Error{Faults: []*Fault{{File: path, Field: "catalog", Remedy: err.Error()}}}
	}
	return parse(path, text, options)
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot be read (%w): give the path of the catalog", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("is not a file: give the path of the catalog")
	case info.Size() > maxSize:
		return nil, fmt.Errorf("has %d bytes, and a catalog has at most %d: is it the right file?", info.Size(), maxSize)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	return text, nil
}

func parse(path string, text []byte, options Options) (*Catalog, error) {
	d := newDecoder(path)
	var c content
	// Half a catalog would have faults that are none.
	if d.document(text, &c) {
		check(d, &c, options)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	folder := filepath.Dir(path)
	for name, source := range c.Secrets {
		source.File = within(folder, source.File)
		c.Secrets[name] = source
	}
	for _, site := range c.Sites {
		if site.VMware != nil {
			site.VMware.CAFile = within(folder, site.VMware.CAFile)
		}
		if site.Libvirt != nil {
			site.Libvirt.CAFile = within(folder, site.Libvirt.CAFile)
			site.Libvirt.KnownHosts = within(folder, site.Libvirt.KnownHosts)
		}
		if site.XCAT != nil {
			site.XCAT.CAFile = within(folder, site.XCAT.CAFile)
			if tools := site.XCAT.Tools; tools != nil {
				tools.IdentityFile = within(folder, tools.IdentityFile)
				tools.KnownHosts = within(folder, tools.KnownHosts)
			}
		}
	}
	return &Catalog{Path: path, Secrets: c.Secrets, Sites: c.Sites, Images: c.Images, Computers: c.Computers}, nil
}

// within returns path with the folder before it if it is relative; "" stays "".
func within(folder, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(folder, path)
}

// Summary returns one line that says how much the catalog holds.
func (c *Catalog) Summary() string {
	return fmt.Sprintf("%d sites, %d images, %d computers, %d secrets", len(c.Sites), len(c.Images), len(c.Computers), len(c.Secrets))
}

// ComputerNames returns the computers' names, sorted.
func (c *Catalog) ComputerNames() []string {
	names := make([]string, len(c.Computers))
	for i, computer := range c.Computers {
		names[i] = computer.Name
	}
	slices.Sort(names)
	return names
}

// ImageNames returns the images' names, sorted, each once however many revisions it has.
func (c *Catalog) ImageNames() []string {
	names := make([]string, len(c.Images))
	for i, image := range c.Images {
		names[i] = image.Name
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Computer returns the computer of a name. An unknown one is a *reservation.FieldError that suggests the nearest.
func (c *Catalog) Computer(name string) (reservation.Computer, error) {
	at := slices.IndexFunc(c.Computers, func(computer reservation.Computer) bool { return computer.Name == name })
	if at >= 0 {
		return c.Computers[at], nil
	}
	return reservation.Computer{}, &reservation.FieldError{Field: "computer", Value: name, Remedy: suggestion("computer", name, c.ComputerNames())}
}

// Image returns the image that a reference names: "debian12" is the image's highest revision, "debian12-r2" is that
// revision. An unknown one is a *reservation.FieldError that suggests the nearest.
func (c *Catalog) Image(reference string) (reservation.Image, error) {
	newest := -1
	for i, image := range c.Images {
		if image.Name == reference && (newest < 0 || image.Revision > c.Images[newest].Revision) {
			newest = i
		}
	}
	if newest >= 0 {
		return c.Images[newest], nil
	}
	var names, revisions []string
	of, revised := withoutRevision(reference)
	for _, image := range c.Images {
		if image.String() == reference {
			return image, nil
		}
		names = append(names, image.Name)
		if image.Name == of {
			revisions = append(revisions, image.String())
		}
	}
	remedy := suggestion("image", reference, names)
	switch {
	case len(revisions) > 0:
		remedy = fmt.Sprintf("the catalog has no such revision of %s; it has %s", of, enumerate(revisions))
	case revised:
		remedy = suggestion("image", of, names)
	}
	return reservation.Image{}, &reservation.FieldError{Field: "image", Value: reference, Remedy: remedy}
}

// withoutRevision returns "debian12" for "debian12-r2", and whether there was a revision to take off.
func withoutRevision(reference string) (string, bool) {
	at := strings.LastIndex(reference, "-r")
	if at <= 0 {
		return reference, false
	}
	if _, err := strconv.ParseUint(reference[at+2:], 10, 32); err != nil {
		return reference, false
	}
	return reference[:at], true
}

// Reservation returns the reservation of a computer with an image until an end. Its error joins every fault: unknown
// names with the nearest right one, names that are not allowed, an end that has passed, an image that has no source for
// the computer's provisioner. Each is a *reservation.FieldError.
func (c *Catalog) Reservation(name, user, computer, image string, end time.Time) (reservation.Reservation, error) {
	r := reservation.Reservation{Name: name, User: user, End: end.UTC()}
	var computerErr, imageErr error
	r.Computer, computerErr = c.Computer(computer)
	r.Image, imageErr = c.Image(image)
	if computerErr == nil && imageErr == nil {
		if err := r.Validate(time.Now()); err != nil {
			return reservation.Reservation{}, err
		}
		return r, nil
	}
	return reservation.Reservation{}, errors.Join(reservation.CheckName("reservation.name", name), reservation.CheckUser("reservation.user", user), computerErr, imageErr)
}
