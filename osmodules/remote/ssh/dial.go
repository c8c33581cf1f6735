package ssh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	xssh "golang.org/x/crypto/ssh"

	"berth/osmodules/remote"
)

// The defaults of Options, beside those of package remote.
const (
	// DefaultBannerTimeout is how long a server may take to send its version line. sshd does so at once; a guest in the
	// middle of its boot takes seconds.
	DefaultBannerTimeout = 10 * time.Second
	// DefaultAuthTimeout leaves room for sshd's reverse look-up of our name and for PAM, each up to 25 s on a guest
	// whose name service or D-Bus is not up yet.
	DefaultAuthTimeout = 60 * time.Second
)

// Options are a Dialer's settings. A zero takes the default.
type Options struct {
	Credential remote.Secrets

	ConnectTimeout    time.Duration // TCP connection
	BannerTimeout     time.Duration // TCP connection to version line
	HandshakeTimeout  time.Duration // version line to host key
	AuthTimeout       time.Duration // host key to being logged in
	KeepaliveInterval time.Duration // between two questions to an idle or busy peer; negative: none
	KeepaliveCount    int           // intervals without an answer until the peer counts as dead
	OutputLimit       int           // bytes kept per stream of a command
}

// Dialer makes connections. It is safe for concurrent use; one serves a whole worker.
type Dialer struct {
	options Options
	ring    keyring
}

// NewDialer returns a dialer with the defaults in place of zeros.
func NewDialer(options Options) *Dialer {
	options.ConnectTimeout = cmp.Or(options.ConnectTimeout, remote.DefaultConnectTimeout)
	options.HandshakeTimeout = cmp.Or(options.HandshakeTimeout, remote.DefaultHandshakeTimeout)
	options.AuthTimeout = cmp.Or(options.AuthTimeout, DefaultAuthTimeout)
	options.BannerTimeout = cmp.Or(options.BannerTimeout, DefaultBannerTimeout)
	options.KeepaliveInterval = cmp.Or(options.KeepaliveInterval, remote.DefaultKeepaliveInterval)
	options.KeepaliveCount = cmp.Or(max(options.KeepaliveCount, 0), remote.DefaultKeepaliveCount)
	options.OutputLimit = cmp.Or(max(options.OutputLimit, 0), remote.DefaultOutputLimit)
	return &Dialer{options: options}
}

// Target is what to connect to, and as whom.
type Target struct {
	Address    string // host:port
	User       string
	Credential string // the name of the secret
	Pin        Pin    // the host key that must be shown; zero: any, reported to Shown
	Windows    bool   // Copy writes files as Windows does it, through PowerShell

	// Reached, if not nil, is told each rung as it begins, from the dial's own goroutines, one after the other.
	Reached func(Rung)
	// Shown, if not nil, is told the host key once its owner has proved it and it matches Pin, before we authenticate.
	Shown func(Pin)
}

// CheckCredential returns a *CredentialError unless there is a usable secret of that name.
func (d *Dialer) CheckCredential(name string) error {
	_, _, err := d.credential(name)
	return err
}

// PublicKey returns the public half of the credential's private key as an authorized_keys line without a comment, "" if
// the credential has no private key.
func (d *Dialer) PublicKey(name string) (string, error) {
	_, signer, err := d.credential(name)
	if err != nil || signer == nil {
		return "", err
	}
	return strings.TrimSpace(string(xssh.MarshalAuthorizedKey(signer.PublicKey()))), nil
}

func (d *Dialer) credential(name string) (Credential, xssh.Signer, error) {
	credential, err := d.options.Credential.Ask(name)
	if err != nil {
		return Credential{}, nil, err
	}
	if len(credential.PrivateKey) == 0 {
		if credential.Password == "" {
			return Credential{}, nil, &CredentialError{Name: name, Err: errors.New("it holds neither a private key nor a password")}
		}
		return credential, nil, nil
	}
	signer, err := d.ring.signer(name, credential)
	if err != nil {
		return Credential{}, nil, &CredentialError{Name: name, Err: err}
	}
	return credential, signer, nil
}

// Dial connects. Its error is a *RungError that names the rung and holds a *HostKeyError or an *AuthError where it was
// one of these, a *CredentialError, or the context's error. Nothing is left running after an error.
func (d *Dialer) Dial(ctx context.Context, target Target) (*Client, error) {
	client, err := d.dial(ctx, target, target.Pin.algorithms())
	var negotiation *xssh.AlgorithmNegotiationError
	if target.Pin.Known() && errors.As(err, &negotiation) && negotiation.What == "host key" {
		// The server has no key of the pinned type. Ask for any other one, to be able to name it: the pin refuses it.
		other, oerr := d.dial(ctx, target, Pin{}.algorithms())
		if oerr == nil {
			return other, nil // it has one after all: installed between the two
		}
		var mismatch *HostKeyError
		if errors.As(oerr, &mismatch) {
			return nil, oerr
		}
	}
	return client, err
}

