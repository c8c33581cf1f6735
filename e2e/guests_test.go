//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/guestimage"
	"berth/internal/labtest"
	"berth/internal/libvirthost"
	"berth/internal/process"
	"berth/osmodules/remote/ssh/sshtest"
	"berth/reservation"
)

// How long it may take until a libvirt host serves, and until a small guest is ready: it is emulated, and one that hangs in its
// boot is reset after guestResponse.
const (
	hostLimit     = 2 * time.Minute
	guestResponse = 4 * time.Minute
	guestLimit    = 12 * time.Minute
)

// libvirtHost is a libvirt host that the stack's network lab has in it.
type libvirtHost struct {
	dir   string
	pid   string // of a process in its network namespace
	stdin io.Closer
	ended chan error
	accel string
}

// startHost starts a libvirt host with its files in a folder.
func startHost(t *testing.T, dir string) *libvirtHost {
	t.Helper()
	h := &libvirtHost{dir: dir, ended: make(chan error, 1)}
	log, err := os.Create(filepath.Join(t.TempDir(), "host.log"))
	require.NoError(t, err)
	defer log.Close()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), envHost+"="+dir)
	command.Stdout, command.Stderr = log, log
	h.stdin, err = command.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	go func() { h.ended <- command.Wait() }()
	t.Cleanup(func() {
		h.stdin.Close()
		select {
		case <-h.ended:
		case <-time.After(time.Minute):
			_ = command.Process.Kill() // the kernel ends what it has started
			<-h.ended
		}
		if t.Failed() {
			t.Log(process.Tail(log.Name(), 20), process.Tail(filepath.Join(dir, "libvirtd.log"), 20))
		}
	})
	var said facts
	labtest.Eventually(t, hostLimit, func() (bool, string) {
		text, err := os.ReadFile(filepath.Join(dir, hostFacts))
		if err != nil {
			return false, "the libvirt host does not serve: " + process.Tail(log.Name(), 20)
		}
		require.NoError(t, json.Unmarshal(text, &said))
		return true, ""
	})
	h.accel = said.Accel
	// Its process 1 is the one child of what we have started.
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", command.Process.Pid))
	require.NoError(t, err)
	for _, file := range children {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		h.pid += strings.TrimSpace(string(text))
	}
	require.Regexp(t, `^\d+$`, h.pid)
	return h
}

// inside runs a program in the host's network.
func (h *libvirtHost) inside(t *testing.T, arguments ...string) string {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"-t", h.pid, "-n"}, arguments...)...).CombinedOutput()
	require.NoError(t, err, "%q: %s", arguments, out)
	return string(out)
}

func (h *libvirtHost) virsh(t *testing.T, arguments ...string) string {
	t.Helper()
	uri := "qemu+unix:///system?socket=" + filepath.Join(h.dir, hostSocket)
	out, err := exec.Command("virsh", append([]string{"--quiet", "--connect", uri}, arguments...)...).CombinedOutput()
	require.NoError(t, err, "virsh %q: %s", arguments, out)
	return strings.TrimSpace(string(out))
}

// join plugs the host into the stack's network lab, whose containers then reach its guests through it.
func (h *libvirtHost) join(t *testing.T, s *stack) {
	t.Helper()
	described := s.run(t, time.Minute, "docker", "network", "inspect", "-f", "{{.Id}} {{(index .IPAM.Config 0).Subnet}}", s.project+"_lab")
	id, subnet, ok := strings.Cut(strings.TrimSpace(described), " ")
	require.True(t, ok, described)
	network, err := netip.ParsePrefix(subnet)
	require.NoError(t, err)
	// Docker gives addresses out from the first one on; this is the last one but the broadcast's.
	first := network.Masked().Addr().As4()
	last := binary.BigEndian.Uint32(first[:]) | (1<<(32-network.Bits()) - 1)
	address := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, last-1)))
	bridge, plug := "br-"+id[:12], "berth"+h.pid
	outside := func(arguments ...string) { s.run(t, time.Minute, "ip", arguments...) }
	outside("link", "add", plug, "type", "veth", "peer", "name", "lab", "netns", h.pid)
	outside("link", "set", plug, "master", bridge, "up")
	h.inside(t, "ip", "addr", "add", fmt.Sprintf("%s/%d", address, network.Bits()), "dev", "lab")
	h.inside(t, "ip", "link", "set", "lab", "up")
	h.inside(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	guests := netip.MustParsePrefix(libvirthost.Gateway + "/24").Masked()
	outside("route", "add", guests.String(), "via", address.String(), "dev", bridge)
}

