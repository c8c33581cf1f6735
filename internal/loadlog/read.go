package loadlog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"

	"berth/activities"
	"berth/reservation"
	"berth/workflows"
)

// Kind is what an entry of the load log tells of.
type Kind string

// The kinds of entries.
const (
	KindReserved Kind = "reserved" // the reservation began
	KindPhase    Kind = "phase"    // a phase began
	KindStage    Kind = "stage"    // a module said what it was doing
	KindStep     Kind = "step"     // a configuration step's result; it has no time of its own
	KindLost     Kind = "lost"     // a phase lost its worker or met a fault, and was tried again
	KindVerdict  Kind = "verdict"  // a phase ended
	KindReady    Kind = "ready"    // the computer was handed over
	KindAsked    Kind = "asked"    // somebody asked for a release, a cancel or a later end
	KindEnded    Kind = "ended"    // the reservation was over
)

// Entry is one line of the load log.
type Entry struct {
	Time    time.Time            `json:"time,omitzero"`
	Attempt int                  `json:"attempt,omitempty"`
	Phase   reservation.Phase    `json:"phase,omitempty"`
	Kind    Kind                 `json:"kind"`
	Text    string               `json:"text"`
	Took    reservation.Duration `json:"took,omitzero"`
	Verdict reservation.Verdict  `json:"verdict,omitempty"`

	after time.Time // what it is sorted by
}

// Log is what a workflow's history tells.
type Log struct {
	// Status is the reservation's status: the one that the workflow ended with if it left one, otherwise put together
	// from the events.
	Status  reservation.Status
	Entries []Entry // oldest first
}

// Read reads a whole history, oldest event first.
func Read(events []*historypb.HistoryEvent) Log {
	r := reader{scheduled: map[int64]*scheduled{}, asked: map[string]workflows.ExtendRequest{}}
	for _, event := range events {
		r.read(event)
	}
	slices.SortStableFunc(r.log.Entries, func(a, b Entry) int { return cmp.Compare(a.after.UnixNano(), b.after.UnixNano()) })
	return r.log
}

// AtEnd reads the status that a workflow left in its last event. It returns false when it left none: because it was
// terminated or timed out, because its input had a fault, or because it has not ended.
func AtEnd(last *historypb.HistoryEvent) (reservation.Status, bool) {
	var status reservation.Status
	var ok bool
	switch last.GetEventType() {
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
		ok = decode(last.GetWorkflowExecutionCompletedEventAttributes().GetResult(), &status)
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
		ok = decode(last.GetWorkflowExecutionFailedEventAttributes().GetFailure().GetApplicationFailureInfo().GetDetails(), &status)
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:
		ok = decode(last.GetWorkflowExecutionCanceledEventAttributes().GetDetails(), &status)
	}
	return status, ok && status.Reservation != ""
}

// Append adds what a running phase has done so far to the entries of a history: a history holds a phase's stages only
// once the phase has ended.
func (l Log) Append(live *Live) Log {
	if live == nil {
		return l
	}
	l.Entries = slices.Clone(l.Entries)
	attempt := l.Status.Attempt.Number
	for _, stage := range live.stages {
		l.Entries = append(l.Entries, stageEntry(attempt, live.Phase, stage))
	}
	if live.Trouble != "" || live.Try > 1 {
		l.Entries = append(l.Entries, Entry{Attempt: attempt, Phase: live.Phase, Kind: KindLost, Text: strings.Join(live.remarks(), "; ")})
	}
	l.Status = View{Status: l.Status}.WithLive(live).Status
	return l
}

// scheduled is an activity that a history has scheduled and not ended yet.
type scheduled struct {
	phase   reservation.Phase
	attempt int
	started *historypb.ActivityTaskStartedEventAttributes
	at      time.Time
}

type reader struct {
	log       Log
	scheduled map[int64]*scheduled
	asked     map[string]workflows.ExtendRequest // by the update's instance
}

