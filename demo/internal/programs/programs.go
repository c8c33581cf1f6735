// Package programs runs Berth's own programs for the demonstrations, as a person would run them.
package programs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"berth/internal/process"
)

const (
	stopGrace = 5 * time.Second
	askEvery  = 50 * time.Millisecond
	tailLines = 12
)

// Plain returns an environment without any BERTH_ variable: what a person has set is not for a demonstration.
func Plain(environment []string) []string {
	var plain []string
	for _, pair := range environment {
		if !strings.HasPrefix(pair, "BERTH_") {
			plain = append(plain, pair)
		}
	}
	return plain
}

// Serves waits until a worker serves its queues, as it says at the address of BERTH_LISTEN.
func Serves(ctx context.Context, limit time.Duration, name string, worker *process.Process, address string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s does not serve after %s", name, limit))
	defer cancel()
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		select {
		case <-worker.Done():
			return fmt.Errorf("%s ended at its start (%w)\n  %s", name, worker.Err(), worker.Tail(tailLines))
		case <-ctx.Done():
			return fmt.Errorf("%w\n  %s", context.Cause(ctx), worker.Tail(tailLines))
		case <-ticker.C:
		}
		if ready(ctx, "http://"+address+"/readyz") {
			return nil
		}
	}
}

func ready(ctx context.Context, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// Starter runs the command line of a folder of programs to its end, its output going to out. The error is a *CommandError if it
// ends with another exit code than 0.
func Starter(ctx context.Context, bin string, env []string, out io.Writer, args ...string) error {
	var stderr bytes.Buffer
	running, err := process.Start(process.Options{Path: filepath.Join(bin, "starter"), Args: args, Env: env, Stdout: out, Stderr: &stderr})
	if err != nil {
		return err
	}
	select {
	case <-running.Done():
	case <-ctx.Done():
		running.Stop(stopGrace)
		return context.Cause(ctx)
	}
	if err := running.Err(); err != nil {
		return &CommandError{args: args, said: strings.TrimSpace(stderr.String()), cause: err}
	}
	return nil
}

// CommandError says that the command line ended with an exit code.
type CommandError struct {
	args  []string
	said  string
	cause error
}

func (e *CommandError) Error() string {
	return fmt.Sprintf("starter %s: %v: %s", strings.Join(e.args, " "), e.cause, e.said)
}

func (e *CommandError) Unwrap() error { return e.cause }

// ExitCode returns the exit code that an error of Starter holds; -1 if it holds none.
func ExitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}
