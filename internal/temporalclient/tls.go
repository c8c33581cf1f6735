package temporalclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"sync/atomic"

	"google.golang.org/grpc/credentials"

	"berth/reservation"
)

// tlsFiles are the files of a TLS connection. They are read at each handshake, so that renewed certificates are used from
// the next connection on, without a restart.
type tlsFiles struct {
	ca, cert, key string
	serverName    string
}

func (s Settings) tlsFiles() tlsFiles {
	return tlsFiles{ca: s.TLSCA, cert: s.TLSCert, key: s.TLSKey, serverName: s.TLSServerName}
}

// load reads the files. Its error joins every fault, each a *reservation.FieldError that names the variable.
func (f tlsFiles) load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.serverName}
	var faults []error
	if f.ca != "" {
		pool := x509.NewCertPool()
		pem, err := os.ReadFile(f.ca)
		switch {
		case err != nil:
			faults = append(faults, &reservation.FieldError{Field: "BERTH_TEMPORAL_TLS_CA", Value: f.ca, Remedy: "give a readable PEM file (" + err.Error() + ")"})
		case !pool.AppendCertsFromPEM(pem):
			faults = append(faults, &reservation.FieldError{Field: "BERTH_TEMPORAL_TLS_CA", Value: f.ca, Remedy: "there is no certificate in it: give a PEM file with -----BEGIN CERTIFICATE-----"})
		}
		config.RootCAs = pool
	}
	if f.cert != "" {
		certificate, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			faults = append(faults, &reservation.FieldError{Field: "BERTH_TEMPORAL_TLS_CERT and BERTH_TEMPORAL_TLS_KEY", Value: f.cert + " and " + f.key,
				Remedy: "give a certificate and its own key as PEM files (" + err.Error() + ")"})
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return config, nil
}

// reloading are gRPC's transport credentials that read the files anew at each handshake, and remember why the last one
// failed: gRPC keeps that to itself while it tries again.
type reloading struct {
	credentials.TransportCredentials // of no files: answers what does not depend on them
	files                            tlsFiles
	failure                          *atomic.Pointer[error] // shared with the clones that gRPC makes
}

func newReloading(files tlsFiles) *reloading {
	return &reloading{
		TransportCredentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, ServerName: files.serverName}),
		files:                files,
		failure:              &atomic.Pointer[error]{},
	}
}

// ClientHandshake is part of credentials.TransportCredentials.
func (r *reloading) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := r.files.load()
	if err != nil {
		r.failure.Store(&err)
		return nil, nil, err
	}
	secured, info, err := credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
	if err != nil {
		r.failure.Store(&err)
	}
	return secured, info, err
}

// Clone is part of credentials.TransportCredentials.
func (r *reloading) Clone() credentials.TransportCredentials {
	return &reloading{TransportCredentials: r.TransportCredentials.Clone(), files: r.files, failure: r.failure}
}

// apiKey reads the API key.
func (s Settings) apiKey() (string, error) {
	text, err := os.ReadFile(s.APIKeyFile)
	if err != nil {
		return "", &reservation.FieldError{Field: "BERTH_TEMPORAL_API_KEY_FILE", Value: s.APIKeyFile, Remedy: "give a readable file (" + err.Error() + ")"}
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return "", &reservation.FieldError{Field: "BERTH_TEMPORAL_API_KEY_FILE", Value: s.APIKeyFile, Remedy: "the file is empty: put the API key there"}
	}
	return string(text), nil
}
