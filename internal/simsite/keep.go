package simsite

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Files of a site's folder.
const (
	catalogFile  = "catalog.yaml"
	loginKeyFile = "keys/linux-root"
	passwordFile = "secrets/vcenter-lab"
	windowsFile  = "secrets/windows-admin"
	certFile     = "tls/vcenter.pem"
	certKeyFile  = "tls/vcenter-key.pem"
)

// keep is what a site keeps in its folder over restarts.
type keep struct {
	privateKey    []byte // that logs in to guests
	authorizedKey string
	password      string
	windows       string // the password that logs in to Windows guests
	certificate   tls.Certificate
	thumbprint    string
}

// openKeep reads what is in the folder and makes what is not.
func openKeep(dir string) (*keep, error) {
	for _, sub := range []string{"", "keys", "secrets", "tls"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("the site's folder: %w", err)
		}
	}
	k := &keep{}
	var err error
	if k.privateKey, err = kept(filepath.Join(dir, loginKeyFile), newLoginKey); err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(k.privateKey)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: remove the file, and a new key is made", loginKeyFile, err)
	}
	k.authorizedKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " berth@site"
	if err := os.WriteFile(filepath.Join(dir, loginKeyFile+".pub"), []byte(k.authorizedKey+"\n"), 0o600); err != nil {
		return nil, err
	}
	for name, password := range map[string]*string{passwordFile: &k.password, windowsFile: &k.windows} {
		text, err := kept(filepath.Join(dir, name), func() ([]byte, error) { return []byte(rand.Text() + "\n"), nil })
		if err != nil {
			return nil, err
		}
		if *password = strings.TrimRight(string(text), "\n"); *password == "" {
			return nil, fmt.Errorf("%s is empty: remove the file, and a new password is made", name)
		}
	}
	certKey, err := kept(filepath.Join(dir, certKeyFile), newCertificateKey)
	if err != nil {
		return nil, err
	}
	cert, err := kept(filepath.Join(dir, certFile), func() ([]byte, error) { return newCertificate(certKey) })
	if err != nil {
		return nil, err
	}
	if k.certificate, err = tls.X509KeyPair(cert, certKey); err != nil {
		return nil, fmt.Errorf("%s and %s: %w: remove both, and new ones are made", certFile, certKeyFile, err)
	}
	sum := sha256.Sum256(k.certificate.Certificate[0])
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	k.thumbprint = strings.Join(pairs, ":")
	return k, nil
}

// kept reads a file, or makes it.
func kept(path string, fresh func() ([]byte, error)) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	if text, err = fresh(); err != nil {
		return nil, err
	}
	return text, os.WriteFile(path, text, 0o600)
}

func newLoginKey() ([]byte, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "berth@site")
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(block), nil
}

func newCertificateKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// newCertificate signs itself for the loopback, for ten years.
func newCertificate(keyText []byte) ([]byte, error) {
	block, _ := pem.Decode(keyText)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key: remove the file, and a new one is made", certKeyFile)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds another kind of key: remove the file, and a new one is made", certKeyFile)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "simulated vCenter"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().AddDate(10, 0, 0), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
