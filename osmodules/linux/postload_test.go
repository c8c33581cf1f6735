package linux

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	xssh "golang.org/x/crypto/ssh"

	"berth/osmodules"
	"berth/osmodules/climb/climbtest"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/ssh/sshtest"
	"berth/osmodules/sitescripts"
	"berth/reservation"
)

// debian is a guest that is up, in a sandbox with the tools of a Debian.
func debian(t *testing.T) *guest {
	t.Helper()
	g := newGuest(t)
	s := newSandbox(t)
	s.systemd()
	s.tool("nft", ":")
	s.tool("ip", `case "$*" in
"-4 route show default") echo "default via 10.0.0.1 dev eth0" ;;
"-4 -o addr show dev eth0 scope global") echo "2: eth0    inet 198.51.100.7/24 scope global eth0" ;;
esac`)
	s.tool("chpasswd", `IFS= read -r given; printf 'fed %s\n' "$given" >>$LOG`)
	s.tool("hostnamectl", ":")
	s.tool("date", `echo `+"$(cat $LOG.now 2>/dev/null || echo 0)")
	require.NoError(t, os.WriteFile(s.log+".now", []byte(jsonNumber(time.Now().Unix())), 0o644))
	s.write("root/.ssh/authorized_keys", string(xssh.MarshalAuthorizedKey(g.public))+"ssh-ed25519 AAAATHEIRS them\n")
	s.write("root/.ssh/id_rsa", "-----BEGIN RSA PRIVATE KEY-----\n")
	g.sandbox = s
	require.NoError(t, g.Up())
	return g
}

func jsonNumber(n int64) string {
	text, _ := json.Marshal(n)
	return string(text)
}

// postLoad waits for the guest and configures it.
func postLoad(t *testing.T, m *Module, request osmodules.Request, report reservation.Reporter) (osmodules.Report, error) {
	t.Helper()
	answer := up(t, <-m.begin(t.Context(), request, report))
	return m.PostLoad(t.Context(), request, answer, report)
}

func results(report osmodules.Report) map[string]reservation.StepResult {
	all := map[string]reservation.StepResult{}
	for _, step := range report.Steps {
		all[step.Name] = step.Result
	}
	return all
}

func detailOf(report osmodules.Report, name string) string {
	for _, step := range report.Steps {
		if step.Name == name {
			return step.Detail
		}
	}
	return ""
}

func TestAGuestIsConfiguredInVCLsOrder(t *testing.T) {
	g := debian(t)
	dir := t.TempDir()
	siteScripts(t, dir, map[string]string{
		"all/10-hello":  "#!/bin/sh\necho \"$BERTH_COMPUTER $BERTH_PUBLIC_ADDRESS\"\n",
		"lab/20-falter": "#!/bin/sh\necho sorry\nexit 3\n",
		"other/10-not":  "#!/bin/sh\nexit 1\n",
	})
	m := g.module(t, func(o *Options) { o.ScriptsDir = dir })
	request, report := g.request(), climbtest.NewRecorder()
	request.Reservation.Image.PostLoad = reservation.PostLoadOptions{Hostname: true, ManagementSources: []string{"127.0.0.0/8"}, Scripts: []string{"lab"}}
	got, err := postLoad(t, m, request, report)
	require.NoError(t, err)
	var names []string
	for _, step := range got.Steps {
		names = append(names, step.Name)
	}
	require.Equal(t, []string{"firewall", "public address", "sshd", "time", "root password", "leftover keys", "hostname",
		"script all/10-hello", "script lab/20-falter", "tag"}, names)
	require.Equal(t, map[string]reservation.StepResult{
		"firewall": "done", "public address": "done", "sshd": "done", "time": "done", "root password": "done", "leftover keys": "done",
		"hostname": "done", "script all/10-hello": "done", "script lab/20-falter": "warned", "tag": "done",
	}, results(got), "%+v", got)
	require.Equal(t, "198.51.100.7", got.PublicAddress)
	require.Equal(t, "vm-01 198.51.100.7", detailOf(got, "script all/10-hello"))
	require.Equal(t, "exit code 3: sorry", detailOf(got, "script lab/20-falter"))
	require.Equal(t, strings.TrimSpace(string(xssh.MarshalAuthorizedKey(g.public))), strings.TrimSpace(g.sandbox.read("root/.ssh/authorized_keys")))
	require.False(t, g.sandbox.has("root/.ssh/id_rsa"))

	var written map[string]any
	require.NoError(t, json.Unmarshal([]byte(g.sandbox.read("etc/berth/load.json")), &written))
	for key, want := range map[string]any{"image": "debian12", "revision": 3.0, "reservation": "r-1", "run": "run-1", "attempt": 1.0, "computer": "vm-01", "post_load": "done"} {
		require.Equal(t, want, written[key], key)
	}

	// The password is on the guest's side of chpasswd and nowhere else.
	_, after, _ := strings.Cut(g.sandbox.calls(), "fed root:")
	password, _, _ := strings.Cut(after, "\n")
	require.Len(t, password, 24)
	told, err := json.Marshal(got)
	require.NoError(t, err)
	require.NotContains(t, string(told)+report.All(), password)
	require.NotContains(t, strings.ReplaceAll(g.sandbox.calls(), "fed root:"+password, ""), password)
}

