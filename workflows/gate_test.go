package workflows_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/hold"
	"berth/internal/scripted"
	"berth/osmodules"
	"berth/provisioners"
	"berth/reservation"
	"berth/workflows"
)

// gateHouse is a gate in the time-skipping environment.
type gateHouse struct {
	*testsuite.TestWorkflowEnvironment
	t     *testing.T
	over  []activities.GateTicket // what the next sweep is told
	swept int
}

func newGateHouse(t *testing.T) *gateHouse {
	var suite testsuite.WorkflowTestSuite
	h := &gateHouse{TestWorkflowEnvironment: suite.NewTestWorkflowEnvironment(), t: t}
	h.SetTestTimeout(20 * time.Second)
	h.RegisterWorkflowWithOptions(workflows.Gate, workflow.RegisterOptions{Name: activities.GateName})
	h.RegisterActivityWithOptions(func(_ context.Context, asked []activities.GateTicket) ([]activities.GateTicket, error) {
		h.swept++
		return h.over, nil
	}, activity.RegisterOptions{Name: activities.GateOverName})
	return h
}

func ticket(n int) activities.GateTicket {
	return activities.GateTicket{Workflow: fmt.Sprintf("computer/vm-%d", n), Run: "r", Activity: activities.LoadName}
}

// enter asks for a place after a while, and wants it to be that one.
func (h *gateHouse) enter(after time.Duration, n, capacity, want int) {
	h.RegisterDelayedCallback(func() {
		h.UpdateWorkflow(activities.GateEnter, "", &testsuite.TestUpdateCallback{
			OnAccept: func() {},
			OnReject: func(err error) { require.NoError(h.t, err) },
			OnComplete: func(place any, err error) {
				require.NoError(h.t, err)
				require.Equal(h.t, []int{want}, place, "ticket %d", n)
			},
		}, activities.GateRequest{Tickets: []activities.GateTicket{ticket(n)}, Capacity: capacity})
	}, after)
}

func (h *gateHouse) leave(after time.Duration, n int) {
	h.RegisterDelayedCallback(func() { h.SignalWorkflow(activities.GateLeave, ticket(n)) }, after)
}

func (h *gateHouse) stands(after time.Duration, places map[int]int) {
	h.RegisterDelayedCallback(func() {
		for n, want := range places {
			value, err := h.QueryWorkflow(activities.GatePlaces, []activities.GateTicket{ticket(n)})
			require.NoError(h.t, err)
			var place []int
			require.NoError(h.t, value.Get(&place))
			require.Equal(h.t, []int{want}, place, "ticket %d after %s", n, after)
		}
	}, after)
}

func TestGateServesInOrder(t *testing.T) {
	h := newGateHouse(t)
	h.enter(1*time.Second, 1, 2, 0)
	h.enter(2*time.Second, 2, 2, 0)
	h.enter(3*time.Second, 3, 2, 1)
	h.enter(4*time.Second, 4, 2, 2)
	h.enter(5*time.Second, 3, 2, 1) // asking again changes nothing
	h.enter(6*time.Second, 1, 2, 0)
	h.leave(7*time.Second, 9) // somebody who was never there
	h.leave(8*time.Second, 2)
	h.stands(9*time.Second, map[int]int{1: 0, 2: activities.GateUnknown, 3: 0, 4: 1})
	h.leave(10*time.Second, 4) // gives up in the line
	h.leave(11*time.Second, 1)
	h.leave(12*time.Second, 3)
	began := h.Now()
	h.ExecuteWorkflow(activities.GateName, activities.GateState{})
	require.True(t, h.IsWorkflowCompleted())
	require.NoError(t, h.GetWorkflowError())
	require.GreaterOrEqual(t, h.Now().Sub(began), 10*time.Minute, "a gate stays for a while when nobody needs it")
	require.Zero(t, h.swept, "the line was never 30 s old")
}

func TestGateCapacityIsTheLastWord(t *testing.T) {
	h := newGateHouse(t)
	h.enter(1*time.Second, 1, 1, 0)
	h.enter(2*time.Second, 2, 1, 1)
	h.enter(3*time.Second, 3, 3, 0) // the line moves up before it
	h.stands(4*time.Second, map[int]int{1: 0, 2: 0, 3: 0})
	h.enter(5*time.Second, 4, 2, 1)
	h.leave(6*time.Second, 1) // two are inside still
	h.stands(7*time.Second, map[int]int{4: 1})
	for n := 2; n <= 4; n++ {
		h.leave(time.Duration(6+n)*time.Second, n)
	}
	h.ExecuteWorkflow(activities.GateName, activities.GateState{})
	require.NoError(t, h.GetWorkflowError())
}

