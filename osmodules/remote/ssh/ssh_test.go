package ssh_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	xssh "golang.org/x/crypto/ssh"

	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/ssh/sshtest"
)

const user = "root"

// guest is a server with a key of its own, and the credential that it accepts.
type guest struct {
	*sshtest.Server
	credential ssh.Credential
	key        xssh.Signer
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	key, err := sshtest.NewKey()
	require.NoError(t, err)
	private, public, err := sshtest.NewPEM("")
	require.NoError(t, err)
	server, err := sshtest.New(sshtest.Script{HostKeys: []xssh.Signer{key}, Keys: []xssh.PublicKey{public}, Exec: runShell})
	require.NoError(t, err)
	require.NoError(t, server.Up())
	t.Cleanup(server.Close)
	return &guest{Server: server, credential: ssh.Credential{PrivateKey: private}, key: key}
}

func (g *guest) dialer(options ssh.Options) *ssh.Dialer {
	options.Credential = func(string) (ssh.Credential, error) { return g.credential, nil }
	return ssh.NewDialer(options)
}

func (g *guest) target() ssh.Target {
	return ssh.Target{Address: g.Address(), User: user, Credential: "test"}
}

func (g *guest) dial(t *testing.T, options ssh.Options) *ssh.Client {
	t.Helper()
	client, err := g.dialer(options).Dial(t.Context(), g.target())
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

// runShell runs a command with this host's shell, as sshd does.
func runShell(s sshtest.Session) int {
	command := exec.CommandContext(s.Context, "/bin/sh", "-c", s.Line)
	command.Stdin, command.Stdout, command.Stderr = s.Stdin, s.Stdout, s.Stderr
	if err := command.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		return 255
	}
	return 0
}

func publicLine(key xssh.Signer) string {
	return string(xssh.MarshalAuthorizedKey(key.PublicKey()))
}

func TestADialClimbsAllRungsAndShowsTheKeyBeforeItAuthenticates(t *testing.T) {
	g := newGuest(t)
	var mu sync.Mutex
	var events []string
	target := g.target()
	target.Reached = func(rung ssh.Rung) { mu.Lock(); events = append(events, string(rung)); mu.Unlock() }
	target.Shown = func(pin ssh.Pin) { mu.Lock(); events = append(events, pin.String()); mu.Unlock() }
	client, err := g.dialer(ssh.Options{}).Dial(t.Context(), target)
	require.NoError(t, err)
	defer client.Close()
	fingerprint := xssh.FingerprintSHA256(g.key.PublicKey())
	require.Equal(t, []string{"tcp", "ssh banner", "handshake", "ssh-ed25519 " + fingerprint, "authentication"}, events)
	require.Equal(t, ssh.Pin{Type: "ssh-ed25519", Fingerprint: fingerprint}, client.Pin())
	require.Equal(t, ssh.MethodPublicKey, client.Method())
	require.Equal(t, "127.0.0.1", client.LocalAddress())
}

func TestADialNamesTheRungWhereItFails(t *testing.T) {
	quick := ssh.Options{ConnectTimeout: time.Second, BannerTimeout: 100 * time.Millisecond, HandshakeTimeout: 300 * time.Millisecond}
	for name, c := range map[string]struct {
		break_ func(*guest)
		rung   ssh.Rung
	}{
		"nobody listens":              {func(g *guest) { g.Down() }, ssh.RungTCP},
		"the banner never comes":      {func(g *guest) { g.Change(func(s *sshtest.Script) { s.Mute = true }) }, ssh.RungBanner},
		"the connection is dropped":   {func(g *guest) { g.Change(func(s *sshtest.Script) { s.Handshaking = func() error { return io.EOF } }) }, ssh.RungBanner},
		"our key is not accepted yet": {func(g *guest) { g.Change(func(s *sshtest.Script) { s.Keys = nil }) }, ssh.RungAuthentication},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			c.break_(g)
			_, err := g.dialer(quick).Dial(t.Context(), g.target())
			var at *ssh.RungError
			require.ErrorAs(t, err, &at)
			require.Equal(t, c.rung, at.Rung)
			var refused *ssh.AuthError
			require.Equal(t, c.rung == ssh.RungAuthentication, errors.As(err, &refused))
		})
	}
}

