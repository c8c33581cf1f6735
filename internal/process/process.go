// Package process starts programs that never outlive the one that started them: a development server, a simulated site,
// a worker of the demonstration.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Options say what to run.
type Options struct {
	Path string
	Args []string // without the program's own name
	Env  []string // the whole environment, "KEY=value"; nil is our own
	// Log is a file that takes what the program writes and that Stdout and Stderr do not take. It is emptied first, and
	// its folder is made. "" drops it.
	Log    string
	Stdout io.Writer // nil writes to Log
	Stderr io.Writer // nil writes to Log
}

// Process is a program that was started. It ends by itself, by Stop or Kill, or, on Linux, with the process that started
// it, however that ends.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// Start runs a program in a process group of its own, so that a Ctrl-C in the terminal reaches only us and we end the
// others in order.
func Start(o Options) (*Process, error) {
	cmd := exec.Command(o.Path, o.Args...)
	cmd.Env = o.Env
	cmd.Stdout, cmd.Stderr = o.Stdout, o.Stderr
	cmd.SysProcAttr = attributes()
	// A grandchild that keeps our pipes open must not keep Wait from returning.
	cmd.WaitDelay = time.Second
	if o.Log != "" {
		if err := os.MkdirAll(filepath.Dir(o.Log), 0o755); err != nil {
			return nil, fmt.Errorf("log of %s: %w", filepath.Base(o.Path), err)
		}
		file, err := os.Create(o.Log)
		if err != nil {
			return nil, fmt.Errorf("log of %s: %w", filepath.Base(o.Path), err)
		}
		defer file.Close() // the child has its own descriptor
		if cmd.Stdout == nil {
			cmd.Stdout = file
		}
		if cmd.Stderr == nil {
			cmd.Stderr = file
		}
	}
	p := &Process{cmd: cmd, log: o.Log, done: make(chan struct{})}
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// run starts the program and waits for it on one thread: Linux sends the parent-death signal when the THREAD that
// started the child ends, and Go ends threads as it likes (golang/go#27505).
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// Pid returns the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed once the program has ended and everything that it wrote has been taken.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the program ended: nil for exit code 0, otherwise an *exec.ExitError. It is nil, too, while Done is open.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Stop asks the program to end, and kills it after the grace time. It returns once the program has ended; calling it
// again, or after the program's own end, does nothing. A program that was told to end is no error.
func (p *Process) Stop(grace time.Duration) {
	if p.signal(syscall.SIGTERM) {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
		}
	}
	p.Kill()
}

// Kill ends the program at once with SIGKILL and returns when it is gone. It may be called again.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *Process) signal(s os.Signal) bool {
	return !errors.Is(p.cmd.Process.Signal(s), os.ErrProcessDone)
}

// Tail returns the last lines of the log, indented and headed by the log's path; "" without a log.
func (p *Process) Tail(lines int) string { return Tail(p.log, lines) }

// Tail returns the last lines of a log, indented and headed by its path, for an error message.
func Tail(log string, lines int) string {
	if log == "" {
		return ""
	}
	text, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return log + " is empty"
	}
	all := strings.Split(string(text), "\n")
	return log + " ends:\n    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}
