package simsite

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/simsite/winos"
	"berth/osmodules"
	"berth/osmodules/remote"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/winrm"
	"berth/osmodules/windows"
	"berth/reservation"
)

// memory is a reporter that keeps what it is told.
type memory struct {
	mu     sync.Mutex
	kept   map[string]string
	stages []string
}

func (m *memory) Stage(name, detail string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stages = append(m.stages, name+": "+detail)
}

func (m *memory) Keep(key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[key] = value
}

func (m *memory) Kept(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept[key]
}

func (m *memory) Confirm(context.Context) error { return nil }

// wait waits for a computer's guest as a worker does.
func (l *lab) wait(name string, began time.Time, limits reservation.Limits, reset func(context.Context) error) error {
	l.t.Helper()
	credential := func(string) (remote.Credential, error) { return remote.Credential{Password: l.WindowsPassword()}, nil }
	module, err := windows.New(windows.Options{Dialers: map[string]windows.Dialer{
		"ssh":   windows.SSH(ssh.NewDialer(ssh.Options{Credential: credential})),
		"winrm": windows.WinRM(winrm.NewDialer(winrm.Options{Credential: credential}), ""),
	}})
	require.NoError(l.t, err)
	computer, ok := l.Reservable(name)
	require.True(l.t, ok)
	report := &memory{kept: map[string]string{}}
	answer, err := module.WaitForResponse(l.t.Context(), osmodules.Request{Reservation: reservation.Reservation{Name: "r-1", Computer: computer, Image: l.Images()[0]},
		Limits: limits, Began: began, PowerReset: reset}, report)
	if err == nil {
		require.NoError(l.t, answer.Channel.Close())
	}
	l.t.Log(strings.Join(report.stages, "\n"))
	return err
}

// TestEachFaultOfASetupAsAWorkerSeesIt runs the module for Windows against the scripted set-ups.
func TestEachFaultOfASetupAsAWorkerSeesIt(t *testing.T) {
	const s = Duration(time.Second)
	quick := []Stage{{State: winos.Specialize, Takes: s / 2}, {State: winos.Reboot, Takes: s / 5}}
	then := func(more ...Stage) Behaviour { return Behaviour{Setup: append(append([]Stage{}, quick...), more...)} }
	oobe := func(change func(*Stage)) Stage {
		stage := Stage{State: winos.OOBE, Takes: 3 * s, Answers: true}
		if change != nil {
			change(&stage)
		}
		return stage
	}
	reboot, complete := Stage{State: winos.Reboot, Takes: s / 5}, Stage{State: winos.Complete}
	early := Stage{State: winos.Specialize, Takes: 3 * s, Answers: true}
	newKey := Stage{State: winos.Reboot, Takes: s / 5, NewKey: true}
	generous, short := 60*time.Second, 6*time.Second
	tests := map[string]struct {
		behaviour Behaviour
		response  time.Duration
		reset     bool
		verdict   reservation.Verdict // "" is reservation.VerdictDone: it is up
		reason    string
		resets    int
	}{
		"answers while its set-up still runs":     {behaviour: then(oobe(nil), reboot, complete), response: generous},
		"logins only after OOBE":                  {behaviour: then(oobe(func(s *Stage) { s.NoLogin = true }), complete), response: generous},
		"answers, and then goes away":             {behaviour: then(oobe(func(s *Stage) { s.AwayAfter, s.AwayFor, s.Takes = 1e9, 3e9, 6e9 }), complete), response: generous},
		"a new key, once":                         {behaviour: Behaviour{Setup: []Stage{early, newKey, oobe(nil), reboot, complete}}, response: generous},
		"a new key for the second time":           {behaviour: Behaviour{Setup: []Stage{early, newKey, oobe(nil), newKey, complete}}, response: generous, verdict: reservation.VerdictFail, reason: "second time"},
		"an error, and it says so":                {behaviour: then(oobe(func(s *Stage) { s.Fails = "Windows could not finish configuring the system." }), complete), response: generous, verdict: reservation.VerdictReload, reason: "could not finish configuring"},
		"never ends":                              {behaviour: then(oobe(func(s *Stage) { s.NeverEnds = true }), complete), response: short, verdict: reservation.VerdictReload, reason: "SPECIALIZE_RESEAL_TO_OOBE"},
		"silent until its power is reset":         {behaviour: then(oobe(func(s *Stage) { s.UntilReset, s.Takes = true, 1e9 }), complete), response: short, reset: true, resets: 1},
		"the connection is cut in a command":      {behaviour: Behaviour{Setup: []Stage{complete}, CutsIn: "setup"}, response: generous},
		"a clock that is a year off":              {behaviour: Behaviour{Setup: []Stage{oobe(nil), reboot, complete}, ClockOffset: -24 * 365 * 3600 * s}, response: generous},
		"its power is off in the specialize pass": {behaviour: Behaviour{Setup: []Stage{{State: winos.Specialize, UntilReset: true, Takes: s}, complete}}, response: short, reset: true, resets: 1},
	}
	for _, channel := range []string{"ssh", "winrm"} {
		t.Run(channel, func(t *testing.T) {
			site := start(t, "templates: [{name: win, windows: \"2022\", sysprep: true, channel: "+channel+", snapshots: [r1]}]", len(tests))
			var loading sync.Mutex
			for i, name := range slices.Sorted(maps.Keys(tests)) {
				test, computer := tests[name], site.Computers()[i].Name
				require.NoError(t, site.SetGuest(computer, Behaviours{Loads: []Behaviour{test.behaviour}}))
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					l := *site
					l.t = t
					loading.Lock() // govmomi's finder is for one caller
					vm, began := l.load(computer, ""), time.Now()
					loading.Unlock()
					limits := reservation.Limits{Response: reservation.Duration(test.response), ResponseAgain: reservation.Duration(generous), Settle: reservation.Duration(time.Second)}
					var reset func(context.Context) error
					if test.reset {
						reset = func(ctx context.Context) error {
							task, err := vm.Reset(ctx)
							if err == nil {
								err = task.Wait(ctx)
							}
							return err
						}
					}
					err := l.wait(computer, began, limits, reset)
					require.Equal(t, cmp.Or(test.verdict, reservation.VerdictDone), reservation.VerdictOf(err), "%v", err)
					if test.verdict == "" {
						require.False(t, l.guest(computer).Completed.IsZero(), "up before the set-up was over")
					} else {
						require.ErrorContains(t, err, test.reason)
					}
					require.Equal(t, test.resets, l.Counts(computer).Resets)
					require.Zero(t, l.Counts(computer).Unknown)
				})
			}
		})
	}
}
