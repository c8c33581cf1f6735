package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/demo/internal/programs"
	"berth/internal/loadlog"
	"berth/internal/simsite"
	"berth/reservation"
)

// viewOf is how a reservation stands whose load was gone on with after so many lost workers.
func viewOf(a *act, outcome reservation.Outcome, attempt, lost int, reason string) loadlog.View {
	if lost > 0 {
		a.killed = &killedUnder{worker: "worker@host:7", phase: reservation.PhaseLoad, attempt: attempt}
	}
	return loadlog.View{Status: reservation.Status{
		Reservation: a.name, Outcome: outcome, Reason: reason, Phase: reservation.PhaseReady,
		Attempt: reservation.Attempt{Number: attempt, Of: 3},
		Phases:  []reservation.PhaseRecord{{Phase: reservation.PhaseLoad, Attempt: attempt, Lost: lost, Worker: "worker@host:8"}},
	}}
}

func TestAnOutcomeIsHeldAgainstTheScript(t *testing.T) {
	for name, c := range map[string]struct {
		act  string
		view func(*act) loadlog.View
		want bool
	}{
		"as scripted":                     {actWorks, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeReady, 1, 0, "") }, true},
		"it was on the killed worker":     {actWorks, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeReady, 1, 1, "") }, true},
		"it needed one attempt more":      {actWorks, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeReady, 2, 0, "") }, false},
		"it failed":                       {actWorks, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeFailed, 1, 0, "") }, false},
		"it still loads":                  {actWorks, func(a *act) loadlog.View { return viewOf(a, "", 1, 0, "") }, false},
		"nothing is known of it":          {actWorks, func(*act) loadlog.View { return loadlog.View{} }, false},
		"it did not reload":               {actReload, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeReady, 1, 0, "") }, false},
		"the worker was lost":             {actKilled, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeReady, 1, 1, "") }, true},
		"no worker was lost":              {actKilled, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeReady, 1, 0, "") }, false},
		"the lost worker cost a load":     {actKilled, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeReady, 2, 1, "") }, false},
		"it failed for its reason":        {actFails, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeFailed, 1, 0, "another host key") }, true},
		"it failed for another reason":    {actFails, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeFailed, 1, 0, "no template") }, false},
		"it became ready before a cancel": {actCancel, func(a *act) loadlog.View { return viewOf(a, reservation.OutcomeReady, 1, 0, "") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			acts := playbill()
			d := &director{acts: acts}
			a := d.act(c.act)
			a.view, a.clones = c.view(a), a.attempts-a.fewer
			require.Equal(t, c.want, a.asExpected(), "expected %s, seen %s", a.expected(), a.seen())

			for _, other := range acts {
				if other != a {
					other.view, other.clones = viewOf(other, other.outcome, other.attempts, 1, other.reason), other.attempts-other.fewer
				}
			}
			var out bytes.Buffer
			err := printer{out: &out}.result(acts, "http://127.0.0.1:8233", time.Minute)
			if c.want {
				require.NoError(t, err)
				require.Contains(t, out.String(), "12 of 12 as expected, after 1m. Web UI: http://127.0.0.1:8233")
				return
			}
			require.ErrorContains(t, err, c.act+": expected")
			require.Contains(t, out.String(), "11 of 12 as expected")
		})
	}
}

func TestACloneTooManyIsNotAsExpected(t *testing.T) {
	a := (&director{acts: playbill()}).act(actKilled)
	a.view, a.clones = viewOf(a, reservation.OutcomeReady, 1, 1, ""), 2
	require.False(t, a.asExpected())
	require.Equal(t, "ready, attempt 1, 2 loads, worker lost", a.seen())
}

func TestAPhaseThatOnlyMetAFaultHasLostNoWorker(t *testing.T) {
	a := (&director{acts: playbill()}).act(actKilled)
	a.view, a.clones = viewOf(a, reservation.OutcomeReady, 1, 1, ""), 1
	require.True(t, a.asExpected())

	a.killed = nil
	require.Equal(t, 0, a.lostWorkers(), "nobody was killed")
	require.Equal(t, 1, a.resumed())
	require.False(t, a.asExpected())

	a.killed = &killedUnder{worker: "worker@host:8", phase: reservation.PhaseLoad, attempt: 1}
	require.False(t, a.asExpected(), "no other worker has gone on with it")
}

func TestTheWorkerIsKilledInTheMiddleOfTheCloneAndAfterTheOthersStories(t *testing.T) {
	cloning := func() loadlog.View {
		v := viewOf(&act{name: actKilled}, "", 1, 0, "")
		v.Phase = reservation.PhaseLoad
		v.Live = &loadlog.Live{State: loadlog.StateRunning, Stage: "clone", Worker: "worker@host:7"}
		return v
	}
	all := func() *director {
		d := &director{acts: playbill()}
		for _, a := range d.acts {
			a.view = viewOf(a, a.outcome, 1, 0, "")
		}
		d.act(actKilled).view = cloning()
		return d
	}
	require.True(t, all().timeToKill())

	early := all()
	early.act(actReload).view.Phase = reservation.PhasePostLoad
	require.False(t, early.timeToKill(), "another story is not through")
	early.act(actKilled).view.Phase = reservation.PhasePostLoad
	require.True(t, early.timeToKill(), "there is little left to kill it in")

	queued := all()
	queued.act(actKilled).view.Live.State = loadlog.StateQueued
	require.False(t, queued.timeToKill(), "no worker has it")
}

