//go:build e2e

package linux_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	xssh "golang.org/x/crypto/ssh"

	"berth/osmodules"
	"berth/osmodules/linux"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/ssh/sshtest"
	"berth/reservation"
)

// e2eImage is a Debian 12 with a real sshd and real nftables. It is made once, by debootstrap, and then kept by Docker.
const e2eImage = "berth-e2e:debian12-2"

func command(t *testing.T, name string, arguments ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	c := exec.CommandContext(ctx, name, arguments...)
	c.Stderr = &stderr
	output, err := c.Output()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(arguments, " "), stderr.String())
	return strings.TrimSpace(string(output))
}

func ensureImage(t *testing.T) {
	t.Helper()
	if exec.Command("docker", "info").Run() != nil {
		t.Skip("no Docker daemon answers: start one (dockerd), or set DOCKER_HOST")
	}
	if command(t, "docker", "images", "-q", e2eImage) != "" {
		return
	}
	if _, err := exec.LookPath("debootstrap"); err != nil || os.Getuid() != 0 {
		t.Skip("the test's image must be made first, by root with debootstrap: apt-get install debootstrap")
	}
	mirror := os.Getenv("BERTH_E2E_MIRROR")
	if mirror == "" {
		mirror = "http://deb.debian.org/debian"
	}
	dir := t.TempDir()
	root, archive := filepath.Join(dir, "root"), filepath.Join(dir, "root.tar")
	command(t, "debootstrap", "--variant=minbase", "--include=openssh-server,nftables,iptables,iproute2,procps", "bookworm", root, mirror)
	command(t, "tar", "-C", root, "-cf", archive, ".")
	command(t, "docker", "import", archive, e2eImage)
}

// realGuest is a container with a real sshd.
type realGuest struct {
	id      string
	address string
	key     string // path of the private key that may log in
	hostKey string // authorized_keys line
}

func startGuest(t *testing.T) realGuest {
	t.Helper()
	ensureImage(t)
	dir := t.TempDir()
	g := realGuest{key: filepath.Join(dir, "id")}
	private, public, err := sshtest.NewPEM("")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(g.key, private, 0o600))
	hostPrivate, hostPublic, err := sshtest.NewPEM("")
	require.NoError(t, err)
	g.hostKey = strings.TrimSpace(string(xssh.MarshalAuthorizedKey(hostPublic)))
	line := strings.TrimSpace(string(xssh.MarshalAuthorizedKey(public)))

	// Docker mounts hosts and hostname from outside; a guest has files of its own there.
	const boot = `
umount /etc/hosts /etc/hostname
mkdir -p /run/sshd /root/.ssh
chmod 700 /root/.ssh
printf '%s\n' "$AUTHORIZED" "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIJGuOgLiD1jm5J8n8pR0rDyo0rKXlhHyVNZ1TWyKHBU leftover" >/root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
printf '%s\n' '-----BEGIN OPENSSH PRIVATE KEY-----' leftover >/root/.ssh/id_rsa
rm -f /etc/ssh/ssh_host_*
printf '%s' "$HOSTKEY" >/etc/ssh/ssh_host_ed25519_key
chmod 600 /etc/ssh/ssh_host_ed25519_key
echo root:template | chpasswd
exec /usr/sbin/sshd -D -e`
	g.id = command(t, "docker", "run", "-d", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined",
		"-p", "127.0.0.1:0:22", "-e", "AUTHORIZED="+line, "-e", "HOSTKEY="+string(hostPrivate), e2eImage, "/bin/sh", "-c", boot)
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := exec.Command("docker", "logs", g.id).CombinedOutput()
			t.Logf("the guest's log:\n%s", logs)
		}
		exec.Command("docker", "rm", "-f", g.id).Run()
	})
	g.address, _, _ = strings.Cut(command(t, "docker", "port", g.id, "22/tcp"), "\n")
	return g
}

// look runs a command on the guest by OpenSSH's own client, which knows nothing of what Berth did.
func (g realGuest) look(t *testing.T, line string) (string, error) {
	t.Helper()
	host, port, err := net.SplitHostPort(g.address)
	require.NoError(t, err)
	known := filepath.Join(t.TempDir(), "known")
	require.NoError(t, os.WriteFile(known, []byte("["+host+"]:"+port+" "+g.hostKey+"\n"), 0o600))
	output, err := exec.CommandContext(t.Context(), "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=yes",
		"-o", "UserKnownHostsFile="+known, "-i", g.key, "-p", port, "root@"+host, line).CombinedOutput()
	return string(output), err
}

type memory map[string]string

func (m memory) Stage(name, detail string)     {}
func (m memory) Keep(key, value string)        { m[key] = value }
func (m memory) Kept(key string) string        { return m[key] }
func (m memory) Confirm(context.Context) error { return nil }

func TestARealSSHDIsWaitedForAndConfigured(t *testing.T) {
	for tool, c := range map[string]struct{ prepare, rules, undo string }{
		"nftables": {"true", "nft list table inet berth", "nft delete table inet berth"},
		"iptables": {"mv /usr/sbin/nft /usr/sbin/nft.away", "iptables -S", "iptables -D INPUT -p tcp --dport 22 -j berth"},
	} {
		t.Run(tool, func(t *testing.T) { configure(t, tool, c.prepare, c.rules, c.undo) })
	}
}

