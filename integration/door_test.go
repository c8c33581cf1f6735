package integration

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"berth/internal/simsite"
)

func randomLoopback() string {
	return fmt.Sprintf("127.%d.%d.%d", 128+rand.IntN(127), rand.IntN(256), 1+rand.IntN(254))
}

// door stands before a guest's control port. It lets everything through, or holds back what the guest says from some point
// on, which is how a worker is kept on a rung of its ladder, or in a command.
type door struct {
	address string
	guest   string
	stop    holdsFrom

	reached chan struct{} // closed when something is held
	reach   sync.Once
	opened  chan struct{} // closed by open
	release sync.Once

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]struct{}
	closed   bool
}

// holdsFrom says from where on a door holds back what the guest says. The zero value holds nothing.
type holdsFrom struct {
	closed     bool // nobody listens
	banner     bool // from sshd's version line on
	handshake  bool // from the key exchange on
	encryption bool // from the first encrypted packet on: the host key has been shown and proved
	begun      int  // from the beginning of so many commands on: they run, and have got none of their input
	finished   int  // from the end of so many commands on: they have run, and nobody knows
	counts     func() simsite.Counts
}

// encrypted says whether what the guest says over an encrypted connection is held now.
func (h holdsFrom) encrypted() bool {
	if h.encryption {
		return true
	}
	if h.counts == nil {
		return false
	}
	counts := h.counts()
	return h.begun > 0 && counts.Commands >= h.begun || h.finished > 0 && counts.Finished >= h.finished
}

// newDoor returns a door that is open, or is opened by open if nobody is to listen.
func newDoor(t *testing.T, guest string, stop holdsFrom) *door {
	t.Helper()
	d := &door{address: loopback(t, 2222), guest: guest, stop: stop, reached: make(chan struct{}), opened: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	if stop.closed {
		close(d.reached)
	} else {
		d.listen(t)
	}
	t.Cleanup(d.close)
	return d
}

func (d *door) listen(t *testing.T) {
	t.Helper()
	listener := listenAgain(t, d.address)
	d.mu.Lock()
	d.listener = listener
	d.mu.Unlock()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go d.serve(conn)
		}
	}()
}

// open lets everything through from now on.
func (d *door) open(t *testing.T) {
	t.Helper()
	if d.stop.closed {
		d.listen(t)
	}
	d.release.Do(func() { close(d.opened) })
}

func (d *door) close() {
	d.release.Do(func() { close(d.opened) })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.listener != nil {
		_ = d.listener.Close()
	}
	for conn := range d.conns {
		_ = conn.Close()
	}
}

func (d *door) serve(worker net.Conn) {
	defer worker.Close()
	guest, err := net.Dial("tcp", d.guest)
	if err != nil {
		return
	}
	defer guest.Close()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.conns[worker], d.conns[guest] = struct{}{}, struct{}{}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.conns, worker)
		delete(d.conns, guest)
		d.mu.Unlock()
	}()
	gone := make(chan struct{}) // the worker's end of the connection
	go func() {
		defer close(gone)
		_, _ = io.Copy(guest, worker)
		_ = guest.Close()
	}()
	d.relay(worker, bufio.NewReader(guest), gone)
}

// relay hands on what the guest says.
func (d *door) relay(to io.Writer, from *bufio.Reader, gone <-chan struct{}) {
	hold := func(is bool) bool {
		if !is {
			return true
		}
		select {
		case <-d.opened:
			return true
		default:
		}
		d.reach.Do(func() { close(d.reached) })
		select {
		case <-d.opened:
			return true
		case <-gone:
			return false
		}
	}
	say := func(text []byte, err error) bool {
		if err != nil {
			return false
		}
		_, err = to.Write(text)
		return err == nil
	}
	line, err := from.ReadBytes('\n')
	if err != nil || !hold(d.stop.banner) || !say(line, err) {
		return
	}
	for kind := byte(0); kind != newKeys; {
		text, err := plainPacket(from)
		if err != nil || !hold(d.stop.handshake) || !say(text, err) {
			return
		}
		kind = text[5]
	}
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil || !hold(d.stop.encrypted()) || !say(buffer[:n], nil) {
			return
		}
	}
}

// newKeys is SSH_MSG_NEWKEYS (RFC 4253, 12): what follows it is encrypted.
const newKeys = 21

// plainPacket reads one packet of the binary packet protocol before encryption begins (RFC 4253, 6): its length, the
// padding's length, the message's number, and the rest.
func plainPacket(from io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head)
	if length < 2 || length > 256<<10 {
		return nil, fmt.Errorf("a packet of %d bytes", length)
	}
	packet := append(head, make([]byte, length)...)
	_, err := io.ReadFull(from, packet[4:])
	return packet, err
}
