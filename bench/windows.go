package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/client"

	"berth/reservation"
)

// measureWindows lets many Windows guests go through a slow Sysprep at once, and takes the time from a guest's "complete" to
// the first step of our configuration. The settle time is part of it: the guest's boot must stay the same for so long.
func measureWindows(ctx context.Context, quick bool, figures map[string]float64) error {
	guests := 200
	if quick {
		guests = 20
	}
	const script = `vcenter: {clones: 64, clones_per_host: 64}
templates: [{name: windows2022-template, windows: "2022", sysprep: true, channel: winrm, snapshots: [r1]}]
defaults:
  setup: [{state: specialize, takes: 40s}, {state: reboot, takes: 5s}, {state: oobe, takes: 60s, answers: true}, {state: reboot, takes: 5s}, {state: complete}]
`
	l, err := startLab(ctx, guests, script)
	if err != nil {
		return err
	}
	defer l.stop()
	var runs []client.WorkflowRun
	for _, computer := range l.catalog.Computers {
		run, err := l.reserve(ctx, computer.Name)
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	if err := l.allReady(ctx, guests); err != nil {
		return err
	}
	site, err := l.siteStatus(ctx)
	if err != nil {
		return err
	}
	completed := map[string]time.Time{}
	for _, guest := range site.Guests {
		completed[guest.Name] = guest.Completed
	}
	var took []time.Duration
	var settle time.Duration
	for _, run := range runs {
		status, err := l.status(ctx, run)
		if err != nil {
			return err
		}
		if status.Attempt.Number != 1 {
			return fmt.Errorf("%s needed attempt %d", status.Computer, status.Attempt.Number)
		}
		stages := status.Phases[1].Stages
		at := slices.IndexFunc(stages, func(s reservation.Stage) bool { return s.Name == "configure" })
		if at < 0 || completed[status.Computer].IsZero() {
			return fmt.Errorf("%s: nothing says when its set-up was over, or when its configuration began", status.Computer)
		}
		took = append(took, stages[at].Began.Sub(completed[status.Computer]))
		settle = 5 * time.Second // osmodules.Table
	}
	over := percentile(took, 95) - settle
	figures["sysprep_notice_p95_ms"] = float64(over.Milliseconds())
	fmt.Printf("\n%d Windows guests in Sysprep at once, over WinRM, in one production worker process:\n\n| what | value |\n|---|---|\n", guests)
	fmt.Printf("| from \"complete\" to the first step, median / 95th percentile / most | %s / %s / %s |\n", ms(median(took)), ms(percentile(took, 95)), ms(percentile(took, 100)))
	fmt.Printf("| of that the settle time | %s |\n| noticed within, 95th percentile | %s |\n", settle, ms(over))
	return nil
}
