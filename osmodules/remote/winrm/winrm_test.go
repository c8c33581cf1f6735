package winrm_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/osmodules/remote/winrm"
	"berth/osmodules/remote/winrm/winrmtest"
)

var _ remote.Channel = (*winrm.Client)(nil)

const (
	user     = "Administrator"
	password = "Pa\u00dfwort \U0001F511 & <so on>"
	patience = time.Minute
)

// guest is a server and the credential that the worker has for it.
type guest struct {
	*winrmtest.Server
	certificate tls.Certificate
	credential  remote.Credential
}

func newGuest(t *testing.T, exec func(ctx context.Context, line string, stdin io.Reader, stdout, stderr io.Writer) int) *guest {
	t.Helper()
	certificate, err := winrmtest.NewCertificate("guest.example.test")
	require.NoError(t, err)
	server, err := winrmtest.Start(winrmtest.Options{
		Certificate: certificate,
		Users:       func(name string) (string, bool) { return password, strings.EqualFold(name, user) },
		Exec:        exec,
	})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	return &guest{Server: server, certificate: certificate, credential: remote.Credential{Password: password}}
}

func (g *guest) dialer(options winrm.Options) *winrm.Dialer {
	options.Credential = func(string) (remote.Credential, error) { return g.credential, nil }
	return winrm.NewDialer(options)
}

func (g *guest) target() winrm.Target {
	return winrm.Target{Address: g.Address(), User: user, Credential: "test"}
}

func (g *guest) dial(t *testing.T, options winrm.Options) *winrm.Client {
	t.Helper()
	client, err := g.dialer(options).Dial(t.Context(), g.target())
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}

// echo gives back its input on standard output, its line on standard error, and the exit code 3.
func echo(_ context.Context, line string, stdin io.Reader, stdout, stderr io.Writer) int {
	content, _ := io.ReadAll(stdin)
	stdout.Write(content)
	io.WriteString(stderr, line)
	return 3
}

// runs says when it has begun and runs until it is terminated.
type runs struct{ begun, ended chan string }

func newRuns() runs { return runs{make(chan string, 10), make(chan string, 10)} }

func (r runs) exec(ctx context.Context, line string, _ io.Reader, stdout, _ io.Writer) int {
	io.WriteString(stdout, "so far")
	r.begun <- line
	<-ctx.Done()
	r.ended <- line
	return 1
}

func await(t *testing.T, what <-chan string) {
	t.Helper()
	select {
	case <-what:
	case <-time.After(patience):
		require.FailNow(t, "it did not happen")
	}
}

func command(line string, stdin io.Reader) remote.Command {
	return remote.Command{Line: line, Stdin: stdin, Limit: patience}
}

func TestADialClimbsAllRungsAndShowsTheCertificateBeforeItAuthenticates(t *testing.T) {
	g := newGuest(t, echo)
	var events []string
	target := g.target()
	target.Reached = func(rung remote.Rung) { events = append(events, string(rung)) }
	target.Shown = func(pin winrm.Pin) { events = append(events, fmt.Sprintf("%s, %d logins", pin, g.Logins())) }
	client, err := g.dialer(winrm.Options{}).Dial(t.Context(), target)
	require.NoError(t, err)
	pin := winrm.PinOf(g.certificate.Certificate[0])
	require.Equal(t, []string{"tcp", "handshake", pin.String() + ", 0 logins", "authentication", "winrm shell"}, events)
	require.Equal(t, pin, client.Pin())
	require.Equal(t, winrm.AuthNTLM, client.Method())
	require.Equal(t, "127.0.0.1", client.LocalAddress())
	require.Equal(t, 1, g.Shells())
	require.NoError(t, client.Err())
	require.NoError(t, client.Close())
	require.NoError(t, client.Close())
	require.Zero(t, g.Shells(), "nothing is left on the guest")
	<-client.Done()
	require.Error(t, client.Err())
}