func TestGateTakesPlacesBack(t *testing.T) {
	h := newGateHouse(t)
	h.over = []activities.GateTicket{ticket(1), ticket(3)}
	h.enter(1*time.Second, 1, 1, 0)
	h.enter(2*time.Second, 2, 1, 1)
	h.enter(3*time.Second, 3, 1, 2)
	h.enter(4*time.Second, 4, 1, 3)
	h.stands(25*time.Second, map[int]int{1: 0, 2: 1, 3: 2, 4: 3})
	h.stands(40*time.Second, map[int]int{1: activities.GateUnknown, 2: 0, 3: activities.GateUnknown, 4: 1})
	h.leave(41*time.Second, 2)
	h.leave(42*time.Second, 4)
	h.ExecuteWorkflow(activities.GateName, activities.GateState{})
	require.NoError(t, h.GetWorkflowError())
	require.Equal(t, 1, h.swept)
}

func TestGateGoesOnInANewRun(t *testing.T) {
	h := newGateHouse(t)
	h.enter(1*time.Second, 1, 1, 0)
	h.enter(2*time.Second, 2, 1, 1)
	h.RegisterDelayedCallback(func() { h.SetContinueAsNewSuggested(true) }, 3*time.Second)
	h.leave(4*time.Second, 7)
	h.ExecuteWorkflow(activities.GateName, activities.GateState{})
	var next *workflow.ContinueAsNewError
	require.ErrorAs(t, h.GetWorkflowError(), &next)
	// Everybody is in place there.
	var state activities.GateState
	require.NoError(t, converter.GetDefaultDataConverter().FromPayloads(next.Input, &state))
	require.Equal(t, activities.GateState{Capacity: 1, Inside: []activities.GateTicket{ticket(1)}, Waiting: []activities.GateTicket{ticket(2)}}, state)
}

// Workers of version 1 ask for one ticket at a time, and are answered with one place; they share the line with the others.
func TestGateServesLoadersOfVersion1(t *testing.T) {
	h := newGateHouse(t)
	one := func(after time.Duration, n, want int) {
		h.RegisterDelayedCallback(func() {
			h.UpdateWorkflow(activities.GateEnterOne, "", &testsuite.TestUpdateCallback{
				OnAccept:   func() {},
				OnReject:   func(err error) { require.NoError(t, err) },
				OnComplete: func(place any, err error) { require.NoError(t, err); require.Equal(t, want, place, "ticket %d", n) },
			}, map[string]any{"ticket": ticket(n), "capacity": 1})
		}, after)
	}
	one(1*time.Second, 1, 0)
	h.enter(2*time.Second, 2, 1, 1)
	one(3*time.Second, 3, 2)
	h.RegisterDelayedCallback(func() {
		value, err := h.QueryWorkflow(activities.GatePlace, ticket(3))
		require.NoError(t, err)
		var place int
		require.NoError(t, value.Get(&place))
		require.Equal(t, 2, place)
	}, 4*time.Second)
	h.leave(5*time.Second, 1)
	h.leave(6*time.Second, 2)
	h.stands(7*time.Second, map[int]int{1: activities.GateUnknown, 2: activities.GateUnknown, 3: 0})
	h.leave(8*time.Second, 3)
	h.ExecuteWorkflow(activities.GateName, activities.GateState{})
	require.NoError(t, h.GetWorkflowError())
}

func TestGateRefusesNonsense(t *testing.T) {
	h := newGateHouse(t)
	h.RegisterDelayedCallback(func() {
		h.UpdateWorkflow(activities.GateEnter, "", &testsuite.TestUpdateCallback{
			OnAccept:   func() { require.Fail(t, "accepted") },
			OnReject:   func(err error) { require.ErrorContains(t, err, "capacity") },
			OnComplete: func(any, error) {},
		}, activities.GateRequest{Tickets: []activities.GateTicket{ticket(1)}})
	}, time.Second)
	h.ExecuteWorkflow(activities.GateName, activities.GateState{})
	require.NoError(t, h.GetWorkflowError())
}

// crowd is a provisioner whose loads go through a gate, and who counts them.
type crowd struct {
	capacity int
	hold     func(computer string) <-chan struct{} // closed when a load may leave

	mu     sync.Mutex
	inside int
	most   int
	order  []string
	places map[string][]int
}

func (c *crowd) Load(ctx context.Context, r provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	name := r.Reservation.Computer.Name
	leave, err := r.Enter(ctx, "crowd", c.capacity, func(place int) {
		report.Stage("wait for a slot", fmt.Sprintf("number %d in line", place))
		c.mu.Lock()
		defer c.mu.Unlock()
		c.places[name] = append(c.places[name], place)
	})
	if err != nil {
		return provisioners.Loaded{}, err
	}
	defer leave()
	report.Stage("install", "")
	c.mu.Lock()
	c.inside++
	c.most = max(c.most, c.inside)
	if !slices.Contains(c.order, name) { // one that was handed over comes in again
		c.order = append(c.order, name)
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.inside--
	}()
	select {
	case <-c.hold(name):
		return provisioners.Loaded{}, nil
	case <-ctx.Done():
		return provisioners.Loaded{}, ctx.Err()
	}
}

