package xcatmn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// authority is the management node's own CA, which signs its certificate and its clients'.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

// validity is xCAT's: its certificates begin in 1970.
func validity() (from, to time.Time) { return time.Unix(0, 0), time.Now().AddDate(20, 0, 0) }

func newAuthority() (*authority, error) {
	from, to := validity()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "xCAT CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: from, NotAfter: to}
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	template.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a, nil
}

// issue returns a certificate and its key, PEM.
func (a *authority) issue(template *x509.Certificate) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.NotBefore, template.NotAfter = validity()
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 63)); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}

func (a *authority) client(cn string) ([]byte, error) {
	return a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: cn}})
}

// sharedKey is /etc/xcat/hostkeys/ssh_host_rsa_key: the one SSH host key that xCAT gives to all its nodes.
type sharedKey struct {
	private []byte // PEM
	public  string // as in known_hosts, without names
}

func newSharedKey() (sharedKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return sharedKey{}, err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return sharedKey{}, err
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return sharedKey{}, err
	}
	return sharedKey{pem.EncodeToMemory(block), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))}, nil
}

// hostname is the management node's.
const hostname = "xcatmn"

// server returns how xcatd serves at an IP: a certificate is asked for, and not needed.
func (a *authority) server(ip string) (*tls.Config, error) {
	text, err := a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: hostname}, DNSNames: []string{hostname, "localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(ip)}})
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("xcatmn: %w", err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(a.cert)
	return &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: clients, ClientAuth: tls.VerifyClientCertIfGiven,
		MinVersion: tls.VersionTLS12}, nil
}
