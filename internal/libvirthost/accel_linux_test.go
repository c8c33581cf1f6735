//go:build e2e

package libvirthost

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAGuestOfOneSectorTellsWhetherGuestsRun(t *testing.T) {
	if err := Check(); err != nil {
		t.Skip("SKIP:", err)
	}
	works, err := boots(t.Context(), AccelTCG)
	require.NoError(t, err)
	require.True(t, works, "the translator works everywhere")
	accel, err := Accelerator(t.Context())
	require.NoError(t, err)
	require.Contains(t, []string{AccelKVM, AccelTCG}, accel)
	t.Log(accel)
}
