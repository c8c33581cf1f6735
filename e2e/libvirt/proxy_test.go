//go:build e2e

package libvirt

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/guestimage"
	"berth/internal/libvirthost"
)

// procedure is the number of a call in libvirt's remote protocol (remote_protocol.x).
type procedure uint32

const (
	domainStart  procedure = 9
	domainDefine procedure = 11
	volumeCreate procedure = 93
	volumeUpload procedure = 208
	domainReset  procedure = 245
)

// The header of a packet: its length, then six words (virnetprotocol.x).
const (
	headerSize  = 28
	remoteProg  = 0x20008086
	typeCall    = 0
	typeReply   = 1
	largest     = 32 << 20
	atProgram   = 4
	atProcedure = 12
	atType      = 16
)

// proxy stands between a worker and libvirtd, and can hold a call or its answer.
type proxy struct {
	path string

	mu    sync.Mutex
	gates []*gate
	calls map[domainCall]int
}

// domainCall is a procedure, and the domain that it is called for.
type domainCall struct {
	call   procedure
	domain string
}

// gate holds the nth call of a procedure from when it was made, or the answer to it.
type gate struct {
	call    procedure
	nth     int
	answer  bool // hold the answer, and let the call through
	reached chan struct{}
	opened  chan struct{}
	once    sync.Once
	seen    int
}

func (g *gate) open() { g.once.Do(func() { close(g.opened) }) }

func newProxy(t *testing.T) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "b") // a socket's path is short
	require.NoError(t, err)
	p := &proxy{path: filepath.Join(dir, "s"), calls: map[domainCall]int{}}
	listener, err := net.Listen("unix", p.path)
	require.NoError(t, err)
	t.Cleanup(func() {
		listener.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, g := range p.gates {
			g.open()
		}
		os.RemoveAll(dir)
	})
	go func() {
		for {
			worker, err := listener.Accept()
			if err != nil {
				return
			}
			daemon, err := net.Dial("unix", libvirthost.Socket)
			if err != nil {
				worker.Close() // libvirtd is down just now
				continue
			}
			go p.pass(worker, daemon, typeCall)
			go p.pass(daemon, worker, typeReply)
		}
	}()
	return p
}

// hold holds the nth call of a procedure from now on.
func (p *proxy) hold(call procedure, nth int) *gate {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := &gate{call: call, nth: nth, reached: make(chan struct{}), opened: make(chan struct{})}
	p.gates = append(p.gates, g)
	return g
}

// count is how many calls of a procedure for a domain were let through.
func (p *proxy) count(call procedure, domain string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[domainCall{call, domain}]
}

// pass hands packets on in one direction.
func (p *proxy) pass(from, to net.Conn, kind uint32) {
	defer from.Close()
	defer to.Close()
	for {
		header := make([]byte, headerSize)
		if _, err := io.ReadFull(from, header); err != nil {
			return
		}
		size := binary.BigEndian.Uint32(header)
		if size < headerSize || size > largest {
			return
		}
		packet := append(header, make([]byte, size-headerSize)...)
		if _, err := io.ReadFull(from, packet[headerSize:]); err != nil {
			return
		}
		if binary.BigEndian.Uint32(packet[atProgram:]) == remoteProg && binary.BigEndian.Uint32(packet[atType:]) == kind {
			call := procedure(binary.BigEndian.Uint32(packet[atProcedure:]))
			if kind == typeCall {
				p.note(domainCall{call, firstString(packet[headerSize:])})
			}
			if g := p.gate(call, kind); g != nil {
				close(g.reached)
				<-g.opened
			}
		}
		if _, err := to.Write(packet); err != nil {
			return
		}
	}
}

func (p *proxy) note(call domainCall) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls[call]++
}

// firstString reads the string that arguments begin with (XDR), which is the name where the first one is a domain.
func firstString(arguments []byte) string {
	const length = 4
	if len(arguments) < length {
		return ""
	}
	size := binary.BigEndian.Uint32(arguments)
	if uint64(size) > uint64(len(arguments)-length) {
		return ""
	}
	return string(arguments[length : length+size])
}

// gate returns the gate that holds a packet, if one does.
func (p *proxy) gate(call procedure, kind uint32) *gate {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.gates {
		if g.call == call && g.answer == (kind == typeReply) {
			if g.seen++; g.seen == g.nth {
				return g
			}
		}
	}
	return nil
}

// store is a web server that has a master, sends it slowly, and counts what it sends of it.
type store struct {
	url  string
	sent atomic.Int64
}

func newStore(t *testing.T, image guestimage.Image) *store {
	t.Helper()
	s := &store{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(counted{w, &s.sent}, r, image.Path)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL + "/small.qcow2"
	return s
}

type counted struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c counted) Write(text []byte) (int, error) {
	const bytesPerSecond = 8 << 20
	time.Sleep(time.Duration(len(text)) * time.Second / bytesPerSecond)
	n, err := c.ResponseWriter.Write(text)
	c.sent.Add(int64(n))
	return n, err
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
