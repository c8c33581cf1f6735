package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"berth/internal/loadlog"
)

// loadLimit bounds the batch: the slowest reservation takes about a minute and a half.
const loadLimit = 6 * time.Minute

// options are what the demonstration runs with.
type options struct {
	once        bool
	dir         string
	bin         string
	port        int
	uiPort      int
	environment []string
	colour      bool
}

// run shows the demonstration. It returns nil when every outcome was the expected one and, unless it runs once, somebody
// ended it. Whatever it started has ended when it returns.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	began := time.Now()
	unlock, err := prepareDir(o.dir)
	if err != nil {
		return err
	}
	defer unlock()
	p := printer{out: &shared{to: out}, style: loadlog.Style{Colour: o.colour}}
	s, err := newStage(o)
	if err != nil {
		return err
	}
	defer func() {
		if ctx.Err() != nil {
			p.say("Ending everything that was started ...")
		}
		s.stop()
	}()

	if err := s.start(ctx, p); err != nil {
		return err
	}
	acts := playbill()
	p.plan(acts)
	d := &director{stage: s, printer: p, acts: acts}
	if err := s.whileAlive(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, loadLimit, fmt.Errorf("the batch is not through after %s", loadLimit))
		defer cancel()
		return d.play(ctx)
	}); err != nil {
		return err
	}
	unexpected := p.result(d.acts, s.webUI(), time.Since(began))
	if o.once {
		return unexpected
	}
	p.staying(s, o)
	err = s.whileAlive(ctx, func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	})
	return errors.Join(unexpected, err)
}

// prepareDir empties the folder and locks it against another demonstration until the returned function is called.
func prepareDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("the demonstration's folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("the demonstration's folder: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another demonstration runs in %s: end it with Ctrl-C, or choose another folder with --dir", dir)
	}
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		if entry.Name() != "lock" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("the demonstration's folder cannot be emptied: %w", err)
	}
	return func() { lock.Close() }, nil
}
