package guestos

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// ---- iptables

// ipTables is the state of iptables or ip6tables: its tables by name.
type ipTables struct {
	tables map[string]*ipTable
}

type ipTable struct {
	order  []string // chains
	policy map[string]string
	rules  map[string][]string
}

func newIPTable(name string) *ipTable {
	t := &ipTable{policy: map[string]string{}, rules: map[string][]string{}}
	chains := []string{"INPUT", "FORWARD", "OUTPUT"}
	switch name {
	case "nat":
		chains = []string{"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}
	case "mangle", "raw":
		chains = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
	}
	for _, c := range chains {
		t.order = append(t.order, c)
		t.policy[c] = "ACCEPT"
	}
	return t
}

func (t *ipTable) has(chain string) bool { return slices.Contains(t.order, chain) }

func (m *Machine) ipTables(family string) *ipTables {
	if m.packets.tables == nil {
		m.packets.tables = map[string]*ipTables{}
	}
	if m.packets.tables[family] == nil {
		m.packets.tables[family] = &ipTables{tables: map[string]*ipTable{"filter": newIPTable("filter")}}
	}
	return m.packets.tables[family]
}

func (x *ipTables) table(name string) *ipTable {
	if x.tables[name] == nil && slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, name) {
		x.tables[name] = newIPTable(name)
	}
	return x.tables[name]
}

// IPTables returns a family's rules ("iptables" or "ip6tables") as iptables-save prints them.
func (m *Machine) IPTables(family string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ipTables(family).save("")
}

