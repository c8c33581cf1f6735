package simsite

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"

	"berth/internal/simsite/winos"
	"berth/osmodules"
	"berth/osmodules/climb/climbtest"
	"berth/osmodules/remote"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/winrm"
	"berth/osmodules/windows"
	"berth/reservation"
)

// windowsModule is the module as a worker builds it, with both channels.
func (l *lab) windowsModule() *windows.Module {
	l.t.Helper()
	credential := func(string) (remote.Credential, error) { return remote.Credential{Password: l.WindowsPassword()}, nil }
	module, err := windows.New(windows.Options{Dialers: map[string]windows.Dialer{
		"ssh":   windows.SSH(ssh.NewDialer(ssh.Options{Credential: credential})),
		"winrm": windows.WinRM(winrm.NewDialer(winrm.Options{Credential: credential}), ""),
	}})
	require.NoError(l.t, err)
	return module
}

// phase is what a worker's phase would hand to the module for a computer.
func (l *lab) phase(name string, limits reservation.Limits) osmodules.Request {
	l.t.Helper()
	computer, ok := l.Reservable(name)
	require.True(l.t, ok)
	return osmodules.Request{Reservation: reservation.Reservation{Name: "r-1", Computer: computer, Image: l.Images()[0]}, Attempt: reservation.Attempt{Number: 1, Of: 1},
		Limits: limits, Began: time.Now()}
}

func resetOf(vm *object.VirtualMachine) func(context.Context) error {
	return func(ctx context.Context) error {
		task, err := vm.Reset(ctx)
		if err == nil {
			err = task.Wait(ctx)
		}
		return err
	}
}

// setupCase is one set-up as scripted, and what a worker makes of it.
type setupCase struct {
	setup    []Stage
	also     Behaviour     // beside the set-up
	response time.Duration // the whole limit; 0 is a generous one
	silence  time.Duration // the limit of no progress; 0 is none
	reset    bool          // the provisioner can reset its power
	verdict  reservation.Verdict
	reason   []string
	shows    string // a stage that must be seen
	resets   int
}

