//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/log"

	"berth/internal/loadlog"
	"berth/internal/simsite"
	"berth/internal/temporalclient"
	"berth/reservation"
	"berth/workflows"
)

// Limits of waiting for the stack. Images are built of what is kept in the user's cache folder; a machine that has nothing
// of it yet needs the first one.
const (
	imagesLimit = 25 * time.Minute
	upLimit     = 6 * time.Minute
	loadsLimit  = 6 * time.Minute
	lookEvery   = time.Second
)

// stack is docker-compose.yml, running in a project of its own.
type stack struct {
	project  string
	dir      string // of its secrets, its site's script and the host's catalog
	env      []string
	ports    map[string]string // by the variable of .env.example
	files    []string          // the -f arguments
	temporal client.Client
	tls      bool // docker-compose.tls.yml is laid over it
}

// newStack prepares a project with free ports, passwords of its own and the demonstration's site, with more VMs beside its
// own.
func newStack(t *testing.T, more int, settings ...string) *stack {
	t.Helper()
	for _, tool := range []string{"docker", "docker-compose", "debootstrap"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: run `make e2e` as root on Debian", tool)
		}
	}
	if err := exec.Command("docker", "info").Run(); err != nil {
		t.Skip("no Docker daemon answers: start one (dockerd), or set DOCKER_HOST")
	}
	// One of its own for each test and run: what a test that was killed has left is in nobody's way.
	project := strings.ToLower(fmt.Sprintf("berth-%s-%d", strings.TrimPrefix(t.Name(), "Test"), os.Getpid()))
	s := &stack{project: project, dir: t.TempDir(), ports: map[string]string{}}
	for _, port := range []string{"TEMPORAL_PORT", "UI_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT", "SITE_PORT"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close()
		_, s.ports[port], err = net.SplitHostPort(listener.Addr().String())
		require.NoError(t, err)
	}
	secrets, demo := filepath.Join(s.dir, "secrets"), filepath.Join(s.dir, "demo")
	for _, pair := range os.Environ() { // what the machine's own environment sets of ours is nothing to this test
		name, _, _ := strings.Cut(pair, "=")
		if _, port := s.ports[name]; !port && !strings.HasPrefix(name, "BERTH_") && !strings.HasPrefix(name, "COMPOSE_") {
			s.env = append(s.env, pair)
		}
	}
	s.env = append(s.env, "COMPOSE_PROJECT_NAME="+s.project, "BERTH_IMAGE=berth-e2e/berth", "SECRETS="+secrets, "DEMO="+demo, "DOCKER_BUILDKIT=0",
		"COMPOSE_HTTP_TIMEOUT=300")
	for name, port := range s.ports {
		s.env = append(s.env, name+"="+port)
	}
	s.env = append(s.env, settings...)
	s.run(t, time.Minute, "../deploy/secrets")

	require.NoError(t, os.Mkdir(demo, 0o755))
	script, err := os.ReadFile("../deploy/demo/site.yaml")
	require.NoError(t, err)
	// An image whose phases do not wait long for a worker.
	const impatient = `
  - name: rocky9-impatient
    revision: 1
    os: {family: linux, version: "9", architecture: x86_64}
    sources: {xcat: {osimage: rocky9.4-x86_64-install-compute, poll: 1s}}
    control: {channel: ssh, user: root, credential: linux-root, host_key: first-handshake}
    limits: {queue: 15s}
xcat:`
	for i := range more {
		script = fmt.Appendf(script, "  - {name: %s}\n", moreVM(i))
	}
	require.NoError(t, os.WriteFile(s.script(), script, 0o644))
	s.change(t, "\nxcat:", impatient)
	batch, err := os.ReadFile("../deploy/demo/batch.yaml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(demo, "batch.yaml"), batch, 0o644))
	return s
}

// script is the file of the site's script.
func (s *stack) script() string { return filepath.Join(s.dir, "demo", "site.yaml") }

