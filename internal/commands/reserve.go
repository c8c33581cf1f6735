package commands

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"berth/activities"
	"berth/internal/catalog"
	"berth/internal/hold"
	"berth/internal/loadlog"
	"berth/reservation"
)

// defaultSpan is how long a reservation lasts when nobody says.
const defaultSpan = 2 * time.Hour

type reserveFlags struct {
	file  string
	user  string
	span  string
	until string
	name  string
	wait  bool
}

func (s *session) reserve() *cobra.Command {
	var flags reserveFlags
	cmd := &cobra.Command{
		Use:   "reserve (IMAGE COMPUTER... | -f FILE)",
		Short: "Reserve computers: load an image onto each",
		Long: `Reserve computers: load an image onto each.

IMAGE is an image's name (its newest revision) or a revision of it, such as debian12-r3. Everything is checked before
anything is started. A computer that is held by another reservation is refused, and the others are started all the same.

A batch FILE (- is standard input) is a YAML list; what an entry leaves out comes from the flags:
  - {image: debian12, computer: vm-01, user: alice, name: course-1, for: 4h}
  - {image: rocky9-r2, computer: vm-02, until: "2026-11-30 17:30"}

With --wait it ends when each reservation is ready or has ended otherwise. Ctrl-C ends the waiting only.`,
		Example: `  starter reserve debian12 vm-01
  starter reserve debian12 vm-01 vm-02 vm-03 --for 8h --name course --wait
  starter reserve -f course.yaml --wait -o json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if flags.file != "" {
				if len(args) > 0 {
					return &Failure{Code: CodeInput, Text: "both a batch file and an image with computers", Hint: "give one of them"}
				}
				return nil
			}
			return exactly("an image and one computer or more, or -f with a batch file", 2, -1)(cmd, args)
		},
		ValidArgsFunction: s.completeReserve,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.runReserve(cmd.Context(), flags, args)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&flags.file, "file", "f", "", "a batch `FILE`; - is standard input")
	f.StringVar(&flags.user, "user", "", "whose reservation it is (default: you)")
	f.StringVar(&flags.span, "for", "", "how long: a `DURATION` such as 90m or 2h (default "+loadlog.Span(defaultSpan)+")")
	f.StringVar(&flags.until, "until", "", "until when: a `TIME` as 17:30, \"2026-11-30 17:30\" or 2026-11-30T17:30:00Z")
	f.StringVar(&flags.name, "name", "", "the reservation's name; of several, NAME-COMPUTER each (default USER-COMPUTER-xxxxx)")
	f.BoolVarP(&flags.wait, "wait", "w", false, "show the loads until each is ready or has ended")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
	return cmd
}

// reserved is one result of reserve: what became of one wish.
type reserved struct {
	Reservation string `json:"reservation"`
	User        string `json:"user"`
	Computer    string `json:"computer"`
	Image       string `json:"image"`
	Started     bool   `json:"started"`
	Error       string `json:"error,omitempty"`
	Code        int    `json:"code,omitempty"` // the exit code that the error alone would give

	*loadlog.View // nil when it was not started

	run run
}

func (s *session) runReserve(ctx context.Context, flags reserveFlags, args []string) error {
	wishes, faults, err := s.wishes(flags, args)
	if err != nil {
		return err
	}
	found, err := s.loadCatalog()
	if err != nil {
		return err
	}
	all, more := reservations(found, wishes)
	if faults = inLines(append(faults, more...)); len(faults) > 0 {
		return faulty(faults)
	}
	l, err := s.ledger(ctx)
	if err != nil {
		return err
	}
	results := s.start(ctx, l, wishes, all)
	started := make([]run, 0, len(results))
	for _, r := range results {
		if r.Started {
			started = append(started, r.run)
		}
	}
	s.sayRefusals(ctx, l, found, all, results)
	if len(started) > 0 && ctx.Err() == nil {
		if seen, err := l.lastPoll(ctx, activities.WorkflowQueue); err == nil && seen.IsZero() {
			s.warn(noWorkerText()+": what was started waits until one does", "start a worker")
		}
	}
	codes := make([]int, 0, len(results))
	for _, r := range results {
		codes = append(codes, r.Code)
	}
	if flags.wait && len(started) > 0 {
		waited, err := s.wait(ctx, l, results, started)
		if err != nil {
			return err
		}
		codes = append(codes, waited...)
	}
	if err := s.writeReserved(results, flags.wait && len(started) > 0); err != nil {
		return err
	}
	if code := codeOfAll(codes); code != CodeOK {
		return &reported{code: code}
	}
	return nil
}

func faulty(faults []*fault) *Failure {
	if len(faults) == 1 && faults[0].at.file == "" {
		return &Failure{Code: CodeInput, Text: faults[0].Error(), Cause: faults[0]}
	}
	texts := make([]string, 0, len(faults))
	for _, f := range faults {
		texts = append(texts, f.Error())
	}
	return &Failure{Code: CodeInput, Text: fmt.Sprintf("nothing was started, because of %s:\n%s", counted(len(faults), "fault"), indented(strings.Join(texts, "\n")))}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// wishes reads what is asked for out of arguments and flags, or out of the batch file with its faults.
func (s *session) wishes(flags reserveFlags, args []string) ([]wish, []*fault, error) {
	d := defaults{user: s.user(flags.user), now: s.Now()}
	if d.user == "" && flags.file == "" {
		return nil, nil, &Failure{Code: CodeInput, Text: "whose reservation is it? neither BERTH_USER nor USER is set", Hint: "say it with --user"}
	}
	var err error
	if d.end, err = endOf("--for", flags.span, flags.until, d.now, defaultSpan); err != nil {
		return nil, nil, err
	}
	if flags.file == "" {
		wishes := make([]wish, 0, len(args)-1)
		for _, computer := range args[1:] {
			name := flags.name
			if name != "" && len(args) > 2 {
				name += "-" + computer
			}
			wishes = append(wishes, wish{image: args[0], computer: computer, user: d.user, name: name, end: d.end, given: name != ""})
		}
		return wishes, nil, nil
	}
	if flags.name != "" {
		return nil, nil, &Failure{Code: CodeInput, Text: "--name does not go with a batch file", Hint: "write name: into its entries"}
	}
	in, name := s.Stdin, "standard input"
	if flags.file != "-" {
		file, err := os.Open(flags.file)
		if err != nil {
			return nil, nil, &Failure{Code: CodeInput, Text: "the batch file cannot be read: " + err.Error(), Hint: "give the path of a YAML file, or - for standard input", Cause: err}
		}
		defer file.Close()
		in, name = file, filepath.Clean(flags.file)
	}
	wishes, faults := readBatch(name, in, d)
	return wishes, faults, nil
}

func (s *session) user(flag string) string {
	for _, user := range []string{flag, s.Env(EnvUser), s.Env("USER"), s.Env("LOGNAME")} {
		if user != "" {
			return user
		}
	}
	return ""
}

// endOf reads a duration's flag (--for, --by) and --until.
func endOf(flag, span, until string, from time.Time, otherwise time.Duration) (time.Time, error) {
	if span != "" && until != "" {
		return time.Time{}, &Failure{Code: CodeInput, Text: flag + " and --until together", Hint: "give one of them"}
	}
	if until != "" {
		end, err := parseTime(until, from)
		if err != nil {
			return time.Time{}, &Failure{Code: CodeInput, Text: "--until: " + err.Error(), Cause: err}
		}
		return end, nil
	}
	length := otherwise
	if span != "" {
		var err error
		if length, err = parseSpan(span); err != nil {
			return time.Time{}, &Failure{Code: CodeInput, Text: flag + ": " + err.Error(), Cause: err}
		}
	}
	return from.Add(length), nil
}

// short returns five letters and digits that nobody has used yet, most likely.
func short() string {
	return strings.ReplaceAll(uuid.NewString(), "-", "")[:5]
}

// start starts all reservations and returns what became of each.
func (s *session) start(ctx context.Context, l *ledger, wishes []wish, all []reservation.Reservation) []reserved {
	results := make([]reserved, len(all))
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, r := range all {
		group.Go(func() error {
			results[i] = s.startOne(ctx, l, r, wishes[i].given)
			return nil
		})
	}
	_ = group.Wait() // each result has its own error
	return results
}

func (s *session) startOne(ctx context.Context, l *ledger, r reservation.Reservation, given bool) reserved {
	result := reserved{Reservation: r.Name, User: r.User, Computer: r.Computer.Name, Image: r.Image.String()}
	err := s.nameFree(ctx, l, r, given)
	if err == nil {
		startCtx, cancel := context.WithTimeout(ctx, startLimit)
		defer cancel()
		handle, serr := hold.Start(startCtx, l.client, r)
		if err = serr; err == nil {
			result.Started = true
			result.run = run{id: handle.GetID(), runID: handle.GetRunID()}
			result.View = &loadlog.View{Status: loadlog.StatusAtStart(r, s.Now()), WorkflowID: handle.GetID(), RunID: handle.GetRunID()}
			return result
		}
	}
	failure := s.explain(ctx, err)
	result.Code = failure.Code
	result.Error = failure.Error()
	if ctx.Err() != nil {
		result.Error = "interrupted before it was started"
	}
	return result
}

// nameFree refuses a name that somebody chose and that a live reservation has. It is a courtesy, not a guarantee: two
// that are started at once both pass, and are told apart by their computers.
func (s *session) nameFree(ctx context.Context, l *ledger, r reservation.Reservation, given bool) error {
	if !given {
		return nil
	}
	runs, err := l.named(ctx, r.Name)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(runs, run.live)
	// One on the same computer is refused by the hold, in better words.
	if at < 0 || runs[at].computer() == r.Computer.Name {
		return nil
	}
	return &Failure{Code: CodeHeld, Text: fmt.Sprintf("the name %s is taken by a live reservation on computer %s", r.Name, runs[at].computer()),
		Hint: "choose another --name"}
}

// sayRefusals says what could not be started and, where computers are held, which others are free.
func (s *session) sayRefusals(ctx context.Context, l *ledger, c *catalog.Catalog, all []reservation.Reservation, results []reserved) {
	var refused []string
	held := -1
	for i, r := range results {
		if r.Started {
			continue
		}
		refused = append(refused, fmt.Sprintf("%s on %s: %s", r.Reservation, r.Computer, r.Error))
		if r.Code == CodeHeld {
			held = i
		}
	}
	if len(refused) == 0 {
		return
	}
	hint := ""
	if held >= 0 && ctx.Err() == nil {
		if free := s.free(ctx, l, c, all[held].Image); len(free) > 0 {
			hint = fmt.Sprintf("free and fit for %s: %s", all[held].Image, strings.Join(free, ", "))
		}
	}
	text := refused[0]
	if len(results) > 1 {
		text = fmt.Sprintf("%d of %s not started:\n%s", len(refused), counted(len(results), "reservation"), indented(strings.Join(refused, "\n")))
	}
	s.complain(&Failure{Text: text, Hint: hint})
}

// free returns a few computers that nobody holds and that the image can be loaded onto.
func (s *session) free(ctx context.Context, l *ledger, c *catalog.Catalog, image reservation.Image) []string {
	const most, enough = 1000, 3
	_, held, err := l.names(ctx, liveQuery(), most)
	if err != nil || len(held) == most {
		return nil
	}
	var free []string
	for _, computer := range c.Computers {
		if _, fit := image.Sources[computer.Provisioner]; fit && !slices.Contains(held, computer.Name) && len(free) < enough {
			free = append(free, computer.Name)
		}
	}
	return free
}

// wait shows the started reservations until each is ready or over, puts how they stand into results, and returns their
// exit codes.
func (s *session) wait(ctx context.Context, l *ledger, results []reserved, started []run) ([]int, error) {
	show := s.liveDisplay(s.Stdout)
	if s.json() {
		show = progressOnly{s.liveDisplay(s.Stderr)}
	}
	f := &follower{ledger: l, display: show, done: readyOrOver}
	f.add(started...)
	err := f.follow(ctx)
	if err != nil {
		names := make([]string, 0, len(results))
		for _, r := range results {
			if r.Started {
				names = append(names, r.Reservation)
			}
		}
		return nil, s.stoppedWaiting(ctx, err, names)
	}
	var codes []int
	for _, one := range f.all {
		codes = append(codes, codeUntil(one.view, true))
		for i := range results {
			if results[i].Started && results[i].run.runID == one.run.runID {
				results[i].View = &one.view
			}
		}
	}
	return codes, nil
}

// stoppedWaiting says that the reservations go on although nobody waits for them any more.
func (s *session) stoppedWaiting(ctx context.Context, err error, names []string) *Failure {
	list := strings.Join(names, " ")
	hint := fmt.Sprintf("to see them: %s watch %s\n  to end them: %s cancel %s", Name, list, Name, list)
	if ctx.Err() != nil {
		return &Failure{Code: CodeInterrupted, Text: "interrupted: the reservations go on", Hint: hint, Cause: err}
	}
	f := s.explain(ctx, err)
	f.Text += "; the reservations go on"
	f.Hint = strings.TrimPrefix(f.Hint+"\n  "+hint, "\n  ")
	return f
}

// writeReserved writes the results: all of them as JSON, or those that were started as a table.
func (s *session) writeReserved(results []reserved, waited bool) error {
	if s.json() {
		return s.writeJSON(results)
	}
	if waited {
		return nil // the display has shown them
	}
	style := s.style(s.Stdout)
	table := loadlog.Table{Header: []string{"RESERVATION", "COMPUTER", "IMAGE", "USER", "ENDS"}}
	for _, r := range results {
		if r.Started {
			table.Row(loadlog.Cell{Text: r.Reservation, Paint: loadlog.Strong}, loadlog.Cell{Text: r.Computer}, loadlog.Cell{Text: r.Image},
				loadlog.Cell{Text: r.User}, loadlog.Cell{Text: style.ClockAndSpan(r.View.End)})
		}
	}
	if len(table.Rows) == 0 {
		return nil
	}
	return table.Write(s.Stdout, style)
}
