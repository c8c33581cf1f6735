package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"
)

// line is a gate: the first so many of its tickets are inside.
type line struct {
	mu      sync.Mutex
	tickets []GateTicket
	inside  int
	enters  int
	queries int
	trouble func() error // what a call says
}

func (l *line) enter(_ context.Context, _ string, tickets []GateTicket, _ int) ([]int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enters++
	if err := l.trouble(); err != nil {
		return nil, err
	}
	for _, ticket := range tickets {
		if !slices.Contains(l.tickets, ticket) {
			l.tickets = append(l.tickets, ticket)
		}
	}
	return l.stand(tickets), nil
}

func (l *line) places(_ context.Context, _ string, tickets []GateTicket) ([]int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queries++
	return l.stand(tickets), l.trouble()
}

func (l *line) stand(tickets []GateTicket) []int {
	var places []int
	for _, ticket := range tickets {
		place := GateUnknown
		if at := slices.Index(l.tickets, ticket); at >= 0 {
			place = max(at+1-l.inside, 0)
		}
		places = append(places, place)
	}
	return places
}

func fine() error { return nil }

func numbered(n int) GateTicket {
	return GateTicket{Workflow: fmt.Sprintf("computer/vm-%d", n), Run: "r", Activity: LoadName}
}

func TestManyLoadsAskTheirGateInOneCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &line{inside: 2, trouble: fine}
		gates := &gatekeepers{asker: l}
		const loads = 1500 // two calls' worth
		var inside []int
		told := make([][]int, loads)
		var all sync.WaitGroup
		for n := range loads {
			all.Go(func() {
				inLine, err := gates.wait(t.Context(), "gate/x", numbered(n), 2, func(place int) {
					l.mu.Lock()
					defer l.mu.Unlock()
					told[n] = append(told[n], place)
				})
				require.NoError(t, err)
				require.Equal(t, n >= 2, inLine)
				l.mu.Lock()
				defer l.mu.Unlock()
				inside = append(inside, n)
			})
			synctest.Wait() // they come one after another
		}
		// after lets time pass and then looks. What is looked at goes on being written to at later times, and only its lock tells
		// the race detector that these are later.
		after := func(d time.Duration, look func()) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			l.mu.Lock()
			defer l.mu.Unlock()
			look()
		}
		var asked int
		after(10*time.Second, func() {
			require.Equal(t, []int{0, 1}, inside)
			require.Equal(t, loads, l.enters)
			require.InDelta(t, 2*10, l.queries, 4)
			for n, ticket := range l.tickets {
				require.Equal(t, numbered(n), ticket, "in the order in which they came")
			}
			require.Equal(t, []int{5}, told[6])
			asked = l.queries
		})
		after(time.Minute, func() {
			require.InDelta(t, 2*60, l.queries-asked, 4, "two calls a second for all")
			l.inside = 7
		})
		after(2*time.Second, func() {
			require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6}, slices.Sorted(slices.Values(inside)))
			require.Equal(t, []int{8, 1}, []int{told[9][0], told[7][len(told[7])-1]})
			l.inside = loads
		})
		all.Wait()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		gates.mu.Lock()
		defer gates.mu.Unlock()
		require.Empty(t, gates.open, "nobody asks for nobody")
	})
}

func TestAGateOutOfReach(t *testing.T) {
	t.Parallel()
	unavailable := serviceerror.NewUnavailable("no")
	for name, c := range map[string]struct {
		trouble func(since time.Duration) error
		err     string
		after   time.Duration // at least
	}{
		"for a minute":                 {trouble: until(time.Minute, unavailable), after: time.Minute},
		"too long":                     {trouble: until(time.Hour, unavailable), err: "gate gate/x: no", after: gatePatience},
		"closing":                      {trouble: until(2*time.Second, errors.New("the workflow is closing")), after: 2 * time.Second},
		"does not accept what we wish": {trouble: until(time.Hour, temporal.NewNonRetryableApplicationError("write 1 or more", "", nil)), err: "write 1 or more"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				gates := &gatekeepers{asker: &line{inside: 1, trouble: func() error { return c.trouble(time.Since(began)) }}}
				inLine, err := gates.wait(t.Context(), "gate/x", numbered(1), 1, func(int) { t.Error("it was never in line") })
				require.False(t, inLine)
				if c.err == "" {
					require.NoError(t, err)
				} else {
					require.ErrorContains(t, err, c.err)
				}
				require.GreaterOrEqual(t, time.Since(began), c.after)
				require.Less(t, time.Since(began), c.after+5*time.Second)
				time.Sleep(time.Minute)
			})
		})
	}
}

func until(limit time.Duration, err error) func(time.Duration) error {
	return func(since time.Duration) error {
		if since < limit {
			return err
		}
		return nil
	}
}

func TestAGateThatForgot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &line{trouble: fine}
		gates := &gatekeepers{asker: l}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		var places []int
		go func() {
			_, err := gates.wait(ctx, "gate/x", numbered(1), 1, func(place int) { places = append(places, place) })
			ended <- err
		}()
		time.Sleep(3 * time.Second)
		l.mu.Lock()
		l.tickets = []GateTicket{numbered(2)} // it was ended by hand, and somebody else was sooner in the new one
		l.mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Equal(t, []int{1, 2}, places)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		require.Empty(t, gates.open)
	})
}
