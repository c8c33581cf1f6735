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
	profiles "go.temporal.io/sdk/contrib/envconfig"

	"berth/internal/commands"
	"berth/internal/temporalclient"
	"berth/internal/tracing"
	"berth/provisioners"
	"berth/provisioners/vmware"
	"berth/provisioners/xcat"
)

// patience is how long somebody at a keyboard waits for Temporal. A worker, which is started by a machine, waits longer.
const patience = 3 * time.Second

// tracesLimit is how long a command that is over may take to send its traces.
const tracesLimit = 2 * time.Second

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
	settings, err := settings.WithProfile(profiles.EnvLookupOS)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return commands.CodeInput
	}
	var traced tracing.Settings
	err = envconfig.Process("", &traced)
	if err == nil {
		err = traced.Validate()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return commands.CodeInput
	}
	traces, err := tracing.New(ctx, tracing.Options{Settings: traced, Service: "berth-starter", Identity: temporalclient.Identity(commands.Name), Failed: func(error) {}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return commands.CodeInput
	}
	// Traces that cannot be sent are no concern of whoever waits for the prompt.
	defer func() { _ = traces.Close(tracesLimit) }()
	return commands.Tools{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Env: os.Getenv, Now: time.Now,
		Validators: map[string]provisioners.Validator{vmware.Type: new(vmware.Module), xcat.Type: new(xcat.Module)},
		Temporal:   settings, Interceptors: traces.Client(),
	}.Run(ctx, os.Args[1:])
}
