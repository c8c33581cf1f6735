package guestos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// sedAddress selects lines.
type sedAddress struct {
	line int
	last bool
	re   *regexp.Regexp
	plus int // the second of a range: +N
}

type sedCommand struct {
	from, to *sedAddress
	not      bool
	name     byte
	text     string // of a, i and c; labels; files of r and w
	re       *regexp.Regexp
	replace  string
	global   bool
	print    bool
	nth      int
	table    map[rune]rune
	block    []*sedCommand

	active bool
	end    int
}

// sedParser reads a script. Branches (b, t and labels) and the hold space's x, g, G, h and H are known too.
type sedParser struct {
	s        string
	i        int
	extended bool
}

func (p *sedParser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *sedParser) skip(chars string) {
	for p.i < len(p.s) && strings.IndexByte(chars, p.s[p.i]) >= 0 {
		p.i++
	}
}

// until reads up to an unescaped delimiter, outside of brackets.
func (p *sedParser) until(delimiter byte, isRegexp bool) (string, error) {
	var b strings.Builder
	inBracket := false
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '\\' && !inBracket && p.i < len(p.s):
			next := p.s[p.i]
			p.i++
			switch {
			case next == delimiter && delimiter != '\\':
				if isRegexp && strings.IndexByte(`.*[]^$+?(){}|`, next) >= 0 {
					b.WriteByte('\\')
				}
				b.WriteByte(next)
			default:
				b.WriteByte('\\')
				b.WriteByte(next)
			}
			continue
		case isRegexp && c == '[' && !inBracket:
			inBracket = true
			b.WriteByte(c)
			if p.peek() == '^' {
				b.WriteByte('^')
				p.i++
			}
			if p.peek() == ']' {
				b.WriteByte(']')
				p.i++
			}
			continue
		case inBracket && c == '[' && p.peek() == ':':
			if end := strings.Index(p.s[p.i:], ":]"); end >= 0 {
				b.WriteString("[" + p.s[p.i:p.i+end+2])
				p.i += end + 2
				continue
			}
		case inBracket && c == ']':
			inBracket = false
		case c == delimiter && !inBracket:
			return b.String(), nil
		}
		b.WriteByte(c)
	}
	return "", errors.New("unterminated command")
}

func (p *sedParser) number() int {
	start := p.i
	for p.i < len(p.s) && p.s[p.i] >= '0' && p.s[p.i] <= '9' {
		p.i++
	}
	n, _ := strconv.Atoi(p.s[start:p.i])
	return n
}

func (p *sedParser) address() (*sedAddress, error) {
	switch c := p.peek(); {
	case c >= '0' && c <= '9':
		return &sedAddress{line: p.number()}, nil
	case c == '$':
		p.i++
		return &sedAddress{last: true}, nil
	case c == '/' || c == '\\':
		p.i++
		delimiter := c
		if c == '\\' {
			delimiter = p.peek()
			p.i++
		}
		text, err := p.until(delimiter, true)
		if err != nil {
			return nil, errors.New("unterminated address regex")
		}
		fold := p.peek() == 'I'
		if fold {
			p.i++
		}
		re, err := posixRegexp(text, p.extended, fold)
		return &sedAddress{re: re}, err
	}
	return nil, nil
}

