package activities_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"berth/activities"
	"berth/internal/scripted"
	"berth/osmodules"
	"berth/osmodules/remote"
	"berth/provisioners"
	"berth/reservation"
)

// bench is one activity environment with scripted modules.
type bench struct {
	*testsuite.TestActivityEnvironment
	provisioner *scripted.Provisioner
	os          *scripted.OSModule
	calls       *scripted.Calls
	request     activities.PhaseRequest

	mu    sync.Mutex
	beats []reservation.Progress
}

func newBench(t *testing.T) *bench { return benchWith(t, nil, nil) }

// benchWith is a bench with other modules than the scripted ones where they are not nil.
func benchWith(t *testing.T, provisioner provisioners.Provisioner, module osmodules.Module) *bench {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	calls := &scripted.Calls{}
	b := &bench{
		TestActivityEnvironment: suite.NewTestActivityEnvironment(),
		provisioner:             &scripted.Provisioner{Calls: calls},
		os:                      &scripted.OSModule{Calls: calls},
		calls:                   calls,
		request: activities.PhaseRequest{
			Reservation: scripted.Reservation("web", "vm-01", "vmware"),
			Mark:        reservation.Mark{Reservation: "web", Run: "run", Attempt: 1},
			Attempt:     reservation.Attempt{Number: 1, Of: 3},
			Limit:       reservation.Duration(time.Minute),
		},
	}
	b.SetTestTimeout(10 * time.Second)
	if provisioner == nil {
		provisioner = b.provisioner
	}
	if module == nil {
		module = b.os
	}
	activities.New(activities.Options{
		Provisioners: provisioners.NewRegistry(map[string]provisioners.Provisioner{"vmware": provisioner}),
		OSModules:    osmodules.NewRegistry(map[reservation.OSFamily]osmodules.Module{reservation.Linux: module}),
		Identity:     "worker-2",
	}).Register(b)
	b.SetOnActivityHeartbeatListener(func(_ *activity.Info, details converter.EncodedValues) {
		var progress reservation.Progress
		if err := details.Get(&progress); err == nil {
			b.mu.Lock()
			b.beats = append(b.beats, progress)
			b.mu.Unlock()
		}
	})
	return b
}

func (b *bench) run(name string) (activities.PhaseResult, error) {
	var result activities.PhaseResult
	value, err := b.ExecuteActivity(name, b.request)
	if err == nil {
		err = value.Get(&result)
	}
	return result, err
}

func (b *bench) lastBeat(t *testing.T) reservation.Progress {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.NotEmpty(t, b.beats)
	return b.beats[len(b.beats)-1]
}

func TestAnErrorBecomesWhatTheRetryPolicyReads(t *testing.T) {
	for name, c := range map[string]struct {
		err     error
		is      string
		says    string
		carries bool
	}{
		"reload":                 {reservation.Reload("no space", nil), activities.TypeReload, "no space", true},
		"reload with a cause":    {reservation.Reload("no space", errors.New("datastore1")), activities.TypeReload, "no space: datastore1", true},
		"fail":                   {reservation.Fail("template gone", nil), activities.TypeFail, "template gone", true},
		"an unmarked error":      {errors.New("connection reset"), activities.TypeFault, "connection reset", false},
		"a wrapped verdict":      {errors.Join(errors.New("while cloning"), reservation.Fail("no permission", nil)), activities.TypeFail, "no permission", true},
		"a module's own limit":   {context.DeadlineExceeded, activities.TypeFault, "deadline exceeded", false},
		"words that are no text": {reservation.Reload("\xff\xfe", nil), activities.TypeReload, "?", true},
		"very many words":        {reservation.Reload(strings.Repeat("é", 4000), nil), activities.TypeReload, "é ...", true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.provisioner.Loads = scripted.Acts{func(_ context.Context, report reservation.Reporter) error {
				report.Stage("clone", "10 %")
				return c.err
			}}
			_, err := b.run(activities.LoadName)
			var application *temporal.ApplicationError
			require.ErrorAs(t, err, &application)
			require.Equal(t, c.is, application.Type())
			require.Contains(t, application.Message(), c.says)
			require.Less(t, len(application.Message()), 2000)
			require.False(t, application.NonRetryable(), "the policy's list of types decides, in one place")
			require.Equal(t, c.carries, application.HasDetails())
			if c.carries {
				var did activities.PhaseResult
				require.NoError(t, application.Details(&did))
				require.Equal(t, "clone", did.Stages[0].Name)
				require.False(t, did.Stages[0].Ended.IsZero())
				require.Equal(t, "worker-2", did.Worker)
			}
		})
	}
}

