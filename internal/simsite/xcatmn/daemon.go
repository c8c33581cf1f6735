package xcatmn

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	idleLimit   = 15 * time.Second // without a request
	handshake   = 10 * time.Second
	answerTime  = 300 * time.Millisecond // of a usual command
	slowTime    = 30 * time.Second
	cacheTime   = 5 * time.Second  // how old what lsdef tells may be
	restartTime = 10 * time.Second // how long a restarting xcatd refuses
)

// serve takes xcatd's clients until the listener is closed.
func (m *Manager) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		m.mu.Lock()
		if m.listener != listener {
			m.mu.Unlock()
			conn.Close()
			return
		}
		m.conns[conn] = struct{}{}
		m.running.Go(func() { m.client(conn) })
		m.mu.Unlock()
	}
}

// drop closes the port and all connections. Commands that are under way go on.
func (m *Manager) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dropLocked()
}

func (m *Manager) dropLocked() {
	if m.listener != nil {
		m.listener.Close()
		m.listener = nil
	}
	for conn := range m.conns {
		conn.Close()
	}
}

// Restart restarts xcatd: it drops all its connections and refuses others for a moment. It returns when it serves again.
func (m *Manager) Restart() error {
	m.restarting.Lock()
	defer m.restarting.Unlock()
	m.mu.Lock()
	m.note("xcatd restarts")
	m.mu.Unlock()
	m.drop()
	if !m.pause(m.ctx, restartTime) {
		return m.ctx.Err()
	}
	listener, err := net.Listen("tcp", m.Address)
	if err != nil {
		return fmt.Errorf("xcatmn: xcatd: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		listener.Close()
		return m.ctx.Err()
	}
	m.listener = listener
	m.running.Go(func() { m.serve(listener) })
	return nil
}

// request is a command on the wire.
type request struct {
	Command string   `xml:"command"`
	Nodes   string   `xml:"noderange"`
	Args    []string `xml:"arg"`
	TransID string   `xml:"transid"`
	Abort   string   `xml:"abortcommand"`
	Become  struct {
		User     string `xml:"username"`
		Password string `xml:"password"`
	} `xml:"becomeuser"`

	cn string // who asks; "" is nobody
}

func (r request) String() string {
	words := []string{r.Command}
	if r.Nodes != "" {
		words = append(words, r.Nodes)
	}
	return strings.Join(append(words, r.Args...), " ")
}

// client serves one connection.
func (m *Manager) client(plain net.Conn) {
	defer func() {
		plain.Close()
		m.mu.Lock()
		delete(m.conns, plain)
		m.mu.Unlock()
	}()
	conn := tls.Server(plain, m.tls)
	_ = conn.SetDeadline(time.Now().Add(handshake))
	if conn.HandshakeContext(m.ctx) != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	var cn string
	if shown := conn.ConnectionState().PeerCertificates; len(shown) > 0 {
		cn = shown[0].Subject.CommonName
	}
	// Requests are read while a command runs: one of them may abort it. A client that merely goes away aborts nothing.
	requests := make(chan request)
	left := make(chan struct{})
	defer close(left)
	m.running.Go(func() {
		defer close(requests)
		in := bufio.NewReader(conn)
		for {
			r, err := read(in)
			if err != nil {
				return
			}
			r.cn = cn
			select {
			case requests <- r:
			case <-left:
				return
			}
		}
	})
	for {
		select {
		case r, ok := <-requests:
			if !ok || r.Abort != "" || !m.answer(conn, r, requests) {
				return
			}
		case <-time.After(idleLimit):
			return
		}
	}
}

// read reads a request: lines until one ends the element. A line without an end is waited for as long as it takes.
func read(in *bufio.Reader) (request, error) {
	const open, shut = "<xcatrequest", "</xcatrequest>"
	var text strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return request{}, err
		}
		text.WriteString(line)
		at := strings.Index(text.String(), open)
		switch {
		case at < 0 && text.Len() > 15 && !strings.HasPrefix(text.String(), "<?xml"), text.Len() > 1<<20:
			return request{}, fmt.Errorf("no request")
		case at < 0 || !strings.Contains(text.String(), shut):
			continue
		}
		var r request
		err = xml.Unmarshal([]byte(text.String()[at:]), &r)
		return r, err
	}
}

// answer runs a command and writes its answer. It returns whether the connection goes on.
func (m *Manager) answer(conn io.Writer, r request, requests <-chan request) bool {
	ctx, abort := context.WithCancel(m.ctx)
	defer abort()
	var mu sync.Mutex // of the connection
	gone := false
	write := func(response response) {
		mu.Lock()
		defer mu.Unlock()
		if !gone {
			_, err := io.WriteString(conn, response.String())
			gone = err != nil
		}
	}
	done := make(chan struct{})
	m.running.Go(func() {
		defer close(done)
		m.run(ctx, r, write)
	})
	for {
		select {
		case <-done:
			return !gone
		case next, ok := <-requests:
			switch {
			case !ok:
				requests = nil // it has gone away; the command goes on
				mu.Lock()
				gone = true
				mu.Unlock()
			case next.Abort != "":
				m.mu.Lock()
				m.note("aborted: %s", r)
				m.mu.Unlock()
				mu.Lock()
				gone = true
				mu.Unlock()
				abort()
				<-done
				return false
			}
		}
	}
}

// allowed says whether the table policy has a row for it.
func (m *Manager) allowed(r request) bool {
	return slices.ContainsFunc(m.options.Policy, func(row Row) bool {
		return r.cn != "" && row.CN == r.cn && (row.Commands == nil || slices.Contains(row.Commands, r.Command))
	})
}

// element is a child of a response; either with a text or with children.
type element struct {
	name, text string
	children   []element
}

type response []element

// source is the management node's name in answers, as the transcripts have it.
const source = "vm"

// String returns the bytes: xcatd writes two blanks an indent, and its texts in ASCII.
func (r response) String() string {
	var b strings.Builder
	writeElement(&b, element{name: "xcatresponse", children: r}, 0)
	return b.String()
}

func writeElement(b *strings.Builder, e element, depth int) {
	indent := strings.Repeat("  ", depth)
	if e.children == nil {
		fmt.Fprintf(b, "%s<%s>%s</%s>\n", indent, e.name, escape(e.text), e.name)
		return
	}
	fmt.Fprintf(b, "%s<%s>\n", indent, e.name)
	for _, child := range e.children {
		writeElement(b, child, depth+1)
	}
	fmt.Fprintf(b, "%s</%s>\n", indent, e.name)
}

// escape writes a text as xcatd does, which puts "?" for each byte that is not ASCII.
func escape(text string) string {
	var b strings.Builder
	for i := range len(text) {
		switch c := text[i]; {
		case c == '<':
			b.WriteString("&lt;")
		case c == '>':
			b.WriteString("&gt;")
		case c == '&':
			b.WriteString("&amp;")
		case c == '"':
			b.WriteString("&quot;")
		case c >= 0x80:
			b.WriteByte('?')
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
