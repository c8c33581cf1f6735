package winos_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/simsite/winos"
)

// lab runs a machine as a hypervisor does, on a clock that only moves when everybody waits, and keeps a diary.
type lab struct {
	t       *testing.T
	machine *winos.Machine
	began   time.Time
	diary   []string
	cancel  context.CancelFunc
	done    chan struct{}
}

func newLab(t *testing.T, v winos.Version, sysprep bool, stages ...winos.Stage) *lab {
	l := &lab{t: t, began: time.Now()}
	l.machine = winos.New(winos.Options{Image: winos.Image{Version: v, Sysprep: sysprep, Password: "secret"}, Name: "vm-01", Setup: stages,
		Hooks: winos.Hooks{
			Channel: func(open bool, address string) { l.note("channel %t %s", open, address) },
			Reboot: func(takes time.Duration) {
				l.note("reboot")
				go func() {
					time.Sleep(takes)
					l.on()
				}()
			},
		}})
	return l
}

func (l *lab) note(format string, args ...any) {
	l.diary = append(l.diary, strings.TrimSpace(fmt.Sprintf("%v "+format, append([]any{time.Since(l.began)}, args...)...)))
}

func (l *lab) on() {
	ctx, cancel := context.WithCancel(l.t.Context())
	l.cancel, l.done = cancel, make(chan struct{})
	go func() {
		defer close(l.done)
		l.machine.Live(ctx)
	}()
	synctest.Wait()
}

// reset cuts the power and gives it back.
func (l *lab) reset() {
	l.cancel()
	<-l.done
	l.note("reset")
	l.on()
}

func (l *lab) off() {
	l.cancel()
	<-l.done
}

func (l *lab) read(path string) string {
	text, _ := l.machine.ReadFile(path)
	return string(text)
}

func (l *lab) want(diary ...string) {
	l.t.Helper()
	if !slices.Equal(l.diary, diary) {
		l.t.Errorf("what happened:\n%s\nwant:\n%s", strings.Join(l.diary, "\n"), strings.Join(diary, "\n"))
	}
}

func TestSetupPassesThroughItsStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, winos.Server2022, true,
			winos.Stage{State: winos.Specialize, Takes: 10 * time.Second}, winos.Stage{State: winos.Reboot, Takes: 2 * time.Second},
			winos.Stage{State: winos.OOBE, Takes: 20 * time.Second, Answers: true, NoLogin: true}, winos.Stage{State: winos.Reboot, Takes: 2 * time.Second},
			winos.Stage{State: winos.Complete})
		m := l.machine
		at := func(until time.Duration, state, image, inProgress, oobe, generalization string) {
			t.Helper()
			time.Sleep(until - time.Since(l.began))
			synctest.Wait()
			got := []string{m.Setup().State, m.Reg(winos.ImageStateKey, "ImageState"), m.Reg(winos.SetupKey, "SystemSetupInProgress"),
				m.Reg(winos.SetupKey, "OOBEInProgress"), m.Reg(winos.SysprepKey, "GeneralizationState")}
			if want := []string{state, image, inProgress, oobe, generalization}; !slices.Equal(got, want) {
				t.Errorf("after %s: %v, want %v", until, got, want)
			}
		}
		l.on()
		first := m.BootTime()
		at(5*time.Second, winos.Specialize, winos.ImageUndeployable, "1", "1", "4")
		before := l.read(`C:\Windows\Panther\setupact.log`)
		at(9*time.Second, winos.Specialize, winos.ImageUndeployable, "1", "1", "4")
		if after := l.read(`C:\Windows\Panther\setupact.log`); len(after) <= len(before) {
			t.Error("setupact.log did not grow in a set-up that makes progress")
		}
		at(15*time.Second, winos.OOBE, winos.ImageSpecialized, "1", "1", "4")
		if second := m.BootTime(); !second.After(first) {
			t.Error("the boot time is that of the first boot after a reboot")
		}
		if m.Login("Administrator", "secret") {
			t.Error("a login succeeded before the accounts were made")
		}
		if !slices.Contains(m.Processes(), "msoobe.exe") {
			t.Errorf("processes in OOBE: %v", m.Processes())
		}
		at(40*time.Second, winos.Complete, winos.ImageComplete, "0", "0", "7")
		if !m.Login("Administrator", "secret") || m.Login("Administrator", "other") {
			t.Error("after OOBE the password is not the one that logs in")
		}
		if slices.Contains(m.Processes(), "msoobe.exe") {
			t.Errorf("processes when all is over: %v", m.Processes())
		}
		if done := m.Setup().Completed.Sub(l.began); done != 34*time.Second {
			t.Errorf("completed after %s, want 34s", done)
		}
		l.want("10s reboot", "12s channel true", "32s channel false", "32s reboot", "34s channel true")
		l.reset()
		at(50*time.Second, winos.Complete, winos.ImageComplete, "0", "0", "7")
		l.off()
	})
}

