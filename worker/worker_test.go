package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/simulator"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"golang.org/x/crypto/ssh"

	"berth/activities"
	"berth/internal/catalog"
	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/hold"
	"berth/internal/logging"
	"berth/internal/metrics"
	"berth/internal/temporalclient"
	"berth/internal/tracing"
	"berth/reservation"
	"berth/workflows"
)

// envAsWorker makes the test binary be the worker, so that tests can send it signals.
const envAsWorker = "BERTH_TEST_AS_WORKER"

func TestMain(m *testing.M) {
	switch os.Getenv(envAsWorker) {
	case "worker":
		os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
	case "one that does not come to its end":
		ctx, _ := interruptible(os.Stderr)
		fmt.Fprintln(os.Stderr, "running")
		<-ctx.Done()
		fmt.Fprintln(os.Stderr, "stopping")
		time.Sleep(time.Minute)
	}
	// What the machine's own environment says about a worker is nothing to these tests.
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		ours := strings.HasPrefix(name, "BERTH_") && name != devserver.EnvCLI
		if ours || strings.HasPrefix(name, "TEMPORAL_") || strings.HasPrefix(name, "OTEL_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("TEMPORAL_CONFIG_FILE", os.DevNull)
	os.Exit(m.Run())
}

const (
	vcenterUser     = "berth@vsphere.local"
	vcenterPassword = "correct horse"
)

// vcenter starts a vCenter simulator that wants the password, and returns its URL and its certificate's thumbprint.
func vcenter(t *testing.T) (address, thumbprint string) {
	t.Helper()
	model := simulator.VPX()
	require.NoError(t, model.Create())
	model.Service.TLS = new(tls.Config)
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(vcenterUser, vcenterPassword)}
	server := model.Service.NewServer()
	t.Cleanup(func() {
		server.Close()
		model.Remove()
	})
	sum := sha256.Sum256(server.TLS.Certificates[0].Certificate[0])
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	return "https://" + server.URL.Host + "/sdk", strings.Join(pairs, ":")
}

// site writes a catalog with the secrets' files into a folder, and returns the catalog's path.
func writeSite(t *testing.T, address, thumbprint string) string {
	t.Helper()
	folder := t.TempDir()
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(key, "")
	require.NoError(t, err)
	write := func(name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600))
	}
	write("linux-root", string(pem.EncodeToMemory(block)))
	write("vcenter", vcenterPassword+"\n")
	write("catalog.yaml", fmt.Sprintf(`secrets:
  vcenter-lab: {file: vcenter}
  linux-root: {file: linux-root}
sites:
  - name: lab
    provisioner: vmware
    vmware: {url: %s, user: %s, credential: vcenter-lab, thumbprint: "%s"}
images:
  - name: debian12
    revision: 3
    os: {family: linux, version: "12"}
    sources: {vmware: {template: not-there, snapshot: r3}}
    control: {channel: ssh, user: root, credential: linux-root}
computers:
  - {name: vm-01, site: lab, address: "127.0.0.1:22001"}
`, address, vcenterUser, thumbprint))
	return filepath.Join(folder, "catalog.yaml")
}

// settled returns a configuration for a test: free port, quick patience.
func settled(t *testing.T, temporalAddress, catalogPath string) config {
	t.Helper()
	c, err := readConfig()
	require.NoError(t, err)
	c.Address, c.Catalog, c.Listen, c.Patience, c.StopTimeout = temporalAddress, catalogPath, "127.0.0.1:0", 300*time.Millisecond, 5*time.Second
	return c
}

// log is a log that is read while it is written.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// http is where the worker serves HTTP, once it has said so.
func (l *log) http(t *testing.T) string {
	t.Helper()
	var address string
	require.Eventually(t, func() bool {
		found := regexp.MustCompile(`"address":"([^"]+)"[^\n]*/healthz`).FindStringSubmatch(l.String())
		if found != nil {
			address = "http://" + found[1]
		}
		return found != nil
	}, 10*time.Second, 5*time.Millisecond, "the worker logs where it serves HTTP")
	return address
}

func page(t assert.TestingT, address string) (int, string) {
	response, err := http.Get(address)
	if !assert.NoError(t, err) {
		return 0, ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	assert.NoError(t, err)
	return response.StatusCode, string(body)
}

func becomes(t *testing.T, address string, status int) {
	t.Helper()
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		got, body := page(t, address)
		assert.Equal(t, status, got, body)
	}, 20*time.Second, 20*time.Millisecond)
}

