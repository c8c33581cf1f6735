package windows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/reservation"
)

type answer = map[string]any

// run is one script that a guest was given.
type run struct {
	name   string
	values map[string]string
	data   []byte
	line   string
}

// guest is a scripted Windows behind a scripted channel: it answers by the script's name, from what really was sent.
type guest struct {
	mu       sync.Mutex
	down     bool
	pin      string
	refused  bool
	password bool // the channel logs in with one
	boots    int
	version  string
	admin    bool
	hidden   bool
	setup    func(look int) answer                  // fields of setup.ps1's answer that are not those of a finished one
	act      func(r run) (fields answer, err error) // nil, nil: the usual answer
	before   func(name string)                      // called without the lock
	looks    int
	dials    int
	runs     []run
	sessions []*session
	missing  bool // the credential
}

func newGuest() *guest {
	return &guest{pin: "SHA256:one", boots: 1, version: "10.0.20348", admin: true}
}

func (g *guest) boot() string { return fmt.Sprintf("2026-01-01T00:00:%02d.000Z", g.boots) }

func (g *guest) change(do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	do()
}

// reboot cuts the connections and begins another boot. The lock is held.
func (g *guest) reboot() {
	g.boots++
	g.drop()
}

func (g *guest) drop() {
	for _, s := range g.sessions {
		s.lose()
	}
	g.sessions = nil
}

func (g *guest) ran(name string) []run {
	g.mu.Lock()
	defer g.mu.Unlock()
	var found []run
	for _, r := range g.runs {
		if r.name == name {
			found = append(found, r)
		}
	}
	return found
}

func (g *guest) CheckCredential(name string) error {
	if g.missing {
		return &remote.CredentialError{Name: name, Err: errors.New("there is none")}
	}
	return nil
}
func (g *guest) DefaultPort() int   { return 5986 }
func (g *guest) Services() []string { return []string{"WinRM"} }

func (g *guest) Dial(ctx context.Context, target Target) (Session, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dials++
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	target.Reached(remote.RungTCP)
	if g.down {
		return nil, &remote.RungError{Rung: remote.RungTCP, Err: errors.New("connection refused")}
	}
	target.Reached(remote.RungHandshake)
	if target.Pin != "" && target.Pin != g.pin {
		return nil, &remote.RungError{Rung: remote.RungHandshake, Err: &PinError{Want: target.Pin, Got: g.pin, Err: errors.New("the certificate is " + g.pin)}}
	}
	target.Shown(g.pin)
	target.Reached(remote.RungAuthentication)
	if g.refused {
		return nil, &remote.RungError{Rung: remote.RungAuthentication, Err: &remote.AuthError{User: target.Control.User, Err: errors.New("401")}}
	}
	s := &session{guest: g, pin: g.pin, password: g.password, done: make(chan struct{})}
	g.sessions = append(g.sessions, s)
	return s, nil
}

type session struct {
	guest    *guest
	pin      string
	password bool
	once     sync.Once
	done     chan struct{}
}

func (s *session) lose()                                   { s.once.Do(func() { close(s.done) }) }
func (s *session) Identity() string                        { return s.pin }
func (s *session) Fingerprint() string                     { return s.pin }
func (s *session) Password() bool                          { return s.password }
func (s *session) Done() <-chan struct{}                   { return s.done }
func (s *session) LocalAddress() string                    { return "192.0.2.99" }
func (s *session) Copy(context.Context, remote.File) error { return errors.New("nobody copies") }
func (s *session) Close() error                            { s.lose(); return nil }
func (s *session) lost() error {
	return &remote.LostError{Command: "powershell.exe", Err: errors.New("reset by peer")}
}

func (s *session) Run(ctx context.Context, command remote.Command) (remote.Result, error) {
	if command.Limit <= 0 {
		return remote.Result{}, errors.New("a command without a limit")
	}
	return s.exec(ctx, command.Line, command.Stdin)
}

