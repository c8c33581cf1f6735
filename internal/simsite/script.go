package simsite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"
	"go.yaml.in/yaml/v3"

	"berth/internal/simsite/guestos"
	"berth/internal/simsite/winos"
	"berth/reservation"
)

// Duration is a duration as scripts write it: "20s".
type Duration reservation.Duration

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d as reservation.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return reservation.Duration(d).MarshalText() }

// UnmarshalText reads what reservation.Duration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	return (*reservation.Duration)(d).UnmarshalText(text)
}

// UnmarshalYAML does the same, and names the line.
func (d *Duration) UnmarshalYAML(node *yaml.Node) error {
	if err := d.UnmarshalText([]byte(node.Value)); err != nil {
		return fmt.Errorf("line %d: %w", node.Line, err)
	}
	return nil
}

// Script says what a site holds and how its computers and its vCenter behave. Read it with ParseScript.
type Script struct {
	VCenter   VCenter             `yaml:"vcenter" json:"vcenter"`
	Defaults  Behaviour           `yaml:"defaults" json:"defaults"` // under every behaviour of every computer
	Templates []Template          `yaml:"templates" json:"templates"`
	Images    []reservation.Image `yaml:"-" json:"images"` // for the catalog; none makes one of each template
	Computers []Computer          `yaml:"computers" json:"computers"`
	Metal     *Metal              `yaml:"xcat" json:"xcat,omitempty"` // an xCAT management node beside the vCenter
}

// VCenter is the vCenter's size and manner.
type VCenter struct {
	Hosts          int      `yaml:"hosts" json:"hosts,omitempty"`           // in its one cluster; 0 means 4
	Datastores     int      `yaml:"datastores" json:"datastores,omitempty"` // LocalDS_0 and so on; 0 means 2
	Folders        []string `yaml:"folders" json:"folders,omitempty"`       // below the datacenter's vm folder
	Clones         int      `yaml:"clones" json:"clones,omitempty"`         // the catalog's limit of running clones; 0 leaves it out
	ClonesPerHost  int      `yaml:"clones_per_host" json:"clones_per_host,omitempty"`
	APIDelay       Duration `yaml:"api_delay" json:"api_delay,omitzero"`             // before each call is answered
	SessionTimeout Duration `yaml:"session_timeout" json:"session_timeout,omitzero"` // idle; 0 means never
	Faults         []Fault  `yaml:"faults" json:"faults,omitempty"`
}

// Fault makes calls of the vSphere API fail, or their tasks.
type Fault struct {
	Method    string   `yaml:"method" json:"method"`                   // such as CloneVM_Task; * is every one
	Computer  string   `yaml:"computer" json:"computer,omitempty"`     // the VM's name; "" is every one
	Type      string   `yaml:"fault" json:"fault,omitempty"`           // a fault of vSphere's, such as NoDiskSpace
	At        string   `yaml:"at" json:"at,omitempty"`                 // "task" (what methods of VMs that have a task default to) or "call"
	Times     int      `yaml:"times" json:"times,omitempty"`           // 0 is always
	Skip      int      `yaml:"skip" json:"skip,omitempty"`             // how many to let pass first
	Delay     Duration `yaml:"delay" json:"delay,omitzero"`            // before the fault; alone, it only delays
	NeverEnds bool     `yaml:"never_ends" json:"never_ends,omitempty"` // the task stays running until it is cancelled
	Left      int      `yaml:"-" json:"-"`                             // times left
	passed    int
}

// Template is a VM template, with one snapshot for each revision of what it holds.
type Template struct {
	Name         string               `yaml:"name" json:"name"`
	Distribution guestos.Distribution `yaml:"distribution" json:"distribution,omitempty"` // debian12, ubuntu2404 or rocky9
	Windows      winos.Version        `yaml:"windows" json:"windows,omitempty"`           // instead: xp, 7, 2022 and so on
	Sysprep      bool                 `yaml:"sysprep" json:"sysprep,omitempty"`           // of a Windows: its clones set themselves up first
	Channel      string               `yaml:"channel" json:"channel,omitempty"`           // of a Windows: ssh (the default) or winrm
	Snapshots    []string             `yaml:"snapshots" json:"snapshots"`
	Without      []string             `yaml:"without" json:"without,omitempty"` // commands that its guests lack
}

