package workflows

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"

	"berth/activities"
)

func TestWhyAnAttemptIsLost(t *testing.T) {
	application := func(kind, message string) error { return temporal.NewApplicationError(message, kind) }
	for want, errs := range map[string][]error{
		reasonModule: {application(activities.TypeReload, "the guest died")},
		reasonLimit: {
			application(activities.TypeReload, activities.Outlived+" of 30m: at stage \"tcp\""),
			temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_START_TO_CLOSE, nil),
			temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE, nil),
		},
		reasonLost:   {temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_HEARTBEAT, nil)},
		reasonFaults: {application(activities.TypeFault, "connection refused"), errors.New("x"), context.DeadlineExceeded},
	} {
		for _, err := range errs {
			require.Equal(t, want, reloadReason(err), "%v", err)
		}
	}
}