func (r *reader) add(at time.Time, e Entry) {
	e.after = at
	if e.Kind != KindStep {
		e.Time = at
	}
	r.log.Entries = append(r.log.Entries, e)
}

func (r *reader) read(event *historypb.HistoryEvent) {
	at := event.GetEventTime().AsTime()
	status := &r.log.Status
	switch event.GetEventType() {
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
		started := event.GetWorkflowExecutionStartedEventAttributes()
		var input reservation.Reservation
		if decode(started.GetInput(), &input) {
			*status = StatusAtStart(input, at)
		}
		r.add(at, Entry{Kind: KindReserved, Text: fmt.Sprintf("%s until %s, by %s", workflows.Summary(input),
			status.End.Format(time.RFC3339), by(started.GetIdentity()))})

	case enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
		r.scheduledPhase(event.GetEventId(), at, event.GetActivityTaskScheduledEventAttributes())
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_STARTED:
		started := event.GetActivityTaskStartedEventAttributes()
		if s := r.scheduled[started.GetScheduledEventId()]; s != nil {
			s.started, s.at = started, at
		}
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
		completed := event.GetActivityTaskCompletedEventAttributes()
		var result activities.PhaseResult
		decode(completed.GetResult(), &result)
		r.phaseOver(completed.GetScheduledEventId(), at, result, reservation.VerdictDone, "")
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_FAILED:
		failed := event.GetActivityTaskFailedEventAttributes()
		result, verdict, reason := ofFailure(failed.GetFailure())
		r.phaseOver(failed.GetScheduledEventId(), at, result, verdict, reason)
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT:
		r.phaseTimedOut(at, event.GetActivityTaskTimedOutEventAttributes())
	case enumspb.EVENT_TYPE_ACTIVITY_TASK_CANCELED:
		cancelled := event.GetActivityTaskCanceledEventAttributes()
		var result activities.PhaseResult
		decode(cancelled.GetDetails(), &result)
		r.phaseOver(cancelled.GetScheduledEventId(), at, result, "", "stopped")

	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
		signaled := event.GetWorkflowExecutionSignaledEventAttributes()
		if signaled.GetSignalName() == workflows.ReleaseSignal {
			r.add(at, Entry{Kind: KindAsked, Text: "release, by " + by(signaled.GetIdentity())})
		}
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
		r.add(at, Entry{Kind: KindAsked, Text: "cancel, by " + by(event.GetWorkflowExecutionCancelRequestedEventAttributes().GetIdentity())})
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
		accepted := event.GetWorkflowExecutionUpdateAcceptedEventAttributes()
		var request workflows.ExtendRequest
		if accepted.GetAcceptedRequest().GetInput().GetName() == workflows.ExtendUpdate &&
			decode(accepted.GetAcceptedRequest().GetInput().GetArgs(), &request) {
			r.asked[accepted.GetProtocolInstanceId()] = request
			r.add(at, Entry{Kind: KindAsked, Text: fmt.Sprintf("extend until %s, by %s", request.End.UTC().Format(time.RFC3339),
				by(accepted.GetAcceptedRequest().GetMeta().GetIdentity()))})
		}
	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED:
		completed := event.GetWorkflowExecutionUpdateCompletedEventAttributes()
		if request, ok := r.asked[completed.GetMeta().GetUpdateId()]; ok && completed.GetOutcome().GetFailure() == nil {
			status.End = request.End.UTC()
		}

	case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED, enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
		enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED, enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
		enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT:
		r.ended(at, event)
	}
}

