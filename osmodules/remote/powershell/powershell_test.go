package powershell_test

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/stretchr/testify/require"

	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
)

func allBytes(n int) []byte {
	content := make([]byte, n)
	for i := range content {
		content[i] = byte(i)
	}
	return content
}

func TestInputComesBackAsItWent(t *testing.T) {
	var everything strings.Builder
	for r := rune(0); r < 0x3000; r++ {
		everything.WriteRune(r)
	}
	for name, c := range map[string]powershell.Invocation{
		"values":               {Script: "param($Name)\n$Name", Values: map[string]string{"Name": "pc-1", "Domain2": "example.test"}},
		"an empty value":       {Script: "param($Name)", Values: map[string]string{"Name": ""}},
		"every character":      {Script: "# " + everything.String(), Values: map[string]string{"Name": everything.String() + "\U0001F600'\"`$(exit)"}},
		"all bytes as data":    {Script: "1", Values: map[string]string{}, Data: allBytes(1 << 20)},
		"a script of 100 KB":   {Script: strings.Repeat("Write-Output 'line' # comment\r\n", 3500), Values: map[string]string{}},
		"CRLF stays":           {Script: "1\r\n2\r\n", Values: map[string]string{"A": "x\r\ny"}},
		"a long value's lines": {Script: "1", Values: map[string]string{"A": strings.Repeat("0123456789", 1000)}},
		"the longest name":     {Script: "1", Values: map[string]string{"A" + strings.Repeat("b", 2000): "value"}},
	} {
		t.Run(name, func(t *testing.T) {
			input, err := powershell.Input(c.Script, c.Values, c.Data)
			require.NoError(t, err)
			for line := range strings.Lines(string(input)) {
				if name != "the longest name" {
					require.LessOrEqual(t, len(line), 1001)
				}
				require.Regexp(t, `^[ -~]+\n$`, line)
			}
			// What follows the last line stays unread by the script's bootstrap; no end of file is needed.
			got, err := powershell.ReadInput(io.MultiReader(strings.NewReader(string(input)), strings.NewReader("more\n")))
			require.NoError(t, err)
			require.Equal(t, c.Script, got.Script)
			require.Equal(t, c.Values, got.Values)
			require.Equal(t, string(c.Data), string(got.Data))
			for _, cut := range []int{0, 1, len(input) / 2, len(input) - 1} {
				_, err := powershell.ReadInput(strings.NewReader(string(input[:cut])))
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			}
		})
	}
}

