package vmware_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"berth/provisioners"
	"berth/provisioners/vmware"
	"berth/reservation"
)

type cleaning func(*vmware.Module, context.Context, provisioners.Request, reservation.Reporter) error

func cleanings() map[string]cleaning {
	return map[string]cleaning{"Abort": (*vmware.Module).Abort, "Unload": (*vmware.Module).Unload}
}

func TestCleaningRemovesTheReservationsOwnVMOfAnyAttempt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	for name, clean := range cleanings() {
		for state, off := range map[string]bool{"on": false, "off": true} {
			t.Run(name+" "+state, func(t *testing.T) {
				l.clear("pc-1")
				ref := l.stray("pc-1", vmware.KeyMark, "res-pc-1/run-1/2")
				if off {
					powerOff(l, ref)
				}
				report := newReporter()
				require.NoError(t, clean(m, within(t, 5*time.Second), request("pc-1", attempt(3)), report))
				require.Nil(t, l.vm("pc-1"))
				require.NoError(t, clean(m, within(t, 5*time.Second), request("pc-1"), report), "again, with nothing there")
			})
		}
	}
}

func TestCleaningNeverTouchesWhatIsNotTheReservationsOwn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	for name, clean := range cleanings() {
		for whose, config := range map[string][]string{
			"another reservation's":      {vmware.KeyMark, "other/run-1/1"},
			"another run's of this name": {vmware.KeyMark, "res-pc-1/run-2/1"},
			"unmarked":                   nil,
			"unreadably marked":          {vmware.KeyMark, "///"},
		} {
			t.Run(name+" "+whose, func(t *testing.T) {
				l.clear("pc-1")
				ref := l.stray("pc-1", config...)
				require.NoError(t, clean(m, within(t, 5*time.Second), request("pc-1"), newReporter()))
				require.Equal(t, ref, l.vm("pc-1").Self)
				require.Equal(t, types.VirtualMachinePowerStatePoweredOn, l.vm("pc-1").Runtime.PowerState)
			})
		}
		t.Run(name+" the template", func(t *testing.T) {
			require.NoError(t, clean(m, within(t, 5*time.Second), request(templateName), newReporter()))
			require.NotNil(t, l.vm(templateName))
		})
	}
}

func TestCleaningStopsWhenItIsNotConfirmed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	stale := errors.New("another worker has taken over")
	for name, clean := range cleanings() {
		t.Run(name, func(t *testing.T) {
			l.clear("pc-1")
			l.stray("pc-1", vmware.KeyMark, "res-pc-1/run-1/1")
			report := newReporter()
			report.confirm = func() error { return stale }
			require.ErrorIs(t, clean(m, within(t, 5*time.Second), request("pc-1"), report), stale)
			require.Equal(t, types.VirtualMachinePowerStatePoweredOn, l.vm("pc-1").Runtime.PowerState)
		})
	}
}

func TestAbortOfAReservationWhoseFolderOrTemplateIsMissingHasNothingToDo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	for name, change := range map[string]func(*provisioners.Request){
		"folder": func(r *provisioners.Request) {
			r.Reservation.Computer.Placement = map[string]string{"folder": "nowhere"}
		},
		"template": func(r *provisioners.Request) { r.Reservation.Image.Sources[vmware.Type]["template"] = "nix" },
		"source":   func(r *provisioners.Request) { r.Reservation.Image.Sources[vmware.Type] = nil },
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, m.Abort(within(t, 5*time.Second), request("pc-1", change), newReporter()))
		})
	}
}

func TestAbortCancelsACloneThatThisProcessBegan(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	defer letGo()
	m := l.module()
	ctx, handOver := context.WithCancelCause(within(t, 10*time.Second))
	report := newReporter()
	done := make(chan error, 1)
	go func() {
		_, err := m.Load(ctx, request("pc-1"), report)
		done <- err
	}()
	l.eventually("the clone runs", func() bool { return l.running() == 1 && report.Kept("clone") != "asked" })
	handOver(provisioners.HandOver{}) // leaves the clone running
	require.Error(t, <-done)
	require.NoError(t, m.Abort(within(t, 5*time.Second), request("pc-1"), newReporter()))
	require.Equal(t, 1, l.called("CancelTask"))
	l.eventually("the clone has ended", func() bool { return l.running() == 0 })
	require.Nil(t, l.vm("pc-1"))
}

func TestAbortWaitsForALostWorkersCloneAndRemovesWhatItMakes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	defer letGo()
	_, _, killed := l.doomed(request("pc-1"), newReporter(), func(f *front, _ *reporter) {
		f.cut = func(_ int, method string) cut {
			if method == "CloneVM_Task" {
				return dieAfter
			}
			return pass
		}
	})
	require.True(t, killed)
	l.eventually("the clone runs on", func() bool { return l.running() == 1 })
	report := newReporter()
	done := make(chan error, 1)
	m := l.module()
	go func() { done <- m.Abort(within(t, 10*time.Second), request("pc-1"), report) }()
	l.eventually("abort has found it", func() bool { return report.saw("wait for a clone") })
	letGo()
	require.NoError(t, <-done)
	require.Equal(t, 1, l.cloned("pc-1"))
	require.Nil(t, l.vm("pc-1"))
	require.Zero(t, l.called("CancelTask"), "it might have been somebody else's")
}