func TestViewsAreReadFromAnyPiecesOfLines(t *testing.T) {
	var text []byte
	for n := range 3 {
		line, err := json.Marshal(loadlog.View{Status: reservation.Status{Reservation: fmt.Sprint("r", n)}})
		require.NoError(t, err)
		text = append(append(text, line...), '\n')
	}
	for _, size := range []int{1, 7, len(text)} {
		var seen []string
		reader := &viewReader{see: func(v loadlog.View) { seen = append(seen, v.Reservation) }}
		for rest := text; len(rest) > 0; {
			n := min(size, len(rest))
			_, err := reader.Write(rest[:n])
			require.NoError(t, err)
			rest = rest[n:]
		}
		require.Equal(t, []string{"r0", "r1", "r2"}, seen)
	}
	_, err := (&viewReader{}).Write([]byte("error: no\n"))
	require.ErrorContains(t, err, "error: no")
}

func TestTheFolderIsEmptiedAndOnlyOneDemonstrationHasIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "demo")
	unlock, err := prepareDir(dir)
	require.NoError(t, err)
	_, err = prepareDir(dir)
	require.ErrorContains(t, err, "another demonstration")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "temporal.db"), []byte("old"), 0o644))
	unlock()
	unlock, err = prepareDir(dir)
	require.NoError(t, err)
	defer unlock()
	require.NoFileExists(t, filepath.Join(dir, "temporal.db"))
}

// program writes a shell script and returns the folder that it is in.
func program(t *testing.T, bin, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text), 0o755))
}

func testStage(t *testing.T, simsite string) *stage {
	t.Helper()
	bin := t.TempDir()
	for _, name := range []string{"worker", "starter"} {
		program(t, bin, name, "exit 0\n")
	}
	program(t, bin, "simsite", simsite)
	s, err := newStage(options{bin: bin, dir: t.TempDir(), environment: os.Environ()})
	require.NoError(t, err)
	t.Cleanup(s.stop)
	return s
}

func TestASiteThatDoesNotStartIsAnErrorWithTheEndOfItsLog(t *testing.T) {
	err := testStage(t, "echo port 8989 is taken >&2; exit 1\n").startSite(t.Context())
	require.ErrorContains(t, err, "exit status 1")
	require.ErrorContains(t, err, "port 8989 is taken")

	err = testStage(t, "echo not ready yet; exec sleep 600\n").startSite(t.Context())
	require.ErrorContains(t, err, "not ready yet")
}

func TestAProgramThatEndsByItselfEndsTheWork(t *testing.T) {
	// It ends only when the test lets it: a program that ends while it starts is another case.
	end := filepath.Join(t.TempDir(), "end")
	s := testStage(t, "echo '{}'; until test -e "+end+"; do sleep 0.01; done; echo out of memory >&2; exit 3\n")
	require.NoError(t, s.startSite(t.Context()))
	require.NoError(t, os.WriteFile(end, nil, 0o600))
	err := s.whileAlive(t.Context(), func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	require.ErrorContains(t, err, "simsite has ended by itself")
	require.ErrorContains(t, err, "out of memory")
}

func TestAProgramThatIsKilledOnPurposeIsNoFault(t *testing.T) {
	s := testStage(t, "echo '{}'; exec sleep 600\n")
	require.NoError(t, s.startSite(t.Context()))
	name, err := s.kill(s.running[0].Pid())
	require.NoError(t, err)
	require.Equal(t, "simsite", name)
	require.NoError(t, s.whileAlive(t.Context(), func(context.Context) error { return nil }))
	_, err = s.kill(os.Getpid())
	require.Error(t, err, "only what the stage has started is killed")
}

func TestAMissingProgramIsNamed(t *testing.T) {
	_, err := newStage(options{bin: t.TempDir(), dir: t.TempDir()})
	require.ErrorContains(t, err, "make build")
}

func TestACommandsExitCodeAndWordsAreKept(t *testing.T) {
	s := testStage(t, "exit 0\n")
	program(t, s.bin, "starter", "echo \"$BERTH_CATALOG $BERTH_STRAY\"; echo no such computer >&2; exit 4\n")
	s.environment = append(s.environment, "BERTH_STRAY=mine")
	var out bytes.Buffer
	err := s.command(t.Context(), &out, "show", "vm-01")
	require.Equal(t, 4, programs.ExitCode(err))
	require.ErrorContains(t, err, "starter show vm-01: exit status 4: no such computer")
	require.Equal(t, s.catalog()+" \n", out.String(), "the caller's own BERTH variables do not reach the demonstration's programs")
	require.Equal(t, -1, programs.ExitCode(errors.New("no exit code")))
	require.True(t, errors.As(err, new(*exec.ExitError)))
}

func TestEveryActHasItsComputerAndItsImage(t *testing.T) {
	script, err := simsite.ParseScript("site.yaml", siteScript)
	require.NoError(t, err)
	for _, a := range playbill() {
		vm := slices.ContainsFunc(script.Computers, func(c simsite.Computer) bool { return c.Name == a.computer })
		node := slices.ContainsFunc(script.Metal.Nodes, func(n simsite.Node) bool { return n.Name == a.computer })
		require.True(t, vm || node, a.computer)
		require.True(t, slices.ContainsFunc(script.Images, func(i reservation.Image) bool { return i.Name == a.image }), a.image)
	}
}
