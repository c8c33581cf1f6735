package commands

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/serviceerror"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"golang.org/x/sync/errgroup"

	"berth/activities"
	"berth/internal/catalog"
	"berth/internal/hold"
	"berth/internal/loadlog"
	"berth/internal/logging"
	"berth/internal/temporalclient"
	"berth/reservation"
	"berth/workflows"
)

const (
	callLimit = 10 * time.Second // of one call to Temporal that needs no worker
	// startLimit bounds a reservation's start, which is tried again when it gets no answer. A server that has just begun, on a
	// machine that is busy with more, was seen to answer none of three tries of 10 s.
	startLimit = 2 * time.Minute
	// queryLimit bounds a status query. A worker answers one in milliseconds; where none does, the history tells nearly
	// as much.
	queryLimit = 3 * time.Second
	// askLimit bounds an update, which needs a worker too and whose answer nothing else can give.
	askLimit = 15 * time.Second
	// silentFor is how long nobody is queried after a query that nobody answered.
	silentFor = 15 * time.Second
	// visibleWithin is how long a workflow takes at most to be found by its search attributes (visibility is written
	// after the fact).
	visibleWithin = 2 * time.Second
	visibleRetry  = 100 * time.Millisecond
	// polledWithin is how recently a worker that is there has polled: its long polls last a minute.
	polledWithin = 70 * time.Second
	parallel     = 8 // calls to Temporal at a time
)

// ledger knows the reservations as Temporal has them.
type ledger struct {
	client    client.Client
	namespace string
	now       func() time.Time
	silence   quiet
}

// run is one run of a reservation's workflow.
type run struct {
	id        string
	runID     string
	described *workflowservice.DescribeWorkflowExecutionResponse
}

func (r run) live() bool {
	return r.described.GetWorkflowExecutionInfo().GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING
}

// name returns the reservation's name.
func (r run) name() string {
	return attribute(r.described.GetWorkflowExecutionInfo(), workflows.SearchAttributes().Reservation.GetName())
}

func (r run) computer() string { return strings.TrimPrefix(r.id, hold.WorkflowID("")) }

// settings returns where Temporal is: what the flags say, otherwise what the environment says.
func (s *session) settings() temporalclient.Settings {
	settings := s.Temporal
	if s.address != "" {
		settings = settings.At(s.address)
	}
	if s.namespace != "" {
		settings.Namespace = s.namespace
	}
	return settings
}

// ledger connects to Temporal, once.
func (s *session) ledger(ctx context.Context) (*ledger, error) {
	if s.client == nil {
		settings := s.settings()
		if err := settings.Validate(); err != nil {
			return nil, err
		}
		who := s.user("")
		if reservation.CheckUser("", who) != nil {
			who = Name
		}
		c, err := s.Dial(ctx, temporalclient.Options{
			// The identity stands in load logs beside whatever somebody asked for.
			Settings: settings, Identity: temporalclient.Identity(who), Logger: logging.Temporal(zerolog.Nop()), Interceptors: s.Interceptors,
		})
		if err != nil {
			return nil, err
		}
		s.client = c
	}
	return &ledger{client: s.client, namespace: s.settings().Namespace, now: s.Now}, nil
}

// attribute returns a keyword of a workflow's search attributes; "" if it has none of that name.
func attribute(info *workflowpb.WorkflowExecutionInfo, name string) string {
	payload := info.GetSearchAttributes().GetIndexedFields()[name]
	var text string
	if payload == nil || converter.GetDefaultDataConverter().FromPayload(payload, &text) != nil {
		return ""
	}
	return text
}

func (l *ledger) describe(ctx context.Context, id, runID string) (run, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	described, err := l.client.DescribeWorkflowExecution(ctx, id, runID)
	if err != nil {
		return run{}, err
	}
	return run{id: id, runID: described.GetWorkflowExecutionInfo().GetExecution().GetRunId(), described: described}, nil
}

