//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/loadlog"
)

// updatePictures has TestTheDemonstrationInABrowser write what it sees into docs/pictures.
func updatePictures() bool {
	value := flag.Lookup("update-pictures")
	return value != nil && value.Value.String() == "true"
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(envHost); dir != "" {
		os.Exit(runHost(dir))
	}
	flag.Bool("update-pictures", false, "write the pictures that the README shows into docs/pictures")
	flag.Bool("update-reliability", false, "write the report of what was broken on purpose into docs/reliability.md")
	flag.Parse()
	os.Exit(m.Run())
}

// The limits of waiting for the demonstration: a start takes seconds, the batch a minute and a half.
const (
	startLimit = 2 * time.Minute // includes a build
	batchLimit = 7 * time.Minute
	endLimit   = 30 * time.Second
)

// demonstration is `make demo`, as a person starts it in a terminal.
type demonstration struct {
	make *exec.Cmd
	dir  string
	done chan error

	mu   sync.Mutex
	said bytes.Buffer
	more chan struct{} // gets a value when it has said more
}

// startDemonstration starts `make demo` in a process group of its own, which gets signals as one from a terminal does.
func startDemonstration(t *testing.T) *demonstration {
	t.Helper()
	d := &demonstration{dir: filepath.Join(t.TempDir(), "demo"), done: make(chan error, 1), more: make(chan struct{}, 1)}
	d.make = exec.Command("make", "-C", "..", "demo", "DEMOFLAGS=--dir "+d.dir+" --port 0 --ui-port 0")
	d.make.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := d.make.StdoutPipe()
	require.NoError(t, err)
	d.make.Stderr = d.make.Stdout
	require.NoError(t, d.make.Start())
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			d.mu.Lock()
			d.said.WriteString(lines.Text() + "\n")
			d.mu.Unlock()
			select {
			case d.more <- struct{}{}:
			default:
			}
		}
		d.done <- d.make.Wait()
		close(d.done)
	}()
	t.Cleanup(func() {
		d.signal(syscall.SIGKILL)
		<-d.done
		if t.Failed() {
			t.Logf("the demonstration said:\n%s", d.text())
		}
	})
	return d
}

func (d *demonstration) signal(s syscall.Signal) { _ = syscall.Kill(-d.make.Process.Pid, s) }

func (d *demonstration) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.said.String()
}

// says waits until the demonstration has said what pattern matches, and returns its first group.
func (d *demonstration) says(t *testing.T, limit time.Duration, pattern string) string {
	t.Helper()
	wanted := regexp.MustCompile(pattern)
	timeout := time.After(limit)
	for {
		if found := wanted.FindStringSubmatch(d.text()); found != nil {
			return found[1]
		}
		select {
		case <-d.more:
		case err := <-d.done:
			t.Fatalf("the demonstration ended (%v) and has not said %s", err, pattern)
		case <-timeout:
			t.Fatalf("after %s the demonstration has not said %s", limit, pattern)
		}
	}
}

// ends waits for the end of the demonstration.
func (d *demonstration) ends(t *testing.T) error {
	t.Helper()
	select {
	case err := <-d.done:
		return err
	case <-time.After(endLimit):
		t.Fatal("the demonstration has not ended")
		return nil
	}
}

// left returns the processes that bear the demonstration's folder in their command line or environment, but make's own
// and zombies, which only wait for somebody to read their exit code.
func (d *demonstration) left() []string {
	var left []string
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range all {
		pid, _ := strconv.Atoi(filepath.Base(proc))
		arguments, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		environment, _ := os.ReadFile(filepath.Join(proc, "environ"))
		if pid == os.Getpid() || len(arguments) == 0 {
			continue
		}
		if bytes.Contains(arguments, []byte(d.dir)) || bytes.Contains(environment, []byte(d.dir)) {
			left = append(left, fmt.Sprintf("%d %s", pid, bytes.ReplaceAll(arguments, []byte{0}, []byte(" "))))
		}
	}
	return left
}

func (d *demonstration) leavesNothing(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return len(d.left()) == 0 }, endLimit, 50*time.Millisecond, "still running: %v", d.left())
}

