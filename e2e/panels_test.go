//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// prometheus is Debian's Prometheus, with our alerts, that looks at the demonstration's workers.
type prometheus struct{ url string }

// startPrometheus starts it. Without Prometheus on the PATH it returns nil; with CI=true that is a failure.
func startPrometheus(t *testing.T, d *demonstration) *prometheus {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		require.NotEqual(t, "true", os.Getenv("CI"), "no Prometheus on the PATH")
		return nil
	}
	var workers []string
	logs, err := filepath.Glob(filepath.Join(d.dir, "worker-*.log"))
	require.NoError(t, err)
	for _, log := range logs {
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		found := regexp.MustCompile(`"address":"([^"]+)"[^\n]*health and metrics`).FindSubmatch(text)
		require.NotNil(t, found, "%s does not say where its worker serves metrics", log)
		workers = append(workers, string(found[1]))
	}
	require.NotEmpty(t, workers)
	alerts, err := filepath.Abs("../deploy/prometheus/alerts.yml")
	require.NoError(t, err)
	dir := t.TempDir()
	config, err := json.Marshal(map[string]any{ // JSON is YAML
		"global":         map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files":     []string{alerts},
		"scrape_configs": []any{map[string]any{"job_name": "berth", "static_configs": []any{map[string]any{"targets": workers}}}},
	})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), config, 0o600))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	out, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer out.Close()
	command := exec.Command(path, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	command.Stdout, command.Stderr = out, out
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		if text, err := os.ReadFile(out.Name()); err == nil && t.Failed() {
			t.Logf("Prometheus said:\n%s", text)
		}
	})
	return &prometheus{url: "http://" + address}
}

// ask calls Prometheus' API and reads the data of its answer.
func (p *prometheus) ask(t *testing.T, path string, data any) error {
	t.Helper()
	response, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return json.Unmarshal(answer.Data, data)
}

// everyPanelShowsData sees that each expression of the dashboard has an answer that holds a number.
func (p *prometheus) everyPanelShowsData(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("../deploy/grafana/dashboards/berth.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	// What Grafana fills in; the times are for a batch of a minute and a half.
	grafana := strings.NewReplacer("$__rate_interval", "5m", "$__range", "10m", "$provisioner", ".*", "$image", ".*")
	asked := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			asked++
			var found struct {
				Result []struct{ Value [2]any }
			}
			require.NoError(t, p.ask(t, "/api/v1/query?query="+url.QueryEscape(grafana.Replace(target.Expr)), &found), "panel %q", panel.Title)
			numbers := 0
			for _, series := range found.Result {
				if series.Value[1] != "NaN" {
					numbers++
				}
			}
			require.Positive(t, numbers, "the panel %q shows nothing: %s", panel.Title, target.Expr)
		}
	}
	require.Greater(t, asked, 15)
}

// everyAlertIsEvaluated sees that Prometheus can evaluate each alert, and returns the names of those that fire or are about to.
func (p *prometheus) everyAlertIsEvaluated(t *testing.T) []string {
	t.Helper()
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError, State string }
		}
	}
	require.NoError(t, p.ask(t, "/api/v1/rules", &rules))
	var firing []string
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			require.Equal(t, "ok", rule.Health, "%s: %s", rule.Name, rule.LastError)
			if rule.State != "inactive" {
				firing = append(firing, rule.Name)
			}
		}
	}
	return firing
}

// alarms waits until an alert fires or is about to.
func (p *prometheus) alarms(t *testing.T, name string) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, one := range p.everyAlertIsEvaluated(t) {
			if one == name {
				return true
			}
		}
		return false
	}, pageLimit, time.Second, "%s does not fire", name)
}

// wall is the dashboard and the alerts after the demonstration's batch.
func (p *prometheus) wall(t *testing.T, d *demonstration) {
	if p == nil {
		t.Skip("SKIP: no Prometheus on the PATH: run `make e2e` as root, or install it (Debian: apt-get install prometheus)")
	}
	p.everyPanelShowsData(t)
	require.NotContains(t, p.everyAlertIsEvaluated(t), "BerthNoWorkerOnQueue")
	p.alarms(t, "BerthWorkerNotReady") // one of the two workers was killed

	for _, process := range d.left() {
		if id, command, _ := strings.Cut(process, " "); strings.HasSuffix(strings.TrimSpace(command), "bin/worker") {
			pid, err := strconv.Atoi(id)
			require.NoError(t, err)
			// It answers nobody for a while: a worker that dies would end the demonstration.
			require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
			defer func() { require.NoError(t, syscall.Kill(pid, syscall.SIGCONT)) }()
		}
	}
	p.alarms(t, "BerthNoWorkerOnQueue")
}
