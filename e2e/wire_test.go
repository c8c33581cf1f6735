//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"berth/reservation"
)

// secrets returns every secret of the stack and of its site, line by line, by the file that holds it.
func (s *stack) secrets(t *testing.T) map[string]string {
	t.Helper()
	site := filepath.Join(s.dir, "site")
	s.run(t, time.Minute, "docker", "cp", s.containers(t, "site")[0]+":/var/lib/simsite/.", site)
	found := map[string]string{}
	for _, folder := range []string{filepath.Join(site, "secrets"), filepath.Join(site, "keys"), filepath.Join(s.dir, "secrets")} {
		files, err := os.ReadDir(folder)
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file.Name(), ".pub") {
				continue
			}
			text, err := os.ReadFile(filepath.Join(folder, file.Name()))
			require.NoError(t, err)
			private := !strings.Contains(string(text), "-----BEGIN")
			for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
				switch {
				case strings.Contains(line, "-----BEGIN"):
					private = strings.Contains(line, "PRIVATE KEY")
				case private && len(line) > 15 && !strings.HasPrefix(line, "-----"):
					found[line] = fmt.Sprintf("%s, line %d", file.Name(), i+1)
				}
			}
		}
	}
	require.GreaterOrEqual(t, len(found), 6, "the site's and the stack's passwords and keys")
	return found
}

// tellsNoSecret looks for every secret in whatever the stack tells of a full run.
func (s *stack) tellsNoSecret(t *testing.T) {
	secrets := s.secrets(t)
	size := map[string]int{}
	look := func(where, text string) {
		size[where] += len(text)
		for secret, file := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s tells the secret of %s", where, file)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	all, err := s.temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{PageSize: 1000})
	require.NoError(t, err)
	for i, info := range all.GetExecutions() {
		id, run := info.GetExecution().GetWorkflowId(), info.GetExecution().GetRunId()
		history := s.temporal.GetWorkflowHistory(ctx, id, run, false, 0)
		for history.HasNext() {
			event, err := history.Next()
			require.NoError(t, err)
			text, err := protojson.Marshal(event)
			require.NoError(t, err)
			look("histories", string(text))
			look("histories", payloads(string(text)))
		}
		if i < 20 { // what the Web UI's pages are filled with
			page := "http://127.0.0.1:" + s.ports["UI_PORT"] + "/api/v1/namespaces/default/workflows/" + strings.ReplaceAll(id, "/", "%2F")
			for _, url := range []string{page + "?execution.runId=" + run, page + "/history?execution.runId=" + run} {
				text := fetch(t, url)
				look("the Web UI's answers", text)
				look("the Web UI's answers", payloads(text))
			}
		}
	}
	look("the Web UI's answers", fetch(t, "http://127.0.0.1:"+s.ports["UI_PORT"]+"/api/v1/namespaces/default/workflows"))
	b := newBrowser(t, "http://127.0.0.1:"+s.ports["UI_PORT"])
	b.open(t, "workflows", "computer/")
	look("the Web UI's pages", b.html(t))
	views := s.show(t, "--all")
	for _, name := range []string{"demo-vm-05", "demo-node-02"} { // failed; a node that was reloaded
		v := views[name]
		require.NotEmpty(t, v.WorkflowID, name)
		for tab, text := range map[string]string{ // what is there once the page is filled
			"timeline":      v.WorkflowID,
			"history":       "load: " + v.Image + " on " + v.Computer,
			"user-metadata": v.Image + " on " + v.Computer,
		} {
			b.open(t, reservationPage(v.WorkflowID, v.RunID, tab), text)
			look("the Web UI's pages", b.html(t))
		}
	}
	for _, id := range strings.Fields(s.run(t, time.Minute, "docker", "ps", "-aq", "--filter", "label=com.docker.compose.project="+s.project)) {
		out, err := exec.Command("docker", "logs", id).CombinedOutput()
		require.NoError(t, err)
		look("logs", string(out))
		look("docker inspect", s.run(t, time.Minute, "docker", "inspect", id))
	}
	processes, err := exec.Command("ps", "auxww").Output()
	require.NoError(t, err)
	look("process lists", string(processes))
	for _, service := range workerServices() {
		for _, id := range s.containers(t, service) {
			addresses := s.run(t, time.Minute, "docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", id)
			look("metrics", fetch(t, "http://"+net.JoinHostPort(strings.Fields(addresses)[0], "9464")+"/metrics"))
		}
	}
	t.Logf("%d lines of secrets looked for in, bytes: %v", len(secrets), size)
	for _, where := range []string{"histories", "the Web UI's answers", "the Web UI's pages", "logs", "docker inspect", "process lists", "metrics"} {
		require.Greater(t, size[where], 1000, where)
	}
}

// payloads returns what the payloads of a text in JSON say, which are in base 64 there.
func payloads(text string) string {
	var all strings.Builder
	for _, found := range regexp.MustCompile(`"data": *"([^"]*)"`).FindAllStringSubmatch(text, -1) {
		if decoded, err := base64.StdEncoding.DecodeString(found[1]); err == nil {
			all.Write(decoded)
		}
	}
	return all.String()
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	answer, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode, "%s: %.200s", url, text)
	return string(text)
}