func TestAPinnedKeyIsHeldAgainstEveryKindOfHostKey(t *testing.T) {
	signer := func(key any, err error) xssh.Signer {
		require.NoError(t, err)
		s, err := xssh.NewSignerFromKey(key)
		require.NoError(t, err)
		return s
	}
	ed, err := sshtest.NewKey()
	require.NoError(t, err)
	kinds := map[string]xssh.Signer{
		"ssh-ed25519":         ed,
		"ecdsa-sha2-nistp256": signer(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"ecdsa-sha2-nistp384": signer(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"ssh-rsa":             signer(rsa.GenerateKey(rand.Reader, 2048)),
	}
	for kind, key := range kinds {
		t.Run(kind, func(t *testing.T) {
			g := newGuest(t)
			g.Change(func(s *sshtest.Script) {
				s.HostKeys = nil
				for _, each := range kinds { // a guest has one of each kind
					s.HostKeys = append(s.HostKeys, each)
				}
			})
			pin, err := ssh.PinOf(publicLine(key))
			require.NoError(t, err)
			require.Equal(t, kind, pin.Type)
			target := g.target()
			target.Pin = pin
			client, err := g.dialer(ssh.Options{}).Dial(t.Context(), target)
			require.NoError(t, err, "only the pinned kind is asked for, so the guest shows that one")
			require.Equal(t, pin, client.Pin())
			client.Close()

			other, err := sshtest.NewKey()
			require.NoError(t, err)
			g.Change(func(s *sshtest.Script) { s.HostKeys = []xssh.Signer{other} })
			_, err = g.dialer(ssh.Options{}).Dial(t.Context(), target)
			var mismatch *ssh.HostKeyError
			require.ErrorAs(t, err, &mismatch)
			require.Contains(t, mismatch.Want, xssh.FingerprintSHA256(key.PublicKey()))
			require.Contains(t, mismatch.Got, xssh.FingerprintSHA256(other.PublicKey()), "also when the guest has no key of the pinned kind")
		})
	}
}

func TestAFingerprintPinsWithoutTheKeysType(t *testing.T) {
	g := newGuest(t)
	target := g.target()
	target.Pin = ssh.Pin{Fingerprint: xssh.FingerprintSHA256(g.key.PublicKey())}
	client, err := g.dialer(ssh.Options{}).Dial(t.Context(), target)
	require.NoError(t, err)
	client.Close()
	other, err := sshtest.NewKey()
	require.NoError(t, err)
	g.Change(func(s *sshtest.Script) { s.HostKeys = []xssh.Signer{other} })
	shown := false
	target.Shown = func(ssh.Pin) { shown = true }
	_, err = g.dialer(ssh.Options{}).Dial(t.Context(), target)
	var mismatch *ssh.HostKeyError
	require.ErrorAs(t, err, &mismatch)
	require.Equal(t, target.Pin.Fingerprint, mismatch.Want)
	require.False(t, shown, "a key that is refused is not reported as the guest's")
}

func TestAPinMustBeOneKey(t *testing.T) {
	for _, line := range []string{"", "ssh-ed25519", "nonsense", "# only a comment"} {
		_, err := ssh.PinOf(line)
		require.Error(t, err, line)
	}
	key, err := sshtest.NewKey()
	require.NoError(t, err)
	_, err = ssh.PinOf(publicLine(key) + publicLine(key))
	require.ErrorContains(t, err, "one key")
}

func TestCredentials(t *testing.T) {
	t.Run("a password is used when there is no key", func(t *testing.T) {
		g := newGuest(t)
		g.Change(func(s *sshtest.Script) { s.Password = "sesame" })
		g.credential = ssh.Credential{Password: "sesame"}
		require.Equal(t, ssh.MethodPassword, g.dial(t, ssh.Options{}).Method())
	})
	t.Run("a key with a passphrase is opened", func(t *testing.T) {
		g := newGuest(t)
		private, public, err := sshtest.NewPEM("open up")
		require.NoError(t, err)
		g.Change(func(s *sshtest.Script) { s.Keys = []xssh.PublicKey{public} })
		g.credential = ssh.Credential{PrivateKey: private, Passphrase: "open up"}
		dialer := g.dialer(ssh.Options{})
		line, err := dialer.PublicKey("test")
		require.NoError(t, err)
		require.Equal(t, strings.TrimSpace(string(xssh.MarshalAuthorizedKey(public))), line)
		client, err := dialer.Dial(t.Context(), g.target())
		require.NoError(t, err)
		client.Close()

		g.credential.Passphrase = ""
		require.ErrorContains(t, g.dialer(ssh.Options{}).CheckCredential("test"), "none is given")
	})
	t.Run("one that cannot be had is a fault of ours", func(t *testing.T) {
		g := newGuest(t)
		for _, credential := range []func(string) (ssh.Credential, error){
			nil,
			func(string) (ssh.Credential, error) { return ssh.Credential{}, nil },
			func(string) (ssh.Credential, error) { return ssh.Credential{PrivateKey: []byte("no key")}, nil },
			func(string) (ssh.Credential, error) { return ssh.Credential{}, fs.ErrNotExist },
		} {
			_, err := ssh.NewDialer(ssh.Options{Credential: credential}).Dial(t.Context(), g.target())
			var ours *ssh.CredentialError
			require.ErrorAs(t, err, &ours)
		}
	})
	t.Run("it never prints its secrets", func(t *testing.T) {
		secret := ssh.Credential{PrivateKey: []byte("SECRETKEY"), Passphrase: "SECRETPHRASE", Password: "SECRETWORD"}
		text, err := json.Marshal(secret)
		require.NoError(t, err)
		for _, printed := range []string{fmt.Sprint(secret), fmt.Sprintf("%+v %#v %v %s %x", secret, secret, &secret, secret, secret), string(text)} {
			require.NotContains(t, printed, "SECRET")
			require.NotContains(t, printed, fmt.Sprintf("%x", "SECRET"))
		}
	})
}

func TestADialEndsWithItsContext(t *testing.T) {
	g := newGuest(t)
	g.Change(func(s *sshtest.Script) { s.Mute = true })
	ctx, cancel := context.WithCancel(t.Context())
	target := g.target()
	target.Reached = func(rung ssh.Rung) {
		if rung == ssh.RungBanner {
			cancel()
		}
	}
	_, err := g.dialer(ssh.Options{}).Dial(ctx, target)
	require.ErrorIs(t, err, context.Canceled)
}

func TestRunReturnsWhatACommandLeaves(t *testing.T) {
	client := newGuest(t).dial(t, ssh.Options{})
	for name, c := range map[string]struct {
		line, stdin string
		want        remote.Result
	}{
		"output":      {"echo out; echo err >&2", "", remote.Result{Stdout: []byte("out\n"), Stderr: []byte("err\n")}},
		"input":       {"cat", "from us", remote.Result{Stdout: []byte("from us")}},
		"exit code":   {"exit 7", "", remote.Result{Exit: 7}},
		"no input":    {"cat; echo end", "", remote.Result{Stdout: []byte("end\n")}},
		"input left":  {"true", strings.Repeat("x", 1<<20), remote.Result{}},
		"empty input": {"wc -c | tr -d ' '", "", remote.Result{Stdout: []byte("0\n")}},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := client.Run(t.Context(), remote.Command{Line: c.line, Stdin: strings.NewReader(c.stdin), Limit: 5 * time.Second})
			require.NoError(t, err)
			require.Equal(t, string(c.want.Stdout), string(result.Stdout))
			require.Equal(t, string(c.want.Stderr), string(result.Stderr))
			require.Equal(t, c.want.Exit, result.Exit)
		})
	}
}

