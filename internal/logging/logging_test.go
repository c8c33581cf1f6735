package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/reservation"
)

// lines reads a JSON log.
func lines(t *testing.T, log *bytes.Buffer) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(log.String()) {
		var fields map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &fields), line)
		all = append(all, fields)
	}
	return all
}

func TestNewWritesOneJSONObjectALineFromTheLevelOn(t *testing.T) {
	var out bytes.Buffer
	before := time.Now().Add(-time.Second)
	logger, err := New(Options{Writer: &out, Level: "warn", Format: FormatJSON})
	require.NoError(t, err)
	logger.Info().Msg("not this")
	logger.Warn().Str("computer", "vm-01").Msg("this")
	logger.Error().Msg("and this")

	got := lines(t, &out)
	require.Len(t, got, 2)
	at, err := time.Parse(time.RFC3339Nano, got[0]["time"].(string))
	require.NoError(t, err)
	require.WithinRange(t, at, before, time.Now())
	delete(got[0], "time")
	require.Equal(t, map[string]any{"level": "warn", "message": "this", "computer": "vm-01"}, got[0])
}

func TestNewWritesForPeopleOnRequest(t *testing.T) {
	var out bytes.Buffer
	logger, err := New(Options{Writer: &out, Level: "info", Format: FormatConsole})
	require.NoError(t, err)
	logger.Info().Str("computer", "vm-01").Msg("loaded")
	require.Regexp(t, `^\d\d:\d\d:\d\d\.\d\d\d INF loaded computer=vm-01\n$`, out.String())
}

func TestNewRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, options := range []Options{{Level: "loud", Format: FormatJSON}, {Level: "", Format: FormatJSON}, {Level: "info", Format: "xml"}} {
		_, err := New(options)
		var field *reservation.FieldError
		require.ErrorAs(t, err, &field)
		require.Contains(t, field.Remedy, "write ")
	}
}

func TestTemporalsLinesHaveOurKeysAndEachOnce(t *testing.T) {
	var out bytes.Buffer
	logger := Temporal(zerolog.New(&out).Level(zerolog.InfoLevel))
	with := log.With(logger, "WorkflowID", "computer/vm-01", "Attempt", 2, "phase", "load")
	with.Info("said", "attempt", 3, "phase", "post-load", "Error", errors.New("cut"), "took", 1500*time.Millisecond,
		"when", time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC), "level", "mine", "none", nil, "odd")
	with.Debug("not said")
	logger.Error("bare")

	got := lines(t, &out)
	require.Equal(t, []map[string]any{
		{"level": "info", "message": "said", "workflow_id": "computer/vm-01", "try": 2.0, "attempt": 3.0, "phase": "post-load", "error": "cut",
			"took": "1.5s", "when": "2026-01-02T03:04:05.006Z", "level_": "mine", "none": nil, "odd": ""},
		{"level": "error", "message": "bare"},
	}, got)
	require.Equal(t, 1, strings.Count(out.String(), `"phase"`))
}

func TestTwoLoggersOfOneDoNotShareTheirFields(t *testing.T) {
	var out bytes.Buffer
	base := log.With(Temporal(zerolog.New(&out)), "a", 1, "b", 2, "c", 3)
	one, other := log.With(base, "who", "one"), log.With(base, "who", "other")
	one.Info("x")
	other.Info("x")
	got := lines(t, &out)
	require.Equal(t, []any{"one", "other"}, []any{got[0]["who"], got[1]["who"]})
}

func TestSnake(t *testing.T) {
	for from, want := range map[string]string{"WorkflowID": "workflow_id", "RunID": "run_id", "TaskQueue": "task_queue", "BuildID": "build_id",
		"LinkURL": "link_url", "HTTPStatus": "http_status", "reservation": "reservation", "memory_mib": "memory_mib", "Two Words": "two_words", "": ""} {
		require.Equal(t, want, snake(from), from)
	}
}

func request() activities.PhaseRequest {
	return activities.PhaseRequest{
		Reservation: reservation.Reservation{Name: "r1", Computer: reservation.Computer{Name: "vm-01"}, Image: reservation.Image{Name: "debian12", Revision: 3}},
		Attempt:     reservation.Attempt{Number: 2, Of: 3}, Limit: reservation.Duration(time.Minute),
	}
}

