package guestos

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ---- users

type account struct {
	name, home, shell string
	uid, gid          int
}

func (m *Machine) accounts() []account {
	text, err := m.disk.readFile("/etc/passwd")
	if err != nil {
		return nil
	}
	var all []account
	for _, line := range lines(text) {
		f := strings.Split(line, ":")
		if len(f) < 7 {
			continue
		}
		uid, _ := strconv.Atoi(f[2])
		gid, _ := strconv.Atoi(f[3])
		all = append(all, account{name: f[0], uid: uid, gid: gid, home: f[5], shell: f[6]})
	}
	return all
}

func (m *Machine) user(name string) (account, bool) {
	for _, a := range m.accounts() {
		if a.name == name {
			return a, true
		}
	}
	return account{}, false
}

// Home returns a user's home directory; false when there is no such user.
func (m *Machine) Home(user string) (string, bool) {
	a, ok := m.user(user)
	return a.home, ok
}

func (m *Machine) uid(name string) int {
	if n, err := strconv.Atoi(name); err == nil {
		return n
	}
	if a, ok := m.user(name); ok {
		return a.uid
	}
	return -1
}

func (m *Machine) userName(uid int) string {
	for _, a := range m.accounts() {
		if a.uid == uid {
			return a.name
		}
	}
	return strconv.Itoa(uid)
}

func (m *Machine) groups() map[string]int {
	text, _ := m.disk.readFile("/etc/group")
	all := map[string]int{}
	for _, line := range lines(text) {
		if f := strings.Split(line, ":"); len(f) >= 3 {
			if n, err := strconv.Atoi(f[2]); err == nil {
				all[f[0]] = n
			}
		}
	}
	return all
}

func (m *Machine) gid(name string) int {
	if n, err := strconv.Atoi(name); err == nil {
		return n
	}
	if n, ok := m.groups()[name]; ok {
		return n
	}
	return -1
}

func (m *Machine) groupName(gid int) string {
	for name, n := range m.groups() {
		if n == gid {
			return name
		}
	}
	return strconv.Itoa(gid)
}

func id(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "u g G n r user=u group=g name=n")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	name := p.User
	if len(operands) > 0 {
		name = operands[0]
	}
	a, ok := p.machine.user(name)
	if !ok {
		return p.fail(1, "'%s': no such user", name)
	}
	group := p.machine.groupName(a.gid)
	switch {
	case p.Args[0] == "whoami", f.has("u") && f.has("n"):
		fmt.Fprintln(p.Stdout, a.name)
	case f.has("u"):
		fmt.Fprintln(p.Stdout, a.uid)
	case f.has("g", "G") && f.has("n"):
		fmt.Fprintln(p.Stdout, group)
	case f.has("g", "G"):
		fmt.Fprintln(p.Stdout, a.gid)
	default:
		fmt.Fprintf(p.Stdout, "uid=%d(%s) gid=%d(%s) groups=%d(%s)\n", a.uid, a.name, a.gid, group, a.gid, group)
	}
	return 0
}

// editShadow changes the password field of a user. It returns false when there is no such user.
func (m *Machine) editShadow(user string, edit func(field string) string) bool {
	text, err := m.disk.readFile("/etc/shadow")
	if err != nil {
		return false
	}
	found := false
	var out strings.Builder
	for _, line := range lines(text) {
		f := strings.Split(line, ":")
		if f[0] == user && len(f) > 2 {
			f[1] = edit(f[1])
			f[2] = strconv.FormatInt(m.Now().Unix()/86400, 10)
			found = true
		}
		out.WriteString(strings.Join(f, ":") + "\n")
	}
	return found && m.disk.writeFile("/etc/shadow", []byte(out.String()), 0o640) == nil
}

const saltLetters = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func chpasswd(_ context.Context, p *process) int {
	f, _, err := options(p.Args[1:], "e m c: s: encrypted=e crypt-method=c:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	text, err := io.ReadAll(p.Stdin)
	if err != nil {
		return p.fail(1, "%s", reason(err))
	}
	for i, line := range lines(text) {
		user, password, ok := strings.Cut(line, ":")
		if !ok {
			return p.fail(1, "line %d: missing new password", i+1)
		}
		if !f.has("e") {
			password = hashPassword(password, randomText(16, saltLetters))
		}
		if !p.machine.editShadow(user, func(string) string { return password }) {
			return p.fail(1, "line %d: user '%s' does not exist", i+1, user)
		}
	}
	return 0
}

func passwd(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "l u d S e stdin=i lock=l unlock=u delete=d status=S expire=e")
	if err != nil {
		return p.fail(2, "%v", err)
	}
	user := p.User
	if len(operands) > 0 {
		user = operands[0]
	}
	if _, ok := p.machine.user(user); !ok {
		return p.fail(1, "user '%s' does not exist", user)
	}
	field := ""
	edit := func(old string) string { field = old; return old }
	switch {
	case f.has("l"):
		edit = func(old string) string { return "!" + strings.TrimLeft(old, "!") }
	case f.has("u"):
		edit = func(old string) string { return strings.TrimLeft(old, "!") }
	case f.has("d"):
		edit = func(string) string { return "" }
	case f.has("i"):
		text, _ := io.ReadAll(p.Stdin)
		hashed := hashPassword(strings.TrimSpace(string(text)), randomText(16, saltLetters))
		edit = func(string) string { return hashed }
	case f.has("S", "e"):
	default:
		text, _ := io.ReadAll(p.Stdin)
		typed := lines(text)
		if len(typed) < 2 || typed[0] != typed[1] || typed[0] == "" {
			return p.fail(10, "Authentication token manipulation error")
		}
		hashed := hashPassword(typed[0], randomText(16, saltLetters))
		edit = func(string) string { return hashed }
	}
	if !p.machine.editShadow(user, edit) {
		return p.fail(1, "user '%s' does not exist", user)
	}
	if f.has("S") {
		state := "P"
		switch {
		case strings.HasPrefix(field, "!") || strings.HasPrefix(field, "*"):
			state = "L"
		case field == "":
			state = "NP"
		}
		fmt.Fprintf(p.Stdout, "%s %s %s 0 99999 7 -1\n", user, state, p.machine.Now().Format(time.DateOnly))
	}
	return 0
}

