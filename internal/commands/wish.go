package commands

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"berth/internal/catalog"
	"berth/reservation"
)

// wish is one reservation that somebody asks for.
type wish struct {
	image    string
	computer string
	user     string
	name     string // "" makes one up
	end      time.Time

	at    place
	given bool // the name was chosen by a person
}

// place is where a wish stands; the zero value is the command's arguments.
type place struct {
	file string
	line int
}

func (p place) String() string {
	if p.line == 0 {
		return p.file
	}
	return fmt.Sprintf("%s:%d", p.file, p.line)
}

// fault is one thing that is wrong with a wish.
type fault struct {
	at  place
	err error
}

func (f *fault) Error() string {
	if f.at.file == "" {
		return f.err.Error()
	}
	return f.at.String() + ": " + f.err.Error()
}

func (f *fault) Unwrap() error { return f.err }

// inLines puts faults into the order of their lines.
func inLines(faults []*fault) []*fault {
	slices.SortStableFunc(faults, func(a, b *fault) int { return cmp.Compare(a.at.line, b.at.line) })
	return faults
}

// batchMost bounds a batch file: one that is larger than this is not one.
const batchMost = 16 << 20

// batchFields are the fields of an entry of a batch file.
func batchFields() []string { return []string{"image", "computer", "user", "name", "for", "until"} }

// defaults are what an entry of a batch file does not say itself.
type defaults struct {
	user string
	end  time.Time
	now  time.Time
}

// readBatch reads a batch file: a YAML list of {image, computer, user, name, for or until}. It returns the wishes that can
// be read, and what is wrong with the others.
func readBatch(file string, r io.Reader, d defaults) ([]wish, []*fault) {
	wrong := func(line int, format string, values ...any) ([]wish, []*fault) {
		return nil, []*fault{{at: place{file, line}, err: fmt.Errorf(format, values...)}}
	}
	text, err := io.ReadAll(io.LimitReader(r, batchMost+1))
	if err != nil {
		return wrong(0, "cannot be read: %w", err)
	}
	if len(text) > batchMost {
		return wrong(0, "has more than %d MiB: is it the right file?", batchMost>>20)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		// yaml's own words name the line: "yaml: line 3: did not find expected key".
		words := strings.TrimPrefix(err.Error(), "yaml: ")
		line := 0
		if _, serr := fmt.Sscanf(words, "line %d: ", &line); serr == nil {
			_, words, _ = strings.Cut(words, ": ")
		}
		return wrong(line, "not YAML: %s", words)
	}
	const shape = "write a list: one \"- {image: ..., computer: ..., for: 2h}\" for each reservation"
	if len(document.Content) == 0 {
		return wrong(0, "is empty: %s", shape)
	}
	list := document.Content[0]
	if list.Kind != yaml.SequenceNode {
		return wrong(list.Line, "is not a list: %s", shape)
	}
	if len(list.Content) == 0 {
		return wrong(list.Line, "the list is empty: %s", shape)
	}
	var wishes []wish
	var faults []*fault
	for _, node := range list.Content {
		w, wrong := readWish(file, resolved(node), d)
		if len(wrong) == 0 {
			wishes = append(wishes, w)
		}
		faults = append(faults, wrong...)
	}
	return wishes, faults
}

