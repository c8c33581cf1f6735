// Package hostkey makes the SSH host key that a provisioner hands to the guest of one load.
package hostkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Pair is an ed25519 host key.
type Pair struct {
	Private string // OpenSSH PEM, as sshd reads it from a host key file; a secret
	Public  string // one authorized_keys line without a newline
}

// String hides the private half, so that a pair that strays into a log line tells nothing.
func (p Pair) String() string { return p.Public }

// GoString hides the private half from %#v, too.
func (p Pair) GoString() string { return fmt.Sprintf("hostkey.Pair{Public: %q}", p.Public) }

// New makes a key. The comment stands in both halves and is for people; it should name the computer.
func New(comment string) (Pair, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make an ed25519 host key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return Pair{}, fmt.Errorf("write the host key as OpenSSH PEM: %w", err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return Pair{}, fmt.Errorf("write the public host key: %w", err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	if comment != "" {
		line += " " + comment
	}
	return Pair{Private: string(pem.EncodeToMemory(block)), Public: line}, nil
}