func TestASuccessorDoesNotRepeatWhatIsDoneAndStillReportsIt(t *testing.T) {
	g := debian(t)
	m, request, report := g.module(t), g.request(), climbtest.NewRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	g.before = func(name string) error {
		if name == "keys.sh" {
			cancel() // the worker is lost here
			return io.EOF
		}
		return nil
	}
	answer := up(t, <-m.begin(ctx, request, report))
	first, err := m.PostLoad(ctx, request, answer, report)
	require.ErrorIs(t, err, context.Canceled)
	require.Len(t, first.Steps, 5, "what was done is reported with the error")

	g.before = nil
	successor := g.module(t)
	got, err := postLoad(t, successor, request, report)
	require.NoError(t, err)
	require.Len(t, got.Steps, 8)
	require.Equal(t, "198.51.100.7", got.PublicAddress)
	require.Equal(t, first.Steps, got.Steps[:5])
	count := map[string]int{}
	for _, name := range g.scripts() {
		count[name]++
	}
	require.Equal(t, 1, count["firewall.sh"])
	require.Equal(t, 1, count["password.sh"])
	require.Equal(t, 2, count["keys.sh"])

	// After a reboot all is done again: rules and clocks end with a boot.
	g.reboot()
	_, err = postLoad(t, g.module(t), request, report)
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(strings.Join(g.scripts(), " "), "firewall.sh"))
}

func TestAConnectionLostWhileConfiguringIsMadeAgain(t *testing.T) {
	g := debian(t)
	cuts := 0
	g.before = func(name string) error {
		if name == "hostname.sh" || name == "keys.sh" {
			if cuts++; cuts == 1 || cuts == 3 {
				g.Drop()
				return io.EOF
			}
		}
		return nil
	}
	request := g.request()
	request.Reservation.Image.PostLoad.Hostname = true
	got, err := postLoad(t, g.module(t), request, climbtest.NewRecorder())
	require.NoError(t, err)
	require.Len(t, got.Steps, 8)
	require.Equal(t, reservation.StepDone, results(got)["hostname"])
	require.Equal(t, 3, g.Dials())
}

