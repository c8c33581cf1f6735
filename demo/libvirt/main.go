//go:build linux

// Command libvirt is Berth's demonstration with real virtual machines: it starts a libvirtd of its own with QEMU, a real
// Temporal server and a production worker, reserves computers with the production command line, and shows each load's
// stages beside the last line of its guest's console. `make demo-libvirt` runs it, as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/mattn/go-isatty"

	"berth/internal/guestimage"
	"berth/internal/libvirthost"
	"berth/internal/loadlog"
)

// The exit codes.
const (
	exitOK          = 0
	exitUnexpected  = 1 // a computer did not become ready, or a part of it broke
	exitUsage       = 2 // or something is missing
	exitInterrupted = 130
)

// envPorts tells the run inside the namespaces which ports the one outside has taken.
const envPorts = "BERTH_DEMO_PORTS"

// options are what the demonstration runs with.
type options struct {
	once   bool
	dir    string
	bin    string
	small  int
	debian bool
	style  loadlog.Style
}

func main() { os.Exit(command(os.Args[1:])) }

func command(args []string) int {
	var o options
	flags := flag.NewFlagSet("demo-libvirt", flag.ContinueOnError)
	flags.BoolVar(&o.once, "once", false, "end after the table, with exit code 1 if a computer did not become ready")
	flags.StringVar(&o.dir, "dir", filepath.Join("var", "demo-libvirt"), "`folder` of disks, database and logs; emptied at the start")
	flags.StringVar(&o.bin, "bin", "bin", "`folder` of the programs worker and starter")
	flags.IntVar(&o.small, "small", 3, "`number` of small guests")
	flags.BoolVar(&o.debian, "debian", true, "a full Debian, too")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	if flags.NArg() > 0 || o.small < 0 || o.small > 20 {
		fmt.Fprintf(os.Stderr, "demo-libvirt: arguments %q, small %d: give no argument, and 0 to 20 small guests; see --help\n", flags.Args(), o.small)
		return exitUsage
	}
	for _, path := range []*string{&o.dir, &o.bin} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			fmt.Fprintln(os.Stderr, "demo-libvirt:", err)
			return exitUnexpected
		}
		*path = absolute
	}
	o.style.Colour = isatty.IsTerminal(os.Stdout.Fd()) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"

	stage := os.Getenv(libvirthost.EnvStage)
	if stage == "" {
		if err := outside(o); err != nil {
			fmt.Fprintln(os.Stderr, "demo-libvirt:", err)
			return exitUsage
		}
	}
	inside, code, err := libvirthost.Apart(stage)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo-libvirt:", err)
	}
	if !inside {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once, and all that it started with it
	err = run(ctx, o, os.Getenv(envPorts), os.Environ(), os.Stdout)
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo-libvirt: interrupted")
		return exitInterrupted
	}
	fmt.Fprintln(os.Stderr, "demo-libvirt:", err)
	return exitUnexpected
}

// outside does what must be done before the namespaces are entered: it looks whether everything is there, builds the guests'
// images, which takes a network, and opens the doors by which this machine reaches what runs inside.
func outside(o options) error {
	if os.Geteuid() != 0 {
		return errors.New("real virtual machines in a network of their own take root: run it as root (sudo make demo-libvirt)")
	}
	var missing []string
	for _, err := range []error{libvirthost.Check(), guestimage.Check()} {
		var here *libvirthost.MissingError
		var there *guestimage.MissingError
		switch {
		case errors.As(err, &here):
			missing = append(missing, here.Packages...)
		case errors.As(err, &there):
			missing = append(missing, there.Packages...)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("programs are missing; on Debian: apt-get install --no-install-recommends %s", strings.Join(missing, " "))
	}
	for _, name := range []string{"worker", "starter"} {
		if _, err := exec.LookPath(filepath.Join(o.bin, name)); err != nil {
			return fmt.Errorf("the program %s is missing in %s: run `make build`", name, o.bin)
		}
	}
	if err := os.RemoveAll(o.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	if _, err := images(context.Background()); err != nil {
		return err
	}
	var ports []string
	for _, d := range doors(o) {
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", d.port))
		if err != nil {
			if listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return err
			}
		}
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		ports = append(ports, port)
		go libvirthost.Relay(listener, "unix", d.socket)
	}
	return os.Setenv(envPorts, strings.Join(ports, ","))
}

func images(ctx context.Context) (*guestimage.Images, error) {
	return guestimage.Build(ctx, guestimage.Options{Mirror: os.Getenv("BERTH_E2E_MIRROR"), Say: func(step string) {
		fmt.Println("Guest images (once; about three minutes):", step)
	}})
}
