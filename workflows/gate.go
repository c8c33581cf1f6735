package workflows

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/reservation"
)

const (
	// sweepEvery is how often a gate with a line looks whether those inside are still there: a killed worker's phase is
	// resumed after 30 s at the earliest, so looking more often finds nothing more.
	sweepEvery = 30 * time.Second
	// gateIdle is how long a gate that nobody needs stays: loads come in bursts, and a gate that is there answers sooner.
	gateIdle = 10 * time.Minute
	// gateSweepLimit bounds one look at all tickets.
	gateSweepLimit = 2 * time.Minute
)

// Gate bounds how many loads do something at once in one control plane (installs of an xCAT management node, clones of a
// vCenter), whatever workers run them. Tickets enter in the order in which they first asked. A slot is given up by its
// holder, or taken back when the holder's phase is over however that ended; a worker that is killed keeps its load's slot
// for the one that goes on. A gate that nobody needs ends, and the next ticket starts it anew.
func Gate(ctx workflow.Context, state activities.GateState) error {
	g := &gate{state: state}
	if err := g.answer(ctx); err != nil {
		return err
	}
	workflow.Go(ctx, func(ctx workflow.Context) {
		for channel := workflow.GetSignalChannel(ctx, activities.GateLeave); ; {
			var ticket activities.GateTicket
			channel.Receive(ctx, &ticket)
			g.remove(ticket)
		}
	})
	for {
		// Nothing is swept while nobody waits: a slot that is held in vain then harms nobody.
		if err := workflow.Await(ctx, func() bool { return len(g.state.Waiting) > 0 || g.empty() || g.full(ctx) }); err != nil {
			return err
		}
		switch {
		case g.full(ctx):
			return g.next(ctx)
		case g.empty():
			needed, err := workflow.AwaitWithTimeout(ctx, gateIdle, func() bool { return !g.empty() })
			if err != nil {
				return err
			}
			if !needed && workflow.AllHandlersFinished(ctx) && g.empty() {
				return nil
			}
		default:
			quiet, err := workflow.AwaitWithTimeout(ctx, sweepEvery, func() bool { return len(g.state.Waiting) == 0 || g.full(ctx) })
			if err != nil {
				return err
			}
			if !quiet {
				g.sweep(ctx)
			}
		}
	}
}

type gate struct {
	state activities.GateState
	asked []activities.GateTicket // since the sweep that is going on began: its answer may be older than they are
}

func (g *gate) empty() bool { return len(g.state.Inside) == 0 && len(g.state.Waiting) == 0 }

// full says that the history is long enough for a run.
func (g *gate) full(ctx workflow.Context) bool {
	return workflow.GetInfo(ctx).GetContinueAsNewSuggested()
}

// next goes on in a new run with everybody in place.
func (g *gate) next(ctx workflow.Context) error {
	if err := workflow.Await(ctx, func() bool { return workflow.AllHandlersFinished(ctx) }); err != nil {
		return err
	}
	// What has come in and was not received would be lost with the run.
	for channel := workflow.GetSignalChannel(ctx, activities.GateLeave); ; {
		var ticket activities.GateTicket
		if !channel.ReceiveAsync(&ticket) {
			break
		}
		g.remove(ticket)
	}
	return workflow.NewContinueAsNewError(ctx, activities.GateName, g.state)
}

func (g *gate) answer(ctx workflow.Context) error {
	if err := workflow.SetQueryHandler(ctx, activities.GatePlaces, func(tickets []activities.GateTicket) ([]int, error) {
		return g.places(tickets), nil
	}); err != nil {
		return err
	}
	if err := workflow.SetQueryHandler(ctx, activities.GatePlace, func(ticket activities.GateTicket) (int, error) {
		return g.places([]activities.GateTicket{ticket})[0], nil
	}); err != nil {
		return err
	}
	options := workflow.UpdateHandlerOptions{
		Validator: func(request activities.GateRequest) error {
			if request.Capacity < 1 {
				return &reservation.FieldError{Field: "capacity", Value: "", Remedy: "give 1 or more"}
			}
			return nil
		},
		Description: "Takes places inside, or in line.",
	}
	enter := func(_ workflow.Context, request activities.GateRequest) (any, error) {
		if request.Ticket != nil {
			return g.enter([]activities.GateTicket{*request.Ticket}, request.Capacity)[0], nil
		}
		return g.enter(request.Tickets, request.Capacity), nil
	}
	for _, name := range []string{activities.GateEnter, activities.GateEnterOne} {
		if err := workflow.SetUpdateHandlerWithOptions(ctx, name, enter, options); err != nil {
			return err
		}
	}
	return nil
}

// enter takes places for tickets that have none, and returns where they stand.
func (g *gate) enter(tickets []activities.GateTicket, capacity int) []int {
	g.state.Capacity = capacity
	g.asked = append(g.asked, tickets...)
	for at, place := range g.places(tickets) {
		if place == activities.GateUnknown && !slices.Contains(g.state.Waiting, tickets[at]) {
			g.state.Waiting = append(g.state.Waiting, tickets[at])
		}
	}
	g.admit()
	return g.places(tickets)
}

// places returns for each ticket 0 if it is inside, its place in line from 1, or activities.GateUnknown.
func (g *gate) places(tickets []activities.GateTicket) []int {
	at := map[activities.GateTicket]int{}
	for _, ticket := range g.state.Inside {
		at[ticket] = 0
	}
	for n, ticket := range g.state.Waiting {
		at[ticket] = n + 1
	}
	places := make([]int, len(tickets))
	for n, ticket := range tickets {
		place, known := at[ticket]
		if !known {
			place = activities.GateUnknown
		}
		places[n] = place
	}
	return places
}

// admit lets in whom there is room for, in the line's order.
func (g *gate) admit() {
	n := min(max(g.state.Capacity-len(g.state.Inside), 0), len(g.state.Waiting))
	g.state.Inside = append(g.state.Inside, g.state.Waiting[:n]...)
	g.state.Waiting = slices.Delete(g.state.Waiting, 0, n)
}

func (g *gate) remove(tickets ...activities.GateTicket) {
	over := func(t activities.GateTicket) bool { return slices.Contains(tickets, t) }
	g.state.Inside = slices.DeleteFunc(g.state.Inside, over)
	g.state.Waiting = slices.DeleteFunc(g.state.Waiting, over)
	g.admit()
}

// sweep takes the places back whose phases are over. If that cannot be found out everybody stays, and it looks again.
func (g *gate) sweep(ctx workflow.Context) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue: activities.WorkflowQueue, StartToCloseTimeout: gateSweepLimit, ScheduleToCloseTimeout: gateSweepLimit,
		Summary: "whose phases are over?",
	})
	g.asked = nil
	var over []activities.GateTicket
	all := slices.Concat(g.state.Inside, g.state.Waiting)
	if err := workflow.ExecuteActivity(ctx, activities.GateOverName, all).Get(ctx, &over); err != nil {
		workflow.GetLogger(ctx).Warn("cannot find out whose phases are over", "error", err.Error())
		return
	}
	over = slices.DeleteFunc(over, func(t activities.GateTicket) bool { return slices.Contains(g.asked, t) })
	if len(over) > 0 {
		workflow.GetLogger(ctx).Info("places taken back from phases that are over", "places", len(over))
		g.remove(over...)
	}
}
