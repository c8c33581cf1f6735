package xcat

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth/provisioners"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// mid returns a management node whose n01 is in the middle of a load of order().
func mid() *fake {
	f := newFake()
	n := f.nodes["n01"]
	n.arm(osimage)
	n.on, n.device, n.comment = true, "net", "rack 7 [berth r1/run-1/1 "+osimage+"]"
	return f
}

func TestAbortDisarms(t *testing.T) {
	f := mid()
	m := f.module()
	for range 2 { // it may be called again
		require.NoError(t, m.Abort(t.Context(), order(), newReporter()))
		n := f.nodes["n01"]
		require.Equal(t, stateBoot, n.state)
		require.Equal(t, "hd", n.device)
		require.True(t, n.on, "its power is left as it is")
		require.Equal(t, "rack 7", n.comment)
	}
	require.Equal(t, 1, f.count("nodeset n01 boot"), "the second time it is nobody's")
}

func TestAbortOfAWorkerThatWasLostOnTheWayGoesOn(t *testing.T) {
	whole := mid()
	require.NoError(t, whole.module().Abort(t.Context(), order(), newReporter()))
	for at := range len(whole.commands) {
		f := mid()
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		f.before = func(xcatd.Command) {
			if n++; n == at+1 {
				cancel()
			}
		}
		require.ErrorIs(t, f.module().Abort(ctx, order(), newReporter()), context.Canceled)
		f.before = nil
		require.NoError(t, f.module().Abort(t.Context(), order(), newReporter()))
		require.Equal(t, stateBoot, f.nodes["n01"].state)
		require.Equal(t, "hd", f.nodes["n01"].device)
	}
}

func TestAbortDisarmsThoughTheBMCIsDead(t *testing.T) {
	f := mid()
	f.refuse = func(c xcatd.Command) *xcatd.Line {
		if c.Name == "rsetboot" || c.Name == "rpower" {
			return &xcatd.Line{Node: "n01", Text: "ERROR: timeout"}
		}
		return nil
	}
	require.NoError(t, f.module().Abort(t.Context(), order(), newReporter()))
	require.Equal(t, stateBoot, f.nodes["n01"].state)
}

func TestWhatIsNotOursIsLeftAlone(t *testing.T) {
	for name, change := range map[string]func(*fake){
		"another reservation's":        func(f *fake) { f.nodes["n01"].comment = "[berth r2/run-1/1 " + osimage + "]" },
		"the same name's, another run": func(f *fake) { f.nodes["n01"].comment = "[berth r1/run-2/1 " + osimage + "]" },
		"nobody's":                     func(f *fake) { f.nodes["n01"].comment = "rack 7" },
		"somebody has armed it":        func(f *fake) { f.nodes["n01"].arm(alma) },
		"it is no node any more":       func(f *fake) { delete(f.nodes, "n01") },
	} {
		f := mid()
		change(f)
		m := f.module()
		require.NoError(t, m.Abort(t.Context(), order(), newReporter()), name)
		require.NoError(t, m.Unload(t.Context(), order(), newReporter()), name)
		require.Zero(t, f.count("nodeset n01 boot")+f.count("rpower n01 off")+f.count("rsetboot")+f.count("chdef"), name)
	}
	f := mid()
	report := newReporter()
	report.lost = true
	require.Error(t, f.module().Abort(t.Context(), order(), report))
	require.Equal(t, armed, f.nodes["n01"].state, "a worker that was taken over from touches nothing")
}

func TestUnloadPowersOff(t *testing.T) {
	f := mid()
	f.nodes["n01"].state = stateBoot
	require.NoError(t, f.module().Unload(t.Context(), order(), newReporter()))
	n := f.nodes["n01"]
	require.False(t, n.on)
	require.Equal(t, stateBoot, n.state)
	require.Equal(t, "rack 7", n.comment)
}

