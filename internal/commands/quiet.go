package commands

import (
	"sync"
	"time"
)

// quiet remembers that nobody answers queries, so that a list of a hundred reservations does not wait a hundred times.
type quiet struct {
	mu    sync.Mutex
	err   error
	until time.Time
}

func (q *quiet) begin(err error, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err, q.until = err, now.Add(silentFor)
}

// since returns the error of the query that nobody answered; nil when it is time to ask again.
func (q *quiet) since(now time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Before(q.until) {
		return q.err
	}
	return nil
}