func TestRunRefusesACommandWithoutALimit(t *testing.T) {
	_, err := newGuest(t).dial(t, ssh.Options{}).Run(t.Context(), remote.Command{Line: "true"})
	require.ErrorContains(t, err, "no limit")
}

func TestRunKeepsBothEndsOfALongOutput(t *testing.T) {
	client := newGuest(t).dial(t, ssh.Options{OutputLimit: 1000})
	result, err := client.Run(t.Context(), remote.Command{Line: "echo first; head -c 300000 /dev/zero | tr '\\0' x; echo; echo last", Limit: 5 * time.Second})
	require.NoError(t, err)
	text := string(result.Stdout)
	require.True(t, strings.HasPrefix(text, "first\n"))
	require.True(t, strings.HasSuffix(text, "\nlast\n"))
	require.Regexp(t, `\[\.\.\. 29\d{4} bytes left out \.\.\.\]`, text)
	require.Less(t, len(text), 1100)
}

func TestALimitKillsTheCommandAndKeepsTheConnection(t *testing.T) {
	g := newGuest(t)
	signals := make(chan string, 1)
	ended := make(chan struct{})
	g.Change(func(s *sshtest.Script) {
		s.Exec = func(s sshtest.Session) int {
			if s.Line != "hang" {
				return runShell(s)
			}
			io.WriteString(s.Stdout, "begun")
			signals <- <-s.Signals
			<-s.Context.Done()
			close(ended)
			return 0
		}
	})
	client := g.dial(t, ssh.Options{})
	result, err := client.Run(t.Context(), remote.Command{Line: "hang", Limit: 200 * time.Millisecond})
	var limit *remote.LimitError
	require.ErrorAs(t, err, &limit)
	require.Equal(t, 200*time.Millisecond, limit.Limit)
	require.Equal(t, "begun", string(result.Stdout))
	require.Equal(t, "KILL", <-signals)
	<-ended
	result, err = client.Run(t.Context(), remote.Command{Line: "echo still here", Limit: 5 * time.Second})
	require.NoError(t, err)
	require.Equal(t, "still here\n", string(result.Stdout))
}

