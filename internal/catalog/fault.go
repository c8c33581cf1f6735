package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"

	"berth/reservation"
)

// Fault is one fault of a catalog: where it stands and what to do about it.
type Fault struct {
	File   string
	Line   int    // from 1; 0 if the file could not be read
	Field  string // such as "images[0].control.port"
	Value  string // what stands there; "" if nothing, or if it may be a secret
	Remedy string // what to write instead
}

func (f *Fault) Error() string {
	where := f.File
	if f.Line > 0 {
		where += fmt.Sprintf(":%d", f.Line)
	}
	if f.Value == "" {
		return fmt.Sprintf("%s: %s: %s", where, f.Field, f.Remedy)
	}
	return fmt.Sprintf("%s: %s is %q: %s", where, f.Field, f.Value, f.Remedy)
}

// Error holds every fault of a catalog, in the order of their lines.
type Error struct {
	Faults []*Fault
}

// Error returns one line a fault.
func (e *Error) Error() string {
	lines := make([]string, len(e.Faults))
	for i, fault := range e.Faults {
		lines[i] = fault.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the faults, so that errors.As finds them.
func (e *Error) Unwrap() []error {
	faults := make([]error, len(e.Faults))
	for i, fault := range e.Faults {
		faults[i] = fault
	}
	return faults
}

func sortFaults(faults []*Fault) {
	slices.SortStableFunc(faults, func(a, b *Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Field, b.Field))
	})
}

// Nearest returns the one of the known words that was most likely meant by a mistyped one; "" if none is near: at most
// two letters off, or a third of a long word.
func Nearest(word string, known []string) string {
	best, bestDistance := "", max(2, len(word)/3)+1
	for _, candidate := range known {
		distance := levenshtein.ComputeDistance(strings.ToLower(word), strings.ToLower(candidate))
		// A word of three letters is two letters off nearly everything.
		if distance < bestDistance && distance < max(len(word), len(candidate)) && distance <= max(1, max(len(word), len(candidate))/2) {
			best, bestDistance = candidate, distance
		}
	}
	return best
}

// listed is how many names a remedy lists before it says how many more there are.
const listed = 8

// suggestion returns the remedy for an unknown name: the nearest one, or what there is.
func suggestion(kind, name string, known []string) string {
	known = slices.DeleteFunc(slices.Clone(known), func(one string) bool { return one == "" })
	if len(known) == 0 {
		return "the catalog has no " + kind + ": add it there"
	}
	if nearest := Nearest(name, known); nearest != "" {
		return fmt.Sprintf("the catalog has no such %s; did you mean %s?", kind, nearest)
	}
	return fmt.Sprintf("the catalog has no such %s; it has %s", kind, enumerate(known))
}

func enumerate(known []string) string {
	known = slices.Clone(known)
	slices.Sort(known)
	known = slices.Compact(known)
	if len(known) > listed {
		return strings.Join(known[:listed], ", ") + fmt.Sprintf(" and %d more", len(known)-listed)
	}
	return strings.Join(known, ", ")
}

// fieldErrors takes a joined error of a noun or a validator apart. What is no *reservation.FieldError keeps its words.
func fieldErrors(err error) []*reservation.FieldError {
	if err == nil {
		return nil
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*reservation.FieldError
		for _, one := range several.Unwrap() {
			all = append(all, fieldErrors(one)...)
		}
		return all
	}
	var field *reservation.FieldError
	if errors.As(err, &field) {
		return []*reservation.FieldError{field}
	}
	return []*reservation.FieldError{{Remedy: err.Error()}}
}
