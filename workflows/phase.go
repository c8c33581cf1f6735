package workflows

import (
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/reservation"
)

const (
	// heartbeatTimeout is how long a worker may be silent before its phase goes to another one.
	heartbeatTimeout = 30 * time.Second
	// A fault is tried again after 1 s, then ever later, at most after 30 s, until the phase's time is up.
	retryFirst       = time.Second
	retryMost        = 30 * time.Second
	retryCoefficient = 1.5
	// lostWorker is the room that a phase has beyond its limit for one lost worker: its silence, and the longest wait for
	// the next try.
	lostWorker = heartbeatTimeout + retryMost
	// endingLimit bounds one try of taking a computer back. A power-off and a delete take seconds; the rest is for a
	// control plane that restarts (VCL xCAT.pm: about 6 min for a power-off with all its tries).
	endingLimit = 10 * time.Minute
	// unloadQueue is how long a computer that is to be taken back waits for a worker. Nobody waits for the result, and
	// giving up leaves a computer running.
	unloadQueue = 30 * time.Minute
	// cleanQueue is the same after a failed load, where somebody does wait.
	cleanQueue = 2 * time.Minute
)

// phasePlan is one phase to run: which activity, and how long it may take.
type phasePlan struct {
	name     reservation.Phase
	activity string
	limit    time.Duration // StartToClose
	queue    time.Duration // ScheduleToStart
	limits   reservation.Limits
	hostKey  string
}

func phaseOf(name reservation.Phase, limits reservation.Limits, hostKey string) phasePlan {
	plan := phasePlan{name: name, activity: activities.LoadName, limit: limits.Of(name).Std(), queue: limits.Queue.Std(), hostKey: hostKey}
	if name == reservation.PhasePostLoad {
		plan.activity = activities.PostLoadName
		plan.limits = limits
	}
	return plan
}

func endingPhase(name reservation.Phase) phasePlan {
	if name == reservation.PhaseUnload {
		return phasePlan{name: name, activity: activities.UnloadName, limit: endingLimit, queue: unloadQueue}
	}
	return phasePlan{name: name, activity: activities.AbortName, limit: endingLimit, queue: cleanQueue}
}

// noWorkerError says that nobody serves a provisioner's queue.
type noWorkerError struct {
	provisioner string
	queue       string
	waited      time.Duration
	untouched   bool // no worker ever began: there is nothing to clean
}

func (e *noWorkerError) Error() string {
	return fmt.Sprintf("no worker serves provisioner %s: nobody took work from task queue %s within %s; start a worker with BERTH_PROVISIONERS=%s",
		e.provisioner, e.queue, e.waited, e.provisioner)
}

func queue(r reservation.Reservation) string {
	return activities.Queue(r.Computer.Provisioner, r.Computer.Site)
}

// phase runs one phase and records it. Its error is a verdict, a *noWorkerError, or a cancelled error; a phase that
// outlived its limit or lost its workers is a reload.
func (l *life) phase(ctx workflow.Context, plan phasePlan) (activities.PhaseResult, error) {
	began := workflow.Now(ctx).UTC()
	l.status.Phases = append(l.status.Phases, reservation.PhaseRecord{
		Attempt: l.status.Attempt.Number, Phase: plan.name, Began: began, Limit: reservation.Duration(plan.limit),
	})
	l.enter(ctx, plan.name)
	result, err := l.execute(ctx, plan)
	for busy := 0; isQueueTimeout(err); busy++ {
		// Nobody took the work in time. Workers that are all busy will; a queue that nobody serves is the end.
		if !l.queueServed(ctx) {
			err = &noWorkerError{
				provisioner: l.r.Computer.Provisioner, queue: l.status.Queue, waited: time.Duration(busy+1) * plan.queue,
				// A phase beats before its module starts, so a try that ever began has left its beat here.
				untouched: len(l.status.Phases) == 1 && !hasBeaten(err),
			}
			break
		}
		workflow.GetLogger(ctx).Warn("the workers of the queue are busy, waiting on", "reservation", l.r.Name, "queue", l.status.Queue)
		result, err = l.execute(ctx, plan)
	}
	reason := reloadReason(err)
	err = l.verdict(ctx, err, &result)

	record := &l.status.Phases[len(l.status.Phases)-1]
	record.Ended = workflow.Now(ctx).UTC()
	record.Stages, record.Steps, record.Worker, record.Lost = result.Stages, result.Steps, result.Worker, result.Lost
	if err != nil {
		record.Reason = err.Error()
	}
	if !temporal.IsCanceledError(err) {
		record.Verdict = reservation.VerdictOf(err)
	}
	l.measure(ctx, *record, reason)
	l.describe(ctx)
	return result, err
}

