package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"berth/internal/simsite"
	"berth/reservation"
)

func testGuests(t *testing.T, w *world) {
	one := func(b simsite.Behaviour) simsite.Behaviours {
		return simsite.Behaviours{Loads: []simsite.Behaviour{b}}
	}
	firstOnly := func(b simsite.Behaviour) simsite.Behaviours {
		return simsite.Behaviours{Loads: []simsite.Behaviour{b, {}}}
	}
	short := limited(func(l *reservation.Limits) { l.Response, l.ResponseAgain = limit(8), limit(4) })
	for name, c := range map[string]struct {
		behaves simsite.Behaviours
		image   func(*reservation.Image)
		phases  string
		says    string // in the reason of the first PostLoad
		failed  bool
		counts  simsite.Counts // of the computer's VMs, beside a clone and a power-on for each load
		boots   int            // of the last clone
	}{
		"late": {behaves: one(simsite.Behaviour{Late: after(3)}), phases: "load done, post-load done", boots: 1},
		"silent once, and saved by a power reset": {
			behaves: one(simsite.Behaviour{AnswersAfterReset: true}), image: limited(func(l *reservation.Limits) { l.Response = limit(6) }),
			phases: "load done, post-load done", counts: simsite.Counts{Resets: 1}, boots: 2,
		},
		"reboots during its set-up": {
			behaves: one(simsite.Behaviour{Reboots: 1, RebootsAfter: after(2), SlowCloudInit: after(1)}),
			phases:  "load done, post-load done", counts: simsite.Counts{Reboots: 1}, boots: 2,
		},
		"another host key than was handed over fails at once": {
			behaves: one(simsite.Behaviour{WrongKey: true}), failed: true,
			phases: "load done, post-load fail, clean done", says: "does not show the host key that was handed to it",
		},
		"silent in the first load, even after a power reset": {
			behaves: firstOnly(simsite.Behaviour{Silent: true}), image: short,
			phases: "load done, post-load reload, load done, post-load done", says: "a power reset", counts: simsite.Counts{Resets: 1, Destroys: 1, PowerOffs: 1}, boots: 1,
		},
		"dies while it is configured": {
			behaves: firstOnly(simsite.Behaviour{DiesIn: "chpasswd"}),
			phases:  "load done, post-load reload, load done, post-load done", says: "the guest died", counts: simsite.Counts{Destroys: 1, PowerOffs: 1}, boots: 1,
		},
		"its own set-up goes wrong": {
			behaves: firstOnly(simsite.Behaviour{CloudInitError: "no route to the metadata"}),
			phases:  "load done, post-load reload, load done, post-load done", says: "no route to the metadata", counts: simsite.Counts{Destroys: 1, PowerOffs: 1}, boots: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			computer := "guest-" + slug(name)
			l := w.newLab(t, computer, labOptions{computers: []simsite.Computer{{Name: computer, Behaviours: c.behaves}}, image: c.image})
			l.worker(t)
			b := l.reserve(t, computer)
			var status reservation.Status
			if c.failed {
				var err error
				status, err = b.result(t)
				require.ErrorAs(t, err, new(*temporal.ApplicationError))
				require.Equal(t, reservation.OutcomeFailed, status.Outcome)
				l.gone(t, computer)
				c.counts.Destroys, c.counts.PowerOffs = 1, 1
			} else {
				status = b.ready(t, takeover)
			}
			require.Equal(t, c.phases, phases(status))
			require.Contains(t, status.Phases[1].Reason, c.says)
			loads := status.Attempt.Number
			c.counts.CloneCalls, c.counts.Clones, c.counts.PowerOns = loads, loads, loads
			counts := ofVM(l.site.counts(t, computer))
			require.Equal(t, c.counts, counts)
			if !c.failed {
				guest := l.site.mustGuest(t, computer)
				require.Equal(t, c.boots, guest.Boots)
				b.release(t)
			}
		})
	}
}