func TestEveryFaultOfTheEnvironmentIsInOneList(t *testing.T) {
	for variable, value := range map[string]string{
		"BERTH_PROVISIONERS": "vmwar", "BERTH_WORKFLOWS": "perhaps", "BERTH_LOG_LEVEL": "loud", "BERTH_LOG_FORMAT": "xml", "BERTH_SLOTS": "many", "BERTH_QUEUE_RATE": "fast",
		"BERTH_WORKFLOW_SLOTS": "1", "BERTH_STOP_TIMEOUT": "25", "BERTH_LISTEN": "nowhere", "BERTH_TEMPORAL_ADDRESS": "localhost", "BERTH_TEMPORAL_TLS_CERT": "c.pem",
		"BERTH_CATALOG": "",
	} {
		t.Setenv(variable, value)
	}
	var stdout, stderr bytes.Buffer
	require.Equal(t, exitConfiguration, command(nil, &stdout, &stderr))
	require.Empty(t, stdout.String())
	for _, line := range []string{
		"worker: 12 faults, nothing was started:",
		`BERTH_PROVISIONERS is "vmwar": this worker has modules for: vmware, xcat, libvirt; did you mean vmware?`,
		`BERTH_WORKFLOWS is "perhaps": write true or false`,
		`BERTH_LOG_LEVEL is "loud": write one of debug, info, warn, error`,
		`BERTH_LOG_FORMAT is "xml": write json or console`,
		`BERTH_SLOTS is "many": write a whole number`,
		`BERTH_QUEUE_RATE is "fast": write a number, such as 20 or 0.5`,
		`BERTH_WORKFLOW_SLOTS is "1": give 2 or more`,
		`BERTH_STOP_TIMEOUT is "25": write a number with its unit`,
		`BERTH_LISTEN is "nowhere": write host:port`,
		`BERTH_TEMPORAL_ADDRESS is "localhost": write host:port`,
		`BERTH_TEMPORAL_TLS_CERT and BERTH_TEMPORAL_TLS_KEY is "c.pem": set both or none`,
		`BERTH_CATALOG is "": give the catalog's file`,
	} {
		require.Contains(t, stderr.String(), line)
	}
	require.Equal(t, 13, strings.Count(stderr.String(), "\n"), "each fault once:\n"+stderr.String())
}

func TestTheEnvironmentIsReadWithItsDefaults(t *testing.T) {
	t.Setenv("BERTH_SITES", " lab, other,,lab ")
	t.Setenv("BERTH_LISTEN", "")
	t.Setenv("BERTH_SLOTS", "7")
	c, err := readConfig()
	require.NoError(t, err)
	require.Equal(t, config{
		Provisioners: []string{"vmware"}, Workflows: true, Catalog: "catalog.yaml", Sites: []string{"lab", "other"},
		Settings: temporalclient.Settings{Address: "127.0.0.1:7233", Namespace: "default", Patience: 30 * time.Second},
		Tracing:  tracing.Settings{Protocol: tracing.ProtocolHTTP, Exporter: "otlp"},
		LogLevel: "info", LogFormat: "json", Listen: "", Slots: 7, WorkflowSlots: 1000, StopTimeout: 25 * time.Second,
	}, c)
}

func TestAWorkerWithNothingToServeIsAFault(t *testing.T) {
	t.Setenv("BERTH_PROVISIONERS", "")
	_, err := readConfig()
	require.NoError(t, err, "workflows alone are something")
	t.Setenv("BERTH_WORKFLOWS", "false")
	_, err = readConfig()
	require.ErrorContains(t, err, "there is nothing to serve")
	t.Setenv("BERTH_WORKFLOWS", "true")
	t.Setenv("BERTH_SITES", "lab")
	_, err = readConfig()
	require.ErrorContains(t, err, "sites are served by a provisioner")
}

