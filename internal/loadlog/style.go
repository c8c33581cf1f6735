package loadlog

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"berth/reservation"
)

// Style says how text is written.
type Style struct {
	Now    time.Time // what "ago" counts from; its location is the one that times are written in
	Colour bool      // with the terminal's colours
}

// Paint is the meaning that a colour gives to a text.
type Paint int

// The meanings.
const (
	Plain  Paint = iota
	Strong       // the headings, and what was asked for
	Good
	Warn
	Bad
	Faint
)

// Paint returns text with the colour of a meaning, or as it is without colours.
func (s Style) Paint(p Paint, text string) string {
	code := ""
	switch p {
	case Strong:
		code = "1"
	case Good:
		code = "32"
	case Warn:
		code = "33"
	case Bad:
		code = "31"
	case Faint:
		code = "2"
	}
	if !s.Colour || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Clock writes a time as the clock shows it: with the date unless it is today.
func (s Style) Clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	t = t.In(s.Now.Location())
	if sameDay(t, s.Now) {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

// ClockAndSpan is Clock with how long ago or ahead it is: "21:04:11 (in 1h59m)".
func (s Style) ClockAndSpan(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	if d := s.Now.Sub(t); d >= 0 {
		return s.Clock(t) + " (" + Span(d) + " ago)"
	}
	return s.Clock(t) + " (in " + Span(t.Sub(s.Now)) + ")"
}

func sameDay(a, b time.Time) bool {
	ay, am, ad := a.Date()
	by, bm, bd := b.Date()
	return ay == by && am == bm && ad == bd
}

// Span writes a duration as short as people say it: 8ms, 0.4s, 42s, 6m52s, 31m, 1h05m, 2d4h.
func Span(d time.Duration) string {
	switch {
	case d < time.Millisecond/2:
		return "0s"
	case d < 95*time.Millisecond:
		return fmt.Sprintf("%dms", d.Round(time.Millisecond)/time.Millisecond)
	}
	if d < 9950*time.Millisecond {
		text := fmt.Sprintf("%.1f", d.Seconds())
		return strings.TrimSuffix(text, ".0") + "s"
	}
	seconds := int64(d.Round(time.Second) / time.Second)
	if seconds >= 3600 {
		seconds = int64(d.Round(time.Minute) / time.Second)
	}
	if seconds >= 24*3600 {
		seconds = int64(d.Round(time.Hour) / time.Second)
	}
	switch {
	case seconds < 60:
		return fmt.Sprintf("%ds", seconds)
	case seconds < 3600:
		return pair(seconds/60, "m", seconds%60, "s")
	case seconds < 24*3600:
		return pair(seconds/3600, "h", seconds%3600/60, "m")
	default:
		return pair(seconds/(24*3600), "d", seconds%(24*3600)/3600, "h")
	}
}

func pair(large int64, largeUnit string, small int64, smallUnit string) string {
	switch {
	case small == 0:
		return fmt.Sprintf("%d%s", large, largeUnit)
	case largeUnit == "d":
		return fmt.Sprintf("%d%s%d%s", large, largeUnit, small, smallUnit)
	default:
		return fmt.Sprintf("%d%s%02d%s", large, largeUnit, small, smallUnit)
	}
}

// OfLimit writes how much of a limit is used: "42s of 30m".
func OfLimit(elapsed, limit reservation.Duration) string {
	if limit == 0 {
		return Span(elapsed.Std())
	}
	return Span(elapsed.Std()) + " of " + Span(limit.Std())
}

// Clean returns text on one line without control characters: what a guest or a control plane said must not move the
// cursor of the terminal that it is shown on.
func Clean(text string) string {
	var b strings.Builder
	for _, r := range strings.Join(strings.Fields(text), " ") {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Cell is one field of a table.
type Cell struct {
	Text  string
	Paint Paint
}

// Table is text in columns. The last column may be of any length.
type Table struct {
	Header []string // may be empty
	Rows   [][]Cell
	Indent string
	Width  int   // lines are cut at this many characters; 0 leaves them whole
	Widths []int // the columns' least widths; may be shorter than a row
}

// Row adds a row.
func (t *Table) Row(cells ...Cell) { t.Rows = append(t.Rows, cells) }

// Lines returns the table's lines, the heading first.
func (t *Table) Lines(style Style) []string {
	rows := t.Rows
	if len(t.Header) > 0 {
		heading := make([]Cell, len(t.Header))
		for i, text := range t.Header {
			heading[i] = Cell{text, Faint}
		}
		rows = append([][]Cell{heading}, rows...)
	}
	widths := slices.Clone(t.Widths)
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell.Text))
		}
	}
	lines := make([]string, 0, len(rows))
	for _, row := range rows {
		lines = append(lines, t.line(style, row, widths))
	}
	return lines
}

func (t *Table) line(style Style, row []Cell, widths []int) string {
	var b strings.Builder
	b.WriteString(t.Indent)
	at, used := utf8.RuneCountInString(t.Indent), utf8.RuneCountInString(t.Indent)
	for i, cell := range row {
		text := cell.Text
		if room := t.Width - at; t.Width > 0 && utf8.RuneCountInString(text) > room {
			text = cut(text, room)
		}
		if text != "" {
			// Empty cells at a line's end leave no blanks behind.
			b.WriteString(strings.Repeat(" ", at-used))
			b.WriteString(style.Paint(cell.Paint, text))
			used = at + utf8.RuneCountInString(text)
		}
		at += widths[i] + 2
	}
	return b.String()
}

func cut(text string, room int) string {
	if room <= 0 {
		return ""
	}
	return string([]rune(text)[:room-1]) + "…"
}

// Write writes the table.
func (t *Table) Write(w io.Writer, style Style) error {
	for _, line := range t.Lines(style) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