func TestInputRefusesWhatAParameterCannotTake(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		values map[string]string
		says   string
	}{
		"a name with a space":       {"1", map[string]string{"a b": ""}, `"a b"`},
		"a name with a line":        {"1", map[string]string{"a\nend": ""}, "parameter's name"},
		"a name of digits":          {"1", map[string]string{"1a": ""}, `"1a"`},
		"no name":                   {"1", map[string]string{"": ""}, `""`},
		"names that differ in case": {"1", map[string]string{"Name": "", "name": ""}, "Name and name"},
		"a value that is no text":   {"1", map[string]string{"Name": "\xff"}, "Name"},
		"no script":                 {" \n", nil, "empty"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := powershell.Input(c.script, c.values, nil)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestReadInputRefusesWhatTheBootstrapWouldNotUnderstand(t *testing.T) {
	for _, input := range []string{"hello\nend\n", "value Name\nend\n", "value N-me YQ==\nend\n", "script ???\nend\n", "data ?\nend\n", "value Name ?\nend\n"} {
		_, err := powershell.ReadInput(strings.NewReader(input))
		require.Error(t, err, input)
		require.NotErrorIs(t, err, io.ErrUnexpectedEOF)
	}
}

func TestTheLineIsShortEnoughForCmdAndHoldsTheBootstrap(t *testing.T) {
	line := powershell.Line()
	require.Less(t, len(line), 8191-100)
	require.Equal(t, line, powershell.Line())
	words := strings.Fields(line)
	require.Equal(t, "powershell.exe", words[0])
	require.Regexp(t, `^[A-Za-z0-9+/=. -]+$`, line, "nothing that a shell could take for its own")
	wide, err := base64.StdEncoding.DecodeString(words[len(words)-1])
	require.NoError(t, err)
	var units []uint16
	for i := 0; i < len(wide); i += 2 {
		units = append(units, uint16(wide[i])|uint16(wide[i+1])<<8)
	}
	require.Equal(t, powershell.Bootstrap(), string(utf16.Decode(units)))
	require.Contains(t, powershell.Bootstrap(), "[Console]::In.ReadLine()")
}

func TestADigestDoesNotLookAtLineEnds(t *testing.T) {
	require.Equal(t, powershell.Digest("a\nb\n"), powershell.Digest("a\r\nb\r\n"))
	require.NotEqual(t, powershell.Digest("a\nb\n"), powershell.Digest("a\nb"))
	content, err := os.ReadFile("bootstrap.ps1")
	require.NoError(t, err)
	require.Equal(t, powershell.Digest(string(content)), powershell.BootstrapDigest())
}

func TestAnAnswerIsFoundAmongNoise(t *testing.T) {
	answer, err := powershell.ParseAnswer(remote.Result{
		Stdout: []byte("\uFEFFWARNING: something\r\nberth:{\"result\":\"reload\"}\r\n" +
			`berth:{"boot":"2026-01-01T00:00:00Z","count":12,"detail":"gr\u00fcn\u000a\u0022","list":["a"],"no":null,"pending":false,"result":"done"}` + "\r\nbye\r\n"),
		Exit: 3,
	})
	require.NoError(t, err)
	require.Equal(t, "done", answer.Result)
	require.Equal(t, `grün "`, answer.Detail)
	require.Equal(t, map[string]string{"boot": "2026-01-01T00:00:00Z", "count": "12", "pending": "false"}, answer.Values)
	require.Equal(t, 3, answer.Exit)
	require.Equal(t, "WARNING: something / bye", answer.Output)
	var nested struct{ List []string }
	require.NoError(t, answer.Decode(&nested))
	require.Equal(t, []string{"a"}, nested.List)
}

func TestNoAnswerIsAnErrorThatTellsWhatWasPrinted(t *testing.T) {
	answered := []byte("berth:{\"result\":\"done\"}\r\n")
	for name, c := range map[string]struct {
		result remote.Result
		says   []string
	}{
		"nothing at all":       {remote.Result{Exit: 1}, []string{"gave no answer (exit code 1)"}},
		"PowerShell not there": {remote.Result{Exit: 1, Stderr: []byte("'powershell.exe' is not recognized as an internal or external command,\r\n")}, []string{"is not recognized"}},
		"the input was cut":    {remote.Result{Exit: powershell.ExitCut, Stderr: []byte("berth: the input was cut off\r\n")}, []string{"not run", "cut off"}},
		"an error not caught": {remote.Result{Exit: powershell.ExitError, Stderr: []byte("berth-error:\"line 3: Zugriff verweigert f\\u00fcr \\u0022x\\u0022\"\r\n")},
			[]string{"ended with an error", `line 3: Zugriff verweigert für "x"`}},
		"an error after the answer": {remote.Result{Exit: powershell.ExitError, Stdout: answered, Stderr: []byte("berth-error:\"line 9: late\"\n")}, []string{"line 9: late"}},
		"an answer cut off":         {remote.Result{Stdout: []byte(`berth:{"result":"do`)}, []string{"cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := powershell.ParseAnswer(c.result)
			for _, words := range c.says {
				require.ErrorContains(t, err, words)
			}
			require.Equal(t, c.result.Exit, answer.Exit)
			var none *powershell.NoAnswerError
			require.Equal(t, name != "an answer cut off", errors.As(err, &none))
		})
	}
}

const objs = `<Objs Version="1.1.0.1" xmlns="http://schemas.microsoft.com/powershell/2004/04">`

func TestCLIXMLBecomesTheErrorsThatItHolds(t *testing.T) {
	progress := `<Obj S="progress" RefId="0"><TN RefId="0"><T>System.Management.Automation.PSCustomObject</T><T>System.Object</T></TN><MS><I64 N="SourceId">1</I64>` +
		`<PR N="Record"><AV>Preparing modules for first use.</AV><AI>0</AI><Nil /><PI>-1</PI><PC>-1</PC><T>Completed</T><SR>-1</SR><SD> </SD></PR></MS></Obj>`
	for name, c := range map[string]struct{ in, out string }{
		"plain text":         {"it failed\r\n", "it failed\r\n"},
		"progress only":      {"#< CLIXML\r\n" + objs + progress + "</Objs>", ""},
		"errors":             {"#< CLIXML\r\n" + objs + `<S S="Error">Get-Item : Cannot find _x000D__x000A_</S><S S="Error">path &lt;C:\x&gt; &amp; so on_x000D__x000A_</S></Objs>`, "Get-Item : Cannot find \r\npath <C:\\x> & so on\r\n"},
		"warnings go":        {"#< CLIXML\r\n" + objs + `<S S="warning">careful</S><S S="verbose">words</S><S S="debug">d</S><S S="error">bad</S></Objs>`, "bad"},
		"an error record":    {"#< CLIXML\r\n" + objs + progress + `<Obj S="Error" RefId="1"><TN RefId="1"><T>System.Management.Automation.ErrorRecord</T></TN><ToString>Access is denied</ToString><Props><S N="x">y</S></Props></Obj></Objs>`, "Access is denied\n"},
		"a surrogate pair":   {"#< CLIXML\r\n" + objs + `<S S="Error">_xD83D__xDE00_ _x005F_x</S></Objs>`, "\U0001F600 _x"},
		"text around it":     {"before\n#< CLIXML\r\n" + objs + `<S S="Error">e</S></Objs>` + "\r\nafter\n", "before\ne\r\nafter\n"},
		"two of them":        {"#< CLIXML\r\n" + objs + progress + "</Objs>#< CLIXML\r\n" + objs + `<S S="Error">second_x000A_</S></Objs>`, "second\n"},
		"cut off":            {"#< CLIXML\r\n" + objs + progress + `<S S="Error">first_x000A_</S><S S="Error">sec`, "first\nsec"},
		"of another charset": {"#< CLIXML\r\n" + objs + "<S S=\"Error\">f\xfcr_x000A_</S></Objs>", "f?r\n"},
		"the mark alone":     {"#< CLIXML\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.out, powershell.Stderr([]byte(c.in)))
		})
	}
}

// channel is a guest that understands one script.
type channel struct {
	commands []remote.Command
	read     powershell.Invocation
	result   remote.Result
	err      error
}

func (c *channel) Run(_ context.Context, command remote.Command) (remote.Result, error) {
	c.commands = append(c.commands, command)
	var err error
	if c.read, err = powershell.ReadInput(command.Stdin); err != nil {
		return remote.Result{}, err
	}
	return c.result, c.err
}

func TestACopyIsAScriptWithThePathAsAValue(t *testing.T) {
	c := &channel{result: remote.Result{Stdout: []byte("berth:{\"result\":\"done\"}\n")}}
	file := remote.File{Path: `C:\Program Files\Berth\it's $here.bin`, Content: allBytes(100_000)}
	require.NoError(t, powershell.Copy(t.Context(), c, file))
	require.Equal(t, powershell.Line(), c.commands[0].Line)
	require.Equal(t, powershell.CopyLimit, c.commands[0].Limit)
	require.Equal(t, powershell.CopyScript(), c.read.Script)
	require.Equal(t, map[string]string{"Path": file.Path}, c.read.Values)
	require.Equal(t, file.Content, c.read.Data)

	c.result = remote.Result{Exit: powershell.ExitError, Stderr: []byte("berth-error:\"line 8: The disk is full\"\n")}
	err := powershell.Copy(t.Context(), c, file)
	require.ErrorContains(t, err, file.Path)
	require.ErrorContains(t, err, "The disk is full")

	c.err = &remote.LimitError{Limit: time.Minute}
	var limit *remote.LimitError
	require.ErrorAs(t, powershell.Copy(t.Context(), c, file), &limit)
}

func TestACopyTakesCleanAbsolutePathsOnly(t *testing.T) {
	for _, path := range []string{"", "x", `\x`, `C:`, `C:\`, `C:x`, `/etc/x`, `C:/x`, `C:\a\..\b`, `C:\a\.\b`, `C:\a\\b`, `C:\a\`, `C:\a?`, `C:\a:b`,
		"C:\\a\nb", `\\server\share\x`, `C:\a.`, `C:\a `} {
		require.ErrorContains(t, powershell.Copy(t.Context(), &channel{}, remote.File{Path: path}), "path", path)
	}
}

// Windows PowerShell 2.0 has these, and nothing else is used.
var cmdlets = map[string]bool{"New-Object": true, "ForEach-Object": true, "Sort-Object": true,
	"ConvertTo-BerthJson": true, "ConvertFrom-BerthText": true, "Write-BerthAnswer": true}

func TestTheScriptsAreValidOnPowerShell2(t *testing.T) {
	for _, name := range []string{"bootstrap.ps1", "copy.ps1"} {
		content, err := os.ReadFile(name)
		require.NoError(t, err)
		t.Run(name, func(t *testing.T) {
			code := skeleton(t, string(content))
			for _, word := range regexp.MustCompile(`[A-Z][A-Za-z]+-[A-Z][A-Za-z]+`).FindAllString(code, -1) {
				require.True(t, cmdlets[word], word)
			}
			// Of later versions: -in, -notin, -shl, -shr, ::new(), [ordered], [pscustomobject], $PSItem, $using:, class, ?., ??.
			require.NotRegexp(t, `(?i)\s-(not)?in\s|\s-sh[lr]\s|::new\(|\[ordered\]|\[pscustomobject\]|\$psitem|\$using:|\bclass\b|\?\.|\?\?|&&|\|\|`, code)
			require.NotRegexp(t, "`", code, "no continued lines")
			require.NotRegexp(t, `(?i)invoke-expression|\biex\b`, code)
		})
	}
}