func TestCommandsReuseOneConnection(t *testing.T) {
	g := newGuest(t, echo)
	client := g.dial(t, winrm.Options{})
	for i := range 10 {
		input := fmt.Sprintf("input %d", i)
		result, err := client.Run(t.Context(), command(`dir "C:\Program Files" & echo <&> ]]>`, strings.NewReader(input)))
		require.NoError(t, err)
		require.Equal(t, remote.Result{Stdout: []byte(input), Stderr: []byte(`dir "C:\Program Files" & echo <&> ]]>`), Exit: 3}, result)
	}
	require.Equal(t, 1, g.Dials())
	require.Equal(t, 1, g.Logins())
	require.Equal(t, 1, g.Shells())
}

func TestCommandsSideBySide(t *testing.T) {
	const many = 5
	var together sync.WaitGroup
	together.Add(many)
	g := newGuest(t, func(_ context.Context, line string, _ io.Reader, stdout, _ io.Writer) int {
		together.Done()
		together.Wait() // none ends before all have begun
		io.WriteString(stdout, line)
		return 0
	})
	client := g.dial(t, winrm.Options{})
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			line := fmt.Sprintf("line %d", i)
			result, err := client.Run(t.Context(), command(line, nil))
			if err != nil || string(result.Stdout) != line {
				t.Errorf("%s: %q, %v", line, result.Stdout, err)
			}
		})
	}
	all.Wait()
	require.Equal(t, 1, g.Shells())
}

func TestLargeInputAndOutputOfAllBytes(t *testing.T) {
	g := newGuest(t, echo)
	client := g.dial(t, winrm.Options{OutputLimit: 4 << 20})
	for _, size := range []int{0, 1, 100_000, 109_055, 109_056, 109_057, 1 << 20} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(i * i >> 3)
		}
		result, err := client.Run(t.Context(), command("cat", bytes.NewReader(content)))
		require.NoError(t, err)
		require.True(t, bytes.Equal(content, result.Stdout), size)
	}
	result, err := client.Run(t.Context(), command("cat", nil))
	require.NoError(t, err, "a command without input sees its end")
	require.Empty(t, result.Stdout)
}

func TestOutputIsBounded(t *testing.T) {
	g := newGuest(t, func(_ context.Context, _ string, _ io.Reader, stdout, _ io.Writer) int {
		io.WriteString(stdout, "first")
		stdout.Write(bytes.Repeat([]byte("."), 1<<20))
		io.WriteString(stdout, "last")
		return 0
	})
	result, err := g.dial(t, winrm.Options{OutputLimit: 1000}).Run(t.Context(), command("much", nil))
	require.NoError(t, err)
	require.Less(t, len(result.Stdout), 1100)
	require.Contains(t, string(result.Stdout), "bytes left out")
	require.True(t, strings.HasPrefix(string(result.Stdout), "first") && strings.HasSuffix(string(result.Stdout), "last"))
}

func TestExitCodesAreKept(t *testing.T) {
	exit := 0
	g := newGuest(t, func(context.Context, string, io.Reader, io.Writer, io.Writer) int { return exit })
	client := g.dial(t, winrm.Options{})
	for given, want := range map[int]int{0: 0, 1: 1, 97: 97, 3010: 3010, -1: 4294967295, 0xC000013A: 0xC000013A} {
		exit = given
		result, err := client.Run(t.Context(), command("exit", nil))
		require.NoError(t, err)
		require.Equal(t, want, result.Exit)
	}
}

