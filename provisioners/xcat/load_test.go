package xcat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth/provisioners"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// try loads n01 in a bubble and returns how that went.
func try(t *testing.T, f *fake, change func(f *fake), orders ...func(*provisioners.Request)) (report *reporter, err error) {
	synctest.Test(t, func(t *testing.T) {
		if change != nil {
			change(f)
		}
		report = newReporter()
		request := order(orders...)
		ctx, cancel := context.WithDeadline(t.Context(), request.Deadline)
		defer cancel()
		_, err = f.module().Load(ctx, request, report)
		if f.end != nil {
			f.end()
		}
	})
	return report, err
}

// Every row of the reference's table of failures: what is seen, what is done, which verdict, how often the node's power was
// touched, and how the node is left.
func TestEveryWayALoadCanGo(t *testing.T) {
	bmcSays := func(command, text string) func(*fake) {
		return func(f *fake) {
			f.refuse = func(c xcatd.Command) *xcatd.Line {
				if c.String() == command {
					return &xcatd.Line{Node: "n01", Text: text}
				}
				return nil
			}
		}
	}
	plays := func(steps []step) func(*fake) { return func(f *fake) { f.nodes["n01"].install = steps } }
	for name, c := range map[string]struct {
		change  func(*fake)
		orders  []func(*provisioners.Request)
		verdict reservation.Verdict
		reason  string // in the error
		boots   int
		offs    int
		state   string // left
		stage   string // seen
	}{
		"works": {verdict: reservation.VerdictDone, boots: 1, state: stateBoot, stage: "install: installing kernel (40%)"},
		"works on a node that was on": {change: func(f *fake) { f.nodes["n01"].on = true },
			verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"silent node": {change: plays(silent()), verdict: reservation.VerdictDone, boots: 1, state: stateBoot, stage: "install: " + armed},
		"the status is blank every second time": {change: func(f *fake) { f.nodes["n01"].lossy = 1 },
			verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"an old booted is no news": {change: func(f *fake) { f.nodes["n01"].status, f.nodes["n01"].stamp = "booted", "11-23-2026 18:15:38" },
			verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"an old failed that a cache still shows is no news": {change: func(f *fake) {
			n := f.nodes["n01"]
			n.status, n.stamp, n.stuck = "failed", "11-23-2026 18:15:38", true
		}, verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"BMC dead": {change: bmcSays("rpower n01 stat", "ERROR: timeout"),
			verdict: reservation.VerdictReload, reason: "BMC does not answer", state: stateBoot},
		"BMC with another password": {change: bmcSays("rpower n01 stat", "ERROR: Incorrect password provided"),
			verdict: reservation.VerdictFail, reason: "table ipmi", state: stateBoot},
		"BMC refuses": {change: bmcSays("rpower n01 boot", "Timeout while processing command, response unavailable"),
			verdict: reservation.VerdictReload, reason: "told 3 times", state: stateBoot},
		"BMC that cannot be told to boot from the net": {change: bmcSays("rsetboot n01 net", "Invalid data field in Request"),
			verdict: reservation.VerdictReload, reason: "told 3 times", state: stateBoot},
		"no PXE": {change: plays(nil), verdict: reservation.VerdictReload, reason: "makedhcp -q n01", boots: 2, state: stateBoot},
		"no PXE on a node that was on is cured by a cold start": {change: func(f *fake) {
			n := f.nodes["n01"]
			n.on, n.install = true, nil
			f.before = func(c xcatd.Command) {
				if c.String() == "rpower n01 off" {
					f.with(func(n *fakeNode) { n.install = works() })
				}
			}
		}, verdict: reservation.VerdictDone, boots: 2, offs: 1, state: stateBoot},
		"hangs in the installer": {change: plays(hangs()), verdict: reservation.VerdictReload, reason: "no progress", boots: 2, state: stateBoot,
			stage: "power on: again: no progress"},
		"post script fails": {change: plays(postFails()), verdict: reservation.VerdictReload, reason: "post-install script", boots: 1, state: stateBoot},
		"failed after the disk is loaded": {change: plays(append(works()[:4], step{12 * time.Minute, func(n *fakeNode) { n.state = stateBoot; n.set("failed"); n.line = "" }})),
			verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"installs again by itself": {change: plays(append(works()[:4], step{13 * time.Minute, says("")}, step{16 * time.Minute, notes("installing")})),
			verdict: reservation.VerdictFail, reason: "install for ever", boots: 1, state: stateBoot},
		"its next is lost": {change: plays(append(works()[:4], step{13 * time.Minute, says("")}, step{14 * time.Minute, notes("booted")})),
			verdict: reservation.VerdictFail, reason: "install for ever", boots: 1, state: stateBoot},
		"the installer powers off": {change: plays(append(works()[:4], step{12 * time.Minute, func(n *fakeNode) { next(n); n.line, n.on = "", false }})),
			verdict: reservation.VerdictDone, boots: 2, state: stateBoot},
		"the installer does not end, and a boot from the disk ends it": {change: plays(append(works()[:4], step{12 * time.Minute, next})),
			verdict: reservation.VerdictDone, boots: 2, state: stateBoot, stage: "leave installer: the installer does not end"},
		"the installer never ends": {change: func(f *fake) {
			f.nodes["n01"].install = append(works()[:4], step{12 * time.Minute, next})
			f.after = func(c xcatd.Command) {
				if f.nodes["n01"].state == stateBoot {
					f.nodes["n01"].line = "installing post scripts"
				}
			}
			f.nodes["n01"].state = "offline"
		}, verdict: reservation.VerdictReload, reason: "still answers", boots: 2, state: stateBoot},
		"somebody has armed it for another image before": {change: func(f *fake) { f.nodes["n01"].arm(alma) },
			verdict: reservation.VerdictFail, reason: "somebody else", state: "install alma9-x86_64-compute"},
		"somebody has armed it for this image": {change: func(f *fake) { f.nodes["n01"].arm(osimage) },
			verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"a reservation before has left it armed": {change: func(f *fake) {
			f.nodes["n01"].arm(alma)
			f.nodes["n01"].comment = "rack 7 [berth r0/run-0/2 alma9-x86_64-install-compute]"
		}, verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"somebody arms it for another image while it installs": {change: plays(append(works()[:2], step{6 * time.Minute, func(n *fakeNode) { n.arm(alma) }})),
			verdict: reservation.VerdictFail, reason: "somebody else", boots: 1, state: "install alma9-x86_64-compute"},
		"its next is lost, and so is every other note": {change: plays(append(works()[:1], step{10 * time.Minute, func(n *fakeNode) { n.line, n.services = "", "https,sshd" }})),
			verdict: reservation.VerdictFail, reason: "install for ever", boots: 1, state: stateBoot},
		"a reboot that takes a while, and a late next": {change: plays(append(works()[:1], step{10 * time.Minute, func(n *fakeNode) { n.line, n.services = "", "sshd" }},
			step{12 * time.Minute, next})), verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"each answer takes 30 s": {change: func(f *fake) { f.takes = 30 * time.Second }, verdict: reservation.VerdictDone, boots: 1, state: stateBoot},
		"somebody arms it for another image right after our nodeset": {change: func(f *fake) {
			f.after = func(c xcatd.Command) {
				if c.String() == "nodeset n01 osimage="+osimage {
					f.nodes["n01"].arm(alma)
				}
			}
		}, verdict: reservation.VerdictFail, reason: "somebody else", state: "install alma9-x86_64-compute"},
		"somebody arms it right before we power it on, and lsdef does not tell so far": {change: func(f *fake) {
			f.after = func(c xcatd.Command) {
				if c.String() == "rsetboot n01 net" {
					f.nodes["n01"].cache(5 * time.Second)
					f.nodes["n01"].arm(alma)
				}
			}
		}, verdict: reservation.VerdictFail, reason: "somebody else", state: "install alma9-x86_64-compute"},
		"somebody sets it offline": {change: plays(append(works()[:2], step{6 * time.Minute, func(n *fakeNode) { n.state = "offline" }})),
			verdict: reservation.VerdictFail, reason: "somebody else", boots: 1, state: "offline"},
		"xcatd is away for longer than the whole load may take": {change: func(f *fake) {
			f.nodes["n01"].install = append(works()[:2],
				step{6 * time.Minute, func(*fakeNode) { f.down = true }}, step{76 * time.Minute, func(*fakeNode) { f.down = false }}, step{77 * time.Minute, func(n *fakeNode) { next(n); n.line = "" }})
		}, verdict: reservation.VerdictDone, boots: 1, state: stateBoot, stage: "does not answer"},
		"xcatd is away for 30 minutes": {change: func(f *fake) {
			f.nodes["n01"].install = append(works()[:2],
				step{6 * time.Minute, func(*fakeNode) { f.down = true }}, step{36 * time.Minute, func(*fakeNode) { f.down = false }}, step{37 * time.Minute, func(n *fakeNode) { next(n); n.line = "" }})
		}, verdict: reservation.VerdictDone, boots: 1, state: stateBoot, stage: "does not answer"},
		"denied": {change: func(f *fake) {
			f.refuse = func(xcatd.Command) *xcatd.Line { return &xcatd.Line{Text: "Permission denied for request"} }
		}, verdict: reservation.VerdictFail, reason: "table policy", state: stateBoot},
		"unknown node":       {orders: []func(*provisioners.Request){placement(placeNode, "n77")}, verdict: reservation.VerdictFail, reason: "no such node", state: stateBoot},
		"unknown osimage":    {orders: []func(*provisioners.Request){source(sourceOSImage, "nosuch")}, verdict: reservation.VerdictFail, reason: "no such osimage", state: stateBoot},
		"diskless":           {orders: []func(*provisioners.Request){source(sourceOSImage, "rocky9.4-x86_64-netboot-compute")}, verdict: reservation.VerdictFail, reason: "nothing on the disk", state: stateBoot},
		"other architecture": {orders: []func(*provisioners.Request){source(sourceOSImage, "rocky9.4-ppc64le-install")}, verdict: reservation.VerdictFail, reason: "ppc64le", state: stateBoot},
		"no MAC":             {change: func(f *fake) { f.nodes["n01"].mac = "" }, verdict: reservation.VerdictFail, reason: "MAC", state: stateBoot},
		"another MAC":        {change: func(f *fake) { f.nodes["n01"].mac = "02:00:00:00:00:99" }, verdict: reservation.VerdictFail, reason: "catalog", state: stateBoot},
		"no mgt":             {change: func(f *fake) { f.nodes["n01"].mgt = "" }, verdict: reservation.VerdictFail, reason: "mgt", state: stateBoot},
		"a host key to hand over": {orders: []func(*provisioners.Request){func(r *provisioners.Request) { r.Reservation.Image.Control.HostKey = reservation.HostKeyHanded }},
			verdict: reservation.VerdictFail, reason: "first-handshake", state: stateBoot},
		"own keys without tools": {orders: []func(*provisioners.Request){source(sourceKnownHosts, hostKeysOwn)},
			verdict: reservation.VerdictFail, reason: "tools", state: stateBoot},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			report, err := try(t, f, c.change, c.orders...)
			require.Equal(t, c.verdict, reservation.VerdictOf(err), "%v", err)
			if c.reason != "" {
				require.ErrorContains(t, err, c.reason)
			}
			n := f.nodes["n01"]
			require.Equal(t, c.state, n.state)
			require.Equal(t, c.boots, n.boots, "power-ons")
			require.Equal(t, c.offs, n.offs, "power-offs")
			require.Equal(t, 0, f.count("rpower n01 reset"))
			if c.verdict == reservation.VerdictFail {
				require.False(t, report.saw("again:"), "it fails at once")
			}
			if c.stage != "" {
				require.True(t, report.saw(c.stage), "%q", report.stages)
			}
			if c.verdict == reservation.VerdictDone {
				require.True(t, n.on)
				require.Empty(t, n.line, "the installer has let go of it")
				require.Equal(t, 1, n.nodesets)
			}
			if n.nodesets > 0 && c.verdict != reservation.VerdictDone && c.state == stateBoot && c.boots == 0 {
				require.Equal(t, "hd", n.device, "the boot device is back")
			}
		})
	}
}

func TestABMCIsAskedAgainByWhatItAnswers(t *testing.T) {
	for text, c := range map[string]struct {
		command string
		tries   int
	}{
		"ERROR: timeout":                {"rpower n01 stat", 5},
		"Invalid data field in Request": {"rsetboot n01 net", 3},
	} {
		f := newFake()
		_, err := try(t, f, func(f *fake) {
			f.refuse = func(command xcatd.Command) *xcatd.Line {
				if command.String() == c.command {
					return &xcatd.Line{Node: "n01", Text: text}
				}
				return nil
			}
		})
		require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err), "%v", err)
		require.Equal(t, c.tries, f.count(c.command))
	}
	t.Run("a few timeouts cost nothing", func(t *testing.T) {
		f := newFake()
		_, err := try(t, f, func(f *fake) {
			tries := map[string]int{}
			f.refuse = func(command xcatd.Command) *xcatd.Line {
				if tries[command.String()]++; command.Name == "rpower" && tries[command.String()] <= 4 {
					return &xcatd.Line{Node: "n01", Text: "ERROR: timeout"}
				}
				return nil
			}
		})
		require.NoError(t, err)
		require.Equal(t, 1, f.nodes["n01"].boots)
	})
	t.Run("one that does it and says it timed out", func(t *testing.T) {
		f := newFake()
		_, err := try(t, f, func(f *fake) {
			f.refuse = func(command xcatd.Command) *xcatd.Line {
				if command.String() == "rpower n01 boot" {
					f.nodes["n01"].power(f, "boot")
					return &xcatd.Line{Node: "n01", Text: "ERROR: timeout"}
				}
				return nil
			}
		})
		require.NoError(t, err)
		require.Equal(t, 1, f.nodes["n01"].boots)
	})
}

func TestASlowImageGetsItsTime(t *testing.T) {
	slow := []step{works()[0], {40 * time.Minute, says("installing kernel (40%)")}, {95 * time.Minute, func(n *fakeNode) { next(n); n.line = "" }}}
	f := newFake()
	_, err := try(t, f, func(f *fake) { f.nodes["n01"].install = slow })
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err), "%v", err)
	f = newFake()
	_, err = try(t, f, func(f *fake) { f.nodes["n01"].install = slow }, source(sourceExpected, "60"))
	require.NoError(t, err)
	require.Equal(t, 1, f.nodes["n01"].boots)
	_, err = try(t, newFake(), func(f *fake) {}, source(sourceOverall, "8m"))
	require.ErrorContains(t, err, "overall limit")
}

func TestTheOverallLimitLeavesTimeToDisarm(t *testing.T) {
	var steps []step
	for i := range 200 {
		steps = append(steps, step{time.Duration(3+i) * time.Minute, says(fmt.Sprintf("installing package %d", i))})
	}
	f := newFake()
	_, err := try(t, f, func(f *fake) { f.nodes["n01"].install = steps }, func(r *provisioners.Request) {
		r.Limit, r.Deadline = 30*time.Minute, time.Now().Add(30*time.Minute)
	})
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err), "%v", err)
	require.ErrorContains(t, err, "overall limit")
	require.Equal(t, stateBoot, f.nodes["n01"].state)
}

