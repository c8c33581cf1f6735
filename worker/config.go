package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/kelseyhightower/envconfig"
	profiles "go.temporal.io/sdk/contrib/envconfig"

	"berth/internal/catalog"
	"berth/internal/logging"
	"berth/internal/temporalclient"
	"berth/internal/tracing"
	"berth/provisioners/libvirt"
	"berth/provisioners/vmware"
	"berth/provisioners/xcat"
	"berth/reservation"
)

// config is everything that the worker takes from its environment. The tags are envconfig's: a variable's name, its
// default, and desc, which --help shows.
type config struct {
	Provisioners []string `envconfig:"BERTH_PROVISIONERS" default:"vmware" desc:"provisioner types to serve, with commas between; empty: none"`
	Workflows    bool     `envconfig:"BERTH_WORKFLOWS" default:"true" desc:"serve the reservations' workflows"`
	Catalog      string   `envconfig:"BERTH_CATALOG" default:"catalog.yaml" desc:"the catalog's file; not read if no provisioner is served"`
	Sites        []string `envconfig:"BERTH_SITES" desc:"sites of the catalog to serve, with commas between; empty: all of the provisioners' sites"`
	Scripts      string   `envconfig:"BERTH_SCRIPTS" desc:"folder of the site's own scripts; empty: none"`

	temporalclient.Settings
	Tracing tracing.Settings

	LogLevel  string `envconfig:"BERTH_LOG_LEVEL" default:"info" desc:"debug, info, warn or error"`
	LogFormat string `envconfig:"BERTH_LOG_FORMAT" default:"json" desc:"json, or console for reading in a terminal"`
	Listen    string `envconfig:"BERTH_LISTEN" default:"127.0.0.1:9464" desc:"address for /healthz, /readyz and /metrics; port 0 takes a free one, which is logged; empty: none"`

	Slots         int           `envconfig:"BERTH_SLOTS" default:"1000" desc:"phases that may run at once on each provisioner queue"`
	QueueRate     float64       `envconfig:"BERTH_QUEUE_RATE" default:"0" desc:"phases that may start in a second on each provisioner queue, over all its workers, which must have the same; 0: no limit"`
	WorkflowSlots int           `envconfig:"BERTH_WORKFLOW_SLOTS" default:"1000" desc:"workflow tasks that may run at once"`
	StopTimeout   time.Duration `envconfig:"BERTH_STOP_TIMEOUT" default:"25s" desc:"how long a stop waits for running phases to hand over"`
}

// provisionerTypes are the types that this program has a module for.
func provisionerTypes() []string { return []string{vmware.Type, xcat.Type, libvirt.Type} }

// readConfig reads and checks the environment. Its error joins every fault, each a *reservation.FieldError whose field is
// the variable.
func readConfig() (config, error) {
	var c config
	var faults []error
	bad := map[string]bool{}
	for _, v := range variables(reflect.ValueOf(&c).Elem()) {
		if err := v.read(); err != nil {
			faults = append(faults, err)
			bad[v.name] = true
		}
	}
	settings, err := c.Settings.WithProfile(profiles.EnvLookupOS)
	if err != nil {
		faults = append(faults, err)
	}
	c.Settings = settings
	// A variable that could not be read has its fault already.
	for _, fault := range flatten(c.validate()) {
		var field *reservation.FieldError
		if errors.As(fault, &field) && bad[field.Field] {
			continue
		}
		faults = append(faults, fault)
	}
	return c, errors.Join(faults...)
}

func (c *config) validate() error {
	var faults []error
	fault := func(variable, value, remedy string) {
		faults = append(faults, &reservation.FieldError{Field: variable, Value: value, Remedy: remedy})
	}
	c.Provisioners, c.Sites = trimmed(c.Provisioners), trimmed(c.Sites)
	for _, name := range c.Provisioners {
		if slices.Contains(provisionerTypes(), name) {
			continue
		}
		remedy := "this worker has modules for: " + strings.Join(provisionerTypes(), ", ")
		if nearest := catalog.Nearest(name, provisionerTypes()); nearest != "" {
			remedy += "; did you mean " + nearest + "?"
		}
		fault("BERTH_PROVISIONERS", name, remedy)
	}
	if len(c.Provisioners) == 0 && !c.Workflows {
		fault("BERTH_PROVISIONERS", "", "there is nothing to serve: name a provisioner, or set BERTH_WORKFLOWS=true")
	}
	if len(c.Provisioners) > 0 && c.Catalog == "" {
		fault("BERTH_CATALOG", "", "give the catalog's file")
	}
	if len(c.Sites) > 0 && len(c.Provisioners) == 0 {
		fault("BERTH_SITES", strings.Join(c.Sites, ","), "sites are served by a provisioner: name it in BERTH_PROVISIONERS")
	}
	if !slices.Contains(logging.Levels(), c.LogLevel) {
		fault("BERTH_LOG_LEVEL", c.LogLevel, "write one of "+strings.Join(logging.Levels(), ", "))
	}
	if c.LogFormat != logging.FormatJSON && c.LogFormat != logging.FormatConsole {
		fault("BERTH_LOG_FORMAT", c.LogFormat, "write "+logging.FormatJSON+" or "+logging.FormatConsole)
	}
	if c.Listen != "" {
		if _, err := net.ResolveTCPAddr("tcp", c.Listen); err != nil {
			fault("BERTH_LISTEN", c.Listen, "write host:port, such as 127.0.0.1:9464, or set it to nothing for none")
		}
	}
	for variable, n := range map[string]int{"BERTH_SLOTS": c.Slots, "BERTH_WORKFLOW_SLOTS": c.WorkflowSlots} {
		if n < 2 { // the SDK needs two for workflow tasks; one phase at a time is no worker either
			fault(variable, fmt.Sprint(n), "give 2 or more")
		}
	}
	if c.QueueRate < 0 || math.IsNaN(c.QueueRate) || math.IsInf(c.QueueRate, 0) {
		fault("BERTH_QUEUE_RATE", fmt.Sprint(c.QueueRate), "give a number of phases a second, such as 20 or 0.5, or 0 for no limit")
	}
	if c.StopTimeout < 0 {
		fault("BERTH_STOP_TIMEOUT", c.StopTimeout.String(), "give a duration, such as 25s, or 0s for none")
	}
	faults = append(faults, c.Settings.Validate(), c.Tracing.Validate())
	return errors.Join(faults...)
}