// change changes the site's script before the site starts.
func (s *stack) change(t *testing.T, what, into string) {
	t.Helper()
	text, err := os.ReadFile(s.script())
	require.NoError(t, err)
	require.Contains(t, string(text), what)
	require.NoError(t, os.WriteFile(s.script(), []byte(strings.Replace(string(text), what, into, 1)), 0o644))
}

func moreVM(i int) string { return fmt.Sprintf("more-%02d", i+1) }

// run runs a program of the machine's in the stack's environment and returns its standard output.
func (s *stack) run(t *testing.T, limit time.Duration, name string, arguments ...string) string {
	t.Helper()
	out, err := s.try(limit, name, arguments...)
	require.NoError(t, err)
	return out
}

func (s *stack) try(limit time.Duration, name string, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	command := exec.CommandContext(ctx, name, arguments...)
	command.Env = s.env
	var out, errOut bytes.Buffer
	command.Stdout, command.Stderr = &out, &errOut
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(arguments, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// compose runs docker-compose for the stack.
func (s *stack) compose(t *testing.T, limit time.Duration, arguments ...string) string {
	t.Helper()
	return s.run(t, limit, "docker-compose", s.arguments(arguments)...)
}

func (s *stack) arguments(more []string) []string {
	files := []string{"--project-directory", "..", "-f", "../docker-compose.yml"}
	return append(append(append(files, s.files...), "--profile", "demo"), more...)
}

// build builds the stand-ins and the project's image.
func (s *stack) build(t *testing.T) {
	t.Helper()
	command := exec.Command("images/build")
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	done := make(chan error, 1)
	require.NoError(t, command.Start())
	go func() { done <- command.Wait() }()
	select {
	case err := <-done:
		require.NoError(t, err, "images/build")
	case <-time.After(imagesLimit):
		command.Process.Kill()
		t.Fatalf("the stand-ins are not built after %s", imagesLimit)
	}
	// One at a time: the next one finds it built.
	s.run(t, imagesLimit, "flock", append([]string{filepath.Join(os.TempDir(), "berth-e2e-image.lock"), "docker-compose"}, s.arguments([]string{"build", "worker"})...)...)
}

// up starts services, all if none is named, and returns when the namespace is there and the workers are ready.
func (s *stack) up(t *testing.T, arguments ...string) {
	t.Helper()
	s.compose(t, upLimit, append([]string{"up", "-d"}, arguments...)...)
	s.ready(t)
}

// down ends everything; with volumes what was kept goes, too.
func (s *stack) down(volumes bool) error {
	if s.temporal != nil {
		s.temporal.Close()
		s.temporal = nil
	}
	arguments := []string{"down", "--remove-orphans", "-t", "40"}
	if volumes {
		arguments = append(arguments, "-v")
	}
	_, err := s.try(upLimit, "docker-compose", s.arguments(arguments)...)
	return err
}

// takeDown takes everything down when the test is over, and shows what it has logged if the test has failed.
func (s *stack) takeDown(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the stack's logs:\n%s", s.logs())
		}
		if err := s.down(true); err != nil {
			t.Errorf("the stack could not be taken down: %v", err)
		}
	})
}

// containers returns the ids of a service's containers that exist.
func (s *stack) containers(t *testing.T, service string) []string {
	t.Helper()
	return strings.Fields(s.run(t, time.Minute, "docker", "ps", "-aq", "--filter", "label=com.docker.compose.project="+s.project,
		"--filter", "label=com.docker.compose.service="+service))
}

// worker services, those of provisioner types first.
func workerServices() []string {
	return []string{"worker-vmware", "worker-xcat", "worker-libvirt", "worker"}
}

