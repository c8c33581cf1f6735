package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"

	"berth/activities"
	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/logging"
	"berth/internal/scripted"
	"berth/internal/temporalclient"
	"berth/osmodules"
	"berth/provisioners"
	"berth/reservation"
	"berth/workflows"
)

// stage is the command line before a real Temporal server and, once serve was called, a real worker whose modules do
// what a script says for each computer.
type stage struct {
	server *devserver.Server
	client client.Client
	fleet  *fleet
	env    map[string]string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	attributes := map[string]string{}
	for _, key := range workflows.SearchAttributes().Keys() {
		attributes[key.GetName()] = key.GetValueType().String()
	}
	return newStageWith(t, attributes)
}

// newBareStage is newStage on a server that no worker of Berth has ever seen.
func newBareStage(t *testing.T) *stage {
	t.Helper()
	return newStageWith(t, nil)
}

func newStageWith(t *testing.T, attributes map[string]string) *stage {
	t.Helper()
	s := &stage{
		server: devservertest.Start(t, devserver.Options{SearchAttributes: attributes}),
		fleet:  &fleet{provisioners: map[string]*scripted.Provisioner{}, modules: map[string]*scripted.OSModule{}},
		env:    map[string]string{EnvCatalog: "testdata/catalog.yaml", "USER": "ana"},
	}
	s.client = s.dial(t)
	return s
}

func (s *stage) dial(t *testing.T) client.Client {
	t.Helper()
	c, err := client.Dial(client.Options{HostPort: s.server.Address, Namespace: s.server.Namespace, Logger: logging.Temporal(zerolog.Nop())})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// serve starts a worker and returns what stops it.
func (s *stage) serve(t *testing.T) func() {
	t.Helper()
	identity := "worker-1"
	acts := activities.New(activities.Options{
		Client: s.client, Identity: identity,
		Provisioners: provisioners.NewRegistry(map[string]provisioners.Provisioner{"scripted": s.fleet}),
		OSModules:    osmodules.NewRegistry(map[reservation.OSFamily]osmodules.Module{reservation.Linux: guests{s.fleet}}),
	})
	w := worker.New(s.client, activities.WorkflowQueue, worker.Options{Identity: identity, MaxHeartbeatThrottleInterval: 50 * time.Millisecond})
	workflows.Register(w)
	acts.RegisterOnWorkflowQueue(w)
	require.NoError(t, w.Start())
	site := worker.New(s.client, activities.Queue("scripted", "lab"), worker.Options{Identity: identity, MaxHeartbeatThrottleInterval: 50 * time.Millisecond})
	acts.Register(site)
	require.NoError(t, site.Start())
	var once sync.Once
	stop := func() {
		once.Do(func() {
			site.Stop()
			w.Stop()
		})
	}
	t.Cleanup(stop)
	return stop
}

// answer is what a command left.
type answer struct {
	code   int
	stdout string
	stderr string
}

// run runs a command to its end.
func (s *stage) run(t *testing.T, args ...string) answer {
	t.Helper()
	return s.runWith(t, t.Context(), "", args...)
}

func (s *stage) runWith(t *testing.T, ctx context.Context, stdin string, args ...string) answer {
	t.Helper()
	var stdout, stderr safeBuffer
	code := s.tools(strings.NewReader(stdin), &stdout, &stderr).Run(ctx, args)
	a := answer{code: code, stdout: stdout.String(), stderr: stderr.String()}
	t.Logf("$ starter %s\n%s%s[exit code %d]", strings.Join(args, " "), a.stdout, a.stderr, code)
	return a
}

func (s *stage) tools(stdin io.Reader, stdout, stderr io.Writer) Tools {
	return Tools{
		Stdin: stdin, Stdout: stdout, Stderr: stderr, Now: time.Now,
		Env:        func(name string) string { return s.env[name] },
		Validators: map[string]provisioners.Validator{"scripted": anything{}},
		Temporal:   temporalclient.Settings{Address: s.server.Address, Namespace: s.server.Namespace, Patience: 10 * time.Second},
	}
}

// until runs a command again and again until its answer is as wanted: visibility and loads take their time.
func (s *stage) until(t *testing.T, wanted func(answer) bool, args ...string) answer {
	t.Helper()
	var last answer
	require.Eventually(t, func() bool {
		var stdout, stderr safeBuffer
		code := s.tools(strings.NewReader(""), &stdout, &stderr).Run(t.Context(), args)
		last = answer{code: code, stdout: stdout.String(), stderr: stderr.String()}
		return wanted(last)
	}, 10*time.Second, 50*time.Millisecond, "starter %s", strings.Join(args, " "))
	t.Logf("$ starter %s\n%s%s[exit code %d]", strings.Join(args, " "), last.stdout, last.stderr, last.code)
	return last
}

// read decodes a command's JSON.
func read[T any](t *testing.T, a answer) T {
	t.Helper()
	var value T
	require.NoError(t, json.Unmarshal([]byte(a.stdout), &value), a.stdout)
	return value
}

// fleet is a provisioner that does for each computer what its script says.
type fleet struct {
	provisioners map[string]*scripted.Provisioner // filled before a worker serves
	modules      map[string]*scripted.OSModule
}

func (f *fleet) of(r provisioners.Request) *scripted.Provisioner {
	if p := f.provisioners[r.Reservation.Computer.Name]; p != nil {
		return p
	}
	return &scripted.Provisioner{}
}

func (f *fleet) Load(ctx context.Context, r provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	return f.of(r).Load(ctx, r, report)
}

func (f *fleet) Abort(ctx context.Context, r provisioners.Request, report reservation.Reporter) error {
	return f.of(r).Abort(ctx, r, report)
}

func (f *fleet) Unload(ctx context.Context, r provisioners.Request, report reservation.Reporter) error {
	return f.of(r).Unload(ctx, r, report)
}

type guests struct{ fleet *fleet }

func (g guests) of(r osmodules.Request) *scripted.OSModule {
	if m := g.fleet.modules[r.Reservation.Computer.Name]; m != nil {
		return m
	}
	return &scripted.OSModule{HostKey: "SHA256:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg", PublicAddress: "198.51.100.7",
		Steps: []reservation.Step{{Name: "management firewall", Result: reservation.StepDone, Detail: "nftables"},
			{Name: "time", Result: reservation.StepWarned, Detail: "2 s off"}}}
}

func (g guests) WaitForResponse(ctx context.Context, r osmodules.Request, report reservation.Reporter) (osmodules.Answer, error) {
	return g.of(r).WaitForResponse(ctx, r, report)
}

func (g guests) PostLoad(ctx context.Context, r osmodules.Request, a osmodules.Answer, report reservation.Reporter) (osmodules.Report, error) {
	return g.of(r).PostLoad(ctx, r, a, report)
}

// anything is a validator that has no objections.
type anything struct{}

func (anything) ValidateSource(map[string]string) error    { return nil }
func (anything) ValidatePlacement(map[string]string) error { return nil }

// safeBuffer is a buffer that is read while a command writes it.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
