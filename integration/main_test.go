package integration

import (
	"crypto/sha256"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/logging"
	"berth/internal/temporalclient"
)

// atOnce is how many of the tests run at a time. Most of them wait for a lost worker's heartbeat to be missed, so far more
// than there are CPUs can.
const atOnce = "100"

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", atOnce); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestBerth is all tests of this package: they share one set of programs, one Temporal server and one worker for the workflows.
func TestBerth(t *testing.T) {
	w := newWorld(t)
	type test struct {
		name string
		run  func(*testing.T, *world)
	}
	t.Run("all at once", func(t *testing.T) { // they mostly wait
		for _, one := range []test{
			{"a worker killed in any stage loses nothing", testKilled},
			{"a load from the command line to its end shows no secret", testSecrets},
			{"faults of the vCenter", testVCenterFaults},
			{"the vCenter is not reached for a while", testVCenterUnreachable},
			{"sessions expire in the middle of a load", testSessionsExpire},
			{"Temporal is silent for a while", testTemporalSilent},
			{"cancelled", testCancelled},
			{"a worker that is stopped hands over", testHandOver},
			{"a worker that was paused is too late", testPaused},
			{"a worker that was paused clones nothing for a reservation that is over", testPausedAndOver},
			{"guests", testGuests},
			{"a computer has one holder", testHolder},
			{"traces and metrics", testSeen},
		} {
			t.Run(one.name, func(t *testing.T) {
				t.Parallel()
				one.run(t, w)
			})
		}
	})
	for _, one := range []test{ // each keeps the machine busy by itself
		{"Temporal's server and the workflows' worker are killed", testTemporalKilled},
		{"clones of several workers in one vCenter", testCloneLimit},
		{"physical nodes and their faults", testMetalFaults},
		{"a worker killed, and a load cancelled, while its node installs", testMetalStopped},
		{"workers of two versions", testVersions},
		{"forty nodes through a gate for ten", testMetalThrottle},
	} {
		t.Run(one.name, func(t *testing.T) { one.run(t, w) })
	}
}

// world is what all tests share.
type world struct {
	plain       string // the worker's path
	watched     string // the path of a worker with the race detector, when these tests run with it; the same otherwise
	starter     string
	simsite     string
	server      *devserver.Server
	client      client.Client
	certificate tls.Certificate // of the proxies before vCenters
	thumbprint  string
	workflows   *workerProcess
	env         []string      // of every worker, and of the command line
	starting    chan struct{} // bounds how many processes start at a time
}

func newWorld(t *testing.T) *world {
	w := &world{starting: make(chan struct{}, 4)}
	programs := t.TempDir()
	build := func(args ...string) {
		command := exec.Command("go", append([]string{"build"}, args...)...)
		out, err := command.CombinedOutput()
		require.NoError(t, err, "%s\n%s", command, out)
	}
	build("-o", programs, "berth/worker", "berth/starter", "berth/simsite")
	w.plain, w.starter, w.simsite = filepath.Join(programs, "worker"), filepath.Join(programs, "starter"), filepath.Join(programs, "simsite")
	w.watched = w.plain
	if raceEnabled {
		w.watched = filepath.Join(programs, "worker-race")
		build("-race", "-o", w.watched, "berth/worker")
	}

	// httptest has a certificate for the loopback. It is pinned by its thumbprint, as a site pins its vCenter's.
	borrowed := httptest.NewTLSServer(nil)
	w.certificate = borrowed.TLS.Certificates[0]
	borrowed.Close()
	w.thumbprint = thumbprint(w.certificate)

	w.serve(t, devserver.Options{})
	return w
}

// serve starts the world's Temporal server and its worker for the workflows.
func (w *world) serve(t *testing.T, o devserver.Options) {
	t.Helper()
	w.server = devservertest.Start(t, o)
	var err error
	w.client, err = temporalclient.Dial(t.Context(), temporalclient.Options{
		Settings: temporalclient.Settings{Address: w.server.Address, Namespace: w.server.Namespace, Patience: 10 * time.Second},
		Identity: "integration tests", Logger: logging.Temporal(zerolog.Nop()),
	})
	require.NoError(t, err)
	t.Cleanup(w.client.Close)
	w.startWorkflows(t)
}

func (w *world) startWorkflows(t *testing.T) {
	t.Helper()
	w.workflows = w.startWorker(t, "workflows", workerOptions{env: []string{"BERTH_PROVISIONERS=", "BERTH_WORKFLOWS=true"}})
}

func thumbprint(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(pairs, ":")
}

// patience is how long a test waits for what comes without a lost worker; takeover is for what comes after the heartbeat
// timeout of 30 s. Both are for a machine on which everything runs at once.
const (
	patience = 90 * time.Second
	takeover = 150 * time.Second
)

// listenAgain listens at an address that was just closed. A process that is being started beside us holds a copy of the old
// socket from its fork to its exec, so the address may be taken for a moment longer.
func listenAgain(t *testing.T, address string) net.Listener {
	t.Helper()
	var listener net.Listener
	require.Eventually(t, func() (ok bool) {
		var err error
		listener, err = net.Listen("tcp", address)
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "%s cannot be listened on", address)
	return listener
}

// loopback returns an address of the loopback network that nobody uses. Its port is none of those that the system gives
// to outgoing connections, so it stays free while nobody listens on it.
func loopback(t *testing.T, port int) string {
	t.Helper()
	for range 50 {
		address := net.JoinHostPort(randomLoopback(), fmt.Sprint(port))
		if probe, err := net.Listen("tcp", address); err == nil {
			require.NoError(t, probe.Close())
			return address
		}
	}
	require.FailNow(t, "no address of 127.128.0.0/9 can be listened on")
	return ""
}