// Loads of one control plane on two workers, on a real server: never more inside than there is room for, first come first
// served, and the slot of a reservation that was terminated is taken back.
func TestGateOnARealServer(t *testing.T) {
	t.Parallel()
	server := devservertest.Start(t, devserver.Options{SearchAttributes: attributeTypes()})
	c, err := client.Dial(client.Options{HostPort: server.Address, Namespace: server.Namespace, Logger: quiet{}})
	require.NoError(t, err)
	t.Cleanup(c.Close)

	const loads, capacity, provisionerType = 9, 2, "crowd"
	var names []string
	free := map[string]chan struct{}{}
	for n := range loads {
		name := fmt.Sprintf("crowd-%d", n)
		names, free[name] = append(names, name), make(chan struct{})
	}
	module := &crowd{capacity: capacity, places: map[string][]int{}, hold: func(name string) <-chan struct{} { return free[name] }}
	acts := func(identity string) *activities.Activities {
		return activities.New(activities.Options{
			Provisioners: provisioners.NewRegistry(map[string]provisioners.Provisioner{provisionerType: module}),
			OSModules:    osmodules.NewRegistry(map[reservation.OSFamily]osmodules.Module{reservation.Linux: &scripted.OSModule{}}),
			Client:       c, Identity: identity,
		})
	}
	w := worker.New(c, activities.WorkflowQueue, worker.Options{})
	workflows.Register(w)
	acts("workflows").RegisterOnWorkflowQueue(w)
	require.NoError(t, w.Start())
	t.Cleanup(w.Stop)
	var loaders []worker.Worker
	for n := range 2 {
		one := worker.New(c, activities.Queue(provisionerType, ""), worker.Options{DisableWorkflowWorker: true, WorkerStopTimeout: 10 * time.Second})
		acts(fmt.Sprintf("loader-%d", n)).Register(one)
		require.NoError(t, one.Start())
		t.Cleanup(one.Stop)
		loaders = append(loaders, one)
	}

	place := func(name string) int {
		module.mu.Lock()
		defer module.mu.Unlock()
		if all := module.places[name]; len(all) > 0 {
			return all[len(all)-1]
		}
		return 0
	}
	begun := func() int {
		module.mu.Lock()
		defer module.mu.Unlock()
		return len(module.order)
	}
	eventually := func(what string, reached func() bool) {
		t.Helper()
		require.Eventually(t, reached, 2*time.Minute, 20*time.Millisecond, what)
	}
	var runs []client.WorkflowRun
	for n, name := range names {
		r := scripted.Reservation("web-"+name, name, provisionerType)
		r.End = time.Now().Add(time.Hour)
		run, err := hold.Start(t.Context(), c, r)
		require.NoError(t, err)
		runs = append(runs, run)
		// One after another, so that the line's order is known.
		if n < capacity {
			eventually(name+" is inside", func() bool { return begun() == n+1 })
		} else {
			eventually(name+" is in line", func() bool { return place(name) == n-capacity+1 })
		}
	}
	module.mu.Lock()
	require.Equal(t, capacity, module.most)
	module.mu.Unlock()
	// Somebody inside ends without a word. Its slot goes to who is next.
	require.NoError(t, c.TerminateWorkflow(t.Context(), runs[0].GetID(), runs[0].GetRunID(), "a test"))
	eventually("the terminated reservation's slot is taken back", func() bool { return begun() == capacity+1 })
	// A worker that is stopped hands its loads over, and they keep their places. Those inside leave one by one: of two that
	// were let in at once the one that was handed over may notice it later, by any number of others.
	loaders[0].Stop()
	for n, name := range names[1:] {
		eventually(name+" is inside", func() bool { return begun() >= min(n+1+capacity, loads) })
		close(free[name])
	}
	module.mu.Lock()
	require.Equal(t, names, module.order)
	module.mu.Unlock()
	for _, run := range runs[1:] {
		require.NoError(t, c.SignalWorkflow(t.Context(), run.GetID(), run.GetRunID(), workflows.ReleaseSignal, nil))
	}
	for _, run := range runs[1:] {
		require.NoError(t, run.Get(t.Context(), nil))
	}
	require.LessOrEqual(t, module.most, capacity+1, "the terminated load's module may take a moment longer to hear of it")
	if update() {
		writeHistory(t, c, activities.GateID("crowd"), "", "gate")
	}
}

// keeper is a provisioner whose loads keep their slot when they are cancelled, until Abort has removed what they left.
type keeper struct {
	crowd
	cleaning chan struct{} // closed when Abort has begun
	clean    chan struct{} // closed when it may end
}

