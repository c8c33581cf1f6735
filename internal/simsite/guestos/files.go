package guestos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// open returns a reader of an operand: "-" and none are standard input.
func (p *process) open(name string) (io.Reader, error) {
	if name == "-" || name == "/dev/stdin" {
		return p.Stdin, nil
	}
	h, err := p.machine.disk.open(p.abs(name), syscall.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	if h.node.isDir() {
		return nil, pathError("read", name, syscall.EISDIR)
	}
	return h, nil
}

// inputs calls use for each operand, or for standard input when there is none, and returns 1 if one failed.
func (p *process) inputs(operands []string, use func(name string, text []byte)) int {
	if len(operands) == 0 {
		operands = []string{"-"}
	}
	status := 0
	for _, name := range operands {
		r, err := p.open(name)
		if err == nil {
			var text []byte
			if text, err = io.ReadAll(r); err == nil {
				use(name, text)
				continue
			}
		}
		status = p.fail(1, "%s: %s", name, reason(err))
	}
	return status
}

func cat(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "n u s v A E T")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	if len(operands) == 0 {
		operands = []string{"-"}
	}
	status, number := 0, 0
	for _, name := range operands {
		r, err := p.open(name)
		if err == nil && !f.has("n") {
			_, err = io.Copy(p.Stdout, r)
		} else if err == nil {
			var text []byte
			text, err = io.ReadAll(r)
			for line := range bytes.Lines(text) {
				number++
				fmt.Fprintf(p.Stdout, "%6d\t%s", number, line)
			}
		}
		if err != nil {
			status = p.fail(1, "%s: %s", name, reason(err))
		}
	}
	return status
}

func tee(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "a i append=a")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	flag := syscall.O_WRONLY | syscall.O_CREAT | syscall.O_TRUNC
	if f.has("a") {
		flag = syscall.O_WRONLY | syscall.O_CREAT | syscall.O_APPEND
	}
	writers := []io.Writer{p.Stdout}
	status := 0
	for _, name := range operands {
		h, err := p.machine.disk.open(p.abs(name), flag, p.mask(0o666))
		if err != nil {
			status = p.fail(1, "%s: %s", name, reason(err))
			continue
		}
		writers = append(writers, h)
	}
	if _, err := io.Copy(io.MultiWriter(writers...), p.Stdin); err != nil {
		status = p.fail(1, "%s", reason(err))
	}
	return status
}

// into returns where a source goes: into target if that is a directory.
func (p *process) into(source, target string) string {
	if info, err := p.machine.disk.stat(p.abs(target), true); err == nil && info.IsDir() {
		return strings.TrimSuffix(p.abs(target), "/") + "/" + path.Base(path.Clean(source))
	}
	return p.abs(target)
}

func cp(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "a p r R f n T d L P v preserve=p recursive=R archive=a force=f no-clobber=n no-target-directory=T t: target-directory=t:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	return p.transfer(f, operands, "cannot copy", func(source, to string) error { return p.copyTree(source, to, f) })
}

// transfer does something with each source and where it goes.
func (p *process) transfer(f flags, operands []string, complaint string, do func(source, to string) error) int {
	sources, target, code := p.operands(f, operands)
	if code != 0 {
		return code
	}
	return p.all(sources, complaint, func(source string) error {
		to := p.abs(target)
		if !f.has("T") {
			to = p.into(source, target)
		}
		return do(p.abs(source), to)
	})
}

// all does something with each operand, complains of those with which it goes wrong, and returns 1 if there are any.
func (p *process) all(operands []string, complaint string, do func(name string) error) int {
	status := 0
	for _, name := range operands {
		if err := do(name); err != nil {
			status = p.fail(1, "%s '%s': %s", complaint, name, reason(err))
		}
	}
	return status
}

func (p *process) operands(f flags, operands []string) (sources []string, target string, status int) {
	if dir := f.last("t"); dir != "" {
		return operands, dir, 0
	}
	if len(operands) < 2 {
		return nil, "", p.fail(1, "missing file operand")
	}
	target = operands[len(operands)-1]
	sources = operands[:len(operands)-1]
	if len(sources) > 1 {
		if info, err := p.machine.disk.stat(p.abs(target), true); err != nil || !info.IsDir() {
			return nil, "", p.fail(1, "target '%s' is not a directory", target)
		}
	}
	return sources, target, 0
}