func (x *ipTables) save(only string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(x.tables)) {
		if only != "" && name != only {
			continue
		}
		t := x.tables[name]
		fmt.Fprintf(&b, "*%s\n", name)
		for _, c := range t.order {
			policy := t.policy[c]
			if policy == "" {
				policy = "-"
			}
			fmt.Fprintf(&b, ":%s %s [0:0]\n", c, policy)
		}
		for _, c := range t.order {
			for _, rule := range t.rules[c] {
				fmt.Fprintf(&b, "-A %s %s\n", c, rule)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// shellWords splits a line of iptables-restore, whose only quoting is for comments.
func shellWords(line string) []string {
	var words []string
	var b strings.Builder
	quoted, any := false, false
	for _, c := range line {
		switch {
		case c == '"':
			quoted, any = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			if any {
				words = append(words, b.String())
				b.Reset()
				any = false
			}
		default:
			b.WriteRune(c)
			any = true
		}
	}
	if any {
		words = append(words, b.String())
	}
	return words
}

// apply does one command of iptables. It returns what to print and an error's text.
func (x *ipTables) apply(table string, args []string) (out, fault string) {
	t := x.table(table)
	if t == nil {
		return "", fmt.Sprintf("can't initialize iptables table `%s': Table does not exist", table)
	}
	long := map[string]string{"--append": "-A", "--insert": "-I", "--delete": "-D", "--check": "-C", "--flush": "-F", "--new-chain": "-N",
		"--delete-chain": "-X", "--policy": "-P", "--list": "-L", "--list-rules": "-S", "--jump": "-j", "--protocol": "-p", "--source": "-s",
		"--destination": "-d", "--in-interface": "-i", "--out-interface": "-o", "--match": "-m", "--destination-port": "--dport", "--source-port": "--sport"}
	var verb, chain string
	var rest []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if short, ok := long[arg]; ok {
			arg = short
		}
		if verb == "" && slices.Contains([]string{"-A", "-I", "-D", "-C", "-F", "-N", "-X", "-P", "-L", "-S", "-E", "-R", "-Z"}, arg) {
			verb = arg
			if i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				chain = args[i+1]
				i++
			}
			continue
		}
		if slices.Contains([]string{"-n", "-v", "--line-numbers", "-x", "-w", "--wait", "--numeric"}, arg) {
			continue
		}
		rest = append(rest, arg)
	}
	none := "No chain/target/match by that name."
	needs := slices.Contains([]string{"-A", "-I", "-D", "-C", "-P", "-R"}, verb) || chain != "" && verb != "-N"
	if needs && !t.has(chain) {
		return "", none
	}
	number := 0
	if (verb == "-I" || verb == "-D" || verb == "-R") && len(rest) > 0 {
		if n, err := strconv.Atoi(rest[0]); err == nil {
			number, rest = n, rest[1:]
		}
	}
	rule := iptablesRule(rest)
	if slices.Contains([]string{"-A", "-I", "-C", "-R"}, verb) || verb == "-D" && number == 0 {
		if at := slices.Index(rest, "-j"); at >= 0 && at+1 < len(rest) {
			target := rest[at+1]
			if !slices.Contains([]string{"ACCEPT", "DROP", "REJECT", "RETURN", "LOG", "MASQUERADE", "SNAT", "DNAT", "MARK", "QUEUE", "NFLOG", "CT", "CONNMARK", "TCPMSS"}, target) && !t.has(target) {
				return "", none
			}
		}
	}
	rules := t.rules[chain]
	at := slices.Index(rules, rule)
	switch verb {
	case "-A":
		t.rules[chain] = append(rules, rule)
	case "-I":
		index := max(number, 1) - 1
		if index > len(rules) {
			return "", "Index of insertion too big."
		}
		t.rules[chain] = slices.Insert(slices.Clone(rules), index, rule)
	case "-D":
		if number > 0 {
			at = number - 1
		}
		if at < 0 || at >= len(rules) {
			return "", "Bad rule (does a matching rule exist in that chain?)."
		}
		t.rules[chain] = slices.Delete(slices.Clone(rules), at, at+1)
	case "-R":
		if number < 1 || number > len(rules) {
			return "", "Index of replacement too big."
		}
		rules[number-1] = rule
	case "-C":
		if at < 0 {
			return "", "Bad rule (does a matching rule exist in that chain?)."
		}
	case "-N":
		if t.has(chain) {
			return "", "Chain already exists."
		}
		t.order = append(t.order, chain)
	case "-X":
		for _, name := range slices.Clone(t.order) {
			if t.policy[name] != "" || chain != "" && name != chain {
				if name == chain {
					return "", "Invalid argument."
				}
				continue
			}
			used := strings.Contains(x.save("")+"\n", " -j "+name+"\n")
			if used || len(t.rules[name]) > 0 {
				return "", "Directory not empty."
			}
			t.order = slices.DeleteFunc(t.order, func(s string) bool { return s == name })
		}
	case "-F":
		if chain == "" {
			t.rules = map[string][]string{}
		} else {
			t.rules[chain] = nil
		}
	case "-Z":
	case "-P":
		if len(rest) != 1 || t.policy[chain] == "" || rest[0] != "ACCEPT" && rest[0] != "DROP" {
			return "", "Bad policy name. Run `dmesg' for more information."
		}
		t.policy[chain] = rest[0]
	case "-L", "-S":
		var b strings.Builder
		for _, name := range t.order {
			if chain != "" && name != chain {
				continue
			}
			switch {
			case verb == "-S" && t.policy[name] != "":
				fmt.Fprintf(&b, "-P %s %s\n", name, t.policy[name])
			case verb == "-S":
				fmt.Fprintf(&b, "-N %s\n", name)
			case t.policy[name] != "":
				fmt.Fprintf(&b, "Chain %s (policy %s)\n%-10s prot opt source               destination\n", name, t.policy[name], "target")
			default:
				fmt.Fprintf(&b, "Chain %s (1 references)\n%-10s prot opt source               destination\n", name, "target")
			}
			for _, rule := range t.rules[name] {
				if verb == "-S" {
					fmt.Fprintf(&b, "-A %s %s\n", name, rule)
					continue
				}
				words := strings.Fields(rule)
				target := ""
				if j := slices.Index(words, "-j"); j >= 0 && j+1 < len(words) {
					target = words[j+1]
				}
				fmt.Fprintf(&b, "%-10s %s\n", target, rule)
			}
			if verb == "-L" {
				b.WriteByte('\n')
			}
		}
		return b.String(), ""
	default:
		return "", "no command specified"
	}
	return "", ""
}

// iptablesRule writes a rule the way iptables lists it: a protocol's match is named, a host gets its mask.
func iptablesRule(words []string) string {
	var out []string
	for i := 0; i < len(words); i++ {
		w := words[i]
		switch {
		case (w == "-s" || w == "-d") && i+1 < len(words):
			address := words[i+1]
			if !strings.Contains(address, "/") {
				address += map[bool]string{true: "/128", false: "/32"}[strings.Contains(address, ":")]
			}
			out = append(out, w, address)
			i++
		case (w == "--dport" || w == "--sport") && !slices.Contains(out, "tcp") && !slices.Contains(out, "udp"):
			out = append(out, w)
		case (w == "--dport" || w == "--sport") && !slices.Contains(out, "-m"):
			protocol := "tcp"
			if slices.Contains(out, "udp") {
				protocol = "udp"
			}
			out = append(out, "-m", protocol, w)
		case strings.Contains(w, " "):
			out = append(out, strconv.Quote(w))
		default:
			out = append(out, w)
		}
	}
	return strings.Join(out, " ")
}

func iptables(_ context.Context, p *process) int {
	table := "filter"
	var args []string
	for i := 1; i < len(p.Args); i++ {
		switch arg := p.Args[i]; arg {
		case "-t", "--table":
			if i++; i < len(p.Args) {
				table = p.Args[i]
			}
		case "-V", "--version":
			fmt.Fprintln(p.Stdout, p.Args[0]+" v1.8.9 (nf_tables)")
			return 0
		default:
			args = append(args, arg)
		}
	}
	p.machine.mu.Lock()
	out, fault := p.machine.ipTables(p.Args[0]).apply(table, args)
	p.machine.mu.Unlock()
	fmt.Fprint(p.Stdout, out)
	if fault != "" {
		return p.fail(1, "%s", fault)
	}
	return 0
}

func iptablesSave(_ context.Context, p *process) int {
	f, _, err := options(p.Args[1:], "t: c f: table=t: counters=c")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	fmt.Fprint(p.Stdout, p.machine.ipTables(strings.TrimSuffix(p.Args[0], "-save")).save(f.last("t")))
	return 0
}

func iptablesRestore(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "n t w c v T: noflush=n test=t wait=w counters=c table=T:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	var text []byte
	if len(operands) > 0 {
		text, err = p.readOperand(operands[0])
	} else {
		text, err = io.ReadAll(p.Stdin)
	}
	if err != nil {
		return p.fail(1, "%s", reason(err))
	}
	family := strings.TrimSuffix(p.Args[0], "-restore")
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	current := p.machine.ipTables(family)
	next := &ipTables{tables: map[string]*ipTable{}}
	for name, t := range current.tables {
		c := &ipTable{order: slices.Clone(t.order), policy: maps.Clone(t.policy), rules: map[string][]string{}}
		for chain, rules := range t.rules {
			c.rules[chain] = slices.Clone(rules)
		}
		next.tables[name] = c
	}
	table, committed := "", false
	for i, line := range lines(text) {
		line = strings.TrimSpace(line)
		fail := func(what string) int { return p.fail(2, "line %d failed: %s", i+1, what) }
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "*"):
			table = line[1:]
			if next.table(table) == nil {
				return fail("unknown table " + table)
			}
			if !f.has("n") {
				next.tables[table] = newIPTable(table)
			}
			committed = false
		case line == "COMMIT":
			committed = true
		case table == "":
			return fail("no table")
		case strings.HasPrefix(line, ":"):
			words := strings.Fields(line[1:])
			if len(words) < 2 {
				return fail("bad chain")
			}
			t := next.tables[table]
			if !t.has(words[0]) {
				t.order = append(t.order, words[0])
			}
			if words[1] != "-" {
				t.policy[words[0]] = words[1]
			} else {
				t.rules[words[0]] = nil // naming a chain of one's own empties it, with --noflush too
			}
		default:
			if _, fault := next.apply(table, shellWords(line)); fault != "" {
				return fail(fault)
			}
		}
	}
	if !committed {
		return p.fail(2, "COMMIT expected")
	}
	if !f.has("t") {
		p.machine.packets.tables[family] = next
	}
	return 0
}

