// Package provisioners holds what a provisioning module is: the Provisioner interface, the capabilities that only some
// modules have, and the registry. Each implementation has a folder of its own.
//
// A provisioner puts an image's bits on a computer's disk and powers it on. It never talks to the operating system that
// it has loaded, and it knows neither OS modules nor Temporal.
package provisioners

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"berth/reservation"
)

// Request is what every call of a provisioner is about.
type Request struct {
	Reservation reservation.Reservation
	Mark        reservation.Mark    // what to write onto the computer, and to hold against what stands there
	Attempt     reservation.Attempt // which try of how many
	Deadline    time.Time           // when the phase's limit is reached; the context ends then, too
	Limit       time.Duration       // the whole limit, for texts such as "412 s of 1860 s"
	// Enter waits for a slot at a gate: at most capacity loads are inside a gate of one name at once, over all workers, first
	// come first served. Name the gate after the control plane. waiting is called with the place in line, from 1, whenever it
	// is another one. Call leave once nothing of what the slot is for runs or stands any more; where this worker hands over it
	// does nothing, and who goes on gets the same slot. A try that ends without it keeps the slot for the phase's next try, and
	// for the Abort that removes what it left. A phase that is over without a word loses it by itself. The error is the
	// context's, or says why there is no gate: a fault. It is nil in tests without a server.
	Enter func(ctx context.Context, name string, capacity int, waiting func(place int)) (leave func(), err error)
	// Leave gives up the slot that a Load of this reservation has kept at a gate. It may be called again, and where no slot is
	// held. It is nil in tests without a server.
	Leave func(ctx context.Context, name string)
}

// Loaded is what a finished Load tells.
type Loaded struct {
	// HostKey is the public SSH host key that was handed to the guest for this load, as an authorized_keys line; ""
	// when the guest has a key of its own.
	HostKey string
	// Reference is what the control plane calls the computer now (a managed object ID, a domain's UUID), for the log.
	Reference string
}

// Provisioner loads computers.
//
// Load puts the image's bits on the computer's disk and powers it on; it returns when the control plane says that it is
// powered on. Its error is made by reservation.Reload or reservation.Fail if it judges the load; any other error is a
// fault of ours, and Load is then called again with the same mark, perhaps in another process. It must then go on from
// what stands there and from what the reporter kept: it is called any number of times for one mark and makes one
// computer. When the context ends Load stops what it has running in the control plane and returns the context's error.
type Provisioner interface {
	Load(ctx context.Context, request Request, report reservation.Reporter) (Loaded, error)
}

// Aborter removes what an unfinished or failed load left. It finds it by the computer's name and the mark, removes only
// what bears a mark of the same reservation, and returns nil when nothing is there. It may be called again.
type Aborter interface {
	Abort(ctx context.Context, request Request, report reservation.Reporter) error
}

// Unloader takes a loaded computer back: powered off and removed from its disk. Same rules as Aborter.
type Unloader interface {
	Unload(ctx context.Context, request Request, report reservation.Reporter) error
}

// PowerResetter gives a silent computer a hard reset. It refuses with an error when the computer bears another
// reservation's mark.
type PowerResetter interface {
	PowerReset(ctx context.Context, request Request) error
}

// AfterResponder is the provisioner's hook between "the OS answers" and "the OS is configured": xCAT gathers the new SSH
// host keys there, vSphere clears the host key from the VM's configuration. It may be called again.
type AfterResponder interface {
	AfterResponse(ctx context.Context, request Request, report reservation.Reporter) error
}

// Checker is asked once at a worker's start: can this module reach and log in to everything that it serves? It returns
// every fault, joined.
type Checker interface {
	Check(ctx context.Context) error
}

// Validator checks what only the module understands, before anything is touched: an image's source and a computer's
// placement. It returns every fault, joined, each a *reservation.FieldError. It does no I/O.
type Validator interface {
	ValidateSource(source map[string]string) error
	ValidatePlacement(placement map[string]string) error
}

// SiteOf returns what serves a computer among a module's sites by name: the site that it names, or the only one. Its error is a
// verdict: fail.
func SiteOf[T any](sites map[string]T, computer reservation.Computer) (T, error) {
	if site, ok := sites[computer.Site]; ok {
		return site, nil
	}
	if computer.Site == "" && len(sites) == 1 {
		for _, site := range sites {
			return site, nil
		}
	}
	var none T
	return none, reservation.Fail("computer "+computer.Name+" cannot be reached from this worker", &reservation.FieldError{
		Field: "computer.site", Value: computer.Site,
		Remedy: "write a site that this worker serves: " + strings.Join(slices.Sorted(maps.Keys(sites)), ", ")})
}

// Registry finds the module of a provisioner type. The zero value is an empty registry.
type Registry struct {
	modules map[string]Provisioner
}

// NewRegistry returns a registry of the given modules, by provisioner type.
func NewRegistry(modules map[string]Provisioner) Registry { return Registry{modules: modules} }

// Find returns the module of a type, or a *reservation.FieldError that lists the types there are.
func (r Registry) Find(provisionerType string) (Provisioner, error) {
	if module, ok := r.modules[provisionerType]; ok {
		return module, nil
	}
	return nil, &reservation.FieldError{Field: "computer.provisioner", Value: provisionerType,
		Remedy: fmt.Sprintf("this worker has a module for: %s", strings.Join(r.Types(), ", "))}
}

// Types returns the provisioner types there are, sorted.
func (r Registry) Types() []string {
	types := make([]string, 0, len(r.modules))
	for name := range r.modules {
		types = append(types, name)
	}
	slices.Sort(types)
	return types
}
