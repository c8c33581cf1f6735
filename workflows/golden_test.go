package workflows_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"google.golang.org/protobuf/proto"

	"berth/activities"
	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/scripted"
	"berth/reservation"
	"berth/workflows"
)

// Every path of the workflow is run on a real server. With -update its history is written to testdata, where
// TestReplay finds it: a change that would break reservations that are running fails there before it ships.
func TestPathsOnARealServer(t *testing.T) {
	server := devservertest.Start(t, devserver.Options{SearchAttributes: attributeTypes()})
	c, err := client.Dial(client.Options{HostPort: server.Address, Namespace: server.Namespace, Logger: quiet{}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	w := worker.New(c, activities.WorkflowQueue, worker.Options{})
	workflows.Register(w)
	activities.New(activities.Options{Client: c}).RegisterOnWorkflowQueue(w)
	require.NoError(t, w.Start())
	t.Cleanup(w.Stop)

	for _, p := range paths() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, c, p)
			s.play(t)
		})
	}
}

// path is one way through the workflow.
type path struct {
	name    string
	prepare func(s *stage)               // the modules' script and the reservation's limits
	meddle  func(t *testing.T, s *stage) // what people and machines do meanwhile; nil: nothing
	phases  []string                     // attempt, phase and verdict of each phase
	outcome reservation.Outcome          // how it ends
	check   func(t *testing.T, s *stage) // more to hold against
	nobody  bool                         // no worker serves the provisioner's queue
}

