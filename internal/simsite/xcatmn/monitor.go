package xcatmn

import (
	"bufio"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// silence is how long a node may say nothing.
const silence = 2 * time.Second

// statuses are those that a node may report; others are dropped without a word.
func statuses() []string {
	return strings.Fields("alive unreachable installing installed booting postbooting netbooting booted powering-on powering-off " +
		"discovering discovered configuring configured standingby shell defined unknown failed bmcready syncing out-of-sync synced")
}

// monitor takes the nodes' notes, one after the other as xCAT does.
func (m *Manager) monitor(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		m.hear(conn)
		conn.Close()
	}
}

func (m *Manager) hear(conn net.Conn) {
	source, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	m.mu.Lock()
	n := m.at(source)
	m.mu.Unlock()
	if n == nil {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(silence))
	if _, err := io.WriteString(conn, "ready\n"); err != nil {
		return
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 1024)).ReadString('\n')
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.unlock()
	// It says that it is done before it does it. A node that is gone by then does not matter.
	_, _ = io.WriteString(conn, "done\n")
	if n.Mode == MonitorHangs {
		return
	}
	words := strings.Fields(line)
	switch {
	case len(words) == 0:
	case words[0] == "next":
		n.currstate = "boot"
		n.set("booting")
	case words[0] == "installstatus":
		for _, status := range words[1:] {
			if slices.Contains(statuses(), status) {
				n.set(status)
			}
		}
	}
}
