package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/hold"
	"berth/internal/loadlog"
	"berth/internal/scripted"
	"berth/internal/temporalclient"
	"berth/reservation"
	"berth/workflows"
)

// The commands are run against a real Temporal server and the real workflow, with modules that do what a script says.
func TestTheCommandsOnARealServer(t *testing.T) {
	s := newStage(t)
	t.Run("without a worker", func(t *testing.T) { withoutAWorker(t, s) })

	hang := func() *scripted.Provisioner {
		return &scripted.Provisioner{Loads: scripted.Acts{scripted.Hang("clone", nil)}}
	}
	s.fleet.provisioners["vm-tab"] = hang()
	s.fleet.provisioners["vm-int"] = hang()
	s.fleet.provisioners["vm-terminated"] = hang()
	s.fleet.provisioners["vm-bad"] = &scripted.Provisioner{Loads: scripted.Acts{scripted.Fail("template debian12 is gone")}}
	s.fleet.provisioners["vm-reload"] = &scripted.Provisioner{Loads: scripted.Acts{scripted.Reload("no space on LocalDS_0"), nil}}
	s.fleet.provisioners["vm-faulty"] = &scripted.Provisioner{Loads: scripted.Acts{
		func(_ context.Context, report reservation.Reporter) error {
			report.Stage("clone", "task-7, 42 %")
			return errors.New("dial tcp 192.0.2.1:443: connection refused")
		}}}
	s.fleet.provisioners["vm-stuck"] = &scripted.Provisioner{Unloads: scripted.Acts{scripted.Fail("the VM cannot be deleted")}}
	s.serve(t)

	for name, test := range map[string]func(*testing.T, *stage){
		"one life":                           oneLife,
		"a computer that is held":            held,
		"loads that end badly":               badly,
		"trouble is told while it lasts":     trouble,
		"names":                              names,
		"extending":                          extending,
		"terminated by an operator":          terminated,
		"a computer that is not taken back":  leftBehind,
		"waiting that is interrupted":        interrupted,
		"a batch":                            batch,
		"a server that is not there":         noServer,
		"an unknown name":                    unknownName,
		"names are completed":                completedNames,
		"watching everything until Ctrl-C":   watchingAll,
		"a screen that is redrawn in place":  redrawn,
		"a server without search attributes": unprepared,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

// withoutAWorker leaves nothing that lives.
func withoutAWorker(t *testing.T, s *stage) {
	const warning = "no worker serves the workflow queue berth"
	got := s.run(t, "reserve", "debian12", "vm-ok", "--name", "early")
	require.Equal(t, CodeOK, got.code)
	require.Contains(t, got.stdout, "early        vm-ok     debian12-r3  ana   ")
	require.Contains(t, got.stderr, "warning: "+warning+": what was started waits until one does")

	got = s.run(t, "show", "early")
	require.Equal(t, CodeOK, got.code)
	require.Contains(t, got.stdout, "early  load, attempt 1 of 3")
	require.Contains(t, got.stdout, "note: "+warning+"; this is what its history tells")

	got = s.run(t, "extend", "early", "--by", "1h")
	require.Equal(t, CodeNoWorker, got.code)
	require.Contains(t, got.stderr, "error: "+warning+"\n  start a worker")

	got = s.run(t, "history", "early", "-o", "json")
	require.Equal(t, CodeOK, got.code)
	require.Equal(t, loadlog.KindReserved, read[historyAnswer](t, got).Entries[0].Kind)

	got = s.run(t, "cancel", "early")
	require.Equal(t, CodeOK, got.code)
	require.Contains(t, got.stderr, "warning: "+warning+": nothing is cancelled until one does")
	require.NoError(t, s.client.TerminateWorkflow(t.Context(), hold.WorkflowID("vm-ok"), "", "the test is over"))
}

func oneLife(t *testing.T, s *stage) {
	got := s.run(t, "reserve", "debian12-r2", "vm-ok", "--name", "life", "--for", "30m", "--wait")
	require.Equal(t, CodeOK, got.code, got.stderr)
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	require.Regexp(t, `^\d\d:\d\d:\d\d  life  vm-ok  ready      1 of 3 +after \S+ +until \S+ \(in (30m|29m5\ds)\)$`, lines[len(lines)-4])
	require.Regexp(t, `^RESERVATION  COMPUTER  STATE  ATTEMPT  TIME +DOING$`, lines[len(lines)-2])

	got = s.run(t, "show", "life")
	require.Regexp(t, `(?m)^life  ready, attempt 1 of 3$`, got.stdout)
	require.Regexp(t, `(?m)^  image +debian12-r2 \(linux 12\)$`, got.stdout)
	require.Regexp(t, `(?m)^ +- time +warned: 2 s off$`, got.stdout)
	require.NotContains(t, got.stdout, "\x1b", "no colours where there is no terminal")

	view := read[loadlog.View](t, s.run(t, "show", "vm-ok", "-o", "json"))
	require.Equal(t, "life", view.Reservation)
	require.Equal(t, "198.51.100.7", view.PublicAddress)
	require.Equal(t, hold.WorkflowID("vm-ok"), view.WorkflowID)
	require.Len(t, view.Phases, 2)

	listed := s.until(t, func(a answer) bool { return strings.Contains(a.stdout, "life") }, "list", "--user", "ana", "--image", "debian12", "--phase", "ready")
	require.Regexp(t, `(?m)^life +ana +debian12-r2 +vm-ok +ready +1 of 3 `, listed.stdout)
	for _, filter := range [][]string{{"--user", "bo"}, {"--image", "debian"}, {"--image", "debian12-r3"}, {"--provisioner", "vmware"}} {
		got := s.run(t, append([]string{"list", "--computer", "vm-ok", "-o", "json"}, filter...)...)
		require.Equal(t, "[]\n", got.stdout, filter)
	}

	got = s.run(t, "release", "life", "--wait", "-o", "json")
	require.Equal(t, CodeOK, got.code)
	views := read[[]loadlog.View](t, got)
	require.Equal(t, reservation.OutcomeReleased, views[0].Outcome)

	got = s.run(t, "release", "life")
	require.Equal(t, CodeFailed, got.code)
	require.Regexp(t, `^error: reservation life was over at \d\d:\d\d:\d\d \(released\)\n  see what became of it: starter show life\n$`, got.stderr)
	got = s.run(t, "release", "vm-ok")
	require.Equal(t, CodeFailed, got.code)
	require.Contains(t, got.stderr, "error: computer vm-ok has no live reservation; the last one, life, was over at ")

	got = s.run(t, "history", "vm-ok")
	for _, text := range []string{"reserved: ana: debian12-r2 on vm-ok until ", ", by ana@", "asked: release, by ana@", "ended: released", "- time: warned, 2 s off"} {
		require.Contains(t, got.stdout, text)
	}
	page := filepath.Join(t.TempDir(), "life.html")
	got = s.run(t, "history", "life", "--html", page)
	require.Equal(t, CodeOK, got.code)
	require.Empty(t, got.stdout)
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Contains(t, string(text), "<title>life: released</title>")
	require.Contains(t, s.run(t, "history", "life", "--html", "-").stdout, "<title>life: released</title>")
	got = s.run(t, "history", "life", "--html", filepath.Join(page, "in-a-file.html"))
	require.Equal(t, CodeInput, got.code)
	require.Contains(t, got.stderr, "the page cannot be written: ")
	got = s.run(t, "history", "life", "--html", page, "-o", "json")
	require.Equal(t, CodeInput, got.code)
	require.Contains(t, got.stderr, "--html and -o json are both given")

	closed := s.until(t, func(a answer) bool { return strings.Contains(a.stdout, "life") }, "list", "--all", "--outcome", "released")
	require.Regexp(t, `(?m)^life +ana +debian12-r2 +vm-ok +released `, closed.stdout)
}

func held(t *testing.T, s *stage) {
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-held", "--user", "bo", "--name", "first").code)
	got := s.run(t, "reserve", "debian12", "vm-held")
	require.Equal(t, CodeHeld, got.code)
	require.Empty(t, got.stdout)
	require.Regexp(t, `^error: ana-vm-held-\S+ on vm-held: computer vm-held is held by reservation first of bo since .*: release that one first, or choose another computer\n`+
		`  free and fit for debian12-r3: vm-`, got.stderr)

	got = s.run(t, "reserve", "debian12", "vm-held", "vm-pair", "--name", "pair", "-o", "json")
	require.Equal(t, CodeHeld, got.code, "one of two was refused")
	results := read[[]map[string]any](t, got)
	require.Equal(t, false, results[0]["started"])
	require.EqualValues(t, CodeHeld, results[0]["code"])
	require.Contains(t, results[0]["error"], "held by reservation first of bo")
	require.Equal(t, "pair-vm-held", results[0]["reservation"])
	require.NotContains(t, results[0], "workflow_id")
	require.Equal(t, true, results[1]["started"])
	require.Equal(t, "pair-vm-pair", results[1]["reservation"])
	require.Equal(t, hold.WorkflowID("vm-pair"), results[1]["workflow_id"])
	require.Contains(t, got.stderr, "error: 1 of 2 reservations not started:\n  pair-vm-held on vm-held: ")

	got = s.run(t, "cancel", "vm-held", "vm-pair", "--wait")
	require.Equal(t, CodeOK, got.code)
	require.Regexp(t, `(?m)^first +vm-held +cancelled `, got.stdout)
}

func badly(t *testing.T, s *stage) {
	got := s.run(t, "reserve", "debian12", "vm-bad", "vm-reload", "--name", "bad", "--wait")
	require.Equal(t, CodeFailed, got.code)
	require.Regexp(t, `(?m)^bad-vm-bad +vm-bad +failed +1 of 3 +\S+ +template debian12 is gone$`, got.stdout)
	require.Regexp(t, `(?m)^bad-vm-reload +vm-reload +ready +2 of 3 +after \S+ +until `, got.stdout)

	got = s.run(t, "show", "vm-reload")
	require.Regexp(t, `(?m)^1 +load +\S+ +\S+ +reload: no space on LocalDS_0$`, got.stdout)
	require.Equal(t, CodeOK, s.run(t, "release", "vm-reload", "--wait").code)

	require.Equal(t, CodeFailed, s.run(t, "watch", "vm-bad").code, "one that has failed is no success to watch")
	failed := s.until(t, func(a answer) bool { return strings.Contains(a.stdout, "bad-vm-bad") }, "list", "--outcome", "failed", "-o", "json")
	require.Equal(t, "template debian12 is gone", read[[]loadlog.View](t, failed)[0].Reason)
}

func trouble(t *testing.T, s *stage) {
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-faulty", "--name", "troubled").code)
	const fault = "fault: dial tcp 192.0.2.1:443: connection refused, "
	got := s.until(t, func(a answer) bool { return strings.Contains(a.stdout, fault) }, "show", "troubled")
	require.Regexp(t, `(?m)^  `+fault+`(tried again in \d+s|waiting for another worker); at clone: task-7, 42 %$`, got.stdout)
	require.Regexp(t, `(?m)^ +clone +\S+ +\S+ +task-7, 42 %$`, got.stdout)

	got = s.until(t, func(a answer) bool { return strings.Contains(a.stdout, `"retrying"`) }, "show", "troubled", "-o", "json")
	live := read[loadlog.View](t, got).Live
	require.Equal(t, "clone", live.Stage)
	require.Equal(t, "worker-1", live.Worker)
	require.Equal(t, reservation.Duration(10*time.Minute), live.Limit)
	require.Equal(t, "dial tcp 192.0.2.1:443: connection refused", live.Fault)

	// The next try may have begun meanwhile; the log then tells what ended the one before.
	require.Contains(t, s.run(t, "history", "troubled").stdout, "dial tcp 192.0.2.1:443: connection refused")
	got = s.run(t, "cancel", "troubled", "--wait")
	require.Equal(t, CodeOK, got.code)
	require.Regexp(t, `(?m)^troubled +vm-faulty +cancelled `, got.stdout)
}

func names(t *testing.T, s *stage) {
	// Two of one name can be had by starting them at once; here the second one is started past the command line.
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-named-1", "--name", "twin").code)
	s.until(t, func(a answer) bool { return a.code == CodeOK }, "show", "twin")
	taken := s.until(t, func(a answer) bool { return a.code == CodeHeld }, "reserve", "debian12", "vm-named-2", "--name", "twin")
	require.Contains(t, taken.stderr, "error: twin on vm-named-2: the name twin is taken by a live reservation on computer vm-named-1 (choose another --name)")

	other := scripted.Reservation("twin", "vm-named-2", "scripted")
	other.Computer.Site, other.End = "lab", time.Now().Add(time.Hour)
	_, err := hold.Start(t.Context(), s.client, other)
	require.NoError(t, err)
	both := s.until(t, func(a answer) bool { return a.code == CodeInput }, "release", "twin")
	require.Equal(t, "error: 2 live reservations are named twin: on the computers vm-named-1, vm-named-2\n  say which one by its computer's name\n", both.stderr)

	require.Equal(t, CodeOK, s.run(t, "release", "vm-named-2", "--wait").code)
	require.Equal(t, "vm-named-1", read[loadlog.View](t, s.run(t, "show", "twin", "-o", "json")).Computer, "the live one goes before one that is over")
	require.Equal(t, CodeOK, s.run(t, "release", "twin", "vm-named-1", "--wait").code, "two names of one reservation")
}

func extending(t *testing.T, s *stage) {
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-extended", "--for", "1h", "--name", "longer", "--wait").code)
	before := read[loadlog.View](t, s.run(t, "show", "longer", "-o", "json")).End

	got := s.run(t, "extend", "longer", "--by", "90m")
	require.Equal(t, CodeOK, got.code, got.stderr)
	require.Regexp(t, `^longer on vm-extended ends .* \(in 2h(29|30)m?\)`, got.stdout)
	after := read[loadlog.View](t, s.run(t, "extend", "vm-extended", "--by", "10m", "-o", "json")).End
	require.Equal(t, before.Add(100*time.Minute), after)

	got = s.run(t, "extend", "longer", "--until", time.Now().Add(time.Minute).Format(time.RFC3339))
	require.Equal(t, CodeInput, got.code)
	require.Regexp(t, `^error: longer is not extended: end is ".*": give a time after the present end, .*; to end earlier, release the reservation\n$`, got.stderr)
	require.Contains(t, s.run(t, "history", "longer").stdout, "asked: extend until "+after.Format(time.RFC3339)+", by ana@")
	require.Equal(t, CodeOK, s.run(t, "release", "longer", "--wait").code)
}

func terminated(t *testing.T, s *stage) {
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-terminated", "--name", "cut").code)
	s.until(t, func(a answer) bool { return strings.Contains(a.stdout, "clone") }, "show", "cut")
	require.NoError(t, s.client.TerminateWorkflow(t.Context(), hold.WorkflowID("vm-terminated"), "", "by hand"))

	got := s.run(t, "show", "vm-terminated")
	require.Equal(t, CodeOK, got.code)
	require.Contains(t, got.stdout, "cut  terminated, attempt 1 of 3\n  terminated in Temporal, nothing was cleaned: by hand\n")
	require.Regexp(t, `(?m)^1 +load .*not ended$`, got.stdout)
	require.Equal(t, CodeFailed, s.run(t, "watch", "cut").code)
	s.until(t, func(a answer) bool { return strings.Contains(a.stdout, "cut") }, "list", "--outcome", "terminated")
}

func leftBehind(t *testing.T, s *stage) {
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-stuck", "--wait", "--name", "stuck").code)
	got := s.run(t, "release", "stuck", "--wait")
	require.Equal(t, CodeFailed, got.code)
	require.Regexp(t, `(?m)^stuck +vm-stuck +released +.*the computer was not taken back.*the VM cannot be deleted$`, got.stdout)
}

func interrupted(t *testing.T, s *stage) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stdout, stderr safeBuffer
	code := make(chan int, 1)
	go func() {
		code <- s.tools(strings.NewReader(""), &stdout, &stderr).Run(ctx, []string{"reserve", "debian12", "vm-int", "--name", "slow", "--wait"})
	}()
	require.Eventually(t, func() bool { return strings.Contains(stdout.String(), "clone") }, 10*time.Second, 20*time.Millisecond)
	cancel()
	require.Equal(t, CodeInterrupted, <-code)
	require.Equal(t, "error: interrupted: the reservations go on\n  to see them: starter watch slow\n  to end them: starter cancel slow\n", stderr.String())

	require.Equal(t, CodeOK, s.run(t, "cancel", "vm-int", "--wait").code)
	got := s.run(t, "watch", "slow")
	require.Equal(t, CodeOK, got.code)
	require.Regexp(t, `(?m)^slow +vm-int +cancelled `, got.stdout)
}

func batch(t *testing.T, s *stage) {
	file := filepath.Join(t.TempDir(), "batch.yaml")
	require.NoError(t, os.WriteFile(file, []byte("- {image: debian12, computer: vm-batch-1, name: b-1, user: cy}\n- {image: rocky9, computer: vm-batch-2, for: 20m}\n"), 0o600))
	got := s.run(t, "reserve", "-f", file, "--for", "40m", "--wait", "-o", "json")
	require.Equal(t, CodeOK, got.code, got.stderr)
	results := read[[]struct {
		loadlog.View
		Started bool `json:"started"`
	}](t, got)
	require.Len(t, results, 2)
	require.True(t, results[0].Started)
	require.Equal(t, "cy", results[0].User)
	require.Equal(t, reservation.PhaseReady, results[0].Phase)
	require.Equal(t, "rocky9-r1", results[1].Image)
	require.WithinDuration(t, time.Now().Add(20*time.Minute), results[1].End, time.Minute)
	require.Contains(t, got.stderr, "ready", "the live lines go to standard error")
	require.Equal(t, CodeOK, s.run(t, "release", "vm-batch-1", "vm-batch-2", "--wait").code)
}

func noServer(t *testing.T, s *stage) {
	got := s.run(t, "list", "--address", "127.0.0.1:1")
	require.Equal(t, CodeTemporal, got.code)
	require.Equal(t, "error: Temporal does not answer at 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused\n"+
		"  is the server running? say where it is with --address or BERTH_TEMPORAL_ADDRESS\n", got.stderr)

	got = s.run(t, "list", "--namespace", "nowhere")
	require.Equal(t, CodeTemporal, got.code)
	require.Equal(t, fmt.Sprintf("error: Temporal at %s has no namespace \"nowhere\"\n  choose one that there is with --namespace or BERTH_TEMPORAL_NAMESPACE\n", s.server.Address), got.stderr)
}

func unknownName(t *testing.T, s *stage) {
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-known", "--name", "known").code)
	got := s.until(t, func(a answer) bool { return strings.Contains(a.stderr, "did you mean") }, "show", "knwon")
	require.Equal(t, CodeNotFound, got.code)
	require.Equal(t, "error: there is no reservation \"knwon\"\n  did you mean known?\n", got.stderr)

	got = s.run(t, "cancel", "vm-known", "nobody-has-this")
	require.Equal(t, CodeNotFound, got.code)
	require.Equal(t, "error: nothing was cancelled:\n  there is no reservation \"nobody-has-this\" (see which there are: starter list)\n", got.stderr)
	require.Equal(t, CodeOK, s.run(t, "release", "vm-known", "--wait").code, "it lives on: one wrong name stops all")

	got = s.run(t, "show", "No Such Name")
	require.Equal(t, CodeInput, got.code)
}

func completedNames(t *testing.T, s *stage) {
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-tab", "--name", "tab").code)
	got := s.until(t, func(a answer) bool { return strings.Contains(a.stdout, "tab\n") }, "__complete", "release", "")
	require.Contains(t, got.stdout, "vm-tab\n")
	require.Equal(t, CodeOK, s.run(t, "cancel", "tab", "--wait").code)
}

func watchingAll(t *testing.T, s *stage) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stdout, stderr safeBuffer
	code := make(chan int, 1)
	go func() {
		code <- s.tools(strings.NewReader(""), &stdout, &stderr).Run(ctx, []string{"watch", "-o", "json"})
	}()
	require.Equal(t, CodeOK, s.run(t, "reserve", "debian12", "vm-late", "--name", "late-comer").code)
	require.Eventually(t, func() bool {
		return strings.Contains(stdout.String(), `"reservation":"late-comer"`) && strings.Contains(stdout.String(), `"phase":"ready"`)
	}, 10*time.Second, 50*time.Millisecond)
	cancel()
	require.Equal(t, CodeOK, <-code, "Ctrl-C is how watching everything ends")
	require.Equal(t, CodeOK, s.run(t, "release", "late-comer", "--wait").code)
}

