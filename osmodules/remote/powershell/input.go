package powershell

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// texts are what runs on the guest.
//
//go:embed bootstrap.ps1 copy.ps1
var texts embed.FS

func text(name string) string {
	content, err := texts.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	return string(content)
}

// The exit codes of the bootstrap itself. A script uses others.
const (
	ExitCut   = 97 // the input ended before its last line: nothing was run
	ExitError = 98 // the script ended with an error that it did not catch
)

// prefix: without -InputFormat None the host itself reads standard input and starts nothing before its end; with
// -OutputFormat Text errors come as text and not as CLIXML (from PowerShell 3.0 on).
const prefix = "powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -InputFormat None -OutputFormat Text -EncodedCommand "

// Line returns the command line that runs a script which comes through standard input, as Input writes it. It is always
// the same and shorter than the 8191 characters that cmd.exe takes.
func Line() string { return prefix + Encode(Bootstrap()) }

// Encode returns a text as powershell.exe -EncodedCommand takes it: base64 of its UTF-16LE.
func Encode(text string) string {
	var wide []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		wide = append(wide, byte(unit), byte(unit>>8))
	}
	return base64.StdEncoding.EncodeToString(wide)
}

// Bootstrap returns what Line encodes: bootstrap.ps1 without its comments and indentation.
func Bootstrap() string {
	var kept []string
	for line := range strings.Lines(text("bootstrap.ps1")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

// Digest returns the SHA-256 of a script in hex. A simulated guest knows a script by it. The kind of its line ends does
// not count.
func Digest(script string) string {
	sum := sha256.Sum256([]byte(strings.ReplaceAll(script, "\r\n", "\n")))
	return hex.EncodeToString(sum[:])
}

// BootstrapDigest is the Digest of bootstrap.ps1.
func BootstrapDigest() string { return Digest(text("bootstrap.ps1")) }

// CopyScript returns copy.ps1: it writes $BerthData to the file that the value Path names, in one piece.
func CopyScript() string { return text("copy.ps1") }

// Invocation is one run of a script.
type Invocation struct {
	Script string
	Values map[string]string // parameters by name
	Data   []byte            // $BerthData
}

// lineLength is the longest line of an input.
const lineLength = 1000

// Input returns the standard input that runs a script under Line: ASCII, each value and the data in base64. Names of
// values are the script's parameters: a letter, then letters and digits, and no two that differ only in case, which
// PowerShell does not see. Values are valid UTF-8, data is any bytes.
func Input(script string, values map[string]string, data []byte) ([]byte, error) {
	var out bytes.Buffer
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !validName(name) {
			return nil, fmt.Errorf("value %q: its name is no parameter's name: use a letter, then letters and digits", name)
		}
		if other, twice := seen[strings.ToLower(name)]; twice {
			return nil, fmt.Errorf("values %s and %s are the same parameter to PowerShell: give one", other, name)
		}
		seen[strings.ToLower(name)] = name
		if !utf8.ValidString(values[name]) {
			return nil, fmt.Errorf("value %s is not valid UTF-8: give bytes as data", name)
		}
		write(&out, "value "+name+" ", []byte(values[name]))
	}
	if strings.TrimSpace(script) == "" {
		return nil, errors.New("the script is empty")
	}
	if !utf8.ValidString(script) {
		return nil, errors.New("the script is not valid UTF-8")
	}
	write(&out, "script ", []byte(script))
	if len(data) > 0 {
		write(&out, "data ", data)
	}
	out.WriteString("end\n")
	return out.Bytes(), nil
}

func validName(name string) bool {
	return regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*$`).MatchString(name)
}

func write(out *bytes.Buffer, before string, content []byte) {
	encoded := base64.StdEncoding.EncodeToString(content)
	for {
		n := min(len(encoded), max(lineLength-len(before), 4))
		out.WriteString(before + encoded[:n] + "\n")
		if encoded = encoded[n:]; encoded == "" {
			return
		}
	}
}

// ReadInput reads what Input wrote, up to its last line, as the bootstrap does. An input that was cut off is
// io.ErrUnexpectedEOF.
func ReadInput(input io.Reader) (Invocation, error) {
	lines := bufio.NewReader(input)
	var script, data strings.Builder
	values := map[string]string{}
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return Invocation{}, io.ErrUnexpectedEOF
		}
		if err != nil {
			return Invocation{}, err
		}
		word, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		switch word {
		case "end":
			return decode(script.String(), values, data.String())
		case "value":
			name, part, ok := strings.Cut(rest, " ")
			if !ok || !validName(name) {
				return Invocation{}, fmt.Errorf("a value line without name or value: %.60q", line)
			}
			values[name] += part
		case "script":
			script.WriteString(rest)
		case "data":
			data.WriteString(rest)
		default:
			return Invocation{}, fmt.Errorf("an input line of no known kind: %.60q", line)
		}
	}
}

func decode(script string, values map[string]string, data string) (Invocation, error) {
	text, err := base64.StdEncoding.DecodeString(script)
	if err != nil {
		return Invocation{}, fmt.Errorf("the script: %w", err)
	}
	read := Invocation{Script: string(text), Values: map[string]string{}}
	if read.Data, err = base64.StdEncoding.DecodeString(data); err != nil {
		return Invocation{}, fmt.Errorf("the data: %w", err)
	}
	for name, encoded := range values {
		value, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return Invocation{}, fmt.Errorf("value %s: %w", name, err)
		}
		read.Values[name] = string(value)
	}
	return read, nil
}
