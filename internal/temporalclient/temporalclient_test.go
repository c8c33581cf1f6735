package temporalclient

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/logging"
	"berth/reservation"
)

// Tests that need a real server share one.
func TestWithARealServer(t *testing.T) {
	server := devservertest.ForTest(t)
	for name, test := range map[string]func(*testing.T, *devserver.Server){
		"Dial connects": dialConnects,
		"Dial waits for a server that comes later":                          dialWaits,
		"a namespace that is not there says how to make it":                 missingNamespace,
		"EnsureSearchAttributes registers them once":                        attributesOnce,
		"a search attribute of another type is a clear error":               attributeOfAnotherType,
		"a search attribute that cannot be registered is a clear error":     tooManyAttributes,
		"TLS verifies both sides and takes renewed files without a restart": tlsReloads,
		"a profile's certificates are renewed without a restart, too":       profileReloads,
	} {
		t.Run(name, func(t *testing.T) { test(t, server) })
	}
}

func settings(address string) Settings {
	return Settings{Address: address, Namespace: "default", Patience: 10 * time.Second}
}

func options(s Settings) Options {
	return Options{Settings: s, Identity: Identity("test"), Logger: logging.Temporal(zerolog.Nop())}
}

func connected(t *testing.T, server *devserver.Server) client.Client {
	t.Helper()
	c, err := Dial(t.Context(), options(settings(server.Address)))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func dialConnects(t *testing.T, server *devserver.Server) {
	c := connected(t, server)
	require.NoError(t, Answers(t.Context(), c))
	require.NoError(t, CheckNamespace(t.Context(), c, "default"))
}

func dialWaits(t *testing.T, server *devserver.Server) {
	// Nobody listens at this address until the first try has failed; then it leads to the server.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	opened := make(chan error, 1)
	o := options(settings(address))
	o.Waiting = func(err error) {
		require.ErrorContains(t, err, address)
		late, err := net.Listen("tcp", address)
		if err == nil {
			t.Cleanup(func() { late.Close() })
			go forward(late, server.Address)
		}
		opened <- err
	}
	c, err := Dial(t.Context(), o)
	require.NoError(t, <-opened)
	require.NoError(t, err)
	c.Close()
}

func TestDialGivesUpWhenItsPatienceEnds(t *testing.T) {
	s := settings("127.0.0.1:1")
	s.Patience = 300 * time.Millisecond
	_, err := Dial(t.Context(), options(s))
	var unreachable *UnreachableError
	require.ErrorAs(t, err, &unreachable)
	require.ErrorContains(t, err, "does not answer at 127.0.0.1:1")
	require.ErrorContains(t, err, "connection refused")
	require.ErrorContains(t, err, "BERTH_TEMPORAL_ADDRESS")
}

func TestDialEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o := options(settings("127.0.0.1:1"))
	o.Waiting = func(error) { cancel() }
	_, err := Dial(ctx, o)
	require.ErrorIs(t, err, context.Canceled)
}

func missingNamespace(t *testing.T, server *devserver.Server) {
	err := CheckNamespace(t.Context(), connected(t, server), "nowhere")
	var missing *NamespaceError
	require.ErrorAs(t, err, &missing)
	require.ErrorContains(t, err, "temporal operator namespace create --namespace nowhere")
}

func attributesOnce(t *testing.T, server *devserver.Server) {
	c := connected(t, server)
	keys := []temporal.SearchAttributeKey{temporal.NewSearchAttributeKeyKeyword("TestComputer"), temporal.NewSearchAttributeKeyInt64("TestAttempt")}
	// Several workers that start at the same moment.
	var group sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		group.Go(func() { errs[i] = EnsureSearchAttributes(t.Context(), c, "default", keys) })
	}
	group.Wait()
	require.NoError(t, errors.Join(errs...))
	listed, err := listAttributes(t.Context(), c, "default")
	require.NoError(t, err)
	require.Equal(t, enumspb.INDEXED_VALUE_TYPE_KEYWORD, listed["TestComputer"])
	require.Equal(t, enumspb.INDEXED_VALUE_TYPE_INT, listed["TestAttempt"])

	require.NoError(t, EnsureSearchAttributes(t.Context(), c, "default", keys))

	// They can be used at once, which is what it is all for.
	_, err = c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{
		TaskQueue:             "nobody",
		TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword("TestComputer").ValueSet("vm-01")),
	}, "workflow")
	require.NoError(t, err)
}