// ---- firewalld

type firewalldState struct {
	runtime, permanent map[string]firewalldZone
	defaultZone        string
	interfaces         []string
}

// firewalldZone is a zone's settings: "service:ssh", "port:8080/tcp", "source:10.0.0.0/8", "rich-rule:...".
type firewalldZone struct {
	target string
	items  []string
}

func copyZones(zones map[string]firewalldZone) map[string]firewalldZone {
	out := map[string]firewalldZone{}
	for name, z := range zones {
		z.items = slices.Clone(z.items)
		out[name] = z
	}
	return out
}

// reloaded returns the state after a start or a reload: what is permanent.
func (s *firewalldState) reloaded() *firewalldState {
	return &firewalldState{runtime: copyZones(s.permanent), permanent: copyZones(s.permanent), defaultZone: s.defaultZone, interfaces: s.interfaces}
}

// FirewalldItems returns a zone's settings at run time; nil when there is no such zone or no firewalld.
func (m *Machine) FirewalldItems(zone string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.firewalld == nil {
		return nil
	}
	return slices.Clone(m.firewalld.runtime[zone].items)
}

func firewallCmd(_ context.Context, p *process) int {
	m := p.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.firewalld == nil || !m.units["firewalld.service"].active {
		return p.fail2(252, "FirewallD is not running")
	}
	s := m.firewalld
	zones := s.runtime
	zone := s.defaultZone
	for _, arg := range p.Args[1:] {
		if arg == "--permanent" {
			zones = s.permanent
		}
		if name, ok := strings.CutPrefix(arg, "--zone="); ok {
			zone = name
		}
	}
	success := func() int { fmt.Fprintln(p.Stdout, "success"); return 0 }
	current, known := zones[zone]
	kinds := []string{"service", "port", "source", "rich-rule", "interface", "protocol", "source-port"}
	for _, arg := range p.Args[1:] {
		option, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		switch option {
		case "permanent", "zone", "quiet", "q":
			continue
		case "state":
			fmt.Fprintln(p.Stdout, "running")
			return 0
		case "version":
			fmt.Fprintln(p.Stdout, "1.3.4")
			return 0
		case "reload", "complete-reload":
			m.firewalld = s.reloaded()
			return success()
		case "runtime-to-permanent":
			s.permanent = copyZones(s.runtime)
			return success()
		case "get-default-zone":
			fmt.Fprintln(p.Stdout, s.defaultZone)
			return 0
		case "set-default-zone":
			s.defaultZone = value
			return success()
		case "get-zones":
			fmt.Fprintln(p.Stdout, strings.Join(slices.Sorted(maps.Keys(zones)), " "))
			return 0
		case "get-active-zones":
			fmt.Fprintf(p.Stdout, "%s (default)\n  interfaces: %s\n", s.defaultZone, strings.Join(s.interfaces, " "))
			return 0
		case "new-zone":
			if _, ok := s.permanent[value]; ok {
				return p.fail2(26, "Error: NAME_CONFLICT: new_zone(): '%s'", value)
			}
			s.permanent[value] = firewalldZone{target: "default"}
			return success()
		case "delete-zone":
			delete(s.permanent, value)
			return success()
		}
		if !known {
			return p.fail2(112, "Error: INVALID_ZONE: %s", zone)
		}
		switch option {
		case "get-target":
			fmt.Fprintln(p.Stdout, current.target)
			return 0
		case "set-target":
			current.target = value
			zones[zone] = current
			return success()
		case "list-all":
			fmt.Fprintf(p.Stdout, "%s (active)\n  target: %s\n", zone, current.target)
			for _, kind := range kinds {
				fmt.Fprintf(p.Stdout, "  %ss: %s\n", kind, strings.Join(ofKind(current.items, kind), " "))
			}
			return 0
		}
		verb, kind, _ := strings.Cut(option, "-")
		if verb == "list" {
			fmt.Fprintln(p.Stdout, strings.Join(ofKind(current.items, strings.TrimSuffix(kind, "s")), map[bool]string{true: "\n", false: " "}[kind == "rich-rules"]))
			return 0
		}
		if !slices.Contains(kinds, kind) || !slices.Contains([]string{"add", "remove", "query"}, verb) {
			return p.fail2(2, "usage: see firewall-cmd man page\nfirewall-cmd: error: unrecognized arguments: %s", arg)
		}
		if kind == "rich-rule" && !strings.HasPrefix(value, "rule ") {
			return p.fail2(122, "Error: INVALID_RULE: %s", value)
		}
		item := kind + ":" + value
		has := slices.Contains(current.items, item)
		switch verb {
		case "query":
			fmt.Fprintln(p.Stdout, map[bool]string{true: "yes", false: "no"}[has])
			if !has {
				return 1
			}
			return 0
		case "add":
			if has {
				fmt.Fprintf(p.Stderr, "Warning: ALREADY_ENABLED: %s\n", value)
			} else {
				current.items = append(slices.Clone(current.items), item)
			}
		case "remove":
			if !has {
				fmt.Fprintf(p.Stderr, "Warning: NOT_ENABLED: %s\n", value)
			}
			current.items = slices.DeleteFunc(slices.Clone(current.items), func(i string) bool { return i == item })
		}
		zones[zone] = current
	}
	return success()
}

