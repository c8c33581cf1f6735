package guestos

import (
	"fmt"
	"strings"
)

// flags are a command's parsed options: the values of each, "" for one that takes none.
type flags map[string][]string

func (f flags) has(names ...string) bool {
	for _, name := range names {
		if _, ok := f[name]; ok {
			return true
		}
	}
	return false
}

func (f flags) last(name string) string {
	values := f[name]
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// options parses args as getopt_long does. spec lists the options, separated by blanks: "a" is a switch, "a:" takes a
// value, "all=a" is a long name for one. With '+' first, parsing stops at the first operand.
func options(args []string, spec string) (flags, []string, error) {
	values := map[string]bool{}
	long := map[string]string{}
	stop := strings.HasPrefix(spec, "+")
	for _, word := range strings.Fields(strings.TrimPrefix(spec, "+")) {
		name, short, isLong := strings.Cut(word, "=")
		if !isLong {
			short = word
			name = ""
		}
		takes := strings.HasSuffix(short, ":")
		short = strings.TrimSuffix(short, ":")
		values[short] = values[short] || takes
		if isLong {
			long[name] = short
		}
	}
	found := flags{}
	var rest []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			return found, append(rest, args[i+1:]...), nil
		case strings.HasPrefix(arg, "--"):
			name, value, given := strings.Cut(arg[2:], "=")
			short, ok := long[name]
			if !ok {
				return nil, nil, fmt.Errorf("unrecognized option '--%s'", name)
			}
			if values[short] && !given {
				if i++; i >= len(args) {
					return nil, nil, fmt.Errorf("option '--%s' requires an argument", name)
				}
				value = args[i]
			}
			found[short] = append(found[short], value)
		case len(arg) > 1 && arg[0] == '-':
			for j := 1; j < len(arg); j++ {
				short := arg[j : j+1]
				takes, ok := values[short]
				if !ok {
					return nil, nil, fmt.Errorf("invalid option -- '%s'", short)
				}
				if !takes {
					found[short] = append(found[short], "")
					continue
				}
				value := arg[j+1:]
				if value == "" {
					if i++; i >= len(args) {
						return nil, nil, fmt.Errorf("option requires an argument -- '%s'", short)
					}
					value = args[i]
				}
				found[short] = append(found[short], value)
				break
			}
		case stop:
			return found, append(rest, args[i:]...), nil
		default:
			rest = append(rest, arg)
		}
	}
	return found, rest, nil
}
