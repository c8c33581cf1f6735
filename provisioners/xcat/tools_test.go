package xcat

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/simsite/xcatmn"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// TestMain has this program stand in for xCAT's command-line tools where it is called by one of their names.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); slices.Contains(leastPrivilege(), name) {
		os.Exit(tool(name, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// The files beside a stand-in that say where its xcatd is, and who it is there.
const (
	toolAddress     = "xcatd-address"
	toolCA          = "ca.pem"
	toolCertificate = "client-cred.pem"
)

// tool is one of xCAT's command-line tools: it asks the simulated xcatd, and writes what the real tools write (the
// transcripts 01 to 05). Like them it sends an abort when it is told to end.
func tool(name string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	found, err := exec.LookPath(os.Args[0])
	if err != nil {
		return fail(err)
	}
	file := func(name string) []byte {
		text, readErr := os.ReadFile(filepath.Join(filepath.Dir(found), name))
		if readErr != nil {
			err = readErr
		}
		return text
	}
	address, ca, pem := file(toolAddress), file(toolCA), file(toolCertificate)
	if err != nil {
		return fail(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(ca)
	native := &xcatd.Native{Address: string(address), CA: authorities, Certificate: func() (tls.Certificate, error) { return tls.X509KeyPair(pem, pem) }}
	command := xcatd.Command{Name: name, Args: args}
	if !slices.Contains([]string{"lsdef", "tabdump", "chdef"}, name) && len(args) > 0 {
		command.Range, command.Args = args[0], args[1:]
	}
	answer, err := native.Run(ctx, command)
	if err != nil {
		fmt.Printf("Unable to open socket connection to xcatd daemon on %s.\nVerify that the xcatd daemon is running and that your SSL setup is correct.\n", address)
		return 1
	}
	if !answer.Done {
		fmt.Fprintln(os.Stderr, "Error: communication with the xCAT server seems to have been ended prematurely")
		return 1
	}
	for _, line := range answer.Lines {
		text := line.Text
		switch {
		case line.Kind == xcatd.Data && line.Node == "":
			fmt.Println(text)
		case line.Kind == xcatd.Data:
			fmt.Println(line.Node + ": " + text)
		case line.Node != "":
			fmt.Fprintf(os.Stderr, "%s: [vm]: Error: %s\n", line.Node, text)
		case strings.HasPrefix(text, "Invalid nodes"), strings.HasPrefix(text, "Permission denied"):
			fmt.Fprintln(os.Stderr, "Error:", text)
		default:
			fmt.Fprintln(os.Stderr, "Error: [vm]:", text)
		}
	}
	return answer.Code
}

// tools puts the stand-ins into a folder, for the simulated management node of a lab.
func (l *lab) tools() *xcatd.Tools {
	l.t.Helper()
	folder := l.t.TempDir()
	program, err := os.Executable()
	require.NoError(l.t, err)
	for _, name := range leastPrivilege() {
		require.NoError(l.t, os.Symlink(program, filepath.Join(folder, name)))
	}
	certificate, err := l.mn.ClientCertificate("berth")
	require.NoError(l.t, err)
	for name, text := range map[string][]byte{toolAddress: []byte(l.mn.Address), toolCA: l.mn.CA, toolCertificate: certificate} {
		require.NoError(l.t, os.WriteFile(filepath.Join(folder, name), text, 0o600))
	}
	return &xcatd.Tools{Path: folder + ":/usr/sbin:/usr/bin:/sbin:/bin"}
}

// by has the lab's module reach the management node by tools alone.
func (l *lab) by(tools *xcatd.Tools, limits Limits) {
	l.t.Helper()
	var err error
	l.module, err = New(Options{Limits: limits, Sites: []Site{{Name: "mn", Tools: tools}}})
	require.NoError(l.t, err)
}

func TestTheStandInsForTheToolsSayWhatTheRealOnesSay(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("xcatd", "testdata", "02-rpower.txt"))
	require.NoError(t, err)
	l := newLab(t, xcatmn.Works, brisk(), func(o *xcatmn.Options) {
		o.Nodes = append(o.Nodes, xcatmn.Node{Name: "n02", Address: address(t)}, xcatmn.Node{Name: "n03", Address: address(t)},
			xcatmn.Node{Name: "n04", Address: address(t), Mode: xcatmn.BMCDead})
	})
	tools := l.tools()
	replayed := 0
	for _, section := range strings.Split("\n"+string(text), "\n$ ")[1:] {
		line, rest, _ := strings.Cut(section, "\n--- stdout\n")
		stdout, rest, _ := strings.Cut(rest, "--- stderr\n")
		stderr, rest, _ := strings.Cut(rest, "--- rc=")
		output, err := tools.Execute(t.Context(), strings.Fields(strings.ReplaceAll(line, `\`, "")), nil)
		require.NoError(t, err, line)
		require.Equal(t, xcatd.Output{Stdout: stdout, Stderr: stderr, Code: int(rest[0] - '0')}, output, line)
		replayed++
	}
	require.Equal(t, 17, replayed)
}

// loadsByTools are loads whose every command is a process of its own.
func loadsByTools(t *testing.T, reach func(*testing.T, *xcatd.Tools) *xcatd.Tools) {
	for mode, c := range map[xcatmn.Mode]struct {
		verdict reservation.Verdict // "" is done
		reason  string
		counts  xcatmn.Counts
		armed   string
	}{
		xcatmn.Works:          {counts: xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}},
		xcatmn.BMCDead:        {verdict: reservation.VerdictReload, reason: "does not answer"},
		xcatmn.PostFails:      {verdict: reservation.VerdictReload, reason: "a post-install script", counts: xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}},
		xcatmn.OtherAdminArms: {verdict: reservation.VerdictFail, reason: "somebody else", counts: xcatmn.Counts{Nodesets: 1}, armed: alma},
	} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			limits := brisk(func(l *Limits) { l.PollStart, l.PollInstall = 500*time.Millisecond, 500*time.Millisecond })
			l := newLab(t, mode, limits, func(o *xcatmn.Options) { o.Speed = 120 })
			l.by(reach(t, l.tools()), limits)
			require.NoError(t, l.module.Check(t.Context()))
			_, err := l.load(1, newReporter())
			story := strings.Join(l.mn.History(), "\n")
			require.Equal(t, cmp.Or(c.verdict, reservation.VerdictDone), reservation.VerdictOf(err), "%v\n%s", err, story)
			if c.verdict != "" {
				require.ErrorContains(t, err, c.reason)
			}
			require.Equal(t, c.counts, l.mn.Counts("n01"), story)
			require.NoError(t, l.module.Abort(context.Background(), l.order(1), newReporter()))
			require.Equal(t, c.armed != "", l.mn.State("n01").Armed())
		})
	}
}

func TestALoadByTheTools(t *testing.T) {
	t.Parallel()
	loadsByTools(t, func(_ *testing.T, tools *xcatd.Tools) *xcatd.Tools { return tools })
}
