package xcat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/simsite/xcatmn"
	"berth/provisioners"
	"berth/reservation"
)

const (
	alma = "alma9-x86_64-install-compute"
	mac  = "02:00:00:00:00:01"
)

// lab is a management node with one node, n01, and the module that serves it.
type lab struct {
	t      *testing.T
	mn     *xcatmn.Manager
	module *Module
	host   string // n01's address
	faults int    // that the loads have met
}

// brisk are limits for machines whose minutes take 1/speed of a minute. What is not to run out here is generous.
func brisk(changes ...func(*Limits)) Limits {
	const generous = 5 * time.Minute // a machine that is busy with other tests needs a minute for seconds' work
	limits := Limits{Start: generous, NoProgress: generous, Overall: generous, PowerOn: generous, InstallerGone: generous, NextLate: time.Minute,
		PollPower: 20 * time.Millisecond, PollStart: 20 * time.Millisecond, PollInstall: 20 * time.Millisecond, Retry: 20 * time.Millisecond}
	for _, change := range changes {
		change(&limits)
	}
	return limits
}

// often has a node looked at more often, where what is to be seen lasts some 15 ms: a restart of xcatd, a package's name.
func often(l *Limits) { l.PollStart, l.PollInstall = 5*time.Millisecond, 5*time.Millisecond }

// speed makes an install of 10 minutes take a second.
const speed = 600

func newLab(t *testing.T, mode xcatmn.Mode, limits Limits, changes ...func(*xcatmn.Options)) *lab {
	t.Helper()
	l := &lab{t: t, host: address(t)}
	options := xcatmn.Options{Speed: speed, OSImages: []string{osimage, alma},
		Nodes:  []xcatmn.Node{{Name: "n01", Address: l.host, MAC: mac, Mode: mode}},
		Policy: []xcatmn.Row{{CN: "berth", Commands: leastPrivilege()}}}
	for _, change := range changes {
		change(&options)
	}
	var err error
	l.mn, err = xcatmn.Start(context.Background(), options)
	require.NoError(t, err)
	t.Cleanup(l.mn.Close)
	l.module = l.worker(limits)
	return l
}

// leastPrivilege are the commands that the module needs.
func leastPrivilege() []string {
	return []string{"lsdef", "tabdump", "nodeset", "rsetboot", "rpower", "nodestat", "chdef", "makeknownhosts"}
}

// address returns a loopback address where nothing listens, so that labs may run at once.
func address(t *testing.T) string {
	t.Helper()
	for range 100 {
		host := fmt.Sprintf("127.%d.%d.%d", 1+rand.N(254), rand.N(256), 1+rand.N(254))
		listener, err := net.Listen("tcp", net.JoinHostPort(host, "3054"))
		if err == nil {
			listener.Close()
			return host
		}
	}
	t.Fatal("no loopback address is free")
	return ""
}

// worker returns a module as a worker has it.
func (l *lab) worker(limits Limits) *Module {
	l.t.Helper()
	ca := filepath.Join(l.t.TempDir(), "ca.pem")
	require.NoError(l.t, os.WriteFile(ca, l.mn.CA, 0o600))
	certificate, err := l.mn.ClientCertificate("berth")
	require.NoError(l.t, err)
	module, err := New(Options{Limits: limits, Sites: []Site{{Name: "mn", Address: l.mn.Address, CAFile: ca, Installs: 3,
		Certificate: func() ([]byte, error) { return certificate, nil }}}})
	require.NoError(l.t, err)
	return module
}

// order returns a request for n01.
func (l *lab) order(attempt int) provisioners.Request {
	return provisioners.Request{
		Reservation: reservation.Reservation{
			Name: "r1", User: "ada",
			Computer: reservation.Computer{Name: "n01", Provisioner: Type, Hardware: reservation.Physical, Address: l.host, MACs: []string{mac}},
			Image:    reservation.Image{Name: "rocky9", Revision: 1, Sources: map[string]map[string]string{Type: {"osimage": osimage}}},
		},
		Mark:     reservation.Mark{Reservation: "r1", Run: "run-1", Attempt: attempt},
		Attempt:  reservation.Attempt{Number: attempt, Of: 3},
		Limit:    time.Hour,
		Deadline: time.Now().Add(time.Hour),
	}
}