func TestAScriptAndAFileGoThroughPowerShell(t *testing.T) {
	var got powershell.Invocation
	g := newGuest(t, func(_ context.Context, line string, stdin io.Reader, stdout, stderr io.Writer) int {
		var err error
		if got, err = powershell.ReadInput(stdin); err != nil || line != powershell.Line() {
			return powershell.ExitCut
		}
		io.WriteString(stderr, "#< CLIXML\r\n<Objs><Obj S=\"progress\"/></Objs>")
		io.WriteString(stdout, "berth:{\"result\":\"done\",\"boot\":\"x\"}\r\n")
		return 0
	})
	client := g.dial(t, winrm.Options{})
	script := "param($Name)\n" + strings.Repeat("# a script of more than 100 KB\n", 4000)
	answer, err := powershell.Run(t.Context(), client, script, map[string]string{"Name": "\u00e9 'quoted' \"\n$x"}, nil, patience)
	require.NoError(t, err)
	require.Equal(t, "x", answer.Values["boot"])
	require.Empty(t, answer.Output)
	require.Equal(t, script, got.Script)
	require.Equal(t, "\u00e9 'quoted' \"\n$x", got.Values["Name"])

	content := bytes.Repeat([]byte{0, 1, 0xff, '\r', '\n', 0x1a}, 50_000)
	require.NoError(t, client.Copy(t.Context(), remote.File{Path: `C:\Berth\file.bin`, Content: content}))
	require.Equal(t, powershell.CopyScript(), got.Script)
	require.True(t, bytes.Equal(content, got.Data))
}

func TestACommandEndsWithoutHavingReadItsInput(t *testing.T) {
	g := newGuest(t, func(context.Context, string, io.Reader, io.Writer, io.Writer) int { return 5 })
	result, err := g.dial(t, winrm.Options{}).Run(t.Context(), command("ignore", bytes.NewReader(make([]byte, 1<<20))))
	require.NoError(t, err)
	require.Equal(t, 5, result.Exit)
}

func TestACommandThatOutlivesItsLimitIsTerminatedOnTheGuest(t *testing.T) {
	r := newRuns()
	g := newGuest(t, r.exec)
	client := g.dial(t, winrm.Options{})
	result, err := client.Run(t.Context(), remote.Command{Line: "sleep", Limit: 2 * time.Second})
	var limit *remote.LimitError
	require.ErrorAs(t, err, &limit)
	require.Equal(t, 2*time.Second, limit.Limit)
	require.Equal(t, "so far", string(result.Stdout))
	await(t, r.ended)
	require.NoError(t, client.Err(), "the connection goes on")
	g.Change(func(o *winrmtest.Options) { o.Exec = echo })
	result, err = client.Run(t.Context(), command("next", nil))
	require.NoError(t, err)
	require.Equal(t, "next", string(result.Stderr))
}

func TestACommandWithoutALimitIsRefused(t *testing.T) {
	g := newGuest(t, echo)
	_, err := g.dial(t, winrm.Options{}).Run(t.Context(), remote.Command{Line: "x"})
	require.ErrorContains(t, err, "no limit")
}

func TestACommandEndsWithItsContext(t *testing.T) {
	for name, close := range map[string]bool{"the signal": false, "Close right after": true} {
		t.Run(name, func(t *testing.T) {
			r := newRuns()
			g := newGuest(t, r.exec)
			client := g.dial(t, winrm.Options{})
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-r.begun; cancel() }()
			_, err := client.Run(ctx, command("sleep", nil))
			require.ErrorIs(t, err, context.Canceled)
			if close {
				client.Close()
			}
			await(t, r.ended)
			_, err = client.Run(ctx, command("sleep", nil))
			require.ErrorIs(t, err, context.Canceled)
		})
	}
}

func TestCloseEndsWhatRuns(t *testing.T) {
	r := newRuns()
	g := newGuest(t, r.exec)
	client := g.dial(t, winrm.Options{})
	failed := make(chan error, 1)
	go func() {
		_, err := client.Run(t.Context(), command("sleep", nil))
		failed <- err
	}()
	await(t, r.begun)
	client.Close()
	await(t, r.ended)
	var lost *remote.LostError
	require.ErrorAs(t, <-failed, &lost)
	_, err := client.Run(t.Context(), command("more", nil))
	require.ErrorAs(t, err, &lost)
}

func TestAChannelClosedInTheMiddleOfACommand(t *testing.T) {
	for name, break_ := range map[string]func(*guest){
		"the connection is cut":       func(g *guest) { g.Drop() },
		"the guest goes away":         func(g *guest) { g.Down() },
		"the service forgets its own": func(g *guest) { g.Forget(); g.Drop() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuns()
			g := newGuest(t, r.exec)
			client := g.dial(t, winrm.Options{})
			go func() { <-r.begun; break_(g) }()
			result, err := client.Run(t.Context(), command("sleep", nil))
			var lost *remote.LostError
			require.ErrorAs(t, err, &lost)
			require.Contains(t, lost.Command, "sleep")
			require.Equal(t, -1, result.Exit)
			select {
			case <-client.Done():
			case <-time.After(patience):
				require.FailNow(t, "the client lives on")
			}
			require.Error(t, client.Err())
		})
	}
}