func TestStagesTravelWithTheHeartbeat(t *testing.T) {
	b := newBench(t)
	b.provisioner.Loads = scripted.Acts{func(_ context.Context, report reservation.Reporter) error {
		report.Stage("find template", "")
		report.Stage("clone", "0 %")
		report.Stage("clone", "50 %")
		report.Keep("task", "task-7")
		report.Stage("power on", "")
		return nil
	}}
	result, err := b.run(activities.LoadName)
	require.NoError(t, err)
	require.Len(t, result.Stages, 3)
	require.Equal(t, "50 %", result.Stages[1].Detail)
	require.Equal(t, result.Stages[2].Began, result.Stages[1].Ended)
}

func TestASuccessorKeepsTheClockTheStagesAndWhatWasKept(t *testing.T) {
	b := newBench(t)
	began := time.Now().Add(-40 * time.Second).UTC().Round(time.Millisecond)
	b.SetHeartbeatDetails(reservation.Progress{
		Began: began, Limit: b.request.Limit, Worker: "worker-1", Kept: map[string]string{"task": "task-7"},
		Stages: []reservation.Stage{{Name: "clone", Began: began}},
	})
	var deadline time.Time
	var kept string
	b.provisioner.Loads = scripted.Acts{func(ctx context.Context, report reservation.Reporter) error {
		deadline, _ = ctx.Deadline()
		kept = report.Kept("task")
		report.Stage("power on", "")
		return nil
	}}
	result, err := b.run(activities.LoadName)
	require.NoError(t, err)
	require.Equal(t, "task-7", kept)
	require.Equal(t, []string{"clone", "power on"}, []string{result.Stages[0].Name, result.Stages[1].Name})
	require.WithinDuration(t, began.Add(time.Minute), deadline, 2*time.Second, "the limit counts from the phase's first start")
	require.Equal(t, "worker-2", result.Worker)
}

func TestAPhaseThatIsOverItsLimitWhenASuccessorBeginsIsAReloadAndTouchesNothing(t *testing.T) {
	b := newBench(t)
	b.SetHeartbeatDetails(reservation.Progress{Began: time.Now().Add(-2 * time.Minute), Stages: []reservation.Stage{{Name: "clone", Detail: "80 %"}}})
	_, err := b.run(activities.LoadName)
	var application *temporal.ApplicationError
	require.ErrorAs(t, err, &application)
	require.Equal(t, activities.TypeReload, application.Type())
	require.Contains(t, application.Message(), `not done within its limit of 1m0s: at stage "clone"`)
	require.Contains(t, application.Message(), "80 %")
	require.Empty(t, b.calls.All())
}

func TestAPhaseThatOutlivesItsLimitSaysWhere(t *testing.T) {
	b := newBench(t)
	b.request.Limit = reservation.Duration(200 * time.Millisecond)
	b.provisioner.Loads = scripted.Acts{scripted.Hang("wait for clone", nil)}
	_, err := b.run(activities.LoadName)
	var application *temporal.ApplicationError
	require.ErrorAs(t, err, &application)
	require.Equal(t, activities.TypeReload, application.Type())
	require.Contains(t, application.Message(), `at stage "wait for clone"`)
}

func TestAWorkerThatStopsSendsALastBeatAndLetsASuccessorGoOn(t *testing.T) {
	b := newBench(t)
	stop := make(chan struct{})
	b.SetWorkerStopChannel(stop)
	var cause error
	b.provisioner.Loads = scripted.Acts{func(ctx context.Context, report reservation.Reporter) error {
		report.Stage("clone", "")
		report.Keep("task", "task-7")
		close(stop)
		<-ctx.Done()
		cause = context.Cause(ctx)
		require.True(t, provisioners.HandedOver(ctx))
		return reservation.Fail("a module that is stopped may say anything", ctx.Err())
	}}
	_, err := b.run(activities.LoadName)
	require.ErrorAs(t, cause, new(provisioners.HandOver))
	var application *temporal.ApplicationError
	require.ErrorAs(t, err, &application)
	require.Equal(t, activities.TypeFault, application.Type(), "retryable, whatever the module said when it was stopped")
	require.Contains(t, application.Message(), "worker worker-2 stops")
	require.Equal(t, "task-7", b.lastBeat(t).Kept["task"])
}

