//go:build e2e

package xcat

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"berth/internal/simsite/xcatmn"
	"berth/provisioners/xcat/xcatd"
)

// needs skips a test that lacks a program; where continuous integration runs, it fails.
func needs(t *testing.T, program, debian string) string {
	t.Helper()
	for _, path := range []string{program, "/usr/sbin/" + program} {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	if os.Getenv("CI") == "true" {
		require.FailNow(t, "there is no "+program, "install Debian's %s", debian)
	}
	t.Skipf("SKIP: there is no %s: install Debian's %s", program, debian)
	return ""
}

// keyFile writes a new private key and returns its path and its public half, as an authorized_keys line.
func keyFile(t *testing.T, folder, name string) (path, public string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	require.NoError(t, err)
	path = filepath.Join(folder, name)
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return path, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// sshd starts OpenSSH's sshd at a loopback address, for the user that runs the test, and returns how to reach it.
func sshd(t *testing.T) xcatd.Remote {
	t.Helper()
	program := needs(t, "sshd", "openssh-server")
	needs(t, "ssh", "openssh-client")
	who, err := user.Current()
	require.NoError(t, err)
	if who.Uid == "0" { // sshd wants it of root; the package leaves it to the service
		require.NoError(t, os.MkdirAll("/run/sshd", 0o755))
	}
	folder := t.TempDir()
	hostKey, hostPublic := keyFile(t, folder, "host_key")
	identity, public := keyFile(t, folder, "id")
	authorized := filepath.Join(folder, "authorized_keys")
	require.NoError(t, os.WriteFile(authorized, []byte(public+"\n"), 0o600))
	host := address(t)
	probe, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	port := probe.Addr().(*net.TCPAddr).Port
	require.NoError(t, probe.Close())
	config := filepath.Join(folder, "sshd_config")
	require.NoError(t, os.WriteFile(config, []byte(fmt.Sprintf(`ListenAddress %s:%d
HostKey %s
AuthorizedKeysFile %s
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
PidFile none
MaxStartups 100:30:200
`, host, port, hostKey, authorized)), 0o600))
	knownHosts := filepath.Join(folder, "known_hosts")
	require.NoError(t, os.WriteFile(knownHosts, []byte(fmt.Sprintf("[%s]:%d %s\n", host, port, hostPublic)), 0o600))
	var log bytes.Buffer
	process := exec.Command(program, "-D", "-e", "-f", config)
	process.Stderr = &log
	require.NoError(t, process.Start())
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", log.String())
		}
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, time.Minute, 20*time.Millisecond, "sshd does not listen")
	return xcatd.Remote{Destination: who.Username + "@" + host, Port: port, IdentityFile: identity, KnownHostsFile: knownHosts}
}

// A management node that is reached by SSH alone: each command goes through OpenSSH's own client and daemon, and the login
// shell of a user there.
func TestALoadByTheToolsOverSSH(t *testing.T) {
	remote := sshd(t)
	loadsByTools(t, func(_ *testing.T, tools *xcatd.Tools) *xcatd.Tools {
		return &xcatd.Tools{SSH: remote.Command(), Path: tools.Path}
	})
	t.Run("words that a shell would take apart", func(t *testing.T) {
		words := []string{"printf", `%s\0`, "two words", "", "it's", `"quoted"`, "$(touch pwned)", "`id`", "a;b|c&d", "*", "~root", `back\slash`, "line\nbreak", "-x", "é"}
		output, err := (&xcatd.Tools{SSH: remote.Command()}).Execute(t.Context(), words, nil)
		require.NoError(t, err)
		require.Equal(t, strings.Join(words[2:], "\x00")+"\x00", output.Stdout)
	})
	t.Run("a node's comment", func(t *testing.T) {
		l := newLab(t, xcatmn.Works, brisk())
		client := xcatd.NewClient(&xcatd.Tools{SSH: remote.Command(), Path: l.tools().Path}, 0)
		const comment = `rack 7; rm -rf / $(reboot) 'x' "y" & <z>`
		require.NoError(t, client.Change(t.Context(), "n01", "usercomment="+comment))
		status, err := client.Status(t.Context(), "n01")
		require.NoError(t, err)
		require.Equal(t, comment, status.Comment)
	})
	t.Run("another host key", func(t *testing.T) {
		other := remote
		other.KnownHostsFile = filepath.Join(t.TempDir(), "known_hosts")
		_, public := keyFile(t, t.TempDir(), "other")
		_, host, _ := strings.Cut(remote.Destination, "@")
		require.NoError(t, os.WriteFile(other.KnownHostsFile, []byte(fmt.Sprintf("[%s]:%d %s\n", host, remote.Port, public)), 0o600))
		_, err := xcatd.NewClient(&xcatd.Tools{SSH: other.Command()}, 0).State(t.Context(), "n01")
		require.Equal(t, xcatd.Connection, xcatd.KindOf(err), "%v", err)
		require.ErrorContains(t, err, "Host key verification failed")
	})
	t.Run("a command that is cancelled", func(t *testing.T) {
		l := newLab(t, xcatmn.Slow, brisk(), func(o *xcatmn.Options) { o.Speed = 3 }) // an answer takes ten seconds
		client := xcatd.NewClient(&xcatd.Tools{SSH: remote.Command(), Path: l.tools().Path}, 0)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for ; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
				if strings.Contains(strings.Join(l.mn.History(), "\n"), "nodeset n01") {
					cancel()
				}
			}
		}()
		_, err := client.Arm(ctx, "n01", osimage)
		require.ErrorIs(t, err, context.Canceled)
		// sshd leaves a command whose client is gone running. Its end was waited for, so that who undoes it finds it done.
		require.True(t, l.mn.State("n01").Armed(), "%q", l.mn.History())
	})
}