func (p *process) copyTree(from, to string, f flags) error {
	disk := p.machine.disk
	keep := f.has("a", "p")
	recursive := f.has("a", "r", "R")
	info, err := disk.stat(from, !(f.has("a", "d", "P") || recursive))
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		_ = disk.remove(to, false)
		return disk.symlink(info.target, to)
	}
	if info.IsDir() {
		if !recursive {
			return errors.New("-r not specified; omitting directory")
		}
		if strings.HasPrefix(path.Clean(to)+"/", path.Clean(from)+"/") {
			return errors.New("cannot copy a directory into itself")
		}
		if err := disk.mkdirAll(to, 0o755); err != nil {
			return err
		}
		entries, err := disk.readDir(from)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := p.copyTree(from+"/"+entry.name, to+"/"+entry.name, f); err != nil {
				return err
			}
		}
	} else {
		if _, err := disk.stat(to, true); err == nil && f.has("n") {
			return nil
		}
		text, err := disk.readFile(from)
		if err != nil {
			return err
		}
		if err := disk.writeFile(to, text, info.Mode().Perm()); err != nil {
			return err
		}
		if info.command != "" {
			_ = disk.change(to, true, func(n *node) { n.command = info.command })
		}
	}
	if keep {
		return disk.change(to, true, func(n *node) {
			n.mode = n.mode.Type() | info.Mode().Perm()
			n.mtime, n.uid, n.gid = info.mtime, info.uid, info.gid
		})
	}
	return nil
}

func mv(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "f n i v T t: force=f no-clobber=n target-directory=t: no-target-directory=T")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	return p.transfer(f, operands, "cannot move", func(source, to string) error {
		if _, err := p.machine.disk.stat(to, false); err == nil && f.has("n") {
			return nil
		}
		return p.machine.disk.rename(source, to)
	})
}

