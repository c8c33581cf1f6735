package guestos

import (
	"bytes"
	"context"
	"crypto/md5"  //nolint:gosec // md5sum is what the guest's command is called
	"crypto/sha1" //nolint:gosec // likewise sha1sum
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// lines splits text into lines without their ends.
func lines(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

func head(_ context.Context, p *process) int {
	args := slices.Clone(p.Args[1:])
	for i, arg := range args { // head -5
		if len(arg) > 1 && arg[0] == '-' && arg[1] >= '0' && arg[1] <= '9' {
			args[i] = "-n" + arg[1:]
		}
	}
	f, operands, err := options(args, "n: c: q v f F lines=n: bytes=c:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	unit, text := "n", "10"
	if f.has("n") {
		text = f.last("n")
	}
	if f.has("c") {
		unit, text = "c", f.last("c")
	}
	fromStart := strings.HasPrefix(text, "+")
	count, err := strconv.Atoi(strings.TrimLeft(text, "+-"))
	if err != nil {
		return p.fail(1, "invalid number of lines: '%s'", text)
	}
	return p.inputs(operands, func(_ string, content []byte) {
		var parts [][]byte
		if unit == "n" {
			for line := range bytes.Lines(content) {
				parts = append(parts, line)
			}
		} else {
			for i := range content {
				parts = append(parts, content[i:i+1])
			}
		}
		n := min(count, len(parts))
		switch {
		case p.Args[0] == "head" && strings.HasPrefix(text, "-"):
			parts = parts[:len(parts)-n]
		case p.Args[0] == "head":
			parts = parts[:n]
		case fromStart:
			parts = parts[min(max(count-1, 0), len(parts)):]
		default:
			parts = parts[len(parts)-n:]
		}
		_, _ = p.Stdout.Write(bytes.Join(parts, nil))
	})
}

func wc(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "l w c m L lines=l words=w bytes=c")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	count := func(name string, text []byte) {
		var columns []string
		all := !f.has("l", "w", "c", "m")
		if all || f.has("l") {
			columns = append(columns, strconv.Itoa(bytes.Count(text, []byte("\n"))))
		}
		if all || f.has("w") {
			columns = append(columns, strconv.Itoa(len(bytes.Fields(text))))
		}
		if all || f.has("c", "m") {
			columns = append(columns, strconv.Itoa(len(text)))
		}
		if name != "-" {
			columns = append(columns, name)
		}
		fmt.Fprintln(p.Stdout, strings.Join(columns, " "))
	}
	return p.inputs(operands, count)
}

// ranges reads cut's list: 1,3-5,7-
func ranges(list string) (func(n int) bool, error) {
	type span struct{ from, to int }
	var spans []span
	for _, item := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(item, "-")
		s := span{1, 1 << 30}
		var err error
		if from != "" {
			if s.from, err = strconv.Atoi(from); err != nil || s.from < 1 {
				return nil, fmt.Errorf("invalid field value '%s'", item)
			}
		}
		switch {
		case !isRange:
			s.to = s.from
		case to != "":
			if s.to, err = strconv.Atoi(to); err != nil {
				return nil, fmt.Errorf("invalid field range '%s'", item)
			}
		}
		spans = append(spans, s)
	}
	return func(n int) bool {
		return slices.ContainsFunc(spans, func(s span) bool { return n >= s.from && n <= s.to })
	}, nil
}

func cut(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "d: f: c: b: s delimiter=d: fields=f: characters=c: bytes=b: only-delimited=s output-delimiter=o:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	list := f.last("f") + f.last("c") + f.last("b")
	if list == "" {
		return p.fail(1, "you must specify a list of bytes, characters, or fields")
	}
	wanted, err := ranges(list)
	if err != nil {
		return p.fail(1, "%v", err)
	}
	delimiter := "\t"
	if f.has("d") {
		delimiter = f.last("d")
	}
	output := delimiter
	if f.has("o") {
		output = f.last("o")
	}
	return p.inputs(operands, func(_ string, text []byte) {
		for _, line := range lines(text) {
			parts := strings.Split(line, "")
			join := ""
			if f.has("f") {
				if !strings.Contains(line, delimiter) {
					if !f.has("s") {
						fmt.Fprintln(p.Stdout, line)
					}
					continue
				}
				parts, join = strings.Split(line, delimiter), output
			}
			var kept []string
			for i, part := range parts {
				if wanted(i + 1) {
					kept = append(kept, part)
				}
			}
			fmt.Fprintln(p.Stdout, strings.Join(kept, join))
		}
	})
}

// trSet expands a set of tr: ranges, classes and escapes.
func trSet(set string) []byte {
	var out []byte
	for i := 0; i < len(set); i++ {
		if strings.HasPrefix(set[i:], "[:") {
			if end := strings.Index(set[i:], ":]"); end > 0 {
				re := regexp.MustCompile("[" + map[string]string{"upper": "A-Z", "lower": "a-z", "digit": "0-9", "alpha": "A-Za-z", "alnum": "A-Za-z0-9",
					"space": `\s\v`, "blank": ` \t`, "punct": "[:punct:]", "cntrl": "[:cntrl:]", "print": "[:print:]", "graph": "[:graph:]", "xdigit": "0-9A-Fa-f"}[set[i+2:i+end]] + "]")
				for c := range 128 {
					if re.Match([]byte{byte(c)}) {
						out = append(out, byte(c))
					}
				}
				i += end + 1
				continue
			}
		}
		c, width := trChar(set[i:])
		i += width - 1
		if i+2 < len(set) && set[i+1] == '-' {
			to, width := trChar(set[i+2:])
			for b := int(c); b <= int(to); b++ {
				out = append(out, byte(b))
			}
			i += 1 + width
			continue
		}
		out = append(out, c)
	}
	return out
}

func trChar(s string) (byte, int) {
	if s[0] != '\\' || len(s) == 1 {
		return s[0], 1
	}
	if i := strings.IndexByte("ntrabfv\\", s[1]); i >= 0 {
		return "\n\t\r\a\b\f\v\\"[i], 2
	}
	width := 1
	for width < len(s) && width < 4 && s[width] >= '0' && s[width] <= '7' {
		width++
	}
	if width == 1 {
		return s[1], 2
	}
	n, _ := strconv.ParseUint(s[1:width], 8, 16)
	return byte(n), width
}

func tr(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "+c C d s t delete=d squeeze-repeats=s complement=c")
	if err != nil || len(operands) == 0 {
		return p.fail(1, "missing operand")
	}
	from := trSet(operands[0])
	if f.has("c", "C") {
		var others []byte
		for c := range 256 {
			if !bytes.Contains(from, []byte{byte(c)}) {
				others = append(others, byte(c))
			}
		}
		from = others
	}
	var to []byte
	if len(operands) > 1 {
		to = trSet(operands[1])
	}
	text, err := io.ReadAll(p.Stdin)
	if err != nil {
		return p.fail(1, "read error: %s", reason(err))
	}
	var table [256]int
	for i := range table {
		table[i] = i
	}
	squeeze := from
	switch {
	case f.has("d"):
		for _, c := range from {
			table[c] = -1
		}
		squeeze = to
	case len(to) > 0:
		for i, c := range from {
			table[c] = int(to[min(i, len(to)-1)])
		}
		squeeze = to
	}
	out := make([]byte, 0, len(text))
	for _, c := range text {
		mapped := table[c]
		if mapped < 0 {
			continue
		}
		b := byte(mapped)
		if f.has("s") && len(out) > 0 && out[len(out)-1] == b && bytes.IndexByte(squeeze, b) >= 0 {
			continue
		}
		out = append(out, b)
	}
	_, _ = p.Stdout.Write(out)
	return 0
}

