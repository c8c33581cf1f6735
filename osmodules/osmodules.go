// Package osmodules holds what an OS module is: the Module interface, the registry and the table of time limits. Each
// implementation has a folder of its own; the control channels stand under remote.
//
// An OS module waits for the operating system that a provisioner has loaded and configures it. It knows no provisioner:
// what it needs of one (a power reset) comes with the request as a function.
package osmodules

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/osmodules/remote"
	"berth/reservation"
)

// Request is what every call of an OS module is about.
type Request struct {
	Reservation reservation.Reservation
	Mark        reservation.Mark
	Attempt     reservation.Attempt
	Limits      reservation.Limits // of this attempt: stretched already
	Began       time.Time          // the phase's first start, whoever ran it: limits count from here
	Deadline    time.Time          // when the phase's limit is reached; the context ends then, too
	// HostKey is the public key that the guest must show from its first packet, as an authorized_keys line; "" when the
	// key of the first handshake is to be pinned.
	HostKey string
	// PowerReset gives the computer a hard reset. It is nil when its provisioner cannot.
	PowerReset func(context.Context) error
}

// Answer is a guest that has answered and is set up. Whoever got it closes its channel.
type Answer struct {
	Channel remote.Channel
	HostKey string // fingerprint of the pinned key, as "SHA256:..."
}

// Report is what a configured guest is like.
type Report struct {
	Steps         []reservation.Step
	PublicAddress string
}

// Module waits for one family of operating systems and configures it.
//
// WaitForResponse returns when the OS answers and says that its own set-up is finished. It is called again, perhaps in
// another process, after a fault; what the reporter kept (a pinned key, "was reset") then still holds.
//
// PostLoad configures the OS for the reservation. Its steps are idempotent: it is called again after a fault. Its report
// holds the steps done so far even when it returns an error.
//
// Errors made by reservation.Reload and reservation.Fail judge the load; any other error is a fault of ours.
type Module interface {
	WaitForResponse(ctx context.Context, request Request, report reservation.Reporter) (Answer, error)
	PostLoad(ctx context.Context, request Request, answer Answer, report reservation.Reporter) (Report, error)
}

// Registry finds the module of an OS family. The zero value is an empty registry.
type Registry struct {
	modules map[reservation.OSFamily]Module
}

// NewRegistry returns a registry of the given modules, by OS family.
func NewRegistry(modules map[reservation.OSFamily]Module) Registry {
	return Registry{modules: modules}
}

// Find returns the module of a family, or a *reservation.FieldError that lists the families there are.
func (r Registry) Find(family reservation.OSFamily) (Module, error) {
	if module, ok := r.modules[family]; ok {
		return module, nil
	}
	families := make([]string, 0, len(r.modules))
	for name := range r.modules {
		families = append(families, string(name))
	}
	slices.Sort(families)
	return nil, &reservation.FieldError{Field: "image.os.family", Value: string(family),
		Remedy: fmt.Sprintf("this worker has a module for: %s", strings.Join(families, ", "))}
}
