package integration

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // clients may compress what they send
	"google.golang.org/grpc/metadata"
)

// temporalProxy stands before the Temporal server. It keeps every request that passes, and can hold one back.
type temporalProxy struct {
	gates
	address string

	mu   sync.Mutex
	sent []sent
}

// sent is one request to Temporal.
type sent struct {
	method string // such as RecordActivityTaskHeartbeat
	text   []byte // the request's protobuf encoding
}

func newTemporalProxy(t *testing.T, target string) *temporalProxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &temporalProxy{address: listener.Addr().String()}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20)))
	require.NoError(t, err)
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.MaxRecvMsgSize(64<<20), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		return p.forward(conn, stream)
	}))
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		p.openAll()
		server.Stop()
		_ = conn.Close()
	})
	return p
}

// forward serves one call; all of those that Berth makes have one request and one answer.
func (p *temporalProxy) forward(to *grpc.ClientConn, stream grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(stream)
	method := full[strings.LastIndexByte(full, '/')+1:]
	var in, out frame
	if err := stream.RecvMsg(&in); err != nil {
		return err
	}
	p.mu.Lock()
	p.sent = append(p.sent, sent{method: method, text: slices.Clone(in)})
	p.mu.Unlock()
	if err := p.pass(stream.Context(), method, request); err != nil {
		return err
	}
	var header, trailer metadata.MD
	if err := to.Invoke(outgoing(stream.Context()), full, &in, &out, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
		return err
	}
	stream.SetTrailer(trailer)
	return stream.SendMsg(&out)
}

// outgoing hands a caller's metadata on, without what belongs to its own connection.
func outgoing(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	md = md.Copy()
	for key := range md {
		if strings.HasPrefix(key, ":") || strings.HasPrefix(key, "grpc-") || slices.Contains([]string{"content-type", "user-agent", "te"}, key) {
			delete(md, key)
		}
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// requests returns what has passed of a method; "" is all.
func (p *temporalProxy) requests(method string) []sent {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []sent
	for _, one := range p.sent {
		if method == "" || one.method == method {
			found = append(found, one)
		}
	}
	return found
}

// frame is a message as it is on the wire.
type frame []byte

// raw is a codec that leaves messages as they are.
type raw struct{}

var _ encoding.Codec = raw{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*frame), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*frame) = slices.Clone(data)
	return nil
}

func (raw) Name() string { return "proto" }
