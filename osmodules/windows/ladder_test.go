package windows

import (
	"context"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/osmodules/climb/climbtest"
	"berth/osmodules/remote"
	"berth/reservation"
)

func TestAGuestThatIsUpIsTakenUpTheWholeLadder(t *testing.T) {
	g, report, waiting := newGuest(), climbtest.NewRecorder(), 0
	m := g.module(t, func(o *Options) { o.Waiting = func(delta int) { waiting += delta } })
	answer, err := m.WaitForResponse(t.Context(), g.request(), report)
	require.NoError(t, err)
	require.Equal(t, "SHA256:one", answer.HostKey)
	require.Equal(t, []string{"tcp", "handshake", "authentication", "nonce", "set-up", "settle"}, report.Stages())
	require.Equal(t, "SHA256:one", report.Kept(keepPin))
	require.Equal(t, g.boot(), report.Kept(keepBoot))
	require.NotEmpty(t, report.Kept(keepProgress))
	require.Equal(t, 1, g.dials, "one connection for the load")
	require.Len(t, g.ran("setup"), 2, "asked again after the settle time")
	require.Zero(t, waiting)
}

func TestASlowSysprepIsWaitedForThroughItsReboots(t *testing.T) {
	g, report := newGuest(), climbtest.NewRecorder()
	g.pin = "SHA256:image"
	g.setup = func(look int) answer {
		switch {
		case look < 4:
			return answer{"setupInProgress": "1", "imageState": "IMAGE_STATE_UNDEPLOYABLE", "processes": "windeploy", "generalization": "4"}
		case look == 4:
			g.reboot()
			g.pin = "SHA256:own" // Sysprep makes a new certificate
			return nil
		case look < 8:
			return answer{"oobeInProgress": "1", "imageState": "IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE", "processes": "msoobe"}
		case look == 8:
			g.reboot()
			return nil
		case look < 11: // complete by its state, and yet a process runs
			return answer{"processes": "oobeldr"}
		default:
			return nil
		}
	}
	request := g.request()
	request.Reservation.Image.Sysprep = true
	answer, err := g.module(t).WaitForResponse(t.Context(), request, report)
	require.NoError(t, err)
	require.Equal(t, "SHA256:own", answer.HostKey)
	require.Equal(t, "SHA256:own", report.Kept(keepPin))
	require.NotEmpty(t, report.Kept(keepRepinned))
	require.Equal(t, 3, g.boots)
	require.Equal(t, "2026-01-01T00:00:03.000Z", report.Kept(keepBoot))
	require.Contains(t, report.All(), "ImageState SPECIALIZE_RESEAL_TO_OOBE", "the stages say where set-up stands")
}

func TestProgressMovesTheDeadlineAndTheWholeLimitStands(t *testing.T) {
	g, report := newGuest(), climbtest.NewRecorder()
	request := g.request()
	request.Limits = limits(time.Hour, time.Minute, 10*time.Minute)
	request.Began = time.Now().Add(-10 * time.Second)
	l, err := g.module(t).newLadder(request, report)
	require.NoError(t, err)
	l.begin(time.Now())
	require.WithinDuration(t, request.Began.Add(time.Minute), l.deadline(), time.Second)
	l.progress("a change")
	require.WithinDuration(t, time.Now().Add(time.Minute), l.deadline(), 30*time.Second)
	require.True(t, l.deadline().After(request.Began.Add(time.Minute+5*time.Second)))
	l.overall = time.Now().Add(time.Second)
	require.Equal(t, l.overall, l.deadline(), "the whole limit stands")

	// A successor goes on from the last change, and gets a look of its own when that is long ago.
	successor, err := g.module(t).newLadder(request, report)
	require.NoError(t, err)
	successor.begin(time.Now())
	require.WithinDuration(t, l.changed.Add(time.Minute), successor.deadline(), time.Second)
	report.Keep(keepProgress, time.Now().Add(-30*time.Minute).Format(time.RFC3339Nano))
	successor, err = g.module(t).newLadder(request, report)
	require.NoError(t, err)
	successor.begin(time.Now())
	require.True(t, successor.deadline().After(time.Now().Add(-time.Second)))

	// After the reset the second wait counts, whatever was before.
	given := time.Now()
	report.Keep(keepReset, given.Format(time.RFC3339Nano))
	successor, err = g.module(t).newLadder(request, report)
	require.NoError(t, err)
	successor.begin(time.Now())
	require.WithinDuration(t, given.Add(10*time.Minute), successor.deadline(), time.Second)
}

