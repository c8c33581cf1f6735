// Package activities runs the modules for the workflow. It is thin: it finds the module in the registry, hands it a
// reporter that heartbeats, gives it the phase's clock, and turns its error into what the retry policy reads.
package activities

import (
	"berth/reservation"
)

// The activities' registered names.
const (
	LoadName        = "Load"
	PostLoadName    = "PostLoad"
	AbortName       = "Abort"
	UnloadName      = "Unload"
	QueueServedName = "QueueServed"
)

// PhaseOf returns the phase that an activity runs; "" for one that runs none.
func PhaseOf(activity string) reservation.Phase {
	switch activity {
	case LoadName:
		return reservation.PhaseLoad
	case PostLoadName:
		return reservation.PhasePostLoad
	case AbortName:
		return reservation.PhaseClean
	case UnloadName:
		return reservation.PhaseUnload
	default:
		return ""
	}
}

// The types of the application errors that activities return. The first two are verdicts and stand in the retry policy's
// NonRetryableErrorTypes; a Fault is tried again in the same attempt.
const (
	TypeReload = "Reload"
	TypeFail   = "Fail"
	TypeFault  = "Fault"
)

// Outlived is what the reason of a phase that outlived its limit begins with.
const Outlived = "not done within its limit"

// WorkflowQueue is the task queue of the workflows.
const WorkflowQueue = "berth"

// Queue returns the task queue of a provisioner type, and of one site of it where a computer names a site.
func Queue(provisioner, site string) string {
	queue := WorkflowQueue + "-" + provisioner
	if site != "" {
		queue += "-" + site
	}
	return queue
}

// PhaseRequest is the input of every phase's activity.
type PhaseRequest struct {
	Reservation reservation.Reservation `json:"reservation"`
	Mark        reservation.Mark        `json:"mark"`
	Attempt     reservation.Attempt     `json:"attempt"`
	Limits      reservation.Limits      `json:"limits,omitzero"`    // PostLoad: of this attempt, stretched
	Limit       reservation.Duration    `json:"limit"`              // the whole phase's, which is its StartToClose timeout too
	HostKey     string                  `json:"host_key,omitempty"` // PostLoad: what Load handed to the guest
}

// PhaseResult is what every phase's activity returns when its verdict is done. The same value stands in the details of
// the error of a phase that ended otherwise.
type PhaseResult struct {
	Stages        []reservation.Stage `json:"stages,omitempty"`
	Steps         []reservation.Step  `json:"steps,omitempty"`
	HostKey       string              `json:"host_key,omitempty"` // Load: the public key handed over; PostLoad: the pinned key's fingerprint
	Reference     string              `json:"reference,omitempty"`
	PublicAddress string              `json:"public_address,omitempty"`
	Worker        string              `json:"worker,omitempty"`
	Lost          int                 `json:"lost,omitempty"` // tries of this phase that ended with their worker or in a fault
}