func rm(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "f r R d v i recursive=r force=f dir=d")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	if len(operands) == 0 && !f.has("f") {
		return p.fail(1, "missing operand")
	}
	return p.all(operands, "cannot remove", func(name string) error {
		if base := path.Base(path.Clean(name)); base == "/" || name == "." || name == ".." {
			return errors.New("refusing to remove it")
		}
		info, err := p.machine.disk.stat(p.abs(name), false)
		if err == nil && info.IsDir() && !f.has("r", "R", "d") {
			err = syscall.EISDIR
		}
		if err == nil {
			err = p.machine.disk.remove(p.abs(name), f.has("r", "R"))
		}
		if f.has("f") && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

func rmdir(_ context.Context, p *process) int {
	_, operands, err := options(p.Args[1:], "p v")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	return p.all(operands, "failed to remove", func(name string) error {
		info, err := p.machine.disk.stat(p.abs(name), false)
		if err == nil && !info.IsDir() {
			err = syscall.ENOTDIR
		}
		if err == nil {
			err = p.machine.disk.remove(p.abs(name), false)
		}
		return err
	})
}

func mkdir(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "p m: v parents=p mode=m:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	create := p.machine.disk.mkdir
	if f.has("p") {
		create = p.machine.disk.mkdirAll
	}
	return p.all(operands, "cannot create directory", func(name string) error {
		_, before := p.machine.disk.stat(p.abs(name), true)
		err := create(p.abs(name), p.mask(0o777))
		if err == nil && f.has("m") && before != nil {
			err = p.chmodOne(p.abs(name), f.last("m"))
		}
		return err
	})
}

func touch(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "c a m d: t: r: no-create=c date=d: reference=r:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	at := p.machine.Now()
	if text := f.last("d"); text != "" {
		if at, err = parseDate(text, at); err != nil {
			return p.fail(1, "%v", err)
		}
	}
	if ref := f.last("r"); ref != "" {
		info, err := p.machine.disk.stat(p.abs(ref), true)
		if err != nil {
			return p.fail(1, "failed to get attributes of '%s': %s", ref, reason(err))
		}
		at = info.mtime
	}
	return p.all(operands, "cannot touch", func(name string) error {
		if _, err := p.machine.disk.stat(p.abs(name), true); err != nil {
			if f.has("c") {
				return nil
			}
			if err := p.machine.disk.writeFile(p.abs(name), nil, p.mask(0o666)); err != nil {
				return err
			}
		}
		return p.machine.disk.change(p.abs(name), true, func(n *node) { n.mtime = at })
	})
}

// chmodOne applies an octal or symbolic mode.
func (p *process) chmodOne(name, mode string) error {
	var bad error
	err := p.machine.disk.change(name, true, func(n *node) {
		perm, special, err := newMode(n.mode, mode)
		if err != nil {
			bad = err
			return
		}
		n.mode = n.mode.Type() | special | perm
	})
	return errors.Join(err, bad)
}

func newMode(old fs.FileMode, mode string) (perm, special fs.FileMode, err error) {
	special = old & (fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if bits, err := strconv.ParseUint(mode, 8, 12); err == nil {
		special = 0
		for bit, m := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
			if bits&bit != 0 {
				special |= m
			}
		}
		return fs.FileMode(bits) & fs.ModePerm, special, nil
	}
	perm = old.Perm()
	for _, clause := range strings.Split(mode, ",") {
		at := strings.IndexAny(clause, "+-=")
		if at < 0 {
			return 0, 0, fmt.Errorf("invalid mode: '%s'", mode)
		}
		who := clause[:at]
		if who == "" || strings.Contains(who, "a") {
			who = "ugo"
		}
		var bits fs.FileMode
		for _, c := range clause[at+1:] {
			switch c {
			case 'r':
				bits |= 4
			case 'w':
				bits |= 2
			case 'x':
				bits |= 1
			case 'X':
				if old.IsDir() || old.Perm()&0o111 != 0 {
					bits |= 1
				}
			case 's', 't':
			default:
				return 0, 0, fmt.Errorf("invalid mode: '%s'", mode)
			}
		}
		for _, w := range who {
			shift := map[rune]int{'u': 6, 'g': 3, 'o': 0}[w]
			switch clause[at] {
			case '+':
				perm |= bits << shift
			case '-':
				perm &^= bits << shift
			case '=':
				perm = perm&^(7<<shift) | bits<<shift
			}
		}
	}
	return perm, special, nil
}

// walk calls visit for name and all below it, parents first.
func (p *process) walk(name string, visit func(name string, info fileInfo)) error {
	info, err := p.machine.disk.stat(p.abs(name), false)
	if err != nil {
		return err
	}
	visit(name, info)
	if !info.IsDir() {
		return nil
	}
	entries, err := p.machine.disk.readDir(p.abs(name))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := p.walk(strings.TrimSuffix(name, "/")+"/"+entry.name, visit); err != nil {
			return err
		}
	}
	return nil
}

func chmod(_ context.Context, p *process) int {
	args, recursive := p.Args[1:], false
	for len(args) > 0 && slices.Contains([]string{"-R", "-f", "-v", "-c", "--"}, args[0]) {
		recursive = recursive || args[0] == "-R"
		args = args[1:]
	}
	if len(args) < 2 {
		return p.fail(1, "missing operand")
	}
	return p.each(args[1:], recursive, func(name string, _ fileInfo) error { return p.chmodOne(p.abs(name), args[0]) })
}

// each applies do to operands, and with recursive to all below them.
func (p *process) each(operands []string, recursive bool, do func(name string, info fileInfo) error) int {
	status := 0
	for _, name := range operands {
		visit := func(name string, info fileInfo) {
			if info.Mode()&fs.ModeSymlink != 0 && recursive {
				return
			}
			if err := do(name, info); err != nil {
				status = p.fail(1, "%s: %s", name, reason(err))
			}
		}
		var err error
		if recursive {
			err = p.walk(name, visit)
		} else {
			var info fileInfo
			if info, err = p.machine.disk.stat(p.abs(name), true); err == nil {
				visit(name, info)
			}
		}
		if err != nil {
			status = p.fail(1, "cannot access '%s': %s", name, reason(err))
		}
	}
	return status
}

func chown(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "R f v h recursive=R reference=r: no-dereference=h")
	if err != nil || len(operands) < 2 {
		return p.fail(1, "missing operand")
	}
	owner, group, withGroup := strings.Cut(operands[0], ":")
	if !withGroup {
		owner, group, withGroup = strings.Cut(operands[0], ".")
	}
	if p.Args[0] == "chgrp" {
		owner, group, withGroup = "", operands[0], true
	}
	uid, gid := -1, -1
	if owner != "" {
		if uid = p.machine.uid(owner); uid < 0 {
			return p.fail(1, "invalid user: '%s'", operands[0])
		}
	}
	if withGroup && group != "" {
		if gid = p.machine.gid(group); gid < 0 {
			return p.fail(1, "invalid group: '%s'", operands[0])
		}
	}
	return p.each(operands[1:], f.has("R"), func(name string, _ fileInfo) error {
		return p.machine.disk.change(p.abs(name), !f.has("h"), func(n *node) {
			if uid >= 0 {
				n.uid = uid
			}
			if gid >= 0 {
				n.gid = gid
			}
		})
	})
}

