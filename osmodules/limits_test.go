package osmodules_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/scripted"
	"berth/osmodules"
	"berth/reservation"
)

func image(family reservation.OSFamily, version string, sysprep bool) reservation.Image {
	i := scripted.Reservation("web", "vm-01", "vmware").Image
	i.OS, i.Sysprep = reservation.OS{Family: family, Version: version}, sysprep
	return i
}

func TestLimitsOfEachClassAndAttempt(t *testing.T) {
	for name, c := range map[string]struct {
		image    reservation.Image
		hardware reservation.Hardware
		response [3]time.Duration
		delay    time.Duration
		again    [3]time.Duration
	}{
		"linux on a VM":              {image(reservation.Linux, "12", false), reservation.Virtual, [3]time.Duration{600, 900, 1200}, 5, [3]time.Duration{615, 922, 1230}},
		"linux on metal":             {image(reservation.Linux, "9", false), reservation.Physical, [3]time.Duration{600, 900, 1200}, 5, [3]time.Duration{615, 922, 1230}},
		"windows XP":                 {image(reservation.Windows, "XP", false), reservation.Virtual, [3]time.Duration{900, 1350, 1800}, 15, [3]time.Duration{0, 0, 0}},
		"windows 2003 R2 on metal":   {image(reservation.Windows, "2003r2", true), reservation.Physical, [3]time.Duration{900, 1350, 1800}, 15, [3]time.Duration{0, 0, 0}},
		"windows 10 on a VM":         {image(reservation.Windows, "10", false), reservation.Virtual, [3]time.Duration{300, 450, 600}, 5, [3]time.Duration{615, 922, 1230}},
		"windows 10 Sysprep, VM":     {image(reservation.Windows, "10", true), reservation.Virtual, [3]time.Duration{1800, 2700, 3600}, 60, [3]time.Duration{615, 922, 1230}},
		"windows 2022 on metal":      {image(reservation.Windows, "2022", false), reservation.Physical, [3]time.Duration{600, 900, 1200}, 15, [3]time.Duration{615, 922, 1230}},
		"windows 7 Sysprep on metal": {image(reservation.Windows, "7", true), reservation.Physical, [3]time.Duration{1800, 2700, 3600}, 60, [3]time.Duration{615, 922, 1230}},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; n <= 3; n++ {
				limits := osmodules.LimitsFor(c.image, c.hardware, n)
				require.Equal(t, c.response[n-1]*time.Second, limits.Response.Std())
				require.Equal(t, c.again[n-1]*time.Second, limits.ResponseAgain.Std().Truncate(time.Second))
				require.Equal(t, c.delay*time.Second, limits.InitialDelay.Std(), "the delay is not stretched")
				require.Positive(t, limits.Load.Std())
				require.Positive(t, limits.Configure.Std())
				require.Positive(t, limits.Queue.Std())
				require.Equal(t, limits.InitialDelay+limits.Response+limits.ResponseAgain+limits.Configure, limits.Of(reservation.PhasePostLoad))
			}
		})
	}
}

func TestAnImagesOwnLimitsReplaceTheTables(t *testing.T) {
	i := image(reservation.Linux, "12", false)
	i.Limits.Response = reservation.Duration(40 * time.Second)
	limits := osmodules.LimitsFor(i, reservation.Virtual, 2)
	require.Equal(t, time.Minute, limits.Response.Std())
	require.Equal(t, 45*time.Minute, limits.Load.Std(), "what the image does not say stays the table's")
}

func TestEveryRowOfTheTableSaysItsSourceAndIsReached(t *testing.T) {
	reached := map[string]bool{}
	for _, row := range osmodules.Table() {
		require.NotEmpty(t, row.Source)
		version := "any"
		if len(row.Versions) > 0 {
			version = row.Versions[0]
		}
		require.Equal(t, row.Limits, osmodules.LimitsFor(image(row.Family, version, row.Sysprep), row.Hardware, 1))
		reached[fmt.Sprint(row.Family, row.Hardware, row.Sysprep, version)] = true
	}
	require.Len(t, reached, len(osmodules.Table()), "no row hides another")
}