// A worker is lost at each of its commands: just before it (a cancel that aborts it), or with it done and nothing noted of it
// (a worker that hands over lets it finish). The next one goes on: one nodeset, one power-on, one install.
func TestAWorkerThatIsLostAnywhereLeavesOneInstall(t *testing.T) {
	whole := newFake()
	_, err := try(t, whole, nil)
	require.NoError(t, err)
	for _, cause := range []error{context.Canceled, provisioners.HandOver{}} {
		for _, all := range []bool{false, true} {
			for at := range len(whole.commands) {
				where := fmt.Sprintf("%v at %d: %s", cause, at, whole.commands[at])
				synctest.Test(t, func(t *testing.T) {
					f := newFake()
					request, report := order(), newReporter()
					ctx, cancel := context.WithCancelCause(t.Context())
					n := 0
					f.before = func(xcatd.Command) {
						if n++; n == at+1 {
							cancel(cause)
							synctest.Wait()
						}
					}
					if _, err := f.module().Load(ctx, request, report); err != nil {
						require.ErrorIs(t, err, context.Canceled, where)
						f.before = nil
						_, err = f.module().Load(t.Context(), request, report.successor(all))
						require.NoError(t, err, where)
					}
					node := f.nodes["n01"]
					require.Equal(t, [3]int{1, 1, 1}, [3]int{node.nodesets, node.boots, node.installs}, where)
					require.Equal(t, stateBoot, node.state)
				})
			}
		}
	}
}

