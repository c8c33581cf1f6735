// Package libvirthost runs a libvirt host for tests, measurements and the demonstration: a real libvirtd with QEMU, a
// network and a storage pool, in namespaces of its own (Apart), so that nothing of the machine's own libvirt is seen or
// touched and nothing is left when the program ends, however it does.
//
// It takes root and Debian's packages libvirt-daemon, libvirt-clients, qemu-system-x86, qemu-utils and dnsmasq-base.
package libvirthost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/process"
)

const (
	// Network is the name of the guests' network, and of its bridge on the host.
	Network = "berth"
	// Pool is the name of the storage pool.
	Pool = "berth"
	// Gateway is the host's own address in the guests' network; workers inside come from it.
	Gateway = "10.77.0.1"
	// Socket is libvirtd's, inside.
	Socket = "/run/libvirt/libvirt-sock"
	// pidFile is where nobody else's libvirtd has its own.
	pidFile = "/run/libvirt/libvirtd.pid"
	// URI is libvirtd's, inside.
	URI = "qemu:///system"
	// MostGuests is how many guests have an address.
	MostGuests = 200

	startLimit = 60 * time.Second       // libvirtd asks QEMU for its capabilities first: about 2 s
	stopGrace  = 10 * time.Second       // for libvirtd
	askEvery   = 100 * time.Millisecond // while it starts
	tailLines  = 15

	// How virsh says that nobody answers at the socket, and so that nothing was asked of libvirtd yet.
	notReached = "failed to connect to the hypervisor"
)

// MAC is the MAC of guest n, 1 to MostGuests: the network gives it Address(n).
func MAC(n int) string { return fmt.Sprintf("52:54:00:77:00:%02x", n) }

// Address is the address of guest n.
func Address(n int) string { return fmt.Sprintf("10.77.0.%d", n+20) }

// Options say what a host is.
type Options struct {
	// Dir is the folder of its pool and its logs. It is made, and its owner removes it.
	Dir string
}

// Host is a libvirt host that runs.
type Host struct {
	PoolDir string // the folder of the pool
	Log     string // libvirtd's
	Accel   string // AccelKVM or AccelTCG: what guests run with

	dir string

	turn    sync.Mutex // who starts or ends libvirtd has it meanwhile
	mu      sync.Mutex
	daemon  *process.Process // the libvirtd that is to run; nil while none is
	crashes int
	mounts  []string // of small pools
}

// MissingError says that a program that a host needs is not installed.
type MissingError struct{ Packages []string }

func (e *MissingError) Error() string {
	return "a libvirt host needs programs that are not here; on Debian: apt-get install --no-install-recommends " + strings.Join(e.Packages, " ")
}

// Check returns a *MissingError that names the Debian packages that a host needs and this machine lacks; nil if none.
func Check() error {
	var missing []string
	for _, need := range [][2]string{
		{"libvirtd", "libvirt-daemon"}, {"virsh", "libvirt-clients"}, {qemu, "qemu-system-x86"}, {"qemu-img", "qemu-utils"},
		{"dnsmasq", "dnsmasq-base"},
	} {
		if _, err := lookPath(need[0]); err != nil {
			missing = append(missing, need[1])
		}
	}
	if len(missing) > 0 {
		return &MissingError{Packages: missing}
	}
	return nil
}

// lookPath finds a program also where an ordinary user's PATH does not look.
func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", name))
}

// Start starts libvirtd, the network and the pool, and returns when they are there. Only a program that is inside (Apart)
// can have a host, and only one at a time. ctx bounds the start alone.
func Start(ctx context.Context, o Options) (*Host, error) {
	inside, err := apart()
	if err != nil {
		return nil, err
	}
	if !inside {
		return nil, errors.New("a libvirt host is only started in namespaces of its own: call Apart first")
	}
	if err := Check(); err != nil {
		return nil, err
	}
	h := &Host{dir: o.Dir, PoolDir: filepath.Join(o.Dir, "pool"), Log: filepath.Join(o.Dir, "libvirtd.log")}
	if err := os.MkdirAll(h.PoolDir, 0o711); err != nil {
		return nil, err
	}
	if h.Accel, err = Accelerator(ctx); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"/etc/libvirt/libvirtd.conf": daemonConf,
		"/etc/libvirt/qemu.conf":     qemuConf,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(h.Log, nil, 0o644); err != nil {
		return nil, err
	}
	if err := h.Launch(ctx); err != nil {
		return nil, err
	}
	if err := h.define(ctx); err != nil {
		h.Kill()
		return nil, err
	}
	return h, nil
}

