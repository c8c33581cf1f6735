package loadlog

import (
	"fmt"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/activities"
	"berth/reservation"
)

// State is how a running phase stands with its workers.
type State string

// The states of a running phase.
const (
	StateQueued   State = "queued"   // no worker has taken it yet
	StateRunning  State = "running"  // a worker is at it
	StateRetrying State = "retrying" // its worker was lost or met a fault; it is tried again
	StatePaused   State = "paused"   // an operator paused its activity
	StateStopping State = "stopping" // it was told to stop and is still at it
)

// A phase beats at least once in 10 s (package activities), so a worker that has been silent for this long is most
// likely gone. The server gives its phase to another one after the heartbeat timeout of 30 s.
const silence = 15 * time.Second

// A task waits a few milliseconds where a worker serves its queue; one that has waited for this long is worth a word.
const slowPickup = 2 * time.Second

// Live is what a running phase does now, read from its pending activity. Stage, Detail and Began come from the
// heartbeat; Elapsed and the ages in Trouble are of the moment at which it was read.
type Live struct {
	Phase   reservation.Phase    `json:"phase"`
	State   State                `json:"state"`
	Stage   string               `json:"stage,omitempty"`
	Detail  string               `json:"detail,omitempty"`
	Began   time.Time            `json:"began,omitzero"` // the phase's first start, whoever runs it now
	Elapsed reservation.Duration `json:"elapsed"`
	Limit   reservation.Duration `json:"limit,omitzero"`
	Try     int                  `json:"try"` // from 1; one more with every lost worker and every fault
	Worker  string               `json:"worker,omitempty"`
	Trouble string               `json:"trouble,omitempty"` // why it does not go on just now
	Fault   string               `json:"fault,omitempty"`   // what ended the try before this one
	Next    time.Time            `json:"next,omitzero"`     // when it is tried again

	stages []reservation.Stage
}

// LiveOf reads what a workflow's running phase does at the time now; nil when none runs.
func LiveOf(described *workflowservice.DescribeWorkflowExecutionResponse, now time.Time) *Live {
	if described.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
		return nil
	}
	for _, pending := range described.GetPendingActivities() {
		if phase := activities.PhaseOf(pending.GetActivityType().GetName()); phase != "" {
			return liveOf(phase, pending, now)
		}
	}
	return notTakenUp(described, now)
}

// notTakenUp returns a word on a workflow that has no worker; nil if it has one.
func notTakenUp(described *workflowservice.DescribeWorkflowExecutionResponse, now time.Time) *Live {
	task := described.GetPendingWorkflowTask()
	if task.GetState() != enumspb.PENDING_WORKFLOW_TASK_STATE_SCHEDULED {
		return nil
	}
	since := now.Sub(task.GetOriginalScheduledTime().AsTime())
	if since < slowPickup {
		return nil
	}
	return &Live{Phase: reservation.PhaseLoad, State: StateQueued, Elapsed: rounded(since), Try: 1,
		Trouble: fmt.Sprintf("waits for a worker on queue %s", activities.WorkflowQueue)}
}

func liveOf(phase reservation.Phase, pending *workflowpb.PendingActivityInfo, now time.Time) *Live {
	l := &Live{Phase: phase, Try: max(int(pending.GetAttempt()), 1), Worker: pending.GetLastWorkerIdentity(),
		Limit: reservation.Duration(pending.GetActivityOptions().GetStartToCloseTimeout().AsDuration())}
	var progress reservation.Progress
	if decode(pending.GetHeartbeatDetails(), &progress) {
		l.Began = progress.Began
		l.stages = progress.Stages
		if progress.Limit != 0 {
			l.Limit = progress.Limit
		}
		if progress.Worker != "" {
			l.Worker = progress.Worker
		}
		if n := len(progress.Stages); n > 0 {
			l.Stage, l.Detail = progress.Stages[n-1].Name, progress.Stages[n-1].Detail
		}
	}
	if l.Began.IsZero() {
		l.Began = timeOf(pending.GetLastStartedTime())
	}
	since := l.Began
	if since.IsZero() {
		since = timeOf(pending.GetScheduledTime())
	}
	if !since.IsZero() {
		l.Elapsed = rounded(now.Sub(since))
	}
	if failure := pending.GetLastFailure(); failure != nil {
		l.Fault = Clean(failure.GetMessage())
	}
	queue := pending.GetActivityOptions().GetTaskQueue().GetName()

	switch pending.GetState() {
	case enumspb.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED:
		l.State = StateStopping
		l.Trouble = "is being stopped"
	case enumspb.PENDING_ACTIVITY_STATE_PAUSED, enumspb.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED:
		l.State = StatePaused
		l.Trouble = "paused by an operator: temporal activity unpause"
	case enumspb.PENDING_ACTIVITY_STATE_SCHEDULED:
		if l.Try == 1 {
			l.State = StateQueued
			if l.Elapsed.Std() >= slowPickup {
				l.Trouble = strings.TrimSuffix("waits for a worker on queue "+queue, " on queue ")
			}
			break
		}
		l.State = StateRetrying
		l.Next = timeOf(pending.GetNextAttemptScheduleTime())
		l.Trouble = l.retryTrouble(pending.GetLastFailure(), timeOf(pending.GetLastHeartbeatTime()), now)
	default:
		l.State = StateRunning
		// The last beat may be that of the worker before this one.
		heard := timeOf(pending.GetLastHeartbeatTime())
		if started := timeOf(pending.GetLastStartedTime()); started.After(heard) {
			heard = started
		}
		if !heard.IsZero() && now.Sub(heard) > silence {
			l.Trouble = fmt.Sprintf("worker %s silent for %s", l.Worker, Span(now.Sub(heard)))
		}
	}
	return l
}

// retryTrouble says what ended the last try, and when the next one is due.
func (l *Live) retryTrouble(failure *failurepb.Failure, heard, now time.Time) string {
	next := "waiting for another worker"
	if wait := l.Next.Sub(now).Round(time.Second); !l.Next.IsZero() && wait > 0 {
		next = "tried again in " + Span(wait)
	}
	if timeout := failure.GetTimeoutFailureInfo(); timeout != nil {
		if timeout.GetTimeoutType() == enumspb.TIMEOUT_TYPE_HEARTBEAT {
			lost := "worker " + l.Worker + " lost"
			if !heard.IsZero() {
				lost += " (last heard of " + Span(now.Sub(heard)) + " ago)"
			}
			return lost + ", " + next
		}
		return "not done within its limit, " + next
	}
	if failure.GetApplicationFailureInfo().GetType() == activities.TypeFault || failure == nil {
		return "fault: " + l.Fault + ", " + next
	}
	return l.Fault + ", " + next
}

// Signature changes when the phase does something else: another stage, state or try. It stays when only times and
// details (a clone's percentage) change.
func (l *Live) Signature() string {
	if l == nil {
		return ""
	}
	troubled := ""
	if l.State == StateRunning && l.Trouble != "" {
		troubled = "silent"
	}
	return fmt.Sprint(l.Phase, "/", l.State, "/", l.Stage, "/", l.Try, "/", troubled)
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func rounded(d time.Duration) reservation.Duration {
	return reservation.Duration(max(d, 0).Round(100 * time.Millisecond))
}