// TestTheStackLoadsRealGuests runs docker-compose.yml with a site of one's own, as docs/operations.md has it: a folder with a
// catalog, here of a real libvirtd, and workers for libvirt alone.
func TestTheStackLoadsRealGuests(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: a libvirt host takes root: run `make e2e` as root")
	}
	if err := libvirthost.Check(); err != nil {
		t.Skip("SKIP:", err)
	}
	images, err := guestimage.Build(t.Context(), guestimage.Options{Mirror: os.Getenv("BERTH_E2E_MIRROR"), Say: func(step string) { t.Log("guest images:", step) }})
	require.NoError(t, err)

	// Not in t.TempDir: QEMU writes there until the host has ended.
	config, err := os.MkdirTemp("/var/tmp", "berth-e2e-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(config) })
	require.NoError(t, os.Chmod(config, 0o755))
	host := startHost(t, config)

	private, _, err := sshtest.NewPEM("")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(config, "login"), private, 0o644)) // the workers' user reads it
	require.NoError(t, exec.Command("install", "-m", "644", images.Small.Path, filepath.Join(config, "master.qcow2")).Run())
	const computer = "guest-1"
	text, err := json.MarshalIndent(map[string]any{ // JSON is YAML
		"secrets": map[string]any{"login": map[string]string{"file": "/etc/berth/login"}},
		"sites": []any{map[string]any{"name": "lab", "provisioner": "libvirt",
			"libvirt": map[string]any{"uri": "qemu+unix:///system?socket=/etc/berth/" + hostSocket, "pool": libvirthost.Pool, "accel": host.accel}}},
		"images": []reservation.Image{{
			Name: "small", Revision: 1, OS: reservation.OS{Family: reservation.Linux, Version: "12", Architecture: "x86_64"},
			Sources: map[string]map[string]string{"libvirt": {"master": "/etc/berth/master.qcow2", "sha256": images.Small.SHA256, "size": fmt.Sprint(images.Small.Size),
				"cloud_init": "true", "graphics": "none", "memory_mib": "256"}},
			Control:  reservation.Control{Channel: "ssh", User: "root", Credential: "login", HostKey: reservation.HostKeyHanded},
			Limits:   reservation.Limits{Response: reservation.Duration(guestResponse), ResponseAgain: reservation.Duration(guestResponse)},
			PostLoad: reservation.PostLoadOptions{Hostname: true, ManagementSources: []string{"172.16.0.0/12", "192.168.0.0/16", libvirthost.Gateway + "/32"}},
		}},
		"computers": []reservation.Computer{{Name: computer, Site: "lab", Address: libvirthost.Address(1), MACs: []string{libvirthost.MAC(1)},
			Networks: []string{libvirthost.Network}}},
	}, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(config, "catalog.yaml"), text, 0o644))

	s := newStack(t, 0, "BERTH_CONFIG="+config, "WORKERS_VMWARE=0", "WORKERS_XCAT=0", "WORKERS_LIBVIRT=2")
	s.build(t)
	s.takeDown(t)
	s.compose(t, upLimit, "up", "--no-start", "site") // makes the network lab; a service that depends on others would wait for them
	host.join(t, s)
	s.up(t, "worker", "worker-libvirt")
	starter := func(arguments ...string) string {
		t.Helper()
		return s.compose(t, guestLimit, append([]string{"run", "--rm", "-T", "starter"}, arguments...)...)
	}
	require.Contains(t, starter("catalog", "check"), "1 computer")
	starter("reserve", "small", computer, "--name", "real", "--wait")
	key := filepath.Join(t.TempDir(), "login")
	require.NoError(t, os.WriteFile(key, private, 0o600))
	ask := func(line string) string {
		return host.inside(t, "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
			"-i", key, "root@"+libvirthost.Address(1), line)
	}
	require.Equal(t, computer, strings.TrimSpace(ask("hostname")))
	require.Contains(t, ask("cat /etc/berth/load.json"), `"real"`)
	require.Contains(t, host.virsh(t, "list", "--name"), computer)
	starter("release", "real", "--wait")
	require.NotContains(t, host.virsh(t, "list", "--all", "--name"), computer)
}
