package vmware_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/provisioners"
	"berth/provisioners/vmware"
)

// loading is a load that runs beside the test.
type loading struct {
	report *reporter
	done   chan error
	cancel context.CancelFunc
}

func begin(t *testing.T, m *vmware.Module, r provisioners.Request) *loading {
	ctx, cancel := context.WithCancel(within(t, 15*time.Second))
	b := &loading{report: newReporter(), done: make(chan error, 1), cancel: cancel}
	go func() {
		_, err := m.Load(ctx, r, b.report)
		b.done <- err
	}()
	return b
}

func TestClonesBeyondTheLimitWaitInLine(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	m := l.module(func(o *vmware.Options) { o.Sites[0].Clones, o.Sites[0].ClonesPerHost = 2, 8 })
	var loads []*loading
	for i := range 2 {
		loads = append(loads, begin(t, m, request(fmt.Sprintf("pc-%d", i))))
	}
	l.eventually("two run", func() bool { return l.running() == 2 })
	for i := 2; i < 6; i++ {
		b := begin(t, m, request(fmt.Sprintf("pc-%d", i)))
		place := []string{"1st", "2nd", "3rd", "4th"}[i-2]
		l.eventually("it is told its place", func() bool { return b.report.saw("clone: waiting for a clone slot, " + place + " in line") })
		loads = append(loads, b)
	}
	// The second in line gives up; those behind it move up.
	loads[3].cancel()
	require.ErrorIs(t, <-loads[3].done, context.Canceled)
	l.eventually("the last one moves up", func() bool { return loads[5].report.saw("waiting for a clone slot, 3rd in line") })
	require.Equal(t, 2, l.running())
	letGo()
	for i, b := range loads {
		if i == 3 {
			continue
		}
		require.NoError(t, <-b.done)
	}
	require.Equal(t, 2, l.most, "never more at once")
	require.Nil(t, l.vm("pc-3"))
}

func TestAHostsLimitHoldsUpOnlyItsOwnClones(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	m := l.module(func(o *vmware.Options) { o.Sites[0].ClonesPerHost = 1 })
	on := func(host string) func(*provisioners.Request) {
		return func(r *provisioners.Request) { r.Reservation.Computer.Placement = map[string]string{"host": host} }
	}
	first := begin(t, m, request("pc-1", on("DC0_C0_H0")))
	l.eventually("the first runs", func() bool { return l.running() == 1 })
	second := begin(t, m, request("pc-2", on("DC0_C0_H0")))
	l.eventually("the second waits", func() bool { return second.report.saw("waiting for a clone slot, 1st in line") })
	third := begin(t, m, request("pc-3", on("DC0_C0_H1")))
	l.eventually("the third goes past it, to another host", func() bool { return l.running() == 2 })
	require.Zero(t, l.cloned("pc-2"))
	letGo()
	for _, b := range []*loading{first, second, third} {
		require.NoError(t, <-b.done)
	}
}

func TestFirstComeIsFirstServed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	m := l.module(func(o *vmware.Options) { o.Sites[0].Clones = 1 })
	var loads []*loading
	order := make(chan int, 10)
	for i := range 5 {
		report := newReporter()
		report.on = func(_ int, call string) {
			if call == "confirm" {
				order <- i
			}
		}
		ctx := within(t, 15*time.Second)
		b := &loading{report: report, done: make(chan error, 1)}
		go func() {
			_, err := m.Load(ctx, request(fmt.Sprintf("pc-%d", i)), report)
			b.done <- err
		}()
		if i == 0 {
			l.eventually("the first runs", func() bool { return l.running() == 1 })
		} else {
			l.eventually("the next is in line", func() bool { return report.saw("waiting for a clone slot") })
		}
		loads = append(loads, b)
	}
	letGo()
	for i, b := range loads {
		require.NoError(t, <-b.done)
		require.Equal(t, i, <-order)
	}
	require.Equal(t, 1, l.most)
}

// A load that goes on after its worker was lost has a place at the gate already, while others of its new worker wait there.
func TestALoadInsideTheGateDoesNotWaitForThoseBeforeIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module(func(o *vmware.Options) { o.Sites[0].Clones = 1 })
	opened, waits := make(chan struct{}), make(chan struct{})
	outside := begin(t, m, request("pc-1", func(r *provisioners.Request) {
		r.Enter = func(ctx context.Context, _ string, _ int, waiting func(int)) (func(), error) {
			waiting(1)
			close(waits)
			select {
			case <-opened:
				return func() {}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}))
	<-waits
	inside := begin(t, m, request("pc-2", func(r *provisioners.Request) {
		r.Enter = func(context.Context, string, int, func(int)) (func(), error) { return func() { close(opened) }, nil }
	}))
	require.NoError(t, <-inside.done)
	require.NoError(t, <-outside.done)
}

func TestManyLoadsShareOneWait(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	letGo := l.holdClones()
	m := l.module(func(o *vmware.Options) { o.Sites[0].Clones, o.Sites[0].ClonesPerHost = 20, 20 })
	var loads []*loading
	for i := range 12 {
		loads = append(loads, begin(t, m, request(fmt.Sprintf("pc-%d", i))))
	}
	l.eventually("all run", func() bool { return l.running() == 12 })
	letGo()
	for _, b := range loads {
		require.NoError(t, <-b.done)
	}
	require.Equal(t, 1, l.called("CreateFilter"))
	require.Equal(t, 1, l.called("CreateListView"))
	require.LessOrEqual(t, l.called("ModifyListView"), 12)
}
