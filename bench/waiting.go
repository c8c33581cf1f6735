package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/client"
	"golang.org/x/sync/errgroup"

	"berth/reservation"
)

// later is how much longer each guest takes to answer than the one before it. Clones come up ten a second here; guests
// that answered at that rate would have their configuration, the simulated guests and the server contend for two processors,
// and the time to a login would measure that instead of the ladder.
const later = 100 * time.Millisecond

// measureWaiting lets many loads wait for their guests in one worker process: what they weigh, how soon an answer is
// noticed, and whether a heartbeat is missed.
func measureWaiting(ctx context.Context, quick bool, figures map[string]float64) error {
	loads, late := 1000, 3*time.Minute
	if quick {
		loads, late = 100, 30*time.Second
	}
	var script strings.Builder
	script.WriteString("vcenter: {clones: 64, clones_per_host: 64}\ncomputers:\n")
	for i := range loads {
		fmt.Fprintf(&script, "  - {name: vm-%04d, loads: [{late: %s}]}\n", i+1, late+time.Duration(i)*later)
	}
	l, err := startLab(ctx, 0, script.String())
	if err != nil {
		return err
	}
	defer l.stop()
	computers := l.catalog.Computers
	idle, err := l.idle(ctx)
	if err != nil {
		return err
	}

	began := time.Now()
	runs := make([]client.WorkflowRun, len(computers))
	var group errgroup.Group
	group.SetLimit(16)
	for i, computer := range computers {
		group.Go(func() (err error) {
			runs[i], err = l.reserve(ctx, computer.Name)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := until(ctx, time.Second, func() (bool, error) {
		n, err := l.count(ctx, reservation.PhasePostLoad)
		if err != nil || n == len(computers) {
			return err == nil, err
		}
		ready, err := l.count(ctx, reservation.PhaseReady)
		if err == nil && ready > 0 {
			err = fmt.Errorf("%d loads are ready while others do not wait yet: the guests are too early for this machine", ready)
		}
		return false, err
	}); err != nil {
		return err
	}
	started := time.Since(began)
	var weights []float64
	waitsFrom, usedBefore := time.Now(), cpuTime(l.worker.Pid())
	for range 10 {
		weight, err := residentMiB(l.worker.Pid())
		if err != nil {
			return err
		}
		weights = append(weights, weight)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	waits := float64(cpuTime(l.worker.Pid())-usedBefore) / float64(time.Since(waitsFrom)) / float64(len(computers))
	now, err := l.siteStatus(ctx)
	if err != nil {
		return err
	}
	for _, guest := range now.Guests {
		if guest.Answering {
			return fmt.Errorf("guest %s answers before all loads wait: the guests are too early for this machine", guest.Name)
		}
	}
	if err := l.allReady(ctx, len(computers)); err != nil {
		return err
	}
	after, err := l.siteStatus(ctx)
	if err != nil {
		return err
	}
	var connected, noticed []time.Duration
	first, last := after.Guests[0].Opened, after.Guests[0].Opened
	for _, guest := range after.Guests {
		if guest.Opened.Before(first) {
			first = guest.Opened
		}
		if guest.Opened.After(last) {
			last = guest.Opened
		}
		connected = append(connected, guest.Connected.Sub(guest.Opened))
		noticed = append(noticed, guest.FirstLogin.Sub(guest.Opened))
	}
	missed := 0
	for _, run := range runs {
		status, err := l.status(ctx, run)
		if err != nil {
			return err
		}
		for _, phase := range status.Phases {
			missed += phase.Lost
		}
		if status.Attempt.Number != 1 {
			return fmt.Errorf("%s needed attempt %d", status.Computer, status.Attempt.Number)
		}
	}
	whole := cpuTime(l.worker.Pid()) / time.Duration(len(computers))
	perLoad := (median(weights) - idle) / float64(len(computers))
	figures["waiting_mib_per_load"] = perLoad
	figures["notice_p95_ms"] = float64(percentile(noticed, 95).Milliseconds())
	figures["heartbeats_missed"] = float64(missed)
	fmt.Printf("\n%d loads waiting in one production worker process (all in their PostLoad %s after the first reserve):\n\n", len(computers), started.Round(time.Second))
	fmt.Printf("| what | value |\n|---|---|\n")
	fmt.Printf("| resident memory, idle worker | %.1f MiB |\n| with all of them waiting | %.1f MiB |\n| a waiting load | %.3f MiB |\n", idle, median(weights), perLoad)
	fmt.Printf("| of a processor, for a waiting load | %.4f %%: one carries %.0f of them |\n", 100*waits, 1/waits)
	fmt.Printf("| processor time of the worker for a whole load | %s |\n", ms(whole))
	fmt.Printf("| guests that answer, a second | %.1f |\n", float64(len(after.Guests)-1)/last.Sub(first).Seconds())
	fmt.Printf("| from the guest's port opening to our connection, median / 95th percentile | %s / %s |\n", ms(median(connected)), ms(percentile(connected, 95)))
	fmt.Printf("| from the guest's port opening to our login, median / 95th percentile / most | %s / %s / %s |\n", ms(median(noticed)), ms(percentile(noticed, 95)), ms(percentile(noticed, 100)))
	fmt.Printf("| heartbeats missed, or phases tried again | %d |\n", missed)
	if missed > 0 {
		fmt.Printf("\nWhat the worker says of the phases that were tried again:\n%s", l.complaints())
	}
	return nil
}

// complaints counts what the worker's log says, without the times and names.
func (l *lab) complaints() string {
	data, err := os.ReadFile(filepath.Join(l.dir, "worker.log"))
	if err != nil {
		return err.Error() + "\n"
	}
	counts := map[string]int{}
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Message, Error string }
		if json.Unmarshal(line, &entry) == nil {
			counts[entry.Level+": "+entry.Message+": "+entry.Error]++
		}
	}
	var b strings.Builder
	for _, text := range slices.SortedFunc(maps.Keys(counts), func(x, y string) int { return counts[y] - counts[x] }) {
		fmt.Fprintf(&b, "%6d  %s\n", counts[text], text)
	}
	return b.String()
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// idle waits until the worker has come to rest and returns its resident memory.
func (l *lab) idle(ctx context.Context) (float64, error) {
	var weight float64
	calm := 0
	err := until(ctx, 500*time.Millisecond, func() (bool, error) {
		now, err := residentMiB(l.worker.Pid())
		if now > weight+0.5 || now < weight-0.5 {
			calm = 0
		}
		weight = now
		calm++
		return calm > 6, err
	})
	return weight, err
}

// residentMiB returns a process's resident memory in MiB (proc(5), status: VmRSS).
func residentMiB(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var kib float64
		if n, _ := fmt.Sscanf(lines.Text(), "VmRSS: %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, errors.New("no VmRSS: this measurement needs Linux")
}
