// Package logging makes the loggers of Berth's programs: zerolog, one JSON line an event, and the adapters through which
// Temporal's SDK, activities and workflows write to it.
package logging

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"berth/reservation"
)

// The formats of a log.
const (
	FormatJSON    = "json"    // one JSON object a line
	FormatConsole = "console" // for a person's eyes
)

// Fields that every line about a reservation has.
const (
	FieldReservation = "reservation"
	FieldComputer    = "computer"
	FieldImage       = "image"
	FieldAttempt     = "attempt"
	FieldPhase       = "phase"
)

// timeFormat is RFC 3339 in UTC with milliseconds: what sorts as text and tells two stages of a load apart.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// Options are what a logger is made of.
type Options struct {
	Writer io.Writer
	Level  string // one of Levels
	Format string // FormatJSON or FormatConsole
	Color  bool   // of FormatConsole: whether Writer is a terminal that shows colours
}

// Levels returns the levels that a logger can be set to, from all to nothing but errors.
func Levels() []string { return []string{"debug", "info", "warn", "error"} }

// New returns a logger. Its error is a *reservation.FieldError for a level or a format that there is not.
func New(options Options) (zerolog.Logger, error) {
	if !slices.Contains(Levels(), options.Level) {
		return zerolog.Nop(), &reservation.FieldError{Field: "log level", Value: options.Level, Remedy: "write one of " + strings.Join(Levels(), ", ")}
	}
	level, err := zerolog.ParseLevel(options.Level)
	if err != nil {
		return zerolog.Nop(), err
	}
	writer := options.Writer
	switch options.Format {
	case FormatJSON:
	case FormatConsole:
		writer = zerolog.ConsoleWriter{Out: options.Writer, NoColor: !options.Color, FormatTimestamp: func(value any) string { return clock(value) }}
	default:
		return zerolog.Nop(), &reservation.FieldError{Field: "log format", Value: options.Format, Remedy: "write " + FormatJSON + " or " + FormatConsole}
	}
	// zerolog's own timestamp takes its format from a package variable, and has whole seconds.
	stamp := zerolog.HookFunc(func(event *zerolog.Event, _ zerolog.Level, _ string) {
		event.Str(zerolog.TimestampFieldName, time.Now().UTC().Format(timeFormat))
	})
	return zerolog.New(zerolog.SyncWriter(writer)).Level(level).Hook(stamp), nil
}

// clock returns the local time of day of a line's timestamp.
func clock(value any) string {
	text := fmt.Sprint(value)
	at, err := time.Parse(timeFormat, text)
	if err != nil {
		return text
	}
	return at.Local().Format("15:04:05.000")
}
