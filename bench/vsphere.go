package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"berth/reservation"
	"berth/workflows"
)

// measureVSphere counts the calls of the vSphere API that first-try loads cost, by method, as the vCenter counted them.
func measureVSphere(ctx context.Context, _ bool, figures map[string]float64) error {
	const loads = 10
	l, err := startLab(ctx, loads+1, "")
	if err != nil {
		return err
	}
	defer l.stop()
	load := func(computer string) error {
		run, err := l.reserve(ctx, computer)
		if err != nil {
			return err
		}
		return until(ctx, 50*time.Millisecond, func() (bool, error) {
			status, err := l.status(ctx, run)
			if !status.Ended.IsZero() {
				return false, &failedError{status}
			}
			return status.Phase == reservation.PhaseReady, err
		})
	}
	// The first load of a worker logs in and looks names up; that is not what a load costs.
	if err := load(l.catalog.Computers[0].Name); err != nil {
		return err
	}
	if err := l.resetCalls(ctx); err != nil {
		return err
	}
	for _, computer := range l.catalog.Computers[1:] {
		if err := load(computer.Name); err != nil {
			return err
		}
	}
	status, err := l.siteStatus(ctx)
	if err != nil {
		return err
	}
	total := 0
	fmt.Printf("\nvSphere calls of %d first-try loads up to ready, one after another, in a worker that had loaded before:\n\n| method | a load |\n|---|---|\n", loads)
	for _, method := range slices.Sorted(maps.Keys(status.Calls)) {
		total += status.Calls[method]
		fmt.Printf("| %s | %.1f |\n", method, float64(status.Calls[method])/loads)
	}
	fmt.Printf("| all | %.1f |\n", float64(total)/loads)
	figures["vsphere_calls_per_load"] = float64(total) / loads

	if err := l.resetCalls(ctx); err != nil {
		return err
	}
	run := l.client.GetWorkflow(ctx, "computer/"+l.catalog.Computers[1].Name, "")
	if err := l.client.SignalWorkflow(ctx, run.GetID(), "", workflows.ReleaseSignal, nil); err != nil {
		return err
	}
	if err := run.Get(ctx, nil); err != nil {
		return err
	}
	if status, err = l.siteStatus(ctx); err != nil {
		return err
	}
	fmt.Printf("\nTaking one back: %v\n", status.Calls)
	return nil
}