func TestHelpAndTheDocumentationListEveryVariable(t *testing.T) {
	var stdout, stderr bytes.Buffer
	require.Equal(t, exitOK, command([]string{"--help"}, &stdout, &stderr))
	require.Empty(t, stderr.String())
	documentation, err := os.ReadFile("../docs/configuration.md")
	require.NoError(t, err)
	for _, name := range []string{"BERTH_PROVISIONERS", "BERTH_TEMPORAL_TLS_CA", "BERTH_STOP_TIMEOUT"} {
		require.Contains(t, stdout.String(), name)
	}
	listed := regexp.MustCompile(`(?m)^  (BERTH_\w+) +(\S+) +(\S.*)$`).FindAllStringSubmatch(stdout.String(), -1)
	require.GreaterOrEqual(t, len(listed), 20)
	for _, line := range listed {
		require.Contains(t, string(documentation), "`"+line[1]+"`")
		if line[2] != "(empty)" {
			require.Regexp(t, "`"+line[1]+"` \\| `"+regexp.QuoteMeta(line[2])+"`", string(documentation), "the default")
		}
	}
}

func TestAnArgumentIsRefused(t *testing.T) {
	var stdout, stderr bytes.Buffer
	require.Equal(t, exitConfiguration, command([]string{"--catalog", "x"}, &stdout, &stderr))
	require.Contains(t, stderr.String(), `no argument "--catalog"`)
}

func TestAMistypedVariableIsWarnedOf(t *testing.T) {
	require.Equal(t, []string{"BERTH_PROVISONERS is set and means nothing; did you mean BERTH_PROVISIONERS?"},
		mistyped([]string{"BERTH_PROVISONERS=vmware", "BERTH_SLOTS=1", "BERTH_SECRET_VCENTER_LAB=hunter2", "BERTH_TEMPORAL_CLI=x", "BERTH_USER=ann", "PATH=/bin"}))
}

func TestQueuesFollowTheCatalog(t *testing.T) {
	sites := func(names ...string) []catalog.Site {
		var all []catalog.Site
		for _, name := range names {
			all = append(all, catalog.Site{Name: name, Provisioner: "vmware", VMware: &catalog.VMware{}})
		}
		return all
	}
	at := func(provisioner, site string) reservation.Computer {
		return reservation.Computer{Name: "c", Provisioner: provisioner, Site: site}
	}
	for name, test := range map[string]struct {
		catalog  catalog.Catalog
		types    []string
		selected []string
		queues   []string
		fault    string
	}{
		"one site":                            {catalog.Catalog{Sites: sites("lab")}, []string{"vmware"}, nil, []string{"berth-vmware-lab", "berth-vmware"}, ""},
		"two sites":                           {catalog.Catalog{Sites: sites("lab", "east")}, []string{"vmware"}, nil, []string{"berth-vmware-lab", "berth-vmware-east"}, ""},
		"one of two sites":                    {catalog.Catalog{Sites: sites("lab", "east")}, []string{"vmware"}, []string{"east"}, []string{"berth-vmware-east"}, ""},
		"a type without sites":                {catalog.Catalog{Computers: []reservation.Computer{at("xcat", "")}}, []string{"xcat"}, nil, []string{"berth-xcat"}, ""},
		"a type that is not there":            {catalog.Catalog{Sites: sites("lab")}, []string{"xcat"}, nil, nil, "there is nothing to serve"},
		"a site that is not there":            {catalog.Catalog{Sites: sites("lab")}, []string{"vmware"}, []string{"lap"}, nil, "did you mean lab?"},
		"a site like no other":                {catalog.Catalog{Sites: sites("lab")}, []string{"vmware"}, []string{"elsewhere"}, nil, "the catalog has the sites lab"},
		"a site of a type that is not served": {catalog.Catalog{Sites: sites("lab")}, []string{"xcat"}, []string{"lab"}, nil, "its provisioner is vmware"},
	} {
		t.Run(name, func(t *testing.T) {
			served, err := choose(&test.catalog, test.types, test.selected)
			if test.fault != "" {
				require.ErrorContains(t, err, test.fault)
				return
			}
			require.NoError(t, err)
			var queues []string
			for _, s := range served {
				queues = append(queues, s.queues...)
			}
			require.Equal(t, test.queues, queues)
		})
	}
}