func (p *sedParser) commands(nested bool) ([]*sedCommand, error) {
	var all []*sedCommand
	for {
		p.skip(" \t\n;")
		if p.i >= len(p.s) {
			if nested {
				return nil, errors.New("unmatched '{'")
			}
			return all, nil
		}
		if p.peek() == '}' {
			if !nested {
				return nil, errors.New("unexpected '}'")
			}
			p.i++
			return all, nil
		}
		if p.peek() == '#' {
			for p.i < len(p.s) && p.s[p.i] != '\n' {
				p.i++
			}
			continue
		}
		c := &sedCommand{end: -1}
		var err error
		if c.from, err = p.address(); err != nil {
			return nil, err
		}
		p.skip(" \t")
		if c.from != nil && p.peek() == ',' {
			p.i++
			p.skip(" \t")
			if p.peek() == '+' {
				p.i++
				c.to = &sedAddress{plus: p.number()}
			} else if c.to, err = p.address(); err != nil {
				return nil, err
			}
			if c.to == nil {
				return nil, errors.New("unexpected ','")
			}
		}
		p.skip(" \t")
		for p.peek() == '!' {
			c.not = true
			p.i++
			p.skip(" \t")
		}
		if err := p.one(c); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
}

func (p *sedParser) rest(stops string) string {
	start := p.i
	for p.i < len(p.s) && strings.IndexByte(stops, p.s[p.i]) < 0 {
		p.i++
	}
	return strings.TrimSpace(p.s[start:p.i])
}

func (p *sedParser) one(c *sedCommand) error {
	c.name = p.peek()
	p.i++
	switch c.name {
	case '{':
		var err error
		c.block, err = p.commands(true)
		return err
	case 'd', 'D', 'p', 'P', 'n', 'N', 'h', 'H', 'g', 'G', 'x', '=':
	case 'q', 'Q':
		c.text = p.rest(";\n}")
	case ':':
		c.text = p.rest("\n;")
	case 'b', 't', 'T':
		c.text = p.rest("\n;}")
	case 'r', 'w':
		c.text = p.rest("\n")
	case 'a', 'i', 'c':
		p.skip(" \t")
		if p.peek() == '\\' {
			p.i++
			p.skip(" \t")
			if p.peek() == '\n' {
				p.i++
			}
		}
		var b strings.Builder
		for p.i < len(p.s) && p.s[p.i] != '\n' {
			if p.s[p.i] == '\\' && p.i+1 < len(p.s) {
				p.i++
			}
			b.WriteByte(p.s[p.i])
			p.i++
		}
		c.text = b.String() + "\n"
	case 'y':
		delimiter := p.peek()
		p.i++
		from, err := p.until(delimiter, false)
		if err != nil {
			return errors.New("unterminated `y' command")
		}
		to, err := p.until(delimiter, false)
		if err != nil {
			return errors.New("unterminated `y' command")
		}
		f, t := []rune(unescape(from)), []rune(unescape(to))
		if len(f) != len(t) {
			return errors.New("strings for `y' command are different lengths")
		}
		c.table = map[rune]rune{}
		for i := range f {
			c.table[f[i]] = t[i]
		}
	case 's':
		delimiter := p.peek()
		p.i++
		pattern, err := p.until(delimiter, true)
		if err != nil {
			return errors.New("unterminated `s' command")
		}
		if c.replace, err = p.until(delimiter, false); err != nil {
			return errors.New("unterminated `s' command")
		}
		fold := false
	options:
		for {
			switch o := p.peek(); {
			case o == 'g':
				c.global = true
			case o == 'p':
				c.print = true
			case o == 'i' || o == 'I':
				fold = true
			case o >= '1' && o <= '9':
				c.nth = p.number()
				continue
			default:
				break options
			}
			p.i++
		}
		if c.re, err = posixRegexp(pattern, p.extended, fold); err != nil {
			return err
		}
	case 0:
		return errors.New("missing command")
	default:
		return fmt.Errorf("unknown command: `%c'", c.name)
	}
	p.skip(" \t")
	if next := p.peek(); next != 0 && next != ';' && next != '\n' && next != '}' && next != '#' {
		return errors.New("extra characters after command")
	}
	return nil
}

type sedRun struct {
	out      io.Writer
	quiet    bool
	lines    []string
	at       int // number of lines taken
	space    string
	hold     string
	appends  []string
	replaced bool
	quit     bool
	status   int
	read     func(string) ([]byte, error)
	dead     func() bool // a script may branch for ever
}

func (r *sedRun) matches(c *sedCommand) bool {
	if c.from == nil {
		return !c.not
	}
	one := func(a *sedAddress) bool {
		switch {
		case a.re != nil:
			return a.re.MatchString(r.space)
		case a.last:
			return r.at == len(r.lines)
		default:
			return a.line == r.at
		}
	}
	var hit bool
	switch {
	case c.to == nil:
		hit = one(c.from)
	case c.active:
		hit = true
		switch {
		case c.end >= 0:
			c.active = r.at < c.end
			hit = r.at <= c.end
		case one(c.to):
			c.active = false
		}
	case one(c.from):
		hit, c.active, c.end = true, true, -1
		switch {
		case c.to.plus > 0:
			c.end = r.at + c.to.plus
		case c.to.re == nil && !c.to.last:
			c.end = c.to.line
		}
		if c.end >= 0 && c.end <= r.at || c.to.last && r.at == len(r.lines) {
			c.active = false
		}
	}
	return hit != c.not
}

func (r *sedRun) next() bool {
	if r.at >= len(r.lines) {
		return false
	}
	r.space = r.lines[r.at]
	r.at++
	return true
}

func (r *sedRun) flush() {
	for _, text := range r.appends {
		fmt.Fprint(r.out, text)
	}
	r.appends = nil
}

// Where a list of commands goes on after it.
const (
	sedNext    = ""       // the next command
	sedDelete  = "\x00d"  // the next cycle, without printing
	sedRestart = "\x00D"  // the next cycle, with what is left of the pattern space
	sedEnd     = "\x00b"  // the end of the script
	sedQuiet   = "\x00Q"  // out, without printing
	sedLabel   = "\x00l:" // a label
)

func (r *sedRun) run(commands []*sedCommand) string {
	for i := 0; i < len(commands); i++ {
		c := commands[i]
		if !r.matches(c) {
			continue
		}
		switch c.name {
		case '{':
			if where := r.run(c.block); where != sedNext {
				label, isLabel := strings.CutPrefix(where, sedLabel)
				if at := slices.IndexFunc(commands, func(c *sedCommand) bool { return c.name == ':' && c.text == label }); isLabel && at >= 0 {
					i = at
					continue
				}
				return where
			}
		case 'd':
			return sedDelete
		case 'D':
			if _, after, found := strings.Cut(r.space, "\n"); found {
				r.space = after
				return sedRestart
			}
			return sedDelete
		case 'p':
			fmt.Fprintln(r.out, r.space)
		case 'P':
			first, _, _ := strings.Cut(r.space, "\n")
			fmt.Fprintln(r.out, first)
		case '=':
			fmt.Fprintln(r.out, r.at)
		case 'n':
			if !r.quiet {
				fmt.Fprintln(r.out, r.space)
			}
			r.flush()
			if !r.next() {
				r.quit = true
				return sedDelete
			}
		case 'N':
			before := r.space
			if !r.next() {
				r.quit = true
				return sedEnd
			}
			r.space = before + "\n" + r.space
		case 'h':
			r.hold = r.space
		case 'H':
			r.hold += "\n" + r.space
		case 'g':
			r.space = r.hold
		case 'G':
			r.space += "\n" + r.hold
		case 'x':
			r.space, r.hold = r.hold, r.space
		case 'q', 'Q':
			r.quit = true
			r.status, _ = strconv.Atoi(c.text)
			if c.name == 'Q' {
				return sedQuiet
			}
			return sedEnd
		case 'a':
			r.appends = append(r.appends, c.text)
		case 'r':
			if text, err := r.read(c.text); err == nil {
				r.appends = append(r.appends, string(text))
			}
		case 'i':
			fmt.Fprint(r.out, c.text)
		case 'c':
			if c.to == nil || !c.active || c.not {
				fmt.Fprint(r.out, c.text)
			}
			return sedDelete
		case 'y':
			r.space = strings.Map(func(x rune) rune {
				if y, ok := c.table[x]; ok {
					return y
				}
				return x
			}, r.space)
		case 's':
			if r.substitute(c) {
				r.replaced = true
				if c.print {
					fmt.Fprintln(r.out, r.space)
				}
			}
		case 'b', 't', 'T':
			if r.dead() {
				r.quit = true
				return sedQuiet
			}
			if c.name == 't' && !r.replaced || c.name == 'T' && r.replaced {
				if c.name == 'T' {
					r.replaced = false
				}
				continue
			}
			r.replaced = false
			if c.text == "" {
				return sedEnd
			}
			at := slices.IndexFunc(commands, func(o *sedCommand) bool { return o.name == ':' && o.text == c.text })
			if at < 0 {
				return sedLabel + c.text
			}
			i = at
		}
	}
	return sedNext
}

func (r *sedRun) substitute(c *sedCommand) bool {
	var b strings.Builder
	last, count := 0, 0
	for _, m := range c.re.FindAllStringSubmatchIndex(r.space, -1) {
		count++
		if c.nth > 0 && count < c.nth {
			continue
		}
		b.WriteString(r.space[last:m[0]])
		last = m[1]
		for i := 0; i < len(c.replace); i++ {
			ch := c.replace[i]
			group := -1
			switch {
			case ch == '&':
				group = 0
			case ch == '\\' && i+1 < len(c.replace):
				i++
				switch e := c.replace[i]; {
				case e >= '0' && e <= '9':
					group = int(e - '0')
				case e == 'n':
					b.WriteByte('\n')
				case e == 't':
					b.WriteByte('\t')
				default:
					b.WriteByte(e)
				}
				if group < 0 {
					continue
				}
			default:
				b.WriteByte(ch)
				continue
			}
			if 2*group+1 < len(m) && m[2*group] >= 0 {
				b.WriteString(r.space[m[2*group]:m[2*group+1]])
			}
		}
		if !c.global {
			break
		}
	}
	if count == 0 || c.nth > count {
		return false
	}
	b.WriteString(r.space[last:])
	r.space = b.String()
	return true
}

func sed(ctx context.Context, p *process) int {
	args := slices.Clone(p.Args[1:])
	inPlace, suffix := false, ""
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			break
		}
		if rest, ok := strings.CutPrefix(args[i], "-i"); ok && !strings.HasPrefix(args[i], "--") {
			inPlace, suffix = true, rest
			args = slices.Delete(args, i, i+1)
			i--
		} else if rest, ok := strings.CutPrefix(args[i], "--in-place"); ok {
			inPlace, suffix = true, strings.TrimPrefix(rest, "=")
			args = slices.Delete(args, i, i+1)
			i--
		}
	}
	f, operands, err := options(args, "n e: f: E r s u z quiet=n silent=n expression=e: file=f: regexp-extended=E")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	script := strings.Join(f["e"], "\n")
	for _, name := range f["f"] {
		text, err := p.readOperand(name)
		if err != nil {
			return p.fail(1, "couldn't open file %s: %s", name, reason(err))
		}
		script += "\n" + string(text)
	}
	if !f.has("e", "f") {
		if len(operands) == 0 {
			return p.fail(1, "no script specified")
		}
		script, operands = operands[0], operands[1:]
	}
	parser := &sedParser{s: script, extended: f.has("E", "r")}
	once := func(text []byte, out io.Writer) int {
		parser.i = 0
		commands, err := parser.commands(false)
		if err != nil {
			return p.fail(1, "-e expression #1, char %d: %v", parser.i, err)
		}
		r := &sedRun{out: out, quiet: f.has("n"), lines: lines(text), read: p.readOperand,
			dead: func() bool { return ctx.Err() != nil }}
		restart := false
		for steps := 0; !r.quit && ctx.Err() == nil; steps++ {
			if !restart && !r.next() {
				break
			}
			r.replaced = false
			where := r.run(commands)
			restart = where == sedRestart
			if where != sedDelete && where != sedRestart && where != sedQuiet && !r.quiet {
				fmt.Fprintln(out, r.space)
			}
			r.flush()
		}
		return r.status
	}
	if inPlace {
		for _, name := range operands {
			info, err := p.machine.disk.stat(p.abs(name), true)
			var text []byte
			if err == nil {
				text, err = p.readOperand(name)
			}
			if err != nil {
				return p.fail(2, "can't read %s: %s", name, reason(err))
			}
			var b strings.Builder
			if code := once(text, &b); code != 0 {
				return code
			}
			if suffix != "" {
				_ = p.machine.disk.writeFile(p.abs(name)+suffix, text, info.Mode().Perm())
			}
			if err := p.machine.disk.writeFile(p.abs(name), []byte(b.String()), info.Mode().Perm()); err != nil {
				return p.fail(4, "couldn't write %s: %s", name, reason(err))
			}
		}
		return 0
	}
	var all []byte
	status := p.inputs(operands, func(_ string, text []byte) {
		if len(all) > 0 && all[len(all)-1] != '\n' {
			all = append(all, '\n')
		}
		all = append(all, text...)
	})
	if code := once(all, p.Stdout); code != 0 {
		return code
	}
	if status != 0 {
		return 2
	}
	return 0
}
