package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"berth/activities"
	"berth/internal/scripted"
	"berth/osmodules"
	"berth/provisioners"
	"berth/reservation"
	"berth/workflows"
)

// theatre is one workflow in the time-skipping environment, on the real activities and scripted modules.
type theatre struct {
	*testsuite.TestWorkflowEnvironment
	provisioner *scripted.Provisioner
	os          *scripted.OSModule
	calls       *scripted.Calls
	r           reservation.Reservation

	mu       sync.Mutex
	requests []seen
}

// seen is what an activity was started with.
type seen struct {
	name         string
	request      activities.PhaseRequest
	startToClose time.Duration
	heartbeat    time.Duration
	queue        string
}

func newTheatre(t *testing.T) *theatre {
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(20 * time.Second)
	calls := &scripted.Calls{}
	th := &theatre{
		TestWorkflowEnvironment: env,
		provisioner:             &scripted.Provisioner{Calls: calls},
		os:                      &scripted.OSModule{Calls: calls, HostKey: "SHA256:abc", PublicAddress: "192.0.2.7"},
		calls:                   calls,
		r:                       scripted.Reservation("web", "vm-01", "vmware"),
	}
	th.r.End = env.Now().Add(4 * time.Hour)
	acts := activities.New(activities.Options{
		Provisioners: provisioners.NewRegistry(map[string]provisioners.Provisioner{"vmware": th.provisioner}),
		OSModules:    osmodules.NewRegistry(map[reservation.OSFamily]osmodules.Module{reservation.Linux: th.os}),
		Identity:     "worker-1",
	})
	spy := func(name string, do func(context.Context, activities.PhaseRequest) (activities.PhaseResult, error)) {
		env.RegisterActivityWithOptions(func(ctx context.Context, request activities.PhaseRequest) (activities.PhaseResult, error) {
			info := activity.GetInfo(ctx)
			th.mu.Lock()
			th.requests = append(th.requests, seen{name, request, info.StartToCloseTimeout, info.HeartbeatTimeout, info.TaskQueue})
			th.mu.Unlock()
			return do(ctx, request)
		}, activity.RegisterOptions{Name: name})
	}
	spy(activities.LoadName, acts.Load)
	spy(activities.PostLoadName, acts.PostLoad)
	spy(activities.AbortName, acts.Abort)
	spy(activities.UnloadName, acts.Unload)
	env.RegisterActivityWithOptions(func(context.Context, string) (bool, error) { return false, nil }, activity.RegisterOptions{Name: activities.QueueServedName})
	env.RegisterWorkflow(workflows.Reservation)
	t.Cleanup(func() { env.AssertExpectations(t) })
	return th
}

func (th *theatre) run() { th.ExecuteWorkflow(workflows.Reservation, th.r) }

func (th *theatre) seen(name string) []seen {
	th.mu.Lock()
	defer th.mu.Unlock()
	var of []seen
	for _, s := range th.requests {
		if s.name == name {
			of = append(of, s)
		}
	}
	return of
}

// status returns the status query's answer, which must be what the workflow's end carries too.
func (th *theatre) status(t *testing.T) reservation.Status {
	t.Helper()
	value, err := th.QueryWorkflow(workflows.StatusQuery)
	require.NoError(t, err)
	var status reservation.Status
	require.NoError(t, value.Get(&status))
	return status
}

func (th *theatre) outcome(t *testing.T) (reservation.Status, error) {
	t.Helper()
	require.True(t, th.IsWorkflowCompleted())
	status := th.status(t)
	err := th.GetWorkflowError()
	var carried reservation.Status
	var application *temporal.ApplicationError
	var cancelled *temporal.CanceledError
	switch {
	case err == nil:
		require.NoError(t, th.GetWorkflowResult(&carried))
	case errors.As(err, &cancelled):
		require.NoError(t, cancelled.Details(&carried))
	case errors.As(err, &application) && application.Type() != workflows.TypeInvalid:
		require.NoError(t, application.Details(&carried))
	default:
		return status, err
	}
	require.Equal(t, status, carried, "the end must carry what the query answers")
	return status, err
}

