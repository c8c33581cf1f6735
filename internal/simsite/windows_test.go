package simsite

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/masterzen/winrm"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"berth/internal/catalog"
	"berth/internal/simsite/winos"
	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/reservation"
)

// A set-up that answers before it is over, and lets nobody in while accounts are made.
const talkative = `[{state: specialize, takes: 300ms}, {state: reboot, takes: 100ms}, {state: oobe, answers: true, no_login: true, takes: 1500ms},
  {state: reboot, takes: 100ms}, {state: complete}]`

func windowsSite(t *testing.T, version, channel, behaviour string) *lab {
	t.Helper()
	return start(t, "templates: [{name: win, windows: \""+version+"\", sysprep: true, channel: "+channel+", snapshots: [r1]}]\ncomputers:\n  - name: vm-01\n    loads:\n      - "+behaviour, 0)
}

func (l *lab) windows() *winos.Machine {
	l.t.Helper()
	m, err := l.Windows("vm-01")
	require.NoError(l.t, err)
	return m
}

func (l *lab) completed() {
	l.t.Helper()
	l.until("the set-up is over", func() bool { g := l.guest("vm-01"); return g.Setup == winos.Complete && g.Answering })
}

func (l *lab) address() string { return l.Computers()[0].Address }

// sshAs logs in to the first computer with its administrator's password.
func (l *lab) sshAs(password string) (*ssh.Client, string, error) {
	shown := ""
	client, err := ssh.Dial("tcp", l.address(), &ssh.ClientConfig{User: windowsUser, Auth: []ssh.AuthMethod{ssh.Password(password)}, Timeout: 10 * time.Second,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error { shown = ssh.FingerprintSHA256(key); return nil }})
	if err == nil {
		l.t.Cleanup(func() { client.Close() })
	}
	return client, shown, err
}

// certificate returns what the first computer's port shows in TLS.
func (l *lab) certificate() ([]byte, error) {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // it is what is asked for
	conn, err := dialer.DialContext(l.t.Context(), "tcp", l.address())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw, nil
}

// winrmAs is the library's own client, with the certificate that the guest shows now.
func (l *lab) winrmAs(password string) *winrm.Client {
	l.t.Helper()
	raw, err := l.certificate()
	require.NoError(l.t, err)
	host, port, err := net.SplitHostPort(l.address())
	require.NoError(l.t, err)
	number, err := strconv.Atoi(port)
	require.NoError(l.t, err)
	endpoint := winrm.NewEndpoint(host, number, true, false, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), nil, nil, time.Minute)
	endpoint.TLSServerName = l.windows().Hostname()
	parameters := winrm.NewParameters("PT20S", "en-US", 153600)
	parameters.TransportDecorator = func() winrm.Transporter { return &winrm.ClientNTLM{} }
	client, err := winrm.NewClientWithParameters(endpoint, windowsUser, password, parameters)
	require.NoError(l.t, err)
	return client
}

// copied is the input that writes a file.
func copied(t *testing.T, path, content string) string {
	t.Helper()
	input, err := powershell.Input(powershell.CopyScript(), map[string]string{"Path": path}, []byte(content))
	require.NoError(t, err)
	return string(input)
}

func unknown(t *testing.T) string {
	t.Helper()
	input, err := powershell.Input("Write-BerthAnswer @{ result = 'done' }", nil, nil)
	require.NoError(t, err)
	return string(input)
}

func TestAWindowsGuestSpeaksSSH(t *testing.T) {
	l := windowsSite(t, "7", "ssh", "{setup: "+talkative+"}")
	l.load("vm-01", "")
	l.until("it answers in OOBE", func() bool { g := l.guest("vm-01"); return g.Setup == winos.OOBE && g.Answering })
	_, _, err := l.sshAs(l.WindowsPassword())
	require.Error(t, err, "nobody can log in before the accounts are made")
	l.completed()
	require.False(t, l.guest("vm-01").Completed.IsZero())
	require.Equal(t, 2, l.Counts("vm-01").Reboots)

	_, _, err = l.sshAs("guessed")
	require.Error(t, err)
	client, shown, err := l.sshAs(l.WindowsPassword())
	require.NoError(t, err)
	require.Equal(t, l.guest("vm-01").HostKey, shown)
	require.Contains(t, string(client.ServerVersion()), "OpenSSH_for_Windows")

	out, exit := run(t, client, powershell.Line(), copied(t, `C:\Windows\Temp\hello.txt`, "bytes"))
	require.Zero(t, exit)
	answer, err := powershell.ParseAnswer(remote.Result{Stdout: []byte(out)})
	require.NoError(t, err)
	require.Equal(t, powershell.ResultDone, answer.Result)
	text, err := l.ReadFile("vm-01", "/C:/Windows/Temp/hello.txt")
	require.NoError(t, err)
	require.Equal(t, "bytes", string(text))

	require.Zero(t, l.Counts("vm-01").Unknown)
	_, exit = run(t, client, "whoami", "")
	require.Equal(t, 1, exit)
	_, exit = run(t, client, powershell.Line(), unknown(t))
	require.Equal(t, 1, exit)
	require.Equal(t, 2, l.Counts("vm-01").Unknown, "commands and scripts that are not known are counted")
	_, exit = run(t, client, powershell.Line(), strings.TrimSuffix(copied(t, `C:\Windows\Temp\cut.txt`, "bytes"), "end\n"))
	require.Equal(t, powershell.ExitCut, exit)
	_, err = l.ReadFile("vm-01", "/C:/Windows/Temp/cut.txt")
	require.Error(t, err)
}