func (r *reader) scheduledPhase(id int64, at time.Time, activity *historypb.ActivityTaskScheduledEventAttributes) {
	phase := activities.PhaseOf(activity.GetActivityType().GetName())
	if phase == "" {
		return
	}
	status := &r.log.Status
	var request activities.PhaseRequest
	decode(activity.GetInput(), &request)
	attempt := max(request.Attempt.Number, 1)
	r.scheduled[id] = &scheduled{phase: phase, attempt: attempt}
	status.Phase = phase
	if request.Attempt.Number > 0 {
		status.Attempt = request.Attempt
	}
	limit := reservation.Duration(activity.GetStartToCloseTimeout().AsDuration())
	// The same phase of the same attempt once more: its workers were all busy, and it waits in the queue again.
	if last := len(status.Phases) - 1; last >= 0 && status.Phases[last].Phase == phase && status.Phases[last].Attempt == attempt {
		status.Phases[last].Ended = time.Time{}
		r.add(at, Entry{Attempt: attempt, Phase: phase, Kind: KindLost, Text: "waits on for a worker on queue " + activity.GetTaskQueue().GetName()})
		return
	}
	status.Phases = append(status.Phases, reservation.PhaseRecord{Attempt: attempt, Phase: phase, Began: at, Limit: limit})
	r.add(at, Entry{Attempt: attempt, Phase: phase, Kind: KindPhase, Text: fmt.Sprintf("begins, limit %s, queue %s", Span(limit.Std()), activity.GetTaskQueue().GetName())})
}

// phaseOver records the end of a phase and what it did.
func (r *reader) phaseOver(id int64, at time.Time, result activities.PhaseResult, verdict reservation.Verdict, reason string) {
	s := r.scheduled[id]
	status := &r.log.Status
	if s == nil || len(status.Phases) == 0 {
		return
	}
	delete(r.scheduled, id)
	record := &status.Phases[len(status.Phases)-1]
	record.Ended, record.Verdict, record.Reason = at, verdict, reason
	record.Stages, record.Steps, record.Worker, record.Lost = result.Stages, result.Steps, result.Worker, result.Lost
	if record.Worker == "" {
		record.Worker = s.started.GetIdentity()
	}
	// A started event is written when the phase has ended, with the number of the last try and its start.
	if tries := int(s.started.GetAttempt()); tries > 1 {
		record.Lost = max(record.Lost, tries-1)
		r.add(s.at, Entry{Attempt: s.attempt, Phase: s.phase, Kind: KindLost,
			Text: fmt.Sprintf("try %d, on worker %s; what ended the try before: %s", tries, by(s.started.GetIdentity()), Clean(failureText(s.started.GetLastFailure())))})
	}
	for _, stage := range result.Stages {
		r.log.Entries = append(r.log.Entries, stageEntry(s.attempt, s.phase, stage))
	}
	for _, step := range result.Steps {
		r.add(at, Entry{Attempt: s.attempt, Phase: s.phase, Kind: KindStep, Text: stepText(step), Took: step.Took})
	}
	text := string(verdict)
	if reason != "" {
		text = strings.TrimPrefix(text+": "+Clean(reason), ": ")
	}
	r.add(at, Entry{Attempt: s.attempt, Phase: s.phase, Kind: KindVerdict, Text: text, Took: exactly(at.Sub(record.Began)), Verdict: verdict})

	if s.phase == reservation.PhasePostLoad && verdict == reservation.VerdictDone {
		status.Phase, status.Outcome, status.Ready = reservation.PhaseReady, reservation.OutcomeReady, at
		status.HostKey, status.PublicAddress = result.HostKey, result.PublicAddress
		r.add(at, Entry{Kind: KindReady, Text: fmt.Sprintf("%s at %s", s.readyText(), status.Address), Took: exactly(at.Sub(status.Began))})
	}
}

func (s *scheduled) readyText() string { return fmt.Sprintf("loaded with attempt %d", s.attempt) }

