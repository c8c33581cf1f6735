// Package devserver runs a real Temporal server for the demonstration, tests and benchmarks: the Temporal CLI's
// development server (`temporal server start-dev`), on loopback ports, with the settings that make it answer fast.
package devserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"

	"berth/internal/process"
)

const (
	host      = "127.0.0.1"
	namespace = "default" // start-dev always makes it

	startLimit   = 60 * time.Second      // a start takes about 1 s; a loaded machine gets its time
	stopGrace    = 10 * time.Second      // for a server that has a database to close
	askEvery     = 20 * time.Millisecond // while it starts
	askLimit     = 2 * time.Second       // for one answer
	tries        = 3                     // in case that somebody took a port that was free a moment ago
	portPatience = 500 * time.Millisecond
	tailLines    = 15 // of the log, in an error
	logLevel     = "error"
)

// Options say how a server is to run. The zero value is a server in memory on free ports without Web UI.
type Options struct {
	CLI      string // the Temporal CLI; "" is FindCLI's
	Port     int    // the server's port on 127.0.0.1; 0 takes a free one
	UI       bool   // serve the Web UI
	UIPort   int    // the Web UI's port on 127.0.0.1; 0 takes a free one
	Database string // an SQLite file, made if it is missing and used again if not; "" keeps everything in memory
	Log      string // the file that takes the server's log, emptied first; "" is one in a temporary folder that Stop removes
	// SearchAttributes are registered before the server answers: name to type (Keyword, Int, Text, Double, Bool, Datetime,
	// KeywordList).
	SearchAttributes map[string]string
	// Settings are dynamic settings over those of FastSettings: key to JSON value.
	Settings map[string]string
}

// Server is a server that answers.
type Server struct {
	Address   string // host:port of the gRPC front end
	WebUI     string // URL; "" without a Web UI
	Namespace string
	Log       string // the path of its log

	port       int
	process    *process.Process
	attributes map[string]string // that must be there
	memory     bool
	temp       string // removed by Stop
}

// FastSettings are the dynamic settings (key to JSON value) that every server here runs with. A server's queue
// processors read their tables 20 times a second and shard unless told otherwise, and start-dev has one shard, so that
// every step of a workflow waits 50 ms. One partition a task queue spares tasks the way through partitions that nobody
// polls just now. Measured on 2 cores: a workflow of two no-op activities takes 26 ms with all of them, 108 ms with four
// partitions, 250 ms with none.
func FastSettings() map[string]string {
	return map[string]string{
		"history.transferProcessorMaxPollRPS":   "2000",
		"history.timerProcessorMaxPollRPS":      "2000",
		"history.visibilityProcessorMaxPollRPS": "2000",
		"matching.numTaskqueueReadPartitions":   "1",
		"matching.numTaskqueueWritePartitions":  "1",
	}
}

