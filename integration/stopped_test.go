package integration

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"berth/internal/simsite"
	"berth/reservation"
)

func cloning(m moment) bool { return strings.HasPrefix(m.Progress.Kept["clone"], "task-") }

// configuring holds a guest in the middle of its configuration: nonce, boot id, set-up and once more boot id come before
// that.
func configuring() *holdsFrom { return &holdsFrom{begun: 7} }

func testCancelled(t *testing.T, w *world) {
	for name, c := range map[string]struct {
		behaviour simsite.Behaviour
		door      *holdsFrom
		phase     reservation.Phase
		at        func(moment) bool
		want      string
	}{
		"while it clones": {
			behaviour: simsite.Behaviour{CloneTakes: after(600)}, phase: reservation.PhaseLoad, at: cloning, want: "load, clean done",
		},
		"while the guest is waited for": {
			behaviour: simsite.Behaviour{Silent: true}, phase: reservation.PhasePostLoad, at: func(m moment) bool { return m.Stage().Name == "tcp" },
			want: "load done, post-load, clean done",
		},
		"while the guest is configured": {
			door: configuring(), phase: reservation.PhasePostLoad, at: func(m moment) bool { return m.Stage().Name == stageConfigure },
			want: "load done, post-load, clean done",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			computer := "cancel-" + slug(name)
			l := w.newLab(t, computer, withDoor(labOptions{computers: one(computer, c.behaviour)}, computer, c.door))
			l.worker(t)
			b := l.reserve(t, computer)
			b.until(t, patience, func(m moment) bool { return m.Running() && m.Phase == c.phase && c.at(m) })
			_, stderr, code := l.starter(t, "cancel", computer, "--wait")
			require.Zero(t, code, stderr)
			status, err := b.result(t)
			require.ErrorAs(t, err, new(*temporal.CanceledError))
			require.Equal(t, reservation.OutcomeCancelled, status.Outcome)
			require.Equal(t, "cancelled", status.Reason)
			require.Equal(t, c.want, phases(status))
			require.Equal(t, 1, status.Attempt.Number)
			l.gone(t, computer)
			counts := ofVM(l.site.counts(t, computer))
			require.Equal(t, 1, counts.CloneCalls)
			require.Equal(t, counts.Clones, counts.Destroys)
			m := b.look(t)
			require.Equal(t, []any{reservation.PhaseEnded, reservation.OutcomeCancelled}, []any{m.Phase, m.Outcome})
			l.reserveAs(t, "after-"+computer, computer) // nobody holds it any more
		})
	}
}

// withDoor puts a door before a computer's guest; commands are counted by the site.
func withDoor(o labOptions, computer string, stop *holdsFrom) labOptions {
	if stop != nil {
		o.doors = map[string]holdsFrom{computer: *stop}
	}
	return o
}

func testHandOver(t *testing.T, w *world) {
	for name, c := range map[string]struct {
		behaviour simsite.Behaviour
		door      *holdsFrom
		phase     reservation.Phase
		at        func(moment) bool
	}{
		"while it clones":               {behaviour: simsite.Behaviour{CloneTakes: after(30)}, phase: reservation.PhaseLoad, at: cloning},
		"while the guest is configured": {door: configuring(), phase: reservation.PhasePostLoad, at: func(m moment) bool { return m.Stage().Name == stageConfigure }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			computer := "stop-" + slug(name)
			l := w.newLab(t, computer, withDoor(labOptions{computers: one(computer, c.behaviour)}, computer, c.door))
			// Both serve before anything is loaded: a worker's start may take longer than a clone. Which of them has the phase
			// is seen when there is one to stop.
			first, second := l.worker(t), l.worker(t)
			b := l.reserve(t, computer)
			m := b.until(t, patience, func(m moment) bool { return m.Running() && m.Phase == c.phase && c.at(m) })
			if m.Pending.GetLastWorkerIdentity() == second.identity {
				first, second = second, first
			}
			stopped := time.Now()
			first.signal(t, syscall.SIGTERM)
			m = b.until(t, patience, func(m moment) bool { return m.Running() && m.Pending.GetLastWorkerIdentity() == second.identity })
			const heartbeatTimeout = 30 * time.Second
			require.Less(t, m.Pending.GetLastStartedTime().AsTime().Sub(stopped), heartbeatTimeout/2, "nobody had to wait for a missed heartbeat")
			select {
			case <-first.Done():
				require.NoError(t, first.Err(), "a worker that was told to stop ends well")
			case <-time.After(patience):
				require.FailNow(t, "the worker does not stop")
			}
			if c.door != nil {
				l.doors[computer].open(t)
			}
			status := b.ready(t, patience)
			require.Equal(t, "load done, post-load done", phases(status))
			require.Equal(t, 1, status.Attempt.Number)
			for _, record := range status.Phases {
				if record.Phase == c.phase {
					require.Equal(t, 1, record.Lost)
					require.Equal(t, second.identity, record.Worker)
				}
			}
			counts := ofVM(l.site.counts(t, computer))
			require.Equal(t, []int{1, 1, 1, 0}, []int{counts.CloneCalls, counts.Clones, counts.PowerOns, counts.Destroys})
			b.release(t)
		})
	}
}

