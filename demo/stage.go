package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"berth/demo/internal/programs"
	"berth/internal/devserver"
	"berth/internal/process"
	"berth/internal/simsite"
)

const (
	startLimit = 60 * time.Second // for each of the programs
	stopGrace  = 5 * time.Second
	tailLines  = 12
	workers    = 2
)

// stage is everything that runs: Temporal, the simulated site, the workers. Its programs end with it.
type stage struct {
	options
	server  *devserver.Server
	control string     // URL of the simulated site's control API
	broke   chan error // a program ended that nobody had ended

	mu      sync.Mutex
	running []*actor
	closed  bool
}

// actor is a program on the stage.
type actor struct {
	*process.Process
	name     string
	expected bool // somebody ended it
}

func newStage(o options) (*stage, error) {
	var err error
	// The catalog's path is written into texts that a person copies into another terminal.
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return nil, err
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return nil, err
	}
	for _, name := range []string{"worker", "starter", "simsite"} {
		if _, err := exec.LookPath(filepath.Join(o.bin, name)); err != nil {
			return nil, fmt.Errorf("the program %s is missing in %s: run `make build`, or say where with --bin", name, o.bin)
		}
	}
	return &stage{options: o, broke: make(chan error, 1)}, nil
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }
func (s *stage) log(name string) string  { return s.path(name + ".log") }
func (s *stage) catalog() string         { return s.path(filepath.Join("site", "catalog.yaml")) }
func (s *stage) webUI() string           { return s.server.WebUI }

// start starts everything and returns when the workers serve.
func (s *stage) start(ctx context.Context, p printer) error {
	p.say("Starting a Temporal server, a simulated site and %d workers (logs: %s) ...", workers, short(s.dir))
	var group sync.WaitGroup
	var serverErr, siteErr error
	group.Go(func() { serverErr = s.startServer(ctx) })
	group.Go(func() { siteErr = s.startSite(ctx) })
	group.Wait()
	if err := errors.Join(serverErr, siteErr); err != nil {
		return err
	}
	p.say("Temporal's Web UI: %s", p.style.Paint(strong, s.webUI()))
	var checked bytes.Buffer
	if err := s.command(ctx, &checked, "catalog", "check"); err != nil {
		return fmt.Errorf("%w\n%s", err, checked.String())
	}
	errs := make([]error, workers)
	for i := range workers {
		group.Go(func() { errs[i] = s.startWorker(ctx, fmt.Sprintf("worker-%d", i+1)) })
	}
	group.Wait()
	return errors.Join(errs...)
}

