package vmware_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/types"

	"berth/provisioners"
	"berth/provisioners/vmware"
	"berth/reservation"
)

// doomed runs a load in a worker that is killed: at that point the vCenter hears no more of it, the reporter delivers no
// more, and no line of it runs on.
func (l *lab) doomed(r provisioners.Request, report *reporter, aim func(*front, *reporter)) (loaded provisioners.Loaded, err error, killed bool) {
	l.t.Helper()
	f := l.front()
	aim(f, report)
	m := f.module()
	ctx, end := context.WithCancelCause(context.Background())
	defer end(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		loaded, err = m.Load(ctx, r, report)
	}()
	go func() {
		// The killed process is gone; this one must stop waiting for a vCenter that it cannot reach any more.
		select {
		case <-f.died:
			end(provisioners.HandOver{})
		case <-done:
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute): // a busy machine is slow; a hang is for ever
		l.t.Fatal("the doomed load hangs")
	}
	closing, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	m.Close(closing)
	f.abandon()
	return loaded, err, f.killed()
}

// atReport kills the worker in its n-th call of the reporter.
func atReport(n int) func(*front, *reporter) {
	return func(f *front, report *reporter) {
		report.on = func(at int, _ string) {
			if at == n {
				report.freeze()
				f.kill()
				runtime.Goexit()
			}
		}
	}
}

// atCall kills the worker at its n-th call of the vCenter.
func atCall(n int, what cut) func(*front, *reporter) {
	return func(f *front, report *reporter) {
		f.cut = func(at int, _ string) cut {
			if at != n {
				return pass
			}
			report.freeze()
			return what
		}
	}
}

func (r *reporter) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = true
}

// whole checks that one computer stands where one is to stand.
func (l *lab) whole(t *testing.T, computer string, mark string, loaded provisioners.Loaded) {
	t.Helper()
	vm := l.vm(computer) // fails if there are two
	require.NotNil(t, vm)
	require.Equal(t, vm.Self.Value, loaded.Reference)
	require.Equal(t, mark, extra(vm, vmware.KeyMark))
	require.Equal(t, types.VirtualMachinePowerStatePoweredOn, vm.Runtime.PowerState)
	require.Equal(t, extra(vm, vmware.KeyHostKeyPublic), loaded.HostKey)
	require.NotEmpty(t, loaded.HostKey)
	require.Equal(t, 1, l.cloned(computer), "one clone")
	require.Zero(t, l.poweredOn(vm.Self.Value), "and one power-on, the clone's own")
}

// The load has an earlier VM to remove, so that every stage of it is gone through.
func TestAWorkerThatIsKilledAnywhereLeavesOneCloneToItsSuccessor(t *testing.T) {
	t.Parallel()
	const lookUps = 8 // calls of the vCenter before it are the log-in and the catalog's look-ups, which change nothing
	for name, c := range map[string]struct {
		point func(n int) func(*front, *reporter)
		first int
		all   bool // the successor is told all that was kept, not only what was surely delivered
	}{
		"in its own code":                        {point: atReport, first: 1, all: true},
		"in its own code, heartbeat lost":        {point: atReport, first: 1},
		"before a call reaches the vCenter":      {point: func(n int) func(*front, *reporter) { return atCall(n, dieBefore) }, first: lookUps},
		"before the answer of a call reaches it": {point: func(n int) func(*front, *reporter) { return atCall(n, dieAfter) }, first: lookUps},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A vCenter each: the simulated one is not safe for VMs that are destroyed side by side (a data race between one's
			// files and another's place in the datastore).
			l := newLab(t)
			l.clonesTake(30 * time.Millisecond)
			survivor := l.module()
			for n := c.first; ; n++ {
				computer := fmt.Sprintf("pc-%d-%s", n, strings.NewReplacer(" ", "-", ",", "").Replace(name))
				l.stray(computer, vmware.KeyMark, "other/run-0/1")
				report := newReporter()
				loaded, err, killed := l.doomed(request(computer), report, c.point(n))
				if !killed {
					require.NoError(t, err)
					l.whole(t, computer, "res-"+computer+"/run-1/1", loaded)
					require.GreaterOrEqual(t, n, c.first+8, "the load was killed at every point")
					t.Logf("killed at %d points", n-c.first)
					return
				}
				loaded, err = survivor.Load(within(t, time.Minute), request(computer), report.successor(c.all))
				require.NoError(t, err, "killed at %d, after %v", n, report.seen())
				l.whole(t, computer, "res-"+computer+"/run-1/1", loaded)
			}
		})
	}
}

