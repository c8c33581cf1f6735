package winrm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/masterzen/winrm"

	"berth/osmodules/remote"
	"berth/osmodules/remote/internal/output"
	"berth/osmodules/remote/powershell"
)

// closeLimit is how long Close waits for the guest to take down its shell. A shell that is left goes by itself when it
// has been idle (IdleTimeout: 3 minutes up to 2008 R2, 2 hours later).
const closeLimit = 2 * time.Second

// Client is one authenticated connection with a shell on the guest. It implements remote.Channel. Commands may run side
// by side; each beside the first has a connection of its own.
type Client struct {
	dialer *Dialer
	target Target
	main   *conn
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	close  sync.Once
	ended  sync.Once
	kills  sync.WaitGroup

	closing atomic.Bool // we are about to close it

	mu    sync.Mutex
	use   use
	asked chan struct{} // closed when the question of keepalive has its answer
	shell string
	cause error
}

// use is what the main connection does.
type use int

const (
	free use = iota
	asks     // keepalive, which is over in a moment
	busy     // a command
)

func newClient(dialer *Dialer, target Target, main *conn) *Client {
	target.Pin = main.shown // every further connection shows the same certificate
	target.Reached, target.Shown = nil, nil
	c := &Client{dialer: dialer, target: target, main: main, done: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// live begins to watch over the connection.
func (c *Client) live() {
	if c.dialer.options.KeepaliveInterval > 0 {
		go c.keepalive()
	}
}

// Pin returns the certificate that the guest showed.
func (c *Client) Pin() Pin { return c.main.shown }

// Method returns how we logged in: AuthNTLM or AuthBasic.
func (c *Client) Method() string { return c.main.auth }

// Done is closed when the connection has ended, whoever ended it.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended; nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

// LocalAddress returns our end's IP address, as this host sees it.
func (c *Client) LocalAddress() string {
	host, _, err := net.SplitHostPort(c.main.secure.LocalAddr().String())
	if err != nil {
		return ""
	}
	return host
}

// Close takes down the shell, which ends what runs in it, and the connection. It takes at most two seconds, and it may
// be called again.
func (c *Client) Close() error {
	c.close.Do(func() {
		c.closing.Store(true)
		if c.Err() == nil {
			ctx, cancel := context.WithTimeout(c.ctx, closeLimit)
			defer cancel()
			c.mu.Lock()
			shell := c.shell
			c.mu.Unlock()
			c.aside(ctx, func(via *conn) {
				via.ask(ctx, winrm.NewDeleteShellRequest(via.url, shell, parameters(closeLimit)).String(), closeLimit)
			})
		}
		c.end(errClosed())
		c.kills.Wait()
	})
	return nil
}

func errClosed() error { return errors.New("we closed it") }

func (c *Client) end(cause error) {
	c.ended.Do(func() {
		c.mu.Lock()
		c.cause = cause
		c.mu.Unlock()
		c.cancel()
		c.main.close()
		close(c.done)
	})
}

// interval is how long a guest may keep a question open; patience is how long it may owe an answer.
func (c *Client) interval() time.Duration {
	if interval := c.dialer.options.KeepaliveInterval; interval > 0 {
		return interval
	}
	return DefaultKeepaliveInterval
}

func (c *Client) patience() time.Duration {
	return time.Duration(c.dialer.options.KeepaliveCount) * c.interval()
}

// keepalive asks an idle guest for a sign of life once an interval. A busy one shows its own: no request is without a
// limit.
func (c *Client) keepalive() {
	ticker := time.NewTicker(c.interval())
	defer ticker.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-ticker.C:
		}
		c.mu.Lock()
		if c.use != free {
			c.mu.Unlock()
			continue
		}
		c.use, c.asked = asks, make(chan struct{})
		c.mu.Unlock()
		c.ask(c.main, identify, c.patience())
		c.mu.Lock()
		c.use = free
		close(c.asked)
		c.mu.Unlock()
	}
}