// exec runs what was really sent.
func (s *session) exec(ctx context.Context, line string, stdin io.Reader) (remote.Result, error) {
	read, err := powershell.ReadInput(stdin)
	if err != nil {
		return remote.Result{}, err
	}
	r := run{name: "unknown", values: read.Values, data: read.Data, line: line}
	entries, _ := scripts.ReadDir("scripts")
	for _, entry := range entries {
		text, _ := scripts.ReadFile("scripts/" + entry.Name())
		if powershell.Digest(string(text)) == powershell.Digest(read.Script) {
			r.name = strings.TrimSuffix(entry.Name(), ".ps1")
		}
	}
	g := s.guest
	g.mu.Lock()
	before := g.before
	g.mu.Unlock()
	if before != nil {
		before(r.name)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-s.done:
		return remote.Result{}, s.lost()
	case <-ctx.Done():
		return remote.Result{}, ctx.Err()
	default:
	}
	g.runs = append(g.runs, r)
	fields := answer{"result": "done", "detail": r.name + " as told"}
	if g.act != nil {
		own, err := g.act(r)
		if err != nil {
			return remote.Result{}, err
		}
		for key, value := range own {
			fields[key] = value
		}
		if own != nil {
			return given(fields), nil
		}
	}
	switch r.name {
	case "echo":
		fields["nonce"], fields["boot"], fields["admin"], fields["version"], fields["hidden"] = r.values["Nonce"], g.boot(), g.admin, g.version, g.hidden
	case "setup":
		g.looks++
		for key, value := range complete() {
			fields[key] = value
		}
		if g.setup != nil {
			for key, value := range g.setup(g.looks) {
				fields[key] = value
			}
		}
		fields["boot"] = g.boot()
		select {
		case <-s.done: // it rebooted instead of answering
			return remote.Result{}, s.lost()
		default:
		}
	case "address", "static":
		fields["publicAddress"] = "198.51.100.7"
	case "hostname", "join":
		fields["reboot"] = true
	case "pending":
		fields["pending"], fields["reasons"] = false, ""
	case "site":
		fields["exit"], fields["output"] = "0", "hello"
	case "reboot":
		fields["boot"] = g.boot()
		result := given(fields)
		g.reboot()
		return result, nil
	}
	return given(fields), nil
}

func complete() answer {
	return answer{"setupInProgress": "0", "oobeInProgress": "0", "imageState": "IMAGE_STATE_COMPLETE", "generalization": "7", "processes": "", "commands": "",
		"logSize": "1000", "errors": "", "failure": ""}
}

func given(fields answer) remote.Result {
	text, _ := json.Marshal(fields)
	return remote.Result{Stdout: []byte("noise\r\nberth:" + string(text) + "\r\n")}
}

// module returns a module with a pace that suits a test.
func (g *guest) module(t testing.TB, change ...func(*Options)) *Module {
	t.Helper()
	options := Options{
		Dialers: map[string]Dialer{"winrm": g},
		Secret:  func(name string) (string, error) { return "secret-of-" + name, nil },
		Logger:  zerolog.Nop(),
	}
	for _, c := range change {
		c(&options)
	}
	m, err := New(options)
	require.NoError(t, err)
	const ms = time.Millisecond
	fast := climb.Span{From: 5 * ms, To: 10 * ms}
	m.pace = pace{early: fast, due: fast, setup: fast, refused: []time.Duration{10 * ms}, look: 100 * ms, quiet: 200 * ms, reconnect: time.Second,
		reboot: 20 * time.Second, probe: 10 * time.Second, joinPause: 5 * ms, addressWait: 1, reconnects: 3, joins: 3, reboots: 2}
	return m
}

func (g *guest) request() osmodules.Request {
	return osmodules.Request{
		Reservation: reservation.Reservation{
			Name: "r-1", User: "ann",
			Computer: reservation.Computer{Name: "vm-01", Address: "127.0.0.1"},
			Image: reservation.Image{Name: "win2022", Revision: 3, OS: reservation.OS{Family: reservation.Windows, Version: "2022"},
				Control: reservation.Control{Channel: "winrm", User: "berth", Credential: "win"}},
		},
		Mark:     reservation.Mark{Reservation: "r-1", Run: "run-1", Attempt: 1},
		Attempt:  reservation.Attempt{Number: 1, Of: 3},
		Limits:   limits(time.Minute, 30*time.Second, 30*time.Second),
		Began:    time.Now(),
		Deadline: time.Now().Add(5 * time.Minute),
	}
}

func limits(response, noProgress, again time.Duration) reservation.Limits {
	return reservation.Limits{Response: reservation.Duration(response), NoProgress: reservation.Duration(noProgress),
		ResponseAgain: reservation.Duration(again), Settle: reservation.Duration(20 * time.Millisecond)}
}