func attributeOfAnotherType(t *testing.T, server *devserver.Server) {
	c := connected(t, server)
	require.NoError(t, EnsureSearchAttributes(t.Context(), c, "default", []temporal.SearchAttributeKey{
		temporal.NewSearchAttributeKeyString("TestPhase"), temporal.NewSearchAttributeKeyBool("TestOutcome"),
	}))
	err := EnsureSearchAttributes(t.Context(), c, "default", []temporal.SearchAttributeKey{
		temporal.NewSearchAttributeKeyKeyword("TestPhase"), temporal.NewSearchAttributeKeyKeyword("TestOutcome"), temporal.NewSearchAttributeKeyKeyword("TestUser"),
	})
	var wrong *SearchAttributeError
	require.ErrorAs(t, err, &wrong)
	require.ErrorContains(t, err, "TestPhase of Temporal's namespace default has type Text and must have Keyword")
	require.ErrorContains(t, err, "TestOutcome of Temporal's namespace default has type Bool and must have Keyword")
	require.ErrorContains(t, err, "temporal operator search-attribute remove --namespace default --name TestPhase")
	require.NotContains(t, err.Error(), "TestUser")
}

func tooManyAttributes(t *testing.T, server *devserver.Server) {
	c := connected(t, server)
	// The server has a fixed number of places for each type (SQL: 10 keywords lists, 3 of most others).
	var keys []temporal.SearchAttributeKey
	for i := range 40 {
		keys = append(keys, temporal.NewSearchAttributeKeyFloat64("TestTooMany"+string(rune('A'+i%26))+string(rune('A'+i/26))))
	}
	err := EnsureSearchAttributes(t.Context(), c, "default", keys)
	var missing *SearchAttributeError
	require.ErrorAs(t, err, &missing)
	require.Error(t, missing.Cause)
	require.ErrorContains(t, err, "temporal operator search-attribute create --namespace default --name TestTooManyAA --type Double")
}

func TestSettingsFaultsNameTheirVariables(t *testing.T) {
	folder := t.TempDir()
	empty := filepath.Join(folder, "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	good := settings("127.0.0.1:7233")
	require.NoError(t, good.Validate())
	for name, test := range map[string]struct {
		change func(*Settings)
		want   []string
	}{
		"no port":                  {func(s *Settings) { s.Address = "127.0.0.1" }, []string{"BERTH_TEMPORAL_ADDRESS is \"127.0.0.1\"", "host:port"}},
		"a port that is none":      {func(s *Settings) { s.Address = "127.0.0.1:x" }, []string{"BERTH_TEMPORAL_ADDRESS"}},
		"no namespace":             {func(s *Settings) { s.Namespace = "" }, []string{"BERTH_TEMPORAL_NAMESPACE"}},
		"no patience":              {func(s *Settings) { s.Patience = -1 }, []string{"BERTH_TEMPORAL_PATIENCE"}},
		"a certificate and no key": {func(s *Settings) { s.TLSCert = "c.pem" }, []string{"BERTH_TEMPORAL_TLS_KEY", "set both"}},
		"files that are not there": {func(s *Settings) { s.TLSCA, s.TLSCert, s.TLSKey = "a", "b", "c" }, []string{"BERTH_TEMPORAL_TLS_CA", "BERTH_TEMPORAL_TLS_CERT"}},
		"a CA file without one":    {func(s *Settings) { s.TLSCA = empty }, []string{"no certificate in it"}},
		"a key without TLS":        {func(s *Settings) { s.APIKeyFile = "/nowhere" }, []string{"BERTH_TEMPORAL_TLS=true", "give a readable file"}},
		"an empty key":             {func(s *Settings) { s.TLS, s.APIKeyFile = true, empty }, []string{"file is empty"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			test.change(&s)
			err := s.Validate()
			var field *reservation.FieldError
			require.ErrorAs(t, err, &field)
			for _, words := range test.want {
				require.ErrorContains(t, err, words)
			}
		})
	}
}

func TestIdentityNamesTheRoleAndTheProcess(t *testing.T) {
	require.Regexp(t, `^worker@.+:\d+$`, Identity("worker"))
}

func tlsReloads(t *testing.T, server *devserver.Server) {
	folder := t.TempDir()
	path := func(name string) string { return filepath.Join(folder, name) }
	first, second := newAuthority(t), newAuthority(t)
	proxy := newTLSProxy(t, server.Address)
	proxy.use(first.certificate(t, "temporal.test"), first)

	s := settings(proxy.address)
	s.TLSCA, s.TLSCert, s.TLSKey, s.TLSServerName = path("ca.pem"), path("cert.pem"), path("key.pem"), "temporal.test"
	first.write(t, s.TLSCA, s.TLSCert, s.TLSKey)
	require.NoError(t, s.Validate())
	c, err := Dial(t.Context(), options(s))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, Answers(t.Context(), c))

	renews(t, c, s, proxy, second)

	for name, test := range map[string]struct {
		change func(*Settings)
		want   string
	}{
		"a server of another name":      {func(s *Settings) { s.TLSServerName = "other.test" }, "other.test"},
		"a server of another authority": {func(s *Settings) { first.write(t, path("old.pem"), "", ""); s.TLSCA = path("old.pem") }, "unknown authority"},
		"our certificate of another one": {func(s *Settings) {
			first.write(t, "", path("old-cert.pem"), path("old-key.pem"))
			s.TLSCert, s.TLSKey = path("old-cert.pem"), path("old-key.pem")
		}, "tls:"},
		"no certificate of ours":             {func(s *Settings) { s.TLSCert, s.TLSKey = "", "" }, "tls:"},
		"a server that does not speak TLS":   {func(s *Settings) { s.Address = server.Address }, "does not look like a TLS handshake"},
		"a file that went away in the while": {func(s *Settings) { s.TLSCA = path("gone") }, "BERTH_TEMPORAL_TLS_CA"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := s
			test.change(&changed)
			_, err := Dial(t.Context(), options(changed))
			var refused *RefusedError
			require.ErrorAs(t, err, &refused)
			require.ErrorContains(t, err, test.want)
			require.ErrorContains(t, err, "check BERTH_TEMPORAL_TLS_")
		})
	}
}

