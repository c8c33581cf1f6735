package commands

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"berth/activities"
	"berth/internal/loadlog"
	"berth/reservation"
	"berth/workflows"
)

func (s *session) extend() *cobra.Command {
	var by, until string
	cmd := &cobra.Command{
		Use:   "extend NAME (--by DURATION | --until TIME)",
		Short: "Move a reservation's end to a later time",
		Long: `Move a reservation's end to a later time.

NAME is a live reservation's name, or its computer's. The reservation itself decides, so a worker must be there to answer.`,
		Example:           "  starter extend vm-01 --by 1h\n  starter extend alice-vm-01-3f9c1 --until 18:00",
		Args:              exactly("one NAME", 1, 1),
		ValidArgsFunction: s.completeNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if by == "" && until == "" {
				return &Failure{Code: CodeInput, Text: "extend until when?", Hint: "give --by 1h or --until 18:00"}
			}
			return s.runExtend(cmd.Context(), args[0], by, until)
		},
	}
	cmd.Flags().StringVar(&by, "by", "", "how much longer than agreed: a `DURATION` such as 30m or 1h")
	cmd.Flags().StringVar(&until, "until", "", "until when: a `TIME` as 17:30, \"2026-11-30 17:30\" or 2026-11-30T17:30:00Z")
	return cmd
}

func (s *session) runExtend(ctx context.Context, name, by, until string) error {
	// --until counts from now and --by from the present end, which only the reservation knows.
	from := s.Now()
	if _, err := endOf("--by", by, until, from, 0); err != nil {
		return err
	}
	l, err := s.ledger(ctx)
	if err != nil {
		return err
	}
	found, err := s.find(ctx, l, name, true)
	if err != nil {
		return err
	}
	if by != "" {
		status, err := l.query(ctx, found)
		if err != nil {
			return s.nobodyAnswers(ctx, l, err)
		}
		from = status.End
	}
	end, err := endOf("--by", by, until, from, 0)
	if err != nil {
		return err
	}
	end, err = l.extend(ctx, found, end)
	var refused *temporal.ApplicationError
	switch {
	case errors.As(err, &refused):
		code := CodeFailed
		if refused.Type() == "FieldError" {
			code = CodeInput
		}
		return &Failure{Code: code, Text: found.name() + " is not extended: " + refused.Message(), Cause: err}
	case endedMeanwhile(err):
		return l.ended(ctx, found, "reservation "+found.name())
	case err != nil && ctx.Err() == nil:
		return s.nobodyAnswers(ctx, l, err)
	case err != nil:
		return err
	}
	if s.json() {
		return s.writeOne(ctx, l, found)
	}
	style := s.style(s.Stdout)
	_, err = fmt.Fprintf(s.Stdout, "%s on %s ends %s\n", style.Paint(loadlog.Strong, found.name()), found.computer(), style.ClockAndSpan(end))
	return err
}

// extend asks the workflow for a later end and returns the one that it has then.
func (l *ledger) extend(ctx context.Context, r run, end time.Time) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	handle, err := l.client.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: r.id, RunID: r.runID, UpdateName: workflows.ExtendUpdate, Args: []any{workflows.ExtendRequest{End: end.UTC()}},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err != nil {
		return time.Time{}, err
	}
	var agreed time.Time
	err = handle.Get(ctx, &agreed)
	return agreed, err
}

func endedMeanwhile(err error) bool {
	var missing *serviceerror.NotFound
	return errors.As(err, &missing)
}

// nobodyAnswers explains an error of something that only a worker can answer.
func (s *session) nobodyAnswers(ctx context.Context, l *ledger, err error) error {
	var failed *serviceerror.QueryFailed
	if errors.As(err, &failed) {
		return &Failure{Code: CodeFailed, Text: "the reservation's workflow does not answer: " + failed.Message, Hint: "see its pending task in Temporal's Web UI", Cause: err}
	}
	seen, perr := l.lastPoll(ctx, activities.WorkflowQueue)
	if perr != nil {
		return perr // Temporal itself does not answer
	}
	text := noWorkerText()
	if !seen.IsZero() {
		text = l.whySilent(ctx, err)
	}
	return &Failure{Code: CodeNoWorker, Text: text, Hint: "start a worker, or look why it does not answer, and try again", Cause: err}
}

func (s *session) writeOne(ctx context.Context, l *ledger, r run) error {
	r, err := l.describe(ctx, r.id, r.runID)
	if err != nil {
		return err
	}
	view, err := l.view(ctx, r)
	if err != nil {
		return err
	}
	return s.writeJSON(view)
}

// endingWord is one way to end reservations.
type endingWord struct {
	verb  string // release, cancel
	past  string
	short string
	long  string
	ask   func(context.Context, *ledger, run) error
}

func (s *session) release() *cobra.Command {
	return s.ending(endingWord{
		verb: "release", past: "released", short: "Give computers back: their reservations end well",
		long: "Give computers back. Each is powered off and removed; its reservation ends as released, whatever it was doing.",
		ask: func(ctx context.Context, l *ledger, r run) error {
			ctx, cancel := context.WithTimeout(ctx, callLimit)
			defer cancel()
			return l.client.SignalWorkflow(ctx, r.id, r.runID, workflows.ReleaseSignal, nil)
		},
	})
}

