package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"berth/demo/internal/programs"
	"berth/internal/loadlog"
	"berth/reservation"
)

// director reserves the batch with the production command line, follows it there, and does what is scripted: it kills a
// worker and cancels a reservation.
type director struct {
	stage   *stage
	printer printer
	acts    []*act

	mu        sync.Mutex
	killed    bool
	cancelled bool
}

// play returns when every reservation is ready or over, and puts how each stands into its act.
func (d *director) play(ctx context.Context) error {
	batch, err := d.batch()
	if err != nil {
		return err
	}
	d.printer.command("reserve", "-f", short(batch))
	if err := d.stage.command(ctx, d.printer.out, "reserve", "-f", batch); err != nil {
		return err
	}
	watch := []string{"watch", "--until", "ready"}
	for _, a := range d.acts {
		watch = append(watch, a.name)
	}
	d.printer.command(watch...)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	// One of them is for people; the director reads the other one.
	group.Go(func() {
		if err := watched(d.stage.command(ctx, d.printer.out, watch...)); err != nil {
			cancel(err)
		}
	})
	group.Go(func() {
		views := &viewReader{see: func(v loadlog.View) {
			if err := d.see(ctx, v); err != nil {
				cancel(err)
			}
		}}
		if err := watched(d.stage.command(ctx, views, append([]string{"-o", "json"}, watch...)...)); err != nil {
			cancel(err)
		}
	})
	group.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	clones, err := d.stage.clones(ctx)
	if err != nil {
		return err
	}
	for _, a := range d.acts {
		a.clones = clones[a.computer]
		if a.view, err = d.show(ctx, a.name); err != nil {
			return err
		}
	}
	return nil
}

// watched takes the exit code that says that a reservation did not become ready for what it is here: scripted.
func watched(err error) error {
	const notReady = 1
	if programs.ExitCode(err) == notReady {
		return nil
	}
	return err
}

// batch writes the batch file for the command line.
func (d *director) batch() (string, error) {
	type entry struct {
		Name     string `yaml:"name"`
		User     string `yaml:"user"`
		Image    string `yaml:"image"`
		Computer string `yaml:"computer"`
		For      string `yaml:"for"`
	}
	var entries []entry
	for _, a := range d.acts {
		entries = append(entries, entry{Name: a.name, User: a.user, Image: a.image, Computer: a.computer, For: "2h"})
	}
	text, err := yaml.Marshal(entries)
	if err != nil {
		return "", err
	}
	path := d.stage.path("batch.yaml")
	return path, os.WriteFile(path, text, 0o644)
}

// see looks at how a reservation stands and does what is scripted for this moment.
func (d *director) see(ctx context.Context, v loadlog.View) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := slices.IndexFunc(d.acts, func(a *act) bool { return a.name == v.Reservation })
	if at < 0 {
		return nil
	}
	d.acts[at].view = v
	if !d.cancelled && d.timeToCancel() {
		d.cancelled = true
		d.printer.command("cancel", actCancel)
		return d.stage.command(ctx, io.Discard, "cancel", actCancel)
	}
	if !d.killed && d.timeToKill() {
		d.killed = true
		return d.kill()
	}
	return nil
}

// timeToCancel: the guest of the reservation that is to be cancelled is being waited for.
func (d *director) timeToCancel() bool {
	v := d.act(actCancel).view
	return v.Phase == reservation.PhasePostLoad && running(v)
}

// timeToKill: the reservation that is to lose its worker is in the middle of its clone, and those whose story is another
// one are through with theirs. On a machine that is too slow for that it is later in its load.
func (d *director) timeToKill() bool {
	v := d.act(actKilled).view
	if !running(v) {
		return false
	}
	for _, name := range []string{actWorks, actReload, actFails, actCancel} {
		if other := d.act(name).view; !other.Over() && other.Phase != reservation.PhaseReady {
			return v.Phase == reservation.PhasePostLoad
		}
	}
	return true
}

func running(v loadlog.View) bool {
	return v.Live != nil && v.Live.State == loadlog.StateRunning && v.Live.Stage != "" && v.Live.Worker != ""
}

// kill kills the worker that loads the reservation whose worker is to be killed.
func (d *director) kill() error {
	live := d.act(actKilled).view.Live
	_, id, _ := strings.Cut(live.Worker, ":")
	pid, err := strconv.Atoi(id)
	if err != nil {
		return fmt.Errorf("the worker %q of reservation %s does not end in its process id", live.Worker, actKilled)
	}
	var on []string
	for _, a := range d.acts {
		if a.view.Live != nil && a.view.Live.Worker == live.Worker {
			on = append(on, a.name)
			a.killed = &killedUnder{worker: live.Worker, phase: a.view.Phase, attempt: a.view.Attempt.Number}
		}
	}
	name, err := d.stage.kill(pid)
	if err != nil {
		return err
	}
	d.printer.event("kill -9 %d: %s is gone in the middle of %s (%s). Temporal misses its heartbeat within 30 s; then the other worker goes on.",
		pid, name, strings.Join(on, ", "), live.Stage)
	return nil
}

func (d *director) act(name string) *act {
	return d.acts[slices.IndexFunc(d.acts, func(a *act) bool { return a.name == name })]
}

// show asks the command line how a reservation stands.
func (d *director) show(ctx context.Context, name string) (view loadlog.View, err error) {
	var out bytes.Buffer
	if err := d.stage.command(ctx, &out, "show", name, "-o", "json"); err != nil {
		return view, err
	}
	if err := json.Unmarshal(out.Bytes(), &view); err != nil {
		return view, fmt.Errorf("starter show %s -o json: %w", name, err)
	}
	return view, nil
}

// viewReader is a writer that takes one view as JSON a line.
type viewReader struct {
	see  func(loadlog.View)
	rest []byte
}

func (r *viewReader) Write(text []byte) (int, error) {
	r.rest = append(r.rest, text...)
	for {
		line, rest, found := bytes.Cut(r.rest, []byte("\n"))
		if !found {
			return len(text), nil
		}
		r.rest = rest
		var view loadlog.View
		if err := json.Unmarshal(line, &view); err != nil {
			return 0, errors.Join(fmt.Errorf("not a reservation as JSON: %q", line), err)
		}
		r.see(view)
	}
}
