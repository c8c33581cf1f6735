package workflows_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"

	"berth/activities"
	"berth/internal/hold"
	"berth/internal/scripted"
	"berth/osmodules"
	"berth/provisioners"
	"berth/reservation"
)

// stage is one reservation on a real server with a provisioner type, a queue, a computer and a worker of its own.
type stage struct {
	path
	c           client.Client
	provisioner *scripted.Provisioner
	os          *scripted.OSModule
	r           reservation.Reservation
	run         client.WorkflowRun
	worker      worker.Worker
	began       chan struct{}
	beganOnce   sync.Once
	stopped     atomic.Bool // the hanging module has stopped
	early       atomic.Bool // it was cleaned before that
}

func newStage(t *testing.T, c client.Client, p path) *stage {
	s := &stage{path: p, c: c, began: make(chan struct{})}
	s.provisioner = &scripted.Provisioner{HostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK5tZ3m0bXcT2wQ1eY2g3q8Yw1Z5nVtF3cJ1oZ6m0bXc"}
	s.os = &scripted.OSModule{HostKey: "SHA256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg", PublicAddress: "192.0.2.7"}
	for _, name := range []string{"management firewall", "public address", "sshd", "root password", "left-over keys", "hostname", "time", "tag"} {
		s.os.Steps = append(s.os.Steps, reservation.Step{Name: name, Result: reservation.StepDone, Took: reservation.Duration(30 * time.Millisecond)})
	}
	s.os.Waits = scripted.Acts{ladder}
	s.provisioner.Aborts = scripted.Acts{func(context.Context, reservation.Reporter) error {
		s.early.Store(!s.stopped.Load())
		return nil
	}}
	s.r = scripted.Reservation("web-"+p.name, "vm-"+p.name, p.name)
	s.r.End = time.Now().Add(time.Hour)
	if p.prepare != nil {
		p.prepare(s)
	}
	if !p.nobody {
		s.startWorker(t)
		t.Cleanup(func() { s.worker.Stop() })
	}
	return s
}

// ladder shows the stages of a real guest, so that the golden histories have the size of real ones.
func ladder(ctx context.Context, report reservation.Reporter) error {
	return climbs("tcp", "ssh banner", "host key", "authentication", "echo", "boot id", "set-up finished", "settle")(ctx, report)
}

// climbs returns an act that shows stages, one after the other.
func climbs(stages ...string) scripted.Act {
	return func(_ context.Context, report reservation.Reporter) error {
		for _, stage := range stages {
			report.Stage(stage, "127.0.0.1:22001")
		}
		return nil
	}
}

// sysprepped makes the reservation's image a Windows with Sysprep.
func (s *stage) sysprepped() {
	s.r.Image.OS = reservation.OS{Family: reservation.Windows, Version: "2022", Architecture: "x86_64"}
	s.r.Image.Sysprep = true
	s.r.Image.Control = reservation.Control{Channel: reservation.ChannelWinRM, User: "berth", Credential: "windows-admin", Certificate: reservation.HostKeyFirst}
}

func (s *stage) startWorker(t *testing.T) {
	t.Helper()
	s.worker = worker.New(s.c, activities.Queue(s.path.name, ""), worker.Options{
		DisableWorkflowWorker: true, MaxHeartbeatThrottleInterval: activities.HeartbeatThrottle, WorkerStopTimeout: 10 * time.Second,
	})
	activities.New(activities.Options{
		Provisioners: provisioners.NewRegistry(map[string]provisioners.Provisioner{s.path.name: s.provisioner}),
		OSModules:    osmodules.NewRegistry(map[reservation.OSFamily]osmodules.Module{reservation.Linux: s.os, reservation.Windows: s.os}),
		Client:       s.c, Identity: "worker-" + s.path.name,
	}).Register(s.worker)
	require.NoError(t, s.worker.Start())
}

func (s *stage) play(t *testing.T) {
	var err error
	s.run, err = hold.Start(t.Context(), s.c, s.r)
	require.NoError(t, err)
	if s.meddle != nil {
		s.meddle(t, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err = s.run.Get(ctx, nil)
	switch s.outcome {
	case reservation.OutcomeCancelled:
		var cancelled *temporal.CanceledError
		require.True(t, errors.As(err, &cancelled), "%v", err)
	case reservation.OutcomeFailed, reservation.OutcomeNoWorker:
		require.Error(t, err)
	default:
		require.NoError(t, err)
	}
	status := s.status(t)
	require.Equal(t, s.phases, attemptsOf(status))
	require.Equal(t, s.outcome, status.Outcome)
	if s.check != nil {
		s.check(t, s)
	}
	if update() {
		writeHistory(t, s.c, s.run.GetID(), s.run.GetRunID(), s.path.name)
	}
}

func (s *stage) status(t *testing.T) reservation.Status {
	t.Helper()
	value, err := s.c.QueryWorkflow(t.Context(), s.run.GetID(), s.run.GetRunID(), "status")
	require.NoError(t, err)
	var status reservation.Status
	require.NoError(t, value.Get(&status))
	return status
}

func (s *stage) until(t *testing.T, what string, reached func(reservation.Status) bool) {
	t.Helper()
	require.Eventually(t, func() bool { return reached(s.status(t)) }, 30*time.Second, 50*time.Millisecond, what)
}

func (s *stage) awaitBegan(t *testing.T) {
	t.Helper()
	select {
	case <-s.began:
	case <-time.After(30 * time.Second):
		t.Fatal("the module did not begin")
	}
}

// hang returns an act that goes on until its context ends, and then takes a moment to stop.
func (s *stage) hang() scripted.Act {
	return func(ctx context.Context, report reservation.Reporter) error {
		report.Stage("clone", "")
		s.beganOnce.Do(func() { close(s.began) })
		<-ctx.Done()
		// A module that takes its time to stop shows whether the workflow waits for it.
		<-time.After(300 * time.Millisecond)
		s.stopped.Store(true)
		return ctx.Err()
	}
}

// once returns act for the first call, whatever the attempt, and "done" afterwards.
func (s *stage) once(act scripted.Act) scripted.Act {
	var played atomic.Bool
	return func(ctx context.Context, report reservation.Reporter) error {
		if played.Swap(true) {
			return nil
		}
		return act(ctx, report)
	}
}

// writeHistory writes a workflow's history to testdata.
func writeHistory(t *testing.T, c client.Client, id, run, name string) {
	t.Helper()
	var history historypb.History
	events := c.GetWorkflowHistory(t.Context(), id, run, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		require.NoError(t, err)
		history.Events = append(history.Events, event)
	}
	data, err := temporalproto.CustomJSONMarshalOptions{Indent: " "}.Marshal(&history)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll("testdata", 0o755))
	require.NoError(t, os.WriteFile(filepath.Join("testdata", name+".json"), append(data, '\n'), 0o644))
}

// quiet is a logger that says nothing: the paths fail on purpose.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}