func TestALogThatGrowsKeepsTheWaitAlive(t *testing.T) {
	t.Parallel()
	const silence = 3 * time.Second
	g, report := newGuest(), climbtest.NewRecorder()
	began := time.Now()
	g.setup = func(look int) answer {
		if time.Since(began) > 2*silence {
			return nil
		}
		return answer{"setupInProgress": "1", "imageState": "IMAGE_STATE_UNDEPLOYABLE", "processes": "windeploy", "logSize": 1000 + look}
	}
	request := g.request()
	request.Limits = limits(time.Minute, silence, time.Minute)
	_, err := g.module(t).WaitForResponse(t.Context(), request, report)
	require.NoError(t, err)
	require.Greater(t, time.Since(began), 2*silence)
}

func TestASetUpThatStandsStillIsStuckAndNotReset(t *testing.T) {
	g, report := newGuest(), climbtest.NewRecorder()
	g.setup = func(int) answer {
		return answer{"setupInProgress": "1", "imageState": "IMAGE_STATE_UNDEPLOYABLE", "processes": "windeploy"}
	}
	request := g.request()
	request.Limits = limits(time.Minute, 300*time.Millisecond, time.Minute)
	resets := 0
	request.PowerReset = func(context.Context) error { resets++; return nil }
	_, err := g.module(t).WaitForResponse(t.Context(), request, report)
	climbtest.Verdict(t, reservation.VerdictReload, err, "set-up is stuck: nothing has changed for", "(limit 300ms)", "ImageState UNDEPLOYABLE, SystemSetupInProgress 1")
	require.Zero(t, resets, "a reset would break a set-up for good")
}

func TestTheWholeLimitEndsASetUpThatGoesOnForEver(t *testing.T) {
	g, report := newGuest(), climbtest.NewRecorder()
	g.setup = func(look int) answer { return answer{"oobeInProgress": "1", "logSize": 1000 + look} }
	request := g.request()
	request.Limits = limits(300*time.Millisecond, time.Minute, time.Minute)
	_, err := g.module(t).WaitForResponse(t.Context(), request, report)
	climbtest.Verdict(t, reservation.VerdictReload, err, "set-up is not over after the whole limit of 300ms", "OOBEInProgress 1")
}

func TestASetUpThatFailedIsReloadLongBeforeItsLimit(t *testing.T) {
	for name, c := range map[string]struct {
		setup answer
		says  []string
	}{
		"it gives up": {answer{"setupInProgress": "1", "imageState": "IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE", "processes": "windeploy",
			"failure": "Windows could not finish configuring the system.", "errors": "[0x060431] ReArm / 0x80070002"},
			[]string{"could not finish configuring", "setuperr.log: [0x060431] ReArm / 0x80070002"}},
		"undeployable when it is over": {answer{"imageState": "IMAGE_STATE_UNDEPLOYABLE", "errors": "Failed to run unattend"},
			[]string{"UNDEPLOYABLE, and says that it is not in progress", "setuperr.log: Failed to run unattend"}},
		"undeployable, without an error": {answer{"imageState": "IMAGE_STATE_UNDEPLOYABLE"}, []string{"UNDEPLOYABLE, and says that it is not in progress"}},
		"undeployable and nobody works":  {answer{"setupInProgress": "1", "imageState": "IMAGE_STATE_UNDEPLOYABLE"}, []string{"none of its processes runs, and nothing has changed for"}},
		"no OOBE after specialize":       {answer{"imageState": "IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE"}, []string{"SPECIALIZE_RESEAL_TO_OOBE, none of its processes runs"}},
		"stuck in specialize with an error": {answer{"setupInProgress": "1", "imageState": "IMAGE_STATE_SPECIALIZE_RESEAL_TO_AUDIT", "processes": "setup", "errors": "pass 4 failed"},
			[]string{"SPECIALIZE_RESEAL_TO_AUDIT", "nothing has changed for", "pass 4 failed"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest()
			g.setup = func(int) answer { return c.setup }
			request := g.request()
			request.Limits = limits(time.Hour, time.Hour, time.Hour)
			_, err := g.module(t).WaitForResponse(t.Context(), request, climbtest.NewRecorder())
			climbtest.Verdict(t, reservation.VerdictReload, err, append(c.says, "set-up went wrong")...)
		})
	}
}

