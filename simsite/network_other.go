//go:build !linux

package main

import (
	"errors"
	"net/netip"
)

func ownNetwork() (netip.Prefix, error) {
	return netip.Prefix{}, errors.New("a site can have a network of its own on Linux only")
}

func become(int) error { return errors.New("another user can be become on Linux only") }