func TestAWorkerThatHandsOverLetsItsCommandFinish(t *testing.T) {
	for cause, boots := range map[error]int{provisioners.HandOver{}: 1, context.Canceled: 0} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			ctx, cancel := context.WithCancelCause(t.Context())
			f.before = func(c xcatd.Command) {
				if c.String() == "rpower n01 boot" {
					cancel(cause)
					synctest.Wait()
				}
			}
			_, err := f.module().Load(ctx, order(), newReporter())
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, boots, f.nodes["n01"].boots, "%v", cause)
		})
	}
}

func TestTheNoProgressClockSurvivesItsWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.nodes["n01"].install = hangs() // its last word comes after 8 minutes
		request, report := order(), newReporter()
		first, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
		defer cancel()
		_, err := f.module().Load(first, request, report)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		second, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		_, err = f.module().Load(second, request, report.successor(true))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 2, f.nodes["n01"].boots, "the reset is due 10 minutes after the last change, whoever saw it")
	})
}

func TestALateWorkerTouchesNothing(t *testing.T) {
	f := newFake()
	_, err := try(t, f, func(f *fake) { f.nodes["n01"].comment = "[berth r1/run-1/2 " + osimage + "]" })
	require.ErrorAs(t, err, new(*LateError))
	require.Equal(t, reservation.Verdict(""), reservation.VerdictOf(err), "it costs no attempt")
	require.Zero(t, f.nodes["n01"].boots+f.nodes["n01"].nodesets)

	f = newFake()
	_, err = try(t, f, func(f *fake) {
		f.nodes["n01"].install = append(works()[:2], step{6 * time.Minute, func(n *fakeNode) { n.comment = "[berth r1/run-1/2 " + osimage + "]" }})
	})
	require.ErrorAs(t, err, new(*LateError))
	require.Equal(t, armed, f.nodes["n01"].state, "what the later attempt has armed stays armed")
}

