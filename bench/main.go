// Command bench measures Berth side by side with what it stands on, in one run, and prints the figures:
//
//	bench [-quick] [-only engine,waiting,vsphere]
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

	"go.temporal.io/sdk/client"

	"berth/internal/devserver"
	"berth/workflows"
)

func main() {
	quick := flag.Bool("quick", false, "fewer rounds: a look, not a measurement")
	only := flag.String("only", "engine,waiting,vsphere", "which parts to measure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	figures := map[string]float64{}
	fmt.Printf("Berth's benchmarks, %s, %d CPUs, %s\n", time.Now().Format("2006-01-02 15:04"), runtime.NumCPU(), runtime.Version())
	for _, part := range strings.Split(*only, ",") {
		measure, ok := map[string]func(context.Context, bool, map[string]float64) error{
			"engine": measureEngine, "waiting": measureWaiting, "vsphere": measureVSphere,
		}[part]
		if !ok {
			fmt.Fprintf(os.Stderr, "bench: there is no part %q: give some of engine, waiting, vsphere\n", part)
			os.Exit(2)
		}
		if err := measure(ctx, *quick, figures); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", part, err)
			os.Exit(1)
		}
	}
	if file := os.Getenv("BENCH_JSON"); file != "" {
		data, err := json.MarshalIndent(figures, "", "  ")
		if err == nil {
			err = os.WriteFile(file, append(data, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: write %s: %v\n", file, err)
			os.Exit(1)
		}
	}
}

func startServer(ctx context.Context) (*devserver.Server, error) {
	types := map[string]string{}
	for _, key := range workflows.SearchAttributes().Keys() {
		types[key.GetName()] = key.GetValueType().String()
	}
	return devserver.Start(ctx, devserver.Options{SearchAttributes: types})
}

// measureEngine holds the engine with no-op modules against a bare workflow of two no-op activities, in alternating
// rounds on one server.
func measureEngine(ctx context.Context, quick bool, figures map[string]float64) error {
	rounds, n, side, single := 5, 200, 20, 40
	if quick {
		rounds, n, single = 2, 60, 10
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

	example := e.reservation()
	everything := bare{Payload: &example, Start: true, Upserts: true, Timer: true, Handlers: true, Beats: true}
	variants := []struct {
		name  string
		start start
	}{
		{"bare workflow, two no-op activities", e.bare(bare{})},
		{"  + a load's input and requests", e.bare(bare{Payload: &example})},
		{"  + search attributes and summary at start", e.bare(bare{Start: true})},
		{"  + two upserts of search attributes", e.bare(bare{Upserts: true})},
		{"  + a timer for the end", e.bare(bare{Timer: true})},
		{"  + query, update, current details", e.bare(bare{Handlers: true})},
		{"  + a heartbeat in each activity", e.bare(bare{Beats: true})},
		{"  + all of these", e.bare(everything)},
		{"Berth, no-op modules, to ready", e.reserve},
	}
	berth := len(variants) - 1
	rates := make([][]float64, len(variants))
	ratios := make([][]float64, len(variants))
	serverCPU, ownCPU := make([][]time.Duration, len(variants)), make([][]time.Duration, len(variants))
	var sample client.WorkflowRun
	// A first round that is not counted: connections, caches and the store's first pages.
	for round := range rounds + 1 {
		for v, variant := range variants {
			count := n
			if round == 0 {
				count = n / 4
			}
			rate, runs, err := e.throughput(ctx, count, side, variant.start)
			if err != nil {
				return fmt.Errorf("%s: %w", variant.name, err)
			}
			if v == berth {
				sample = runs[0]
				if err := e.release(ctx, runs); err != nil {
					return err
				}
			}
			if round > 0 {
				rates[v] = append(rates[v], rate.second)
				ratios[v] = append(ratios[v], rate.second/rates[0][len(rates[0])-1])
				serverCPU[v], ownCPU[v] = append(serverCPU[v], rate.serverCPU), append(ownCPU[v], rate.ownCPU)
			}
		}
	}
	fmt.Printf("\nThroughput, %d side by side, %d a round, medians of %d rounds that alternate:\n\n", side, n, rounds)
	fmt.Printf("| what | a second | of the bare workflow | server CPU each | client and worker CPU each |\n|---|---|---|---|---|\n")
	for v, variant := range variants {
		fmt.Printf("| %s | %.1f | %.2f | %s | %s |\n", variant.name, median(rates[v]), median(ratios[v]),
			median(serverCPU[v]).Round(100*time.Microsecond), median(ownCPU[v]).Round(100*time.Microsecond))
	}
	figures["throughput_ratio"] = median(ratios[berth])

	var bareOne, berthOne []time.Duration
	for range 3 {
		b, _, err := e.latency(ctx, single/2, e.bare(bare{}))
		if err != nil {
			return err
		}
		o, runs, err := e.latency(ctx, single/2, e.reserve)
		if err != nil {
			return err
		}
		if err := e.release(ctx, runs); err != nil {
			return err
		}
		bareOne, berthOne = append(bareOne, b), append(berthOne, o)
	}
	figures["latency_ratio"] = float64(median(berthOne)) / float64(median(bareOne))
	fmt.Printf("\nOne at a time, median from start to done: bare %s, Berth from reserve to ready %s: %.2f times.\n",
		median(bareOne).Round(100*time.Microsecond), median(berthOne).Round(100*time.Microsecond), figures["latency_ratio"])

	events, bytes, err := historyToReady(ctx, e.c, sample)
	if err != nil {
		return err
	}
	figures["history_events"], figures["history_bytes"] = float64(events), float64(bytes)
	fmt.Printf("\nHistory of a first-try load with no-op modules up to ready: %d events, %d bytes.\n", events, bytes)
	return nil
}