func TestPowerReset(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*fake)
		verdict reservation.Verdict
		boots   int
	}{
		"on":                    {func(f *fake) {}, reservation.VerdictDone, 1},
		"off":                   {func(f *fake) { f.nodes["n01"].on = false }, reservation.VerdictDone, 1},
		"another reservation's": {func(f *fake) { f.nodes["n01"].comment = "[berth r2/run-1/1 " + osimage + "]" }, reservation.VerdictFail, 0},
		"armed":                 {func(f *fake) { f.nodes["n01"].arm(osimage) }, reservation.VerdictReload, 0},
		"armed by somebody":     {func(f *fake) { f.nodes["n01"].arm(alma) }, reservation.VerdictFail, 0},
	} {
		f := mid()
		f.nodes["n01"].state = stateBoot
		c.change(f)
		err := f.module().PowerReset(t.Context(), order())
		require.Equal(t, c.verdict, reservation.VerdictOf(err), "%s: %v", name, err)
		require.Equal(t, c.boots, f.nodes["n01"].boots, name)
		require.Zero(t, f.count("rpower n01 reset"), "a reset of a node that is off does nothing, and says so to nobody")
	}
}

func TestASuccessThatIsNoneIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := mid()
		f.nodes["n01"].state, f.nodes["n01"].on = stateBoot, false
		f.before = func(c xcatd.Command) {
			if c.String() == "rpower n01 stat" && f.count("rpower n01 boot") < 2 {
				f.with(func(n *fakeNode) { n.on = false }) // the BMC says that it did, and did not
			}
		}
		require.NoError(t, f.module().PowerReset(t.Context(), order()))
		require.Equal(t, 2, f.nodes["n01"].boots)
	})
}

func TestHostKeysAreLeftAloneUnlessTheImageSaysOtherwise(t *testing.T) {
	f := mid()
	f.nodes["n01"].state = stateBoot
	require.NoError(t, f.module().AfterResponse(t.Context(), order(), newReporter()))
	require.Empty(t, f.commands)
}

func TestSharedHostKeys(t *testing.T) {
	f := mid()
	m, wanted := f.module(), order(source(sourceKnownHosts, hostKeysShared))
	err := m.AfterResponse(t.Context(), wanted, newReporter())
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err), "what answers while it is armed is an installer: %v", err)
	require.Zero(t, f.nodes["n01"].shared)
	f.nodes["n01"].state = stateBoot
	require.NoError(t, m.AfterResponse(t.Context(), wanted, newReporter()))
	require.Equal(t, 1, f.nodes["n01"].shared)
}

func TestOwnHostKeysAreScannedOnTheManagementNode(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "known_hosts")
	require.NoError(t, os.WriteFile(file, []byte("n02 ssh-rsa BBBB\n"), 0o600))
	for name, script := range map[string]string{
		"ssh-keyscan": `for last; do :; done; echo "$last ssh-ed25519 AAAA"; echo "# a remark" >&2`,
		"ssh-keygen":  `echo "$@" >> "` + folder + `/removed"`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte("#!/bin/sh\n"+script), 0o755))
	}
	f := mid()
	f.nodes["n01"].state = stateBoot
	m := f.module()
	m.nodes["mn"].tools, m.nodes["mn"].knownHosts = &xcatd.Tools{Path: folder + ":/usr/bin:/bin"}, file
	require.NoError(t, m.AfterResponse(t.Context(), order(source(sourceKnownHosts, hostKeysOwn)), newReporter()))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "n02 ssh-rsa BBBB\nn01,127.0.1.11 ssh-ed25519 AAAA\n", string(text))
	removed, err := os.ReadFile(filepath.Join(folder, "removed"))
	require.NoError(t, err)
	require.Equal(t, "-R n01 -f "+file+"\n-R 127.0.1.11 -f "+file+"\n", string(removed))

	require.NoError(t, os.WriteFile(filepath.Join(folder, "ssh-keyscan"), []byte("#!/bin/sh\nexit 0"), 0o755))
	require.Error(t, m.AfterResponse(t.Context(), order(source(sourceKnownHosts, hostKeysOwn)), newReporter()), "no key is no success")
}