func TestANodesOwnCommentIsKept(t *testing.T) {
	f := newFake()
	_, err := try(t, f, func(f *fake) { f.nodes["n01"].comment = "rack 7, do not move [berth r0/run-0/1 x]" })
	require.NoError(t, err)
	require.Equal(t, "rack 7, do not move [berth r1/run-1/1 "+osimage+"]", f.nodes["n01"].comment)
}

func TestManyLoadsThatDoNotStartPointAtTheManagementNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.nodes["n01"].install = nil
		m := f.module()
		for i := range 3 {
			_, err := m.Load(t.Context(), order(func(r *provisioners.Request) { r.Mark.Attempt = i + 1 }), newReporter())
			require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err), "%v", err)
			if i < 2 {
				require.NotContains(t, err.Error(), "look at the management node")
			} else {
				require.ErrorContains(t, err, "look at the management node")
			}
		}
	})
}

func TestANodeThatCannotBeDisarmedIsNamed(t *testing.T) {
	f := newFake()
	_, err := try(t, f, func(f *fake) {
		f.nodes["n01"].install = postFails()
		f.refuse = func(c xcatd.Command) *xcatd.Line {
			if c.String() == "nodeset n01 boot" {
				return &xcatd.Line{Text: "dhcp server is not running"}
			}
			return nil
		}
	})
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err))
	require.ErrorContains(t, err, "could not be disarmed")
}