func (r *reader) phaseTimedOut(at time.Time, timedOut *historypb.ActivityTaskTimedOutEventAttributes) {
	timeout := timedOut.GetFailure().GetTimeoutFailureInfo()
	var progress reservation.Progress
	decode(timeout.GetLastHeartbeatDetails(), &progress)
	result := activities.PhaseResult{Stages: progress.Stages, Worker: progress.Worker, Lost: progress.Lost}
	verdict, reason := reservation.VerdictReload, "not done within its limit"
	switch timeout.GetTimeoutType() {
	case enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START:
		verdict, reason = "", "no worker took it in time"
	case enumspb.TIMEOUT_TYPE_HEARTBEAT:
		reason = "its worker was lost and there was no time left for another"
	}
	r.phaseOver(timedOut.GetScheduledEventId(), at, result, verdict, reason)
}

// ofFailure reads the verdict, and what the phase did, out of an activity's failure.
func ofFailure(failure *failurepb.Failure) (activities.PhaseResult, reservation.Verdict, string) {
	var result activities.PhaseResult
	application := failure.GetApplicationFailureInfo()
	decode(application.GetDetails(), &result)
	switch application.GetType() {
	case activities.TypeReload:
		return result, reservation.VerdictReload, failure.GetMessage()
	case activities.TypeFail:
		return result, reservation.VerdictFail, failure.GetMessage()
	default:
		return result, reservation.VerdictReload, "faults until its time was up, the last one: " + failure.GetMessage()
	}
}

func failureText(failure *failurepb.Failure) string {
	if failure.GetTimeoutFailureInfo().GetTimeoutType() == enumspb.TIMEOUT_TYPE_HEARTBEAT {
		return "the worker was lost"
	}
	if failure == nil {
		return "unknown"
	}
	return failure.GetMessage()
}

// ended closes the status: with the one that the workflow left, or with what its last event tells.
func (r *reader) ended(at time.Time, event *historypb.HistoryEvent) {
	status := &r.log.Status
	if left, ok := AtEnd(event); ok {
		*status = left
	} else {
		status.Phase, status.Ended = reservation.PhaseEnded, at
		switch event.GetEventType() {
		case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
			status.Outcome = OutcomeTerminated
			status.Reason = "terminated in Temporal, nothing was cleaned"
			if by := event.GetWorkflowExecutionTerminatedEventAttributes(); by.GetReason() != "" {
				status.Reason += ": " + by.GetReason()
			}
		case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT:
			status.Outcome, status.Reason = OutcomeTimedOut, "the workflow outlived its execution timeout, nothing was cleaned"
		case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:
			status.Outcome = reservation.OutcomeCancelled
		case enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
			status.Outcome = reservation.OutcomeFailed
			status.Reason = event.GetWorkflowExecutionFailedEventAttributes().GetFailure().GetMessage()
		default:
			status.Outcome = reservation.OutcomeReleased
		}
	}
	text := string(status.Outcome)
	if reason := Clean(status.Reason); reason != "" && reason != text {
		text += ": " + reason
	}
	r.add(at, Entry{Kind: KindEnded, Text: text, Took: exactly(at.Sub(status.Began))})
}

// by returns an identity as a person reads it: the SDK's own end with an empty task queue's "@".
func by(identity string) string { return Clean(strings.TrimSuffix(identity, "@")) }

func exactly(d time.Duration) reservation.Duration {
	return reservation.Duration(max(d, 0).Round(time.Millisecond))
}

func stageEntry(attempt int, phase reservation.Phase, stage reservation.Stage) Entry {
	text := Clean(stage.Name)
	if stage.Detail != "" {
		text += ": " + Clean(stage.Detail)
	}
	e := Entry{Time: stage.Began, Attempt: attempt, Phase: phase, Kind: KindStage, Text: text, after: stage.Began}
	if !stage.Ended.IsZero() {
		e.Took = exactly(stage.Ended.Sub(stage.Began))
	}
	return e
}

func stepText(step reservation.Step) string {
	text := Clean(step.Name) + ": " + string(step.Result)
	if step.Detail != "" {
		text += ", " + Clean(step.Detail)
	}
	return text
}
