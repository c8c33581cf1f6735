package main

import (
	"context"
	"fmt"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"berth/internal/metrics"
	"berth/reservation"
	"berth/workflows"
)

// countEvery is how often the held computers are counted: as often as Prometheus usually asks.
const countEvery = 15 * time.Second

// countHeld counts the computers that reservations hold, until the context ends. Temporal's visibility knows them all, so
// every worker counts the same. A count that cannot be had leaves the last one, and the log says nothing of it: readiness
// tells what is wrong with Temporal.
func countHeld(ctx context.Context, c client.Client, m *metrics.Metrics) {
	ticker := time.NewTicker(countEvery)
	defer ticker.Stop()
	for {
		for _, phase := range []reservation.Phase{reservation.PhaseLoad, reservation.PhasePostLoad, reservation.PhaseReady, reservation.PhaseClean, reservation.PhaseUnload} {
			counted, err := c.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{Query: fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus = 'Running' AND %s = '%s'",
				workflows.ReservationName, workflows.SearchAttributes().Phase.GetName(), phase)})
			if err == nil {
				m.Held(string(phase), counted.GetCount())
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
