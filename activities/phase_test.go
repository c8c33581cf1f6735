package activities

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"berth/provisioners"
	"berth/reservation"
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

// server answers heartbeats; it stands in for the one method of a client that a phase calls.
type server struct {
	client.Client
	answer func(n int) error

	mu sync.Mutex
	n  int
}

func (s *server) RecordActivityHeartbeat(ctx context.Context, _ []byte, _ ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.answer(s.n)
}

func TestAServerThatDoesNotAnswerForAWhileEndsNoPhase(t *testing.T) {
	lost := serviceerror.NewUnavailable("connection refused")
	until := func(most, n int, err error) error {
		if n < most {
			return err
		}
		return nil
	}
	for name, c := range map[string]struct {
		silence time.Duration // the server's patience
		answer  func(n int) error
		ends    error // with which the beating ends; nil: it does not
	}{
		"it answers":                          {time.Minute, func(int) error { return nil }, nil},
		"it is away for two beats":            {time.Minute, func(n int) error { return until(3, n, lost) }, nil},
		"it is slow":                          {time.Minute, func(n int) error { return until(3, n, context.DeadlineExceeded) }, nil},
		"it is away for longer than it waits": {time.Millisecond, func(int) error { return lost }, lost},
		"the workflow cancelled":              {time.Minute, func(int) error { return temporal.NewCanceledError() }, temporal.NewCanceledError()},
		"another worker has the phase":        {time.Minute, func(int) error { return serviceerror.NewNotFound("activity not found") }, serviceerror.NewNotFound("activity not found")},
		"an operator paused it":               {time.Minute, func(int) error { return activity.ErrActivityPaused }, activity.ErrActivityPaused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &server{answer: c.answer}
			p := &phase{silence: c.silence, changed: make(chan struct{}, 1), sending: make(chan struct{}, 1)}
			p.record = func(ctx context.Context, progress reservation.Progress) error {
				return s.RecordActivityHeartbeat(ctx, nil, progress)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- p.keepBeating(ctx, func() time.Duration { return time.Millisecond }) }()
			p.tell()
			if c.ends != nil {
				require.Equal(t, c.ends, <-ended)
				return
			}
			require.Eventually(t, func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.n >= 5
			}, 20*time.Second, time.Millisecond)
			stop()
			require.NoError(t, <-ended)
		})
	}
}