func ln(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "s f n T v r symbolic=s force=f no-dereference=n")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	if len(operands) == 1 {
		operands = append(operands, ".")
	}
	if len(operands) != 2 {
		return p.fail(1, "give one target and one name")
	}
	to := p.abs(operands[1])
	if !f.has("n", "T") {
		to = p.into(operands[0], operands[1])
	}
	if f.has("f") {
		if info, err := p.machine.disk.stat(to, false); err == nil && !info.IsDir() {
			_ = p.machine.disk.remove(to, false)
		}
	}
	if f.has("s") {
		err = p.machine.disk.symlink(operands[0], to)
	} else if _, err = p.machine.disk.stat(to, false); err == nil {
		err = pathError("link", to, syscall.EEXIST)
	} else {
		// A hard link is a copy here: no script of a guest's can tell unless it writes to one of the two names later.
		err = p.copyTree(p.abs(operands[0]), to, flags{"a": {""}})
	}
	if err != nil {
		return p.fail(1, "failed to create link '%s': %s", operands[1], reason(err))
	}
	return 0
}

func install(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "d D m: o: g: p v T t: mode=m: owner=o: group=g: directory=d target-directory=t:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	mode := f.last("m")
	if mode == "" {
		mode = "755"
	}
	if f.has("d") {
		return p.makeDirs(operands, mode)
	}
	sources, target, code := p.operands(f, operands)
	if code != 0 {
		return code
	}
	for _, source := range sources {
		to := p.into(source, target)
		if f.has("D") {
			_ = p.machine.disk.mkdirAll(path.Dir(to), 0o755)
		}
		text, err := p.readOperand(source)
		if err == nil {
			err = p.machine.disk.writeFile(to, text, 0o600)
		}
		if err == nil {
			err = p.chmodOne(to, mode)
		}
		if err != nil {
			return p.fail(1, "cannot install '%s': %s", source, reason(err))
		}
	}
	return 0
}

func (p *process) makeDirs(names []string, mode string) int {
	for _, name := range names {
		err := p.machine.disk.mkdirAll(p.abs(name), 0o755)
		if err == nil {
			err = p.chmodOne(p.abs(name), mode)
		}
		if err != nil {
			return p.fail(1, "cannot create directory '%s': %s", name, reason(err))
		}
	}
	return 0
}

func (p *process) readOperand(name string) ([]byte, error) {
	r, err := p.open(name)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// modeText returns a mode as ls -l prints it.
func modeText(m fs.FileMode) string {
	kind := "-"
	switch {
	case m.IsDir():
		kind = "d"
	case m&fs.ModeSymlink != 0:
		kind = "l"
	case m&fs.ModeCharDevice != 0:
		kind = "c"
	}
	text := []byte(kind + m.Perm().String()[1:])
	if m&fs.ModeSticky != 0 {
		text[9] = 't'
	}
	return string(text)
}

func modeNumber(m fs.FileMode) uint32 {
	n := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		n |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		n |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		n |= 0o1000
	}
	return n
}