// TestTheStackByMutualTLS runs the stack with docker-compose.tls.yml over it.
func TestTheStackByMutualTLS(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is missing: deploy/certificates needs it")
	}
	s := newStack(t, 0, "TLS_REFRESH_INTERVAL=2s")
	certificates := filepath.Join(s.dir, "certificates")
	s.env = append(s.env, "CERTIFICATES="+certificates)
	s.files = []string{"-f", "../docker-compose.tls.yml"}
	s.run(t, time.Minute, "../deploy/certificates")
	s.build(t)
	s.takeDown(t)
	const few = "- {name: secure-vm, image: debian12, computer: vm-01, for: 4h}\n- {name: secure-node, image: rocky9-metal, computer: node-01, for: 4h}\n"
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "demo", "batch.yaml"), []byte(few), 0o644))
	s.compose(t, upLimit, "up", "-d")
	s.tls = true
	s.ready(t)
	s.settled(t, loadsLimit)

	address := "127.0.0.1:" + s.ports["TEMPORAL_PORT"]
	t.Run("nobody gets in without a certificate of the stack's authority", func(t *testing.T) {
		_, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12}) //nolint:gosec // only whether it is let in
		require.ErrorContains(t, err, "remote error: tls")
		plain, err := s.try(time.Minute, "docker-compose", s.arguments([]string{"run", "--rm", "-T", "-e", "BERTH_TEMPORAL_TLS_CA=", "-e", "BERTH_TEMPORAL_TLS_CERT=",
			"-e", "BERTH_TEMPORAL_TLS_KEY=", "-e", "BERTH_TEMPORAL_TLS_SERVER_NAME=", "starter", "list"})...)
		require.Error(t, err, plain)
		_, err = s.try(time.Minute, "docker", "exec", s.containers(t, "postgresql")[0], "psql", "sslmode=disable host=postgresql user=temporal dbname=temporal", "-c", "select 1")
		require.ErrorContains(t, err, "no encryption")
		listed := s.compose(t, time.Minute, "run", "--rm", "-T", "starter", "list")
		require.True(t, strings.Contains(listed, "secure-vm"), "the command line with its certificate")
		require.True(t, strings.Contains(fetch(t, "http://127.0.0.1:"+s.ports["UI_PORT"]+"/api/v1/namespaces/default/workflows"), "computer/vm-01"), "the Web UI")
	})
	t.Run("certificates of a new authority are used without a restart of the workers", func(t *testing.T) {
		worker := s.containers(t, "worker")[0]
		started := s.run(t, time.Minute, "docker", "inspect", "-f", "{{.State.StartedAt}}", worker)
		s.run(t, time.Minute, "../deploy/certificates", "--new-authority")
		s.temporal.Close()
		s.temporal = nil
		// Temporal's connections end; from here on it knows the new authority alone.
		s.compose(t, upLimit, "restart", "-t", "20", "postgresql", "temporal")
		s.eventually(t, upLimit, func() error {
			ca, err := os.ReadFile(filepath.Join(certificates, "ca.pem"))
			if err != nil {
				return err
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(ca)
			pair, err := tls.LoadX509KeyPair(filepath.Join(certificates, "starter", "cert.pem"), filepath.Join(certificates, "starter", "key.pem"))
			if err != nil {
				return err
			}
			conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "temporal", NextProtos: []string{"h2"}})
			if err != nil {
				return err
			}
			return conn.Close()
		})
		s.ready(t)
		require.Equal(t, started, s.run(t, time.Minute, "docker", "inspect", "-f", "{{.State.StartedAt}}", worker), "the worker runs on")
		s.compose(t, time.Minute, "run", "--rm", "-T", "starter", "reserve", "debian12", "vm-02", "--name", "after")
		s.settled(t, loadsLimit)
		all, err := s.list(t.Context())
		require.NoError(t, err)
		require.Equal(t, string(reservation.PhaseReady), all["vm-02"].phase)
	})
}