// Computer is a VM's name, where its guest answers, and how it behaves.
type Computer struct {
	Name       string            `yaml:"name" json:"name"`
	Address    string            `yaml:"address" json:"address,omitempty"` // loopback address and port; "" takes the next one
	MACs       []string          `yaml:"macs" json:"macs,omitempty"`
	Networks   []string          `yaml:"networks" json:"networks,omitempty"`
	CPUs       int               `yaml:"cpus" json:"cpus,omitempty"`
	MemoryMiB  int               `yaml:"memory_mib" json:"memory_mib,omitempty"`
	Placement  map[string]string `yaml:"placement" json:"placement,omitempty"`
	Behaviours `yaml:",inline"`
}

// Behaviours are how a computer behaves: one entry a load (a call that clones to its name), or one a boot of each of its
// clones. The last entry repeats.
type Behaviours struct {
	Loads []Behaviour `yaml:"loads" json:"loads,omitempty"`
	Boots []Behaviour `yaml:"boots" json:"boots,omitempty"`
}

// Behaviour is how one load or one boot goes. Nothing set: it works, at once.
type Behaviour struct {
	// What the vCenter does with the clone.
	CloneTakes   Duration `yaml:"clone_takes" json:"clone_takes,omitzero"`
	CloneFails   string   `yaml:"clone_fails" json:"clone_fails,omitempty"` // the type of the task's fault, such as NoDiskSpace
	CloneHangs   bool     `yaml:"clone_hangs" json:"clone_hangs,omitempty"` // the task never ends, until it is cancelled
	PowerOnTakes Duration `yaml:"power_on_takes" json:"power_on_takes,omitzero"`
	PowerOnFails string   `yaml:"power_on_fails" json:"power_on_fails,omitempty"`

	// What the guest does until it answers.
	Late              Duration `yaml:"late" json:"late,omitzero"`                                // its port opens so long after power-on
	Silent            bool     `yaml:"silent" json:"silent,omitempty"`                           // its port never opens
	AnswersAfterReset bool     `yaml:"answers_after_reset" json:"answers_after_reset,omitempty"` // silent until it was powered off and on again
	BannerHang        bool     `yaml:"banner_hang" json:"banner_hang,omitempty"`                 // its port opens, and nothing is said
	Refuses           string   `yaml:"refuses" json:"refuses,omitempty"`                         // connections, logins or commands
	AuthLate          Duration `yaml:"auth_late" json:"auth_late,omitzero"`                      // logins are refused for so long after the port opened
	WrongKey          bool     `yaml:"wrong_key" json:"wrong_key,omitempty"`                     // shows another host key than it has
	KeyChanges        bool     `yaml:"key_changes" json:"key_changes,omitempty"`                 // has another host key after each boot but the first

	// What it does once it answers. Times count from when its port opened.
	SlowCloudInit  Duration `yaml:"slow_cloud_init" json:"slow_cloud_init,omitzero"` // cloud-init says that it runs for so long
	CloudInitError string   `yaml:"cloud_init_error" json:"cloud_init_error,omitempty"`
	Reboots        int      `yaml:"reboots" json:"reboots,omitempty"`            // it reboots so many times by itself
	RebootsAfter   Duration `yaml:"reboots_after" json:"reboots_after,omitzero"` // each so long after it answers; 0 means 1s
	RebootTakes    Duration `yaml:"reboot_takes" json:"reboot_takes,omitzero"`   // its port is closed for so long; 0 means 300ms
	DiesAfter      Duration `yaml:"dies_after" json:"dies_after,omitzero"`
	DiesIn         string   `yaml:"dies_in" json:"dies_in,omitempty"`      // dies when it runs this command, or a command line that holds this text
	Dies           string   `yaml:"dies" json:"dies,omitempty"`            // how: off (the default: powered off) or hang
	ExecTakes      Duration `yaml:"exec_takes" json:"exec_takes,omitzero"` // each command takes at least so long
	ClockOffset    Duration `yaml:"clock_offset" json:"clock_offset,omitzero"`

	// What only a Windows does. Of each clone the first boot's entry counts: a set-up goes on over boots.
	Setup  []Stage          `yaml:"setup" json:"setup,omitempty"`     // how its set-up after Sysprep goes; none: quick and well
	Codes  map[string][]int `yaml:"codes" json:"codes,omitempty"`     // by script: what Windows returns to it, call by call; the last repeats
	CutsIn string           `yaml:"cuts_in" json:"cuts_in,omitempty"` // its connections are reset once, when this script has done its work
}

