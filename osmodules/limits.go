package osmodules

import (
	"strings"
	"time"

	"berth/reservation"
)

// LimitRow is one row of the table of time limits.
type LimitRow struct {
	Family   reservation.OSFamily
	Class    string   // for a person: "8.1/2012 R2"; "" for a row that takes every version
	Versions []string // of OS.Version, as matches reads them; empty matches every version that no other row does
	Hardware reservation.Hardware
	Sysprep  bool
	Limits   reservation.Limits
	Source   string // where the figures come from
}

// windowsClass is the Windows versions whose limits are alike.
type windowsClass struct {
	name     string
	versions []string
	old      bool // XP and 2003: VCL's Windows.pm and not its Version_6.pm
	overall  int  // how many times VCL's wait the whole wait is
}

// windowsClasses returns the version classes. In VCL all from Vista on have one figure, which bounds silence and the whole
// wait alike. Here it bounds silence only, so the whole may be longer: three times for the classes whose mini-setup was
// reported as too slow for any limit (VCL-291: Vista, 7 and 2008), twice for the others.
func windowsClasses() []windowsClass {
	return []windowsClass{
		{"XP/2003", []string{"xp", "2003", "2003r2"}, true, 2},
		{"Vista/2008", []string{"vista", "2008"}, false, 3},
		{"7/2008 R2", []string{"7", "2008r2"}, false, 3},
		{"8/2012", []string{"8", "2012"}, false, 2},
		{"8.1/2012 R2", []string{"8.1", "2012r2"}, false, 2},
		{"10/2016/2019", []string{"10", "2016", "2019"}, false, 2},
		{"11/2022/2025", []string{"11", "2022", "2025"}, false, 2},
		{"", nil, false, 3}, // a version that this table does not know: the most patient
	}
}

// Table returns the time limits of a first attempt. The response figures are VCL's (reference: VCL 2.5.1, "initial
// sleep / SSH total", and Version_6.pm's 15/600 after one power reset); none is shorter than VCL's.
func Table() []LimitRow {
	const (
		loadVirtual = 30 * time.Minute // VCL VMware.pm: 1800 s for the image's copy to a datastore (semaphore)
		loadMetal   = 60 * time.Minute // VCL xCAT.pm: 3600 s overall
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
	rows := []LimitRow{
		{reservation.Linux, "", nil, reservation.Virtual, false, limits(loadVirtual, 5*time.Second, 600*time.Second, again, configure),
			"VCL Linux.pm post_load: 5/600/5; reset and second wait from Version_6.pm: 15/600"},
		{reservation.Linux, "", nil, reservation.Physical, false, limits(loadMetal, 5*time.Second, 600*time.Second, again, configure),
			"VCL Linux.pm post_load: 5/600/5; xCAT.pm: 3600 s overall"},
	}
	for _, class := range windowsClasses() {
		for _, hardware := range []reservation.Hardware{reservation.Virtual, reservation.Physical} {
			for _, sysprep := range []bool{false, true} {
				load := loadVirtual
				if hardware == reservation.Physical {
					load = loadMetal
				}
				delay, silence, second, source := class.seed(hardware, sysprep, again)
				row := LimitRow{reservation.Windows, class.name, class.versions, hardware, sysprep,
					limits(load, delay, time.Duration(class.overall)*silence, second, configureW), source}
				row.Limits.NoProgress = reservation.Duration(silence)
				rows = append(rows, row)
			}
		}
	}
	return rows
}

// seed returns VCL's figures for a class: the initial delay, how long a guest may be silent, the second wait (0: no
// power reset) and where they stand.
func (c windowsClass) seed(hardware reservation.Hardware, sysprep bool, again time.Duration) (delay, silence, second time.Duration, source string) {
	switch {
	case c.old:
		return 15 * time.Second, 900 * time.Second, 0, "VCL Windows.pm wait_for_response: 15/900/8, no reset"
	case sysprep && hardware == reservation.Virtual:
		return 60 * time.Second, 1800 * time.Second, again, "VCL Version_6.pm: Sysprep 60/1800/5; VCL uses it for metal only, a Sysprepped VM is as slow"
	case sysprep:
		return 60 * time.Second, 1800 * time.Second, again, "VCL Version_6.pm: metal with Sysprep 60/1800/5, then reset and 15/600/5"
	case hardware == reservation.Virtual:
		return 5 * time.Second, 300 * time.Second, again, "VCL Version_6.pm wait_for_response: virtual 5/300/5, then reset and 15/600/5"
	default:
		return 15 * time.Second, 600 * time.Second, again, "VCL Version_6.pm: metal without Sysprep 15/600/5, then reset and 15/600/5"
	}
}

// LimitsFor returns the limits of attempt n of an image on a kind of hardware: the table's row, with the image's own
// figures over it, stretched by the attempt.
func LimitsFor(image reservation.Image, hardware reservation.Hardware, attempt int) reservation.Limits {
	return find(image.OS, hardware, image.Sysprep).Limits.Over(image.Limits).Stretched(attempt)
}

// ClassOf returns the table's name for a version class, such as "8.1/2012 R2"; "" for a version that has none.
func ClassOf(os reservation.OS) string { return find(os, reservation.Virtual, false).Class }

func find(os reservation.OS, hardware reservation.Hardware, sysprep bool) LimitRow {
	best := -1
	var found LimitRow
	for _, row := range Table() {
		if row.Family != os.Family || row.Hardware != hardware || row.Sysprep != sysprep {
			continue
		}
		if n := row.matches(os.Version); n > best {
			best, found = n, row
		}
	}
	return found
}

// matches says how much of a version the row knows: the length of its longest name that the version is or begins with
// as a whole word ("10 22H2", "xp-sp3"); 0 for a row that takes every version, -1 for one that does not take this.
func (r LimitRow) matches(version string) int {
	if len(r.Versions) == 0 {
		return 0
	}
	version = strings.ToLower(version)
	for _, word := range []string{"microsoft", "windows", "server"} {
		version = strings.ReplaceAll(version, word, "")
	}
	version = strings.ReplaceAll(strings.TrimSpace(version), " r2", "r2")
	best := -1
	for _, name := range r.Versions {
		rest, ok := strings.CutPrefix(version, name)
		if ok && len(name) > best && !strings.ContainsAny(rest[:min(1, len(rest))], ".0123456789") {
			best = len(name)
		}
	}
	return best
}
