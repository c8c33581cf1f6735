package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// TLSOptions say who may be at the other end, and who we are.
type TLSOptions struct {
	Address     string // host:port
	ServerName  string // that the host's certificate must bear; "" is the address's host
	Authorities *x509.CertPool
	// Certificate returns ours and its key; it is asked for each connection, so that a renewed one needs no restart.
	Certificate func() (tls.Certificate, error)
}

// NewTLS returns a dialer of a daemon that listens for TLS.
func NewTLS(options TLSOptions) Dialer { return byTLS{options} }

type byTLS struct{ options TLSOptions }

func (d byTLS) Close() {}

func (d byTLS) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	certificate, err := d.options.Certificate()
	if err != nil {
		return nil, &RefusedError{Where: d.options.Address, Err: fmt.Errorf("our certificate: %w", err)}
	}
	name := d.options.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(d.options.Address)
	}
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive,
			Count: unanswered}},
		Config: &tls.Config{
			ServerName: name, RootCAs: d.options.Authorities, MinVersion: tls.VersionTLS12,
			// Ours is shown whichever authorities the daemon names: it says so itself if it does not know it.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil },
		},
	}
	connection, err := dialer.DialContext(ctx, "tcp", d.options.Address)
	if err != nil {
		return nil, refusedByAlert(d.options.Address, err)
	}
	// The daemon tells with one byte that it takes our certificate, and hangs up otherwise.
	until, _ := ctx.Deadline()
	_ = connection.SetDeadline(until)
	stop := context.AfterFunc(ctx, func() { _ = connection.SetDeadline(time.Now()) })
	defer stop()
	var answer [1]byte
	_, err = io.ReadFull(connection, answer[:])
	switch {
	case err == nil && answer[0] == tlsAccepted:
		_ = connection.SetDeadline(time.Time{})
		return connection, nil
	case err == nil, errors.Is(err, io.EOF):
		err = &RefusedError{Where: d.options.Address,
			Err: errors.New("it hung up on our certificate: is it signed by the host's authority, and its name in tls_allowed_dn_list?")}
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	_ = connection.Close()
	return nil, refusedByAlert(d.options.Address, err)
}

// refusedByAlert makes a TLS alert of the daemon's a refusal.
func refusedByAlert(where string, err error) error {
	var alert tls.AlertError
	if errors.As(err, &alert) {
		return &RefusedError{Where: where, Err: err}
	}
	// What the peer sends comes as an OpError of "remote error".
	var operation *net.OpError
	if errors.As(err, &operation) && operation.Op == "remote error" {
		return &RefusedError{Where: where, Err: err}
	}
	return err
}
