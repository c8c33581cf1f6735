package winrm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bodgit/ntlmssp"

	"berth/osmodules/remote"
)

// conn is one TLS connection with HTTP on it, for one request at a time. NTLM logs in a connection, not a request, so it
// never makes another one.
type conn struct {
	secure    *tls.Conn
	transport *http.Transport
	url       string
	auth      string
	user      string
	password  string
	shown     Pin
	loggedIn  bool
}

func newConn(secure *tls.Conn, target Target, password string, shown Pin) *conn {
	var used atomic.Bool
	return &conn{secure: secure, url: "https://" + target.Address + "/wsman", auth: target.Auth, user: target.User, password: password, shown: shown,
		transport: &http.Transport{
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
				if used.Swap(true) {
					return nil, errors.New("the guest closed the connection")
				}
				return secure, nil
			},
			// A request that comes while the last answer is put away waits for the connection.
			MaxConnsPerHost:    1,
			DisableCompression: true,
		}}
}

func (c *conn) close() {
	c.transport.CloseIdleConnections()
	c.secure.NetConn().Close()
}

// ask sends a request and returns the answer. Its error is a *FaultError, a *StatusError or a *remote.AuthError when the
// guest has answered; with any other one the connection is of no more use.
func (c *conn) ask(ctx context.Context, request string, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	response, err := c.authenticated(ctx, request)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the guest has not answered for %s", limit)
		}
		return "", err
	}
	if !strings.Contains(response.header.Get("Content-Type"), "application/soap+xml") {
		return "", &StatusError{Status: response.status}
	}
	if response.status != http.StatusOK {
		return "", parseFault(response)
	}
	return string(response.body), nil
}

// answered says whether an error of ask is the guest's answer.
func answered(err error) bool {
	var fault *FaultError
	var status *StatusError
	var refused *remote.AuthError
	return errors.As(err, &fault) || errors.As(err, &status) || errors.As(err, &refused)
}

func parseFault(response reply) error {
	var envelope struct {
		Subcode string `xml:"Body>Fault>Code>Subcode>Value"`
		Text    string `xml:"Body>Fault>Reason>Text"`
		Fault   *struct {
			Code uint32 `xml:"Code,attr"`
		} `xml:"Body>Fault>Detail>WSManFault"`
	}
	if err := xml.Unmarshal(response.body, &envelope); err != nil || envelope.Subcode == "" {
		return &StatusError{Status: response.status}
	}
	fault := &FaultError{Subcode: envelope.Subcode, Text: strings.Join(strings.Fields(envelope.Text), " ")}
	if envelope.Fault != nil {
		fault.Code = envelope.Fault.Code
	}
	return fault
}

// authenticated sends a request and logs in where the guest wants it.
func (c *conn) authenticated(ctx context.Context, request string) (reply, error) {
	if c.auth == AuthBasic {
		login := "Basic " + base64.StdEncoding.EncodeToString([]byte(c.user+":"+c.password))
		response, err := c.post(ctx, request, login)
		if err == nil && response.status == http.StatusUnauthorized {
			return reply{}, c.refused(response, "Basic")
		}
		return response, err
	}
	if c.loggedIn {
		response, err := c.post(ctx, request, "")
		if err != nil || response.status != http.StatusUnauthorized {
			return response, err
		}
		c.loggedIn = false // the service has forgotten us
	}
	domain, user, found := strings.Cut(c.user, `\`)
	if !found {
		domain, user = "", c.user
	}
	if domain == "." {
		domain = "" // this computer
	}
	client, err := ntlmssp.NewClient(ntlmssp.SetUserInfo(user, c.password), ntlmssp.SetDomain(domain))
	if err != nil {
		return reply{}, err
	}
	hello, err := client.Authenticate(nil, nil)
	if err != nil {
		return reply{}, err
	}
	response, err := c.post(ctx, "", negotiate+base64.StdEncoding.EncodeToString(hello))
	if err != nil {
		return reply{}, err
	}
	if response.status != http.StatusUnauthorized {
		return response, nil
	}
	challenge := response.challenge()
	if challenge == nil {
		return reply{}, c.refused(response, "Negotiate")
	}
	proof, err := client.Authenticate(challenge, bindings(c.secure.ConnectionState().PeerCertificates[0]))
	if err != nil {
		return reply{}, &remote.AuthError{User: c.user, Err: fmt.Errorf("the guest's NTLM challenge cannot be answered: %w", err)}
	}
	response, err = c.post(ctx, request, negotiate+base64.StdEncoding.EncodeToString(proof))
	if err == nil && response.status == http.StatusUnauthorized {
		return reply{}, c.refused(response, "Negotiate")
	}
	c.loggedIn = err == nil
	return response, err
}

const negotiate = "Negotiate "

// refused says why the guest does not take our login: because it is wrong, or because it takes no such login.
func (c *conn) refused(response reply, method string) error {
	var offered []string
	for _, offer := range response.header.Values("WWW-Authenticate") {
		scheme, _, _ := strings.Cut(offer, " ")
		if strings.EqualFold(scheme, method) {
			return &remote.AuthError{User: c.user, Err: errors.New("wrong user name or password")}
		}
		offered = append(offered, fmt.Sprintf("%.20q", scheme))
	}
	return &remote.AuthError{User: c.user, Err: fmt.Errorf("the service takes no %s logins, only %s", c.auth, strings.Join(offered, ", "))}
}

// bindings ties an NTLM login to the TLS connection (RFC 5929, tls-server-end-point): the certificate's hash by its own
// signature's algorithm, but never a weaker one than SHA-256.
func bindings(certificate *x509.Certificate) *ntlmssp.ChannelBindings {
	hash := crypto.SHA256
	switch certificate.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		hash = crypto.SHA512
	}
	digest := hash.New()
	digest.Write(certificate.Raw)
	return &ntlmssp.ChannelBindings{ApplicationData: append([]byte(ntlmssp.TLSServerEndPoint+":"), digest.Sum(nil)...)}
}

// reply is an HTTP answer.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// challenge returns the guest's NTLM message, nil if there is none.
func (r reply) challenge() []byte {
	for _, offer := range r.header.Values("WWW-Authenticate") {
		if encoded, found := strings.CutPrefix(offer, negotiate); found {
			if message, err := base64.StdEncoding.DecodeString(encoded); err == nil && len(message) > 0 {
				return message
			}
		}
	}
	return nil
}

// longestAnswer is more than a guest may send (envelopeSize) and holds off one that has gone wild.
const longestAnswer = 4 << 20

func (c *conn) post(ctx context.Context, body, login string) (reply, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader([]byte(body)))
	if err != nil {
		return reply{}, err
	}
	request.Header.Set("Content-Type", "application/soap+xml;charset=UTF-8")
	request.Header.Set("User-Agent", "Berth")
	if login != "" {
		request.Header.Set("Authorization", login)
	}
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, longestAnswer+1))
	if err != nil {
		return reply{}, err
	}
	if len(content) > longestAnswer {
		return reply{}, fmt.Errorf("the guest's answer is longer than %d bytes", longestAnswer)
	}
	return reply{status: response.StatusCode, header: response.Header, body: content}, nil
}
