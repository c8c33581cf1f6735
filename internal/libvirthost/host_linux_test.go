//go:build e2e

package libvirthost

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// envDir makes this test's program one that runs a host with a guest in that folder, inside, until it is killed.
const envDir = "BERTH_TEST_LIBVIRTHOST"

func TestMain(m *testing.M) {
	dir := os.Getenv(envDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	inside, code, err := Apart(os.Getenv(EnvStage))
	if inside {
		err = hostWithGuest(dir)
	}
	if err != nil {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

// hostWithGuest starts a host and a guest, which has nothing to boot from, has the guest outlive three libvirtd, and waits.
func hostWithGuest(dir string) error {
	ctx := context.Background()
	h, err := Start(ctx, Options{Dir: dir})
	if err != nil {
		return err
	}
	guest := filepath.Join(dir, "guest.xml")
	const xml = `<domain type='qemu'><name>one</name><memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><interface type='network'><source network='berth'/><model type='virtio'/></interface><serial type='pty'/></devices></domain>`
	if err := os.WriteFile(guest, []byte(xml), 0o600); err != nil {
		return err
	}
	if _, err := h.Virsh(ctx, "create", guest); err != nil {
		return err
	}
	for _, end := range []func(){h.Kill, h.Quit} {
		end()
		if err := h.Launch(ctx); err != nil {
			return err
		}
		if domains, err := h.Domains(ctx); err != nil || len(domains) != 1 {
			return fmt.Errorf("after libvirtd's restart: domains %q, %w", domains, err)
		}
	}
	// One that ends by itself is started again.
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		return err
	}
	if err := syscall.Kill(id, syscall.SIGABRT); err != nil {
		return err
	}
	for limit := time.Now().Add(startLimit); h.Crashes() == 0 && time.Now().Before(limit); {
		time.Sleep(10 * time.Millisecond)
	}
	if domains, err := h.Domains(ctx); err != nil || len(domains) != 1 || h.Crashes() != 1 {
		return fmt.Errorf("after %d crashes: domains %q, %w", h.Crashes(), domains, err)
	}
	fmt.Println("up")
	select {}
}

func TestNothingIsLeftWhenTheProgramIsKilled(t *testing.T) {
	if err := Check(); err != nil {
		t.Skip("SKIP:", err)
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: namespaces take root")
	}
	dir := t.TempDir()
	outside := exec.Command(os.Args[0])
	outside.Env = append(os.Environ(), envDir+"="+dir)
	out, err := outside.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, outside.Start())
	ended := false
	defer func() {
		if !ended {
			_ = outside.Process.Kill()
			_ = outside.Wait()
		}
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "up\n", line)
	require.NotEmpty(t, running(dir), "the programs inside are seen from here")
	_, err = net.InterfaceByName(Network)
	require.Error(t, err, "the bridge is not in this network")
	for _, folder := range hidden() {
		entries, _ := os.ReadDir(folder)
		for _, entry := range entries {
			require.NotContains(t, entry.Name(), Network, "%s is the machine's own", folder)
		}
	}

	require.NoError(t, outside.Process.Kill())
	_ = outside.Wait()
	ended = true
	require.Eventually(t, func() bool { return len(running(dir)) == 0 }, 30*time.Second, 50*time.Millisecond, "still running: %q", running(dir))
}

// running are the processes that bear the folder in their command line or environment, or are the guest, but zombies.
func running(dir string) []string {
	var found []string
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range all {
		arguments, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		environment, _ := os.ReadFile(filepath.Join(proc, "environ"))
		if len(arguments) > 0 && (bytes.Contains(arguments, []byte("guest=one,")) || bytes.Contains(arguments, []byte(dir)) || bytes.Contains(environment, []byte(dir))) {
			found = append(found, filepath.Base(proc)+" "+string(bytes.ReplaceAll(arguments, []byte{0}, []byte(" "))))
		}
	}
	return found
}

func TestAHostIsNotStartedOutside(t *testing.T) {
	_, err := Start(t.Context(), Options{Dir: t.TempDir()})
	require.ErrorContains(t, err, "call Apart first")
}
