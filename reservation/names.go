package reservation

import (
	"fmt"
	"strings"
)

// MaxNameLength is the longest name of a reservation, a computer or an image: one DNS label (RFC 1035: 63 octets),
// because a computer's name becomes a host name and a VM's name.
const MaxNameLength = 63

// FieldError is one fault in what somebody gave us. It names the field, the value and the remedy, so that the person
// who reads it knows what to change.
type FieldError struct {
	Field  string // where it stands, such as "image.name"
	Value  string // what stood there
	Remedy string // what to write instead
}

func (e *FieldError) Error() string {
	return fmt.Sprintf("%s is %q: %s", e.Field, e.Value, e.Remedy)
}

// CheckName returns a *FieldError unless value matches ^[a-z0-9][a-z0-9.-]{0,62}$. Names of reservations, computers
// and images are checked wherever they enter Berth, because they become VM names, host names, paths and workflow IDs.
func CheckName(field, value string) error {
	return checkAgainst(field, value, "abcdefghijklmnopqrstuvwxyz0123456789", ".-",
		"use 1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or a digit")
}

// CheckUser returns a *FieldError unless value can be a user's name: 1 to 63 letters, digits and any of "._@-",
// beginning with a letter or a digit. Users keep their capitals and their domain.
func CheckUser(field, value string) error {
	return checkAgainst(field, value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", "._@-",
		"use 1 to 63 letters, digits, '.', '_', '@' and '-', beginning with a letter or a digit")
}

func checkAgainst(field, value, first, further, remedy string) error {
	ok := len(value) >= 1 && len(value) <= MaxNameLength && strings.ContainsRune(first, rune(value[0]))
	for i := 1; ok && i < len(value); i++ {
		ok = strings.IndexByte(first, value[i]) >= 0 || strings.IndexByte(further, value[i]) >= 0
	}
	if ok {
		return nil
	}
	return &FieldError{Field: field, Value: value, Remedy: remedy}
}