func grep(ctx context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], `E F G P i v c n l L o q x w s h H r R z a I e: f: m: A: B: C: extended-regexp=E fixed-strings=F ignore-case=i
		invert-match=v count=c line-number=n files-with-matches=l only-matching=o quiet=q silent=q line-regexp=x word-regexp=w no-messages=s
		no-filename=h with-filename=H recursive=r regexp=e: file=f: max-count=m: color=k: after-context=A: before-context=B:`)
	if err != nil {
		return p.fail(2, "%v", err)
	}
	patterns := f["e"]
	for _, name := range f["f"] {
		text, err := p.readOperand(name)
		if err != nil {
			return p.fail(2, "%s: %s", name, reason(err))
		}
		patterns = append(patterns, lines(text)...)
	}
	if len(f["e"]) == 0 && len(f["f"]) == 0 {
		if len(operands) == 0 {
			return p.fail(2, "no pattern given")
		}
		patterns, operands = strings.Split(operands[0], "\n"), operands[1:]
	}
	var expressions []*regexp.Regexp
	for _, pattern := range patterns {
		var re *regexp.Regexp
		if f.has("F") || p.Args[0] == "fgrep" {
			pattern = regexp.QuoteMeta(pattern)
			if f.has("i") {
				pattern = "(?i)" + pattern
			}
			re, err = regexp.Compile(pattern)
		} else {
			re, err = posixRegexp(pattern, f.has("E", "P") || p.Args[0] == "egrep", f.has("i"))
		}
		if err != nil {
			return p.fail(2, "%v", err)
		}
		if f.has("x") {
			re = regexp.MustCompile("^(?:" + re.String() + ")$")
		}
		if f.has("w") {
			re = regexp.MustCompile(`\b(?:` + re.String() + `)\b`)
		}
		expressions = append(expressions, re)
	}
	limit := -1
	if f.has("m") {
		if limit, err = strconv.Atoi(f.last("m")); err != nil {
			return p.fail(2, "invalid max count")
		}
	}
	after, _ := strconv.Atoi(f.last("A") + f.last("C"))
	before, _ := strconv.Atoi(f.last("B") + f.last("C"))
	var names []string
	status := 0
	recursive := f.has("r", "R")
	if recursive {
		if len(operands) == 0 {
			operands = []string{"."}
		}
		for _, name := range operands {
			if err := p.walk(name, func(found string, info fileInfo) {
				if info.Mode().IsRegular() {
					names = append(names, found)
				}
			}); err != nil {
				status = p.grepError(f, name, err)
			}
		}
	} else if names = operands; len(names) == 0 {
		names = []string{"-"}
	}
	matched := false
	for _, name := range names {
		if ctx.Err() != nil {
			return exitKilled
		}
		text, err := p.readOperand(name)
		if err != nil {
			status = p.grepError(f, name, err)
			continue
		}
		prefix := ""
		if (len(names) > 1 || recursive || f.has("H")) && !f.has("h") {
			prefix = name + ":"
		}
		all := lines(text)
		count, printed := 0, -1
		for i, line := range all {
			if limit >= 0 && count >= limit {
				break
			}
			hit := slices.ContainsFunc(expressions, func(re *regexp.Regexp) bool { return re.MatchString(line) })
			if hit == f.has("v") {
				continue
			}
			count++
			if f.has("q") {
				return 0
			}
			if f.has("c", "l", "L") {
				continue
			}
			number := func(n int) string {
				if f.has("n") {
					return strconv.Itoa(n+1) + ":"
				}
				return ""
			}
			if f.has("o") {
				for _, re := range expressions {
					for _, part := range re.FindAllString(line, -1) {
						if part != "" {
							fmt.Fprintf(p.Stdout, "%s%s%s\n", prefix, number(i), part)
						}
					}
				}
				continue
			}
			for n := max(printed+1, i-before); n <= min(len(all)-1, i+after); n++ {
				fmt.Fprintf(p.Stdout, "%s%s%s\n", prefix, number(n), all[n])
				printed = n
			}
		}
		matched = matched || count > 0
		switch {
		case f.has("c"):
			fmt.Fprintf(p.Stdout, "%s%d\n", prefix, count)
		case f.has("l") && count > 0, f.has("L") && count == 0:
			fmt.Fprintln(p.Stdout, name)
		}
	}
	switch {
	case matched && (status == 0 || f.has("q")):
		return 0
	case status != 0:
		return status
	}
	return 1
}