func TestRunEndsWithItsContext(t *testing.T) {
	g := newGuest(t)
	ctx, cancel := context.WithCancel(t.Context())
	g.Change(func(s *sshtest.Script) {
		s.Exec = func(s sshtest.Session) int { cancel(); <-s.Context.Done(); return 0 }
	})
	_, err := g.dial(t, ssh.Options{}).Run(ctx, remote.Command{Line: "hang", Limit: time.Minute})
	require.ErrorIs(t, err, context.Canceled)
}

func TestALostConnectionIsAnErrorOfItsOwn(t *testing.T) {
	g := newGuest(t)
	g.Change(func(s *sshtest.Script) {
		s.Exec = func(s sshtest.Session) int { g.Drop(); <-s.Context.Done(); return 0 }
	})
	client := g.dial(t, ssh.Options{})
	_, err := client.Run(t.Context(), remote.Command{Line: "hang", Limit: time.Minute})
	var lost *ssh.LostError
	require.ErrorAs(t, err, &lost)
	<-client.Done()
	require.Error(t, client.Err())
	_, err = client.Run(t.Context(), remote.Command{Line: "true", Limit: time.Minute})
	require.ErrorAs(t, err, &lost, "and so is a command after it")
}

func TestADeadPeerIsNoticedByItsSilence(t *testing.T) {
	g := newGuest(t)
	g.Change(func(s *sshtest.Script) {
		s.Deaf = true
		s.Exec = func(s sshtest.Session) int { <-s.Context.Done(); return 0 }
	})
	client := g.dial(t, ssh.Options{KeepaliveInterval: 50 * time.Millisecond, KeepaliveCount: 3})
	_, err := client.Run(t.Context(), remote.Command{Line: "hang", Limit: time.Minute})
	var lost *ssh.LostError
	require.ErrorAs(t, err, &lost)
	require.ErrorContains(t, err, "has not answered for 150ms")
}

func TestALivingPeerIsKept(t *testing.T) {
	g := newGuest(t)
	client := g.dial(t, ssh.Options{KeepaliveInterval: 10 * time.Millisecond, KeepaliveCount: 3})
	result, err := client.Run(t.Context(), remote.Command{Line: "sleep 0.3; echo here", Limit: time.Minute})
	require.NoError(t, err)
	require.Equal(t, "here\n", string(result.Stdout))
}

