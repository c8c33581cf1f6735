package remote

import (
	"fmt"
)

// Credential is what the worker logs in with: a private key, a password, or both (the key is tried first).
type Credential struct {
	PrivateKey []byte // PEM or OpenSSH format
	Passphrase string // of the private key; "" when it has none
	Password   string
}

// String returns which parts there are and never what they are, so that a credential that is printed by mistake tells
// nothing.
func (c Credential) String() string {
	return fmt.Sprintf("credential (private key: %t, passphrase: %t, password: %t)", len(c.PrivateKey) > 0, c.Passphrase != "", c.Password != "")
}

// GoString is String, for %#v.
func (c Credential) GoString() string { return c.String() }

// Format is String, for every verb.
func (c Credential) Format(state fmt.State, _ rune) { fmt.Fprint(state, c.String()) }

// MarshalJSON is String, for loggers that write JSON.
func (c Credential) MarshalJSON() ([]byte, error) { return []byte(`"` + c.String() + `"`), nil }
