package windows

import (
	"context"
	"encoding/pem"
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
	"berth/osmodules/remote"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/ssh/sshtest"
	"berth/osmodules/remote/winrm"
	"berth/osmodules/remote/winrm/winrmtest"
	"berth/reservation"
)

// host is the scripted guest behind a server that speaks the channel's real protocol.
type host struct {
	*guest
	address string
	dialer  Dialer
	channel string
	renew   func() // gives it a new key or certificate, and cuts all connections
	drop    func()
}

// answers runs a script on the guest, for a server.
func (g *guest) answers(ctx context.Context, line string, stdin io.Reader, stdout io.Writer) int {
	result, err := (&session{guest: g, done: make(chan struct{})}).exec(ctx, line, stdin)
	if err != nil {
		return 1
	}
	stdout.Write(result.Stdout)
	return result.Exit
}

func hosts(t *testing.T) map[string]func(t *testing.T) *host {
	return map[string]func(t *testing.T) *host{"ssh": overSSH, "winrm": func(t *testing.T) *host { return overWinRM(t, "localhost", t.TempDir()) }}
}

func overSSH(t *testing.T) *host {
	g := newGuest()
	key, err := sshtest.NewKey()
	require.NoError(t, err)
	server, err := sshtest.New(sshtest.Script{HostKeys: []xssh.Signer{key}, Password: "sesame", Exec: func(s sshtest.Session) int {
		return g.answers(s.Context, s.Line, s.Stdin, s.Stdout)
	}})
	require.NoError(t, err)
	require.NoError(t, server.Up())
	t.Cleanup(server.Close)
	login := func(string) (ssh.Credential, error) { return ssh.Credential{Password: "sesame"}, nil }
	return &host{guest: g, address: server.Address(), channel: "ssh", dialer: SSH(ssh.NewDialer(ssh.Options{Credential: login})), drop: server.Drop,
		renew: func() {
			other, err := sshtest.NewKey()
			if err != nil {
				panic(err)
			}
			server.Change(func(s *sshtest.Script) { s.HostKeys = []xssh.Signer{other} })
			server.Drop()
		}}
}

func overWinRM(t *testing.T, name, folder string) *host {
	g := newGuest()
	certificate, err := winrmtest.NewCertificate(name)
	require.NoError(t, err)
	server, err := winrmtest.Start(winrmtest.Options{Certificate: certificate,
		Users: func(user string) (string, bool) { return "sesame", strings.EqualFold(user, "berth") },
		Exec: func(ctx context.Context, line string, stdin io.Reader, stdout, _ io.Writer) int {
			return g.answers(ctx, line, stdin, stdout)
		}})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	require.NoError(t, os.WriteFile(filepath.Join(folder, "ca.pem"), text, 0o644))
	login := func(string) (remote.Credential, error) { return remote.Credential{Password: "sesame"}, nil }
	return &host{guest: g, address: server.Address(), channel: "winrm", dialer: WinRM(winrm.NewDialer(winrm.Options{Credential: login}), folder), drop: server.Drop,
		renew: func() {
			other, err := winrmtest.NewCertificate(name)
			if err != nil {
				panic(err)
			}
			server.Change(func(o *winrmtest.Options) { o.Certificate = other })
			server.Drop()
		}}
}

func (h *host) prepare(t *testing.T) (*Module, osmodules.Request) {
	m := h.module(t, func(o *Options) { o.Dialers = map[string]Dialer{h.channel: h.dialer} })
	request := h.request()
	request.Reservation.Computer.Address = h.address
	request.Reservation.Image.Control.Channel = h.channel
	return m, request
}

func TestBothChannelsCarryAWholeLoad(t *testing.T) {
	for name, open := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			h, report := open(t), climbtest.NewRecorder()
			m, request := h.prepare(t)
			answer, err := m.WaitForResponse(t.Context(), request, report)
			require.NoError(t, err)
			defer answer.Channel.Close()
			require.True(t, strings.HasPrefix(answer.HostKey, "SHA256:"))
			done, err := m.PostLoad(t.Context(), request, answer, report)
			require.NoError(t, err)
			require.Equal(t, reservation.StepDone, find(t, done, "tag").Result)
			require.Contains(t, h.ran("firewall")[0].values["Sources"], "127.0.0.1", "the address that we come from")
			require.Equal(t, "berth", h.ran("password")[0].values["Keep"], "we log in with a password")
			require.NotContains(t, report.All(), "sesame")
		})
	}
}

func TestBothChannelsTakeTheNewIdentityAfterSysprepOnce(t *testing.T) {
	for name, open := range hosts(t) {
		t.Run(name, func(t *testing.T) {
			for _, times := range []int{1, 2} {
				h, report := open(t), climbtest.NewRecorder()
				m, request := h.prepare(t)
				request.Reservation.Image.Sysprep = true
				changes := 0
				h.before = func(name string) {
					if name == "setup" && changes < times {
						changes++
						h.renew()
					}
				}
				answer, err := m.WaitForResponse(t.Context(), request, report)
				if times == 2 {
					climbtest.Verdict(t, reservation.VerdictFail, err, "for the second time")
					continue
				}
				require.NoError(t, err)
				require.Contains(t, report.Kept(keepPin), answer.HostKey)
				require.NotEmpty(t, report.Kept(keepRepinned))
				answer.Channel.Close()
			}
		})
	}
}

func TestAnAuthoritysCertificateIsHeldAgainstTheComputersName(t *testing.T) {
	folder := t.TempDir()
	h, report := overWinRM(t, "localhost", folder), climbtest.NewRecorder()
	m, request := h.prepare(t)
	_, port, ok := strings.Cut(h.address, ":")
	require.True(t, ok)
	request.Reservation.Computer.Address = "localhost:" + port
	request.Reservation.Image.Control.Certificate = "ca.pem"
	answer, err := m.WaitForResponse(t.Context(), request, report)
	require.NoError(t, err)
	answer.Channel.Close()

	h = overWinRM(t, "other.example", folder)
	m, request = h.prepare(t)
	request.Reservation.Image.Control.Certificate = "ca.pem"
	request.Limits = limits(time.Minute, time.Second, 0)
	_, err = m.WaitForResponse(t.Context(), request, climbtest.NewRecorder())
	climbtest.Verdict(t, reservation.VerdictReload, err, "it hung at handshake", "is not accepted")

	request.Reservation.Image.Control.Certificate = "missing.pem"
	_, err = m.WaitForResponse(t.Context(), request, climbtest.NewRecorder())
	climbtest.Verdict(t, reservation.VerdictFail, err, "missing.pem")
}

func TestAHostKeyThatWasHandedMustBeShown(t *testing.T) {
	h := overSSH(t)
	m, request := h.prepare(t)
	other, err := sshtest.NewKey()
	require.NoError(t, err)
	request.HostKey = string(xssh.MarshalAuthorizedKey(other.PublicKey()))
	request.Reservation.Image.Sysprep = true
	_, err = m.WaitForResponse(t.Context(), request, climbtest.NewRecorder())
	climbtest.Verdict(t, reservation.VerdictFail, err, "does not show the host key that was handed to it")
	request.HostKey = ""
	request.Reservation.Image.Control.HostKey = reservation.HostKeyHanded
	_, err = m.WaitForResponse(t.Context(), request, climbtest.NewRecorder())
	climbtest.Verdict(t, reservation.VerdictFail, err, "image.control.host_key")
}
