package linux

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	xssh "golang.org/x/crypto/ssh"

	"berth/osmodules"
	"berth/osmodules/climb/climbtest"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/ssh/sshtest"
	"berth/reservation"
)

func fingerprint(key xssh.Signer) string { return xssh.FingerprintSHA256(key.PublicKey()) }

func authorizedLine(key xssh.Signer) string {
	return strings.TrimSpace(string(xssh.MarshalAuthorizedKey(key.PublicKey())))
}

func TestAGuestThatIsUpIsTakenUpTheWholeLadder(t *testing.T) {
	g := newGuest(t)
	require.NoError(t, g.Up())
	report := climbtest.NewRecorder()
	waiting := 0
	m := g.module(t, func(o *Options) {
		o.Waiting = func(delta int) { waiting += delta; require.GreaterOrEqual(t, waiting, 0) }
	})
	answer := up(t, <-m.begin(t.Context(), g.request(), report))
	require.Equal(t, fingerprint(g.key), answer.HostKey)
	require.Equal(t, []string{"tcp", "ssh banner", "handshake", "authentication", "nonce", "boot id", "set-up", "settle"}, report.Stages())
	require.Equal(t, "ssh-ed25519 "+fingerprint(g.key), report.Kept(keepHostKey))
	require.Equal(t, g.boot(), report.Kept(keepBoot))
	require.Equal(t, 1, g.Dials(), "one connection for the load")
	require.Zero(t, waiting)
}

func TestALateGuestIsWaitedFor(t *testing.T) {
	g := newGuest(t)
	report := climbtest.NewRecorder()
	ended := g.module(t).begin(t.Context(), g.request(), report)
	until(t, "a refused connection", func() bool { return strings.Contains(report.Current().Detail, "refused") })
	require.Equal(t, []string{"tcp"}, report.Stages(), "many tries are one stage")
	require.NoError(t, g.Up())
	up(t, <-ended)
}

func TestABannerThatNeverComesIsNamed(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	g.Change(func(s *sshtest.Script) { s.Mute = true })
	require.NoError(t, g.Up())
	report := climbtest.NewRecorder()
	request := g.request()
	request.Limits.Response = reservation.Duration(time.Second)
	got := <-g.module(t).begin(t.Context(), request, report)
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "it hung at ssh banner for")
	require.ErrorContains(t, got.err, "cannot reset it")
	require.ErrorContains(t, got.err, "timeout")
	require.Equal(t, []string{"tcp", "ssh banner"}, report.Stages(), "going up and down between two rungs adds no stages")
	require.Greater(t, g.Dials(), 2)
}

func TestASilentGuestGetsOnePowerResetAndThenIsReload(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	report := climbtest.NewRecorder()
	request := g.request()
	request.Limits.Response, request.Limits.ResponseAgain = reservation.Duration(300*time.Millisecond), reservation.Duration(400*time.Millisecond)
	var resets int
	request.PowerReset = func(context.Context) error { resets++; return nil }
	began := time.Now()
	got := <-g.module(t).begin(t.Context(), request, report)
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "it hung at tcp for")
	require.ErrorContains(t, got.err, "after 300ms, a power reset and 400ms more")
	require.ErrorContains(t, got.err, "refused")
	require.Equal(t, 1, resets)
	require.Equal(t, 1, report.Confirms(), "confirmed before the reset")
	require.GreaterOrEqual(t, time.Since(began), 700*time.Millisecond)
	require.Equal(t, []string{"tcp", "power reset", "tcp"}, report.Stages())
}

func TestAPowerResetBringsAGuestUp(t *testing.T) {
	g := newGuest(t)
	report := climbtest.NewRecorder()
	request := g.request()
	request.Limits.Response = reservation.Duration(300 * time.Millisecond)
	request.PowerReset = func(context.Context) error { return g.Up() }
	up(t, <-g.module(t).begin(t.Context(), request, report))
}

