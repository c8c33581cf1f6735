package temporalclient

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth/internal/devserver"
	"berth/reservation"
)

// environment is an environment of variables that a test sets.
type environment map[string]string

func (e environment) LookupEnv(name string) (string, bool) {
	value, ok := e[name]
	return value, ok
}

func (e environment) Environ() []string {
	var all []string
	for name, value := range e {
		all = append(all, name+"="+value)
	}
	return all
}

// profileFile writes a file of profiles.
func profileFile(t *testing.T, text string, values ...any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "temporal.toml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, text, values...), 0o600))
	return path
}

const cloudProfile = `
[profile.default]
address = "default.test:7233"

[profile.cloud]
address = "cloud.test:7233"
namespace = "berth"
api_key = "from-the-file"
[profile.cloud.tls]
server_name = "temporal.test"
`

func TestWhichSettingsAProfileGives(t *testing.T) {
	path := profileFile(t, cloudProfile)
	defaults := settings(DefaultAddress)
	type want struct {
		address, namespace, serverName, key string
		tls                                 bool
	}
	for name, test := range map[string]struct {
		env  environment
		ours func(*Settings) // what envconfig has read of ours
		want want
	}{
		"no profile at all":                 {env: environment{"TEMPORAL_CONFIG_FILE": "/nowhere"}, want: want{address: DefaultAddress, namespace: "default"}},
		"the default one of the file":       {env: environment{"TEMPORAL_CONFIG_FILE": path}, want: want{address: "default.test:7233", namespace: "default"}},
		"the one that is named":             {env: environment{"TEMPORAL_CONFIG_FILE": path, "TEMPORAL_PROFILE": "cloud"}, want: want{"cloud.test:7233", "berth", "temporal.test", "from-the-file", true}},
		"the SDK's variables over the file": {env: environment{"TEMPORAL_CONFIG_FILE": path, "TEMPORAL_PROFILE": "cloud", "TEMPORAL_NAMESPACE": "other", "TEMPORAL_TLS_SERVER_NAME": "other.test"}, want: want{"cloud.test:7233", "other", "other.test", "from-the-file", true}},
		"the SDK's variables alone":         {env: environment{"TEMPORAL_CONFIG_FILE": "/nowhere", "TEMPORAL_ADDRESS": "a.test:1", "TEMPORAL_TLS": "true"}, want: want{address: "a.test:1", namespace: "default", tls: true}},
		"a key alone asks for TLS":          {env: environment{"TEMPORAL_CONFIG_FILE": "/nowhere", "TEMPORAL_ADDRESS": "a.test:1", "TEMPORAL_API_KEY": "k"}, want: want{address: "a.test:1", namespace: "default", key: "k", tls: true}},
		"TLS that is off":                   {env: environment{"TEMPORAL_CONFIG_FILE": path, "TEMPORAL_PROFILE": "cloud", "TEMPORAL_TLS": "false", "TEMPORAL_API_KEY": ""}, want: want{address: "cloud.test:7233", namespace: "berth"}},
		"our own variables over it all": {env: environment{"TEMPORAL_CONFIG_FILE": path, "TEMPORAL_PROFILE": "cloud", "BERTH_TEMPORAL_NAMESPACE": "ours"}, ours: func(s *Settings) { s.Namespace = "ours" },
			want: want{"cloud.test:7233", "ours", "temporal.test", "from-the-file", true}},
		"TLS of our own is ours alone": {env: environment{"TEMPORAL_CONFIG_FILE": path, "TEMPORAL_PROFILE": "cloud", "BERTH_TEMPORAL_TLS": "true", "BERTH_TEMPORAL_API_KEY_FILE": ""}, ours: func(s *Settings) { s.TLS = true },
			want: want{address: "cloud.test:7233", namespace: "berth", tls: true}},
		"an address of our own does without any profile": {env: environment{"TEMPORAL_CONFIG_FILE": path, "TEMPORAL_PROFILE": "cloud", "BERTH_TEMPORAL_ADDRESS": "ours.test:7233"}, ours: func(s *Settings) { s.Address = "ours.test:7233" },
			want: want{address: "ours.test:7233", namespace: "default"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := defaults
			if test.ours != nil {
				test.ours(&s)
			}
			s, err := s.WithProfile(test.env)
			require.NoError(t, err)
			require.NoError(t, s.Validate())
			got := want{address: s.Address, namespace: s.Namespace, serverName: s.TLSServerName, tls: s.UsesTLS()}
			if s.hasAPIKey() {
				got.key, err = s.apiKey()
				require.NoError(t, err)
			}
			require.Equal(t, test.want, got)

			elsewhere := s.At("flag.test:7233")
			require.Equal(t, "flag.test:7233", elsewhere.Address)
			require.False(t, elsewhere.hasAPIKey(), "a profile's key goes to the profile's server alone")
		})
	}
}

