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

// vcl is how long VCL waits: for an answer, and again after a power reset, in seconds.
func vcl(old bool, hardware reservation.Hardware, sysprep bool) (delay, response, again time.Duration) {
	switch {
	case old:
		return 15, 900, 0
	case sysprep:
		return 60, 1800, 615
	case hardware == reservation.Virtual:
		return 5, 300, 615
	default:
		return 15, 600, 615
	}
}

func TestLimitsOfEachClassAndAttempt(t *testing.T) {
	for _, class := range []struct {
		versions []string
		old      bool
		overall  time.Duration
	}{
		{[]string{"XP", "xp sp3", "2003", "2003 R2"}, true, 2},
		{[]string{"Vista", "2008", "Windows Server 2008"}, false, 3},
		{[]string{"7", "7 SP1", "2008r2", "2008 R2"}, false, 3},
		{[]string{"8", "2012"}, false, 2},
		{[]string{"8.1", "2012r2", "Server 2012 R2"}, false, 2},
		{[]string{"10", "10 22H2", "2016", "2019"}, false, 2},
		{[]string{"11", "2022", "2025"}, false, 2},
	} {
		for _, version := range class.versions {
			for _, hardware := range []reservation.Hardware{reservation.Virtual, reservation.Physical} {
				for _, sysprep := range []bool{false, true} {
					delay, response, again := vcl(class.old, hardware, sysprep)
					line := fmt.Sprintf("%-20s %-8s sysprep=%-5t", version, hardware, sysprep)
					for n := 1; n <= 3; n++ {
						limits := osmodules.LimitsFor(image(reservation.Windows, version, sysprep), hardware, n)
						half := []time.Duration{2, 3, 4}[n-1] // stretched: 1, 1.5 and 2 times
						require.Equal(t, response*time.Second*half/2, limits.NoProgress.Std(), line)
						require.Equal(t, class.overall*response*time.Second*half/2, limits.Response.Std(), line)
						require.Equal(t, again*time.Second*half/2, limits.ResponseAgain.Std(), line)
						require.Equal(t, delay*time.Second, limits.InitialDelay.Std(), "the delay is not stretched")
						require.GreaterOrEqual(t, limits.Response, limits.NoProgress, "not shorter than VCL's")
						require.Positive(t, limits.Load.Std())
						require.Positive(t, limits.Queue.Std())
						require.Equal(t, limits.InitialDelay+limits.Response+limits.ResponseAgain+limits.Configure, limits.Of(reservation.PhasePostLoad))
						line += fmt.Sprintf(" | %d: nothing changes %s, whole wait %s, after a reset %s", n, limits.NoProgress, limits.Response, limits.ResponseAgain)
					}
					t.Log(line)
				}
			}
		}
	}
	for n, stretched := range []time.Duration{600, 900, 1200} {
		for _, hardware := range []reservation.Hardware{reservation.Virtual, reservation.Physical} {
			limits := osmodules.LimitsFor(image(reservation.Linux, "12", false), hardware, n+1)
			require.Equal(t, stretched*time.Second, limits.Response.Std())
			require.Zero(t, limits.NoProgress, "Linux guests are not judged by it")
		}
	}
}

func TestAVersionIsFoundByItsWholeName(t *testing.T) {
	for version, class := range map[string]string{
		"8": "8/2012", "8.1": "8.1/2012 R2", "8.1 Update": "8.1/2012 R2", "2008": "Vista/2008", "2008R2": "7/2008 R2", "2008 r2 sp1": "7/2008 R2",
		"2012": "8/2012", "2012 R2": "8.1/2012 R2", "10": "10/2016/2019", "11": "11/2022/2025", "Windows 11": "11/2022/2025", "10 LTSC": "10/2016/2019",
		"Server 2025": "11/2022/2025", "1": "", "100": "", "8.2": "", "10.0.20348": "", "": "",
	} {
		require.Equal(t, class, osmodules.ClassOf(reservation.OS{Family: reservation.Windows, Version: version}), version)
	}
}

func TestAnImagesOwnLimitsReplaceTheTables(t *testing.T) {
	i := image(reservation.Linux, "12", false)
	i.Limits.Response = reservation.Duration(40 * time.Second)
	limits := osmodules.LimitsFor(i, reservation.Virtual, 2)
	require.Equal(t, time.Minute, limits.Response.Std())
	require.Equal(t, 45*time.Minute, limits.Load.Std(), "what the image does not say stays the table's")
	i = image(reservation.Windows, "10", false)
	i.Limits.NoProgress = reservation.Duration(time.Hour)
	require.Equal(t, 2*time.Hour, osmodules.LimitsFor(i, reservation.Virtual, 3).NoProgress.Std())
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
