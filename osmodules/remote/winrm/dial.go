package winrm

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"berth/osmodules/remote"
)

// How a client logs in.
const (
	AuthNTLM  = "ntlm"
	AuthBasic = "basic"
)

// The defaults of Options, beside those of package remote.
const (
	// DefaultAuthTimeout leaves room for a guest that asks its domain controller while its network comes up.
	DefaultAuthTimeout = 60 * time.Second
	// DefaultShellTimeout leaves room for the first login's profile.
	DefaultShellTimeout = 60 * time.Second
)

// Options are a Dialer's settings. A zero takes the default.
type Options struct {
	Credential remote.Secrets // of which the password is used

	ConnectTimeout    time.Duration // TCP connection
	HandshakeTimeout  time.Duration // TCP connection to certificate
	AuthTimeout       time.Duration // certificate to being logged in
	ShellTimeout      time.Duration // logged in to an open shell
	KeepaliveInterval time.Duration // between two questions to an idle or busy peer; negative: an idle one is not asked
	KeepaliveCount    int           // intervals without an answer until the peer counts as dead
	OutputLimit       int           // bytes kept per stream of a command
}

// Dialer makes connections. It is safe for concurrent use; one serves a whole worker.
type Dialer struct{ options Options }

// NewDialer returns a dialer with the defaults in place of zeros.
func NewDialer(options Options) *Dialer {
	options.ConnectTimeout = cmp.Or(options.ConnectTimeout, remote.DefaultConnectTimeout)
	options.HandshakeTimeout = cmp.Or(options.HandshakeTimeout, remote.DefaultHandshakeTimeout)
	options.AuthTimeout = cmp.Or(options.AuthTimeout, DefaultAuthTimeout)
	options.ShellTimeout = cmp.Or(options.ShellTimeout, DefaultShellTimeout)
	options.KeepaliveInterval = cmp.Or(options.KeepaliveInterval, remote.DefaultKeepaliveInterval)
	options.KeepaliveCount = cmp.Or(max(options.KeepaliveCount, 0), remote.DefaultKeepaliveCount)
	options.OutputLimit = cmp.Or(max(options.OutputLimit, 0), remote.DefaultOutputLimit)
	return &Dialer{options: options}
}

// Target is what to connect to, and as whom.
type Target struct {
	Address    string // host:port
	User       string // name, DOMAIN\name or name@domain
	Credential string // the name of the secret
	Auth       string // AuthNTLM or AuthBasic; "" is AuthNTLM

	Pin        Pin            // the certificate that must be shown; zero without Roots: any, reported to Shown
	Roots      *x509.CertPool // if not nil, the certificate must be one of these authorities for ServerName
	ServerName string         // "" is the address's host

	// Reached, if not nil, is told each rung as it begins, one after the other.
	Reached func(remote.Rung)
	// Shown, if not nil, is told the certificate once its owner has proved it and it is accepted, before we authenticate.
	Shown func(Pin)
}

// CheckCredential returns a *remote.CredentialError unless there is a usable secret of that name.
func (d *Dialer) CheckCredential(name string) error {
	_, err := d.password(name)
	return err
}

func (d *Dialer) password(name string) (string, error) {
	credential, err := d.options.Credential.Ask(name)
	if err != nil {
		return "", err
	}
	if credential.Password == "" {
		return "", &remote.CredentialError{Name: name, Err: errors.New("it holds no password, and WinRM takes nothing else")}
	}
	return credential.Password, nil
}

// Dial connects and opens a shell. Its error is a *remote.RungError that names the rung and holds a *CertificateError, an
// *AuthorityError, a *remote.AuthError, a *FaultError or a *StatusError where it was one of these, a
// *remote.CredentialError, or the context's error. Nothing is left running after an error.
func (d *Dialer) Dial(ctx context.Context, target Target) (*Client, error) {
	switch target.Auth {
	case "":
		target.Auth = AuthNTLM
	case AuthNTLM, AuthBasic:
	default:
		return nil, fmt.Errorf("authentication %q is not known: use %s or %s", target.Auth, AuthNTLM, AuthBasic)
	}
	rung := RungTCP
	reach := func(next remote.Rung) {
		rung = next
		if target.Reached != nil {
			target.Reached(next)
		}
	}
	failed := func(err error) error {
		var credential *remote.CredentialError
		var fault *FaultError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &credential):
			return err
		case errors.As(err, &fault) && fault.Code == codeAccessDenied:
			err = &remote.AuthError{User: target.User, Err: err}
		}
		return &remote.RungError{Rung: rung, Err: err}
	}
	first, err := d.connect(ctx, target, reach)
	if err != nil {
		return nil, failed(err)
	}
	reach(RungAuthentication)
	if _, err := first.ask(ctx, identify, d.options.AuthTimeout); err != nil {
		first.close()
		return nil, failed(err)
	}
	reach(RungShell)
	client := newClient(d, target, first)
	if err := client.open(ctx, first, d.options.ShellTimeout); err != nil {
		client.end(err)
		return nil, failed(err)
	}
	client.live()
	return client, nil
}

// connect makes a connection up to and with the TLS handshake.
func (d *Dialer) connect(ctx context.Context, target Target, reach func(remote.Rung)) (*conn, error) {
	reach(RungTCP)
	raw, err := remote.Connect(ctx, target.Address, d.options.ConnectTimeout)
	if err != nil {
		return nil, err
	}
	password, err := d.password(target.Credential)
	if err != nil {
		raw.Close()
		return nil, err
	}
	reach(RungHandshake)
	var shown Pin
	var refused error // the TLS library's error hides ours from errors.As
	name := target.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(target.Address)
	}
	secure := tls.Client(raw, &tls.Config{
		ServerName: name,
		NextProtos: []string{"http/1.1"},
		MinVersion: tls.VersionTLS10,
		// The certificate is judged by VerifyConnection, in every handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			shown = PinOf(state.PeerCertificates[0].Raw)
			refused = target.judge(state.PeerCertificates, shown, name)
			return refused
		},
	})
	within, cancel := context.WithTimeout(ctx, d.options.HandshakeTimeout)
	defer cancel()
	if err := secure.HandshakeContext(within); err != nil {
		raw.Close()
		if refused != nil {
			err = refused
		}
		return nil, err
	}
	if target.Shown != nil {
		target.Shown(shown)
	}
	return newConn(secure, target, password, shown), nil
}

// judge accepts a certificate or says why not.
func (t Target) judge(chain []*x509.Certificate, shown Pin, name string) error {
	if t.Roots != nil {
		between := x509.NewCertPool()
		for _, certificate := range chain[1:] {
			between.AddCert(certificate)
		}
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: t.Roots, Intermediates: between, DNSName: name}); err != nil {
			return &AuthorityError{Got: shown.String(), Err: err}
		}
	}
	return t.Pin.check(shown)
}
