package ssh

import (
	"fmt"

	"berth/osmodules/remote"
)

// What all channels share.
type (
	Rung            = remote.Rung
	RungError       = remote.RungError
	AuthError       = remote.AuthError
	CredentialError = remote.CredentialError
	LostError       = remote.LostError
	Credential      = remote.Credential
)

// The rungs, in order.
const (
	RungTCP                 = remote.RungTCP
	RungBanner         Rung = "ssh banner" // the server's version line
	RungHandshake           = remote.RungHandshake
	RungAuthentication      = remote.RungAuthentication
)

// HostKeyError says that a server showed another host key than the pinned one. Both are fingerprints, with the key's
// type in front where it is known.
type HostKeyError struct {
	Want string
	Got  string
}

func (e *HostKeyError) Error() string {
	return fmt.Sprintf("the host key is %s, and %s is pinned", e.Got, e.Want)
}
