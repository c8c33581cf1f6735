package reservation

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Attempt is one image load and what follows it. The workflow counts it; every module is told it.
type Attempt struct {
	Number int `json:"number"` // from 1
	Of     int `json:"of"`     // how many there may be
}

// String returns "attempt 2 of 3".
func (a Attempt) String() string { return fmt.Sprintf("attempt %d of %d", a.Number, a.Of) }

// Phase is a part of a reservation's life.
type Phase string

// The phases, in order. Load and PostLoad repeat with each attempt.
const (
	PhaseLoad     Phase = "load"      // the provisioner: bits on the disk, powered on
	PhasePostLoad Phase = "post-load" // the OS module: waits for the OS, then configures it
	PhaseReady    Phase = "ready"     // handed over; held until the end, a release or a cancel
	PhaseUnload   Phase = "unload"    // taken back: powered off and removed
	PhaseClean    Phase = "clean"     // what a failed or cancelled load left is removed
	PhaseEnded    Phase = "ended"
)

// Outcome is how a reservation stands or ended.
type Outcome string

// The outcomes. "" means: still loading.
const (
	OutcomeReady     Outcome = "ready"     // loaded and held
	OutcomeReleased  Outcome = "released"  // given back by its user
	OutcomeExpired   Outcome = "expired"   // its end came
	OutcomeCancelled Outcome = "cancelled" // ended by a cancel, whatever it was doing
	OutcomeFailed    Outcome = "failed"    // a module said fail, or the attempts are used up
	OutcomeNoWorker  Outcome = "no-worker" // nobody serves the provisioner's queue
)

// Mark is the fencing mark: which try of which reservation a VM or a node belongs to. Provisioners write it onto what
// they make and read it before anything destructive, so that a worker that wakes up late cannot touch a computer that
// has moved on.
type Mark struct {
	Reservation string `json:"reservation"`
	Run         string `json:"run"` // the workflow's run: tells two reservations of one name apart
	Attempt     int    `json:"attempt"`
}

// String returns "reservation/run/attempt", which ParseMark reads.
func (m Mark) String() string { return m.Reservation + "/" + m.Run + "/" + strconv.Itoa(m.Attempt) }

// Same says whether both marks belong to the same reservation's run, whatever the attempt.
func (m Mark) Same(other Mark) bool { return m.Reservation == other.Reservation && m.Run == other.Run }

// ParseMark reads what Mark.String wrote.
func ParseMark(text string) (Mark, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return Mark{}, fmt.Errorf("%q is not a mark of Berth's: want reservation/run/attempt", text)
	}
	n, err := strconv.Atoi(parts[2])
	if err != nil || n < 1 {
		return Mark{}, fmt.Errorf("%q is not a mark of Berth's: attempt %q is not a number from 1", text, parts[2])
	}
	return Mark{Reservation: parts[0], Run: parts[1], Attempt: n}, nil
}

// Stage is what a phase is doing, or did, as a module reports it: "clone", "wait for ssh".
type Stage struct {
	Name   string    `json:"name"`
	Detail string    `json:"detail,omitempty"`
	Began  time.Time `json:"began"`
	Ended  time.Time `json:"ended,omitzero"` // zero while it goes on
}

// StepResult is how a configuration step went.
type StepResult string

// The results of a step.
const (
	StepDone    StepResult = "done"
	StepSkipped StepResult = "skipped" // and why, in the detail
	StepWarned  StepResult = "warned"  // it went wrong and the load goes on
	StepFailed  StepResult = "failed"  // it went wrong and decided the verdict
)

// Step is one configuration step of PostLoad and its result.
type Step struct {
	Name   string     `json:"name"`
	Result StepResult `json:"result"`
	Detail string     `json:"detail,omitempty"`
	Took   Duration   `json:"took,omitzero"`
}

// Reporter is how a module tells what it is doing and keeps what a successor needs if this worker is lost. Modules are
// handed one with each call. It is safe for concurrent use, and no call blocks on the network but Confirm.
type Reporter interface {
	// Stage says what the module does now. The same name again changes only the detail; another name ends the stage
	// before it.
	Stage(name, detail string)
	// Keep stores a value for the worker that may have to go on with this phase: a task's reference, a pinned key's
	// fingerprint. Short values only (all of them travel with every heartbeat), and no secrets.
	Keep(key, value string)
	// Kept returns what this or a lost worker kept in this phase of this attempt; "" if nothing.
	Kept(key string) string
	// Confirm returns nil if this try of the phase is still the one that counts. Call it right before anything
	// destructive: a worker that was paused or cut off gets an error here once somebody else has taken over.
	// What was kept before it is sure to reach a successor once it has returned nil.
	Confirm(ctx context.Context) error
}

// Progress is what travels with a running phase's heartbeats: what a successor needs to go on, and what the command
// line shows of a phase that is still running.
type Progress struct {
	Now    string            `json:"now,omitempty"` // the stage going on and since when, in one line for whoever reads a heartbeat as it is
	Began  time.Time         `json:"began"` // the phase's first start: its limit counts from here, whoever runs it
	Limit  Duration          `json:"limit"`
	Stages []Stage           `json:"stages,omitempty"` // the last is the one going on
	Kept   map[string]string `json:"kept,omitempty"`
	Worker string            `json:"worker,omitempty"`
	Lost   int               `json:"lost,omitempty"` // how many tries of this phase ended with their worker or in a fault
}

// PhaseRecord is one phase of one attempt in the load log.
type PhaseRecord struct {
	Attempt int       `json:"attempt"`
	Phase   Phase     `json:"phase"`
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended,omitzero"`
	Limit   Duration  `json:"limit,omitzero"`
	Verdict Verdict   `json:"verdict,omitempty"` // "" while it runs, or when it was cancelled
	Reason  string    `json:"reason,omitempty"`
	Stages  []Stage   `json:"stages,omitempty"`
	Steps   []Step    `json:"steps,omitempty"`
	Worker  string    `json:"worker,omitempty"`
	Lost    int       `json:"lost,omitempty"`
}

// Status is the whole of a reservation as the status query answers it and the command line prints it with -o json.
type Status struct {
	Reservation   string        `json:"reservation"`
	User          string        `json:"user"`
	Computer      string        `json:"computer"`
	Image         string        `json:"image"` // name and revision
	OS            string        `json:"os"`
	Provisioner   string        `json:"provisioner"`
	Site          string        `json:"site,omitempty"`
	Queue         string        `json:"queue"` // the provisioner's task queue
	Phase         Phase         `json:"phase"`
	Attempt       Attempt       `json:"attempt"`
	Outcome       Outcome       `json:"outcome,omitempty"`
	Reason        string        `json:"reason,omitempty"` // why it failed, or what cleaning could not do
	Began         time.Time     `json:"began"`
	Ready         time.Time     `json:"ready,omitzero"`
	End           time.Time     `json:"end"`            // when it is to be taken back
	Ended         time.Time     `json:"ended,omitzero"` // when it was over
	Address       string        `json:"address"`
	PublicAddress string        `json:"public_address,omitempty"`
	HostKey       string        `json:"host_key,omitempty"` // fingerprint of the guest's pinned key
	Phases        []PhaseRecord `json:"phases"`
}
