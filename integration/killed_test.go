package integration

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/activities"
	"berth/internal/labtest"
	"berth/internal/simsite"
	"berth/reservation"
)

// point is where in a load a worker is killed. Something is held back there, so that the worker cannot go on.
type point struct {
	name  string
	phase reservation.Phase
	stage string // that the phase must show; "" takes what it shows

	before    func(*testing.T, *lab, string) // what stands in the way of the load
	behaviour simsite.Behaviour
	vcenter   *gate      // a call of the vSphere API
	temporal  *gate      // a request to Temporal
	door      *holdsFrom // what the guest says
	is        func(*testing.T, *lab, moment) bool
	silent    bool // no heartbeat comes from here any more, so the stage is not known
	after     func(*testing.T, *lab, string)

	own  bool           // at a site of its own: a VM that is off is not touched while others' clones run that might be its own
	also simsite.Counts // beside one clone and one power-on
	lost int            // tries that ended, beside the killed one
}

// stageKey names a stage, or a step of the last one, for comparing.
func stageKey(phase reservation.Phase, stage reservation.Stage) string {
	if stage.Name == stageConfigure {
		return fmt.Sprintf("%s: %s: %s", phase, stage.Name, stage.Detail)
	}
	return fmt.Sprintf("%s: %s", phase, stage.Name)
}

// stageConfigure is the one stage of all of the OS module's steps; its detail is the step.
const stageConfigure = "configure"

// A worker is killed with SIGKILL in each stage of a load, in each command that the guest runs for it, and before and after
// each call that changes something. Another worker goes on: same attempt, one clone, one power-on, ready.
func testKilled(t *testing.T, w *world) {
	site := w.startSite(t, simsite.Script{Computers: one("killed-0")})

	// What a load does when nobody is killed says where there is to kill.
	reference := w.newLab(t, "killed-0", labOptions{site: site, computers: one("killed-0")})
	reference.worker(t)
	booked := reference.reserve(t, "killed-0")
	status := booked.ready(t, patience)
	require.Equal(t, "load done, post-load done", phases(status))
	stages := map[string]bool{}
	for _, phase := range status.Phases {
		for _, stage := range phase.Stages {
			if stage.Name != stageConfigure {
				stages[stageKey(phase.Phase, stage)] = false
			}
		}
		for _, step := range phase.Steps {
			stages[stageKey(phase.Phase, reservation.Stage{Name: stageConfigure, Detail: step.Name})] = false
		}
	}
	commands := site.counts(t, "killed-0").Finished
	require.Greater(t, commands, 4)
	booked.release(t)

	var mu sync.Mutex
	t.Run("in", func(t *testing.T) {
		for i, p := range points(commands) {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				at := killAt(t, w, site, fmt.Sprintf("killed-%d", i+1), p)
				mu.Lock()
				defer mu.Unlock()
				stages[at] = true
			})
		}
	})
	for _, stage := range slices.Sorted(maps.Keys(stages)) {
		require.True(t, stages[stage], "no worker was killed in the stage %q: add a point", stage)
	}
	t.Logf("killed in %d stages: %q", len(stages), slices.Sorted(maps.Keys(stages)))
	reference.quiet(t)
}