func redrawn(t *testing.T, s *stage) {
	var stdout, stderr safeBuffer
	tools := s.tools(strings.NewReader(""), &stdout, &stderr)
	tools.Terminal = func(w io.Writer) (int, int, bool) { return 40, 24, w == io.Writer(&stdout) }
	require.Equal(t, CodeOK, tools.Run(t.Context(), []string{"reserve", "debian12", "vm-drawn", "--name", "drawn", "--wait"}))
	text := stdout.String()
	require.Contains(t, text, "\x1b[2A\r", "the frame before is drawn over")
	require.Contains(t, text, "\x1b[1mdrawn\x1b[0m")
	frames := strings.Split(text, "\x1b[J")
	require.Contains(t, frames[len(frames)-1], "until ", "what stays is whole")
	for _, line := range strings.Split(frames[0], "\n") {
		require.LessOrEqual(t, len([]rune(plain(line))), 39, "%q would wrap and spoil the redrawing", line)
	}

	tools.Env = func(name string) string { return map[string]string{"NO_COLOR": "1"}[name] }
	stdout = safeBuffer{}
	require.Equal(t, CodeOK, tools.Run(t.Context(), []string{"show", "drawn"}))
	require.NotContains(t, stdout.String(), "\x1b")
	require.Equal(t, CodeOK, s.run(t, "release", "drawn", "--wait").code)
}

// plain returns text without the terminal's commands.
func plain(text string) string {
	var b strings.Builder
	for text != "" {
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			text = rest[strings.IndexAny(rest, "ABCDEFGHJKmh")+1:]
			continue
		}
		if text[0] >= ' ' {
			b.WriteByte(text[0])
		}
		text = text[1:]
	}
	return b.String()
}

func unprepared(t *testing.T, _ *stage) {
	bare := newBareStage(t)
	for _, args := range [][]string{{"list", "--user", "ana"}, {"show", "vm-ok"}, {"reserve", "debian12", "vm-ok"}} {
		got := bare.run(t, args...)
		require.Equal(t, CodeTemporal, got.code, args)
		require.Contains(t, got.stderr, "does not know Berth's search attributes", args)
		require.Contains(t, got.stderr, "start a worker once: it registers them", args)
	}
	require.NoError(t, temporalclient.EnsureSearchAttributes(t.Context(), bare.client, bare.server.Namespace, workflows.SearchAttributes().Keys()))
	require.Equal(t, CodeOK, bare.run(t, "list", "--user", "ana").code)
}