// Start starts a server and returns once it answers. ctx bounds the start alone: the server runs until Stop, or until
// the calling process ends (Linux ends it then, however that was). The error holds the end of the server's log; it is a
// *MissingError if there is no Temporal CLI.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.CLI == "" {
		found, err := FindCLI()
		if err != nil {
			return nil, err
		}
		o.CLI = found
	}
	temp := ""
	if o.Log == "" {
		made, err := os.MkdirTemp("", "berth-temporal-")
		if err != nil {
			return nil, fmt.Errorf("folder for the Temporal server's log: %w", err)
		}
		temp, o.Log = made, filepath.Join(made, "temporal.log")
	}
	if o.Database != "" {
		if err := os.MkdirAll(filepath.Dir(o.Database), 0o755); err != nil {
			return nil, fmt.Errorf("folder of the Temporal server's database: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for try := 1; ; try++ {
		s, err := start(ctx, o)
		if err == nil {
			s.temp = temp
			return s, nil
		}
		var ended *endedError
		if try < tries && errors.As(err, &ended) {
			continue
		}
		if temp != "" {
			err = errors.Join(err, os.RemoveAll(temp))
		}
		return nil, fmt.Errorf("temporal server: %w", err)
	}
}

// endedError says that the server ended before it answered.
type endedError struct{ cause error } // nil: exit code 0

func (e *endedError) Error() string { return fmt.Sprintf("it ended before it answered (%v)", e.cause) }
func (e *endedError) Unwrap() error { return e.cause }

func start(ctx context.Context, o Options) (*Server, error) {
	ports, err := freePorts(ctx, o.Port, o.UIPort)
	if err != nil {
		return nil, err
	}
	s := &Server{
		Address:    net.JoinHostPort(host, strconv.Itoa(ports[0])),
		Namespace:  namespace,
		Log:        o.Log,
		port:       ports[0],
		attributes: o.SearchAttributes,
		memory:     o.Database == "",
	}
	args := []string{"server", "start-dev", "--ip", host, "--port", strconv.Itoa(ports[0]), "--log-level", logLevel, "--log-format", "json"}
	if o.UI {
		s.WebUI = "http://" + net.JoinHostPort(host, strconv.Itoa(ports[1]))
		args = append(args, "--ui-ip", host, "--ui-port", strconv.Itoa(ports[1]))
	} else {
		args = append(args, "--headless")
	}
	if o.Database != "" {
		// A write-ahead log waits for the disk at its checkpoints alone, and not at each commit: with the default a busy disk
		// holds heartbeats up for seconds. What it can lose (the last commits, when the power fails) nobody misses here.
		args = append(args, "--db-filename", o.Database, "--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL")
	}
	settings := FastSettings()
	maps.Copy(settings, o.Settings)
	args = append(args, pairs("--dynamic-config-value", settings)...)
	args = append(args, pairs("--search-attribute", o.SearchAttributes)...)

	s.process, err = process.Start(process.Options{Path: o.CLI, Args: args, Log: o.Log})
	if err != nil {
		return nil, err
	}
	if err := s.answer(ctx); err != nil {
		tail := s.process.Tail(tailLines)
		s.process.Kill()
		return nil, fmt.Errorf("%w\n  %s", err, tail)
	}
	return s, nil
}

func pairs(flag string, values map[string]string) []string {
	var args []string
	for _, key := range slices.Sorted(maps.Keys(values)) {
		args = append(args, flag, key+"="+values[key])
	}
	return args
}

// answer waits until the server knows its namespace and, where there is one, the Web UI serves its page.
func (s *Server) answer(ctx context.Context) error {
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	err := errors.New("it was not asked yet")
	for {
		select {
		case <-s.process.Done():
			return &endedError{cause: s.process.Err()}
		case <-ctx.Done():
			return fmt.Errorf("it does not answer at %s (%w): %w", s.Address, context.Cause(ctx), err)
		case <-ticker.C:
		}
		if err = s.ask(ctx); err == nil {
			return nil
		}
	}
}

func (s *Server) ask(ctx context.Context) error {
	// Dialing a port that nobody listens on yet must fail at once, and not after the client's own patience.
	probe, err := (&net.Dialer{Timeout: askLimit}).DialContext(ctx, "tcp", s.Address)
	if err != nil {
		return err
	}
	probe.Close()
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	c, err := client.DialContext(ctx, client.Options{HostPort: s.Address, Namespace: s.Namespace, Logger: silent{}})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: s.Namespace}); err != nil {
		return err
	}
	// The first list tells whether the visibility store is up, and whether the front end has heard of the namespace.
	if _, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{PageSize: 1}); err != nil {
		return err
	}
	if len(s.attributes) > 0 {
		there, err := c.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: s.Namespace})
		if err != nil {
			return err
		}
		for name := range s.attributes {
			if _, ok := there.GetCustomAttributes()[name]; !ok {
				return fmt.Errorf("search attribute %s is not registered yet", name)
			}
		}
	}
	if s.WebUI == "" {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.WebUI, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the Web UI at %s answers %s", s.WebUI, response.Status)
	}
	return nil
}

// Done is closed when the server's process has ended, by Stop or by itself.
func (s *Server) Done() <-chan struct{} { return s.process.Done() }

// Stop ends the server and returns when its process is gone. It may be called again.
func (s *Server) Stop() {
	if s.memory {
		s.process.Kill() // nothing to save
	} else {
		s.process.Stop(stopGrace)
	}
	if s.temp != "" {
		_ = os.RemoveAll(s.temp)
	}
}

// freePorts returns the wanted ports, with one that is free in place of each 0.
func freePorts(ctx context.Context, wanted ...int) ([]int, error) {
	ports := slices.Clone(wanted)
	for i, port := range ports {
		// The listeners stay open until all ports are found, so that no two are the same.
		listener, err := listen(ctx, port)
		if err != nil {
			return nil, fmt.Errorf("port %d of %s cannot be had: %w", port, host, err)
		}
		defer listener.Close()
		ports[i] = listener.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// listen listens on a port. A port that was let go a moment ago is taken a little longer when this process starts
// another one meanwhile: between fork and exec a child holds all of its parent's descriptors.
func listen(ctx context.Context, port int) (net.Listener, error) {
	ctx, cancel := context.WithTimeout(ctx, portPatience)
	defer cancel()
	for {
		listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return listener, err
		}
		timer := time.NewTimer(askEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
	}
}

// silent is a logger for the client that asks a server which may not be up yet.
type silent struct{}

var _ log.Logger = silent{}

func (silent) Debug(string, ...any) {}
func (silent) Info(string, ...any)  {}
func (silent) Warn(string, ...any)  {}
func (silent) Error(string, ...any) {}

// Pid returns the server's process id.
func (s *Server) Pid() int { return s.process.Pid() }

// Port returns the port of the server's address, to start another server in its place.
func (s *Server) Port() int { return s.port }
