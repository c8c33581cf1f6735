package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"strings"
	"sync"
	"time"

	xssh "golang.org/x/crypto/ssh"

	"berth/osmodules/remote"
	"berth/osmodules/remote/internal/output"
	"berth/osmodules/remote/powershell"
)

// How a client logged in.
const (
	MethodPublicKey = "publickey"
	MethodPassword  = "password"
)

// Client is one authenticated connection. It implements remote.Channel. Commands may run side by side (sshd allows 10,
// MaxSessions).
type Client struct {
	conn    xssh.Conn
	pin     Pin
	method  string
	windows bool
	output  int
	done    chan struct{}
	close   sync.Once
	mu      sync.Mutex
	cause   error // why we closed it, if we did
}

func newClient(conn xssh.Conn, channels <-chan xssh.NewChannel, requests <-chan *xssh.Request, pin Pin, method string, windows bool, options Options) *Client {
	c := &Client{conn: conn, pin: pin, method: method, windows: windows, output: options.OutputLimit, done: make(chan struct{})}
	go c.serve(channels, requests)
	if options.KeepaliveInterval > 0 {
		go c.keepalive(options.KeepaliveInterval, options.KeepaliveCount)
	}
	return c
}

// Pin returns the host key that the guest showed.
func (c *Client) Pin() Pin { return c.pin }

// Method returns how we logged in: MethodPublicKey or MethodPassword.
func (c *Client) Method() string { return c.method }

// Done is closed when the connection has ended, whoever ended it.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended; nil while it lives.
func (c *Client) Err() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	if err := c.conn.Wait(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return errors.New("the guest closed it")
}

// LocalAddress returns our end's IP address, as this host sees it.
func (c *Client) LocalAddress() string {
	host, _, err := net.SplitHostPort(c.conn.LocalAddr().String())
	if err != nil {
		return ""
	}
	return host
}

// Close ends the connection. It may be called again.
func (c *Client) Close() error {
	c.end(errors.New("we closed it"))
	return nil
}

func (c *Client) end(cause error) {
	c.close.Do(func() {
		c.mu.Lock()
		c.cause = cause
		c.mu.Unlock()
		c.conn.Close()
	})
}

// serve refuses what the guest asks of us, until the connection ends.
func (c *Client) serve(channels <-chan xssh.NewChannel, requests <-chan *xssh.Request) {
	defer close(c.done)
	for channels != nil || requests != nil {
		select {
		case channel, ok := <-channels:
			if !ok {
				channels = nil
				continue
			}
			channel.Reject(xssh.Prohibited, "the control channel takes none")
		case request, ok := <-requests:
			if !ok {
				requests = nil
				continue
			}
			if request.WantReply {
				request.Reply(false, nil)
			}
		}
	}
	c.conn.Close()
}

// keepalive asks the guest for a sign of life once an interval; a guest that owes an answer for count intervals is dead.
func (c *Client) keepalive(interval time.Duration, count int) {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	limit := time.Duration(count) * interval
	for {
		select {
		case <-c.done:
			return
		case <-timer.C:
		}
		dead := time.AfterFunc(limit, func() {
			c.end(fmt.Errorf("the guest has not answered for %s", limit))
		})
		_, _, err := c.conn.SendRequest("keepalive@openssh.com", true, nil)
		dead.Stop()
		if err != nil {
			return
		}
		timer.Reset(interval)
	}
}

// Run runs one command. A command killed by a signal has the exit code 128 plus the signal's number. On its limit it is
// killed (signal KILL to its process group, as far as the server does that) and its session is closed; what it had
// written until then is in the result beside the *remote.LimitError. A lost connection is a *LostError.
//
// Of each stream the first and the last half of the output limit are kept; a line in between says how much is missing.
func (c *Client) Run(ctx context.Context, command remote.Command) (result remote.Result, err error) {
	name := output.Brief(command.Line)
	ctx, over := output.Traced(ctx, "ssh", name)
	defer func() { over(result.Exit, err) }()
	if command.Limit <= 0 {
		return remote.Result{}, fmt.Errorf("%s has no limit: give Command.Limit", name)
	}
	if err := ctx.Err(); err != nil {
		return remote.Result{}, err
	}
	limit := time.NewTimer(command.Limit)
	defer limit.Stop()
	e := &execution{stdout: output.Bounded{Limit: c.output}, stderr: output.Bounded{Limit: c.output}}
	ended := make(chan error, 1)
	go func() { ended <- e.run(c.conn, command) }()
	select {
	case err := <-ended:
		return c.ended(e, name, err)
	case <-limit.C:
		e.kill()
		return e.result(-1), &remote.LimitError{Command: name, Limit: command.Limit}
	case <-ctx.Done():
		e.kill()
		return e.result(-1), ctx.Err()
	}
}

