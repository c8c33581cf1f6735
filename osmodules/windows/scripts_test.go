package windows

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth/osmodules/remote/powershell"
)

// cmdlet says which parameters of a cmdlet may be used. All that stand here came with PowerShell 2.0 at the latest.
type cmdlet struct {
	oldest     string
	parameters []string
}

func cmdlets() map[string]cmdlet {
	return map[string]cmdlet{
		"ForEach-Object":      {"1.0", nil},
		"Get-Item":            {"1.0", []string{"Path"}},
		"Get-ItemProperty":    {"1.0", []string{"Path"}},
		"Get-Service":         {"1.0", nil},
		"Get-WmiObject":       {"1.0", []string{"Class", "Filter"}},
		"Join-Path":           {"1.0", []string{"Path", "ChildPath"}},
		"Move-Item":           {"1.0", []string{"Path", "Destination"}},
		"New-Item":            {"1.0", []string{"Path", "ItemType"}},
		"New-Object":          {"1.0", []string{"TypeName", "ArgumentList", "ComObject"}},
		"Out-Null":            {"1.0", nil},
		"Remove-Item":         {"1.0", []string{"Path", "LiteralPath", "Force"}},
		"Remove-ItemProperty": {"1.0", []string{"Path", "Name"}},
		"Restart-Service":     {"1.0", []string{"Name", "Force"}},
		"Select-Object":       {"1.0", []string{"First", "Last"}},
		"Set-Date":            {"1.0", []string{"Date"}},
		"Set-ItemProperty":    {"1.0", []string{"Path", "Name", "Value"}},
		"Set-Service":         {"1.0", []string{"Name", "StartupType"}},
		"Sort-Object":         {"1.0", []string{"Property", "Unique"}},
		"Start-Service":       {"1.0", []string{"Name"}},
		"Start-Sleep":         {"1.0", []string{"Seconds"}},
		"Test-Path":           {"1.0", []string{"Path", "LiteralPath"}},
		"Where-Object":        {"1.0", nil},
		"Write-BerthAnswer":   {"the bootstrap", nil},
	}
}

// operators are words that begin with a dash and are no parameters.
func operators() []string {
	return []string{"not", "and", "or", "eq", "ne", "gt", "ge", "lt", "le", "like", "match", "notmatch", "contains", "notcontains", "join", "is", "replace"}
}

// programs are what a script may start, by a constant name.
func programs() []string {
	return []string{"shutdown.exe", "powercfg.exe", "dism.exe", "powershell.exe"}
}

func TestScriptsAreValidOnPowerShell2(t *testing.T) {
	table := cmdlets()
	used := map[string]bool{}
	for name, script := range all(t) {
		t.Run(name, func(t *testing.T) {
			code, strs := tokens(t, script)
			for _, text := range strs {
				require.NotContains(t, text, "`", "no escapes in strings")
			}
			functions := map[string]bool{}
			for _, found := range regexp.MustCompile(`(?m)^\s*function ([A-Za-z-]+)`).FindAllStringSubmatch(code, -1) {
				functions[found[1]] = true
			}
			// One command is what stands between separators; its parameters are looked up with it.
			for _, command := range regexp.MustCompile(`[|;{}()\n]`).Split(code, -1) {
				words := strings.Fields(command)
				at := slices.IndexFunc(words, func(w string) bool { return regexp.MustCompile(`^[A-Z][A-Za-z]+-[A-Z][A-Za-z]+$`).MatchString(w) })
				program := slices.Index(words, "&")
				if program >= 0 && program+1 < len(words) {
					require.Contains(t, programs(), words[program+1], "only these programs are started, by a constant name")
					continue
				}
				var parameters []string
				if at >= 0 && words[max(0, at-1)] != "function" {
					what := words[at]
					if functions[what] {
						continue
					}
					entry, ok := table[what]
					require.True(t, ok, "%s is not in the table of cmdlets", what)
					used[what] = true
					parameters = entry.parameters
				}
				for _, word := range words {
					if dash, ok := strings.CutPrefix(word, "-"); ok && regexp.MustCompile(`^[A-Za-z]+$`).MatchString(dash) {
						require.True(t, slices.Contains(parameters, dash) || slices.Contains(operators(), dash), "%s in %q", word, strings.TrimSpace(command))
					}
				}
			}
			// Every word that looks like a cmdlet stands in the table, wherever it is.
			for _, word := range regexp.MustCompile(`\b[A-Z][a-z]+-[A-Z][A-Za-z]+\b`).FindAllString(code, -1) {
				_, ok := table[word]
				require.True(t, ok || functions[word], word)
			}
			require.NotRegexp(t, `(?i)\s-(not)?in\s|\s-sh[lr]\s|::new\(|\[ordered\]|\[pscustomobject\]|\$psitem|\$using:|(?:^|\n)\s*class\b|\?\.|\?\?|&&|\|\|`, code, "of later versions")
			require.NotContains(t, code, "`", "no continued lines")
		})
	}
	for name := range table {
		require.True(t, used[name] || strings.HasPrefix(name, "Write-Berth"), "%s stands in the table and nobody uses it", name)
	}
}

