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
	ca, cert, key pemSource
	serverName    string
	called        func(variable string) string // what a fault names
}

// pemSource is PEM text in a file, which is read each time, or as a profile holds it.
type pemSource struct {
	path string
	data []byte
}

func (p pemSource) given() bool { return p.path != "" || len(p.data) > 0 }

func (p pemSource) read() ([]byte, error) {
	if p.path == "" {
		return p.data, nil
	}
	return os.ReadFile(p.path)
}

func (s Settings) tlsFiles() tlsFiles {
	f := tlsFiles{ca: pemSource{path: s.TLSCA}, cert: pemSource{path: s.TLSCert}, key: pemSource{path: s.TLSKey}, serverName: s.TLSServerName, called: s.profile.called}
	if s.profile.usesTLS() && s.profile.TLS != nil {
		f.ca.data, f.cert.data, f.key.data = s.profile.TLS.ServerCACertData, s.profile.TLS.ClientCertData, s.profile.TLS.ClientKeyData
	}
	return f
}

// load reads the files. Its error joins every fault, each a *reservation.FieldError that names the variable.
func (f tlsFiles) load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.serverName}
	var faults []error
	fault := func(variable, value, remedy string) {
		faults = append(faults, &reservation.FieldError{Field: f.called(variable), Value: value, Remedy: remedy})
	}
	if f.ca.given() {
		pool := x509.NewCertPool()
		pem, err := f.ca.read()
		switch {
		case err != nil:
			fault("BERTH_TEMPORAL_TLS_CA", f.ca.path, "give a readable PEM file ("+err.Error()+")")
		case !pool.AppendCertsFromPEM(pem):
			fault("BERTH_TEMPORAL_TLS_CA", f.ca.path, "there is no certificate in it: give a PEM file with -----BEGIN CERTIFICATE-----")
		}
		config.RootCAs = pool
	}
	if f.cert.given() {
		certificate, err := f.pair()
		if err != nil {
			fault("BERTH_TEMPORAL_TLS_CERT and BERTH_TEMPORAL_TLS_KEY", f.cert.path+" and "+f.key.path,
				"give a certificate and its own key as PEM files ("+err.Error()+")")
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return config, nil
}

func (f tlsFiles) pair() (tls.Certificate, error) {
	cert, err := f.cert.read()
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := f.key.read()
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
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

func (s Settings) hasAPIKey() bool { return s.APIKeyFile != "" || s.profile != nil && s.profile.key }

// apiKey reads the API key.
func (s Settings) apiKey() (string, error) {
	if s.APIKeyFile == "" {
		return s.profile.apiKey()
	}
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
