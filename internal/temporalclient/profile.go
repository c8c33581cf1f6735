package temporalclient

import (
	"context"
	"fmt"
	"strings"

	"go.temporal.io/sdk/contrib/envconfig"

	"berth/reservation"
)

// profile is what one of the SDK's environment profiles says: a section of a TOML file, with TEMPORAL_* variables over it.
type profile struct {
	envconfig.ClientConfigProfile
	name  string
	env   envconfig.EnvLookup
	plain Settings          // the settings before anything was taken
	taken map[string]string // our variable -> where its value came from
	tls   bool              // the TLS part was taken
	key   bool              // the API key was
}

// WithProfile returns the settings with what they leave open taken from the SDK's environment profile: the one that
// TEMPORAL_PROFILE names (otherwise "default") of the file that TEMPORAL_CONFIG_FILE names (otherwise
// temporalio/temporal.toml in the user's configuration folder), with TEMPORAL_ADDRESS and its like over it. env tells which
// variables are set.
//
// Where BERTH_TEMPORAL_ADDRESS is set no profile counts at all: keys and certificates that are meant for one server must not
// go to another one. For the same reason a profile's TLS part is taken whole or, where any BERTH_TEMPORAL_TLS variable is
// set, not at all.
func (s Settings) WithProfile(env envconfig.EnvLookup) (Settings, error) {
	isSet := func(variable string) bool {
		_, ok := env.LookupEnv(variable)
		return ok
	}
	if isSet("BERTH_TEMPORAL_ADDRESS") {
		return s, nil
	}
	p := &profile{name: envconfig.DefaultConfigFileProfile, env: env, plain: s, taken: map[string]string{}}
	if name, _ := env.LookupEnv("TEMPORAL_PROFILE"); name != "" {
		p.name = name
	}
	if err := p.load(); err != nil {
		return s, err
	}
	take := func(variable string, to *string, value, from string) {
		if value != "" && !isSet(variable) {
			*to, p.taken[variable] = value, from
		}
	}
	take("BERTH_TEMPORAL_ADDRESS", &s.Address, p.Address, "TEMPORAL_ADDRESS (address of the profile)")
	take("BERTH_TEMPORAL_NAMESPACE", &s.Namespace, p.Namespace, "TEMPORAL_NAMESPACE (namespace of the profile)")
	if tls := p.TLS; tls != nil && !tls.Disabled && !anySet(env, "BERTH_TEMPORAL_TLS") {
		if tls.DisableHostVerification {
			return s, &reservation.FieldError{Field: p.from("tls.disable_host_verification"), Value: "true",
				Remedy: "leave it out: Temporal's certificate is always verified; name its authority (tls.server_ca_cert_path) or its name (tls.server_name)"}
		}
		p.tls = true
		take("BERTH_TEMPORAL_TLS_CA", &s.TLSCA, tls.ServerCACertPath, p.from("tls.server_ca_cert_path"))
		take("BERTH_TEMPORAL_TLS_CERT", &s.TLSCert, tls.ClientCertPath, p.from("tls.client_cert_path"))
		take("BERTH_TEMPORAL_TLS_KEY", &s.TLSKey, tls.ClientKeyPath, p.from("tls.client_key_path"))
		take("BERTH_TEMPORAL_TLS_SERVER_NAME", &s.TLSServerName, tls.ServerName, p.from("tls.server_name"))
		p.taken["BERTH_TEMPORAL_TLS_CERT and BERTH_TEMPORAL_TLS_KEY"] = p.from("tls.client_cert_path and tls.client_key_path")
	}
	if p.APIKey != "" && !isSet("BERTH_TEMPORAL_API_KEY_FILE") {
		p.key = true
		p.tls = p.tls || p.TLS == nil // as the SDK has it: a key without a word of TLS asks for TLS
		p.taken["BERTH_TEMPORAL_API_KEY_FILE"] = p.from("api_key")
	}
	if len(p.taken) > 0 || p.tls || p.Authority != "" || len(p.GRPCMeta) > 0 {
		s.profile = p
	}
	return s, nil
}

// At returns the settings for another address, without what a profile said of its own.
func (s Settings) At(address string) Settings {
	if s.profile != nil {
		s = s.profile.plain
	}
	s.Address = address
	return s
}

// load reads the profile, anew each time.
func (p *profile) load() error {
	read, err := envconfig.LoadClientConfigProfile(envconfig.LoadClientConfigProfileOptions{EnvLookup: p.env})
	if err != nil {
		file, _ := p.env.LookupEnv("TEMPORAL_CONFIG_FILE")
		if file == "" {
			file = envconfig.DefaultConfigFilePath()
		}
		return &reservation.FieldError{Field: "TEMPORAL_CONFIG_FILE and TEMPORAL_PROFILE", Value: file + " and " + p.name,
			Remedy: fmt.Sprintf("correct the file, name another one, or set BERTH_TEMPORAL_ADDRESS to do without a profile (%v)", err)}
	}
	p.ClientConfigProfile = read
	return nil
}

func (p *profile) from(key string) string { return key + " of Temporal's profile " + p.name }

// called returns where the value of one of our variables came from, by name: from the variable itself, or from a profile.
func (p *profile) called(variable string) string {
	if p != nil && p.taken[variable] != "" {
		return p.taken[variable]
	}
	return variable
}

func (p *profile) usesTLS() bool { return p != nil && p.tls }

// apiKey returns the key as the profile says it now.
func (p *profile) apiKey() (string, error) {
	now := profile{name: p.name, env: p.env}
	if err := now.load(); err != nil {
		return "", err
	}
	if now.APIKey == "" {
		return "", &reservation.FieldError{Field: p.from("api_key"), Value: "", Remedy: "it was there at the start and is gone: put the API key there"}
	}
	return now.APIKey, nil
}

// GetHeaders is what the SDK asks for a call's metadata.
func (p *profile) GetHeaders(context.Context) (map[string]string, error) { return p.GRPCMeta, nil }

func anySet(env envconfig.EnvLookup, prefix string) bool {
	for _, pair := range env.Environ() {
		if strings.HasPrefix(pair, prefix) {
			return true
		}
	}
	return false
}