func (p *process) grepError(f flags, name string, err error) int {
	if !f.has("s") {
		p.fail(2, "%s: %s", name, reason(err))
	}
	return 2
}

func sortLines(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "u n r k: t: f b s V h c o: unique=u numeric-sort=n reverse=r key=k: field-separator=t: version-sort=V")
	if err != nil {
		return p.fail(2, "%v", err)
	}
	var all []string
	status := p.inputs(operands, func(_ string, text []byte) { all = append(all, lines(text)...) })
	key := func(line string) string {
		if !f.has("k") {
			return line
		}
		spec, _, _ := strings.Cut(f.last("k"), ",")
		n, _ := strconv.Atoi(strings.TrimRight(strings.SplitN(spec, ".", 2)[0], "nrbf"))
		fields := strings.Fields(line)
		if f.has("t") {
			fields = strings.Split(line, f.last("t"))
		}
		if n < 1 || n > len(fields) {
			return ""
		}
		return strings.Join(fields[n-1:], " ")
	}
	numeric := f.has("n", "V", "h") || strings.Contains(f.last("k"), "n")
	compare := func(a, b string) int {
		a, b = key(a), key(b)
		if f.has("f") {
			a, b = strings.ToLower(a), strings.ToLower(b)
		}
		order := strings.Compare(a, b)
		if numeric {
			x, y := leadingNumber(a), leadingNumber(b)
			switch {
			case x < y:
				order = -1
			case x > y:
				order = 1
			case !f.has("V"):
				order = 0
			}
		}
		if f.has("r") {
			order = -order
		}
		return order
	}
	slices.SortStableFunc(all, compare)
	if f.has("u") {
		all = slices.CompactFunc(all, func(a, b string) bool { return compare(a, b) == 0 })
	}
	out := ""
	if len(all) > 0 {
		out = strings.Join(all, "\n") + "\n"
	}
	if name := f.last("o"); name != "" {
		if err := p.machine.disk.writeFile(p.abs(name), []byte(out), p.mask(0o666)); err != nil {
			return p.fail(2, "%s: %s", name, reason(err))
		}
		return status
	}
	fmt.Fprint(p.Stdout, out)
	return status
}