func attemptsOf(status reservation.Status) (verdicts []string) {
	for _, p := range status.Phases {
		verdicts = append(verdicts, fmt.Sprintf("%d %s %s", p.Attempt, p.Phase, p.Verdict))
	}
	return verdicts
}

// The contract's table, row by row: what a module answers, and what the workflow does next.
func TestTheContract(t *testing.T) {
	fault := func(context.Context, reservation.Reporter) error { return errors.New("vCenter restarts") }
	onceOnly := func(act scripted.Act) scripted.Act {
		played := false
		return func(ctx context.Context, report reservation.Reporter) error {
			if played {
				return nil
			}
			played = true
			return act(ctx, report)
		}
	}
	for name, c := range map[string]struct {
		loads, waits, postLoads scripted.Acts
		attempts                int
		phases                  []string
		calls                   []string
		outcome                 reservation.Outcome
		reason                  string
		lost                    int // tries of the first phase that ended in a fault
	}{
		"done and done is ready": {
			phases:  []string{"1 load done", "1 post-load done", "1 unload done"},
			calls:   []string{"load", "wait-for-response", "after-response", "post-load", "unload"},
			outcome: reservation.OutcomeExpired,
		},
		"reload in Load loads again": {
			loads:   scripted.Acts{scripted.Reload("no space"), nil},
			phases:  []string{"1 load reload", "2 load done", "2 post-load done", "2 unload done"},
			calls:   []string{"load", "load", "wait-for-response", "after-response", "post-load", "unload"},
			outcome: reservation.OutcomeExpired,
		},
		"reload while waiting starts at Load again": {
			waits:   scripted.Acts{scripted.Reload("silent"), scripted.Reload("silent"), nil},
			phases:  []string{"1 load done", "1 post-load reload", "2 load done", "2 post-load reload", "3 load done", "3 post-load done", "3 unload done"},
			calls:   []string{"load", "wait-for-response", "load", "wait-for-response", "load", "wait-for-response", "after-response", "post-load", "unload"},
			outcome: reservation.OutcomeExpired,
		},
		"reload while configuring starts at Load again": {
			postLoads: scripted.Acts{scripted.Reload("no firewall"), nil},
			phases:    []string{"1 load done", "1 post-load reload", "2 load done", "2 post-load done", "2 unload done"},
			calls:     []string{"load", "wait-for-response", "after-response", "post-load", "load", "wait-for-response", "after-response", "post-load", "unload"},
			outcome:   reservation.OutcomeExpired,
		},
		"reload until the attempts are used up fails and cleans": {
			waits:   scripted.Acts{scripted.Reload("silent at rung ssh")},
			phases:  []string{"1 load done", "1 post-load reload", "2 load done", "2 post-load reload", "3 load done", "3 post-load reload", "3 clean done"},
			calls:   []string{"load", "wait-for-response", "load", "wait-for-response", "load", "wait-for-response", "abort"},
			outcome: reservation.OutcomeFailed, reason: "all 3 attempts failed, the last one with: silent at rung ssh",
		},
		"the image's own number of attempts counts": {
			attempts: 1,
			loads:    scripted.Acts{scripted.Reload("no space")},
			phases:   []string{"1 load reload", "1 clean done"},
			calls:    []string{"load", "abort"},
			outcome:  reservation.OutcomeFailed, reason: "the only attempt failed: no space",
		},
		"fail in Load ends at once and cleans": {
			loads:   scripted.Acts{scripted.Fail("template debian12 is gone")},
			phases:  []string{"1 load fail", "1 clean done"},
			calls:   []string{"load", "abort"},
			outcome: reservation.OutcomeFailed, reason: "template debian12 is gone",
		},
		"fail in PostLoad ends at once and cleans": {
			waits:   scripted.Acts{scripted.Fail("host key changed")},
			phases:  []string{"1 load done", "1 post-load fail", "1 clean done"},
			calls:   []string{"load", "wait-for-response", "abort"},
			outcome: reservation.OutcomeFailed, reason: "host key changed",
		},
		"a fault is tried again in the same attempt": {
			loads:   scripted.Acts{onceOnly(fault)},
			phases:  []string{"1 load done", "1 post-load done", "1 unload done"},
			calls:   []string{"load", "load", "wait-for-response", "after-response", "post-load", "unload"},
			outcome: reservation.OutcomeExpired,
			lost:    1,
		},
		"a fault while configuring repeats PostLoad, not Load": {
			postLoads: scripted.Acts{onceOnly(fault)},
			phases:    []string{"1 load done", "1 post-load done", "1 unload done"},
			calls:     []string{"load", "wait-for-response", "after-response", "post-load", "wait-for-response", "after-response", "post-load", "unload"},
			outcome:   reservation.OutcomeExpired,
		},
	} {
		t.Run(name, func(t *testing.T) {
			th := newTheatre(t)
			th.r.Image.Attempts = c.attempts
			th.provisioner.Loads, th.os.Waits, th.os.PostLoads = c.loads, c.waits, c.postLoads
			th.run()
			status, err := th.outcome(t)
			require.Equal(t, c.phases, attemptsOf(status))
			require.Equal(t, c.calls, th.calls.Names())
			require.Equal(t, c.outcome, status.Outcome)
			require.Equal(t, reservation.PhaseEnded, status.Phase)
			require.Equal(t, c.lost, status.Phases[0].Lost)
			if c.outcome == reservation.OutcomeFailed {
				require.ErrorContains(t, err, c.reason)
				require.Equal(t, c.reason, status.Reason)
				require.True(t, status.Ready.IsZero())
			} else {
				require.NoError(t, err)
				require.False(t, status.Ready.IsZero())
			}
		})
	}
}

