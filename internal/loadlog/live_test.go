package loadlog

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	activitypb "go.temporal.io/api/activity/v1"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	failurepb "go.temporal.io/api/failure/v1"
	taskqueuepb "go.temporal.io/api/taskqueue/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/activities"
	"berth/reservation"
)

func TestAPendingActivityTellsWhatItsPhaseDoes(t *testing.T) {
	now := time.Date(2026, 11, 23, 19, 0, 42, 0, time.UTC)
	ago := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }
	beat, err := converter.GetDefaultDataConverter().ToPayloads(reservation.Progress{
		Began: now.Add(-42 * time.Second), Limit: reservation.Duration(30 * time.Minute), Worker: "w1",
		Stages: []reservation.Stage{{Name: "find template", Began: now.Add(-42 * time.Second), Ended: now.Add(-40 * time.Second)},
			{Name: "clone", Detail: "task-7, 42 %", Began: now.Add(-40 * time.Second)}},
	})
	require.NoError(t, err)
	heartbeatLost := &failurepb.Failure{Message: "activity Heartbeat timeout", FailureInfo: &failurepb.Failure_TimeoutFailureInfo{
		TimeoutFailureInfo: &failurepb.TimeoutFailureInfo{TimeoutType: enumspb.TIMEOUT_TYPE_HEARTBEAT}}}
	fault := &failurepb.Failure{Message: "dial tcp: connection\nrefused", FailureInfo: &failurepb.Failure_ApplicationFailureInfo{
		ApplicationFailureInfo: &failurepb.ApplicationFailureInfo{Type: activities.TypeFault}}}

	for name, c := range map[string]struct {
		pending *workflowpb.PendingActivityInfo
		state   State
		trouble string
		stage   string
		elapsed time.Duration
		text    string // of the line's remark
	}{
		"running": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_STARTED, Attempt: 1, HeartbeatDetails: beat, LastHeartbeatTime: ago(2 * time.Second)},
			state:   StateRunning, stage: "clone", elapsed: 42 * time.Second, text: "clone: task-7, 42 %"},
		"running without a beat yet": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_STARTED, Attempt: 1, LastStartedTime: ago(300 * time.Millisecond)},
			state:   StateRunning, elapsed: 300 * time.Millisecond, text: ""},
		"its worker is silent": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_STARTED, Attempt: 1, HeartbeatDetails: beat, LastHeartbeatTime: ago(22 * time.Second)},
			state:   StateRunning, stage: "clone", elapsed: 42 * time.Second, trouble: "worker w1 silent for 22s",
			text: "worker w1 silent for 22s; at clone: task-7, 42 %"},
		"another worker has just taken it over": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_STARTED, Attempt: 2, HeartbeatDetails: beat, LastFailure: heartbeatLost,
				LastHeartbeatTime: ago(32 * time.Second), LastStartedTime: ago(time.Second)},
			state: StateRunning, stage: "clone", elapsed: 42 * time.Second, text: "clone: task-7, 42 % (try 2)"},
		"its worker is lost": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_SCHEDULED, Attempt: 2, HeartbeatDetails: beat, LastFailure: heartbeatLost,
				LastHeartbeatTime: ago(35 * time.Second)},
			state: StateRetrying, stage: "clone", elapsed: 42 * time.Second, trouble: "worker w1 lost (last heard of 35s ago), waiting for another worker",
			text: "worker w1 lost (last heard of 35s ago), waiting for another worker; at clone: task-7, 42 %"},
		"it met a fault and waits": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_SCHEDULED, Attempt: 3, HeartbeatDetails: beat, LastFailure: fault,
				NextAttemptScheduleTime: timestamppb.New(now.Add(8 * time.Second))},
			state: StateRetrying, stage: "clone", elapsed: 42 * time.Second, trouble: "fault: dial tcp: connection refused, tried again in 8s",
			text: "fault: dial tcp: connection refused, tried again in 8s; at clone: task-7, 42 %"},
		"it is tried again": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_STARTED, Attempt: 3, HeartbeatDetails: beat, LastFailure: fault, LastHeartbeatTime: ago(0)},
			state:   StateRunning, stage: "clone", elapsed: 42 * time.Second, text: "clone: task-7, 42 % (try 3)"},
		"no worker took it": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_SCHEDULED, Attempt: 1, ScheduledTime: ago(20 * time.Second)},
			state:   StateQueued, elapsed: 20 * time.Second, trouble: "waits for a worker on queue berth-vmware", text: "waits for a worker on queue berth-vmware"},
		"no worker took it yet, which is no wonder": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_SCHEDULED, Attempt: 1, ScheduledTime: ago(20 * time.Millisecond)},
			state:   StateQueued, text: ""},
		"paused": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_PAUSED, Attempt: 1, HeartbeatDetails: beat},
			state:   StatePaused, stage: "clone", elapsed: 42 * time.Second, trouble: "paused by an operator: temporal activity unpause",
			text: "paused by an operator: temporal activity unpause; at clone: task-7, 42 %"},
		"told to stop": {
			pending: &workflowpb.PendingActivityInfo{State: enumspb.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED, Attempt: 1, HeartbeatDetails: beat},
			state:   StateStopping, stage: "clone", elapsed: 42 * time.Second, trouble: "is being stopped", text: "is being stopped; at clone: task-7, 42 %"},
	} {
		t.Run(name, func(t *testing.T) {
			c.pending.ActivityType = &commonpb.ActivityType{Name: activities.LoadName}
			c.pending.ActivityOptions = &activitypb.ActivityOptions{TaskQueue: &taskqueuepb.TaskQueue{Name: "berth-vmware"},
				StartToCloseTimeout: durationpb.New(30 * time.Minute)}
			live := LiveOf(described(c.pending), now)
			require.NotNil(t, live)
			require.Equal(t, reservation.PhaseLoad, live.Phase)
			require.Equal(t, c.state, live.State)
			require.Equal(t, c.trouble, live.Trouble)
			require.Equal(t, c.stage, live.Stage)
			require.Equal(t, reservation.Duration(c.elapsed), live.Elapsed)
			require.Equal(t, reservation.Duration(30*time.Minute), live.Limit)

			view := View{Status: reservation.Status{Phase: reservation.PhaseLoad, Phases: []reservation.PhaseRecord{{Attempt: 1, Phase: reservation.PhaseLoad}}}}.WithLive(live)
			line := view.Line(Style{Now: now})
			require.Equal(t, c.text, line[len(line)-1].Text)
			require.Len(t, view.Phases[0].Stages, len(live.stages))
		})
	}
}

