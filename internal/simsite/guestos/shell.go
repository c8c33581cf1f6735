package guestos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// The interpreter looks at the host in a few places of its own: PATH look-ups of "command -v", "type" and ".", links for
// "pwd -P", the users behind ~name, and named pipes of process substitutions in TMPDIR. Each is cut off:
//   - the builtins concerned are replaced before they run (see call), and sourced files are opened under a prefix that no
//     host has;
//   - ~name is answered by environ, for every name;
//   - TMPDIR is a path below a device when the interpreter asks, and unset when a script does;
//   - commands are only ever functions of this package or files of the guest's disk, interpreted here.

// noHost is a path that exists on no host: what is looked up below it fails there with ENOTDIR, and is opened by open on
// the guest's disk.
const noHost = "/dev/null/guest"

// defaultPath is the PATH of a login by SSH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Standard exit statuses of a shell.
const (
	exitUsage         = 2
	exitNotExecutable = 126
	exitNotFound      = 127
	exitKilled        = 137 // 128 + SIGKILL: what a dying guest's commands end with
)

// process is what a command gets.
type process struct {
	Args   []string // Args[0] is the command's name
	Dir    string
	Env    []string // NAME=value
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	User   string

	machine *Machine
	session *session
}

// command is one of the guest's executables.
type command func(ctx context.Context, p *process) int

// session is what the commands of one login share beyond a process's own things.
type session struct {
	mu    sync.Mutex
	umask fs.FileMode
	funcs map[string]bool // names of shell functions seen: for command -v
	depth atomic.Int32
	texts map[string]string // of files about to be sourced
}

func (s *session) source(name, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts[name] = text
}

func (s *session) sourced(name string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, ok := s.texts[name]
	return text, ok
}

// maxDepth bounds shells that start shells: a script that calls itself must end.
const maxDepth = 32

// Run runs one command line the way sshd runs it: sh -c line in the user's home. stdin may be nil. It returns the exit
// status.
func (m *Machine) Run(ctx context.Context, line string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	p := &process{Args: []string{"sh", "-c", line}, Dir: "/root", User: "root", Stdin: stdin, Stdout: stdout, Stderr: stderr,
		Env:     append([]string{"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "PATH=" + defaultPath}, env...),
		machine: m, session: &session{umask: 0o022, funcs: map[string]bool{}, texts: map[string]string{}}}
	if p.Stdin == nil {
		p.Stdin = strings.NewReader("")
	}
	if _, err := m.disk.stat(p.Dir, true); err != nil {
		p.Dir = "/"
	}
	return shell(ctx, p)
}

// shell is sh, dash and bash: -c line, -s, a file, or standard input.
func shell(ctx context.Context, p *process) int {
	args := p.Args[1:]
	var options []string
	line, fromLine, fromStdin := "", false, false
	for len(args) > 0 && len(args[0]) > 1 && (args[0][0] == '-' || args[0][0] == '+') {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			break
		}
		if strings.HasPrefix(arg, "--") {
			continue // --posix, --norc, --noprofile
		}
		if arg == "-o" && len(args) > 0 {
			options = append(options, "-o", args[0])
			args = args[1:]
			continue
		}
		set := ""
		for _, c := range arg[1:] {
			switch c {
			case 'c':
				fromLine = true
			case 's':
				fromStdin = true
			case 'e', 'u', 'x', 'f', 'n', 'a':
				set += string(c)
			case 'l', 'i', 'p':
			default:
				return p.fail(exitUsage, "Illegal option -%c", c)
			}
		}
		if set != "" {
			options = append(options, string(arg[0])+set)
		}
	}
	name := p.Args[0]
	switch {
	case fromLine:
		if len(args) == 0 {
			return p.fail(exitUsage, "-c requires an argument")
		}
		line, args = args[0], args[1:]
		if len(args) > 0 {
			name, args = args[0], args[1:]
		}
	case len(args) > 0 && !fromStdin:
		name, args = args[0], args[1:]
		text, err := p.machine.disk.readFile(p.abs(name))
		if err != nil {
			return p.fail(exitNotFound, "0: cannot open %s: %s", name, reason(err))
		}
		line = string(text)
	default:
		// The whole of standard input is the script, so nothing of it is left for the script's own commands to read.
		text, err := io.ReadAll(p.Stdin)
		if err != nil {
			return p.fail(exitUsage, "reading the script: %s", reason(err))
		}
		line = string(text)
		p.Stdin = strings.NewReader("")
	}
	return p.interpret(ctx, name, line, args, options)
}

// parse reads a script as POSIX shell: what dash would refuse is refused here too.
func parse(name, text string) (*syntax.File, error) {
	if _, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(text), name); err != nil {
		return nil, err
	}
	// The interpreter knows "local" and its like only as the Bash grammar reads them; for text that is POSIX both grammars
	// mean the same.
	file, err := syntax.NewParser().Parse(strings.NewReader(text), name)
	if err != nil {
		return nil, err
	}
	// The interpreter runs the last command of a pipeline in the shell itself, where "exit" and variables of it would
	// count; dash and bash run it in a subshell.
	syntax.Walk(file, func(n syntax.Node) bool {
		if b, ok := n.(*syntax.BinaryCmd); ok && (b.Op == syntax.Pipe || b.Op == syntax.PipeAll) {
			if _, done := b.Y.Cmd.(*syntax.Subshell); !done || len(b.Y.Redirs) > 0 || b.Y.Negated {
				b.Y = &syntax.Stmt{Position: b.Y.Position, Cmd: &syntax.Subshell{Lparen: b.Y.Pos(), Rparen: b.Y.End(), Stmts: []*syntax.Stmt{b.Y}}}
			}
		}
		return true
	})
	return file, nil
}

