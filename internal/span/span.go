// Package span puts what a module asks of somebody else (a control plane, a guest) into the trace of the load that it is
// asked for. The trace comes with the context: without one, nothing is recorded. It is OpenTelemetry's API alone, so that
// modules need to know neither where traces go nor who runs them.
package span

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Scope names whose spans these are, as OpenTelemetry's backends show it.
const Scope = "berth"

// Call begins the span of one call to somebody else. What is called is "SYSTEM/METHOD", such as "vsphere/CloneVM_Task";
// attributes hold no secret and nothing that is different in each load but names. The returned function ends the span with
// how the call ended; it is called once.
//
// Calls that no load waits for (a context without a span) cost a look at the context.
func Call(ctx context.Context, system, method string, attributes ...attribute.KeyValue) (context.Context, func(error)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error) {}
	}
	attributes = append(attributes, attribute.String("rpc.system", system), attribute.String("rpc.method", method))
	ctx, s := parent.TracerProvider().Tracer(Scope).Start(ctx, system+"/"+method, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
	return ctx, func(err error) {
		if err != nil {
			s.SetStatus(codes.Error, err.Error())
		}
		s.End()
	}
}
