package catalog

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A catalog may have this many values beside one for each byte of its text: a few lines of aliases to long lists can
// stand for billions.
const freeNodes = 100_000

// decoder reads a YAML document into structs by their json tags, strictly, and goes on after a fault. It remembers the
// line of everything that it read, so that later checks can say where a value stands.
type decoder struct {
	file   string
	lines  map[string]int
	faulty map[string]bool // fields that have a fault already: one is enough
	faults []*Fault
	nodes  int                 // that may still be read
	open   map[*yaml.Node]bool // aliases that are being followed
}

func newDecoder(file string) *decoder {
	return &decoder{file: file, lines: map[string]int{}, faulty: map[string]bool{}, open: map[*yaml.Node]bool{}}
}

func (d *decoder) err() error {
	if len(d.faults) == 0 {
		return nil
	}
	sortFaults(d.faults)
	return &Error{Faults: d.faults}
}

// fault records a fault of a field, at the line of the field or of the nearest thing around it that the file has.
func (d *decoder) fault(path, value, remedy string) { d.faultAt(d.line(path), path, value, remedy) }

func (d *decoder) faultAt(line int, path, value, remedy string) {
	if d.faulty[path] {
		return
	}
	d.faulty[path] = true
	d.faults = append(d.faults, &Fault{File: d.file, Line: line, Field: path, Value: value, Remedy: remedy})
}

// line returns the line of a path, or of the nearest path around it.
func (d *decoder) line(path string) int {
	for path != "" {
		if line, ok := d.lines[path]; ok {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return max(1, d.lines[""])
}

// document reads a whole document, and says whether all of it could be read. It can be although it has faults.
func (d *decoder) document(text []byte, into any) bool {
	d.nodes = freeNodes + len(text)
	reader := yaml.NewDecoder(bytes.NewReader(text))
	var node yaml.Node
	switch err := reader.Decode(&node); {
	case errors.Is(err, io.EOF):
		d.fault("catalog", "", "the file is empty: give it sites, images and computers")
		return false
	case err != nil:
		d.syntax(string(text), err)
		return false
	}
	root := node.Content[0]
	d.value(root, reflect.ValueOf(into).Elem(), "")
	if err := reader.Decode(&node); !errors.Is(err, io.EOF) {
		d.faultAt(node.Line, "catalog", "", "the file has a second YAML document (after ---): put everything into the first")
	}
	return root.Kind == yaml.MappingNode && d.nodes > 0
}

// syntax turns the YAML library's error, which has the line in its text only, into a fault.
func (d *decoder) syntax(text string, err error) {
	words := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if found := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(words); found != nil {
		line, _ = strconv.Atoi(found[1])
		words = words[len(found[0]):]
		// The library counts from 1 what its scanner finds, and from 0 what its parser finds.
		if strings.HasPrefix(words, "did not find expected") {
			line++
		}
	}
	if found := regexp.MustCompile(`^unknown anchor '(.*)' referenced`).FindStringSubmatch(words); found != nil {
		before, _, _ := strings.Cut(text, "*"+found[1])
		line = 1 + strings.Count(before, "\n")
		d.faultAt(line, "catalog", "*"+found[1], "no value before this line has &"+found[1]+": name one that has, or write the value here")
		return
	}
	d.faultAt(line, "catalog", "", "not YAML here: "+words+": look at the indentation, colons and quotes of this line and the one before")
}

// spend counts a value, and says whether it is still to be read.
func (d *decoder) spend(line int) bool {
	if d.nodes--; d.nodes == 0 {
		d.faultAt(line, "catalog", "", "its aliases stand for too many values: write them out")
	}
	return d.nodes > 0
}

func (d *decoder) value(node *yaml.Node, into reflect.Value, path string) {
	if !d.spend(node.Line) {
		return
	}
	d.lines[path] = node.Line
	if node.Kind == yaml.AliasNode {
		if d.open[node.Alias] {
			d.fault(path, "*"+node.Value, "an alias must not stand for something that holds it")
			return
		}
		d.open[node.Alias] = true
		defer delete(d.open, node.Alias)
		d.value(node.Alias, into, path)
		d.lines[path] = node.Line // where somebody has to look is where the alias stands
		return
	}
	if node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null" {
		return // "macs:" with nothing after it is the same as no macs
	}
	if text, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(node, text, path)
		return
	}
	switch into.Kind() {
	case reflect.Pointer:
		into.Set(reflect.New(into.Type().Elem()))
		d.value(node, into.Elem(), path)
	case reflect.Struct:
		d.fields(node, into, path)
	case reflect.Map:
		d.entries(node, into, path)
	case reflect.Slice:
		d.items(node, into, path)
	default:
		d.scalar(node, into, path)
	}
}

func (d *decoder) text(node *yaml.Node, into encoding.TextUnmarshaler, path string) {
	if node.Kind != yaml.ScalarNode {
		d.mismatch(node, path, "one value")
		return
	}
	if err := into.UnmarshalText([]byte(node.Value)); err != nil {
		d.fault(path, node.Value, "write a number with its unit, such as 90s, 30m or 1h30m")
	}
}

