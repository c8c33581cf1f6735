//go:build e2e

package libvirt

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"berth/internal/guestimage"
	"berth/internal/libvirthost"
)

// What the run outside tells the one inside, which has no network to the outside.
const (
	envPrograms = "BERTH_E2E_PROGRAMS" // the folder of worker and starter
	envSkip     = "BERTH_E2E_SKIP"     // why the tests cannot run here
)

// TestMain runs the tests in namespaces of their own. What takes a network is made before.
func TestMain(m *testing.M) {
	flag.Parse()
	// Twice what the processors of a small machine carry: half of the scenarios only wait, most of the time.
	if err := flag.Set("test.parallel", "4"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	stage := os.Getenv(libvirthost.EnvStage)
	if stage == "" {
		programs, err := os.MkdirTemp("", "berth-e2e-")
		if err == nil {
			defer os.RemoveAll(programs)
			err = prepare(programs)
		}
		if err != nil {
			os.Setenv(envSkip, err.Error())
			return m.Run()
		}
	}
	inside, code, err := libvirthost.Apart(stage)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if !inside {
		return code
	}
	return m.Run()
}

// prepare builds the programs and the guests' images.
func prepare(programs string) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("a libvirt host of its own takes root")
	}
	if err := libvirthost.Check(); err != nil {
		return err
	}
	os.Setenv(envPrograms, programs)
	out, err := exec.Command("go", "build", "-o", programs, "berth/worker", "berth/starter").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	_, err = images()
	return err
}

func images() (*guestimage.Images, error) {
	return guestimage.Build(context.Background(), guestimage.Options{
		Mirror: os.Getenv("BERTH_E2E_MIRROR"), Say: func(step string) { fmt.Println("guest images:", step) },
	})
}

func program(name string) string { return filepath.Join(os.Getenv(envPrograms), name) }

func needs(t *testing.T) {
	t.Helper()
	if why := os.Getenv(envSkip); why != "" {
		t.Skip("SKIP:", why)
	}
}