func usermod(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "L U p: s: d: a G: g: m lock=L unlock=U password=p: shell=s:")
	if err != nil || len(operands) != 1 {
		return p.fail(2, "give one user")
	}
	if _, ok := p.machine.user(operands[0]); !ok {
		return p.fail(6, "user '%s' does not exist", operands[0])
	}
	if f.has("L", "U", "p") && !p.machine.editShadow(operands[0], func(old string) string {
		switch {
		case f.has("p"):
			return f.last("p")
		case f.has("L"):
			return "!" + strings.TrimLeft(old, "!")
		}
		return strings.TrimLeft(old, "!")
	}) {
		return p.fail(1, "cannot lock /etc/shadow")
	}
	return 0
}

func useradd(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "m M s: d: u: g: G: r N U c: create-home=m shell=s: home-dir=d: uid=u: system=r comment=c:")
	if err != nil || len(operands) != 1 {
		return p.fail(2, "give one user")
	}
	name := operands[0]
	if _, ok := p.machine.user(name); ok {
		return p.fail(9, "user '%s' already exists", name)
	}
	next := 1000
	for _, a := range p.machine.accounts() {
		if a.uid >= next && a.uid < 60000 {
			next = a.uid + 1
		}
	}
	if f.has("u") {
		if next, err = strconv.Atoi(f.last("u")); err != nil {
			return p.fail(3, "invalid user ID '%s'", f.last("u"))
		}
	}
	home, shell := "/home/"+name, "/bin/sh"
	if f.has("d") {
		home = f.last("d")
	}
	if f.has("s") {
		shell = f.last("s")
	}
	disk := p.machine.disk
	_ = disk.appendFile("/etc/passwd", fmt.Appendf(nil, "%s:x:%d:%d:%s:%s:%s\n", name, next, next, f.last("c"), home, shell))
	_ = disk.appendFile("/etc/group", fmt.Appendf(nil, "%s:x:%d:\n", name, next))
	_ = disk.appendFile("/etc/shadow", fmt.Appendf(nil, "%s:!:%d:0:99999:7:::\n", name, p.machine.Now().Unix()/86400))
	if f.has("m") {
		_ = disk.mkdirAll(home, 0o755)
		_ = disk.change(home, true, func(n *node) { n.uid, n.gid = next, next })
	}
	return 0
}

func userdel(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "r f remove=r force=f")
	if err != nil || len(operands) != 1 {
		return p.fail(2, "give one user")
	}
	a, ok := p.machine.user(operands[0])
	if !ok {
		return p.fail(6, "user '%s' does not exist", operands[0])
	}
	for _, file := range []string{"/etc/passwd", "/etc/shadow", "/etc/group"} {
		text, err := p.machine.disk.readFile(file)
		if err != nil {
			continue
		}
		kept := slices.DeleteFunc(lines(text), func(l string) bool { return strings.HasPrefix(l, a.name+":") })
		_ = p.machine.disk.writeFile(file, []byte(strings.Join(kept, "\n")+"\n"), 0o644)
	}
	if f.has("r") {
		_ = p.machine.disk.remove(a.home, true)
	}
	return 0
}

func getent(_ context.Context, p *process) int {
	if len(p.Args) < 2 {
		return p.fail(1, "wrong number of arguments")
	}
	file := map[string]string{"passwd": "/etc/passwd", "group": "/etc/group", "shadow": "/etc/shadow", "hosts": "/etc/hosts", "ahosts": "/etc/hosts", "ahostsv4": "/etc/hosts"}[p.Args[1]]
	if file == "" {
		return p.fail(1, "Unknown database: %s", p.Args[1])
	}
	text, err := p.machine.disk.readFile(file)
	if err != nil {
		return 2
	}
	if len(p.Args) == 2 {
		_, _ = p.Stdout.Write(text)
		return 0
	}
	status := 0
	for _, key := range p.Args[2:] {
		found := false
		for _, line := range lines(text) {
			words := strings.Fields(line)
			hit := strings.HasPrefix(line, key+":")
			if strings.HasSuffix(file, "hosts") {
				hit = slices.Contains(words, key)
			} else if f := strings.Split(line, ":"); len(f) > 2 && f[2] == key && p.Args[1] != "shadow" {
				hit = true
			}
			if hit && !strings.HasPrefix(line, "#") {
				fmt.Fprintln(p.Stdout, line)
				found = true
				break
			}
		}
		if !found {
			status = 2
		}
	}
	return status
}

// ---- name, time, kernel

func hostname(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "s f I i d F: short=s fqdn=f long=f all-ip-addresses=I ip-address=i domain=d file=F:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	name := p.machine.Hostname()
	short, domain, _ := strings.Cut(name, ".")
	switch {
	case f.has("F"):
		text, err := p.readOperand(f.last("F"))
		if err != nil {
			return p.fail(1, "%s: %s", f.last("F"), reason(err))
		}
		p.machine.setKernelHostname(strings.TrimSpace(string(text)))
	case len(operands) > 0:
		if operands[0] == "" || len(operands[0]) > 64 || strings.ContainsAny(operands[0], " /\n") {
			return p.fail(1, "the specified hostname is invalid")
		}
		p.machine.setKernelHostname(operands[0])
	case f.has("I", "i"):
		var all []string
		for _, i := range p.machine.networks() {
			if i.Name != "lo" && i.Address.IsValid() {
				all = append(all, i.Address.Addr().String())
			}
		}
		fmt.Fprintln(p.Stdout, strings.Join(all, " "))
	case f.has("s"):
		fmt.Fprintln(p.Stdout, short)
	case f.has("d"):
		fmt.Fprintln(p.Stdout, domain)
	default:
		fmt.Fprintln(p.Stdout, name)
	}
	return 0
}

