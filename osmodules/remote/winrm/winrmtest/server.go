// Package winrmtest has a small WinRM service in the process, for tests and simulated guests: WS-Management over HTTPS
// with NTLM (version 2 only, really verified) and Basic, and behind it the command shell, whose commands are a Go
// function. The protocols are MS-WSMV, DSP0226, MS-NLMP and RFC 4559's header.
package winrmtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	"berth/osmodules/remote/ssh/sshtest"
)

// Options are what a server does. They may be replaced while it runs: what begins afterwards follows them.
type Options struct {
	Certificate tls.Certificate
	// Users returns a user's password. The name is as the client gave it, without a domain.
	Users func(name string) (password string, ok bool)
	// Admin, if not nil, says whose shells are opened; others get the fault "access is denied".
	Admin func(name string) bool
	// Basic offers Basic authentication beside NTLM.
	Basic bool
	// Exec runs one command and returns its exit code. ctx ends when the command is to be terminated; its User is who
	// runs it.
	Exec func(ctx context.Context, line string, stdin io.Reader, stdout, stderr io.Writer) int
	// Before, if not nil, is called before each authenticated request, with what it asks for: Identify, Create, Command,
	// Send, Receive, Signal, Delete. It may block until ctx ends, which it does with the connection. An error cuts the
	// connection.
	Before func(ctx context.Context, action string) error
	// Mute accepts connections and says nothing, not even in TLS.
	Mute bool
}

// Server is a WinRM service. Close it at the end.
type Server struct {
	mu       sync.Mutex
	options  Options
	shells   map[string]*shell
	servers  map[*http.Server]struct{}
	conns    map[net.Conn]struct{}
	address  string
	release  func()
	listener net.Listener
	dials    int
	logins   int
	refusals int
	closed   bool
	wait     sync.WaitGroup
}

// New returns a service that does not listen: give it listeners with Serve.
func New(options Options) *Server {
	return &Server{options: options, shells: map[string]*shell{}, servers: map[*http.Server]struct{}{}, conns: map[net.Conn]struct{}{}}
}

// Start returns a service that listens on a loopback address of its own, which stays the same through Down and Up.
func Start(options Options) (*Server, error) {
	address, release, err := sshtest.Reserve()
	if err != nil {
		return nil, err
	}
	s := New(options)
	s.address, s.release = address, release
	if err := s.Up(); err != nil {
		release()
		return nil, err
	}
	return s, nil
}

// NewCertificate returns a new self-signed certificate, as Windows makes them for WinRM.
func NewCertificate(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(raw)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}, err
}

// Address returns the address of a server from Start.
func (s *Server) Address() string { return s.address }

// Change replaces parts of the options.
func (s *Server) Change(change func(*Options)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.options)
}

func (s *Server) now() Options {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.options
}

// Dials returns how many connections were accepted so far.
func (s *Server) Dials() int { return s.count(func() int { return s.dials }) }

// Logins returns how many times somebody logged in so far; with Basic that is once a request.
func (s *Server) Logins() int { return s.count(func() int { return s.logins }) }

// Refusals returns how many credentials were refused so far.
func (s *Server) Refusals() int { return s.count(func() int { return s.refusals }) }

// Shells returns how many shells are open.
func (s *Server) Shells() int { return s.count(func() int { return len(s.shells) }) }

func (s *Server) count(of func() int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return of()
}

// Up listens again after Down, on the address of Start.
func (s *Server) Up() error {
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.listener = listener
	s.mu.Unlock()
	s.wait.Add(1)
	go func() {
		defer s.wait.Done()
		s.Serve(listener)
	}()
	return nil
}

// Serve answers on a listener, with TLS on top of it, until the listener or the server is closed.
func (s *Server) Serve(listener net.Listener) error {
	server := &http.Server{
		Handler:  s,
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, sessionKey{}, &session{})
		},
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return http.ErrServerClosed
	}
	s.servers[server] = struct{}{}
	s.mu.Unlock()
	config := &tls.Config{
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			certificate := s.now().Certificate
			return &certificate, nil
		},
	}
	return server.Serve(tls.NewListener(&counted{Listener: listener, server: s}, config))
}

// counted notes the connections that are accepted.
type counted struct {
	net.Listener
	server *Server
}

func (l *counted) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.server.mu.Lock()
		l.server.dials++
		l.server.conns[conn] = struct{}{}
		mute := l.server.options.Mute
		l.server.mu.Unlock()
		if !mute {
			return &countedConn{Conn: conn, server: l.server}, nil
		}
	}
}

type countedConn struct {
	net.Conn
	server *Server
}

func (c *countedConn) Close() error {
	c.server.mu.Lock()
	delete(c.server.conns, c.Conn)
	c.server.mu.Unlock()
	return c.Conn.Close()
}

// Drop cuts all connections and goes on listening. Shells and their commands stay, as on a real guest.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		conn.Close()
		delete(s.conns, conn)
	}
}

// Forget ends all shells and their commands, as a restart of the service does.
func (s *Server) Forget() {
	s.mu.Lock()
	shells := s.shells
	s.shells = map[string]*shell{}
	s.mu.Unlock()
	for _, shell := range shells {
		shell.end()
	}
}

// Down stops listening and cuts all connections.
func (s *Server) Down() {
	s.mu.Lock()
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
	}
	s.mu.Unlock()
	s.Drop()
}

// Close is Down for every listener, ends all shells, and waits until nothing of the server runs.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	servers := s.servers
	s.servers = map[*http.Server]struct{}{}
	s.mu.Unlock()
	for server := range servers {
		server.Close()
	}
	s.Down()
	s.Forget()
	s.wait.Wait()
	if s.release != nil {
		s.release()
	}
}
