package integration

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"

	"berth/activities"
	"berth/internal/catalog"
	"berth/internal/hold"
	"berth/internal/simsite"
	"berth/internal/simsite/xcatmn"
	"berth/provisioners"
	"berth/provisioners/xcat"
	"berth/reservation"
	"berth/workflows"
)

const metalImage = "rocky9-metal"

// metalLab is a simulated management node under a name of its own.
type metalLab struct {
	*lab
	nodes []simsite.Node
}

// Nodes whose minute takes half a second, and nodes that leave a test the time to see each of their stages.
const (
	fast   = 120
	slowly = 30
)

// newMetal starts a management node with its nodes.
func (w *world) newMetal(t *testing.T, name string, speed float64, installs int, source map[string]string, nodes ...simsite.Node) *metalLab {
	t.Helper()
	site := w.startSite(t, simsite.Script{Metal: &simsite.Metal{Name: name, Speed: speed, Installs: installs, Nodes: nodes,
		OSImages: []simsite.OSImage{{Name: "rocky9.4-x86_64-install-compute", Image: metalImage, Distribution: "rocky9", Source: source}}}})
	return &metalLab{lab: &lab{world: w, name: name, site: site, catalog: site.catalog}, nodes: nodes}
}

func (l *metalLab) worker(t *testing.T, o ...workerOptions) *workerProcess {
	t.Helper()
	l.workers++
	options := workerOptions{plain: true}
	if len(o) > 0 {
		options = o[0]
		options.plain = true
	}
	options.env = append([]string{"BERTH_WORKFLOWS=false", "BERTH_PROVISIONERS=xcat", "BERTH_CATALOG=" + l.catalog, "BERTH_SITES=" + l.name}, options.env...)
	return l.world.startWorker(t, fmt.Sprintf("%s-%d", l.name, l.workers), options)
}

func (l *metalLab) reserve(t *testing.T, node string) *booking {
	t.Helper()
	read, err := catalog.Load(l.catalog, catalog.Options{Validators: map[string]provisioners.Validator{xcat.Type: &xcat.Module{}}})
	require.NoError(t, err)
	r, err := read.Reservation("r-"+node, "ana", node, metalImage, time.Now().Add(time.Hour))
	require.NoError(t, err)
	run, err := hold.Start(t.Context(), l.world.client, r)
	require.NoError(t, err)
	return &booking{lab: l.lab, run: run, name: r.Name, computer: node}
}

func (l *metalLab) node(t *testing.T, name string) simsite.NodeStatus {
	t.Helper()
	return l.site.status(t).Metal.Nodes[name]
}

// loaded waits until the node is handed over, and returns the status.
func (l *metalLab) loaded(t *testing.T, b *booking) reservation.Status {
	t.Helper()
	b.until(t, takeover, func(m moment) bool { return m.Outcome == reservation.OutcomeReady })
	node := l.node(t, b.computer)
	require.True(t, node.Power)
	require.False(t, node.Armed())
	return b.status(t)
}

// handedBack releases a node, and sees that it is off and boots from its disk.
func (l *metalLab) handedBack(t *testing.T, b *booking) {
	t.Helper()
	require.NoError(t, l.world.client.SignalWorkflow(t.Context(), b.run.GetID(), b.run.GetRunID(), workflows.ReleaseSignal, nil))
	status, err := b.result(t)
	require.NoError(t, err)
	require.Equal(t, reservation.OutcomeReleased, status.Outcome)
	require.Empty(t, status.Reason)
	node := l.node(t, b.computer)
	require.Equal(t, []any{false, "boot"}, []any{node.Power, node.Currstate})
}