// reparsed returns a text that the interpreter is to parse by itself, as parse has read it.
func reparsed(file *syntax.File) string {
	var b strings.Builder
	if err := syntax.NewPrinter().Print(&b, file); err != nil {
		return "exit 2"
	}
	return b.String()
}

func (p *process) interpret(ctx context.Context, name, text string, params, options []string) int {
	if p.session.depth.Add(1) > maxDepth {
		p.session.depth.Add(-1)
		return p.fail(exitUsage, "Cannot fork")
	}
	defer p.session.depth.Add(-1)
	file, err := parse(name, text)
	if err != nil {
		fmt.Fprintf(p.Stderr, "%s: %v\n", p.Args[0], err)
		return exitUsage
	}
	p.noteFunctions(file)
	env := newEnviron(p)
	handlers := []interp.RunnerOption{
		interp.Env(env),
		interp.Dir("/"), // checked on the host, where the guest's own directory means nothing; set below
		interp.StdIO(p.Stdin, &lineWriter{w: p.Stdout}, &lineWriter{w: p.Stderr}),
		interp.CallHandler(p.call),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return p.exec }),
		interp.OpenHandler(p.openFile),
		interp.ReadDirHandler2(p.readDir),
		interp.StatHandler(p.stat),
		interp.AccessHandler(p.access),
		interp.Params(append(append(slices.Clone(options), "--"), params...)...),
	}
	runner, err := interp.New(handlers...)
	if err != nil {
		return p.fail(exitUsage, "%v", err)
	}
	runner.Dir = p.Dir
	runner.Reset()
	env.opened()
	err = runner.Run(ctx, file)
	if status := interp.ExitStatus(0); errors.As(err, &status) {
		return int(status)
	}
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		return exitKilled
	default:
		fmt.Fprintf(p.Stderr, "%s: %v\n", name, err)
		return exitUsage
	}
}

