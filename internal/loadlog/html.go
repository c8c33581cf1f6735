package loadlog

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"berth/reservation"
)

//go:embed page.html
var pageText string

// WriteHTML writes a load as one page that needs nothing else: no script, no font, no picture, no network. It is made to be
// attached to a ticket. The log is the view's, live or over.
func (l Log) WriteHTML(w io.Writer, view View, style Style) error {
	page, err := template.New("page").Parse(pageText)
	if err != nil {
		return err
	}
	return page.Execute(w, l.page(view, style))
}

// htmlPage is what the template shows. Everything in it is text of one line.
type htmlPage struct {
	Name, State, Paint, Reason, Attempt string
	Facts                               []htmlFact
	Sections                            []htmlSection
	Rows                                []htmlRow
	Made, Zone                          string
}

type htmlFact struct{ Name, Value string }

// htmlSection is a part of the timeline with a scale of its own, so that minutes of loading can be seen beside days of use.
type htmlSection struct {
	Title, Took string
	Bars        []htmlBar
}

type htmlBar struct {
	Name, Began, Took, Text, Paint string
	Stage                          bool
	Left, Width                    float64 // percent of the section
}

type htmlRow struct {
	Time, Attempt, Phase, Took, What, Class string
}

func (l Log) page(view View, style Style) htmlPage {
	state, paint := view.state()
	zone, _ := style.Now.Zone()
	p := htmlPage{Name: Clean(view.Reservation), State: state, Paint: class(paint), Made: style.Now.Format("2006-01-02 15:04:05 MST"), Zone: zone}
	if view.Attempt.Of > 0 {
		p.Attempt = view.Attempt.String()
	}
	if remark := view.remark(style); view.Over() || view.Live != nil {
		p.Reason = remark.Text
	}
	fact := func(name, value string) {
		if value != "" {
			p.Facts = append(p.Facts, htmlFact{name, Clean(value)})
		}
	}
	day := func(t time.Time) string { return t.In(style.Now.Location()).Format("2006-01-02 15:04:05") }
	fact("computer", withBrackets(view.Computer, strings.TrimSpace(view.Provisioner+" "+view.Site)))
	fact("image", withBrackets(view.Image, view.OS))
	fact("user", view.User)
	fact("address", view.Address)
	fact("public address", view.PublicAddress)
	fact("host key", view.HostKey)
	fact("reserved", day(view.Began))
	if !view.Ready.IsZero() {
		fact("ready", day(view.Ready)+", after "+Span(view.Ready.Sub(view.Began)))
	}
	if view.Over() {
		fact("over", day(view.Ended)+", after "+Span(view.Ended.Sub(view.Began)))
	} else {
		fact("ends", day(view.End))
	}
	fact("queue", view.Queue)
	fact("workflow", view.WorkflowID+", run "+view.RunID)
	p.Sections = sections(view, style)
	for _, e := range l.Entries {
		p.Rows = append(p.Rows, htmlEntry(e, style))
	}
	return p
}

func htmlEntry(e Entry, style Style) htmlRow {
	row := htmlRow{Phase: string(e.Phase), What: e.Text, Class: string(e.Kind)}
	if !e.Time.IsZero() {
		row.Time = e.Time.In(style.Now.Location()).Format("2006-01-02 15:04:05.000")
	}
	if e.Attempt > 0 {
		row.Attempt = fmt.Sprint(e.Attempt)
	}
	if e.Took > 0 {
		row.Took = Span(e.Took.Std())
	}
	switch e.Kind {
	case KindVerdict:
		_, paint := verdictText(reservation.PhaseRecord{Verdict: e.Verdict})
		row.Class += " " + class(paint)
	case KindReserved, KindReady, KindAsked, KindEnded:
		row.What = string(e.Kind) + ": " + row.What
	}
	return row
}

// sections makes one part of the timeline of each attempt, and one of what came after them.
func sections(view View, style Style) []htmlSection {
	var all []htmlSection
	for begin := 0; begin < len(view.Phases); {
		end := begin + 1
		for end < len(view.Phases) && part(view.Phases[end]) == part(view.Phases[begin]) {
			end++
		}
		all = append(all, section(view, view.Phases[begin:end], style))
		begin = end
	}
	return all
}

// part names the part of the timeline that a phase belongs to.
func part(p reservation.PhaseRecord) string {
	if p.Phase == reservation.PhaseUnload || p.Phase == reservation.PhaseClean {
		return "Taking the computer back"
	}
	return fmt.Sprintf("Attempt %d", p.Attempt)
}

func section(view View, phases []reservation.PhaseRecord, style Style) htmlSection {
	now := style.Now
	if view.Over() {
		now = view.Ended
	}
	until := func(t time.Time) time.Time {
		if t.IsZero() {
			return now
		}
		return t
	}
	began, ended := phases[0].Began, until(phases[len(phases)-1].Ended)
	whole := max(ended.Sub(began), time.Millisecond).Seconds()
	s := htmlSection{Title: part(phases[0]), Took: Span(ended.Sub(began))}
	bar := func(from, to time.Time) htmlBar {
		left := min(max(from.Sub(began).Seconds()/whole, 0), 1)
		width := min(max(to.Sub(from).Seconds()/whole, 0), 1-left)
		return htmlBar{Began: from.In(style.Now.Location()).Format("15:04:05"), Took: Span(to.Sub(from)), Left: 100 * left, Width: 100 * width}
	}
	for _, p := range phases {
		b := bar(p.Began, until(p.Ended))
		b.Name = string(p.Phase)
		text, paint := verdictText(p)
		switch {
		case p.Ended.IsZero() && view.Over():
			text = "not ended"
		case p.Ended.IsZero():
			text, paint = "running", Strong
		}
		if p.Limit > 0 {
			b.Took += " of " + Span(p.Limit.Std())
		}
		if p.Lost > 0 {
			text += " (tried again " + times(p.Lost) + ")"
		}
		if p.Worker != "" {
			text += "; by " + p.Worker
		}
		b.Text, b.Paint = Clean(text), class(paint)
		s.Bars = append(s.Bars, b)
		for _, stage := range p.Stages {
			b := bar(stage.Began, until(stage.Ended))
			b.Name, b.Text, b.Stage, b.Paint = Clean(stage.Name), Clean(stage.Detail), true, s.Bars[len(s.Bars)-1].Paint
			s.Bars = append(s.Bars, b)
		}
	}
	return s
}

// class returns the style's class of a meaning.
func class(p Paint) string {
	switch p {
	case Good:
		return "good"
	case Warn:
		return "warn"
	case Bad:
		return "bad"
	default:
		return "plain"
	}
}