// renews has another authority renew everybody's certificates, breaks the connection, and sees that the client comes back.
func renews(t *testing.T, c client.Client, s Settings, proxy *tlsProxy, by *authority) {
	t.Helper()
	by.write(t, s.TLSCA, s.TLSCert, s.TLSKey)
	proxy.use(by.certificate(t, "temporal.test"), by)
	proxy.cut()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		require.NoError(t, Answers(ctx, c))
	}, 10*time.Second, 20*time.Millisecond)
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert: cert, key: key}
}

func (a *authority) certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// write writes the authority's own certificate, and a certificate of ours with its key, to the paths that are not "".
func (a *authority) write(t *testing.T, ca, cert, key string) {
	t.Helper()
	ours := a.certificate(t, "worker.test")
	der, err := x509.MarshalPKCS8PrivateKey(ours.PrivateKey)
	require.NoError(t, err)
	for path, block := range map[string]*pem.Block{
		ca:   {Type: "CERTIFICATE", Bytes: a.cert.Raw},
		cert: {Type: "CERTIFICATE", Bytes: ours.Certificate[0]},
		key:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if path != "" {
			require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
		}
	}
}

// tlsProxy puts TLS before a server and asks for the client's certificate.
type tlsProxy struct {
	address string
	mu      sync.Mutex
	config  *tls.Config
	open    []net.Conn
}

func newTLSProxy(t *testing.T, to string) *tlsProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &tlsProxy{address: listener.Addr().String()}
	t.Cleanup(func() { listener.Close(); p.cut() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			secured := tls.Server(conn, p.config)
			p.open = append(p.open, conn)
			p.mu.Unlock()
			go pipe(secured, to)
		}
	}()
	return p
}

func (p *tlsProxy) use(certificate tls.Certificate, clients *authority) {
	pool := x509.NewCertPool()
	pool.AddCert(clients.cert)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.config = &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
}

func (p *tlsProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.open {
		conn.Close()
	}
	p.open = nil
}

func forward(listener net.Listener, to string) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go pipe(conn, to)
	}
}

func pipe(conn net.Conn, to string) {
	defer conn.Close()
	if secured, ok := conn.(*tls.Conn); ok && secured.Handshake() != nil {
		return
	}
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, conn)
		server.Close()
	}()
	_, _ = io.Copy(conn, server)
}

func TestReasonsAreWordsAndNoWrapping(t *testing.T) {
	require.Equal(t, "x", reason(errors.New("failed reaching server: x")))
	require.False(t, strings.Contains(reason(errors.New(`connection error: desc = "transport: Error while dialing: refused"`)), "desc"))
}