func ofKind(items []string, kind string) []string {
	var values []string
	for _, item := range items {
		if value, ok := strings.CutPrefix(item, kind+":"); ok {
			values = append(values, value)
		}
	}
	return values
}

// ---- ufw

type ufwState struct {
	active bool
	rules  []string
}

// UFW returns whether ufw is active, and its rules in order as they were given.
func (m *Machine) UFW() (active bool, rules []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ufw.active, slices.Clone(m.ufw.rules)
}

func ufw(_ context.Context, p *process) int {
	m := p.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	args := slices.DeleteFunc(slices.Clone(p.Args[1:]), func(a string) bool { return a == "--force" || a == "--dry-run" })
	if len(args) == 0 {
		return p.fail2(1, "ERROR: not enough args")
	}
	s := &m.ufw
	switch args[0] {
	case "version", "--version":
		fmt.Fprintln(p.Stdout, "ufw 0.36.2")
	case "status":
		if !s.active {
			fmt.Fprintln(p.Stdout, "Status: inactive")
			return 0
		}
		fmt.Fprintln(p.Stdout, "Status: active")
		if len(s.rules) > 0 {
			fmt.Fprintln(p.Stdout)
		}
		for i, rule := range s.rules {
			if len(args) > 1 && args[1] == "numbered" {
				fmt.Fprintf(p.Stdout, "[%2d] ", i+1)
			}
			fmt.Fprintln(p.Stdout, rule)
		}
	case "enable":
		s.active = true
		fmt.Fprintln(p.Stdout, "Firewall is active and enabled on system startup")
	case "disable":
		s.active = false
		fmt.Fprintln(p.Stdout, "Firewall stopped and disabled on system startup")
	case "reload":
		fmt.Fprintln(p.Stdout, "Firewall reloaded")
	case "reset":
		*s = ufwState{}
		fmt.Fprintln(p.Stdout, "Resetting all rules to installed defaults.")
	case "default", "logging":
		fmt.Fprintln(p.Stdout, "Default policy changed")
	case "delete", "allow", "deny", "reject", "limit", "insert", "prepend":
		verb := args[0]
		rule := args
		at := len(s.rules)
		switch verb {
		case "delete":
			rule = args[1:]
		case "prepend":
			rule, at = args[1:], 0
		case "insert":
			if len(args) < 3 {
				return p.fail2(1, "ERROR: Invalid syntax")
			}
			n, err := strconv.Atoi(args[1])
			if err != nil || n < 1 || n > len(s.rules)+1 {
				return p.fail2(1, "ERROR: Invalid position '%s'", args[1])
			}
			rule, at = args[2:], n-1
		}
		if verb == "delete" && len(rule) == 1 {
			if n, err := strconv.Atoi(rule[0]); err == nil {
				if n < 1 || n > len(s.rules) {
					return p.fail2(1, "ERROR: Could not find rule '%d'", n)
				}
				s.rules = slices.Delete(s.rules, n-1, n)
				return 0
			}
		}
		if len(rule) < 2 || !slices.Contains([]string{"allow", "deny", "reject", "limit"}, rule[0]) {
			return p.fail2(1, "ERROR: Invalid syntax")
		}
		text := strings.Join(rule, " ")
		i := slices.Index(s.rules, text)
		switch {
		case verb == "delete" && i < 0:
			fmt.Fprintln(p.Stdout, "Could not delete non-existent rule")
		case verb == "delete":
			s.rules = slices.Delete(s.rules, i, i+1)
			fmt.Fprintln(p.Stdout, "Rule deleted")
		case i >= 0:
			fmt.Fprintln(p.Stdout, "Skipping adding existing rule")
		default:
			s.rules = slices.Insert(s.rules, at, text)
			fmt.Fprintln(p.Stdout, "Rule added")
		}
	default:
		return p.fail2(1, "ERROR: Invalid syntax")
	}
	return 0
}
