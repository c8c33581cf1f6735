package main

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestASiteTakesTheEndOfANetwork(t *testing.T) {
	for network, want := range map[string]string{
		"172.18.0.3/16":    "172.18.255.0/24",
		"192.168.16.2/20":  "192.168.31.0/24",
		"10.0.0.5/23":      "10.0.1.0/24",
		"172.20.0.130/24":  "",
		"192.0.2.130/25":   "",
		"2001:db8::42/112": "",
	} {
		ip, of, err := net.ParseCIDR(network)
		require.NoError(t, err)
		of.IP = ip
		last, _, err := lastOf(of)
		if want == "" {
			require.ErrorContains(t, err, "too small", network)
			continue
		}
		require.NoError(t, err, network)
		require.Equal(t, want, last.String(), network)
	}
}
