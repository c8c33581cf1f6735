package guestos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// packetFilters is what the kernel's packet filters hold. It is lost at a reboot.
type packetFilters struct {
	nft    ruleset
	tables map[string]*ipTables // "iptables" and "ip6tables"
}

// ruleset is nftables' state: the tables, in the order in which they were made.
type ruleset []nftTable

type nftTable struct {
	family, name string
	chains       []nftChain
	sets         []nftSet
}

type nftChain struct {
	name  string
	hook  string // "type filter hook input priority 0; policy drop;"
	rules []nftRule
}

type nftRule struct {
	handle int
	text   string
}

type nftSet struct {
	kind, name string   // set or map
	lines      []string // what stands in it, elements apart
	elements   []string
}

func (r ruleset) clone() ruleset {
	out := slices.Clone(r)
	for i := range out {
		out[i].chains = slices.Clone(out[i].chains)
		for j := range out[i].chains {
			out[i].chains[j].rules = slices.Clone(out[i].chains[j].rules)
		}
		out[i].sets = slices.Clone(out[i].sets)
		for j := range out[i].sets {
			out[i].sets[j].elements = slices.Clone(out[i].sets[j].elements)
		}
	}
	return out
}

func (r ruleset) String() string { return r.print(false) }

func (r ruleset) print(handles bool) string {
	var b strings.Builder
	for _, t := range r {
		b.WriteString(t.print(handles))
	}
	return b.String()
}

func (t nftTable) print(handles bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.family, t.name)
	for i, s := range t.sets {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\t%s %s {\n", s.kind, s.name)
		for _, line := range s.lines {
			fmt.Fprintf(&b, "\t\t%s\n", line)
		}
		if len(s.elements) > 0 {
			fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(s.elements, ", "))
		}
		b.WriteString("\t}\n")
	}
	for i, c := range t.chains {
		if i+len(t.sets) > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if c.hook != "" {
			fmt.Fprintf(&b, "\t\t%s\n", c.hook)
		}
		for _, rule := range c.rules {
			fmt.Fprintf(&b, "\t\t%s", rule.text)
			if handles {
				fmt.Fprintf(&b, " # handle %d", rule.handle)
			}
			b.WriteByte('\n')
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (r ruleset) table(family, name string) int {
	return slices.IndexFunc(r, func(t nftTable) bool { return t.family == family && t.name == name })
}

// nftNode is one statement: its words, and the block that follows it if any.
type nftNode struct {
	words []string
	block []nftNode
	open  bool // it has a block
}

// nftTokens splits a ruleset's text. Strings stay whole, comments go.
func nftTokens(text string) []string {
	var tokens []string
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text) && text[i+1] == '\n':
			i += 2
		case c == ' ' || c == '\t' || c == '\r':
			i++
		case c == '\n' || c == ';' || c == '{' || c == '}' || c == ',':
			tokens = append(tokens, string(c))
			i++
		case c == '#':
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case c == '"':
			end := strings.IndexByte(text[i+1:], '"')
			if end < 0 {
				end = len(text) - i - 2
			}
			tokens = append(tokens, text[i:i+end+2])
			i += end + 2
		default:
			start := i
			for i < len(text) && !strings.ContainsRune(" \t\r\n;{},#\"", rune(text[i])) {
				i++
			}
			tokens = append(tokens, text[start:i])
		}
	}
	return tokens
}

// nftParse reads statements up to the end of their block.
func nftParse(tokens []string, nested bool) (nodes []nftNode, rest []string, err error) {
	var words []string
	flush := func() {
		if len(words) > 0 {
			nodes = append(nodes, nftNode{words: words})
			words = nil
		}
	}
	for len(tokens) > 0 {
		token := tokens[0]
		tokens = tokens[1:]
		switch token {
		case "\n", ";":
			flush()
		case "}":
			if !nested {
				return nil, nil, errors.New("syntax error, unexpected '}'")
			}
			flush()
			return nodes, tokens, nil
		case "{":
			if nftBlock(words) {
				n := nftNode{words: words, open: true}
				words = nil
				if n.block, tokens, err = nftParse(tokens, true); err != nil {
					return nil, nil, err
				}
				nodes = append(nodes, n)
				continue
			}
			// An anonymous set, or a list of elements: a part of the statement.
			depth := 1
			words = append(words, "{")
			for depth > 0 {
				if len(tokens) == 0 {
					return nil, nil, errors.New("syntax error, unexpected end of file")
				}
				switch tokens[0] {
				case "{":
					depth++
				case "}":
					depth--
				}
				if tokens[0] != "\n" {
					words = append(words, tokens[0])
				}
				tokens = tokens[1:]
			}
		default:
			words = append(words, token)
		}
	}
	if nested {
		return nil, nil, errors.New("syntax error, unexpected end of file")
	}
	flush()
	return nodes, nil, nil
}

