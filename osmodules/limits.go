package osmodules

import (
	"strings"
	"time"

	"berth/reservation"
)

// LimitRow is one row of the table of time limits.
type LimitRow struct {
	Family   reservation.OSFamily
	Versions []string // prefixes of OS.Version in lower case; empty matches every version
	Hardware reservation.Hardware
	Sysprep  bool
	Limits   reservation.Limits
	Source   string // where the figures come from
}

// Table returns the time limits of a first attempt, most particular rows first. The response figures are VCL's
// (reference: VCL 2.5.1, "initial sleep / SSH total", and Version_6.pm's 15/600 after one power reset).
func Table() []LimitRow {
	const (
		noReset     = 0
		loadVirtual = 30 * time.Minute  // VCL VMware.pm: 1800 s for the image's copy to a datastore (semaphore)
		loadMetal   = 102 * time.Minute // VCL xCAT.pm: 1800 s in line for an install, about 720 s for the power, 3600 s overall
		again       = 15*time.Second + 600*time.Second
		settle      = 5 * time.Second
		queue       = 2 * time.Minute
		configure   = 10 * time.Minute // VCL Linux.pm: image scripts 300 s, time 180 s, public address 60 s, rounded up
		configureW  = 30 * time.Minute // VCL Windows.pm: reboot 300 s twice, slmgr 240 s a call, updates
	)
	limits := func(load, delay, response, again, configure time.Duration) reservation.Limits {
		return reservation.Limits{
			Load: reservation.Duration(load), InitialDelay: reservation.Duration(delay), Response: reservation.Duration(response),
			ResponseAgain: reservation.Duration(again), Configure: reservation.Duration(configure),
			Settle: reservation.Duration(settle), Queue: reservation.Duration(queue),
		}
	}
	old := []string{"xp", "2003"}
	return []LimitRow{
		{reservation.Linux, nil, reservation.Virtual, false, limits(loadVirtual, 5*time.Second, 600*time.Second, again, configure),
			"VCL Linux.pm post_load: 5/600/5; reset and second wait from Version_6.pm: 15/600"},
		{reservation.Linux, nil, reservation.Physical, false, limits(loadMetal, 5*time.Second, 600*time.Second, again, configure),
			"VCL Linux.pm post_load: 5/600/5; xCAT.pm: throttle 1800 s, power 720 s, overall 3600 s"},
		{reservation.Windows, old, reservation.Virtual, false, limits(loadVirtual, 15*time.Second, 900*time.Second, noReset, configureW),
			"VCL Windows.pm wait_for_response: 15/900/8, no reset"},
		{reservation.Windows, old, reservation.Virtual, true, limits(loadVirtual, 15*time.Second, 900*time.Second, noReset, configureW),
			"VCL Windows.pm wait_for_response: 15/900/8, no reset"},
		{reservation.Windows, old, reservation.Physical, false, limits(loadMetal, 15*time.Second, 900*time.Second, noReset, configureW),
			"VCL Windows.pm wait_for_response: 15/900/8, no reset"},
		{reservation.Windows, old, reservation.Physical, true, limits(loadMetal, 15*time.Second, 900*time.Second, noReset, configureW),
			"VCL Windows.pm wait_for_response: 15/900/8, no reset"},
		{reservation.Windows, nil, reservation.Virtual, false, limits(loadVirtual, 5*time.Second, 300*time.Second, again, configureW),
			"VCL Version_6.pm wait_for_response: virtual 5/300/5, then reset and 15/600/5"},
		{reservation.Windows, nil, reservation.Virtual, true, limits(loadVirtual, 60*time.Second, 1800*time.Second, again, configureW),
			"VCL Version_6.pm: Sysprep 60/1800/5; VCL uses it for metal only, a Sysprepped VM is as slow"},
		{reservation.Windows, nil, reservation.Physical, false, limits(loadMetal, 15*time.Second, 600*time.Second, again, configureW),
			"VCL Version_6.pm: metal without Sysprep 15/600/5, then reset and 15/600/5"},
		{reservation.Windows, nil, reservation.Physical, true, limits(loadMetal, 60*time.Second, 1800*time.Second, again, configureW),
			"VCL Version_6.pm: metal with Sysprep 60/1800/5, then reset and 15/600/5"},
	}
}

// LimitsFor returns the limits of attempt n of an image on a kind of hardware: the table's row, with the image's own
// figures over it, stretched by the attempt.
func LimitsFor(image reservation.Image, hardware reservation.Hardware, attempt int) reservation.Limits {
	version := strings.ToLower(image.OS.Version)
	for _, row := range Table() {
		if row.Family != image.OS.Family || row.Hardware != hardware || row.Sysprep != image.Sysprep || !row.matches(version) {
			continue
		}
		return row.Limits.Over(image.Limits).Stretched(attempt)
	}
	return image.Limits.Stretched(attempt)
}

func (r LimitRow) matches(version string) bool {
	if len(r.Versions) == 0 {
		return true
	}
	for _, prefix := range r.Versions {
		if strings.HasPrefix(version, prefix) {
			return true
		}
	}
	return false
}
