package winrm

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Pin is the certificate that a server must show. The zero Pin takes the certificate of the first handshake.
type Pin struct {
	Fingerprint string // "SHA256:" and the hex SHA-256 of the certificate
}

const pinPrefix = "SHA256:"

// ParsePin reads a certificate's SHA-256 in hex, as Pin.String, OpenSSL (colons) and certutil (spaces) print it.
func ParsePin(text string) (Pin, error) {
	digits := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(strings.TrimPrefix(strings.TrimSpace(text), pinPrefix)))
	if raw, err := hex.DecodeString(digits); err != nil || len(raw) != sha256.Size {
		return Pin{}, fmt.Errorf("certificate pin %q is no SHA-256 in hex: give 64 hex digits (a thumbprint of 40 digits is SHA-1 and too weak)", text)
	}
	return Pin{Fingerprint: pinPrefix + digits}, nil
}

// PinOf returns the pin of a certificate in DER.
func PinOf(certificate []byte) Pin {
	sum := sha256.Sum256(certificate)
	return Pin{Fingerprint: pinPrefix + hex.EncodeToString(sum[:])}
}

// Known says whether there is a certificate to hold a server against.
func (p Pin) Known() bool { return p.Fingerprint != "" }

func (p Pin) String() string { return p.Fingerprint }

func (p Pin) check(shown Pin) error {
	if !p.Known() || p.Fingerprint == shown.Fingerprint {
		return nil
	}
	return &CertificateError{Want: p.String(), Got: shown.String()}
}

// ReadRoots reads the certificates of authorities, for Target.Roots.
func ReadRoots(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("there is no certificate in it: give PEM blocks of type CERTIFICATE")
	}
	return pool, nil
}