func (k *keeper) Load(ctx context.Context, r provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	leave, err := r.Enter(ctx, "keeper", k.capacity, func(place int) { report.Stage("wait for a slot", fmt.Sprintf("number %d in line", place)) })
	if err != nil {
		return provisioners.Loaded{}, err
	}
	report.Stage("install", "")
	select {
	case <-k.hold(r.Reservation.Computer.Name):
		leave()
		return provisioners.Loaded{}, nil
	case <-ctx.Done():
		return provisioners.Loaded{}, ctx.Err()
	}
}

func (k *keeper) Abort(ctx context.Context, r provisioners.Request, _ reservation.Reporter) error {
	close(k.cleaning)
	select {
	case <-k.clean:
		r.Leave(ctx, "keeper")
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A load that is cancelled inside a gate is not over for the gate before its Abort is: who is next comes in then, and no sweep
// lets it in before.
func TestACancelledLoadKeepsItsSlotUntilItIsCleaned(t *testing.T) {
	t.Parallel()
	server := devservertest.Start(t, devserver.Options{SearchAttributes: attributeTypes()})
	c, err := client.Dial(client.Options{HostPort: server.Address, Namespace: server.Namespace, Logger: quiet{}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	const provisionerType = "keeper"
	free := map[string]chan struct{}{"keeper-1": make(chan struct{}), "keeper-2": make(chan struct{})}
	module := &keeper{crowd: crowd{capacity: 1, hold: func(name string) <-chan struct{} { return free[name] }},
		cleaning: make(chan struct{}), clean: make(chan struct{})}
	acts := activities.New(activities.Options{
		Provisioners: provisioners.NewRegistry(map[string]provisioners.Provisioner{provisionerType: module}),
		OSModules:    osmodules.NewRegistry(map[reservation.OSFamily]osmodules.Module{reservation.Linux: &scripted.OSModule{}}),
		Client:       c,
	})
	w := worker.New(c, activities.WorkflowQueue, worker.Options{})
	workflows.Register(w)
	acts.RegisterOnWorkflowQueue(w)
	require.NoError(t, w.Start())
	t.Cleanup(w.Stop)
	loader := worker.New(c, activities.Queue(provisionerType, ""), worker.Options{DisableWorkflowWorker: true})
	acts.Register(loader)
	require.NoError(t, loader.Start())
	t.Cleanup(loader.Stop)

	reserve := func(name string) (client.WorkflowRun, activities.GateTicket) {
		r := scripted.Reservation("web-"+name, name, provisionerType)
		r.End = time.Now().Add(time.Hour)
		run, err := hold.Start(t.Context(), c, r)
		require.NoError(t, err)
		return run, activities.GateTicket{Workflow: run.GetID(), Run: run.GetRunID(), Activity: activities.LoadName}
	}
	place := func(ticket activities.GateTicket) int {
		answer, err := c.QueryWorkflow(t.Context(), activities.GateID("keeper"), "", activities.GatePlaces, []activities.GateTicket{ticket})
		if err != nil {
			return activities.GateUnknown
		}
		var places []int
		require.NoError(t, answer.Get(&places))
		return places[0]
	}
	first, inside := reserve("keeper-1")
	require.Eventually(t, func() bool { return place(inside) == 0 }, 2*time.Minute, 20*time.Millisecond)
	second, next := reserve("keeper-2")
	require.Eventually(t, func() bool { return place(next) == 1 }, 2*time.Minute, 20*time.Millisecond)
	require.NoError(t, c.CancelWorkflow(t.Context(), first.GetID(), first.GetRunID()))
	select {
	case <-module.cleaning:
	case <-time.After(2 * time.Minute):
		require.FailNow(t, "the load is not cleaned")
	}
	over, err := acts.GateOver(t.Context(), []activities.GateTicket{inside, next})
	require.NoError(t, err)
	require.Empty(t, over)
	require.Equal(t, []int{0, 1}, []int{place(inside), place(next)})
	close(module.clean)
	require.Eventually(t, func() bool { return place(next) == 0 }, 2*time.Minute, 20*time.Millisecond)
	require.Equal(t, activities.GateUnknown, place(inside))
	require.Error(t, first.Get(t.Context(), nil))
	over, err = acts.GateOver(t.Context(), []activities.GateTicket{inside})
	require.NoError(t, err)
	require.Equal(t, []activities.GateTicket{inside}, over)
	close(free["keeper-2"])
	require.Eventually(t, func() bool { return place(next) == activities.GateUnknown }, 2*time.Minute, 20*time.Millisecond)
	require.NoError(t, c.SignalWorkflow(t.Context(), second.GetID(), second.GetRunID(), workflows.ReleaseSignal, nil))
	require.NoError(t, second.Get(t.Context(), nil))
}
