// Package temporalclient connects Berth's programs to Temporal, and prepares what they need there.
package temporalclient

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"berth/reservation"
)

// DefaultAddress is where a development server listens.
const DefaultAddress = "127.0.0.1:7233"

// Settings say where Temporal is and how to get in. Their tags are for envconfig.Process with the prefix "": a main package
// reads them from the environment.
type Settings struct {
	Address   string `envconfig:"BERTH_TEMPORAL_ADDRESS" default:"127.0.0.1:7233" desc:"Temporal's front end, as host:port"`
	Namespace string `envconfig:"BERTH_TEMPORAL_NAMESPACE" default:"default" desc:"Temporal's namespace"`
	// TLS is switched on by any of the files, too.
	TLS           bool          `envconfig:"BERTH_TEMPORAL_TLS" default:"false" desc:"use TLS; the variables below switch it on, too"`
	TLSCA         string        `envconfig:"BERTH_TEMPORAL_TLS_CA" desc:"PEM file of the authorities that Temporal's certificate is checked against; empty: the system's"`
	TLSCert       string        `envconfig:"BERTH_TEMPORAL_TLS_CERT" desc:"PEM file of our certificate, for mutual TLS"`
	TLSKey        string        `envconfig:"BERTH_TEMPORAL_TLS_KEY" desc:"PEM file of our certificate's private key"`
	TLSServerName string        `envconfig:"BERTH_TEMPORAL_TLS_SERVER_NAME" desc:"the name that Temporal's certificate must bear; empty: the address's host"`
	APIKeyFile    string        `envconfig:"BERTH_TEMPORAL_API_KEY_FILE" desc:"file of an API key to log in with; it needs TLS"`
	Patience      time.Duration `envconfig:"BERTH_TEMPORAL_PATIENCE" default:"30s" desc:"how long a start waits for Temporal to answer"`

	profile *profile // what WithProfile took; nil if none counts
}

// UsesTLS says whether the connection is encrypted.
func (s Settings) UsesTLS() bool {
	return s.TLS || s.TLSCA != "" || s.TLSCert != "" || s.TLSKey != "" || s.TLSServerName != "" || s.profile.usesTLS()
}

// Validate returns every fault of the settings, joined, each a *reservation.FieldError that names the variable. It reads
// the TLS files once, so that a wrong path is found before anything is dialled.
func (s Settings) Validate() error {
	var faults []error
	fault := func(variable, value, remedy string) {
		faults = append(faults, &reservation.FieldError{Field: s.profile.called(variable), Value: value, Remedy: remedy})
	}
	if host, port, err := net.SplitHostPort(s.Address); err != nil || host == "" || !isPort(port) {
		fault("BERTH_TEMPORAL_ADDRESS", s.Address, "write host:port, such as "+DefaultAddress)
	}
	if s.Namespace == "" {
		fault("BERTH_TEMPORAL_NAMESPACE", "", "name a namespace of Temporal's, such as default")
	}
	if s.Patience <= 0 {
		fault("BERTH_TEMPORAL_PATIENCE", s.Patience.String(), "give a duration above 0, such as 30s")
	}
	if files := s.tlsFiles(); files.cert.given() != files.key.given() {
		fault("BERTH_TEMPORAL_TLS_CERT and BERTH_TEMPORAL_TLS_KEY", s.TLSCert+s.TLSKey, "set both or none")
	} else if s.UsesTLS() {
		if _, err := files.load(); err != nil {
			faults = append(faults, err)
		}
	}
	if s.hasAPIKey() {
		if !s.UsesTLS() {
			fault("BERTH_TEMPORAL_API_KEY_FILE", s.APIKeyFile, "set BERTH_TEMPORAL_TLS=true: without TLS everybody on the way reads the key")
		}
		if _, err := s.apiKey(); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

func isPort(text string) bool {
	n, err := strconv.Atoi(text)
	return err == nil && n >= 1 && n <= 65535
}

// Identity names a process in Temporal's Web UI and in load logs: "ROLE@HOST:PID".
func Identity(role string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown-host"
	}
	return fmt.Sprintf("%s@%s:%d", role, host, os.Getpid())
}
