//go:build linux

package main

import (
	"fmt"
	"net"
	"path/filepath"

	"berth/internal/libvirthost"
)

// door is a way from this machine into the namespaces: a port here, a socket on the disk that both see, an address there.
type door struct {
	port    string // that it would like; a free one if it is taken
	socket  string
	address string // inside; "" is the port itself on the loopback
}

// The doors that are always there come first.
const (
	doorTemporal = iota
	doorWebUI
	doorGuests
)

func doors(o options) []door {
	all := []door{
		{port: "7233", socket: filepath.Join(o.dir, "temporal.sock")},
		{port: "8233", socket: filepath.Join(o.dir, "web.sock")},
	}
	for n := range guests(o) {
		all = append(all, door{port: fmt.Sprint(2201 + n), socket: filepath.Join(o.dir, fmt.Sprintf("ssh-%d.sock", n+1)),
			address: net.JoinHostPort(libvirthost.Address(n+1), "22")})
	}
	return all
}

func guests(o options) int {
	if o.debian {
		return o.small + 1
	}
	return o.small
}
