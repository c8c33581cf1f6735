package tracing

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/contrib/opentelemetry"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/internal/span"
	"berth/reservation"
	"berth/workflows"
)

// Names of a span's attributes.
const (
	keyReservation = attribute.Key("berth.reservation")
	keyUser        = attribute.Key("berth.user")
	keyComputer    = attribute.Key("berth.computer")
	keyImage       = attribute.Key("berth.image")
	keyProvisioner = attribute.Key("berth.provisioner")
	keySite        = attribute.Key("berth.site")
	keyPhase       = attribute.Key("berth.phase")
	keyAttempt     = attribute.Key("berth.attempt")
	keyTry         = attribute.Key("berth.try")
	keyWorker      = attribute.Key("berth.worker")
	keyOutcome     = attribute.Key("berth.outcome")
	keyReason      = attribute.Key("berth.reason")
)

// The operations that the SDK's interceptor names its spans by: "OPERATION:NAME".
const (
	startWorkflow = "StartWorkflow:"
	runWorkflow   = "RunWorkflow:"
)

func newInterceptor(provider trace.TracerProvider) (interceptor.Interceptor, error) {
	t, err := opentelemetry.NewTracer(opentelemetry.TracerOptions{
		Tracer: provider.Tracer(span.Scope),
		// Queries come by the thousand, and signals and updates are traces of whoever sends them.
		DisableSignalTracing: true, DisableQueryTracing: true, DisableUpdateTracing: true, DisableBaggage: true,
		AllowInvalidParentSpans: true, // a header that cannot be read costs a trace, never a reservation
		SpanStarter:             start,
	})
	if err != nil {
		return nil, err
	}
	return interceptor.NewTracingInterceptor(steady{t}), nil
}

// start begins a span. What has no parent begins a trace only if it is a reservation: a gate is nobody's own.
func start(ctx context.Context, tracer trace.Tracer, name string, options ...trace.SpanStartOption) trace.Span {
	name, key, _ := strings.Cut(name, keyMark)
	if !trace.SpanContextFromContext(ctx).IsValid() && name != startWorkflow+workflows.ReservationName && name != runWorkflow+workflows.ReservationName {
		return trace.SpanFromContext(context.Background()) // records nothing
	}
	if key != "" {
		ctx = context.WithValue(ctx, idKey{}, key)
	}
	_, s := tracer.Start(ctx, name, options...)
	return s
}

// steady gives a workflow's span the same identity in whichever process the workflow runs. A workflow goes on by replay in
// another worker when its own is gone: with a random identity each of them would begin another trace, and the activities of
// the first would hang on a span that nobody ever saw.
type steady struct{ interceptor.Tracer }

// keyMark stands between a span's name and the key of its identity, on the way from StartSpan to start.
const keyMark = "\x00"

// StartSpan is part of interceptor.Tracer.
func (t steady) StartSpan(options *interceptor.TracerStartSpanOptions) (interceptor.TracerSpan, error) {
	if options.IdempotencyKey == "" {
		return t.Tracer.StartSpan(options)
	}
	keyed := *options
	keyed.Name += keyMark + options.IdempotencyKey
	return t.Tracer.StartSpan(&keyed)
}

type idKey struct{}

// ids makes the identities of traces and spans: out of the key in the context where there is one, and at random otherwise.
type ids struct{}

var _ sdktrace.IDGenerator = ids{}

// NewIDs is part of trace.IDGenerator.
func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	var id trace.TraceID
	if key, ok := ctx.Value(idKey{}).(string); ok {
		sum := sha256.Sum256([]byte(key))
		copy(id[:], sum[:])
	} else {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64()|1) // never zero
	}
	return id, ids{}.NewSpanID(ctx, id)
}

// NewSpanID is part of trace.IDGenerator.
func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	var id trace.SpanID
	if key, ok := ctx.Value(idKey{}).(string); ok {
		sum := sha256.Sum256([]byte(key))
		copy(id[:], sum[len(sum)-len(id):])
	} else {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64()|1)
	}
	return id
}

// whole leaves out the spans of workflows that only left their worker's cache, or were replayed for a query: the SDK's
// interceptor ends a span whenever the workflow's code leaves this process. about marks those that are over.
type whole struct{ sdktrace.SpanProcessor }

// OnEnd is part of trace.SpanProcessor.
func (w whole) OnEnd(s sdktrace.ReadOnlySpan) {
	if strings.HasPrefix(s.Name(), runWorkflow) {
		over := false
		for _, a := range s.Attributes() {
			over = over || a.Key == keyOutcome
		}
		if !over {
			return
		}
	}
	w.SpanProcessor.OnEnd(s)
}

// about says in the spans of workflows and activities what they are about.
type about struct {
	interceptor.WorkerInterceptorBase
}

func (*about) InterceptWorkflow(_ workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	i := &aboutWorkflow{}
	i.Next = next
	return i
}

func (*about) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	i := &aboutActivity{}
	i.Next = next
	return i
}

type aboutWorkflow struct {
	interceptor.WorkflowInboundInterceptorBase
}

func (i *aboutWorkflow) ExecuteWorkflow(ctx workflow.Context, in *interceptor.ExecuteWorkflowInput) (any, error) {
	s, ok := opentelemetry.SpanFromWorkflowContext(ctx)
	if !ok {
		return i.Next.ExecuteWorkflow(ctx, in)
	}
	if len(in.Args) == 1 {
		if r, ok := in.Args[0].(reservation.Reservation); ok {
			s.SetAttributes(ofReservation(r)...)
		}
	}
	result, err := i.Next.ExecuteWorkflow(ctx, in)
	if !workflow.IsReplaying(ctx) {
		outcome, reason := "", ""
		if status, ok := result.(reservation.Status); ok {
			outcome, reason = string(status.Outcome), status.Reason
		}
		s.SetAttributes(keyOutcome.String(outcome), keyReason.String(reason))
	}
	return result, err
}

func ofReservation(r reservation.Reservation) []attribute.KeyValue {
	return []attribute.KeyValue{
		keyReservation.String(r.Name), keyUser.String(r.User), keyComputer.String(r.Computer.Name), keyImage.String(r.Image.String()),
		keyProvisioner.String(r.Computer.Provisioner), keySite.String(r.Computer.Site),
	}
}

type aboutActivity struct {
	interceptor.ActivityInboundInterceptorBase
}

func (i *aboutActivity) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	s := trace.SpanFromContext(ctx)
	if len(in.Args) == 1 && s.IsRecording() {
		if request, ok := in.Args[0].(activities.PhaseRequest); ok {
			info := activity.GetInfo(ctx)
			s.SetAttributes(append(ofReservation(request.Reservation), keyPhase.String(string(activities.PhaseOf(info.ActivityType.Name))),
				keyAttempt.Int(request.Attempt.Number), keyTry.Int(int(info.Attempt)))...)
		}
	}
	result, err := i.Next.ExecuteActivity(ctx, in)
	if err != nil {
		s.SetAttributes(keyReason.String(err.Error()))
	}
	if phase, ok := result.(activities.PhaseResult); ok && phase.Worker != "" {
		s.SetAttributes(keyWorker.String(phase.Worker))
	}
	return result, err
}
