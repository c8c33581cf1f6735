package provisioners

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"berth/reservation"
)

// InLine writes a place in a line for people: "1st in line".
func InLine(place int) string {
	suffix := "th"
	if place%100 < 11 || place%100 > 13 {
		switch place % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return strconv.Itoa(place) + suffix + " in line"
}

// UnknownKeys returns a fault for each of a source's or a placement's keys that its provisioner does not know, in order. Field is
// where the values stand.
func UnknownKeys(provisionerType, field string, values map[string]string, known ...string) []error {
	var faults []error
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, key) {
			faults = append(faults, &reservation.FieldError{Field: field + "." + key, Value: values[key],
				Remedy: "provisioner " + provisionerType + " knows no such key: write one of " + strings.Join(known, ", ")})
		}
	}
	return faults
}
