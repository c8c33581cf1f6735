package metrics

import (
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/client"
)

// handler is the SDK's way into the bridge. Its rules for names:
//
//   - a counter's name gets _total, a timer's _seconds, a gauge's stays; a name that ends so already stays;
//   - temporal_ (the SDK's own) and berth_ stay in front; any other name gets berth_ before it;
//   - what Prometheus does not allow in a name or label becomes _.
//
// Berth's own metrics lose the tags that the SDK puts on everything (namespace, task queue, workflow type, ...): they
// have the labels that whoever counts gave them, and no more.
type handler struct {
	bridge *bridge
	tags   map[string]string
}

var _ client.MetricsHandler = (*handler)(nil)

// WithTags is part of client.MetricsHandler.
func (h *handler) WithTags(tags map[string]string) client.MetricsHandler {
	all := make(map[string]string, len(h.tags)+len(tags))
	maps.Copy(all, h.tags)
	maps.Copy(all, tags)
	return &handler{bridge: h.bridge, tags: all}
}

// Counter is part of client.MetricsHandler.
func (h *handler) Counter(name string) client.MetricsCounter { return h.series(kindCounter, name) }

// Gauge is part of client.MetricsHandler.
func (h *handler) Gauge(name string) client.MetricsGauge { return h.series(kindGauge, name) }

// Timer is part of client.MetricsHandler.
func (h *handler) Timer(name string) client.MetricsTimer { return h.series(kindTimer, name) }

func (h *handler) series(kind kind, name string) *series {
	name = fullName(kind, name)
	labels := make(map[string]string, len(h.tags))
	for tag, value := range h.tags {
		// Prometheus takes an empty label for one that is not there.
		if value == "" || strings.HasPrefix(name, prefixBerth) && isSDKTag(tag) {
			continue
		}
		labels[legal(tag)] = strings.ToValidUTF8(value, "?")
	}
	return h.bridge.series(kind, name, labels)
}

type kind int

const (
	kindCounter kind = iota
	kindGauge
	kindTimer
)

const (
	prefixBerth    = "berth_"
	prefixTemporal = "temporal_"
)

func fullName(kind kind, name string) string {
	name = legal(name)
	if !strings.HasPrefix(name, prefixBerth) && !strings.HasPrefix(name, prefixTemporal) {
		name = prefixBerth + name
	}
	suffix := ""
	switch kind {
	case kindCounter:
		suffix = "_total"
	case kindTimer:
		suffix = "_seconds"
	}
	return strings.TrimSuffix(name, suffix) + suffix
}

// isSDKTag says whether the SDK puts a tag on metrics of workflow and activity code by itself.
func isSDKTag(tag string) bool {
	switch tag {
	case "namespace", "client_name", "worker_type", "workflow_type", "activity_type", "task_queue":
		return true
	default:
		return false
	}
}

// legal returns text with everything that a Prometheus name must not have replaced.
func legal(text string) string {
	ok := func(i int, r rune) bool {
		return r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || i > 0 && r >= '0' && r <= '9'
	}
	var b strings.Builder
	for i, r := range text {
		if !ok(i, r) {
			r = '_'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// bridge is a collector of metrics whose names and labels are known only when they come. Metrics of one name may come with
// different labels: each is shown with the labels of all of them, empty where it has none, so that they fit together.
type bridge struct {
	mu       sync.RWMutex
	families map[string]*family
}

type family struct {
	kind   kind
	series map[string]*series
	labels map[string]bool // of all series
}

func newBridge() *bridge { return &bridge{families: map[string]*family{}} }

// series finds or makes the series of a name and labels. A name that is in use for another kind of metric gives a series
// that nobody sees: two kinds under one name would spoil the whole page.
func (b *bridge) series(kind kind, name string, labels map[string]string) *series {
	key := keyOf(labels)
	b.mu.RLock()
	f := b.families[name]
	if f != nil && f.kind == kind && f.series[key] != nil {
		defer b.mu.RUnlock()
		return f.series[key]
	}
	b.mu.RUnlock()

	b.mu.Lock()
	defer b.mu.Unlock()
	f = b.families[name]
	if f == nil {
		f = &family{kind: kind, series: map[string]*series{}, labels: map[string]bool{}}
		b.families[name] = f
	}
	if f.kind != kind {
		return newSeries(kind, name, labels)
	}
	s := f.series[key]
	if s == nil {
		s = newSeries(kind, name, labels)
		f.series[key] = s
		for label := range labels {
			f.labels[label] = true
		}
	}
	return s
}

// keyOf returns what tells one set of labels from another.
func keyOf(labels map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		b.WriteString(name)
		b.WriteByte(0)
		b.WriteString(labels[name])
		b.WriteByte(0)
	}
	return b.String()
}

// Describe describes nothing: what comes is not known beforehand.
func (b *bridge) Describe(chan<- *prometheus.Desc) {}

// Collect sends every series. One of Berth's own that counts is sent as zero the first time: loads that fail or reload are
// rare, and Prometheus' increase() takes a series that begins at 1 for one in which nothing has happened yet.
func (b *bridge) Collect(metrics chan<- prometheus.Metric) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for name, f := range b.families {
		labels := slices.Sorted(maps.Keys(f.labels))
		desc := prometheus.NewDesc(name, help(name), labels, nil)
		fromZero := strings.HasPrefix(name, prefixBerth) && f.kind != kindGauge
		for _, s := range f.series {
			values := make([]string, len(labels))
			for i, label := range labels {
				values[i] = s.labels[label]
			}
			if fromZero && s.seen.CompareAndSwap(false, true) {
				metrics <- newSeries(s.kind, name, nil).metric(desc, values)
				continue
			}
			metrics <- s.metric(desc, values)
		}
	}
}

// series is one line of a metric, or one histogram.
type series struct {
	kind   kind
	labels map[string]string
	bits   atomic.Uint64 // a counter's whole number, or a gauge's float
	seen   atomic.Bool   // it was collected once

	mu      sync.Mutex // of a timer's histogram
	bounds  []float64  // upper, in seconds
	counts  []uint64   // each bucket's own
	samples uint64
	sum     float64 // in seconds
}

func newSeries(kind kind, name string, labels map[string]string) *series {
	s := &series{kind: kind, labels: labels}
	if kind == kindTimer {
		s.bounds = buckets(name)
		s.counts = make([]uint64, len(s.bounds))
	}
	return s
}

// Inc counts. A counter never goes down: what is less than one is not counted.
func (s *series) Inc(n int64) {
	if n > 0 {
		s.bits.Add(uint64(n))
	}
}

// Update sets a gauge.
func (s *series) Update(value float64) { s.bits.Store(math.Float64bits(value)) }

// Record takes a duration into a histogram.
func (s *series) Record(d time.Duration) {
	seconds := max(0, d.Seconds()) // a clock that was set back must not make the sum go down
	bucket, _ := slices.BinarySearch(s.bounds, seconds)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples++
	s.sum += seconds
	if bucket < len(s.counts) {
		s.counts[bucket]++
	}
}

func (s *series) metric(desc *prometheus.Desc, values []string) prometheus.Metric {
	switch s.kind {
	case kindCounter:
		return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(s.bits.Load()), values...)
	case kindGauge:
		return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, math.Float64frombits(s.bits.Load()), values...)
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		cumulative := make(map[float64]uint64, len(s.bounds))
		below := uint64(0)
		for i, bound := range s.bounds {
			below += s.counts[i]
			cumulative[bound] = below
		}
		return prometheus.MustNewConstHistogram(desc, s.samples, s.sum, cumulative, values...)
	}
}