// daemonConf: only the socket, and for root only.
const daemonConf = `unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "2:stderr"
`

// qemuConf: guests run as root without a security driver, because everything of them is ours and ends with us. The
// consoles' logs are written by QEMU itself, because no virtlogd runs here.
const qemuConf = `security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
stdio_handler = "file"
max_core = 0
`

// Launch starts libvirtd and returns when it answers: after Kill, for one. Guests that run go on running meanwhile. If it then
// ends by itself, it is started again, as its service would (libvirtd.service: Restart=on-failure): a load is to bear that, and
// a real libvirtd does crash (Crashes).
func (h *Host) Launch(ctx context.Context) error {
	h.turn.Lock()
	defer h.turn.Unlock()
	return h.launch(ctx)
}

func (h *Host) launch(ctx context.Context) error {
	path, err := lookPath("libvirtd")
	if err != nil {
		return err
	}
	log, err := os.OpenFile(h.Log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer log.Close() // libvirtd has its own descriptor
	daemon, err := process.Start(process.Options{Path: path, Args: []string{"--pid-file", pidFile}, Stdout: log, Stderr: log})
	if err != nil {
		return fmt.Errorf("libvirtd: %w", err)
	}
	h.mu.Lock()
	h.daemon = daemon
	h.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("it does not answer after %s", startLimit))
	defer cancel()
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		if _, err = virsh(ctx, "version"); err == nil {
			go h.keep(daemon)
			return nil
		}
		select {
		case <-daemon.Done():
			return fmt.Errorf("libvirtd ended at its start (%v)\n  %s", daemon.Err(), process.Tail(h.Log, tailLines))
		case <-ctx.Done():
			daemon.Kill()
			return fmt.Errorf("libvirtd: %w: %w\n  %s", context.Cause(ctx), err, process.Tail(h.Log, tailLines))
		case <-ticker.C:
		}
	}
}

// keep starts libvirtd again when it has ended and nobody wanted it to.
func (h *Host) keep(daemon *process.Process) {
	<-daemon.Done()
	h.turn.Lock()
	defer h.turn.Unlock()
	h.mu.Lock()
	crashed := h.daemon == daemon
	if crashed {
		h.crashes++
	}
	h.mu.Unlock()
	if !crashed {
		return
	}
	said := fmt.Sprintf("libvirthost: libvirtd ended by itself (%v) and is started again\n", daemon.Err())
	if err := h.launch(context.Background()); err != nil {
		said += fmt.Sprintf("libvirthost: %v\n", err)
	}
	if log, err := os.OpenFile(h.Log, os.O_APPEND|os.O_WRONLY, 0); err == nil {
		defer log.Close()
		_, _ = log.WriteString(said)
	}
}

// Crashes is how often libvirtd has ended by itself so far. Its last words are in Log.
func (h *Host) Crashes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.crashes
}

// Kill ends libvirtd with SIGKILL, as a crash would, and leaves it so. Its guests go on running.
func (h *Host) Kill() {
	h.turn.Lock()
	defer h.turn.Unlock()
	if daemon := h.unkept(); daemon != nil {
		daemon.Kill()
	}
}

// Quit ends libvirtd as a stop of its service would, and returns when it has ended. Its guests go on running.
func (h *Host) Quit() {
	h.turn.Lock()
	defer h.turn.Unlock()
	if daemon := h.unkept(); daemon != nil {
		daemon.Stop(stopGrace)
	}
}

// unkept returns the libvirtd that is to run, and has it not started again; nil if none is to.
func (h *Host) unkept() *process.Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	daemon := h.daemon
	h.daemon = nil
	return daemon
}

