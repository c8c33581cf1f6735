package winrmtest_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/masterzen/winrm"
	"github.com/stretchr/testify/require"

	"berth/osmodules/remote/winrm/winrmtest"
)

const name = "guest.example.test"

func start(t *testing.T, options winrmtest.Options) *winrmtest.Server {
	t.Helper()
	var err error
	options.Certificate, err = winrmtest.NewCertificate(name)
	require.NoError(t, err)
	options.Users = func(user string) (string, bool) { return "Passw\u00f6rd", user == "Administrator" }
	if options.Exec == nil {
		options.Exec = func(ctx context.Context, line string, stdin io.Reader, stdout, stderr io.Writer) int {
			content, _ := io.ReadAll(stdin)
			fmt.Fprintf(stdout, "%s ran %s with %s", winrmtest.User(ctx), line, content)
			io.WriteString(stderr, strings.Repeat("e", 100_000))
			return 7
		}
	}
	server, err := winrmtest.Start(options)
	require.NoError(t, err)
	t.Cleanup(server.Close)
	return server
}

// dial makes the library's own client, with the server's certificate as its authority.
func dial(t *testing.T, server *winrmtest.Server, user, password string, transport func() winrm.Transporter) *winrm.Client {
	t.Helper()
	certificate, err := winrmtest.NewCertificate(name)
	require.NoError(t, err)
	server.Change(func(o *winrmtest.Options) { o.Certificate = certificate })
	host, port, err := net.SplitHostPort(server.Address())
	require.NoError(t, err)
	number, err := strconv.Atoi(port)
	require.NoError(t, err)
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	endpoint := winrm.NewEndpoint(host, number, true, false, authority, nil, nil, time.Minute)
	endpoint.TLSServerName = name
	parameters := winrm.NewParameters("PT20S", "en-US", 153600)
	parameters.TransportDecorator = transport
	client, err := winrm.NewClientWithParameters(endpoint, user, password, parameters)
	require.NoError(t, err)
	return client
}

func TestAnotherClientRunsACommand(t *testing.T) {
	for method, transport := range map[string]func() winrm.Transporter{
		"NTLM":  func() winrm.Transporter { return &winrm.ClientNTLM{} },
		"Basic": nil,
	} {
		t.Run(method, func(t *testing.T) {
			server := start(t, winrmtest.Options{Basic: true})
			client := dial(t, server, "Administrator", "Passw\u00f6rd", transport)
			stdout, stderr, exit, err := client.RunWithContextWithString(t.Context(), "some line", "the input")
			require.NoError(t, err)
			require.Equal(t, "Administrator ran some line with the input", stdout)
			require.Len(t, stderr, 100_000, "in several answers")
			require.Equal(t, 7, exit)
			require.Zero(t, server.Shells())
			require.Positive(t, server.Logins())
		})
	}
}

func TestAWrongPasswordIsRefused(t *testing.T) {
	for method, transport := range map[string]func() winrm.Transporter{
		"NTLM":  func() winrm.Transporter { return &winrm.ClientNTLM{} },
		"Basic": nil,
	} {
		for user, password := range map[string]string{"Administrator": "Password", "Nobody": "Passw\u00f6rd", "administrato": ""} {
			t.Run(method+" "+user, func(t *testing.T) {
				server := start(t, winrmtest.Options{Basic: true})
				_, err := dial(t, server, user, password, transport).CreateShell()
				require.ErrorContains(t, err, "401")
				require.Positive(t, server.Refusals())
				require.Zero(t, server.Logins())
			})
		}
	}
}

func TestBasicIsNotOfferedUnlessAskedFor(t *testing.T) {
	server := start(t, winrmtest.Options{})
	_, err := dial(t, server, "Administrator", "Passw\u00f6rd", nil).CreateShell()
	require.ErrorContains(t, err, "401")
}