// find returns the reservation that a name means: the last one of the computer of that name, otherwise the newest one of
// that name, a live one before any other. With live, one that has ended is a failure.
func (l *ledger) find(ctx context.Context, name string, live bool) (run, error) {
	if err := reservation.CheckName("NAME", name); err != nil {
		return run{}, err
	}
	found, err := l.describe(ctx, hold.WorkflowID(name), "")
	if err == nil {
		if live && !found.live() {
			return run{}, l.ended(ctx, found, fmt.Sprintf("computer %s has no live reservation; the last one, %s,", name, found.name()))
		}
		return found, nil
	}
	var missing *serviceerror.NotFound
	if !errors.As(err, &missing) {
		return run{}, err
	}
	deadline := time.NewTimer(visibleWithin)
	defer deadline.Stop()
	for {
		named, err := l.named(ctx, name)
		if err != nil {
			return run{}, err
		}
		alive := slices.DeleteFunc(slices.Clone(named), func(r run) bool { return !r.live() })
		switch {
		case len(alive) == 1:
			return alive[0], nil
		case len(alive) > 1:
			return run{}, several(name, alive)
		case len(named) > 0 && !live:
			return named[0], nil
		}
		retry := time.NewTimer(visibleRetry)
		select {
		case <-ctx.Done():
			retry.Stop()
			return run{}, ctx.Err()
		case <-deadline.C:
			retry.Stop()
			if len(named) > 0 {
				return run{}, l.ended(ctx, named[0], "reservation "+name)
			}
			return run{}, &notFound{name: name}
		case <-retry.C:
		}
	}
}

// notFound says that a name means no reservation.
type notFound struct{ name string }

func (e *notFound) Error() string { return fmt.Sprintf("there is no reservation %q", e.name) }

func several(name string, runs []run) *Failure {
	computers := make([]string, len(runs))
	for i, r := range runs {
		computers[i] = r.computer()
	}
	slices.Sort(computers)
	return &Failure{Code: CodeInput, Text: fmt.Sprintf("%d live reservations are named %s: on the computers %s", len(runs), name, strings.Join(computers, ", ")),
		Hint: "say which one by its computer's name"}
}

// ended is the failure of a command that needs a live reservation.
func (l *ledger) ended(ctx context.Context, r run, who string) error {
	text := who + " has ended"
	if view, err := l.view(ctx, r); err == nil {
		text = fmt.Sprintf("%s was over at %s (%s)", who, loadlog.Style{Now: l.now()}.Clock(view.Ended), view.Outcome)
	}
	return &Failure{Code: CodeFailed, Text: text, Hint: "see what became of it: " + Name + " show " + r.name()}
}

// named returns the runs of a reservation's name, the live ones first, then the newest first. name has been checked: it
// stands in the query.
func (l *ledger) named(ctx context.Context, name string) ([]run, error) {
	const most = 20 // of one name; older ones are of no interest
	infos, _, err := l.search(ctx, fmt.Sprintf("WorkflowType = '%s' AND %s = '%s'", workflows.ReservationName,
		workflows.SearchAttributes().Reservation.GetName(), name), most)
	if err != nil {
		return nil, err
	}
	runs, err := l.describeAll(ctx, infos)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(runs, func(a, b run) int {
		if a.live() != b.live() {
			if a.live() {
				return -1
			}
			return 1
		}
		return b.described.GetWorkflowExecutionInfo().GetStartTime().AsTime().Compare(a.described.GetWorkflowExecutionInfo().GetStartTime().AsTime())
	})
	return runs, nil
}

