package provisioners

import (
	"context"

	"berth/reservation"
)

// Gate bounds how many loads are under way at one control plane (a vCenter, a management node, a host), whichever workers
// run them. A module that is given none bounds nothing.
type Gate interface {
	// Acquire waits for a place at a gate, first come first served, and reports its place in line as its stage. The place
	// is free again when release is called, and when the phase that ctx is of ends, whatever ends it. release may be
	// called again. The error is the context's, or a fault.
	Acquire(ctx context.Context, gate string, capacity int, report reservation.Reporter) (release func(), err error)
}