func TestWorkersThatAreKilledOneAfterTheOtherLeaveOneClone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.clonesTake(40 * time.Millisecond)
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 7))
		computer := fmt.Sprintf("pc-%02d", seed)
		l.stray(computer, vmware.KeyMark, "res-"+computer+"/run-0/2")
		report := newReporter()
		deaths := 0
		for ; ; deaths++ {
			aim := []func(*front, *reporter){
				atReport(1 + random.IntN(10)), atCall(8+random.IntN(22), dieBefore), atCall(8+random.IntN(22), dieAfter),
			}[random.IntN(3)]
			loaded, err, killed := l.doomed(request(computer), report, aim)
			if killed {
				report = report.successor(random.IntN(2) == 0)
				continue
			}
			require.NoError(t, err)
			l.whole(t, computer, "res-"+computer+"/run-1/1", loaded)
			break
		}
		t.Logf("seed %d: %d workers killed", seed, deaths)
	}
}

func TestEvenIfNothingKeptSurvivesThereIsOneVM(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	defer letGo()
	_, _, killed := l.doomed(request("vm-01"), newReporter(), func(f *front, _ *reporter) {
		f.cut = func(_ int, method string) cut {
			if method == "CloneVM_Task" {
				return dieAfter
			}
			return pass
		}
	})
	require.True(t, killed)
	l.eventually("the clone runs on without its worker", func() bool { return l.running() == 1 })
	done := make(chan error, 1)
	var loaded provisioners.Loaded
	ctx := within(t, 10*time.Second)
	m := l.module()
	go func() {
		var err error
		loaded, err = m.Load(ctx, request("vm-01"), newReporter())
		done <- err
	}()
	// The successor knows of nothing and clones; the vCenter gives the name to one of the two.
	l.eventually("two clones run", func() bool { return l.running() == 2 })
	letGo()
	require.NoError(t, <-done)
	vm := l.vm("vm-01")
	require.Equal(t, vm.Self.Value, loaded.Reference)
	require.Equal(t, extra(vm, vmware.KeyHostKeyPublic), loaded.HostKey, "the key of the clone that won")
}

func TestAHandedOverLoadLeavesItsCloneRunning(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	defer letGo()
	report := newReporter()
	ctx, handOver := context.WithCancelCause(within(t, 10*time.Second))
	done := make(chan error, 1)
	first := l.module()
	go func() {
		_, err := first.Load(ctx, request("vm-01"), report)
		done <- err
	}()
	l.eventually("the clone's task is kept", func() bool { return strings.HasPrefix(report.Kept("clone"), "task-") })
	handOver(provisioners.HandOver{})
	require.ErrorIs(t, <-done, context.Canceled)
	require.Zero(t, l.called("CancelTask"))
	require.Equal(t, 1, l.running())

	second := l.module()
	next := report.successor(true)
	var loaded provisioners.Loaded
	go func() {
		var err error
		loaded, err = second.Load(within(t, 10*time.Second), request("vm-01"), next)
		done <- err
	}()
	l.eventually("the successor waits for the same task", func() bool { return next.saw("going on with task-") })
	letGo()
	require.NoError(t, <-done)
	l.whole(t, "vm-01", "res-vm-01/run-1/1", loaded)
}

func TestAHandOverInTheMiddleOfTheCloneCallKeepsItsTask(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	defer letGo()
	report := newReporter()
	ctx, handOver := context.WithCancelCause(within(t, 10*time.Second))
	f := l.front()
	f.cut = func(_ int, method string) cut {
		if method == "CloneVM_Task" {
			handOver(provisioners.HandOver{})
		}
		return pass
	}
	_, err := f.module().Load(ctx, request("vm-01"), report)
	require.ErrorIs(t, err, context.Canceled)
	require.True(t, strings.HasPrefix(report.Kept("clone"), "task-"), "the answer was waited for: %q", report.Kept("clone"))
	require.Equal(t, 1, l.running())
}

