package steps_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"berth/osmodules/climb/climbtest"
	"berth/osmodules/remote"
	"berth/osmodules/sitescripts"
	"berth/osmodules/steps"
	"berth/reservation"
)

func TestWhatAStepDecides(t *testing.T) {
	broken := errors.New("the disk of ours is full")
	for name, c := range map[string]struct {
		onFailure string
		result    steps.Result
		err       error
		want      reservation.StepResult
		detail    string
		verdict   reservation.Verdict // "" is done
		fault     bool
	}{
		"done": {
			onFailure: sitescripts.Reload, result: steps.Result{Result: reservation.StepDone, Detail: "set"},
			want: reservation.StepDone, detail: "set"},
		"not to run": {
			onFailure: sitescripts.Fail, result: *steps.Skip("not wished"),
			want: reservation.StepSkipped, detail: "not wished"},
		"an extra that went wrong": {
			onFailure: sitescripts.Warn, result: steps.Failed("no"),
			want: reservation.StepWarned, detail: "no"},
		"an essential one": {
			onFailure: sitescripts.Reload, result: steps.Failed("no"),
			want: reservation.StepFailed, detail: "no", verdict: reservation.VerdictReload},
		"one that no attempt mends": {
			onFailure: sitescripts.Fail, result: steps.Failed("no"),
			want: reservation.StepFailed, detail: "no", verdict: reservation.VerdictFail},
		"it says itself what it means": {
			onFailure: sitescripts.Warn, result: steps.Result{Result: reservation.StepFailed, Detail: "no", OnFailure: sitescripts.Fail},
			want: reservation.StepFailed, detail: "no", verdict: reservation.VerdictFail},
		"its limit": {
			onFailure: sitescripts.Reload, result: steps.Result{Detail: "last words"}, err: &remote.LimitError{Command: "sh", Limit: time.Hour},
			want: reservation.StepFailed, detail: "did not end within its limit of 1m0s: last words", verdict: reservation.VerdictReload},
		"a fault of ours": {onFailure: sitescripts.Warn, err: broken, want: reservation.StepFailed, detail: broken.Error(), fault: true},
	} {
		t.Run(name, func(t *testing.T) {
			report := climbtest.NewRecorder()
			runner := steps.Runner{Report: report, Log: zerolog.Nop(), Key: "step."}
			after := false
			err := runner.Run(t.Context(), []steps.Step{
				{Name: "it", Limit: time.Minute, OnFailure: c.onFailure, Do: func(context.Context) (steps.Result, error) { return c.result, c.err }},
				{Name: "after", Do: func(context.Context) (steps.Result, error) {
					after = true
					return steps.Result{Result: reservation.StepDone}, nil
				}},
			})
			got := runner.Done.Steps[0]
			require.Equal(t, reservation.Step{Name: "it", Result: c.want, Detail: c.detail, Took: got.Took}, got)
			switch {
			case c.fault:
				require.ErrorIs(t, err, broken)
				require.Empty(t, reservation.VerdictOf(err))
			case c.verdict != "":
				climbtest.Verdict(t, c.verdict, err, "it: "+c.detail)
			default:
				require.NoError(t, err)
			}
			require.Equal(t, err == nil, after, "what decides a verdict ends the configuration")
			require.Equal(t, err == nil, report.Kept("step.it") != "", "a successor does again what decided one")
		})
	}
}

func TestASuccessorDoesNotRepeatWhatIsDone(t *testing.T) {
	for name, c := range map[string]struct {
		perBoot       bool
		before, after string
		times         int
	}{
		"in any boot":                {false, "boot-1", "boot-2", 1},
		"in the same boot":           {true, "boot-1", "boot-1", 1},
		"what ends with the boot":    {true, "boot-1", "boot-2", 2},
		"when the boot is not known": {true, "", "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			report, times := climbtest.NewRecorder(), 0
			for _, boot := range []string{c.before, c.after} {
				runner := steps.Runner{Report: report, Log: zerolog.Nop(), Key: "step.", PerBoot: c.perBoot, Boot: boot}
				require.NoError(t, runner.Run(t.Context(), []steps.Step{{Name: "it", Do: func(context.Context) (steps.Result, error) {
					times++
					return steps.Result{Result: reservation.StepDone, Detail: "a|b"}, nil
				}}}))
				require.Equal(t, "a|b", runner.Done.Steps[0].Detail)
			}
			require.Equal(t, c.times, times)
		})
	}
}

func TestAStepThatIsCutOffIsNoResult(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	runner := steps.Runner{Report: climbtest.NewRecorder(), Log: zerolog.Nop(), Key: "step."}
	err := runner.Run(ctx, []steps.Step{{Name: "it", Do: func(context.Context) (steps.Result, error) {
		cancel()
		return steps.Failed("cut off"), nil
	}}})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, reservation.VerdictOf(err))
	require.Empty(t, runner.Done.Steps)
}