func resolved(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

func readWish(file string, node *yaml.Node, d defaults) (wish, []*fault) {
	w := wish{user: d.user, end: d.end, at: place{file, node.Line}}
	var faults []*fault
	wrong := func(line int, format string, values ...any) {
		faults = append(faults, &fault{at: place{file, line}, err: fmt.Errorf(format, values...)})
	}
	if node.Kind != yaml.MappingNode {
		wrong(node.Line, "write image: and computer: here")
		return w, faults
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], resolved(node.Content[i+1])
		if first := seen[key.Value]; first != 0 {
			wrong(key.Line, "%s stands here twice (first in line %d): leave one out", key.Value, first)
			continue
		}
		seen[key.Value] = key.Line
		if !slices.Contains(batchFields(), key.Value) {
			remedy := "an entry has " + strings.Join(batchFields(), ", ")
			if near := catalog.Nearest(key.Value, batchFields()); near != "" {
				remedy = "did you mean " + near + "?"
			}
			wrong(key.Line, "there is no field %q: %s", key.Value, remedy)
			continue
		}
		if value.Kind != yaml.ScalarNode || value.Tag == "!!null" {
			wrong(value.Line, "%s is not a text: write one value", key.Value)
			continue
		}
		switch key.Value {
		case "image":
			w.image = value.Value
		case "computer":
			w.computer = value.Value
		case "user":
			w.user = value.Value
		case "name":
			w.name, w.given = value.Value, true
		case "for":
			span, err := parseSpan(value.Value)
			if err != nil {
				wrong(value.Line, "for: %w", err)
			}
			w.end = d.now.Add(span)
		case "until":
			end, err := parseTime(value.Value, d.now)
			if err != nil {
				wrong(value.Line, "until: %w", err)
			}
			w.end = end
		}
	}
	if seen["for"] != 0 && seen["until"] != 0 {
		wrong(node.Line, "both for and until: leave one out")
	}
	for _, field := range []string{"image", "computer"} {
		if seen[field] == 0 {
			wrong(node.Line, "%s is missing: say which one", field)
		}
	}
	return w, faults
}

// reservations turns wishes into checked reservations. If there is a fault, nothing may be started.
func reservations(c *catalog.Catalog, wishes []wish) ([]reservation.Reservation, []*fault) {
	var all []reservation.Reservation
	var faults []*fault
	computers, names := map[string]place{}, map[string]place{}
	for _, w := range wishes {
		wrong := func(format string, values ...any) {
			faults = append(faults, &fault{at: w.at, err: fmt.Errorf(format, values...)})
		}
		if w.name == "" {
			w.name = madeUpName(w.user, w.computer, short())
		}
		r, err := c.Reservation(w.name, w.user, w.computer, w.image, w.end)
		for _, one := range flattened(err) {
			faults = append(faults, &fault{at: w.at, err: swapped(c, w, one)})
		}
		if isComputer(c, w.name) {
			wrong("name is %q, which is a computer's name: choose another one, so that names stay clear", w.name)
		}
		if other, twice := computers[w.computer]; twice {
			wrong("computer %s stands here twice%s: it can be reserved once at a time", w.computer, first(other))
		}
		if other, twice := names[w.name]; twice && w.given {
			wrong("name %s stands here twice%s: give each reservation its own", w.name, first(other))
		}
		computers[w.computer], names[w.name] = w.at, w.at
		all = append(all, r)
	}
	return all, faults
}

func first(at place) string {
	if at.file == "" {
		return ""
	}
	return " (first at " + at.String() + ")"
}

func isComputer(c *catalog.Catalog, name string) bool {
	return slices.ContainsFunc(c.Computers, func(computer reservation.Computer) bool { return computer.Name == name })
}

func isImage(c *catalog.Catalog, name string) bool {
	_, err := c.Image(name)
	return err == nil
}

// swapped gives a fault better words where somebody wrote the computer before the image.
func swapped(c *catalog.Catalog, w wish, fault error) error {
	var field *reservation.FieldError
	if !errors.As(fault, &field) {
		return fault
	}
	switch {
	case field.Field == "image" && isComputer(c, w.image):
		return &reservation.FieldError{Field: "image", Value: w.image, Remedy: "that is a computer: the image comes first, then the computers"}
	case field.Field == "computer" && isImage(c, w.computer):
		return &reservation.FieldError{Field: "computer", Value: w.computer, Remedy: "that is an image: the image comes first, then the computers"}
	default:
		return fault
	}
}

// flattened takes a joined error apart.
func flattened(err error) []error {
	if err == nil {
		return nil
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, one := range several.Unwrap() {
			all = append(all, flattened(one)...)
		}
		return all
	}
	return []error{err}
}

// madeUpName returns user-computer-short, cut and cleaned so that it passes reservation.CheckName: users may have
// capitals, domains and signs that a name may not.
func madeUpName(user, computer, short string) string {
	user, _, _ = strings.Cut(strings.ToLower(user), "@")
	clean := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, user), "-.")
	room := reservation.MaxNameLength - len(short) - 2
	computer = computer[:min(len(computer), room*2/3)]
	clean = clean[:min(len(clean), room-len(computer))]
	return strings.TrimLeft(clean+"-"+computer+"-"+short, "-.")
}
