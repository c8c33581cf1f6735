package climb

import (
	"context"
	"errors"
	"time"

	"berth/osmodules/remote"
	"berth/reservation"
)

// Rebooted says that a guest is in another boot than it was: progress, not readiness.
type Rebooted struct{ From, To string }

func (e *Rebooted) Error() string { return "the guest rebooted: boot " + e.To + " follows " + e.From }

// Final says whether an error ends a wait: a verdict, or a fault that no further try mends.
func Final(err error) bool {
	var credential *remote.CredentialError
	return reservation.VerdictOf(err) != "" || errors.As(err, &credential)
}

// Wait tries a guest again and again until it is up, or until somebody says that it will not be.
type Wait[T any] struct {
	// Try goes as far up as it gets. within ends with the wait's limit, whole with the phase.
	Try func(within, whole context.Context) (T, error)
	// Within returns the context of one try, which ends with the wait's limit.
	Within func(ctx context.Context) (context.Context, context.CancelFunc)
	// Deadline is when the wait is over as things stand.
	Deadline func() time.Time
	// Note is told what went wrong in a try that was not cut off by the limit.
	Note func(error)
	// Pause returns how long to wait after a try that began then and went wrong so.
	Pause func(err error, began time.Time) time.Duration
	// Expire is called when the limit has passed: it gives the guest another one, or returns the verdict.
	Expire func(ctx context.Context) error
}

// Run waits. Its error is a verdict, what Final calls final, the context's or Expire's.
func (w Wait[T]) Run(ctx context.Context) (T, error) {
	var none T
	for {
		began := time.Now()
		within, cancel := w.Within(ctx)
		up, err := w.Try(within, ctx)
		over := within.Err() != nil
		cancel()
		switch {
		case err == nil:
			return up, nil
		case ctx.Err() != nil:
			return none, ctx.Err()
		case Final(err):
			return none, err
		}
		if !over { // else it is the limit that cut it off, which says nothing of the guest
			w.Note(err)
		}
		pause := w.Pause(err, began)
		if remaining := time.Until(w.Deadline()); remaining > 0 {
			if err := Sleep(ctx, min(pause, remaining), nil); err != nil {
				return none, err
			}
			continue
		}
		if err := w.Expire(ctx); err != nil {
			return none, err
		}
	}
}

// Refusals counts how often a guest has refused us, one after the other. It is not safe for concurrent use.
type Refusals struct{ n int }

// None begins the count anew.
func (r *Refusals) None() { r.n = 0 }

// Pause returns how long to wait after a try that went wrong: the next of refused, whose last repeats, if the guest
// refused us, else what is left of between.
func (r *Refusals) Pause(err error, began time.Time, refused []time.Duration, between Span) time.Duration {
	var auth *remote.AuthError
	if errors.As(err, &auth) {
		pause := refused[min(r.n, len(refused)-1)]
		r.n++
		return pause
	}
	r.n = 0
	// Counted from the last try's begin, so that a try that waited for its own limit is followed by the next at once.
	return max(between.Jittered()-time.Since(began), between.From/10)
}
