// Package guestimage builds master images of real guests for tests, measurements and the demonstration, and keeps them in
// the user's cache folder: a full Debian (systemd, OpenSSH, cloud-init, nftables), and a small guest of the same kernel,
// busybox and OpenSSH that is up within seconds. Both read a NoCloud seed.
//
// Building takes root, Debian's archive, and Debian's packages debootstrap, e2fsprogs, fdisk and qemu-utils; what was built
// once takes nothing. The recipes are the scripts in recipe/.
package guestimage

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

//go:embed recipe
var recipe embed.FS

// Mirror is the Debian archive that images are built from unless Options say otherwise.
const Mirror = "http://deb.debian.org/debian"

// buildLimit bounds a build: three minutes on two cores, and an archive may be slow.
const buildLimit = 30 * time.Minute

// Options say where images are kept and made.
type Options struct {
	Dir    string       // the cache; "" is berth/guests in the user's cache folder
	Mirror string       // "" is Mirror
	Say    func(string) // told each step of a build; nil tells nobody
}

// Image is a master image.
type Image struct {
	Path   string // a qcow2 file, read-only
	SHA256 string // of the file, in hexadecimal
	Size   int64  // of the file, in bytes
}

// Images are both guests' images.
type Images struct {
	Small  Image
	Debian Image

	options Options
	dir     string // of this recipe
}

// MissingError says that a program that building takes is not installed.
type MissingError struct{ Packages []string }

func (e *MissingError) Error() string {
	return "the guests' images take programs that are not here; on Debian: apt-get install --no-install-recommends " + strings.Join(e.Packages, " ")
}

// Check returns a *MissingError that names the Debian packages that building takes and this machine lacks; nil if none.
func Check() error {
	var missing []string
	for _, need := range [][2]string{{"debootstrap", "debootstrap"}, {"mke2fs", "e2fsprogs"}, {"sfdisk", "fdisk"}, {"qemu-img", "qemu-utils"}} {
		if _, err := exec.LookPath(need[0]); err != nil {
			missing = append(missing, need[1])
		}
	}
	if len(missing) > 0 {
		return &MissingError{Packages: missing}
	}
	return nil
}

// Build returns both images, and builds them first where the cache has none of this recipe. Several processes may call it
// at once: one builds.
func Build(ctx context.Context, o Options) (*Images, error) {
	if o.Dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("the cache of guest images: %w", err)
		}
		o.Dir = filepath.Join(cache, "berth", "guests")
	}
	if o.Mirror == "" {
		o.Mirror = Mirror
	}
	if o.Say == nil {
		o.Say = func(string) {}
	}
	key, err := recipeKey(func(name string) bool { return !smallOnly(name) })
	if err != nil {
		return nil, err
	}
	i := &Images{options: o, dir: filepath.Join(o.Dir, key)}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, filepath.Join(o.Dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(i.dir); errors.Is(err, fs.ErrNotExist) {
		if err := i.build(ctx); err != nil {
			return nil, fmt.Errorf("build the guests' images: %w", err)
		}
	}
	if i.Debian, err = read(filepath.Join(i.dir, "debian.qcow2")); err != nil {
		return nil, err
	}
	if i.Small, err = i.small(ctx, i.dir, nil); err != nil {
		return nil, err
	}
	return i, nil
}

// SmallWith makes a small guest with files of its own, path to text, in a folder of the caller's. Shell scripts in /etc/rc.d run
// at each boot before the seed is read, those in /etc/rc.late after it. It takes seconds.
func (i *Images) SmallWith(ctx context.Context, dir string, files map[string]string) (Image, error) {
	unlock, err := lock(ctx, filepath.Join(i.options.Dir, "lock"))
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	return i.small(ctx, dir, files)
}

func (i *Images) small(ctx context.Context, dir string, files map[string]string) (Image, error) {
	key, err := recipeKey(smallOnly)
	if err != nil {
		return Image{}, err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, key)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(sum, "%q %q\n", name, files[name])
	}
	path := filepath.Join(dir, "small-"+hex.EncodeToString(sum.Sum(nil))[:12]+".qcow2")
	if _, err := os.Stat(path); err == nil {
		return read(path)
	}
	work, scripts, err := i.workshop()
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(work)
	extra := filepath.Join(work, "extra")
	for name, text := range files {
		file := filepath.Join(extra, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return Image{}, err
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			return Image{}, err
		}
	}
	if err := os.MkdirAll(extra, 0o755); err != nil {
		return Image{}, err
	}
	made := filepath.Join(work, "small.qcow2")
	if err := i.run(ctx, filepath.Join(scripts, "small.sh"), i.dir, extra, filepath.Join(work, "root"), made); err != nil {
		return Image{}, fmt.Errorf("build the small guest's image: %w", err)
	}
	if err := finish(made, path); err != nil {
		return Image{}, err
	}
	return read(path)
}

