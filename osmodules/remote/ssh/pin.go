package ssh

import (
	"fmt"

	xssh "golang.org/x/crypto/ssh"
)

// Pin is the host key that a server must show. The zero Pin takes the key of the first handshake.
type Pin struct {
	Fingerprint string // "SHA256:..." as ssh-keygen -l prints it
	Type        string // "ssh-ed25519" and so on; "" when it is not known
}

// PinOf returns the pin of a public key that is given as an authorized_keys line.
func PinOf(line string) (Pin, error) {
	key, _, _, rest, err := xssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return Pin{}, fmt.Errorf("the host key is not an authorized_keys line: %w", err)
	}
	if len(rest) > 0 {
		return Pin{}, fmt.Errorf("the host key has more than one line: give one key")
	}
	return pinOf(key), nil
}

// Known says whether there is a key to hold a server against.
func (p Pin) Known() bool { return p.Fingerprint != "" }

func (p Pin) String() string {
	if p.Type == "" {
		return p.Fingerprint
	}
	return p.Type + " " + p.Fingerprint
}

func pinOf(key xssh.PublicKey) Pin {
	return Pin{Fingerprint: xssh.FingerprintSHA256(key), Type: key.Type()}
}

func (p Pin) check(shown Pin) error {
	if !p.Known() || p.Fingerprint == shown.Fingerprint {
		return nil
	}
	return &HostKeyError{Want: p.String(), Got: shown.String()}
}

// algorithms returns the host key algorithms to offer. The order for an unknown key must stay as it is: a guest that
// has several keys is then asked for the same one each time. Certificates are left out, for a pin names a key.
func (p Pin) algorithms() []string {
	switch p.Type {
	case "":
		return []string{xssh.KeyAlgoED25519, xssh.KeyAlgoECDSA256, xssh.KeyAlgoECDSA384, xssh.KeyAlgoECDSA521,
			xssh.KeyAlgoRSASHA512, xssh.KeyAlgoRSASHA256}
	case xssh.KeyAlgoRSA:
		return []string{xssh.KeyAlgoRSASHA512, xssh.KeyAlgoRSASHA256}
	default:
		return []string{p.Type}
	}
}