func configure(t *testing.T, tool, prepare, show, undo string) {
	g := startGuest(t)
	command(t, "docker", "exec", g.id, "sh", "-c", prepare)
	scripts := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(scripts, "post-load", "all"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(scripts, "post-load", "all", "10-note"), []byte("#!/bin/sh\n# berth: on-failure=fail\necho \"$BERTH_RESERVATION\" >/root/note\n"), 0o644))
	dialer := ssh.NewDialer(ssh.Options{Credential: func(string) (ssh.Credential, error) {
		private, err := os.ReadFile(g.key)
		return ssh.Credential{PrivateKey: private}, err
	}})
	m, err := linux.New(linux.Options{Dialer: dialer, ScriptsDir: scripts, Logger: zerolog.New(zerolog.NewTestWriter(t))})
	require.NoError(t, err)
	request := osmodules.Request{
		Reservation: reservation.Reservation{Name: "r-e2e", User: "ann",
			Computer: reservation.Computer{Name: "vm-e2e", Address: g.address},
			Image: reservation.Image{Name: "debian12", Revision: 1, OS: reservation.OS{Family: reservation.Linux, Version: "12"},
				Control:  reservation.Control{Channel: "ssh", User: "root", Credential: "key", HostKey: reservation.HostKeyHanded},
				PostLoad: reservation.PostLoadOptions{Hostname: true}}},
		Mark:    reservation.Mark{Reservation: "r-e2e", Run: "run", Attempt: 1},
		Attempt: reservation.Attempt{Number: 1, Of: 3},
		Limits: reservation.Limits{Response: reservation.Duration(time.Minute), ResponseAgain: reservation.Duration(time.Minute),
			Settle: reservation.Duration(time.Second)},
		Began:   time.Now(),
		HostKey: g.hostKey,
	}
	kept := memory{}
	answer, err := m.WaitForResponse(t.Context(), request, kept)
	require.NoError(t, err)
	defer answer.Channel.Close()
	const secret = "grep ^root: /etc/shadow"
	template, err := g.look(t, secret)
	require.NoError(t, err, template)
	for range 2 { // a second time from the beginning: steps are idempotent on a real system, too
		report, err := m.PostLoad(t.Context(), request, answer, memory{"linux.boot": kept["linux.boot"]})
		require.NoError(t, err)
		for _, step := range report.Steps {
			t.Logf("%-20s %-8s %s", step.Name, step.Result, step.Detail)
			switch step.Name {
			case "firewall", "sshd": // there is no systemd in a container
				require.Contains(t, step.Detail, "without systemd")
			default:
				require.Equal(t, reservation.StepDone, step.Result, step.Name)
			}
		}
		address, err := g.look(t, "ip -4 -o addr show scope global")
		require.NoError(t, err, address)
		require.Contains(t, address, report.PublicAddress+"/")
	}

	text, err := g.look(t, "cat /etc/berth/load.json")
	require.NoError(t, err, text)
	var tag map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &tag))
	require.Equal(t, "r-e2e", tag["reservation"])
	require.Equal(t, "done", tag["post_load"])

	rules, err := g.look(t, show)
	require.NoError(t, err, rules)
	if tool == "nftables" {
		require.Contains(t, rules, "tcp dport 22 drop")
		require.Contains(t, rules, "ip saddr ")
	} else {
		require.Contains(t, rules, "-A berth -j DROP")
		require.Equal(t, 1, strings.Count(rules, "-A INPUT -p tcp -m tcp --dport 22 -j berth"), "the jump is there once")
	}

	shadow, err := g.look(t, "grep ^root: /etc/shadow; cat /root/.ssh/authorized_keys; ls /root/.ssh; hostname; cat /root/note")
	require.NoError(t, err, shadow)
	require.NotContains(t, shadow, "leftover")
	require.NotContains(t, shadow, "id_rsa")
	require.Contains(t, shadow, "\nvm-e2e\n")
	require.Contains(t, shadow, "\nr-e2e\n")
	now, err := g.look(t, secret)
	require.NoError(t, err, now)
	require.NotEqual(t, template, now, "root has another password")

	// Nobody else reaches the control port: another address of the same network is dropped.
	inside := command(t, "docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", g.id)
	probe := "timeout 3 bash -c 'exec 3<>/dev/tcp/" + inside + "/22' && echo open || echo closed"
	require.Equal(t, "closed", command(t, "docker", "run", "--rm", e2eImage, "/bin/bash", "-c", probe))
	command(t, "docker", "exec", g.id, "sh", "-c", undo)
	require.Equal(t, "open", command(t, "docker", "run", "--rm", e2eImage, "/bin/bash", "-c", probe), "it was the rules that closed it")
}

func TestARealSSHDWithAnotherKeyIsRefused(t *testing.T) {
	g := startGuest(t)
	_, other, err := sshtest.NewPEM("")
	require.NoError(t, err)
	pin, err := ssh.PinOf(string(xssh.MarshalAuthorizedKey(other)))
	require.NoError(t, err)
	dialer := ssh.NewDialer(ssh.Options{Credential: func(string) (ssh.Credential, error) { return ssh.Credential{Password: "template"}, nil }})
	require.Eventually(t, func() bool {
		_, err = dialer.Dial(t.Context(), ssh.Target{Address: g.address, User: "root", Credential: "x", Pin: pin})
		var mismatch *ssh.HostKeyError
		return errors.As(err, &mismatch) && strings.Contains(mismatch.Want, pin.Fingerprint)
	}, 20*time.Second, 100*time.Millisecond, "last: %v", err)
}
