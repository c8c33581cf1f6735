package commands

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"berth/internal/loadlog"
)

// The output formats.
const (
	outputTable = "table"
	outputJSON  = "json"
)

// json says whether the output is to be JSON: one array or object on standard output, everything else on standard error.
func (s *session) json() bool { return s.output == outputJSON }

func (s *session) writeJSON(value any) error {
	encoder := json.NewEncoder(s.Stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// writeLines writes one line a view, under a heading.
func writeLines(w io.Writer, style loadlog.Style, views []loadlog.View) error {
	table := loadlog.Table{Header: loadlog.LineHeader()}
	for _, v := range views {
		table.Row(v.Line(style)...)
	}
	return table.Write(w, style)
}

// timeLayouts are the ways to write a time that has a date, beside RFC 3339.
func timeLayouts() []string {
	return []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04"}
}

const timeRemedy = "write a time as 17:30 (its next one), as \"2026-11-30 17:30\", or as 2026-11-30T17:30:00Z"

// parseTime reads a time that somebody typed, in now's location. A time without a date is the next one of that time.
func parseTime(text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range timeLayouts() {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04", "15:04:05"} {
		clock, err := time.Parse(layout, text)
		if err != nil {
			continue
		}
		year, month, day := now.Date()
		next := time.Date(year, month, day, clock.Hour(), clock.Minute(), clock.Second(), 0, now.Location())
		if !next.After(now) {
			next = time.Date(year, month, day+1, clock.Hour(), clock.Minute(), clock.Second(), 0, now.Location())
		}
		return next, nil
	}
	return time.Time{}, fmt.Errorf("%q is not a time: %s", text, timeRemedy)
}

// parseSpan reads how long a reservation is to last.
func parseSpan(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration: write a number with its unit, such as 90m, 2h or 72h", text)
	}
	if d <= 0 {
		return 0, fmt.Errorf("%q is no time at all: write a duration such as 90m, 2h or 72h", text)
	}
	return d, nil
}
