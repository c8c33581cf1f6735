package dial

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"berth/reservation"
)

// limit is for one step of a test: generous, because machines are slow.
const limit = time.Minute

func TestAURISaysHowAHostIsReached(t *testing.T) {
	for text, want := range map[string]URI{
		"qemu:///system":                                {Transport: Unix, Local: localURI},
		"qemu+unix:///system?socket=/run/x/sock":        {Transport: Unix, Local: localURI, Socket: "/run/x/sock"},
		"qemu+tls://h.example.org/system":               {Transport: TLS, Local: localURI, Address: "h.example.org:16514"},
		"qemu+tls://10.0.0.1:16515/system":              {Transport: TLS, Local: localURI, Address: "10.0.0.1:16515"},
		"qemu+ssh://berth@h/system":                     {Transport: SSH, Local: localURI, Address: "h:22", User: "berth"},
		"qemu+ssh://berth@[2001:db8::1]:2222/system":    {Transport: SSH, Local: localURI, Address: "[2001:db8::1]:2222", User: "berth"},
		"qemu+ssh://berth@h/system?socket=/run/virtq.s": {Transport: SSH, Local: localURI, Address: "h:22", User: "berth", Socket: "/run/virtq.s"},
	} {
		got, err := Parse("uri", text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
	}
	for text, want := range map[string]string{
		"":                                   "qemu:///system",
		"xen:///system":                      "only QEMU's driver",
		"qemu:///session":                    "end it with /system",
		"qemu://h/system":                    "neither host nor user",
		"qemu+tcp://h/system":                "no such transport",
		"qemu+tls://berth@h/system":          "leave the user out",
		"qemu+tls:///system":                 "needs a host name",
		"qemu+tls://h/system?no_verify=1":    "other settings have fields of their own",
		"qemu+tls://h/system?socket=/x":      "not with tls",
		"qemu+ssh://h/system":                "name the user",
		"qemu+ssh://a:hunter2@h/system":      "take the password out",
		"qemu+ssh://a@h/system?socket=x":     "?socket=/PATH",
		"qemu+ssh://a@-oProxyCommand/system": "needs a host name",
	} {
		_, err := Parse("sites[0].uri", text)
		var field *reservation.FieldError
		require.ErrorAs(t, err, &field, text)
		require.Equal(t, "sites[0].uri", field.Field)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "hunter2")
	}
}

func TestASocketIsDialled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	echo(t, path)
	connection, err := NewUnix(path).Dial(t.Context())
	require.NoError(t, err)
	answers(t, connection)
	_, err = NewUnix(path + "x").Dial(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
}

// echo answers on a unix socket with what it is told.
func echo(t *testing.T, path string) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				_, _ = io.Copy(connection, connection)
			}()
		}
	}()
}

func answers(t *testing.T, connection net.Conn) {
	t.Helper()
	defer connection.Close()
	_, err := connection.Write([]byte("hello"))
	require.NoError(t, err)
	got := make([]byte, 5)
	_, err = io.ReadFull(connection, got)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
}

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pool        *x509.CertPool
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return authority{certificate, key, pool}
}