func leadingNumber(s string) float64 {
	s = strings.TrimSpace(s)
	end := 0
	for end < len(s) && (s[end] >= '0' && s[end] <= '9' || s[end] == '.' || end == 0 && s[end] == '-') {
		end++
	}
	n, _ := strconv.ParseFloat(s[:end], 64)
	return n
}

func uniq(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "c d u i")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	return p.inputs(operands, func(_ string, text []byte) {
		all := lines(text)
		for i := 0; i < len(all); {
			j := i
			for j < len(all) && all[j] == all[i] {
				j++
			}
			if !(f.has("d") && j-i == 1 || f.has("u") && j-i > 1) {
				if f.has("c") {
					fmt.Fprintf(p.Stdout, "%7d ", j-i)
				}
				fmt.Fprintln(p.Stdout, all[i])
			}
			i = j
		}
	})
}

func checksum(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "c b t quiet=q status=s check=c")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	sum := func(text []byte) string {
		var h hash.Hash
		switch p.Args[0] {
		case "md5sum":
			h = md5.New() //nolint:gosec // see the import
		case "sha1sum":
			h = sha1.New() //nolint:gosec // see the import
		case "sha512sum":
			h = sha512.New()
		default:
			h = sha256.New()
		}
		h.Write(text)
		return hex.EncodeToString(h.Sum(nil))
	}
	if !f.has("c") {
		return p.inputs(operands, func(name string, text []byte) { fmt.Fprintf(p.Stdout, "%s  %s\n", sum(text), name) })
	}
	status := 0
	code := p.inputs(operands, func(_ string, text []byte) {
		for _, line := range lines(text) {
			want, name, _ := strings.Cut(line, " ")
			name = strings.TrimLeft(name, " *")
			content, err := p.readOperand(name)
			result := "OK"
			if err != nil || sum(content) != want {
				result, status = "FAILED", 1
			}
			if !f.has("q", "s") || result != "OK" && !f.has("s") {
				fmt.Fprintf(p.Stdout, "%s: %s\n", name, result)
			}
		}
	})
	return max(status, code)
}

