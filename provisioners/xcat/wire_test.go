package xcat

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// listen serves the fake on a port of its own as xcatd does: XML over TLS, for clients whose certificate is berth's. It
// returns the site to reach it with.
func (f *fake) listen(t *testing.T) Site {
	folder := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "xCAT CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour)}
	root, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	require.NoError(t, err)
	encoded := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	issue := func(cn string) []byte {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn},
			NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour)}, authority, own.Public(), key)
		require.NoError(t, err)
		private, err := x509.MarshalPKCS8PrivateKey(own)
		require.NoError(t, err)
		return []byte(encoded("CERTIFICATE", der) + encoded("PRIVATE KEY", private))
	}
	ca := filepath.Join(folder, "ca.pem")
	require.NoError(t, os.WriteFile(ca, []byte(encoded("CERTIFICATE", root)), 0o600))
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM([]byte(encoded("CERTIFICATE", root)))
	both := issue("mn")
	mn, err := tls.X509KeyPair(both, both)
	require.NoError(t, err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{mn}, ClientCAs: clients, ClientAuth: tls.VerifyClientCertIfGiven})
	require.NoError(t, err)
	var running sync.WaitGroup
	t.Cleanup(func() { listener.Close(); running.Wait() })
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { f.converse(conn) })
		}
	})
	client := issue("berth")
	return Site{Name: "mn", Address: listener.Addr().String(), ServerName: "mn", CAFile: ca, Certificate: func() ([]byte, error) { return client, nil }}
}

func (f *fake) converse(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	var request struct {
		Command   string   `xml:"command"`
		NodeRange string   `xml:"noderange"`
		Args      []string `xml:"arg"`
	}
	if err != nil || xml.Unmarshal([]byte(line), &request) != nil {
		return
	}
	peers := conn.(*tls.Conn).ConnectionState().PeerCertificates
	if len(peers) == 0 || peers[0].Subject.CommonName != "berth" {
		fmt.Fprint(conn, "<xcatresponse><error>Permission denied for request</error><errorcode>1</errorcode><serverdone></serverdone></xcatresponse>")
		return
	}
	command := xcatd.Command{Name: request.Command, Args: request.Args}
	if request.NodeRange != "" {
		command.Nodes = strings.Split(request.NodeRange, ",")
	}
	answer, err := f.Run(context.Background(), command)
	if err != nil {
		return
	}
	for _, line := range answer.Lines {
		var text strings.Builder
		xml.EscapeText(&text, []byte(line.Text))
		element := "data"
		if line.Kind == xcatd.Failure {
			element = "error"
		}
		body := fmt.Sprintf("<%s>%s</%s>", element, text.String(), element)
		if line.Node != "" {
			body = "<node>" + body + "<name>" + line.Node + "</name></node>"
		}
		fmt.Fprintf(conn, "<xcatresponse>\n  %s\n  <errorcode>%d</errorcode>\n</xcatresponse>\n", body, answer.Code)
	}
	fmt.Fprint(conn, "<xcatresponse>\n  <serverdone></serverdone>\n</xcatresponse>\n")
}

func TestALoadOverTheWire(t *testing.T) {
	f := newFake()
	f.nodes["n01"].install = []step{
		{20 * time.Millisecond, func(n *fakeNode) { n.set("installing") }},
		{60 * time.Millisecond, next},
	}
	site := f.listen(t)
	limits := Limits{PollPower: 5 * time.Millisecond, PollStart: 5 * time.Millisecond, PollInstall: 5 * time.Millisecond}
	closed, err := net.Listen("tcp", "127.0.0.1:0") // where no installer answers
	require.NoError(t, err)
	closed.Close()
	m, err := New(Options{Sites: []Site{site}, Limits: limits, Logger: zerolog.Nop(), InstallerPorts: []int{closed.Addr().(*net.TCPAddr).Port}})
	require.NoError(t, err)
	request := order()
	request.Reservation.Computer.Address = "127.0.0.1"
	require.NoError(t, m.Check(t.Context()))
	loaded, err := m.Load(t.Context(), request, newReporter())
	require.NoError(t, err)
	require.Equal(t, "mn/n01", loaded.Reference)
	require.NoError(t, m.PowerReset(t.Context(), request))
	require.NoError(t, m.Unload(t.Context(), request, newReporter()))
	f.with(func(n *fakeNode) {
		require.Equal(t, stateBoot, n.state)
		require.Equal(t, 2, n.boots)
		require.False(t, n.on)
		require.Empty(t, n.comment)
	})

	other := newFake().listen(t)
	site.Certificate = other.Certificate // of another authority
	m, err = New(Options{Sites: []Site{site}, Logger: zerolog.Nop()})
	require.NoError(t, err)
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(m.Check(t.Context())))
}
