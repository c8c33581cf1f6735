package winrm_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"berth/osmodules/remote/winrm"
)

func TestACommandIsInTheTraceOfItsLoad(t *testing.T) {
	client := newGuest(t, echo).dial(t, winrm.Options{})
	kept := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(kept))
	ctx, load := provider.Tracer("test").Start(t.Context(), "RunActivity:PostLoad")
	_, err := client.Run(ctx, command("dir C:\\", strings.NewReader("a secret goes this way")))
	require.NoError(t, err)
	_, err = client.Run(t.Context(), command("ver", nil)) // of no load
	require.NoError(t, err)
	load.End()

	spans := kept.GetSpans()
	require.Len(t, spans, 2)
	require.Equal(t, "winrm/exec", spans[0].Name)
	require.Equal(t, load.SpanContext().SpanID(), spans[0].Parent.SpanID())
	require.ElementsMatch(t, []attribute.KeyValue{
		attribute.String("rpc.system", "winrm"), attribute.String("rpc.method", "exec"), attribute.String("berth.command", `"dir C:\\"`), attribute.Int("process.exit.code", 3),
	}, spans[0].Attributes, "the command's exit code, and nothing of its input")
}