func TestAPowerResetIsNotGivenTwiceByASuccessor(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	report := climbtest.NewRecorder()
	request := g.request()
	request.Limits.Response = reservation.Duration(200 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	resets := 0
	request.PowerReset = func(context.Context) error { resets++; cancel(); return nil } // the worker is lost right then
	got := <-g.module(t).begin(ctx, request, report)
	require.ErrorIs(t, got.err, context.Canceled)
	require.Empty(t, reservation.VerdictOf(got.err))
	got = <-g.module(t).begin(t.Context(), request, report)
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "a power reset and 2s more")
	require.Equal(t, 1, resets)
}

func TestAResetThatMayNotBeGivenIsNotGiven(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*osmodules.Request, *climbtest.Recorder)
		check  func(*testing.T, error)
	}{
		"somebody else has taken over": {func(_ *osmodules.Request, r *climbtest.Recorder) { r.Refuse(errors.New("superseded")) },
			func(t *testing.T, err error) {
				require.EqualError(t, err, "superseded")
			}},
		"the table says none": {func(r *osmodules.Request, _ *climbtest.Recorder) { r.Limits.ResponseAgain = 0 },
			func(t *testing.T, err error) {
				require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err))
			}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			report, request := climbtest.NewRecorder(), g.request()
			request.Limits.Response = reservation.Duration(200 * time.Millisecond)
			request.PowerReset = func(context.Context) error { t.Error("reset"); return nil }
			c.change(&request, report)
			c.check(t, (<-g.module(t).begin(t.Context(), request, report)).err)
		})
	}
}

func TestAResetThatGoesWrongIsToldWithTheVerdict(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	request := g.request()
	request.Limits.Response, request.Limits.ResponseAgain = reservation.Duration(200*time.Millisecond), reservation.Duration(300*time.Millisecond)
	request.PowerReset = func(context.Context) error { return errors.New("vCenter is away") }
	got := <-g.module(t).begin(t.Context(), request, climbtest.NewRecorder())
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "the power reset went wrong: vCenter is away")
	request.Began = time.Now()
	request.PowerReset = func(context.Context) error { return reservation.Fail("another reservation's", nil) }
	got = <-g.module(t).begin(t.Context(), request, climbtest.NewRecorder())
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(got.err))
}

func TestARebootWhileSettlingIsProgress(t *testing.T) {
	t.Parallel()
	for name, reboot := range map[string]func(*guest){
		"that cuts the connection": (*guest).reboot,
		"that goes by unnoticed":   func(g *guest) { g.mu.Lock(); g.boots++; g.mu.Unlock() },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			require.NoError(t, g.Up())
			report, request := climbtest.NewRecorder(), g.request()
			request.Limits.Settle = reservation.Duration(300 * time.Millisecond)
			first := g.boot()
			ended := g.module(t).begin(t.Context(), request, report)
			until(t, "settling", func() bool { return report.Current().Name == "settle" })
			reboot(g)
			up(t, <-ended)
			require.NotEqual(t, first, report.Kept(keepBoot))
			require.Equal(t, g.boot(), report.Kept(keepBoot))
			require.Equal(t, 2, strings.Count(strings.Join(report.Stages(), ","), "settle"), "%v", report.Stages())
		})
	}
}

func TestAConnectionLostAnywhereOnTheLadderIsARebootAtMost(t *testing.T) {
	for _, script := range []string{"boot.sh", "setup.sh"} {
		t.Run(script, func(t *testing.T) {
			g := newGuest(t)
			var cut atomic.Bool
			g.before = func(name string) error {
				if name == script && cut.CompareAndSwap(false, true) {
					g.reboot()
					return io.EOF
				}
				return nil
			}
			require.NoError(t, g.Up())
			up(t, <-g.module(t).begin(t.Context(), g.request(), climbtest.NewRecorder()))
			require.Equal(t, 2, g.Dials())
		})
	}
}