// gate counts who holds a slot of each gate.
type gate struct {
	capacity map[string]int
	held     map[string]int
}

func newGate() *gate { return &gate{map[string]int{}, map[string]int{}} }

// enter is provisioners.Request.Enter. Who is inside already gets the same slot.
func (g *gate) enter(_ context.Context, name string, capacity int, _ func(int)) (func(), error) {
	g.capacity[name], g.held[name] = capacity, 1
	return func() { g.held[name] = 0 }, nil
}

// leave is provisioners.Request.Leave.
func (g *gate) leave(_ context.Context, name string) { g.held[name] = 0 }

// through returns a change of a request that has it go through the gate.
func (g *gate) through(r *provisioners.Request) { r.Enter, r.Leave = g.enter, g.leave }

func TestALoadHoldsItsSlotAsLongAsItsNodeMayBeArmed(t *testing.T) {
	const mine = "xcat/mn"
	for name, c := range map[string]struct {
		change  func(*fake)
		verdict reservation.Verdict
		held    int // after the load
		after   int // after Abort
	}{
		"done":                    {verdict: reservation.VerdictDone},
		"reload":                  {change: func(f *fake) { f.nodes["n01"].install = postFails() }, verdict: reservation.VerdictReload},
		"somebody else's":         {change: func(f *fake) { f.nodes["n01"].arm(alma) }, verdict: reservation.VerdictFail},
		"nothing was ever armed":  {change: func(f *fake) { f.nodes["n01"].mac = "" }, verdict: reservation.VerdictFail},
		"a fault before it armed": {change: func(f *fake) { f.down = true }, held: 1, after: 1},
		"a fault while it is armed": {change: func(f *fake) {
			f.before = func(c xcatd.Command) {
				if c.String() == "rpower n01 boot" {
					f.with(func(*fakeNode) { f.down = true })
				}
			}
		}, held: 1, after: 1},
		"it cannot be disarmed": {change: func(f *fake) {
			f.nodes["n01"].install = postFails()
			f.refuse = func(c xcatd.Command) *xcatd.Line {
				if c.String() == "nodeset n01 boot" {
					return &xcatd.Line{Text: "dhcp server is not running"}
				}
				return nil
			}
		}, verdict: reservation.VerdictReload, held: 1, after: 1},
	} {
		t.Run(name, func(t *testing.T) {
			f, g := newFake(), newGate()
			_, err := try(t, f, func(f *fake) {
				if c.change != nil {
					c.change(f)
				}
				before := f.before
				f.before = func(command xcatd.Command) {
					require.Equal(t, 1, g.held[mine], "%s", command)
					if before != nil {
						before(command)
					}
				}
			}, g.through)
			require.Equal(t, c.verdict, reservation.VerdictOf(err), "%v", err)
			require.Equal(t, DefaultInstalls, g.capacity[mine])
			require.Equal(t, c.held, g.held[mine])
			f.before = nil
			_ = f.module().Abort(t.Context(), order(g.through), newReporter())
			require.Equal(t, c.after, g.held[mine])
			f.down, f.refuse = false, nil
			require.NoError(t, f.module().Abort(t.Context(), order(g.through), newReporter()))
			require.Zero(t, g.held[mine])
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, g := newFake(), newGate()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			_, err := f.module().Load(ctx, order(g.through), newReporter())
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, armed, f.nodes["n01"].state)
			f.before = func(c xcatd.Command) {
				f.with(func(n *fakeNode) { require.True(t, n.state != armed || g.held[mine] == 1, "%s", c) })
			}
			require.NoError(t, f.module().Abort(t.Context(), order(g.through), newReporter()))
			require.Equal(t, stateBoot, f.nodes["n01"].state)
			require.Zero(t, g.held[mine])
		})
	})
}

