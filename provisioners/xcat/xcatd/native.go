package xcatd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const (
	// Port is xcatd's own (table site, xcatdport).
	Port = "3001"

	handshakeLimit = 10 * time.Second // xcatd's own for a client
	abortLimit     = 5 * time.Second  // it closed 0.16 s after an abortcommand where this was measured
	maxAnswer      = 16 << 20         // bytes; a tabdump of 10,000 nodes has 1 MB
)

// Native speaks xcatd's own protocol: XML over TLS. Each command has a connection of its own, because xcatd closes an idle
// one whenever it likes.
type Native struct {
	// Address is host or host:port of the management node; without a port it is 3001.
	Address string
	// ServerName is the name that the certificate must bear; "" is Address's host.
	ServerName string
	// CA are the authorities that may have signed the daemon's certificate: xCAT's own (/etc/xcat/cert/ca.pem).
	CA *x509.CertPool
	// Certificate returns what we show: its CN is the user that xCAT's policy judges. It is asked for each connection, so
	// that a changed one needs no restart.
	Certificate func() (tls.Certificate, error)

	abort time.Duration // how long an aborted command is waited for; 0 is abortLimit
}

// Run is part of Transport.
func (n *Native) Run(ctx context.Context, command Command) (Answer, error) {
	fail := func(kind Kind, text string, cause error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &Error{Kind: kind, Command: command.String(), Text: text, Cause: cause}
	}
	conn, err := n.dial(ctx)
	if err != nil {
		kind := Connection
		if authentication(err) {
			kind = Authentication
		}
		return Answer{}, fail(kind, "connect to xcatd at "+n.address(), err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() {
		// A client that merely goes away does not stop the command: only this does.
		deadline := time.Now().Add(cmp.Or(n.abort, abortLimit))
		_ = conn.SetDeadline(deadline)
		_, _ = io.WriteString(conn, "<xcatrequest><abortcommand>1</abortcommand></xcatrequest>\n")
		_ = conn.SetReadDeadline(deadline)
	})
	defer stop()
	if _, err := conn.Write(encode(command)); err != nil {
		return Answer{}, fail(connectionOr(err), "send the command", err)
	}
	answer, err := decode(conn, command.Each)
	if err != nil {
		return answer, fail(connectionOr(err), "read the answer", err)
	}
	return answer, nil
}

func connectionOr(err error) Kind {
	if authentication(err) {
		return Authentication
	}
	return Connection
}

// authentication says whether one side does not believe the other's certificate.
func authentication(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		remote       *net.OpError
		credential   *credentialError
		name         *NameError
	)
	if errors.As(err, &remote) && remote.Op == "remote error" {
		// What crypto/tls calls an alert of the other side; its type is its own: RFC 8446, 6.2.
		text := remote.Err.Error()
		return strings.Contains(text, "certificate") || strings.Contains(text, "access denied")
	}
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var hostname x509.HostnameError
	return errors.As(err, &verification) || errors.As(err, &credential) || errors.As(err, &name) ||
		errors.As(err, &authority) || errors.As(err, &invalid) || errors.As(err, &hostname)
}

type credentialError struct{ cause error }

func (e *credentialError) Error() string { return "our certificate: " + e.cause.Error() }
func (e *credentialError) Unwrap() error { return e.cause }

func (n *Native) address() string {
	if _, _, err := net.SplitHostPort(n.Address); err == nil {
		return n.Address
	}
	return net.JoinHostPort(n.Address, Port)
}

func (n *Native) serverName() string {
	if n.ServerName != "" {
		return n.ServerName
	}
	host, _, _ := net.SplitHostPort(n.address())
	return host
}

func (n *Native) dial(ctx context.Context) (*tls.Conn, error) {
	certificate, err := n.Certificate()
	if err != nil {
		return nil, &credentialError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	plain, err := new(net.Dialer).DialContext(ctx, "tcp", n.address())
	if err != nil {
		return nil, err
	}
	conn := tls.Client(plain, &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{certificate},
		// The standard check takes names from the SAN only, and old management nodes have theirs in the CN. Ours takes its
		// place, and is called for every handshake.
		InsecureSkipVerify: true,
		VerifyConnection:   n.verify,
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		plain.Close()
		return nil, err
	}
	return conn, nil
}

// NameError says that a management node's certificate, signed by the right authority, is another machine's.
type NameError struct {
	Want string
	Has  []string
}

func (e *NameError) Error() string {
	return fmt.Sprintf("the management node's certificate is for %s, not for %s: set server_name to one of its names if it is the right one",
		strings.Join(e.Has, ", "), e.Want)
}

// verify checks the daemon's certificate: signed by xCAT's CA, and for the expected name. There is no way around it.
func (n *Native) verify(state tls.ConnectionState) error {
	leaf := state.PeerCertificates[0]
	intermediates := x509.NewCertPool()
	for _, one := range state.PeerCertificates[1:] {
		intermediates.AddCert(one)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: n.CA, Intermediates: intermediates,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return err
	}
	want := n.serverName()
	names := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) > 0 {
		if leaf.VerifyHostname(want) == nil {
			return nil
		}
		return &NameError{Want: want, Has: names}
	}
	if strings.EqualFold(leaf.Subject.CommonName, want) && want != "" {
		return nil
	}
	return &NameError{Want: want, Has: []string{leaf.Subject.CommonName}}
}

