package metrics

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// sdkTags are what the SDK's client puts on everything.
func sdkTags() map[string]string {
	return map[string]string{"namespace": "default", "client_name": "temporal_go", "worker_type": "none", "workflow_type": "none", "activity_type": "none", "task_queue": "none"}
}

func requireMetrics(t *testing.T, m *Metrics, want string, names ...string) {
	t.Helper()
	// The first time, what Berth counts is zero.
	_, err := m.Gatherer().Gather()
	require.NoError(t, err)
	require.NoError(t, testutil.GatherAndCompare(m.Gatherer(), strings.NewReader(want), names...))
}

func TestTheWorkflowsMetricsHaveTheirOwnLabelsAlone(t *testing.T) {
	m := New()
	handler := m.Handler().WithTags(sdkTags()).WithTags(map[string]string{"workflow_type": "Reservation"})
	for _, outcome := range []string{"ready", "failed", "ready"} {
		handler.WithTags(map[string]string{"provisioner": "vmware", "os": "linux", "outcome": outcome}).Counter("berth_loads").Inc(1)
	}
	handler.WithTags(map[string]string{"provisioner": "vmware", "phase": "load"}).Counter("berth_reloads").Inc(1)
	phase := handler.WithTags(map[string]string{"phase": "load", "provisioner": "vmware", "os": "linux", "verdict": "done"}).Timer("berth_phase")
	phase.Record(1500 * time.Millisecond)
	phase.Record(2 * time.Second)
	phase.Record(3 * time.Hour)

	requireMetrics(t, m, `
# HELP berth_loads_total Loads that are over, by outcome: ready, failed, cancelled, released or expired before they were ready, no-worker.
# TYPE berth_loads_total counter
berth_loads_total{os="linux",outcome="failed",provisioner="vmware"} 1
berth_loads_total{os="linux",outcome="ready",provisioner="vmware"} 2
# HELP berth_reloads_total Attempts that ended with the verdict reload, by the phase and the stage that they had come to, and by reason: module, limit, lost-worker, faults.
# TYPE berth_reloads_total counter
berth_reloads_total{phase="load",provisioner="vmware"} 1
# HELP berth_phase_seconds How long phases took, by verdict: done, reload, fail, or none for one that was cancelled.
# TYPE berth_phase_seconds histogram
`+histogram("berth_phase_seconds", `os="linux",phase="load",provisioner="vmware",verdict="done"`,
		"0.1 0", "0.5 0", "1 0", "2 2", "5 2", "10 2", "20 2", "30 2", "60 2", "120 2", "180 2", "300 2", "600 2", "900 2", "1200 2", "1800 2", "3600 2", "7200 2", "+Inf 3")+
		`berth_phase_seconds_sum{os="linux",phase="load",provisioner="vmware",verdict="done"} 10803.5
berth_phase_seconds_count{os="linux",phase="load",provisioner="vmware",verdict="done"} 3
`, NameLoads, NameReloads, NamePhase)
}

func histogram(name, labels string, buckets ...string) string {
	var b strings.Builder
	for _, bucket := range buckets {
		bound, count, _ := strings.Cut(bucket, " ")
		b.WriteString(name + "_bucket{" + labels + `,le="` + bound + `"} ` + count + "\n")
	}
	return b.String()
}

func TestWhatBerthCountsBeginsAtZero(t *testing.T) {
	m := New()
	m.Handler().Counter("berth_loads").Inc(2)
	m.Handler().Counter("temporal_request").Inc(2)
	first := `
# HELP berth_loads_total Loads that are over, by outcome: ready, failed, cancelled, released or expired before they were ready, no-worker.
# TYPE berth_loads_total counter
berth_loads_total 0
# HELP temporal_request_total Of Temporal's SDK.
# TYPE temporal_request_total counter
temporal_request_total 2
`
	require.NoError(t, testutil.GatherAndCompare(m.Gatherer(), strings.NewReader(first), NameLoads, "temporal_request_total"))
	then := strings.Replace(first, "berth_loads_total 0", "berth_loads_total 2", 1)
	require.NoError(t, testutil.GatherAndCompare(m.Gatherer(), strings.NewReader(then), NameLoads, "temporal_request_total"))
}

