package devserver

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
)

// EnvCLI names the environment variable that says which Temporal CLI to run. It goes before every other place.
const EnvCLI = "BERTH_TEMPORAL_CLI"

// MissingError says that there is no Temporal CLI on this machine.
type MissingError struct {
	Looked []string // where it was looked for
}

func (e *MissingError) Error() string {
	return "no Temporal CLI (looked at " + strings.Join(e.Looked, ", ") + "): run `make temporal` once, which builds it, or set " +
		EnvCLI + " to the path of one"
}

// FindCLI returns the path of the Temporal CLI: the one that BERTH_TEMPORAL_CLI names, the one on the PATH, or the one
// that `make temporal` builds into the user's cache folder. The error is a *MissingError if there is none.
func FindCLI() (string, error) {
	if path := os.Getenv(EnvCLI); path != "" {
		found, err := exec.LookPath(path)
		if err != nil {
			return "", fmt.Errorf("%s=%s is not a program that can be run: %w", EnvCLI, path, err)
		}
		return found, nil
	}
	looked := []string{"the PATH"}
	if path, err := exec.LookPath("temporal"); err == nil {
		return path, nil
	}
	cache, err := cacheDir()
	if err != nil {
		return "", &MissingError{Looked: append(looked, err.Error())}
	}
	path := filepath.Join(cache, "berth", "bin", "temporal")
	if found, err := exec.LookPath(path); err == nil {
		return found, nil
	}
	return "", &MissingError{Looked: append(looked, path)}
}

// cacheDir is os.UserCacheDir, but finds the home folder where HOME is not set, as it is under some service managers.
func cacheDir() (string, error) {
	if cache, err := os.UserCacheDir(); err == nil {
		return cache, nil
	}
	me, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("no cache folder: set HOME (%w)", err)
	}
	return filepath.Join(me.HomeDir, ".cache"), nil
}