func TestACutAtEachRequestIsALostConnection(t *testing.T) {
	for _, at := range []string{"Command", "Send", "Receive"} {
		t.Run(at, func(t *testing.T) {
			g := newGuest(t, echo)
			g.Change(func(o *winrmtest.Options) {
				o.Before = func(_ context.Context, action string) error {
					if action == at {
						return errors.New("cut")
					}
					return nil
				}
			})
			_, err := g.dial(t, winrm.Options{}).Run(t.Context(), command("x", nil))
			var lost *remote.LostError
			require.ErrorAs(t, err, &lost)
		})
	}
}

func TestAnIdleShellThatTheGuestHasTakenDownIsReplaced(t *testing.T) {
	g := newGuest(t, echo)
	client := g.dial(t, winrm.Options{})
	g.Forget()
	result, err := client.Run(t.Context(), command("x", nil))
	require.NoError(t, err)
	require.Equal(t, 3, result.Exit)
	require.Equal(t, 1, g.Shells())
}

func TestAShellThatEndsUnderACommandIsALostOne(t *testing.T) {
	r := newRuns()
	g := newGuest(t, r.exec)
	client := g.dial(t, winrm.Options{KeepaliveInterval: 100 * time.Millisecond, KeepaliveCount: 1000})
	go func() { <-r.begun; g.Forget() }()
	_, err := client.Run(t.Context(), command("sleep", nil))
	require.Error(t, err)
	await(t, r.ended)
}

func TestAQuietCommandOutlivesTheOperationTimeout(t *testing.T) {
	polls := make(chan string, 100)
	g := newGuest(t, func(_ context.Context, _ string, _ io.Reader, stdout, _ io.Writer) int {
		for range 3 {
			<-polls
		}
		io.WriteString(stdout, "late")
		return 0
	})
	g.Change(func(o *winrmtest.Options) {
		o.Before = func(_ context.Context, action string) error {
			if action == "Receive" {
				polls <- action
			}
			return nil
		}
	})
	client := g.dial(t, winrm.Options{KeepaliveInterval: 100 * time.Millisecond, KeepaliveCount: 1000})
	result, err := client.Run(t.Context(), command("quiet", nil))
	require.NoError(t, err)
	require.Equal(t, "late", string(result.Stdout))
}

func TestADeadGuestIsNoticed(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy %t", busy), func(t *testing.T) {
			r := newRuns()
			g := newGuest(t, r.exec)
			client := g.dial(t, winrm.Options{KeepaliveInterval: 100 * time.Millisecond, KeepaliveCount: 5})
			failed := make(chan error, 1)
			if busy {
				go func() {
					_, err := client.Run(t.Context(), command("sleep", nil))
					failed <- err
				}()
				await(t, r.begun)
			}
			g.Change(func(o *winrmtest.Options) {
				o.Before = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
			})
			select {
			case <-client.Done():
			case <-time.After(patience):
				require.FailNow(t, "nobody noticed")
			}
			if busy {
				var lost *remote.LostError
				require.ErrorAs(t, <-failed, &lost)
			}
			require.ErrorContains(t, client.Err(), "has not answered for")
		})
	}
}

func TestAnIdleConnectionIsKeptAlive(t *testing.T) {
	asked := make(chan string, 100)
	g := newGuest(t, echo)
	client := g.dial(t, winrm.Options{KeepaliveInterval: 20 * time.Millisecond, KeepaliveCount: 1000})
	g.Change(func(o *winrmtest.Options) {
		o.Before = func(_ context.Context, action string) error {
			select {
			case asked <- action:
			default:
			}
			return nil
		}
	})
	for range 3 {
		await(t, asked)
	}
	_, err := client.Run(t.Context(), command("x", nil))
	require.NoError(t, err)
	require.Equal(t, 1, g.Dials(), "a question under way is waited for")
}