// ready waits until each worker that runs is healthy, and connects to Temporal.
func (s *stack) ready(t *testing.T) {
	t.Helper()
	s.eventually(t, upLimit, func() error {
		for _, service := range workerServices() {
			for _, id := range s.containers(t, service) {
				state := strings.TrimSpace(s.run(t, time.Minute, "docker", "inspect", "-f", "{{.State.Status}} {{.State.Health.Status}}", id))
				if state != "running healthy" {
					return fmt.Errorf("%s is %s", service, state)
				}
			}
		}
		return nil
	})
	if s.temporal == nil {
		settings := temporalclient.Settings{Address: "127.0.0.1:" + s.ports["TEMPORAL_PORT"], Namespace: "default", Patience: time.Minute}
		if s.tls {
			files := filepath.Join(s.dir, "certificates", "starter")
			settings.TLSCA, settings.TLSCert, settings.TLSKey = filepath.Join(files, "ca.pem"), filepath.Join(files, "cert.pem"), filepath.Join(files, "key.pem")
			settings.TLSServerName = "temporal"
		}
		c, err := temporalclient.Dial(t.Context(), temporalclient.Options{Settings: settings, Identity: temporalclient.Identity("e2e"), Logger: quiet{}})
		require.NoError(t, err)
		s.temporal = c
	}
}

// quiet is the SDK's logger that says nothing.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}

var _ log.Logger = quiet{}

// eventually waits until look finds no fault.
func (s *stack) eventually(t *testing.T, limit time.Duration, look func() error) {
	t.Helper()
	err := errors.New("nothing was looked at")
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(lookEvery) {
		if err = look(); err == nil {
			return
		}
	}
	t.Fatalf("after %s: %v\n%s", limit, err, s.logs())
}

// logs returns the end of every service's log.
func (s *stack) logs() string {
	text, err := s.try(time.Minute, "docker-compose", s.arguments([]string{"logs", "--no-color", "--tail", "25"})...)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = line[:min(len(line), 400)] // Temporal's have whole stacks in them
	}
	return strings.Join(lines, "\n")
}

// starter runs the command line of this machine against the stack.
func (s *stack) starter(arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "../bin/starter", arguments...)
	command.Env = append(slices.Clone(s.env), "BERTH_TEMPORAL_ADDRESS=127.0.0.1:"+s.ports["TEMPORAL_PORT"], "BERTH_CATALOG="+filepath.Join(s.dir, "catalog.yaml"),
		"BERTH_USER=e2e", "BERTH_TEMPORAL_PATIENCE=20s")
	var out, errOut bytes.Buffer
	command.Stdout, command.Stderr = &out, &errOut
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("starter %s: %w: %s", strings.Join(arguments, " "), err, errOut.String())
	}
	return out.String(), nil
}

// fetchCatalog brings the site's catalog to this machine, for its command line.
func (s *stack) fetchCatalog(t *testing.T) {
	t.Helper()
	s.run(t, time.Minute, "docker", "cp", s.containers(t, "site")[0]+":/var/lib/simsite/catalog.yaml", filepath.Join(s.dir, "catalog.yaml"))
}

// show returns how reservations stand, by name, as the command line lists them.
func (s *stack) show(t *testing.T, arguments ...string) map[string]loadlog.View {
	t.Helper()
	text, err := s.starter(append([]string{"list", "-o", "json", "--limit", "1000"}, arguments...)...)
	require.NoError(t, err)
	var views []loadlog.View
	require.NoError(t, json.Unmarshal([]byte(text), &views))
	found := map[string]loadlog.View{}
	for _, v := range views {
		found[v.Reservation] = v
	}
	return found
}

// site asks the simulated site how it stands.
func (s *stack) site(t *testing.T) simsite.Status {
	t.Helper()
	var status simsite.Status
	s.get(t, "http://127.0.0.1:"+s.ports["SITE_PORT"]+"/status", &status)
	return status
}

func (s *stack) get(t *testing.T, url string, into any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	answer, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode, "%s: %s", url, text)
	require.NoError(t, json.Unmarshal(text, into), "%s", url)
}

// open is a live reservation as the server lists it.
type open struct {
	name, computer, phase string
	run                   string
}