// Everything that a start checks has a fault here, and all of them come in one list.
func TestTheStartListsEveryFaultAtOnce(t *testing.T) {
	address, thumbprint := vcenter(t)
	path := writeSite(t, address, thumbprint)
	folder := filepath.Dir(path)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "vcenter"), []byte("wrong horse"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "linux-root"), []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nno key\n"), 0o600))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()

	c := settled(t, "127.0.0.1:1", path)
	c.Listen = taken.Addr().String()
	c.Scripts = filepath.Join(folder, "no-scripts")
	var stderr log
	err = run(t.Context(), c, &stderr)
	var start *startError
	require.ErrorAs(t, err, &start)
	require.Equal(t, exitConfiguration, start.code)
	require.Len(t, start.faults, 5, err.Error())
	for _, words := range []string{
		"5 faults, nothing was started:",
		"BERTH_LISTEN is \"" + c.Listen + "\"", "address already in use",
		"linux-root",
		"BERTH_SCRIPTS: ", "no-scripts",
		"provisioner vmware: the vCenter refuses the login",
		"Temporal does not answer at 127.0.0.1:1",
	} {
		require.ErrorContains(t, err, words)
	}
	for _, secret := range []string{"wrong horse", "no key\n"} {
		require.NotContains(t, err.Error()+stderr.String(), secret)
	}
}

func TestTheCatalogsFaultsAreListedBesideTemporals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.yaml")
	require.NoError(t, os.WriteFile(path, []byte("sites:\n- name: lab\n  provisioner: vmware\ncomputers:\n- name: vm-01\n  site: lap\n  address: 10.0.0.1\n"), 0o600))
	var stderr log
	err := run(t.Context(), settled(t, "127.0.0.1:1", path), &stderr)
	var start *startError
	require.ErrorAs(t, err, &start)
	require.Len(t, start.faults, 3, err.Error())
	require.ErrorContains(t, err, path+":2: sites[0].vmware")
	require.ErrorContains(t, err, path+`:6: computers[0].site is "lap"`)
	require.ErrorContains(t, err, "Temporal does not answer")
}

func TestAFaultThatMayPassHasAnotherExitCode(t *testing.T) {
	address, thumbprint := vcenter(t)
	c := settled(t, "127.0.0.1:1", writeSite(t, address, thumbprint))
	var start *startError
	require.ErrorAs(t, run(t.Context(), c, &log{}), &start)
	require.Len(t, start.faults, 1, start.Error())
	require.Equal(t, exitFault, start.code)
}

func TestAWrongSecretIsFoundAtTheStart(t *testing.T) {
	address, thumbprint := vcenter(t)
	path := writeSite(t, address, thumbprint)
	require.NoError(t, os.Remove(filepath.Join(filepath.Dir(path), "linux-root")))
	c := settled(t, "127.0.0.1:1", path)
	err := run(t.Context(), c, &log{})
	require.ErrorContains(t, err, "secret linux-root (file "+filepath.Join(filepath.Dir(path), "linux-root")+"): there is no such file")
}

func TestFlattenKeepsAnErrorWithWordsOfItsOwnWhole(t *testing.T) {
	a, b := errors.New("a"), errors.New("b")
	require.Len(t, flatten(fmt.Errorf("%w: %w", a, b)), 1)
	require.Len(t, flatten(errors.Join(a, errors.Join(b))), 2)
	require.Empty(t, flatten(nil))
}

