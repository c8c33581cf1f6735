package remote

import (
	"context"
	"errors"
	"net"
	"time"
)

// The defaults that all channels share.
const (
	// DefaultConnectTimeout is short because a host that is not up drops SYNs: the kernel sends the next one after 1 s
	// (RFC 6298), so dialling anew notices the host no later than waiting does.
	DefaultConnectTimeout   = time.Second
	DefaultHandshakeTimeout = 20 * time.Second
	// DefaultKeepaliveInterval and DefaultKeepaliveCount notice a dead peer after some 60 s of silence.
	DefaultKeepaliveInterval = 15 * time.Second
	DefaultKeepaliveCount    = 4
	// DefaultOutputLimit bounds what is kept of each of a command's two streams, in bytes.
	DefaultOutputLimit = 1 << 20
)

// Secrets returns the secret of a name. It is asked anew for each connection, so that a changed secret is used; what it
// returns is never logged.
type Secrets func(name string) (Credential, error)

// Ask returns the secret of a name. Its error is a *CredentialError.
func (s Secrets) Ask(name string) (Credential, error) {
	if s == nil {
		return Credential{}, &CredentialError{Name: name, Err: errors.New("this worker has no source of credentials")}
	}
	credential, err := s(name)
	if err != nil {
		return Credential{}, &CredentialError{Name: name, Err: err}
	}
	return credential, nil
}

// Connect makes a TCP connection. Channels ask for signs of life themselves, so the kernel does not.
func Connect(ctx context.Context, address string, limit time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: limit, KeepAlive: -1}
	return dialer.DialContext(ctx, "tcp", address)
}
