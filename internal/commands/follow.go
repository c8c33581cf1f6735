package commands

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.temporal.io/api/serviceerror"
	"golang.org/x/sync/errgroup"

	"berth/internal/loadlog"
	"berth/reservation"
)

const (
	followEvery = 400 * time.Millisecond // at least, for a few
	followEach  = 10 * time.Millisecond  // and for many: 100 looks a second at most
	searchEvery = 2 * time.Second        // for new reservations
	// unreachable is how long Temporal may be away while somebody watches: a restart takes seconds.
	unreachable = 2 * time.Minute
	// forgetAfter is how long one that is over is still shown where new ones are searched for: a watch that runs for days
	// must not fill up.
	forgetAfter = 5 * time.Minute
)

// followed is one reservation that is watched.
type followed struct {
	run    run
	base   loadlog.View // without what runs now
	view   loadlog.View
	length int64 // of the history that base was read from
	done   bool
}

// follower watches reservations until each is done.
type follower struct {
	ledger  *ledger
	display display
	done    func(loadlog.View) bool
	search  func(context.Context) ([]run, error) // finds more of them as it goes; nil watches those there are
	all     []*followed
}

func (f *follower) add(runs ...run) {
	for _, r := range runs {
		known := false
		for _, other := range f.all {
			known = known || other.run.runID == r.runID
		}
		if !known {
			f.all = append(f.all, &followed{run: r})
		}
	}
}

// views returns how all of them stood when they were last looked at.
func (f *follower) views() []loadlog.View {
	views := make([]loadlog.View, 0, len(f.all))
	for _, one := range f.all {
		if one.view.Reservation != "" {
			views = append(views, one.view)
		}
	}
	return views
}

// follow shows the reservations until each is done, and then how they ended. It returns the context's error when that
// ends first; a Temporal that is away for a while is waited for.
func (f *follower) follow(ctx context.Context) error {
	var away time.Time
	searched := f.ledger.now()
	for {
		err := f.look(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case err == nil:
			away = time.Time{}
			if err := f.display.say(""); err != nil {
				return err
			}
		case !passing(err):
			return err
		case away.IsZero():
			away = f.ledger.now()
			if err := f.display.say("Temporal does not answer just now; it is asked again (the reservations go on without us)"); err != nil {
				return err
			}
		case f.ledger.now().Sub(away) > unreachable:
			return err
		}
		if err := f.display.update(f.views()); err != nil {
			return err
		}
		if f.search == nil && f.allDone() {
			return f.display.end(f.views())
		}
		timer := time.NewTimer(max(followEvery, time.Duration(len(f.all))*followEach))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		if f.search != nil && f.ledger.now().Sub(searched) >= searchEvery {
			searched = f.ledger.now()
			f.all = slices.DeleteFunc(f.all, func(one *followed) bool {
				return one.done && searched.Sub(one.view.Ended) > forgetAfter
			})
			if more, err := f.search(ctx); err == nil {
				f.add(more...)
			}
		}
	}
}

func (f *follower) allDone() bool {
	for _, one := range f.all {
		if !one.done {
			return false
		}
	}
	return true
}

// look reads how the reservations stand that are not done yet.
func (f *follower) look(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, one := range f.all {
		if one.done {
			continue
		}
		group.Go(func() error { return f.lookAt(groupCtx, one) })
	}
	return group.Wait()
}

func (f *follower) lookAt(ctx context.Context, one *followed) error {
	described, err := f.ledger.describe(ctx, one.run.id, one.run.runID)
	if err != nil {
		return err
	}
	one.run = described
	// The status changes with the history only; what runs now is in the description already.
	if length := described.described.GetWorkflowExecutionInfo().GetHistoryLength(); length != one.length || !described.live() {
		view, err := f.ledger.view(ctx, described)
		if err != nil {
			return err
		}
		one.base, one.length = view, length
	}
	one.view = one.base
	if described.live() {
		one.view = one.base.WithLive(loadlog.LiveOf(described.described, f.ledger.now()))
	}
	one.done = f.done(one.view)
	return nil
}

// passing says whether an error of Temporal's may pass by itself.
func passing(err error) bool {
	var unavailable *serviceerror.Unavailable
	var exhausted *serviceerror.ResourceExhausted
	var deadline *serviceerror.DeadlineExceeded
	return errors.As(err, &unavailable) || errors.As(err, &exhausted) || errors.As(err, &deadline) || errors.Is(err, context.DeadlineExceeded)
}

func over(v loadlog.View) bool { return v.Over() }

// readyOrOver is what waiting for a load waits for. A reservation that was ready once was loaded, even if its user has
// released it since.
func readyOrOver(v loadlog.View) bool {
	return v.Over() || !v.Ready.IsZero() && v.Phase == reservation.PhaseReady
}

// codeUntil returns the exit code for a reservation that was watched until it was ready, or until it was over.
func codeUntil(v loadlog.View, ready bool) int {
	if ready && v.Ready.IsZero() || !ready && v.Bad() {
		return CodeFailed
	}
	return CodeOK
}