func TestAHandedKeyIsVerifiedFromTheFirstPacket(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ecdsaKey, err := xssh.NewSignerFromKey(ec)
	require.NoError(t, err)
	for name, key := range map[string]xssh.Signer{"ed25519": newKey(t), "ecdsa": ecdsaKey} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			require.NoError(t, g.Up())
			request := g.request()
			request.HostKey = authorizedLine(key)
			got := <-g.module(t).begin(t.Context(), request, climbtest.NewRecorder())
			require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(got.err))
			require.ErrorContains(t, got.err, fingerprint(key))
			require.ErrorContains(t, got.err, fingerprint(g.key))
			require.ErrorContains(t, got.err, "handed")
			require.Empty(t, g.scripts())

			g.Change(func(s *sshtest.Script) { s.HostKeys = []xssh.Signer{newKey(t), key} })
			answer := up(t, <-g.module(t).begin(t.Context(), request, climbtest.NewRecorder()))
			require.Equal(t, fingerprint(key), answer.HostKey)
		})
	}
}

func TestAnImageThatWantsAHandedKeyIsNotTakenWithoutOne(t *testing.T) {
	g := newGuest(t)
	request := g.request()
	request.Reservation.Image.Control.HostKey = reservation.HostKeyHanded
	got := <-g.module(t).begin(t.Context(), request, climbtest.NewRecorder())
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "image.control.host_key")
}

func TestAKeyThatChangesInsideAnAttemptFails(t *testing.T) {
	t.Run("after a reboot", func(t *testing.T) {
		g := newGuest(t)
		require.NoError(t, g.Up())
		g.setup = func(int) string { return "berth: value cloud-init=running\n" }
		report := climbtest.NewRecorder()
		ended := g.module(t).begin(t.Context(), g.request(), report)
		until(t, "the set-up", func() bool { return report.Current().Name == "set-up" })
		other := newKey(t)
		g.Change(func(s *sshtest.Script) { s.HostKeys = []xssh.Signer{other} })
		g.reboot()
		got := <-ended
		require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(got.err))
		require.ErrorContains(t, got.err, "changed inside the attempt")
		require.ErrorContains(t, got.err, fingerprint(g.key))
		require.ErrorContains(t, got.err, fingerprint(other))
	})
	t.Run("for a successor, before we were ever let in", func(t *testing.T) {
		g := newGuest(t)
		require.NoError(t, g.Up())
		g.Change(func(s *sshtest.Script) { s.Keys = nil })
		report := climbtest.NewRecorder()
		ctx, cancel := context.WithCancel(t.Context())
		ended := g.module(t).begin(ctx, g.request(), report)
		until(t, "the key", func() bool { return report.Kept(keepHostKey) != "" })
		cancel()
		require.ErrorIs(t, (<-ended).err, context.Canceled)
		g.Change(func(s *sshtest.Script) { s.HostKeys = []xssh.Signer{newKey(t)}; s.Keys = []xssh.PublicKey{g.public} })
		got := <-g.module(t).begin(t.Context(), g.request(), report)
		require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(got.err))
	})
}

func TestAuthenticationMayComeLate(t *testing.T) {
	g := newGuest(t)
	g.Change(func(s *sshtest.Script) { s.Keys = nil })
	require.NoError(t, g.Up())
	report := climbtest.NewRecorder()
	ended := g.module(t).begin(t.Context(), g.request(), report)
	until(t, "a refusal", func() bool {
		return report.Current().Name == "authentication" && strings.Contains(report.Current().Detail, "refused")
	})
	g.Change(func(s *sshtest.Script) { s.Keys = []xssh.PublicKey{g.public} })
	up(t, <-ended)
}

func TestAuthenticationThatIsNeverAcceptedIsReload(t *testing.T) {
	g := newGuest(t)
	g.Change(func(s *sshtest.Script) { s.Keys = nil })
	require.NoError(t, g.Up())
	request := g.request()
	request.Limits.Response = reservation.Duration(300 * time.Millisecond)
	got := <-g.module(t).begin(t.Context(), request, climbtest.NewRecorder())
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "it hung at authentication")
}