func TestACancelledLoadCancelsItsTask(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"cancelled": context.WithCancel,
		"past its limit": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 700*time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			letGo := l.holdClones()
			defer letGo()
			m := l.module()
			_, err := m.Load(within(t, 10*time.Second), request("vm-00"), &impatient{reporter: newReporter()})
			require.Error(t, err)
			l.reset()

			report := newReporter()
			ctx, cancel := end(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := m.Load(ctx, request("vm-01"), report)
				done <- err
			}()
			l.eventually("the clone runs", func() bool { return l.running() == 1 })
			if name == "cancelled" {
				cancel()
			}
			err = <-done
			require.Equal(t, ctx.Err(), err, "the context's own error, and no verdict")
			require.Equal(t, 1, l.called("CancelTask"))
			l.eventually("the clone has ended", func() bool { return l.running() == 0 })
			require.Nil(t, l.vm("vm-01"))
			require.NoError(t, m.Abort(within(t, 5*time.Second), request("vm-01"), newReporter()))
		})
	}
}

// impatient is not confirmed.
type impatient struct{ *reporter }

func (i *impatient) Confirm(context.Context) error { return errors.New("not yet") }

func TestATaskThatTheVCenterForgotIsFineWhenItsVMStands(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	_, err := m.Load(within(t, 10*time.Second), request("vm-01"), newReporter())
	require.NoError(t, err)
	powerOff(l, l.vm("vm-01").Self) // so that it does not look finished
	report := newReporter()
	report.kept["clone"] = "task-4711"
	loaded, err := l.module().Load(within(t, 10*time.Second), request("vm-01"), report)
	require.NoError(t, err)
	require.Equal(t, l.vm("vm-01").Self.Value, loaded.Reference)
	require.Equal(t, 1, l.cloned("vm-01"))
	require.Equal(t, types.VirtualMachinePowerStatePoweredOn, l.vm("vm-01").Runtime.PowerState)
	require.Equal(t, 1, l.poweredOn(loaded.Reference))
}

func TestATaskThatTheVCenterForgotWithoutAVMIsClonedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	report := newReporter()
	report.kept["clone"] = "task-4711"
	loaded, err := l.module().Load(within(t, 10*time.Second), request("vm-01"), report)
	require.NoError(t, err)
	l.whole(t, "vm-01", "res-vm-01/run-1/1", loaded)
}

func TestALoadOutlivesTheLossOfItsVCenter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lose   func(l *lab, f *front)
		forget bool // the vCenter restarted: it knows no task of before
	}{
		"its session expires":      {lose: func(l *lab, _ *front) { require.NotZero(l.t, l.expireSessions()) }},
		"its connection is cut":    {lose: func(_ *lab, f *front) { f.kill(); f.revive() }},
		"the vCenter is restarted": {lose: func(l *lab, f *front) { f.kill(); l.expireSessions() }, forget: true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			letGo := l.holdClones()
			defer letGo()
			f := l.front()
			m := f.module()
			report := newReporter()
			done := make(chan error, 1)
			var loaded provisioners.Loaded
			ctx := within(t, 15*time.Second)
			go func() {
				var err error
				loaded, err = m.Load(ctx, request("vm-01"), report)
				done <- err
			}()
			l.eventually("the clone is waited for", func() bool {
				return strings.HasPrefix(report.Kept("clone"), "task-") && l.called("ModifyListView") == 1 && l.called("WaitForUpdatesEx") >= 1
			})
			c.lose(l, f)
			letGo()
			if c.forget {
				l.eventually("the clone is done", func() bool { vm := l.vm("vm-01"); return vm != nil && l.running() == 0 })
				l.registry.Remove(l.service.Context, types.ManagedObjectReference{Type: "Task", Value: report.Kept("clone")})
				f.revive()
			}
			require.NoError(t, <-done)
			l.whole(t, "vm-01", "res-vm-01/run-1/1", loaded)
		})
	}
}

func TestACloneCallWithoutAnAnswerIsLookedForAndNotRepeated(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.clonesTake(50 * time.Millisecond)
	f := l.front()
	f.cut = func(_ int, method string) cut {
		if method == "CloneVM_Task" {
			return dropAfter
		}
		return pass
	}
	m := f.module()
	report := newReporter()
	_, err := m.Load(within(t, 10*time.Second), request("vm-01"), report)
	require.Error(t, err)
	require.Empty(t, reservation.VerdictOf(err), "a cut connection judges no image: %v", err)
	loaded, err := m.Load(within(t, 10*time.Second), request("vm-01"), report)
	require.NoError(t, err)
	l.whole(t, "vm-01", "res-vm-01/run-1/1", loaded)
}
