package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// direction tells a request from its answer.
type direction string

const (
	request direction = "request"
	answer  direction = "answer"
)

// gate holds back what its match names until it is opened. Only its first match is held, unless all is set.
type gate struct {
	match func(method string, d direction) bool // never called twice at a time
	all   bool                                  // hold every match, not only the first
	keep  bool                                  // keep the request when its sender is gone, and let it through all the same

	mu      sync.Mutex
	held    bool
	reached chan struct{} // closed when something is held
	opened  chan struct{} // closed by open
	release sync.Once
}

func newGate(match func(method string, d direction) bool) *gate {
	return &gate{match: match, reached: make(chan struct{}), opened: make(chan struct{})}
}

// at holds the n-th call of a method, from 1, or its answer.
func at(method string, d direction, n int) *gate {
	return newGate(func(m string, now direction) bool {
		if m == method && now == d {
			n--
			return n == 0
		}
		return false
	})
}

// blind lets a method's answer through and holds every answer after it: what the call began goes on unseen.
func blind(method string) *gate {
	seen := false
	g := newGate(func(m string, d direction) bool {
		if seen {
			return d == answer
		}
		seen = m == method && d == answer
		return false
	})
	g.all = true
	return g
}

// await returns once something is held.
func (g *gate) await(t *testing.T) {
	t.Helper()
	select {
	case <-g.reached:
	case <-time.After(patience):
		require.FailNow(t, "what the gate waits for never came")
	}
}

func (g *gate) open() { g.release.Do(func() { close(g.opened) }) }

// holds says whether something is to be held.
func (g *gate) holds(method string, d direction) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held && !g.all || !g.match(method, d) {
		return false
	}
	if !g.held {
		close(g.reached)
	}
	g.held = true
	return true
}

// pass returns when a call may go on; its error says that the sender is gone.
func (g *gate) pass(ctx context.Context, method string, d direction) error {
	select {
	case <-g.opened:
		return nil
	default:
	}
	if !g.holds(method, d) {
		return nil
	}
	if g.keep {
		<-g.opened
		return nil
	}
	select {
	case <-g.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// gates are the gates of a proxy.
type gates struct {
	mu  sync.Mutex
	all []*gate
}

func (g *gates) add(one *gate) *gate {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = append(g.all, one)
	return one
}

func (g *gates) pass(ctx context.Context, method string, d direction) error {
	g.mu.Lock()
	all := g.all
	g.mu.Unlock()
	for _, one := range all {
		if err := one.pass(ctx, method, d); err != nil {
			return err
		}
	}
	return nil
}

// openAll opens every gate.
func (g *gates) openAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, one := range g.all {
		one.open()
	}
}

// vcenterProxy stands before a vCenter, with a certificate of its own. It knows the calls of the vSphere API that pass, can
// hold them or their answers back, and can be cut off.
type vcenterProxy struct {
	gates
	address string
	target  string
	client  *http.Client
	config  *tls.Config

	mu     sync.Mutex
	server *http.Server
}

func newVCenterProxy(t *testing.T, w *world, target string) *vcenterProxy {
	t.Helper()
	p := &vcenterProxy{
		address: loopback(t, 8989), target: target,
		config: &tls.Config{Certificates: []tls.Certificate{w.certificate}, MinVersion: tls.VersionTLS12},
		client: &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, // the site is in this process
		}},
	}
	p.restore(t)
	t.Cleanup(func() {
		p.openAll()
		p.cut()
		p.client.CloseIdleConnections()
	})
	return p
}

// url is what the catalog says.
func (p *vcenterProxy) url() string { return "https://" + p.address + "/sdk" }

// restore serves, at first and after cut.
func (p *vcenterProxy) restore(t *testing.T) {
	t.Helper()
	listener := listenAgain(t, p.address)
	server := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	p.mu.Lock()
	p.server = server
	p.mu.Unlock()
	go func() { _ = server.Serve(tls.NewListener(listener, p.config)) }()
}

// cut refuses connections and breaks those that there are.
func (p *vcenterProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.server.Close()
}

// ServeHTTP is part of http.Handler.
func (p *vcenterProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	method := soapMethod(body)
	if err := p.pass(r.Context(), method, request); err != nil {
		panic(http.ErrAbortHandler)
	}
	// What has been let through arrives, whether its sender still lives or not. Only a wait ends with its sender.
	ctx := context.WithoutCancel(r.Context())
	if method == "WaitForUpdatesEx" || method == "" {
		ctx = r.Context()
	}
	forward, err := http.NewRequestWithContext(ctx, r.Method, p.target+r.URL.Path, bytes.NewReader(body))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	forward.Header = r.Header.Clone()
	response, err := p.client.Do(forward)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || p.pass(r.Context(), method, answer) != nil {
		panic(http.ErrAbortHandler)
	}
	for key, values := range response.Header {
		w.Header()[key] = values
	}
	w.Header().Del("Content-Length")
	w.WriteHeader(response.StatusCode)
	_, _ = w.Write(text)
}

// soapMethod returns the name of the vSphere call in a SOAP envelope; "" if there is none.
func soapMethod(envelope []byte) string {
	found := regexp.MustCompile(`<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)`).FindSubmatch(envelope)
	if found == nil {
		return ""
	}
	return string(found[1])
}