// A worker that has armed the node was lost without a word, and its successor judges before it comes to that.
func TestANodeThatALostWorkerHasArmedIsDisarmedByItsSuccessorsVerdict(t *testing.T) {
	f := mid()
	_, err := try(t, f, func(f *fake) {
		f.refuse = func(c xcatd.Command) *xcatd.Line {
			if c.Name == "rpower" {
				return &xcatd.Line{Node: "n01", Text: "ERROR: timeout"}
			}
			return nil
		}
	})
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err), "%v", err)
	require.Equal(t, stateBoot, f.nodes["n01"].state)
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		want reservation.Verdict
	}{
		{nil, reservation.VerdictDone},
		{context.Canceled, ""},
		{&xcatd.Error{Kind: xcatd.Connection}, ""},
		{&xcatd.Error{Kind: xcatd.Authentication}, reservation.VerdictFail},
		{&xcatd.Error{Kind: xcatd.Permission}, reservation.VerdictFail},
		{&xcatd.Error{Kind: xcatd.UnknownNode}, reservation.VerdictFail},
		{&xcatd.Error{Kind: xcatd.UnknownOSImage}, reservation.VerdictFail},
		{&xcatd.Error{Kind: xcatd.BMCTimeout}, reservation.VerdictReload},
		{&xcatd.Error{Kind: xcatd.BMCRefusal}, reservation.VerdictReload},
		{&xcatd.Error{Kind: xcatd.BMCLogin}, reservation.VerdictFail},
		{&xcatd.Error{Kind: xcatd.Other}, ""},
		{&ForeignError{}, reservation.VerdictFail},
		{&LateError{}, ""},
		{errors.New("anything"), ""},
		{fmt.Errorf("wrapped: %w", &xcatd.Error{Kind: xcatd.BMCTimeout}), reservation.VerdictReload},
		{reservation.Reload("already judged", &xcatd.Error{Kind: xcatd.Permission}), reservation.VerdictReload},
	} {
		require.Equal(t, c.want, reservation.VerdictOf(Classify(c.err)), "%v", c.err)
	}
}

