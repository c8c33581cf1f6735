package windows

import (
	"fmt"
	"strings"
)

// tokenize reads a script and returns its code, without comments and with strings emptied, and the strings as they are
// written. Its error is what is not printable ASCII, and what has no partner.
func tokenize(script string) (code string, strs []string, err error) {
	var out strings.Builder
	var open []byte
	partner := map[byte]byte{')': '(', ']': '[', '}': '{'}
	line := 1
	fault := func(format string, args ...any) (string, []string, error) {
		return "", nil, fmt.Errorf("line %d: %s", line, fmt.Sprintf(format, args...))
	}
	script = strings.ReplaceAll(script, "\r\n", "\n")
	for i := 0; i < len(script); i++ {
		if script[i] != '\n' && (script[i] < ' ' || script[i] > '~') {
			return fault("%q is not printable ASCII", script[i])
		}
	}
	for i := 0; i < len(script); {
		rest := script[i:]
		n := 1
		switch c := script[i]; {
		case strings.HasPrefix(rest, "<#"):
			end := strings.Index(rest, "#>")
			if end < 0 {
				return fault("a comment is not closed")
			}
			n = end + 2
		case c == '#':
			if n = strings.IndexByte(rest, '\n'); n < 0 {
				n = len(rest)
			}
		case strings.HasPrefix(rest, "@'\n"), strings.HasPrefix(rest, "@\"\n"):
			end := strings.Index(rest, "\n"+rest[1:2]+"@")
			if end < 0 {
				return fault("a here-string is not closed")
			}
			n = end + 3
			strs = append(strs, rest[:n])
			out.WriteString(rest[1:2] + rest[1:2])
		case c == '\'' || c == '"':
			for {
				if n >= len(rest) || rest[n] == '\n' {
					return fault("a string is not closed in its line")
				}
				if rest[n] == c {
					if n+1 < len(rest) && rest[n+1] == c {
						n += 2 // doubled: the sign itself
						continue
					}
					n++
					break
				}
				n++
			}
			strs = append(strs, rest[:n])
			out.WriteByte(c)
			out.WriteByte(c)
		case c == '(' || c == '[' || c == '{':
			open = append(open, c)
			out.WriteByte(c)
		case c == ')' || c == ']' || c == '}':
			if len(open) == 0 || open[len(open)-1] != partner[c] {
				return fault("%q closes nothing", c)
			}
			open = open[:len(open)-1]
			out.WriteByte(c)
		default:
			out.WriteByte(c)
		}
		line += strings.Count(script[i:i+n], "\n")
		i += n
	}
	if len(open) > 0 {
		return fault("%q is not closed", open)
	}
	return out.String(), strs, nil
}