func points(commands int) []point {
	load, postLoad := reservation.PhaseLoad, reservation.PhasePostLoad
	any := func() *gate { return newGate(func(_ string, d direction) bool { return d == request }) }
	left := func(t *testing.T, l *lab, computer string) { l.leave(t, computer) }
	powerOnFails := func(t *testing.T, l *lab, computer string) {
		l.site.addFault(t, simsite.Fault{Method: "PowerOnVM_Task", Computer: computer, Type: "TaskInProgress", Times: 1})
	}
	kept := func(_ *testing.T, _ *lab, m moment) bool {
		return m.Progress.Kept["clone"] != "" && m.Progress.Kept["clone"] != "asked"
	}
	asked := func(_ *testing.T, _ *lab, m moment) bool { return m.Progress.Kept["clone"] == "asked" }

	all := []point{
		{name: "look up", phase: load, stage: "look up", vcenter: any()},
		{name: "remove earlier vm, before the power-off", phase: load, stage: "remove earlier vm", before: left, vcenter: at("PowerOffVM_Task", request, 1),
			also: simsite.Counts{CloneCalls: 1, Clones: 1, PowerOns: 1, PowerOffs: 1, Destroys: 1}},
		{name: "remove earlier vm, before it is destroyed", phase: load, stage: "remove earlier vm", before: left, vcenter: at("Destroy_Task", request, 1),
			also: simsite.Counts{CloneCalls: 1, Clones: 1, PowerOns: 1, PowerOffs: 1, Destroys: 1}},
		{name: "remove earlier vm, after it is destroyed", phase: load, stage: "remove earlier vm", before: left, vcenter: at("Destroy_Task", answer, 1),
			also: simsite.Counts{CloneCalls: 1, Clones: 1, PowerOns: 1, PowerOffs: 1, Destroys: 1}},
		{name: "clone asked for, and never heard", phase: load, stage: "clone", vcenter: at("CloneVM_Task", request, 1), is: asked},
		{name: "clone asked for, and the answer lost", phase: load, stage: "clone", vcenter: at("CloneVM_Task", answer, 1), is: asked,
			behaviour: simsite.Behaviour{CloneTakes: after(36)}},
		{name: "clone running, and over before anybody looks", phase: load, stage: "clone", is: kept, behaviour: simsite.Behaviour{CloneTakes: after(12)}},
		{name: "clone running, and running on under another worker", phase: load, stage: "clone", is: kept, behaviour: simsite.Behaviour{CloneTakes: after(40)}},
		{name: "clone done and powered on unseen", phase: load, stage: "clone", vcenter: blind("CloneVM_Task"),
			is: func(t *testing.T, l *lab, m moment) bool {
				return kept(t, l, m) && l.site.counts(t, l.name).PowerOns == 1
			}},
		{name: "power on, before it", phase: load, stage: "power on", before: powerOnFails, own: true, vcenter: at("PowerOnVM_Task", request, 1), lost: 1},
		{name: "power on, after it", phase: load, stage: "power on", before: powerOnFails, own: true, vcenter: at("PowerOnVM_Task", answer, 1), lost: 1},
		{name: "loaded, and its report lost", phase: load, temporal: at("RespondActivityTaskCompleted", request, 1), silent: true},
		{name: "tcp", phase: postLoad, stage: "tcp", door: &holdsFrom{closed: true}},
		{name: "ssh banner", phase: postLoad, stage: "ssh banner", door: &holdsFrom{banner: true}},
		{name: "handshake", phase: postLoad, stage: "handshake", door: &holdsFrom{handshake: true}},
		{name: "authentication", phase: postLoad, stage: "authentication", door: &holdsFrom{encryption: true}},
		{name: "clear host key, before it", phase: postLoad, stage: "clear host key", vcenter: at("ReconfigVM_Task", request, 1)},
		{name: "clear host key, after it", phase: postLoad, stage: "clear host key", vcenter: at("ReconfigVM_Task", answer, 1)},
		{name: "configured, and its report lost", phase: postLoad, temporal: at("RespondActivityTaskCompleted", request, 2), silent: true},
		late(after(3)),
	}
	for n := 1; n <= commands; n++ {
		all = append(all,
			point{name: fmt.Sprintf("command %d of the guest, begun", n), phase: postLoad, door: &holdsFrom{begun: n}},
			point{name: fmt.Sprintf("command %d of the guest, finished", n), phase: postLoad, door: &holdsFrom{finished: n}})
	}
	return all
}

// late is the clone that was asked for by the worker that is killed, and reaches the vCenter right before that of the worker
// that has taken over.
func late(takes simsite.Duration) point {
	first, next := at("CloneVM_Task", request, 1), at("CloneVM_Task", request, 2)
	first.keep = true
	return point{
		name: "clone asked for, and heard when another worker asks", phase: reservation.PhaseLoad, stage: "clone", vcenter: first,
		behaviour: simsite.Behaviour{CloneTakes: takes},
		before:    func(_ *testing.T, l *lab, _ string) { l.vcenter.add(next) },
		after: func(t *testing.T, l *lab, computer string) {
			select {
			case <-next.reached:
			case <-time.After(takeover):
				require.FailNow(t, "no other worker asks for a clone")
			}
			first.open()
			labtest.Eventually(t, patience, func() (bool, string) {
				return l.site.counts(t, computer).CloneCalls == 1, "the request of the worker that was killed has not arrived"
			})
			next.open()
		},
		also: simsite.Counts{CloneCalls: 1}, // it is refused: the name is taken
	}
}