func TestAWindowsGuestSpeaksWinRM(t *testing.T) {
	l := windowsSite(t, "2022", "winrm", "{setup: "+talkative+"}")
	l.load("vm-01", "")
	l.until("it answers in OOBE", func() bool { g := l.guest("vm-01"); return g.Setup == winos.OOBE && g.Answering })
	_, _, _, err := l.winrmAs(l.WindowsPassword()).RunWithContextWithString(taskContext(t), powershell.Line(), copied(t, `C:\Windows\Temp\early.txt`, "bytes"))
	require.Error(t, err, "nobody can log in before the accounts are made")
	l.completed()
	_, _, _, err = l.winrmAs("guessed").RunWithContextWithString(taskContext(t), powershell.Line(), copied(t, `C:\Windows\Temp\early.txt`, "bytes"))
	require.Error(t, err)

	out, errOut, exit, err := l.winrmAs(l.WindowsPassword()).RunWithContextWithString(taskContext(t), powershell.Line(), copied(t, `C:\Windows\Temp\hello.txt`, strings.Repeat("bytes", 20_000)))
	require.NoError(t, err)
	require.Zero(t, exit, errOut)
	require.Contains(t, out, powershell.AnswerPrefix)
	text, err := l.ReadFile("vm-01", "/C:/Windows/Temp/hello.txt")
	require.NoError(t, err)
	require.Len(t, text, 100_000)

	_, errOut, exit, err = l.winrmAs(l.WindowsPassword()).RunWithContextWithString(taskContext(t), powershell.Line(), unknown(t))
	require.NoError(t, err)
	require.Equal(t, 1, exit)
	require.Contains(t, errOut, "does not know")
	require.Equal(t, 1, l.Counts("vm-01").Unknown)
	require.Positive(t, l.Counts("vm-01").Logins)
	require.Equal(t, l.Counts("vm-01").Commands, l.Counts("vm-01").Finished)
}

// TestTheChannelIsClosedInTheMiddleOfACommand: what the script did stays done, its answer is lost, and the next try works.
func TestTheChannelIsClosedInTheMiddleOfACommand(t *testing.T) {
	for _, channel := range []string{"ssh", "winrm"} {
		t.Run(channel, func(t *testing.T) {
			l := windowsSite(t, "2022", channel, "{setup: [{state: complete}], cuts_in: copy}")
			l.load("vm-01", "")
			l.completed()
			try := func() error {
				input := copied(t, `C:\Windows\Temp\hello.txt`, "bytes")
				if channel == "winrm" {
					_, _, _, err := l.winrmAs(l.WindowsPassword()).RunWithContextWithString(taskContext(t), powershell.Line(), input)
					return err
				}
				client, _, err := l.sshAs(l.WindowsPassword())
				require.NoError(t, err)
				session, err := client.NewSession()
				require.NoError(t, err)
				session.Stdin = bytes.NewReader([]byte(input))
				return session.Run(powershell.Line())
			}
			require.Error(t, try())
			text, err := l.ReadFile("vm-01", "/C:/Windows/Temp/hello.txt")
			require.NoError(t, err)
			require.Equal(t, "bytes", string(text))
			require.NoError(t, try())
		})
	}
}

