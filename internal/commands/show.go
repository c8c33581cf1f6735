package commands

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"berth/internal/loadlog"
)

func (s *session) show() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show everything about a reservation: phases, stages and steps with their times",
		Long: `Show everything about a reservation: phases, stages and steps with their times.

NAME is a reservation's name, or a computer's: the computer's last reservation is shown then, live or not.`,
		Example:           "  starter show vm-01\n  starter show alice-vm-01-3f9c1 -o json",
		Args:              exactly("one NAME", 1, 1),
		ValidArgsFunction: s.completeNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			l, found, err := s.named(ctx, args[0])
			if err != nil {
				return err
			}
			view, err := l.view(ctx, found)
			if err != nil {
				return err
			}
			if s.json() {
				return s.writeJSON(view)
			}
			return view.Show(s.Stdout, s.style(s.Stdout))
		},
	}
}

// named finds the reservation that a NAME means, live or not.
func (s *session) named(ctx context.Context, name string) (*ledger, run, error) {
	l, err := s.ledger(ctx)
	if err != nil {
		return nil, run{}, err
	}
	found, err := s.find(ctx, l, name, false)
	return l, found, err
}

// historyAnswer is what `history -o json` writes.
type historyAnswer struct {
	Reservation string          `json:"reservation"`
	Computer    string          `json:"computer"`
	Outcome     string          `json:"outcome,omitempty"`
	WorkflowID  string          `json:"workflow_id"`
	RunID       string          `json:"run_id"`
	Events      int             `json:"events"` // of the workflow's history
	Entries     []loadlog.Entry `json:"entries"`
}

func (s *session) history() *cobra.Command {
	var page string
	cmd := &cobra.Command{
		Use:   "history NAME",
		Short: "Show a reservation's load log: what happened when, and who asked for it",
		Long: `Show a reservation's load log: what happened when, and who asked for it.

It is read from the workflow's history and from what runs now, so it needs no worker. NAME is a reservation's name, or
a computer's: the computer's last reservation is shown then, live or not.

With --html it goes to a file as one page, with a timeline of phases and stages: something to attach to a ticket. The page
needs nothing but a browser.`,
		Example:           "  starter history vm-01\n  starter history alice-vm-01-3f9c1 -o json\n  starter history vm-01 --html vm-01.html",
		Args:              exactly("one NAME", 1, 1),
		ValidArgsFunction: s.completeNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if page != "" && s.json() {
				return &Failure{Code: CodeInput, Text: "--html and -o json are both given", Hint: "leave one of them out"}
			}
			l, found, err := s.named(ctx, args[0])
			if err != nil {
				return err
			}
			events, err := l.events(ctx, found)
			if err != nil {
				return err
			}
			live := loadlog.LiveOf(found.described, s.Now())
			log := loadlog.Read(events).Append(live)
			if page != "" {
				view := loadlog.View{Status: log.Status, WorkflowID: found.id, RunID: found.runID}
				return s.writePage(page, log, view.WithLive(live))
			}
			if s.json() {
				return s.writeJSON(historyAnswer{Reservation: log.Status.Reservation, Computer: log.Status.Computer, Outcome: string(log.Status.Outcome),
					WorkflowID: found.id, RunID: found.runID, Events: len(events), Entries: log.Entries})
			}
			return log.Write(s.Stdout, s.style(s.Stdout))
		},
	}
	cmd.Flags().StringVar(&page, "html", "", "write one page to `FILE` (- is the standard output)")
	return cmd
}

// writePage writes a load's page to a file, which it replaces.
func (s *session) writePage(path string, log loadlog.Log, view loadlog.View) error {
	var page bytes.Buffer
	if err := log.WriteHTML(&page, view, s.style(s.Stdout)); err != nil {
		return err
	}
	if path == "-" {
		_, err := page.WriteTo(s.Stdout)
		return err
	}
	if err := os.WriteFile(path, page.Bytes(), 0o644); err != nil {
		return &Failure{Code: CodeInput, Text: "the page cannot be written: " + err.Error(), Hint: "name a file in a folder that is there and may be written", Cause: err}
	}
	return nil
}