func TestASlowSetupIsWaitedFor(t *testing.T) {
	g := newGuest(t)
	g.setup = func(asked int) string {
		switch {
		case asked < 3:
			return "berth: value cloud-init=running\nberth: value system=starting\n"
		case asked < 5:
			return "berth: value cloud-init=done\nberth: value system=starting\n"
		}
		return "berth: value cloud-init=done\nberth: value system=degraded\nberth: value failed-units=a.service\n"
	}
	require.NoError(t, g.Up())
	report := climbtest.NewRecorder()
	up(t, <-g.module(t).begin(t.Context(), g.request(), report))
	require.Equal(t, 1, g.Dials())
	require.Contains(t, report.Said(), "set-up: systemd: degraded a.service", "degraded is good enough, and noted")
}

func TestASetupThatWentWrongIsReloadWithItsText(t *testing.T) {
	g := newGuest(t)
	g.setup = func(int) string {
		return "berth: value cloud-init=error\nberth: value cloud-init-text=detail: no such package\nberth: value system=running\n"
	}
	require.NoError(t, g.Up())
	got := <-g.module(t).begin(t.Context(), g.request(), climbtest.NewRecorder())
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "no such package")
}

func TestASetupThatNeverEndsIsReloadAtItsRung(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	g.setup = func(int) string { return "berth: value cloud-init=running\nberth: value system=starting\n" }
	require.NoError(t, g.Up())
	request := g.request()
	request.Limits.Response, request.Limits.ResponseAgain = reservation.Duration(300*time.Millisecond), reservation.Duration(300*time.Millisecond)
	resets := 0
	request.PowerReset = func(context.Context) error { resets++; g.reboot(); return nil }
	got := <-g.module(t).begin(t.Context(), request, climbtest.NewRecorder())
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "it hung at set-up")
	require.ErrorContains(t, got.err, "cloud-init: running; systemd: starting")
	require.Equal(t, 1, resets)
}

func TestAUserWhoIsNotRootFails(t *testing.T) {
	g := newGuest(t)
	g.uid = "1000"
	require.NoError(t, g.Up())
	got := <-g.module(t).begin(t.Context(), g.request(), climbtest.NewRecorder())
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "image.control.user")
}

func TestAMissingCredentialIsNoVerdictAndIsToldAtOnce(t *testing.T) {
	g := newGuest(t)
	g.credential = ssh.Credential{}
	got := <-g.module(t).begin(t.Context(), g.request(), climbtest.NewRecorder())
	require.Error(t, got.err)
	require.Empty(t, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "linux-root")
}

func TestASuccessorGoesOnWithWhatWasKept(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	require.NoError(t, g.Up())
	report, request := climbtest.NewRecorder(), g.request()
	up(t, <-g.module(t).begin(t.Context(), request, report))
	// The worker was lost while it configured, after the response limit; nobody must reset this guest or wait for it to
	// settle again.
	request.Began = time.Now().Add(-time.Hour)
	request.Limits.Settle = reservation.Duration(time.Hour)
	request.PowerReset = func(context.Context) error { t.Error("reset"); return nil }
	up(t, <-g.module(t).begin(t.Context(), request, report))

	g.Down()
	got := <-g.module(t).begin(t.Context(), request, report)
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(got.err))
	require.ErrorContains(t, got.err, "had answered")
}

func TestASuccessorLooksBeforeItResets(t *testing.T) {
	g := newGuest(t)
	require.NoError(t, g.Up())
	request := g.request()
	request.Began = time.Now().Add(-time.Hour) // no worker ran for an hour: the guest came up meanwhile
	request.PowerReset = func(context.Context) error { t.Error("reset"); return nil }
	up(t, <-g.module(t).begin(t.Context(), request, climbtest.NewRecorder()))
}