// What a working set-up looks like for a while, too, is no failure: each of these goes on, and is waited for.
func TestASetUpThatOnlyLooksFailedIsWaitedFor(t *testing.T) {
	specialize := answer{"setupInProgress": "1", "imageState": "IMAGE_STATE_UNDEPLOYABLE", "processes": "setup,windeploy"}
	with := func(base answer, more answer) answer {
		all := answer{}
		maps.Copy(all, base)
		maps.Copy(all, more)
		return all
	}
	for name, c := range map[string]struct {
		setup answer
		pace  func(*pace)
		ends  func(looks int, since time.Duration, g *guest) bool
	}{
		"it is about to reboot": {
			answer{"setupInProgress": "1", "imageState": "IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE"}, func(p *pace) { p.quiet = time.Minute },
			func(looks int, _ time.Duration, g *guest) bool {
				if looks == 5 {
					g.reboot()
				}
				return looks > 5
			}},
		"its last process ends before its state is written": {
			answer{"imageState": "IMAGE_STATE_UNDEPLOYABLE"}, nil, func(looks int, _ time.Duration, _ *guest) bool { return looks > 1 }},
		"an error in its log, and the log grows": {with(specialize, answer{"errors": "Winre not found"}), nil, nil},
		"an error in its log, and a command that takes its time": {with(specialize, answer{"errors": "Winre not found", "commands": "cmd.exe"}), nil,
			func(_ int, since time.Duration, _ *guest) bool { return since > time.Second }},
	} {
		t.Run(name, func(t *testing.T) {
			g, began := newGuest(), time.Now()
			g.setup = func(look int) answer {
				if c.ends == nil && time.Since(began) > time.Second || c.ends != nil && c.ends(look, time.Since(began), g) {
					return nil
				}
				if c.ends == nil {
					return with(c.setup, answer{"logSize": 1000 + look})
				}
				return c.setup
			}
			m := g.module(t)
			if c.pace != nil {
				c.pace(&m.pace)
			}
			request := g.request()
			request.Limits = limits(time.Minute, time.Minute, 0)
			_, err := m.WaitForResponse(t.Context(), request, climbtest.NewRecorder())
			require.NoError(t, err)
		})
	}
}

func TestXPHasNoImageStateAndTheOthersMustHaveOne(t *testing.T) {
	g := newGuest()
	g.version = "5.1.2600"
	g.setup = func(look int) answer {
		if look < 3 {
			return answer{"setupInProgress": "1", "imageState": "", "generalization": "", "processes": "setup"}
		}
		return answer{"imageState": "", "generalization": "", "oobeInProgress": ""}
	}
	_, err := g.module(t).WaitForResponse(t.Context(), g.request(), climbtest.NewRecorder())
	require.NoError(t, err)

	g = newGuest()
	g.setup = func(int) answer { return answer{"imageState": ""} }
	request := g.request()
	request.Limits = limits(time.Minute, 200*time.Millisecond, 0)
	_, err = g.module(t).WaitForResponse(t.Context(), request, climbtest.NewRecorder())
	climbtest.Verdict(t, reservation.VerdictReload, err, "ImageState unknown")
}

func TestASilentGuestGetsOnePowerResetAndThenIsReload(t *testing.T) {
	g, report := newGuest(), climbtest.NewRecorder()
	g.down = true
	request := g.request()
	request.Limits = limits(time.Minute, 200*time.Millisecond, 300*time.Millisecond)
	resets := 0
	request.PowerReset = func(context.Context) error { resets++; return nil }
	_, err := g.module(t).WaitForResponse(t.Context(), request, report)
	climbtest.Verdict(t, reservation.VerdictReload, err, "it hung at tcp for", "after a power reset and 300ms more", "connection refused")
	require.Equal(t, 1, resets)
	require.Equal(t, 1, report.Confirms(), "confirmed before the reset")
	require.Equal(t, []string{"tcp", "power reset", "tcp"}, report.Stages())

	// A successor gives no second one.
	_, err = g.module(t).WaitForResponse(t.Context(), request, report)
	climbtest.Verdict(t, reservation.VerdictReload, err)
	require.Equal(t, 1, resets)
}

func TestAPowerResetBringsAGuestUp(t *testing.T) {
	g := newGuest()
	g.down = true
	request := g.request()
	request.Limits = limits(time.Minute, 200*time.Millisecond, 30*time.Second)
	request.PowerReset = func(context.Context) error {
		g.change(func() { g.down = false })
		return errors.New("the task timed out")
	}
	_, err := g.module(t).WaitForResponse(t.Context(), request, climbtest.NewRecorder())
	require.NoError(t, err, "whether the reset was given is not known, so the guest is waited for")
}

func TestACertificateMayChangeOnceWithSysprep(t *testing.T) {
	for name, c := range map[string]struct {
		sysprep  bool
		repinned string
		says     string
	}{
		"without Sysprep":  {false, "", "changed inside the attempt"},
		"for the 2nd time": {true, "2026-01-01T00:00:00Z", "for the second time"},
	} {
		t.Run(name, func(t *testing.T) {
			g, report := newGuest(), climbtest.NewRecorder()
			report.Keep(keepPin, "SHA256:other")
			report.Keep(keepRepinned, c.repinned)
			request := g.request()
			request.Reservation.Image.Sysprep = c.sysprep
			_, err := g.module(t).WaitForResponse(t.Context(), request, report)
			climbtest.Verdict(t, reservation.VerdictFail, err, c.says, "SHA256:one")
		})
	}
}

