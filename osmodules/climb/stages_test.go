package climb_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/climb/climbtest"
	"berth/reservation"
)

func TestAFlappingGuestDoesNotFillTheHeartbeat(t *testing.T) {
	report := climbtest.NewRecorder()
	stages := climb.NewStages(report, []string{"tcp", "ssh banner", "handshake", "nonce"}, "", nil)
	for i := range 1000 {
		stages.Show("tcp", fmt.Sprint("refused ", i))
		stages.Show("ssh banner", "")
		stages.Show("handshake", "reset")
	}
	require.Less(t, len(report.Stages()), 40)
	stages.Show("nonce", "")
	require.True(t, report.Current().Name == "nonce", "a new height is still shown")
}

func TestTheControlAddressTakesItsPortFromTheNearest(t *testing.T) {
	for given, want := range map[string]string{
		"vm-01": "vm-01:2222", "10.0.0.1": "10.0.0.1:2222", "10.0.0.1:99": "10.0.0.1:99", "2001:db8::1": "[2001:db8::1]:2222", "[2001:db8::1]:99": "[2001:db8::1]:99",
	} {
		request := osmodules.Request{Reservation: reservation.Reservation{Computer: reservation.Computer{Address: given},
			Image: reservation.Image{Control: reservation.Control{Port: 2222}}}}
		require.Equal(t, want, climb.Address(request, 22))
		if !strings.HasSuffix(want, ":99") {
			request.Reservation.Image.Control.Port = 0
			require.True(t, strings.HasSuffix(climb.Address(request, 22), ":22"))
		}
	}
}