// nftBlock says whether a brace after these words opens a table, a chain or a set, rather than a set of values.
func nftBlock(words []string) bool {
	if len(words) > 0 && (words[0] == "add" || words[0] == "create") {
		words = words[1:]
	}
	return len(words) > 0 && len(words) <= 4 && slices.Contains([]string{"table", "chain", "set", "map", "counter"}, words[0])
}

// nftText joins words as nft prints them: "a, b" in braces, "a,b" outside.
func nftText(words []string) string {
	var b strings.Builder
	depth := 0
	for i, w := range words {
		glued := i == 0 || w == "," || w == ";" || words[i-1] == "," && depth == 0
		if !glued {
			b.WriteByte(' ')
		}
		b.WriteString(w)
		switch w {
		case "{":
			depth++
		case "}":
			depth--
		}
	}
	return b.String()
}

// loadNft applies a text as one transaction.
func (m *Machine) loadNft(text string) error {
	nodes, _, err := nftParse(nftTokens(text), false)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.packets.nft.clone()
	defines := map[string][]string{}
	for _, n := range nodes {
		if err := next.apply(n, defines); err != nil {
			return err
		}
	}
	m.packets.nft = next
	return nil
}

func nftFamily(words []string) (family string, rest []string) {
	if len(words) > 1 && slices.Contains([]string{"ip", "ip6", "inet", "arp", "bridge", "netdev"}, words[0]) {
		return words[0], words[1:]
	}
	return "ip", words
}

func (r *ruleset) apply(n nftNode, defines map[string][]string) error {
	words := make([]string, 0, len(n.words))
	for _, w := range n.words {
		if name, ok := strings.CutPrefix(w, "$"); ok {
			value, known := defines[name]
			if !known {
				return fmt.Errorf("unknown identifier '%s'", name)
			}
			words = append(words, value...)
			continue
		}
		words = append(words, w)
	}
	verb := words[0]
	switch verb {
	case "define":
		if len(words) < 4 || words[2] != "=" {
			return errors.New("syntax error in define")
		}
		defines[words[1]] = words[3:]
		return nil
	case "include":
		return nil
	case "table", "chain", "set", "map", "rule":
		verb = "add"
		words = append([]string{"add"}, words...)
	case "add", "create", "insert", "replace", "delete", "destroy", "flush", "list", "reset":
	default:
		return fmt.Errorf("syntax error, unexpected %s", verb)
	}
	if len(words) < 2 {
		return errors.New("syntax error, unexpected end of file")
	}
	object := words[1]
	if object == "ruleset" {
		if verb == "flush" {
			*r = nil
		}
		return nil
	}
	family, names := nftFamily(words[2:])
	if len(names) == 0 {
		return errors.New("syntax error, a name is missing")
	}
	at := r.table(family, names[0])
	missing := syscall.ENOENT
	if object == "table" {
		switch verb {
		case "add", "create":
			if at < 0 {
				*r = append(*r, nftTable{family: family, name: names[0]})
				at = len(*r) - 1
			} else if verb == "create" {
				return syscall.EEXIST
			}
			for _, inner := range n.block {
				if err := r.inTable(at, inner, defines); err != nil {
					return err
				}
			}
		case "delete", "destroy":
			if at < 0 && verb == "delete" {
				return missing
			}
			if at >= 0 {
				*r = slices.Delete(*r, at, at+1)
			}
		case "flush":
			if at < 0 {
				return missing
			}
			for i := range (*r)[at].chains {
				(*r)[at].chains[i].rules = nil
			}
		}
		return nil
	}
	if at < 0 {
		if verb == "destroy" {
			return nil
		}
		return missing
	}
	t := &(*r)[at]
	if len(names) < 2 {
		return errors.New("syntax error, a name is missing")
	}
	chain := slices.IndexFunc(t.chains, func(c nftChain) bool { return c.name == names[1] })
	switch object {
	case "chain":
		switch verb {
		case "add", "create":
			hook := names[2:]
			if len(hook) > 0 && hook[0] == "{" {
				hook = hook[1 : len(hook)-1]
			}
			block := n.block
			if len(hook) > 0 {
				parsed, _, err := nftParse(nftTokens(nftText(hook)), false)
				if err != nil {
					return err
				}
				block = parsed
			}
			return r.inTable(at, nftNode{words: []string{"chain", names[1]}, block: block, open: true}, defines)
		case "delete", "destroy":
			if chain < 0 && verb == "delete" {
				return missing
			}
			if chain >= 0 {
				t.chains = slices.Delete(t.chains, chain, chain+1)
			}
		case "flush":
			if chain < 0 {
				return missing
			}
			t.chains[chain].rules = nil
		}
	case "rule":
		if chain < 0 {
			return missing
		}
		c := &t.chains[chain]
		body := names[2:]
		if verb == "delete" {
			if len(body) != 2 || body[0] != "handle" {
				return errors.New("syntax error, a rule is deleted by its handle")
			}
			handle, _ := strconv.Atoi(body[1])
			i := slices.IndexFunc(c.rules, func(rule nftRule) bool { return rule.handle == handle })
			if i < 0 {
				return missing
			}
			c.rules = slices.Delete(c.rules, i, i+1)
			return nil
		}
		rule, err := r.newRule(body)
		if err != nil {
			return err
		}
		if verb == "insert" {
			c.rules = slices.Insert(c.rules, 0, rule)
		} else {
			c.rules = append(c.rules, rule)
		}
	case "set", "map":
		i := slices.IndexFunc(t.sets, func(s nftSet) bool { return s.name == names[1] })
		switch verb {
		case "add", "create":
			return r.inTable(at, nftNode{words: []string{object, names[1]}, block: n.block, open: true}, defines)
		case "flush":
			if i < 0 {
				return missing
			}
			t.sets[i].elements = nil
		default:
			if i < 0 && verb == "delete" {
				return missing
			}
			if i >= 0 {
				t.sets = slices.Delete(t.sets, i, i+1)
			}
		}
	case "element":
		i := slices.IndexFunc(t.sets, func(s nftSet) bool { return s.name == names[1] })
		if i < 0 {
			return missing
		}
		items := nftElements(names[2:])
		for _, item := range items {
			has := slices.Contains(t.sets[i].elements, item)
			switch {
			case verb == "delete" && !has:
				return missing
			case verb == "delete":
				t.sets[i].elements = slices.DeleteFunc(t.sets[i].elements, func(s string) bool { return s == item })
			case !has:
				t.sets[i].elements = append(t.sets[i].elements, item)
			}
		}
	default:
		return fmt.Errorf("syntax error, unexpected %s", object)
	}
	return nil
}