func hostnamectl(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "static=s transient=t pretty=p no-ask-password=n no-pager=n json=j:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	if len(operands) == 0 || operands[0] == "status" {
		if f.has("s", "t") {
			fmt.Fprintln(p.Stdout, p.machine.Hostname())
			return 0
		}
		fmt.Fprintf(p.Stdout, " Static hostname: %s\n       Icon name: computer-vm\n         Chassis: vm\n  Virtualization: vmware\n", p.machine.Hostname())
		return 0
	}
	if operands[0] != "set-hostname" && operands[0] != "hostname" {
		return p.fail(1, "Unknown command verb %s.", operands[0])
	}
	if len(operands) == 1 {
		fmt.Fprintln(p.Stdout, p.machine.Hostname())
		return 0
	}
	name := operands[1]
	if name == "" || len(name) > 64 || strings.ContainsAny(name, " /_\n:") || strings.HasPrefix(name, "-") {
		return p.fail(1, "Could not set static hostname: Invalid hostname '%s'", name)
	}
	if err := p.machine.disk.writeFile("/etc/hostname", []byte(name+"\n"), 0o644); err != nil {
		return p.fail(1, "Could not set static hostname: %s", reason(err))
	}
	p.machine.setKernelHostname(name)
	return 0
}

func uname(_ context.Context, p *process) int {
	f, _, err := options(p.Args[1:], "a s n r v m p i o all=a kernel-name=s kernel-release=r machine=m nodename=n")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	var words []string
	add := func(flag, word string) {
		if f.has("a", flag) || flag == "s" && len(f) == 0 {
			words = append(words, word)
		}
	}
	add("s", "Linux")
	add("n", p.machine.Hostname())
	add("r", kernelRelease)
	add("v", "#1 SMP PREEMPT_DYNAMIC")
	add("m", "x86_64")
	add("o", "GNU/Linux")
	fmt.Fprintln(p.Stdout, strings.Join(words, " "))
	return 0
}

const kernelRelease = "6.1.0-25-amd64"

// parseDate reads what date -d and -s are given: @seconds, RFC 3339 and a few forms of date and time.
func parseDate(text string, now time.Time) (time.Time, error) {
	text = strings.TrimSpace(text)
	if text == "now" || text == "" {
		return now, nil
	}
	if seconds, ok := strings.CutPrefix(text, "@"); ok {
		f, err := strconv.ParseFloat(seconds, 64)
		if err == nil {
			return time.UnixMilli(int64(f * 1000)).UTC(), nil
		}
	}
	for _, layout := range []string{time.RFC3339Nano, time.RFC1123Z, time.RFC1123, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04:05 MST",
		"2006-01-02 15:04:05 -0700", "2006-01-02 15:04", time.DateOnly, time.UnixDate, "Mon Jan _2 15:04:05 2006"} {
		if at, err := time.Parse(layout, text); err == nil {
			return at.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("invalid date '%s'", text)
}

func strftime(format string, at time.Time) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 >= len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		if format[i] == '-' && i+1 < len(format) {
			i++
			b.WriteString(strings.TrimLeft(strftime("%"+string(format[i]), at), "0 "))
			continue
		}
		switch c := format[i]; c {
		case 's':
			b.WriteString(strconv.FormatInt(at.Unix(), 10))
		case 'N':
			fmt.Fprintf(&b, "%09d", at.Nanosecond())
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case '%':
			b.WriteByte('%')
		case 'j':
			fmt.Fprintf(&b, "%03d", at.YearDay())
		case 'u':
			b.WriteString(strconv.Itoa((int(at.Weekday())+6)%7 + 1))
		case 'w':
			b.WriteString(strconv.Itoa(int(at.Weekday())))
		case ':':
			if strings.HasPrefix(format[i:], ":z") {
				b.WriteString(at.Format("-07:00"))
				i++
			}
		default:
			layout := map[byte]string{'Y': "2006", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'y': "06", 'b': "Jan", 'h': "Jan",
				'B': "January", 'a': "Mon", 'A': "Monday", 'p': "PM", 'Z': "MST", 'z': "-0700", 'F': time.DateOnly, 'T': time.TimeOnly, 'R': "15:04",
				'D': "01/02/06", 'c': "Mon Jan _2 15:04:05 2006"}[c]
			if layout == "" {
				b.WriteString("%" + string(c))
				continue
			}
			b.WriteString(at.Format(layout))
		}
	}
	return b.String()
}

