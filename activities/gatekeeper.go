package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
)

const (
	// gateCallLimit bounds one update or query of a gate.
	gateCallLimit = 20 * time.Second
	// gatePatience is how long a gate may be out of reach before a load that has no place yet ends with a fault, which
	// Temporal's retry policy then makes known and tries again.
	gatePatience = 3 * time.Minute
	// gateBatch bounds the tickets of one call: 1,000 are some 150 kB, well below the server's 2 MB for a payload.
	gateBatch = 1000
	// How often the places of those who wait are asked for.
	askAtLeast, askAtMost = time.Second, 20 * time.Second
)

// gatekeepers are this process's ways to the gates: one for each gate that somebody here waits at.
type gatekeepers struct {
	asker gateAsker
	mu    sync.Mutex
	open  map[string]*gatekeeper
}

// gateAsker asks a gate, by its workflow's ID, for the places of tickets: 0 is inside, GateUnknown is nowhere.
type gateAsker interface {
	// enter takes places in line, or finds those that the tickets have already. It starts the gate if need be.
	enter(ctx context.Context, id string, tickets []GateTicket, capacity int) ([]int, error)
	places(ctx context.Context, id string, tickets []GateTicket) ([]int, error)
}

// gatekeeper asks a gate on behalf of all loads of this process that wait at it. Each asking for itself would make of a
// thousand loads some fifty calls a second to one workflow, which is more than a small server answers.
type gatekeeper struct {
	gates   *gatekeepers
	id      string
	waiters []*gateWaiter // in the order in which they came; guarded by gates.mu
	arrived chan struct{}
}

type gateWaiter struct {
	ticket   GateTicket
	capacity int
	since    time.Time // of the wait for a first place
	place    int       // GateUnknown until the gate has told; only the gatekeeper looks
	answers  chan gateAnswer
}

type gateAnswer struct {
	place int
	err   error
}

// wait returns once the ticket is inside. waiting is called with the place in line whenever it is another one. It says whether
// the ticket was seen in line: then it has not been inside before.
func (g *gatekeepers) wait(ctx context.Context, id string, ticket GateTicket, capacity int, waiting func(place int)) (inLine bool, err error) {
	w := &gateWaiter{ticket: ticket, capacity: capacity, since: time.Now(), place: GateUnknown, answers: make(chan gateAnswer, 1)}
	keeper := g.join(id, w)
	defer g.part(keeper, w)
	for told := 0; ; {
		select {
		case answer := <-w.answers:
			switch {
			case answer.err != nil:
				return inLine, fmt.Errorf("gate %s: %w", id, answer.err)
			case answer.place == 0:
				return inLine, ctx.Err()
			case answer.place != told:
				inLine = true
				waiting(answer.place)
				told = answer.place
			}
		case <-ctx.Done():
			return inLine, ctx.Err()
		}
	}
}

func (g *gatekeepers) join(id string, w *gateWaiter) *gatekeeper {
	g.mu.Lock()
	defer g.mu.Unlock()
	keeper, ok := g.open[id]
	if !ok {
		keeper = &gatekeeper{gates: g, id: id, arrived: make(chan struct{}, 1)}
		if g.open == nil {
			g.open = map[string]*gatekeeper{}
		}
		g.open[id] = keeper
		go keeper.run()
	}
	keeper.waiters = append(keeper.waiters, w)
	select {
	case keeper.arrived <- struct{}{}:
	default:
	}
	return keeper
}

func (g *gatekeepers) part(keeper *gatekeeper, w *gateWaiter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	keeper.waiters = slices.DeleteFunc(keeper.waiters, func(one *gateWaiter) bool { return one == w })
}

// next returns who waits; when nobody does the gatekeeper is no longer the gate's.
func (k *gatekeeper) next() []*gateWaiter {
	k.gates.mu.Lock()
	defer k.gates.mu.Unlock()
	if len(k.waiters) == 0 {
		delete(k.gates.open, k.id)
		return nil
	}
	return slices.Clone(k.waiters)
}

// run asks until nobody here waits any more. Each load's own context ends its wait, so the calls have only their limits.
func (k *gatekeeper) run() {
	for due := time.Now(); ; {
		all := k.next()
		if len(all) == 0 {
			return
		}
		var known, unknown []*gateWaiter
		for _, w := range all {
			if w.place == GateUnknown {
				unknown = append(unknown, w)
			} else {
				known = append(known, w)
			}
		}
		// Who comes in meanwhile is asked for in the next call.
		entered := k.each(unknown, func(ctx context.Context, tickets []GateTicket, capacity int) ([]int, error) {
			return k.gates.asker.enter(ctx, k.id, tickets, capacity)
		})
		if !time.Now().Before(due) {
			k.each(known, func(ctx context.Context, tickets []GateTicket, _ int) ([]int, error) {
				return k.gates.asker.places(ctx, k.id, tickets)
			})
			due = time.Now().Add(askAgain(all))
		}
		arrived := k.arrived
		wait := time.Until(due)
		if !entered { // the gate is just closing, or out of reach
			arrived, wait = nil, askAtLeast
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-arrived:
			timer.Stop()
		}
	}
}

