package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/internal/loadlog"
)

const (
	strong = loadlog.Strong
	faint  = loadlog.Faint
	good   = loadlog.Good
	bad    = loadlog.Bad
	warn   = loadlog.Warn
)

// printer writes what the demonstration itself says. Everything that comes from the command line goes to out as it is.
type printer struct {
	out   io.Writer
	style loadlog.Style
}

// shared is a writer that several write to, each whole lines.
type shared struct {
	mu sync.Mutex
	to io.Writer
}

func (s *shared) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to.Write(text)
}

func (p printer) say(format string, values ...any) { fmt.Fprintf(p.out, format+"\n", values...) }

// command shows the command that is run next, for people to try themselves.
func (p printer) command(args ...string) {
	p.say("%s", p.style.Paint(strong, "$ starter "+strings.Join(args, " ")))
}

// event says what the demonstration does to the running loads.
func (p printer) event(format string, values ...any) {
	p.say("%s", p.style.Paint(warn, time.Now().Format("15:04:05")+"  "+fmt.Sprintf(format, values...)))
}

// plan shows what is going to happen.
func (p printer) plan(acts []*act) {
	table := loadlog.Table{Header: []string{"RESERVATION", "COMPUTER", "SCRIPTED", "EXPECTED"}, Indent: "  "}
	for _, a := range acts {
		table.Row(loadlog.Cell{Text: a.name, Paint: strong}, loadlog.Cell{Text: a.computer}, loadlog.Cell{Text: a.scripted}, loadlog.Cell{Text: a.expected()})
	}
	p.say("")
	_ = table.Write(p.out, p.style)
	p.say("")
}

// result shows what came of it. Its error names what is not as expected.
func (p printer) result(acts []*act, webUI string, took time.Duration) error {
	table := loadlog.Table{Header: []string{"RESERVATION", "COMPUTER", "SCRIPTED", "EXPECTED", "SEEN", "ATTEMPTS", "CLONES OR INSTALLS", "WORKERS LOST", "RESUMED", "TIME", "REASON"}, Indent: "  "}
	var wrong []error
	for _, a := range acts {
		paint := good
		if !a.asExpected() {
			paint = bad
			fault := fmt.Errorf("%s: expected %s, seen %s", a.name, a.expected(), a.seen())
			if a.reason != "" {
				fault = fmt.Errorf("%w; the reason must say %q and says %q", fault, a.reason, a.view.Reason)
			}
			wrong = append(wrong, fault)
		}
		v := a.view
		took := ""
		if !v.Ready.IsZero() {
			took = loadlog.Span(v.Ready.Sub(v.Began))
		} else if !v.Ended.IsZero() {
			took = loadlog.Span(v.Ended.Sub(v.Began))
		}
		table.Row(loadlog.Cell{Text: a.name, Paint: strong}, loadlog.Cell{Text: a.computer}, loadlog.Cell{Text: a.scripted},
			loadlog.Cell{Text: string(a.outcome)}, loadlog.Cell{Text: string(a.standing()), Paint: paint},
			loadlog.Cell{Text: fmt.Sprintf("%d of %d", v.Attempt.Number, v.Attempt.Of)}, loadlog.Cell{Text: fmt.Sprint(a.clones)}, loadlog.Cell{Text: fmt.Sprint(a.lostWorkers())},
			loadlog.Cell{Text: fmt.Sprint(a.resumed())},
			loadlog.Cell{Text: took}, loadlog.Cell{Text: cut(v.Reason, 100)})
	}
	p.say("")
	_ = table.Write(p.out, p.style)
	p.say("")
	p.say("%d of %d as expected, after %s. Web UI: %s", len(acts)-len(wrong), len(acts), loadlog.Span(took), p.style.Paint(strong, webUI))
	return errors.Join(wrong...)
}

func cut(text string, most int) string {
	text = loadlog.Clean(text)
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}

// staying says what a person can do now.
func (p printer) staying(s *stage, o options) {
	p.say("")
	p.say("Everything goes on until Ctrl-C. Try it, in another terminal:")
	p.say("  export BERTH_TEMPORAL_ADDRESS=%s BERTH_CATALOG=%s BERTH_USER=demo", s.server.Address, short(s.catalog()))
	p.say("  %s list", short(filepath.Join(s.bin, "starter")))
	p.say("  %s history %s", short(filepath.Join(s.bin, "starter")), actKilled)
	p.say("  %s release %s", short(filepath.Join(s.bin, "starter")), actWorks)
}

// short returns a path as it is written from the current folder, where that is shorter.
func short(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	if relative, err := filepath.Rel(here, path); err == nil && len(relative) < len(path) {
		return relative
	}
	return path
}