// temporal returns where the demonstration's Temporal server listens. What the demonstration says of it comes at its end.
func (d *demonstration) temporal(t *testing.T) string {
	t.Helper()
	found := regexp.MustCompile(`temporal server start-dev --ip (\S+) --port (\d+)`).FindStringSubmatch(strings.Join(d.left(), "\n"))
	require.NotNil(t, found, "no Temporal server runs")
	return found[1] + ":" + found[2]
}

// starter runs the production command line against the demonstration, and returns what it wrote.
func (d *demonstration) starter(t *testing.T, args ...string) []byte {
	t.Helper()
	command := exec.Command("../bin/starter", args...)
	command.Env = append(os.Environ(), "BERTH_TEMPORAL_ADDRESS="+d.temporal(t))
	out, err := command.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("starter %s: %v: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	require.NoError(t, err)
	return out
}

// show asks how a reservation of the demonstration stands.
func (d *demonstration) show(t *testing.T, name string) loadlog.View {
	t.Helper()
	var view loadlog.View
	require.NoError(t, json.Unmarshal(d.starter(t, "show", name, "-o", "json"), &view))
	return view
}

func TestTheDemonstrationInABrowser(t *testing.T) {
	chromium(t) // before two minutes are spent
	d := startDemonstration(t)
	webUI := d.says(t, startLimit, `Web UI: (http://\S+)`)
	b := newBrowser(t, webUI)
	b.chooseColumns(t, "Status", "BerthReservation", "BerthUser", "BerthImage", "BerthComputer", "BerthPhase", "BerthAttempt", "BerthOutcome")
	pictures := map[string][]byte{}

	// One that is being loaded: its clone takes 40 s.
	d.says(t, startLimit, `(worker-killed +vm-04 +load .*clone: linked)`)
	p := startPrometheus(t, d)
	running := d.show(t, "worker-killed")
	b.open(t, reservationPage(running.WorkflowID, running.RunID, "user-metadata"),
		running.User+": "+running.Image+" on "+running.Computer, // the summary
		"attempt 1 of", "running, limit", // the current details
	)
	b.open(t, reservationPage(running.WorkflowID, running.RunID, "pending-activities"),
		"Load", "worker@", "clone: linked clone of debian12-template at r3", // the activity, who is at it, and the stage in its heartbeat
	)
	b.firstScreen(t, "clone: linked clone of debian12-template at r3")
	pictures["running"] = b.picture(t, windowHeight)

	d.says(t, batchLimit, `(\d+) of 12 as expected`)
	d.says(t, time.Second, `(12) of 12 as expected`)

	// The list, filtered by each of our search attributes. A visibility store is a moment behind.
	for _, c := range []struct{ query, there, notThere string }{
		{`BerthOutcome="ready"`, "worker-killed", "cancelled"},
		{`BerthOutcome="failed"`, "fails", "worker-killed"},
		{`BerthOutcome="cancelled"`, "cancelled", "worker-killed"},
		{`BerthReservation="works"`, "works", "fails"},
		{`BerthUser="ben"`, "slow", "fails"},
		{`BerthImage="ubuntu2404-r1"`, "reload", "works"},
		{`BerthComputer="vm-05"`, "fails", "works"},
		{`BerthProvisioner="xcat"`, "bare-metal", "works"},
		{`BerthOS="windows 2022"`, "slow-sysprep", "windows-xp"},
		{`BerthPhase="ready" AND BerthAttempt=2`, "windows7-reload", "works"},
	} {
		b.open(t, "workflows?query="+url.QueryEscape(c.query), c.there)
		require.NotRegexp(t, `(?m)^`+c.notThere+`$`, b.text(), "the list of %s", c.query)
	}
	b.open(t, "workflows?query="+url.QueryEscape(`WorkflowType="Reservation"`), "works", "slow", "reload", "worker-killed", "fails", "cancelled", "windows-xp", "bare-metal", "BerthPhase", "ended")
	pictures["list"] = b.picture(t, 880)

	// One that needed two attempts.
	view := d.show(t, "reload")
	b.open(t, reservationPage(view.WorkflowID, view.RunID, "user-metadata"),
		view.User+": "+view.Image+" on "+view.Computer, // the summary
		"attempt 2 of", view.HostKey, "post-load", "reload: ", // the current details
		view.Image+" on "+view.Computer+", attempt 1 of", // an activity's summary
	)
	pictures["load"] = b.picture(t, 1280)

	// One that failed: why stands on the first screen, without a click or a turn of the wheel.
	failed := d.show(t, "fails")
	b.open(t, reservationPage(failed.WorkflowID, failed.RunID, ""), "Failed")
	b.firstScreen(t, "the guest does not show the host key that was handed to it", "post-load: "+failed.Image+" on "+failed.Computer)
	pictures["failed"] = b.picture(t, windowHeight)

	// One that is over: its history is read by its summaries.
	d.starter(t, "release", "works", "--wait")
	over := d.show(t, "works")
	b.open(t, reservationPage(over.WorkflowID, over.RunID, "history"), "Completed",
		"load: "+over.Image+" on "+over.Computer+", attempt 1 of", "post-load: "+over.Image, "unload: "+over.Computer, "the reservation's end")
	pictures["history"] = b.picture(t, 1280)

	// What is attached to a ticket.
	page := filepath.Join(t.TempDir(), "reload.html")
	d.starter(t, "history", "reload", "--html", page)
	b.visit(t, "file://"+page, "Attempt 1", "Attempt 2", "reload: the guest is not up", "What happened", "power reset")
	b.firstScreen(t, "ready, attempt 2 of 3", "Attempt 1")
	require.Positive(t, b.width(t, "tr.warn.phase i"), "the lost phase has a bar")
	pictures["ticket"] = b.picture(t, 1160)

	if updatePictures() {
		folder := filepath.Join("..", "docs", "pictures")
		require.NoError(t, os.MkdirAll(folder, 0o755))
		for name, picture := range pictures {
			require.NoError(t, os.WriteFile(filepath.Join(folder, name+".png"), picture, 0o644))
		}
	}

	t.Run("the dashboard and the alerts", func(t *testing.T) { p.wall(t, d) })

	d.signal(syscall.SIGINT)
	_ = d.ends(t) // make says "Interrupt" whatever we answer
	require.NotContains(t, d.text(), "demo: ", "it complains after Ctrl-C")
	d.leavesNothing(t)
}

func TestCtrlCInTheMiddleOfALoadEndsEverything(t *testing.T) {
	d := startDemonstration(t)
	d.says(t, startLimit, `(works +vm-01 +post-load)`)
	d.signal(syscall.SIGINT)
	_ = d.ends(t)
	require.Contains(t, d.text(), "demo: interrupted")
	d.leavesNothing(t)
}

// What ends by itself ends the demonstration, which says what that program said last.
func TestADemonstrationWhoseSiteDiesSaysSoAndEndsTheRest(t *testing.T) {
	d := startDemonstration(t)
	d.says(t, startLimit, `(\$ starter watch)`)
	for _, process := range d.left() {
		if id, command, _ := strings.Cut(process, " "); strings.Contains(command, "bin/simsite serve") {
			pid, err := strconv.Atoi(id)
			require.NoError(t, err)
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	require.Error(t, d.ends(t), "make must see a failure")
	require.Contains(t, d.text(), "simsite has ended by itself")
	d.leavesNothing(t)
}

func TestNothingOutlivesADemonstrationThatIsKilled(t *testing.T) {
	d := startDemonstration(t)
	d.says(t, startLimit, `(\$ starter watch)`)
	running := strings.Join(d.left(), "\n")
	for _, program := range []string{"bin/worker", "bin/simsite", "temporal server start-dev"} {
		require.Contains(t, running, program, "what is looked for at the end must be seen now")
	}
	d.signal(syscall.SIGKILL)
	_ = d.ends(t)
	d.leavesNothing(t)
}

func TestNothingOutlivesAMakeThatIsKilled(t *testing.T) {
	d := startDemonstration(t)
	d.says(t, startLimit, `(\$ starter watch)`)
	require.NoError(t, d.make.Process.Kill()) // make alone, not its group
	_ = d.ends(t)
	d.leavesNothing(t)
}