func base64Command(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "d w: i decode=d wrap=w: ignore-garbage=i")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	width := 76
	if f.has("w") {
		if width, err = strconv.Atoi(f.last("w")); err != nil {
			return p.fail(1, "invalid wrap size: '%s'", f.last("w"))
		}
	}
	bad := false
	status := p.inputs(operands, func(_ string, text []byte) {
		if f.has("d") {
			out, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(text)), ""))
			bad = bad || err != nil
			_, _ = p.Stdout.Write(out)
			return
		}
		out := base64.StdEncoding.EncodeToString(text)
		for width > 0 && len(out) > width {
			fmt.Fprintln(p.Stdout, out[:width])
			out = out[width:]
		}
		fmt.Fprint(p.Stdout, out)
		if width > 0 && out != "" {
			fmt.Fprintln(p.Stdout)
		}
	})
	if bad {
		return p.fail(1, "invalid input")
	}
	return status
}

// od dumps bytes: -An -tx1 and its like, and the default octal words.
func od(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "A: t: N: v x c b j: w: address-radix=A: format=t: read-bytes=N: output-duplicates=v")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	limit := -1
	if f.has("N") {
		if limit, err = strconv.Atoi(f.last("N")); err != nil {
			return p.fail(1, "invalid -N argument '%s'", f.last("N"))
		}
	}
	var text []byte
	if len(operands) == 0 {
		operands = []string{"-"}
	}
	for _, name := range operands {
		r, err := p.open(name)
		if err == nil && limit >= 0 {
			r = io.LimitReader(r, int64(limit-len(text))) // /dev/urandom has no end
		}
		var part []byte
		if err == nil {
			part, err = io.ReadAll(r)
		}
		if err != nil {
			return p.fail(1, "%s: %s", name, reason(err))
		}
		text = append(text, part...)
	}
	format, size := "o", 2
	if t := f.last("t"); t != "" {
		format = t[:1]
		size = map[string]int{"x": 4, "o": 4, "d": 4, "u": 4, "c": 1, "a": 1}[format]
		if len(t) > 1 {
			if size, err = strconv.Atoi(strings.TrimRight(t[1:], "z")); err != nil || size < 1 || size > 8 {
				return p.fail(1, "invalid type string '%s'", t)
			}
		}
		if size == 0 {
			return p.fail(1, "invalid type string '%s'", t)
		}
	}
	switch {
	case f.has("x"):
		format, size = "x", 2
	case f.has("c"):
		format, size = "c", 1
	case f.has("b"):
		format, size = "o", 1
	}
	for at := 0; at < len(text); at += 16 {
		row := text[at:min(at+16, len(text))]
		if f.last("A") != "n" {
			fmt.Fprintf(p.Stdout, "%07o", at)
		}
		for i := 0; i < len(row); i += size {
			var word uint64
			for j := min(size, len(row)-i) - 1; j >= 0; j-- {
				word = word<<8 | uint64(row[i+j])
			}
			switch format {
			case "x":
				fmt.Fprintf(p.Stdout, " %0*x", size*2, word)
			case "c":
				fmt.Fprintf(p.Stdout, " %3s", strings.Trim(strconv.QuoteToASCII(string(rune(word))), `"`))
			case "u", "d":
				fmt.Fprintf(p.Stdout, " %*d", []int{0, 3, 5, 8, 10, 13, 15, 18, 20}[size], word)
			default:
				fmt.Fprintf(p.Stdout, " %0*o", []int{0, 3, 6, 8, 11, 14, 16, 19, 22}[size], word)
			}
		}
		fmt.Fprintln(p.Stdout)
	}
	if f.last("A") != "n" {
		fmt.Fprintf(p.Stdout, "%07o\n", len(text))
	}
	return 0
}