// load loads n01 as the workflow does: a fault is tried again in the same attempt.
func (l *lab) load(attempt int, report *reporter) (provisioners.Loaded, error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	for range 20 {
		loaded, err := l.module.Load(ctx, l.order(attempt), report)
		if err == nil || reservation.VerdictOf(err) != "" {
			return loaded, err
		}
		l.faults++
		l.t.Logf("a fault: %v", err)
		_ = pause(ctx, 200*time.Millisecond) // the workflow waits a second
		require.NoError(l.t, ctx.Err(), "the load hangs; history:\n%s", strings.Join(l.mn.History(), "\n"))
	}
	l.t.Fatal("nothing but faults")
	return provisioners.Loaded{}, nil
}

// Each mode of a node: the verdict, how often its power was touched, how often it was armed and has installed, and how it is
// left, before Abort and after it.
func TestALoadUnderEachModeOfANode(t *testing.T) {
	short := func(l *Limits) { l.Start = 5 * time.Second }
	once := xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}
	rows := map[xcatmn.Mode]struct {
		limits  func(*Limits)
		verdict reservation.Verdict // "" is done
		reason  string
		counts  xcatmn.Counts
		stage   string // one that is seen
		faults  int    // at least so many, which cost no attempt
		armed   string // the osimage that the node is left armed for
	}{
		xcatmn.Works:          {limits: often, counts: once, stage: "install: installing openssh-server (80%)"},
		xcatmn.OwnHostKeys:    {counts: once},
		xcatmn.NeverCallsBack: {counts: once},
		xcatmn.SlowSSHD:       {counts: once},
		xcatmn.BlankStatus:    {counts: once},
		xcatmn.StaleCache:     {counts: once},
		xcatmn.Slow:           {counts: once},
		xcatmn.Restarts:       {limits: often, counts: once, faults: 2, stage: "the management node does not answer"},
		xcatmn.PXELostOnce:    {limits: short, counts: xcatmn.Counts{PowerOns: 1, Resets: 1, Nodesets: 1, Installs: 1}, stage: "again: nothing has started"},
		xcatmn.NoPXE: {limits: short, verdict: reservation.VerdictReload, reason: "no installer has started",
			counts: xcatmn.Counts{PowerOns: 1, Resets: 1, Nodesets: 1}},
		xcatmn.PXELostTwice: {limits: short, verdict: reservation.VerdictReload, reason: "no installer has started",
			counts: xcatmn.Counts{PowerOns: 1, Resets: 1, Nodesets: 1}},
		xcatmn.Hangs: {limits: func(l *Limits) { l.NoProgress = 5 * time.Second }, verdict: reservation.VerdictReload,
			reason: "has made no progress", counts: xcatmn.Counts{PowerOns: 1, Resets: 1, Nodesets: 1, Installs: 2}, stage: "installing kernel (40%)"},
		xcatmn.HangsOnce: {limits: func(l *Limits) { l.NoProgress = 5 * time.Second },
			counts: xcatmn.Counts{PowerOns: 1, Resets: 1, Nodesets: 1, Installs: 2}, stage: "again: no progress"},
		xcatmn.PostFails: {verdict: reservation.VerdictReload, reason: "a post-install script", counts: once},
		xcatmn.NextLost:  {verdict: reservation.VerdictFail, reason: "would install for ever", counts: once},
		xcatmn.MonitorHangs: {limits: func(l *Limits) { l.NextLate = 2 * time.Second }, verdict: reservation.VerdictFail,
			reason: "would install for ever", counts: once},
		xcatmn.BMCDead: {verdict: reservation.VerdictReload, reason: "does not answer"},
		xcatmn.BMCRefuses: {verdict: reservation.VerdictReload, reason: "does not do what it is told",
			counts: xcatmn.Counts{Nodesets: 1}},
		xcatmn.OtherAdminArms: {verdict: reservation.VerdictFail, reason: "somebody else", counts: xcatmn.Counts{Nodesets: 1}, armed: alma},
	}
	for _, mode := range xcatmn.Modes() {
		c, ok := rows[mode]
		require.True(t, ok, "mode %s has no row", mode)
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			limits := brisk()
			if c.limits != nil {
				c.limits(&limits)
			}
			l := newLab(t, mode, limits)
			report := newReporter()
			loaded, err := l.load(1, report)
			story := strings.Join(l.mn.History(), "\n")
			require.Equal(t, cmp.Or(c.verdict, reservation.VerdictDone), reservation.VerdictOf(err), "%v\n%s", err, story)
			if err != nil {
				require.ErrorContains(t, err, c.reason)
			} else {
				require.Equal(t, "mn/n01", loaded.Reference)
				require.Equal(t, "boot", l.mn.State("n01").Currstate)
				require.True(t, l.mn.State("n01").Power)
				require.Equal(t, osimage, l.mn.State("n01").Disk)
			}
			require.Equal(t, c.counts, l.mn.Counts("n01"), story)
			require.GreaterOrEqual(t, l.faults, c.faults, story)
			require.True(t, c.faults > 0 || l.faults == 0, story)
			require.True(t, c.stage == "" || report.saw(c.stage), "%q is none of %q", c.stage, report.stages)

			for _, when := range []string{"after the load", "after Abort"} {
				state := l.mn.State("n01")
				require.Equal(t, c.armed != "", state.Armed(), "%s: %+v", when, state)
				if c.armed != "" {
					require.Equal(t, c.armed, state.Provmethod, when)
				} else {
					require.NotEqual(t, "net", state.Device, when)
				}
				require.NoError(t, l.module.Abort(context.Background(), l.order(1), newReporter()))
			}
			require.Equal(t, c.counts, l.mn.Counts("n01"), "Abort touches no power")
		})
	}
}

