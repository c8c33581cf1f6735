package main

import (
	"fmt"
	"strings"

	"berth/internal/loadlog"
	"berth/reservation"
)

// act is one reservation of the batch: what is scripted for it, and what must come of it.
type act struct {
	name     string
	user     string
	computer string // the simulated site's script is the computer's
	image    string
	scripted string // in a few words

	outcome  reservation.Outcome // how it must stand at the end
	attempts int                 // how many it must have taken
	lost     bool                // its worker must have been killed under it, and another one gone on
	reason   string              // what the reason must hold; "" takes any

	view   loadlog.View // how it stands; the zero value until something is known
	clones int          // how many clones the vCenter has made for its computer
	killed *killedUnder // nil when no worker was killed under it
}

// killedUnder is where a reservation was when its worker was killed.
type killedUnder struct {
	worker  string // its identity
	phase   reservation.Phase
	attempt int
}

// The names of the acts that the director does something to.
const (
	actWorks  = "works"
	actSlow   = "slow"
	actReload = "reload"
	actKilled = "worker-killed"
	actFails  = "fails"
	actCancel = "cancelled"

	actSysprep  = "slow-sysprep"
	actReloads7 = "windows7-reload"
	actXP       = "windows-xp"
)

// seen says what came of it, in the words of expected.
func (a *act) seen() string {
	return describe(a.standing(), a.view.Attempt.Number, a.clones, a.lostWorkers() > 0)
}

// expected is one clone an attempt, whatever is killed: more would be a clone made twice.
func (a *act) expected() string { return describe(a.outcome, a.attempts, a.attempts, a.lost) }

func describe(outcome reservation.Outcome, attempt, clones int, lost bool) string {
	text := fmt.Sprintf("%s, attempt %d, %d clone", outcome, attempt, clones)
	if clones != 1 {
		text += "s"
	}
	if lost {
		text += ", worker lost"
	}
	return text
}

// standing is the outcome so far: an unfinished load's phase stands for it.
func (a *act) standing() reservation.Outcome {
	switch {
	case a.view.Outcome != "":
		return a.view.Outcome
	case a.view.Phase == "":
		return "unknown"
	default:
		return reservation.Outcome("still at " + string(a.view.Phase))
	}
}

// lostWorkers counts the workers that were killed under it and whose phase another worker went on with.
func (a *act) lostWorkers() int {
	if a.killed == nil {
		return 0
	}
	for _, p := range a.view.Phases {
		if p.Phase == a.killed.phase && p.Attempt == a.killed.attempt && p.Lost > 0 && p.Worker != a.killed.worker {
			return 1
		}
	}
	return 0
}

// resumed counts how often a phase was gone on with: after a lost worker or a fault.
func (a *act) resumed() int {
	times := 0
	for _, p := range a.view.Phases {
		times += p.Lost
	}
	return times
}

// asExpected says whether everything came out as scripted. That its worker was killed is only demanded of the reservation
// that is there for it: others that were on that worker go on likewise.
func (a *act) asExpected() bool {
	return a.standing() == a.outcome && a.view.Attempt.Number == a.attempts && a.clones == a.attempts &&
		(!a.lost || a.lostWorkers() > 0) && strings.Contains(a.view.Reason, a.reason)
}

// playbill is the batch. site.yaml scripts what the computers do.
func playbill() []*act {
	return []*act{
		{name: actWorks, user: "ana", computer: "vm-01", image: "debian12", scripted: "just works",
			outcome: reservation.OutcomeReady, attempts: 1},
		{name: actSlow, user: "ben", computer: "vm-02", image: "rocky9", scripted: "a slow guest that reboots once",
			outcome: reservation.OutcomeReady, attempts: 1},
		{name: actReload, user: "chloe", computer: "vm-03", image: "ubuntu2404", scripted: "silent at first, even after a power reset",
			outcome: reservation.OutcomeReady, attempts: 2},
		{name: actKilled, user: "dmitri", computer: "vm-04", image: "debian12", scripted: "its worker is killed (SIGKILL)",
			outcome: reservation.OutcomeReady, attempts: 1, lost: true},
		{name: actFails, user: "emre", computer: "vm-05", image: "debian12", scripted: "shows somebody else's host key",
			outcome: reservation.OutcomeFailed, attempts: 1, reason: "host key"},
		{name: actCancel, user: "fatima", computer: "vm-06", image: "debian12", scripted: "its user cancels it",
			outcome: reservation.OutcomeCancelled, attempts: 1},
		{name: actSysprep, user: "goran", computer: "vm-07", image: "windows2022", scripted: "Server 2022 with a slow Sysprep",
			outcome: reservation.OutcomeReady, attempts: 1},
		{name: actReloads7, user: "hana", computer: "vm-08", image: "windows7", scripted: "a 7 whose set-up ends in an error at first",
			outcome: reservation.OutcomeReady, attempts: 2},
		{name: actXP, user: "ivan", computer: "vm-09", image: "windowsxp", scripted: "XP and its mini-setup",
			outcome: reservation.OutcomeReady, attempts: 1},
	}
}