// listen has a node's system answer by SSH on port 22, with the shared host key or one of its own, and returns its keys.
func listen(t *testing.T, host string) (start func(xcatmn.Boot) func(), shows func() string) {
	var mu sync.Mutex
	var public string
	start = func(boot xcatmn.Boot) func() {
		private := boot.HostKey
		if private == nil {
			path, _ := keyFile(t, t.TempDir(), "host")
			private, _ = os.ReadFile(path)
		}
		signer, err := ssh.ParsePrivateKey(private)
		if err != nil {
			t.Error(err)
			return func() {}
		}
		mu.Lock()
		public = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
		mu.Unlock()
		listener, err := net.Listen("tcp", net.JoinHostPort(host, "22"))
		if err != nil {
			t.Error(err)
			return func() {}
		}
		config := &ssh.ServerConfig{NoClientAuth: true}
		config.AddHostKey(signer)
		var running sync.WaitGroup
		running.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				running.Go(func() {
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
					_, _, _, _ = ssh.NewServerConn(conn, config)
				})
			}
		})
		return func() { listener.Close(); running.Wait() }
	}
	return start, func() string {
		mu.Lock()
		defer mu.Unlock()
		return public
	}
}

// The management node's known_hosts is kept by OpenSSH's own tools, over its own sshd, for images with keys of their own; and by
// makeknownhosts for those with xCAT's shared ones, which tells a wrong key of any other.
func TestTheManagementNodesKnownHosts(t *testing.T) {
	remote := sshd(t)
	for name, c := range map[string]struct {
		mode  xcatmn.Mode
		keys  string
		fits  bool
		lines int // in the file that is scanned
	}{
		"own keys, scanned":             {xcatmn.OwnHostKeys, hostKeysOwn, true, 2},
		"shared keys, makeknownhosts":   {xcatmn.Works, hostKeysShared, true, 1},
		"own keys, and the wrong words": {xcatmn.OwnHostKeys, hostKeysShared, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			limits := brisk()
			var shows func() string
			l := newLab(t, c.mode, limits, func(o *xcatmn.Options) { o.Nodes[0].OS, shows = listen(t, o.Nodes[0].Address) })
			file := filepath.Join(t.TempDir(), "known_hosts")
			require.NoError(t, os.WriteFile(file, []byte("n01 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK9vjMwctN+5PxZ61oZkEDLk3BJpj7sgB0cFYeaZridI\n"+
				"n02 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK9vjMwctN+5PxZ61oZkEDLk3BJpj7sgB0cFYeaZridI\n"), 0o600))
			_, err := l.load(1, newReporter())
			require.NoError(t, err)
			l.by(&xcatd.Tools{SSH: remote.Command(), Path: l.tools().Path}, limits)
			l.module.nodes["mn"].knownHosts = file
			require.Eventually(t, func() bool { return shows() != "" }, time.Minute, 10*time.Millisecond)
			request := l.order(1)
			request.Reservation.Image.Sources[Type][sourceKnownHosts] = c.keys
			for range 2 { // it may be called again
				require.NoError(t, l.module.AfterResponse(t.Context(), request, newReporter()))
			}
			text := strings.Join(l.mn.KnownHosts(), "\n")
			if c.keys == hostKeysOwn {
				read, err := os.ReadFile(file)
				require.NoError(t, err)
				text = string(read)
				require.Contains(t, text, "n02 ssh-ed25519 ", "other nodes' lines are kept")
			}
			require.Equal(t, c.lines, len(strings.Split(strings.TrimSpace(text), "\n")), text)
			require.Equal(t, c.fits, strings.Contains(text, "n01,") && strings.Contains(text, shows()), "%s\nis to hold %s", text, shows())
		})
	}
}
