package climb

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/rs/zerolog"

	"berth/osmodules"
	"berth/reservation"
)

// Address returns the control address with its port: the computer's own, else the image's, else the channel's usual one.
func Address(request osmodules.Request, usual int) string {
	given := request.Reservation.Computer.Address
	if _, err := netip.ParseAddr(given); err != nil {
		if _, _, err := net.SplitHostPort(given); err == nil {
			return given
		}
	}
	port := request.Reservation.Image.Control.Port
	if port == 0 {
		port = usual
	}
	return net.JoinHostPort(given, strconv.Itoa(port))
}

// Logger returns a logger whose lines say what the request is about.
func Logger(base zerolog.Logger, request osmodules.Request) zerolog.Logger {
	return base.With().
		Str("reservation", request.Reservation.Name).
		Str("computer", request.Reservation.Computer.Name).
		Str("image", request.Reservation.Image.String()).
		Int("attempt", request.Attempt.Number).
		Str("phase", string(reservation.PhasePostLoad)).
		Logger()
}

// KeyNotHanded is the verdict on an image whose guests are to show a key that its provisioner does not hand to them.
func KeyNotHanded() error {
	return reservation.Fail("", &reservation.FieldError{Field: "image.control.host_key", Value: reservation.HostKeyHanded,
		Remedy: fmt.Sprintf("the provisioner handed no key to the guest: write %s, or use a provisioner that hands one", reservation.HostKeyFirst)})
}