func (a authority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestTLSIsMutualAndTheDaemonHasTheLastWord(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	for name, c := range map[string]struct {
		server   tls.Certificate
		client   func() (tls.Certificate, error)
		accepts  byte // what the daemon sends after its handshake; 0: it hangs up
		refused  bool
		verified bool // the host's certificate is the fault
	}{
		"both know each other":                  {ours.issue(t, "host"), func() (tls.Certificate, error) { return ours.issue(t, "berth"), nil }, 1, false, false},
		"the host is another one":               {ours.issue(t, "other"), func() (tls.Certificate, error) { return ours.issue(t, "berth"), nil }, 1, false, true},
		"the host is signed by somebody else":   {others.issue(t, "host"), func() (tls.Certificate, error) { return ours.issue(t, "berth"), nil }, 1, false, true},
		"we are signed by somebody else":        {ours.issue(t, "host"), func() (tls.Certificate, error) { return others.issue(t, "berth"), nil }, 1, true, false},
		"our name is not on the daemon's list":  {ours.issue(t, "host"), func() (tls.Certificate, error) { return ours.issue(t, "mallory"), nil }, 0, true, false},
		"our certificate cannot be read":        {ours.issue(t, "host"), func() (tls.Certificate, error) { return tls.Certificate{}, errors.New("no such secret") }, 1, true, false},
		"the daemon says something else than 1": {ours.issue(t, "host"), func() (tls.Certificate, error) { return ours.issue(t, "berth"), nil }, 7, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{c.server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.pool})
			require.NoError(t, err)
			defer listener.Close()
			go func() {
				connection, err := listener.Accept()
				if err != nil {
					return
				}
				defer connection.Close()
				if connection.(*tls.Conn).Handshake() != nil {
					_, _ = io.Copy(io.Discard, connection.(*tls.Conn).NetConn())
					return
				}
				if c.accepts == 0 {
					return
				}
				_, _ = connection.Write([]byte{c.accepts})
				_, _ = io.Copy(connection, connection)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			connection, err := NewTLS(TLSOptions{Address: listener.Addr().String(), ServerName: "host", Authorities: ours.pool, Certificate: c.client}).Dial(ctx)
			require.Equal(t, c.refused, errors.As(err, new(*RefusedError)), "%v", err)
			require.Equal(t, c.verified, errors.As(err, new(*tls.CertificateVerificationError)), "%v", err)
			if !c.refused && !c.verified {
				require.NoError(t, err)
				answers(t, connection)
			}
		})
	}
}

// sshd is an SSH server that forwards to unix sockets.
type sshd struct {
	address string
	logins  atomic.Int32
	forward atomic.Bool
	current atomic.Pointer[ssh.ServerConn]
}

func newSSHD(t *testing.T, host ssh.Signer, user ssh.PublicKey) *sshd {
	t.Helper()
	s := &sshd{}
	s.forward.Store(true)
	config := &ssh.ServerConfig{PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if meta.User() != "berth" || string(key.Marshal()) != string(user.Marshal()) {
			return nil, errors.New("unknown")
		}
		return nil, nil
	}}
	config.AddHostKey(host)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	s.address = listener.Addr().String()
	go func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			go s.serve(raw, config)
		}
	}()
	return s
}

func (s *sshd) serve(raw net.Conn, config *ssh.ServerConfig) {
	defer raw.Close()
	connection, channels, requests, err := ssh.NewServerConn(raw, config)
	if err != nil {
		return
	}
	s.logins.Add(1)
	s.current.Store(connection)
	go ssh.DiscardRequests(requests)
	for asked := range channels {
		if asked.ChannelType() != "direct-streamlocal@openssh.com" || !s.forward.Load() {
			_ = asked.Reject(ssh.Prohibited, "not allowed")
			continue
		}
		var to struct {
			Path     string
			Reserved string
			Number   uint32
		}
		_ = ssh.Unmarshal(asked.ExtraData(), &to)
		socket, err := net.Dial("unix", to.Path)
		if err != nil {
			_ = asked.Reject(ssh.ConnectionFailed, err.Error())
			continue
		}
		channel, rest, err := asked.Accept()
		if err != nil {
			socket.Close()
			continue
		}
		go ssh.DiscardRequests(rest)
		go func() {
			defer channel.Close()
			defer socket.Close()
			go func() { _, _ = io.Copy(socket, channel) }()
			_, _ = io.Copy(channel, socket)
		}()
	}
}

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return signer
}

func line(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }

func TestTheDaemonIsReachedThroughOneLogin(t *testing.T) {
	host, user := newSigner(t), newSigner(t)
	server := newSSHD(t, host, user.PublicKey())
	socket := filepath.Join(t.TempDir(), "sock")
	echo(t, socket)
	keys, err := PinnedKey(line(host.PublicKey()))
	require.NoError(t, err)
	dialer := NewSSH(SSHOptions{Address: server.address, User: "berth", Socket: socket, Signer: func() (ssh.Signer, error) { return user, nil }, HostKeys: keys})
	defer dialer.Close()
	for range 3 {
		connection, err := dialer.Dial(t.Context())
		require.NoError(t, err)
		answers(t, connection)
	}
	require.EqualValues(t, 1, server.logins.Load())

	// A connection that was cut is made again.
	require.NoError(t, server.current.Load().Close())
	require.Eventually(t, func() bool {
		connection, err := dialer.Dial(t.Context())
		if err != nil {
			return false
		}
		defer connection.Close()
		_, err = connection.Write([]byte("x"))
		return err == nil && server.logins.Load() == 2
	}, limit, 10*time.Millisecond)

	server.forward.Store(false)
	_, err = dialer.Dial(t.Context())
	require.ErrorAs(t, err, new(*RefusedError))
	require.ErrorContains(t, err, "AllowStreamLocalForwarding")
	dialer.Close()
	_, err = dialer.Dial(t.Context())
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestADaemonThatIsDownBehindItsSSHDMayComeBack(t *testing.T) {
	host, user := newSigner(t), newSigner(t)
	server := newSSHD(t, host, user.PublicKey())
	keys, err := PinnedKey(line(host.PublicKey()))
	require.NoError(t, err)
	socket := filepath.Join(t.TempDir(), "sock")
	dialer := NewSSH(SSHOptions{Address: server.address, User: "berth", Socket: socket, Signer: func() (ssh.Signer, error) { return user, nil }, HostKeys: keys})
	defer dialer.Close()
	_, err = dialer.Dial(t.Context())
	require.Error(t, err)
	require.False(t, errors.As(err, new(*RefusedError)), "%v", err)
	echo(t, socket)
	connection, err := dialer.Dial(t.Context())
	require.NoError(t, err)
	answers(t, connection)
}

func TestNobodyElseIsLoggedInTo(t *testing.T) {
	host, user, other := newSigner(t), newSigner(t), newSigner(t)
	server := newSSHD(t, host, user.PublicKey())
	file := filepath.Join(t.TempDir(), "known_hosts")
	known := func(key ssh.PublicKey) HostKeys {
		require.NoError(t, os.WriteFile(file, []byte(knownhosts.Line([]string{knownhosts.Normalize(server.address)}, key)+"\n"), 0o600))
		keys, err := KnownHosts(file, server.address)
		require.NoError(t, err)
		return keys
	}
	pinned := func(key ssh.PublicKey) HostKeys {
		keys, err := PinnedKey(line(key))
		require.NoError(t, err)
		return keys
	}
	rsaLike, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	kind, err := ssh.NewPublicKey(&rsaLike.PublicKey)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		keys HostKeys
		user string
		key  func() (ssh.Signer, error)
		want any // nil for a login
	}{
		"the pinned key":            {pinned(host.PublicKey()), "berth", func() (ssh.Signer, error) { return user, nil }, nil},
		"a known key":               {known(host.PublicKey()), "berth", func() (ssh.Signer, error) { return user, nil }, nil},
		"another key than pinned":   {pinned(other.PublicKey()), "berth", func() (ssh.Signer, error) { return user, nil }, new(*HostKeyError)},
		"another key than known":    {known(other.PublicKey()), "berth", func() (ssh.Signer, error) { return user, nil }, new(*HostKeyError)},
		"a key of another kind":     {pinned(kind), "berth", func() (ssh.Signer, error) { return user, nil }, new(*HostKeyError)},
		"another user":              {pinned(host.PublicKey()), "root", func() (ssh.Signer, error) { return user, nil }, new(*RefusedError)},
		"another key of ours":       {pinned(host.PublicKey()), "berth", func() (ssh.Signer, error) { return other, nil }, new(*RefusedError)},
		"a key that cannot be read": {pinned(host.PublicKey()), "berth", func() (ssh.Signer, error) { return nil, errors.New("no such secret") }, new(*RefusedError)},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "sock")
			echo(t, socket)
			dialer := NewSSH(SSHOptions{Address: server.address, User: c.user, Socket: socket, Signer: c.key, HostKeys: c.keys})
			defer dialer.Close()
			connection, err := dialer.Dial(t.Context())
			if c.want == nil {
				require.NoError(t, err)
				answers(t, connection)
				return
			}
			require.ErrorAs(t, err, c.want)
		})
	}
	_, err = KnownHosts(file, "elsewhere:22")
	require.ErrorContains(t, err, "has no key of elsewhere")
}