func (d *Dialer) dial(ctx context.Context, target Target, algorithms []string) (*Client, error) {
	at := &ascent{target: target}
	at.reach(RungTCP)
	conn, err := remote.Connect(ctx, target.Address, d.options.ConnectTimeout)
	if err != nil {
		return nil, at.failed(ctx, err)
	}
	credential, signer, err := d.credential(target.Credential)
	if err != nil {
		conn.Close()
		return nil, err
	}
	// From here on the connection's deadline holds each rung, and closing it ends whatever waits.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	at.reach(RungBanner)
	conn.SetDeadline(time.Now().Add(d.options.BannerTimeout))
	watched := &bannerConn{Conn: conn, seen: func() {
		at.reach(RungHandshake)
		conn.SetDeadline(time.Now().Add(d.options.HandshakeTimeout))
	}}
	supported := xssh.SupportedAlgorithms()
	config := &xssh.ClientConfig{
		Config:            xssh.Config{KeyExchanges: supported.KeyExchanges, Ciphers: supported.Ciphers, MACs: supported.MACs},
		User:              target.User,
		Auth:              at.methods(credential, signer),
		ClientVersion:     "SSH-2.0-Berth",
		HostKeyAlgorithms: algorithms,
		HostKeyCallback: func(_ string, _ net.Addr, key xssh.PublicKey) error {
			shown := pinOf(key)
			if first := at.shown.Load(); first != nil {
				return first.check(shown) // a later key exchange of the same connection
			}
			if err := target.Pin.check(shown); err != nil {
				at.mismatch.Store(&err)
				return err
			}
			at.shown.Store(&shown)
			if target.Shown != nil {
				target.Shown(shown)
			}
			at.reach(RungAuthentication)
			conn.SetDeadline(time.Now().Add(d.options.AuthTimeout))
			return nil
		},
	}
	inner, channels, requests, err := xssh.NewClientConn(watched, target.Address, config)
	if err == nil && !stop() {
		inner.Close()
		err = ctx.Err()
	}
	if err != nil {
		stop()
		conn.Close()
		return nil, at.failed(ctx, err)
	}
	conn.SetDeadline(time.Time{})
	return newClient(inner, channels, requests, *at.shown.Load(), at.method, target.Windows, d.options), nil
}

// ascent is one dial's way up.
type ascent struct {
	target   Target
	rung     atomic.Pointer[Rung]
	shown    atomic.Pointer[Pin]
	mismatch atomic.Pointer[error]
	method   string
}

func (a *ascent) reach(rung Rung) {
	a.rung.Store(&rung)
	if a.target.Reached != nil {
		a.target.Reached(rung)
	}
}

func (a *ascent) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	rung := *a.rung.Load()
	if mismatch := a.mismatch.Load(); mismatch != nil {
		return &RungError{Rung: RungHandshake, Err: *mismatch}
	}
	if rung == RungAuthentication && !transport(err) {
		return &RungError{Rung: rung, Err: &AuthError{User: a.target.User, Err: err}}
	}
	return &RungError{Rung: rung, Err: err}
}

// transport says whether err is the connection's and not the other side's judgement.
func transport(err error) bool {
	var network net.Error
	var number syscall.Errno
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &network) || errors.As(err, &number)
}

// methods returns how to log in, the key first. It notes the last one tried, which is the one that succeeded.
func (a *ascent) methods(credential Credential, signer xssh.Signer) []xssh.AuthMethod {
	var methods []xssh.AuthMethod
	if signer != nil {
		methods = append(methods, xssh.PublicKeysCallback(func() ([]xssh.Signer, error) {
			a.method = MethodPublicKey
			return []xssh.Signer{signer}, nil
		}))
	}
	if credential.Password != "" {
		methods = append(methods,
			xssh.PasswordCallback(func() (string, error) {
				a.method = MethodPassword
				return credential.Password, nil
			}),
			xssh.KeyboardInteractive(func(_, _ string, questions []string, echos []bool) ([]string, error) {
				a.method = MethodPassword
				answers := make([]string, len(questions))
				for i, echo := range echos {
					if echo {
						return nil, fmt.Errorf("the server asks for more than a password")
					}
					answers[i] = credential.Password
				}
				return answers, nil
			}))
	}
	return methods
}

// bannerConn tells when the server's version line has gone by. Lines before it are allowed (RFC 4253, 4.2).
type bannerConn struct {
	net.Conn
	seen func()
	line []byte
	done bool
}

func (c *bannerConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for i := 0; i < n && !c.done; i++ {
		const longest = 255 // RFC 4253, 4.2
		switch {
		case p[i] != '\n':
			if len(c.line) < longest {
				c.line = append(c.line, p[i])
			}
		case strings.HasPrefix(string(c.line), "SSH-"):
			c.done, c.line = true, nil
			c.seen()
		default:
			c.line = c.line[:0]
		}
	}
	return n, err
}