// lineWriter keeps concurrent writers (a pipeline's sides, background jobs) from tearing each other's writes.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func (p *process) noteFunctions(file *syntax.File) {
	p.session.mu.Lock()
	defer p.session.mu.Unlock()
	syntax.Walk(file, func(n syntax.Node) bool {
		if decl, ok := n.(*syntax.FuncDecl); ok && decl.Name != nil {
			p.session.funcs[decl.Name.Value] = true
		}
		return true
	})
}

// environ is the environment of a shell. It answers for every "HOME name", so that the interpreter never asks the host
// for a user.
type environ struct {
	list   expand.Environ
	p      *process
	closed atomic.Bool
}

func newEnviron(p *process) *environ {
	env := slices.DeleteFunc(slices.Clone(p.Env), func(s string) bool {
		return strings.HasPrefix(s, "UID=") || strings.HasPrefix(s, "EUID=") || strings.HasPrefix(s, "GID=")
	})
	if !slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "HOME=") }) {
		env = append(env, "HOME=/")
	}
	e := &environ{p: p, list: expand.ListEnviron(env...)}
	e.closed.Store(true)
	return e
}

// opened says that the interpreter has asked for what it asks once, at its start.
func (e *environ) opened() { e.closed.Store(false) }

func (e *environ) Get(name string) expand.Variable {
	text := func(s string) expand.Variable { return expand.Variable{Set: true, Kind: expand.String, Str: s} }
	switch {
	case name == "TMPDIR" && e.closed.Load():
		return text(noHost)
	case name == "UID" || name == "EUID" || name == "GID":
		return text("0")
	case strings.HasPrefix(name, "HOME "):
		user := strings.TrimPrefix(name, "HOME ")
		if entry, ok := e.p.machine.user(user); ok {
			return text(entry.home)
		}
		return text("~" + user)
	}
	return e.list.Get(name)
}

func (e *environ) Each(yield func(name string, vr expand.Variable) bool) { e.list.Each(yield) }

// call looks at every simple command before it runs, and replaces the builtins that would look at the host and those
// that a POSIX shell does not have.
func (p *process) call(ctx context.Context, args []string) ([]string, error) {
	hc := interp.HandlerCtx(ctx)
	at := *p
	at.Dir = hc.Dir
	own := func(name string) []string { return append([]string{ownPrefix + name}, args[1:]...) }
	switch args[0] {
	case "command":
		if len(args) > 1 && (args[1] == "-v" || args[1] == "-V") {
			return own("command-v"), nil
		}
		for len(args) > 1 && (args[1] == "-p" || args[1] == "--") {
			args = append([]string{"command"}, args[2:]...)
		}
		if len(args) > 1 {
			if replaced, err := p.call(ctx, args[1:]); err == nil && replaced[0] != args[1] {
				return replaced, nil
			}
		}
		return args, nil
	case "type":
		return own("type"), nil
	case "hash":
		return own("hash"), nil
	case "pwd":
		if len(args) > 1 && args[1] == "-P" {
			return own("pwd-P"), nil
		}
	case "umask", "ulimit", "kill", "jobs":
		return own(args[0]), nil
	case "trap":
		return trapArgs(args), nil
	case "eval":
		file, err := parse("eval", strings.Join(args[1:], " "))
		if err != nil {
			return []string{ownPrefix + "syntax", "eval", err.Error()}, nil
		}
		p.noteFunctions(file)
		return []string{"eval", reparsed(file)}, nil
	case ".":
		if len(args) < 2 {
			return []string{ownPrefix + "syntax", ".", "filename argument required"}, nil
		}
		name := at.abs(args[1])
		if !strings.Contains(args[1], "/") {
			if found, err := at.lookPath(args[1], envValue(hc.Env, "PATH"), false); err == nil {
				name = found
			}
		}
		text, err := p.machine.disk.readFile(name)
		if err != nil {
			return []string{ownPrefix + "syntax", ".", args[1] + ": " + reason(err)}, nil
		}
		file, err := parse(name, string(text))
		if err != nil {
			return []string{ownPrefix + "syntax", ".", err.Error()}, nil
		}
		p.noteFunctions(file)
		p.session.source(name, reparsed(file))
		return append([]string{".", noHost + name}, args[2:]...), nil
	case "source", "builtin", "enable", "help", "pushd", "popd", "dirs", "shopt", "mapfile", "readarray", "bind", "caller",
		"compgen", "complete", "compopt", "disown", "history", "logout", "suspend", "bg", "fg", "fc", "newgrp", "alias", "unalias":
		return []string{ownPrefix + "not-found", args[0]}, nil
	}
	if strings.HasPrefix(args[0], ownPrefix) {
		return []string{ownPrefix + "not-found", strings.TrimPrefix(args[0], ownPrefix)}, nil
	}
	return args, nil
}