// killAt kills a worker at a point, sees that another one brings the load to its end, and returns the stage in which the
// worker was killed.
func killAt(t *testing.T, w *world, site *site, name string, p point) string {
	o := labOptions{site: site, computers: one(name, p.behaviour)}
	if p.own {
		site = w.startSite(t, simsite.Script{Computers: o.computers})
		o.site = site
	}
	if p.door != nil {
		o.doors = map[string]holdsFrom{name: *p.door}
	}
	l := w.newLab(t, name, o)
	if p.before != nil {
		p.before(t, l, name)
	}
	options := workerOptions{plain: true}
	if p.temporal != nil {
		proxy := newTemporalProxy(t, w.server.Address)
		proxy.add(p.temporal)
		options.temporal = proxy.address
	}
	victim := l.worker(t, options)
	var held <-chan struct{}
	switch {
	case p.vcenter != nil:
		held = l.vcenter.add(p.vcenter).reached
	case p.temporal != nil:
		held = p.temporal.reached
	case p.door != nil:
		held = l.doors[name].reached
	}
	b := l.reserve(t, name)
	since := time.Now()
	if held != nil {
		select {
		case <-held:
			since = time.Now()
		case <-time.After(patience):
			require.FailNow(t, "the load does not come to the point", b.look(t))
		}
	}
	// Only a heartbeat that was sent after the point tells the stage for certain, and one may be under way.
	since = since.Add(activities.HeartbeatThrottle)
	m := b.until(t, patience, func(m moment) bool {
		return m.Running() && m.Phase == p.phase && (p.stage == "" || m.Stage().Name == p.stage) && (p.silent || m.Heard.After(since)) && (p.is == nil || p.is(t, l, m))
	})
	require.Equal(t, victim.identity, m.Progress.Worker)
	victim.Kill()

	if p.vcenter != nil && p.vcenter.all {
		p.vcenter.open()
	}
	successor := l.worker(t, workerOptions{plain: true})
	if p.door != nil {
		l.doors[name].open(t)
	}
	if p.after != nil {
		p.after(t, l, name)
	}
	status := b.ready(t, takeover)
	require.Equal(t, 1, status.Attempt.Number)
	require.Equal(t, "load done, post-load done", phases(status))
	lost := map[reservation.Phase]int{p.phase: 1 + p.lost}
	for _, record := range status.Phases {
		// At least: the server may hand the next try to a poll that the dead worker left behind, and miss it as well. That
		// costs a try and no attempt; what must not happen twice is counted below.
		require.GreaterOrEqual(t, record.Lost, lost[record.Phase], "tries of %s that were lost", record.Phase)
		worker := successor.identity
		if record.Phase == reservation.PhaseLoad && p.phase == reservation.PhasePostLoad {
			worker = victim.identity
		}
		require.Equal(t, worker, record.Worker)
		if record.Phase == p.phase && !p.silent {
			was := m.Progress.Stages
			require.GreaterOrEqual(t, len(record.Stages), len(was))
			for i := range was {
				require.Equal(t, was[i].Name, record.Stages[i].Name, "the stages before the kill are kept")
				require.True(t, was[i].Began.Equal(record.Stages[i].Began))
			}
			require.True(t, record.Began.Before(m.Heard), "the clock is kept")
		}
	}
	counts := site.counts(t, name)
	want := simsite.Counts{CloneCalls: 1 + p.also.CloneCalls, Clones: 1 + p.also.Clones, PowerOns: 1 + p.also.PowerOns, PowerOffs: p.also.PowerOffs, Destroys: p.also.Destroys}
	require.Equal(t, want, ofVM(counts))
	guest := site.mustGuest(t, name)
	require.Equal(t, 1, guest.Boots)
	b.release(t)
	if p.silent {
		return p.name
	}
	return stageKey(p.phase, m.Stage())
}
