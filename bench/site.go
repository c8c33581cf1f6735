package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"berth/internal/catalog"
	"berth/internal/devserver"
	"berth/internal/hold"
	"berth/internal/process"
	"berth/internal/simsite"
	"berth/reservation"
	"berth/workflows"
)

// lab is a simulated site with the production worker beside it, each a process of its own, and a Temporal server.
type lab struct {
	server  *devserver.Server
	site    *process.Process
	worker  *process.Process
	client  client.Client
	catalog *catalog.Catalog
	control string
	dir     string
}

// startLab starts a site with so many computers. script is added to the site's; see internal/simsite.
func startLab(ctx context.Context, computers int, script string) (*lab, error) {
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir}
	if err := l.start(ctx, computers, script); err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

func (l *lab) start(ctx context.Context, computers int, script string) error {
	var err error
	if l.server, err = startServer(ctx); err != nil {
		return err
	}
	file := filepath.Join(l.dir, "script.yaml")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		return err
	}
	out, in := io.Pipe()
	l.site, err = process.Start(process.Options{
		Path: "bin/simsite", Log: filepath.Join(l.dir, "simsite.log"), Stdout: in,
		Args: []string{"serve", "--dir", filepath.Join(l.dir, "site"), "--script", file, "--computers", fmt.Sprint(computers),
			"--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--guests", "127.0.0.2:20001", "--log-level", "error"},
	})
	if err != nil {
		return fmt.Errorf("%w; run make build first", err)
	}
	context.AfterFunc(ctx, func() { in.CloseWithError(ctx.Err()) })
	go func() {
		<-l.site.Done()
		in.CloseWithError(fmt.Errorf("the site ended: %s", process.Tail(filepath.Join(l.dir, "simsite.log"), 5)))
	}()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	var ready struct{ Control, Catalog string }
	if err := json.Unmarshal(line, &ready); err != nil {
		return fmt.Errorf("the site says %q: %w", line, err)
	}
	l.control = ready.Control
	if l.catalog, err = catalog.Load(ready.Catalog, catalog.Options{}); err != nil {
		return err
	}
	l.worker, err = process.Start(process.Options{
		Path: "bin/worker", Log: filepath.Join(l.dir, "worker.log"),
		Env: append(os.Environ(), "BERTH_CATALOG="+ready.Catalog, "BERTH_TEMPORAL_ADDRESS="+l.server.Address, "BERTH_PROVISIONERS=vmware",
			"BERTH_SLOTS=2000", "BERTH_LISTEN=127.0.0.1:0", "BERTH_LOG_LEVEL=warn"),
	})
	if err != nil {
		return fmt.Errorf("%w; run make build first", err)
	}
	l.client, err = client.Dial(client.Options{HostPort: l.server.Address, Namespace: l.server.Namespace, Logger: quiet{}})
	return err
}

func (l *lab) stop() {
	if l.client != nil {
		l.client.Close()
	}
	for _, p := range []*process.Process{l.worker, l.site} {
		if p != nil {
			p.Kill() // thousands of guests need not be drained
		}
	}
	if l.server != nil {
		l.server.Stop()
	}
	_ = os.RemoveAll(l.dir)
}

// reserve starts the load of a computer.
func (l *lab) reserve(ctx context.Context, computer string) (client.WorkflowRun, error) {
	r, err := l.catalog.Reservation("bench-"+computer, "bench", computer, l.catalog.Images[0].Name, time.Now().Add(2*time.Hour))
	if err != nil {
		return nil, err
	}
	r.Image.Limits.Response = reservation.Duration(20 * time.Minute)
	return hold.Start(ctx, l.client, r)
}

func (l *lab) status(ctx context.Context, run client.WorkflowRun) (reservation.Status, error) {
	var status reservation.Status
	value, err := l.client.QueryWorkflow(ctx, run.GetID(), run.GetRunID(), workflows.StatusQuery)
	if err == nil {
		err = value.Get(&status)
	}
	return status, err
}

// failedError says that a load that was to become ready did not.
type failedError struct{ status reservation.Status }

func (e *failedError) Error() string {
	return fmt.Sprintf("computer %s did not become ready: %s, %s: %s", e.status.Computer, e.status.Attempt, e.status.Outcome, e.status.Reason)
}

// until polls until reached says yes.
func until(ctx context.Context, every time.Duration, reached func() (bool, error)) error {
	for {
		yes, err := reached()
		if yes || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// count counts the live reservations in a phase, as the search attributes tell.
func (l *lab) count(ctx context.Context, phase reservation.Phase) (int, error) {
	answer, err := l.client.CountWorkflow(ctx, &workflowservice.CountWorkflowExecutionsRequest{
		Query: fmt.Sprintf("%s = '%s' AND ExecutionStatus = 'Running'", workflows.SearchAttributes().Phase.GetName(), phase),
	})
	return int(answer.GetCount()), err
}

// allReady waits until so many reservations are ready; one that ends instead is an error with its reason.
func (l *lab) allReady(ctx context.Context, n int) error {
	return until(ctx, time.Second, func() (bool, error) {
		ready, err := l.count(ctx, reservation.PhaseReady)
		if err != nil || ready == n {
			return err == nil, err
		}
		// A gate's runs end as well when they go on in the next one, so only reservations are looked at.
		ended, err := l.client.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query: fmt.Sprintf("WorkflowType = '%s' AND ExecutionStatus != 'Running'", workflows.ReservationName), PageSize: 1,
		})
		if err != nil || len(ended.GetExecutions()) == 0 {
			return false, err
		}
		execution := ended.GetExecutions()[0].GetExecution()
		status, err := l.status(ctx, l.client.GetWorkflow(ctx, execution.GetWorkflowId(), execution.GetRunId()))
		if err != nil {
			return false, err
		}
		return false, &failedError{status}
	})
}

func (l *lab) siteStatus(ctx context.Context) (simsite.Status, error) {
	var status simsite.Status
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.control+"/status", nil)
	if err != nil {
		return status, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return status, err
	}
	defer answer.Body.Close()
	return status, json.NewDecoder(answer.Body).Decode(&status)
}

func (l *lab) resetCalls(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, l.control+"/calls/reset", nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}
