package remote

import (
	"fmt"
)

// Rung is a step of a connection's way up. A channel may have rungs of its own beside these.
type Rung string

// The rungs that all channels have, in order.
const (
	RungTCP            Rung = "tcp"            // the TCP connection
	RungHandshake      Rung = "handshake"      // keys are exchanged, and the guest proves who it is
	RungAuthentication Rung = "authentication" // we prove who we are
)

// RungError says on which rung a connection failed.
type RungError struct {
	Rung Rung
	Err  error
}

func (e *RungError) Error() string { return string(e.Rung) + ": " + e.Err.Error() }

func (e *RungError) Unwrap() error { return e.Err }

// AuthError says that the server refused us. It may accept us later: a guest that boots may not have its keys yet.
type AuthError struct {
	User string
	Err  error
}

func (e *AuthError) Error() string {
	return fmt.Sprintf("authentication as %s refused: %s", e.User, e.Err)
}

func (e *AuthError) Unwrap() error { return e.Err }

// CredentialError says that the worker has no usable secret of that name. It is a fault of ours, not of the guest.
type CredentialError struct {
	Name string
	Err  error
}

func (e *CredentialError) Error() string {
	return fmt.Sprintf("credential %q: %s", e.Name, e.Err)
}

func (e *CredentialError) Unwrap() error { return e.Err }

// LostError says that the connection was lost before a command had ended: whether the command ran is not known.
type LostError struct {
	Command string
	Err     error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("the connection was lost during %s: %s", e.Command, e.Err)
}

func (e *LostError) Unwrap() error { return e.Err }