func TestPostLoadRunsTheHookBetweenAnswerAndConfiguration(t *testing.T) {
	b := newBench(t)
	b.request.HostKey = "ssh-ed25519 AAAA"
	b.os.HostKey = "SHA256:abc"
	b.os.PublicAddress = "192.0.2.7"
	b.os.Steps = []reservation.Step{{Name: "firewall", Result: reservation.StepDone}}
	result, err := b.run(activities.PostLoadName)
	require.NoError(t, err)
	require.Equal(t, []string{"wait-for-response", "after-response", "post-load"}, b.calls.Names())
	require.Equal(t, "SHA256:abc", result.HostKey)
	require.Equal(t, "192.0.2.7", result.PublicAddress)
	require.Equal(t, "firewall", result.Steps[0].Name)
}

// guestModule hands out a channel and asks for a power reset.
type guestModule struct {
	channel *closing
	reset   bool
}

type closing struct{ closed int }

func (c *closing) Run(context.Context, remote.Command) (remote.Result, error) {
	return remote.Result{}, nil
}
func (c *closing) Copy(context.Context, remote.File) error { return nil }
func (c *closing) Close() error                            { c.closed++; return nil }

func (m *guestModule) WaitForResponse(ctx context.Context, r osmodules.Request, _ reservation.Reporter) (osmodules.Answer, error) {
	m.reset = r.PowerReset != nil
	if m.reset {
		if err := r.PowerReset(ctx); err != nil {
			return osmodules.Answer{}, err
		}
	}
	return osmodules.Answer{Channel: m.channel}, nil
}

func (m *guestModule) PostLoad(context.Context, osmodules.Request, osmodules.Answer, reservation.Reporter) (osmodules.Report, error) {
	return osmodules.Report{Steps: []reservation.Step{{Name: "firewall", Result: reservation.StepFailed}}}, reservation.Reload("no firewall", nil)
}

// bareProvisioner can load and nothing more.
type bareProvisioner struct{}

func (bareProvisioner) Load(context.Context, provisioners.Request, reservation.Reporter) (provisioners.Loaded, error) {
	return provisioners.Loaded{}, nil
}

func TestAGuestsChannelIsClosedAndItsStepsAreKeptWhenConfiguringFails(t *testing.T) {
	module := &guestModule{channel: &closing{}}
	b := benchWith(t, nil, module)
	_, err := b.run(activities.PostLoadName)
	var application *temporal.ApplicationError
	require.ErrorAs(t, err, &application)
	var did activities.PhaseResult
	require.NoError(t, application.Details(&did))
	require.Equal(t, reservation.StepFailed, did.Steps[0].Result)
	require.Equal(t, 1, module.channel.closed)
	require.Equal(t, []string{"power-reset", "after-response"}, b.calls.Names())
}

func TestACapabilityThatAModuleLacksIsLeftOut(t *testing.T) {
	module := &guestModule{channel: &closing{}}
	b := benchWith(t, bareProvisioner{}, module)
	_, err := b.run(activities.PostLoadName)
	require.Error(t, err)
	require.False(t, module.reset)
	for _, name := range []string{activities.AbortName, activities.UnloadName} {
		result, err := b.run(name)
		require.NoError(t, err)
		require.Len(t, result.Stages, 1)
	}
}

func TestAWorkerWithoutTheModuleFailsAndSaysWhatItHas(t *testing.T) {
	b := newBench(t)
	b.request.Reservation.Computer.Provisioner = "xcat"
	_, err := b.run(activities.LoadName)
	var application *temporal.ApplicationError
	require.ErrorAs(t, err, &application)
	require.Equal(t, activities.TypeFail, application.Type())
	require.Contains(t, application.Message(), "this worker has a module for: vmware")
}

func TestManyStagesDoNotSwellTheHeartbeat(t *testing.T) {
	b := newBench(t)
	b.provisioner.Loads = scripted.Acts{func(_ context.Context, report reservation.Reporter) error {
		for range 500 {
			report.Stage("tcp", "")
			report.Stage("banner", "")
		}
		return nil
	}}
	result, err := b.run(activities.LoadName)
	require.NoError(t, err)
	require.LessOrEqual(t, len(result.Stages), 40)
	require.Equal(t, "banner", result.Stages[len(result.Stages)-1].Name)
}
