package activities_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth/activities"
	"berth/reservation"
)

// What workers of two versions hand each other: heartbeats, requests, tickets. testdata/formats-1.json is what version 1 wrote. This
// version reads all of it, and whatever it writes version 1 finds under the same names with the same meaning; what it adds
// version 1 does not read.
func TestVersionsReadEachOther(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "formats-1.json"))
	require.NoError(t, err)
	var first map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(text, &first))
	for name, value := range map[string]any{"progress": &reservation.Progress{}, "request": &activities.PhaseRequest{}, "enter": &activities.GateRequest{},
		"ticket": &activities.GateTicket{}, "gate": &activities.GateState{}} {
		require.NoError(t, json.Unmarshal(first[name], value), name)
		written, err := json.Marshal(value)
		require.NoError(t, err)
		var was, is any
		require.NoError(t, json.Unmarshal(first[name], &was))
		require.NoError(t, json.Unmarshal(written, &is))
		requireHolds(t, name, was, is)
		delete(first, name)

		// What a later version adds is passed over.
		var more map[string]any
		require.NoError(t, json.Unmarshal(written, &more))
		more["of_a_later_version"] = map[string]int{"x": 1}
		later, err := json.Marshal(more)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(later, value), name)
	}
	require.Empty(t, first)
}

// requireHolds requires that one value holds all that another does.
func requireHolds(t *testing.T, at string, was, is any) {
	t.Helper()
	switch was := was.(type) {
	case map[string]any:
		is, ok := is.(map[string]any)
		require.True(t, ok, at)
		for key, value := range was {
			require.Contains(t, is, key, at)
			requireHolds(t, at+"."+key, value, is[key])
		}
	case []any:
		is, ok := is.([]any)
		require.True(t, ok && len(is) == len(was), at)
		for i := range was {
			requireHolds(t, at, was[i], is[i])
		}
	default:
		require.Equal(t, was, is, at)
	}
}