func TestAWindowsGuestFollowsThePower(t *testing.T) {
	l := windowsSite(t, "2019", "ssh", "{setup: [{state: specialize, takes: 100ms, until_reset: true}, {state: complete}]}")
	vm := l.load("vm-01", "")
	l.until("it hangs in specialize", func() bool { return l.guest("vm-01").Setup == winos.Specialize })
	require.False(t, l.guest("vm-01").Answering)
	before := l.windows().BootTime()
	task, err := vm.Reset(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	l.completed()
	require.True(t, l.windows().BootTime().After(before))
	task, err = vm.PowerOff(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	require.False(t, l.guest("vm-01").Answering)
	_, _, err = l.sshAs(l.WindowsPassword())
	require.Error(t, err)
}

func TestTheIdentityChangesAsScripted(t *testing.T) {
	for _, channel := range []string{"ssh", "winrm"} {
		t.Run(channel, func(t *testing.T) {
			l := windowsSite(t, "2022", channel, "{setup: [{state: specialize, takes: 2s, answers: true}, {state: oobe, takes: 2s, answers: true, new_key: true}, {state: complete, new_key: true}]}")
			l.load("vm-01", "")
			look := func() (state, shown string) {
				if channel == "ssh" {
					_, shown, _ = l.sshAs("wrong")
				} else if raw, err := l.certificate(); err == nil {
					sum := sha256.Sum256(raw)
					shown = hex.EncodeToString(sum[:])
				}
				return l.guest("vm-01").Setup, shown
			}
			seen := map[string]string{}
			l.until("three identities are seen", func() bool {
				before := l.guest("vm-01").Setup
				if state, shown := look(); state == before && shown != "" {
					seen[state] = shown
				}
				return len(seen) == 3
			})
			require.NotEqual(t, seen[winos.Specialize], seen[winos.OOBE])
			require.NotEqual(t, seen[winos.OOBE], seen[winos.Complete])
		})
	}
}

func TestTheAddressChangesHalfWay(t *testing.T) {
	l := windowsSite(t, "2022", "ssh", "{}")
	// A port of the site's own: nobody else takes it.
	host, _, err := net.SplitHostPort(l.address())
	require.NoError(t, err)
	elsewhere := net.JoinHostPort(host, "23999")
	require.NoError(t, l.SetGuest("vm-01", Behaviours{Loads: []Behaviour{{Setup: []Stage{
		{State: winos.OOBE, Takes: Duration(3 * time.Second), Answers: true, Address: elsewhere}, {State: winos.Complete}}}}}))
	l.load("vm-01", "")
	l.until("it answers elsewhere", func() bool { text, err := greeting(elsewhere, 5*time.Second); return err == nil && text == "SSH-" })
	_, err = greeting(l.address(), time.Second)
	require.Error(t, err)
	l.completed()
	l.until("it answers where it should", func() bool { text, err := greeting(l.address(), 5*time.Second); return err == nil && text == "SSH-" })
	_, err = greeting(elsewhere, time.Second)
	require.Error(t, err)
}

func TestAWindowsScriptIsChecked(t *testing.T) {
	tests := map[string]struct{ script, want string }{
		"version":      {`templates: [{name: win, windows: "98", snapshots: [r1]}]`, `templates[0].windows is "98": use one of`},
		"both":         {`templates: [{name: win, windows: "7", distribution: rocky9, snapshots: [r1]}]`, `give a distribution or a Windows, not both`},
		"channel":      {`templates: [{name: win, windows: "7", channel: telnet, snapshots: [r1]}]`, `templates[0].channel is "telnet": write ssh or winrm`},
		"state":        {`defaults: {setup: [{state: sleeping}]}`, `defaults.setup[0].state is "sleeping": write one of`},
		"takes":        {`defaults: {setup: [{state: oobe, takes: -3s}]}`, `defaults.setup[0].takes is "-3s": give a duration up to 24h`},
		"address":      {`defaults: {setup: [{state: oobe, address: "10.0.0.1:22"}]}`, `defaults.setup[0].address is "10.0.0.1:22": give a loopback address`},
		"script":       {`defaults: {cuts_in: no-such-script}`, `defaults.cuts_in is "no-such-script": name one of the scripts`},
		"unknown word": {`defaults: {setup: [{state: oobe, lasts: 3s}]}`, "lasts"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseScript("test", []byte(test.script))
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestACatalogOfWindowsImagesIsOneThatBerthReads(t *testing.T) {
	l := start(t, `templates: [{name: windows2022-template, windows: "2022", sysprep: true, channel: winrm, snapshots: [r1]}, {name: windowsxp-template, windows: xp, snapshots: [r1]}]`, 1)
	c, err := catalog.Load(l.Catalog(), catalog.Options{})
	require.NoError(t, err)
	for name, want := range map[string]struct{ version, channel string }{"windows2022": {"2022", "winrm"}, "windowsxp": {"xp", "ssh"}} {
		image, err := c.Image(name)
		require.NoError(t, err)
		require.Equal(t, reservation.Windows, image.OS.Family)
		require.Equal(t, want.version, image.OS.Version)
		require.Equal(t, want.channel, image.Control.Channel)
		require.Equal(t, name == "windows2022", image.Sysprep)
	}
	password, err := os.ReadFile(c.Secrets["windows-admin"].File)
	require.NoError(t, err)
	require.Equal(t, l.WindowsPassword(), strings.TrimSpace(string(password)))
}
