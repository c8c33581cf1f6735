package linux

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/osmodules/remote"
)

// sandbox is a guest's root folder and a folder of tools. Scripts that run in it see no other tool and, where the tests
// run as root, are a user who may write nothing of this host.
type sandbox struct {
	t     *testing.T
	root  string
	bin   string
	log   string
	shell []string
	env   []string
}

const nobody = 65534

func newSandbox(t *testing.T, shell ...string) *sandbox {
	t.Helper()
	if len(shell) == 0 {
		shell = []string{"/bin/sh"}
	}
	dir, err := os.MkdirTemp("", "berth-linux-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &sandbox{t: t, root: filepath.Join(dir, "root"), bin: filepath.Join(dir, "bin"), log: filepath.Join(dir, "log"), shell: shell}
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Mkdir(s.bin, 0o755))
	for _, name := range []string{"cat", "cp", "mv", "rm", "mkdir", "chmod", "ls", "head", "tail", "cut", "tr", "sed", "grep", "wc", "sleep", "dirname",
		"basename", "mktemp", "touch", "sync", "sort"} {
		path, err := exec.LookPath(name)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(path, filepath.Join(s.bin, name)))
	}
	s.write("proc/sys/kernel/random/boot_id", "b0000001-0000-4000-8000-000000000000\n")
	s.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nann:x:1000:1000:Ann:/home/ann:/bin/sh\n")
	s.write("log", "")
	require.NoError(t, os.Rename(filepath.Join(s.root, "log"), s.log))
	s.tool("id", "echo 0")
	s.tool("date", `case "$*" in *-s*) exit 0 ;; *) echo `+"1700000000"+` ;; esac`)
	s.env = []string{"PATH=" + s.bin, "SSH_CONNECTION=10.9.8.7 50000 10.0.0.5 22", "LOG=" + s.log}
	return s
}

// tool makes a command that notes its arguments and its input, and then does what body says.
func (s *sandbox) tool(name, body string) {
	s.t.Helper()
	text := "#!/bin/sh\nLOG=" + s.log + "\nprintf '%s\\n' \"" + name + " $*\" >>$LOG\n" + body + "\n"
	path := filepath.Join(s.bin, name)
	os.Remove(path) // it may be a link to this host's
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	require.NoError(s.t, err)
	_, err = file.WriteString(text)
	require.NoError(s.t, errors.Join(err, file.Close()))
}

func (s *sandbox) write(path, content string) {
	s.t.Helper()
	path = filepath.Join(s.root, path)
	require.NoError(s.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(s.t, os.WriteFile(path, []byte(content), 0o644))
}

func (s *sandbox) read(path string) string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.root, path))
	require.NoError(s.t, err)
	return string(text)
}

func (s *sandbox) has(path string) bool {
	_, err := os.Lstat(filepath.Join(s.root, path))
	return err == nil
}

func (s *sandbox) calls() string {
	s.t.Helper()
	text, err := os.ReadFile(s.log)
	require.NoError(s.t, err)
	return string(text)
}

// own gives the whole sandbox to the user that scripts run as.
func (s *sandbox) own() *syscall.SysProcAttr {
	if os.Getuid() != 0 {
		return nil
	}
	filepath.WalkDir(filepath.Dir(s.root), func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			os.Lchown(path, nobody, nobody)
		}
		return nil
	})
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// run runs a command line as sshd would: by a shell, with only the sandbox's tools.
func (s *sandbox) run(ctx context.Context, line string, stdin io.Reader, stdout, stderr io.Writer) int {
	// The line names /bin/sh; the shell under test takes its place.
	arguments := append(s.shell[1:], "-c", line)
	command := exec.CommandContext(ctx, s.shell[0], arguments...)
	command.Env, command.Dir = s.env, s.root
	command.Stdin, command.Stdout, command.Stderr = stdin, stdout, stderr
	command.SysProcAttr = s.own()
	command.WaitDelay = time.Second
	err := command.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		return 255
	}
}

// Run makes a sandbox a channel, for tests of scripts without a connection. The script runs in the shell under test, not
// in the /bin/sh that its line names.
func (s *sandbox) Run(ctx context.Context, command remote.Command) (remote.Result, error) {
	text := strings.TrimPrefix(command.Line, "/bin/sh -c '")
	text = strings.ReplaceAll(strings.TrimSuffix(text, "'"), `'\''`, "'")
	var stdout, stderr strings.Builder
	exit := s.run(ctx, text, command.Stdin, &stdout, &stderr)
	return remote.Result{Stdout: []byte(stdout.String()), Stderr: []byte(stderr.String()), Exit: exit}, nil
}

func (s *sandbox) Copy(context.Context, remote.File) error { return errors.ErrUnsupported }
func (s *sandbox) Close() error                            { return nil }

// script runs one of our scripts and returns its answer.
func (s *sandbox) script(name string, v values, data string) outcome {
	s.t.Helper()
	m := &Module{root: s.root}
	o, err := m.execute(s.t.Context(), s, name, v, data, time.Minute)
	require.NoError(s.t, err)
	return o
}

// eachShell runs a test with every POSIX shell that is here.
func eachShell(t *testing.T, test func(t *testing.T, shell ...string)) {
	for _, shell := range [][]string{{"dash"}, {"bash", "--posix"}, {"busybox", "sh"}, {"mksh"}} {
		path, err := exec.LookPath(shell[0])
		if err != nil {
			continue
		}
		t.Run(shell[0], func(t *testing.T) { test(t, append([]string{path}, shell[1:]...)...) })
	}
}

func (s *sandbox) systemd() {
	s.tool("systemctl", `case "$1 ${2:-}" in
"is-system-running "*) echo running ;;
"is-enabled ssh.service") echo enabled ;;
"is-enabled "*) exit 1 ;;
"is-active systemd-timesyncd") exit 0 ;;
"is-active "*) exit 3 ;;
esac`)
}
