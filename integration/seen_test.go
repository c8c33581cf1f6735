package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"berth/internal/devserver"
	"berth/internal/labtest"
	"berth/internal/simsite"
	"berth/reservation"
)

// testSeen is what is seen of loads from outside: their traces, and the metrics that the dashboards and alerts are made of.
func testSeen(t *testing.T, w *world) {
	traces := newCollector(t)
	own := &world{plain: w.plain, watched: w.watched, starter: w.starter, simsite: w.simsite, certificate: w.certificate, thumbprint: w.thumbprint, starting: w.starting,
		env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + traces.url, "OTEL_BSP_SCHEDULE_DELAY=200", "BERTH_LISTEN=127.0.0.1:0"}}
	own.serve(t, devserver.Options{})
	const reloads, moves = "seen-reloads", "seen-moves"
	computers := []simsite.Computer{
		{Name: reloads, Behaviours: simsite.Behaviours{Loads: []simsite.Behaviour{{CloudInitError: "no route to the metadata"}, {}}}},
		{Name: moves, Behaviours: simsite.Behaviours{Loads: []simsite.Behaviour{{CloneTakes: after(12)}}}},
	}
	l := own.newLab(t, "seen", labOptions{computers: computers})
	victim := l.worker(t)

	// One that the command line starts, with a trace of its own; and one that somebody starts who knows nothing of traces,
	// whose workers are killed under it, the workflow's and the activity's.
	stdout, stderr, code := l.starter(t, "reserve", imageName, reloads, "--name", "r-"+reloads, "--for", "1h", "-o", "json")
	require.Zero(t, code, stdout+stderr)
	var started []struct {
		ID  string `json:"workflow_id"`
		Run string `json:"run_id"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &started))
	first := l.booking(own, "r-"+reloads, reloads, started[0].ID, started[0].Run)
	require.Equal(t, 2, first.ready(t, takeover).Attempt.Number)
	t.Run("each metric of the dashboards and alerts is there", func(t *testing.T) {
		// What Berth counts is zero the first time that it is asked for.
		victim.metrics(t)
		own.workflows.metrics(t)
		exported := victim.metrics(t)
		for name, family := range own.workflows.metrics(t) {
			if exported[name] == nil {
				exported[name] = family
			} else {
				exported[name].Metric = append(exported[name].Metric, family.Metric...)
			}
		}
		metricsAreExported(t, exported)
		require.Contains(t, exportedLabels(exported, "berth_reloads_total"),
			map[string]string{"provisioner": "vmware", "phase": "post-load", "image": "debian12-r3", "stage": "set-up", "reason": "module"})
	})

	second := l.reserve(t, moves)
	second.until(t, patience, func(m moment) bool {
		return m.Running() && m.Stage().Name == "clone" && m.Progress.Kept["clone"] != "" && m.Progress.Kept["clone"] != "asked"
	})
	victim.Kill()
	own.workflows.Kill()
	own.startWorkflows(t)
	successor := l.worker(t)
	require.Equal(t, 1, second.ready(t, takeover).Phases[0].Lost)

	first.release(t)
	second.release(t)

	t.Run("a reservation is one trace", func(t *testing.T) {
		spans := wholeTrace(t, traces, first)
		root := oneSpan(t, spans, "StartWorkflow:Reservation")
		require.Equal(t, "berth-starter", root.service)
		require.Empty(t, root.parent)
		life := oneSpan(t, spans, "RunWorkflow:Reservation")
		require.Equal(t, root.id, life.parent)
		require.Equal(t, string(reservation.OutcomeReleased), life.attributes["berth.outcome"])
		require.Equal(t, []string{"ana", reloads, "debian12-r3"}, []string{life.attributes["berth.user"], life.attributes["berth.computer"], life.attributes["berth.image"]})
		for _, s := range spans {
			require.True(t, s.parent == "" || slices.ContainsFunc(spans, func(p span) bool { return p.id == s.parent }), "the parent of %s is missing", s.name)
		}
		for _, load := range named(spans, "RunActivity:Load") {
			require.Contains(t, load.events, "clone")
		}
		require.Len(t, named(spans, "RunActivity:Load"), 2)
		require.Contains(t, named(spans, "RunActivity:PostLoad")[0].attributes["berth.reason"], "no route to the metadata")
		for call, activity := range map[string]string{"vsphere/CloneVM_Task": "Load", "ssh/exec": "PostLoad", "vsphere/Destroy_Task": "Unload"} {
			all := named(spans, call)
			require.NotEmpty(t, all, call)
			require.Contains(t, path(spans, all[len(all)-1]), call+" < RunActivity:"+activity+" < StartActivity:"+activity+" < RunWorkflow:Reservation < StartWorkflow:Reservation")
		}
	})
	t.Run("a reservation whose workers were killed is one trace, too", func(t *testing.T) {
		spans := wholeTrace(t, traces, second)
		life := oneSpan(t, spans, "RunWorkflow:Reservation")
		require.Empty(t, life.parent)
		require.Equal(t, own.workflows.identity, life.instance)
		for _, s := range spans {
			// What a killed worker had begun nobody hears of; what it had done is in the trace all the same.
			known := s.parent == "" || slices.ContainsFunc(spans, func(p span) bool { return p.id == s.parent })
			require.True(t, known || s.instance == victim.identity, "the parent of %s is missing", s.name)
		}
		require.True(t, slices.ContainsFunc(named(spans, "vsphere/CloneVM_Task"), func(s span) bool { return s.instance == victim.identity }))
		load := oneSpan(t, spans, "RunActivity:Load")
		require.Equal(t, successor.identity, load.attributes["berth.worker"])
	})
	t.Run("no gate and no query is in any trace", func(t *testing.T) {
		for _, name := range []string{"r-" + reloads, "r-" + moves} {
			spans, _ := traces.of(name)
			for _, s := range spans {
				require.NotRegexp(t, "Gate|Query|Signal|Update", s.name)
			}
		}
	})
	t.Run("no secret is in any trace", func(t *testing.T) {
		all := traces.everything()
		key := strings.Split(l.site.secret(t, loginKeyFile), "\n")
		for _, secret := range append(key[1:len(key)-1], l.site.secret(t, passwordFile), "PRIVATE KEY") {
			require.False(t, bytes.Contains(all, []byte(secret)), "a secret is in a trace")
		}
	})
}

// wholeTrace waits for a reservation's trace to be whole, and sees that it is the only one.
func wholeTrace(t *testing.T, c *collectorOfTraces, b *booking) []span {
	t.Helper()
	var spans []span
	labtest.Eventually(t, patience, func() (bool, string) {
		var traces map[string]bool
		spans, traces = c.of(b.name)
		require.LessOrEqual(t, len(traces), 1, "a reservation has one trace")
		return len(named(spans, "RunWorkflow:Reservation")) > 0 && len(named(spans, "RunActivity:Unload")) > 0, fmt.Sprintf("%d spans", len(spans))
	})
	return spans
}

func named(spans []span, name string) []span {
	var found []span
	for _, s := range spans {
		if s.name == name {
			found = append(found, s)
		}
	}
	return found
}

func oneSpan(t *testing.T, spans []span, name string) span {
	t.Helper()
	found := named(spans, name)
	require.Len(t, found, 1, name)
	return found[0]
}

// path returns the names of a span and of those that it is below.
func path(spans []span, s span) string {
	text := s.name
	for s.parent != "" {
		at := slices.IndexFunc(spans, func(p span) bool { return p.id == s.parent })
		if at < 0 {
			return text + " < ?"
		}
		s = spans[at]
		text += " < " + s.name
	}
	return text
}

// metrics asks the worker for what it exports.
func (p *workerProcess) metrics(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	address := regexp.MustCompile(`"address":"([^"]+)"[^\n]*health and metrics`).FindStringSubmatch(p.Text())
	require.NotNil(t, address, "the worker serves no metrics")
	response, err := http.Get("http://" + address[1] + "/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	text := expfmt.NewTextParser(model.LegacyValidation)
	families, err := text.TextToMetricFamilies(response.Body)
	require.NoError(t, err)
	return families
}

