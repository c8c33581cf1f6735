package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/rs/zerolog"

	"berth/provisioners/libvirt/dial"
	"berth/reservation"
)

const (
	// callLimit is how long one call may take until the host counts as dead and the connection is closed. The slowest, to
	// delete a big volume or to start a guest on a busy host, take a minute; libvirt itself gives QEMU 30 s to start.
	callLimit = 3 * time.Minute
	// graceOfCalls is how long a call that changes something is waited for after its context has ended: whether it had an
	// effect would be unknown otherwise.
	graceOfCalls = 10 * time.Second
	// openLimit bounds the first words with a daemon, connecting excluded.
	openLimit = 20 * time.Second
	// inFlight is how many calls of one connection libvirtd works on at once (libvirtd.conf, max_client_requests). More would
	// wait there, with their time running.
	inFlight = 5
)

// LostError says that the connection to a host broke in the middle of a call. What the call did must be looked up.
type LostError struct {
	Site string
	Err  error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("the connection with the host of site %s broke: %v", e.Site, e.Err)
}

func (e *LostError) Unwrap() error { return e.Err }

// host is one libvirt host as this process uses it: one connection for calls and events, which is made again when it has
// broken, and one more for each stream.
type host struct {
	site   Site
	log    zerolog.Logger
	dialer dial.Dialer
	uri    dial.URI
	ctx    context.Context // ends with close
	stop   context.CancelFunc
	calls  chan struct{} // cap inFlight
	turn   chan struct{} // cap 1: held while one connects
	watch  *watch
	gates  gates

	mu    sync.Mutex
	link  *link             // nil until connected
	virts map[string]string // by architecture: the domain type to run guests with
}

func newHost(field string, site Site, log zerolog.Logger) (*host, error) {
	var faults []error
	if site.Pool == "" {
		site.Pool = DefaultPool
	}
	switch site.Accel {
	case "":
		site.Accel = AccelAuto
	case AccelAuto, AccelKVM, AccelTCG:
	default:
		faults = append(faults, &reservation.FieldError{Field: field + ".accel", Value: site.Accel,
			Remedy: "write auto, kvm or tcg, or leave it out for auto"})
	}
	if site.Loads < 0 {
		faults = append(faults, &reservation.FieldError{Field: field + ".loads", Value: strconv.Itoa(site.Loads),
			Remedy: fmt.Sprintf("give 1 or more, or leave it out for %d", DefaultLoads)})
	}
	if site.Loads == 0 {
		site.Loads = DefaultLoads
	}
	dialer, uri, err := dialer(field, site)
	if err := errors.Join(append(faults, err)...); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	return &host{site: site, log: log.With().Str("site", site.Name).Logger(), dialer: dialer, uri: uri, ctx: ctx, stop: stop,
		calls: make(chan struct{}, inFlight), turn: make(chan struct{}, 1), watch: newWatch(), virts: map[string]string{}}, nil
}

func (h *host) close() {
	h.stop()
	h.mu.Lock()
	if h.link != nil {
		h.link.close()
	}
	h.mu.Unlock()
	h.dialer.Close()
}

// link is one connection to the daemon.
type link struct {
	*rpc.Libvirt
	conn *watchedConn
}

func (l *link) close() { _ = l.conn.Close() }

// watchedConn tells when it is of no use any more. The library's own word comes too early when the daemon goes away while
// it greets us.
type watchedConn struct {
	net.Conn
	once sync.Once
	lost chan struct{}
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.once.Do(func() { close(c.lost) })
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.lost) })
	return c.Conn.Close()
}

// open makes a new connection.
func (h *host) open(ctx context.Context) (*link, error) {
	conn, err := h.dialer.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect with %s: %w", h.uri, err)
	}
	watched := &watchedConn{Conn: conn, lost: make(chan struct{})}
	l := &link{Libvirt: rpc.NewWithDialer(dialers.NewAlreadyConnected(watched)), conn: watched}
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, l.close)
	defer stop()
	if err := l.ConnectToURI(rpc.ConnectURI(h.uri.Local)); err != nil {
		l.close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("open %s at %s: %w", h.uri.Local, h.uri, lost(h.site.Name, err))
	}
	return l, nil
}

