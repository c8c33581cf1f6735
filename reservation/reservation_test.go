package reservation_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/scripted"
	"berth/reservation"
)

func TestNames(t *testing.T) {
	for value, ok := range map[string]bool{
		"vm-01": true, "a": true, "9.lab-x": true, strings.Repeat("a", 63): true,
		"": false, "VM": false, "-a": false, ".a": false, "a_b": false, "a b": false, "a/../b": false, "a;rm": false, "é": false,
		"a\n": false, "a\x00": false, strings.Repeat("a", 64): false,
	} {
		err := reservation.CheckName("computer.name", value)
		require.Equal(t, ok, err == nil, "%q", value)
		if !ok {
			var field *reservation.FieldError
			require.ErrorAs(t, err, &field)
			require.Equal(t, "computer.name", field.Field)
			require.Equal(t, value, field.Value)
			require.NotEmpty(t, field.Remedy)
		}
	}
	require.NoError(t, reservation.CheckUser("user", "Ana.Silva@example.org"))
	require.Error(t, reservation.CheckUser("user", "ana|bob"))
}

func TestAddresses(t *testing.T) {
	for value, ok := range map[string]bool{
		"10.0.0.7": true, "10.0.0.7:22": true, "[2001:db8::1]:22": true, "2001:db8::1": true, "node7": true, "node7.lab.example:2222": true, "Node7": true,
		"": false, "node 7": false, "10.0.0.7:0": false, "10.0.0.7:70000": false, "host:ssh": false, "-node": false,
	} {
		require.Equal(t, ok, reservation.CheckAddress("computer.address", value) == nil, "%q", value)
	}
}

func TestEveryFaultOfAReservationIsToldAtOnce(t *testing.T) {
	r := scripted.Reservation("web", "vm-01", "vmware")
	now := time.Now()
	r.End = now.Add(time.Hour)
	require.NoError(t, r.Validate(now))
	r.Name, r.Computer.Name, r.Image.Name, r.Image.Revision, r.End = "W", "V", "I", 0, now
	err := r.Validate(now)
	for _, field := range []string{"reservation.name", "reservation.end", "computer.name", "image.name", "image.revision"} {
		require.ErrorContains(t, err, field)
	}
}

func TestVerdicts(t *testing.T) {
	cause := errors.New("datastore1")
	for name, c := range map[string]struct {
		err     error
		verdict reservation.Verdict
		says    string
	}{
		"nil is done":            {nil, reservation.VerdictDone, ""},
		"reload":                 {reservation.Reload("no space", cause), reservation.VerdictReload, "no space: datastore1"},
		"fail":                   {reservation.Fail("gone", nil), reservation.VerdictFail, "gone"},
		"wrapped":                {fmt.Errorf("load: %w", reservation.Fail("gone", cause)), reservation.VerdictFail, "load: gone: datastore1"},
		"the outermost counts":   {reservation.Fail("all attempts failed", reservation.Reload("silent", nil)), reservation.VerdictFail, "all attempts failed: silent"},
		"anything else is fault": {cause, "", "datastore1"},
		"a cause alone":          {reservation.Reload("", cause), reservation.VerdictReload, "datastore1"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.verdict, reservation.VerdictOf(c.err))
			if c.err != nil {
				require.EqualError(t, c.err, c.says)
			}
		})
	}
	require.ErrorIs(t, reservation.Reload("no space", cause), cause)
}

func TestMarks(t *testing.T) {
	mark := reservation.Mark{Reservation: "web", Run: "0193-77", Attempt: 2}
	read, err := reservation.ParseMark(mark.String())
	require.NoError(t, err)
	require.Equal(t, mark, read)
	require.True(t, mark.Same(reservation.Mark{Reservation: "web", Run: "0193-77", Attempt: 1}))
	require.False(t, mark.Same(reservation.Mark{Reservation: "web", Run: "other", Attempt: 2}))
	for _, text := range []string{"", "web", "web/run", "web/run/x", "web/run/0", "a/b/c/d"} {
		_, err := reservation.ParseMark(text)
		require.Error(t, err, text)
	}
}

func TestLimitsAreWrittenAsPeopleWriteThem(t *testing.T) {
	limits := reservation.Limits{Load: reservation.Duration(90 * time.Second)}
	data, err := json.Marshal(limits)
	require.NoError(t, err)
	require.JSONEq(t, `{"load":"1m30s"}`, string(data))
	var back reservation.Limits
	require.NoError(t, json.Unmarshal([]byte(`{"load":"90s","response":"1h"}`), &back))
	require.Equal(t, time.Hour, back.Response.Std())
	require.ErrorContains(t, json.Unmarshal([]byte(`{"load":"90"}`), &back), "such as 90s")
}
