//go:build unix

package sshtest

import (
	"net"
	"strconv"
	"sync"
	"syscall"
)

// Reserve takes a loopback address that refuses connections until somebody listens on it. Nobody else gets its port
// meanwhile: a socket of ours is bound to it, which does not keep a listener with SO_REUSEADDR (as Go's are) from it.
func Reserve() (address string, release func(), err error) {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return "", nil, err
	}
	syscall.CloseOnExec(socket)
	release = sync.OnceFunc(func() { syscall.Close(socket) })
	if err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		release()
		return "", nil, err
	}
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		release()
		return "", nil, err
	}
	name, err := syscall.Getsockname(socket)
	if err != nil {
		release()
		return "", nil, err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*syscall.SockaddrInet4).Port)), release, nil
}