// connect returns the connection for calls, and makes it if there is none that lives.
func (h *host) connect(ctx context.Context) (*link, error) {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := h.ctx.Err(); err != nil {
		return nil, fmt.Errorf("site %s: the module is closed: %w", h.site.Name, err)
	}
	h.mu.Lock()
	l := h.link
	h.mu.Unlock()
	if l != nil {
		select {
		case <-l.conn.lost:
		default:
			return l, nil
		}
	}
	l, err := h.open(ctx)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	again := h.link != nil
	h.link = l
	h.mu.Unlock()
	h.log.Info().Stringer("host", h.uri).Bool("again", again).Msg("connected with the libvirt host")
	// What happened while there was no connection has told no event.
	go h.watch.follow(h.ctx, l, h.log)
	if h.ctx.Err() != nil {
		l.close()
	}
	return l, nil
}

// lost marks an error of a broken connection as such.
func lost(site string, err error) error {
	if errors.Is(err, rpc.ErrInterrupted) || errors.Is(err, syscall.EINVAL) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.As(err, new(*net.OpError)) {
		return &LostError{Site: site, Err: err}
	}
	return err
}

// ask makes a call that changes nothing. It returns as soon as ctx ends.
func ask[A any](ctx context.Context, h *host, call func(*rpc.Libvirt) (A, error)) (A, error) {
	return send(ctx, h, 0, call)
}

// change makes a call that changes something. It is not given up when ctx ends but gets graceOfCalls to be answered.
func change(ctx context.Context, h *host, call func(*rpc.Libvirt) error) error {
	_, err := send(ctx, h, graceOfCalls, func(l *rpc.Libvirt) (struct{}, error) { return struct{}{}, call(l) })
	return err
}

func send[A any](ctx context.Context, h *host, grace time.Duration, call func(*rpc.Libvirt) (A, error)) (A, error) {
	var none A
	l, err := h.connect(ctx)
	if err != nil {
		return none, err
	}
	select {
	case h.calls <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	type answer struct {
		value A
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		value, err := call(l.Libvirt)
		<-h.calls
		answered <- answer{value, err}
	}()
	limit := time.NewTimer(callLimit)
	defer limit.Stop()
	ended := ctx.Done()
	for {
		select {
		case a := <-answered:
			return a.value, lost(h.site.Name, a.err)
		case <-ended:
			if grace == 0 {
				return none, ctx.Err()
			}
			ended = nil
			limit.Reset(grace)
		case <-limit.C:
			l.close() // whoever else waits for an answer on it gets none either
			if ctx.Err() != nil {
				return none, ctx.Err()
			}
			return none, &LostError{Site: h.site.Name, Err: fmt.Errorf("no answer for %s", callLimit)}
		}
	}
}

// stream makes a call that sends or receives a stream, on a connection of its own: in the library a slow or broken
// stream holds up everything else on its connection. When ctx ends the connection is closed, which ends the stream.
func (h *host) stream(ctx context.Context, call func(*rpc.Libvirt) error) error {
	l, err := h.open(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	stop := context.AfterFunc(ctx, l.close)
	defer stop()
	detach := context.AfterFunc(h.ctx, l.close)
	defer detach()
	err = call(l.Libvirt)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return lost(h.site.Name, err)
}

// gates stand in for the gates of a server in tests that have none.
type gates struct {
	mu   sync.Mutex
	open map[string]chan struct{}
}

func (g *gates) enter(ctx context.Context, name string, capacity int, waiting func(place int)) (leave func(), err error) {
	g.mu.Lock()
	if g.open == nil {
		g.open = map[string]chan struct{}{}
	}
	gate, ok := g.open[name]
	if !ok {
		gate = make(chan struct{}, capacity)
		g.open[name] = gate
	}
	g.mu.Unlock()
	select {
	case gate <- struct{}{}:
	default:
		waiting(1)
		select {
		case gate <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return sync.OnceFunc(func() { <-gate }), nil
}
