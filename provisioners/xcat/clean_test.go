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
		"somebody has armed it":        func(f *fake) { f.nodes["n01"].arm("alma9-x86_64-install-compute") },
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
		"armed by somebody":     {func(f *fake) { f.nodes["n01"].arm("alma9-x86_64-install-compute") }, reservation.VerdictFail, 0},
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

// The loads of the transcripts, with a second of theirs as a minute, end as they should.
func TestTheTranscriptsLoadsAreJudged(t *testing.T) {
	for file, want := range map[string]reservation.Verdict{
		"06-load-ok-rinstall.txt": reservation.VerdictDone,
		"07-load-hang.txt":        reservation.VerdictReload,
		"08-load-nopxe.txt":       reservation.VerdictReload,
		"09-load-postfail.txt":    reservation.VerdictReload,
		"10-load-nocallback.txt":  reservation.VerdictDone,
		"13-load-ownkeys.txt":     reservation.VerdictDone,
		"21-load-modern-3054.txt": reservation.VerdictDone,
	} {
		text, err := os.ReadFile(filepath.Join("xcatd", "testdata", file))
		require.NoError(t, err)
		var steps []step
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
			steps = append(steps, step{after, func(n *fakeNode) {
				n.services, n.line, n.state = services, "", state
				if strings.HasPrefix(services, "installing") {
					n.line = services
				}
				if status == "" {
					n.status = ""
				} else if status != n.status {
					n.set(status)
				}
			}})
		}
		require.NotEmpty(t, steps, file)
		f := newFake()
		_, err = try(t, f, func(f *fake) { f.nodes["n01"].install = steps })
		require.Equal(t, want, reservation.VerdictOf(err), "%s: %v", file, err)
		require.Equal(t, stateBoot, f.nodes["n01"].state, file)
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
