package commands

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth/internal/loadlog"
	"berth/reservation"
	"berth/workflows"
)

const defaultMost = 200

type listFlags struct {
	all         bool
	user        string
	computer    string
	image       string
	phase       string
	outcome     string
	provisioner string
	most        int
}

func (s *session) list() *cobra.Command {
	var flags listFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the live reservations, or all",
		Long: `List the live reservations, or with --all those that are over, too.

Temporal finds reservations by their search attributes, which it writes a moment after the fact; how each one stands is
then read anew. A reservation that was started within the last second or two may be missing.`,
		Example: `  starter list --user alice
  starter list --all --outcome failed -o json`,
		Args: exactly("no arguments: filter with its flags", 0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return s.runList(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	f.BoolVarP(&flags.all, "all", "a", false, "those that are over, too")
	f.StringVar(&flags.user, "user", "", "of this user")
	f.StringVar(&flags.computer, "computer", "", "of this computer")
	f.StringVar(&flags.image, "image", "", "with this image, or this revision of it (debian12, debian12-r3)")
	f.StringVar(&flags.phase, "phase", "", "in this phase: "+strings.Join(phases(), ", "))
	f.StringVar(&flags.outcome, "outcome", "", "with this outcome: "+strings.Join(outcomes(), ", "))
	f.StringVar(&flags.provisioner, "provisioner", "", "loaded by this provisioner")
	f.IntVar(&flags.most, "limit", defaultMost, "list at most `N`")
	fixed := func(flag string, values []string) {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	fixed("phase", phases())
	fixed("outcome", outcomes())
	_ = cmd.RegisterFlagCompletionFunc("image", s.completeImages)
	_ = cmd.RegisterFlagCompletionFunc("computer", s.completeComputers)
	return cmd
}

func phases() []string {
	return []string{string(reservation.PhaseLoad), string(reservation.PhasePostLoad), string(reservation.PhaseReady), string(reservation.PhaseUnload),
		string(reservation.PhaseClean), string(reservation.PhaseEnded)}
}

func outcomes() []string {
	return []string{string(reservation.OutcomeReady), string(reservation.OutcomeReleased), string(reservation.OutcomeExpired), string(reservation.OutcomeCancelled),
		string(reservation.OutcomeFailed), string(reservation.OutcomeNoWorker), string(loadlog.OutcomeTerminated), string(loadlog.OutcomeTimedOut)}
}

// check checks the filters, because they are put into a query.
func (f listFlags) check() error {
	for _, filter := range []struct {
		flag, value string
		check       func(field, value string) error
	}{
		{"--user", f.user, reservation.CheckUser},
		{"--computer", f.computer, reservation.CheckName},
		{"--image", f.image, reservation.CheckName},
		{"--provisioner", f.provisioner, reservation.CheckName},
	} {
		if filter.value == "" {
			continue
		}
		if err := filter.check(filter.flag, filter.value); err != nil {
			return err
		}
	}
	if f.phase != "" && !slices.Contains(phases(), f.phase) {
		return wrongName("phase", f.phase, phases(), "choose one of "+strings.Join(phases(), ", "))
	}
	if f.outcome != "" && !slices.Contains(outcomes(), f.outcome) {
		return wrongName("outcome", f.outcome, outcomes(), "choose one of "+strings.Join(outcomes(), ", "))
	}
	if f.most < 1 {
		return &Failure{Code: CodeInput, Text: fmt.Sprintf("--limit %d lists nothing", f.most), Hint: "give 1 or more"}
	}
	return nil
}

// closed says whether reservations that are over are asked for: all of them, or those in a phase or with an outcome that
// only these have.
func (f listFlags) closed() bool {
	return f.all || f.phase == string(reservation.PhaseEnded) || f.outcome != "" && f.outcome != string(reservation.OutcomeReady)
}

// query returns the visibility query. Phase and outcome of live reservations stand not in it: visibility lags behind, so
// they are held against what is read anew.
func (f listFlags) query() string {
	attributes := workflows.SearchAttributes()
	terms := []string{fmt.Sprintf("WorkflowType = '%s'", workflows.ReservationName)}
	equal := func(attribute, value string) {
		if value != "" {
			terms = append(terms, fmt.Sprintf("%s = '%s'", attribute, value))
		}
	}
	equal(attributes.User.GetName(), f.user)
	equal(attributes.Computer.GetName(), f.computer)
	equal(attributes.Provisioner.GetName(), f.provisioner)
	if f.image != "" {
		terms = append(terms, fmt.Sprintf("(%[1]s = '%[2]s' OR %[1]s STARTS_WITH '%[2]s-r')", attributes.Image.GetName(), f.image))
	}
	const running = "ExecutionStatus = 'Running'"
	switch {
	case !f.closed():
		terms = append(terms, running)
	case f.outcome == string(loadlog.OutcomeTerminated):
		terms = append(terms, "ExecutionStatus = 'Terminated'")
	case f.outcome == string(loadlog.OutcomeTimedOut):
		terms = append(terms, "ExecutionStatus = 'TimedOut'")
	case f.outcome == string(reservation.OutcomeFailed):
		// One whose input had a fault failed without an outcome of its own.
		terms = append(terms, "ExecutionStatus = 'Failed'")
	case f.outcome != "":
		terms = append(terms, fmt.Sprintf("(%s OR %s = '%s')", running, attributes.Outcome.GetName(), f.outcome))
	}
	return strings.Join(terms, " AND ")
}

// matches holds a view against the filters.
func (f listFlags) matches(v loadlog.View) bool {
	if v.Over() && !f.closed() {
		return false // it ended while it was being listed
	}
	if f.image != "" && v.Image != f.image {
		revision, ok := strings.CutPrefix(v.Image, f.image+"-r")
		if _, err := strconv.Atoi(revision); !ok || err != nil {
			return false
		}
	}
	return (f.phase == "" || string(v.Phase) == f.phase) && (f.outcome == "" || string(v.Outcome) == f.outcome)
}

func (s *session) runList(ctx context.Context, flags listFlags) error {
	if err := flags.check(); err != nil {
		return err
	}
	l, err := s.ledger(ctx)
	if err != nil {
		return err
	}
	infos, more, err := l.search(ctx, flags.query(), flags.most)
	if err != nil {
		return err
	}
	runs, err := l.describeAll(ctx, infos)
	if err != nil {
		return err
	}
	found, err := l.views(ctx, runs)
	if err != nil {
		return err
	}
	views := make([]loadlog.View, 0, len(found))
	notes := map[string]bool{}
	for _, v := range found {
		if flags.matches(v) {
			views = append(views, v)
			for _, note := range v.Notes {
				notes[note] = true
			}
		}
	}
	slices.SortStableFunc(views, inOrder)
	for note := range notes {
		s.warn(note, "")
	}
	if more {
		s.warn(fmt.Sprintf("there are more than %d", flags.most), "filter, or list more with --limit")
	}
	if s.json() {
		return s.writeJSON(views)
	}
	if len(views) == 0 {
		_, err := fmt.Fprintln(s.Stderr, flags.nothing())
		return err
	}
	style := s.style(s.Stdout)
	table := loadlog.Table{Header: []string{"RESERVATION", "USER", "IMAGE", "COMPUTER", "STATE", "ATTEMPT", "TIME", "DOING"}}
	for _, v := range views {
		line := v.Line(style)
		table.Row(slices.Insert(line, 1, loadlog.Cell{Text: loadlog.Clean(v.User)}, loadlog.Cell{Text: loadlog.Clean(v.Image)})...)
	}
	return table.Write(s.Stdout, style)
}

func (f listFlags) nothing() string {
	filtered := f.user != "" || f.computer != "" || f.image != "" || f.phase != "" || f.outcome != "" || f.provisioner != ""
	switch {
	case filtered:
		return "no reservation matches"
	case f.all:
		return "no reservations"
	default:
		return "no live reservations (--all lists those that are over)"
	}
}

// inOrder puts the newest last. What was started in the same second, most likely together, stays in the order of its
// names.
func inOrder(a, b loadlog.View) int {
	if c := a.Began.Truncate(time.Second).Compare(b.Began.Truncate(time.Second)); c != 0 {
		return c
	}
	return cmp.Or(strings.Compare(a.Reservation, b.Reservation), strings.Compare(a.Computer, b.Computer))
}
