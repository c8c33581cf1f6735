//go:build e2e

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth/internal/guestimage"
	"berth/internal/libvirthost"
)

func TestTheDemonstrationOfRealGuests(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: real virtual machines take root")
	}
	for _, err := range []error{libvirthost.Check(), guestimage.Check()} {
		if err != nil {
			t.Skip("SKIP:", err)
		}
	}
	dir := filepath.Join(t.TempDir(), "demo")
	out, err := exec.CommandContext(t.Context(), "make", "-C", "../..", "demo-libvirt", "ONCE=1", "DEMOFLAGS=--small 1 --debian=false --dir "+dir).CombinedOutput()
	said := string(out)
	require.NoError(t, err, said)
	require.Regexp(t, `small-1 +load: power on`, said, "the stages")
	require.Regexp(t, `small-1 +post-load: .* (small: |Server listening|Accepted publickey)`, said, "the console's last line beside them")
	require.Regexp(t, `small-1 +ready +attempt 1 of 3 .*small-1, Linux 6`, said, "another login finds the guest as it should be")
	require.Regexp(t, `small-1 +running`, said, "virsh sees it")
	require.FileExists(t, filepath.Join(dir, "worker.log"))
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIP: root can become somebody else")
	}
	program := filepath.Join(t.TempDir(), "demo-libvirt")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	for folder := program; folder != "/"; folder = filepath.Dir(folder) {
		_ = os.Chmod(folder, 0o755) // for nobody to read; below the system's own folders these are the test's
		if filepath.Dir(folder) == os.TempDir() {
			break
		}
	}
	out, err = exec.CommandContext(t.Context(), "setpriv", "--reuid", "65534", "--clear-groups", program).CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, exitUsage, exit.ExitCode(), string(out))
	require.Contains(t, string(out), "run it as root")

	bare := exec.CommandContext(t.Context(), program)
	bare.Env = []string{"PATH=" + t.TempDir(), "HOME=" + t.TempDir()}
	out, err = bare.CombinedOutput()
	require.ErrorAs(t, err, &exit)
	require.Equal(t, exitUsage, exit.ExitCode(), string(out))
	require.Contains(t, string(out), "apt-get install --no-install-recommends")
	require.Contains(t, string(out), "qemu-system-x86")
	require.Contains(t, string(out), "debootstrap")
}
