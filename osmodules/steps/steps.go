// Package steps runs the steps of a PostLoad, whatever the OS: each once in a load, also if a worker is lost in the middle,
// with its result in the report, in the log, and in what a successor is told.
package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote"
	"berth/osmodules/sitescripts"
	"berth/reservation"
)

// Step is one step of PostLoad.
type Step struct {
	Name      string
	Limit     time.Duration // of its script, for messages
	OnFailure string        // sitescripts.Warn, Reload or Fail: what it means that the step went wrong
	// Do does it. It is called again by a successor, if this worker is lost before it has returned. An error that is no
	// *remote.LimitError ends the configuration, and is no judgement of the step.
	Do func(ctx context.Context) (Result, error)
}

// Result is how a step went.
type Result struct {
	Result    reservation.StepResult // StepFailed: it went wrong, and OnFailure says what that means
	Detail    string                 // for a person; beside a *remote.LimitError the last that was printed
	OnFailure string                 // "" is the step's own
}

// Skip is a step that is not to run.
func Skip(why string) *Result { return &Result{Result: reservation.StepSkipped, Detail: why} }

// Warn is a step that is not to run, though it should.
func Warn(why string) *Result { return &Result{Result: reservation.StepWarned, Detail: why} }

// Failed is a step that went wrong.
func Failed(detail string) Result { return Result{Result: reservation.StepFailed, Detail: detail} }

// Runner runs steps, one after the other. It is not safe for concurrent use.
type Runner struct {
	Report reservation.Reporter
	Log    zerolog.Logger
	Key    string // before a step's name in what is kept
	// PerBoot: what a lost worker did holds in Boot only. Without a Boot nothing is kept.
	PerBoot bool
	Boot    string
	Done    osmodules.Report
}

// Run runs steps in order, but for those that a lost worker has done. Its error is the verdict of the first step that
// decides one, the context's, or what Do returned.
func (r *Runner) Run(ctx context.Context, steps []Step) error {
	for _, s := range steps {
		if err := r.run(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runner) run(ctx context.Context, s Step) error {
	if kept, ok := r.kept(s.Name); ok {
		r.Done.Steps = append(r.Done.Steps, kept)
		return nil
	}
	r.Report.Stage("configure", s.Name) // one stage for all: the steps have a list of their own
	began := time.Now()
	result, err := s.Do(ctx)
	var limit *remote.LimitError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &limit):
		detail := fmt.Sprintf("did not end within its limit of %s", s.Limit)
		if result.Detail != "" {
			detail += ": " + result.Detail
		}
		result = Failed(detail)
	case err != nil:
		result = Failed(err.Error())
	}
	took := reservation.Duration(time.Since(began).Round(time.Millisecond))
	step := reservation.Step{Name: s.Name, Result: result.Result, Detail: result.Detail, Took: took}
	if err != nil && limit == nil {
		r.Done.Steps = append(r.Done.Steps, step)
		return err
	}
	verdict := s.verdict(result)
	if step.Result == reservation.StepFailed && verdict == nil {
		step.Result = reservation.StepWarned
	}
	r.Done.Steps = append(r.Done.Steps, step)
	event := r.Log.Info()
	if step.Result == reservation.StepWarned || verdict != nil {
		event = r.Log.Warn()
	}
	event.Str("step", s.Name).Str("result", string(step.Result)).Str("detail", step.Detail).Dur("took", step.Took.Std()).Msg("configured")
	if verdict != nil {
		return verdict
	}
	r.keep(step)
	return nil
}

// verdict is what a result decides; nil if the load goes on.
func (s Step) verdict(result Result) error {
	if result.Result != reservation.StepFailed {
		return nil
	}
	onFailure := s.OnFailure
	if result.OnFailure != "" {
		onFailure = result.OnFailure
	}
	switch onFailure {
	case sitescripts.Fail:
		return reservation.Fail(s.Name+": "+result.Detail, nil)
	case sitescripts.Reload:
		return reservation.Reload(s.Name+": "+result.Detail, nil)
	default:
		return nil
	}
}

// keep stores a step's result for a worker that takes over.
func (r *Runner) keep(s reservation.Step) {
	const longest = 160
	text := strings.Join([]string{string(s.Result), s.Took.String(), climb.Cut(s.Detail, longest)}, "|")
	if r.PerBoot {
		text = r.mark() + "|" + text
	}
	r.Report.Keep(r.Key+s.Name, text)
}

func (r *Runner) kept(name string) (reservation.Step, bool) {
	text := r.Report.Kept(r.Key + name)
	if r.PerBoot {
		mark, rest, _ := strings.Cut(text, "|")
		if mark == "" || mark != r.mark() {
			return reservation.Step{}, false
		}
		text = rest
	}
	parts := strings.SplitN(text, "|", 3)
	if len(parts) != 3 {
		return reservation.Step{}, false
	}
	result, ok := ResultOf(parts[0])
	took, err := time.ParseDuration(parts[1])
	if !ok || err != nil {
		return reservation.Step{}, false
	}
	return reservation.Step{Name: name, Result: result, Detail: parts[2], Took: reservation.Duration(took)}, true
}

// mark is the beginning of the boot: enough to tell one from the next.
func (r *Runner) mark() string { return r.Boot[:min(8, len(r.Boot))] }

// ResultOf reads a script's word for how it went; false for a word that is no judgement of a step that went well.
func ResultOf(word string) (reservation.StepResult, bool) {
	switch result := reservation.StepResult(word); result {
	case reservation.StepDone, reservation.StepSkipped, reservation.StepWarned:
		return result, true
	default:
		return "", false
	}
}

// Tag is what stands on a configured guest of what was loaded, for whom.
type Tag struct {
	Image       string    `json:"image"`
	Revision    int       `json:"revision"`
	Computer    string    `json:"computer"`
	Reservation string    `json:"reservation"`
	Run         string    `json:"run"`
	Attempt     int       `json:"attempt"`
	PostLoad    string    `json:"post_load"` // "done"
	At          time.Time `json:"at"`
}

// TagOf returns the tag's text.
func TagOf(request osmodules.Request) ([]byte, error) {
	r := request.Reservation
	text, err := json.MarshalIndent(Tag{
		Image: r.Image.Name, Revision: r.Image.Revision, Computer: r.Computer.Name, Reservation: r.Name, Run: request.Mark.Run,
		Attempt: request.Attempt.Number, PostLoad: string(reservation.VerdictDone), At: time.Now().UTC().Truncate(time.Second),
	}, "", "  ")
	return append(text, '\n'), err
}
