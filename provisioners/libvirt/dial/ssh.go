package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// SSHOptions say how sshd on the host is reached, and who we are.
type SSHOptions struct {
	Address string // host:port
	User    string
	Socket  string // the daemon's, on the host; "" is its own
	// Signer returns our key; it is asked for each login, so that a changed one needs no restart.
	Signer   func() (ssh.Signer, error)
	HostKeys HostKeys
}

// HostKeys are the keys that a host may show.
type HostKeys struct {
	check      ssh.HostKeyCallback
	algorithms []string // that the known keys can be asked for with
}

// HostKeyError says that the host shows another key than it should, or that none is known of it.
type HostKeyError struct {
	Address string
	Err     error
}

func (e *HostKeyError) Error() string { return e.Address + ": the host's key: " + e.Err.Error() }

func (e *HostKeyError) Unwrap() error { return e.Err }

// PinnedKey returns the host key of an authorized_keys or known_hosts style line: "ssh-ed25519 AAAA...".
func PinnedKey(line string) (HostKeys, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return HostKeys{}, err
	}
	return HostKeys{check: ssh.FixedHostKey(key), algorithms: algorithms(key.Type())}, nil
}

// KnownHosts returns the keys that a known_hosts file has of an address. Reading a file without any is an error.
func KnownHosts(file, address string) (HostKeys, error) {
	check, err := knownhosts.New(file)
	if err != nil {
		return HostKeys{}, err
	}
	// The file is asked with a key that it cannot have: it answers with those that it has. A server with several would show
	// one that the file lacks otherwise.
	var have *knownhosts.KeyError
	if err := check(address, &net.TCPAddr{}, noKey{}); !errors.As(err, &have) || len(have.Want) == 0 {
		return HostKeys{}, fmt.Errorf("%s has no key of %s: add the line that `ssh-keyscan` prints, once you have compared it",
			file, knownhosts.Normalize(address))
	}
	keys := HostKeys{check: check}
	for _, known := range have.Want {
		keys.algorithms = append(keys.algorithms, algorithms(known.Key.Type())...)
	}
	slices.Sort(keys.algorithms)
	keys.algorithms = slices.Compact(keys.algorithms)
	return keys, nil
}

// algorithms returns the signature algorithms of a key's type.
func algorithms(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512}
	}
	return []string{keyType}
}

type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return nil }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// NewSSH returns a dialer of a daemon's socket through sshd on its host. Its connections share one login.
func NewSSH(options SSHOptions) Dialer { return &bySSH{options: options, turn: make(chan struct{}, 1)} }

type bySSH struct {
	options SSHOptions
	turn    chan struct{} // cap 1: held while one logs in

	mu     sync.Mutex
	client *ssh.Client // nil until logged in, and again when it broke
	closed bool
}

func (d *bySSH) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.client != nil {
		_ = d.client.Close()
		d.client = nil
	}
}

func (d *bySSH) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	client, err := d.login(ctx)
	if err != nil {
		return nil, err
	}
	for _, socket := range sockets(d.options.Socket) {
		var connection net.Conn
		if connection, err = client.DialContext(ctx, "unix", socket); err == nil {
			return connection, nil
		}
	}
	var refused *ssh.OpenChannelError
	if errors.As(err, &refused) && refused.Reason == ssh.Prohibited {
		return nil, &RefusedError{Where: d.options.Address,
			Err: fmt.Errorf("%w: sshd needs AllowStreamLocalForwarding, and the user the group libvirt", err)}
	}
	if !errors.As(err, &refused) {
		d.forget(client) // the login itself is of no use any more
	}
	return nil, fmt.Errorf("%s: reach %s on it: %w", d.options.Address, sockets(d.options.Socket)[0], err)
}

func (d *bySSH) forget(client *ssh.Client) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = client.Close()
	if d.client == client {
		d.client = nil
	}
}

// login returns the one login, and makes it if there is none.
func (d *bySSH) login(ctx context.Context) (*ssh.Client, error) {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	client, closed := d.client, d.closed
	d.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	if client != nil {
		return client, nil
	}
	client, err := d.newLogin(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.client = client
	d.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		_ = client.Wait()
		close(gone)
		d.forget(client)
	}()
	go d.watch(client, gone)
	return client, nil
}

func (d *bySSH) newLogin(ctx context.Context) (*ssh.Client, error) {
	signer, err := d.options.Signer()
	if err != nil {
		return nil, &RefusedError{Where: d.options.Address, Err: fmt.Errorf("our key: %w", err)}
	}
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp", d.options.Address)
	if err != nil {
		return nil, err
	}
	until, _ := ctx.Deadline()
	_ = connection.SetDeadline(until)
	stop := context.AfterFunc(ctx, func() { _ = connection.SetDeadline(time.Now()) })
	defer stop()
	shown := false // and it was the right one
	client, channels, requests, err := ssh.NewClientConn(connection, d.options.Address, &ssh.ClientConfig{
		User: d.options.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyAlgorithms: d.options.HostKeys.algorithms,
		HostKeyCallback: func(hostname string, remote net.Addr, key ssh.PublicKey) error {
			if err := d.options.HostKeys.check(hostname, remote, key); err != nil {
				return &HostKeyError{Address: d.options.Address, Err: fmt.Errorf("%w; it shows %s", err, ssh.FingerprintSHA256(key))}
			}
			shown = true
			return nil
		},
	})
	if err != nil {
		_ = connection.Close()
		var negotiation *ssh.AlgorithmNegotiationError
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.As(err, &negotiation) && negotiation.What == "host key":
			return nil, &HostKeyError{Address: d.options.Address, Err: fmt.Errorf("it has none of the kind that is known: %s",
				strings.Join(d.options.HostKeys.algorithms, ", "))}
		case shown && !errors.As(err, new(net.Error)) && !errors.Is(err, io.EOF):
			return nil, &RefusedError{Where: d.options.User + "@" + d.options.Address, Err: err}
		}
		return nil, err
	}
	_ = connection.SetDeadline(time.Time{})
	return ssh.NewClient(client, channels, requests), nil
}

// watch closes a login whose peer no longer answers.
func (d *bySSH) watch(client *ssh.Client, gone <-chan struct{}) {
	for {
		answered := make(chan error, 1)
		go func() {
			_, _, err := client.SendRequest(keepAliveName, true, nil)
			answered <- err
		}()
		timer := time.NewTimer(unanswered * keepAlive)
		select {
		case <-gone:
			timer.Stop()
			return
		case err := <-answered:
			timer.Stop()
			if err != nil {
				return
			}
		case <-timer.C:
			d.forget(client)
			return
		}
		timer = time.NewTimer(keepAlive)
		select {
		case <-gone:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