func TestEachAttemptIsToldItsNumberItsMarkAndItsStretchedLimit(t *testing.T) {
	th := newTheatre(t)
	th.r.Image.Limits = reservation.Limits{Load: reservation.Duration(10 * time.Minute), Response: reservation.Duration(2 * time.Minute),
		ResponseAgain: reservation.Duration(time.Minute), InitialDelay: reservation.Duration(5 * time.Second), Configure: reservation.Duration(4 * time.Minute)}
	th.os.Waits = scripted.Acts{scripted.Reload("silent")}
	th.run()
	wantLoad := []time.Duration{10 * time.Minute, 15 * time.Minute, 20 * time.Minute}
	wantPostLoad := []time.Duration{5*time.Second + 7*time.Minute, 5*time.Second + 7*time.Minute*3/2, 5*time.Second + 14*time.Minute}
	for n := range 3 {
		load, postLoad := th.seen(activities.LoadName)[n], th.seen(activities.PostLoadName)[n]
		for _, s := range []seen{load, postLoad} {
			require.Equal(t, reservation.Attempt{Number: n + 1, Of: 3}, s.request.Attempt)
			require.Equal(t, n+1, s.request.Mark.Attempt)
			require.Equal(t, "web", s.request.Mark.Reservation)
			require.NotEmpty(t, s.request.Mark.Run)
			require.Equal(t, s.startToClose, s.request.Limit.Std(), "the limit is the StartToClose timeout and stands in the request")
			require.Equal(t, 30*time.Second, s.heartbeat)
			require.Equal(t, "berth-vmware", s.queue)
		}
		require.Equal(t, wantLoad[n], load.startToClose)
		require.Equal(t, wantPostLoad[n], postLoad.startToClose)
	}
}

func TestWhatLoadHandedOverReachesPostLoad(t *testing.T) {
	th := newTheatre(t)
	th.provisioner.HostKey = "ssh-ed25519 AAAA"
	th.run()
	status, err := th.outcome(t)
	require.NoError(t, err)
	require.Equal(t, "ssh-ed25519 AAAA", th.seen(activities.PostLoadName)[0].request.HostKey)
	require.Equal(t, "SHA256:abc", status.HostKey)
	require.Equal(t, "192.0.2.7", status.PublicAddress)
}