func TestADialNamesTheRungWhereItFails(t *testing.T) {
	quick := winrm.Options{ConnectTimeout: time.Second, HandshakeTimeout: 200 * time.Millisecond, AuthTimeout: 500 * time.Millisecond, ShellTimeout: 500 * time.Millisecond}
	silent := func(at string) func(g *guest) {
		return func(g *guest) {
			g.Change(func(o *winrmtest.Options) {
				o.Before = func(ctx context.Context, action string) error {
					if action == at {
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				}
			})
		}
	}
	cut := func(at string) func(g *guest) {
		return func(g *guest) {
			g.Change(func(o *winrmtest.Options) {
				o.Before = func(_ context.Context, action string) error {
					if action == at {
						return io.EOF
					}
					return nil
				}
			})
		}
	}
	for name, c := range map[string]struct {
		break_ func(*guest)
		rung   remote.Rung
		auth   bool
	}{
		"nobody listens":                {func(g *guest) { g.Down() }, winrm.RungTCP, false},
		"the handshake never comes":     {func(g *guest) { g.Change(func(o *winrmtest.Options) { o.Mute = true }) }, winrm.RungHandshake, false},
		"a wrong password":              {func(g *guest) { g.credential.Password = "another" }, winrm.RungAuthentication, true},
		"a user who is not there yet":   {func(g *guest) { g.Change(func(o *winrmtest.Options) { o.Users = nil }) }, winrm.RungAuthentication, true},
		"the service does not answer":   {silent("Identify"), winrm.RungAuthentication, false},
		"it is cut while we log in":     {cut("Identify"), winrm.RungAuthentication, false},
		"the shell never comes":         {silent("Create"), winrm.RungShell, false},
		"it is cut while a shell opens": {cut("Create"), winrm.RungShell, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, echo)
			c.break_(g)
			_, err := g.dialer(quick).Dial(t.Context(), g.target())
			var at *remote.RungError
			require.ErrorAs(t, err, &at)
			require.Equal(t, c.rung, at.Rung)
			var refused *remote.AuthError
			require.Equal(t, c.auth, errors.As(err, &refused), "%v", err)
			require.NotContains(t, err.Error(), password)
			if c.auth {
				require.Contains(t, err.Error(), "wrong user name or password")
				require.Equal(t, 1, g.Refusals(), "one try locks no account out")
			}
		})
	}
}

func TestAUserWhoIsNoAdministratorIsRefused(t *testing.T) {
	g := newGuest(t, echo)
	g.Change(func(o *winrmtest.Options) { o.Admin = func(string) bool { return false } })
	_, err := g.dialer(winrm.Options{}).Dial(t.Context(), g.target())
	var at *remote.RungError
	require.ErrorAs(t, err, &at)
	require.Equal(t, winrm.RungShell, at.Rung)
	var refused *remote.AuthError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, user, refused.User)
	require.ErrorContains(t, err, "Access is denied")
}

func TestADialEndsWithItsContext(t *testing.T) {
	g := newGuest(t, echo)
	ctx, cancel := context.WithCancel(t.Context())
	g.Change(func(o *winrmtest.Options) {
		o.Before = func(ctx context.Context, _ string) error { cancel(); <-ctx.Done(); return ctx.Err() }
	})
	_, err := g.dialer(winrm.Options{}).Dial(ctx, g.target())
	require.ErrorIs(t, err, context.Canceled)
}

