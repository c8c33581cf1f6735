package linux

import (
	"context"
	"embed"
	"fmt"
	"io"
	"strings"
	"time"

	"berth/osmodules/internal/output"
	"berth/osmodules/remote"
)

// scripts are the texts that run on the guest, one a step.
//
//go:embed scripts/*.sh
var scripts embed.FS

// line returns the command line that runs a script of ours on a guest. It is a constant: values go through its input.
func line(name string) (string, error) {
	prelude, err := scripts.ReadFile("scripts/prelude.sh")
	if err != nil {
		return "", err
	}
	text, err := scripts.ReadFile("scripts/" + name)
	if err != nil {
		return "", err
	}
	return "/bin/sh -c '" + strings.ReplaceAll(string(prelude)+string(text), "'", `'\''`) + "'", nil
}

// values are what a script is told.
type values map[string]string

// input returns the values as a script's prelude reads them, with data after them. A value that is more than one line
// is refused: it would be read as another value.
func (v values) input(data string) (string, error) {
	var text strings.Builder
	for key, value := range v {
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return "", fmt.Errorf("%s has control characters: use printable characters only", key)
		}
		text.WriteString(key + "=" + value + "\n")
	}
	text.WriteString("END\n")
	text.WriteString(data)
	return text.String(), nil
}

// What a script may say of itself beside the results of a step that went well.
const (
	saysReload = "reload"
	saysFail   = "fail"
)

// outcome is what a script answered.
type outcome struct {
	result string // done, skipped, warned, reload, fail; "" if it said nothing
	detail string
	values map[string]string
	exit   int
	output string // the last lines that were no answer
}

const answerPrefix = "berth: "

func parse(result remote.Result) outcome {
	o := outcome{values: map[string]string{}, exit: result.Exit}
	var other []string
	for _, text := range append(strings.Split(string(result.Stdout), "\n"), strings.Split(string(result.Stderr), "\n")...) {
		answer, ok := strings.CutPrefix(text, answerPrefix)
		if !ok {
			other = append(other, text)
			continue
		}
		word, rest, _ := strings.Cut(answer, " ")
		rest = strings.TrimSpace(output.Printable(rest))
		if word == "value" {
			key, value, _ := strings.Cut(rest, "=")
			o.values[key] = value
			continue
		}
		o.result, o.detail = word, rest
	}
	o.output = output.LastLines(other)
	return o
}

// execute runs a script of ours over a channel.
func (m *Module) execute(ctx context.Context, channel remote.Channel, name string, v values, data string, limit time.Duration) (outcome, error) {
	command, err := line(name)
	if err != nil {
		return outcome{}, err
	}
	all := values{"ROOT": m.root}
	for key, value := range v {
		all[key] = value
	}
	input, err := all.input(data)
	if err != nil {
		return outcome{}, fmt.Errorf("%s: %w", name, err)
	}
	result, err := channel.Run(ctx, remote.Command{Line: command, Stdin: io.Reader(strings.NewReader(input)), Limit: limit})
	return parse(result), err
}