func TestTheSecondAttemptSavesANodeWhosePXEWasLostTwice(t *testing.T) {
	t.Parallel()
	l := newLab(t, xcatmn.PXELostTwice, brisk(func(l *Limits) { l.Start = 5 * time.Second }))
	_, err := l.load(1, newReporter())
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err), "%v", err)
	require.False(t, l.mn.State("n01").Armed())
	_, err = l.load(2, newReporter())
	require.NoError(t, err)
	require.Equal(t, 2, l.mn.Counts("n01").Nodesets)
	require.Equal(t, 1, l.mn.Counts("n01").Installs)
}

func TestALoadOutlivesARestartOfXcatd(t *testing.T) {
	t.Parallel()
	l := newLab(t, xcatmn.Works, brisk(often))
	restarted := make(chan error, 1)
	report := newReporter()
	var once sync.Once
	report.on = func(int) {
		if l.mn.Counts("n01").Installs > 0 {
			once.Do(func() { go func() { restarted <- l.mn.Restart() }() })
		}
	}
	_, err := l.load(1, report)
	require.NoError(t, err)
	require.NoError(t, <-restarted)
	require.Equal(t, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}, l.mn.Counts("n01"))
}

// However a load ends, its node is no longer armed when it gives up its slot.
func TestNoMoreNodesAreArmedThanThereAreSlots(t *testing.T) {
	t.Parallel()
	modes := []xcatmn.Mode{xcatmn.Works, xcatmn.PostFails, xcatmn.Works, xcatmn.BMCRefuses}
	const nodes, places = 12, 3
	l := newLab(t, xcatmn.Works, brisk(), func(o *xcatmn.Options) {
		for n := range nodes - 1 {
			o.Nodes = append(o.Nodes, xcatmn.Node{Name: fmt.Sprintf("n%02d", n+2), Address: address(t), Mode: modes[n%len(modes)]})
		}
	})
	slots := make(chan struct{}, places)
	var group sync.WaitGroup
	for n := range nodes {
		group.Go(func() {
			request := l.order(1)
			computer := &request.Reservation.Computer
			computer.Name, computer.MACs = fmt.Sprintf("n%02d", n+1), nil
			request.Reservation.Name = "r-" + computer.Name
			request.Mark.Reservation = request.Reservation.Name
			request.Enter = func(_ context.Context, _ string, capacity int, _ func(int)) (func(), error) {
				if capacity != places {
					return nil, fmt.Errorf("asked for one of %d slots", capacity)
				}
				slots <- struct{}{}
				return func() { <-slots }, nil
			}
			_, err := l.module.Load(t.Context(), request, newReporter())
			if verdict := reservation.VerdictOf(err); verdict != reservation.VerdictDone && verdict != reservation.VerdictReload {
				t.Errorf("%s: %v", computer.Name, err)
			}
		})
	}
	group.Wait()
	require.Equal(t, places, l.mn.MostArmed())
	for n := range nodes {
		state := l.mn.State(fmt.Sprintf("n%02d", n+1))
		require.False(t, state.Armed(), "%+v", state)
	}
}

