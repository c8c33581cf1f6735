package guestos

import (
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxFileBytes is how much a guest's own files may hold: a script in a loop must not eat the memory of the simulation.
const maxFileBytes = 32 << 20

// maxLinks is how many symbolic links one path may lead through (Linux: 40).
const maxLinks = 40

// node is one file, directory, link or device. Nodes are shared between guests until one of them writes: a node belongs
// to the file system in owner, and one that belongs to another (or to none: the image) is copied before it is changed.
type node struct {
	mode     fs.FileMode
	uid, gid int
	mtime    time.Time
	owner    *fileSystem
	data     []byte
	children map[string]*node
	target   string
	dynamic  func(*Machine) []byte // contents made at each read: /proc
	command  string                // which of the commands this executable is
	fresh    bool                  // data is nobody else's: it may be changed in place
}

func (n *node) isDir() bool  { return n.mode.IsDir() }
func (n *node) isLink() bool { return n.mode&fs.ModeSymlink != 0 }

// fileSystem is a guest's tree. It is safe for concurrent use.
type fileSystem struct {
	machine *Machine

	mu   sync.Mutex
	root *node
	used int64
}

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// place is a resolved path: free of links, "." and "..".
type place struct {
	parts []string
	node  *node // nil when the last part does not exist
}

func (p place) String() string { return "/" + strings.Join(p.parts, "/") }

// resolve follows name from the root. A missing last part is no error: node is nil then. Nothing can lead out of the
// tree: ".." stops at the root, and absolute links begin at it.
func (f *fileSystem) resolve(op, name string, follow bool) (place, error) {
	type step struct {
		name string
		node *node
	}
	if name == "" {
		return place{}, pathError(op, name, syscall.ENOENT)
	}
	var at []step
	here := func() *node {
		if len(at) == 0 {
			return f.root
		}
		return at[len(at)-1].node
	}
	queue := strings.Split(name, "/")
	links := 0
	for len(queue) > 0 {
		part := queue[0]
		queue = queue[1:]
		switch part {
		case "", ".":
			if here() != nil && part == "." && !here().isDir() {
				return place{}, pathError(op, name, syscall.ENOTDIR)
			}
			continue
		case "..":
			if !here().isDir() {
				return place{}, pathError(op, name, syscall.ENOTDIR)
			}
			if len(at) > 0 {
				at = at[:len(at)-1]
			}
			continue
		}
		dir := here()
		if !dir.isDir() {
			return place{}, pathError(op, name, syscall.ENOTDIR)
		}
		rest := slices.ContainsFunc(queue, func(s string) bool { return s != "" })
		child := dir.children[part]
		if child == nil {
			if rest {
				return place{}, pathError(op, name, syscall.ENOENT)
			}
			found := place{}
			for _, s := range at {
				found.parts = append(found.parts, s.name)
			}
			found.parts = append(found.parts, part)
			return found, nil
		}
		if child.isLink() && (rest || follow) {
			if links++; links > maxLinks {
				return place{}, pathError(op, name, syscall.ELOOP)
			}
			if strings.HasPrefix(child.target, "/") {
				at = nil
			}
			queue = append(strings.Split(child.target, "/"), queue...)
			continue
		}
		at = append(at, step{part, child})
	}
	found := place{node: here()}
	for _, s := range at {
		found.parts = append(found.parts, s.name)
	}
	return found, nil
}

// own returns the node at a resolved place as one that this file system may change, with copies of all that leads to it.
func (f *fileSystem) own(p place) *node {
	f.root = f.owned(f.root)
	n := f.root
	for _, part := range p.parts {
		child := n.children[part]
		if child == nil {
			return nil
		}
		child = f.owned(child)
		n.children[part] = child
		n = child
	}
	return n
}

func (f *fileSystem) owned(n *node) *node {
	if n.owner == f {
		return n
	}
	c := *n
	c.owner = f
	c.fresh = false
	if n.children != nil {
		c.children = make(map[string]*node, len(n.children)+1)
		for name, child := range n.children {
			c.children[name] = child
		}
	}
	return &c
}

func (f *fileSystem) parent(p place) *node {
	return f.own(place{parts: p.parts[:len(p.parts)-1]})
}

func (f *fileSystem) now() time.Time { return f.machine.Now() }

// put hangs n under a resolved place, in place of what was there.
func (f *fileSystem) put(p place, n *node) {
	parent := f.parent(p)
	n.owner = f
	parent.children[p.parts[len(p.parts)-1]] = n
	parent.mtime = f.now()
}

// stat describes what is at name.
func (f *fileSystem) stat(name string, follow bool) (fileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.resolve("stat", name, follow)
	if err != nil {
		return fileInfo{}, err
	}
	if p.node == nil {
		return fileInfo{}, pathError("stat", name, syscall.ENOENT)
	}
	return f.describe(path.Base(path.Clean(name)), p.node), nil
}

func (f *fileSystem) describe(name string, n *node) fileInfo {
	size := int64(len(n.data))
	if n.isLink() {
		size = int64(len(n.target))
	}
	if n.isDir() {
		size = 4096
	}
	return fileInfo{name: name, size: size, mode: n.mode, mtime: n.mtime, uid: n.uid, gid: n.gid, target: n.target, command: n.command, links: 1}
}

// realPath returns name without links.
func (f *fileSystem) realPath(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.resolve("realpath", name, true)
	if err != nil {
		return "", err
	}
	return p.String(), nil
}

// readDir lists a directory, sorted.
func (f *fileSystem) readDir(name string) ([]fileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	switch {
	case p.node == nil:
		return nil, pathError("open", name, syscall.ENOENT)
	case !p.node.isDir():
		return nil, pathError("readdir", name, syscall.ENOTDIR)
	}
	entries := make([]fileInfo, 0, len(p.node.children))
	for child, n := range p.node.children {
		entries = append(entries, f.describe(child, n))
	}
	slices.SortFunc(entries, func(a, b fileInfo) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// readFile returns a file's contents.
func (f *fileSystem) readFile(name string) ([]byte, error) {
	h, err := f.open(name, syscall.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(h)
}

// writeFile replaces a file's contents; a new file gets mode.
func (f *fileSystem) writeFile(name string, data []byte, mode fs.FileMode) error {
	h, err := f.open(name, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = h.Write(data)
	return err
}

// appendFile adds to a file, and makes it if needed.
func (f *fileSystem) appendFile(name string, data []byte) error {
	h, err := f.open(name, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = h.Write(data)
	return err
}

// open opens a file. flags are those of open(2).
func (f *fileSystem) open(name string, flags int, mode fs.FileMode) (*handle, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	write := flags&(syscall.O_WRONLY|syscall.O_RDWR) != 0
	if p.node == nil {
		if flags&syscall.O_CREAT == 0 {
			return nil, pathError("open", name, syscall.ENOENT)
		}
		if strings.HasSuffix(name, "/") {
			return nil, pathError("open", name, syscall.EISDIR)
		}
		if f.sealed(p) {
			return nil, pathError("open", name, syscall.EACCES)
		}
		n := &node{mode: mode.Perm(), mtime: f.now()}
		f.put(p, n)
		return &handle{fs: f, node: n, place: p, write: write, append: flags&syscall.O_APPEND != 0}, nil
	}
	if flags&(syscall.O_CREAT|syscall.O_EXCL) == syscall.O_CREAT|syscall.O_EXCL {
		return nil, pathError("open", name, syscall.EEXIST)
	}
	n := p.node
	switch {
	case n.isDir() && write:
		return nil, pathError("open", name, syscall.EISDIR)
	case n.mode&fs.ModeDevice != 0:
		return &handle{fs: f, node: n, place: p, device: p.parts[len(p.parts)-1]}, nil
	case n.dynamic != nil:
		if write {
			if n.mode.Perm()&0o200 == 0 {
				return nil, pathError("open", name, syscall.EACCES)
			}
			return &handle{fs: f, node: n, place: p, device: "null"}, nil
		}
		return &handle{fs: f, node: &node{data: n.dynamic(f.machine), mode: n.mode}, place: p}, nil
	case write && f.sealed(p):
		return nil, pathError("open", name, syscall.EACCES)
	}
	if write {
		n = f.own(p)
		n.command = ""
		if flags&syscall.O_TRUNC != 0 {
			f.used -= int64(len(n.data))
			n.data, n.fresh = nil, true
			n.mtime = f.now()
		}
	}
	return &handle{fs: f, node: n, place: p, write: write, append: flags&syscall.O_APPEND != 0}, nil
}

// sealed says whether a place is in a kernel file system, where nobody makes or removes files but whoever builds an
// image.
func (f *fileSystem) sealed(p place) bool {
	return f.machine.image.root != nil && len(p.parts) > 0 && (p.parts[0] == "proc" || p.parts[0] == "sys")
}

// mkdir makes one directory.
func (f *fileSystem) mkdir(name string, mode fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.resolve("mkdir", strings.TrimRight(name, "/")+"", true)
	if strings.Trim(name, "/") == "" {
		return pathError("mkdir", name, syscall.EEXIST)
	}
	if err != nil {
		return err
	}
	if p.node != nil {
		return pathError("mkdir", name, syscall.EEXIST)
	}
	if f.sealed(p) {
		return pathError("mkdir", name, syscall.EACCES)
	}
	f.put(p, &node{mode: fs.ModeDir | mode.Perm() | mode&(fs.ModeSetgid|fs.ModeSticky), mtime: f.now(), children: map[string]*node{}})
	return nil
}

// mkdirAll makes a directory and those above it; one that is there already is left as it is.
func (f *fileSystem) mkdirAll(name string, mode fs.FileMode) error {
	parts := strings.Split(name, "/")
	for i := range parts {
		part := strings.Join(parts[:i+1], "/")
		if part == "" || parts[i] == "" {
			continue
		}
		err := f.mkdir(part, mode)
		if err == nil {
			continue
		}
		if info, statErr := f.stat(part, true); statErr == nil && info.IsDir() {
			continue
		} else if statErr == nil {
			return pathError("mkdir", part, syscall.ENOTDIR)
		}
		return err
	}
	return nil
}

// remove takes away a file, a link or an empty directory; with all, a directory and what is in it.
func (f *fileSystem) remove(name string, all bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.resolve("unlink", name, false)
	if err != nil {
		return err
	}
	switch {
	case p.node == nil:
		return pathError("unlink", name, syscall.ENOENT)
	case len(p.parts) == 0 || f.sealed(p):
		return pathError("unlink", name, syscall.EBUSY)
	case p.node.isDir() && len(p.node.children) > 0 && !all:
		return pathError("unlink", name, syscall.ENOTEMPTY)
	}
	parent := f.parent(p)
	f.used -= f.weigh(p.node)
	delete(parent.children, p.parts[len(p.parts)-1])
	parent.mtime = f.now()
	return nil
}

// weigh returns how many bytes of a tree count as the guest's own.
func (f *fileSystem) weigh(n *node) int64 {
	var sum int64
	if n.owner == f {
		sum = int64(len(n.data))
	}
	for _, child := range n.children {
		sum += f.weigh(child)
	}
	return sum
}

// rename moves oldName to newName, over a file that is there.
func (f *fileSystem) rename(oldName, newName string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, err := f.resolve("rename", oldName, false)
	if err != nil {
		return err
	}
	if from.node == nil {
		return pathError("rename", oldName, syscall.ENOENT)
	}
	to, err := f.resolve("rename", newName, false)
	if err != nil {
		return err
	}
	switch {
	case len(from.parts) == 0 || len(to.parts) == 0 || f.sealed(from) || f.sealed(to):
		return pathError("rename", oldName, syscall.EBUSY)
	case strings.HasPrefix(to.String()+"/", from.String()+"/"):
		if to.String() == from.String() {
			return nil
		}
		return pathError("rename", newName, syscall.EINVAL)
	case to.node != nil && to.node.isDir() && !from.node.isDir():
		return pathError("rename", newName, syscall.EISDIR)
	case to.node != nil && !to.node.isDir() && from.node.isDir():
		return pathError("rename", newName, syscall.ENOTDIR)
	case to.node != nil && to.node.isDir() && len(to.node.children) > 0:
		return pathError("rename", newName, syscall.ENOTEMPTY)
	}
	n := f.own(from)
	delete(f.parent(from).children, from.parts[len(from.parts)-1])
	f.put(to, n)
	return nil
}

// symlink makes a link at name.
func (f *fileSystem) symlink(target, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.resolve("symlink", name, false)
	if err != nil {
		return err
	}
	if p.node != nil {
		return pathError("symlink", name, syscall.EEXIST)
	}
	if f.sealed(p) {
		return pathError("symlink", name, syscall.EACCES)
	}
	f.put(p, &node{mode: fs.ModeSymlink | 0o777, target: target, mtime: f.now()})
	return nil
}

// change applies edit to the node at name.
func (f *fileSystem) change(name string, follow bool, edit func(*node)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.resolve("chmod", name, follow)
	if err != nil {
		return err
	}
	if p.node == nil {
		return pathError("chmod", name, syscall.ENOENT)
	}
	if f.sealed(p) {
		return pathError("chmod", name, syscall.EPERM)
	}
	edit(f.own(p))
	return nil
}

// restore puts a directory below the root back to what the image has, as a boot does with /run and /tmp.
func (f *fileSystem) restore(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	image := f.machine.image.root
	if f.root.children[name] == image.children[name] {
		return
	}
	f.root = f.owned(f.root)
	if old := f.root.children[name]; old != nil {
		f.used -= f.weigh(old)
	}
	f.root.children[name] = image.children[name]
}

// handle is an open file.
type handle struct {
	fs            *fileSystem
	node          *node
	place         place
	device        string
	write, append bool
	offset        int64
	closed        bool
}

func (h *handle) Read(p []byte) (int, error) {
	switch h.device {
	case "":
	case "zero":
		clear(p)
		return len(p), nil
	case "random", "urandom":
		return h.fs.machine.randomBytes(p)
	default:
		return 0, io.EOF
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.node.isDir() {
		return 0, pathError("read", h.place.String(), syscall.EISDIR)
	}
	if h.offset >= int64(len(h.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.node.data[h.offset:])
	h.offset += int64(n)
	return n, nil
}

func (h *handle) Write(p []byte) (int, error) {
	if h.device == "full" {
		return 0, pathError("write", "/dev/full", syscall.ENOSPC)
	}
	if h.device != "" {
		return len(p), nil
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if !h.write {
		return 0, pathError("write", h.place.String(), syscall.EBADF)
	}
	if h.append {
		h.offset = int64(len(h.node.data))
	}
	end := h.offset + int64(len(p))
	grown := max(0, end-int64(len(h.node.data)))
	if h.fs.used+grown > maxFileBytes {
		return 0, pathError("write", h.place.String(), syscall.ENOSPC)
	}
	if !h.node.fresh {
		h.node.data = append(make([]byte, 0, end), h.node.data...)
		h.node.fresh = true
	}
	if grown > 0 {
		h.node.data = append(h.node.data, make([]byte, grown)...)
	}
	copy(h.node.data[h.offset:], p)
	h.node.mtime = h.fs.now()
	h.fs.used += grown
	h.offset = end
	return len(p), nil
}

func (h *handle) Close() error { h.closed = true; return nil }

// fileInfo describes a node.
type fileInfo struct {
	name     string
	size     int64
	mode     fs.FileMode
	mtime    time.Time
	uid, gid int
	target   string
	command  string
	links    int
}

func (i fileInfo) Name() string               { return i.name }
func (i fileInfo) Size() int64                { return i.size }
func (i fileInfo) Mode() fs.FileMode          { return i.mode }
func (i fileInfo) ModTime() time.Time         { return i.mtime }
func (i fileInfo) IsDir() bool                { return i.mode.IsDir() }
func (i fileInfo) Sys() any                   { return nil }
func (i fileInfo) Type() fs.FileMode          { return i.mode.Type() }
func (i fileInfo) Info() (fs.FileInfo, error) { return i, nil }