func testMetalFaults(t *testing.T, w *world) {
	node := func(name string, mode xcatmn.Mode) simsite.Node { return simsite.Node{Name: name, Mode: mode} }
	l := w.newMetal(t, "metal-faults", fast, 0, map[string]string{"start_limit": "5s", "no_progress": "5s"},
		node("metal-1", xcatmn.Works), node("metal-2", xcatmn.NeverCallsBack), node("metal-3", xcatmn.PXELostTwice), node("metal-4", xcatmn.BMCDead),
		node("metal-6", xcatmn.OwnHostKeys))
	l.worker(t)
	var mu sync.Mutex
	keys := map[string]string{} // the host keys that were pinned, by node
	t.Cleanup(func() {
		if len(keys) < 4 {
			return // one of them has failed, or was not asked for
		}
		require.Equal(t, keys["metal-1"], keys["metal-2"], "xCAT's shared host key")
		require.NotEqual(t, keys["metal-1"], keys["metal-6"], "one of its own")
	})
	for name, c := range map[string]struct {
		node, want string
		attempts   int
		counts     xcatmn.Counts
	}{
		"one that works":             {"metal-1", "load done, post-load done", 1, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}},
		"one that never calls back":  {"metal-2", "load done, post-load done", 1, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}},
		"one with its own host keys": {"metal-6", "load done, post-load done", 1, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}},
		"the second attempt is seen": {"metal-3", "load reload, load done, post-load done", 2, xcatmn.Counts{PowerOns: 1, PowerOffs: 0, Resets: 2, Nodesets: 2, Installs: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := l.reserve(t, c.node)
			status := l.loaded(t, b)
			require.Equal(t, c.want, phases(status))
			require.Equal(t, c.attempts, status.Attempt.Number)
			require.Equal(t, c.counts, l.node(t, c.node).Counts)
			mu.Lock()
			keys[c.node] = status.HostKey
			mu.Unlock()
			l.handedBack(t, b)
		})
	}
	t.Run("xcatd restarts in the middle", func(t *testing.T) {
		t.Parallel()
		l := w.newMetal(t, "metal-restarts", fast, 0, nil, node("metal-7", xcatmn.Restarts))
		l.worker(t)
		b := l.reserve(t, "metal-7")
		status := l.loaded(t, b)
		require.Equal(t, "load done, post-load done", phases(status))
		require.Equal(t, 1, status.Attempt.Number)
		require.GreaterOrEqual(t, status.Phases[0].Lost, 2, "the answers to nodeset and to rpower were lost")
		require.Equal(t, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}, l.node(t, "metal-7").Counts)
		l.handedBack(t, b)
	})
	t.Run("a BMC that is dead", func(t *testing.T) {
		t.Parallel()
		b := l.reserve(t, "metal-4")
		status, err := b.result(t)
		require.Error(t, err)
		require.Equal(t, reservation.OutcomeFailed, status.Outcome)
		require.Contains(t, status.Reason, "BMC does not answer")
		node := l.node(t, "metal-4")
		require.False(t, node.Armed())
		require.Zero(t, node.Nodesets, "nothing is changed before the BMC has answered")
	})
	t.Run("cancelled while it installs", func(t *testing.T) {
		t.Parallel()
		l := w.newMetal(t, "metal-cancel", fast, 0, nil, node("metal-5", xcatmn.Hangs))
		l.worker(t)
		b := l.reserve(t, "metal-5")
		b.atStage(t, reservation.PhaseLoad, "install")
		require.True(t, l.node(t, "metal-5").Armed())
		require.NoError(t, w.client.CancelWorkflow(t.Context(), b.run.GetID(), b.run.GetRunID()))
		status, err := b.result(t)
		require.ErrorAs(t, err, new(*temporal.CanceledError))
		require.Equal(t, "load, clean done", phases(status))
		node := l.node(t, "metal-5")
		require.Equal(t, "boot", node.Currstate, "a node is never left armed")
		require.Equal(t, "hd", node.Device)
	})
}

// A load that is cancelled keeps its slot until its node is disarmed: nobody else is armed before.
func testMetalSlots(t *testing.T, w *world) {
	// Each command for the first node takes half a second, so its clean-up takes a while; the second one's are quick.
	l := w.newMetal(t, "metal-slots", 2*slowly, 1, nil, simsite.Node{Name: "slots-1", Mode: xcatmn.Slow}, simsite.Node{Name: "slots-2"})
	l.worker(t)
	first := l.reserve(t, "slots-1")
	first.atStage(t, reservation.PhaseLoad, "install")
	second := l.reserve(t, "slots-2")
	second.atStage(t, reservation.PhaseLoad, "wait for a slot")
	require.NoError(t, w.client.CancelWorkflow(t.Context(), first.run.GetID(), first.run.GetRunID()))
	status, err := first.result(t)
	require.ErrorAs(t, err, new(*temporal.CanceledError))
	require.Equal(t, "load, clean done", phases(status))
	clean := status.Phases[1]
	left := l.left(t)
	require.Len(t, left, 1)
	require.WithinRange(t, left[0], clean.Began, clean.Ended, "the slot is given up by the clean-up, and not before")
	l.loaded(t, second)
	require.Equal(t, 1, l.site.status(t).Metal.MostArmed)
	l.handedBack(t, second)
}

// left returns when slots of the management node's gate were given up, as its history has it.
func (l *metalLab) left(t *testing.T) []time.Time {
	t.Helper()
	var all []time.Time
	events := l.world.client.GetWorkflowHistory(t.Context(), activities.GateID(xcat.Type+"/"+l.name), "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		event, err := events.Next()
		require.NoError(t, err)
		if event.GetWorkflowExecutionSignaledEventAttributes().GetSignalName() == activities.GateLeave {
			all = append(all, event.GetEventTime().AsTime())
		}
	}
	return all
}

func testMetalStopped(t *testing.T, w *world) {
	t.Run("a worker killed", func(t *testing.T) { t.Parallel(); testMetalKilled(t, w) })
	t.Run("a load cancelled", func(t *testing.T) { t.Parallel(); testMetalSlots(t, w) })
}