func TestTheInstallerIsAskedOnItsPorts(t *testing.T) {
	serve := func(answer string) int {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				asked := make([]byte, len("stat \n"))
				if _, err := io.ReadFull(conn, asked); err == nil && string(asked) == "stat \n" {
					io.WriteString(conn, answer)
				}
				conn.Close()
			}
		}()
		return listener.Addr().(*net.TCPAddr).Port
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	for answer, want := range map[string]string{
		"installing kernel (40%)\n":   "installing kernel (40%)",
		"installing prep":             "installing prep",
		"":                            "",
		"\x16\x03\x01\x02":            "",
		strings.Repeat("x", 5000):     strings.Repeat("x", maxLine),
		"installing a\nand much more": "installing a",
	} {
		require.Equal(t, want, installer([]int{nobody, serve(answer)})(t.Context(), "127.0.0.1"))
	}
}

// look is one line of a load's transcript: what nodestat, lsdef and the status told then.
type look struct {
	after                   time.Duration
	services, state, status string
}

// looks reads the lines of a transcript, with a second of theirs as two minutes.
func looks(t *testing.T, file string) []look {
	text, err := os.ReadFile(filepath.Join("xcatd", "testdata", file))
	require.NoError(t, err)
	var all []look
	for line := range strings.Lines(string(text)) {
		at, rest, ok := strings.Cut(line, "s nodestat=[")
		if !ok || at[0] != '+' {
			continue
		}
		after, err := time.ParseDuration(at[1:] + "m")
		require.NoError(t, err)
		_, rest, _ = strings.Cut(rest, ": ")
		services, rest, _ := strings.Cut(rest, " ] currstate=")
		state, status, _ := strings.Cut(strings.TrimSpace(rest), " status=")
		after *= 2
		if n := len(all); n > 0 && after <= all[n-1].after { // two looks in one second
			after = all[n-1].after + time.Minute
		}
		all = append(all, look{after, services, state, status})
	}
	require.NotEmpty(t, all, file)
	return all
}

// apply makes a node look so.
func (l look) apply(n *fakeNode) {
	n.services, n.line, n.state = l.services, "", l.state
	if strings.HasPrefix(l.services, "installing") {
		n.line = l.services
	}
	if l.status == "" {
		n.status = ""
	} else if l.status != n.status {
		n.set(l.status)
	}
}

// The loads of the transcripts, line by line: what a load shows at each look, when it is over, and its verdict.
func TestTheTranscriptsLoadsAreFollowedLineByLine(t *testing.T) {
	for file, want := range map[string]reservation.Verdict{
		"06-load-ok-rinstall.txt": reservation.VerdictDone,
		"07-load-hang.txt":        reservation.VerdictReload,
		"08-load-nopxe.txt":       reservation.VerdictReload,
		"09-load-postfail.txt":    reservation.VerdictReload,
		"10-load-nocallback.txt":  reservation.VerdictDone,
		"13-load-ownkeys.txt":     reservation.VerdictDone,
		"21-load-modern-3054.txt": reservation.VerdictDone,
	} {
		t.Run(file, func(t *testing.T) {
			all := looks(t, file)
			at := make([]time.Time, len(all))
			var steps []step
			for i, one := range all {
				steps = append(steps, step{one.after, func(n *fakeNode) {
					if at[i].IsZero() { // a second boot plays them once more
						at[i] = time.Now()
					}
					one.apply(n)
				}})
			}
			f := newFake()
			var ended time.Time
			report, err := try(t, f, func(f *fake) { f.nodes["n01"].install = steps; f.end = func() { ended = time.Now() } },
				source(sourceNoProgress, "20m")) // in one of them 8 seconds pass without a change
			require.Equal(t, want, reservation.VerdictOf(err), "%v", err)
			require.Equal(t, stateBoot, f.nodes["n01"].state)
			news := "powering-on"
			for i, one := range all {
				if one.state == stateBoot {
					// It is over when it has seen that, and the installer has let go of the node.
					require.False(t, ended.Before(at[i]))
					require.WithinRange(t, ended, at[i], at[i].Add(DefaultLimits().InstallerGone+3*DefaultLimits().PollInstall))
					break
				}
				if one.status != "" {
					news = one.status
				}
				shown := stageStart + ": " + news
				switch {
				case strings.HasPrefix(one.services, "installing"):
					shown = stageInstall + ": " + one.services
				case arms(one.services) && news == "powering-on":
					shown = stageInstall + ": " + one.state
				case arms(one.services):
					shown = stageInstall + ": " + news
				}
				if one.status == "failed" {
					require.WithinRange(t, ended, at[i], at[i].Add(2*DefaultLimits().PollInstall), "at once")
					break
				}
				require.True(t, report.showed(shown, at[i], at[i].Add(2*DefaultLimits().PollInstall)), "look %d: %+v: %q is none of %q", i+1, one, shown, report.stages)
				require.True(t, ended.After(at[i]), "it goes on")
			}
		})
	}
}