func TestTheSDKsMetricsKeepTheirTags(t *testing.T) {
	m := New()
	m.Handler().WithTags(sdkTags()).WithTags(map[string]string{"operation": "PollWorkflowTaskQueue"}).Counter("temporal_request").Inc(2)
	m.Handler().WithTags(map[string]string{"task_queue": "berth"}).Gauge("temporal_worker_task_slots_available").Update(7.5)
	requireMetrics(t, m, `
# HELP temporal_request_total Of Temporal's SDK.
# TYPE temporal_request_total counter
temporal_request_total{activity_type="none",client_name="temporal_go",namespace="default",operation="PollWorkflowTaskQueue",task_queue="none",worker_type="none",workflow_type="none"} 2
# HELP temporal_worker_task_slots_available Of Temporal's SDK.
# TYPE temporal_worker_task_slots_available gauge
temporal_worker_task_slots_available{task_queue="berth"} 7.5
`, "temporal_request_total", "temporal_worker_task_slots_available")
}

func TestMetricsOfOneNameMayHaveDifferentLabels(t *testing.T) {
	m := New()
	m.Handler().WithTags(map[string]string{"operation": "A"}).Counter("temporal_request_failure").Inc(1)
	m.Handler().WithTags(map[string]string{"operation": "A", "status_code": "UNAVAILABLE"}).Counter("temporal_request_failure").Inc(1)
	m.Handler().WithTags(map[string]string{"operation": "A", "status_code": ""}).Counter("temporal_request_failure").Inc(1)
	m.Handler().Counter("temporal_request_failure").Inc(1)
	requireMetrics(t, m, `
# HELP temporal_request_failure_total Of Temporal's SDK.
# TYPE temporal_request_failure_total counter
temporal_request_failure_total{operation="",status_code=""} 1
temporal_request_failure_total{operation="A",status_code=""} 2
temporal_request_failure_total{operation="A",status_code="UNAVAILABLE"} 1
`, "temporal_request_failure_total")
}

func TestNamesFollowTheRules(t *testing.T) {
	for name, want := range map[instrumentName]string{
		{kindCounter, "berth_loads"}:                   "berth_loads_total",
		{kindCounter, "berth_loads_total"}:             "berth_loads_total",
		{kindCounter, "temporal_request"}:              "temporal_request_total",
		{kindCounter, "own"}:                           "berth_own_total",
		{kindTimer, "berth_phase"}:                     "berth_phase_seconds",
		{kindTimer, "berth_phase_seconds"}:             "berth_phase_seconds",
		{kindTimer, "temporal_request_latency"}:        "temporal_request_latency_seconds",
		{kindGauge, "temporal_sticky_cache_size"}:      "temporal_sticky_cache_size",
		{kindGauge, "9 lives-of.a:cat"}:                "berth___lives_of_a_cat",
		{kindCounter, "temporal_local_activity_total"}: "temporal_local_activity_total",
	} {
		require.Equal(t, want, fullName(name.kind, name.name), name.name)
	}
}

type instrumentName struct {
	kind kind
	name string
}