// A worker is killed in each stage of a load: another one goes on, with what was begun. In the stages that are over in a moment
// each command takes a second. xcatd goes on with a command whose client is gone.
func testMetalKilled(t *testing.T, w *world) {
	for _, c := range []struct {
		phase reservation.Phase
		stage string
		mode  xcatmn.Mode
	}{
		{reservation.PhaseLoad, "check", xcatmn.Slow},
		{reservation.PhaseLoad, "arm", xcatmn.Slow},
		{reservation.PhaseLoad, "power on", xcatmn.Slow},
		{reservation.PhaseLoad, "wait for installer", xcatmn.Works},
		{reservation.PhaseLoad, "install", xcatmn.Works},
		{reservation.PhasePostLoad, "settle", xcatmn.Works},
	} {
		t.Run(c.stage, func(t *testing.T) {
			t.Parallel()
			name := "metal-kill-" + slug(c.stage)
			l := w.newMetal(t, name, slowly, 0, nil, simsite.Node{Name: name, Mode: c.mode})
			victim := l.worker(t)
			b := l.reserve(t, name)
			b.atStage(t, c.phase, c.stage)
			victim.Kill()
			successor := l.worker(t)
			status := l.loaded(t, b)
			require.Equal(t, "load done, post-load done", phases(status))
			require.Equal(t, 1, status.Attempt.Number)
			require.Equal(t, successor.identity, status.Phases[1].Worker)
			require.Equal(t, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}, l.node(t, name).Counts)
			l.handedBack(t, b)
		})
	}
	t.Run("wait for a slot", func(t *testing.T) {
		t.Parallel()
		l := w.newMetal(t, "metal-kill-slot", slowly, 1, nil, simsite.Node{Name: "kill-slot-1"}, simsite.Node{Name: "kill-slot-2"}, simsite.Node{Name: "kill-slot-3"})
		victim := l.worker(t)
		var all []*booking
		for n, node := range l.nodes { // one after the other, so that the line's order is known
			all = append(all, l.reserve(t, node.Name))
			all[n].atStage(t, reservation.PhaseLoad, []string{"wait for installer", "wait for a slot", "wait for a slot"}[n])
		}
		victim.Kill()
		l.worker(t)
		var loaded []time.Time
		for _, b := range all {
			status := l.loaded(t, b)
			require.Equal(t, 1, status.Attempt.Number)
			require.Equal(t, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}, l.node(t, b.computer).Counts)
			loaded = append(loaded, status.Phases[0].Ended)
		}
		require.True(t, slices.IsSortedFunc(loaded, time.Time.Compare), "the line is kept: %v", loaded)
		require.Equal(t, 1, l.site.status(t).Metal.MostArmed)
		for _, b := range all {
			l.handedBack(t, b)
		}
	})
}

// Forty nodes go through a gate for ten, over two workers: never more than ten are armed, whoever came first goes first.
func testMetalThrottle(t *testing.T, w *world) {
	const installs, loads = 10, 40
	var nodes []simsite.Node
	for n := range loads {
		nodes = append(nodes, simsite.Node{Name: fmt.Sprintf("throttle-%02d", n)})
	}
	l := w.newMetal(t, "throttle", fast, installs, nil, nodes...)
	l.worker(t)
	l.worker(t)
	var all []*booking
	for _, node := range nodes {
		all = append(all, l.reserve(t, node.Name))
	}
	type entry struct{ asked, armed time.Time }
	var entries []entry
	workers, waited := map[string]bool{}, 0
	for _, b := range all {
		status := l.loaded(t, b)
		require.Equal(t, "load done, post-load done", phases(status))
		require.Equal(t, 1, status.Attempt.Number)
		record := status.Phases[0]
		workers[record.Worker] = true
		at := slices.IndexFunc(record.Stages, func(s reservation.Stage) bool { return s.Name == "arm" })
		require.GreaterOrEqual(t, at, 0)
		if record.Stages[0].Name == "wait for a slot" {
			waited++
			require.Contains(t, record.Stages[0].Detail, "in line at management node throttle")
		}
		entries = append(entries, entry{record.Stages[0].Began, record.Stages[at].Began})
	}
	require.Len(t, workers, 2, "both workers have loaded")
	require.GreaterOrEqual(t, waited, loads-2*installs, "those that could not begin at once have said so")
	most := l.site.status(t).Metal.MostArmed
	require.LessOrEqual(t, most, installs)
	require.Greater(t, most, installs/2, "they are armed side by side")
	slices.SortFunc(entries, func(a, b entry) int { return a.asked.Compare(b.asked) })
	armed := slices.Clone(entries)
	slices.SortFunc(armed, func(a, b entry) int { return a.armed.Compare(b.armed) })
	for n, one := range entries {
		// Ten are inside at once, and notice their turn within a second or so of each other.
		require.InDelta(t, n, slices.Index(armed, one), installs, "the order is kept")
	}
	for _, b := range all {
		l.handedBack(t, b)
	}
	for name, node := range l.site.status(t).Metal.Nodes {
		require.False(t, node.Armed(), name)
	}
}
