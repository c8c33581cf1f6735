package activities

import (
	"context"
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"berth/provisioners"
)

// What the Gate workflow is called and what it answers to. workflows.Gate says what it is.
const (
	GateName       = "Gate"     // the workflow: takes a GateState
	GateEnter      = "enter"    // the update: takes a GateRequest, returns the ticket's place: 0 is inside, n is the n-th in line
	GatePlace      = "place"    // the query: takes a GateTicket, returns its place; GateUnknown for one that was never seen or is over
	GateLeave      = "leave"    // the signal: takes a GateTicket
	GateOverName   = "GateOver" // the activity: takes GateTickets, returns those whose phase is over
	GateUnknown    = -1
	gateIDPrefix   = "gate/"
	gateLeaveLimit = 10 * time.Second
	gateAskLimit   = 20 * time.Second
)

// GateTicket is who is inside a gate or in its line: one kind of phase of one reservation. It names no attempt and no worker, so
// a phase that goes on elsewhere or begins anew keeps its place.
type GateTicket struct {
	Workflow string `json:"workflow"`
	Run      string `json:"run"`
	Activity string `json:"activity"` // the phase's activity: the ticket is over when the workflow has neither it nor Abort pending
}

// GateRequest asks for a place inside.
type GateRequest struct {
	Ticket   GateTicket `json:"ticket"`
	Capacity int        `json:"capacity"` // how many may be inside, as the asking worker's settings say: the last word counts
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
		g := p.gate(name, p.info.ActivityType.Name)
		g.request.Capacity = capacity
		leave := func() {
			// Who hands over keeps the place for its successor.
			if !provisioners.HandedOver(ctx) {
				g.leave(ctx)
			}
		}
		inLine, err := g.wait(ctx, waiting)
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
	return func(ctx context.Context, name string) { p.gate(name, LoadName).leave(ctx) }
}

// gate returns the way of this reservation's ticket through a gate, for a phase's activity.
func (p *phase) gate(name, activity string) gate {
	return gate{client: p.options.Client, id: GateID(name), request: GateRequest{
		Ticket: GateTicket{Workflow: p.info.WorkflowExecution.ID, Run: p.info.WorkflowExecution.RunID, Activity: activity},
	}}
}

// gate is one ticket's way through a gate.
type gate struct {
	client  client.Client
	id      string
	request GateRequest
}

// wait returns once the ticket is inside. It says whether the ticket was seen in line: then it has not been inside before.
func (g gate) wait(ctx context.Context, waiting func(place int)) (inLine bool, err error) {
	place, err := g.ask(ctx)
	if err != nil {
		return false, fmt.Errorf("gate %s: %w", g.id, err)
	}
	inLine = place > 0
	for told := 0; place != 0; {
		if place != told {
			waiting(place)
			told = place
		}
		timer := time.NewTimer(askAgain(place))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return inLine, ctx.Err()
		}
		if now, err := g.place(ctx); err == nil {
			place = now
		}
		// The gate does not know us when it was ended by hand, or took us for over while a worker was lost.
		if place == GateUnknown {
			if now, err := g.ask(ctx); err == nil {
				place = now
			}
		}
	}
	return inLine, ctx.Err()
}

// askAgain returns how long the n-th in line waits before it asks again: who is next to go looks every second, and a line of a
// thousand asks its gate at most some 40 times a second.
func askAgain(place int) time.Duration {
	const least, most = time.Second, 20 * time.Second
	return min(max(time.Duration(place)*least/4, least), most)
}

// ask takes a place in line, or says which place the ticket has already.
func (g gate) ask(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, gateAskLimit)
	defer cancel()
	for {
		// A start operation is good for one use.
		start := g.client.NewWithStartWorkflowOperation(client.StartWorkflowOptions{
			ID: g.id, TaskQueue: WorkflowQueue, WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
			StaticSummary: g.id,
		}, GateName, GateState{})
		handle, err := g.client.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
			StartWorkflowOperation: start,
			UpdateOptions: client.UpdateWorkflowOptions{
				UpdateName: GateEnter, Args: []any{g.request}, WaitForStage: client.WorkflowUpdateStageCompleted,
			},
		})
		var place int
		if err == nil {
			err = handle.Get(ctx, &place)
		}
		var application *temporal.ApplicationError
		if err == nil || ctx.Err() != nil || errors.As(err, &application) && application.NonRetryable() {
			return place, err
		}
		// A gate that was just closing, or is going over into its next run, takes the ticket in a moment.
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, err
		}
	}
}

func (g gate) place(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, gateAskLimit)
	defer cancel()
	answer, err := g.client.QueryWorkflow(ctx, g.id, "", GatePlace, g.request.Ticket)
	var gone *serviceerror.NotFound
	if errors.As(err, &gone) {
		return GateUnknown, nil
	}
	if err != nil {
		return 0, err
	}
	var place int
	err = answer.Get(&place)
	return place, err
}

// leave gives the place up. What is lost here the gate finds out by itself once the phase is over.
func (g gate) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), gateLeaveLimit)
	defer cancel()
	_ = g.client.SignalWorkflow(ctx, g.id, "", GateLeave, g.request.Ticket)
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