func cmp(_ context.Context, p *process) int {
	f, operands, err := options(p.Args[1:], "s l b q u r quiet=s silent=s brief=q unified=u")
	if err != nil || len(operands) != 2 {
		return p.fail(2, "give two files")
	}
	var texts [2][]byte
	for i, name := range operands {
		if texts[i], err = p.readOperand(name); err != nil {
			return p.fail(2, "%s: %s", name, reason(err))
		}
	}
	if bytes.Equal(texts[0], texts[1]) {
		return 0
	}
	if !f.has("s") {
		fmt.Fprintf(p.Stdout, "%s %s differ\n", operands[0], operands[1])
	}
	return 1
}

func seq(_ context.Context, p *process) int {
	var n []int
	for _, arg := range p.Args[1:] {
		v, err := strconv.Atoi(arg)
		if err != nil {
			return p.fail(1, "invalid argument: '%s'", arg)
		}
		n = append(n, v)
	}
	from, step, to := 1, 1, 0
	switch len(n) {
	case 1:
		to = n[0]
	case 2:
		from, to = n[0], n[1]
	case 3:
		from, step, to = n[0], n[1], n[2]
	default:
		return p.fail(1, "missing operand")
	}
	if step == 0 {
		return p.fail(1, "invalid Zero increment value: '0'")
	}
	for i := from; (step > 0 && i <= to) || (step < 0 && i >= to); i += step {
		if _, err := fmt.Fprintln(p.Stdout, i); err != nil {
			return 1
		}
	}
	return 0
}

func xargs(ctx context.Context, p *process) int {
	f, command, err := options(p.Args[1:], "+0 r n: I: t null=0 no-run-if-empty=r max-args=n: P: L: d:")
	if err != nil {
		return p.fail(1, "%v", err)
	}
	if len(command) == 0 {
		command = []string{"echo"}
	}
	text, err := io.ReadAll(p.Stdin)
	if err != nil {
		return p.fail(1, "%s", reason(err))
	}
	var items []string
	switch {
	case f.has("0"):
		items = strings.FieldsFunc(string(text), func(r rune) bool { return r == 0 })
	case f.has("I"):
		items = lines(text)
	default:
		items = strings.Fields(string(text))
	}
	status := 0
	call := func(args []string) {
		if ctx.Err() == nil && p.spawn(ctx, args, strings.NewReader("")) != 0 {
			status = 123
		}
	}
	if f.has("I") {
		for _, item := range items {
			args := slices.Clone(command)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], f.last("I"), item)
			}
			call(args)
		}
		return status
	}
	if len(items) == 0 {
		if !f.has("r") {
			call(command)
		}
		return status
	}
	size := len(items)
	if f.has("n") {
		if size, err = strconv.Atoi(f.last("n")); err != nil || size < 1 {
			return p.fail(1, "invalid number '%s' for -n option", f.last("n"))
		}
	}
	for batch := range slices.Chunk(items, size) {
		call(append(slices.Clone(command), batch...))
	}
	return status
}

// unescape replaces the backslash escapes of printf formats.
func unescape(s string) string {
	return strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\\`, `\`, `\r`, "\r", `\0`, "\x00", `\a`, "\a").Replace(s)
}
