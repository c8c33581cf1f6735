// Package climbtest has what tests of OS modules share: a reporter that remembers, and how a verdict is looked at.
package climbtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"berth/reservation"
)

// Recorder is a reservation.Reporter that outlives a module, as heartbeats do. It is safe for concurrent use.
type Recorder struct {
	mu       sync.Mutex
	stages   []reservation.Stage
	said     []string // every stage and detail, in order
	kept     map[string]string
	confirms int
	refuse   error
}

// NewRecorder returns one that has seen nothing.
func NewRecorder() *Recorder { return &Recorder{kept: map[string]string{}} }

// Stage implements reservation.Reporter.
func (r *Recorder) Stage(name, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, name+": "+detail)
	if n := len(r.stages); n > 0 && r.stages[n-1].Name == name {
		r.stages[n-1].Detail = detail
		return
	}
	r.stages = append(r.stages, reservation.Stage{Name: name, Detail: detail})
}

// Keep implements reservation.Reporter.
func (r *Recorder) Keep(key, value string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept[key] = value
}

// Kept implements reservation.Reporter.
func (r *Recorder) Kept(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept[key]
}

// Confirm implements reservation.Reporter.
func (r *Recorder) Confirm(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confirms++
	return r.refuse
}

// Refuse lets Confirm return that error from now on.
func (r *Recorder) Refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = err
}

// Confirms returns how often Confirm was called.
func (r *Recorder) Confirms() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.confirms
}

// Stages returns the stages' names, in order.
func (r *Recorder) Stages() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, stage := range r.stages {
		names = append(names, stage.Name)
	}
	return names
}

// Current returns the stage that goes on; the zero value if there is none.
func (r *Recorder) Current() reservation.Stage {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.stages) == 0 {
		return reservation.Stage{}
	}
	return r.stages[len(r.stages)-1]
}

// Said returns each stage and detail that was reported, in order, as "stage: detail".
func (r *Recorder) Said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.said)
}

// All returns everything that would travel.
func (r *Recorder) All() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprint(r.said, r.stages, r.kept)
}

// Verdict requires an error to be that verdict, and to say these words.
func Verdict(t testing.TB, want reservation.Verdict, err error, says ...string) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, want, reservation.VerdictOf(err), "%s", err)
	for _, words := range says {
		require.ErrorContains(t, err, words)
	}
}
