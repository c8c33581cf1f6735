package main

import (
	"context"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/proto"
)

// historyToReady counts the events and bytes of a reservation's history up to the one that says "ready".
func historyToReady(ctx context.Context, c client.Client, run client.WorkflowRun) (events, bytes int, err error) {
	completed := 0
	history := c.GetWorkflowHistory(ctx, run.GetID(), run.GetRunID(), false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for history.HasNext() {
		event, err := history.Next()
		if err != nil {
			return 0, 0, err
		}
		events++
		bytes += proto.Size(event)
		if event.EventType == enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED {
			completed++
		}
		if completed == 2 && event.EventType == enumspb.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES {
			break
		}
	}
	return events, bytes, nil
}