func (s *stage) startServer(ctx context.Context) error {
	server, err := devserver.Start(ctx, devserver.Options{
		Port: portOrFree(s.port), UI: true, UIPort: portOrFree(s.uiPort), Database: s.path("temporal.db"), Log: s.log("temporal"),
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
	go func() {
		<-server.Done()
		s.ended(false, "the Temporal server", server.Log)
	}()
	return nil
}

// portOrFree returns the port if it can be had, and 0, which takes a free one, if not.
func portOrFree(port int) int {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return 0
	}
	listener.Close()
	return port
}

// startSite starts the simulated site and waits for the line that says that it is ready.
func (s *stage) startSite(ctx context.Context) error {
	args, err := s.siteArgs()
	if err != nil {
		return fmt.Errorf("the simulated site's script: %w", err)
	}
	said := &firstLine{said: make(chan []byte, 1)}
	site, err := s.launch("simsite", process.Options{
		Path: filepath.Join(s.bin, "simsite"), Args: args, Env: s.env(), Log: s.log("simsite"), Stdout: said,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("the simulated site is not ready after %s", startLimit))
	defer cancel()
	select {
	case line := <-said.said:
		var ready struct {
			Control string `json:"control"` // URL
		}
		if err = json.Unmarshal(line, &ready); err == nil {
			s.control = ready.Control
			return nil
		}
		err = fmt.Errorf("the simulated site says %q", line)
	case <-site.Done():
		err = fmt.Errorf("the simulated site ended at its start (%w)", site.Err())
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return fmt.Errorf("%w\n  %s", err, site.Tail(tailLines))
}

// clones asks the simulated site how many clones it has made, or installs of a physical node, by the computer's name.
func (s *stage) clones(ctx context.Context) (map[string]int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.control+"/status", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("the simulated site's status: %w", err)
	}
	defer response.Body.Close()
	var status simsite.Status
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		return nil, fmt.Errorf("the simulated site's status (%s): %w", response.Status, err)
	}
	clones := map[string]int{}
	for name, counts := range status.Counts {
		clones[name] = counts.Clones
	}
	for name, node := range status.Metal.Nodes {
		clones[name] = node.Installs
	}
	return clones, nil
}

// firstLine is a writer that hands on the first line that is written to it, and drops the rest.
type firstLine struct {
	line bytes.Buffer
	said chan []byte // takes one
	done bool
}

func (f *firstLine) Write(text []byte) (int, error) {
	if !f.done {
		f.line.Write(text)
		if line, err := f.line.ReadBytes('\n'); err == nil {
			f.said <- line
			f.done = true
		} else {
			f.line.Write(line)
		}
	}
	return len(text), nil
}

// startWorker starts a worker and waits until it serves its queues.
func (s *stage) startWorker(ctx context.Context, name string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	health := listener.Addr().String()
	listener.Close()
	worker, err := s.launch(name, process.Options{
		Path: filepath.Join(s.bin, "worker"), Env: s.env("BERTH_LISTEN="+health, "BERTH_STOP_TIMEOUT=2s"), Log: s.log(name),
	})
	if err != nil {
		return err
	}
	return programs.Serves(ctx, startLimit, name, worker.Process, health)
}

// env returns the environment of our programs: the caller's without any BERTH_ variable, and ours.
func (s *stage) env(more ...string) []string {
	env := append(programs.Plain(s.environment), "BERTH_CATALOG="+s.catalog(), "BERTH_PROVISIONERS=vmware,xcat", "BERTH_USER=demo")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		env = append(env, "BERTH_TEMPORAL_ADDRESS="+s.server.Address, "BERTH_TEMPORAL_NAMESPACE="+s.server.Namespace)
	}
	return append(env, more...)
}

// launch starts a program. It is a fault from now on if it ends and nobody has ended it.
func (s *stage) launch(name string, o process.Options) (*actor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the demonstration is being ended")
	}
	started, err := process.Start(o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	a := &actor{Process: started, name: name}
	s.running = append(s.running, a)
	go func() {
		<-a.Done()
		s.mu.Lock()
		expected := a.expected
		s.mu.Unlock()
		s.ended(expected, name, o.Log)
	}()
	return a, nil
}

// ended notes that a program has ended.
func (s *stage) ended(expected bool, name, log string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if expected || s.closed {
		return
	}
	select {
	case s.broke <- fmt.Errorf("%s has ended by itself\n  %s", name, process.Tail(log, tailLines)):
	default: // the first one counts
	}
}

// kill ends the worker with an id with SIGKILL, and returns its name.
func (s *stage) kill(pid int) (string, error) {
	s.mu.Lock()
	var found *actor
	for _, a := range s.running {
		if a.Pid() == pid {
			found = a
			a.expected = true
		}
	}
	s.mu.Unlock()
	if found == nil {
		return "", fmt.Errorf("no worker of ours has the process id %d", pid)
	}
	found.Kill()
	return found.name, nil
}

// whileAlive runs work, and ends it early when a program ends by itself.
func (s *stage) whileAlive(ctx context.Context, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case err := <-s.broke:
			cancel(err)
		case <-over:
		}
	}()
	err := work(ctx)
	close(over)
	<-watched
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// command runs the production command line to its end, its output going to out.
func (s *stage) command(ctx context.Context, out io.Writer, args ...string) error {
	return programs.Starter(ctx, s.bin, s.env(), out, args...)
}

// stop ends everything, the workers before what they work with.
func (s *stage) stop() {
	s.mu.Lock()
	s.closed = true
	running := s.running
	server := s.server
	s.mu.Unlock()
	var group sync.WaitGroup
	var site *actor
	for _, a := range running {
		if a.name == "simsite" {
			site = a
			continue
		}
		group.Go(func() { a.Stop(stopGrace) })
	}
	group.Wait()
	if site != nil {
		site.Stop(stopGrace)
	}
	if server != nil {
		server.Stop()
	}
}