// each calls for at most gateBatch tickets at a time, tells the waiters what the answer is, and says whether all were answered.
func (k *gatekeeper) each(waiters []*gateWaiter, call func(context.Context, []GateTicket, int) ([]int, error)) bool {
	answered := true
	for len(waiters) > 0 {
		n := min(len(waiters), gateBatch)
		tickets := make([]GateTicket, n)
		for i, w := range waiters[:n] {
			tickets[i] = w.ticket
		}
		ctx, cancel := context.WithTimeout(context.Background(), gateCallLimit)
		places, err := call(ctx, tickets, waiters[0].capacity)
		cancel()
		if err == nil && len(places) != n {
			err = fmt.Errorf("%d places for %d tickets", len(places), n)
		}
		answered = answered && err == nil
		for i, w := range waiters[:n] {
			switch {
			case err == nil:
				w.tell(places[i])
			case w.place == GateUnknown && (final(err) || time.Since(w.since) > gatePatience):
				w.answer(gateAnswer{err: err})
			}
		}
		waiters = waiters[n:]
	}
	return answered
}

func (w *gateWaiter) tell(place int) {
	if w.place == GateUnknown {
		w.since = time.Now()
	}
	w.place = place
	// The gate may not know a ticket that it knew: it was ended by hand, or took the ticket for over while a worker was lost.
	// The next call takes a place anew.
	if place != GateUnknown {
		w.answer(gateAnswer{place: place})
	}
}

// answer keeps the latest answer only.
func (w *gateWaiter) answer(a gateAnswer) {
	select {
	case <-w.answers:
	default:
	}
	w.answers <- a
}

// final says of a gate's error that asking again does not help.
func final(err error) bool {
	var application *temporal.ApplicationError
	return errors.As(err, &application) && application.NonRetryable()
}

// gateClient asks gates on a Temporal server.
type gateClient struct{ client.Client }

// One ticket is asked for as version 1 did, whose gates know nothing else; so are many where such a gate refuses to take them at once.
func (c gateClient) enter(ctx context.Context, id string, tickets []GateTicket, capacity int) ([]int, error) {
	if len(tickets) > 1 {
		var places []int
		err := c.update(ctx, id, GateEnter, GateRequest{Tickets: tickets, Capacity: capacity}, &places)
		if !unknown(err) {
			return places, err
		}
	}
	return oneByOne(tickets, func(ticket GateTicket, place *int) error {
		return c.update(ctx, id, GateEnterOne, GateRequest{Ticket: &ticket, Capacity: capacity}, place)
	})
}

func (c gateClient) update(ctx context.Context, id, name string, request GateRequest, places any) error {
	start := c.NewWithStartWorkflowOperation(client.StartWorkflowOptions{
		ID: id, TaskQueue: WorkflowQueue, WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		StaticSummary: id,
	}, GateName, GateState{})
	handle, err := c.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: start,
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateName: name, Args: []any{request}, WaitForStage: client.WorkflowUpdateStageCompleted,
		},
	})
	if err == nil {
		err = handle.Get(ctx, places)
	}
	return err
}

func (c gateClient) places(ctx context.Context, id string, tickets []GateTicket) ([]int, error) {
	var places []int
	err := c.query(ctx, id, GatePlaces, tickets, &places)
	if unknown(err) {
		places, err = oneByOne(tickets, func(ticket GateTicket, place *int) error { return c.query(ctx, id, GatePlace, ticket, place) })
	}
	var gone *serviceerror.NotFound
	if errors.As(err, &gone) {
		return slices.Repeat([]int{GateUnknown}, len(tickets)), nil
	}
	return places, err
}

func (c gateClient) query(ctx context.Context, id, name string, asked, places any) error {
	answer, err := c.QueryWorkflow(ctx, id, "", name, asked)
	if err == nil {
		err = answer.Get(places)
	}
	return err
}

func oneByOne(tickets []GateTicket, ask func(ticket GateTicket, place *int) error) ([]int, error) {
	places := make([]int, len(tickets))
	for i, ticket := range tickets {
		if err := ask(ticket, &places[i]); err != nil {
			return nil, err
		}
	}
	return places, nil
}

// unknown says of a gate's error that its version does not know what it is asked. The SDK has nothing but words for it.
func unknown(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "unknown update") || strings.Contains(err.Error(), "unknown queryType"))
}

// askAgain returns how long those who wait here wait before they ask again: with the next to go among them a second, with nobody
// but the n-th or later ever more.
func askAgain(waiters []*gateWaiter) time.Duration {
	again := askAtMost
	for _, w := range waiters {
		again = min(again, time.Duration(w.place)*askAtLeast/4)
	}
	return max(again, askAtLeast)
}
