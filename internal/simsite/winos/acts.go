package winos

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Each act does what the script of its name does, with the same checks in the same order.

// code is what Windows returns to the script that runs.
func (c *Call) code() int {
	list := c.codes[c.script]
	n := c.called[c.script]
	c.called[c.script]++
	if len(list) == 0 {
		return 0
	}
	return list[min(n, len(list)-1)]
}

func (c *Call) bootText() string { return c.booted.Format("2006-01-02T15:04:05.000Z") }

func (c *Call) old() bool { return c.image.Version.Old() }

func actCopy(c *Call) Fields {
	path := c.value("Path")
	folder := path[:max(strings.LastIndexByte(path, '\\'), 0)]
	if !c.folder(folder) {
		throw("Exception calling \"WriteAllBytes\" with \"2\" argument(s): \"Could not find a part of the path '%s'.\"", path)
	}
	c.write(path, c.Data)
	return Fields{"result": "done", "detail": fmt.Sprintf("wrote %d bytes", len(c.Data))}
}

// folder says whether a folder is there: Windows' own, or one that something is in.
func (c *Call) folder(path string) bool {
	path = strings.ToLower(strings.TrimSuffix(path, `\`))
	if slices.Contains([]string{"c:", `c:\windows`, `c:\windows\temp`, lower(c.programData())}, path) {
		return true
	}
	for name := range c.files {
		if strings.HasPrefix(name, path+`\`) {
			return true
		}
	}
	return false
}

func (m *Machine) programData() string {
	if m.image.Version.Old() {
		return `C:\Documents and Settings\All Users`
	}
	return `C:\ProgramData`
}

func actEcho(c *Call) Fields {
	r := c.image.Version.release()
	return Fields{"result": "done", "nonce": c.value("Nonce"), "boot": c.bootText(), "version": fmt.Sprintf("%d.%d.%s", r.major, r.minor, r.build),
		"admin": slices.Contains(c.users[lower(c.image.User)].Groups, "Administrators"), "hidden": false}
}

func actSetup(c *Call) Fields {
	names := []string{"sysprep", "setupcl", "windeploy", "oobeldr", "msoobe", "setup"}
	running := map[string]bool{}
	processes, commands := c.processes()
	for _, process := range processes {
		if name := strings.TrimSuffix(process, ".exe"); slices.Contains(names, name) {
			running[name] = true
		}
	}
	givesUp := regexp.MustCompile(`(?i)could not finish configuring|could not complete the installation|could not parse or process|is not configured to run on this computer|restarted unexpectedly|Online installation cannot complete|Setup\.exe failed, returning exit code|unattend file is not valid`)
	size, failure := 0, ""
	var errors []string
	for _, folder := range []string{`C:\Windows`, `C:\Windows\Panther`, `C:\Windows\Panther\UnattendGC`} {
		for _, name := range []string{"setupact.log", "setuperr.log"} {
			f, ok := c.files[lower(folder+`\`+name)]
			if !ok {
				continue
			}
			if name == "setupact.log" {
				size += len(f.content)
			}
			if f.changed.Before(c.booted) {
				continue
			}
			lines := strings.Split(strings.TrimSpace(string(f.content)), "\r\n")
			if name == "setuperr.log" {
				errors = append(errors, last(lines, 5)...)
			}
			for _, line := range last(lines, 50) {
				if givesUp.MatchString(line) {
					failure = line
				}
			}
		}
	}
	text := strings.Join(errors, " / ")
	return Fields{"result": "done", "boot": c.bootText(), "setupInProgress": c.reg(SetupKey, "SystemSetupInProgress"), "oobeInProgress": c.reg(SetupKey, "OOBEInProgress"),
		"imageState": c.reg(ImageStateKey, "ImageState"), "generalization": c.reg(SysprepKey, "GeneralizationState"),
		"processes": strings.Join(slices.Sorted(maps.Keys(running)), ","), "commands": strings.Join(commands, ","), "logSize": strconv.Itoa(size), "errors": text[max(0, len(text)-400):], "failure": failure}
}

func last(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }

func actService(c *Call) Fields {
	for name := range strings.SplitSeq(c.value("Names"), ",") {
		if s, ok := c.services[lower(name)]; ok {
			s.Start = "Automatic"
			c.services[lower(name)] = s
			return Fields{"result": "done", "detail": "automatic: " + name, "service": name}
		}
	}
	return Fields{"result": "reload", "detail": "there is none of the services " + c.value("Names"), "service": ""}
}

// openPorts lets networks reach ports (with commas between) under a rule of ours, switches off what others have opened
// there, and says how many.
func (c *Call) openPorts(title, protocol, ports string) int {
	ours := Rule{Name: title, Direction: "in", Action: "allow", Protocol: protocol, LocalPort: ports, Remote: c.value("Sources"), Enabled: true}
	wanted := strings.Split(ports, ",")
	if c.old() { // there is one entry a port
		for _, port := range wanted {
			c.rules = slices.DeleteFunc(c.rules, func(r Rule) bool { return r.Protocol == protocol && r.LocalPort == port })
			ours.LocalPort = port
			c.rules = append(c.rules, ours)
		}
		return 0
	}
	found, closed := false, 0
	for i, r := range c.rules {
		shared := slices.ContainsFunc(strings.Split(r.LocalPort, ","), func(port string) bool { return slices.Contains(wanted, port) })
		switch {
		case r.Name == title && r.Protocol == protocol:
			c.rules[i].LocalPort, c.rules[i].Remote, c.rules[i].Enabled = ports, ours.Remote, true
			found = true
		case r.Name != title && r.Enabled && r.Direction == "in" && r.Action == "allow" && r.Protocol == protocol && shared:
			c.rules[i].Enabled = false
			closed++
		}
	}
	if !found {
		c.rules = append(c.rules, ours)
	}
	return closed
}

func actFirewall(c *Call) Fields {
	closed := c.openPorts("Berth control channel", "TCP", c.value("Ports"))
	for kind := range c.profiles {
		c.profiles[kind] = true
	}
	return Fields{"result": "done", "detail": "open to " + c.value("Sources"), "closed": closed}
}

func actRDP(c *Call) Fields {
	port, err := strconv.Atoi(c.value("Port"))
	if err != nil {
		throw("Cannot convert value \"%s\" to type \"System.Int32\".", c.value("Port"))
	}
	was := c.reg(terminalServer+`\WinStations\RDP-Tcp`, "PortNumber")
	c.setDword(terminalServer, "fDenyTSConnections", 0)
	c.setDword(terminalServer+`\WinStations\RDP-Tcp`, "PortNumber", port)
	closed := c.openPorts("Berth Remote Desktop", "TCP", c.value("Port"))
	if !c.old() {
		closed += c.openPorts("Berth Remote Desktop", "UDP", c.value("Port"))
	}
	c.services["termservice"] = Service{Name: "TermService", Start: "Automatic", Running: true}
	return Fields{"result": "done", "detail": "port " + c.value("Port") + " open to " + c.value("Sources"), "closed": closed,
		"reboot": c.old() && was != strconv.Itoa(port)}
}

func (c *Call) adapter(name string) *Adapter {
	i := slices.IndexFunc(c.adapters, func(a Adapter) bool {
		if name != "" {
			return strings.EqualFold(a.Name, name)
		}
		return a.Gateway.IsValid()
	})
	if i < 0 {
		return nil
	}
	return &c.adapters[i]
}

// actAddress does not wait: an address of a simulated guest is there, or (with a code) never comes.
func actAddress(c *Call) Fields {
	adapter := c.adapter(c.value("Interface"))
	switch {
	case adapter == nil && c.value("Interface") != "":
		return Fields{"result": "fail", "detail": "there is no network connection " + c.value("Interface"), "publicAddress": ""}
	case adapter == nil || !adapter.Address.IsValid() || c.code() != 0:
		return Fields{"result": "reload", "detail": "no public address came, not even after the lease was renewed", "publicAddress": ""}
	}
	address := adapter.Address.Addr().String()
	return Fields{"result": "done", "detail": address, "publicAddress": address}
}

func actStatic(c *Call) Fields {
	name, address, control := c.value("Interface"), c.value("Address"), c.value("Control")
	adapter := c.adapter(name)
	if name == "" || adapter == nil {
		return Fields{"result": "fail", "detail": "there is no network connection " + name, "publicAddress": ""}
	}
	if has := adapter.Address.Addr().String(); control != "" && has == control && control != address {
		return Fields{"result": "fail", "detail": "the network connection " + name + " is the control channel's own", "publicAddress": ""}
	}
	ip, err := netip.ParseAddr(address)
	bits, size := net.IPMask(net.ParseIP(c.value("Mask")).To4()).Size()
	if code := c.code(); err != nil || size != 32 || code > 1 {
		return Fields{"result": "reload", "detail": fmt.Sprintf("Windows refused the address with code %d", cmp.Or(code, 70)), "publicAddress": ""}
	}
	adapter.Address, adapter.DHCP = netip.PrefixFrom(ip, bits), false
	if gateway := c.value("Gateway"); gateway != "" {
		adapter.Gateway, _ = netip.ParseAddr(gateway)
	}
	if dns := c.value("Dns"); dns != "" {
		adapter.DNS = strings.Split(dns, ",")
	}
	return Fields{"result": "done", "detail": address, "publicAddress": address}
}

func actSecrets(c *Call) Fields {
	var removed []string
	files := []string{`C:\Windows\Panther\unattend.xml`, `C:\Windows\Panther\autounattend.xml`, `C:\Windows\Panther\unattend-original.xml`,
		`C:\Windows\Panther\Unattend\unattend.xml`, `C:\Windows\Panther\Unattend\autounattend.xml`, `C:\Windows\System32\Sysprep\unattend.xml`,
		`C:\Windows\System32\Sysprep\Panther\unattend.xml`, `C:\unattend.xml`, `C:\autounattend.xml`, `C:\sysprep.inf`, `C:\sysprep\sysprep.inf`,
		`C:\Windows\System32\$winnt$.inf`}
	if named := c.reg(SetupKey, "UnattendFile"); strings.HasPrefix(lower(named), `c:\`) {
		files = append(files, named)
	}
	for _, path := range files {
		if c.remove(path) > 0 {
			removed = append(removed, path)
		}
	}
	if c.deleteReg(SetupKey, "UnattendFile") {
		removed = append(removed, "UnattendFile")
	}
	for _, name := range []string{"DefaultPassword", "AutoLogonCount", "AutoLogonSID"} {
		if c.deleteReg(winlogon, name) {
			removed = append(removed, name)
		}
	}
	c.setReg(winlogon, "AutoAdminLogon", "0")
	return Fields{"result": "done", "detail": fmt.Sprintf("removed: %d", len(removed)), "removed": strings.Join(removed, ",")}
}

func actPassword(c *Call) Fields {
	name := c.value("Account")
	if name == "-500" { // the built-in one's security identifier ends so
		name = "Administrator"
	}
	u, ok := c.users[lower(name)]
	if !ok {
		return Fields{"result": "skipped", "detail": "there is no account " + name, "account": ""}
	}
	if keep := c.value("Keep"); keep != "" && strings.EqualFold(keep, u.Name) {
		return Fields{"result": "warned", "detail": "kept: the control channel logs in as " + u.Name + " with this password", "account": u.Name}
	}
	u.Password = c.value("Password")
	c.users[lower(name)] = u
	return Fields{"result": "done", "detail": "new password for " + u.Name, "account": u.Name}
}

func actHostname(c *Call) Fields {
	name, next := c.value("Name"), c.reg(computerNames+`\ComputerName`, "ComputerName")
	if strings.EqualFold(next, name) {
		return Fields{"result": "skipped", "detail": "the name is " + name + " already", "reboot": !strings.EqualFold(c.hostname, name)}
	}
	if code := c.code(); code != 0 {
		return Fields{"result": "reload", "detail": fmt.Sprintf("Windows refused the name %s with code %d", name, code), "reboot": false}
	}
	c.setReg(computerNames+`\ComputerName`, "ComputerName", name)
	return Fields{"result": "done", "detail": c.hostname + " becomes " + name, "reboot": true}
}

func actPending(c *Call) Fields {
	var reasons []string
	if _, ok := c.registry[lower(pendingServicing)]; ok {
		reasons = append(reasons, "components")
	}
	if _, ok := c.registry[lower(pendingUpdate)]; ok {
		reasons = append(reasons, "updates")
	}
	if !strings.EqualFold(c.hostname, c.reg(computerNames+`\ComputerName`, "ComputerName")) {
		reasons = append(reasons, "name")
	}
	pending := len(reasons) > 0
	if c.reg(sessionManager, "PendingFileRenameOperations") != "" {
		reasons = append(reasons, "files")
	}
	return Fields{"result": "done", "detail": strings.Join(reasons, ", "), "pending": pending, "reasons": strings.Join(reasons, ",")}
}

// shutdownIn is how long after the answer a reboot begins. The script asks for 2 s; nobody waits so long here.
const shutdownIn = 200 * time.Millisecond

func actReboot(c *Call) Fields {
	if code := c.code(); !slices.Contains([]int{0, 1115, 1190}, code) {
		return Fields{"result": "warned", "detail": fmt.Sprintf("shutdown.exe ended with exit code %d", code)}
	}
	m, boot := c.Machine, c.boots
	if c.shutdown == boot {
		return Fields{"result": "done", "boot": c.bootText()} // 1190
	}
	c.shutdown = boot
	c.then(func() {
		time.AfterFunc(shutdownIn, func() {
			if locked(m, func() bool { return m.boots == boot }) {
				m.restart(0)
			}
		})
	})
	return Fields{"result": "done", "boot": c.bootText()}
}

func actJoin(c *Call) Fields {
	domain := c.value("Domain")
	if strings.EqualFold(c.domain, domain) {
		return Fields{"result": "skipped", "detail": "it is in " + domain + " already", "reboot": false, "code": 0, "retry": false}
	}
	code := c.code()
	if code == 0 {
		c.setReg(pendingKey, "Domain", domain)
		c.setReg(pendingKey, "OU", c.value("Ou"))
		return Fields{"result": "done", "detail": "joined " + domain, "reboot": true, "code": 0, "retry": false}
	}
	result := "reload"
	if slices.Contains([]int{5, 1326, 1327, 1330, 1331, 1907, 1909, 2, 8522}, code) {
		result = "fail"
	}
	retry := slices.Contains([]int{51, 53, 59, 64, 67, 1231, 1311, 1355, 1722, 1727, 2453}, code)
	return Fields{"result": result, "detail": fmt.Sprintf("joining %s failed with code %d", domain, code), "reboot": false, "code": code, "retry": retry}
}

func actActivate(c *Call) Fields {
	name := c.image.Version.release().product
	switch {
	case c.old():
		return Fields{"result": "warned", "detail": "this Windows has no licensing service", "code": 0, "name": ""}
	case c.state["activation"] != "":
		return Fields{"result": "skipped", "detail": "it is activated already", "code": 0, "name": name}
	}
	if code := c.code(); code != 0 {
		return Fields{"result": "warned", "detail": fmt.Sprintf("Exception from HRESULT: 0x%08X", uint32(code)), "code": strconv.Itoa(code), "name": ""} //nolint:gosec // an HRESULT
	}
	c.state["activation"] = "a key"
	if server := c.value("Server"); server != "" {
		c.state["activation"] = server + ":" + c.value("Port")
	}
	return Fields{"result": "done", "detail": name, "code": 0, "name": name}
}

func actTime(c *Call) Fields {
	seconds, err := strconv.ParseFloat(c.value("Now"), 64)
	tolerance, err2 := strconv.ParseFloat(c.value("Tolerance"), 64)
	if err != nil || err2 != nil {
		throw("Cannot convert value \"%s\" to type \"System.Double\".", c.value("Now"))
	}
	right := time.Unix(0, int64(seconds*1e9))
	off := math.Round(c.now().Sub(right).Seconds())
	if math.Abs(off) > tolerance {
		c.offset = time.Until(right)
	}
	c.services["w32time"] = Service{Name: "W32Time", Start: "Automatic", Running: true}
	return Fields{"result": "done", "detail": fmt.Sprintf("the clock was off by %.0f s", off), "off": fmt.Sprintf("%.0f", off)}
}

func actSleep(c *Call) Fields {
	if code := c.code(); code != 0 {
		return Fields{"result": "warned", "detail": fmt.Sprintf("powercfg.exe ended with exit code %d", code)}
	}
	c.state["sleep"] = "off"
	return Fields{"result": "done", "detail": "off"}
}

func actPrompt(c *Call) Fields {
	if c.old() {
		return Fields{"result": "skipped", "detail": "this Windows does not ask"}
	}
	c.setReg(`HKLM\SYSTEM\CurrentControlSet\Control\Network\NewNetworkWindowOff`, "", "")
	c.state["network-prompt"] = "off"
	return Fields{"result": "done", "detail": "off"}
}

func actUpdates(c *Call) Fields {
	folder := c.value("Folder")
	var packages []string
	for name, f := range c.files {
		if rest, ok := strings.CutPrefix(name, lower(folder)+`\`); ok && strings.HasSuffix(rest, ".cab") && !strings.Contains(rest, `\`) {
			packages = append(packages, f.path[len(folder)+1:])
		}
	}
	slices.Sort(packages)
	if len(packages) == 0 {
		return Fields{"result": "skipped", "detail": "there is no package in " + folder, "installed": "", "failed": "", "reboot": false}
	}
	var installed, failed []string
	reboot := false
	for _, name := range packages {
		const rebootRequired = 3010
		switch code := c.code(); code {
		case rebootRequired:
			reboot = true
			c.setReg(pendingServicing, "", "")
			fallthrough
		case 0:
			installed = append(installed, name)
		default:
			failed = append(failed, fmt.Sprintf("%s (%d)", name, code))
		}
	}
	result := "done"
	if len(failed) > 0 {
		result = "warned"
	}
	return Fields{"result": result, "detail": fmt.Sprintf("installed %d, failed %s", len(installed), strings.Join(failed, ", ")), "installed": strings.Join(installed, ","),
		"failed": strings.Join(failed, ","), "reboot": reboot}
}

// actSite runs nothing: the site's own script is PowerShell. What it would have been given is kept for tests.
func actSite(c *Call) Fields {
	name, code := c.value("Name"), c.code()
	c.state["site "+name] = string(c.Data)
	result := "done"
	if code != 0 {
		result = "warned"
	}
	return Fields{"result": result, "detail": fmt.Sprintf("%s ended with exit code %d", name, code), "exit": strconv.Itoa(code), "output": ""}
}

func actTag(c *Call) Fields {
	path := c.programData() + `\Berth\load.json`
	c.write(path, c.Data)
	return Fields{"result": "done", "detail": path, "path": path}
}

const (
	winlogon       = `HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon`
	terminalServer = `HKLM\SYSTEM\CurrentControlSet\Control\Terminal Server`
)