func (s *session) watch() *cobra.Command {
	var until string
	cmd := &cobra.Command{
		Use:   "watch [NAME...]",
		Short: "Watch reservations live",
		Long: `Watch reservations live: phase, stage, elapsed of limit, attempt.

With NAMEs it ends when each of them is over, or with --until ready when each is ready or over. Without, it watches all live
reservations and those that begin meanwhile, until Ctrl-C. On a terminal the lines are redrawn in place; elsewhere there
is one line for each change. With -o json each change is one JSON object on a line of its own.`,
		Example:           "  starter watch\n  starter watch vm-01 vm-02 --until ready",
		ValidArgsFunction: s.completeNames(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if until != "ready" && until != "over" {
				return wrongName("--until", until, []string{"ready", "over"}, "write --until ready or --until over")
			}
			return s.runWatch(cmd.Context(), args, until == "ready")
		},
	}
	cmd.Flags().StringVar(&until, "until", "over", "watch until each is `ready` or over")
	_ = cmd.RegisterFlagCompletionFunc("until", cobra.FixedCompletions([]string{"ready", "over"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (s *session) runWatch(ctx context.Context, names []string, ready bool) error {
	l, err := s.ledger(ctx)
	if err != nil {
		return err
	}
	f := &follower{ledger: l, display: s.liveDisplay(s.Stdout), done: over}
	if ready {
		f.done = readyOrOver
	}
	if s.json() {
		f.display = &objects{session: s, last: map[string]string{}}
	}
	if len(names) == 0 {
		f.search = func(ctx context.Context) ([]run, error) {
			infos, _, err := l.search(ctx, liveQuery(), defaultMost)
			if err != nil {
				return nil, err
			}
			return l.describeAll(ctx, infos)
		}
		found, err := f.search(ctx)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			fmt.Fprintln(s.Stderr, "no live reservations yet; Ctrl-C ends the watching")
		}
		f.add(found...)
	}
	for _, name := range names {
		found, err := s.find(ctx, l, name, false)
		if err != nil {
			return err
		}
		f.add(found)
	}
	if err := f.follow(ctx); err != nil {
		switch {
		case ctx.Err() == nil:
			return err
		case len(names) == 0:
			return nil // Ctrl-C is how this one ends
		default:
			return &reported{code: CodeInterrupted}
		}
	}
	codes := make([]int, 0, len(f.all))
	for _, one := range f.all {
		codes = append(codes, codeUntil(one.view, ready))
	}
	if code := codeOfAll(codes); code != CodeOK {
		return &reported{code: code}
	}
	return nil
}

// versionAnswer is what `version -o json` writes.
type versionAnswer struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Changed  bool   `json:"changed,omitempty"` // built from files that were not committed
	Go       string `json:"go"`
}

func (s *session) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which build this is",
		Args:  exactly("no arguments", 0, 0),
		RunE: func(*cobra.Command, []string) error {
			answer := versionAnswer{Version: "unknown", Go: "unknown"}
			if info, ok := debug.ReadBuildInfo(); ok {
				answer.Version, answer.Go = info.Main.Version, info.GoVersion
				for _, setting := range info.Settings {
					switch setting.Key {
					case "vcs.revision":
						answer.Revision = setting.Value
					case "vcs.modified":
						answer.Changed = setting.Value == "true"
					}
				}
			}
			if s.json() {
				return s.writeJSON(answer)
			}
			words := []string{Name, answer.Version}
			if answer.Revision != "" {
				words = append(words, "revision", answer.Revision)
			}
			if answer.Changed {
				words = append(words, "with changes")
			}
			_, err := fmt.Fprintln(s.Stdout, strings.Join(append(words, answer.Go), " "))
			return err
		},
	}
}