func ls(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "l a A 1 d n h t r R F p i s L S almost-all=A all=a")
	if err != nil {
		return p.fail(2, "%v", err)
	}
	if len(operands) == 0 {
		operands = []string{"."}
	}
	show := func(name string, info fileInfo) {
		if !f.has("l", "n") {
			fmt.Fprintln(p.Stdout, name)
			return
		}
		owner, group := p.machine.userName(info.uid), p.machine.groupName(info.gid)
		if f.has("n") {
			owner, group = strconv.Itoa(info.uid), strconv.Itoa(info.gid)
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			name += " -> " + info.target
		}
		fmt.Fprintf(p.Stdout, "%s %d %s %s %d %s %s\n", modeText(info.mode), info.links, owner, group, info.size, info.mtime.Format("Jan _2 15:04"), name)
	}
	status := 0
	for _, name := range operands {
		info, err := p.machine.disk.stat(p.abs(name), !f.has("l", "d"))
		if err != nil {
			status = p.fail(2, "cannot access '%s': %s", name, reason(err))
			continue
		}
		if !info.IsDir() || f.has("d") {
			show(name, info)
			continue
		}
		entries, err := p.machine.disk.readDir(p.abs(name))
		if err != nil {
			status = p.fail(2, "cannot open directory '%s': %s", name, reason(err))
			continue
		}
		if len(operands) > 1 {
			fmt.Fprintf(p.Stdout, "%s:\n", name)
		}
		if f.has("t") {
			slices.SortStableFunc(entries, func(a, b fileInfo) int { return b.mtime.Compare(a.mtime) })
		}
		if f.has("r") {
			slices.Reverse(entries)
		}
		if f.has("a") {
			show(".", info)
			show("..", info)
		}
		for _, entry := range entries {
			if strings.HasPrefix(entry.name, ".") && !f.has("a", "A") {
				continue
			}
			show(entry.name, entry)
		}
	}
	return status
}

func stat(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "c: L f t format=c: printf=P: dereference=L")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	status := 0
	for _, name := range operands {
		info, err := p.machine.disk.stat(p.abs(name), f.has("L"))
		if err != nil {
			status = p.fail(1, "cannot statx '%s': %s", name, reason(err))
			continue
		}
		kind := "regular file"
		switch {
		case info.IsDir():
			kind = "directory"
		case info.Mode()&fs.ModeSymlink != 0:
			kind = "symbolic link"
		case info.Mode()&fs.ModeCharDevice != 0:
			kind = "character special file"
		case info.size == 0:
			kind = "regular empty file"
		}
		values := strings.NewReplacer("%%", "%", "%a", strconv.FormatUint(uint64(modeNumber(info.mode)), 8), "%A", modeText(info.mode),
			"%s", strconv.FormatInt(info.size, 10), "%U", p.machine.userName(info.uid), "%G", p.machine.groupName(info.gid),
			"%u", strconv.Itoa(info.uid), "%g", strconv.Itoa(info.gid), "%n", name, "%F", kind, "%h", strconv.Itoa(info.links),
			"%Y", strconv.FormatInt(info.mtime.Unix(), 10), "%y", info.mtime.Format("2006-01-02 15:04:05.000000000 -0700"),
			"%Z", strconv.FormatInt(info.mtime.Unix(), 10), "%X", strconv.FormatInt(info.mtime.Unix(), 10))
		format := "  File: %n\n  Size: %s\t%F\nAccess: (%a/%A)  Uid: (%u/%U)   Gid: (%g/%G)\nModify: %y"
		if f.has("c") {
			format = f.last("c")
		}
		if f.has("P") {
			fmt.Fprint(p.Stdout, unescape(values.Replace(f.last("P"))))
			continue
		}
		fmt.Fprintln(p.Stdout, values.Replace(format))
	}
	return status
}

