// Package reservation holds Berth's nouns: what is reserved (Reservation, Computer, Image, OS), how a load proceeds
// (Attempt, Phase, Stage, Step, Limits, Status) and what a module may answer (Reload, Fail).
//
// Everything here is plain data and the checks on it. The package does no I/O and knows neither Temporal nor any
// vendor, so that every other package may import it.
package reservation
