package vmware

import (
	"context"
	"slices"
	"sync"
)

// slots bounds how many clones of this worker run at once in one vCenter and on one host of it; the gate (load.enterGate)
// bounds those of all workers in the vCenter, and whoever takes a slot is inside it. Who comes first is served first; only where
// the first one's host is full may somebody for another host go before it.
type slots struct {
	total   int
	perHost int

	mu    sync.Mutex
	taken map[string]int // by host; "" for clones whose host is not known
	all   int
	queue []*ticket
}

type ticket struct {
	host  string
	turn  chan struct{} // closed when it has a slot
	place chan int      // cap 1: its latest place in the queue, from 1
}

func newSlots(total, perHost int) *slots {
	return &slots{total: total, perHost: perHost, taken: map[string]int{}}
}

// acquire waits for a slot on a host and returns the function that gives it back, which may be called again. waiting is
// called with the place in the queue, from 1, each time it changes.
func (s *slots) acquire(ctx context.Context, host string, waiting func(place int)) (release func(), err error) {
	mine := &ticket{host: host, turn: make(chan struct{}), place: make(chan int, 1)}
	s.mu.Lock()
	s.queue = append(s.queue, mine)
	s.serve()
	s.mu.Unlock()
	for {
		select {
		case <-mine.turn:
			return s.releaser(host), nil
		default:
		}
		select {
		case <-mine.turn:
		case place := <-mine.place:
			waiting(place)
		case <-ctx.Done():
			s.leave(mine)
			return nil, ctx.Err()
		}
	}
}

// take takes a slot at once, whether there is one or not: for a clone that runs already, begun by a worker before us.
func (s *slots) take(host string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[host]++
	s.all++
	return s.releaser(host)
}

func (s *slots) releaser(host string) func() {
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.free(host)
		s.serve()
	})
}

func (s *slots) free(host string) {
	s.all--
	if s.taken[host]--; s.taken[host] == 0 {
		delete(s.taken, host)
	}
}

func (s *slots) leave(mine *ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-mine.turn:
		s.free(mine.host)
	default:
		s.queue = slices.DeleteFunc(s.queue, func(t *ticket) bool { return t == mine })
	}
	s.serve()
}

// serve gives the free slots out, in the queue's order, and tells the others their places. The lock is held.
func (s *slots) serve() {
	s.queue = slices.DeleteFunc(s.queue, func(t *ticket) bool {
		if s.all >= s.total || (t.host != "" && s.taken[t.host] >= s.perHost) {
			return false
		}
		s.taken[t.host]++
		s.all++
		close(t.turn)
		return true
	})
	for i, t := range s.queue {
		select {
		case <-t.place:
		default:
		}
		t.place <- i + 1
	}
}
