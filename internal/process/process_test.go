package process_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/process"
)

// envParent makes this test's program a parent that starts a child, prints the child's id and waits to be killed.
const envParent = "BERTH_TEST_PROCESS_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(envParent) != "" {
		child, err := process.Start(process.Options{Path: "/bin/sleep", Args: []string{"600"}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(child.Pid())
		<-child.Done()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestAProcessEndsWhenItIsToldTo(t *testing.T) {
	p, err := process.Start(process.Options{Path: "/bin/sleep", Args: []string{"600"}})
	require.NoError(t, err)
	p.Stop(10 * time.Second)
	require.False(t, alive(p.Pid()))
	var exit *exec.ExitError
	require.ErrorAs(t, p.Err(), &exit)
	require.Equal(t, syscall.SIGTERM, exit.Sys().(syscall.WaitStatus).Signal())
	p.Stop(10 * time.Second)
	p.Kill()
}

func TestAProcessThatDoesNotListenIsKilledAfterItsGrace(t *testing.T) {
	out, in, err := os.Pipe()
	require.NoError(t, err)
	defer out.Close()
	p, err := process.Start(process.Options{Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"}, Stdout: in})
	require.NoError(t, err)
	in.Close()
	_, err = bufio.NewReader(out).ReadString('\n') // from here on it ignores the signal
	require.NoError(t, err)
	p.Stop(100 * time.Millisecond)
	require.False(t, alive(p.Pid()))
}

func TestAProcessThatEndsByItselfLeavesItsExitCodeAndItsLog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "deep", "log")
	p, err := process.Start(process.Options{Path: "/bin/sh", Args: []string{"-c", "echo one; echo two; echo three >&2; exit 7"}, Log: log})
	require.NoError(t, err)
	<-p.Done()
	var exit *exec.ExitError
	require.ErrorAs(t, p.Err(), &exit)
	require.Equal(t, 7, exit.ExitCode())
	require.Equal(t, log+" ends:\n    two\n    three", p.Tail(2))
}

func TestAProgramThatIsNotThereIsAnError(t *testing.T) {
	_, err := process.Start(process.Options{Path: filepath.Join(t.TempDir(), "none")})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestAProcessDoesNotOutliveAParentThatIsKilled(t *testing.T) {
	if !process.EndsWithParent() {
		t.Skip("SKIP: only Linux ends a child with its parent")
	}
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), envParent+"=1")
	out, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	child, err := strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err)
	require.True(t, alive(child))

	require.NoError(t, parent.Process.Kill())
	_ = parent.Wait()
	require.Eventually(t, func() bool { return !alive(child) }, 10*time.Second, 10*time.Millisecond)
}

// alive says whether a process runs; one that has ended and that nobody has waited for does not.
func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || !strings.Contains(string(stat), ") Z ")
}
