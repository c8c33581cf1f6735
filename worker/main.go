// Worker serves Berth's reservations: their workflows, the queues of provisioner types, or both. `worker --help` lists the
// environment variables that it is configured by.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// gcPercent is how much garbage may stand beside what is alive, in percent of it (GOGC overrides it). A worker mostly
// holds loads that wait, and its memory is what bounds how many: measured, a waiting load weighs 0.27 MiB at Go's own 100
// percent and 0.20 MiB at 30.
const gcPercent = 30

// The exit codes.
const (
	exitOK            = 0 // it was told to stop, and did
	exitFault         = 1 // another start may not have this fault, or a second signal ended it
	exitConfiguration = 2 // somebody has to mend something first
)

func main() {
	os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
}

func command(args []string, stdout, stderr io.Writer) int {
	for _, arg := range args {
		switch arg {
		case "-h", "--help", "help":
			help(stdout)
			return exitOK
		case "health":
			return healthy(stderr)
		default:
			fmt.Fprintf(stderr, "worker: there is no argument %q: it takes everything from its environment, see worker --help\n", arg)
			return exitConfiguration
		}
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	c, err := readConfig()
	if err != nil {
		return complain(stderr, &startError{faults: flatten(err), code: exitConfiguration})
	}
	ctx, stop := interruptible(stderr)
	defer stop()
	return complain(stderr, run(ctx, c, stderr))
}

// interruptible returns a context that ends at the first SIGTERM or SIGINT. The second one ends the process.
func interruptible(stderr io.Writer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		cancel()
		<-signals
		fmt.Fprintln(stderr, "worker: ended at once by a second signal")
		os.Exit(exitFault)
	}()
	return ctx, cancel
}