// search returns up to most workflows that a visibility query finds, and whether there are more.
func (l *ledger) search(ctx context.Context, query string, most int) ([]*workflowpb.WorkflowExecutionInfo, bool, error) {
	var found []*workflowpb.WorkflowExecutionInfo
	var page []byte
	for {
		callCtx, cancel := context.WithTimeout(ctx, callLimit)
		answer, err := l.client.ListWorkflow(callCtx, &workflowservice.ListWorkflowExecutionsRequest{
			Namespace: l.namespace, Query: query, PageSize: int32(min(most+1, 1000)), NextPageToken: page,
		})
		cancel()
		if err != nil {
			return nil, false, err
		}
		found = append(found, answer.GetExecutions()...)
		page = answer.GetNextPageToken()
		if len(found) > most {
			return found[:most], true, nil
		}
		if len(page) == 0 {
			return found, false, nil
		}
	}
}

// describeAll reads the present state of workflows that were found by visibility, which may lag behind. Those that are
// no longer kept are left out.
func (l *ledger) describeAll(ctx context.Context, infos []*workflowpb.WorkflowExecutionInfo) ([]run, error) {
	runs := make([]run, len(infos))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, info := range infos {
		group.Go(func() error {
			r, err := l.describe(groupCtx, info.GetExecution().GetWorkflowId(), info.GetExecution().GetRunId())
			var missing *serviceerror.NotFound
			if errors.As(err, &missing) {
				return nil
			}
			runs[i] = r
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(runs, func(r run) bool { return r.described == nil }), nil
}

// view returns everything that is known of a reservation.
func (l *ledger) view(ctx context.Context, r run) (loadlog.View, error) {
	v := loadlog.View{WorkflowID: r.id, RunID: r.runID}
	var err error
	if r.live() {
		v.Status, v.Notes, err = l.status(ctx, r)
	} else {
		v.Status, err = l.left(ctx, r)
	}
	if v.Phases == nil {
		v.Phases = []reservation.PhaseRecord{} // an array in JSON, whatever happened
	}
	if err != nil {
		return v, err
	}
	return v.WithLive(loadlog.LiveOf(r.described, l.now())), nil
}

// status returns a live reservation's status: its own answer or, where no worker gives it, what its history tells, with
// a note that says so.
func (l *ledger) status(ctx context.Context, r run) (reservation.Status, []string, error) {
	status, silent := l.query(ctx, r)
	if silent == nil {
		return status, nil, nil
	}
	if ctx.Err() != nil {
		return status, nil, ctx.Err()
	}
	events, err := l.events(ctx, r)
	if err != nil {
		return status, nil, err
	}
	return loadlog.Read(events).Status, []string{l.whySilent(ctx, silent) + "; this is what its history tells"}, nil
}

// query asks the workflow for its status.
func (l *ledger) query(ctx context.Context, r run) (reservation.Status, error) {
	var status reservation.Status
	if err := l.silence.since(l.now()); err != nil {
		return status, err
	}
	ctx, cancel := context.WithTimeout(ctx, queryLimit)
	defer cancel()
	answer, err := l.client.QueryWorkflow(ctx, r.id, r.runID, workflows.StatusQuery)
	if err == nil {
		err = answer.Get(&status)
	}
	// A workflow that fails its query has a worker: only itself is dumb.
	var failed *serviceerror.QueryFailed
	if err != nil && !errors.As(err, &failed) {
		l.silence.begin(err, l.now())
	}
	return status, err
}

// whySilent says why a reservation's workflow did not answer.
func (l *ledger) whySilent(ctx context.Context, err error) string {
	seen, derr := l.lastPoll(ctx, activities.WorkflowQueue)
	var failed *serviceerror.QueryFailed
	switch {
	case errors.As(err, &failed):
		return "the reservation's workflow does not answer: " + failed.Message
	case derr != nil:
		return "no worker answers for the reservation"
	case seen.IsZero():
		return noWorkerText()
	default:
		return fmt.Sprintf("no worker answers for the reservation: the last one asked for work from queue %s %s ago", activities.WorkflowQueue, loadlog.Span(l.now().Sub(seen)))
	}
}

func noWorkerText() string {
	return "no worker serves the workflow queue " + activities.WorkflowQueue
}

// lastPoll returns when a worker last asked for work from a workflow queue; zero if none has lately.
func (l *ledger) lastPoll(ctx context.Context, queue string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	described, err := l.client.DescribeTaskQueue(ctx, queue, enumspb.TASK_QUEUE_TYPE_WORKFLOW)
	if err != nil {
		return time.Time{}, err
	}
	var last time.Time
	for _, poller := range described.GetPollers() {
		if at := poller.GetLastAccessTime().AsTime(); at.After(last) {
			last = at
		}
	}
	if l.now().Sub(last) > polledWithin {
		return time.Time{}, nil
	}
	return last, nil
}

// left returns the status that an ended reservation left.
func (l *ledger) left(ctx context.Context, r run) (reservation.Status, error) {
	last, err := collect(l.client.GetWorkflowHistory(ctx, r.id, r.runID, false, enumspb.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT))
	if err != nil {
		return reservation.Status{}, err
	}
	if len(last) > 0 {
		if status, ok := loadlog.AtEnd(last[len(last)-1]); ok {
			return status, nil
		}
	}
	events, err := l.events(ctx, r)
	if err != nil {
		return reservation.Status{}, err
	}
	return loadlog.Read(events).Status, nil
}

// events returns a workflow's whole history.
func (l *ledger) events(ctx context.Context, r run) ([]*historypb.HistoryEvent, error) {
	return collect(l.client.GetWorkflowHistory(ctx, r.id, r.runID, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT))
}

func collect(iterator client.HistoryEventIterator) ([]*historypb.HistoryEvent, error) {
	var events []*historypb.HistoryEvent
	for iterator.HasNext() {
		event, err := iterator.Next()
		if err != nil {
			return nil, err
		}
		events = append(events, event)
	}
	return events, nil
}

// views returns the views of several runs, in their order.
func (l *ledger) views(ctx context.Context, runs []run) ([]loadlog.View, error) {
	views := make([]loadlog.View, len(runs))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, r := range runs {
		group.Go(func() error {
			var err error
			views[i], err = l.view(groupCtx, r)
			return err
		})
	}
	return views, group.Wait()
}

// names returns the names of the reservations that a visibility query finds, and their computers.
func (l *ledger) names(ctx context.Context, query string, most int) (names, computers []string, err error) {
	infos, _, err := l.search(ctx, query, most)
	if err != nil {
		return nil, nil, err
	}
	for _, info := range infos {
		names = append(names, attribute(info, workflows.SearchAttributes().Reservation.GetName()))
		computers = append(computers, strings.TrimPrefix(info.GetExecution().GetWorkflowId(), hold.WorkflowID("")))
	}
	return names, computers, nil
}

func anyQuery() string { return fmt.Sprintf("WorkflowType = '%s'", workflows.ReservationName) }

func liveQuery() string { return anyQuery() + " AND ExecutionStatus = 'Running'" }

// find is ledger.find whose failure suggests the nearest name.
func (s *session) find(ctx context.Context, l *ledger, name string, live bool) (run, error) {
	found, err := l.find(ctx, name, live)
	var missing *notFound
	if !errors.As(err, &missing) {
		return found, err
	}
	f := &Failure{Code: CodeNotFound, Text: missing.Error(), Hint: "see which there are: " + Name + " list"}
	query := liveQuery()
	if !live {
		query = anyQuery()
		f.Hint += " --all"
	}
	const most = 1000
	names, computers, err := l.names(ctx, query, most)
	if err != nil {
		return run{}, f
	}
	if c := s.completionCatalog(); c != nil && isComputer(c, name) {
		f.Text = fmt.Sprintf("computer %s has never been reserved, and no reservation has its name", name)
		return run{}, f
	}
	if near := catalog.Nearest(name, append(names, computers...)); near != "" {
		f.Hint = "did you mean " + near + "?"
	}
	return run{}, f
}
