package guestos

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// awk knows the small programs that scripts use it for: rules of a pattern (BEGIN, END, /re/, comparisons joined by && and
// ||) and an action (print, printf without widths, exit, next, assignments of one expression), with $N, NF, NR, -F and -v.
func awk(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "+F: v: f:")
	if err != nil || len(operands) == 0 {
		return p.fail(2, "give a program")
	}
	a := &awkRun{p: p, separator: unescape(f.last("F")), variables: map[string]string{}}
	for _, v := range f["v"] {
		name, value, _ := strings.Cut(v, "=")
		a.variables[name] = unescape(value)
	}
	rules, err := awkRules(operands[0])
	if err != nil {
		return p.fail(2, "%v (this simulation knows small programs only)", err)
	}
	if err := a.all(rules, "BEGIN"); err != nil {
		return a.end(err)
	}
	fault := error(nil)
	status := p.inputs(operands[1:], func(_ string, text []byte) {
		for _, line := range lines(text) {
			if fault != nil {
				return
			}
			a.nr++
			a.setLine(line)
			fault = a.all(rules, "")
		}
	})
	if fault == nil {
		fault = a.all(rules, "END")
	}
	if fault != nil {
		return a.end(fault)
	}
	return status
}

type awkRule struct{ pattern, action string }

type awkExit int

func (e awkExit) Error() string { return "exit" }

type awkNext struct{}

func (awkNext) Error() string { return "next" }

type awkRun struct {
	p         *process
	separator string
	variables map[string]string
	line      string
	fields    []string
	nr        int
}

func (a *awkRun) end(err error) int {
	var e awkExit
	if errors.As(err, &e) {
		return int(e)
	}
	return a.p.fail(2, "%v (this simulation knows small programs only)", err)
}

func (a *awkRun) setLine(line string) {
	a.line = line
	switch {
	case a.separator == "" || a.separator == " ":
		a.fields = strings.Fields(line)
	case len(a.separator) == 1:
		a.fields = strings.Split(line, a.separator)
	default:
		re, err := posixRegexp(a.separator, true, false)
		if err != nil {
			a.fields = []string{line}
			return
		}
		a.fields = re.Split(line, -1)
	}
}

