package main

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.temporal.io/sdk/client"

	"berth/internal/metrics"
	"berth/internal/temporalclient"
)

// How often Temporal is asked whether it is there, and how long it may take to answer. Readiness follows within their sum.
const (
	askEvery = 2 * time.Second
	askLimit = 3 * time.Second
)

// health is what the worker tells of itself over HTTP. It is safe for concurrent use.
type health struct {
	metrics *metrics.Metrics
	log     zerolog.Logger

	mu      sync.Mutex
	serving bool   // the queues are served
	lost    string // why Temporal does not answer; "" when it does
}

// state returns "" when the worker is ready, and why not otherwise.
func (h *health) state() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.serving:
		return "no queue is served: starting or stopping"
	case h.lost != "":
		return "Temporal does not answer: " + h.lost
	default:
		return ""
	}
}

func (h *health) change(change func()) {
	h.mu.Lock()
	change()
	ready := h.serving && h.lost == ""
	h.mu.Unlock()
	h.metrics.Ready(ready)
}

// serve says whether the queues are served.
func (h *health) serve(serving bool) { h.change(func() { h.serving = serving }) }

// watch asks Temporal until the context ends.
func (h *health) watch(ctx context.Context, c client.Client) {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		asking, cancel := context.WithTimeout(ctx, askLimit)
		err := temporalclient.Answers(asking, c)
		cancel()
		if ctx.Err() != nil {
			return
		}
		h.answered(err)
	}
}

func (h *health) answered(err error) {
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	var before string
	h.change(func() { before, h.lost = h.lost, reason })
	switch {
	case reason != "" && before == "":
		h.log.Warn().Str("error", reason).Msg("Temporal does not answer: running phases go on, and the queues are served again when it is back")
	case reason == "" && before != "":
		h.log.Info().Msg("Temporal answers again")
	}
}

// ServeHTTP answers /healthz (the process lives), /readyz (it serves its queues, and Temporal answers) and /metrics.
func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/healthz":
		_, _ = w.Write([]byte("ok\n"))
	case "/readyz":
		if state := h.state(); state != "" {
			http.Error(w, state, http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	case "/metrics":
		h.metrics.ServeHTTP(w, r)
	default:
		http.NotFound(w, r)
	}
}

// listen serves health on a listener, and returns what ends it.
func (h *health) listen(listener net.Listener) (stop func()) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ErrorLog: stdlog.New(h.log, "", 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ErrServerClosed
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
		<-done
	}
}

// healthy asks the worker of this machine, at the address that BERTH_LISTEN has in this environment, whether it is ready.
func healthy(stderr io.Writer) int {
	c, _ := readConfig() // what another variable's fault is does not matter here
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "0" {
		fmt.Fprintf(stderr, "worker: BERTH_LISTEN is %q: give the worker a port of its own to ask\n", c.Listen)
		return exitConfiguration
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	client := http.Client{Timeout: askLimit}
	answer, err := client.Get("http://" + net.JoinHostPort(host, port) + "/readyz")
	if err != nil {
		fmt.Fprintln(stderr, "worker:", err)
		return exitFault
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
	if answer.StatusCode != http.StatusOK {
		fmt.Fprintln(stderr, "worker:", strings.TrimSpace(string(text)))
		return exitFault
	}
	return exitOK
}
