// Package output has what the channels share of a command: what is kept of its output, its name in messages, and its span in
// a trace.
package output

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"berth/internal/span"
)

// Bounded keeps the first and the last half of Limit of what is written to it.
type Bounded struct {
	mu      sync.Mutex
	Limit   int
	head    []byte
	tail    []byte
	dropped int
}

// Write never fails.
func (b *Bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(p)
	half := b.Limit / 2
	if room := half - len(b.head); room > 0 {
		take := min(room, len(p))
		b.head = append(b.head, p[:take]...)
		p = p[take:]
	}
	b.tail = append(b.tail, p...)
	if over := len(b.tail) - half; over > half {
		b.dropped += over
		b.tail = append(b.tail[:0], b.tail[over:]...)
	}
	return n, nil
}

// Bytes returns what was kept, at most Limit and the line that marks the gap.
func (b *Bounded) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	tail, dropped := b.tail, b.dropped
	if over := len(tail) - b.Limit/2; over > 0 {
		tail, dropped = tail[over:], dropped+over
	}
	if dropped == 0 {
		return append(bytes.Clone(b.head), tail...)
	}
	mark := fmt.Sprintf("\n[... %d bytes left out ...]\n", dropped)
	return append(append(bytes.Clone(b.head), mark...), tail...)
}

// Traced begins the span of a command in the trace of the load that it is run for. The returned function ends it.
func Traced(ctx context.Context, channel, brief string) (context.Context, func(exit int, err error)) {
	ctx, ended := span.Call(ctx, channel, "exec", attribute.String("berth.command", brief))
	return ctx, func(exit int, err error) {
		trace.SpanFromContext(ctx).SetAttributes(attribute.Int("process.exit.code", exit))
		ended(err)
	}
}

// Brief returns a command's first words, for error messages.
func Brief(line string) string {
	const longest = 60
	first, _, more := strings.Cut(strings.TrimSpace(line), "\n")
	if len(first) > longest {
		first, more = first[:longest], true
	}
	if more {
		first += " ..."
	}
	return strconv.Quote(first)
}
