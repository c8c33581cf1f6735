package linux

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	xssh "golang.org/x/crypto/ssh"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/ssh/sshtest"
	"berth/reservation"
)

// guest is a scripted guest: a real SSH server, and what a Linux behind it would answer.
type guest struct {
	*sshtest.Server
	credential ssh.Credential
	key        xssh.Signer
	public     xssh.PublicKey // that may log in
	sandbox    *sandbox       // what PostLoad's scripts run in; nil: they answer that they are done

	mu     sync.Mutex
	boots  int
	uid    string
	setup  func(asked int) string // the answer of setup.sh; asked counts from 1 in each boot
	asked  int
	ran    []string // names of the scripts that were run, in order
	before func(script string) error
}

func newKey(t testing.TB) xssh.Signer {
	key, err := sshtest.NewKey()
	require.NoError(t, err)
	return key
}

func newGuest(t testing.TB) *guest {
	t.Helper()
	private, public, err := sshtest.NewPEM("")
	require.NoError(t, err)
	g := &guest{key: newKey(t), public: public, credential: ssh.Credential{PrivateKey: private}, boots: 1, uid: "0"}
	g.setup = func(int) string { return "berth: value cloud-init=done\nberth: value system=running\n" }
	g.Server, err = sshtest.New(sshtest.Script{HostKeys: []xssh.Signer{g.key}, Keys: []xssh.PublicKey{public}, Exec: g.exec})
	require.NoError(t, err)
	t.Cleanup(g.Close)
	return g
}

// boot returns the boot id.
func (g *guest) boot() string { return fmt.Sprintf("b%07d-0000-4000-8000-000000000000", g.boots) }

// reboot cuts the connections and begins another boot.
func (g *guest) reboot() {
	g.mu.Lock()
	g.boots++
	g.asked = 0
	g.mu.Unlock()
	g.Drop()
}

func (g *guest) scripts() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.ran...)
}

func (g *guest) exec(s sshtest.Session) int {
	if s.Line == "cat" {
		io.Copy(s.Stdout, s.Stdin)
		return 0
	}
	name := "unknown"
	entries, _ := scripts.ReadDir("scripts")
	for _, entry := range entries {
		if ours, _ := line(entry.Name()); ours == s.Line {
			name = entry.Name()
		}
	}
	if name == "unknown" {
		fmt.Fprintln(s.Stderr, "not a line of ours")
		return 127
	}
	g.mu.Lock()
	g.ran = append(g.ran, name)
	before, box := g.before, g.sandbox
	g.mu.Unlock()
	if before != nil {
		if err := before(name); err != nil {
			<-s.Context.Done()
			return 255
		}
	}
	g.mu.Lock()
	boot, uid := g.boot(), g.uid
	answer := ""
	if name == "setup.sh" {
		g.asked++
		answer = g.setup(g.asked)
	}
	g.mu.Unlock()
	switch {
	case name == "boot.sh":
		fmt.Fprintf(s.Stdout, "berth: value uid=%s\nberth: value boot=%s\nberth: done \n", uid, boot)
		return 0
	case name == "setup.sh":
		fmt.Fprintf(s.Stdout, "berth: value boot=%s\n%sberth: done \n", boot, answer)
		return 0
	case box != nil:
		return box.run(s.Context, s.Line, s.Stdin, s.Stdout, s.Stderr)
	default:
		io.Copy(io.Discard, s.Stdin)
		fmt.Fprint(s.Stdout, "berth: done as told\n")
		return 0
	}
}

// module returns a module with limits that suit a test.
func (g *guest) module(t testing.TB, change ...func(*Options)) *Module {
	t.Helper()
	options := Options{
		Dialer: ssh.NewDialer(ssh.Options{
			Credential:     func(string) (ssh.Credential, error) { return g.credential, nil },
			ConnectTimeout: 300 * time.Millisecond, BannerTimeout: 200 * time.Millisecond, HandshakeTimeout: 2 * time.Second,
		}),
		Logger: zerolog.Nop(),
	}
	for _, c := range change {
		c(&options)
	}
	m, err := New(options)
	require.NoError(t, err)
	ms := time.Millisecond
	m.pace = pace{early: climb.Span{From: 20 * ms, To: 30 * ms}, due: climb.Span{From: 10 * ms, To: 20 * ms}, late: climb.Span{From: 20 * ms, To: 30 * ms}, setup: climb.Span{From: 10 * ms, To: 30 * ms},
		refused: []time.Duration{20 * ms}, look: 200 * ms, reconnect: 600 * ms, nonce: 2 * time.Second, probe: 2 * time.Second, reconnects: 3}
	if g.sandbox != nil {
		m.root = g.sandbox.root
	}
	return m
}

func (g *guest) request() osmodules.Request {
	return osmodules.Request{
		Reservation: reservation.Reservation{
			Name: "r-1", User: "ann",
			Computer: reservation.Computer{Name: "vm-01", Address: g.Address()},
			Image: reservation.Image{Name: "debian12", Revision: 3, OS: reservation.OS{Family: reservation.Linux, Version: "12"},
				Control: reservation.Control{Channel: "ssh", User: "root", Credential: "linux-root"}},
		},
		Mark:    reservation.Mark{Reservation: "r-1", Run: "run-1", Attempt: 1},
		Attempt: reservation.Attempt{Number: 1, Of: 3},
		Limits: reservation.Limits{Response: reservation.Duration(5 * time.Second), ResponseAgain: reservation.Duration(2 * time.Second),
			Settle: reservation.Duration(50 * time.Millisecond)},
		Began:    time.Now(),
		Deadline: time.Now().Add(time.Minute),
	}
}

// until waits for something real to be the case.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(time.Minute) // a busy machine is slow
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never came: %s", what)
		}
	}
}

// waited is a WaitForResponse under way.
type waited struct {
	answer osmodules.Answer
	err    error
}

func (m *Module) begin(ctx context.Context, request osmodules.Request, report reservation.Reporter) <-chan waited {
	ended := make(chan waited, 1)
	go func() {
		answer, err := m.WaitForResponse(ctx, request, report)
		ended <- waited{answer, err}
	}()
	return ended
}

func up(t testing.TB, w waited) osmodules.Answer {
	t.Helper()
	require.NoError(t, w.err)
	t.Cleanup(func() { w.answer.Channel.Close() })
	return w.answer
}