func dialled(t *testing.T, server *devserver.Server) client.Client {
	t.Helper()
	c, err := temporalclient.Dial(t.Context(), temporalclient.Options{
		Settings: temporalclient.Settings{Address: server.Address, Namespace: server.Namespace, Patience: 10 * time.Second},
		Identity: "test", Logger: logging.Temporal(zerolog.Nop()),
	})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// The whole worker: a real Temporal server, a real vSphere API, a reservation that goes through workflow, queue, activity
// and module, the loss of the server, and the stop.
func TestTheWorkerServesAndOutlivesALossOfTemporal(t *testing.T) {
	server := devservertest.ForTest(t)
	address, thumbprint := vcenter(t)
	c := settled(t, server.Address, writeSite(t, address, thumbprint))
	c.Patience = 10 * time.Second
	var stderr log
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, c, &stderr) }()
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Log(stderr.String())
		}
	})
	http := stderr.http(t)
	becomes(t, http+"/readyz", 200)
	status, _ := page(t, http+"/healthz")
	require.Equal(t, 200, status)
	t.Setenv("BERTH_LISTEN", strings.TrimPrefix(http, "http://"))
	var said bytes.Buffer
	require.Equal(t, exitOK, command([]string{"health"}, io.Discard, &said), said.String())

	temporalClient := dialled(t, server)
	for queue, kind := range map[string]enumspb.TaskQueueType{
		activities.WorkflowQueue: enumspb.TASK_QUEUE_TYPE_WORKFLOW, "berth-vmware": enumspb.TASK_QUEUE_TYPE_ACTIVITY, "berth-vmware-lab": enumspb.TASK_QUEUE_TYPE_ACTIVITY,
	} {
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			described, err := temporalClient.DescribeTaskQueue(ctx, queue, kind)
			require.NoError(t, err)
			require.NotEmpty(t, described.GetPollers(), queue)
		}, 10*time.Second, 20*time.Millisecond)
	}

	// The image's template is not in the vCenter: a fail that comes from vSphere itself, through everything in between.
	read, err := catalog.Load(c.Catalog, catalog.Options{Validators: validators()})
	require.NoError(t, err)
	r, err := read.Reservation("r1", "ann", "vm-01", "debian12", time.Now().Add(time.Hour))
	require.NoError(t, err)
	started, err := hold.Start(ctx, temporalClient, r)
	require.NoError(t, err)
	err = started.Get(ctx, nil)
	var failed *temporal.ApplicationError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, workflows.TypeFailed, failed.Type())
	require.ErrorContains(t, err, "not-there")

	page(t, http+"/metrics") // what is counted is zero the first time
	_, metrics := page(t, http+"/metrics")
	for _, line := range []string{
		`berth_loads_total{os="linux",outcome="failed",provisioner="vmware"} 1`,
		`berth_phase_seconds_count{image="debian12-r3",os="linux",phase="load",provisioner="vmware",verdict="fail"} 1`,
		`berth_vsphere_calls_total{method="Login",vcenter="lab"} 1`,
		`berth_worker_ready 1`, `berth_computers_held{phase="ready"} 0`, `berth_guests_waiting 0`, `temporal_worker_start_total{`, `temporal_activity_execution_latency_seconds_count{`, `go_goroutines `,
	} {
		require.Contains(t, metrics, line)
	}
	require.Regexp(t, `"reservation":"r1","computer":"vm-01","image":"debian12-r3","attempt":1,"phase":"load"[^\n]*"verdict":"fail"`, stderr.String())
	for _, secret := range []string{vcenterPassword, "PRIVATE KEY"} {
		require.NotContains(t, stderr.String(), secret)
	}

	port, err := strconv.Atoi(server.Address[strings.LastIndex(server.Address, ":")+1:])
	require.NoError(t, err)
	server.Stop()
	becomes(t, http+"/readyz", 503)
	status, _ = page(t, http+"/healthz")
	require.Equal(t, 200, status, "it lives")
	require.Equal(t, exitFault, command([]string{"health"}, io.Discard, &said))
	require.Contains(t, said.String(), "Temporal does not answer")
	select {
	case err := <-ended:
		t.Fatalf("the worker ended with its server: %v", err)
	default:
	}
	devservertest.Start(t, devserver.Options{Port: port})
	becomes(t, http+"/readyz", 200)

	stop()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(15 * time.Second):
		t.Fatal("the worker does not stop")
	}
	require.Contains(t, stderr.String(), `"message":"stopped"`)
}