func readlink(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "f e m n q s canonicalize=f canonicalize-existing=e")
	if err != nil || len(operands) == 0 {
		return p.fail(1, "missing operand")
	}
	status := 0
	for _, name := range operands {
		if f.has("f", "e", "m") || p.Args[0] == "realpath" {
			real, err := p.machine.disk.realPath(p.abs(name))
			if err == nil && (f.has("e") || p.Args[0] == "realpath") {
				_, err = p.machine.disk.stat(real, true)
			}
			if err != nil {
				status = 1
				continue
			}
			fmt.Fprintln(p.Stdout, real)
			continue
		}
		info, err := p.machine.disk.stat(p.abs(name), false)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			status = 1
			continue
		}
		fmt.Fprint(p.Stdout, info.target)
		if !f.has("n") {
			fmt.Fprintln(p.Stdout)
		}
	}
	return status
}

func mktemp(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "d q u t p: tmpdir=p: directory=d dry-run=u suffix=s:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	template := "tmp.XXXXXXXXXX"
	dir := ""
	if len(operands) > 0 {
		template = operands[0]
	}
	if f.has("t", "p") || len(operands) == 0 {
		dir = "/tmp"
		for _, v := range p.Env {
			if value, ok := strings.CutPrefix(v, "TMPDIR="); ok && value != "" {
				dir = value
			}
		}
		if f.last("p") != "" {
			dir = f.last("p")
		}
		template = strings.TrimSuffix(dir, "/") + "/" + template
	}
	body := strings.TrimRight(template, "X")
	xs := len(template) - len(body)
	if xs < 3 {
		return p.fail(1, "too few X's in template '%s'", template)
	}
	for range 100 {
		name := body + randomText(xs, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") + f.last("s")
		var err error
		switch {
		case f.has("u"):
		case f.has("d"):
			err = p.machine.disk.mkdir(p.abs(name), 0o700)
		default:
			_, err = p.machine.disk.open(p.abs(name), syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL, 0o600)
		}
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return p.fail(1, "failed to create file via template '%s': %s", template, reason(err))
		}
		fmt.Fprintln(p.Stdout, name)
		return 0
	}
	return p.fail(1, "failed to create file via template '%s': File exists", template)
}

func basename(_ context.Context, p *process) int {
	args := p.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return p.fail(1, "missing operand")
	}
	if p.Args[0] == "dirname" {
		for _, name := range args {
			name = strings.TrimRight(name, "/")
			i := strings.LastIndexByte(name, '/')
			switch {
			case i < 0 && name != "":
				name = "."
			case i <= 0:
				name = "/"
			default:
				name = strings.TrimRight(name[:i], "/")
				if name == "" {
					name = "/"
				}
			}
			fmt.Fprintln(p.Stdout, name)
		}
		return 0
	}
	base := path.Base(args[0])
	if len(args) > 1 && base != args[1] {
		base = strings.TrimSuffix(base, args[1])
	}
	fmt.Fprintln(p.Stdout, base)
	return 0
}

func truncate(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "s: c size=s: no-create=c")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	size, err := strconv.Atoi(f.last("s"))
	if err != nil || size < 0 || size > maxFileBytes {
		return p.fail(1, "Invalid number: '%s'", f.last("s"))
	}
	for _, name := range operands {
		text, err := p.machine.disk.readFile(p.abs(name))
		if err != nil && f.has("c") {
			continue
		}
		text = append(text, make([]byte, size)...)[:size]
		if err := p.machine.disk.writeFile(p.abs(name), text, p.mask(0o666)); err != nil {
			return p.fail(1, "cannot open '%s': %s", name, reason(err))
		}
	}
	return 0
}