func date(_ context.Context, p *process) int {
	args := slices.Clone(p.Args[1:])
	iso := ""
	args = slices.DeleteFunc(args, func(arg string) bool {
		for _, prefix := range []string{"--iso-8601", "-I"} {
			if rest, ok := strings.CutPrefix(arg, prefix); ok {
				iso = "i" + strings.TrimPrefix(rest, "=")
				return true
			}
		}
		return false
	})
	f, operands, err := options(args, "u d: s: R r: utc=u universal=u date=d: set=s: rfc-email=R rfc-3339=3: reference=r:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	at := p.machine.Now()
	switch {
	case f.has("s"):
		if at, err = parseDate(f.last("s"), at); err == nil {
			p.machine.setClock(time.Until(at), false)
		}
	case f.has("d"):
		at, err = parseDate(f.last("d"), at)
	case f.has("r"):
		var info fileInfo
		if info, err = p.machine.disk.stat(p.abs(f.last("r")), true); err == nil {
			at = info.mtime
		}
	}
	if err != nil {
		return p.fail(1, "%s", reason(err))
	}
	format := "%a %b %e %H:%M:%S %Z %Y"
	switch {
	case len(operands) > 0 && strings.HasPrefix(operands[0], "+"):
		format = operands[0][1:]
	case len(operands) > 0:
		return p.fail(1, "invalid date '%s'", operands[0])
	case f.has("R"):
		format = "%a, %d %b %Y %H:%M:%S %z"
	case iso == "iseconds" || iso == "is":
		format = "%Y-%m-%dT%H:%M:%S%:z"
	case iso != "":
		format = "%F"
	case f.has("3"):
		format = "%F %T%:z"
	}
	fmt.Fprintln(p.Stdout, strftime(format, at))
	return 0
}

func timedatectl(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "p: value=v property=p: all=a no-pager=n no-ask-password=n monitor=m")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	m := p.machine
	verb := "status"
	if len(operands) > 0 {
		verb = operands[0]
	}
	m.mu.Lock()
	service := timeService(m.units)
	ntp := service != "" && m.units[service].active
	synced, zone := m.synced, m.zone
	m.mu.Unlock()
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	switch verb {
	case "status":
		fmt.Fprintf(p.Stdout, "               Local time: %s\n           Universal time: %s\n                Time zone: %s (UTC, +0000)\nSystem clock synchronized: %s\n              NTP service: %s\n",
			m.Now().Format("Mon 2006-01-02 15:04:05 MST"), m.Now().Format("Mon 2006-01-02 15:04:05 UTC"), zone, yes(synced), map[bool]string{true: "active", false: "inactive"}[ntp])
	case "show":
		for _, pair := range [][2]string{{"Timezone", zone}, {"CanNTP", yes(service != "")}, {"NTP", yes(ntp)}, {"NTPSynchronized", yes(synced)},
			{"TimeUSec", m.Now().Format("Mon 2006-01-02 15:04:05 MST")}} {
			if f.has("p") && !slices.Contains(f["p"], pair[0]) {
				continue
			}
			if f.has("v") {
				fmt.Fprintln(p.Stdout, pair[1])
			} else {
				fmt.Fprintf(p.Stdout, "%s=%s\n", pair[0], pair[1])
			}
		}
	case "set-ntp":
		if service == "" {
			return p.fail2(1, "Failed to set ntp: NTP not supported")
		}
		on := len(operands) > 1 && slices.Contains([]string{"1", "true", "yes", "on"}, operands[1])
		m.mu.Lock()
		u := m.units[service]
		u.active, u.enabled = on, on
		m.units[service] = u
		m.mu.Unlock()
		if on {
			m.setClock(0, true)
		}
	case "set-timezone":
		if len(operands) < 2 {
			return p.fail(1, "Too few arguments.")
		}
		m.mu.Lock()
		m.zone = operands[1]
		m.mu.Unlock()
		_ = m.disk.remove("/etc/localtime", false)
		_ = m.disk.symlink("/usr/share/zoneinfo/"+operands[1], "/etc/localtime")
	case "set-time":
		if len(operands) < 2 {
			return p.fail(1, "Too few arguments.")
		}
		if ntp {
			return p.fail2(1, "Failed to set time: Automatic time synchronization is enabled")
		}
		at, err := parseDate(operands[1], m.Now())
		if err != nil {
			return p.fail2(1, "Failed to parse time specification '%s': Invalid argument", operands[1])
		}
		m.setClock(time.Until(at), false)
	default:
		return p.fail2(1, "Unknown command verb %s.", verb)
	}
	return 0
}

func timeService(units map[string]unit) string {
	for _, name := range []string{"chronyd.service", "chrony.service", "systemd-timesyncd.service"} {
		if _, ok := units[name]; ok {
			return name
		}
	}
	return ""
}

func chronyc(_ context.Context, p *process) int {
	_, operands, err := options(p.Args[1:], "+a n m c h: p:")
	if err != nil || len(operands) == 0 {
		return p.fail(1, "give a command")
	}
	m := p.machine
	m.mu.Lock()
	running := m.units["chronyd.service"].active || m.units["chrony.service"].active
	synced, offset := m.synced, m.offset
	m.mu.Unlock()
	if !running {
		return p.fail2(1, "506 Cannot talk to daemon")
	}
	switch operands[0] {
	case "makestep", "burst", "online":
		if operands[0] == "makestep" {
			m.setClock(0, true)
		}
		fmt.Fprintln(p.Stdout, "200 OK")
	case "waitsync":
		if !synced {
			return 1
		}
	case "tracking":
		leap := "Normal"
		if !synced {
			leap = "Not synchronised"
		}
		fmt.Fprintf(p.Stdout, "Reference ID    : C0000201 (ntp.example)\nStratum         : 3\nSystem time     : %.9f seconds slow of NTP time\nLeap status     : %s\n", -offset.Seconds(), leap)
	case "sources":
		fmt.Fprintf(p.Stdout, "MS Name/IP address         Stratum Poll Reach LastRx Last sample\n===============================================================================\n^* 192.0.2.1                     2   6   377    12    +12us[  +15us] +/-   10ms\n")
	default:
		return p.fail2(1, "Unrecognized command")
	}
	return 0
}

func sysctl(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "n w q e a p b values=n write=w quiet=q system=s")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	m := p.machine
	for _, operand := range operands {
		key, value, set := strings.Cut(operand, "=")
		m.mu.Lock()
		if set {
			m.sysctl[key] = value
		}
		current, ok := m.sysctl[key]
		m.mu.Unlock()
		switch {
		case key == "kernel.hostname":
			current, ok = m.Hostname(), true
		case key == "kernel.random.boot_id":
			current, ok = m.BootID(), true
		case key == "kernel.osrelease":
			current, ok = kernelRelease, true
		case !ok && strings.HasPrefix(key, "net."):
			current, ok = "0", true
		}
		switch {
		case !ok:
			return p.fail(255, "cannot stat /proc/sys/%s: No such file or directory", strings.ReplaceAll(key, ".", "/"))
		case f.has("q") && set:
		case f.has("n"):
			fmt.Fprintln(p.Stdout, current)
		default:
			fmt.Fprintf(p.Stdout, "%s = %s\n", key, current)
		}
	}
	return 0
}

// ---- processes and time

func sleepCommand(ctx context.Context, p *process) int {
	var total time.Duration
	for _, arg := range p.Args[1:] {
		d, err := parseSeconds(arg)
		if err != nil {
			return p.fail(1, "invalid time interval '%s'", arg)
		}
		total += d
	}
	if len(p.Args) < 2 {
		return p.fail(1, "missing operand")
	}
	timer := time.NewTimer(total)
	defer timer.Stop()
	select {
	case <-timer.C:
		return 0
	case <-ctx.Done():
		return exitKilled
	}
}