// list returns the live reservations by computer, and an error while Temporal does not answer.
func (s *stack) list(ctx context.Context) (map[string]open, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	found := map[string]open{}
	attributes := workflows.SearchAttributes()
	var page []byte
	for {
		answer, err := s.temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{PageSize: 500, NextPageToken: page,
			Query: fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus = 'Running'", workflows.ReservationName)})
		if err != nil {
			return nil, err
		}
		for _, info := range answer.GetExecutions() {
			o := open{run: info.GetExecution().GetRunId()}
			for name, to := range map[string]*string{attributes.Reservation.GetName(): &o.name, attributes.Computer.GetName(): &o.computer, attributes.Phase.GetName(): &o.phase} {
				if payload := info.GetSearchAttributes().GetIndexedFields()[name]; payload != nil {
					if err := converter.GetDefaultDataConverter().FromPayload(payload, to); err != nil {
						return nil, err
					}
				}
			}
			found[o.computer] = o
		}
		if page = answer.GetNextPageToken(); len(page) == 0 {
			return found, nil
		}
	}
}

// settled waits until every live reservation is ready.
func (s *stack) settled(t *testing.T, limit time.Duration) {
	t.Helper()
	s.eventually(t, limit, func() error {
		all, err := s.list(t.Context())
		if err != nil {
			return err
		}
		phases := map[string]int{}
		for _, o := range all {
			phases[o.phase]++
		}
		if len(all) == 0 || phases[string(reservation.PhaseReady)] != len(all) {
			return fmt.Errorf("of %d live reservations: %v", len(all), phases)
		}
		return nil
	})
}

// In TestTheStack: how many nodes one worker-xcat loads at once, and how many phases a second may start on its queue.
const (
	xcatSlots = 4
	xcatRate  = 2
)

// TestTheStack runs docker-compose.yml as a lab would.
func TestTheStack(t *testing.T) {
	s := newStack(t, 0, fmt.Sprintf("XCAT_SLOTS=%d", xcatSlots), fmt.Sprintf("XCAT_QUEUE_RATE=%d", xcatRate))
	s.change(t, "speed: 30", "speed: 60") // of nodes' minutes: four slots are few
	began := time.Now()
	lap := func(what string) {
		t.Logf("%-40s %4.0f s", what, time.Since(began).Seconds())
		began = time.Now()
	}
	s.build(t)
	lap("images")
	s.takeDown(t)
	s.up(t)
	s.fetchCatalog(t)
	batch := s.containers(t, "batch")
	require.Len(t, batch, 1)
	code := s.run(t, upLimit, "docker", "wait", batch[0])
	said, err := exec.Command("docker", "logs", batch[0]).CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "0\n", code, "the batch has said:\n%s", said)
	lap("up, with the batch reserved")

	t.Run("the batch is loaded as scripted", func(t *testing.T) {
		s.settled(t, loadsLimit)
		views := s.show(t, "--all")
		require.Equal(t, 64, len(views), "reservations") //nolint:testifylint // all of them would be too much to read
		site := s.site(t)
		for name, v := range views {
			outcome, attempts := reservation.OutcomeReady, 1
			switch v.Computer {
			case "vm-03", "node-02": // stays silent; loses its PXE twice
				attempts = 2
			case "vm-05": // another host key
				outcome = reservation.OutcomeFailed
			}
			require.Equal(t, outcome, v.Outcome, "%s: %s", name, v.Reason)
			require.Equal(t, attempts, v.Attempt.Number, name)
			if _, physical := site.Metal.Nodes[v.Computer]; !physical {
				require.Equal(t, attempts, site.Counts[v.Computer].Clones, name)
			}
		}
		require.Equal(t, xcatSlots, site.Metal.MostArmed, "one worker's slots")
		lap("batch of 64 loaded")
	})
	t.Run("a queue starts no more phases a second than its rate", func(t *testing.T) {
		starts := s.starts(t, "xcat")
		const window = 10 * xcatRate
		require.Greater(t, len(starts), window)
		for i := range len(starts) - window {
			// Less than a second of them may have been saved up.
			require.GreaterOrEqual(t, starts[i+window].Sub(starts[i]), 9*time.Second, "%d phases from %s on", window, starts[i])
		}
	})
	t.Run("what runs is shut in", func(t *testing.T) { s.shutIn(t) })
	s.weigh(t)
	t.Run("every panel shows data", func(t *testing.T) { s.panels(t) })
	t.Run("no secret is told", func(t *testing.T) { s.tellsNoSecret(t) })
	lap("looked at")
	t.Run("a second worker-xcat doubles what xCAT loads and nothing else", func(t *testing.T) {
		before := s.site(t)
		s.release(t, func(o open) bool { return true })
		s.compose(t, upLimit, "up", "-d", "--no-recreate", "--scale", "worker-xcat=2", "--scale", "batch=0")
		s.ready(t)
		s.reserve(t, "again", func(computer string) bool {
			return strings.HasPrefix(computer, "node-") || computer <= "vm-12" && strings.HasPrefix(computer, "vm-")
		})
		s.settled(t, loadsLimit)
		after := s.site(t)
		t.Logf("nodes armed at once: %d with one worker-xcat, %d with two; clones at once: %d and %d", before.Metal.MostArmed, after.Metal.MostArmed,
			before.MostClones, after.MostClones)
		require.Equal(t, 2*xcatSlots, after.Metal.MostArmed, "two workers' slots")
		require.LessOrEqual(t, after.MostClones, 16, "the vCenter's gate is as wide as before")
		lap("scaled, loaded again")
	})
	t.Run("a type without a worker fails clearly while the others go on", func(t *testing.T) {
		s.release(t, func(o open) bool { return o.computer == "node-01" || o.computer == "vm-01" })
		s.compose(t, upLimit, "up", "-d", "--no-recreate", "--scale", "worker-xcat=0", "worker-xcat")
		_, err := s.starter("reserve", "rocky9-impatient", "node-01", "--name", "nobody")
		require.NoError(t, err)
		_, err = s.starter("reserve", "debian12", "vm-01", "--name", "somebody", "--wait")
		require.NoError(t, err)
		s.eventually(t, loadsLimit, func() error {
			v := s.show(t, "--all", "--computer", "node-01")["nobody"]
			if v.Outcome == "" {
				return fmt.Errorf("its outcome is not there yet: %s", v.Phase)
			}
			require.Equal(t, reservation.OutcomeNoWorker, v.Outcome)
			require.Contains(t, v.Reason, "no worker serves provisioner xcat")
			return nil
		})
		lap("a type without a worker")
	})
	t.Run("down and up keep the reservations, and so do backup and restore", func(t *testing.T) { s.keeps(t, lap) })
}

