// Package metrics counts what a worker does, for Prometheus: Temporal's own metrics of its SDK, Berth's, and those of the
// Go runtime and the process.
package metrics

import (
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.temporal.io/sdk/client"
)

// The names of Berth's metrics as Prometheus shows them. The first three are counted by the workflow, through the SDK's
// handler, because only it knows outcomes and must not count them again in a replay.
const (
	NameLoads        = "berth_loads_total"         // {provisioner, os, outcome}
	NameReloads      = "berth_reloads_total"       // {provisioner, phase, image, stage, reason}
	NamePhase        = "berth_phase_seconds"       // {phase, provisioner, os, image, verdict}
	NameWaiting      = "berth_guests_waiting"      // guests whose answer this worker waits for
	NameVSphereCalls = "berth_vsphere_calls_total" // {vcenter, method}
	NameReady        = "berth_worker_ready"        // 1 if /readyz says yes
	NameHeld         = "berth_computers_held"      // {phase}
)

// Metrics are one worker's metrics. They are safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	bridge   *bridge
	waiting  prometheus.Gauge
	ready    prometheus.Gauge
	held     *prometheus.GaugeVec
	vsphere  *prometheus.CounterVec
}

// New returns metrics with a registry of their own.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		bridge:   newBridge(),
		waiting:  prometheus.NewGauge(prometheus.GaugeOpts{Name: NameWaiting, Help: "Guests whose answer this worker waits for."}),
		ready:    prometheus.NewGauge(prometheus.GaugeOpts{Name: NameReady, Help: "1 if this worker serves its queues and Temporal answers it."}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: NameHeld,
			Help: "Computers that a reservation holds now, by the phase that the reservation is in; every worker that serves workflows shows all."}, []string{"phase"}),
		vsphere: prometheus.NewCounterVec(prometheus.CounterOpts{Name: NameVSphereCalls, Help: "vSphere API calls sent."}, []string{"vcenter", "method"}),
	}
	m.registry.MustRegister(m.bridge, m.waiting, m.ready, m.held, m.vsphere, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler returns what Temporal's client is given as its metrics handler.
func (m *Metrics) Handler() client.MetricsHandler { return &handler{bridge: m.bridge} }

// Gatherer returns the registry, for reading the metrics in a program.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

// ServeHTTP serves the metrics in Prometheus' formats.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

// GuestsWaiting changes how many guests are waited for.
func (m *Metrics) GuestsWaiting(delta int) { m.waiting.Add(float64(delta)) }

// VSphereCall counts one call of a vCenter's API.
func (m *Metrics) VSphereCall(vcenter, method string) {
	m.vsphere.WithLabelValues(vcenter, method).Inc()
}

// Held says how many computers are held by reservations in a phase.
func (m *Metrics) Held(phase string, computers int64) {
	m.held.WithLabelValues(phase).Set(float64(computers))
}

// Ready says whether the worker is ready.
func (m *Metrics) Ready(ready bool) {
	value := 0.0
	if ready {
		value = 1
	}
	m.ready.Set(value)
}

// buckets returns the upper bounds of a timer's histogram, in seconds. Phases take from a second to hours (VCL's longest
// limit: 3,600 s, twice that at the third attempt); the SDK's latencies begin at a millisecond.
func buckets(name string) []float64 {
	if name == NamePhase {
		return []float64{0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 900, 1200, 1800, 3600, 7200}
	}
	return []float64{0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200}
}

// help returns a metric's help text.
func help(name string) string {
	switch name {
	case NameLoads:
		return "Loads that are over, by outcome: ready, failed, cancelled, released or expired before they were ready, no-worker."
	case NameReloads:
		return "Attempts that ended with the verdict reload, by the phase and the stage that they had come to, and by reason: module, limit, lost-worker, faults."
	case NamePhase:
		return "How long phases took, by verdict: done, reload, fail, or none for one that was cancelled."
	}
	if strings.HasPrefix(name, prefixBerth) {
		return "Of Berth's workflows or activities."
	}
	return "Of Temporal's SDK."
}