func TestACertificateThatChangesIsRefusedBeforeTheLogin(t *testing.T) {
	g := newGuest(t, echo)
	target := g.target()
	target.Shown = func(pin winrm.Pin) { target.Pin = pin }
	client, err := g.dialer(winrm.Options{}).Dial(t.Context(), target)
	require.NoError(t, err)
	first := client.Pin()
	require.Equal(t, first, target.Pin)
	client.Close()

	client, err = g.dialer(winrm.Options{}).Dial(t.Context(), target)
	require.NoError(t, err, "the same one is welcome")
	client.Close()

	other, err := winrmtest.NewCertificate("guest.example.test")
	require.NoError(t, err)
	g.Change(func(o *winrmtest.Options) { o.Certificate = other })
	logins := g.Logins()
	shown := false
	target.Shown = func(winrm.Pin) { shown = true }
	_, err = g.dialer(winrm.Options{}).Dial(t.Context(), target)
	var changed *winrm.CertificateError
	require.ErrorAs(t, err, &changed)
	require.Equal(t, first.String(), changed.Want)
	require.Equal(t, winrm.PinOf(other.Certificate[0]).String(), changed.Got)
	var at *remote.RungError
	require.ErrorAs(t, err, &at)
	require.Equal(t, winrm.RungHandshake, at.Rung)
	require.False(t, shown)
	require.Equal(t, logins, g.Logins())
}

func TestAFurtherConnectionMustShowTheSameCertificate(t *testing.T) {
	r := newRuns()
	g := newGuest(t, r.exec)
	client := g.dial(t, winrm.Options{})
	go client.Run(t.Context(), command("sleep", nil))
	await(t, r.begun)
	other, err := winrmtest.NewCertificate("guest.example.test")
	require.NoError(t, err)
	g.Change(func(o *winrmtest.Options) { o.Certificate = other })
	_, err = client.Run(t.Context(), command("beside", nil))
	var changed *winrm.CertificateError
	require.ErrorAs(t, err, &changed)
}

func TestAnAuthoritysCertificateMustBeValidForTheName(t *testing.T) {
	g := newGuest(t, echo)
	roots, err := winrm.ReadRoots(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.certificate.Certificate[0]}))
	require.NoError(t, err)
	stranger, err := winrmtest.NewCertificate("guest.example.test")
	require.NoError(t, err)
	others := x509.NewCertPool()
	others.AddCert(stranger.Leaf)
	for name, c := range map[string]struct {
		roots *x509.CertPool
		name  string
		pin   winrm.Pin
		ok    bool
	}{
		"right":                 {roots, "guest.example.test", winrm.Pin{}, true},
		"right, and the pin":    {roots, "guest.example.test", winrm.PinOf(g.certificate.Certificate[0]), true},
		"right, another pin":    {roots, "guest.example.test", winrm.PinOf(stranger.Certificate[0]), false},
		"another name":          {roots, "other.example.test", winrm.Pin{}, false},
		"the address as a name": {roots, "", winrm.Pin{}, false},
		"another authority":     {others, "guest.example.test", winrm.Pin{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			target := g.target()
			target.Roots, target.ServerName, target.Pin = c.roots, c.name, c.pin
			client, err := g.dialer(winrm.Options{}).Dial(t.Context(), target)
			if c.ok {
				require.NoError(t, err)
				client.Close()
				return
			}
			var untrusted *winrm.AuthorityError
			var changed *winrm.CertificateError
			require.True(t, errors.As(err, &untrusted) || errors.As(err, &changed), "%v", err)
			require.Equal(t, c.pin.Known(), errors.As(err, &changed))
		})
	}
}

func TestBasicGoesOverTLSOnlyAndOnlyWhenAskedFor(t *testing.T) {
	g := newGuest(t, echo)
	target := g.target()
	target.Auth = winrm.AuthBasic
	_, err := g.dialer(winrm.Options{}).Dial(t.Context(), target)
	var refused *remote.AuthError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, `takes no basic logins, only "Negotiate"`)

	g.Change(func(o *winrmtest.Options) { o.Basic = true })
	client, err := g.dialer(winrm.Options{}).Dial(t.Context(), target)
	require.NoError(t, err)
	require.Equal(t, winrm.AuthBasic, client.Method())
	result, err := client.Run(t.Context(), command("x", strings.NewReader("input")))
	require.NoError(t, err)
	require.Equal(t, "input", string(result.Stdout))
	client.Close()

	// A service without TLS gets nothing at all of ours to read.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	asked := make(chan string, 10)
	plain := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.Header.Get("Authorization") })}
	go plain.Serve(listener)
	defer plain.Close()
	target.Address = listener.Addr().String()
	_, err = g.dialer(winrm.Options{}).Dial(t.Context(), target)
	var at *remote.RungError
	require.ErrorAs(t, err, &at)
	require.Equal(t, winrm.RungHandshake, at.Rung)
	require.Empty(t, asked)
}