// A worker is stopped in each call of its reporter, one after the other, until a load comes through without. It looks at its
// node less often than the other tests do: each look is two connections, and there are more than a hundred loads.
func TestAWorkerThatIsStoppedAnywhereLeavesOneInstallToItsSuccessor(t *testing.T) {
	limits := brisk(func(l *Limits) {
		l.PowerOn = time.Second
		l.PollPower, l.PollStart, l.PollInstall = 20*time.Millisecond, 20*time.Millisecond, 40*time.Millisecond
	})
	for name, c := range map[string]struct {
		killed bool // nothing of it runs on; else it hands over
		all    bool // the successor is told all that was kept, not only what was surely delivered
		on     bool // the node was powered on before
	}{
		"handed over":                     {all: true},
		"handed over, node on":            {all: true, on: true},
		"killed":                          {killed: true, all: true},
		"killed, heartbeat lost":          {killed: true},
		"killed, heartbeat lost, node on": {killed: true, on: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				l := newLab(t, xcatmn.Works, limits, func(o *xcatmn.Options) {
					o.Speed = 6000
					if c.on {
						o.Nodes[0].Disk, o.Nodes[0].On = alma, true
					}
				})
				report, stopped := newReporter(), false
				ctx, end := context.WithCancelCause(context.Background())
				report.on = func(call int) {
					if call < n {
						return
					}
					stopped = true
					end(provisioners.HandOver{})
					if c.killed {
						report.freeze()
						runtime.Goexit()
					}
				}
				done := make(chan error, 1)
				go func() {
					err := errors.New("killed")
					defer func() { done <- err }()
					_, err = l.module.Load(ctx, l.order(1), report)
				}()
				err := <-done
				end(nil)
				if !stopped {
					require.NoError(t, err)
					require.Greater(t, n, 10, "a load has that many steps")
					t.Logf("stopped at %d points", n-1)
					return
				}
				if err != nil {
					l.module = l.worker(limits)
					_, err = l.load(1, report.successor(c.all))
				}
				story := strings.Join(l.mn.History(), "\n")
				require.NoError(t, err, "stopped at %d\n%s", n, story)
				want := xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}
				if c.on {
					want = xcatmn.Counts{Resets: 1, Nodesets: 1, Installs: 1}
				}
				require.Equal(t, want, l.mn.Counts("n01"), "stopped at %d\n%s", n, story)
				require.Equal(t, "boot", l.mn.State("n01").Currstate)
				l.mn.Close()
			}
		})
	}
}

