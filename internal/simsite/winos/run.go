package winos

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"berth/osmodules/remote/powershell"
)

// Script is a script that guests know.
type Script struct {
	Name   string // its file's, without .ps1
	Digest string // powershell.Digest of its text
	Act    Act
}

// Act does what a script does, on a machine whose lock is held, and returns its answer.
type Act func(c *Call) Fields

// Fields are a script's answer: result, detail and the script's own.
type Fields map[string]any

// Call is one run of a script.
type Call struct {
	*Machine
	script string // its name
	Values map[string]string
	Data   []byte

	after []func() // what happens once the answer is on its way
}

// value returns a parameter's value, whatever case its name is in.
func (c *Call) value(name string) string {
	for given, value := range c.Values {
		if strings.EqualFold(given, name) {
			return value
		}
	}
	return ""
}

func (c *Call) then(do func()) { c.after = append(c.after, do) }

// thrown is an error that a script does not catch.
type thrown struct{ text string }

// throw ends the script in an error of PowerShell's.
func throw(format string, args ...any) { panic(thrown{fmt.Sprintf(format, args...)}) }

// Run runs a command line. Only powershell.Line is known, and of the scripts that it is given only those of Scripts.
func (m *Machine) Run(ctx context.Context, line string, in io.Reader, out, errOut io.Writer, _ []string) int {
	if line != powershell.Line() {
		m.refuse("the command line " + shortened(line))
		name, _, _ := strings.Cut(line, " ")
		fmt.Fprintf(errOut, "'%s' is not recognized as an internal or external command,\r\noperable program or batch file.\r\n", shortened(name))
		return 1
	}
	call, err := powershell.ReadInput(in)
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			fmt.Fprint(errOut, "berth: the input was cut off before its line \"end\"; nothing was run\r\n")
			return powershell.ExitCut
		}
		return thrown{err.Error()}.write(errOut)
	}
	script, ok := m.scripts[powershell.Digest(call.Script)]
	if !ok {
		what := fmt.Sprintf("a script of the digest %s, which begins with %s", powershell.Digest(call.Script), shortened(firstLine(call.Script)))
		m.refuse(what)
		fmt.Fprintf(errOut, "%s%s\r\n", powershell.ErrorPrefix, quoted("the simulated guest does not know "+what))
		return 1
	}
	if m.hooks.Running != nil && !m.hooks.Running(script.Name) {
		<-ctx.Done()
		return 1
	}
	fields, after, err := m.act(script, call)
	if err != nil {
		if m.hooks.Ran != nil {
			m.hooks.Ran(script.Name, "error", err.Error())
		}
		return thrown{err.Error()}.write(errOut)
	}
	if m.cutNow(script.Name) {
		if m.hooks.Drop != nil {
			m.hooks.Drop()
		}
		for _, do := range after { // what it did stays done
			do()
		}
		return 1
	}
	if m.hooks.Ran != nil {
		m.hooks.Ran(script.Name, fmt.Sprint(fields["result"]), fmt.Sprint(fields["detail"]))
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return thrown{err.Error()}.write(errOut)
	}
	fmt.Fprintf(out, "%s%s\r\n", powershell.AnswerPrefix, ascii(string(text)))
	for _, do := range after {
		do()
	}
	return 0
}

func (m *Machine) act(script Script, call powershell.Invocation) (fields Fields, after []func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func() {
		switch e := recover().(type) {
		case nil:
		case thrown:
			err = errors.New(e.text)
		default:
			panic(e)
		}
	}()
	c := &Call{Machine: m, script: script.Name, Values: call.Values, Data: call.Data}
	fields = script.Act(c)
	return fields, c.after, nil
}

// write tells of an error as the bootstrap does, with noise before it as real guests write it.
func (t thrown) write(errOut io.Writer) int {
	fmt.Fprintf(errOut, "#< CLIXML\r\n<Objs Version=\"1.1.0.1\" xmlns=\"http://schemas.microsoft.com/powershell/2004/04\"><Obj S=\"progress\" RefId=\"0\"><MS><S N=\"Activity\">Preparing modules for first use.</S></MS></Obj></Objs>\r\n%s%s\r\n",
		powershell.ErrorPrefix, quoted(t.text))
	return powershell.ExitError
}

// cutNow says whether the connection is reset now: once, after a script's work.
func (m *Machine) cutNow(script string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cut || m.cutsIn != script {
		return false
	}
	m.cut = true
	return true
}

func (m *Machine) refuse(what string) {
	m.mu.Lock()
	m.unknown = append(m.unknown, what)
	m.mu.Unlock()
	if m.hooks.Unknown != nil {
		m.hooks.Unknown(what)
	}
}

func quoted(text string) string {
	b, _ := json.Marshal(text) // a string has a JSON form
	return ascii(string(b))
}

// ascii writes what is not ASCII as JSON's escapes.
func ascii(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r < 0x80:
			b.WriteRune(r)
		case r >= 0x10000:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func shortened(text string) string {
	if len(text) > 60 {
		return strings.ToValidUTF8(text[:60], "") + "..."
	}
	return text
}

func firstLine(text string) string {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			return line
		}
	}
	return ""
}

// ScriptNames returns the names of the scripts that guests know.
func ScriptNames() []string {
	names := map[string]bool{}
	for _, s := range Scripts() {
		names[s.Name] = true
	}
	return slices.SortedFunc(maps.Keys(names), cmp.Compare[string])
}
