package guestos

import (
	"errors"
	"regexp"
	"strings"
)

// posixRegexp compiles a POSIX basic or extended regular expression.
func posixRegexp(pattern string, extended, foldCase bool) (*regexp.Regexp, error) {
	var b strings.Builder
	if foldCase {
		b.WriteString("(?i)")
	}
	start := true // where '*' is itself and '^' an anchor
	for i := 0; i < len(pattern); i++ {
		c := pattern[i]
		atStart := start
		start = false
		switch {
		case c == '[':
			end, err := bracket(pattern, i, &b)
			if err != nil {
				return nil, err
			}
			i = end
		case c == '\\':
			if i++; i >= len(pattern) {
				return nil, errors.New("trailing backslash")
			}
			switch e := pattern[i]; {
			case e >= '1' && e <= '9':
				return nil, errors.New("back-references are not supported here")
			case e == '<' || e == '>':
				b.WriteString(`\b`)
			case strings.IndexByte("wWsSbB", e) >= 0:
				b.WriteString(`\` + string(e))
			case e == 'n':
				b.WriteString(`\n`)
			case e == 't':
				b.WriteString(`\t`)
			case !extended && strings.IndexByte("(){}|+?", e) >= 0:
				b.WriteByte(e)
				start = e == '(' || e == '|'
			default:
				b.WriteString(regexp.QuoteMeta(string(e)))
			}
		case !extended && strings.IndexByte("(){}|+?", c) >= 0:
			b.WriteString(regexp.QuoteMeta(string(c)))
		case c == '*' && atStart:
			b.WriteString(`\*`)
		case c == '^' && !extended && !atStart:
			b.WriteString(`\^`)
		case c == '^':
			b.WriteByte('^')
			start = true
		case c == '$' && !extended && i+1 < len(pattern) && !strings.HasPrefix(pattern[i+1:], `\)`) && !strings.HasPrefix(pattern[i+1:], `\|`):
			b.WriteString(`\$`)
		case extended && (c == '(' || c == '|'):
			b.WriteByte(c)
			start = true
		default:
			b.WriteByte(c)
		}
	}
	re, err := regexp.Compile(b.String())
	if err != nil {
		return nil, errors.New("invalid regular expression")
	}
	re.Longest() // POSIX: leftmost, longest
	return re, nil
}

// bracket copies a bracket expression, in which a backslash is itself, and returns the index of its end.
func bracket(pattern string, at int, b *strings.Builder) (int, error) {
	b.WriteByte('[')
	i := at + 1
	if i < len(pattern) && pattern[i] == '^' {
		b.WriteByte('^')
		i++
	}
	for first := true; i < len(pattern); i, first = i+1, false {
		c := pattern[i]
		switch {
		case c == ']' && !first:
			b.WriteByte(']')
			return i, nil
		case c == '[' && i+1 < len(pattern) && pattern[i+1] == ':':
			end := strings.Index(pattern[i:], ":]")
			if end < 0 {
				return 0, errors.New("unterminated character class")
			}
			b.WriteString(pattern[i : i+end+2])
			i += end + 1
		case c == '\\' || c == '[' || c == ']':
			b.WriteString(`\` + string(c))
		default:
			b.WriteByte(c)
		}
	}
	return 0, errors.New("unmatched [")
}