func TestACancelledWaitEndsAtOnceOnEveryRung(t *testing.T) {
	for rung, prepare := range map[string]func(*testing.T, *guest){
		"tcp": func(*testing.T, *guest) {},
		"ssh banner": func(t *testing.T, g *guest) {
			g.Change(func(s *sshtest.Script) { s.Mute = true })
			require.NoError(t, g.Up())
		},
		"authentication": func(t *testing.T, g *guest) {
			g.Change(func(s *sshtest.Script) { s.Keys = nil })
			require.NoError(t, g.Up())
		},
		"boot id": func(t *testing.T, g *guest) {
			g.before = func(string) error { return io.EOF }
			require.NoError(t, g.Up())
		},
		"set-up": func(t *testing.T, g *guest) {
			g.setup = func(int) string { return "berth: value cloud-init=running\n" }
			require.NoError(t, g.Up())
		},
		"settle": func(t *testing.T, g *guest) { require.NoError(t, g.Up()) },
	} {
		t.Run(rung, func(t *testing.T) {
			g := newGuest(t)
			prepare(t, g)
			report, request := climbtest.NewRecorder(), g.request()
			request.Limits.Settle = reservation.Duration(time.Hour)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := g.module(t).begin(ctx, request, report)
			until(t, rung, func() bool { return report.Current().Name == rung })
			cancel()
			select {
			case got := <-ended:
				require.ErrorIs(t, got.err, context.Canceled)
				require.Empty(t, reservation.VerdictOf(got.err))
			case <-time.After(5 * time.Second):
				t.Fatal("it goes on")
			}
		})
	}
}

// 200 guests come up while one process waits for all of them.
func TestManyGuestsAreNoticedQuicklyAndLeaveNothingBehind(t *testing.T) {
	const guests = 200
	before := runtime.NumGoroutine()
	// One server stands for all: what is measured is the waiting, and each guest has an address of its own in front.
	g := newGuest(t)
	require.NoError(t, g.Up())
	var waiting atomic.Int64
	m := g.module(t, func(o *Options) { o.Waiting = func(delta int) { waiting.Add(int64(delta)) } })
	m.pace.due = defaultPace().due
	m.pace.early = defaultPace().due
	var all sync.WaitGroup
	noticed := make([]time.Duration, guests)
	listening := make([]chan time.Time, guests)
	stop := make(chan struct{})
	for i := range guests {
		address, release, err := sshtest.Reserve()
		require.NoError(t, err)
		defer release()
		listening[i] = make(chan time.Time, 1)
		request := g.request()
		request.Reservation.Computer.Address = address
		request.Limits.Response = reservation.Duration(time.Minute)
		all.Go(func() {
			answer, err := m.WaitForResponse(t.Context(), request, &firstSight{Recorder: climbtest.NewRecorder(), seen: func() {
				noticed[i] = time.Since(<-listening[i])
			}})
			if err != nil {
				t.Error(err)
				return
			}
			answer.Channel.Close()
		})
		all.Go(func() { // comes up when all are waiting
			until(t, "all waiting", func() bool { return waiting.Load() == guests })
			listener, err := net.Listen("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			listening[i] <- time.Now()
			go func() { <-stop; listener.Close() }()
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go relay(conn, g.Address())
			}
		})
	}
	until(t, "all waiting", func() bool { return waiting.Load() == guests })
	until(t, "all up", func() bool { return waiting.Load() == 0 })
	close(stop)
	all.Wait()
	slices.Sort(noticed)
	p95 := noticed[guests*95/100]
	t.Logf("noticed: median %s, p95 %s, worst %s", noticed[guests/2], p95, noticed[guests-1])
	require.Less(t, p95, 10*time.Second) // that it is a second on a machine of its own is measured by the benchmarks
	g.Close()
	until(t, "nothing left running", func() bool { return runtime.NumGoroutine() <= before })
}

// firstSight calls seen when the guest is first seen to answer.
type firstSight struct {
	*climbtest.Recorder
	once sync.Once
	seen func()
}

func (f *firstSight) Stage(name, detail string) {
	if slices.Index(rungs(), name) > 0 {
		f.once.Do(f.seen)
	}
	f.Recorder.Stage(name, detail)
}

func relay(conn net.Conn, address string) {
	defer conn.Close()
	other, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer other.Close()
	go func() { io.Copy(other, conn); other.Close() }()
	io.Copy(conn, other)
}
