package winos

import "slices"

// Version is which Windows a guest is, in the words of a catalog's os.version.
type Version string

// The versions there are.
const (
	XP           Version = "xp"
	Server2003   Version = "2003"
	Server2003R2 Version = "2003r2"
	Vista        Version = "vista"
	Server2008   Version = "2008"
	Windows7     Version = "7"
	Server2008R2 Version = "2008r2"
	Windows8     Version = "8"
	Server2012   Version = "2012"
	Windows81    Version = "8.1"
	Server2012R2 Version = "2012r2"
	Windows10    Version = "10"
	Server2016   Version = "2016"
	Server2019   Version = "2019"
	Windows11    Version = "11"
	Server2022   Version = "2022"
	Server2025   Version = "2025"
)

// release is what a version says of itself.
type release struct {
	version    Version
	product    string
	major      int
	minor      int
	build      string
	powershell string
	server     bool
}

func releases() []release {
	return []release{
		{XP, "Microsoft Windows XP", 5, 1, "2600", "2.0", false},
		{Server2003, "Microsoft Windows Server 2003", 5, 2, "3790", "2.0", true},
		{Server2003R2, "Microsoft Windows Server 2003 R2", 5, 2, "3790", "2.0", true},
		{Vista, "Windows Vista (TM) Enterprise", 6, 0, "6002", "2.0", false},
		{Server2008, "Windows Server (R) 2008 Standard", 6, 0, "6002", "2.0", true},
		{Windows7, "Windows 7 Enterprise", 6, 1, "7601", "2.0", false},
		{Server2008R2, "Windows Server 2008 R2 Standard", 6, 1, "7601", "2.0", true},
		{Windows8, "Windows 8 Enterprise", 6, 2, "9200", "3.0", false},
		{Server2012, "Windows Server 2012 Standard", 6, 2, "9200", "3.0", true},
		{Windows81, "Windows 8.1 Enterprise", 6, 3, "9600", "4.0", false},
		{Server2012R2, "Windows Server 2012 R2 Standard", 6, 3, "9600", "4.0", true},
		{Windows10, "Windows 10 Enterprise", 10, 0, "19045", "5.1", false},
		{Server2016, "Windows Server 2016 Standard", 10, 0, "14393", "5.1", true},
		{Server2019, "Windows Server 2019 Standard", 10, 0, "17763", "5.1", true},
		{Windows11, "Windows 10 Enterprise", 10, 0, "22631", "5.1", false}, // 11 calls itself 10 in the registry
		{Server2022, "Windows Server 2022 Standard", 10, 0, "20348", "5.1", true},
		{Server2025, "Windows Server 2025 Standard", 10, 0, "26100", "5.1", true},
	}
}

// Versions returns all there are.
func Versions() []Version {
	var all []Version
	for _, r := range releases() {
		all = append(all, r.version)
	}
	return all
}

func (v Version) release() release {
	all := releases()
	if i := slices.IndexFunc(all, func(r release) bool { return r.version == v }); i >= 0 {
		return all[i]
	}
	return all[len(all)-1]
}

// Old says whether it is XP or 2003: a mini-setup without ImageState, C:\Documents and Settings, no firewall rules by name.
func (v Version) Old() bool { return v.release().major < 6 }