func TestUserNamesInTheirThreeForms(t *testing.T) {
	for _, name := range []string{"Administrator", "administrator", `.\Administrator`, `EXAMPLE\Administrator`} {
		g := newGuest(t, echo)
		target := g.target()
		target.User = name
		client, err := g.dialer(winrm.Options{}).Dial(t.Context(), target)
		require.NoError(t, err, name)
		client.Close()
	}
	g := newGuest(t, echo)
	g.Change(func(o *winrmtest.Options) {
		o.Users = func(name string) (string, bool) { return password, name == "admin@example.test" }
	})
	target := g.target()
	target.User = "admin@example.test"
	client, err := g.dialer(winrm.Options{}).Dial(t.Context(), target)
	require.NoError(t, err)
	client.Close()
}

func TestSomethingElseThatListensIsNamed(t *testing.T) {
	g := newGuest(t, echo)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{g.certificate}})
	require.NoError(t, err)
	other := &http.Server{Handler: http.NotFoundHandler()}
	go other.Serve(listener)
	defer other.Close()
	target := g.target()
	target.Address = listener.Addr().String()
	_, err = g.dialer(winrm.Options{}).Dial(t.Context(), target)
	var status *winrm.StatusError
	require.ErrorAs(t, err, &status)
	require.Equal(t, http.StatusNotFound, status.Status)
}

func TestACredentialMustBeAPassword(t *testing.T) {
	dialer := winrm.NewDialer(winrm.Options{})
	var missing *remote.CredentialError
	require.ErrorAs(t, dialer.CheckCredential("x"), &missing)
	dialer = winrm.NewDialer(winrm.Options{Credential: func(name string) (remote.Credential, error) {
		switch name {
		case "key":
			return remote.Credential{PrivateKey: []byte("k")}, nil
		case "good":
			return remote.Credential{Password: "p"}, nil
		}
		return remote.Credential{}, errors.New("there is none")
	}})
	require.ErrorAs(t, dialer.CheckCredential("key"), &missing)
	require.ErrorAs(t, dialer.CheckCredential("other"), &missing)
	require.NoError(t, dialer.CheckCredential("good"))
	g := newGuest(t, echo)
	target := g.target()
	target.Credential = "other"
	_, err := dialer.Dial(t.Context(), target)
	require.ErrorAs(t, err, &missing)
	target.Auth = "kerberos"
	_, err = dialer.Dial(t.Context(), target)
	require.ErrorContains(t, err, `"kerberos"`)
}

func TestPins(t *testing.T) {
	g := newGuest(t, echo)
	pin := winrm.PinOf(g.certificate.Certificate[0])
	digits := strings.TrimPrefix(pin.String(), "SHA256:")
	colons := strings.ToUpper(strings.Join(pairs(digits), ":"))
	for _, text := range []string{pin.String(), digits, strings.ToUpper(digits), colons, strings.Join(pairs(digits), " ")} {
		read, err := winrm.ParsePin(text)
		require.NoError(t, err)
		require.Equal(t, pin, read)
	}
	for _, text := range []string{"", "SHA256:", digits[:40], digits + "00", "x" + digits[1:]} {
		_, err := winrm.ParsePin(text)
		require.ErrorContains(t, err, "64 hex digits", text)
	}
	_, err := winrm.ReadRoots([]byte("nothing"))
	require.Error(t, err)
	encoded, err := json.Marshal(g.credential)
	require.NoError(t, err)
	require.NotContains(t, string(encoded), "Pa")
}

func pairs(digits string) []string {
	var all []string
	for ; digits != ""; digits = digits[2:] {
		all = append(all, digits[:2])
	}
	return all
}