// skeleton returns a script without comments and without what stands in quotes. It fails the test at what is not ASCII
// and at quotes, braces, brackets and parentheses that have no partner.
func skeleton(t *testing.T, script string) string {
	t.Helper()
	var out strings.Builder
	var open []rune
	var quote rune
	comment := false
	partner := map[rune]rune{')': '(', ']': '[', '}': '{'}
	line := 1
	for _, r := range script {
		require.True(t, r == '\n' || r >= ' ' && r < 0x7f, "line %d: %q is not printable ASCII", line, r)
		if r == '\n' {
			require.Zero(t, quote, "line %d: a string is not closed", line)
			line++
			comment = false
		}
		switch {
		case comment:
			continue
		case quote != 0:
			if r == quote {
				quote = 0
			}
			continue
		case r == '\'' || r == '"':
			quote = r
		case r == '#':
			comment = true
			continue
		case r == '(' || r == '[' || r == '{':
			open = append(open, r)
		case r == ')' || r == ']' || r == '}':
			require.NotEmpty(t, open, "line %d: %q closes nothing", line, r)
			require.Equal(t, partner[r], open[len(open)-1], "line %d", line)
			open = open[:len(open)-1]
		}
		out.WriteRune(r)
	}
	require.Empty(t, open)
	return out.String()
}