func awkRules(program string) ([]awkRule, error) {
	var rules []awkRule
	for i := 0; i < len(program); {
		for i < len(program) && strings.IndexByte(" \t\n;", program[i]) >= 0 {
			i++
		}
		start := i
		for i < len(program) && program[i] != '{' && program[i] != '\n' && program[i] != ';' {
			i = awkSkip(program, i)
		}
		rule := awkRule{pattern: strings.TrimSpace(program[start:min(i, len(program))]), action: "print"}
		if i < len(program) && program[i] == '{' {
			depth, from := 0, i+1
			for i < len(program) {
				switch program[i] {
				case '{':
					depth++
				case '}':
					depth--
				}
				if depth == 0 {
					break
				}
				i = awkSkip(program, i)
			}
			if i >= len(program) {
				return nil, errors.New("missing '}'")
			}
			rule.action = program[from:i]
			i++
		} else if rule.pattern == "" {
			continue
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// awkSkip returns the index after a character, a string or a regular expression.
func awkSkip(s string, i int) int {
	c := s[i]
	if c != '"' && !(c == '/' && (i == 0 || strings.IndexByte("~!(,&| \t", s[i-1]) >= 0)) {
		return i + 1
	}
	for i++; i < len(s) && s[i] != c; i++ {
		if s[i] == '\\' {
			i++
		}
	}
	return i + 1
}

func awkSplit(s, by string) []string {
	var parts []string
	start, depth := 0, 0
	for i := 0; i < len(s); {
		switch s[i] {
		case '(':
			depth++
		case ')':
			depth--
		}
		if depth == 0 && strings.HasPrefix(s[i:], by) {
			parts = append(parts, s[start:i])
			i += len(by)
			start = i
			continue
		}
		i = awkSkip(s, i)
	}
	return append(parts, s[min(start, len(s)):])
}

func (a *awkRun) all(rules []awkRule, when string) error {
	for _, rule := range rules {
		if (rule.pattern == "BEGIN" || rule.pattern == "END" || when != "") && rule.pattern != when {
			continue
		}
		if when == "" && rule.pattern != "" {
			ok, err := a.test(rule.pattern)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
		}
		for _, statement := range awkSplit(strings.ReplaceAll(rule.action, "\n", ";"), ";") {
			if err := a.run(strings.TrimSpace(statement)); err != nil {
				if errors.As(err, new(awkNext)) {
					return nil
				}
				return err
			}
		}
	}
	return nil
}

func (a *awkRun) run(s string) error {
	word, rest, _ := strings.Cut(s, " ")
	switch {
	case s == "":
		return nil
	case word == "next":
		return awkNext{}
	case word == "exit":
		value, err := a.value(rest)
		if err != nil {
			return err
		}
		n, _ := strconv.Atoi(value)
		return awkExit(n)
	case word == "print":
		if strings.TrimSpace(rest) == "" {
			fmt.Fprintln(a.p.Stdout, a.line)
			return nil
		}
		var out []string
		for _, part := range awkSplit(rest, ",") {
			value, err := a.value(part)
			if err != nil {
				return err
			}
			out = append(out, value)
		}
		separator := " "
		if ofs, ok := a.variables["OFS"]; ok {
			separator = ofs
		}
		fmt.Fprintln(a.p.Stdout, strings.Join(out, separator))
		return nil
	case word == "printf":
		parts := awkSplit(rest, ",")
		format, err := a.value(parts[0])
		if err != nil {
			return err
		}
		for _, part := range parts[1:] {
			value, err := a.value(part)
			if err != nil {
				return err
			}
			at := regexp.MustCompile(`%[sd]`).FindStringIndex(format)
			if at == nil {
				break
			}
			format = format[:at[0]] + value + format[at[1]:]
		}
		fmt.Fprint(a.p.Stdout, format)
		return nil
	}
	if m := regexp.MustCompile(`^([A-Za-z_]\w*)\s*=\s*([^=].*)$`).FindStringSubmatch(s); m != nil {
		value, err := a.value(m[2])
		a.variables[m[1]] = value
		return err
	}
	return fmt.Errorf("unknown statement: %s", s)
}

func (a *awkRun) test(s string) (bool, error) {
	s = strings.TrimSpace(s)
	for _, joint := range []string{"||", "&&"} {
		if parts := awkSplit(s, joint); len(parts) > 1 {
			for _, part := range parts {
				ok, err := a.test(part)
				if err != nil || ok == (joint == "||") {
					return ok, err
				}
			}
			return joint == "&&", nil
		}
	}
	if rest, ok := strings.CutPrefix(s, "!"); ok && !strings.HasPrefix(rest, "~") && !strings.HasPrefix(rest, "=") {
		ok, err := a.test(rest)
		return !ok, err
	}
	if strings.HasPrefix(s, "/") && strings.HasSuffix(s, "/") && len(s) > 1 {
		re, err := posixRegexp(strings.ReplaceAll(s[1:len(s)-1], `\/`, "/"), true, false)
		return err == nil && re.MatchString(a.line), err
	}
	for _, op := range []string{"!~", "~", "==", "!=", "<=", ">=", "<", ">"} {
		parts := awkSplit(s, op)
		if len(parts) != 2 {
			continue
		}
		left, err := a.value(parts[0])
		if err != nil {
			return false, err
		}
		right := strings.TrimSpace(parts[1])
		if op == "~" || op == "!~" {
			re, err := posixRegexp(strings.Trim(right, `/"`), true, false)
			return err == nil && re.MatchString(left) == (op == "~"), err
		}
		if right, err = a.value(right); err != nil {
			return false, err
		}
		order := strings.Compare(left, right)
		x, errX := strconv.ParseFloat(left, 64)
		y, errY := strconv.ParseFloat(right, 64)
		if errX == nil && errY == nil {
			order = map[bool]int{true: -1, false: 1}[x < y]
			if x == y {
				order = 0
			}
		}
		return map[string]bool{"==": order == 0, "!=": order != 0, "<=": order <= 0, ">=": order >= 0, "<": order < 0, ">": order > 0}[op], nil
	}
	value, err := a.value(s)
	return value != "" && value != "0", err
}

// value returns an expression's value: terms written side by side are joined.
func (a *awkRun) value(s string) (string, error) {
	token := regexp.MustCompile(`^\s*(?:"((?:[^"\\]|\\.)*)"|\$(NF|NR|\d+)|\$\((NF-\d+)\)|(\d+(?:\.\d+)?)|([A-Za-z_]\w*))`)
	var b strings.Builder
	for strings.TrimSpace(s) != "" {
		m := token.FindStringSubmatchIndex(s)
		if m == nil {
			return "", fmt.Errorf("unknown expression: %s", strings.TrimSpace(s))
		}
		group := func(n int) string {
			if m[2*n] < 0 {
				return ""
			}
			return s[m[2*n]:m[2*n+1]]
		}
		switch {
		case m[2] >= 0:
			b.WriteString(unescape(strings.ReplaceAll(group(1), `\"`, `"`)))
		case m[4] >= 0, m[6] >= 0:
			n := len(a.fields)
			switch text := group(2) + group(3); {
			case strings.HasPrefix(text, "NF-"):
				minus, _ := strconv.Atoi(text[3:])
				n -= minus
			case text == "NR":
				n = a.nr
			case text != "NF":
				n, _ = strconv.Atoi(text)
			}
			if n == 0 {
				b.WriteString(a.line)
			} else if n <= len(a.fields) && n > 0 {
				b.WriteString(a.fields[n-1])
			}
		case m[8] >= 0:
			b.WriteString(group(4))
		default:
			switch name := group(5); {
			case name == "NF":
				b.WriteString(strconv.Itoa(len(a.fields)))
			case name == "NR":
				b.WriteString(strconv.Itoa(a.nr))
			case slices.Contains([]string{"if", "for", "while", "length", "substr", "split", "gsub", "sub", "tolower", "toupper", "index", "match", "getline", "system"}, name):
				return "", fmt.Errorf("unknown word: %s", name)
			default:
				b.WriteString(a.variables[name])
			}
		}
		s = s[m[1]:]
	}
	return b.String(), nil
}
