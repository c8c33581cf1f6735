// Package workflows holds Berth's workflows. They are deterministic: they know nouns, activities by name, and time.
package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"

	"berth/reservation"
)

// What the Reservation workflow is called and what it answers to.
const (
	ReservationName = "Reservation" // the workflow: takes a reservation.Reservation, returns its reservation.Status
	StatusQuery     = "status"      // the query: no argument, returns a reservation.Status
	ReleaseSignal   = "release"     // the signal: no argument; the user is done with the computer
	ExtendUpdate    = "extend"      // the update: takes an ExtendRequest, returns the new end
)

// ExtendRequest asks for a later end of a reservation.
type ExtendRequest struct {
	End time.Time `json:"end"`
}

// Attributes are the typed search attributes of a reservation's workflow.
type Attributes struct {
	Reservation temporal.SearchAttributeKeyKeyword
	Computer    temporal.SearchAttributeKeyKeyword
	Image       temporal.SearchAttributeKeyKeyword
	Provisioner temporal.SearchAttributeKeyKeyword
	OS          temporal.SearchAttributeKeyKeyword
	User        temporal.SearchAttributeKeyKeyword
	Phase       temporal.SearchAttributeKeyKeyword
	Outcome     temporal.SearchAttributeKeyKeyword
	Attempt     temporal.SearchAttributeKeyInt64
}

// SearchAttributes returns the keys of the search attributes. They must be registered before a worker takes work: one
// that is not hangs every workflow task.
func SearchAttributes() Attributes {
	return Attributes{
		Reservation: temporal.NewSearchAttributeKeyKeyword("BerthReservation"),
		Computer:    temporal.NewSearchAttributeKeyKeyword("BerthComputer"),
		Image:       temporal.NewSearchAttributeKeyKeyword("BerthImage"),
		Provisioner: temporal.NewSearchAttributeKeyKeyword("BerthProvisioner"),
		OS:          temporal.NewSearchAttributeKeyKeyword("BerthOS"),
		User:        temporal.NewSearchAttributeKeyKeyword("BerthUser"),
		Phase:       temporal.NewSearchAttributeKeyKeyword("BerthPhase"),
		Outcome:     temporal.NewSearchAttributeKeyKeyword("BerthOutcome"),
		Attempt:     temporal.NewSearchAttributeKeyInt64("BerthAttempt"),
	}
}

// Keys returns all of the keys, for registering and checking them.
func (a Attributes) Keys() []temporal.SearchAttributeKey {
	return []temporal.SearchAttributeKey{a.Reservation, a.Computer, a.Image, a.Provisioner, a.OS, a.User, a.Phase, a.Outcome, a.Attempt}
}

// AtStart returns the attributes that a reservation's workflow is started with.
func (a Attributes) AtStart(r reservation.Reservation) []temporal.SearchAttributeUpdate {
	return []temporal.SearchAttributeUpdate{
		a.Reservation.ValueSet(r.Name),
		a.Computer.ValueSet(r.Computer.Name),
		a.Image.ValueSet(r.Image.String()),
		a.Provisioner.ValueSet(r.Computer.Provisioner),
		a.OS.ValueSet(r.Image.OS.String()),
		a.User.ValueSet(r.User),
		a.Phase.ValueSet(string(reservation.PhaseLoad)),
		a.Attempt.ValueSet(1),
	}
}

// Summary returns the one line that names a reservation in the Web UI: "user: image on computer".
func Summary(r reservation.Reservation) string {
	return r.User + ": " + r.Image.String() + " on " + r.Computer.Name
}
