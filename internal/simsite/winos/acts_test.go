package winos_test

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/simsite/winos"
	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
)

// guest is a machine that is set up, and how it is asked.
type guest struct {
	*winos.Machine
	t      *testing.T
	cancel context.CancelFunc
}

func newGuest(t *testing.T, o winos.Options) *guest {
	t.Helper()
	o.Name, o.Image.Password, o.Port = "vm-01", "secret", 22001
	o.Setup = []winos.Stage{{State: winos.Complete}}
	o.Image.Sysprep = true
	o.Adapters = []winos.Adapter{{Name: "Ethernet0", Address: netip.MustParsePrefix("10.1.0.5/16"), DHCP: true},
		{Name: "Ethernet1", Address: netip.MustParsePrefix("198.18.0.5/15"), Gateway: netip.MustParseAddr("198.18.0.1"), DHCP: true}}
	g := &guest{t: t}
	o.Hooks.Reboot = func(takes time.Duration) {
		time.AfterFunc(takes, g.on)
	}
	g.Machine = winos.New(o)
	g.on()
	return g
}

func (g *guest) on() {
	ctx, cancel := context.WithCancel(context.Background())
	if g.cancel != nil {
		g.cancel()
	}
	g.cancel = cancel
	go g.Live(ctx)
}

// script runs an embedded script, as the module for Windows does.
func (g *guest) script(name string, values map[string]string, data string) (powershell.Answer, error) {
	g.t.Helper()
	input, err := powershell.Input(embedded(g.t)[name], values, []byte(data))
	if err != nil {
		g.t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	exit := g.Run(context.Background(), powershell.Line(), bytes.NewReader(input), &out, &errOut, nil)
	return powershell.ParseAnswer(remote.Result{Stdout: out.Bytes(), Stderr: errOut.Bytes(), Exit: exit})
}

func (g *guest) must(name string, values map[string]string, want string, fields ...string) powershell.Answer {
	g.t.Helper()
	answer, err := g.script(name, values, "data")
	if err != nil {
		g.t.Fatalf("%s: %v", name, err)
	}
	if answer.Result != want {
		g.t.Errorf("%s: %s (%s), want %s", name, answer.Result, answer.Detail, want)
	}
	for i := 0; i < len(fields); i += 2 {
		if got, ok := answer.Values[fields[i]]; !ok || got != fields[i+1] {
			g.t.Errorf("%s: %s is %q, want %q", name, fields[i], got, fields[i+1])
		}
	}
	return answer
}

func is[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

type values = map[string]string

func inGuest(t *testing.T, o winos.Options, test func(*guest)) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuest(t, o)
		synctest.Wait()
		test(g)
		g.cancel()
		synctest.Wait()
		if unknown := g.Unknown(); len(unknown) > 0 {
			t.Errorf("not known: %v", unknown)
		}
	})
}

