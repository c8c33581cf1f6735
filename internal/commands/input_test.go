package commands

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"berth/internal/catalog"
	"berth/internal/temporalclient"
	"berth/provisioners"
	"berth/reservation"
)

// alone runs a command that must not get as far as Temporal.
func alone(t *testing.T, stdin string, env map[string]string, args ...string) answer {
	t.Helper()
	var stdout, stderr safeBuffer
	tools := Tools{
		Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr,
		Now:        func() time.Time { return time.Now().In(time.FixedZone("CET", 3600)) },
		Env:        func(name string) string { return env[name] },
		Validators: map[string]provisioners.Validator{"scripted": anything{}},
		Temporal:   temporalclient.Settings{Address: temporalclient.DefaultAddress, Namespace: "default", Patience: time.Second},
		Dial: func(context.Context, temporalclient.Options) (client.Client, error) {
			t.Error("wrong input must be refused before Temporal is asked")
			return nil, errors.New("not here")
		},
	}
	code := tools.Run(t.Context(), args)
	return answer{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

func TestWrongInputIsRefusedBeforeAnythingIsAsked(t *testing.T) {
	usual := map[string]string{EnvCatalog: "testdata/catalog.yaml", "USER": "ana"}
	for name, c := range map[string]struct {
		args   []string
		env    map[string]string
		stderr string
	}{
		"a command that is mistyped": {args: []string{"relase", "vm-ok"},
			stderr: "error: there is no command \"relase\"\n  did you mean release?\n"},
		"a command that is like no other": {args: []string{"frobnicate"},
			stderr: "error: there is no command \"frobnicate\"\n  see starter --help\n"},
		"a command of catalog that is mistyped": {args: []string{"catalog", "chekc"},
			stderr: "error: there is no command \"chekc\"\n  did you mean check?\n"},
		"a shell that is mistyped": {args: []string{"completion", "bsh"},
			stderr: "error: there is no command \"bsh\"\n  did you mean bash?\n"},
		"a flag that is mistyped": {args: []string{"list", "--usr", "ana"},
			stderr: "error: unknown flag: --usr\n  did you mean --user?\n"},
		"a flag without its value": {args: []string{"list", "--user"},
			stderr: "error: flag needs an argument: --user\n  see starter list --help\n"},
		"an output format": {args: []string{"list", "-o", "jsn"},
			stderr: "error: there is no output format \"jsn\"\n  did you mean json?\n"},
		"no computer": {args: []string{"reserve", "debian12"},
			stderr: "error: starter reserve needs an image and one computer or more, or -f with a batch file\n" +
				"  usage: starter reserve (IMAGE COMPUTER... | -f FILE) [flags]\n"},
		"no name": {args: []string{"show"},
			stderr: "error: starter show needs one NAME\n  usage: starter show NAME [flags]\n"},
		"two names for one": {args: []string{"show", "a", "b"},
			stderr: "error: starter show takes one NAME, and got 2 arguments\n  usage: starter show NAME [flags]\n"},
		"a computer that is mistyped": {args: []string{"reserve", "debian12", "vm-heldd"},
			stderr: "error: computer is \"vm-heldd\": the catalog has no such computer; did you mean vm-held?\n"},
		"an image that is mistyped": {args: []string{"reserve", "debain12", "vm-ok"},
			stderr: "error: image is \"debain12\": the catalog has no such image; did you mean debian12?\n"},
		"a revision that there is not": {args: []string{"reserve", "debian12-r9", "vm-ok"},
			stderr: "debian12-r"},
		"computer and image the wrong way round": {args: []string{"reserve", "vm-ok", "debian12"},
			stderr: "error: nothing was started, because of 2 faults:\n" +
				"  computer is \"debian12\": that is an image: the image comes first, then the computers\n" +
				"  image is \"vm-ok\": that is a computer: the image comes first, then the computers\n"},
		"a computer twice": {args: []string{"reserve", "debian12", "vm-ok", "vm-ok"},
			stderr: "error: computer vm-ok stands here twice: it can be reserved once at a time\n"},
		"a name that is not allowed": {args: []string{"reserve", "debian12", "vm-ok", "--name", "My Course"},
			stderr: "error: reservation.name is \"My Course\": use 1 to 63 of a-z"},
		"a computer's name for a reservation": {args: []string{"reserve", "debian12", "vm-ok", "--name", "vm-held"},
			stderr: "error: name is \"vm-held\", which is a computer's name: choose another one, so that names stay clear\n"},
		"a user that is not allowed": {args: []string{"reserve", "debian12", "vm-ok", "--user", "ana' OR 1"},
			stderr: "error: reservation.user is \"ana' OR 1\": use 1 to 63 letters"},
		"nobody": {args: []string{"reserve", "debian12", "vm-ok"}, env: map[string]string{EnvCatalog: "testdata/catalog.yaml"},
			stderr: "error: whose reservation is it? neither BERTH_USER nor USER is set\n  say it with --user\n"},
		"for and until together": {args: []string{"reserve", "debian12", "vm-ok", "--for", "1h", "--until", "21:00"},
			stderr: "error: --for and --until together\n  give one of them\n"},
		"a duration without its unit": {args: []string{"reserve", "debian12", "vm-ok", "--for", "90"},
			stderr: "error: --for: \"90\" is not a duration: write a number with its unit, such as 90m, 2h or 72h\n"},
		"a duration that is negative": {args: []string{"reserve", "debian12", "vm-ok", "--for", "-2h"},
			stderr: "error: --for: \"-2h\" is no time at all: write a duration such as 90m, 2h or 72h\n"},
		"an end that is no time": {args: []string{"reserve", "debian12", "vm-ok", "--until", "tomorrow"},
			stderr: "error: --until: \"tomorrow\" is not a time: write a time as 17:30 (its next one), as \"2026-11-30 17:30\", or as 2026-11-30T17:30:00Z\n"},
		"an end that has passed": {args: []string{"reserve", "debian12", "vm-ok", "--until", "2020-01-01 10:00"},
			stderr: "error: reservation.end is \"2020-01-01T09:00:00Z\": give an end after now"},
		"no catalog": {args: []string{"reserve", "debian12", "vm-ok"}, env: map[string]string{"USER": "ana"},
			stderr: "error: no catalog: it says which computers and images there are\n  name its file with --catalog or BERTH_CATALOG\n"},
		"a catalog that is not there": {args: []string{"reserve", "debian12", "vm-ok", "--catalog", "nowhere.yaml"},
			stderr: "error: the catalog has faults:\n  nowhere.yaml: catalog: cannot be read"},
		"a batch file and an image": {args: []string{"reserve", "-f", "batch.yaml", "debian12"},
			stderr: "error: both a batch file and an image with computers\n  give one of them\n"},
		"a batch file that is not there": {args: []string{"reserve", "-f", "nowhere.yaml"},
			stderr: "error: the batch file cannot be read: open nowhere.yaml: no such file or directory\n  give the path of a YAML file, or - for standard input\n"},
		"a name for a batch": {args: []string{"reserve", "-f", "-", "--name", "x"},
			stderr: "error: --name does not go with a batch file\n  write name: into its entries\n"},
		"extending by nothing": {args: []string{"extend", "vm-ok"},
			stderr: "error: extend until when?\n  give --by 1h or --until 18:00\n"},
		"extending by no duration": {args: []string{"extend", "vm-ok", "--by", "a bit"},
			stderr: "error: --by: \"a bit\" is not a duration: write a number with its unit, such as 90m, 2h or 72h\n"},
		"a phase that is mistyped": {args: []string{"list", "--phase", "postload"},
			stderr: "error: there is no phase \"postload\"\n  did you mean post-load?\n"},
		"an outcome that is mistyped": {args: []string{"list", "--outcome", "faild"},
			stderr: "error: there is no outcome \"faild\"\n  did you mean failed?\n"},
		"a filter that would break the query": {args: []string{"list", "--computer", "x' OR 'a'='a"},
			stderr: "error: --computer is \"x' OR 'a'='a\": use 1 to 63 of a-z"},
		"an address without a port": {args: []string{"list", "--address", "temporal.example.org"},
			stderr: "error: BERTH_TEMPORAL_ADDRESS is \"temporal.example.org\": write host:port"},
		"a limit of nothing": {args: []string{"list", "--limit", "0"},
			stderr: "error: --limit 0 lists nothing\n  give 1 or more\n"},
		"watching until something else": {args: []string{"watch", "vm-ok", "--until", "redy"},
			stderr: "error: there is no --until \"redy\"\n  did you mean ready?\n"},
		"a catalog to check that nobody named": {args: []string{"catalog", "check"}, env: map[string]string{},
			stderr: "error: which catalog?\n  give its file, or set --catalog or BERTH_CATALOG\n"},
	} {
		t.Run(name, func(t *testing.T) {
			env := usual
			if c.env != nil {
				env = c.env
			}
			got := alone(t, "", env, c.args...)
			require.Equal(t, CodeInput, got.code, got.stderr)
			require.Empty(t, got.stdout)
			if strings.HasSuffix(c.stderr, "\n") {
				require.Equal(t, c.stderr, got.stderr)
			} else {
				require.Contains(t, got.stderr, c.stderr)
			}
		})
	}
}

func TestABatchFileIsCheckedWhole(t *testing.T) {
	usual := map[string]string{EnvCatalog: "testdata/catalog.yaml", "USER": "ana"}
	for name, c := range map[string]struct {
		batch string
		want  []string // lines of standard error
	}{
		"everything wrong at once": {
			batch: `- {image: debian12, computer: vm-ok, user: "a b"}
- image: debain12
  computer: vm-held
  name: vm-slow
- image: debian12
  compter: vm-bad
- image: debian12
  computer: vm-bad
  for: 2
- {image: debian12, computer: vm-bad, for: 1h, until: "20:00"}
- vm-bad
- image: [debian12]
  computer: vm-bad
  image: rocky9
`,
			want: []string{
				"  standard input:1: reservation.user is \"a b\": use 1 to 63 letters, digits, '.', '_', '@' and '-', beginning with a letter or a digit",
				`  standard input:2: image is "debain12": the catalog has no such image; did you mean debian12?`,
				`  standard input:2: name is "vm-slow", which is a computer's name: choose another one, so that names stay clear`,
				`  standard input:5: computer is missing: say which one`,
				`  standard input:6: there is no field "compter": did you mean computer?`,
				`  standard input:9: for: "2" is not a duration: write a number with its unit, such as 90m, 2h or 72h`,
				`  standard input:10: both for and until: leave one out`,
				`  standard input:11: write image: and computer: here`,
				`  standard input:12: image is not a text: write one value`,
				`  standard input:14: image stands here twice (first in line 12): leave one out`,
			}},
		"names that the catalog does not know": {
			batch: `- {image: debian12, computer: vm-ok, user: "a b"}
- image: debain12
  computer: vm-held
  name: vm-slow
- {image: debian12, computer: vm-ok}
- {image: debian12, computer: vm-bad, name: course}
- {image: debian12, computer: vm-slow, name: course}
`,
			want: []string{
				"  standard input:1: reservation.user is \"a b\": use 1 to 63 letters, digits, '.', '_', '@' and '-', beginning with a letter or a digit",
				`  standard input:2: image is "debain12": the catalog has no such image; did you mean debian12?`,
				`  standard input:2: name is "vm-slow", which is a computer's name: choose another one, so that names stay clear`,
				`  standard input:5: computer vm-ok stands here twice (first at standard input:1): it can be reserved once at a time`,
				`  standard input:7: name course stands here twice (first at standard input:6): give each reservation its own`,
			}},
		"no list":       {batch: "image: debian12\n", want: []string{`  standard input:1: is not a list: write a list: one "- {image: ..., computer: ..., for: 2h}" for each reservation`}},
		"an empty list": {batch: "[]\n", want: []string{`  standard input:1: the list is empty: write a list: one "- {image: ..., computer: ..., for: 2h}" for each reservation`}},
		"nothing":       {batch: "# nothing\n", want: []string{`  standard input: is empty: write a list: one "- {image: ..., computer: ..., for: 2h}" for each reservation`}},
		"no YAML":       {batch: "- {image: debian12\n- x", want: []string{`  standard input:2: not YAML: did not find expected ',' or '}'`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := alone(t, c.batch, usual, "reserve", "-f", "-")
			require.Equal(t, CodeInput, got.code)
			require.Empty(t, got.stdout)
			lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
			require.Equal(t, "error: nothing was started, because of "+counted(len(c.want), "fault")+":", lines[0])
			require.Equal(t, c.want, lines[1:])
		})
	}
}

func TestABatchEntryTakesFromTheFlagsWhatItDoesNotSay(t *testing.T) {
	zone := time.FixedZone("CET", 3600)
	now := time.Date(2026, 11, 23, 19, 0, 0, 0, zone)
	wishes, faults := readBatch("b.yaml", strings.NewReader(`
- &a {image: debian12, computer: vm-ok}
- {image: rocky9-r1, computer: vm-bad, user: bo, name: x, until: "20:30"}
- {image: rocky9, computer: vm-slow, for: 30m}
`), defaults{user: "ana", end: now.Add(time.Hour), now: now})
	require.Empty(t, faults)
	require.Equal(t, []wish{
		{image: "debian12", computer: "vm-ok", user: "ana", end: now.Add(time.Hour), at: place{"b.yaml", 2}},
		{image: "rocky9-r1", computer: "vm-bad", user: "bo", name: "x", given: true, end: time.Date(2026, 11, 23, 20, 30, 0, 0, zone), at: place{"b.yaml", 3}},
		{image: "rocky9", computer: "vm-slow", user: "ana", end: now.Add(30 * time.Minute), at: place{"b.yaml", 4}},
	}, wishes)
}

func TestTimesAreReadAsPeopleWriteThem(t *testing.T) {
	zone := time.FixedZone("CET", 3600)
	now := time.Date(2026, 11, 30, 19, 0, 0, 0, zone)
	for text, want := range map[string]time.Time{
		"19:30":                time.Date(2026, 11, 30, 19, 30, 0, 0, zone),
		"19:00":                time.Date(2026, 12, 1, 19, 0, 0, 0, zone),
		"08:15:30":             time.Date(2026, 12, 1, 8, 15, 30, 0, zone),
		"2026-12-24 18:00":     time.Date(2026, 12, 24, 18, 0, 0, 0, zone),
		"2026-12-24T18:00":     time.Date(2026, 12, 24, 18, 0, 0, 0, zone),
		"2026-12-24 18:00:05":  time.Date(2026, 12, 24, 18, 0, 5, 0, zone),
		"2026-12-24T18:00:00Z": time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC),
	} {
		got, err := parseTime(text, now)
		require.NoError(t, err, text)
		require.True(t, want.Equal(got), "%s is %s, and was read as %s", text, want, got)
	}
	for _, text := range []string{"", "tomorrow", "25:00", "2026-13-01 10:00", "18", "2026-12-24"} {
		_, err := parseTime(text, now)
		require.Error(t, err, text)
	}
}

func TestMadeUpNamesAreAllowedNames(t *testing.T) {
	long := strings.Repeat("x", 80)
	for _, user := range []string{"ana", "Ana.Maria@EXAMPLE.org", "_svc", "@", "", "übermut", long} {
		for _, computer := range []string{"vm-01", strings.Repeat("c", 63)} {
			name := madeUpName(user, computer, short())
			require.NoError(t, reservation.CheckName("name", name), "%s on %s", user, computer)
		}
	}
	require.Equal(t, "ana.maria-vm-01-3f9c1", madeUpName("Ana.Maria@EXAMPLE.org", "vm-01", "3f9c1"))
}

func TestCatalogFaultsComeWithTheirLines(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "catalog.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("sites:\n  - {name: lab, provisioner: scripted}\nimages: []\ncomputers:\n  - {name: Vm 1, site: lab, address: 192.0.2.1}\n  - {name: vm-2, site: lap, address: 192.0.2.2}\n"), 0o600))

	got := alone(t, "", nil, "catalog", "check", bad)
	require.Equal(t, CodeInput, got.code)
	_, err := catalog.Load(bad, catalog.Options{Validators: map[string]provisioners.Validator{"scripted": anything{}}})
	require.Equal(t, err.Error()+"\n", got.stdout)
	require.Contains(t, got.stdout, bad+":5: ")
	require.Contains(t, got.stdout, "did you mean lab?")
	require.Contains(t, got.stderr, "faults in "+bad)

	got = alone(t, "", nil, "catalog", "check", bad, "-o", "json")
	require.Equal(t, CodeInput, got.code)
	answer := read[catalogAnswer](t, got)
	require.Equal(t, bad, answer.File)
	require.Equal(t, 5, answer.Faults[0].Line)
	require.NotEmpty(t, answer.Faults[0].Remedy)

	good := alone(t, "", nil, "catalog", "check", "testdata/catalog.yaml")
	require.Equal(t, CodeOK, good.code)
	require.Equal(t, "testdata/catalog.yaml: no faults; 1 site, 3 images, 20 computers\n", good.stdout)
	good = alone(t, "", map[string]string{EnvCatalog: "testdata/catalog.yaml"}, "catalog", "check", "-o", "json")
	require.Equal(t, catalogAnswer{File: "testdata/catalog.yaml", Sites: 1, Images: 3, Computers: 20, Faults: []catalogFault{}}, read[catalogAnswer](t, good))
}

func TestHelpTellsTheExitCodesAndTheEnvironment(t *testing.T) {
	got := alone(t, "", nil, "--help")
	require.Equal(t, CodeOK, got.code)
	for _, text := range []string{"Exit codes:", "130  interrupted", "BERTH_CATALOG", "NO_COLOR", "reserve ", "history "} {
		require.Contains(t, got.stdout, text)
	}
	require.Equal(t, got.stdout, alone(t, "", nil).stdout, "no command at all shows the help")
	require.NotContains(t, alone(t, "", nil, "list", "--help").stdout, "Exit codes:")
}

func TestShellsAreServed(t *testing.T) {
	env := map[string]string{EnvCatalog: "testdata/catalog.yaml"}
	require.Contains(t, alone(t, "", env, "completion", "bash").stdout, "__start_starter")
	require.Contains(t, alone(t, "", env, "completion", "zsh").stdout, "#compdef starter")

	images := alone(t, "", env, "__complete", "reserve", "")
	require.Equal(t, "debian12\nrocky9\n:4\n", images.stdout)
	computers := alone(t, "", env, "__complete", "reserve", "debian12", "vm-ok", "")
	require.NotContains(t, computers.stdout, "vm-ok\n", "it stands there already")
	require.Contains(t, computers.stdout, "vm-named-1\nvm-named-2\n")
	require.Equal(t, "table\njson\n:4\n", alone(t, "", env, "__complete", "list", "-o", "").stdout)
	require.Equal(t, ":4\n", alone(t, "", map[string]string{EnvCatalog: "nowhere.yaml"}, "__complete", "reserve", "").stdout, "a fault in the catalog is no word for a shell")
}

func TestVersionNamesTheBuild(t *testing.T) {
	got := alone(t, "", nil, "version", "-o", "json")
	require.Equal(t, CodeOK, got.code)
	require.Contains(t, read[versionAnswer](t, got).Go, "go1.")
	require.Contains(t, alone(t, "", nil, "version").stdout, "starter ")
}

func TestSeveralFailuresHaveOneExitCode(t *testing.T) {
	require.Equal(t, CodeOK, codeOfAll(nil))
	require.Equal(t, CodeHeld, codeOfAll([]int{CodeOK, CodeHeld, CodeHeld}))
	require.Equal(t, CodeFailed, codeOfAll([]int{CodeHeld, CodeOK, CodeNotFound}))
}