func nftElements(words []string) []string {
	var items []string
	current := ""
	for _, w := range append(slices.Clone(words), ",") {
		switch w {
		case "{", "}", "=":
		case ",":
			if current != "" {
				items = append(items, current)
			}
			current = ""
		default:
			current = strings.TrimSpace(current + " " + w)
		}
	}
	return items
}

// inTable applies a statement that stands in a table's block.
func (r *ruleset) inTable(at int, n nftNode, defines map[string][]string) error {
	t := &(*r)[at]
	switch n.words[0] {
	case "chain":
		if len(n.words) < 2 || !n.open {
			return errors.New("syntax error, unexpected chain")
		}
		i := slices.IndexFunc(t.chains, func(c nftChain) bool { return c.name == n.words[1] })
		if i < 0 {
			t.chains = append(t.chains, nftChain{name: n.words[1]})
			i = len(t.chains) - 1
		}
		for _, s := range n.block {
			words := s.words
			for j := 0; j < len(words); j++ {
				if name, ok := strings.CutPrefix(words[j], "$"); ok {
					value, known := defines[name]
					if !known {
						return fmt.Errorf("unknown identifier '%s'", name)
					}
					words = slices.Concat(words[:j], value, words[j+1:])
				}
			}
			switch words[0] {
			case "type":
				if len(words) < 6 || words[2] != "hook" || !slices.Contains(words, "priority") {
					return errors.New("syntax error in the chain's type")
				}
				t.chains[i].hook = nftText(words) + ";"
			case "policy":
				if len(words) != 2 || words[1] != "accept" && words[1] != "drop" {
					return errors.New("syntax error in the chain's policy")
				}
				if t.chains[i].hook == "" {
					return errors.New("a chain without a hook has no policy")
				}
				t.chains[i].hook += " " + nftText(words) + ";"
			default:
				rule, err := r.newRule(words)
				if err != nil {
					return err
				}
				t.chains[i].rules = append(t.chains[i].rules, rule)
			}
		}
	case "set", "map":
		if len(n.words) < 2 || !n.open {
			return errors.New("syntax error, unexpected set")
		}
		i := slices.IndexFunc(t.sets, func(s nftSet) bool { return s.name == n.words[1] })
		if i < 0 {
			t.sets = append(t.sets, nftSet{kind: n.words[0], name: n.words[1]})
			i = len(t.sets) - 1
		}
		t.sets[i].lines = nil
		for _, s := range n.block {
			if s.words[0] == "elements" {
				t.sets[i].elements = append(t.sets[i].elements, nftElements(s.words[1:])...)
				continue
			}
			t.sets[i].lines = append(t.sets[i].lines, nftText(s.words))
		}
	case "comment", "flags", "counter", "quota":
	default:
		return fmt.Errorf("syntax error, unexpected %s", n.words[0])
	}
	return nil
}