func parseSeconds(text string) (time.Duration, error) {
	unit := time.Second
	switch {
	case strings.HasSuffix(text, "s"):
		text = strings.TrimSuffix(text, "s")
	case strings.HasSuffix(text, "m"):
		text, unit = strings.TrimSuffix(text, "m"), time.Minute
	case strings.HasSuffix(text, "h"):
		text, unit = strings.TrimSuffix(text, "h"), time.Hour
	case strings.HasSuffix(text, "d"):
		text, unit = strings.TrimSuffix(text, "d"), 24*time.Hour
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("invalid time interval '%s'", text)
	}
	return time.Duration(n * float64(unit)), nil
}

func timeout(ctx context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "+k: s: v kill-after=k: signal=s: preserve-status=p foreground=f")
	if err != nil || len(operands) < 2 {
		return p.fail(125, "missing operand")
	}
	limit, err := parseSeconds(operands[0])
	if err != nil {
		return p.fail(125, "%v", err)
	}
	if limit == 0 {
		return p.spawn(ctx, operands[1:], nil)
	}
	inner, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	status := p.spawn(inner, operands[1:], nil)
	if inner.Err() != nil && ctx.Err() == nil {
		if sig := f.last("s"); sig == "KILL" || sig == "9" {
			return exitKilled
		}
		return 124
	}
	return status
}

func env(ctx context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "+i u: ignore-environment=i unset=u:")
	if err != nil {
		return p.fail(125, "%v", err)
	}
	child := *p
	child.Env = slices.Clone(p.Env)
	if f.has("i") {
		child.Env = nil
	}
	for _, name := range f["u"] {
		child.Env = slices.DeleteFunc(child.Env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	}
	for len(operands) > 0 && strings.Contains(operands[0], "=") {
		name, _, _ := strings.Cut(operands[0], "=")
		child.Env = slices.DeleteFunc(child.Env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
		child.Env = append(child.Env, operands[0])
		operands = operands[1:]
	}
	if p.Args[0] == "printenv" {
		for _, v := range child.Env {
			name, value, _ := strings.Cut(v, "=")
			if len(operands) > 0 && operands[0] == name {
				fmt.Fprintln(p.Stdout, value)
				return 0
			}
		}
		if len(operands) > 0 {
			return 1
		}
	}
	if len(operands) == 0 {
		for _, v := range child.Env {
			fmt.Fprintln(p.Stdout, v)
		}
		return 0
	}
	return child.spawn(ctx, operands, nil)
}

// prefix runs the command that follows: nohup, setsid, nice, ionice, sudo.
func prefix(ctx context.Context, p *process) int {
	_, operands, err := options(p.Args[1:], "+n: c: w f E S H p: u: wait=w fork=f adjustment=n: preserve-env=E non-interactive=n2")
	if err != nil || len(operands) == 0 {
		return p.fail(125, "missing operand")
	}
	return p.spawn(ctx, operands, nil)
}

func echoCommand(_ context.Context, p *process) int {
	fmt.Fprintln(p.Stdout, strings.Join(p.Args[1:], " "))
	return 0
}

func succeed(context.Context, *process) int { return 0 }
func refuse(context.Context, *process) int  { return 1 }

func logger(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "t: p: i s f: tag=t: priority=p: id=i stderr=s")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	text := strings.Join(operands, " ")
	if len(operands) == 0 {
		all, _ := io.ReadAll(p.Stdin)
		text = strings.TrimRight(string(all), "\n")
	}
	tag := "root"
	if f.has("t") {
		tag = f.last("t")
	}
	for line := range strings.Lines(text + "\n") {
		entry := fmt.Sprintf("%s %s %s: %s", p.machine.Now().Format(time.Stamp), p.machine.Hostname(), tag, line)
		if err := p.machine.disk.appendFile("/var/log/syslog", []byte(entry)); err != nil {
			return p.fail(1, "%s", reason(err))
		}
		if f.has("s") {
			fmt.Fprint(p.Stderr, entry)
		}
	}
	return 0
}

func journalctl(_ context.Context, p *process) int {
	text, err := p.machine.disk.readFile("/var/log/syslog")
	if err != nil || len(text) == 0 {
		fmt.Fprintln(p.Stdout, "-- No entries --")
		return 0
	}
	_, _ = p.Stdout.Write(text)
	return 0
}

func reboot(_ context.Context, p *process) int {
	off := p.Args[0] == "poweroff" || p.Args[0] == "halt"
	if p.Args[0] == "shutdown" {
		f, _, err := options(p.Args[1:], "r h P H c k reboot=r poweroff=P")
		if err != nil {
			return p.fail(1, "%v", err)
		}
		if f.has("c", "k") {
			return 0
		}
		off = !f.has("r")
	}
	p.machine.stop(off)
	return 0
}

func (m *Machine) stop(off bool) {
	switch {
	case off && m.hooks.PowerOff != nil:
		m.hooks.PowerOff()
	case !off && m.hooks.Reboot != nil:
		m.hooks.Reboot()
	}
}

func uptimeCommand(_ context.Context, p *process) int {
	up := p.machine.uptime()
	f, _, _ := options(p.Args[1:], "s p since=s pretty=p")
	if f.has("s") {
		fmt.Fprintln(p.Stdout, p.machine.Now().Add(-up).Format(time.DateTime))
		return 0
	}
	fmt.Fprintf(p.Stdout, " %s up %d min,  0 users,  load average: 0.00, 0.00, 0.00\n", p.machine.Now().Format(time.TimeOnly), int(up.Minutes()))
	return 0
}

// ---- network

