package workflows

import (
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/osmodules"
	"berth/reservation"
)

// The types of the errors that a Reservation workflow ends with. Each has the reservation's Status as its first detail.
const (
	TypeInvalid  = "InvalidReservation" // the input has a fault; nothing was touched
	TypeFailed   = "Failed"             // a module said fail, or the attempts are used up
	TypeNoWorker = "NoWorker"           // nobody serves the provisioner's queue
)

// Register registers the workflows.
func Register(r worker.WorkflowRegistry) {
	r.RegisterWorkflowWithOptions(Reservation, workflow.RegisterOptions{Name: ReservationName})
	r.RegisterWorkflowWithOptions(Gate, workflow.RegisterOptions{Name: activities.GateName})
}

// Reservation is the life of one reservation: it loads the computer, holds it until its end, a release or a cancel, and
// takes it back. It returns the status that the reservation ended with; a failed or cancelled one ends with an error that
// holds the status.
func Reservation(ctx workflow.Context, r reservation.Reservation) (reservation.Status, error) {
	if err := r.Validate(workflow.Now(ctx)); err != nil {
		return reservation.Status{}, temporal.NewNonRetryableApplicationError(err.Error(), TypeInvalid, nil)
	}
	l := newLife(ctx, r)
	if err := l.answer(ctx); err != nil {
		return l.status, err
	}
	ending := l.loadAndHold(ctx)
	return l.finish(ctx, ending)
}

// life is one reservation's run.
type life struct {
	r        reservation.Reservation
	status   reservation.Status
	mark     reservation.Mark
	extended workflow.Channel // gets a value when the end was moved
	closing  bool             // no more extensions: the computer is being taken back
	upserted phaseAttributes
}

// ending is why a reservation's life is over.
type ending struct {
	outcome reservation.Outcome
	reason  string
	does    endingWork
}

// endingWork is what is left to do with the computer when a reservation is over.
type endingWork int

const (
	takeBack  endingWork = iota // it is loaded: power it off and remove it
	cleanUp                     // remove what an unfinished or failed load left
	leaveAsIs                   // nothing was ever done to it
)

func newLife(ctx workflow.Context, r reservation.Reservation) *life {
	info := workflow.GetInfo(ctx)
	// The other provisioners' sources are of no use here and would be written into every request.
	r.Image.Sources = map[string]map[string]string{r.Computer.Provisioner: r.Image.Sources[r.Computer.Provisioner]}
	return &life{
		r: r,
		status: reservation.Status{
			Reservation: r.Name, User: r.User, Computer: r.Computer.Name, Image: r.Image.String(), OS: r.Image.OS.String(),
			Provisioner: r.Computer.Provisioner, Site: r.Computer.Site, Queue: queue(r), Phase: reservation.PhaseLoad,
			Attempt: reservation.Attempt{Number: 1, Of: r.Image.MaxAttempts()},
			Began:   info.WorkflowStartTime.UTC(), End: r.End.UTC(), Address: r.Computer.Address,
		},
		mark:     reservation.Mark{Reservation: r.Name, Run: firstRun(info), Attempt: 1},
		extended: workflow.NewBufferedChannel(ctx, 1),
		upserted: attributesAtStart(ctx, r),
	}
}

// firstRun returns the run before any reset of the workflow: what was marked then is still ours.
func firstRun(info *workflow.Info) string {
	if info.OriginalRunID != "" {
		return info.OriginalRunID
	}
	return info.WorkflowExecution.RunID
}

// answer sets up what the workflow answers to while it runs.
func (l *life) answer(ctx workflow.Context) error {
	if err := workflow.SetQueryHandlerWithOptions(ctx, StatusQuery, func() (reservation.Status, error) { return l.status, nil },
		workflow.QueryHandlerOptions{Description: "The reservation's status."}); err != nil {
		return err
	}
	return workflow.SetUpdateHandlerWithOptions(ctx, ExtendUpdate, l.extend, workflow.UpdateHandlerOptions{
		Validator:   l.mayExtend,
		Description: "Moves the reservation's end to a later time.",
	})
}