// setupCases are what people report of Sysprep. elsewhere is an address that nobody else has.
func setupCases(elsewhere string) map[string]setupCase {
	const s = Duration(time.Second)
	reboot, complete := Stage{State: winos.Reboot, Takes: s / 5}, Stage{State: winos.Complete}
	oobe := func(change func(*Stage)) Stage {
		stage := Stage{State: winos.OOBE, Takes: 3 * s, Answers: true}
		if change != nil {
			change(&stage)
		}
		return stage
	}
	quick := func(more ...Stage) []Stage {
		return append([]Stage{{State: winos.Specialize, Takes: s / 2}, {State: winos.Reboot, Takes: s / 5}}, more...)
	}
	early := Stage{State: winos.Specialize, Takes: 3 * s, Answers: true}
	newKey := Stage{State: winos.Reboot, Takes: s / 5, NewKey: true}
	const short, reload = 6 * time.Second, reservation.VerdictReload
	return map[string]setupCase{
		"answers while its set-up still runs": {setup: quick(oobe(nil), reboot, complete)},
		"logins only after OOBE":              {setup: quick(oobe(func(s *Stage) { s.NoLogin = true }), complete)},
		"the address changes half way":        {setup: []Stage{early, oobe(func(s *Stage) { s.Address = elsewhere }), reboot, complete}},
		"answers, and then goes away":         {setup: quick(oobe(func(s *Stage) { s.AwayAfter, s.AwayFor, s.Takes = 1e9, 3e9, 6e9 }), complete)},
		"goes away while it settles":          {setup: quick(oobe(nil), Stage{State: winos.Complete, AwayAfter: s / 2, AwayFor: 3 * s})},
		"a new key, once":                     {setup: []Stage{early, newKey, oobe(nil), reboot, complete}},
		"a new key for the second time": {setup: []Stage{early, newKey, oobe(nil), newKey, complete},
			verdict: reservation.VerdictFail, reason: []string{"second time"}},
		"slower than the limit of no progress, and its log grows": {setup: quick(oobe(func(s *Stage) { s.Takes = 14e9 }), reboot, complete), silence: short},
		"an error that is none, and a command that takes its time": {
			setup: []Stage{{State: winos.Specialize, Takes: 4 * s, Answers: true, Error: "Winre not found", Command: "cmd.exe"}, reboot, oobe(nil), complete},
			shows: "ImageState UNDEPLOYABLE, SystemSetupInProgress 1, OOBEInProgress 1, GeneralizationState 4, running: setup,windeploy, waiting for: cmd.exe"},
		"never ends, and stands still": {setup: quick(oobe(func(s *Stage) { s.NeverEnds, s.Quiet, s.Error = true, true, "no such account" }), complete),
			silence: short, reset: true, verdict: reload, reason: []string{"set-up is stuck: nothing has changed for", "SPECIALIZE_RESEAL_TO_OOBE", "no such account"}},
		"never ends, and writes its log": {setup: quick(oobe(func(s *Stage) { s.NeverEnds = true }), complete), response: 2 * short, silence: short,
			verdict: reload, reason: []string{"not over after the whole limit", "SPECIALIZE_RESEAL_TO_OOBE"}},
		"an error, and it says so": {setup: quick(oobe(func(s *Stage) { s.Fails = "Windows could not finish configuring the system." }), complete),
			verdict: reload, reason: []string{"could not finish configuring"}},
		"an error, and its log says that it gives up": {setup: []Stage{{State: winos.Specialize, Takes: 2 * s, Answers: true,
			Fails: "Failure occured during online installation.  Online installation cannot complete at this time.; hr = 0x80004005"}, complete},
			verdict: reload, reason: []string{"Online installation cannot complete"}},
		"an error, and nothing runs any more": {setup: quick(oobe(func(s *Stage) { s.Fails, s.Leaves = "no accounts", true }), complete),
			verdict: reload, reason: []string{"ImageState UNDEPLOYABLE", "says that it is not in progress", "no accounts"}},
		"silent until its power is reset": {setup: quick(oobe(func(s *Stage) { s.UntilReset, s.Takes = true, 1e9 }), complete), response: short, reset: true, resets: 1},
		"its power is off in the specialize pass": {setup: []Stage{{State: winos.Specialize, UntilReset: true, Takes: s}, complete},
			silence: short, reset: true, resets: 1},
		"silent for ever":                    {setup: quick(Stage{State: winos.OOBE, NeverEnds: true}), silence: short, verdict: reload, reason: []string{"it hung at tcp", "cannot reset it"}},
		"the connection is cut in a command": {setup: []Stage{complete}, also: Behaviour{CutsIn: "setup"}},
		"a clock that is a year off":         {setup: []Stage{oobe(nil), reboot, complete}, also: Behaviour{ClockOffset: -24 * 365 * 3600 * s}},
	}
}

