package libvirt

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/rs/zerolog"
)

// lookAnyway is how often a domain that is waited for is looked at although no event has come.
const lookAnyway = 10 * time.Second

// watch hands the lifecycle events of a host's domains to those who wait for one. It outlives connections: each new one has
// everybody look.
type watch struct {
	mu      sync.Mutex
	waiters map[rpc.UUID][]chan struct{} // each cap 1
}

func newWatch() *watch { return &watch{waiters: map[rpc.UUID][]chan struct{}{}} }

// follow receives a connection's events until it breaks.
func (w *watch) follow(ctx context.Context, l *link, log zerolog.Logger) {
	defer w.wakeAll()
	events, err := l.LifecycleEvents(ctx)
	if err != nil {
		log.Warn().Err(err).Msg("no lifecycle events from the libvirt host; domains are looked at instead")
		return
	}
	w.wakeAll()
	for event := range events {
		w.mu.Lock()
		wake(w.waiters[event.Dom.UUID])
		w.mu.Unlock()
	}
}

func wake(waiters []chan struct{}) {
	for _, waiter := range waiters {
		select {
		case waiter <- struct{}{}:
		default:
		}
	}
}

func (w *watch) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, waiters := range w.waiters {
		wake(waiters)
	}
}

func (w *watch) add(id rpc.UUID) chan struct{} {
	mine := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiters[id] = append(w.waiters[id], mine)
	return mine
}

func (w *watch) remove(id rpc.UUID, mine chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := slices.DeleteFunc(w.waiters[id], func(other chan struct{}) bool { return other == mine })
	if len(left) == 0 {
		delete(w.waiters, id)
		return
	}
	w.waiters[id] = left
}

// power is what a domain does.
type power struct {
	state  rpc.DomainState
	reason int32
}

func (p power) on() bool { return p.state == rpc.DomainRunning || p.state == rpc.DomainBlocked }

// off says that no QEMU runs.
func (p power) off() bool { return p.state == rpc.DomainShutoff || p.state == rpc.DomainCrashed }

// settled says that it stays as it is until somebody does something.
func (p power) settled() bool {
	switch p.state {
	case rpc.DomainNostate, rpc.DomainShutdown:
		return false
	case rpc.DomainPaused:
		reason := rpc.DomainPausedReason(p.reason)
		return reason != rpc.DomainPausedStartingUp && reason != rpc.DomainPausedUnknown
	}
	return true
}

func (p power) String() string {
	switch p.state {
	case rpc.DomainRunning, rpc.DomainBlocked:
		return "running"
	case rpc.DomainPaused:
		switch rpc.DomainPausedReason(p.reason) {
		case rpc.DomainPausedIoerror:
			return "paused by an I/O error: is the host's disk full?"
		case rpc.DomainPausedCrashed:
			return "paused: the guest has crashed"
		case rpc.DomainPausedStartingUp:
			return "starting"
		}
		return "paused"
	case rpc.DomainShutdown:
		return "shutting down"
	case rpc.DomainShutoff:
		switch rpc.DomainShutoffReason(p.reason) {
		case rpc.DomainShutoffCrashed:
			return "off: QEMU has crashed"
		case rpc.DomainShutoffFailed:
			return "off: QEMU did not start"
		case rpc.DomainShutoffShutdown:
			return "off: the guest has shut itself down"
		}
		return "off"
	case rpc.DomainCrashed:
		return "crashed"
	default:
		return fmt.Sprintf("in state %d", p.state)
	}
}

// power looks at a domain.
func (h *host) power(ctx context.Context, domain rpc.Domain) (power, error) {
	return ask(ctx, h, func(l *rpc.Libvirt) (power, error) {
		state, reason, err := l.DomainGetState(domain, 0)
		return power{rpc.DomainState(state), reason}, err
	})
}

// await returns once a domain is settled; until then it looks when an event says that something has happened.
func (h *host) await(ctx context.Context, domain rpc.Domain, tell func(power)) (power, error) {
	changed := h.watch.add(domain.UUID)
	defer h.watch.remove(domain.UUID, changed)
	for {
		now, err := h.power(ctx, domain)
		if err != nil || now.settled() {
			return now, err
		}
		tell(now)
		timer := time.NewTimer(lookAnyway)
		select {
		case <-changed:
			timer.Stop()
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return now, ctx.Err()
		}
	}
}
