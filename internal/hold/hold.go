// Package hold is the one place that decides who may have a computer: a computer has at most one live reservation.
//
// The hold is the reservation's workflow itself: its workflow ID is the computer's, and Temporal runs one workflow of an
// ID at a time. So the hold begins with the workflow and ends with it however that ends (completed, failed, cancelled,
// terminated, timed out), and nothing can be stranded. Pools with queues and placement can take over behind Start.
package hold

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/temporal"

	"berth/activities"
	"berth/reservation"
	"berth/workflows"
)

const (
	idPrefix        = "computer/"
	memoReservation = "reservation"
	memoUser        = "user"
	memoStart       = "start" // of this very call of Start
)

// WorkflowID returns the ID of the workflow that holds a computer.
func WorkflowID(computer string) string { return idPrefix + computer }

// HeldError says that a computer has a live reservation already.
type HeldError struct {
	Computer string
	Holder   string // the reservation's name
	User     string
	Since    time.Time

	start string // which call of Start its workflow is of
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("computer %s is held by reservation %s of %s since %s: release that one first, or choose another computer",
		e.Computer, e.Holder, e.User, e.Since.Local().Format("2006-01-02 15:04:05"))
}

const (
	// tryLimit is how long one try may go without an answer. The SDK gives a call as long (10 s), and repeats by itself what a
	// server refuses for the moment.
	tryLimit = 10 * time.Second
	tryAgain = 200 * time.Millisecond // after one without an answer
)

// Start starts the reservation's workflow, which takes the hold of its computer. A computer that is held is refused with
// a *HeldError at once. A try that gets no answer may have been heard: Start tries again until ctx ends, and knows a
// workflow of its own by its memo.
func Start(ctx context.Context, c client.Client, r reservation.Reservation) (client.WorkflowRun, error) {
	mine := uuid.NewString()
	options := client.StartWorkflowOptions{
		ID:                       WorkflowID(r.Computer.Name),
		TaskQueue:                activities.WorkflowQueue,
		WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		WorkflowIDReusePolicy:    enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		// Without this the SDK answers with the holder's run as if it were ours.
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		Memo:                                     map[string]any{memoReservation: r.Name, memoUser: r.User, memoStart: mine},
		TypedSearchAttributes:                    temporal.NewSearchAttributes(workflows.SearchAttributes().AtStart(r)...),
		StaticSummary:                            workflows.Summary(r),
	}
	// A holder may end between the refusal and the look at who it is; then the computer is free and we try once more.
	for refused := 0; ; {
		try, cancel := context.WithTimeout(ctx, tryLimit)
		run, err := c.ExecuteWorkflow(try, options, workflows.ReservationName, r)
		cancel()
		var started *serviceerror.WorkflowExecutionAlreadyStarted
		switch {
		case errors.As(err, &started):
			held, live, derr := holder(ctx, c, r.Computer.Name, started.RunId)
			if derr != nil {
				return nil, fmt.Errorf("computer %s is held, and who holds it cannot be read: %w", r.Computer.Name, derr)
			}
			if held.start == mine {
				return c.GetWorkflow(ctx, options.ID, started.RunId), nil
			}
			if refused++; live || refused == 3 {
				return nil, held
			}
		case unanswered(err) && ctx.Err() == nil:
			select {
			case <-time.After(tryAgain):
			case <-ctx.Done():
			}
		default:
			return run, err
		}
	}
}

// unanswered says whether an error is that nothing was heard in time, as opposed to a refusal.
func unanswered(err error) bool {
	var late *serviceerror.DeadlineExceeded
	return errors.As(err, &late) || errors.Is(err, context.DeadlineExceeded)
}

func holder(ctx context.Context, c client.Client, computer, run string) (*HeldError, bool, error) {
	described, err := c.DescribeWorkflowExecution(ctx, WorkflowID(computer), run)
	if err != nil {
		return nil, false, err
	}
	info := described.GetWorkflowExecutionInfo()
	held := &HeldError{Computer: computer, Since: info.GetStartTime().AsTime()}
	for key, to := range map[string]*string{memoReservation: &held.Holder, memoUser: &held.User, memoStart: &held.start} {
		if payload := info.GetMemo().GetFields()[key]; payload != nil {
			if err := converter.GetDefaultDataConverter().FromPayload(payload, to); err != nil {
				return nil, false, err
			}
		}
	}
	return held, info.GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, nil
}
