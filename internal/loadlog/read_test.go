package loadlog

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth/reservation"
)

// goldenHistories returns histories that a real server made, by the files' names.
func goldenHistories(t *testing.T, pattern string) map[string][]*historypb.HistoryEvent {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	all := map[string][]*historypb.HistoryEvent{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		var history historypb.History
		require.NoError(t, temporalproto.CustomJSONUnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, &history), path)
		all[strings.TrimSuffix(filepath.Base(path), ".json")] = history.GetEvents()
	}
	return all
}

func TestAHistoryWithoutItsLastEventTellsWhatTheWorkflowItselfSays(t *testing.T) {
	for name, events := range goldenHistories(t, "../../workflows/testdata/*.json") {
		t.Run(name, func(t *testing.T) {
			left, ok := AtEnd(events[len(events)-1])
			if !ok {
				t.Skip("this one was not followed to its end")
			}
			told := Read(events[:len(events)-1]).Status
			require.Equal(t, left.Reservation, told.Reservation)
			require.Equal(t, left.Computer, told.Computer)
			require.Equal(t, left.Image, told.Image)
			require.Equal(t, left.Queue, told.Queue)
			require.Equal(t, left.Attempt, told.Attempt)
			require.WithinDuration(t, left.End, told.End, 0)
			require.Equal(t, left.HostKey, told.HostKey)
			require.Len(t, told.Phases, len(left.Phases))
			for i, want := range left.Phases {
				got := told.Phases[i]
				require.Equal(t, want.Phase, got.Phase)
				require.Equal(t, want.Attempt, got.Attempt)
				require.Equal(t, want.Verdict, got.Verdict, "%s: %s / %s", want.Phase, want.Reason, got.Reason)
				require.Equal(t, want.Stages, got.Stages)
				require.Equal(t, want.Steps, got.Steps)
				require.Equal(t, want.Limit, got.Limit)
				require.WithinDuration(t, want.Began, got.Began, 5*time.Second)
				require.WithinDuration(t, want.Ended, got.Ended, 5*time.Second)
			}
			if !left.Ready.IsZero() {
				require.WithinDuration(t, left.Ready, told.Ready, 5*time.Second)
			}
		})
	}
}

// The texts are held against golden files; BERTH_UPDATE=1 writes them anew.
func TestLoadLogsReadLikeThis(t *testing.T) {
	for name, events := range goldenHistories(t, "testdata/*.json") {
		t.Run(name, func(t *testing.T) {
			log := Read(events)
			last := events[len(events)-1].GetEventTime().AsTime()
			style := Style{Now: last.Add(2 * time.Minute).In(time.FixedZone("CET", 3600))}
			view := View{Status: log.Status, WorkflowID: "computer/" + log.Status.Computer, RunID: "019ab"}
			var text bytes.Buffer
			require.NoError(t, log.Write(&text, style))
			text.WriteString("\n")
			require.NoError(t, view.Show(&text, style))

			path := filepath.Join("testdata", name+".txt")
			if os.Getenv("BERTH_UPDATE") != "" {
				require.NoError(t, os.WriteFile(path, text.Bytes(), 0o644))
			}
			want, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, string(want), text.String())
		})
	}
}

func TestAHistoryThatStopsAnywhereIsReadAsFarAsItGoes(t *testing.T) {
	for name, events := range goldenHistories(t, "testdata/*.json") {
		for n := range events {
			log := Read(events[:n])
			var text bytes.Buffer
			require.NoError(t, log.Write(&text, Style{Now: time.Now()}))
			require.NoError(t, View{Status: log.Status}.Show(&text, Style{Now: time.Now()}))
			if n > 0 {
				require.NotEmpty(t, log.Entries, name)
			}
		}
	}
}

func TestWhatTemporalEndsItselfIsSaidToBeUnclean(t *testing.T) {
	events := goldenHistories(t, "testdata/reload-twice.json")["reload-twice"]
	at := timestamppb.New(events[11].GetEventTime().AsTime().Add(time.Second))
	for name, c := range map[string]struct {
		last    *historypb.HistoryEvent
		outcome reservation.Outcome
		reason  string
	}{
		"terminated": {&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
			Attributes: &historypb.HistoryEvent_WorkflowExecutionTerminatedEventAttributes{
				WorkflowExecutionTerminatedEventAttributes: &historypb.WorkflowExecutionTerminatedEventAttributes{Reason: "by hand"}}},
			OutcomeTerminated, "terminated in Temporal, nothing was cleaned: by hand"},
		"timed out": {&historypb.HistoryEvent{EventType: enumspb.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT},
			OutcomeTimedOut, "the workflow outlived its execution timeout, nothing was cleaned"},
	} {
		t.Run(name, func(t *testing.T) {
			c.last.EventTime = at
			log := Read(append(slices.Clone(events[:12]), c.last))
			view := View{Status: log.Status}
			require.Equal(t, c.outcome, view.Outcome)
			require.Equal(t, c.reason, view.Reason)
			require.True(t, view.Over())
			require.True(t, view.Bad())
			require.Equal(t, at.AsTime(), view.Ended)
			require.Equal(t, KindEnded, log.Entries[len(log.Entries)-1].Kind)
		})
	}
}

func TestARunningPhaseIsAddedToTheLoadLog(t *testing.T) {
	events := goldenHistories(t, "testdata/reload-twice.json")["reload-twice"]
	scheduled := slices.IndexFunc(events, func(e *historypb.HistoryEvent) bool {
		return e.GetEventType() == enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
	})
	log := Read(events[:scheduled+1])
	began := log.Status.Began
	live := &Live{Phase: reservation.PhaseLoad, State: StateRetrying, Try: 2, Worker: "w1", Trouble: "worker w1 lost 3s ago, waiting for another worker",
		Began: began, stages: []reservation.Stage{{Name: "clone", Detail: "task-7", Began: began}}}
	log = log.Append(live)
	n := len(log.Entries)
	require.Equal(t, "clone: task-7", log.Entries[n-2].Text)
	require.Equal(t, KindLost, log.Entries[n-1].Kind)
	require.Equal(t, "worker w1 lost 3s ago, waiting for another worker", log.Entries[n-1].Text)
	require.Equal(t, 1, log.Status.Phases[0].Lost)
	require.Len(t, log.Status.Phases[0].Stages, 1)
}