func TestACertificateIsPinnedBeforeTheGuestLetsUsIn(t *testing.T) {
	g, report := newGuest(), climbtest.NewRecorder()
	g.refused = true
	ended := make(chan error, 1)
	go func() {
		_, err := g.module(t).WaitForResponse(t.Context(), g.request(), report)
		ended <- err
	}()
	require.Eventually(t, func() bool { return report.Kept(keepPin) != "" }, time.Minute, time.Millisecond)
	g.change(func() { g.pin, g.refused = "SHA256:two", false })
	climbtest.Verdict(t, reservation.VerdictFail, <-ended, "changed inside the attempt")
}

func TestCredentialsThatAreValidLaterAreTriedAgain(t *testing.T) {
	g, report := newGuest(), climbtest.NewRecorder()
	g.refused = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := g.module(t).WaitForResponse(ctx, g.request(), report)
		ended <- err
	}()
	require.Eventually(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.dials > 3
	}, time.Minute, time.Millisecond)
	require.Equal(t, []string{"tcp", "handshake", "authentication"}, report.Stages()[:3])
	g.change(func() { g.refused = false })
	require.NoError(t, <-ended)
}

func TestAGuestThatRebootsWhileItSettlesIsNotUp(t *testing.T) {
	g := newGuest()
	g.setup = func(look int) answer {
		if look == 2 { // the look after the settle time
			g.reboot()
		}
		return nil
	}
	answer, err := g.module(t).WaitForResponse(t.Context(), g.request(), climbtest.NewRecorder())
	require.NoError(t, err)
	require.Equal(t, 2, g.dials)
	require.NoError(t, answer.Channel.Close())
}

func TestAGuestThatGoesAwayInTheMiddleIsWaitedFor(t *testing.T) {
	g := newGuest()
	g.setup = func(look int) answer {
		if look == 1 {
			g.drop()
		}
		return nil
	}
	_, err := g.module(t).WaitForResponse(t.Context(), g.request(), climbtest.NewRecorder())
	require.NoError(t, err)
}

func TestWhatNoFurtherTryMendsEndsTheWait(t *testing.T) {
	g := newGuest()
	g.admin = false
	_, err := g.module(t).WaitForResponse(t.Context(), g.request(), climbtest.NewRecorder())
	climbtest.Verdict(t, reservation.VerdictFail, err, "image.control.user", "berth")

	g = newGuest()
	g.hidden = true
	_, err = g.module(t).WaitForResponse(t.Context(), g.request(), climbtest.NewRecorder())
	climbtest.Verdict(t, reservation.VerdictFail, err, "image.control.channel", "32-bit")

	g = newGuest()
	g.missing = true
	_, err = g.module(t).WaitForResponse(t.Context(), g.request(), climbtest.NewRecorder())
	var credential *remote.CredentialError
	require.ErrorAs(t, err, &credential)
	require.Empty(t, reservation.VerdictOf(err), "a fault of ours")

	request := newGuest().request()
	request.Reservation.Image.Control.Channel = "telnet"
	_, err = newGuest().module(t).WaitForResponse(t.Context(), request, climbtest.NewRecorder())
	climbtest.Verdict(t, reservation.VerdictFail, err, "image.control.channel")
}

func TestANonceThatDoesNotComeBackIsNoAnswer(t *testing.T) {
	g := newGuest()
	wrong := 2
	g.act = func(r run) (answer, error) {
		if r.name == "echo" && wrong > 0 {
			wrong--
			return answer{"nonce": "another", "boot": g.boot(), "admin": true, "version": "10.0"}, nil
		}
		return nil, nil
	}
	_, err := g.module(t).WaitForResponse(t.Context(), g.request(), climbtest.NewRecorder())
	require.NoError(t, err)
	require.Equal(t, 3, g.dials)
}

func TestASuccessorComesBackToAGuestThatWasUp(t *testing.T) {
	g, report := newGuest(), climbtest.NewRecorder()
	m := g.module(t)
	_, err := m.WaitForResponse(t.Context(), g.request(), report)
	require.NoError(t, err)
	looks := g.looks
	_, err = m.WaitForResponse(t.Context(), g.request(), report)
	require.NoError(t, err)
	require.Equal(t, looks+1, g.looks, "the same boot need not settle again")
	g.down = true
	m.pace.reboot = 200 * time.Millisecond
	request := g.request()
	request.Limits = limits(200*time.Millisecond, 200*time.Millisecond, time.Minute)
	request.PowerReset = func(context.Context) error { t.Error("a guest that was up is not reset"); return nil }
	_, err = m.WaitForResponse(t.Context(), request, report)
	climbtest.Verdict(t, reservation.VerdictReload, err, "had answered at")
}