func TestScriptsPasteNoValueIn(t *testing.T) {
	for name, script := range all(t) {
		t.Run(name, func(t *testing.T) {
			code, strs := tokens(t, script)
			require.NotRegexp(t, `(?i)invoke-expression|\biex\b|\[scriptblock\]|invoke-command|invokescript|-command\b|-encodedcommand|addscript|cmd\.exe|start-process`, code)
			require.NotRegexp(t, `(?m)&\s*[$("]`, code, "what is started has a constant name")
			require.NotRegexp(t, `(?m)^\s*\.\s+\$`, code, "nothing is dot-sourced")
			for _, text := range strs {
				if strings.HasPrefix(text, `"`) {
					require.NotContains(t, text, "$", "a string with a variable in it")
				}
			}
			// A query is a constant: no value becomes part of WQL.
			for _, found := range regexp.MustCompile(`-Filter\s+(\S+)`).FindAllStringSubmatch(code, -1) {
				require.Contains(t, []string{`""`, `''`, "$windows"}, strings.Trim(found[1], ")"))
			}
		})
	}
}

func TestScriptsSayWhatTheyTakeAndAnswer(t *testing.T) {
	readme, err := os.ReadFile("scripts/README.md")
	require.NoError(t, err)
	rows := map[string][]string{}
	for _, found := range regexp.MustCompile("(?m)^\\| `([a-z]+\\.ps1)` \\|([^|]*)\\|([^|]*)\\|[^|]+\\|$").FindAllStringSubmatch(string(readme), -1) {
		rows[found[1]] = found[2:]
	}
	scripts := all(t)
	require.ElementsMatch(t, slices.Collect(maps.Keys(scripts)), slices.Collect(maps.Keys(rows)), "README.md has a row for each script")
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			require.Regexp(t, `^# [A-Z][^\n]+\n(# [^\n]+\n)*param\(`, script, "it begins with what it does, then param()")
			block := regexp.MustCompile(`(?s)\nparam\((.*?)\)\n`).FindStringSubmatch(script)
			var parameters []string
			for _, found := range regexp.MustCompile(`\[string\]\$([A-Za-z]+)`).FindAllStringSubmatch(block[1], -1) {
				parameters = append(parameters, found[1])
			}
			require.Equal(t, len(parameters), strings.Count(block[1], "$"), "each value is a [string]")
			require.Equal(t, list(rows[name][0]), parameters, "values")
			code, strs := tokens(t, script)
			require.NotEmpty(t, strs)
			require.Contains(t, code, "Write-BerthAnswer")
			for _, answer := range regexp.MustCompile(`(?s)Write-BerthAnswer @\{(.*?)\n?\s*\}`).FindAllStringSubmatch(code, -1) {
				for _, field := range regexp.MustCompile(`(?m)(?:^|[;{\n])\s*([a-zA-Z]+)\s*=`).FindAllStringSubmatch(answer[1], -1) {
					require.Contains(t, append(list(rows[name][1]), "result", "detail"), field[1], "an answer's field that README.md does not name")
				}
			}
			for _, field := range list(rows[name][1]) {
				require.Regexp(t, `\b`+field+`\s*=`, code, "a field of README.md that no answer has")
			}
		})
	}
}

func list(text string) []string {
	var all []string
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word != "" {
			all = append(all, word)
		}
	}
	return all
}

func TestScriptsFoldTheirLineEnds(t *testing.T) {
	for name, script := range all(t) {
		require.NotContains(t, script, "\r", name)
		require.Equal(t, powershell.Digest(script), powershell.Digest(strings.ReplaceAll(script, "\n", "\r\n")), name)
		require.Less(t, len(script), 8000, "%s: one job, and small", name)
	}
}

// The check is only worth what it finds.
func TestTheCheckFindsWhatIsWrong(t *testing.T) {
	for name, script := range map[string]string{
		"a brace that is not closed":       "if ($a) { 1",
		"a parenthesis too many":           "(1))",
		"brackets that cross":              "([)]",
		"a string that is not closed":      "'abc",
		"a here-string that is not closed": "@'\nabc\n",
		"a letter that is not ASCII":       "# caf\u00e9\n",
		"a tab":                            "\tx\n",
		"a comment that is not closed":     "<# x",
	} {
		_, _, err := tokenize(script)
		require.Error(t, err, name)
	}
	code, strs, err := tokenize("$a = 'it''s {' # }\n<# ( #> $b = \"say \"\"(\"\"\"\n$c = @'\n'( {\n'@\n")
	require.NoError(t, err)
	require.Equal(t, []string{"'it''s {'", `"say ""("""`, "@'\n'( {\n'@"}, strs)
	require.Equal(t, "$a = '' \n $b = \"\"\n$c = ''\n", code)
}

func all(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("scripts/*.ps1")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	found := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		found[filepath.Base(path)] = string(text)
	}
	return found
}

func tokens(t *testing.T, script string) (string, []string) {
	t.Helper()
	code, strs, err := tokenize(script)
	require.NoError(t, err)
	return code, strs
}
