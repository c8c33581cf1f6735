// Command bench measures Berth side by side with what it stands on, in one run, and prints the figures:
//
//	bench [-quick] [-only engine,waiting,windows,vsphere]
//
// BENCH_JSON=FILE writes them as one flat JSON object as well.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"berth/internal/devserver"
	"berth/workflows"
)

func main() {
	quick := flag.Bool("quick", false, "fewer rounds: a look, not a measurement")
	only := flag.String("only", "engine,waiting,windows,vsphere", "which parts to measure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	figures, failed := map[string]float64{}, false
	fmt.Printf("Berth's benchmarks, %s, %d CPUs, %s\n", time.Now().Format("2006-01-02 15:04"), runtime.NumCPU(), runtime.Version())
	for _, part := range strings.Split(*only, ",") {
		measure, ok := map[string]func(context.Context, bool, map[string]float64) error{
			"engine": measureEngine, "waiting": measureWaiting, "windows": measureWindows, "vsphere": measureVSphere,
		}[part]
		if !ok {
			fmt.Fprintf(os.Stderr, "bench: there is no part %q: give some of engine, waiting, windows, vsphere\n", part)
			os.Exit(2)
		}
		// What the other parts measure is kept.
		if err := measure(ctx, *quick, figures); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", part, err)
			failed = true
		}
	}
	if file := os.Getenv("BENCH_JSON"); file != "" {
		data, err := json.MarshalIndent(figures, "", "  ")
		if err == nil {
			err = os.WriteFile(file, append(data, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: write %s: %v\n", file, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func startServer(ctx context.Context) (*devserver.Server, error) {
	types := map[string]string{}
	for _, key := range workflows.SearchAttributes().Keys() {
		types[key.GetName()] = key.GetValueType().String()
	}
	return devserver.Start(ctx, devserver.Options{SearchAttributes: types})
}

// measureEngine holds the engine with no-op modules against a bare workflow of two no-op activities on one server, turn and
// turn about, and then shows what each part of a load costs.
func measureEngine(ctx context.Context, quick bool, figures map[string]float64) error {
	rounds, n, side, single := 10, 100, 20, 60
	if quick {
		rounds, n, single = 4, 50, 20
	}
	server, err := startServer(ctx)
	if err != nil {
		return err
	}
	defer server.Stop()
	e, err := startEngine(server)
	if err != nil {
		return err
	}
	defer e.stop()

	sample, err := e.compare(ctx, rounds, n, side, figures)
	if err != nil {
		return err
	}
	if err := e.compareLatency(ctx, single, figures); err != nil {
		return err
	}
	events, bytes, err := historyToReady(ctx, e.c, sample)
	if err != nil {
		return err
	}
	figures["history_events"], figures["history_bytes"] = float64(events), float64(bytes)
	fmt.Printf("\nHistory of a first-try load with no-op modules up to ready: %d events, %d bytes.\n", events, bytes)
	return e.dissect(ctx, rounds/2, n, side)
}