func TestFaultsOfAProfileNameIt(t *testing.T) {
	for name, test := range map[string]struct {
		file string
		env  environment
		want []string
	}{
		"one that is not there":      {cloudProfile, environment{"TEMPORAL_PROFILE": "clud"}, []string{"TEMPORAL_PROFILE", "clud", "BERTH_TEMPORAL_ADDRESS"}},
		"a file that is no TOML":     {"[profile", environment{}, []string{"TEMPORAL_CONFIG_FILE", "correct the file"}},
		"an address without a port":  {"[profile.default]\naddress = \"x\"", environment{}, []string{"TEMPORAL_ADDRESS (address of the profile)", `"x"`, "host:port"}},
		"a file that is gone":        {"[profile.default.tls]\nserver_ca_cert_path = \"/gone\"", environment{}, []string{"tls.server_ca_cert_path of Temporal's profile default", "/gone"}},
		"a certificate without key":  {"[profile.default.tls]\nclient_cert_path = \"/gone\"", environment{}, []string{"tls.client_cert_path and tls.client_key_path of Temporal's profile default", "set both"}},
		"nothing is to be verified":  {"[profile.default.tls]\ndisable_host_verification = true", environment{}, []string{"tls.disable_host_verification", "always verified"}},
		"a key and TLS that is off":  {"[profile.default]\napi_key = \"k\"\n[profile.default.tls]\ndisabled = true", environment{}, []string{"api_key of Temporal's profile default", "without TLS"}},
		"PEM that holds no PEM text": {"[profile.default.tls]\nserver_ca_cert_data = \"x\"", environment{}, []string{"no certificate in it"}},
	} {
		t.Run(name, func(t *testing.T) {
			test.env["TEMPORAL_CONFIG_FILE"] = profileFile(t, "%s", test.file)
			s, err := settings(DefaultAddress).WithProfile(test.env)
			if err == nil {
				err = s.Validate()
			}
			var field *reservation.FieldError
			require.ErrorAs(t, err, &field)
			for _, words := range test.want {
				require.ErrorContains(t, err, words)
			}
		})
	}
}

func profileReloads(t *testing.T, server *devserver.Server) {
	folder := t.TempDir()
	path := func(name string) string { return filepath.Join(folder, name) }
	first := newAuthority(t)
	proxy := newTLSProxy(t, server.Address)
	proxy.use(first.certificate(t, "temporal.test"), first)
	first.write(t, path("ca.pem"), path("cert.pem"), path("key.pem"))
	s, err := settings(DefaultAddress).WithProfile(environment{"TEMPORAL_CONFIG_FILE": profileFile(t, `
[profile.default]
address = %q
[profile.default.tls]
server_name = "temporal.test"
server_ca_cert_path = %q
client_cert_path = %q
client_key_path = %q
`, proxy.address, path("ca.pem"), path("cert.pem"), path("key.pem"))})
	require.NoError(t, err)
	require.NoError(t, s.Validate())
	c, err := Dial(t.Context(), options(s))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, Answers(t.Context(), c))
	renews(t, c, s, proxy, newAuthority(t))

	stranger := newAuthority(t)
	proxy.use(stranger.certificate(t, "temporal.test"), stranger)
	_, err = Dial(t.Context(), options(s))
	var refused *RefusedError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "check tls and api_key of Temporal's profile default")
}

// A server that only looks at what comes with each call.
func TestAProfilesKeyAndMetadataGoWithEachCall(t *testing.T) {
	authority := newAuthority(t)
	certificate := authority.certificate(t, "temporal.test")
	clients := x509.NewCertPool()
	clients.AddCert(authority.cert)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	calls := make(chan metadata.MD, 100)
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients})),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			md, _ := metadata.FromIncomingContext(stream.Context())
			calls <- md
			if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
				return err
			}
			return stream.SendMsg(&emptypb.Empty{}) // which every answer can be read from
		}))
	defer server.Stop()
	go func() { _ = server.Serve(listener) }()

	folder := t.TempDir()
	path := func(name string) string { return filepath.Join(folder, name) }
	authority.write(t, path("ca.pem"), path("cert.pem"), path("key.pem"))
	pem := func(name string) string {
		text, err := os.ReadFile(path(name))
		require.NoError(t, err)
		return string(text)
	}
	// The certificates stand in the profile itself here, as a secret store hands them over.
	text := fmt.Sprintf(`
[profile.default]
address = %q
api_key = "first-key"
[profile.default.grpc_meta]
x-lab = "north"
[profile.default.tls]
server_name = "temporal.test"
server_ca_cert_data = """%s"""
client_cert_data = """%s"""
client_key_data = """%s"""
`, listener.Addr(), pem("ca.pem"), pem("cert.pem"), pem("key.pem"))
	file := profileFile(t, "%s", text)
	s, err := settings(DefaultAddress).WithProfile(environment{"TEMPORAL_CONFIG_FILE": file})
	require.NoError(t, err)
	require.NoError(t, s.Validate())
	c, err := Dial(t.Context(), options(s))
	require.NoError(t, err)
	defer c.Close()
	got := <-calls
	require.Equal(t, []string{"Bearer first-key"}, got.Get("authorization"))
	require.Equal(t, []string{"north"}, got.Get("x-lab"))

	// A key that is changed in the file counts from the next call on.
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(text, "first-key", "second-key", 1)), 0o600))
	for len(calls) > 0 {
		<-calls
	}
	_ = Answers(t.Context(), c)
	require.Equal(t, []string{"Bearer second-key"}, (<-calls).Get("authorization"))
}
