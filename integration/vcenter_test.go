package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"berth/internal/simsite"
	"berth/reservation"
	"berth/workflows"
)

// limited changes an image's limits.
func limited(change func(*reservation.Limits)) func(*reservation.Image) {
	return func(i *reservation.Image) { change(&i.Limits) }
}

// after is a number of seconds for the site's script, limit one for an image's limits.
func after(seconds float64) simsite.Duration { return simsite.Duration(seconds * float64(time.Second)) }

func limit(seconds float64) reservation.Duration {
	return reservation.Duration(seconds * float64(time.Second))
}

func testVCenterFaults(t *testing.T, w *world) {
	fails := func(fault string) simsite.Behaviour { return simsite.Behaviour{CloneFails: fault} }
	for name, c := range map[string]struct {
		loads   []simsite.Behaviour
		faults  []simsite.Fault
		vcenter simsite.VCenter
		image   func(*reservation.Image)

		phases  string // and their verdicts, up to ready or to the end
		says    string // in the reason of the first phase
		lost    int    // tries of the last load that ended in a fault
		attempt int
		failed  bool
		counts  simsite.Counts
	}{
		"clones that fail for want of resources or by a lock cost attempts": {
			loads:  []simsite.Behaviour{fails("InsufficientResourcesFault"), fails("FileLocked"), {}},
			phases: "load reload, load reload, load done, post-load done", says: "not enough CPU, memory", attempt: 3, counts: simsite.Counts{CloneCalls: 3, Clones: 1, PowerOns: 1},
		},
		"clones that fail because something else is going on are tried again in the same attempt": {
			loads:  []simsite.Behaviour{fails("TaskInProgress"), fails("ConcurrentAccess"), {}},
			phases: "load done, post-load done", lost: 2, attempt: 1, counts: simsite.Counts{CloneCalls: 3, Clones: 1, PowerOns: 1},
		},
		"a full datastore fails the reservation": {
			loads: []simsite.Behaviour{fails("NoDiskSpace")}, failed: true,
			phases: "load fail, clean done", says: "no space is left", attempt: 1, counts: simsite.Counts{CloneCalls: 1},
		},
		"attempts are used up": {
			loads: []simsite.Behaviour{fails("InsufficientResourcesFault")}, image: func(i *reservation.Image) { i.Attempts = 2 }, failed: true,
			phases: "load reload, load reload, clean done", says: "not enough CPU, memory", attempt: 2, counts: simsite.Counts{CloneCalls: 2},
		},
		"a clone that never ends is cancelled at the limit, and the next one works": {
			loads: []simsite.Behaviour{{CloneHangs: true}, {}}, image: limited(func(l *reservation.Limits) { l.Load = limit(12) }),
			phases: "load reload, load done, post-load done", says: "not done within its limit of 12s: at stage \"clone\"", attempt: 2,
			counts: simsite.Counts{CloneCalls: 2, Clones: 1, PowerOns: 1},
		},
		"a clone whose power-on fails is removed, and the next one works": {
			loads:  []simsite.Behaviour{{PowerOnFails: "InsufficientResourcesFault"}, {}},
			phases: "load reload, load done, post-load done", says: "not enough CPU, memory", attempt: 2,
			counts: simsite.Counts{CloneCalls: 2, Clones: 2, PowerOns: 1, Destroys: 1},
		},
		"a clone whose power-on fails for a moment is powered on": {
			faults: []simsite.Fault{{Method: "PowerOnVM_Task", Type: "TaskInProgress", Times: 1}},
			phases: "load done, post-load done", lost: 1, attempt: 1, counts: simsite.Counts{CloneCalls: 1, Clones: 1, PowerOns: 1},
		},
		"calls that fail by a fault of the vCenter's own are tried again in the same attempt": {
			faults: []simsite.Fault{{Method: "FindChild", Type: "SystemError", Times: 2}, {Method: "CreateListView", Type: "SystemError", Times: 1}},
			phases: "load done, post-load done", lost: 2, attempt: 1, counts: simsite.Counts{CloneCalls: 1, Clones: 1, PowerOns: 1},
		},
		"a vCenter may be slow": {
			vcenter: simsite.VCenter{APIDelay: after(0.1)}, loads: []simsite.Behaviour{{CloneTakes: after(2)}},
			phases: "load done, post-load done", attempt: 1, counts: simsite.Counts{CloneCalls: 1, Clones: 1, PowerOns: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			computer := "fault-" + slug(name)
			c.vcenter.Faults = c.faults
			l := w.newLab(t, computer, labOptions{vcenter: c.vcenter, computers: one(computer, c.loads...), image: c.image})
			l.worker(t)
			b := l.reserve(t, computer)
			var status reservation.Status
			if c.failed {
				var err error
				status, err = b.result(t)
				var failed *temporal.ApplicationError
				require.ErrorAs(t, err, &failed)
				require.Equal(t, workflows.TypeFailed, failed.Type())
				require.Equal(t, reservation.OutcomeFailed, status.Outcome)
				require.Contains(t, status.Reason, c.says)
				l.gone(t, computer)
			} else {
				status = b.ready(t, patience)
				l.quiet(t)
			}
			require.Equal(t, c.phases, phases(status))
			require.Contains(t, status.Phases[0].Reason, c.says)
			require.Equal(t, c.attempt, status.Attempt.Number)
			for _, record := range status.Phases {
				if record.Phase == reservation.PhaseLoad && record.Verdict == reservation.VerdictDone {
					require.Equal(t, c.lost, record.Lost)
				}
			}
			counts := ofVM(l.site.counts(t, computer))
			require.Equal(t, c.counts, counts)
			if !c.failed {
				b.release(t)
			}
		})
	}
}

