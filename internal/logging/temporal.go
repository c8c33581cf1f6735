package logging

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/rs/zerolog"
	"go.temporal.io/sdk/log"
)

// Temporal returns an adapter through which Temporal's SDK logs. The SDK's keys become ours: WorkflowID is workflow_id,
// and its Attempt, which counts the tries of one activity, is try, because attempt counts image loads. A key that is
// given twice appears once, with the later value.
func Temporal(logger zerolog.Logger) log.Logger { return &adapter{logger: logger} }

type adapter struct {
	logger zerolog.Logger
	fields []any // keys and values, in order
}

var (
	_ log.Logger     = (*adapter)(nil)
	_ log.WithLogger = (*adapter)(nil)
)

func (a *adapter) Debug(message string, keyvals ...any) { a.log(a.logger.Debug(), message, keyvals) }
func (a *adapter) Info(message string, keyvals ...any)  { a.log(a.logger.Info(), message, keyvals) }
func (a *adapter) Warn(message string, keyvals ...any)  { a.log(a.logger.Warn(), message, keyvals) }
func (a *adapter) Error(message string, keyvals ...any) { a.log(a.logger.Error(), message, keyvals) }

// With returns a logger whose every line has these fields.
func (a *adapter) With(keyvals ...any) log.Logger {
	if len(keyvals)%2 != 0 {
		keyvals = append(keyvals[:len(keyvals):len(keyvals)], "")
	}
	return &adapter{logger: a.logger, fields: append(a.fields[:len(a.fields):len(a.fields)], keyvals...)}
}

func (a *adapter) log(event *zerolog.Event, message string, keyvals []any) {
	if event == nil { // below the level
		return
	}
	all := append(a.fields[:len(a.fields):len(a.fields)], keyvals...)
	if len(all)%2 != 0 {
		all = append(all, "")
	}
	last := make(map[string]int, len(all)/2)
	for i := 0; i < len(all); i += 2 {
		last[key(all[i])] = i
	}
	for i := 0; i < len(all); i += 2 {
		if name := key(all[i]); last[name] == i {
			put(event, name, all[i+1])
		}
	}
	event.Msg(message)
}

func put(event *zerolog.Event, name string, value any) {
	switch v := value.(type) {
	case nil:
		event.Interface(name, nil)
	case string:
		event.Str(name, v)
	case error:
		event.Str(name, v.Error())
	case time.Time:
		event.Str(name, v.UTC().Format(timeFormat))
	case fmt.Stringer:
		event.Stringer(name, v)
	default:
		event.Interface(name, v)
	}
}

// key returns our spelling of a key.
func key(name any) string {
	text, ok := name.(string)
	if !ok {
		text = fmt.Sprint(name)
	}
	switch text {
	case "Attempt":
		return "try"
	case zerolog.TimestampFieldName, zerolog.LevelFieldName, zerolog.MessageFieldName:
		return text + "_" // not to be taken for the line's own
	}
	return snake(text)
}

// snake turns WorkflowID into workflow_id and leaves what is in lower case already.
func snake(text string) string {
	runes := []rune(text)
	var b strings.Builder
	for i, r := range runes {
		if !unicode.IsUpper(r) {
			if r == ' ' || r == '-' {
				r = '_'
			}
			b.WriteRune(r)
			continue
		}
		begins := i > 0 && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1]))
		if begins && runes[i-1] != '_' && runes[i-1] != ' ' {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
