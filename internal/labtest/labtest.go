// Package labtest is what tests of whole loads share: a production worker that serves, and a reservation as it is seen from
// outside.
package labtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"berth/internal/process"
	"berth/reservation"
	"berth/workflows"
)

// pollEvery is how often a condition is looked at.
const pollEvery = 100 * time.Millisecond

// Eventually polls until done says so, and fails the test with what it said last when that takes too long. The limit is no
// measure of anything: it is there so that a test which waits in vain ends.
func Eventually(t testing.TB, limit time.Duration, done func() (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, said := done()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			require.FailNow(t, "waited in vain", "for %s; the last look: %s", limit, said)
		case <-tick.C:
		}
	}
}

// Worker is a production worker that serves.
type Worker struct {
	*process.Process
	log string
}

// StartWorker starts a worker and returns once it serves. It is killed when the test is over, which fails if the worker's log,
// o.Log, tells of a panic or a data race.
func StartWorker(t testing.TB, limit time.Duration, name string, o process.Options) *Worker {
	t.Helper()
	started, err := process.Start(o)
	require.NoError(t, err)
	w := &Worker{Process: started, log: o.Log}
	const lines = 60
	t.Cleanup(func() {
		w.Kill()
		text := w.Text()
		if strings.Contains(text, "DATA RACE") {
			t.Errorf("worker %s has a data race:\n%s", name, text)
		}
		if strings.Contains(text, "panic") {
			t.Errorf("worker %s has panicked:\n%s", name, text)
		}
		if t.Failed() {
			t.Logf("worker %s: %s", name, w.Tail(lines))
		}
	})
	Eventually(t, limit, func() (bool, string) {
		select {
		case <-w.Done():
			require.FailNow(t, "the worker ended at its start", w.Tail(lines))
		default:
		}
		return strings.Contains(w.Text(), `"message":"the worker serves"`), "it does not serve yet"
	})
	return w
}

// Text is all that the worker has logged.
func (w *Worker) Text() string {
	text, _ := os.ReadFile(w.log)
	return string(text)
}

// Moment is how a reservation stands, without a word from its workflow.
type Moment struct {
	Closed   bool
	Phase    reservation.Phase
	Outcome  reservation.Outcome
	Attempt  int
	Pending  *workflowpb.PendingActivityInfo // the running phase's activity; nil if none
	Progress reservation.Progress            // of its last heartbeat
	Heard    time.Time                       // when that was
}

// Stage is the last stage that the running phase has shown.
func (m Moment) Stage() reservation.Stage {
	if n := len(m.Progress.Stages); n > 0 {
		return m.Progress.Stages[n-1]
	}
	return reservation.Stage{}
}

// Running says whether a worker is at the phase now.
func (m Moment) Running() bool {
	return m.Pending != nil && m.Pending.GetState() == enumspb.PENDING_ACTIVITY_STATE_STARTED
}

func (m Moment) String() string {
	text := fmt.Sprintf("phase %s, outcome %q, attempt %d", m.Phase, m.Outcome, m.Attempt)
	if m.Pending != nil {
		text += fmt.Sprintf("; %s %s, try %d, stage %q (%s), worker %s, kept %v, last failure %v", m.Pending.GetActivityType().GetName(), m.Pending.GetState(),
			m.Pending.GetAttempt(), m.Stage().Name, m.Stage().Detail, m.Progress.Worker, m.Progress.Kept, m.Pending.GetLastFailure().GetMessage())
	}
	return text
}

func momentOf(described *workflowservice.DescribeWorkflowExecutionResponse) Moment {
	info := described.GetWorkflowExecutionInfo()
	m := Moment{Closed: info.GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING}
	keys, converter := workflows.SearchAttributes(), converter.GetDefaultDataConverter()
	for key, into := range map[temporal.SearchAttributeKey]any{keys.Phase: &m.Phase, keys.Outcome: &m.Outcome, keys.Attempt: &m.Attempt} {
		if payload := info.GetSearchAttributes().GetIndexedFields()[key.GetName()]; payload != nil {
			_ = converter.FromPayload(payload, into)
		}
	}
	for _, pending := range described.GetPendingActivities() {
		m.Pending, m.Heard = pending, pending.GetLastHeartbeatTime().AsTime()
		if details := pending.GetHeartbeatDetails().GetPayloads(); len(details) > 0 {
			_ = converter.FromPayload(details[0], &m.Progress)
		}
	}
	return m
}

// Watched is a reservation that was started.
type Watched struct {
	Client client.Client
	Run    client.WorkflowRun
}

// Look returns how it stands.
func (w Watched) Look(t testing.TB) Moment {
	t.Helper()
	described, err := w.Client.DescribeWorkflowExecution(t.Context(), w.Run.GetID(), w.Run.GetRunID())
	require.NoError(t, err)
	return momentOf(described)
}

// Until waits until the reservation stands as is says, and returns that moment. One that is over meanwhile fails the test.
func (w Watched) Until(t testing.TB, limit time.Duration, is func(Moment) bool) Moment {
	t.Helper()
	var m Moment
	Eventually(t, limit, func() (bool, string) {
		m = w.Look(t)
		if is(m) {
			return true, ""
		}
		if m.Closed {
			_, err := w.Result(t, limit)
			require.FailNow(t, "the reservation is over", "%s: %v", m, err)
		}
		return false, m.String()
	})
	return m
}

// Status asks the workflow for its status.
func (w Watched) Status(t testing.TB, limit time.Duration) reservation.Status {
	t.Helper()
	var status reservation.Status
	Eventually(t, limit, func() (bool, string) {
		answer, err := w.Client.QueryWorkflow(t.Context(), w.Run.GetID(), w.Run.GetRunID(), workflows.StatusQuery)
		if err != nil {
			return false, err.Error() // the workflow is between two tasks, or the machine is busy
		}
		require.NoError(t, answer.Get(&status))
		return true, ""
	})
	return status
}

// Result waits until the reservation is over, and returns its status and the workflow's error.
func (w Watched) Result(t testing.TB, limit time.Duration) (reservation.Status, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var status reservation.Status
	err := w.Run.Get(ctx, &status)
	var application *temporal.ApplicationError
	var cancelled *temporal.CanceledError
	switch {
	case errors.As(err, &application) && application.HasDetails():
		require.NoError(t, application.Details(&status))
	case errors.As(err, &cancelled) && cancelled.HasDetails():
		require.NoError(t, cancelled.Details(&status))
	}
	require.NoError(t, ctx.Err(), "the reservation does not end: %s", w.Look(t))
	return status, err
}
