package tracing

import (
	"context"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.temporal.io/sdk/interceptor"
)

// Options are what tracing is made of.
type Options struct {
	Settings Settings
	Service  string // the program's name in the traces, unless OTEL_SERVICE_NAME says another
	Identity string // of this process in Temporal
	// Failed is told when traces cannot be sent. It may be nil.
	Failed func(error)
}

// Tracing sends traces until it is closed. Its zero value sends none.
type Tracing struct {
	provider    *trace.TracerProvider
	interceptor interceptor.Interceptor
}

// New returns a Tracing that sends nothing if the settings name no collector. It reaches nobody: a collector that is not
// there is told to Failed later, and costs a program nothing but its traces.
func New(ctx context.Context, o Options) (*Tracing, error) {
	if !o.Settings.On() {
		return &Tracing{}, nil
	}
	var exporter *otlptrace.Exporter
	var err error
	if o.Settings.Protocol == ProtocolGRPC {
		exporter, err = otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(o.Settings.endpoint()))
	} else {
		exporter, err = otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(o.Settings.endpoint()))
	}
	if err != nil {
		return nil, err
	}
	if o.Failed != nil {
		otel.SetErrorHandler(otel.ErrorHandlerFunc(o.Failed))
	}
	return newTracing(ctx, o, trace.NewBatchSpanProcessor(exporter))
}

func newTracing(ctx context.Context, o Options, processor trace.SpanProcessor) (*Tracing, error) {
	// What the environment says of the service (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) comes last and wins.
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(attribute.String("service.name", o.Service), attribute.String("service.instance.id", o.Identity)), resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	t := &Tracing{provider: trace.NewTracerProvider(trace.WithResource(about), trace.WithIDGenerator(ids{}), trace.WithSpanProcessor(whole{processor}))}
	t.interceptor, err = newInterceptor(t.provider)
	return t, err
}

// Client returns what a client of Temporal is made with. It begins the traces of the reservations that the client starts,
// and goes on with them in the client's workers.
func (t *Tracing) Client() []interceptor.ClientInterceptor {
	if t.interceptor == nil {
		return nil
	}
	return []interceptor.ClientInterceptor{t.interceptor}
}

// Worker returns what a worker is made with, beside what its client brings along. It says in the spans what they are about.
func (t *Tracing) Worker() []interceptor.WorkerInterceptor {
	if t.interceptor == nil {
		return nil
	}
	return []interceptor.WorkerInterceptor{&about{}}
}

// Close sends what there is, for as long as the limit, and ends. It may be called again.
func (t *Tracing) Close(limit time.Duration) error {
	if t.provider == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return t.provider.Shutdown(ctx)
}
