package integration

import (
	"testing"

	"github.com/stretchr/testify/require"

	"berth/internal/simsite"
	"berth/reservation"
)

// Temporal answers nobody for some seconds, as it does when it is restarted or overloaded: what runs, runs on.
func testTemporalSilent(t *testing.T, w *world) {
	const computer = "silent-1"
	l := w.newLab(t, computer, labOptions{computers: one(computer, simsite.Behaviour{CloneTakes: after(6)})})
	temporal := newTemporalProxy(t, w.server.Address)
	l.worker(t, workerOptions{temporal: temporal.address})
	b := l.reserve(t, computer)
	b.until(t, patience, cloning)
	silence := newGate(func(string, direction) bool { return true })
	silence.all = true
	temporal.add(silence)
	silence.await(t)
	eventually(t, patience, func() (bool, string) {
		return l.site.counts(t, computer).PowerOns == 1, "the VM is not powered on"
	})
	silence.open()
	status := b.ready(t, patience)
	require.Equal(t, "load done, post-load done", phases(status))
	require.Equal(t, []int{1, 0, 0}, []int{status.Attempt.Number, status.Phases[0].Lost, status.Phases[1].Lost})
	require.Equal(t, reservation.VerdictDone, status.Phases[0].Verdict)
	counts := l.site.counts(t, computer)
	require.Equal(t, []int{1, 1, 1}, []int{counts.CloneCalls, counts.Clones, counts.PowerOns})
	b.release(t)
}
