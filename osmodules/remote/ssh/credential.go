package ssh

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	xssh "golang.org/x/crypto/ssh"
)

// keyring keeps parsed private keys: opening one that has a passphrase costs some 100 ms of a CPU, too much for each of
// 1,000 guests. A key is parsed anew when its bytes have changed.
type keyring struct {
	mu   sync.Mutex
	keys map[string]parsedKey
}

type parsedKey struct {
	sum    [sha256.Size]byte
	signer xssh.Signer
}

func (k *keyring) signer(name string, credential Credential) (xssh.Signer, error) {
	sum := sha256.Sum256(append(append(bytes.Clone(credential.PrivateKey), 0), credential.Passphrase...))
	k.mu.Lock()
	defer k.mu.Unlock()
	if parsed, ok := k.keys[name]; ok && parsed.sum == sum {
		return parsed.signer, nil
	}
	var signer xssh.Signer
	var err error
	if credential.Passphrase == "" {
		signer, err = xssh.ParsePrivateKey(credential.PrivateKey)
	} else {
		signer, err = xssh.ParsePrivateKeyWithPassphrase(credential.PrivateKey, []byte(credential.Passphrase))
	}
	var missing *xssh.PassphraseMissingError
	switch {
	case errors.As(err, &missing):
		return nil, errors.New("the private key has a passphrase and none is given")
	case err != nil:
		return nil, fmt.Errorf("the private key cannot be read: %w", err)
	}
	if k.keys == nil {
		k.keys = make(map[string]parsedKey)
	}
	k.keys[name] = parsedKey{sum: sum, signer: signer}
	return signer, nil
}