func (c *Client) ended(e *execution, name string, err error) (remote.Result, error) {
	var exit *xssh.ExitError
	var refused *xssh.OpenChannelError
	var missing *xssh.ExitMissingError
	switch {
	case err == nil:
		return e.result(0), nil
	case errors.As(err, &exit):
		return e.result(exit.ExitStatus()), nil
	case errors.As(err, &refused):
		return remote.Result{}, fmt.Errorf("the guest refused a session for %s: %w", name, err)
	case errors.As(err, &missing), errors.Is(err, io.EOF):
		// The connection's end is noticed by another goroutine; its reason says more than "no exit status".
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		select {
		case <-c.done:
			err = c.Err()
		case <-timer.C:
		}
		return e.result(-1), &LostError{Command: name, Err: err}
	default:
		if lost := c.Err(); lost != nil || transport(err) {
			return e.result(-1), &LostError{Command: name, Err: errors.Join(err, lost)}
		}
		return e.result(-1), fmt.Errorf("%s: %w", name, err)
	}
}

// execution is one command under way. Its goroutine ends at the latest with the connection.
type execution struct {
	mu      sync.Mutex
	session *xssh.Session
	killed  bool
	stdout  output.Bounded
	stderr  output.Bounded
}

func (e *execution) run(conn xssh.Conn, command remote.Command) error {
	session, err := (&xssh.Client{Conn: conn}).NewSession()
	if err != nil {
		return err
	}
	defer session.Close()
	e.mu.Lock()
	e.session = session
	killed := e.killed
	e.mu.Unlock()
	if killed {
		return io.EOF
	}
	session.Stdout, session.Stderr = &e.stdout, &e.stderr
	stdin, err := session.StdinPipe()
	if err != nil {
		return err
	}
	if err := session.Start(command.Line); err != nil {
		if transport(err) {
			return err
		}
		return errors.New("the guest refused to run it") // the library's text repeats the whole line
	}
	// A command may end without having read all of its input: that is no error of the command's.
	go func() {
		if command.Stdin != nil {
			io.Copy(stdin, command.Stdin)
		}
		stdin.Close()
	}()
	return session.Wait()
}

// kill does not wait: a peer that no longer reads must not hold up its caller.
func (e *execution) kill() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.killed = true
	if session := e.session; session != nil {
		go func() {
			session.Signal(xssh.SIGKILL)
			session.Close()
		}()
	}
}

func (e *execution) result(exit int) remote.Result {
	return remote.Result{Stdout: e.stdout.Bytes(), Stderr: e.stderr.Bytes(), Exit: exit}
}

// copyScript writes its input to a file in one piece. The first three lines of its input are the content's size in
// bytes, the file's mode in octal and its path; a connection cut in the middle leaves the old file, for the size does
// not match then.
const copyScript = `/bin/sh -c '
umask 077
IFS= read -r size && IFS= read -r mode && IFS= read -r path || exit 1
temporary=$(mktemp "$path.XXXXXX") || exit 1
trap "rm -f \"\$temporary\"" EXIT
cat >"$temporary" || exit 1
got=$(wc -c <"$temporary")
if test "$((got))" -ne "$size"; then
	echo "got $((got)) bytes of $size" >&2
	exit 1
fi
chmod "$mode" "$temporary" && mv -f "$temporary" "$path"
'`

// CopyLimit is how long Copy may take for its first MiB; each further one gets as much again. A control network that
// is slower than 35 KB/s is not worth waiting for.
const CopyLimit = 30 * time.Second

// Copy writes a file in one piece: the content goes to a new file beside it, which takes its name when it is whole. The
// folder must be there. Size, mode and path travel as input, never as part of a command. On Windows see powershell.Copy.
func (c *Client) Copy(ctx context.Context, file remote.File) error {
	if c.windows {
		return powershell.Copy(ctx, c, file)
	}
	if !path.IsAbs(file.Path) || strings.ContainsAny(file.Path, "\n\r\x00") || path.Clean(file.Path) != file.Path {
		return fmt.Errorf("path %q to copy to is not a clean absolute path", file.Path)
	}
	if file.Mode.Perm() != file.Mode {
		return fmt.Errorf("mode %s of %s has more than permissions: give 0 to 0777", file.Mode, file.Path)
	}
	header := fmt.Sprintf("%d\n%04o\n%s\n", len(file.Content), file.Mode.Perm(), file.Path)
	result, err := c.Run(ctx, remote.Command{
		Line:  copyScript,
		Stdin: io.MultiReader(strings.NewReader(header), bytes.NewReader(file.Content)),
		Limit: CopyLimit * time.Duration(1+len(file.Content)>>20),
	})
	if err != nil {
		return fmt.Errorf("copying to %s: %w", file.Path, err)
	}
	if result.Exit != 0 {
		return fmt.Errorf("copying to %s: exit code %d: %s", file.Path, result.Exit, strings.TrimSpace(string(result.Stderr)))
	}
	return nil
}