func TestCloseMayBeCalledAgainAndLeavesNothingRunning(t *testing.T) {
	g := newGuest(t)
	before := runtime.NumGoroutine()
	for range 5 {
		client, err := g.dialer(ssh.Options{}).Dial(t.Context(), g.target())
		require.NoError(t, err)
		_, err = client.Run(t.Context(), remote.Command{Line: "true", Limit: time.Minute})
		require.NoError(t, err)
		require.NoError(t, client.Close())
		require.NoError(t, client.Close())
		<-client.Done()
		require.ErrorContains(t, client.Err(), "we closed it")
	}
	// Eventually runs its condition in a goroutine of its own.
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, 5*time.Second, 10*time.Millisecond)
}

func TestCopyWritesAFileInOnePiece(t *testing.T) {
	g := newGuest(t)
	client := g.dial(t, ssh.Options{})
	dir := t.TempDir()
	path := filepath.Join(dir, "it's a $(touch pwned) file")
	for _, content := range [][]byte{[]byte("old\n"), nil, bytes.Repeat([]byte{0, 1, '\n', 0xff}, 1<<18)} {
		require.NoError(t, client.Copy(t.Context(), remote.File{Path: path, Mode: 0o640, Content: content}))
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, len(content), len(got))
		require.True(t, bytes.Equal(content, got))
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o640), info.Mode())
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file is left, and nothing of the path was run")
}

func TestACopyThatIsCutOffLeavesTheOldFile(t *testing.T) {
	g := newGuest(t)
	client := g.dial(t, ssh.Options{})
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
	g.Change(func(s *sshtest.Script) {
		s.Exec = func(s sshtest.Session) int {
			s.Stdin = io.LimitReader(s.Stdin, 100) // the rest never comes
			return runShell(s)
		}
	})
	err := client.Copy(t.Context(), remote.File{Path: path, Mode: 0o600, Content: bytes.Repeat([]byte("new"), 1000)})
	require.ErrorContains(t, err, "of 3000")
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "old", string(got))
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

func TestCopyRefusesWhatItCannotWriteSafely(t *testing.T) {
	client := newGuest(t).dial(t, ssh.Options{})
	for _, file := range []remote.File{
		{Path: "relative", Mode: 0o600},
		{Path: "/tmp/a\nb", Mode: 0o600},
		{Path: "/tmp/../etc/x", Mode: 0o600},
		{Path: "/tmp/x", Mode: fs.ModeSetuid | 0o755},
	} {
		require.Error(t, client.Copy(t.Context(), file), file.Path)
	}
	require.ErrorContains(t, client.Copy(t.Context(), remote.File{Path: "/no/such/folder/file", Mode: 0o600}), "exit code")
}

func TestACopyToAWindowsGuestGoesThroughPowerShell(t *testing.T) {
	g := newGuest(t)
	var line string
	var got powershell.Invocation
	g.Change(func(s *sshtest.Script) {
		s.Exec = func(session sshtest.Session) int {
			var err error
			line = session.Line
			// It reads no further than to the closing line, and no end of file is needed.
			if got, err = powershell.ReadInput(session.Stdin); err != nil {
				return powershell.ExitCut
			}
			io.WriteString(session.Stdout, "noise\r\nberth:{\"result\":\"done\"}\r\n")
			return 0
		}
	})
	target := g.target()
	target.Windows = true
	client, err := g.dialer(ssh.Options{}).Dial(t.Context(), target)
	require.NoError(t, err)
	defer client.Close()
	content := bytes.Repeat([]byte("\x00\xff\r\n some bytes"), 300_000) // 4 MB
	require.NoError(t, client.Copy(t.Context(), remote.File{Path: `C:\Berth\file.bin`, Mode: 0o600, Content: content}))
	require.Equal(t, powershell.Line(), line)
	require.Equal(t, powershell.CopyScript(), got.Script)
	require.Equal(t, map[string]string{"Path": `C:\Berth\file.bin`}, got.Values)
	require.True(t, bytes.Equal(content, got.Data))
	require.ErrorContains(t, client.Copy(t.Context(), remote.File{Path: "/etc/motd", Content: content}), "/etc/motd")
}
