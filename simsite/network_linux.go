package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
)

// siteBits is the size of a site's own network: the vCenter and the guests take one address, each physical node one.
const siteBits = 24

// ownNetwork makes the last 256 addresses of the network that this machine is on its own, and returns them. It is meant
// for a container, whose network gives addresses away from its beginning, and needs the capability NET_ADMIN. It may be
// called again.
func ownNetwork() (netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("the machine's routes: %w", err)
	}
	for _, route := range routes {
		if route.Gw == nil || route.Dst != nil && !route.Dst.IP.IsUnspecified() {
			continue // no default route
		}
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil {
			return netip.Prefix{}, err
		}
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return netip.Prefix{}, err
		}
		for _, address := range addresses {
			if address.Contains(route.Gw) {
				return own(address.IPNet)
			}
		}
	}
	return netip.Prefix{}, errors.New("this machine has no default route: the site's own network is taken from the network that it leads to")
}

// own takes the end of a network. Addresses of the loopback's networks are all this machine's, and it answers for them on
// its other networks, too.
func own(of *net.IPNet) (netip.Prefix, error) {
	last, bits, err := lastOf(of)
	if err != nil {
		return netip.Prefix{}, err
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return netip.Prefix{}, err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: last.Addr().Next().AsSlice(), Mask: net.CIDRMask(bits, 32)}}
	if err := netlink.AddrAdd(loopback, address); err != nil && !errors.Is(err, syscall.EEXIST) {
		return netip.Prefix{}, fmt.Errorf("take the addresses %s: %w: it needs the capability NET_ADMIN", last, err)
	}
	return last, nil
}

// lastOf returns the last addresses of a network.
func lastOf(of *net.IPNet) (netip.Prefix, int, error) {
	ones, _ := of.Mask.Size()
	ip := of.IP.To4()
	if ip == nil || ones > siteBits-1 {
		return netip.Prefix{}, 0, fmt.Errorf("the network %s is too small to take 256 addresses of it: give it 512 at least, such as 172.18.0.0/16", of)
	}
	last := net.IPv4(0, 0, 0, 0).To4()
	for i := range last {
		last[i] = (ip[i] | ^of.Mask[i]) & net.CIDRMask(siteBits, 32)[i]
	}
	address, _ := netip.AddrFromSlice(last)
	return netip.PrefixFrom(address, siteBits), siteBits, nil
}

// become gives up root for a user and the group of the same number, and with it every capability.
func become(user int) error {
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(user), syscall.Setuid(user))
}