func ip(_ context.Context, p *process) int {
	args := p.Args[1:]
	asJSON, oneline, brief, family := false, false, false, 0
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		switch arg := args[0]; arg {
		case "-j", "-json", "--json":
			asJSON = true
		case "-o", "-oneline":
			oneline = true
		case "-br", "-brief":
			brief = true
		case "-4":
			family = 4
		case "-6":
			family = 6
		case "-p", "-pretty", "-d", "-details", "-s", "-c", "-N", "-color=never", "-c=never", "-n":
		case "-family", "-f":
			if len(args) > 1 {
				family = map[string]int{"inet": 4, "inet6": 6}[args[1]]
				args = args[1:]
			}
		default:
			return p.fail2(255, "Option \"%s\" is unknown, try \"ip -help\".", arg)
		}
		args = args[1:]
	}
	if len(args) == 0 {
		return p.fail2(255, "Usage: ip [ OPTIONS ] OBJECT { COMMAND | help }")
	}
	object := args[0]
	args = args[1:]
	words := map[string]string{}
	var bare []string
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "dev", "scope", "table", "type", "to", "via", "from", "oif":
			if i+1 < len(args) {
				words[args[i]] = args[i+1]
				i++
			}
		case "up", "permanent", "dynamic", "primary":
		default:
			bare = append(bare, args[i])
		}
	}
	verb := "show"
	if len(bare) > 0 && slices.Contains([]string{"show", "list", "ls", "get", "add", "del", "replace", "set", "flush"}, bare[0]) {
		verb, bare = bare[0], bare[1:]
	}
	if verb == "add" || verb == "del" || verb == "replace" || verb == "set" || verb == "flush" {
		return 0 // the simulated network is as it is
	}
	nets := p.machine.networks()
	has := func(i Interface) bool {
		return i.Address.IsValid() && (family == 0 || family == 4 && i.Address.Addr().Is4() || family == 6 && i.Address.Addr().Is6())
	}
	switch {
	case strings.HasPrefix("address", object) || strings.HasPrefix("link", object):
		dev := words["dev"]
		if dev == "" && len(bare) > 0 {
			dev = bare[0]
		}
		if dev != "" && !slices.ContainsFunc(nets, func(i Interface) bool { return i.Name == dev }) {
			return p.fail2(1, "Device \"%s\" does not exist.", dev)
		}
		isLink := strings.HasPrefix("link", object)
		var list []map[string]any
		for n, i := range nets {
			scope, kind, flagList := "global", "ether", "BROADCAST,MULTICAST,UP,LOWER_UP"
			if i.Name == "lo" {
				scope, kind, flagList = "host", "loopback", "LOOPBACK,UP,LOWER_UP"
			}
			if dev != "" && i.Name != dev || words["scope"] != "" && words["scope"] != scope && !isLink {
				continue
			}
			if (family != 0 || words["scope"] != "") && !isLink && !has(i) {
				continue
			}
			inet := "inet"
			if i.Address.Addr().Is6() {
				inet = "inet6"
			}
			head := fmt.Sprintf("%d: %s: <%s> mtu 1500 qdisc mq state UP group default qlen 1000", n+1, i.Name, flagList)
			address := ""
			if has(i) && !isLink {
				address = fmt.Sprintf("%s %s scope %s %s", inet, i.Address, scope, i.Name)
			}
			link := fmt.Sprintf("link/%s %s brd ff:ff:ff:ff:ff:ff", kind, i.MAC)
			switch {
			case asJSON:
				entry := map[string]any{"ifindex": n + 1, "ifname": i.Name, "flags": strings.Split(flagList, ","), "mtu": 1500, "operstate": "UP", "link_type": kind, "address": i.MAC}
				if !isLink {
					infos := []map[string]any{}
					if has(i) {
						infos = append(infos, map[string]any{"family": inet, "local": i.Address.Addr().String(), "prefixlen": i.Address.Bits(), "scope": scope, "label": i.Name})
					}
					entry["addr_info"] = infos
				}
				list = append(list, entry)
			case brief && isLink:
				fmt.Fprintf(p.Stdout, "%-16s UP             %s <%s>\n", i.Name, i.MAC, flagList)
			case brief:
				fmt.Fprintf(p.Stdout, "%-16s UP             %s\n", i.Name, strings.TrimPrefix(i.Address.String(), "invalid Prefix"))
			case oneline && isLink:
				fmt.Fprintf(p.Stdout, "%s\\    %s\n", head, link)
			case oneline:
				if address != "" {
					fmt.Fprintf(p.Stdout, "%d: %s    %s\\       valid_lft forever preferred_lft forever\n", n+1, i.Name, address)
				}
			default:
				fmt.Fprintf(p.Stdout, "%s\n    %s\n", head, link)
				if address != "" {
					fmt.Fprintf(p.Stdout, "    %s\n       valid_lft forever preferred_lft forever\n", address)
				}
			}
		}
		if asJSON {
			return p.json(list)
		}
	case strings.HasPrefix("route", object):
		if family == 6 {
			if asJSON {
				fmt.Fprintln(p.Stdout, "[]")
			}
			return 0
		}
		wantDefault := slices.Contains(bare, "default") || words["to"] == "default" || slices.Contains(bare, "0.0.0.0/0")
		var list []map[string]any
		for _, i := range nets {
			if words["dev"] != "" && i.Name != words["dev"] {
				continue
			}
			if i.Default.IsValid() {
				line := fmt.Sprintf("default via %s dev %s", i.Default, i.Name)
				entry := map[string]any{"dst": "default", "gateway": i.Default.String(), "dev": i.Name, "flags": []string{}}
				if verb == "get" && len(bare) > 0 {
					line = fmt.Sprintf("%s via %s dev %s src %s uid 0", bare[0], i.Default, i.Name, i.Address.Addr())
					entry = map[string]any{"dst": bare[0], "gateway": i.Default.String(), "dev": i.Name, "prefsrc": i.Address.Addr().String()}
				}
				list = append(list, entry)
				if !asJSON {
					fmt.Fprintln(p.Stdout, line)
				}
			}
		}
		for _, i := range nets {
			if i.Name == "lo" || wantDefault || verb == "get" || !i.Address.IsValid() || words["dev"] != "" && i.Name != words["dev"] {
				continue
			}
			list = append(list, map[string]any{"dst": i.Address.Masked().String(), "dev": i.Name, "protocol": "kernel", "scope": "link", "prefsrc": i.Address.Addr().String()})
			if !asJSON {
				fmt.Fprintf(p.Stdout, "%s dev %s proto kernel scope link src %s\n", i.Address.Masked(), i.Name, i.Address.Addr())
			}
		}
		if asJSON {
			return p.json(list)
		}
		if verb == "get" && len(list) == 0 {
			return p.fail2(2, "RTNETLINK answers: Network is unreachable")
		}
	case strings.HasPrefix("neighbour", object) || strings.HasPrefix("rule", object):
	default:
		return p.fail2(1, "Object \"%s\" is unknown, try \"ip help\".", object)
	}
	return 0
}