// ownPrefix marks what call hands to exec; no script can write it (call refuses names that begin with it).
const ownPrefix = "\x00"

// trapArgs keeps the signals that the interpreter knows: a script's end. Others cannot reach a simulated command.
func trapArgs(args []string) []string {
	code := func(text string) string {
		file, err := parse("trap", text)
		if err != nil {
			return "echo 'sh: trap: Syntax error' >&2"
		}
		return reparsed(file)
	}
	if len(args) < 3 {
		return []string{"true"}
	}
	rest := args[1:]
	if rest[0] == "--" {
		rest = rest[1:]
	}
	for _, signal := range rest[1:] {
		if signal == "0" || strings.TrimPrefix(signal, "SIG") == "EXIT" {
			if rest[0] == "-" {
				return []string{"trap", "-", "EXIT"}
			}
			return []string{"trap", code(rest[0]), "EXIT"}
		}
	}
	return []string{"true"}
}

// exec runs a command that is neither a function nor a builtin.
func (p *process) exec(ctx context.Context, args []string) error {
	hc := interp.HandlerCtx(ctx)
	child := &process{Args: args, Dir: hc.Dir, Env: exported(hc.Env), Stdin: hc.Stdin, Stdout: hc.Stdout, Stderr: hc.Stderr,
		User: p.User, machine: p.machine, session: p.session}
	if hc.Stdin == nil || hc.Stdin == (*os.File)(nil) {
		child.Stdin = strings.NewReader("")
	}
	var status int
	if name, ok := strings.CutPrefix(args[0], ownPrefix); ok {
		status = child.own(name, envValue(hc.Env, "PATH"))
	} else {
		status = child.run(ctx, envValue(hc.Env, "PATH"))
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if status != 0 {
		return interp.ExitStatus(uint8(status)) //nolint:gosec // statuses are 0 to 255
	}
	return nil
}

func exported(env expand.Environ) []string {
	var list []string
	env.Each(func(name string, v expand.Variable) bool {
		list = slices.DeleteFunc(list, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		if v.Exported && v.Set && v.Kind == expand.String {
			list = append(list, name+"="+v.Str)
		}
		return true
	})
	return list
}

func envValue(env expand.Environ, name string) string {
	if v := env.Get(name); v.Set {
		return v.Str
	}
	return ""
}

// own runs what call put in place of a builtin.
func (p *process) own(name, pathVariable string) int {
	args := p.Args[1:]
	switch name {
	case "not-found":
		return p.fail2(exitNotFound, "sh: %s: not found", args[0])
	case "syntax":
		return p.fail2(exitUsage, "sh: %s: %s", args[0], args[1])
	case "command-v", "type", "hash":
		status := 0
		for _, arg := range args {
			if strings.HasPrefix(arg, "-") {
				continue
			}
			found := p.whichever(arg, pathVariable)
			switch {
			case found == "":
				status = exitNotFound
				if name != "command-v" {
					fmt.Fprintf(p.Stderr, "sh: %s: %s: not found\n", name, arg)
				}
			case name == "command-v":
				fmt.Fprintln(p.Stdout, found)
			case name == "type":
				fmt.Fprintf(p.Stdout, "%s is %s\n", arg, found)
			}
		}
		return status
	case "pwd-P":
		real, err := p.machine.disk.realPath(p.Dir)
		if err != nil {
			return p.fail2(1, "pwd: %s", reason(err))
		}
		fmt.Fprintln(p.Stdout, real)
		return 0
	case "umask":
		p.session.mu.Lock()
		defer p.session.mu.Unlock()
		if len(args) == 0 {
			fmt.Fprintf(p.Stdout, "%04o\n", p.session.umask)
			return 0
		}
		mask, err := strconv.ParseUint(args[0], 8, 9)
		if err != nil {
			return p.fail2(exitUsage, "sh: umask: Illegal number: %s", args[0])
		}
		p.session.umask = fs.FileMode(mask)
		return 0
	default: // ulimit, kill, jobs: nothing here can be limited, and no process but the shell's own can be seen
		return 0
	}
}

// whichever returns what a name means to the shell: a function, a builtin or a path; "" when nothing.
func (p *process) whichever(name, pathVariable string) string {
	p.session.mu.Lock()
	function := p.session.funcs[name]
	p.session.mu.Unlock()
	if function || syntax.IsKeyword(name) || slices.Contains(strings.Fields(`. : [ break cd command continue echo eval exec exit
		export false getopts hash kill local printf pwd read readonly return set shift test times trap true type ulimit umask unset wait`), name) {
		return name
	}
	found, err := p.lookPath(name, pathVariable, true)
	if err != nil {
		return ""
	}
	return found
}

// lookPath finds a file as execvp does.
func (p *process) lookPath(name, pathVariable string, executable bool) (string, error) {
	candidates := []string{p.abs(name)}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, dir := range strings.Split(pathVariable, ":") {
			candidates = append(candidates, path.Join(p.abs(dir), name))
		}
	}
	denied := false
	for _, candidate := range candidates {
		info, err := p.machine.disk.stat(candidate, true)
		if err != nil || info.IsDir() {
			continue
		}
		if !executable || info.Mode().Perm()&0o111 != 0 {
			return candidate, nil
		}
		denied = true
	}
	if denied {
		return "", fs.ErrPermission
	}
	return "", fs.ErrNotExist
}

// run runs an executable of the guest's disk: one of the commands, or a script.
func (p *process) run(ctx context.Context, pathVariable string) int {
	name := p.Args[0]
	found, err := p.lookPath(name, pathVariable, true)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return p.fail2(exitNotExecutable, "sh: %s: Permission denied", name)
	case err != nil:
		return p.fail2(exitNotFound, "sh: %s: not found", name)
	}
	info, err := p.machine.disk.stat(found, true)
	if err != nil {
		return p.fail2(exitNotFound, "sh: %s: not found", name)
	}
	if p.machine.hooks.Executing != nil && !p.machine.hooks.Executing(ctx, path.Base(found)) {
		<-ctx.Done()
		return exitKilled
	}
	if info.command != "" {
		p.Args = append([]string{path.Base(name)}, p.Args[1:]...)
		return p.machine.image.commands[info.command](ctx, p)
	}
	text, err := p.machine.disk.readFile(found)
	if err != nil {
		return p.fail2(exitNotExecutable, "sh: %s: %s", name, reason(err))
	}
	first, _, _ := strings.Cut(string(text), "\n")
	if line, ok := strings.CutPrefix(first, "#!"); ok {
		words := strings.Fields(line)
		if len(words) > 1 && path.Base(words[0]) == "env" {
			words = words[1:]
		}
		if len(words) == 0 || !slices.Contains([]string{"sh", "bash", "dash"}, path.Base(words[0])) {
			return p.fail2(exitNotExecutable, "sh: %s: cannot execute: required file not found", name)
		}
		p.Args = append(append([]string{"sh"}, words[1:]...), append([]string{"--", found}, p.Args[1:]...)...)
		return shell(ctx, p)
	}
	if strings.ContainsRune(first, 0) {
		return p.fail2(exitNotExecutable, "sh: %s: Exec format error", name)
	}
	p.Args = append([]string{"sh", "--", found}, p.Args[1:]...)
	return shell(ctx, p)
}