func (s *session) cancel() *cobra.Command {
	return s.ending(endingWord{
		verb: "cancel", past: "cancelled", short: "Cancel reservations: stop what they are doing, and clean up",
		long: "Cancel reservations. What each is doing is stopped and cleaned up; it ends as cancelled.",
		ask: func(ctx context.Context, l *ledger, r run) error {
			ctx, cancel := context.WithTimeout(ctx, callLimit)
			defer cancel()
			return l.client.CancelWorkflow(ctx, r.id, r.runID)
		},
	})
}

func (s *session) ending(word endingWord) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   word.verb + " NAME...",
		Short: word.short,
		Long: word.long + `

NAME is a live reservation's name, or its computer's. All names are looked up before anything is ended. With --wait it
ends when the reservations are over; the exit code is then 1 if a computer could not be taken back.`,
		Example:           fmt.Sprintf("  starter %s vm-01\n  starter %s alice-vm-01-3f9c1 --wait", word.verb, word.verb),
		Args:              exactly("one NAME or more", 1, -1),
		ValidArgsFunction: s.completeNames(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.runEnding(cmd.Context(), word, args, wait)
		},
	}
	cmd.Flags().BoolVarP(&wait, "wait", "w", false, "show them until they are over")
	return cmd
}

func (s *session) runEnding(ctx context.Context, word endingWord, names []string, wait bool) error {
	l, err := s.ledger(ctx)
	if err != nil {
		return err
	}
	var runs []run
	var problems []*Failure
	known := map[string]bool{}
	for _, name := range names {
		found, err := s.find(ctx, l, name, true)
		if err != nil {
			problems = append(problems, s.explain(ctx, err))
			continue
		}
		if !known[found.runID] {
			known[found.runID] = true
			runs = append(runs, found)
		}
	}
	if len(problems) > 0 {
		return nothingEnded(problems, len(names), word)
	}
	var codes []int
	var asked []run
	for _, r := range runs {
		err := word.ask(ctx, l, r)
		if endedMeanwhile(err) {
			err = l.ended(ctx, r, "reservation "+r.name())
		}
		if err != nil {
			f := s.explain(ctx, err)
			s.complain(f)
			codes = append(codes, f.Code)
			continue
		}
		asked = append(asked, r)
	}
	if seen, err := l.lastPoll(ctx, activities.WorkflowQueue); err == nil && seen.IsZero() && len(asked) > 0 {
		s.warn(noWorkerText()+": nothing is "+word.past+" until one does", "start a worker")
	}
	if wait {
		waited, err := s.waitUntilOver(ctx, l, asked)
		if err != nil {
			return err
		}
		codes = append(codes, waited...)
	} else if err := s.writeAsked(ctx, l, asked, word); err != nil {
		return err
	}
	if code := codeOfAll(codes); code != CodeOK {
		return &reported{code: code}
	}
	return nil
}

func nothingEnded(problems []*Failure, of int, word endingWord) *Failure {
	if of == 1 {
		return problems[0]
	}
	texts := make([]string, 0, len(problems))
	codes := make([]int, 0, len(problems))
	for _, p := range problems {
		texts, codes = append(texts, p.Error()), append(codes, p.Code)
	}
	return &Failure{Code: codeOfAll(codes), Text: "nothing was " + word.past + ":\n" + indented(strings.Join(texts, "\n"))}
}

func (s *session) writeAsked(ctx context.Context, l *ledger, asked []run, word endingWord) error {
	if s.json() {
		views := make([]loadlog.View, 0, len(asked))
		for _, r := range asked {
			described, err := l.describe(ctx, r.id, r.runID)
			if err != nil {
				return err
			}
			view, err := l.view(ctx, described)
			if err != nil {
				return err
			}
			views = append(views, view)
		}
		return s.writeJSON(views)
	}
	style := s.style(s.Stdout)
	for _, r := range asked {
		if _, err := fmt.Fprintf(s.Stdout, "%s is being %s: %s is taken back now\n", style.Paint(loadlog.Strong, r.name()), word.past, r.computer()); err != nil {
			return err
		}
	}
	return nil
}

// waitUntilOver shows reservations until they are over and returns their exit codes.
func (s *session) waitUntilOver(ctx context.Context, l *ledger, runs []run) ([]int, error) {
	show := s.liveDisplay(s.Stdout)
	if s.json() {
		show = progressOnly{s.liveDisplay(s.Stderr)}
	}
	f := &follower{ledger: l, display: show, done: over}
	f.add(runs...)
	if err := f.follow(ctx); err != nil {
		names := make([]string, 0, len(runs))
		for _, r := range runs {
			names = append(names, r.name())
		}
		if ctx.Err() != nil {
			return nil, &Failure{Code: CodeInterrupted, Text: "interrupted: they are ended all the same",
				Hint: "to see them: " + Name + " watch " + strings.Join(names, " "), Cause: err}
		}
		return nil, err
	}
	views := f.views()
	codes := make([]int, 0, len(views))
	for _, v := range views {
		code := CodeOK
		// What ended otherwise before it was asked is over all the same; a computer that was left running is not.
		if v.LeftBehind() || v.Outcome == loadlog.OutcomeTerminated || v.Outcome == loadlog.OutcomeTimedOut || v.Outcome == reservation.OutcomeFailed {
			code = CodeFailed
		}
		codes = append(codes, code)
	}
	if s.json() {
		return codes, s.writeJSON(views)
	}
	return codes, nil
}
