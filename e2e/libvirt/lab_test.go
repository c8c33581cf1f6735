//go:build e2e

package libvirt

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"berth/internal/catalog"
	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
	"berth/internal/guestimage"
	"berth/internal/hold"
	"berth/internal/labtest"
	"berth/internal/libvirthost"
	"berth/internal/logging"
	"berth/internal/process"
	"berth/internal/temporalclient"
	"berth/osmodules/remote/ssh/sshtest"
	"berth/provisioners"
	"berth/provisioners/libvirt"
	"berth/reservation"
	"berth/workflows"

	xssh "golang.org/x/crypto/ssh"
)

// patience is no measure: guests are emulated, and two processors carry all of them. It is longer than the limit of a guest's
// response: one that hangs is reset then, and its load goes on.
const patience = 12 * time.Minute

// world is what all tests share: a libvirt host, a Temporal server, a worker for the workflows.
type world struct {
	dir     string
	host    *libvirthost.Host
	images  *guestimage.Images
	server  *devserver.Server
	client  client.Client
	key     string // path of the private key that logs in to guests
	public  string // its public half, an authorized_keys line
	scripts string // the folder of site scripts
	guests  atomic.Int32
	master  sync.Once
}

func newWorld(t *testing.T) *world {
	t.Helper()
	needs(t)
	w := &world{}
	var err error
	w.images, err = images()
	require.NoError(t, err)
	// Not in t.TempDir: QEMU writes there until the host is stopped.
	dir, err := os.MkdirTemp("/var/tmp", "berth-e2e-")
	require.NoError(t, err)
	w.dir = dir
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.host, err = libvirthost.Start(t.Context(), libvirthost.Options{Dir: dir})
	require.NoError(t, err)
	t.Cleanup(func() {
		w.host.Stop()
		if n := w.host.Crashes(); n > 0 {
			t.Logf("*** libvirtd ended by itself %d times, and was started again; no load may be lost by that", n)
		}
		if t.Failed() || w.host.Crashes() > 0 {
			t.Log(process.Tail(w.host.Log, 30))
		}
	})
	t.Logf("guests run with %s", w.host.Accel)

	private, public, err := sshtest.NewPEM("")
	require.NoError(t, err)
	w.key, w.public = filepath.Join(dir, "login"), strings.TrimSpace(string(xssh.MarshalAuthorizedKey(public)))
	require.NoError(t, os.WriteFile(w.key, private, 0o600))
	w.scripts = filepath.Join(dir, "scripts")
	for name, text := range map[string]string{
		"all/10-note":    "#!/bin/sh\n# berth: on-failure=fail\necho \"$BERTH_RESERVATION $BERTH_ATTEMPT\" >/root/note\n",
		"linger/50-hold": "#!/bin/sh\n# berth: on-failure=fail limit=5m\ntest \"$BERTH_ATTEMPT\" != 1 || while test ! -e /run/go-on; do sleep 1; done\n",
	} {
		file := filepath.Join(w.scripts, "post-load", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}

	w.server = devservertest.Start(t, devserver.Options{})
	w.client, err = temporalclient.Dial(t.Context(), temporalclient.Options{
		Settings: temporalclient.Settings{Address: w.server.Address, Namespace: w.server.Namespace, Patience: 30 * time.Second},
		Identity: "end-to-end tests", Logger: logging.Temporal(zerolog.Nop()),
	})
	require.NoError(t, err)
	t.Cleanup(w.client.Close)
	w.startWorker(t, "workflows", "BERTH_PROVISIONERS=", "BERTH_WORKFLOWS=true")
	return w
}

func (w *world) startWorker(t *testing.T, name string, env ...string) *labtest.Worker {
	t.Helper()
	all := append(os.Environ(), "BERTH_TEMPORAL_ADDRESS="+w.server.Address, "BERTH_TEMPORAL_NAMESPACE="+w.server.Namespace, "BERTH_LISTEN=",
		"BERTH_LOG_LEVEL=debug", "BERTH_SCRIPTS="+w.scripts)
	return labtest.StartWorker(t, patience, name, process.Options{Path: program("worker"), Env: append(all, env...), Log: filepath.Join(t.TempDir(), name+".log")})
}

// lab is a test's site on the host: a name, a queue and a catalog of its own.
type lab struct {
	*world
	name      string
	pool      string
	uri       string
	image     reservation.Image
	computers []reservation.Computer
	catalog   string
	workers   int
}

type labOptions struct {
	master    guestimage.Image // the small guest's unless it says otherwise
	url       string           // where the worker fetches the master; "" is its file
	computers int              // 1 if 0
	pool      string
	socket    string // of libvirtd, where it is not its own
	change    func(*reservation.Image)
	others    map[string]func(*reservation.Image) // further images of the same master, by name
}

func seconds(n float64) reservation.Duration {
	return reservation.Duration(time.Duration(n * float64(time.Second)))
}

func (w *world) newLab(t *testing.T, name string, o labOptions) *lab {
	t.Helper()
	l := &lab{world: w, name: name, pool: o.pool, uri: libvirthost.URI}
	if l.pool == "" {
		l.pool = libvirthost.Pool
	}
	if o.socket != "" {
		l.uri = "qemu+unix:///system?socket=" + o.socket
	}
	if o.master.Path == "" {
		o.master = w.images.Small
	}
	source := o.url
	if source == "" {
		source = o.master.Path
	}
	l.image = reservation.Image{
		Name: "guest", Revision: 1, OS: reservation.OS{Family: reservation.Linux, Version: "12", Architecture: "x86_64"},
		Sources: map[string]map[string]string{libvirt.Type: {
			"master": source, "sha256": o.master.SHA256, "size": fmt.Sprint(o.master.Size), "cloud_init": "true", "graphics": "none", "memory_mib": "256",
		}},
		Control: reservation.Control{Channel: "ssh", User: "root", Credential: "login", HostKey: reservation.HostKeyHanded},
		Limits: reservation.Limits{Load: seconds(600), InitialDelay: seconds(1), Response: seconds(240), ResponseAgain: seconds(400),
			Configure: seconds(400), Settle: seconds(1), Queue: seconds(300)},
		PostLoad: reservation.PostLoadOptions{Hostname: true, ManagementSources: []string{libvirthost.Gateway + "/32"}},
	}
	images := []reservation.Image{l.image}
	for _, name := range slices.Sorted(maps.Keys(o.others)) {
		other := l.image
		other.Name = name
		o.others[name](&other)
		images = append(images, other)
	}
	if o.change != nil {
		o.change(&images[0])
	}
	l.image = images[0]
	for i := range max(o.computers, 1) {
		n := int(w.guests.Add(1))
		require.LessOrEqual(t, n, libvirthost.MostGuests)
		l.computers = append(l.computers, reservation.Computer{
			Name: fmt.Sprintf("%s-%d", name, i+1), Site: name, Address: libvirthost.Address(n), MACs: []string{libvirthost.MAC(n)}, Networks: []string{libvirthost.Network},
		})
	}
	text, err := json.MarshalIndent(map[string]any{ // JSON is YAML
		"secrets": map[string]any{"login": map[string]string{"file": w.key}},
		"sites": []any{map[string]any{"name": name, "provisioner": libvirt.Type,
			"libvirt": map[string]any{"uri": l.uri, "pool": l.pool, "accel": w.host.Accel}}},
		"images":    images,
		"computers": l.computers,
	}, "", "  ")
	require.NoError(t, err)
	l.catalog = filepath.Join(t.TempDir(), "catalog.yaml")
	require.NoError(t, os.WriteFile(l.catalog, text, 0o600))
	return l
}

// worker starts a worker for this lab's site.
func (l *lab) worker(t *testing.T) *labtest.Worker {
	t.Helper()
	l.workers++
	return l.startWorker(t, fmt.Sprintf("%s-%d", l.name, l.workers), "BERTH_WORKFLOWS=false", "BERTH_PROVISIONERS="+libvirt.Type, "BERTH_CATALOG="+l.catalog)
}

// booking is a reservation of one of the lab's computers.
type booking struct {
	*lab
	computer reservation.Computer
	image    reservation.Image
	name     string
	run      client.WorkflowRun
}

func (l *lab) reserve(t *testing.T, computer int, name string) *booking {
	t.Helper()
	return l.reserveImage(t, computer, l.image.Name, name)
}

func (l *lab) reserveImage(t *testing.T, computer int, image, name string) *booking {
	t.Helper()
	read, err := catalog.Load(l.catalog, catalog.Options{Validators: map[string]provisioners.Validator{libvirt.Type: &libvirt.Module{}}})
	require.NoError(t, err)
	r, err := read.Reservation(name, "ana", l.computers[computer].Name, image, time.Now().Add(2*time.Hour))
	require.NoError(t, err)
	run, err := hold.Start(t.Context(), l.client, r)
	require.NoError(t, err)
	b := &booking{lab: l, computer: l.computers[computer], image: r.Image, name: name, run: run}
	t.Cleanup(func() {
		if t.Failed() { // the others need not bear with its guest
			ctx := context.Background()
			_ = b.client.TerminateWorkflow(ctx, run.GetID(), run.GetRunID(), "the test has failed")
			_, _ = b.host.Virsh(ctx, "destroy", b.computer.Name)
			_, _ = b.host.Virsh(ctx, "undefine", b.computer.Name)
		}
	})
	return b
}

// moment is how a reservation stands.
type moment = labtest.Moment

func (b *booking) watched() labtest.Watched { return labtest.Watched{Client: b.client, Run: b.run} }

func (b *booking) look(t *testing.T) moment {
	t.Helper()
	return b.watched().Look(t)
}

func (b *booking) until(t *testing.T, is func(moment) bool) moment {
	t.Helper()
	return b.watched().Until(t, patience, is)
}

// atStage waits until a phase of an attempt shows a stage.
func (b *booking) atStage(t *testing.T, attempt int, phase reservation.Phase, stage string) moment {
	t.Helper()
	return b.until(t, func(m moment) bool {
		return m.Pending != nil && m.Attempt == attempt && m.Phase == phase && m.Stage().Name == stage
	})
}

// ready waits until the computer is handed over.
func (b *booking) ready(t *testing.T) reservation.Status {
	t.Helper()
	b.until(t, func(m moment) bool { return m.Outcome == reservation.OutcomeReady })
	return b.status(t)
}

func (b *booking) status(t *testing.T) reservation.Status {
	t.Helper()
	return b.watched().Status(t, patience)
}

// result waits until the reservation is over, and returns its status and the workflow's error.
func (b *booking) result(t *testing.T) (reservation.Status, error) {
	t.Helper()
	return b.watched().Result(t, patience)
}

// release gives the computer back, and sees that nothing of it is left.
func (b *booking) release(t *testing.T) {
	t.Helper()
	require.NoError(t, b.client.SignalWorkflow(t.Context(), b.run.GetID(), b.run.GetRunID(), workflows.ReleaseSignal, nil))
	status, err := b.result(t)
	require.NoError(t, err)
	require.Equal(t, reservation.OutcomeReleased, status.Outcome)
	b.gone(t)
}

// cancel cancels the reservation, and sees that nothing of it is left.
func (b *booking) cancel(t *testing.T) {
	t.Helper()
	require.NoError(t, b.client.CancelWorkflow(t.Context(), b.run.GetID(), b.run.GetRunID()))
	b.cancelled(t)
}

func (b *booking) cancelled(t *testing.T) {
	t.Helper()
	status, err := b.result(t)
	require.Error(t, err)
	require.Equal(t, reservation.OutcomeCancelled, status.Outcome, "%v", err)
	b.gone(t)
}

// gone sees, with libvirt's own tools, that a computer has no domain, no disk, no seed, and no QEMU.
func (b *booking) gone(t *testing.T) {
	t.Helper()
	domains, err := b.host.Domains(t.Context())
	require.NoError(t, err)
	require.NotContains(t, domains, b.computer.Name)
	require.Empty(t, b.volumes(t))
	running, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range running {
		line, _ := os.ReadFile(path)
		require.False(t, strings.Contains(string(line), "qemu") && strings.Contains(string(line), "guest="+b.computer.Name+","), "%s: %s", path, line)
	}
}

// volumes are the computer's files in the pool.
func (b *booking) volumes(t *testing.T) []string {
	t.Helper()
	all, err := b.host.Volumes(b.pool)
	require.NoError(t, err)
	return slices.DeleteFunc(all, func(name string) bool { return !strings.Contains(name, "_"+b.computer.Name+"_") })
}

// verdicts are the verdicts of what was loaded and configured: "load reload, load done, post-load done".
func verdicts(status reservation.Status) string {
	var all []string
	for _, one := range status.Phases {
		if one.Phase != reservation.PhaseLoad && one.Phase != reservation.PhasePostLoad {
			continue
		}
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s", one.Phase, one.Verdict)))
	}
	return strings.Join(all, ", ")
}

// ask runs a command on the guest by OpenSSH's own client, which knows nothing of what Berth did, and which takes no other
// host key than the one that Berth says the guest has.
func (b *booking) ask(t *testing.T, status reservation.Status, line string) string {
	t.Helper()
	out, err := b.login(t, status, line)
	require.NoError(t, err, out)
	return out
}

func (b *booking) login(t *testing.T, status reservation.Status, line string, more ...string) (string, error) {
	t.Helper()
	scanned, err := exec.CommandContext(t.Context(), "ssh-keyscan", "-t", "ed25519", "-T", "30", b.computer.Address).Output()
	require.NoError(t, err)
	known := filepath.Join(t.TempDir(), "known")
	require.NoError(t, os.WriteFile(known, scanned, 0o600))
	shown, err := exec.CommandContext(t.Context(), "ssh-keygen", "-l", "-f", known).CombinedOutput()
	require.NoError(t, err, string(shown))
	require.Contains(t, string(shown), status.HostKey, "the guest shows the key that Berth pinned")
	args := append([]string{"-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR",
		"-o", "UserKnownHostsFile=" + known, "-i", b.key}, more...)
	out, err := exec.CommandContext(t.Context(), "ssh", append(args, "root@"+b.computer.Address, line)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
