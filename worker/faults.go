package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"berth/internal/temporalclient"
	"berth/reservation"
)

// startError says why the worker did not start: every fault that was found.
type startError struct {
	faults []error
	code   int
}

func (e *startError) Error() string {
	text := "1 fault"
	if n := len(e.faults); n != 1 {
		text = fmt.Sprintf("%d faults", n)
	}
	text += ", nothing was started:"
	for _, fault := range e.faults {
		text += "\n  - " + strings.ReplaceAll(fault.Error(), "\n", "\n    ")
	}
	return text
}

func (e *startError) Unwrap() []error { return e.faults }

// newStartError returns nil without faults.
func newStartError(faults ...error) error {
	e := &startError{code: exitFault}
	for _, fault := range faults {
		e.faults = append(e.faults, flatten(fault)...)
	}
	if len(e.faults) == 0 {
		return nil
	}
	for _, fault := range e.faults {
		if needsMending(fault) {
			e.code = exitConfiguration
		}
	}
	return e
}

// flatten takes joined errors apart. An error that wraps several with words of its own stays whole.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	var texts []string
	for _, one := range joined.Unwrap() {
		all = append(all, flatten(one)...)
		texts = append(texts, one.Error())
	}
	if strings.Join(texts, "\n") != err.Error() {
		return []error{err}
	}
	return all
}

// passing is a fault that another start may not have.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

// needsMending says whether a fault will be there at the next start, too, unless somebody changes something.
func needsMending(err error) bool {
	var unreachable *temporalclient.UnreachableError
	if errors.As(err, &unreachable) {
		return false
	}
	return !errors.As(err, new(passing)) || reservation.VerdictOf(err) == reservation.VerdictFail
}

// complain writes how a run ended, and returns the exit code.
func complain(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "worker: "+err.Error())
	var start *startError
	if errors.As(err, &start) {
		return start.code
	}
	return exitFault
}
