package tracing

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"berth/internal/span"
	"berth/reservation"
)

func TestWhetherAndWhereTracesGo(t *testing.T) {
	for name, c := range map[string]struct {
		settings Settings
		endpoint string // "" is no traces
	}{
		"nothing is set":      {Settings{Protocol: ProtocolHTTP, Exporter: "otlp"}, ""},
		"HTTP":                {Settings{Endpoint: "http://c:4318", Protocol: ProtocolHTTP, Exporter: "otlp"}, "http://c:4318/v1/traces"},
		"HTTP below a path":   {Settings{Endpoint: "https://c/otlp/", Protocol: ProtocolHTTP, Exporter: "otlp"}, "https://c/otlp/v1/traces"},
		"gRPC":                {Settings{Endpoint: "http://c:4317", Protocol: ProtocolGRPC, Exporter: "otlp"}, "http://c:4317"},
		"for traces alone":    {Settings{Endpoint: "http://c:4318", TracesEndpoint: "http://t/x", Protocol: ProtocolHTTP, Exporter: "otlp"}, "http://t/x"},
		"switched off":        {Settings{Endpoint: "http://c:4318", Protocol: ProtocolHTTP, Exporter: "none"}, ""},
		"switched off wholly": {Settings{Endpoint: "http://c:4318", Protocol: ProtocolHTTP, Exporter: "otlp", Disabled: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.settings.Validate())
			require.Equal(t, c.endpoint != "", c.settings.On())
			if c.endpoint != "" {
				require.Equal(t, c.endpoint, c.settings.endpoint())
			}
		})
	}
	for field, bad := range map[string]Settings{
		"OTEL_EXPORTER_OTLP_ENDPOINT": {Endpoint: "collector:4317", Protocol: ProtocolGRPC, Exporter: "otlp"},
		"OTEL_EXPORTER_OTLP_PROTOCOL": {Protocol: "http/json", Exporter: "otlp"},
		"OTEL_TRACES_EXPORTER":        {Protocol: ProtocolHTTP, Exporter: "zipkin"},
	} {
		var fault *reservation.FieldError
		require.ErrorAs(t, bad.Validate(), &fault)
		require.Equal(t, field, fault.Field)
	}
}

// Two processes run one workflow, one after the other: the span is the same.
func TestAWorkflowsSpanIsTheSameInEveryProcess(t *testing.T) {
	begin := func(name string, parent trace.SpanContext) trace.SpanContext {
		provider := sdktrace.NewTracerProvider(sdktrace.WithIDGenerator(ids{}))
		return start(trace.ContextWithSpanContext(context.Background(), parent), provider.Tracer("test"), name).SpanContext()
	}
	none := trace.SpanContext{}
	const life = runWorkflow + "Reservation"
	first, second := begin(life+keyMark+"run-1", none), begin(life+keyMark+"run-1", none)
	require.True(t, first.IsValid())
	require.Equal(t, first.TraceID(), second.TraceID())
	require.Equal(t, first.SpanID(), second.SpanID())
	other := begin(life+keyMark+"run-2", none)
	require.NotEqual(t, first.TraceID(), other.TraceID())

	// Below the command that started it, in that one's trace.
	below := begin(life+keyMark+"run-1", other)
	require.Equal(t, other.TraceID(), below.TraceID())
	require.Equal(t, first.SpanID(), below.SpanID())

	require.True(t, begin(startWorkflow+"Reservation", none).IsValid())
	require.True(t, begin("StartActivity:Load", other).IsValid())
	require.False(t, begin("StartActivity:GateOver", none).IsValid(), "what is no reservation's begins no trace")
	require.False(t, begin(runWorkflow+"Gate"+keyMark+"run-3", none).IsValid())
}

func TestAWorkflowThatOnlyLeftItsWorkerIsNotTold(t *testing.T) {
	kept := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(whole{sdktrace.NewSimpleSpanProcessor(kept)}))
	for _, over := range []bool{false, true} {
		_, s := provider.Tracer("test").Start(context.Background(), runWorkflow+"Reservation")
		if over {
			s.SetAttributes(keyOutcome.String("released"))
		}
		s.End()
	}
	_, s := provider.Tracer("test").Start(context.Background(), "RunActivity:Load")
	s.End()
	require.Len(t, kept.GetSpans(), 2)
}

// grpcCollector keeps what it is sent.
type grpcCollector struct {
	collector.UnimplementedTraceServiceServer
	got chan *collector.ExportTraceServiceRequest
}

func (c *grpcCollector) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.got <- r
	return &collector.ExportTraceServiceResponse{}, nil
}

// The integration tests send by HTTP.
func TestTracesGoByGRPC(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &grpcCollector{got: make(chan *collector.ExportTraceServiceRequest, 1)}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, c)
	defer server.Stop()
	go func() { _ = server.Serve(listener) }()

	tracing, err := New(t.Context(), Options{
		Settings: Settings{Endpoint: "http://" + listener.Addr().String(), Protocol: ProtocolGRPC, Exporter: "otlp"}, Service: "berth-test", Identity: "me",
	})
	require.NoError(t, err)
	require.NotEmpty(t, tracing.Client())
	ctx, s := tracing.provider.Tracer("test").Start(t.Context(), "RunActivity:Load")
	_, ended := span.Call(ctx, "vsphere", "CloneVM_Task")
	ended(nil)
	s.End()
	require.NoError(t, tracing.Close(10*time.Second))
	require.NoError(t, tracing.Close(10*time.Second), "it may be called again")
	var names []string
	for _, scope := range (<-c.got).GetResourceSpans()[0].GetScopeSpans() {
		for _, one := range scope.GetSpans() {
			names = append(names, one.GetName())
		}
	}
	require.ElementsMatch(t, []string{"RunActivity:Load", "vsphere/CloneVM_Task"}, names)
}

func TestWithoutACollectorNothingIsTraced(t *testing.T) {
	tracing, err := New(t.Context(), Options{Settings: Settings{Protocol: ProtocolHTTP, Exporter: "otlp"}})
	require.NoError(t, err)
	require.Empty(t, tracing.Client())
	require.Empty(t, tracing.Worker())
	ctx, ended := span.Call(t.Context(), "vsphere", "CloneVM_Task")
	ended(nil)
	require.Equal(t, t.Context(), ctx)
	require.NoError(t, tracing.Close(time.Second))
}