func TestMiniSetupHasNoImageState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, winos.XP, true)
		l.on()
		if got := l.machine.Reg(winos.SetupKey, "MiniSetupInProgress"); got != "1" {
			t.Errorf("MiniSetupInProgress is %q, want 1", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := l.machine.Setup(); got.State != winos.Complete || got.ImageState != "" {
			t.Errorf("set-up: %+v, want complete without an ImageState", got)
		}
		if got := l.machine.Reg(winos.SetupKey, "SystemSetupInProgress"); got != "0" {
			t.Errorf("SystemSetupInProgress is %q, want 0", got)
		}
		if l.read(`C:\Windows\setupact.log`) == "" {
			t.Error("no setupact.log")
		}
		l.off()
	})
}

// TestPowerReset: what a cut of the power does to each state.
func TestPowerReset(t *testing.T) {
	const s = time.Second
	tests := map[string]struct {
		version winos.Version
		stages  []winos.Stage
		cutAt   time.Duration
		state   string
		failed  bool
	}{
		"in the specialize pass Windows gives up": {winos.Windows7, []winos.Stage{{State: winos.Specialize, Takes: 10 * s}, {State: winos.Complete}}, 5 * s, winos.Specialize, true},
		"in OOBE it begins that again":            {winos.Windows7, []winos.Stage{{State: winos.OOBE, Takes: 10 * s}, {State: winos.Complete}}, 5 * s, winos.Complete, false},
		"in mini-setup too":                       {winos.XP, []winos.Stage{{State: winos.MiniSetup, Takes: 10 * s}, {State: winos.Complete}}, 5 * s, winos.Complete, false},
		"silent until then": {winos.Server2019, []winos.Stage{{State: winos.Specialize, Takes: 10 * s, UntilReset: true}, {State: winos.Complete}},
			time.Hour, winos.Complete, false},
		"afterwards nothing": {winos.Server2019, []winos.Stage{{State: winos.OOBE, Takes: s}, {State: winos.Complete}}, 5 * s, winos.Complete, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, test.version, true, test.stages...)
				l.on()
				time.Sleep(test.cutAt)
				l.reset()
				time.Sleep(9 * s)
				synctest.Wait()
				if test.state == winos.Complete && test.cutAt == 5*s && test.stages[0].Takes == 10*s && l.machine.Setup().State == winos.Complete {
					t.Error("it went on where it was, and did not begin the pass again")
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if got := l.machine.Setup(); got.State != test.state || got.Failed != test.failed {
					t.Errorf("set-up: %+v, want %s, failed %t", got, test.state, test.failed)
				}
				if errors := l.read(`C:\Windows\Panther\setuperr.log`); test.failed && !strings.Contains(errors, "restarted unexpectedly") {
					t.Errorf("setuperr.log: %q", errors)
				}
				l.off()
			})
		})
	}
}