func (l *life) execute(ctx workflow.Context, plan phasePlan) (activities.PhaseResult, error) {
	var result activities.PhaseResult
	summary := fmt.Sprintf("%s: %s on %s, %s, limit %s", plan.name, l.r.Image, l.r.Computer.Name, l.status.Attempt, plan.limit)
	if plan.name == reservation.PhaseUnload || plan.name == reservation.PhaseClean {
		summary = fmt.Sprintf("%s: %s, limit %s", plan.name, l.r.Computer.Name, plan.limit)
	}
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:              l.status.Queue,
		StartToCloseTimeout:    plan.limit,
		ScheduleToStartTimeout: plan.queue,
		ScheduleToCloseTimeout: 2*plan.queue + plan.limit + lostWorker, // a lost worker's phase waits in the queue once more
		HeartbeatTimeout:       heartbeatTimeout,
		WaitForCancellation:    true,
		Summary:                summary,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval:        retryFirst,
			BackoffCoefficient:     retryCoefficient,
			MaximumInterval:        retryMost,
			NonRetryableErrorTypes: []string{activities.TypeReload, activities.TypeFail},
		},
	})
	err := workflow.ExecuteActivity(ctx, plan.activity, activities.PhaseRequest{
		Reservation: l.r, Mark: l.mark, Attempt: l.status.Attempt, Limits: plan.limits, Limit: reservation.Duration(plan.limit), HostKey: plan.hostKey,
	}).Get(ctx, &result)
	return result, err
}

// queueServed asks whether anybody polls the provisioner's queue. If that cannot be found out, the answer is no.
func (l *life) queueServed(ctx workflow.Context) bool {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:              activities.WorkflowQueue,
		StartToCloseTimeout:    10 * time.Second,
		ScheduleToCloseTimeout: time.Minute,
		Summary:                "does anybody serve " + l.status.Queue + "?",
	})
	var served bool
	if err := workflow.ExecuteActivity(ctx, activities.QueueServedName, l.status.Queue).Get(ctx, &served); err != nil {
		workflow.GetLogger(ctx).Warn("cannot find out who serves the queue", "queue", l.status.Queue, "error", err.Error())
		return false
	}
	return served
}

// verdict turns what an activity ended with into the contract's answer, and fills in what the phase did where the error
// tells.
func (l *life) verdict(ctx workflow.Context, err error, result *activities.PhaseResult) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil || temporal.IsCanceledError(err) {
		return temporal.NewCanceledError()
	}
	var nobody *noWorkerError
	if errors.As(err, &nobody) {
		return err
	}
	var timeout *temporal.TimeoutError
	var application *temporal.ApplicationError
	switch {
	case errors.As(err, &timeout):
		reason := activities.Outlived
		if timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_HEARTBEAT {
			reason = "its worker was lost and there was no time left for another"
		}
		var progress reservation.Progress
		if timeout.HasLastHeartbeatDetails() && timeout.LastHeartbeatDetails(&progress) == nil {
			result.Stages, result.Worker, result.Lost = progress.Stages, progress.Worker, progress.Lost
			if n := len(progress.Stages); n > 0 {
				reason += fmt.Sprintf(": last seen at stage %q on worker %s", progress.Stages[n-1].Name, progress.Worker)
			}
		}
		return reservation.Reload(reason, nil)
	case errors.As(err, &application):
		if application.HasDetails() {
			// Details of another shape leave the record short of its stages, no more.
			_ = application.Details(result)
		}
		switch application.Type() {
		case activities.TypeReload:
			return reservation.Reload(application.Message(), nil)
		case activities.TypeFail:
			return reservation.Fail(application.Message(), nil)
		default:
			return reservation.Reload("faults until its time was up, the last one: "+application.Message(), nil)
		}
	default:
		return reservation.Reload("faults until its time was up, the last one: "+err.Error(), nil)
	}
}

func hasBeaten(err error) bool {
	var timeout *temporal.TimeoutError
	return errors.As(err, &timeout) && timeout.HasLastHeartbeatDetails()
}

func isQueueTimeout(err error) bool {
	var timeout *temporal.TimeoutError
	return errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START
}