// TestPostLoadLeavesItsMarks runs what configures a guest, twice where that must do no harm.
func TestPostLoadLeavesItsMarks(t *testing.T) {
	inGuest(t, winos.Options{Image: winos.Image{Version: winos.Server2022}}, func(g *guest) {
		t := g.t
		boot := g.must("echo", values{"Nonce": "n-1"}, "done", "nonce", "n-1", "admin", "true", "version", "10.0.20348").Values["boot"]
		g.must("setup", nil, "done", "boot", boot, "setupInProgress", "0", "oobeInProgress", "0", "imageState", winos.ImageComplete, "generalization", "7", "processes", "", "failure", "", "errors", "")

		g.must("service", values{"Names": "none,WinRM"}, "done", "service", "WinRM")
		is(t, "the service's start", g.Service("winrm").Start, "Automatic")
		g.must("service", values{"Names": "none"}, "reload")

		firewall := values{"Ports": "22001,5985", "Sources": "10.0.0.0/8"}
		g.must("firewall", firewall, "done", "closed", "1")
		g.must("firewall", firewall, "done", "closed", "0")
		g.must("rdp", values{"Port": "3390", "Sources": "192.0.2.0/24"}, "done", "closed", "0")
		g.must("rdp", values{"Port": "3389", "Sources": "192.0.2.0/24"}, "done", "closed", "2")
		open := map[string]string{}
		for _, r := range g.Rules() {
			if r.Enabled && r.Protocol != "ICMPv4" {
				open[r.Protocol+" "+r.LocalPort] = r.Remote
			}
		}
		is(t, "open ports", len(open), 3)
		is(t, "the control port", open["TCP 22001,5985"], "10.0.0.0/8")
		is(t, "Remote Desktop", open["TCP 3389"], "192.0.2.0/24")
		is(t, "Remote Desktop by UDP", open["UDP 3389"], "192.0.2.0/24")
		is(t, "fDenyTSConnections", g.Reg(`HKLM\SYSTEM\CurrentControlSet\Control\Terminal Server`, "fDenyTSConnections"), "0")

		g.must("address", values{"Wait": "10"}, "done", "publicAddress", "198.18.0.5")
		g.must("address", values{"Interface": "No such"}, "fail")
		static := values{"Interface": "ethernet1", "Address": "198.18.7.7", "Mask": "255.255.0.0", "Gateway": "198.18.0.9", "Dns": "198.18.0.2,198.18.0.3", "Control": "10.1.0.5"}
		g.must("static", static, "done", "publicAddress", "198.18.7.7")
		g.must("address", values{"Interface": "Ethernet1"}, "done", "publicAddress", "198.18.7.7")
		is(t, "the adapter", g.Adapters()[1].Address.String()+" "+g.Adapters()[1].Gateway.String(), "198.18.7.7/16 198.18.0.9")
		g.must("static", values{"Interface": "Ethernet0", "Address": "198.18.7.7", "Mask": "255.255.0.0", "Control": "10.1.0.5"}, "fail")
		g.must("static", values{"Interface": "No such", "Address": "198.18.7.7", "Mask": "255.255.0.0"}, "fail")

		removed := g.must("secrets", nil, "done").Values["removed"]
		for _, what := range []string{`C:\Windows\Panther\unattend.xml`, `C:\Windows\System32\Sysprep\unattend.xml`, "DefaultPassword", "UnattendFile"} {
			if !slices.Contains(strings.Split(removed, ","), what) {
				t.Errorf("removed: %s, without %s", removed, what)
			}
		}
		for _, path := range g.Files() {
			if text, _ := g.ReadFile(path); bytes.Contains(text, []byte("secret")) {
				t.Errorf("%s still holds the image's password", path)
			}
		}
		g.must("secrets", nil, "done", "removed", "")

		g.must("password", values{"Account": "-500", "Password": "fresh", "Keep": "administrator"}, "warned", "account", "Administrator")
		is(t, "a login with the kept password", g.Login("Administrator", "secret"), true)
		g.must("password", values{"Account": "-500", "Password": "fresh", "Keep": "berth"}, "done", "account", "Administrator")
		is(t, "a login with the old password", g.Login("Administrator", "secret"), false)
		is(t, "a login with the new one", g.Login("administrator", "fresh"), true)
		g.must("password", values{"Account": "root", "Password": "fresh"}, "skipped")

		g.must("pending", nil, "done", "pending", "false", "reasons", "")
		g.must("hostname", values{"Name": "NODE-7"}, "done", "reboot", "true")
		g.must("hostname", values{"Name": "node-7"}, "skipped", "reboot", "true")
		g.must("pending", nil, "done", "pending", "true", "reasons", "name")
		g.must("join", values{"Domain": "ad.example.org", "Ou": "OU=x", "User": "joiner", "Password": "p"}, "done", "reboot", "true", "code", "0")
		g.must("reboot", nil, "done", "boot", boot)
		time.Sleep(time.Minute)
		synctest.Wait()
		if again := g.must("echo", values{"Nonce": "n-2"}, "done").Values["boot"]; again == boot {
			t.Error("it did not reboot")
		}
		is(t, "the name", g.Hostname(), "NODE-7")
		is(t, "the domain", g.Domain(), "ad.example.org")
		g.must("pending", nil, "done", "pending", "false")
		g.must("hostname", values{"Name": "NODE-7"}, "skipped", "reboot", "false")
		g.must("join", values{"Domain": "AD.example.org"}, "skipped", "reboot", "false")

		g.must("activate", values{"Server": "kms.example.org", "Port": "1688"}, "done", "code", "0")
		is(t, "activation", g.State("activation"), "kms.example.org:1688")
		g.must("activate", values{"Server": "kms.example.org", "Port": "1688"}, "skipped")
		g.must("sleep", nil, "done")
		g.must("prompt", nil, "done")
		g.must("updates", values{"Folder": `C:\Updates`}, "skipped")
		g.must("site", values{"Name": "first.ps1"}, "done", "exit", "0")
		is(t, "the site's script", g.State("site first.ps1"), "data")
		path := g.must("tag", nil, "done").Values["path"]
		if text, err := g.ReadFile(path); err != nil || string(text) != "data" {
			t.Errorf("the tag at %s: %q, %v", path, text, err)
		}
	})
}

