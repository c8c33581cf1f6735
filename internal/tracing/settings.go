// Package tracing makes one OpenTelemetry trace of each reservation: from the command line that starts its workflow over the
// workflow and the tries of its activities down to the calls that modules make (package span).
package tracing

import (
	"errors"
	"net/url"
	"strings"

	"berth/reservation"
)

// The protocols that a collector may speak.
const (
	ProtocolHTTP = "http/protobuf"
	ProtocolGRPC = "grpc"
)

// Settings are OpenTelemetry's own variables that decide whether and where traces go. Their tags are for
// envconfig.Process with the prefix "". The OpenTelemetry SDK reads its further variables (OTEL_EXPORTER_OTLP_HEADERS,
// _CERTIFICATE and _TIMEOUT, OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*) by itself.
type Settings struct {
	Endpoint       string `envconfig:"OTEL_EXPORTER_OTLP_ENDPOINT" desc:"OpenTelemetry collector that traces go to, such as http://collector:4318; empty: no traces"`
	TracesEndpoint string `envconfig:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" desc:"the same for traces alone, as a whole URL, such as http://collector:4318/v1/traces"`
	Protocol       string `envconfig:"OTEL_EXPORTER_OTLP_PROTOCOL" default:"http/protobuf" desc:"what the collector speaks: http/protobuf (usually port 4318) or grpc (4317)"`
	Exporter       string `envconfig:"OTEL_TRACES_EXPORTER" default:"otlp" desc:"otlp, or none for no traces"`
	Disabled       bool   `envconfig:"OTEL_SDK_DISABLED" default:"false" desc:"true: no traces, whatever else is set"`
}

// On says whether there are traces.
func (s Settings) On() bool { return s.endpoint() != "" && s.Exporter != "none" && !s.Disabled }

// endpoint returns the URL that traces are sent to; "" if none is set.
func (s Settings) endpoint() string {
	switch {
	case s.TracesEndpoint != "":
		return s.TracesEndpoint
	case s.Endpoint != "" && s.Protocol == ProtocolHTTP:
		return strings.TrimSuffix(s.Endpoint, "/") + "/v1/traces"
	default:
		return s.Endpoint
	}
}

// Validate returns every fault of the settings, joined, each a *reservation.FieldError that names the variable.
func (s Settings) Validate() error {
	var faults []error
	for variable, value := range map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": s.Endpoint, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": s.TracesEndpoint} {
		if u, err := url.Parse(value); value != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			faults = append(faults, &reservation.FieldError{Field: variable, Value: value, Remedy: "write a URL such as http://collector:4318"})
		}
	}
	if s.Protocol != ProtocolHTTP && s.Protocol != ProtocolGRPC {
		faults = append(faults, &reservation.FieldError{Field: "OTEL_EXPORTER_OTLP_PROTOCOL", Value: s.Protocol, Remedy: "write " + ProtocolHTTP + " or " + ProtocolGRPC})
	}
	if s.Exporter != "otlp" && s.Exporter != "none" {
		faults = append(faults, &reservation.FieldError{Field: "OTEL_TRACES_EXPORTER", Value: s.Exporter, Remedy: "write otlp or none"})
	}
	return errors.Join(faults...)
}