func paths() []path {
	release := func(t *testing.T, s *stage) {
		s.until(t, "ready", func(status reservation.Status) bool { return status.Phase == reservation.PhaseReady })
		require.NoError(t, s.c.SignalWorkflow(t.Context(), s.run.GetID(), s.run.GetRunID(), workflows.ReleaseSignal, nil))
	}
	cancel := func(t *testing.T, s *stage) {
		s.awaitBegan(t)
		require.NoError(t, s.c.CancelWorkflow(t.Context(), s.run.GetID(), s.run.GetRunID()))
	}
	cleanedAfterStop := func(t *testing.T, s *stage) {
		require.True(t, s.stopped.Load())
		require.False(t, s.early.Load(), "the module must have stopped before its computer is cleaned")
	}
	return []path{
		{
			name: "first-try", meddle: release,
			phases: []string{"1 load done", "1 post-load done", "1 unload done"}, outcome: reservation.OutcomeReleased,
		},
		{
			name:    "reload-twice",
			prepare: func(s *stage) { s.os.Waits = scripted.Acts{scripted.Reload("silent"), scripted.Reload("silent"), nil} },
			meddle:  release,
			phases: []string{"1 load done", "1 post-load reload", "2 load done", "2 post-load reload", "3 load done", "3 post-load done",
				"3 unload done"}, outcome: reservation.OutcomeReleased,
		},
		{
			name: "attempts-used-up",
			prepare: func(s *stage) {
				s.provisioner.Loads = scripted.Acts{scripted.Reload("no space")}
				s.r.Image.Attempts = 2
			},
			phases: []string{"1 load reload", "2 load reload", "2 clean done"}, outcome: reservation.OutcomeFailed,
		},
		{
			name: "fail-in-load",
			prepare: func(s *stage) {
				s.provisioner.Loads = scripted.Acts{scripted.Fail("template debian12-template is gone")}
			},
			phases: []string{"1 load fail", "1 clean done"}, outcome: reservation.OutcomeFailed,
		},
		{
			name:    "fail-in-post-load",
			prepare: func(s *stage) { s.os.Waits = scripted.Acts{scripted.Fail("the host key changed")} },
			phases:  []string{"1 load done", "1 post-load fail", "1 clean done"}, outcome: reservation.OutcomeFailed,
		},
		{
			name: "fault-then-done",
			prepare: func(s *stage) {
				s.provisioner.Loads = scripted.Acts{s.once(func(context.Context, reservation.Reporter) error { return errors.New("vCenter restarts") })}
			},
			meddle: release,
			phases: []string{"1 load done", "1 post-load done", "1 unload done"}, outcome: reservation.OutcomeReleased,
			check: func(t *testing.T, s *stage) {
				require.Equal(t, 1, s.status(t).Phases[0].Lost)
			},
		},
		{
			name: "limit-outlived",
			prepare: func(s *stage) {
				s.r.Image.Attempts, s.r.Image.Limits.Load = 2, reservation.Duration(time.Second)
				s.provisioner.Loads = scripted.Acts{s.hang(), nil}
			},
			meddle: release,
			phases: []string{"1 load reload", "2 load done", "2 post-load done", "2 unload done"}, outcome: reservation.OutcomeReleased,
			check: func(t *testing.T, s *stage) {
				require.Contains(t, s.status(t).Phases[0].Reason, `not done within its limit of 1s: at stage "clone"`)
			},
		},
		{
			name:    "cancel-in-load",
			prepare: func(s *stage) { s.provisioner.Loads = scripted.Acts{s.hang()} },
			meddle:  cancel, check: cleanedAfterStop,
			phases: []string{"1 load ", "1 clean done"}, outcome: reservation.OutcomeCancelled,
		},
		{
			name:    "cancel-in-post-load",
			prepare: func(s *stage) { s.os.Waits = scripted.Acts{s.hang()} },
			meddle:  cancel, check: cleanedAfterStop,
			phases: []string{"1 load done", "1 post-load ", "1 clean done"}, outcome: reservation.OutcomeCancelled,
		},
		{
			name: "cancel-while-ready",
			meddle: func(t *testing.T, s *stage) {
				s.until(t, "ready", func(status reservation.Status) bool { return status.Phase == reservation.PhaseReady })
				require.NoError(t, s.c.CancelWorkflow(t.Context(), s.run.GetID(), s.run.GetRunID()))
			},
			phases: []string{"1 load done", "1 post-load done", "1 unload done"}, outcome: reservation.OutcomeCancelled,
		},
		{
			name:    "release-while-loading",
			prepare: func(s *stage) { s.provisioner.Loads = scripted.Acts{s.hang()} },
			meddle: func(t *testing.T, s *stage) {
				s.awaitBegan(t)
				require.NoError(t, s.c.SignalWorkflow(t.Context(), s.run.GetID(), s.run.GetRunID(), workflows.ReleaseSignal, nil))
			},
			check:  cleanedAfterStop,
			phases: []string{"1 load ", "1 clean done"}, outcome: reservation.OutcomeReleased,
		},
		{
			name: "expired-while-loading",
			prepare: func(s *stage) {
				s.provisioner.Loads = scripted.Acts{s.hang()}
				s.r.End = time.Now().Add(2 * time.Second)
			},
			check:  cleanedAfterStop,
			phases: []string{"1 load ", "1 clean done"}, outcome: reservation.OutcomeExpired,
		},
		{
			name:    "extended",
			prepare: func(s *stage) { s.r.End = time.Now().Add(time.Minute) },
			meddle: func(t *testing.T, s *stage) {
				s.until(t, "ready", func(status reservation.Status) bool { return status.Phase == reservation.PhaseReady })
				extend := func(end time.Time) error {
					handle, err := s.c.UpdateWorkflow(t.Context(), client.UpdateWorkflowOptions{
						WorkflowID: s.run.GetID(), RunID: s.run.GetRunID(), UpdateName: workflows.ExtendUpdate,
						Args: []any{workflows.ExtendRequest{End: end}}, WaitForStage: client.WorkflowUpdateStageCompleted,
					})
					if err != nil {
						return err
					}
					var got time.Time
					return handle.Get(t.Context(), &got)
				}
				require.ErrorContains(t, extend(s.r.End.Add(-time.Second)), "release the reservation")
				require.NoError(t, extend(s.r.End.Add(time.Hour)))
				require.WithinDuration(t, s.r.End.Add(time.Hour), s.status(t).End, time.Second)
				release(t, s)
			},
			phases: []string{"1 load done", "1 post-load done", "1 unload done"}, outcome: reservation.OutcomeReleased,
		},
		{
			name: "no-worker", nobody: true,
			prepare: func(s *stage) { s.r.Image.Limits.Queue = reservation.Duration(time.Second) },
			phases:  []string{"1 load "}, outcome: reservation.OutcomeNoWorker,
			check: func(t *testing.T, s *stage) {
				require.Contains(t, s.status(t).Reason, "no worker serves provisioner no-worker: nobody took work from task queue berth-no-worker within 1s")
			},
		},
		{
			name: "slow-sysprep",
			prepare: func(s *stage) {
				s.sysprepped()
				s.os.Waits = scripted.Acts{climbs("tcp", "handshake", "authentication", "nonce", "set-up", "tcp", "handshake", "authentication",
					"nonce", "set-up", "settle")}
			},
			meddle: release,
			phases: []string{"1 load done", "1 post-load done", "1 unload done"}, outcome: reservation.OutcomeReleased,
		},
		{
			name: "sysprep-without-progress",
			prepare: func(s *stage) {
				s.sysprepped()
				s.os.Waits = scripted.Acts{scripted.Reload("the set-up stands still: nothing has changed for 30m0s, last ImageState IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE"), nil}
			},
			meddle: release,
			phases: []string{"1 load done", "1 post-load reload", "2 load done", "2 post-load done", "2 unload done"}, outcome: reservation.OutcomeReleased,
		},
		{
			name: "power-reset-saves-the-attempt",
			prepare: func(s *stage) {
				s.sysprepped()
				s.os.Waits = scripted.Acts{climbs("tcp", "power reset", "tcp", "handshake", "authentication", "nonce", "set-up", "settle")}
			},
			meddle: release,
			phases: []string{"1 load done", "1 post-load done", "1 unload done"}, outcome: reservation.OutcomeReleased,
		},
		{
			name: "pxe-lost",
			prepare: func(s *stage) {
				s.r.Computer.Hardware = reservation.Physical
				s.provisioner.Loads = scripted.Acts{scripted.Reload("no installer has started on node n01 within 10m0s of its power-on, twice"),
					climbs("wait for a slot", "check", "arm", "power on", "wait for installer", "install", "leave installer")}
			},
			meddle: release,
			phases: []string{"1 load reload", "2 load done", "2 post-load done", "2 unload done"}, outcome: reservation.OutcomeReleased,
		},
		{
			name: "worker-hands-over",
			prepare: func(s *stage) {
				s.provisioner.Loads = scripted.Acts{s.once(func(ctx context.Context, report reservation.Reporter) error {
					report.Keep("task", "task-7")
					return s.hang()(ctx, report)
				})}
			},
			meddle: func(t *testing.T, s *stage) {
				s.awaitBegan(t)
				s.worker.Stop()
				s.startWorker(t)
				release(t, s)
			},
			phases: []string{"1 load done", "1 post-load done", "1 unload done"}, outcome: reservation.OutcomeReleased,
			check: func(t *testing.T, s *stage) {
				record := s.status(t).Phases[0]
				require.Equal(t, 1, record.Lost)
				require.Equal(t, "clone", record.Stages[0].Name, "the stages before the hand-over are kept")
			},
		},
	}
}