func TestAbortDoesNotWaitForClonesOfOthersInThisProcess(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	defer letGo()
	m := l.module()
	done := make(chan error, 1)
	go func() {
		_, err := m.Load(within(t, 10*time.Second), request("pc-1"), newReporter())
		done <- err
	}()
	l.eventually("the other's clone runs", func() bool { return l.running() == 1 })
	require.NoError(t, m.Abort(within(t, 5*time.Second), request("pc-2"), newReporter()))
	letGo()
	require.NoError(t, <-done)
	require.NotNil(t, l.vm("pc-1"))
}

func TestAPowerReset(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	r := request("pc-1")
	t.Run("resets a VM that is on", func(t *testing.T) {
		l.clear("pc-1")
		l.stray("pc-1", vmware.KeyMark, r.Mark.String())
		l.reset()
		require.NoError(t, m.PowerReset(within(t, 5*time.Second), r))
		require.Equal(t, 1, l.called("ResetVM_Task"))
		require.Equal(t, types.VirtualMachinePowerStatePoweredOn, l.vm("pc-1").Runtime.PowerState)
	})
	t.Run("powers on a VM that is off", func(t *testing.T) {
		l.clear("pc-1")
		ref := l.stray("pc-1", vmware.KeyMark, r.Mark.String())
		powerOff(l, ref)
		l.reset()
		require.NoError(t, m.PowerReset(within(t, 5*time.Second), r))
		require.Zero(t, l.called("ResetVM_Task"))
		require.Equal(t, types.VirtualMachinePowerStatePoweredOn, l.vm("pc-1").Runtime.PowerState)
	})
	for whose, config := range map[string][]string{
		"another reservation's": {vmware.KeyMark, "other/run-1/1"},
		"a later attempt's":     {vmware.KeyMark, "res-pc-1/run-1/2"},
		"nobody's":              nil,
	} {
		t.Run("refuses "+whose+" VM", func(t *testing.T) {
			l.clear("pc-1")
			l.stray("pc-1", config...)
			l.reset()
			require.ErrorAs(t, m.PowerReset(within(t, 5*time.Second), r), new(*vmware.ForeignError))
			require.Zero(t, l.called("ResetVM_Task")+l.called("PowerOnVM_Task"))
		})
	}
	t.Run("of a VM that is gone is a reload", func(t *testing.T) {
		l.clear("pc-1")
		require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(m.PowerReset(within(t, 5*time.Second), r)))
	})
}

func TestTheHostKeyIsClearedOnceTheGuestHasIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	loaded, err := m.Load(within(t, 10*time.Second), request("pc-1"), newReporter())
	require.NoError(t, err)
	require.NotEmpty(t, extra(l.vm("pc-1"), vmware.KeyHostKey))
	for range 2 {
		require.NoError(t, m.AfterResponse(within(t, 5*time.Second), request("pc-1"), newReporter()))
		vm := l.vm("pc-1")
		require.Empty(t, extra(vm, vmware.KeyHostKey))
		require.Equal(t, loaded.HostKey, extra(vm, vmware.KeyHostKeyPublic), "the public half stays for a successor")
		require.Equal(t, "res-pc-1/run-1/1", extra(vm, vmware.KeyMark))
	}
	require.Equal(t, 1, l.called("ReconfigVM_Task"))
	again, err := m.Load(within(t, 10*time.Second), request("pc-1"), newReporter())
	require.NoError(t, err)
	require.Equal(t, loaded, again)
}

func TestTheHostKeyOfAnothersVMIsLeftAlone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.stray("pc-1", vmware.KeyMark, "other/run-1/1", vmware.KeyHostKey, "secret")
	err := l.module().AfterResponse(within(t, 5*time.Second), request("pc-1"), newReporter())
	require.ErrorAs(t, err, new(*vmware.ForeignError))
	require.Equal(t, "secret", extra(l.vm("pc-1"), vmware.KeyHostKey))
}

func TestAnInaccessibleVMUnderTheComputersNameIsTakenOutOfTheInventory(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ref := l.stray("pc-1")
	vm := l.registry.Get(ref).(*simulator.VirtualMachine)
	powerOff(l, ref)
	l.registry.AtomicUpdate(l.service.Context, vm, []types.PropertyChange{
		{Name: "runtime.connectionState", Val: types.VirtualMachineConnectionStateInaccessible},
	})
	_, err := l.module().Load(within(t, 10*time.Second), request("pc-1"), newReporter())
	require.NoError(t, err)
	require.Equal(t, 1, l.called("UnregisterVM"))
	require.Nil(t, l.registry.Get(ref))
}
