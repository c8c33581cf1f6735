// Package sshtest has an SSH server in the process, for tests: it speaks the real protocol on a loopback address and does
// what a test scripts it to do.
package sshtest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"sync"

	xssh "golang.org/x/crypto/ssh"
)

// Session is one command that a client wants to be run.
type Session struct {
	Context context.Context // ends with the session
	Line    string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Client  net.Addr
	Server  net.Addr
	Signals <-chan string // the names of the signals that came
}

// Script is what a server does. It may be replaced while the server runs: what begins afterwards follows it.
type Script struct {
	HostKeys []xssh.Signer
	Keys     []xssh.PublicKey // that may log in
	Password string           // that may log in, if not ""
	Exec     func(Session) int
	// Mute accepts connections and never sends a banner.
	Mute bool
	// Deaf leaves global requests (keepalives) without an answer.
	Deaf bool
	// Handshaking, if not nil, is called before each handshake; an error drops the connection.
	Handshaking func() error
}

// Server is a scripted SSH server. Close it at the end.
type Server struct {
	mu       sync.Mutex
	address  string
	release  func()
	script   Script
	listener net.Listener
	conns    map[net.Conn]struct{}
	dials    int
	wait     sync.WaitGroup
}

// New returns a server that has an address and does not listen yet.
func New(script Script) (*Server, error) {
	address, release, err := Reserve()
	if err != nil {
		return nil, err
	}
	return &Server{address: address, release: release, script: script, conns: map[net.Conn]struct{}{}}, nil
}

// NewKey returns a new ed25519 key.
func NewKey() (xssh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return xssh.NewSignerFromKey(private)
}

// NewPEM returns a new ed25519 private key in OpenSSH's format, encrypted if there is a passphrase, and its public key.
func NewPEM(passphrase string) ([]byte, xssh.PublicKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	key, err := xssh.NewPublicKey(public)
	if err != nil {
		return nil, nil, err
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = xssh.MarshalPrivateKey(private, "")
	} else {
		block, err = xssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(block), key, nil
}

// Address returns the server's address, which stays the same.
func (s *Server) Address() string { return s.address }

// Dials returns how many connections were accepted so far.
func (s *Server) Dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

// Change replaces parts of the script.
func (s *Server) Change(change func(*Script)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.script)
}

func (s *Server) now() Script {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.script
}

// Up listens.
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
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[conn] = struct{}{}
			s.dials++
			s.mu.Unlock()
			s.wait.Add(1)
			go func() {
				defer s.wait.Done()
				defer s.drop(conn)
				s.serve(conn)
			}()
		}
	}()
	return nil
}

// Drop cuts all connections and goes on listening.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		conn.Close()
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

// Close is Down, and waits until nothing of the server runs.
func (s *Server) Close() {
	s.Down()
	s.wait.Wait()
	s.release()
}

func (s *Server) drop(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

func (s *Server) serve(conn net.Conn) {
	script := s.now()
	if script.Mute {
		io.Copy(io.Discard, conn)
		return
	}
	if script.Handshaking != nil && script.Handshaking() != nil {
		return
	}
	refused := errors.New("refused")
	config := &xssh.ServerConfig{
		PublicKeyCallback: func(_ xssh.ConnMetadata, key xssh.PublicKey) (*xssh.Permissions, error) {
			for _, allowed := range s.now().Keys {
				if bytes.Equal(allowed.Marshal(), key.Marshal()) {
					return nil, nil
				}
			}
			return nil, refused
		},
	}
	if script.Password != "" {
		config.PasswordCallback = func(_ xssh.ConnMetadata, password []byte) (*xssh.Permissions, error) {
			if string(password) == script.Password {
				return nil, nil
			}
			return nil, refused
		}
	}
	for _, key := range script.HostKeys {
		config.AddHostKey(key)
	}
	inner, channels, requests, err := xssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	s.wait.Add(1)
	go func() {
		defer s.wait.Done()
		for request := range requests {
			if request.WantReply && !s.now().Deaf {
				request.Reply(false, nil)
			}
		}
	}()
	for offered := range channels {
		if offered.ChannelType() != "session" {
			offered.Reject(xssh.UnknownChannelType, "sessions only")
			continue
		}
		channel, asked, err := offered.Accept()
		if err != nil {
			continue
		}
		s.wait.Add(1)
		go func() {
			defer s.wait.Done()
			s.session(inner, channel, asked)
		}()
	}
}

func (s *Server) session(conn *xssh.ServerConn, channel xssh.Channel, asked <-chan *xssh.Request) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer channel.Close()
	signals := make(chan string, 8)
	for request := range asked {
		switch request.Type {
		case "exec":
			var command struct{ Line string }
			if xssh.Unmarshal(request.Payload, &command) != nil {
				request.Reply(false, nil)
				continue
			}
			request.Reply(true, nil)
			session := Session{Context: ctx, Line: command.Line, Stdin: channel, Stdout: channel, Stderr: channel.Stderr(),
				Client: conn.RemoteAddr(), Server: conn.LocalAddr(), Signals: signals}
			s.wait.Add(1)
			go func() {
				defer s.wait.Done()
				exit := s.now().Exec(session)
				status := make([]byte, 4)
				binary.BigEndian.PutUint32(status, uint32(exit))
				channel.SendRequest("exit-status", false, status)
				channel.Close()
			}()
		case "signal":
			var signal struct{ Name string }
			if xssh.Unmarshal(request.Payload, &signal) == nil {
				select {
				case signals <- signal.Name:
				default:
				}
			}
		default:
			if request.WantReply {
				request.Reply(false, nil)
			}
		}
	}
}