// find knows the tests and actions that scripts use; all of one expression are joined by "and" unless -o stands between.
func find(ctx context.Context, p *process) int {
	args := p.Args[1:]
	for len(args) > 0 && (args[0] == "-L" || args[0] == "-P" || args[0] == "-H") {
		args = args[1:]
	}
	var roots []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && args[0] != "!" && args[0] != "(" {
		roots = append(roots, args[0])
		args = args[1:]
	}
	if len(roots) == 0 {
		roots = []string{"."}
	}
	e := finder{p: p, args: args, maxDepth: -1}
	test, err := e.parseOr(ctx)
	if err == nil && len(e.args) > 0 {
		err = fmt.Errorf("unexpected argument '%s'", e.args[0])
	}
	if err != nil {
		return p.fail(1, "%v", err)
	}
	status := 0
	var visit func(name string, depth int)
	visit = func(name string, depth int) {
		if ctx.Err() != nil {
			return
		}
		info, err := p.machine.disk.stat(p.abs(name), false)
		if err != nil {
			status = p.fail(1, "'%s': %s", name, reason(err))
			return
		}
		here := func() {
			if depth >= e.minDepth && test(name, info) && !e.acts {
				fmt.Fprintln(p.Stdout, name)
			}
		}
		e.pruned = false
		if !e.depthFirst {
			here()
		}
		if info.IsDir() && !e.pruned && (e.maxDepth < 0 || depth < e.maxDepth) {
			entries, _ := p.machine.disk.readDir(p.abs(name))
			for _, entry := range entries {
				visit(strings.TrimSuffix(name, "/")+"/"+entry.name, depth+1)
			}
		}
		if e.depthFirst {
			here()
		}
	}
	for _, root := range roots {
		visit(root, 0)
	}
	for _, batch := range e.batches {
		if len(batch.names) > 0 {
			if code := p.spawn(ctx, append(slices.Clone(batch.command), batch.names...), strings.NewReader("")); code != 0 {
				status = 1
			}
		}
	}
	return status
}

type finder struct {
	p                  *process
	args               []string
	minDepth, maxDepth int
	depthFirst, acts   bool
	pruned             bool
	batches            []*batch
}

type batch struct{ command, names []string }

type findTest func(name string, info fileInfo) bool

func (e *finder) parseOr(ctx context.Context) (findTest, error) {
	left, err := e.parseAnd(ctx)
	for err == nil && len(e.args) > 0 && (e.args[0] == "-o" || e.args[0] == "-or") {
		e.args = e.args[1:]
		var right findTest
		if right, err = e.parseAnd(ctx); err == nil {
			a, b := left, right
			left = func(n string, i fileInfo) bool { return a(n, i) || b(n, i) }
		}
	}
	return left, err
}

func (e *finder) parseAnd(ctx context.Context) (findTest, error) {
	all := func(string, fileInfo) bool { return true }
	for len(e.args) > 0 && e.args[0] != "-o" && e.args[0] != "-or" && e.args[0] != ")" {
		if e.args[0] == "-a" {
			e.args = e.args[1:]
			continue
		}
		one, err := e.parseOne(ctx)
		if err != nil {
			return nil, err
		}
		before := all
		all = func(n string, i fileInfo) bool { return before(n, i) && one(n, i) }
	}
	return all, nil
}

