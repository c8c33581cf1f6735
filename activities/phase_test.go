package activities

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"berth/provisioners"
)

func TestOnlyACancelStopsWhatRunsInAControlPlane(t *testing.T) {
	for name, c := range map[string]struct {
		cause    error
		handOver bool
	}{
		"the workflow cancelled":                     {temporal.NewCanceledError(), false},
		"the SDK's own deadline":                     {context.DeadlineExceeded, false},
		"another worker has taken over":              {serviceerror.NewNotFound("activity not found"), true},
		"the server was not reached for too long":    {serviceerror.NewUnavailable("connection refused"), true},
		"an operator paused the activity":            {activity.ErrActivityPaused, true},
		"an operator reset the activity":             {activity.ErrActivityReset, true},
		"whatever else the SDK may end it with next": {errors.New("worker shutdown"), true},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.handOver, errors.As(endOf(c.cause), new(provisioners.HandOver)))
		})
	}
}
