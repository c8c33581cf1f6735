package loadlog

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/reservation"
)

func TestSpansAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 8 * time.Millisecond: "8ms", 250 * time.Millisecond: "0.2s", 999 * time.Millisecond: "1s",
		9949 * time.Millisecond: "9.9s", 9960 * time.Millisecond: "10s", 42 * time.Second: "42s", 59600 * time.Millisecond: "1m",
		412 * time.Second: "6m52s", 31 * time.Minute: "31m", 65 * time.Minute: "1h05m", 4*time.Hour - 13*time.Second: "4h", 24*time.Hour - time.Second: "1d", 24 * time.Hour: "1d", 52 * time.Hour: "2d4h",
	} {
		require.Equal(t, want, Span(d), d.String())
	}
}

func TestWhatAGuestSaysCannotMoveTheCursor(t *testing.T) {
	require.Equal(t, "SSH-2.0 ?[2J?]0;gotcha? two lines", Clean("SSH-2.0\t\x1b[2J\x1b]0;gotcha\x07\r\ntwo lines"))
	require.Equal(t, "a?b", Clean("a\u202eb"), "text that runs backwards")

	view := View{Status: reservation.Status{Reservation: "r", Phase: reservation.PhaseEnded, Outcome: reservation.OutcomeFailed, Reason: "\x1b[31mbad\x1b[0m"}}
	for _, cell := range view.Line(Style{Now: time.Now()}) {
		require.NotContains(t, cell.Text, "\x1b")
	}
}

func TestTablesAlignAndCut(t *testing.T) {
	table := Table{Header: []string{"NAME", "STATE", "DOING"}}
	table.Row(Cell{"alice", Strong}, Cell{"ready", Good}, Cell{"until 21:04:11", Plain})
	table.Row(Cell{"ö", Strong}, Cell{"", Good}, Cell{"clone", Plain})
	require.Equal(t, []string{
		"NAME   STATE  DOING",
		"alice  ready  until 21:04:11",
		"ö             clone",
	}, table.Lines(Style{}))

	table.Width = 18
	require.Equal(t, []string{
		"NAME   STATE  DOI…",
		"alice  ready  unt…",
		"ö             clo…",
	}, table.Lines(Style{}))

	table.Width = 0
	require.Equal(t, "\x1b[1malice\x1b[0m  \x1b[32mready\x1b[0m  until 21:04:11", table.Lines(Style{Colour: true})[1])
}

func TestTimesCarryTheirDateOnlyOnAnotherDay(t *testing.T) {
	zone := time.FixedZone("CET", 3600)
	style := Style{Now: time.Date(2026, 11, 23, 0, 30, 0, 0, zone)}
	require.Equal(t, "00:10:00 (20m ago)", style.ClockAndSpan(time.Date(2026, 11, 22, 23, 10, 0, 0, time.UTC)))
	require.Equal(t, "2026-11-22 23:10:00 (1h20m ago)", style.ClockAndSpan(time.Date(2026, 11, 22, 22, 10, 0, 0, time.UTC)))
	require.Equal(t, "02:30:00 (in 2h)", style.ClockAndSpan(time.Date(2026, 11, 23, 1, 30, 0, 0, time.UTC)))
	require.Empty(t, style.Clock(time.Time{}))
}

func TestOnlyWhatNobodyWantedIsBad(t *testing.T) {
	done := reservation.PhaseRecord{Phase: reservation.PhaseUnload, Ended: time.Now(), Verdict: reservation.VerdictDone}
	left := reservation.PhaseRecord{Phase: reservation.PhaseClean, Ended: time.Now(), Verdict: reservation.VerdictReload}
	for name, c := range map[string]struct {
		status reservation.Status
		bad    bool
	}{
		"loading":                     {reservation.Status{Phase: reservation.PhaseLoad}, false},
		"released":                    {reservation.Status{Phase: reservation.PhaseEnded, Outcome: reservation.OutcomeReleased, Phases: []reservation.PhaseRecord{done}}, false},
		"cancelled":                   {reservation.Status{Phase: reservation.PhaseEnded, Outcome: reservation.OutcomeCancelled}, false},
		"cancelled and left standing": {reservation.Status{Phase: reservation.PhaseEnded, Outcome: reservation.OutcomeCancelled, Phases: []reservation.PhaseRecord{left}}, true},
		"failed":                      {reservation.Status{Phase: reservation.PhaseEnded, Outcome: reservation.OutcomeFailed}, true},
		"without a worker":            {reservation.Status{Phase: reservation.PhaseEnded, Outcome: reservation.OutcomeNoWorker}, true},
		"terminated":                  {reservation.Status{Phase: reservation.PhaseEnded, Outcome: OutcomeTerminated}, true},
	} {
		require.Equal(t, c.bad, View{Status: c.status}.Bad(), name)
	}
}