func TestAGuestThatIsGoneWhileItIsConfigured(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		happen  func(*guest)
		verdict reservation.Verdict
		text    string
	}{
		"dies":                     {func(g *guest) { g.Down() }, reservation.VerdictReload, "leftover keys: the guest died"},
		"reboots":                  {(*guest).reboot, reservation.VerdictReload, "the guest rebooted while it was configured"},
		"loses it again and again": {(*guest).Drop, reservation.VerdictReload, "lost for the 4th time"},
		"comes back as another": {func(g *guest) {
			other, _ := sshtest.NewKey()
			g.Change(func(s *sshtest.Script) { s.HostKeys = []xssh.Signer{other} })
			g.Drop()
		}, reservation.VerdictFail, "changed inside the attempt"},
	} {
		t.Run(name, func(t *testing.T) {
			g := debian(t)
			g.before = func(script string) error {
				if script == "keys.sh" {
					c.happen(g)
					return io.EOF
				}
				return nil
			}
			got, err := postLoad(t, g.module(t), g.request(), climbtest.NewRecorder())
			require.Equal(t, c.verdict, reservation.VerdictOf(err), "%v", err)
			require.ErrorContains(t, err, c.text)
			require.Equal(t, reservation.StepFailed, results(got)["leftover keys"])
			require.Equal(t, reservation.StepDone, results(got)["root password"])
		})
	}
}

func TestEssentialStepsDecideTheVerdict(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		break_  func(*guest)
		verdict reservation.Verdict
		text    string
	}{
		"a firewall that refuses":      {func(g *guest) { g.sandbox.tool("nft", `case $1 in -f) echo bad >&2; exit 1 ;; esac`) }, reservation.VerdictReload, "firewall: nft refused the rules: bad"},
		"no firewall tool":             {func(g *guest) { os.Remove(filepath.Join(g.sandbox.bin, "nft")) }, reservation.VerdictDone, ""},
		"an image without chpasswd":    {func(g *guest) { os.Remove(filepath.Join(g.sandbox.bin, "chpasswd")) }, reservation.VerdictFail, "root password: no chpasswd"},
		"a chpasswd that fails":        {func(g *guest) { g.sandbox.tool("chpasswd", "exit 1") }, reservation.VerdictReload, "root password"},
		"a clock that cannot be set":   {func(g *guest) { g.sandbox.tool("date", "echo 5") }, reservation.VerdictDone, ""},
		"a script of ours that breaks": {func(g *guest) { g.sandbox.tool("grep", "kill -9 $PPID") }, reservation.VerdictReload, "leftover keys: its script ended with exit code"},
	} {
		t.Run(name, func(t *testing.T) {
			g := debian(t)
			c.break_(g)
			_, err := postLoad(t, g.module(t), g.request(), climbtest.NewRecorder())
			require.Equal(t, c.verdict, reservation.VerdictOf(err), "%v", err)
			if c.text != "" {
				require.ErrorContains(t, err, c.text)
			}
		})
	}
}

func TestASiteScriptsHeaderSaysWhatItsFailureMeans(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text    string
		verdict reservation.Verdict
		result  reservation.StepResult
		detail  string
	}{
		"nothing said":  {"#!/bin/sh\nexit 1\n", reservation.VerdictDone, "warned", "exit code 1"},
		"reload":        {"#!/bin/sh\n# berth: on-failure=reload\nexit 1\n", reservation.VerdictReload, "failed", "exit code 1"},
		"fail":          {"#!/bin/sh\n# berth: on-failure=fail\nexit 1\n", reservation.VerdictFail, "failed", "exit code 1"},
		"a limit":       {"#!/bin/sh\n# berth: limit=200ms on-failure=reload\nsleep 60\n", reservation.VerdictReload, "failed", "limit of 200ms"},
		"it went right": {"#!/bin/sh\n# berth: on-failure=fail\necho fine\n", reservation.VerdictDone, "done", "fine"},
	} {
		t.Run(name, func(t *testing.T) {
			g := debian(t)
			dir := t.TempDir()
			siteScripts(t, dir, map[string]string{"all/10-x": c.text})
			got, err := postLoad(t, g.module(t, func(o *Options) { o.ScriptsDir = dir }), g.request(), climbtest.NewRecorder())
			require.Equal(t, c.verdict, reservation.VerdictOf(err), "%v", err)
			require.Equal(t, c.result, results(got)["script all/10-x"])
			require.Contains(t, detailOf(got, "script all/10-x"), c.detail)
		})
	}
}