// metricsAreExported sees that every metric, label and (but for outcomes, which need loads that go wrong) value that the
// dashboards and the alerts ask for is in what the workers export.
func metricsAreExported(t *testing.T, exported map[string]*dto.MetricFamily) {
	t.Helper()
	asked := map[string]string{} // expression -> where
	for where, expression := range dashboardExpressions(t) {
		asked[expression] = where
	}
	alerts := 0
	for where, expression := range alertExpressions(t) {
		asked[expression] = where
		alerts++
	}
	require.GreaterOrEqual(t, alerts, 3)
	require.GreaterOrEqual(t, len(asked), 20)
	// Grafana fills these in before it asks.
	grafana := strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h", "$provisioner", ".*", "$image", ".*")
	promql := parser.NewParser(parser.Options{})
	for expression, where := range asked {
		parsed, err := promql.ParseExpr(grafana.Replace(expression))
		require.NoError(t, err, "%s: %s", where, expression)
		parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
			switch n := node.(type) {
			case *parser.VectorSelector:
				if fault := notExported(exported, n); fault != "" {
					t.Errorf("%s: %s: %s", where, expression, fault)
				}
			case *parser.AggregateExpr:
				has := labelsBelow(exported, n.Expr)
				for _, label := range n.Grouping {
					if !has[label] {
						t.Errorf("%s: %s: nothing below has the label %s", where, expression, label)
					}
				}
			}
			return nil
		})
	}
}

