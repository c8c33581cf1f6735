package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"berth/internal/labtest"
	"berth/internal/loadlog"
	"berth/internal/simsite"
	"berth/provisioners/vmware"
	"berth/reservation"
)

// What a first try may cost up to ready, in events and bytes of history.
const (
	mostEvents = 30
	mostBytes  = 10 << 10
)

// A whole life of a reservation by the production command line and worker. Everything that any of them wrote, sent to
// Temporal or left there is searched for every secret that there was.
func testSecrets(t *testing.T, w *world) {
	const computer, name = "secret-1", "course-1"
	slow := simsite.Behaviour{ExecTakes: after(0.4)} // so that every step is in a heartbeat
	l := w.newLab(t, computer, labOptions{computers: one(computer, slow), doors: map[string]holdsFrom{computer: {closed: true}}})
	temporal := newTemporalProxy(t, w.server.Address)
	worker := l.worker(t, workerOptions{temporal: temporal.address})
	haystack := map[string][]byte{}
	starter := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := l.starter(t, args...)
		require.Zero(t, code, "starter %s\n%s%s", strings.Join(args, " "), stdout, stderr)
		haystack["starter "+strings.Join(args, " ")] = []byte(stdout + stderr)
		return stdout
	}

	var started []struct {
		loadlog.View
		Started bool
	}
	require.NoError(t, json.Unmarshal([]byte(starter("reserve", imageName, computer, "--name", name, "--for", "1h", "-o", "json")), &started))
	require.Len(t, started, 1)
	require.True(t, started[0].Started)

	// Nobody gets to the guest before its secrets are known: the handed host key, and what chpasswd is told.
	labtest.Eventually(t, patience, func() (bool, string) {
		return l.site.counts(t, computer).PowerOns == 1, "the VM is not powered on"
	})
	handed := l.extraConfig(t, computer)[vmware.KeyHostKey]
	require.Contains(t, handed, "PRIVATE KEY")
	image := shadow(t, l.site.file(t, computer, "/etc/shadow"))
	listen(t, l.site, computer)
	l.doors[computer].open(t)
	starter("watch", name, "--until", "ready", "-o", "json")
	described, err := w.client.DescribeWorkflowExecution(t.Context(), started[0].WorkflowID, started[0].RunID)
	require.NoError(t, err)
	t.Logf("up to ready: %d events, %d bytes", described.GetWorkflowExecutionInfo().GetHistoryLength(), described.GetWorkflowExecutionInfo().GetHistorySizeBytes())
	require.LessOrEqual(t, described.GetWorkflowExecutionInfo().GetHistoryLength(), int64(mostEvents))
	require.LessOrEqual(t, described.GetWorkflowExecutionInfo().GetHistorySizeBytes(), int64(mostBytes))
	password, ok := strings.CutPrefix(strings.TrimSpace(l.site.file(t, computer, "/root/told")), "root:")
	require.True(t, ok)
	require.Len(t, password, 24)
	encrypted := shadow(t, l.site.file(t, computer, "/etc/shadow"))
	require.NotEqual(t, image, encrypted)

	b := l.booking(w, name, computer, started[0].WorkflowID, started[0].RunID)
	status := b.ready(t, patience)
	require.Equal(t, "load done, post-load done", phases(status))
	var view loadlog.View
	labtest.Eventually(t, patience, func() (bool, string) { // where no worker answers within seconds, the history does, and a note says so
		view = loadlog.View{}
		require.NoError(t, json.Unmarshal([]byte(starter("show", name, "-o", "json")), &view))
		return len(view.Notes) == 0, strings.Join(view.Notes, "; ")
	})
	require.Equal(t, status, view.Status)
	require.Equal(t, []any{name, "ana", computer, "debian12-r3", "linux 12", vmware.Type, l.name, reservation.OutcomeReady, l.doors[computer].address},
		[]any{view.Reservation, view.User, view.Computer, view.Image, view.OS, view.Provisioner, view.Site, view.Outcome, view.Address})
	require.Equal(t, reservation.Attempt{Number: 1, Of: reservation.DefaultAttempts}, view.Attempt)
	require.WithinDuration(t, time.Now().Add(time.Hour), view.End, 10*time.Minute)
	require.Regexp(t, `^198\.18\.`, view.PublicAddress)
	require.Regexp(t, `^SHA256:`, view.HostKey)
	require.Len(t, view.Phases, 2)
	require.Equal(t, worker.identity, view.Phases[1].Worker)
	for _, step := range view.Phases[1].Steps {
		require.Equal(t, reservation.StepDone, step.Result, "%+v", step)
	}
	var steps []string
	for _, step := range view.Phases[1].Steps {
		steps = append(steps, step.Name)
	}
	require.Equal(t, []string{"firewall", "public address", "sshd", "time", "root password", "leftover keys", "hostname", "tag"}, steps)

	query := fmt.Sprintf("BerthReservation=%q AND BerthComputer=%q AND BerthImage='debian12-r3' AND BerthProvisioner='vmware' AND BerthOS='linux 12' AND "+
		"BerthUser='ana' AND BerthPhase='ready' AND BerthOutcome='ready' AND BerthAttempt=1", name, computer)
	labtest.Eventually(t, patience, func() (bool, string) { // visibility comes after the fact
		found, err := w.client.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Namespace: w.server.Namespace, Query: query})
		require.NoError(t, err)
		return len(found.GetExecutions()) == 1, "not found by its search attributes"
	})
	for _, args := range [][]string{{"list"}, {"list", "-o", "json"}, {"show", computer}, {"history", name}, {"history", name, "-o", "json"}} {
		require.Contains(t, starter(args...), computer)
	}
	for _, p := range []*workerProcess{worker, w.workflows} {
		for _, file := range []string{"cmdline", "environ"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Pid(), file))
			require.NoError(t, err)
			haystack[fmt.Sprintf("%s of %s", file, p.identity)] = text
		}
	}
	starter("release", name, "--wait", "-o", "json")
	l.gone(t, computer)
	starter("show", name)
	status, err = b.result(t)
	require.NoError(t, err)
	require.Equal(t, "load done, post-load done, unload done", phases(status))
	require.Equal(t, reservation.OutcomeReleased, status.Outcome)

	// The haystack: the history, all that the worker sent, what Temporal tells of the workflow, and logs.
	events := w.client.GetWorkflowHistory(t.Context(), started[0].WorkflowID, started[0].RunID, false, 0)
	n := 0
	for events.HasNext() {
		event, err := events.Next()
		require.NoError(t, err)
		n++
		text, err := protojson.Marshal(event)
		require.NoError(t, err)
		wire, err := proto.Marshal(event) // payloads are readable in it; protojson has them in base64
		require.NoError(t, err)
		haystack[fmt.Sprintf("event %d", event.GetEventId())] = slices.Concat(text, wire)
	}
	require.Greater(t, n, 10)
	beats := temporal.requests("RecordActivityTaskHeartbeat")
	require.NotEmpty(t, beats)
	seen := 0
	for i, one := range temporal.requests("") {
		haystack[fmt.Sprintf("request %d: %s", i, one.method)] = one.text
		if bytes.Contains(one.text, []byte(`"linux.step.root password"`)) {
			seen++
		}
	}
	require.NotZero(t, seen, "the recording holds what modules keep")
	last, err := w.client.DescribeWorkflowExecution(t.Context(), started[0].WorkflowID, started[0].RunID)
	require.NoError(t, err)
	for what, message := range map[string]proto.Message{"description when ready": described, "description at the end": last} {
		wire, err := proto.Marshal(message)
		require.NoError(t, err)
		haystack[what] = wire
	}
	haystack["log of the worker"], haystack["log of the workflows' worker"] = []byte(worker.Text()), []byte(w.workflows.Text())

	needles := map[string][]string{
		"the vCenter's password":     {l.site.secret(t, passwordFile)},
		"the login key":              secretLines(t, l.site.secret(t, loginKeyFile)),
		"the host key handed over":   secretLines(t, handed),
		"root's new password":        {password},
		"root's password, encrypted": {encrypted},
	}
	for what, secrets := range needles {
		for _, secret := range secrets {
			for where, text := range haystack {
				require.False(t, shows(text, secret), "%s is in the %s", what, where)
			}
		}
	}
	// And the search finds what is there: the reservation's name is in all but the processes' own.
	for where, text := range haystack {
		planted := append(slices.Clone(text), base64.StdEncoding.EncodeToString([]byte("x"+password))...)
		require.True(t, shows(planted, password), where)
	}
	require.True(t, shows(haystack["event 1"], name))
	require.True(t, shows(beats[0].text, name) || shows(beats[0].text, "look up"))
	require.True(t, shows(haystack["log of the worker"], name))
}