// starts returns when the phases of live reservations started on the queues of a provisioner type, in order.
func (s *stack) starts(t *testing.T, provisioner string) []time.Time {
	t.Helper()
	all, err := s.list(t.Context())
	require.NoError(t, err)
	var starts []time.Time
	for _, o := range all {
		ours := map[int64]bool{} // events that put a phase on a queue
		history := s.temporal.GetWorkflowHistory(t.Context(), "computer/"+o.computer, o.run, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
		for history.HasNext() {
			event, err := history.Next()
			require.NoError(t, err)
			if scheduled := event.GetActivityTaskScheduledEventAttributes(); scheduled != nil {
				ours[event.GetEventId()] = strings.Contains(scheduled.GetTaskQueue().GetName(), provisioner)
			}
			if started := event.GetActivityTaskStartedEventAttributes(); started != nil && ours[started.GetScheduledEventId()] {
				starts = append(starts, event.GetEventTime().AsTime())
			}
		}
	}
	slices.SortFunc(starts, time.Time.Compare)
	return starts
}

// release releases reservations and waits until they are over.
func (s *stack) release(t *testing.T, which func(open) bool) {
	t.Helper()
	all, err := s.list(t.Context())
	require.NoError(t, err)
	var names []string
	for _, o := range all {
		if which(o) {
			names = append(names, o.name)
		}
	}
	require.NotEmpty(t, names)
	_, err = s.starter(append([]string{"release"}, names...)...)
	require.NoError(t, err)
	s.eventually(t, loadsLimit, func() error {
		all, err := s.list(t.Context())
		if err != nil {
			return err
		}
		for _, o := range all {
			if slices.Contains(names, o.name) {
				return fmt.Errorf("%s is in phase %s", o.name, o.phase)
			}
		}
		return nil
	})
}

// images is what the batch of the demonstration loads onto each computer.
func (s *stack) images(t *testing.T) map[string]string {
	t.Helper()
	images := map[string]string{}
	for _, v := range s.show(t, "--all", "--user", "demo") {
		images[v.Computer], _, _ = strings.Cut(v.Image, "-r")
		if i := strings.LastIndex(v.Image, "-r"); i > 0 {
			images[v.Computer] = v.Image[:i]
		}
	}
	require.Equal(t, 64, len(images)) //nolint:testifylint // likewise
	return images
}

// reserve reserves computers with the images of the demonstration.
func (s *stack) reserve(t *testing.T, prefix string, which func(computer string) bool) {
	t.Helper()
	images := s.images(t)
	computers := slices.DeleteFunc(slices.Sorted(maps.Keys(images)), func(computer string) bool { return !which(computer) })
	require.NoError(t, s.reserveBatch(prefix, images, computers))
}

func (s *stack) reserveBatch(prefix string, images map[string]string, computers []string) error {
	var batch strings.Builder
	for _, computer := range computers {
		fmt.Fprintf(&batch, "- {name: %s-%s, image: %s, computer: %s, for: 4h}\n", prefix, computer, images[computer], computer)
	}
	file := filepath.Join(s.dir, "batch.yaml")
	if err := os.WriteFile(file, []byte(batch.String()), 0o644); err != nil {
		return err
	}
	_, err := s.starter("reserve", "-f", file)
	return err
}

// shutIn looks at the containers of ours: no root, nothing to write to, nothing to run but the programs.
func (s *stack) shutIn(t *testing.T) {
	for _, service := range workerServices() {
		for _, id := range s.containers(t, service) {
			facts := s.run(t, time.Minute, "docker", "inspect", "-f", "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}", id)
			require.Equal(t, "65532:65532 true [ALL] [no-new-privileges:true]\n", facts, service)
			_, err := s.try(time.Minute, "docker", "exec", id, "sh", "-c", "true")
			require.ErrorContains(t, err, "executable file not found", service)
		}
	}
	holds := s.run(t, time.Minute, "docker", "export", "-o", filepath.Join(s.dir, "worker.tar"), s.containers(t, "worker")[0])
	require.Empty(t, holds)
	names := strings.Fields(s.run(t, time.Minute, "tar", "-tf", filepath.Join(s.dir, "worker.tar")))
	var programs []string
	for _, name := range names {
		if !strings.HasSuffix(name, "/") && !slices.ContainsFunc([]string{"dev/", "etc/", "proc/", "sys/", ".dockerenv", "run/"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			programs = append(programs, name)
		}
	}
	slices.Sort(programs)
	require.Equal(t, []string{"simsite", "starter", "worker"}, programs)
	// The command line through Compose, as docs/operations.md has it.
	listed := s.compose(t, time.Minute, "run", "--rm", "-T", "starter", "list", "-o", "json")
	require.True(t, strings.Contains(listed, `"demo-vm-01"`), "the command line lists it")
}

// weigh says what a reservation takes in the database, for the sizing in docs/operations.md.
func (s *stack) weigh(t *testing.T) {
	t.Helper()
	const query = `select count(distinct tree_id), sum(length(data)), pg_total_relation_size('history_node'),
		(select sum(pg_database_size(datname)) from pg_database where datname like 'temporal%') from history_node`
	out := s.run(t, time.Minute, "docker", "exec", s.containers(t, "postgresql")[0], "psql", "-U", "temporal", "-d", "temporal", "-At", "-F", " ", "-c", query)
	var runs, bytes, table, all int64
	_, err := fmt.Sscan(out, &runs, &bytes, &table, &all)
	require.NoError(t, err, out)
	t.Logf("PostgreSQL: %d histories of %.1f KiB each, %.1f KiB with their table and its indexes; all databases %.0f MiB", runs,
		float64(bytes)/float64(runs)/1024, float64(table)/float64(runs)/1024, float64(all)/(1<<20))
}

// panels asks what each panel of the provisioned dashboards asks, through what is mounted into Grafana.
func (s *stack) panels(t *testing.T) {
	type panel struct {
		Panel, Query, Error string
		Series              int
	}
	s.eventually(t, 3*time.Minute, func() error { // Prometheus asks the workers every 15 s
		var panels []panel
		s.get(t, "http://127.0.0.1:"+s.ports["GRAFANA_PORT"]+"/panels", &panels)
		if len(panels) < 10 {
			return fmt.Errorf("there are %d queries", len(panels))
		}
		var empty []string
		for _, p := range panels {
			if p.Series == 0 {
				empty = append(empty, fmt.Sprintf("%s: %s %s", p.Panel, p.Query, p.Error))
			}
		}
		if len(empty) > 0 {
			return fmt.Errorf("%d of %d queries have no data:\n%s", len(empty), len(panels), strings.Join(empty, "\n"))
		}
		t.Logf("%d queries of the dashboards have data", len(panels))
		return nil
	})
}

// keeps takes the stack down and up, and restores it from a backup into an empty volume.
func (s *stack) keeps(t *testing.T, lap func(string)) {
	s.compose(t, upLimit, "up", "-d", "--no-recreate", "worker-xcat")
	s.settled(t, loadsLimit)
	before := s.show(t)
	require.NotEmpty(t, before)
	same := func(what string) {
		t.Helper()
		for name, was := range before {
			is, ok := s.show(t)[name]
			require.True(t, ok, "%s: reservation %s is gone", what, name)
			require.Equal(t, was.RunID, is.RunID, "%s: %s", what, name)
			require.Equal(t, was.Outcome, is.Outcome, "%s: %s", what, name)
			break // one is looked at closely
		}
		after := s.show(t)
		require.Equal(t, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)), what)
	}
	backup := filepath.Join(s.dir, "backup")
	s.run(t, 2*time.Minute, "../deploy/backup", backup)
	for _, database := range []string{"temporal", "temporal_visibility"} {
		require.FileExists(t, filepath.Join(backup, database+".dump"))
	}
	require.NoError(t, s.down(false))
	s.up(t, "--scale", "batch=0")
	same("down and up")
	lap("down and up")

	require.NoError(t, s.down(false))
	s.run(t, time.Minute, "docker", "volume", "rm", s.project+"_postgresql")
	s.run(t, 3*time.Minute, "../deploy/restore", backup)
	s.up(t, "--scale", "batch=0")
	same("restore into an empty volume")
	_, err := s.starter("release", slices.Sorted(maps.Keys(before))[0])
	require.NoError(t, err, "what was restored can be worked with")
	lap("backup, restore, up")
}

// TestEverySettingOfTheStackIsExplained holds .env.example against what the Compose files read.
func TestEverySettingOfTheStackIsExplained(t *testing.T) {
	explained, read := map[string]bool{}, map[string]bool{}
	text, err := os.ReadFile("../.env.example")
	require.NoError(t, err)
	for _, found := range regexp.MustCompile(`(?m)^#?([A-Z_]+)=(.*)$`).FindAllStringSubmatch(string(text), -1) {
		explained[found[1]] = true
	}
	for _, file := range []string{"../docker-compose.yml", "../docker-compose.tls.yml"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, found := range regexp.MustCompile(`[^$]\$\{([A-Z_]+):-`).FindAllStringSubmatch(string(text), -1) {
			read[found[1]] = true
		}
	}
	require.Greater(t, len(read), 20)
	require.Equal(t, slices.Sorted(maps.Keys(read)), slices.Sorted(maps.Keys(explained)))
}