// xcatrequest is a command on the wire. xcatd finds it by the literal <xcatrequest>, so it bears no attributes.
type xcatrequest struct {
	Command    string   `xml:"command"`
	ClientType string   `xml:"clienttype"`
	NodeRange  string   `xml:"noderange,omitempty"`
	Args       []string `xml:"arg"`
}

// encode writes a command. The newline belongs to it: xcatd reads a line first, and waits for ever for one that has no end.
func encode(command Command) []byte {
	text, err := xml.Marshal(xcatrequest{Command: command.Name, ClientType: "cli", NodeRange: command.noderange(), Args: command.Args})
	if err != nil {
		panic("xcatd: strings cannot be written as XML: " + err.Error()) // strings always can
	}
	return append(text, '\n') // newlines in a text are written as references
}

type xcatresponse struct {
	Errors   []string   `xml:"error"`
	Codes    []int      `xml:"errorcode"`
	Warnings []string   `xml:"warning"`
	Info     []string   `xml:"info"`
	Summary  []string   `xml:"sinfo"`
	Data     []xmlData  `xml:"data"`
	Nodes    []xmlNode  `xml:"node"`
	Done     []struct{} `xml:"serverdone"`
}

type xmlNode struct {
	Name     string    `xml:"name"`
	Errors   []string  `xml:"error"`
	Codes    []int     `xml:"errorcode"`
	Warnings []string  `xml:"warning"`
	Data     []xmlData `xml:"data"`
}

// xmlData is either a text, or contents with a description.
type xmlData struct {
	Text     string   `xml:",chardata"`
	Desc     string   `xml:"desc"`
	Contents []string `xml:"contents"`
}

func (d xmlData) String() string {
	if len(d.Contents) == 0 {
		return strings.TrimSpace(strings.Join([]string{d.Desc, strings.Trim(d.Text, "\n")}, " "))
	}
	text := strings.Join(d.Contents, "\n")
	if d.Desc != "" {
		return d.Desc + ": " + text
	}
	return text
}

// decode reads a stream of <xcatresponse> elements, which have no root in common, up to the one that says serverdone.
func decode(from io.Reader, each func(Line)) (Answer, error) {
	var answer Answer
	add := func(line Line) {
		answer.Lines = append(answer.Lines, line)
		if each != nil {
			each(line)
		}
	}
	all := func(node string, kind LineKind, texts []string) {
		for _, text := range texts {
			add(Line{Node: node, Kind: kind, Text: text})
		}
	}
	decoder := xml.NewDecoder(io.LimitReader(&printable{from}, maxAnswer))
	for {
		var response xcatresponse
		if err := decoder.Decode(&response); err != nil {
			if errors.Is(err, io.EOF) {
				return answer, nil // whether that is an answer, judge says
			}
			return answer, err
		}
		for _, code := range response.Codes {
			answer.Code |= code
		}
		all("", Failure, response.Errors)
		all("", Warning, response.Warnings)
		all("", Data, response.Info)
		all("", Data, response.Summary)
		for _, data := range response.Data {
			add(Line{Kind: Data, Text: data.String()})
		}
		for _, node := range response.Nodes {
			for _, code := range node.Codes {
				answer.Code |= code
			}
			all(node.Name, Failure, node.Errors)
			all(node.Name, Warning, node.Warnings)
			for _, data := range node.Data {
				add(Line{Node: node.Name, Kind: Data, Text: data.String()})
			}
			if len(node.Data)+len(node.Errors) == 0 {
				add(Line{Node: node.Name, Kind: Data}) // nodels answers with the name alone
			}
		}
		if len(response.Done) > 0 {
			answer.Done = true
			return answer, nil
		}
	}
}

// printable drops the control bytes that XML does not allow, which xcatd passes on from BMCs, and replaces 8-bit ones
// by "?", as xcatd does itself.
type printable struct{ from io.Reader }

// Read is part of io.Reader.
func (p *printable) Read(into []byte) (int, error) {
	n, err := p.from.Read(into)
	kept := into[:0]
	for _, b := range into[:n] {
		switch {
		case b >= 0x80:
			kept = append(kept, '?')
		case b >= 0x20 && b != 0x7f, b == '\t', b == '\n', b == '\r':
			kept = append(kept, b)
		}
	}
	return len(kept), err
}