func TestABadReservationIsRefusedByFieldBeforeAnythingIsTouched(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*reservation.Reservation)
		field string
	}{
		"name":       {func(r *reservation.Reservation) { r.Name = "Web One" }, "reservation.name"},
		"computer":   {func(r *reservation.Reservation) { r.Computer.Name = "../vm" }, "computer.name"},
		"image":      {func(r *reservation.Reservation) { r.Image.Name = "" }, "image.name"},
		"end":        {func(r *reservation.Reservation) { r.End = time.Time{} }, "reservation.end"},
		"no source":  {func(r *reservation.Reservation) { r.Computer.Provisioner = "xcat" }, "image.sources"},
		"attempts":   {func(r *reservation.Reservation) { r.Image.Attempts = 300 }, "image.attempts"},
		"mac":        {func(r *reservation.Reservation) { r.Computer.MACs = []string{"no"} }, "computer.macs[0]"},
		"limit":      {func(r *reservation.Reservation) { r.Image.Limits.Load = -1 }, "image.limits.load"},
		"os family":  {func(r *reservation.Reservation) { r.Image.OS.Family = "plan9" }, "image.os.family"},
		"user":       {func(r *reservation.Reservation) { r.User = "ana; rm" }, "reservation.user"},
		"no address": {func(r *reservation.Reservation) { r.Computer.Address = "" }, "computer.address"},
	} {
		t.Run(name, func(t *testing.T) {
			th := newTheatre(t)
			c.spoil(&th.r)
			th.run()
			var application *temporal.ApplicationError
			require.ErrorAs(t, th.GetWorkflowError(), &application)
			require.Equal(t, workflows.TypeInvalid, application.Type())
			require.True(t, application.NonRetryable())
			require.ErrorContains(t, application, c.field)
			require.Empty(t, th.calls.All())
		})
	}
}

func TestAPhaseThatOutlivesItsLimitIsAReload(t *testing.T) {
	for name, timeout := range map[string]error{
		"start to close":    temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE, nil, reservation.Progress{Stages: []reservation.Stage{{Name: "clone"}}, Worker: "worker-9"}),
		"schedule to close": temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE, nil),
	} {
		t.Run(name, func(t *testing.T) {
			th := newTheatre(t)
			times := 0
			th.OnActivity(activities.LoadName, mock.Anything, mock.Anything).Return(func(context.Context, activities.PhaseRequest) (activities.PhaseResult, error) {
				if times++; times == 1 {
					return activities.PhaseResult{}, timeout
				}
				return activities.PhaseResult{}, nil
			})
			th.run()
			status, err := th.outcome(t)
			require.NoError(t, err)
			require.Equal(t, []string{"1 load reload", "2 load done", "2 post-load done", "2 unload done"}, attemptsOf(status))
			require.Contains(t, status.Phases[0].Reason, "not done within its limit")
			if name == "start to close" {
				require.Contains(t, status.Phases[0].Reason, `last seen at stage "clone" on worker worker-9`)
			}
		})
	}
}

func TestFaultsUntilTheLimitAreAReload(t *testing.T) {
	th := newTheatre(t)
	th.r.Image.Attempts = 2
	th.r.End = th.Now().Add(48 * time.Hour)
	th.provisioner.Loads = scripted.Acts{func(context.Context, reservation.Reporter) error { return errors.New("connection refused") }, nil}
	th.run()
	status, err := th.outcome(t)
	require.NoError(t, err)
	require.Equal(t, []string{"1 load reload", "2 load done", "2 post-load done", "2 unload done"}, attemptsOf(status))
	require.Contains(t, status.Phases[0].Reason, "connection refused")
}