func (e *finder) parseOne(ctx context.Context) (findTest, error) {
	word := e.args[0]
	e.args = e.args[1:]
	value := func() (string, error) {
		if len(e.args) == 0 {
			return "", fmt.Errorf("missing argument to '%s'", word)
		}
		v := e.args[0]
		e.args = e.args[1:]
		return v, nil
	}
	number := func() (int, error) {
		v, err := value()
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimLeft(v, "+-"))
	}
	switch word {
	case "!", "-not":
		if len(e.args) == 0 {
			return nil, errors.New("expected an expression after '!'")
		}
		one, err := e.parseOne(ctx)
		return func(n string, i fileInfo) bool { return !one(n, i) }, err
	case "(":
		inner, err := e.parseOr(ctx)
		if err == nil && len(e.args) == 0 {
			err = errors.New("missing ')'")
		}
		if err != nil {
			return nil, err
		}
		e.args = e.args[1:]
		return inner, nil
	case "-name", "-iname", "-path", "-wholename":
		pattern, err := value()
		return func(n string, i fileInfo) bool {
			subject := path.Base(n)
			if word == "-path" || word == "-wholename" {
				// path.Match stops at slashes and find's -path does not.
				subject, pattern := strings.ReplaceAll(n, "/", "\x01"), strings.ReplaceAll(pattern, "/", "\x01")
				ok, _ := path.Match(pattern, subject)
				return ok
			}
			if word == "-iname" {
				subject, pattern = strings.ToLower(subject), strings.ToLower(pattern)
			}
			ok, _ := path.Match(pattern, subject)
			return ok
		}, err
	case "-type":
		kind, err := value()
		return func(_ string, i fileInfo) bool {
			return strings.Contains(strings.ReplaceAll(kind, "f", "-"), modeText(i.mode)[:1])
		}, err
	case "-maxdepth", "-mindepth":
		n, err := number()
		if word == "-maxdepth" {
			e.maxDepth = n
		} else {
			e.minDepth = n
		}
		return func(string, fileInfo) bool { return true }, err
	case "-depth":
		e.depthFirst = true
		return func(string, fileInfo) bool { return true }, nil
	case "-empty":
		return func(n string, i fileInfo) bool {
			if !i.IsDir() {
				return i.size == 0
			}
			entries, _ := e.p.machine.disk.readDir(e.p.abs(n))
			return len(entries) == 0
		}, nil
	case "-perm":
		text, err := value()
		if err != nil {
			return nil, err
		}
		bits, err := strconv.ParseUint(strings.TrimLeft(text, "-/"), 8, 12)
		return func(_ string, i fileInfo) bool {
			have := uint64(modeNumber(i.mode))
			switch text[0] {
			case '-':
				return have&bits == bits
			case '/':
				return have&bits != 0
			}
			return have == bits
		}, err
	case "-newer":
		other, err := value()
		if err != nil {
			return nil, err
		}
		info, err := e.p.machine.disk.stat(e.p.abs(other), true)
		return func(_ string, i fileInfo) bool { return i.mtime.After(info.mtime) }, err
	case "-mtime", "-mmin":
		text, err := value()
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(strings.TrimLeft(text, "+-"))
		unit := 24 * time.Hour
		if word == "-mmin" {
			unit = time.Minute
		}
		return func(_ string, i fileInfo) bool {
			age := int(e.p.machine.Now().Sub(i.mtime) / unit)
			switch text[0] {
			case '+':
				return age > n
			case '-':
				return age < n
			}
			return age == n
		}, err
	case "-user":
		name, err := value()
		return func(_ string, i fileInfo) bool { return e.p.machine.userName(i.uid) == name }, err
	case "-print", "-print0":
		e.acts = true
		end := "\n"
		if word == "-print0" {
			end = "\x00"
		}
		return func(n string, _ fileInfo) bool { fmt.Fprint(e.p.Stdout, n+end); return true }, nil
	case "-delete":
		e.acts, e.depthFirst = true, true
		return func(n string, _ fileInfo) bool { return e.p.machine.disk.remove(e.p.abs(n), false) == nil }, nil
	case "-prune":
		return func(string, fileInfo) bool { e.pruned = true; return true }, nil
	case "-xdev", "-mount":
		return func(string, fileInfo) bool { return true }, nil
	case "-exec":
		e.acts = true
		var command []string
		for len(e.args) > 0 && e.args[0] != ";" && e.args[0] != "+" {
			command = append(command, e.args[0])
			e.args = e.args[1:]
		}
		if len(e.args) == 0 || len(command) == 0 {
			return nil, errors.New("missing argument to '-exec'")
		}
		plus := e.args[0] == "+"
		e.args = e.args[1:]
		if plus {
			b := &batch{command: slices.DeleteFunc(command, func(s string) bool { return s == "{}" })}
			e.batches = append(e.batches, b)
			return func(n string, _ fileInfo) bool { b.names = append(b.names, n); return true }, nil
		}
		return func(n string, _ fileInfo) bool {
			args := slices.Clone(command)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "{}", n)
			}
			return e.p.spawn(ctx, args, strings.NewReader("")) == 0
		}, nil
	}
	return nil, fmt.Errorf("unknown predicate '%s'", word)
}