func trimmed(list []string) []string {
	var kept []string
	for _, one := range list {
		if one = strings.TrimSpace(one); one != "" && !slices.Contains(kept, one) {
			kept = append(kept, one)
		}
	}
	return kept
}

// variable is one environment variable and where its value goes.
type variable struct {
	name  string
	field reflect.StructField
	value reflect.Value
}

func variables(config reflect.Value) []variable {
	var all []variable
	for i := range config.NumField() {
		field := config.Type().Field(i)
		if field.Type.Kind() == reflect.Struct {
			all = append(all, variables(config.Field(i))...)
			continue
		}
		if field.Tag.Get("envconfig") == "" {
			continue // of no variable's
		}
		all = append(all, variable{name: field.Tag.Get("envconfig"), field: field, value: config.Field(i)})
	}
	return all
}

// read reads the variable through envconfig. envconfig stops at the first fault of a struct, so each gets a struct of its
// own.
func (v variable) read() error {
	single := reflect.New(reflect.StructOf([]reflect.StructField{v.field}))
	err := envconfig.Process("", single.Interface())
	v.value.Set(single.Elem().Field(0))
	var parse *envconfig.ParseError
	if errors.As(err, &parse) {
		return &reservation.FieldError{Field: v.name, Value: parse.Value, Remedy: v.remedy()}
	}
	return err
}

func (v variable) remedy() string {
	switch v.value.Interface().(type) {
	case bool:
		return "write true or false"
	case time.Duration:
		return "write a number with its unit, such as 25s or 2m"
	case float64:
		return "write a number, such as 20 or 0.5"
	default:
		return "write a whole number"
	}
}

// help writes what the worker does and every variable with its default.
func help(w io.Writer) {
	fmt.Fprint(w, `Usage: worker
       worker health

Serves Berth's reservations: their workflows, the queues of provisioner types, or both. It takes everything from its
environment:

`)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  VARIABLE\tDEFAULT\tMEANING")
	for _, v := range variables(reflect.ValueOf(&config{}).Elem()) {
		fallback := v.field.Tag.Get("default")
		if fallback == "" {
			fallback = "(empty)"
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\n", v.name, fallback, v.field.Tag.Get("desc"))
	}
	table.Flush()
	fmt.Fprintf(w, `
"worker health" asks the worker that runs with the same environment whether it is ready, and says so by its exit code.

Without BERTH_TEMPORAL_ADDRESS, what the variables of Temporal leave open comes from Temporal's own profiles:
TEMPORAL_PROFILE, TEMPORAL_CONFIG_FILE, TEMPORAL_ADDRESS and so on. OpenTelemetry's further variables count, too.

Secrets are named in the catalog, which says for each the variable or the file that it is read from.

SIGTERM and SIGINT stop it: it takes no more work and its running phases hand over to other workers. A second signal ends
it at once. Exit codes: %d after a stop, %d for a fault that another start may not have (Temporal does not answer), %d for
one that somebody has to mend (a variable, the catalog, a secret, a password).
`, exitOK, exitFault, exitConfiguration)
}

// mistyped returns a warning for each variable of the environment that was probably meant for us and is not ours.
func mistyped(environment []string) []string {
	known := []string{"BERTH_TEMPORAL_CLI", "BERTH_USER"} // of other programs of ours
	for _, v := range variables(reflect.ValueOf(&config{}).Elem()) {
		known = append(known, v.name)
	}
	var warnings []string
	for _, pair := range environment {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "BERTH") || slices.Contains(known, name) {
			continue
		}
		for _, candidate := range known {
			if levenshtein.ComputeDistance(name, candidate) <= 2 {
				warnings = append(warnings, fmt.Sprintf("%s is set and means nothing; did you mean %s?", name, candidate))
				break
			}
		}
	}
	return warnings
}

// environment is os.LookupEnv and os.Environ, so that they are read in one place.
func environment() (lookup func(string) (string, bool), all []string) {
	return os.LookupEnv, os.Environ()
}