// Stop ends everything: guests, network, libvirtd. It may be called again.
func (h *Host) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if domains, err := virsh(ctx, "list", "--all", "--name"); err == nil {
		for _, domain := range strings.Fields(domains) {
			_, _ = virsh(ctx, "destroy", domain)
		}
	}
	_, _ = virsh(ctx, "net-destroy", Network)
	h.Quit()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, dir := range h.mounts {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // so that its owner can remove the folder
	}
	h.mounts = nil
}

// define makes the network and the pool.
func (h *Host) define(ctx context.Context) error {
	var network strings.Builder
	// Mode open: libvirt sets no rules of any firewall, and there is nowhere to forward to.
	fmt.Fprintf(&network, "<network><name>%s</name><forward mode='open'/><bridge name='%s' stp='off' delay='0'/><ip address='%s' prefix='24'><dhcp>\n",
		Network, Network, Gateway)
	for n := 1; n <= MostGuests; n++ {
		fmt.Fprintf(&network, "<host mac='%s' ip='%s'/>\n", MAC(n), Address(n))
	}
	network.WriteString("</dhcp></ip></network>\n")
	file := filepath.Join(h.dir, "network.xml")
	if err := os.WriteFile(file, []byte(network.String()), 0o600); err != nil {
		return err
	}
	for _, command := range [][]string{{"net-define", file}, {"net-start", Network}} {
		if _, err := h.Virsh(ctx, command...); err != nil {
			return err
		}
	}
	return h.addPool(ctx, Pool, h.PoolDir)
}

func (h *Host) addPool(ctx context.Context, name, dir string) error {
	for _, command := range [][]string{{"pool-define-as", name, "dir", "--target", dir}, {"pool-start", name}} {
		if _, err := h.Virsh(ctx, command...); err != nil {
			return err
		}
	}
	return nil
}

// AddSmallPool makes another pool, whose file system (in memory) holds no more than so many bytes. Resize changes that.
func (h *Host) AddSmallPool(ctx context.Context, name string, bytes int64) error {
	dir := filepath.Join(h.dir, name)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := unix.Mount(marker+"-"+name, dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		return fmt.Errorf("a file system of %d bytes: %w", bytes, err)
	}
	h.mu.Lock()
	h.mounts = append(h.mounts, dir)
	h.mu.Unlock()
	return h.addPool(ctx, name, dir)
}

// Resize changes how many bytes a pool of AddSmallPool holds.
func (h *Host) Resize(name string, bytes int64) error {
	return unix.Mount("", filepath.Join(h.dir, name), "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", bytes))
}

// Virsh runs libvirt's own command line, which knows nothing of Berth, and returns what it writes, without blank lines
// around it. While libvirtd is being started it waits for it.
func (h *Host) Virsh(ctx context.Context, args ...string) (string, error) {
	for until := time.Now().Add(startLimit); ; {
		out, err := virsh(ctx, args...)
		if err == nil || !strings.Contains(err.Error(), notReached) || time.Now().After(until) {
			return out, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(askEvery):
		}
	}
}

func virsh(ctx context.Context, args ...string) (string, error) {
	command := exec.CommandContext(ctx, "virsh", append([]string{"--quiet", "--connect", URI}, args...)...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("virsh %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// Domains are the names of all domains, running or not.
func (h *Host) Domains(ctx context.Context) ([]string, error) {
	out, err := h.Virsh(ctx, "list", "--all", "--name")
	return strings.Fields(out), err
}

// Volumes are the names of all files in a pool's folder, whether libvirt knows them or not.
func (h *Host) Volumes(pool string) ([]string, error) {
	dir := h.PoolDir
	if pool != Pool {
		dir = filepath.Join(h.dir, pool)
	}
	entries, err := os.ReadDir(dir)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	slices.Sort(names)
	return names, err
}

// Bridged adds an address of the guests' network to the host, to come from another one than Gateway.
func (h *Host) Bridged(ctx context.Context, address net.IP) error {
	out, err := exec.CommandContext(ctx, "ip", "addr", "replace", address.String()+"/24", "dev", Network).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip addr replace %s: %w: %s", address, err, bytes.TrimSpace(out))
	}
	return nil
}