// Where the site says so, nodes that others have armed count, and nobody is armed beyond the limit, however many loads begin at once.
func TestNodesThatOthersHaveArmedCount(t *testing.T) {
	t.Parallel()
	const places, loads = 2, 4
	other := address(t)
	l := newLab(t, xcatmn.Works, brisk(), func(o *xcatmn.Options) {
		for n := 2; n <= loads; n++ {
			o.Nodes = append(o.Nodes, xcatmn.Node{Name: fmt.Sprintf("n%02d", n), Address: address(t)})
		}
		o.Nodes = append(o.Nodes, xcatmn.Node{Name: "other", Address: other})
	})
	mn := l.module.nodes["mn"]
	mn.countArmed, mn.installs = "all", places
	require.NoError(t, l.mn.ArmByHand("other", alma))
	gates := map[string]chan struct{}{"xcat/mn": make(chan struct{}, places), "xcat/mn/arming": make(chan struct{}, 1)}
	var reports []*reporter
	var group sync.WaitGroup
	for n := range loads {
		request, report := l.order(1), newReporter()
		reports = append(reports, report)
		computer := &request.Reservation.Computer
		computer.Name, computer.MACs = fmt.Sprintf("n%02d", n+1), nil
		request.Reservation.Name = "r-" + computer.Name
		request.Mark.Reservation = request.Reservation.Name
		request.Enter = func(_ context.Context, name string, capacity int, _ func(int)) (func(), error) {
			if capacity != cap(gates[name]) {
				return nil, fmt.Errorf("asked for one of %d slots at gate %s", capacity, name)
			}
			gates[name] <- struct{}{}
			return func() { <-gates[name] }, nil
		}
		group.Go(func() {
			if _, err := l.module.Load(t.Context(), request, report); err != nil {
				t.Errorf("%s: %v", computer.Name, err)
			}
		})
	}
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(reports, func(r *reporter) bool { return r.saw("wait for a slot: 2 nodes of all") })
	},
		time.Minute, time.Millisecond)
	require.NoError(t, l.mn.Disarm("other"))
	group.Wait()
	require.Equal(t, places, l.mn.MostArmed())
}

// Loads that end at once have their nodes' keys written one after the other, over all workers: makeknownhosts reads the file, and
// writes it back a moment later.
func TestKnownHostsAreWrittenForOneNodeAfterTheOther(t *testing.T) {
	t.Parallel()
	const nodes = 6
	l := newLab(t, xcatmn.Works, brisk(), func(o *xcatmn.Options) {
		o.Nodes[0].Disk = osimage
		for n := 2; n <= nodes; n++ {
			o.Nodes = append(o.Nodes, xcatmn.Node{Name: fmt.Sprintf("n%02d", n), Address: address(t), Disk: osimage})
		}
	})
	client := l.module.nodes["mn"].client
	var one sync.Mutex // the gate: over all workers
	var group sync.WaitGroup
	for n := 1; n <= nodes; n++ {
		request := l.order(1)
		computer := &request.Reservation.Computer
		computer.Name, computer.MACs = fmt.Sprintf("n%02d", n), nil
		request.Reservation.Image.Sources[Type][sourceKnownHosts] = hostKeysShared
		request.Enter = func(_ context.Context, name string, capacity int, _ func(int)) (func(), error) {
			if name != "xcat/mn/known_hosts" || capacity != 1 {
				return nil, fmt.Errorf("asked for one of %d slots at gate %s", capacity, name)
			}
			one.Lock()
			return one.Unlock, nil
		}
		require.NoError(t, client.Change(t.Context(), computer.Name, "usercomment=[berth r1/run-1/1 "+osimage+"]"))
		module := l.worker(brisk()) // each has a worker of its own
		group.Go(func() {
			if err := module.AfterResponse(t.Context(), request, newReporter()); err != nil {
				t.Errorf("%s: %v", computer.Name, err)
			}
		})
	}
	group.Wait()
	require.Len(t, l.mn.KnownHosts(), nodes)
}