func TestNoWorkerIsItsOwnOutcomeAndNamesTheQueue(t *testing.T) {
	queueTimeout := temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)

	t.Run("nobody serves the queue: nothing was touched, nothing is cleaned", func(t *testing.T) {
		th := newTheatre(t)
		th.OnActivity(activities.LoadName, mock.Anything, mock.Anything).Return(activities.PhaseResult{}, queueTimeout).Once()
		th.run()
		status, err := th.outcome(t)
		require.Equal(t, reservation.OutcomeNoWorker, status.Outcome)
		require.ErrorContains(t, err, "no worker serves provisioner vmware")
		require.ErrorContains(t, err, "berth-vmware")
		require.Equal(t, []string{"1 load "}, attemptsOf(status))
		require.Empty(t, th.calls.All())
	})

	t.Run("workers that are busy are waited for and cost no attempt", func(t *testing.T) {
		th := newTheatre(t)
		times := 0
		th.OnActivity(activities.LoadName, mock.Anything, mock.Anything).Return(func(context.Context, activities.PhaseRequest) (activities.PhaseResult, error) {
			if times++; times < 4 {
				return activities.PhaseResult{}, queueTimeout
			}
			return activities.PhaseResult{}, nil
		})
		th.OnActivity(activities.QueueServedName, mock.Anything, "berth-vmware").Return(true, nil)
		th.run()
		status, err := th.outcome(t)
		require.NoError(t, err)
		require.Equal(t, []string{"1 load done", "1 post-load done", "1 unload done"}, attemptsOf(status))
	})

	t.Run("after a load it is cleaned, and what cannot be cleaned is said", func(t *testing.T) {
		th := newTheatre(t)
		th.OnActivity(activities.PostLoadName, mock.Anything, mock.Anything).Return(activities.PhaseResult{}, queueTimeout).Once()
		th.OnActivity(activities.AbortName, mock.Anything, mock.Anything).Return(activities.PhaseResult{}, queueTimeout).Once()
		th.run()
		status, err := th.outcome(t)
		require.Equal(t, reservation.OutcomeNoWorker, status.Outcome)
		require.ErrorContains(t, err, "the computer was not taken back")
		require.Equal(t, []string{"1 load done", "1 post-load ", "1 clean "}, attemptsOf(status))
	})
}

// hang returns an act that shows a stage, calls then, and goes on until its context ends. While an activity runs the
// environment skips no time, so what is to happen meanwhile must come from the act itself. (The environment does not wait
// for a cancelled activity either: that cleaning waits for the module is shown on a real server.)
func hang(then func()) scripted.Act {
	return func(ctx context.Context, report reservation.Reporter) error {
		report.Stage("clone", "")
		then()
		<-ctx.Done()
		return ctx.Err()
	}
}

func TestCancelCleansAndEndsAsCancelled(t *testing.T) {
	for name, c := range map[string]struct {
		direct func(th *theatre, hang scripted.Act)
		phases []string
	}{
		"in Load": {func(th *theatre, hang scripted.Act) { th.provisioner.Loads = scripted.Acts{hang} },
			[]string{"1 load ", "1 clean done"}},
		"while waiting": {func(th *theatre, hang scripted.Act) { th.os.Waits = scripted.Acts{hang} },
			[]string{"1 load done", "1 post-load ", "1 clean done"}},
		"while configuring": {func(th *theatre, hang scripted.Act) { th.os.PostLoads = scripted.Acts{hang} },
			[]string{"1 load done", "1 post-load ", "1 clean done"}},
		"in a second attempt": {func(th *theatre, hang scripted.Act) { th.provisioner.Loads = scripted.Acts{scripted.Reload("x"), hang} },
			[]string{"1 load reload", "2 load ", "2 clean done"}},
	} {
		t.Run(name, func(t *testing.T) {
			th := newTheatre(t)
			c.direct(th, hang(th.CancelWorkflow))
			th.run()
			status, err := th.outcome(t)
			require.True(t, temporal.IsCanceledError(err), "%v", err)
			require.Equal(t, c.phases, attemptsOf(status))
			require.Equal(t, reservation.OutcomeCancelled, status.Outcome)
			names := th.calls.Names()
			require.Equal(t, "abort", names[len(names)-1])
		})
	}

	t.Run("while ready takes the computer back", func(t *testing.T) {
		th := newTheatre(t)
		th.RegisterDelayedCallback(th.CancelWorkflow, time.Hour)
		th.run()
		status, err := th.outcome(t)
		require.True(t, temporal.IsCanceledError(err))
		require.Equal(t, []string{"1 load done", "1 post-load done", "1 unload done"}, attemptsOf(status))
		require.False(t, status.Ready.IsZero())
	})

	t.Run("a worker lost while it is cancelled is still a cancel", func(t *testing.T) {
		th := newTheatre(t)
		th.OnActivity(activities.LoadName, mock.Anything, mock.Anything).Return(func(ctx context.Context, _ activities.PhaseRequest) (activities.PhaseResult, error) {
			th.CancelWorkflow()
			<-ctx.Done()
			return activities.PhaseResult{}, temporal.NewHeartbeatTimeoutError()
		})
		th.run()
		status, err := th.outcome(t)
		require.True(t, temporal.IsCanceledError(err), "%v", err)
		require.Equal(t, []string{"1 load ", "1 clean done"}, attemptsOf(status))
	})
}

