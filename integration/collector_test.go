package integration

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
)

// collectorOfTraces is an OpenTelemetry collector, as far as traces sent by OTLP over HTTP go.
type collectorOfTraces struct {
	url string

	mu    sync.Mutex
	spans []span
	raw   bytes.Buffer // everything that came
}

// span is what the tests need of one.
type span struct {
	trace, id, parent string
	name              string
	attributes        map[string]string // strings only
	events            []string
	service, instance string // of the program that sent it
}

func newCollector(t *testing.T) *collectorOfTraces {
	t.Helper()
	c := &collectorOfTraces{}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *collectorOfTraces) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var request collector.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &request) != nil {
		http.Error(w, "not a request of traces", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(body)
	for _, of := range request.GetResourceSpans() {
		program := stringsOf(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				one := span{
					trace: hex.EncodeToString(s.GetTraceId()), id: hex.EncodeToString(s.GetSpanId()), parent: hex.EncodeToString(s.GetParentSpanId()), name: s.GetName(),
					attributes: stringsOf(s.GetAttributes()), service: program["service.name"], instance: program["service.instance.id"],
				}
				for _, event := range s.GetEvents() {
					one.events = append(one.events, event.GetName())
				}
				c.spans = append(c.spans, one)
			}
		}
	}
}

func stringsOf(attributes []*common.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range attributes {
		all[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return all
}

// trace returns the spans of one reservation's trace, and of any other that tells of the reservation.
func (c *collectorOfTraces) of(reservation string) (spans []span, traces map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	traces = map[string]bool{}
	for _, s := range c.spans {
		if s.attributes["berth.reservation"] == reservation {
			traces[s.trace] = true
		}
	}
	for _, s := range c.spans {
		if traces[s.trace] {
			spans = append(spans, s)
		}
	}
	return spans, traces
}

func (c *collectorOfTraces) everything() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.raw.Bytes())
}