func TestFaults(t *testing.T) {
	const s = time.Second
	complete := winos.Stage{State: winos.Complete}
	tests := map[string]struct {
		stages []winos.Stage
		diary  []string
		check  func(t *testing.T, l *lab)
	}{
		"the address changes half way": {
			stages: []winos.Stage{{State: winos.Specialize, Takes: 2 * s, Answers: true, Address: "127.0.0.9:22"}, {State: winos.OOBE, Takes: 2 * s, Answers: true}, complete},
			diary:  []string{"0s channel true 127.0.0.9:22", "2s channel true"},
		},
		"answers, and goes away for minutes": {
			stages: []winos.Stage{{State: winos.OOBE, Takes: 10 * time.Minute, Answers: true, AwayAfter: 10 * s, AwayFor: 3 * time.Minute}, complete},
			diary:  []string{"0s channel true", "10s channel false", "3m10s channel true"},
		},
		"goes away when all is over": {
			stages: []winos.Stage{{State: winos.Complete, AwayAfter: 10 * s, AwayFor: 3 * time.Minute}},
			diary:  []string{"0s channel true", "10s channel false", "3m10s channel true"},
		},
		"never completes, and writes on": {
			stages: []winos.Stage{{State: winos.OOBE, Answers: true, NeverEnds: true}, complete},
			diary:  []string{"0s channel true"},
			check: func(t *testing.T, l *lab) {
				before := l.read(`C:\Windows\Panther\UnattendGC\setupact.log`)
				time.Sleep(10 * s)
				synctest.Wait()
				if after := l.read(`C:\Windows\Panther\UnattendGC\setupact.log`); len(after) <= len(before) || l.machine.Setup().State != winos.OOBE {
					t.Errorf("state %s, log from %d to %d bytes", l.machine.Setup().State, len(before), len(after))
				}
			},
		},
		"never completes, and is quiet": {
			stages: []winos.Stage{{State: winos.OOBE, Answers: true, NeverEnds: true, Quiet: true}, complete},
			diary:  []string{"0s channel true"},
			check: func(t *testing.T, l *lab) {
				before := l.read(`C:\Windows\Panther\UnattendGC\setupact.log`)
				time.Sleep(10 * s)
				synctest.Wait()
				if after := l.read(`C:\Windows\Panther\UnattendGC\setupact.log`); after != before {
					t.Errorf("the log grew: %q", after[len(before):])
				}
			},
		},
		"ends undeployable": {
			stages: []winos.Stage{{State: winos.Specialize, Takes: 3 * s, Answers: true, Fails: "cannot parse the answer file"}, complete},
			diary:  []string{"0s channel true"},
			check: func(t *testing.T, l *lab) {
				if got := l.machine.Setup(); !got.Failed || got.ImageState != winos.ImageUndeployable || got.State != winos.Specialize {
					t.Errorf("set-up: %+v", got)
				}
				if text := l.read(`C:\Windows\Panther\setuperr.log`); !strings.Contains(text, "Error [setup.exe] cannot parse the answer file") {
					t.Errorf("setuperr.log: %q", text)
				}
			},
		},
		"an error in setuperr.log, and the state stays": {
			stages: []winos.Stage{{State: winos.Specialize, Takes: 3 * s, Answers: true, Fails: "no driver", ImageState: winos.ImageGeneralized}, complete},
			diary:  []string{"0s channel true"},
			check: func(t *testing.T, l *lab) {
				if got := l.machine.Setup(); got.ImageState != winos.ImageGeneralized || l.read(`C:\Windows\Panther\setuperr.log`) == "" {
					t.Errorf("set-up: %+v", got)
				}
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, winos.Server2022, true, test.stages...)
				l.on()
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				if test.check != nil {
					test.check(t, l)
				}
				l.want(test.diary...)
				l.off()
			})
		})
	}
}

// TestIdentity: Sysprep makes a new host key and certificate once; a second time is a fault.
func TestIdentity(t *testing.T) {
	for name, again := range map[string]bool{"once": false, "a second time": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, winos.Server2022, true, winos.Stage{State: winos.Specialize, Takes: time.Second, Answers: true},
					winos.Stage{State: winos.OOBE, Takes: time.Second, Answers: true, NewKey: true}, winos.Stage{State: winos.Complete, NewKey: again})
				var keys, certificates []string
				look := func() {
					key, err := l.machine.HostKey()
					if err != nil {
						t.Fatal(err)
					}
					certificate, err := l.machine.Certificate()
					if err != nil {
						t.Fatal(err)
					}
					keys = append(keys, string(key.PublicKey().Marshal()))
					certificates = append(certificates, string(certificate.Certificate[0]))
				}
				l.on()
				for range 3 {
					time.Sleep(time.Second / 2)
					synctest.Wait()
					look()
					time.Sleep(time.Second / 2)
				}
				for _, all := range [][]string{keys, certificates} {
					if all[0] == all[1] || (all[1] == all[2]) == again {
						t.Errorf("changed at OOBE: %t; when complete: %t", all[0] != all[1], all[1] != all[2])
					}
				}
				l.off()
			})
		})
	}
}

func TestClockFarOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := winos.New(winos.Options{Image: winos.Image{Version: winos.Server2022}, Name: "vm-01", Offset: -8 * 365 * 24 * time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		go m.Live(ctx)
		synctest.Wait()
		if age := time.Since(m.BootTime()); age < 7*365*24*time.Hour {
			t.Errorf("it booted %s ago by its own clock", age)
		}
		cancel()
		synctest.Wait()
	})
}