func TestFirstTrySuccessStaysSmall(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "first-try.json"))
	require.NoError(t, err)
	var history historypb.History
	require.NoError(t, temporalproto.CustomJSONUnmarshalOptions{}.Unmarshal(data, &history))
	events, bytes := upToReady(&history)
	t.Logf("first-try success up to ready: %d events, %d bytes", events, bytes)
	require.LessOrEqual(t, events, 30)
	require.LessOrEqual(t, bytes, 10_000)
}

// upToReady counts the events and bytes of a history until the workflow task in which the reservation became ready.
func upToReady(history *historypb.History) (events, bytes int) {
	completed := 0
	for _, event := range history.Events {
		events++
		bytes += proto.Size(event)
		if event.EventType == enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED {
			completed++
		}
		if completed == 2 && event.EventType == enumspb.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES {
			return events, bytes
		}
	}
	return events, bytes
}

func TestReplay(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), len(paths()), "a golden history of each path: run make golden")
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			replayer := worker.NewWorkflowReplayer()
			workflows.Register(replayer)
			require.NoError(t, replayer.ReplayWorkflowHistoryFromJSONFile(quiet{}, file))
		})
	}
}

// update is read when the tests run, so that no package variable holds it.
func update() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the histories of the paths to testdata")
	flag.Parse()
	os.Exit(m.Run())
}

func attributeTypes() map[string]string {
	types := map[string]string{}
	for _, key := range workflows.SearchAttributes().Keys() {
		types[key.GetName()] = key.GetValueType().String()
	}
	return types
}