// What a worker of version 1 has kept, testdata/kept-1.json, and what it has written onto the node: this version goes on with it.
// One nodeset, one power-on, whatever was done by then.
func TestALoadOfVersion1GoesOn(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "kept-1.json"))
	require.NoError(t, err)
	var all map[string]map[string]string
	require.NoError(t, json.Unmarshal(text, &all))
	require.Len(t, all, 5)
	for name, kept := range all {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// Its times were some minutes ago.
				began, err := time.Parse(time.RFC3339, kept["began"])
				require.NoError(t, err)
				report := newReporter()
				for key, value := range kept {
					for minutes := range 10 {
						at := began.Add(time.Duration(minutes) * time.Minute)
						value = strings.ReplaceAll(value, at.Format(time.RFC3339), time.Now().Add(time.Duration(minutes-7)*time.Minute).Format(time.RFC3339))
					}
					report.kept[key] = value
				}
				f := newFake()
				n := f.nodes["n01"]
				n.arm(osimage)
				n.comment, n.nodesets = "rack 7 [berth r1/run-1/1 "+osimage+"]", 1
				if n.device = "net"; kept["power"] != "" {
					n.power(f, "boot")
				}
				_, err = f.module().Load(t.Context(), order(), report)
				require.NoError(t, err)
				require.Equal(t, [3]int{1, 1, 1}, [3]int{n.nodesets, n.boots, n.installs})
				require.Equal(t, stateBoot, n.state)
				require.Equal(t, "rack 7 [berth r1/run-1/1 "+osimage+"]", n.comment)
			})
		})
	}
}
