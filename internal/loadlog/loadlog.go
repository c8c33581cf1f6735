// Package loadlog tells what happened to a reservation: it reads the status, the live stage and the load log out of what
// Temporal keeps (a workflow's history, its pending activities), and renders them as text.
//
// It asks nobody: whoever calls it has fetched the answers. What it reads was written by Berth's workflow and
// activities; a part that cannot be decoded is left out, because half of a load log is worth more than none.
package loadlog

import (
	"slices"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/converter"

	"berth/activities"
	"berth/reservation"
)

// Outcomes that the workflow cannot write itself, because Temporal ended it. Nothing was cleaned then.
const (
	OutcomeTerminated reservation.Outcome = "terminated" // an operator's `temporal workflow terminate`
	OutcomeTimedOut   reservation.Outcome = "timed-out"  // the workflow's own execution timeout
)

// View is what is known of one reservation: its status, what its running phase does just now, and where Temporal has
// it. Its JSON is the status query's with a few fields more; every command that shows reservations writes this object.
type View struct {
	reservation.Status
	WorkflowID string   `json:"workflow_id"`
	RunID      string   `json:"run_id"`
	Live       *Live    `json:"live,omitempty"`  // nil when nothing is running
	Notes      []string `json:"notes,omitempty"` // what could not be found out, and why
}

// Over says whether the reservation has ended, whatever way.
func (v View) Over() bool { return v.Phase == reservation.PhaseEnded }

// Bad says whether the reservation ended otherwise than its user wanted: failed, without a worker, terminated, timed
// out, or with a computer that could not be taken back. A reservation that goes on is not bad, and a cancelled one
// is not: somebody wanted that.
func (v View) Bad() bool {
	switch v.Outcome {
	case reservation.OutcomeFailed, reservation.OutcomeNoWorker, OutcomeTerminated, OutcomeTimedOut:
		return true
	default:
		return v.Over() && v.LeftBehind()
	}
}

// LeftBehind says whether the last thing that was tried was taking the computer back, and went wrong.
func (v View) LeftBehind() bool {
	if len(v.Phases) == 0 {
		return false
	}
	last := v.Phases[len(v.Phases)-1]
	ending := last.Phase == reservation.PhaseUnload || last.Phase == reservation.PhaseClean
	return ending && !last.Ended.IsZero() && last.Verdict != reservation.VerdictDone
}

// WithLive returns the view with what its running phase does now in it: under Live, and in the record of that phase. The
// status is read after live, so it may be in the next phase already: live is of no interest then.
func (v View) WithLive(live *Live) View {
	if live != nil && live.Phase != v.Phase {
		live = nil
	}
	v.Live = live
	last := len(v.Phases) - 1
	if live == nil || last < 0 || !v.Phases[last].Ended.IsZero() {
		return v
	}
	v.Phases = slices.Clone(v.Phases)
	record := &v.Phases[last]
	record.Stages, record.Worker, record.Lost = live.stages, live.Worker, max(live.Try-1, 0)
	if !live.Began.IsZero() {
		record.Began = live.Began
	}
	if record.Limit == 0 {
		record.Limit = live.Limit
	}
	return v
}

// StatusAtStart returns the status of a reservation whose workflow has just been started.
func StatusAtStart(r reservation.Reservation, began time.Time) reservation.Status {
	return reservation.Status{
		Reservation: r.Name, User: r.User, Computer: r.Computer.Name, Image: r.Image.String(), OS: r.Image.OS.String(),
		Provisioner: r.Computer.Provisioner, Site: r.Computer.Site, Queue: activities.Queue(r.Computer.Provisioner, r.Computer.Site),
		Phase: reservation.PhaseLoad, Attempt: reservation.Attempt{Number: 1, Of: r.Image.MaxAttempts()},
		Began: began.UTC(), End: r.End.UTC(), Address: r.Computer.Address, Phases: []reservation.PhaseRecord{},
	}
}

// decode reads the first of the payloads into value, and says whether it could.
func decode(payloads *commonpb.Payloads, value any) bool {
	if len(payloads.GetPayloads()) == 0 {
		return false
	}
	return converter.GetDefaultDataConverter().FromPayload(payloads.GetPayloads()[0], value) == nil
}