// slug makes a name that a computer may have of a test's.
func slug(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r < 'a' || r > 'z' })
	text := strings.Join(words, "-")
	if len(text) > 40 {
		text = text[:40]
	}
	return strings.Trim(text, "-")
}

func testVCenterUnreachable(t *testing.T, w *world) {
	retried := func(m moment) bool { return m.Pending != nil && m.Pending.GetAttempt() > 1 }
	want := simsite.Counts{CloneCalls: 1, Clones: 1, PowerOns: 1}
	check := func(t *testing.T, b *booking, phase reservation.Phase, lost bool) {
		status := b.ready(t, patience)
		require.Equal(t, "load done, post-load done", phases(status))
		require.Equal(t, 1, status.Attempt.Number)
		for _, record := range status.Phases {
			require.Equal(t, lost && record.Phase == phase, record.Lost > 0, "%s: %d tries lost", record.Phase, record.Lost)
		}
		counts := ofVM(b.lab.site.counts(t, b.computer))
		require.Equal(t, want, counts)
		b.release(t)
	}
	t.Run("before the clone", func(t *testing.T) {
		t.Parallel()
		l := w.newLab(t, "cut-1", labOptions{computers: one("cut-1")})
		l.worker(t)
		l.vcenter.cut()
		b := l.reserve(t, "cut-1")
		b.until(t, patience, retried)
		l.vcenter.restore(t)
		check(t, b, reservation.PhaseLoad, true)
	})
	t.Run("while it clones", func(t *testing.T) {
		t.Parallel()
		l := w.newLab(t, "cut-2", labOptions{computers: one("cut-2", simsite.Behaviour{CloneTakes: after(3)})})
		l.worker(t)
		b := l.reserve(t, "cut-2")
		b.until(t, patience, func(m moment) bool { return strings.HasPrefix(m.Progress.Kept["clone"], "task-") })
		l.vcenter.cut()
		b.until(t, patience, func(m moment) bool { return strings.Contains(m.Stage().Detail, "waiting for the vCenter") })
		l.vcenter.restore(t)
		check(t, b, reservation.PhaseLoad, false)
	})
	t.Run("when the guest has answered", func(t *testing.T) {
		t.Parallel()
		o := labOptions{computers: one("cut-3"), doors: map[string]holdsFrom{"cut-3": {banner: true}}}
		l := w.newLab(t, "cut-3", o)
		l.worker(t)
		b := l.reserve(t, "cut-3")
		b.atStage(t, reservation.PhasePostLoad, "ssh banner")
		l.vcenter.cut()
		l.doors["cut-3"].open(t)
		b.until(t, patience, retried)
		l.vcenter.restore(t)
		check(t, b, reservation.PhasePostLoad, true)
	})
}

func testSessionsExpire(t *testing.T, w *world) {
	const computer = "expire-1"
	o := labOptions{computers: one(computer, simsite.Behaviour{CloneTakes: after(3)}), doors: map[string]holdsFrom{computer: {banner: true}}}
	l := w.newLab(t, computer, o)
	l.worker(t)
	before := l.site.status(t).Calls["Login"]
	b := l.reserve(t, computer)
	b.until(t, patience, func(m moment) bool { return strings.HasPrefix(m.Progress.Kept["clone"], "task-") })
	require.Equal(t, 1, l.site.expireSessions(t), "the worker has one session")
	b.atStage(t, reservation.PhasePostLoad, "ssh banner")
	require.Equal(t, 1, l.site.status(t).Calls["Login"]-before, "one login serves the load and the wait for the vCenter's tasks")
	require.Equal(t, 1, l.site.expireSessions(t))
	l.doors[computer].open(t)
	status := b.ready(t, patience)
	require.Equal(t, "load done, post-load done", phases(status))
	require.Equal(t, []int{1, 0, 0}, []int{status.Attempt.Number, status.Phases[0].Lost, status.Phases[1].Lost})
	counts := ofVM(l.site.counts(t, computer))
	require.Equal(t, []int{1, 1}, []int{counts.CloneCalls, counts.PowerOns})
	b.release(t)
}

// The catalog's limit of running clones holds over all workers, each of which would keep to it by itself.
func testCloneLimit(t *testing.T, w *world) {
	const limit, loads = 2, 8
	var computers []simsite.Computer
	for n := range loads {
		computers = append(computers, one(fmt.Sprintf("crowd-%d", n), simsite.Behaviour{CloneTakes: after(2)})...)
	}
	l := w.newLab(t, "crowd", labOptions{computers: computers, clones: limit})
	l.worker(t)
	l.worker(t)
	var all []*booking
	for _, computer := range computers {
		all = append(all, l.reserve(t, computer.Name))
	}
	workers := map[string]bool{}
	for _, b := range all {
		status := b.ready(t, patience)
		require.Equal(t, "load done, post-load done", phases(status))
		workers[status.Phases[0].Worker] = true
	}
	for _, b := range all {
		b.release(t)
	}
	require.Len(t, workers, 2, "both workers have loaded")
	require.Equal(t, limit, l.site.status(t).MostClones)
}
