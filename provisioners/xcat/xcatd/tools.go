package xcatd

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DefaultPath is where the command-line tools stand on a management node.
const DefaultPath = "/opt/xcat/bin:/opt/xcat/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

// Tools runs xCAT's command-line tools, for sites that close port 3001: on this machine, or by SSH on the management node.
// No shell reads what it runs: words are handed over one by one, and where sshd gives them to a shell they are quoted.
//
// A command that is aborted gets SIGTERM, at which xCAT's tools send their daemon an abort. By SSH nothing reaches it: sshd leaves
// a command whose client is gone running, and it would do its work behind the back of who undoes it. So its end is waited for,
// up to remoteLimit.
type Tools struct {
	// SSH is how the management node is reached, program first: {"ssh", "-o", "BatchMode=yes", "root@mn"}. Empty: the tools
	// stand on this machine.
	SSH []string
	// Path is where the tools are looked for, with colons between; "" is DefaultPath.
	Path string
}

// Remote is a management node that the ssh program reaches. It never asks anything, and knows the host key from a file.
type Remote struct {
	Destination    string // user@host
	Port           int    // 0 is 22
	IdentityFile   string // private key; "" is what ssh finds itself
	KnownHostsFile string // "" is ssh's own
}

// Command returns the words for Tools.SSH.
func (r Remote) Command() []string {
	words := []string{"ssh", "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"}
	if r.KnownHostsFile != "" {
		words = append(words, "-o", "UserKnownHostsFile="+r.KnownHostsFile)
	}
	if r.IdentityFile != "" {
		words = append(words, "-o", "IdentitiesOnly=yes", "-i", r.IdentityFile)
	}
	if r.Port != 0 {
		words = append(words, "-p", strconv.Itoa(r.Port))
	}
	return append(words, r.Destination)
}

// Run is part of Transport.
func (t *Tools) Run(ctx context.Context, command Command) (Answer, error) {
	words := []string{command.Name}
	if nodes := command.noderange(); nodes != "" {
		words = append(words, nodes)
	}
	output, err := t.Execute(ctx, append(words, command.Args...), nil)
	if err != nil {
		if ctx.Err() == nil {
			err = &Error{Kind: Connection, Command: command.String(), Text: "run the tool", Cause: err}
		}
		return Answer{}, err
	}
	answer := read(command, output)
	if command.Each != nil {
		for _, line := range answer.Lines {
			command.Each(line)
		}
	}
	return answer, nil
}

// Output is what a program has written, and how it ended.
type Output struct {
	Stdout string
	Stderr string
	Code   int
}

// Execute runs any program where the tools stand, with input as its standard input. A program that ends with a code other
// than 0 is no error of Execute's; one that cannot be run, or that a signal ends, is.
func (t *Tools) Execute(ctx context.Context, words []string, input []byte) (Output, error) {
	path := t.Path
	if path == "" {
		path = DefaultPath
	}
	words = append([]string{"env", "LC_ALL=C", "PATH=" + path}, words...)
	if len(t.SSH) > 0 {
		words = append(append([]string(nil), t.SSH...), QuoteAll(words))
	}
	var stdout, stderr bytes.Buffer
	process := exec.CommandContext(ctx, words[0], words[1:]...)
	process.Cancel = func() error { return process.Process.Signal(syscall.SIGTERM) }
	process.WaitDelay = abortLimit
	if len(t.SSH) > 0 {
		process.Cancel, process.WaitDelay = func() error { return nil }, remoteLimit
	}
	process.Stdout, process.Stderr = &stdout, &stderr
	if input != nil {
		process.Stdin = bytes.NewReader(input)
	}
	err := process.Run()
	output := Output{Stdout: stdout.String(), Stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return output, ctx.Err()
	case err == nil:
		return output, nil
	case errors.As(err, &exit) && exit.ExitCode() >= 0 && exit.ExitCode() <= maxCode:
		output.Code = exit.ExitCode()
		return output, nil
	}
	return output, errors.Join(err, errors.New(strings.TrimSpace(output.Stderr)))
}

// remoteLimit is how long a command that runs by SSH is waited for once it is of no use any more: a dead BMC takes 14 s.
const remoteLimit = 20 * time.Second

// maxCode is the highest exit code that is a program's own: a shell says 128 and more for one that a signal has ended, and
// ssh 255 when it is the connection that failed (ssh(1), EXIT STATUS).
const maxCode = 127

// Quote returns a word as a POSIX shell reads it back, unchanged.
func Quote(word string) string {
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// QuoteAll returns words as one line for a POSIX shell.
func QuoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = Quote(word)
	}
	return strings.Join(quoted, " ")
}

// read turns what a tool has written into an answer. On stdout "n01: text" is node n01's line where n01, or a noderange, was asked about; on
// stderr a line is an error, with the management node's name in its middle: "n04: [mn]: Error: ERROR: timeout".
func read(command Command, output Output) Answer {
	answer := Answer{Code: output.Code, Done: true}
	add := func(kind LineKind, text string) {
		text = clean(text)
		node := ""
		for _, name := range command.Nodes {
			if rest, ok := strings.CutPrefix(text, name+":"); ok {
				node, text = name, strings.TrimSpace(rest)
				break
			}
			if text == name { // nodels answers with the name alone
				node, text = name, ""
				break
			}
		}
		if name, rest, ok := strings.Cut(text, ": "); ok && command.Range != "" && kind == Data && !strings.ContainsAny(name, " [") && name != "Error" {
			node, text = name, strings.TrimSpace(rest)
		}
		if kind == Failure {
			if _, rest, ok := strings.Cut(text, "]: "); ok && strings.HasPrefix(text, "[") {
				text = rest
			}
			_, isWarning := strings.CutPrefix(text, "Warning:")
			before, rest, isError := strings.Cut(text, "Error:")
			switch {
			case isError:
				if rest = strings.TrimSpace(rest); strings.HasPrefix(rest, "[") {
					if _, after, ok := strings.Cut(rest, "]: "); ok {
						rest = after
					}
				}
				text = before + rest
			case isWarning:
				kind = Warning
			}
		}
		answer.Lines = append(answer.Lines, Line{Node: node, Kind: kind, Text: text})
	}
	for line := range strings.Lines(output.Stdout) {
		kind := Data
		if strings.HasPrefix(line, "Unable to open socket connection") { // the tools say this on stdout
			kind = Failure
		}
		add(kind, strings.TrimRight(line, "\r\n"))
	}
	for line := range strings.Lines(output.Stderr) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		add(stderrKind(output.Code, line), strings.TrimRight(line, "\r\n"))
	}
	return answer
}

// stderrKind tells errors from what else comes there: ssh and perl write remarks to stderr of commands that succeed.
func stderrKind(code int, line string) LineKind {
	if code != 0 || strings.Contains(line, "rror:") || strings.Contains(line, "ERROR") {
		return Failure
	}
	return Warning
}

// clean drops control bytes.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, text)
}