// take returns a connection for one use: the main one, or one of its own while that is busy.
func (c *Client) take(ctx context.Context) (via *conn, release func(), err error) {
	for {
		c.mu.Lock()
		now, asked := c.use, c.asked
		if now == free {
			c.use = busy
		}
		c.mu.Unlock()
		switch now {
		case free:
			return c.main, func() { c.mu.Lock(); c.use = free; c.mu.Unlock() }, nil
		case busy:
			via, err = c.dialer.connect(ctx, c.target, func(remote.Rung) {})
			if err != nil {
				return nil, nil, err
			}
			return via, via.close, nil
		}
		select {
		case <-asked:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// aside does something over whatever connection there is. That it cannot is nobody's error.
func (c *Client) aside(ctx context.Context, do func(via *conn)) {
	via, release, err := c.take(ctx)
	if err != nil {
		return
	}
	defer release()
	do(via)
}

// ask sends a request. When the main connection is lost, so is the client.
func (c *Client) ask(via *conn, request string, limit time.Duration) (string, error) {
	response, err := via.ask(c.ctx, request, limit)
	if err != nil && !answered(err) && via == c.main {
		c.end(err)
	}
	return response, err
}

// open opens the shell.
func (c *Client) open(ctx context.Context, via *conn, limit time.Duration) error {
	response, err := via.ask(ctx, winrm.NewOpenShellRequest(via.url, parameters(limit)).String(), limit+leastTimeout)
	if err != nil {
		return err
	}
	id, err := checkID(winrm.ParseOpenShellResponse(response))
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.shell = id
	c.mu.Unlock()
	return nil
}

// Run runs one command. All of its input is sent before its output is fetched: a command that writes much before it has
// read its input is not for this channel. On its limit it is terminated on the guest; what it had written until then is
// in the result beside the *remote.LimitError. A lost connection is a *remote.LostError.
//
// Of each stream the first and the last half of the output limit are kept; a line in between says how much is missing.
func (c *Client) Run(ctx context.Context, command remote.Command) (result remote.Result, err error) {
	name := output.Brief(command.Line)
	ctx, over := output.Traced(ctx, "winrm", name)
	defer func() { over(result.Exit, err) }()
	if command.Limit <= 0 {
		return remote.Result{}, fmt.Errorf("%s has no limit: give Command.Limit", name)
	}
	if err := ctx.Err(); err != nil {
		return remote.Result{}, err
	}
	limit := time.NewTimer(command.Limit)
	defer limit.Stop()
	most := c.dialer.options.OutputLimit
	e := &execution{client: c, killed: make(chan struct{}), stdout: output.Bounded{Limit: most}, stderr: output.Bounded{Limit: most}}
	ended := make(chan error, 1)
	go func() { ended <- e.run(command) }()
	select {
	case err := <-ended:
		var fault *FaultError
		switch {
		case c.closing.Load():
			return e.result(-1), &remote.LostError{Command: name, Err: errors.Join(errClosed(), err)}
		case err == nil:
			return e.result(e.exit), nil
		case answered(err) && c.Err() == nil && !(errors.As(err, &fault) && fault.Code == codeNoShell):
			return e.result(-1), fmt.Errorf("%s: %w", name, err)
		default:
			return e.result(-1), &remote.LostError{Command: name, Err: errors.Join(err, c.Err())}
		}
	case <-limit.C:
		e.kill()
		return e.result(-1), &remote.LimitError{Command: name, Limit: command.Limit}
	case <-ctx.Done():
		e.kill()
		return e.result(-1), ctx.Err()
	}
}

// Copy writes a file in one piece, through PowerShell: see powershell.Copy.
func (c *Client) Copy(ctx context.Context, file remote.File) error {
	return powershell.Copy(ctx, c, file)
}

// execution is one command under way. Its goroutine ends at the latest with the client.
type execution struct {
	client *Client
	killed chan struct{}
	exit   int
	stdout output.Bounded
	stderr output.Bounded

	mu    sync.Mutex
	shell string
	id    string
	over  bool
}

func (e *execution) run(command remote.Command) error {
	c := e.client
	via, release, err := c.take(c.ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := e.start(via, command.Line); err != nil {
		return err
	}
	if !e.isKilled() {
		err = e.send(via, command.Stdin)
	}
	if err == nil && !e.isKilled() {
		err = e.receive(via)
	}
	e.mu.Lock()
	e.over = true
	e.mu.Unlock()
	if err == nil || answered(err) || e.isKilled() {
		// Also a command that has ended is kept by the guest until this.
		c.ask(via, e.terminate(via), c.patience())
	}
	return err
}

// start starts the command. A shell that the guest has taken down because it was idle is replaced.
func (e *execution) start(via *conn, line string) error {
	c := e.client
	for again := false; ; again = true {
		c.mu.Lock()
		shell := c.shell
		c.mu.Unlock()
		response, err := c.ask(via, newCommand(via.url, shell, line, c.patience()), c.patience()+c.interval())
		var fault *FaultError
		if !again && errors.As(err, &fault) && fault.Code == codeNoShell {
			if err := c.open(c.ctx, via, c.dialer.options.ShellTimeout); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		id, err := checkID(winrm.ParseExecuteCommandResponse(response))
		if err != nil {
			return err
		}
		e.mu.Lock()
		e.shell, e.id = shell, id
		e.mu.Unlock()
		return nil
	}
}

// send sends the input and its end.
func (e *execution) send(via *conn, stdin io.Reader) error {
	c := e.client
	chunk := make([]byte, inputSize)
	for last := false; !last && !e.isKilled(); {
		n := 0
		last = true
		if stdin != nil {
			var err error
			n, err = io.ReadFull(stdin, chunk)
			last = err != nil // the end, or a fault of the reader's: the command sees the end of its input
		}
		request := winrm.NewSendInputRequest(via.url, e.shell, e.id, chunk[:n], last, parameters(c.patience()))
		_, err := c.ask(via, request.String(), c.patience()+c.interval())
		if answered(err) {
			return nil // it ended without having read all of its input: no error of the command's
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// receive fetches the output until the command has ended.
func (e *execution) receive(via *conn) error {
	c := e.client
	for !e.isKilled() {
		wait := max(c.interval(), leastTimeout)
		request := winrm.NewGetOutputRequest(via.url, e.shell, e.id, "stdout stderr", parameters(wait))
		response, err := c.ask(via, request.String(), wait+c.patience())
		var fault *FaultError
		if errors.As(err, &fault) && fault.Code == codeTimedOut {
			continue // it has nothing to say for the moment
		}
		if err != nil {
			return err
		}
		finished, exit, err := winrm.ParseSlurpOutputErrResponse(response, &e.stdout, &e.stderr)
		if err != nil {
			return fmt.Errorf("the guest's answer cannot be read: %w", err)
		}
		if finished {
			e.exit = exit
			return nil
		}
	}
	return nil
}

func (e *execution) isKilled() bool {
	select {
	case <-e.killed:
		return true
	default:
		return false
	}
}

func (e *execution) terminate(via *conn) string {
	return winrm.NewSignalRequest(via.url, e.shell, e.id, parameters(e.client.patience())).String()
}

// kill does not wait: a guest that no longer answers must not hold up its caller. A command that is about to start is
// terminated by its own goroutine.
func (e *execution) kill() {
	close(e.killed)
	e.mu.Lock()
	started := e.id != "" && !e.over
	e.mu.Unlock()
	if !started {
		return
	}
	c := e.client
	c.kills.Add(1)
	go func() {
		defer c.kills.Done()
		c.aside(c.ctx, func(via *conn) { c.ask(via, e.terminate(via), c.patience()) })
	}()
}

func (e *execution) result(exit int) remote.Result {
	return remote.Result{Stdout: e.stdout.Bytes(), Stderr: e.stderr.Bytes(), Exit: exit}
}