// secretLines returns the lines of a private key that tell something of it.
func secretLines(t *testing.T, pem string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(pem) {
		if line = strings.TrimSpace(line); len(line) >= 16 && !strings.Contains(line, "PRIVATE KEY") {
			lines = append(lines, line)
		}
	}
	require.NotEmpty(t, lines)
	return lines
}

// shadow returns root's encrypted password.
func shadow(t *testing.T, text string) string {
	t.Helper()
	for line := range strings.Lines(text) {
		if fields := strings.Split(line, ":"); fields[0] == "root" {
			require.Greater(t, len(fields[1]), 10)
			return fields[1]
		}
	}
	require.FailNow(t, "root has no line in /etc/shadow")
	return ""
}

// listen puts a chpasswd before the guest's own that keeps what it is told.
func listen(t *testing.T, s *site, computer string) {
	t.Helper()
	signer, err := ssh.ParsePrivateKey([]byte(s.secret(t, loginKeyFile) + "\n"))
	require.NoError(t, err)
	handed, _, _, _, err := ssh.ParseAuthorizedKey([]byte(s.file(t, computer, "/etc/ssh/ssh_host_ed25519_key.pub")))
	require.NoError(t, err)
	var connection *ssh.Client
	labtest.Eventually(t, patience, func() (bool, string) {
		connection, err = ssh.Dial("tcp", s.mustGuest(t, computer).Address, &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
			HostKeyCallback: ssh.FixedHostKey(handed)})
		return err == nil, fmt.Sprint(err)
	})
	defer connection.Close()
	session, err := connection.NewSession()
	require.NoError(t, err)
	session.Stdin = strings.NewReader("#!/bin/sh\ncat >/root/told && /usr/sbin/chpasswd </root/told\n")
	const to = "/usr/local/sbin/chpasswd"
	require.NoError(t, session.Run("mkdir -p /usr/local/sbin && cat >"+to+" && chmod 755 "+to))
}

// shows says whether a text holds a secret, plainly or in base64 at any offset.
func shows(text []byte, secret string) bool {
	if bytes.Contains(text, []byte(secret)) {
		return true
	}
	for offset := range 3 {
		encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", offset) + secret))
		// The first and the last letters depend on what stands before and after the secret.
		from, to := (offset*8+5)/6, (offset+len(secret))*8/6
		if bytes.Contains(text, []byte(encoded[from:to])) {
			return true
		}
	}
	return false
}
