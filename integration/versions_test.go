package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/simsite"
	"berth/internal/simsite/xcatmn"
	"berth/reservation"
)

// previousVersion is the commit whose worker stands for the version before, version 1: it asks a gate for one ticket at a time, gives
// its slot up when a load is cancelled, keeps fewer things, and asks less often before it touches a node. Move it on when a version
// is no longer to be taken over from; a commit in the middle of a change is none.
const previousVersion = "c5215a9f7ed2c166c909aeed8e2f8f28edc5a5bf"

// buildPrevious builds the worker of the version before, out of this repository's history.
func (w *world) buildPrevious(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	tree, archive, program := filepath.Join(folder, "tree"), filepath.Join(folder, "tree.tar"), filepath.Join(folder, "worker-before")
	require.NoError(t, os.Mkdir(tree, 0o700))
	run := func(dir string, words ...string) (string, error) {
		command := exec.Command(words[0], words[1:]...)
		command.Dir = dir
		out, err := command.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	top, err := run(".", "git", "rev-parse", "--show-toplevel")
	if err == nil {
		top, err = run(top, "git", "archive", "--output", archive, previousVersion)
	}
	if err != nil {
		t.Skipf("SKIP: the history that holds commit %s is not here, so there is no worker of the version before: %s", previousVersion, top)
	}
	for _, words := range [][]string{{"tar", "-xf", archive, "-C", tree}, {"go", "build", "-o", program, "./worker"}} {
		out, err := run(tree, words...)
		require.NoError(t, err, "%q: %s", words, out)
	}
	return program
}

// A worker of the version before and one of this version, each way: whoever begins a load, the other one goes on with it, by what
// the first has kept and what stands on the node. And both at once, with the workflows' workers of both beside them.
func testVersions(t *testing.T, w *world) {
	before := w.buildPrevious(t)
	names := map[string]string{"": "this", before: "before"}
	for _, c := range []struct {
		first, next string
		stage       string
		killed      bool
	}{
		{before, "", "wait for installer", false},
		{before, "", "install", false},
		{before, "", "install", true},
		{"", before, "wait for installer", false},
		{"", before, "install", false},
		{"", before, "install", true},
	} {
		how := "stopped"
		if c.killed {
			how = "killed"
		}
		name := fmt.Sprintf("version-%s-%s-%s", names[c.first], how, slug(c.stage))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := w.newMetal(t, name, slowly, 0, nil, simsite.Node{Name: name})
			first := l.worker(t, workerOptions{program: c.first})
			b := l.reserve(t, name)
			m := b.atStage(t, reservation.PhaseLoad, c.stage)
			if c.killed {
				first.Kill()
			} else {
				first.signal(t, syscall.SIGTERM)
			}
			next := l.worker(t, workerOptions{program: c.next})
			status := l.loaded(t, b)
			require.Equal(t, "load done, post-load done", phases(status))
			require.Equal(t, 1, status.Attempt.Number)
			require.Equal(t, next.identity, status.Phases[0].Worker)
			require.GreaterOrEqual(t, status.Phases[0].Lost, 1)
			for i, was := range m.Progress.Stages {
				require.Equal(t, was.Name, status.Phases[0].Stages[i].Name, "the stages before are kept")
				require.True(t, was.Began.Equal(status.Phases[0].Stages[i].Began))
			}
			require.Equal(t, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}, l.node(t, name).Counts)
			l.handedBack(t, b)
		})
	}
	t.Run("side by side", func(t *testing.T) {
		t.Parallel()
		const installs, loads = 3, 12
		var nodes []simsite.Node
		for n := range loads {
			nodes = append(nodes, simsite.Node{Name: fmt.Sprintf("versions-%02d", n)})
		}
		l := w.newMetal(t, "versions", fast, installs, nil, nodes...)
		workflows := w.startWorker(t, "workflows-before", workerOptions{program: before, env: []string{"BERTH_PROVISIONERS=", "BERTH_WORKFLOWS=true"}})
		old := l.worker(t, workerOptions{program: before})
		l.worker(t)
		var all []*booking
		for _, node := range nodes {
			all = append(all, l.reserve(t, node.Name))
		}
		workers := map[string]bool{}
		for n, b := range all {
			status := l.loaded(t, b)
			require.Equal(t, "load done, post-load done", phases(status))
			require.Equal(t, 1, status.Attempt.Number)
			require.Equal(t, xcatmn.Counts{PowerOns: 1, Nodesets: 1, Installs: 1}, l.node(t, b.computer).Counts)
			workers[status.Phases[0].Worker] = true
			if n == loads/2 { // the version before is taken out of service while it loads
				workflows.signal(t, syscall.SIGTERM)
				old.signal(t, syscall.SIGTERM)
			}
		}
		require.Len(t, workers, 2, "both have loaded")
		require.LessOrEqual(t, l.site.status(t).Metal.MostArmed, installs)
		for _, one := range []*workerProcess{workflows, old} {
			select {
			case <-one.Done():
			case <-time.After(patience):
				require.FailNow(t, "a worker does not stop")
			}
		}
		for _, b := range all {
			l.handedBack(t, b)
		}
	})
}