func TestAnActivitysLinesSayWhatTheyAreAbout(t *testing.T) {
	for name, test := range map[string]struct {
		activity string
		err      error
		phase    string
		verdict  string
	}{
		"done":      {activities.LoadName, nil, "load", "done"},
		"reload":    {activities.PostLoadName, temporal.NewNonRetryableApplicationError("silent", activities.TypeReload, nil), "post-load", "reload"},
		"fail":      {activities.LoadName, temporal.NewNonRetryableApplicationError("no template", activities.TypeFail, nil), "load", "fail"},
		"fault":     {activities.UnloadName, temporal.NewApplicationError("cut", activities.TypeFault), "unload", "fault"},
		"plain":     {activities.AbortName, errors.New("cut"), "clean", "fault"},
		"cancelled": {activities.LoadName, context.Canceled, "load", "cancelled"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			var suite testsuite.WorkflowTestSuite
			suite.SetLogger(Temporal(zerolog.New(&out).Level(zerolog.InfoLevel)))
			env := suite.NewTestActivityEnvironment()
			env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{Interceptor()}})
			env.RegisterActivityWithOptions(func(ctx context.Context, _ activities.PhaseRequest) (activities.PhaseResult, error) {
				activity.GetLogger(ctx).Info("clone begins")
				return activities.PhaseResult{}, test.err
			}, activity.RegisterOptions{Name: test.activity})
			_, err := env.ExecuteActivity(test.activity, request())
			require.Equal(t, test.err == nil, err == nil)

			var said []string
			for _, line := range lines(t, &out) {
				if line["reservation"] == nil {
					continue // the test environment's own
				}
				require.Equal(t, []any{"r1", "vm-01", "debian12-r3", 2.0, test.phase},
					[]any{line[FieldReservation], line[FieldComputer], line[FieldImage], line[FieldAttempt], line[FieldPhase]})
				said = append(said, line["message"].(string))
				if line["message"] == "phase ended" {
					require.Equal(t, test.verdict, line["verdict"])
				}
			}
			require.Equal(t, []string{"phase begins", "clone begins", "phase ended"}, said)
		})
	}
}

func TestAnotherActivityIsLeftAlone(t *testing.T) {
	var out bytes.Buffer
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(Temporal(zerolog.New(&out).Level(zerolog.InfoLevel)))
	env := suite.NewTestActivityEnvironment()
	env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{Interceptor()}})
	env.RegisterActivityWithOptions(func(context.Context, string) (bool, error) { return true, nil }, activity.RegisterOptions{Name: activities.QueueServedName})
	value, err := env.ExecuteActivity(activities.QueueServedName, "berth-vmware")
	require.NoError(t, err)
	var served bool
	require.NoError(t, value.Get(&served))
	require.True(t, served)
	require.NotContains(t, out.String(), "phase begins")
}

func TestAWorkflowsLinesSayWhatTheyAreAbout(t *testing.T) {
	var out bytes.Buffer
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(Temporal(zerolog.New(&out).Level(zerolog.InfoLevel)))
	env := suite.NewTestWorkflowEnvironment()
	env.SetWorkerOptions(worker.Options{Interceptors: []interceptor.WorkerInterceptor{Interceptor()}})
	env.RegisterWorkflowWithOptions(func(ctx workflow.Context, r reservation.Reservation) error {
		workflow.GetLogger(ctx).Warn("attempt failed", "reservation", r.Name, "attempt", 1)
		return nil
	}, workflow.RegisterOptions{Name: "w"})
	env.ExecuteWorkflow("w", request().Reservation)
	require.NoError(t, env.GetWorkflowError())
	for _, line := range lines(t, &out) {
		if line["message"] == "attempt failed" {
			require.Equal(t, []any{"r1", "vm-01", "debian12-r3", 1.0}, []any{line[FieldReservation], line[FieldComputer], line[FieldImage], line[FieldAttempt]})
			return
		}
	}
	t.Fatal("the workflow's line is missing:\n" + out.String())
}
