package winos

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Paths of what a guest proves itself with.
const (
	HostKeyPath        = `C:\ProgramData\ssh\ssh_host_ed25519_key`
	authorizedKeysPath = `C:\ProgramData\ssh\administrators_authorized_keys`
	certificatePath    = `C:\ProgramData\Microsoft\Crypto\winrm.pem` // certificate and key; on a real one they are in the store
)

func lower(s string) string { return strings.ToLower(s) }

// SetHostKey stores a private host key (PEM) on the guest's disk, where it outlives boots.
func (m *Machine) SetHostKey(pemText []byte) error {
	if _, err := ssh.ParsePrivateKey(pemText); err != nil {
		return fmt.Errorf("host key: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.write(HostKeyPath, pemText)
	return nil
}

// HostKey returns sshd's host key, and makes one if there is none, as sshd does at its first start.
func (m *Machine) HostKey() (ssh.Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	text, ok := m.read(HostKeyPath)
	if !ok {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		block, err := ssh.MarshalPrivateKey(private, "")
		if err != nil {
			return nil, err
		}
		text = string(pem.EncodeToMemory(block))
		m.write(HostKeyPath, []byte(text))
	}
	return ssh.ParsePrivateKey([]byte(text))
}

// Certificate returns WinRM's certificate, and makes one if there is none, signed by itself, as a first boot's script does.
func (m *Machine) Certificate() (tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	text, ok := m.read(certificatePath)
	if !ok {
		made, err := newCertificate(m.hostname)
		if err != nil {
			return tls.Certificate{}, err
		}
		text = string(made)
		m.write(certificatePath, made)
	}
	return tls.X509KeyPair([]byte(text), []byte(text))
}

// ForgetHostKey removes host key and certificate from the guest's disk, so that both are made anew.
func (m *Machine) ForgetHostKey() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetIdentity()
	return nil
}

func (m *Machine) forgetIdentity() {
	m.remove(HostKeyPath)
	m.remove(certificatePath)
}

func newCertificate(name string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	// A guest whose clock is wrong makes a certificate whose dates are: what pins it does not look at them.
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}

// Authorized says whether a key may log in as a user now: administrators' keys are in one file.
func (m *Machine) Authorized(user string, key ssh.PublicKey) bool {
	if _, ok := m.PasswordOf(user); !ok {
		return false
	}
	m.mu.Lock()
	stored, _ := m.read(authorizedKeysPath)
	m.mu.Unlock()
	text := []byte(stored)
	for len(text) > 0 {
		entry, _, _, rest, err := ssh.ParseAuthorizedKey(text)
		if err != nil {
			return false
		}
		if bytes.Equal(entry.Marshal(), key.Marshal()) {
			return true
		}
		text = rest
	}
	return false
}