// build makes the folder of this recipe, and removes old ones of others.
func (i *Images) build(ctx context.Context) error {
	work, scripts, err := i.workshop()
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	out := filepath.Join(work, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	began := time.Now()
	if err := i.run(ctx, filepath.Join(scripts, "build.sh"), filepath.Join(work, "tree"), i.options.Mirror, out); err != nil {
		return err
	}
	i.options.Say(fmt.Sprintf("both images are built, in %s", time.Since(began).Round(time.Second)))
	if err := finish(filepath.Join(out, "debian.qcow2"), filepath.Join(out, "debian.qcow2")); err != nil {
		return err
	}
	// Another version of the recipe may be in use just now; one that nobody has built for a week is not.
	const unused = 7 * 24 * time.Hour
	old, err := os.ReadDir(i.options.Dir)
	if err != nil {
		return err
	}
	for _, entry := range old {
		if info, err := entry.Info(); err != nil || !entry.IsDir() || time.Since(info.ModTime()) < unused {
			continue
		}
		if err := os.RemoveAll(filepath.Join(i.options.Dir, entry.Name())); err != nil {
			return err
		}
	}
	return os.Rename(out, i.dir)
}

// workshop makes a folder to build in, and puts the recipe there.
func (i *Images) workshop() (work, scripts string, err error) {
	if runtime.GOARCH != "amd64" {
		return "", "", fmt.Errorf("the guests' images are for amd64, and this machine is %s", runtime.GOARCH)
	}
	if os.Geteuid() != 0 {
		return "", "", errors.New("images are built by root: run it as root")
	}
	if err := Check(); err != nil {
		return "", "", err
	}
	if work, err = os.MkdirTemp(i.options.Dir, "build."); err != nil {
		return "", "", err
	}
	scripts = filepath.Join(work, "recipe")
	err = fs.WalkDir(recipe, "recipe", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(work, filepath.FromSlash(name))
		if entry.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		text, err := recipe.ReadFile(name)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if bytes.HasPrefix(text, []byte("#!")) {
			mode = 0o755
		}
		return os.WriteFile(to, text, mode)
	})
	if err != nil {
		os.RemoveAll(work)
	}
	return work, scripts, err
}

// run runs a script of the recipe. What it says of its steps is told on; all of it stands in the error if it fails.
func (i *Images) run(ctx context.Context, script string, args ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, buildLimit, fmt.Errorf("it is not through after %s", buildLimit))
	defer cancel()
	command := exec.CommandContext(ctx, script, args...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	out, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	command.Stderr = command.Stdout
	if err := command.Start(); err != nil {
		return err
	}
	var last []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if step, ours := strings.CutPrefix(lines.Text(), "berth: "); ours {
			i.options.Say(step)
		}
		const kept = 15
		if last = append(last, lines.Text()); len(last) > kept {
			last = last[1:]
		}
	}
	if err := command.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%s: %w\n    %s", filepath.Base(script), err, strings.Join(last, "\n    "))
	}
	return nil
}

// finish makes an image read-only, puts its digest beside it, and gives it its name.
func finish(made, path string) error {
	file, err := os.Open(made)
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return err
	}
	if err := os.WriteFile(path+".sha256", []byte(hex.EncodeToString(sum.Sum(nil))+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.Chmod(made, 0o444); err != nil {
		return err
	}
	return os.Rename(made, path)
}

func read(path string) (Image, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Image{}, err
	}
	sum, err := os.ReadFile(path + ".sha256")
	if err != nil {
		return Image{}, err
	}
	return Image{Path: path, SHA256: strings.TrimSpace(string(sum)), Size: info.Size()}, nil
}

// smallOnly says whether a file of the recipe is only of use when the small guest's disk is made from parts that are there.
func smallOnly(name string) bool {
	return strings.HasPrefix(name, "recipe/small/root/") || name == "recipe/small.sh"
}

// recipeKey is the digest of the files that images are made by.
func recipeKey(counts func(name string) bool) (string, error) {
	sum := sha256.New()
	err := fs.WalkDir(recipe, "recipe", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !counts(name) {
			return err
		}
		text, err := recipe.ReadFile(name)
		fmt.Fprintf(sum, "%q %q\n", name, text)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil))[:12], err
}

// lock waits for the file's lock until ctx ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	const askEvery = 200 * time.Millisecond
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { file.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK):
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, ctx.Err()
		case <-time.After(askEvery):
		}
	}
}
