package powershell

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"

	"berth/osmodules/internal/output"
	"berth/osmodules/remote"
)

// What a script may say as its result.
const (
	ResultDone    = "done"
	ResultSkipped = "skipped"
	ResultWarned  = "warned"
	ResultReload  = "reload" // another attempt may mend it
	ResultFail    = "fail"   // none will
)

// AnswerPrefix begins the line of standard output that is a script's answer; a JSON object follows.
const AnswerPrefix = "berth:"

// ErrorPrefix begins the bootstrap's line on standard error for an error that the script did not catch; a JSON string
// follows, so that a message in any language comes through any code page.
const ErrorPrefix = "berth-error:"

// Answer is what a script answered.
type Answer struct {
	Result string            // one of Result...; "" if the script gave none
	Detail string            // for a person
	Values map[string]string // the other fields; numbers and truth values as text, nested ones only through Decode
	Exit   int
	Output string // the last lines that were no answer, for a person

	object json.RawMessage
}

// Decode puts the whole answer into a value, as json.Unmarshal does.
func (a Answer) Decode(into any) error { return json.Unmarshal(a.object, into) }

// NoAnswerError says that a script ended without an answer, or broke after it.
type NoAnswerError struct {
	Exit   int
	Output string // the last lines that it printed
}

func (e *NoAnswerError) Error() string {
	reason := "the script gave no answer"
	switch e.Exit {
	case ExitCut:
		reason = "the script was not run, because its input was cut off"
	case ExitError:
		reason = "the script ended with an error"
	}
	if e.Output == "" {
		return fmt.Sprintf("%s (exit code %d)", reason, e.Exit)
	}
	return fmt.Sprintf("%s (exit code %d): %s", reason, e.Exit, e.Output)
}

// ParseAnswer finds a script's answer in what it left. The last answer counts. Without one, or if the script broke
// after it, the error is a *NoAnswerError.
func ParseAnswer(result remote.Result) (Answer, error) {
	answer := Answer{Exit: result.Exit, Values: map[string]string{}}
	var other []string
	for line := range strings.Lines(strings.TrimPrefix(string(result.Stdout), "\uFEFF")) {
		if object, ok := strings.CutPrefix(line, AnswerPrefix); ok {
			answer.object = json.RawMessage(object)
		} else {
			other = append(other, line)
		}
	}
	for line := range strings.Lines(Stderr(result.Stderr)) {
		if message, ok := strings.CutPrefix(line, ErrorPrefix); ok {
			var decoded string
			if json.Unmarshal([]byte(message), &decoded) == nil {
				line = decoded
			}
		}
		other = append(other, line)
	}
	answer.Output = output.LastLines(other)
	if answer.object == nil || result.Exit == ExitError || result.Exit == ExitCut {
		return answer, &NoAnswerError{Exit: result.Exit, Output: answer.Output}
	}
	var fields map[string]any
	decoder := json.NewDecoder(strings.NewReader(string(answer.object)))
	decoder.UseNumber()
	if err := decoder.Decode(&fields); err != nil {
		return answer, fmt.Errorf("the script's answer cannot be read: %w", err)
	}
	for name, field := range fields {
		switch value := field.(type) {
		case string:
			answer.Values[name] = value
		case json.Number:
			answer.Values[name] = value.String()
		case bool:
			answer.Values[name] = strconv.FormatBool(value)
		}
	}
	answer.Result, answer.Detail = answer.Values["result"], output.Printable(answer.Values["detail"])
	delete(answer.Values, "result")
	delete(answer.Values, "detail")
	return answer, nil
}

// clixml begins each stretch that PowerShell writes for another PowerShell: errors, but also progress.
const clixml = "#< CLIXML"

// Stderr returns standard error as text: where PowerShell wrote CLIXML, the errors' texts stay, and progress, warnings
// and the rest go.
func Stderr(stderr []byte) string {
	rest := strings.ToValidUTF8(string(stderr), "?")
	var out strings.Builder
	for {
		plain, after, found := strings.Cut(rest, clixml)
		out.WriteString(plain)
		if !found {
			return out.String()
		}
		errorText, n := clixmlErrors(after)
		if text := out.String(); text != "" && !strings.HasSuffix(text, "\n") && errorText != "" {
			out.WriteString("\n")
		}
		out.WriteString(errorText)
		rest = after[n:]
		if errorText == "" || strings.HasSuffix(errorText, "\n") {
			rest = strings.TrimPrefix(strings.TrimPrefix(rest, "\r"), "\n")
		}
	}
}

// clixmlErrors returns the errors' texts of one <Objs> element and how much of the text it is. Output that was cut off
// in its middle gives what there is.
func clixmlErrors(text string) (string, int) {
	decoder := xml.NewDecoder(strings.NewReader(text))
	decoder.Strict = false
	var out strings.Builder
	depth, keepAt := 0, 0 // keepAt is the depth of the element whose text is kept; 0: none
	inError := false
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) || err != nil {
			return out.String(), len(text)
		}
		switch token := token.(type) {
		case xml.StartElement:
			depth++
			if depth == 2 {
				inError = stream(token) == "error"
			}
			// A string, or an error record's own text.
			if inError && (depth == 2 && token.Name.Local == "S" || depth == 3 && token.Name.Local == "ToString") {
				keepAt = depth
			}
		case xml.CharData:
			if keepAt == depth && keepAt > 0 {
				out.WriteString(unescape(string(token)))
			}
		case xml.EndElement:
			if keepAt == 3 && depth == 3 {
				out.WriteString("\n")
			}
			if keepAt == depth {
				keepAt = 0
			}
			depth--
			if depth == 0 {
				return out.String(), int(decoder.InputOffset())
			}
		}
	}
}

func stream(element xml.StartElement) string {
	for _, attribute := range element.Attr {
		if attribute.Name.Local == "S" {
			return strings.ToLower(attribute.Value)
		}
	}
	return ""
}

// unescape decodes CLIXML's _xHHHH_, which are UTF-16 units.
func unescape(text string) string {
	return regexp.MustCompile(`(?:_x[0-9A-Fa-f]{4}_)+`).ReplaceAllStringFunc(text, func(escaped string) string {
		var units []uint16
		for ; escaped != ""; escaped = escaped[7:] {
			unit, _ := strconv.ParseUint(escaped[2:6], 16, 16) // the pattern has matched
			units = append(units, uint16(unit))
		}
		return string(utf16.Decode(units))
	})
}