func (p *process) json(v any) int {
	text, err := json.Marshal(v)
	if err != nil {
		return p.fail(1, "%v", err)
	}
	if string(text) == "null" {
		text = []byte("[]")
	}
	fmt.Fprintln(p.Stdout, string(text))
	return 0
}

// ---- systemd

// unit is a unit of systemd's.
type unit struct {
	active, enabled, masked bool
	alias                   string // the unit that this name stands for
	static                  bool
}

// unitName returns the full and real name of a unit; false when there is none.
func (m *Machine) unitName(name string) (string, bool) {
	if !strings.Contains(name, ".") {
		name += ".service"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	u, ok := m.units[name]
	if ok && u.alias != "" {
		return u.alias, true
	}
	if ok {
		return name, true
	}
	return name, false
}

// loadUnit makes a unit known whose file a script has written.
func (m *Machine) loadUnit(name string) bool {
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"} {
		if _, err := m.disk.stat(dir+"/"+name, true); err == nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			if _, ok := m.units[name]; !ok {
				m.units[name] = unit{}
			}
			return true
		}
	}
	return false
}

func (m *Machine) editUnit(name string, edit func(*unit)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.units[name]
	edit(&u)
	m.units[name] = u
}

// startUnit runs what a unit's file says to run. Units of the image have no file with commands: they only have a state.
func (m *Machine) startUnit(ctx context.Context, name string) bool {
	for _, line := range m.unitCommands(name) {
		if m.Run(ctx, line, nil, io.Discard, io.Discard, nil) != 0 {
			return false
		}
	}
	if name == "nftables.service" {
		text, err := m.disk.readFile("/etc/nftables.conf")
		return err == nil && m.loadNft(string(text)) == nil
	}
	if name == timeServiceOf(m) {
		m.setClock(0, true)
	}
	return true
}

func timeServiceOf(m *Machine) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return timeService(m.units)
}

func (m *Machine) unitCommands(name string) []string {
	text, err := m.disk.readFile("/etc/systemd/system/" + name)
	if err != nil {
		return nil
	}
	var commands []string
	for _, line := range lines(text) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok && command != "" {
			commands = append(commands, strings.TrimLeft(command, "-@+!"))
		}
	}
	return commands
}

// StartUnits runs the units that scripts have installed and enabled, as a boot does.
func (m *Machine) StartUnits(ctx context.Context) {
	m.mu.Lock()
	names := slices.Sorted(maps.Keys(m.units))
	m.mu.Unlock()
	for _, name := range names {
		m.mu.Lock()
		u := m.units[name]
		m.mu.Unlock()
		if u.active && len(m.unitCommands(name)) > 0 {
			ok := m.startUnit(ctx, name)
			m.editUnit(name, func(u *unit) { u.active = ok })
		}
	}
}

func (m *Machine) systemState() string {
	switch c := m.cloudInit(); {
	case c.Running:
		return "starting"
	case c.Error != "":
		return "degraded"
	}
	return "running"
}