func (d *decoder) scalar(node *yaml.Node, into reflect.Value, path string) {
	if node.Kind != yaml.ScalarNode {
		d.mismatch(node, path, "one value")
		return
	}
	switch into.Kind() {
	case reflect.String:
		// As it is written: version: 12 and a MAC without quotes are what they look like.
		into.SetString(node.Value)
	case reflect.Int:
		n, err := strconv.Atoi(node.Value)
		if err != nil {
			d.fault(path, node.Value, "write a whole number")
			return
		}
		into.SetInt(int64(n))
	case reflect.Bool:
		switch strings.ToLower(node.Value) {
		case "true":
			into.SetBool(true)
		case "false":
			into.SetBool(false)
		default:
			d.fault(path, node.Value, "write true or false")
		}
	default:
		panic("catalog: no rule to read a " + into.Type().String())
	}
}

func (d *decoder) items(node *yaml.Node, into reflect.Value, path string) {
	if node.Kind != yaml.SequenceNode {
		d.mismatch(node, path, "a list (lines that begin with -, or [a, b])")
		return
	}
	into.Set(reflect.MakeSlice(into.Type(), len(node.Content), len(node.Content)))
	for i, item := range node.Content {
		d.value(item, into.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
}

func (d *decoder) entries(node *yaml.Node, into reflect.Value, path string) {
	pairs, ok := d.pairs(node, path)
	if !ok {
		return
	}
	into.Set(reflect.MakeMap(into.Type()))
	for _, pair := range pairs {
		value := reflect.New(into.Type().Elem()).Elem()
		d.value(pair.value, value, under(path, pair.key))
		d.lines[under(path, pair.key)] = pair.line
		into.SetMapIndex(reflect.ValueOf(pair.key), value)
	}
}

func (d *decoder) fields(node *yaml.Node, into reflect.Value, path string) {
	pairs, ok := d.pairs(node, path)
	if !ok {
		return
	}
	fields := map[string]int{}
	var known []string
	for i := range into.NumField() {
		name, _, _ := strings.Cut(into.Type().Field(i).Tag.Get("json"), ",")
		fields[name] = i
		known = append(known, name)
	}
	for _, pair := range pairs {
		at := under(path, pair.key)
		i, ok := fields[pair.key]
		if !ok {
			remedy := "there is no such field; it may have " + enumerate(known)
			if nearest := Nearest(pair.key, known); nearest != "" {
				remedy = "there is no such field; did you mean " + nearest + "?"
			}
			d.faultAt(pair.line, at, "", remedy)
			continue
		}
		d.value(pair.value, into.Field(i), at)
		d.lines[at] = pair.line
	}
}

type pair struct {
	key   string
	line  int
	value *yaml.Node
}

// pairs returns a mapping's entries, with those that it merges (<<: *other) after its own.
func (d *decoder) pairs(node *yaml.Node, path string) ([]pair, bool) {
	if node.Kind != yaml.MappingNode {
		d.mismatch(node, path, "a mapping (key: value)")
		return nil, false
	}
	var pairs []pair
	var merges []*yaml.Node
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.faultAt(key.Line, path, "", "a key must be one word")
			continue
		}
		if key.ShortTag() == "!!merge" {
			merges = append(merges, value)
			continue
		}
		if first, twice := seen[key.Value]; twice {
			d.faultAt(key.Line, under(path, key.Value), "", fmt.Sprintf("it is there twice, first in line %d: keep one", first))
			continue
		}
		seen[key.Value] = key.Line
		pairs = append(pairs, pair{key.Value, key.Line, value})
	}
	for _, merge := range merges {
		for _, merged := range d.merged(merge, path) {
			if _, own := seen[merged.key]; !own {
				seen[merged.key] = merged.line
				pairs = append(pairs, merged)
			}
		}
	}
	return pairs, true
}

// merged returns the entries of a merge's value: an alias of a mapping, or a list of them, of which the earlier win.
func (d *decoder) merged(node *yaml.Node, path string) []pair {
	if !d.spend(node.Line) {
		return nil
	}
	switch node.Kind {
	case yaml.AliasNode:
		if d.open[node.Alias] {
			d.fault(path, "*"+node.Value, "an alias must not stand for something that holds it")
			return nil
		}
		d.open[node.Alias] = true
		defer delete(d.open, node.Alias)
		return d.merged(node.Alias, path)
	case yaml.SequenceNode:
		var all []pair
		seen := map[string]bool{}
		for _, item := range node.Content {
			for _, one := range d.merged(item, path) {
				if !seen[one.key] {
					seen[one.key] = true
					all = append(all, one)
				}
			}
		}
		return all
	default:
		pairs, _ := d.pairs(node, path)
		return pairs
	}
}

func (d *decoder) mismatch(node *yaml.Node, path, want string) {
	value := ""
	// Somebody may have written the secret itself where its place was asked for.
	if node.Kind == yaml.ScalarNode && !strings.HasPrefix(path, "secrets") {
		value = node.Value
	}
	if path == "" {
		path = "catalog"
	}
	d.faultAt(node.Line, path, value, "write "+want+" here")
}

func under(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