func TestReadyIsHeldUntilItsEndAReleaseOrACancel(t *testing.T) {
	t.Run("its end", func(t *testing.T) {
		th := newTheatre(t)
		began := th.Now()
		th.run()
		status, err := th.outcome(t)
		require.NoError(t, err)
		require.Equal(t, reservation.OutcomeExpired, status.Outcome)
		require.WithinDuration(t, began.Add(4*time.Hour), status.Ended, time.Minute)
	})

	t.Run("a release", func(t *testing.T) {
		th := newTheatre(t)
		th.RegisterDelayedCallback(func() {
			status := th.status(t)
			require.Equal(t, reservation.PhaseReady, status.Phase)
			require.Equal(t, reservation.OutcomeReady, status.Outcome)
			th.SignalWorkflow(workflows.ReleaseSignal, nil)
		}, time.Hour)
		began := th.Now()
		th.run()
		status, err := th.outcome(t)
		require.NoError(t, err)
		require.Equal(t, reservation.OutcomeReleased, status.Outcome)
		require.WithinDuration(t, began.Add(time.Hour), status.Ended, time.Minute)
		require.Equal(t, "unload", th.calls.Names()[4])
	})

	t.Run("a release while it loads stops the load and cleans", func(t *testing.T) {
		th := newTheatre(t)
		th.provisioner.Loads = scripted.Acts{hang(func() { th.SignalWorkflow(workflows.ReleaseSignal, nil) })}
		th.run()
		status, err := th.outcome(t)
		require.NoError(t, err)
		require.Equal(t, reservation.OutcomeReleased, status.Outcome)
		require.Equal(t, []string{"1 load ", "1 clean done"}, attemptsOf(status))
	})

	t.Run("an end that comes while it loads stops the load and says so", func(t *testing.T) {
		th := newTheatre(t)
		th.r.End = th.Now().Add(50 * time.Millisecond) // while an activity runs the environment's clock is the wall's
		th.provisioner.Loads = scripted.Acts{hang(func() {})}
		th.run()
		status, err := th.outcome(t)
		require.NoError(t, err)
		require.Equal(t, reservation.OutcomeExpired, status.Outcome)
		require.Contains(t, status.Reason, "before it was ready")
		require.Equal(t, []string{"1 load ", "1 clean done"}, attemptsOf(status))
	})

	t.Run("a computer that cannot be taken back is said and the reservation ends", func(t *testing.T) {
		th := newTheatre(t)
		th.provisioner.Unloads = scripted.Acts{scripted.Fail("no permission to destroy vm-01")}
		th.run()
		status, err := th.outcome(t)
		require.NoError(t, err)
		require.Equal(t, reservation.OutcomeExpired, status.Outcome)
		require.Contains(t, status.Reason, "no permission to destroy vm-01")
	})
}

