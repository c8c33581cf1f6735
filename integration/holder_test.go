package integration

import (
	"testing"

	"github.com/stretchr/testify/require"

	"berth/internal/hold"
	"berth/reservation"
)

func testHolder(t *testing.T, w *world) {
	const computer = "held-1"
	l := w.newLab(t, computer, labOptions{computers: one(computer)})
	l.worker(t)
	first := l.reserveAs(t, "first", computer)
	status := first.ready(t, patience)

	_, err := hold.Start(t.Context(), w.client, l.reservation(t, "second", computer))
	var held *hold.HeldError
	require.ErrorAs(t, err, &held)
	require.Equal(t, []string{"first", "ana", computer}, []string{held.Holder, held.User, held.Computer})
	stdout, stderr, code := l.starter(t, "reserve", imageName, computer, "--name", "second")
	require.NotZero(t, code)
	require.Contains(t, stderr, "held by reservation first of ana")
	require.Empty(t, stdout)
	require.Equal(t, status, first.status(t), "the holder does not notice")

	// What ends its workflow ends its hold, and what it leaves on the computer is removed by the next load.
	require.NoError(t, w.client.TerminateWorkflow(t.Context(), first.run.GetID(), first.run.GetRunID(), "a test"))
	guest := l.site.mustGuest(t, computer)
	require.Equal(t, first.mark(1), guest.Mark)
	second := l.reserveAs(t, "second", computer)
	status = second.ready(t, patience)
	require.Equal(t, "remove earlier vm", status.Phases[0].Stages[1].Name)
	require.Equal(t, reservation.VerdictDone, status.Phases[0].Verdict)
	after := l.site.mustGuest(t, computer)
	require.NotEqual(t, guest.VM, after.VM)
	require.NotEqual(t, guest.HostKey, after.HostKey)
	counts := l.site.counts(t, computer)
	require.Equal(t, []int{2, 2, 1}, []int{counts.Clones, counts.PowerOns, counts.Destroys})
	second.release(t)
}
