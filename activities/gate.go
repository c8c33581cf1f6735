package activities

import (
	"context"
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"berth/provisioners"
)

// What the Gate workflow is called and what it answers to. workflows.Gate says what it is.
const (
	GateName     = "Gate"      // the workflow: takes a GateState
	GateEnter    = "enter-all" // the update: takes a GateRequest, returns the tickets' places: 0 is inside, n is the n-th in line
	GatePlaces   = "places"    // the query: takes GateTickets, returns their places; GateUnknown for one that was never seen or is over
	GateLeave    = "leave"     // the signal: takes a GateTicket
	GateOverName = "GateOver"  // the activity: takes GateTickets, returns those whose phase is over
	GateUnknown  = -1

	// What workers of version 1 ask with, and what their gates know.
	GateEnterOne = "enter" // the update: takes a GateRequest with one Ticket, returns its place
	GatePlace    = "place" // the query: takes a GateTicket, returns its place

	gateIDPrefix   = "gate/"
	gateLeaveLimit = 10 * time.Second
)

// GateTicket is who is inside a gate or in its line: one kind of phase of one reservation. It names no attempt and no worker, so
// a phase that goes on elsewhere or begins anew keeps its place.
type GateTicket struct {
	Workflow string `json:"workflow"`
	Run      string `json:"run"`
	Activity string `json:"activity"` // the phase's activity: the ticket is over when the workflow has neither it nor Abort pending
}

// GateRequest asks for places inside, in this order.
type GateRequest struct {
	Tickets  []GateTicket `json:"tickets,omitempty"`
	Ticket   *GateTicket  `json:"ticket,omitempty"` // of version 1, in place of Tickets
	Capacity int          `json:"capacity"`         // how many may be inside, as the asking worker's settings say: the last word counts
}

// GateState is a gate as it stands.
type GateState struct {
	Capacity int          `json:"capacity"`
	Inside   []GateTicket `json:"inside,omitempty"`
	Waiting  []GateTicket `json:"waiting,omitempty"` // first come first served
}

// GateID returns the ID of the workflow that is a control plane's gate.
func GateID(name string) string { return gateIDPrefix + name }

// enter is provisioners.Request.Enter for a phase.
func (p *phase) enter() func(context.Context, string, int, func(int)) (func(), error) {
	if p.options.Client == nil {
		return nil
	}
	return func(ctx context.Context, name string, capacity int, waiting func(place int)) (func(), error) {
		ticket := p.ticket(p.info.ActivityType.Name)
		leave := func() {
			// Who hands over keeps the place for its successor.
			if !provisioners.HandedOver(ctx) {
				leaveGate(ctx, p.options.Client, GateID(name), ticket)
			}
		}
		inLine, err := p.gates.wait(ctx, GateID(name), ticket, capacity, waiting)
		if err != nil {
			// A ticket that may have been inside before stays there: what it has begun may still stand.
			if inLine {
				leave()
			}
			return nil, err
		}
		return leave, nil
	}
}

// leave is provisioners.Request.Leave for a phase.
func (p *phase) leave() func(context.Context, string) {
	if p.options.Client == nil {
		return nil
	}
	return func(ctx context.Context, name string) {
		leaveGate(ctx, p.options.Client, GateID(name), p.ticket(LoadName))
	}
}

// ticket returns this reservation's ticket for a phase's activity.
func (p *phase) ticket(activity string) GateTicket {
	return GateTicket{Workflow: p.info.WorkflowExecution.ID, Run: p.info.WorkflowExecution.RunID, Activity: activity}
}

// leaveGate gives a place up. What is lost here the gate finds out by itself once the phase is over.
func leaveGate(ctx context.Context, c client.Client, id string, ticket GateTicket) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), gateLeaveLimit)
	defer cancel()
	_ = c.SignalWorkflow(ctx, id, "", GateLeave, ticket)
}

// GateOver returns those of the tickets whose phase is over: their workflow is, or it has no such activity pending. A ticket whose
// workflow is just deciding what comes next, or removes what the phase left, is not over.
func (a *Activities) GateOver(ctx context.Context, tickets []GateTicket) ([]GateTicket, error) {
	var over []GateTicket
	for _, ticket := range tickets {
		described, err := a.options.Client.DescribeWorkflowExecution(ctx, ticket.Workflow, ticket.Run)
		var gone *serviceerror.NotFound
		switch {
		case errors.As(err, &gone):
			over = append(over, ticket)
			continue
		case err != nil:
			return nil, fmt.Errorf("look at %s: %w", ticket.Workflow, err)
		}
		held := described.GetPendingWorkflowTask() != nil
		for _, one := range described.GetPendingActivities() {
			name := one.GetActivityType().GetName()
			held = held || name == ticket.Activity || name == AbortName
		}
		if !held || described.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING {
			over = append(over, ticket)
		}
	}
	return over, nil
}