// spawn runs another command with this one's streams, as env, timeout and xargs do.
func (p *process) spawn(ctx context.Context, args []string, stdin io.Reader) int {
	child := *p
	child.Args = args
	if stdin != nil {
		child.Stdin = stdin
	}
	pathVariable := defaultPath
	for _, v := range p.Env {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			pathVariable = value
		}
	}
	return child.run(ctx, pathVariable)
}

func (p *process) abs(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	if name == "" {
		return p.Dir
	}
	return strings.TrimSuffix(p.Dir, "/") + "/" + name
}

func (p *process) openFile(ctx context.Context, name string, flag int, perm fs.FileMode) (io.ReadWriteCloser, error) {
	hc := interp.HandlerCtx(ctx)
	if sourced, ok := strings.CutPrefix(name, noHost); ok {
		if text, ok := p.session.sourced(sourced); ok {
			return &stream{Reader: strings.NewReader(text), Writer: io.Discard}, nil
		}
		return nil, pathError("open", sourced, fs.ErrNotExist)
	}
	switch name {
	case "/dev/stdin":
		return &stream{Reader: hc.Stdin, Writer: io.Discard}, nil
	case "/dev/stdout":
		return &stream{Reader: strings.NewReader(""), Writer: hc.Stdout}, nil
	case "/dev/stderr":
		return &stream{Reader: strings.NewReader(""), Writer: hc.Stderr}, nil
	}
	at := *p
	at.Dir = hc.Dir
	return p.machine.disk.open(at.abs(name), flag, p.mask(perm))
}

