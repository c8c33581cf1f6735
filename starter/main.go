// Command starter is Berth's command line: it reserves computers, shows how their loads stand, and gives them back.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kelseyhightower/envconfig"

	"berth/internal/commands"
	"berth/internal/temporalclient"
	"berth/provisioners"
	"berth/provisioners/libvirt"
	"berth/provisioners/vmware"
	"berth/provisioners/xcat"
)

// patience is how long somebody at a keyboard waits for Temporal. A worker, which is started by a machine, waits longer.
const patience = 3 * time.Second

func main() {
	// The first Ctrl-C ends what is waited for and says what goes on; the second one ends the program as usual.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx))
}

func run(ctx context.Context) int {
	var settings temporalclient.Settings
	if err := envconfig.Process("", &settings); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return commands.CodeInput
	}
	if os.Getenv("BERTH_TEMPORAL_PATIENCE") == "" {
		settings.Patience = patience
	}
	return commands.Tools{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Env: os.Getenv, Now: time.Now,
		Validators: map[string]provisioners.Validator{vmware.Type: new(vmware.Module), xcat.Type: new(xcat.Module), libvirt.Type: new(libvirt.Module)},
		Temporal:   settings,
	}.Run(ctx, os.Args[1:])
}
