package hold_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/hold"
	"berth/internal/scripted"
	"berth/reservation"
	"berth/workflows"
)

// deaf is a client whose starts are heard, and whose first answers are lost.
type deaf struct {
	client.Client
	lost, tries int
}

func (d *deaf) ExecuteWorkflow(ctx context.Context, options client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error) {
	run, err := d.Client.ExecuteWorkflow(ctx, options, workflow, args...)
	if d.tries++; d.tries <= d.lost {
		return nil, serviceerror.NewDeadlineExceeded("context deadline exceeded")
	}
	return run, err
}

// A reservation's workflow that ends in the way its user's name says.
func ends(ctx workflow.Context, r reservation.Reservation) error {
	released := false
	workflow.Go(ctx, func(ctx workflow.Context) {
		workflow.GetSignalChannel(ctx, workflows.ReleaseSignal).Receive(ctx, nil)
		released = true
	})
	// An error here is the cancel, which is looked at below.
	_ = workflow.Await(ctx, func() bool { return released })
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case r.User == "failed":
		return temporal.NewNonRetryableApplicationError("no", "Failed", nil)
	default:
		return nil
	}
}

func TestOneLiveReservationPerComputer(t *testing.T) {
	types := map[string]string{}
	for _, key := range workflows.SearchAttributes().Keys() {
		types[key.GetName()] = key.GetValueType().String()
	}
	server := devservertest.Start(t, devserver.Options{SearchAttributes: types})
	c, err := client.Dial(client.Options{HostPort: server.Address, Namespace: server.Namespace})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	w := worker.New(c, activities.WorkflowQueue, worker.Options{})
	w.RegisterWorkflowWithOptions(ends, workflow.RegisterOptions{Name: workflows.ReservationName})
	require.NoError(t, w.Start())
	t.Cleanup(w.Stop)

	reserve := func(name, user, computer string) reservation.Reservation {
		r := scripted.Reservation(name, computer, "vmware")
		r.User, r.End = user, time.Now().Add(time.Hour)
		return r
	}

	t.Run("a start whose answer is lost is known again", func(t *testing.T) {
		d := &deaf{Client: c, lost: 2}
		run, err := hold.Start(t.Context(), d, reserve("deaf", "ana", "vm-deaf"))
		require.NoError(t, err)
		require.Equal(t, 3, d.tries)
		described, err := c.DescribeWorkflowExecution(t.Context(), run.GetID(), "")
		require.NoError(t, err)
		require.Equal(t, run.GetRunID(), described.GetWorkflowExecutionInfo().GetExecution().GetRunId())
		// Another one of the same name and user is not taken for it, whatever becomes of its answers.
		var held *hold.HeldError
		_, err = hold.Start(t.Context(), &deaf{Client: c, lost: 1}, reserve("deaf", "ana", "vm-deaf"))
		require.ErrorAs(t, err, &held)
		// Who has waited long enough is told so.
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err = hold.Start(ctx, &deaf{Client: c, lost: 1 << 30}, reserve("deaf", "ana", "vm-deafer"))
		var late *serviceerror.DeadlineExceeded
		require.True(t, errors.As(err, &late) || errors.Is(err, context.DeadlineExceeded), "%v", err)
		for _, id := range []string{"vm-deaf", "vm-deafer"} {
			require.NoError(t, c.TerminateWorkflow(t.Context(), hold.WorkflowID(id), "", "the test is over"))
		}
	})

	for name, end := range map[string]func(run client.WorkflowRun) error{
		"completed": func(run client.WorkflowRun) error {
			return c.SignalWorkflow(t.Context(), run.GetID(), run.GetRunID(), workflows.ReleaseSignal, nil)
		},
		"failed": func(run client.WorkflowRun) error {
			return c.SignalWorkflow(t.Context(), run.GetID(), run.GetRunID(), workflows.ReleaseSignal, nil)
		},
		"cancelled": func(run client.WorkflowRun) error {
			return c.CancelWorkflow(t.Context(), run.GetID(), run.GetRunID())
		},
		"terminated": func(run client.WorkflowRun) error {
			return c.TerminateWorkflow(t.Context(), run.GetID(), run.GetRunID(), "a last resort")
		},
	} {
		t.Run("a second one is refused, and the hold ends with a holder that is "+name, func(t *testing.T) {
			computer := "vm-" + name
			first, err := hold.Start(t.Context(), c, reserve("first-"+name, name, computer))
			require.NoError(t, err)

			_, err = hold.Start(t.Context(), c, reserve("second-"+name, "bob", computer))
			var held *hold.HeldError
			require.ErrorAs(t, err, &held)
			require.Equal(t, "first-"+name, held.Holder)
			require.Equal(t, name, held.User)
			require.ErrorContains(t, err, "release that one first")

			other, err := hold.Start(t.Context(), c, reserve("third-"+name, "bob", computer+"-other"))
			require.NoError(t, err, "another computer is free")
			require.NoError(t, c.TerminateWorkflow(t.Context(), other.GetID(), other.GetRunID(), ""))

			require.NoError(t, end(first))
			// How it ended does not matter here, only that it did.
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_ = first.Get(ctx, nil)
			second, err := hold.Start(t.Context(), c, reserve("second-"+name, "bob", computer))
			require.NoError(t, err)
			require.NoError(t, c.TerminateWorkflow(t.Context(), second.GetID(), second.GetRunID(), ""))
		})
	}

	t.Run("the hold ends with a holder that has timed out", func(t *testing.T) {
		r := reserve("late", "ana", "vm-late")
		run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{
			ID: hold.WorkflowID("vm-late"), TaskQueue: activities.WorkflowQueue, WorkflowExecutionTimeout: time.Second,
		}, workflows.ReservationName, r)
		require.NoError(t, err)
		require.Error(t, run.Get(t.Context(), nil))
		_, err = hold.Start(t.Context(), c, r)
		require.NoError(t, err)
	})
}