func TestOldWindowsDoAsOldOnesDo(t *testing.T) {
	inGuest(t, winos.Options{Image: winos.Image{Version: winos.XP}}, func(g *guest) {
		t := g.t
		g.must("echo", values{"Nonce": "n"}, "done", "version", "5.1.2600")
		g.must("setup", nil, "done", "setupInProgress", "0", "oobeInProgress", "", "imageState", "", "generalization", "")
		g.must("firewall", values{"Ports": "22001,5985", "Sources": "10.0.0.0/8"}, "done", "closed", "0")
		for _, r := range g.Rules() {
			if r.LocalPort == "22001" && r.Remote != "10.0.0.0/8" {
				t.Errorf("the control port is open by %+v", r)
			}
		}
		g.must("rdp", values{"Port": "3389", "Sources": "192.0.2.0/24"}, "done", "reboot", "false")
		g.must("rdp", values{"Port": "3390", "Sources": "192.0.2.0/24"}, "done", "reboot", "true")
		g.must("activate", values{"Server": "kms"}, "warned")
		g.must("prompt", nil, "skipped")
		if removed := g.must("secrets", nil, "done").Values["removed"]; !strings.Contains(removed, `sysprep.inf`) {
			t.Errorf("removed: %s", removed)
		}
		is(t, "the tag's path", g.must("tag", nil, "done").Values["path"], `C:\Documents and Settings\All Users\Berth\load.json`)
	})
}