func TestARootPasswordThatWeLogInWithIsKept(t *testing.T) {
	g := debian(t)
	g.credential = ssh.Credential{Password: "sesame"}
	g.Change(func(s *sshtest.Script) { s.Password = "sesame" })
	got, err := postLoad(t, g.module(t), g.request(), climbtest.NewRecorder())
	require.NoError(t, err)
	require.Equal(t, reservation.StepWarned, results(got)["root password"])
	require.NotContains(t, g.sandbox.calls(), "chpasswd")
}

func TestAWorkerThatWasOvertakenConfiguresNothing(t *testing.T) {
	g := debian(t)
	m, request, report := g.module(t), g.request(), climbtest.NewRecorder()
	answer := up(t, <-m.begin(t.Context(), request, report))
	report.Refuse(errors.New("superseded"))
	before := len(g.scripts())
	_, err := m.PostLoad(t.Context(), request, answer, report)
	require.EqualError(t, err, "superseded")
	require.Len(t, g.scripts(), before)
}

func siteScripts(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, "post-load", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
}

func TestTheFolderOfSiteScriptsIsCheckedAtTheStart(t *testing.T) {
	const sound = "#!/bin/sh\n"
	for name, c := range map[string]struct {
		files map[string]string
		fault string
	}{
		"sound":                  {map[string]string{"all/10-a": sound, "lab/20-b": sound + "# berth: limit=1m on-failure=reload\n", "lab/.swp": "x", "lab/20-b~": "x"}, ""},
		"a bad name":             {map[string]string{"all/first": sound}, "two digits"},
		"a bad set":              {map[string]string{"ALL/10-a": sound}, "site scripts' set"},
		"no #! line":             {map[string]string{"all/10-a": "echo\n"}, "#! line"},
		"carriage returns":       {map[string]string{"all/10-a": "#!/bin/sh\r\n"}, "carriage returns"},
		"a limit that is none":   {map[string]string{"all/10-a": sound + "# berth: limit=soon\n"}, `limit is "soon"`},
		"a failure that is none": {map[string]string{"all/10-a": sound + "# berth: on-failure=cry\n"}, `on-failure is "cry"`},
		"a word that is none":    {map[string]string{"all/10-a": sound + "# berth: essential\n"}, `"essential" is unknown`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			siteScripts(t, dir, c.files)
			_, err := New(Options{Dialer: ssh.NewDialer(ssh.Options{}), ScriptsDir: dir})
			if c.fault == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.fault)
		})
	}
	_, err := New(Options{ScriptsDir: "/no/such/folder"})
	require.ErrorContains(t, err, "Options.Dialer")
	require.ErrorContains(t, err, "/no/such/folder")
}

func TestAnInterfaceThatIsNoneFails(t *testing.T) {
	g := debian(t)
	request := g.request()
	request.Reservation.Image.PostLoad.PublicInterface = "--help"
	_, err := postLoad(t, g.module(t), request, climbtest.NewRecorder())
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err))
	require.ErrorContains(t, err, "image.post_load.public_interface")
}

func TestASetThatAnImageNamesMustBeThere(t *testing.T) {
	dir := t.TempDir()
	siteScripts(t, dir, map[string]string{"all/10-a": "#!/bin/sh\n", "lab/10-b": "#!/bin/sh\n", "lab/05-c": "#!/bin/sh\n"})
	found, err := sitescripts.Read(dir, []string{"lab", "all"}, sitescripts.Program)
	require.NoError(t, err)
	var names []string
	for _, script := range found {
		names = append(names, script.Name)
		require.Equal(t, 300*time.Second, script.Limit)
	}
	require.Equal(t, []string{"all/10-a", "lab/05-c", "lab/10-b"}, names)
	_, err = sitescripts.Read(dir, []string{"../lab"}, sitescripts.Program)
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err))
	_, err = sitescripts.Read(dir, []string{"lib"}, sitescripts.Program)
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err))
	require.ErrorContains(t, err, "image.post_load.scripts")
}
