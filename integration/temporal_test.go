package integration

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/labtest"
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
	labtest.Eventually(t, patience, func() (bool, string) {
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

// A load outlives the server that runs it, and the worker that runs its workflow.
func testTemporalKilled(t *testing.T, shared *world) {
	const computer = "outlives-1"
	w := *shared
	options := devserver.Options{Database: filepath.Join(t.TempDir(), "temporal.db")}
	w.serve(t, options)
	l := w.newLab(t, computer, labOptions{
		computers: one(computer, simsite.Behaviour{CloneTakes: after(5)}), doors: map[string]holdsFrom{computer: {banner: true}},
	})
	l.worker(t)
	b := l.reserve(t, computer)
	b.until(t, patience, cloning)
	require.NoError(t, syscall.Kill(w.server.Pid(), syscall.SIGKILL))
	<-w.server.Done()
	labtest.Eventually(t, patience, func() (bool, string) {
		return l.site.counts(t, computer).PowerOns == 1, "the VM is not powered on"
	})
	w.server = devservertest.Start(t, devserver.Options{Database: options.Database, Port: w.server.Port()})
	b.atStage(t, reservation.PhasePostLoad, "ssh banner")

	w.workflows.Kill()
	l.doors[computer].open(t)
	labtest.Eventually(t, patience, func() (bool, string) {
		pending := b.look(t).Pending
		return pending == nil, "the guest is being configured"
	})
	w.startWorkflows(t)
	status := b.ready(t, takeover)
	require.Equal(t, "load done, post-load done", phases(status))
	require.Equal(t, 1, status.Attempt.Number)
	counts := ofVM(l.site.counts(t, computer))
	require.Equal(t, []int{1, 1, 1, 0}, []int{counts.CloneCalls, counts.Clones, counts.PowerOns, counts.Destroys})
	b.release(t)
}
