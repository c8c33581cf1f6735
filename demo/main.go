// Demo is Berth's demonstration: it starts a real Temporal server, a simulated site (a real vSphere API, guests that speak
// real SSH) and two production workers, lets the production command line reserve a batch of computers, kills one of
// the workers in the middle, and says at the end whether everything came out as it should. `make demo` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// The exit codes.
const (
	exitOK          = 0
	exitUnexpected  = 1 // an outcome is not the expected one, or a part of it broke
	exitUsage       = 2
	exitInterrupted = 130 // ended by Ctrl-C before the table
)

func main() {
	os.Exit(command(os.Args[1:]))
}

func command(args []string) int {
	var o options
	var withParent bool
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.BoolVar(&o.once, "once", false, "end after the table, with exit code 1 if an outcome is not the expected one")
	flags.StringVar(&o.dir, "dir", filepath.Join("var", "demo"), "`folder` of the database, the logs and the simulated site; emptied at the start")
	flags.StringVar(&o.bin, "bin", "bin", "`folder` of the programs worker, starter and simsite")
	flags.IntVar(&o.port, "port", 7233, "Temporal's `port` on 127.0.0.1; a free one if this one is taken")
	flags.IntVar(&o.uiPort, "ui-port", 8233, "the Web UI's `port` on 127.0.0.1; a free one if this one is taken")
	flags.BoolVar(&withParent, "with-parent", false, "end when the calling process ends, however it does (Linux)")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: there is no argument %q; see demo --help\n", flags.Arg(0))
		return exitUsage
	}
	// The first signal ends everything in order; a second one ends this process, and Linux ends the others with it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)
	if withParent {
		if err := endWithParent(); err != nil {
			fmt.Fprintln(os.Stderr, "demo: --with-parent:", err)
			return exitUnexpected
		}
	}
	o.environment = os.Environ()
	o.colour = isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	err := run(ctx, o, os.Stdout)
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		return exitInterrupted
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		return exitUnexpected
	}
}