// newRule checks a rule's first word, which tells a typing error from a rule, and that it does something.
func (r *ruleset) newRule(words []string) (nftRule, error) {
	known := strings.Fields(`ip ip6 tcp udp icmp icmpv6 ct meta iif iifname oif oifname accept drop reject return jump goto counter log limit
		th inet ether masquerade snat dnat fib socket rt mark comment arp vlan sctp`)
	if len(words) == 0 || !slices.Contains(known, words[0]) {
		return nftRule{}, fmt.Errorf("syntax error, unexpected %s", nftText(words))
	}
	return nftRule{handle: r.nextHandle(), text: nftText(words)}, nil
}

func (r *ruleset) nextHandle() int {
	highest := 0
	for _, t := range *r {
		for _, c := range t.chains {
			for _, rule := range c.rules {
				highest = max(highest, rule.handle)
			}
		}
	}
	return highest + 1
}

func nft(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], `+f: c a n s j e i v h file=f: check=c handle=a numeric=n stateless=s json=j echo=e version=v interactive=i`)
	if err != nil {
		return p.fail(1, "%v", err)
	}
	if f.has("v") {
		fmt.Fprintln(p.Stdout, "nftables v1.0.6 (Lester Gooch #5)")
		return 0
	}
	m := p.machine
	if f.has("f") {
		text, err := p.readOperand(f.last("f"))
		if err == nil {
			if f.has("c") {
				scratch := &Machine{}
				m.mu.Lock()
				scratch.packets.nft = m.packets.nft.clone()
				m.mu.Unlock()
				err = scratch.loadNft(string(text))
			} else {
				err = m.loadNft(string(text))
			}
		}
		if err != nil {
			return p.fail2(1, "%s: Error: %s", f.last("f"), reason(err))
		}
		return 0
	}
	if len(operands) == 0 {
		return p.fail(1, "no command specified")
	}
	text := strings.Join(operands, " ")
	tokens := nftTokens(text)
	if tokens[0] != "list" {
		if err := m.loadNft(text); err != nil {
			return p.fail2(1, "Error: %s\n%s", reason(err), text)
		}
		return 0
	}
	m.mu.Lock()
	rules := m.packets.nft.clone()
	m.mu.Unlock()
	words := tokens[1:]
	if len(words) == 0 {
		words = []string{"ruleset"}
	}
	switch words[0] {
	case "ruleset":
		fmt.Fprint(p.Stdout, rules.print(f.has("a")))
	case "tables":
		for _, t := range rules {
			fmt.Fprintf(p.Stdout, "table %s %s\n", t.family, t.name)
		}
	case "table", "chain", "set":
		family, names := nftFamily(words[1:])
		if len(names) == 0 {
			return p.fail2(1, "Error: syntax error, a name is missing")
		}
		at := rules.table(family, names[0])
		if at < 0 {
			return p.fail2(1, "Error: No such file or directory\n%s", text)
		}
		t := rules[at]
		if words[0] != "table" && len(names) > 1 {
			t.chains = slices.DeleteFunc(t.chains, func(c nftChain) bool { return words[0] != "chain" || c.name != names[1] })
			t.sets = slices.DeleteFunc(t.sets, func(s nftSet) bool { return words[0] != "set" || s.name != names[1] })
			if len(t.chains)+len(t.sets) == 0 {
				return p.fail2(1, "Error: No such file or directory\n%s", text)
			}
		}
		fmt.Fprint(p.Stdout, t.print(f.has("a")))
	case "chains":
		for _, t := range rules {
			fmt.Fprintf(p.Stdout, "table %s %s {\n", t.family, t.name)
			for _, c := range t.chains {
				fmt.Fprintf(p.Stdout, "\tchain %s {\n\t\t%s\n\t}\n", c.name, c.hook)
			}
			fmt.Fprintln(p.Stdout, "}")
		}
	default:
		return p.fail2(1, "Error: syntax error, unexpected %s", words[0])
	}
	return 0
}