func TestSignals(t *testing.T) {
	server := devservertest.ForTest(t)
	start := func(t *testing.T, address string) (*exec.Cmd, *log) {
		t.Helper()
		var stderr log
		worker := exec.Command(os.Args[0])
		worker.Env = append(slices.Clone(os.Environ()), envAsWorker+"=worker", "BERTH_PROVISIONERS=", "BERTH_TEMPORAL_ADDRESS="+address, "BERTH_LISTEN=127.0.0.1:0")
		worker.Stderr = &stderr
		require.NoError(t, worker.Start())
		t.Cleanup(func() { _ = worker.Process.Kill() })
		return worker, &stderr
	}
	t.Run("SIGTERM drains and ends with 0", func(t *testing.T) {
		worker, stderr := start(t, server.Address)
		becomes(t, stderr.http(t)+"/readyz", 200)
		require.NoError(t, worker.Process.Signal(syscall.SIGTERM))
		require.NoError(t, worker.Wait(), stderr.String())
		require.Contains(t, stderr.String(), `"message":"stopped"`)
	})
	t.Run("SIGINT ends a start that waits for Temporal", func(t *testing.T) {
		worker, stderr := start(t, "127.0.0.1:1")
		require.Eventually(t, func() bool { return strings.Contains(stderr.String(), "waiting for Temporal") }, 10*time.Second, 5*time.Millisecond)
		status, body := page(t, stderr.http(t)+"/readyz")
		require.Equal(t, 503, status, body)
		require.NoError(t, worker.Process.Signal(syscall.SIGINT))
		require.NoError(t, worker.Wait(), stderr.String())
	})
	t.Run("a second signal ends a stop that takes too long", func(t *testing.T) {
		var stderr log
		worker := exec.Command(os.Args[0])
		worker.Env = append(slices.Clone(os.Environ()), envAsWorker+"=one that does not come to its end")
		worker.Stderr = &stderr
		require.NoError(t, worker.Start())
		t.Cleanup(func() { _ = worker.Process.Kill() })
		for _, state := range []string{"running", "stopping"} {
			require.Eventually(t, func() bool { return strings.Contains(stderr.String(), state) }, 10*time.Second, 5*time.Millisecond)
			require.NoError(t, worker.Process.Signal(syscall.SIGTERM))
		}
		var exit *exec.ExitError
		require.ErrorAs(t, worker.Wait(), &exit)
		require.Equal(t, exitFault, exit.ExitCode())
		require.Contains(t, stderr.String(), "ended at once by a second signal")
	})
}

// The catalog's xcat sites become the module's, with their tools and credentials, and what is missing is a fault of the start.
func TestXCATSitesAreBuiltFromTheCatalog(t *testing.T) {
	folder := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(folder, "cert.pem"), []byte("no certificate"), 0o600))
	path := filepath.Join(folder, "catalog.yaml")
	text := `secrets:
  mn-cert: {file: cert.pem}
sites:
  - {name: mn1, provisioner: xcat, xcat: {tools: {path: /nowhere, ssh: root@127.0.0.1}}}
`
	c := settled(t, "127.0.0.1:1", path)
	c.Provisioners = []string{"xcat"}
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	built, err := build(c, os.LookupEnv, zerolog.Nop(), metrics.New())
	require.NoError(t, err)
	require.Contains(t, built.provisioners, "xcat")
	require.Equal(t, []string{"berth-xcat-mn1", "berth-xcat"}, built.queues)

	require.NoError(t, os.WriteFile(path, []byte(text+"  - {name: mn2, provisioner: xcat, xcat: {address: 127.0.0.1, ca_file: ca.pem, credential: mn-cert}}\n"), 0o600))
	_, err = build(c, os.LookupEnv, zerolog.Nop(), metrics.New())
	require.ErrorContains(t, err, filepath.Join(folder, "ca.pem"))
}

// The catalog's libvirt sites become the module's, with their credentials, and what is missing is a fault of the start.
func TestLibvirtSitesAreBuiltFromTheCatalog(t *testing.T) {
	folder := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(folder, "key"), []byte("no key"), 0o600))
	path := filepath.Join(folder, "catalog.yaml")
	text := `secrets:
  host-key: {file: key}
sites:
  - {name: h1, provisioner: libvirt, libvirt: {uri: "qemu+unix:///system?socket=/nowhere/sock"}}
`
	c := settled(t, "127.0.0.1:1", path)
	c.Provisioners = []string{"libvirt"}
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	built, err := build(c, os.LookupEnv, zerolog.Nop(), metrics.New())
	require.NoError(t, err)
	defer built.end(t.Context())
	require.Equal(t, []string{"berth-libvirt-h1", "berth-libvirt"}, built.queues)
	require.ErrorContains(t, built.check(t.Context()), "provisioner libvirt: site h1: look up storage pool default: connect with /nowhere/sock")

	require.NoError(t, os.WriteFile(path, []byte(text+
		"  - {name: h2, provisioner: libvirt, libvirt: {uri: 'qemu+ssh://berth@h2/system', credential: host-key, known_hosts_file: known_hosts}}\n"), 0o600))
	_, err = build(c, os.LookupEnv, zerolog.Nop(), metrics.New())
	require.ErrorContains(t, err, "sites[1].known_hosts_file")
	require.ErrorContains(t, err, filepath.Join(folder, "known_hosts"))
}