func TestCheckSaysWhatIsWrongWithASite(t *testing.T) {
	f := newFake()
	require.NoError(t, f.module().Check(t.Context()))
	f.refuse = func(xcatd.Command) *xcatd.Line { return &xcatd.Line{Text: "Permission denied for request"} }
	err := f.module().Check(t.Context())
	require.ErrorContains(t, err, "site mn")
	require.ErrorContains(t, err, "table policy")
}

func TestSourcesAndPlacementsAreChecked(t *testing.T) {
	m := &Module{}
	for _, c := range []struct {
		source map[string]string
		fields []string
	}{
		{map[string]string{"osimage": osimage}, nil},
		{map[string]string{"osimage": osimage, "expected_minutes": "45", "known_hosts": "shared"}, nil},
		{map[string]string{}, []string{"osimage"}},
		{map[string]string{"osimage": "two words"}, []string{"osimage"}},
		{map[string]string{"osimage": osimage, "expected_minutes": "0"}, []string{"expected_minutes"}},
		{map[string]string{"osimage": osimage, "expected_minutes": "an hour"}, []string{"expected_minutes"}},
		{map[string]string{"osimage": osimage, "known_hosts": "yes"}, []string{"known_hosts"}},
		{map[string]string{"template": "x"}, []string{"template", "osimage"}},
	} {
		requireFields(t, "image.sources.xcat.", c.fields, m.ValidateSource(c.source))
	}
	for _, c := range []struct {
		placement map[string]string
		fields    []string
	}{
		{nil, nil},
		{map[string]string{"node": "rack1-n01", "firmware": "uefi", "boot_order": "network-first"}, nil},
		{map[string]string{"node": "n01,n02"}, []string{"node"}},
		{map[string]string{"node": "n[01-40]"}, []string{"node"}},
		{map[string]string{"node": "@compute"}, []string{"node"}},
		{map[string]string{"firmware": "efi", "boot_order": "disk"}, []string{"firmware", "boot_order"}},
		{map[string]string{"folder": "x"}, []string{"folder"}},
	} {
		requireFields(t, "computer.placement.", c.fields, m.ValidatePlacement(c.placement))
	}
}

func requireFields(t *testing.T, prefix string, fields []string, err error) {
	t.Helper()
	if fields == nil {
		require.NoError(t, err)
		return
	}
	joined, ok := err.(interface{ Unwrap() []error })
	require.True(t, ok, "%v", err)
	var found []string
	for _, one := range joined.Unwrap() {
		var field *reservation.FieldError
		require.ErrorAs(t, one, &field)
		found = append(found, strings.TrimPrefix(field.Field, prefix))
	}
	require.Equal(t, fields, found)
}

func TestNewNamesEveryFaultOfItsSites(t *testing.T) {
	_, err := New(Options{})
	require.ErrorContains(t, err, "sites")
	_, err = New(Options{Sites: []Site{{Name: "a"}, {Name: "b", Address: "mn", CAFile: "/nowhere"}, {Name: "c", Tools: &xcatd.Tools{}}, {Name: "c", Tools: &xcatd.Tools{}}}})
	for _, field := range []string{"sites[0].address", "sites[1].ca_file", "sites[1].credential", "sites[3].name"} {
		require.ErrorContains(t, err, field)
	}
	m, err := New(Options{Sites: []Site{{Name: "c", Tools: &xcatd.Tools{}}}})
	require.NoError(t, err)
	_, err = m.Load(t.Context(), order(func(r *provisioners.Request) { r.Reservation.Computer.Site = "d" }), newReporter())
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err))
	require.ErrorContains(t, err, "computer.site")
}