func TestWhatTheStatusHasLeftBehindIsNotShown(t *testing.T) {
	live := &Live{Phase: reservation.PhaseLoad, State: StateRunning, Stage: "power on"}
	view := View{Status: reservation.Status{Phase: reservation.PhasePostLoad, Phases: []reservation.PhaseRecord{
		{Phase: reservation.PhaseLoad, Ended: time.Now()}, {Phase: reservation.PhasePostLoad}}}}.WithLive(live)
	require.Nil(t, view.Live)
	require.Empty(t, view.Phases[1].Stages)
}

func TestWhatIsNoPhaseIsNotShown(t *testing.T) {
	now := time.Now()
	asks := &workflowpb.PendingActivityInfo{ActivityType: &commonpb.ActivityType{Name: activities.QueueServedName}, Attempt: 1}
	require.Nil(t, LiveOf(described(asks), now))

	over := described(&workflowpb.PendingActivityInfo{ActivityType: &commonpb.ActivityType{Name: activities.LoadName}, Attempt: 1})
	over.WorkflowExecutionInfo.Status = enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED
	require.Nil(t, LiveOf(over, now))
}

func TestAReservationThatNoWorkerTakesUpSaysSo(t *testing.T) {
	now := time.Now()
	waiting := &workflowservice.DescribeWorkflowExecutionResponse{
		WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{Status: enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING},
		PendingWorkflowTask: &workflowpb.PendingWorkflowTaskInfo{State: enumspb.PENDING_WORKFLOW_TASK_STATE_SCHEDULED,
			OriginalScheduledTime: timestamppb.New(now.Add(-10 * time.Second))},
	}
	require.Equal(t, "waits for a worker on queue berth", LiveOf(waiting, now).Trouble)

	waiting.PendingWorkflowTask.OriginalScheduledTime = timestamppb.New(now.Add(-time.Second))
	require.Nil(t, LiveOf(waiting, now), "a second is no reason to worry anybody")
}

func TestOnlyWhatMattersChangesTheSignature(t *testing.T) {
	live := Live{Phase: reservation.PhaseLoad, State: StateRunning, Stage: "clone", Detail: "41 %", Try: 1}
	later := live
	later.Detail, later.Elapsed = "42 %", reservation.Duration(time.Minute)
	require.Equal(t, live.Signature(), later.Signature())
	for name, change := range map[string]func(*Live){
		"stage":  func(l *Live) { l.Stage = "power on" },
		"state":  func(l *Live) { l.State = StateRetrying },
		"try":    func(l *Live) { l.Try = 2 },
		"phase":  func(l *Live) { l.Phase = reservation.PhasePostLoad },
		"silent": func(l *Live) { l.Trouble = "worker w1 silent for 20s" },
	} {
		changed := live
		change(&changed)
		require.NotEqual(t, live.Signature(), changed.Signature(), name)
	}
}

func described(pending *workflowpb.PendingActivityInfo) *workflowservice.DescribeWorkflowExecutionResponse {
	return &workflowservice.DescribeWorkflowExecutionResponse{
		WorkflowExecutionInfo: &workflowpb.WorkflowExecutionInfo{Status: enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING},
		PendingActivities:     []*workflowpb.PendingActivityInfo{pending},
	}
}
