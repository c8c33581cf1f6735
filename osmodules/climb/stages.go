package climb

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"berth/osmodules/remote"
	"berth/reservation"
)

// Stages shows in the load log how far up a wait is. It is safe for concurrent use.
type Stages struct {
	report reservation.Reporter
	order  []string
	higher func(rung string)

	mu       sync.Mutex
	top      int    // the highest so far
	rung     string // as reported
	since    time.Time
	detail   string
	switches int
}

// NewStages returns the stages of a wait whose rungs have that order. higher, if not nil, is told each rung that is above
// all before it; top is where a worker before this one was, "" if there was none.
func NewStages(report reservation.Reporter, order []string, top string, higher func(rung string)) *Stages {
	if higher == nil {
		higher = func(string) {}
	}
	return &Stages{report: report, order: order, higher: higher, top: slices.Index(order, top)}
}

// Current returns the rung that is shown, and since when.
func (s *Stages) Current() (string, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rung, s.since
}

// Reached is told each rung of a dial as it begins, and shows it if it is above the one that is shown.
func (s *Stages) Reached(rung remote.Rung) {
	s.mu.Lock()
	up := s.height(string(rung)) > s.height(s.rung)
	s.mu.Unlock()
	if up {
		s.Show(string(rung), "")
	}
}

// Note shows what went wrong, on the rung where it did. A reboot is shown on the rung that finds it.
func (s *Stages) Note(err error, finds string) {
	var at *remote.RungError
	var reboot *Rebooted
	switch {
	case errors.As(err, &at):
		s.Show(string(at.Rung), at.Err.Error())
	case errors.As(err, &reboot):
		s.Show(finds, err.Error())
	default:
		rung, _ := s.Current()
		s.Show(rung, err.Error())
	}
}

// Show reports a rung. All stages travel with every heartbeat, so a guest that goes up and down for an hour must not add
// one each time: after some switches only the top rung reached since is shown.
func (s *Stages) Show(rung, detail string) {
	const mostSwitches, longest = 30, 200
	detail = Cut(detail, longest)
	s.mu.Lock()
	up := s.height(rung) > s.top
	if up {
		s.top = s.height(rung)
	}
	if rung != s.rung || detail != s.detail {
		shown, text := rung, detail
		if rung != s.rung {
			if s.switches >= mostSwitches && s.height(rung) < s.height(s.rung) {
				shown, text = s.rung, rung+": "+detail
			} else {
				s.switches++
				s.since = time.Now()
			}
		}
		s.rung, s.detail = shown, text
		s.report.Stage(shown, text)
	}
	s.mu.Unlock()
	if up {
		s.higher(rung)
	}
}

// PowerReset gives a silent guest the one power reset of its wait, and keeps under key when (RFC 3339), for a successor must
// not give a second one. last is what went wrong before. unsure says why it is not known whether the guest was reset: it
// is to be waited for all the same.
func (s *Stages) PowerReset(ctx context.Context, reset func(context.Context) error, key string, last error,
	log zerolog.Logger,
) (unsure, err error) {
	rung, _ := s.Current()
	log.Warn().Str("rung", rung).AnErr("last", last).Msg("the guest is silent and gets a power reset")
	// Kept first, and brought to the server by Confirm.
	s.report.Keep(key, time.Now().UTC().Format(time.RFC3339Nano))
	if err := s.report.Confirm(ctx); err != nil {
		return nil, err
	}
	said := "no answer"
	if last != nil {
		said = last.Error()
	}
	s.Show("power reset", "silent at "+rung+": "+said)
	err = reset(ctx)
	switch {
	case err == nil:
		return nil, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case reservation.VerdictOf(err) != "":
		return nil, err
	}
	log.Warn().Err(err).Msg("the power reset went wrong")
	return err, nil
}

func (s *Stages) height(rung string) int { return slices.Index(s.order, rung) }
