package climb

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAHostNameIsLookedUpNowAndThen(t *testing.T) {
	var cache HostCache
	address, err := cache.Resolve(t.Context(), "localhost:22")
	require.NoError(t, err)
	require.Contains(t, []string{"127.0.0.1:22", "[::1]:22"}, address)
	cache.address = "192.0.2.1:22"
	address, err = cache.Resolve(t.Context(), "localhost:22")
	require.NoError(t, err)
	require.Equal(t, "192.0.2.1:22", address)
	address, err = cache.Resolve(t.Context(), "[2001:db8::1]:22")
	require.NoError(t, err)
	require.Equal(t, "[2001:db8::1]:22", address)
}
