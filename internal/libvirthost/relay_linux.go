package libvirthost

import (
	"io"
	"net"
)

// Relay connects whoever comes in by a listener with an address of a network (net.Dial), until the listener is closed: a way
// between the host's network and the machine's, over a socket in a folder that both see. Whoever cannot be connected is let go.
func Relay(listener net.Listener, network, address string) {
	for {
		one, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer one.Close()
			other, err := net.Dial(network, address)
			if err != nil {
				return
			}
			defer other.Close()
			go func() {
				_, _ = io.Copy(other, one)
				closeWrite(other)
			}()
			_, _ = io.Copy(one, other)
		}()
	}
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