func systemctl(ctx context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], `q a l t: p: n: o: f H: quiet=q now=w no-block=b wait=W no-pager=P all=a type=t: property=p: value=v plain=i
		no-legend=L failed=F state=S: force=f no-reload=b system=b root=R: full=l no-ask-password=b runtime=u lines=n: output=o:`)
	if err != nil {
		return p.fail2(1, "systemctl: %v", err)
	}
	verb := "list-units"
	if len(operands) > 0 {
		verb, operands = operands[0], operands[1:]
	}
	m := p.machine
	say := func(format string, args ...any) {
		if !f.has("q") {
			fmt.Fprintf(p.Stdout, format+"\n", args...)
		}
	}
	switch verb {
	case "is-system-running":
		for f.has("W") && m.systemState() == "starting" {
			if sleepCommand(ctx, &process{Args: []string{"sleep", "0.1"}, Stderr: p.Stderr}) != 0 {
				return exitKilled
			}
		}
		state := m.systemState()
		say("%s", state)
		if state != "running" {
			return 1
		}
		return 0
	case "daemon-reload", "daemon-reexec", "reset-failed", "set-default", "isolate":
		return 0
	case "get-default":
		say("multi-user.target")
		return 0
	case "reboot", "poweroff", "halt":
		m.stop(verb != "reboot")
		return 0
	case "list-units", "list-unit-files", "list-timers", "list-sockets", "list-jobs":
		if f.has("F") || f.last("S") == "failed" {
			if m.cloudInit().Error != "" {
				fmt.Fprintln(p.Stdout, "cloud-final.service loaded failed failed Cloud-init: Final Stage")
			}
			return 0
		}
		if verb == "list-jobs" || verb == "list-timers" || verb == "list-sockets" {
			return 0
		}
		m.mu.Lock()
		names := slices.Sorted(maps.Keys(m.units))
		units := maps.Clone(m.units)
		m.mu.Unlock()
		shown := 0
		for _, name := range names {
			if len(operands) > 0 && !slices.ContainsFunc(operands, func(o string) bool { ok, _ := path.Match(o, name); return ok || o == name }) {
				continue
			}
			u := units[name]
			shown++
			if verb == "list-unit-files" {
				fmt.Fprintf(p.Stdout, "%s %s enabled\n", name, enablement(u))
			} else if u.active || f.has("a") {
				fmt.Fprintf(p.Stdout, "%s loaded %s running %s\n", name, activity(u), name)
			}
		}
		if shown == 0 && verb == "list-unit-files" {
			return 1
		}
		return 0
	}
	if len(operands) == 0 {
		return p.fail2(1, "Too few arguments.")
	}
	status := 0
	for _, operand := range operands {
		name, known := m.unitName(operand)
		if !known {
			known = m.loadUnit(name)
		}
		m.mu.Lock()
		u := m.units[name]
		m.mu.Unlock()
		switch verb {
		case "is-active", "is-failed":
			state := "inactive"
			if known {
				state = activity(u)
			}
			if strings.HasPrefix(name, "cloud-") && known {
				if m.cloudInit().Running {
					state = "activating"
				}
			}
			say("%s", state)
			if verb == "is-active" && state != "active" {
				status = 3
			}
			if verb == "is-failed" {
				status = 1
			}
		case "is-enabled":
			if !known {
				status = p.fail2(1, "Failed to get unit file state for %s: No such file or directory", name)
				continue
			}
			full := operand
			if !strings.Contains(full, ".") {
				full += ".service"
			}
			if full != name {
				say("alias")
				continue
			}
			say("%s", enablement(u))
			if !u.enabled && !u.static || u.masked {
				status = 1
			}
		case "show":
			values := [][2]string{{"Id", name}, {"LoadState", map[bool]string{true: "loaded", false: "not-found"}[known]}, {"ActiveState", activity(u)},
				{"SubState", map[bool]string{true: "running", false: "dead"}[u.active]}, {"UnitFileState", enablement(u)}}
			wanted := strings.Split(strings.Join(f["p"], ","), ",")
			for _, pair := range values {
				switch {
				case f.has("p") && !slices.Contains(wanted, pair[0]):
				case f.has("v"):
					fmt.Fprintln(p.Stdout, pair[1])
				default:
					fmt.Fprintf(p.Stdout, "%s=%s\n", pair[0], pair[1])
				}
			}
		case "status":
			if !known {
				status = p.fail2(4, "Unit %s could not be found.", name)
				continue
			}
			say("* %s\n     Loaded: loaded (/usr/lib/systemd/system/%s; %s)\n     Active: %s", name, name, enablement(u), activity(u))
			if !u.active {
				status = 3
			}
		case "cat":
			text, err := m.disk.readFile("/etc/systemd/system/" + name)
			if err != nil && !known {
				status = p.fail2(1, "No files found for %s.", name)
				continue
			}
			fmt.Fprintf(p.Stdout, "# %s\n%s", name, text)
		case "mask":
			m.editUnit(name, func(u *unit) { u.masked, u.enabled = true, false; u.active = u.active && !f.has("w") })
		case "unmask":
			m.editUnit(name, func(u *unit) { u.masked = false })
		case "enable", "disable", "preset", "reenable":
			if !known {
				status = p.fail2(1, "Failed to %s unit: Unit file %s does not exist.", verb, name)
				continue
			}
			if u.masked && verb == "enable" {
				status = p.fail2(1, "Failed to enable unit: Unit file /etc/systemd/system/%s is masked.", name)
				continue
			}
			m.editUnit(name, func(u *unit) { u.enabled = verb != "disable" })
			if f.has("w") {
				on := verb == "enable" && m.startUnit(ctx, name)
				m.editUnit(name, func(u *unit) { u.active = on })
			}
		case "start", "restart", "reload", "reload-or-restart", "try-restart", "try-reload-or-restart", "force-reload", "stop", "kill", "condrestart":
			if !known {
				status = p.fail2(5, "Failed to %s %s: Unit %s not found.", verb, name, name)
				continue
			}
			if u.masked && verb != "stop" {
				status = p.fail2(1, "Failed to %s %s: Unit %s is masked.", verb, name, name)
				continue
			}
			on := verb != "stop" && verb != "kill"
			if strings.HasPrefix(verb, "try-") || verb == "condrestart" {
				on = u.active
			}
			if on && !m.startUnit(ctx, name) {
				status = p.fail2(1, "Job for %s failed because the control process exited with error code.", name)
				on = false
			}
			m.editUnit(name, func(u *unit) { u.active = on })
		default:
			return p.fail2(1, "Unknown command verb %s.", verb)
		}
	}
	return status
}

func activity(u unit) string {
	if u.active {
		return "active"
	}
	return "inactive"
}

func enablement(u unit) string {
	switch {
	case u.masked:
		return "masked"
	case u.alias != "":
		return "alias"
	case u.static:
		return "static"
	case u.enabled:
		return "enabled"
	}
	return "disabled"
}

func service(ctx context.Context, p *process) int {
	if len(p.Args) < 3 {
		return p.fail(1, "usage: service NAME ACTION")
	}
	p.Args = []string{"systemctl", p.Args[2], p.Args[1]}
	return systemctl(ctx, p)
}

// ---- cloud-init

func cloudInitCommand(ctx context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "l w long=l wait=w format=f: version=v")
	if err != nil {
		return p.fail(2, "%v", err)
	}
	if f.has("v") {
		fmt.Fprintln(p.Stdout, "/usr/bin/cloud-init 22.4.2")
		return 0
	}
	if len(operands) == 0 || operands[0] != "status" {
		return p.fail(2, "this simulation knows only: cloud-init status")
	}
	state := p.machine.cloudInit()
	for f.has("w") && state.Running {
		fmt.Fprint(p.Stdout, ".")
		if sleepCommand(ctx, &process{Args: []string{"sleep", "0.1"}, Stderr: p.Stderr}) != 0 {
			return exitKilled
		}
		state = p.machine.cloudInit()
	}
	status, detail, code := "done", "DataSourceVMware [seed=guestinfo]", 0
	switch {
	case state.Running:
		status, detail = "running", "Running in stage: modules-config"
	case state.Error != "":
		status, detail, code = "error", state.Error, 1
	}
	switch {
	case f.last("f") == "json":
		errors := []string{}
		if state.Error != "" && !state.Running {
			errors = append(errors, state.Error)
		}
		p.json(map[string]any{"status": status, "extended_status": status, "detail": detail, "errors": errors, "boot_status_code": "enabled-by-generator", "datasource": "vmware"})
	case f.has("l"):
		fmt.Fprintf(p.Stdout, "status: %s\nboot_status_code: enabled-by-generator\nlast_update: %s\ndetail:\n%s\n", status, p.machine.Now().Format(time.RFC1123Z), detail)
	default:
		fmt.Fprintf(p.Stdout, "status: %s\n", status)
	}
	return code
}