func TestExtend(t *testing.T) {
	ask := func(th *theatre, end time.Time) *updated {
		u := &updated{}
		th.UpdateWorkflow(workflows.ExtendUpdate, "", u, workflows.ExtendRequest{End: end})
		return u
	}

	t.Run("a later end is taken and holds the computer until then", func(t *testing.T) {
		th := newTheatre(t)
		end := th.r.End.Add(3 * time.Hour)
		var u *updated
		th.RegisterDelayedCallback(func() { u = ask(th, end) }, time.Hour)
		th.run()
		status, err := th.outcome(t)
		require.NoError(t, err)
		require.NoError(t, u.err)
		require.True(t, u.accepted)
		require.WithinDuration(t, end, status.Ended, time.Minute)
	})

	t.Run("while it loads, too, and twice", func(t *testing.T) {
		th := newTheatre(t)
		th.r.End = th.Now().Add(time.Minute)
		first, second := th.r.End.Add(time.Hour), th.r.End.Add(2*time.Hour)
		th.RegisterDelayedCallback(func() { ask(th, first) }, 10*time.Second)
		th.RegisterDelayedCallback(func() { ask(th, second) }, 20*time.Second)
		th.run()
		status, err := th.outcome(t)
		require.NoError(t, err)
		require.WithinDuration(t, second, status.Ended, time.Minute)
	})

	for name, c := range map[string]struct {
		end    func(th *theatre) time.Time
		remedy string
	}{
		"in the past":              {func(th *theatre) time.Time { return th.Now().Add(-time.Minute) }, "after now"},
		"before the present end":   {func(th *theatre) time.Time { return th.r.End.Add(-time.Minute) }, "release the reservation"},
		"the present end, exactly": {func(th *theatre) time.Time { return th.r.End }, "after the present end"},
	} {
		t.Run("refused: "+name, func(t *testing.T) {
			th := newTheatre(t)
			var u *updated
			th.RegisterDelayedCallback(func() { u = ask(th, c.end(th)) }, time.Hour)
			th.run()
			status, err := th.outcome(t)
			require.NoError(t, err)
			require.ErrorContains(t, u.err, c.remedy)
			require.False(t, u.accepted)
			require.WithinDuration(t, th.r.End, status.Ended, time.Minute)
		})
	}
}

// updated is what became of an update.
type updated struct {
	accepted bool
	err      error
}

func (u *updated) Accept()                   { u.accepted = true }
func (u *updated) Reject(err error)          { u.err = err }
func (u *updated) Complete(_ any, err error) { u.err = errors.Join(u.err, err) }

func TestWhatAPersonSees(t *testing.T) {
	th := newTheatre(t)
	th.r.Image.Limits.Load = reservation.Duration(7 * time.Minute)
	th.provisioner.Loads = scripted.Acts{
		func(_ context.Context, report reservation.Reporter) error {
			report.Stage("clone", "from template|x")
			report.Stage("power on", "")
			return reservation.Reload("no space on datastore1", nil)
		}, nil,
	}
	keys := workflows.SearchAttributes()
	require.NoError(t, th.SetTypedSearchAttributesOnStart(temporal.NewSearchAttributes(keys.AtStart(th.r)...)))
	upserts := 0
	th.OnUpsertTypedSearchAttributes(mock.Anything).Return(nil).Run(func(mock.Arguments) { upserts++ })
	th.RegisterDelayedCallback(func() {
		require.Equal(t, 3, upserts, "load of attempt 2, post-load and ready change the attributes; the workflow began with attempt 1's")
		details := workflows.Details(th.status(t))
		require.Contains(t, details, "**ready**, attempt 2 of 3. Ends")
		require.Contains(t, details, "| 1 | **load** |")
		require.Contains(t, details, "**reload**: no space on datastore1")
		require.Contains(t, details, `from template\|x`)
		require.Contains(t, details, "| 2 | **post-load** |")
	}, time.Hour)
	th.run()
	_, err := th.outcome(t)
	require.NoError(t, err)
}

func TestLateSearchAttributesAreSetWhenStartedByHand(t *testing.T) {
	th := newTheatre(t)
	var sets []temporal.SearchAttributes
	th.OnUpsertTypedSearchAttributes(mock.Anything).Return(nil).Run(func(args mock.Arguments) {
		sets = append(sets, args.Get(0).(temporal.SearchAttributes))
	})
	th.run()
	require.NoError(t, th.GetWorkflowError())
	name, _ := sets[0].GetKeyword(workflows.SearchAttributes().Reservation)
	require.Equal(t, "web", name)
	outcome, _ := sets[len(sets)-1].GetKeyword(workflows.SearchAttributes().Outcome)
	require.Equal(t, "expired", outcome)
}