// ofScrape are the labels that Prometheus itself gives what it scrapes.
func ofScrape() []string { return []string{"job", "instance"} }

// exportedLabels returns the label sets of a metric; nil if nobody exports it.
func exportedLabels(exported map[string]*dto.MetricFamily, name string) []map[string]string {
	if name == "up" { // Prometheus' own
		return []map[string]string{{}}
	}
	family, suffix := exported[name], ""
	for _, s := range []string{"_bucket", "_count", "_sum"} {
		if of := exported[strings.TrimSuffix(name, s)]; strings.HasSuffix(name, s) && family == nil && of.GetType() == dto.MetricType_HISTOGRAM {
			family, suffix = of, s
		}
	}
	if family == nil || suffix == "" && family.GetType() == dto.MetricType_HISTOGRAM {
		return nil
	}
	var all []map[string]string
	for _, m := range family.GetMetric() {
		set := map[string]string{}
		for _, pair := range m.GetLabel() {
			set[pair.GetName()] = pair.GetValue()
		}
		if suffix == "_bucket" {
			set["le"] = "1"
		}
		all = append(all, set)
	}
	return all
}

func notExported(exported map[string]*dto.MetricFamily, selector *parser.VectorSelector) string {
	sets := exportedLabels(exported, selector.Name)
	if len(sets) == 0 {
		return "no worker exports " + selector.Name
	}
	fits := func(set map[string]string) bool {
		for _, m := range selector.LabelMatchers {
			value, there := set[m.Name]
			switch {
			case m.Name == model.MetricNameLabel, slices.Contains(ofScrape(), m.Name):
			case !there, m.Name != "outcome" && !m.Matches(value):
				return false
			}
		}
		return true
	}
	if !slices.ContainsFunc(sets, fits) {
		return fmt.Sprintf("no worker exports it; there is %v", sets[:min(3, len(sets))])
	}
	return ""
}

func labelsBelow(exported map[string]*dto.MetricFamily, node parser.Node) map[string]bool {
	all := map[string]bool{}
	for _, label := range ofScrape() {
		all[label] = true
	}
	parser.Inspect(node, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			for _, set := range exportedLabels(exported, selector.Name) {
				for label := range set {
					all[label] = true
				}
			}
		}
		return nil
	})
	return all
}

// dashboardExpressions returns the expressions of every panel and variable, by where they stand.
func dashboardExpressions(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../deploy/grafana/dashboards/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	all := map[string]string{}
	variable := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var dashboard struct {
			Panels []struct {
				Title, Type string
				Targets     []struct{ Expr string }
			}
			Templating struct {
				List []struct{ Name, Definition string }
			}
		}
		require.NoError(t, json.Unmarshal(text, &dashboard))
		for _, panel := range dashboard.Panels {
			where := filepath.Base(file) + ": " + panel.Title
			require.True(t, panel.Type == "row" || len(panel.Targets) > 0, "%s asks for nothing", where)
			for i, target := range panel.Targets {
				all[fmt.Sprintf("%s, %d (%s)", where, i, panel.Type)] = target.Expr
			}
		}
		for _, v := range dashboard.Templating.List {
			parts := variable.FindStringSubmatch(v.Definition)
			require.NotNil(t, parts, v.Definition)
			all[filepath.Base(file)+": $"+v.Name] = "count by (" + parts[2] + ") (" + parts[1] + ")"
		}
	}
	return all
}

// alertExpressions returns the expressions of the alerts, and sees that each alert says what to do.
func alertExpressions(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../deploy/prometheus/alerts.yml")
	require.NoError(t, err)
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
				Labels      map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &rules))
	manual, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	all := map[string]string{}
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			for _, part := range []string{"summary", "description", "action"} {
				require.NotEmpty(t, rule.Annotations[part], "%s has no %s", rule.Alert, part)
			}
			require.NotEmpty(t, rule.Labels["severity"], rule.Alert)
			require.Contains(t, string(manual), "`"+rule.Alert+"`", "docs/operations.md says what to do")
			all[rule.Alert] = rule.Expr
		}
	}
	return all
}