func (l *life) mayExtend(ctx workflow.Context, request ExtendRequest) error {
	if l.closing {
		return fmt.Errorf("reservation %s is being ended: reserve the computer again", l.r.Name)
	}
	asked := request.End.UTC().Format(time.RFC3339)
	if !request.End.After(workflow.Now(ctx)) {
		return &reservation.FieldError{Field: "end", Value: asked, Remedy: "give a time after now"}
	}
	if !request.End.After(l.status.End) {
		return &reservation.FieldError{Field: "end", Value: asked,
			Remedy: "give a time after the present end, " + l.status.End.Format(time.RFC3339) + "; to end earlier, release the reservation"}
	}
	return nil
}

func (l *life) extend(ctx workflow.Context, request ExtendRequest) (time.Time, error) {
	l.status.End = request.End.UTC()
	l.extended.SendAsync(true)
	workflow.GetLogger(ctx).Info("reservation extended", "reservation", l.r.Name, "end", l.status.End)
	l.describe(ctx)
	return l.status.End, nil
}

// loadAndHold loads the computer and holds it until something ends the reservation.
func (l *life) loadAndHold(ctx workflow.Context) ending {
	loadCtx, stopLoading := workflow.WithCancel(ctx)
	defer stopLoading()
	loaded, settle := workflow.NewFuture(ctx)
	workflow.Go(loadCtx, func(ctx workflow.Context) { settle.Set(nil, l.load(ctx)) })

	var over *ending // set by a release or the end
	var loadErr error
	ready, stopped := false, false
	selector := workflow.NewNamedSelector(ctx, "life")
	selector.AddFuture(loaded, func(f workflow.Future) {
		stopped = true
		if loadErr = f.Get(ctx, nil); loadErr == nil {
			ready = true
		}
	})
	selector.AddReceive(workflow.GetSignalChannel(ctx, ReleaseSignal), func(c workflow.ReceiveChannel, _ bool) {
		c.Receive(ctx, nil)
		if over == nil {
			over = &ending{outcome: reservation.OutcomeReleased}
		}
	})
	stopTimer := l.untilEnd(ctx, selector, &over)
	selector.AddReceive(l.extended, func(c workflow.ReceiveChannel, _ bool) {
		c.Receive(ctx, nil)
		stopTimer()
		stopTimer = l.untilEnd(ctx, selector, &over)
	})
	selector.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {})
	defer func() { stopTimer() }()

	for over == nil && ctx.Err() == nil && !(stopped && !ready) {
		selector.Select(ctx)
		if ready && l.status.Ready.IsZero() && over == nil && ctx.Err() == nil {
			l.becomeReady(ctx)
		}
	}
	l.closing = true
	if !stopped {
		stopLoading()
		// The module must have stopped before anything is cleaned: the load's future settles only then.
		loadErr = loaded.Get(disconnected(ctx), nil)
		ready = loadErr == nil
	}
	work := takeBack
	if !ready {
		work = cleanUp
	}
	switch {
	case ctx.Err() != nil:
		return ending{outcome: reservation.OutcomeCancelled, reason: "cancelled", does: work}
	case over != nil:
		over.does = work
		if !ready && over.outcome == reservation.OutcomeExpired {
			over.reason = "its end came before it was ready"
		}
		return *over
	default:
		return endingOf(loadErr)
	}
}

// untilEnd adds a timer that ends the reservation at its end, and returns what stops the timer.
func (l *life) untilEnd(ctx workflow.Context, selector workflow.Selector, over **ending) func() {
	timerCtx, stop := workflow.WithCancel(ctx)
	timer := workflow.NewTimerWithOptions(timerCtx, l.status.End.Sub(workflow.Now(ctx)), workflow.TimerOptions{Summary: "the reservation's end"})
	selector.AddFuture(timer, func(f workflow.Future) {
		if f.Get(ctx, nil) == nil && *over == nil {
			*over = &ending{outcome: reservation.OutcomeExpired}
		}
	})
	return stop
}