// TestEachFaultOfASetupAsAWorkerSeesIt runs the module for Windows, over each channel, against the scripted set-ups.
func TestEachFaultOfASetupAsAWorkerSeesIt(t *testing.T) {
	const generous = 2 * time.Minute
	for _, channel := range []string{"ssh", "winrm"} {
		t.Run(channel, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			require.NoError(t, listener.Close())
			tests := setupCases(listener.Addr().String())
			l := start(t, "templates: [{name: win, windows: \"2022\", sysprep: true, channel: "+channel+", snapshots: [r1]}]", len(tests))
			module := l.windowsModule()
			type result struct {
				err    error
				report *climbtest.Recorder
			}
			results := map[string]chan result{}
			names := slices.Sorted(maps.Keys(tests))
			// All at once: each is a wait of some seconds.
			for i, name := range names {
				test, computer := tests[name], l.Computers()[i].Name
				test.also.Setup = test.setup
				require.NoError(t, l.SetGuest(computer, Behaviours{Loads: []Behaviour{test.also}}))
				vm := l.load(computer, "")
				request := l.phase(computer, reservation.Limits{Response: reservation.Duration(cmp.Or(test.response, generous)), NoProgress: reservation.Duration(test.silence),
					ResponseAgain: reservation.Duration(generous), Settle: reservation.Duration(time.Second)})
				if test.reset {
					request.PowerReset = resetOf(vm)
				}
				ended := make(chan result, 1)
				results[name] = ended
				go func() {
					report := climbtest.NewRecorder()
					answer, err := module.WaitForResponse(t.Context(), request, report)
					if err == nil {
						err = answer.Channel.Close()
					}
					ended <- result{err, report}
				}()
			}
			for i, name := range names {
				test, computer := tests[name], l.Computers()[i].Name
				got := <-results[name]
				t.Run(name, func(t *testing.T) {
					t.Log(strings.Join(got.report.Said(), "\n"))
					require.Equal(t, cmp.Or(test.verdict, reservation.VerdictDone), reservation.VerdictOf(got.err), "%v", got.err)
					if test.verdict == "" {
						require.False(t, l.guest(computer).Completed.IsZero(), "up before the set-up was over")
					}
					for _, words := range test.reason {
						require.ErrorContains(t, got.err, words)
					}
					require.Contains(t, strings.Join(got.report.Said(), "\n"), test.shows)
					require.Equal(t, test.resets, l.Counts(computer).Resets)
					require.Zero(t, l.Counts(computer).Unknown)
				})
			}
		})
	}
}

// TestAChannelThatIsCutWhileAWorkerConfigures: what the script did stays done, and the load goes on where it was.
func TestAChannelThatIsCutWhileAWorkerConfigures(t *testing.T) {
	scripts := []string{"firewall", "secrets", "hostname", "reboot", "tag"}
	for _, channel := range []string{"ssh", "winrm"} {
		t.Run(channel, func(t *testing.T) {
			l := start(t, "templates: [{name: win, windows: \"2022\", sysprep: true, channel: "+channel+", snapshots: [r1]}]", len(scripts))
			module := l.windowsModule()
			results := make([]chan error, len(scripts))
			for i, script := range scripts {
				computer := l.Computers()[i].Name
				require.NoError(t, l.SetGuest(computer, Behaviours{Loads: []Behaviour{{Setup: []Stage{{State: winos.Complete}}, CutsIn: script}}}))
				l.load(computer, "")
				request := l.phase(computer, reservation.Limits{Response: reservation.Duration(2 * time.Minute), Settle: reservation.Duration(500 * time.Millisecond)})
				request.Reservation.Image.PostLoad = reservation.PostLoadOptions{Hostname: true, ManagementSources: []string{"127.0.0.0/8"}}
				results[i] = make(chan error, 1)
				go func() { results[i] <- waitAndConfigure(t.Context(), module, request) }()
			}
			for i, script := range scripts {
				computer := l.Computers()[i].Name
				err := <-results[i]
				t.Run(script, func(t *testing.T) {
					require.NoError(t, err)
					require.Equal(t, 1, l.Counts(computer).Reboots, "one for the name")
					machine, err := l.Windows(computer)
					require.NoError(t, err)
					require.Equal(t, computer, strings.ToLower(machine.Hostname()))
					_, err = l.ReadFile(computer, "/C:/ProgramData/Berth/load.json")
					require.NoError(t, err)
					require.Zero(t, l.Counts(computer).Unknown)
				})
			}
		})
	}
}

// waitAndConfigure does what a phase of a worker does.
func waitAndConfigure(ctx context.Context, module *windows.Module, request osmodules.Request) error {
	report := climbtest.NewRecorder()
	answer, err := module.WaitForResponse(ctx, request, report)
	if err != nil {
		return err
	}
	defer answer.Channel.Close()
	done, err := module.PostLoad(ctx, request, answer, report)
	if err != nil {
		return fmt.Errorf("%w; steps: %v", err, done.Steps)
	}
	return nil
}