// A worker that was stopped by SIGSTOP does not know that others have gone on without it.
func testPaused(t *testing.T, w *world) {
	// unchanged sees that a worker which wakes up touches nothing.
	unchanged := func(t *testing.T, l *lab, computer string, paused *workerProcess, wake func()) {
		t.Helper()
		guest := l.site.mustGuest(t, computer)
		counts := l.site.counts(t, computer)
		wake()
		paused.says(t, `"phase":"load"`, `"message":"phase ended"`)
		// It has been handed more work while it slept, and goes on with that, too. Its stop waits for all of it.
		paused.signal(t, syscall.SIGTERM)
		select {
		case <-paused.Done():
		case <-time.After(patience):
			require.FailNow(t, "the worker does not stop")
		}
		now := l.site.mustGuest(t, computer)
		require.Equal(t, guest, now)
		require.Equal(t, counts, l.site.counts(t, computer))
		l.quiet(t)
	}
	t.Run("in its clone, which another worker has brought to its end", func(t *testing.T) {
		t.Parallel()
		const computer = "paused-1"
		l := w.newLab(t, computer, labOptions{computers: one(computer, simsite.Behaviour{CloneTakes: after(3)})})
		first := l.worker(t)
		b := l.reserve(t, computer)
		b.until(t, patience, cloning)
		first.signal(t, syscall.SIGSTOP)
		second := l.worker(t)
		status := b.ready(t, takeover)
		require.Equal(t, "load done, post-load done", phases(status))
		require.Equal(t, second.identity, status.Phases[0].Worker)
		unchanged(t, l, computer, first, func() { first.signal(t, syscall.SIGCONT) })
		require.Equal(t, status, b.status(t))
		counts := ofVM(l.site.counts(t, computer))
		require.Equal(t, []int{1, 1, 1, 0}, []int{counts.CloneCalls, counts.Clones, counts.PowerOns, counts.Destroys})
		b.release(t)
	})
	t.Run("right before its clone, and another worker has cloned", func(t *testing.T) {
		t.Parallel()
		const computer = "paused-2"
		l := w.newLab(t, computer, labOptions{computers: one(computer)})
		first := l.worker(t)
		looked := l.vcenter.add(lookedInVain())
		b := l.reserve(t, computer)
		looked.await(t)
		first.signal(t, syscall.SIGSTOP)
		l.worker(t)
		status := b.ready(t, takeover)
		require.Equal(t, 1, status.Attempt.Number)
		unchanged(t, l, computer, first, func() {
			first.signal(t, syscall.SIGCONT)
			looked.open()
		})
		b.release(t)
	})
	t.Run("right before its clone, and the computer is another reservation's", func(t *testing.T) {
		t.Parallel()
		const computer = "paused-3"
		l := w.newLab(t, computer, labOptions{computers: one(computer)})
		first := l.worker(t)
		looked := l.vcenter.add(lookedInVain())
		lost := l.reserveAs(t, "lost-"+computer, computer)
		looked.await(t)
		first.signal(t, syscall.SIGSTOP)
		require.NoError(t, w.client.TerminateWorkflow(t.Context(), lost.run.GetID(), lost.run.GetRunID(), "a test"))
		l.worker(t)
		b := l.reserve(t, computer)
		b.ready(t, takeover)
		unchanged(t, l, computer, first, func() {
			first.signal(t, syscall.SIGCONT)
			looked.open()
		})
		b.release(t)
	})
}

// An empty place bears no mark that could keep a late worker off.
func testPausedAndOver(t *testing.T, w *world) {
	const computer = "paused-4"
	l := w.newLab(t, computer, labOptions{computers: one(computer)})
	worker := l.worker(t)
	looked := l.vcenter.add(lookedInVain())
	b := l.reserve(t, computer)
	looked.await(t)
	worker.signal(t, syscall.SIGSTOP)
	require.NoError(t, w.client.TerminateWorkflow(t.Context(), b.run.GetID(), b.run.GetRunID(), "a test"))
	looked.open()
	worker.signal(t, syscall.SIGCONT)
	worker.says(t, `"phase":"load"`, `"message":"phase ended"`)
	require.Zero(t, l.site.counts(t, computer).CloneCalls, "nobody would ever remove what it had made")
	l.gone(t, computer)
}

// lookedInVain holds the answer that there is no VM under the computer's name.
func lookedInVain() *gate { return at("FindChild", answer, 1) }