// load counts the attempts. It returns nil when the computer is ready; a verdict error, a *noWorkerError or a cancelled
// error otherwise.
func (l *life) load(ctx workflow.Context) error {
	attempts := l.r.Image.MaxAttempts()
	for n := 1; ; n++ {
		err := l.attempt(ctx, n)
		if err == nil || reservation.VerdictOf(err) != reservation.VerdictReload {
			return err
		}
		workflow.GetLogger(ctx).Warn("attempt failed", "reservation", l.r.Name, "computer", l.r.Computer.Name, "attempt", n, "of", attempts, "reason", err.Error())
		if n == attempts {
			if attempts == 1 {
				return reservation.Fail("the only attempt failed", err)
			}
			return reservation.Fail(fmt.Sprintf("all %d attempts failed, the last one with", attempts), err)
		}
	}
}

func (l *life) attempt(ctx workflow.Context, n int) error {
	l.status.Attempt.Number = n
	l.mark.Attempt = n
	// A reload makes another guest, with another key.
	l.status.HostKey, l.status.PublicAddress = "", ""
	limits := osmodules.LimitsFor(l.r.Image, l.r.Computer.Hardware, n)
	loaded, err := l.phase(ctx, phaseOf(reservation.PhaseLoad, limits, ""))
	if err != nil {
		return err
	}
	configured, err := l.phase(ctx, phaseOf(reservation.PhasePostLoad, limits, loaded.HostKey))
	if err != nil {
		return err
	}
	l.status.HostKey = configured.HostKey
	l.status.PublicAddress = configured.PublicAddress
	return nil
}

func (l *life) becomeReady(ctx workflow.Context) {
	l.status.Ready = workflow.Now(ctx).UTC()
	l.status.Outcome = reservation.OutcomeReady
	l.enter(ctx, reservation.PhaseReady)
	l.count(ctx, reservation.OutcomeReady)
}

// finish takes the computer back or cleans what the load left, and ends the workflow.
func (l *life) finish(ctx workflow.Context, e ending) (reservation.Status, error) {
	dctx := disconnected(ctx)
	if l.status.Ready.IsZero() {
		l.count(dctx, e.outcome)
	}
	l.status.Reason = e.reason
	switch e.does {
	case takeBack:
		l.end(dctx, reservation.PhaseUnload)
	case cleanUp:
		l.end(dctx, reservation.PhaseClean)
	}
	l.status.Outcome = e.outcome
	l.status.Ended = workflow.Now(ctx).UTC()
	l.enter(dctx, reservation.PhaseEnded)
	switch e.outcome {
	case reservation.OutcomeCancelled:
		return l.status, temporal.NewCanceledError(l.status)
	case reservation.OutcomeFailed:
		return l.status, temporal.NewNonRetryableApplicationError(l.status.Reason, TypeFailed, nil, l.status)
	case reservation.OutcomeNoWorker:
		return l.status, temporal.NewNonRetryableApplicationError(l.status.Reason, TypeNoWorker, nil, l.status)
	default:
		return l.status, nil
	}
}

// end runs the phase that takes the computer back or cleans it. If that cannot be done the reservation still ends, and
// says what it left: the computer's next load removes what stands there.
func (l *life) end(ctx workflow.Context, name reservation.Phase) {
	_, err := l.phase(ctx, endingPhase(name))
	if err == nil {
		return
	}
	workflow.GetLogger(ctx).Error("computer not taken back", "reservation", l.r.Name, "computer", l.r.Computer.Name, "error", err.Error())
	if l.status.Reason != "" {
		l.status.Reason += "; "
	}
	l.status.Reason += fmt.Sprintf("the computer was not taken back, what stands on it stays until its next load: %v", err)
}

func endingOf(err error) ending {
	var nobody *noWorkerError
	if !errors.As(err, &nobody) {
		return ending{outcome: reservation.OutcomeFailed, reason: err.Error(), does: cleanUp}
	}
	e := ending{outcome: reservation.OutcomeNoWorker, reason: err.Error(), does: cleanUp}
	if nobody.untouched {
		e.does = leaveAsIs
	}
	return e
}

func disconnected(ctx workflow.Context) workflow.Context {
	dctx, _ := workflow.NewDisconnectedContext(ctx)
	return dctx
}