func TestWhatDoesNotFitSpoilsNothing(t *testing.T) {
	m := New()
	m.Handler().Gauge("berth_x_total").Update(1)
	m.Handler().Counter("berth_x").Inc(5) // the same name, another kind
	m.Handler().Counter("berth_down").Inc(-3)
	m.Handler().Timer("berth_back").Record(-time.Second)
	m.Handler().WithTags(map[string]string{"my-label": "a\xff", "1st": "b"}).Counter("berth_odd").Inc(1)
	requireMetrics(t, m, `
# HELP berth_x_total Of Berth's workflows or activities.
# TYPE berth_x_total gauge
berth_x_total 1
# HELP berth_down_total Of Berth's workflows or activities.
# TYPE berth_down_total counter
berth_down_total 0
# HELP berth_odd_total Of Berth's workflows or activities.
# TYPE berth_odd_total counter
berth_odd_total{_st="b",my_label="a?"} 1
`, "berth_x_total", "berth_down_total", "berth_odd_total")
	problems, err := testutil.GatherAndLint(m.Gatherer(), NameLoads, NameReloads, NamePhase, NameWaiting, NameVSphereCalls, NameReady, NameHeld)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestOurOwnMetrics(t *testing.T) {
	m := New()
	m.GuestsWaiting(3)
	m.GuestsWaiting(-1)
	m.VSphereCall("lab", "CloneVM_Task")
	m.VSphereCall("lab", "CloneVM_Task")
	m.Ready(true)
	m.Held("ready", 2)
	requireMetrics(t, m, `
# HELP berth_computers_held Computers that a reservation holds now, by the phase that the reservation is in; every worker that serves workflows shows all.
# TYPE berth_computers_held gauge
berth_computers_held{phase="ready"} 2
# HELP berth_guests_waiting Guests whose answer this worker waits for.
# TYPE berth_guests_waiting gauge
berth_guests_waiting 2
# HELP berth_vsphere_calls_total vSphere API calls sent.
# TYPE berth_vsphere_calls_total counter
berth_vsphere_calls_total{method="CloneVM_Task",vcenter="lab"} 2
# HELP berth_worker_ready 1 if this worker serves its queues and Temporal answers it.
# TYPE berth_worker_ready gauge
berth_worker_ready 1
`, NameHeld, NameWaiting, NameVSphereCalls, NameReady)
	m.Ready(false)
	requireMetrics(t, m, "# HELP berth_worker_ready 1 if this worker serves its queues and Temporal answers it.\n# TYPE berth_worker_ready gauge\nberth_worker_ready 0\n", NameReady)
}

func TestTheyAreServedOverHTTP(t *testing.T) {
	m := New()
	m.Handler().Counter("berth_loads").Inc(1)
	server := httptest.NewServer(m)
	defer server.Close()
	_, err := m.Gatherer().Gather()
	require.NoError(t, err)
	response, err := http.Get(server.URL)
	require.NoError(t, err)
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	for _, name := range []string{"berth_loads_total 1", "go_goroutines ", "process_resident_memory_bytes ", "berth_guests_waiting 0"} {
		require.Contains(t, string(page), name)
	}
}

func TestManyMayCountAtOnce(t *testing.T) {
	m := New()
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := range 500 {
				handler := m.Handler().WithTags(map[string]string{"worker": string(rune('a' + worker%2)), "n": string(rune('a' + i%3))})
				handler.Counter("berth_many").Inc(1)
				handler.Timer("berth_many").Record(time.Millisecond)
				if i%100 == 0 {
					_, err := m.Gatherer().Gather()
					require.NoError(t, err)
				}
			}
		})
	}
	group.Wait()
	_, err := m.Gatherer().Gather()
	require.NoError(t, err)
	families, err := m.Gatherer().Gather()
	require.NoError(t, err)
	total := 0.0
	for _, family := range families {
		if family.GetName() == "berth_many_total" {
			for _, metric := range family.GetMetric() {
				total += metric.GetCounter().GetValue()
			}
		}
	}
	require.Equal(t, 4000.0, total)
}

func BenchmarkCounterOfNewTags(b *testing.B) {
	handler := New().Handler().WithTags(sdkTags())
	tags := map[string]string{"operation": "RespondActivityTaskCompleted"}
	for b.Loop() {
		handler.WithTags(tags).Counter("temporal_request").Inc(1)
	}
}