type stream struct {
	io.Reader
	io.Writer
}

func (*stream) Close() error { return nil }

func (p *process) mask(mode fs.FileMode) fs.FileMode {
	p.session.mu.Lock()
	defer p.session.mu.Unlock()
	if mode == 0o644 { // what the interpreter passes; a shell passes 0666 and lets the umask decide
		mode = 0o666
	}
	return mode &^ p.session.umask
}

func (p *process) readDir(ctx context.Context, name string) ([]fs.DirEntry, error) {
	at := *p
	at.Dir = interp.HandlerCtx(ctx).Dir
	infos, err := p.machine.disk.readDir(at.abs(name))
	entries := make([]fs.DirEntry, 0, len(infos))
	for _, info := range infos {
		entries = append(entries, info)
	}
	return entries, err
}

func (p *process) stat(ctx context.Context, name string, follow bool) (fs.FileInfo, error) {
	at := *p
	at.Dir = interp.HandlerCtx(ctx).Dir
	info, err := p.machine.disk.stat(at.abs(name), follow)
	if err != nil {
		return nil, err
	}
	return info, nil
}

func (p *process) access(_ context.Context, name string, mode interp.AccessMode) error {
	info, err := p.machine.disk.stat(name, true)
	if err != nil {
		return err
	}
	// Everybody here is root: only the right to execute depends on the mode.
	if mode&interp.AccessExec != 0 && !info.IsDir() && info.Mode().Perm()&0o111 == 0 {
		return pathError("access", name, fs.ErrPermission)
	}
	return nil
}

// fail prints an error the way the named command does and returns status.
func (p *process) fail(status int, format string, args ...any) int {
	return p.fail2(status, "%s: "+format, append([]any{p.Args[0]}, args...)...)
}

func (p *process) fail2(status int, format string, args ...any) int {
	fmt.Fprintf(p.Stderr, format+"\n", args...)
	return status
}

// reason returns an error's cause in the words of strerror.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	text := err.Error()
	if text == "" {
		return text
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