// TestWhatWindowsRefuses: codes that Windows returns, as scripted.
func TestWhatWindowsRefuses(t *testing.T) {
	noKMS := uint32(0xC004F074)
	o := winos.Options{Image: winos.Image{Version: winos.Windows10}, Codes: map[string][]int{"join": {1355, 5, 0}, "activate": {int(int32(noKMS)), 0}, //nolint:gosec // an HRESULT
		"hostname": {87, 0}, "reboot": {5, 0}, "address": {1}, "updates": {3010, 5}, "site": {3}, "sleep": {1}}}
	inGuest(t, o, func(g *guest) {
		t := g.t
		g.must("join", values{"Domain": "ad.example.org"}, "reload", "code", "1355", "retry", "true")
		g.must("join", values{"Domain": "ad.example.org"}, "fail", "code", "5", "retry", "false")
		g.must("join", values{"Domain": "ad.example.org"}, "done")
		g.must("activate", values{"Key": "k"}, "warned", "code", "-1073418124")
		g.must("activate", values{"Key": "k"}, "done")
		g.must("hostname", values{"Name": "n"}, "reload", "reboot", "false")
		g.must("hostname", values{"Name": "n"}, "done", "reboot", "true")
		boot := g.BootTime()
		g.must("reboot", nil, "warned")
		time.Sleep(time.Minute)
		is(t, "the boot", g.BootTime(), boot)
		g.must("address", values{"Wait": "1"}, "reload", "publicAddress", "")
		for _, name := range []string{"a.cab", "b.cab"} {
			if _, err := g.script("copy", values{"Path": `C:\Windows\Temp\` + name}, "cab"); err != nil {
				t.Fatal(err)
			}
		}
		g.must("updates", values{"Folder": `C:\Windows\Temp`}, "warned", "installed", "a.cab", "failed", "b.cab (5)", "reboot", "true")
		g.must("pending", nil, "done", "pending", "true")
		g.must("site", values{"Name": "s"}, "warned", "exit", "3")
		g.must("sleep", nil, "warned")
	})
}

func TestTheClockIsSet(t *testing.T) {
	inGuest(t, winos.Options{Image: winos.Image{Version: winos.Server2019}, Offset: -100 * 24 * time.Hour}, func(g *guest) {
		t := g.t
		boot := g.must("echo", values{"Nonce": "n"}, "done").Values["boot"]
		now := values{"Now": strconv.FormatInt(time.Now().Unix(), 10), "Tolerance": "5"}
		g.must("time", now, "done", "off", "-8640000")
		if off := time.Until(g.Now()).Abs(); off > time.Second {
			t.Errorf("its clock is still off by %s", off)
		}
		g.must("time", now, "done", "off", "0")
		is(t, "the boot", g.must("echo", values{"Nonce": "n"}, "done").Values["boot"], boot)
		is(t, "W32Time", g.Service("W32Time").Running, true)
	})
}

// TestSetupSaysThatItGaveUp: what setup.ps1 reads on a set-up that ended in an error.
func TestSetupSaysThatItGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, winos.Windows7, true, winos.Stage{State: winos.Specialize, Takes: time.Second, Answers: true, Fails: "Windows could not finish configuring the system."})
		l.on()
		g := &guest{Machine: l.machine, t: t}
		g.must("setup", nil, "done", "processes", "setup,windeploy", "setupInProgress", "1", "oobeInProgress", "1", "failure", "")
		size := g.must("setup", nil, "done").Values["logSize"]
		time.Sleep(time.Minute)
		synctest.Wait()
		answer := g.must("setup", nil, "done", "imageState", winos.ImageUndeployable)
		if answer.Values["logSize"] == size || !strings.Contains(answer.Values["failure"], "could not finish configuring") || !strings.Contains(answer.Values["errors"], "could not finish") {
			t.Errorf("answer: %v", answer.Values)
		}
		l.off()
	})
}

// TestSetupSaysWhatStillRuns: a command that is waited for, an error that changes nothing, and a set-up that broke off.
func TestSetupSaysWhatStillRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, winos.Server2022, true, winos.Stage{State: winos.Specialize, Takes: time.Minute, Answers: true, Command: "cmd.exe", Error: "Winre not found"},
			winos.Stage{State: winos.OOBE, Takes: time.Minute, Answers: true, Fails: "no accounts", Leaves: true})
		l.on()
		g := &guest{Machine: l.machine, t: t}
		answer := g.must("setup", nil, "done", "processes", "setup,windeploy", "commands", "cmd.exe", "imageState", winos.ImageUndeployable, "failure", "")
		if !strings.Contains(answer.Values["errors"], "Winre not found") {
			t.Errorf("errors: %s", answer.Values["errors"])
		}
		time.Sleep(90 * time.Second)
		synctest.Wait()
		g.must("setup", nil, "done", "processes", "msoobe,oobeldr,windeploy", "commands", "", "imageState", winos.ImageSpecialized)
		time.Sleep(time.Minute)
		synctest.Wait()
		g.must("setup", nil, "done", "processes", "", "imageState", winos.ImageUndeployable, "setupInProgress", "0", "oobeInProgress", "0")
		l.off()
	})
}

// TestErrorsAreThoseOfPowerShell: a script that ends in an error, and one that nobody knows.
func TestErrorsAreThoseOfPowerShell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuest(t, winos.Options{Image: winos.Image{Version: winos.Windows11}})
		answer, err := g.script("copy", values{"Path": `C:\No such folder\file.txt`}, "x")
		if err == nil || answer.Exit != powershell.ExitError || !strings.Contains(err.Error(), "Could not find a part of the path") {
			t.Errorf("answer %+v, error %v", answer, err)
		}
		input, err := powershell.Input("Get-Date", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		if exit := g.Run(t.Context(), powershell.Line(), bytes.NewReader(input), &out, &errOut, nil); exit != 1 || out.Len() > 0 {
			t.Errorf("exit code %d, output %q", exit, out.String())
		}
		if unknown := g.Unknown(); len(unknown) != 1 || !strings.Contains(unknown[0], powershell.Digest("Get-Date")) {
			t.Errorf("unknown: %v", unknown)
		}
		g.cancel()
	})
}