// over returns b with what base says where b says nothing.
func (b Behaviour) over(base Behaviour) Behaviour {
	mine, theirs := reflect.ValueOf(&b).Elem(), reflect.ValueOf(base)
	for i := range mine.NumField() {
		if mine.Field(i).IsZero() {
			mine.Field(i).Set(theirs.Field(i))
		}
	}
	return b
}

// at returns the entry of a list for the n-th time, from 0: the last repeats.
func at(list []Behaviour, n int) Behaviour {
	if len(list) == 0 {
		return Behaviour{}
	}
	return list[min(n, len(list)-1)]
}

// ParseScript reads a script and checks it whole. name is for messages. Every fault is in the error, with its line.
func ParseScript(name string, text []byte) (*Script, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s := &Script{}
	if len(doc.Content) == 0 {
		return s, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: line %d: a script is a mapping: begin with one of computers, templates, images, defaults, vcenter", name, root.Line)
	}
	// Images are the catalog's nouns, whose names are JSON's: they are taken out and read on their own.
	var faults []error
	rest := text
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != "images" {
			continue
		}
		images := root.Content[i+1]
		end := 0
		if i+2 < len(root.Content) {
			end = root.Content[i+2].Line
		}
		if rest = blank(text, root.Content[i].Line, end); root.Style&yaml.FlowStyle != 0 {
			return nil, fmt.Errorf("%s: line %d: images: write the script as a block, a line for each of its parts", name, images.Line)
		}
		if err := decodeImages(images, &s.Images); err != nil {
			faults = append(faults, fmt.Errorf("%s: line %d: images: %w", name, images.Line, err))
		}
	}
	if err := decodeStrict(rest, s); err != nil {
		faults = append(faults, fmt.Errorf("%s: %w", name, readable(err)))
	}
	if len(faults) == 0 {
		for _, f := range s.faults() {
			faults = append(faults, fmt.Errorf("%s: %s%w", name, lineOf(root, f.path), f))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return s, nil
}

// blank empties the lines from one up to another (0: to the end), so that the others keep their numbers.
func blank(text []byte, from, to int) []byte {
	all := bytes.SplitAfter(text, []byte("\n"))
	for i := range all {
		if i+1 >= from && (to == 0 || i+1 < to) {
			all[i] = []byte("\n")
		}
	}
	return bytes.Join(all, nil)
}

func decodeStrict(text []byte, into any) error {
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// readable takes the names of Go types out of a decoder's message.
func readable(err error) error {
	text := err.Error()
	for _, pair := range [][2]string{{" in type simsite.Script", " in the script"}, {" in type simsite.", " in a "}, {"into simsite.", "into a "}} {
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return errors.New(text)
}

func decodeImages(node *yaml.Node, images *[]reservation.Image) error {
	var any any
	if err := node.Decode(&any); err != nil {
		return err
	}
	text, err := json.Marshal(any)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(images)
}

// ScriptError is one fault of a script.
type ScriptError struct {
	path   string
	Value  string
	Remedy string
}

func (e *ScriptError) Error() string { return fmt.Sprintf("%s is %q: %s", e.path, e.Value, e.Remedy) }

// lineOf finds where a path such as "computers[2].loads[0].late" stands.
func lineOf(root *yaml.Node, path string) string {
	at := root
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		var next *yaml.Node
		if n, err := strconv.Atoi(part); err == nil && at.Kind == yaml.SequenceNode && n < len(at.Content) {
			next = at.Content[n]
		}
		for i := 0; at.Kind == yaml.MappingNode && i+1 < len(at.Content); i += 2 {
			if at.Content[i].Value == part {
				next = at.Content[i+1]
			}
		}
		if next == nil {
			break
		}
		at = next
	}
	return fmt.Sprintf("line %d: ", at.Line)
}

// Check returns every fault of the script, joined, each a *ScriptError.
func (s *Script) Check() error {
	var errs []error
	for _, f := range s.faults() {
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

func (s *Script) faults() []*ScriptError {
	var all []*ScriptError
	add := func(path, value, remedy string) { all = append(all, &ScriptError{path, value, remedy}) }
	positive := func(path string, n int) {
		if n < 0 || n > 1000 {
			add(path, strconv.Itoa(n), "give 1 to 1000, or leave it out")
		}
	}
	if s.Metal != nil {
		all = append(all, s.Metal.faults("xcat.")...)
	}
	positive("vcenter.hosts", s.VCenter.Hosts)
	positive("vcenter.datastores", s.VCenter.Datastores)
	positive("vcenter.clones", s.VCenter.Clones)
	positive("vcenter.clones_per_host", s.VCenter.ClonesPerHost)
	if s.VCenter.APIDelay < 0 {
		add("vcenter.api_delay", s.VCenter.APIDelay.String(), "give a duration from 0")
	}
	if s.VCenter.SessionTimeout < 0 {
		add("vcenter.session_timeout", s.VCenter.SessionTimeout.String(), "give a duration from 0")
	}
	for i, f := range s.VCenter.Faults {
		all = append(all, f.faults(fmt.Sprintf("vcenter.faults[%d]", i))...)
	}
	all = append(all, s.Defaults.faults("defaults")...)
	seen := map[string]string{}
	unique := func(path, value string) {
		if before, ok := seen[value]; ok {
			add(path, value, "it stands at "+before+" already: choose another")
		}
		seen[value] = path
	}
	for i, t := range s.Templates {
		path := fmt.Sprintf("templates[%d].", i)
		if err := reservation.CheckName("", t.Name); err != nil {
			add(path+"name", t.Name, "use 1 to 63 of a-z, 0-9, '.' and '-'")
		}
		unique(path+"name", t.Name)
		switch {
		case t.Windows != "":
			all = append(all, t.windowsFaults(path)...)
		case !slices.Contains(guestos.Distributions(), t.Distribution):
			add(path+"distribution", string(t.Distribution), fmt.Sprintf("use one of %v", guestos.Distributions()))
		}
		if len(t.Snapshots) == 0 {
			add(path+"snapshots", "", "name one at least, such as r1")
		}
		for j, command := range t.Without {
			if !slices.Contains(guestos.Commands(), command) {
				add(fmt.Sprintf("%swithout[%d]", path, j), command, "no guest has such a command: leave it out")
			}
		}
	}
	for i, image := range s.Images {
		if err := image.Validate(); err != nil {
			add(fmt.Sprintf("images[%d]", i), image.Name, err.Error())
		}
	}
	for i, c := range s.Computers {
		path := fmt.Sprintf("computers[%d].", i)
		all = append(all, c.faults(path)...)
		unique(path+"name", c.Name)
		if c.Address != "" {
			unique(path+"address", c.Address)
		}
	}
	return all
}

func (c Computer) faults(path string) []*ScriptError {
	var all []*ScriptError
	if err := reservation.CheckName("", c.Name); err != nil {
		all = append(all, &ScriptError{path + "name", c.Name, "use 1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or a digit"})
	}
	if c.Address != "" {
		if address, err := netip.ParseAddrPort(c.Address); err != nil || !address.Addr().IsLoopback() || address.Port() == 0 {
			all = append(all, &ScriptError{path + "address", c.Address, "give a loopback address and a port, such as 127.0.0.1:22001"})
		}
	}
	return append(all, c.Behaviours.faults(path)...)
}

func (b Behaviours) faults(path string) []*ScriptError {
	var all []*ScriptError
	if len(b.Loads) > 0 && len(b.Boots) > 0 {
		all = append(all, &ScriptError{path + "boots", "both", "give loads or boots, not both"})
	}
	for i, one := range b.Loads {
		all = append(all, one.faults(fmt.Sprintf("%sloads[%d]", path, i))...)
	}
	for i, one := range b.Boots {
		all = append(all, one.faults(fmt.Sprintf("%sboots[%d]", path, i))...)
	}
	return all
}

func (b Behaviour) faults(path string) []*ScriptError {
	var all []*ScriptError
	v := reflect.ValueOf(b)
	for i := range v.NumField() {
		d, ok := v.Field(i).Interface().(Duration)
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if ok && name != "clock_offset" && (d < 0 || d.Std() > 24*time.Hour) {
			all = append(all, &ScriptError{path + "." + name, d.String(), "give a duration up to 24h, such as 20s"})
		}
	}
	all = append(all, b.windowsFaults(path)...)
	for name, value := range map[string]string{"clone_fails": b.CloneFails, "power_on_fails": b.PowerOnFails} {
		if value != "" && newFault(value) == nil {
			all = append(all, &ScriptError{path + "." + name, value, "vSphere has no such fault: write a type's name, such as NoDiskSpace or InsufficientResourcesFault"})
		}
	}
	if !slices.Contains([]string{"", refusesConnections, refusesLogins, refusesCommands}, b.Refuses) {
		all = append(all, &ScriptError{path + ".refuses", b.Refuses, "write connections, logins or commands"})
	}
	if !slices.Contains([]string{"", diesOff, diesHang}, b.Dies) {
		all = append(all, &ScriptError{path + ".dies", b.Dies, "write off or hang"})
	}
	if b.Dies != "" && b.DiesAfter == 0 && b.DiesIn == "" {
		all = append(all, &ScriptError{path + ".dies", b.Dies, "say when, with dies_after or dies_in"})
	}
	if b.Reboots < 0 || b.Reboots > 100 {
		all = append(all, &ScriptError{path + ".reboots", strconv.Itoa(b.Reboots), "give 0 to 100"})
	}
	return all
}

func (f Fault) faults(path string) []*ScriptError {
	var all []*ScriptError
	if f.Method == "" {
		all = append(all, &ScriptError{path + ".method", "", "name a method of the vSphere API, such as CloneVM_Task, or write *"})
	}
	if f.Type == "" && f.Delay == 0 && !f.NeverEnds {
		all = append(all, &ScriptError{path + ".fault", "", "say what happens: a fault, a delay or never_ends"})
	}
	if f.Type != "" && newFault(f.Type) == nil {
		all = append(all, &ScriptError{path + ".fault", f.Type, "vSphere has no such fault: write a type's name, such as NoDiskSpace or InsufficientResourcesFault"})
	}
	if f.At != "" && f.At != atTask && f.At != atCall {
		all = append(all, &ScriptError{path + ".at", f.At, "write task or call"})
	}
	if f.At == atTask && !hasTask(f.Method) || f.NeverEnds && (f.At == atCall || !hasTask(f.Method)) {
		all = append(all, &ScriptError{path + ".method", f.Method, fmt.Sprintf("only these have a task that can be scripted: %s", strings.Join(taskMethods(), ", "))})
	}
	if f.Times < 0 || f.Skip < 0 {
		all = append(all, &ScriptError{path + ".times", strconv.Itoa(min(f.Times, f.Skip)), "give a number from 0"})
	}
	if f.Delay < 0 {
		all = append(all, &ScriptError{path + ".delay", f.Delay.String(), "give a duration from 0"})
	}
	return all
}

// The words of scripts.
const (
	refusesConnections = "connections"
	refusesLogins      = "logins"
	refusesCommands    = "commands"
	diesOff            = "off"
	diesHang           = "hang"
	atTask             = "task"
	atCall             = "call"
)

// taskMethods are the methods whose tasks can be delayed, made to fail or to hang.
func taskMethods() []string {
	return []string{"CloneVM_Task", "PowerOnVM_Task", "PowerOffVM_Task", "ResetVM_Task", "Destroy_Task", "ReconfigVM_Task"}
}

func hasTask(method string) bool { return slices.Contains(taskMethods(), method) }

// newFault returns a new fault of a type of vSphere's; nil when there is no such type.
func newFault(name string) types.BaseMethodFault {
	kind, ok := types.TypeFunc()(name)
	if !ok {
		return nil
	}
	fault, ok := reflect.New(kind).Interface().(types.BaseMethodFault)
	if !ok {
		return nil
	}
	return fault
}
