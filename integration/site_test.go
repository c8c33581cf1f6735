package integration

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth/internal/catalog"
	"berth/internal/labtest"
	"berth/internal/process"
	"berth/internal/simsite"
	"berth/reservation"
)

// site is a simulated site: a process of its own, watched and changed through its control API.
type site struct {
	url     string // of the vCenter
	control string
	catalog string
	dir     string
}

// startSite starts a site. It works through a process and not in this one because vcsim has data races of its own, which
// the race detector would take for ours.
func (w *world) startSite(t *testing.T, script simsite.Script) *site {
	t.Helper()
	dir := t.TempDir()
	text, err := json.Marshal(map[string]any{"vcenter": script.VCenter, "computers": script.Computers, "xcat": script.Metal}) // JSON is YAML
	require.NoError(t, err)
	path := filepath.Join(dir, "script.yaml")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	w.starting <- struct{}{}
	defer func() { <-w.starting }()
	ready, log := filepath.Join(dir, "ready"), filepath.Join(dir, "log")
	out, err := os.Create(ready)
	require.NoError(t, err)
	defer out.Close()
	p, err := process.Start(process.Options{Path: w.simsite, Args: []string{"serve", "--dir", filepath.Join(dir, "site"), "--script", path}, Stdout: out, Log: log})
	require.NoError(t, err)
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("site: %s", p.Tail(30))
		}
	})
	var says struct{ URL, Control, Catalog, Dir string }
	labtest.Eventually(t, patience, func() (bool, string) {
		select {
		case <-p.Done():
			require.FailNow(t, "the site ended at its start", p.Tail(30))
		default:
		}
		line, err := os.ReadFile(ready)
		require.NoError(t, err)
		return bytes.HasSuffix(line, []byte("\n")) && json.Unmarshal(line, &says) == nil, "the site does not serve yet"
	})
	return &site{url: says.URL, control: says.Control, catalog: says.Catalog, dir: says.Dir}
}

// ask calls the control API and returns the answer and whether there is such a thing.
func (s *site) ask(t *testing.T, method, path string, body any) ([]byte, bool) {
	t.Helper()
	text, err := json.Marshal(body)
	require.NoError(t, err)
	call, err := http.NewRequestWithContext(t.Context(), method, s.control+path, bytes.NewReader(text))
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(call)
	require.NoError(t, err)
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	if response.StatusCode == http.StatusNotFound {
		return nil, false
	}
	require.Less(t, response.StatusCode, 300, "%s %s: %s", method, path, said)
	return said, true
}

func (s *site) status(t *testing.T) simsite.Status {
	t.Helper()
	said, _ := s.ask(t, http.MethodGet, "/status", nil)
	var status simsite.Status
	require.NoError(t, json.Unmarshal(said, &status))
	return status
}

// counts are what happened to a computer's VMs.
func (s *site) counts(t *testing.T, computer string) simsite.Counts {
	t.Helper()
	return s.status(t).Counts[computer]
}

// peek is counts for those who run beside a test: when the site cannot be asked, nothing has happened yet.
func (s *site) peek(computer string) simsite.Counts {
	response, err := http.Get(s.control + "/status")
	if err != nil {
		return simsite.Counts{}
	}
	defer response.Body.Close()
	var status simsite.Status
	_ = json.NewDecoder(response.Body).Decode(&status)
	return status.Counts[computer]
}

// ofVM leaves out what the guest was asked.
func ofVM(c simsite.Counts) simsite.Counts {
	c.Connections, c.Logins, c.Commands, c.Finished = 0, 0, 0, 0
	return c
}

// guest returns how a computer's guest stands; false when it has no VM.
func (s *site) guest(t *testing.T, computer string) (guest simsite.Guest, ok bool) {
	t.Helper()
	said, ok := s.ask(t, http.MethodGet, "/guests/"+computer, nil)
	if ok {
		require.NoError(t, json.Unmarshal(said, &guest))
	}
	return guest, ok
}

// mustGuest is guest of a computer that has a VM.
func (s *site) mustGuest(t *testing.T, computer string) simsite.Guest {
	t.Helper()
	guest, ok := s.guest(t, computer)
	require.True(t, ok, "%s has no VM", computer)
	return guest
}

// file returns a file of a guest's disk.
func (s *site) file(t *testing.T, computer, path string) string {
	t.Helper()
	text, ok := s.ask(t, http.MethodGet, "/guests/"+computer+"/files"+path, nil)
	require.True(t, ok, "%s has no %s", computer, path)
	return string(text)
}

func (s *site) addComputers(t *testing.T, computers []simsite.Computer) {
	t.Helper()
	s.ask(t, http.MethodPost, "/computers", computers)
}

func (s *site) addFault(t *testing.T, fault simsite.Fault) {
	t.Helper()
	s.ask(t, http.MethodPost, "/fault", fault)
}

// expireSessions ends every session at the vCenter, and returns how many there were.
func (s *site) expireSessions(t *testing.T) int {
	t.Helper()
	said, _ := s.ask(t, http.MethodPost, "/expire-sessions", nil)
	var ended struct{ Ended int }
	require.NoError(t, json.Unmarshal(said, &ended))
	return ended.Ended
}

// computer returns a computer as the site's own catalog has it.
func (s *site) computer(t *testing.T, name string) reservation.Computer {
	t.Helper()
	read, err := catalog.Load(s.catalog, catalog.Options{})
	require.NoError(t, err)
	found, err := read.Computer(name)
	require.NoError(t, err)
	return found
}

// secret reads a file of the site's folder without its line's end.
func (s *site) secret(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, path))
	require.NoError(t, err)
	return strings.TrimRight(string(text), "\n")
}

// Where a site keeps its secrets.
const (
	passwordFile = "secrets/vcenter-lab"
	loginKeyFile = "keys/linux-root"
)

// one is a single computer that behaves as each of its loads says; without loads, it works.
func one(name string, loads ...simsite.Behaviour) []simsite.Computer {
	return []simsite.Computer{{Name: name, Behaviours: simsite.Behaviours{Loads: loads}}}
}
