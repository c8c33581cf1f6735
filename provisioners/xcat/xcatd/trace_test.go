package xcatd

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// answers is a management node that gives each command the same answer.
type answers struct{ answer Answer }

func (a answers) Run(context.Context, Command) (Answer, error) { return a.answer, nil }

func TestACommandIsInTheTraceOfItsLoad(t *testing.T) {
	kept := tracetest.NewInMemoryExporter()
	ctx, load := trace.NewTracerProvider(trace.WithSyncer(kept)).Tracer("test").Start(t.Context(), "RunActivity:Load")
	for _, line := range []Line{{Node: "n01", Text: "on"}, {Node: "n01", Kind: Failure, Text: "timeout"}} {
		client := NewClient(answers{Answer{Lines: []Line{line}, Done: true}}, 1)
		_, err := client.Do(ctx, Command{Name: "rpower", Nodes: []string{"n01"}, Args: []string{"stat"}})
		require.Equal(t, line.Kind == Failure, err != nil)
	}
	spans := kept.GetSpans()
	require.Len(t, spans, 2)
	for _, s := range spans {
		require.Equal(t, "xcatd/rpower", s.Name)
		require.Equal(t, load.SpanContext().SpanID(), s.Parent.SpanID())
		require.Contains(t, s.Attributes, attribute.String("xcat.noderange", "n01"))
	}
	require.Equal(t, codes.Unset, spans[0].Status.Code)
	require.Equal(t, codes.Error, spans[1].Status.Code, "an answer that is judged a failure is one in the trace")
	require.Contains(t, spans[1].Status.Description, "timeout")
}
