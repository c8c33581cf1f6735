package temporalclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/reservation"
)

// The pace of a dial: each try may take tryLimit, and the pause between two grows from the first to the longest.
const (
	tryLimit     = 5 * time.Second
	pauseFirst   = 100 * time.Millisecond
	pauseLongest = 2 * time.Second
)

// Options are what a client is made of.
type Options struct {
	Settings Settings
	Identity string                // see Identity
	Logger   log.Logger            // needed: the SDK's own default writes to the standard output
	Metrics  client.MetricsHandler // nil counts nothing
	// Interceptors see every call of the client, and those that are WorkerInterceptors every task of its workers.
	Interceptors []interceptor.ClientInterceptor
	// Waiting is told once when the first try has failed and another is going to be made. It may be nil.
	Waiting func(err error)
}

// UnreachableError says that Temporal did not answer.
type UnreachableError struct {
	Address string
	Tried   time.Duration
	Cause   error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("Temporal does not answer at %s (tried for %s): %s: start it, or set BERTH_TEMPORAL_ADDRESS", e.Address, e.Tried.Round(100*time.Millisecond), reason(e.Cause))
}

func (e *UnreachableError) Unwrap() error { return e.Cause }

// RefusedError says that Temporal is there and does not let us in, or is not who it should be. Trying again is no use.
type RefusedError struct {
	Address string
	Profile string // the SDK's environment profile that counts; "" if none does
	Cause   error
}

func (e *RefusedError) Error() string {
	check := "BERTH_TEMPORAL_TLS_* and BERTH_TEMPORAL_API_KEY_FILE"
	if e.Profile != "" {
		check = "tls and api_key of Temporal's profile " + e.Profile + ", and the TEMPORAL_* variables"
	}
	return fmt.Sprintf("Temporal at %s: %s: check %s", e.Address, reason(e.Cause), check)
}

func (e *RefusedError) Unwrap() error { return e.Cause }

// Dial connects to Temporal and returns once it has answered. It tries again for as long as the settings have patience:
// its error is then an *UnreachableError. A *RefusedError comes at once. Whoever gets a client closes it.
func Dial(ctx context.Context, options Options) (client.Client, error) {
	settings := options.Settings
	began := time.Now()
	within, cancel := context.WithTimeout(ctx, settings.Patience)
	defer cancel()
	pause := pauseFirst
	var last error
	for try := 1; ; try++ {
		c, err := dial(within, options)
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case refused(err):
			refusal := &RefusedError{Address: settings.Address, Cause: err}
			if settings.profile != nil {
				refusal.Profile = settings.profile.name
			}
			return nil, refusal
		}
		// A try that was cut short by the end of our patience knows less than the one before it.
		if last == nil || within.Err() == nil {
			last = err
		}
		if try == 1 && options.Waiting != nil && within.Err() == nil {
			options.Waiting(&UnreachableError{Address: settings.Address, Tried: time.Since(began), Cause: err})
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-within.Done():
			timer.Stop()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, &UnreachableError{Address: settings.Address, Tried: time.Since(began), Cause: last}
		}
		pause = min(2*pause, pauseLongest)
	}
}

func dial(ctx context.Context, options Options) (client.Client, error) {
	settings := options.Settings
	o := client.Options{
		HostPort:       settings.Address,
		Namespace:      settings.Namespace,
		Identity:       options.Identity,
		Logger:         options.Logger,
		MetricsHandler: options.Metrics,
		Interceptors:   options.Interceptors,
	}
	o.ConnectionOptions.GetSystemInfoTimeout = tryLimit
	var secured *reloading
	if settings.UsesTLS() {
		secured = newReloading(settings.tlsFiles())
		// The first is only for the SDK, which is to expect TLS; the second overrides what it makes of it.
		o.ConnectionOptions.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: settings.TLSServerName}
		o.ConnectionOptions.DialOptions = []grpc.DialOption{grpc.WithTransportCredentials(secured)}
	}
	if p := settings.profile; p != nil {
		o.ConnectionOptions.Authority = p.Authority
		if len(p.GRPCMeta) > 0 {
			o.HeadersProvider = p
		}
	}
	if settings.hasAPIKey() {
		o.Credentials = client.NewAPIKeyDynamicCredentials(func(context.Context) (string, error) { return settings.apiKey() })
	}
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	c, err := client.DialContext(ctx, o)
	if err == nil {
		return c, nil
	}
	if secured != nil {
		if cause := secured.failure.Load(); cause != nil {
			return nil, *cause
		}
	}
	return nil, err
}

// refused says whether trying again is no use: whoever answers is not who it should be, or does not let us in.
func refused(err error) bool {
	var settings *reservation.FieldError
	var verification *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError
	var denied *serviceerror.PermissionDenied
	if errors.As(err, &settings) || errors.As(err, &verification) || errors.As(err, &noTLS) || errors.As(err, &denied) {
		return true
	}
	if code := status.Code(err); code == codes.Unauthenticated || code == codes.PermissionDenied {
		return true
	}
	// A server that does not like our certificate says so after the handshake (TLS 1.3), where gRPC leaves us the text alone.
	return strings.Contains(err.Error(), "remote error: tls: ")
}

// reason returns an error's words without gRPC's wrapping.
func reason(err error) string {
	text := err.Error()
	text = strings.TrimPrefix(text, "failed reaching server: ")
	if _, after, found := strings.Cut(text, "desc = "); found {
		text = strings.Trim(after, `"`)
	}
	return strings.TrimPrefix(text, "transport: ")
}

// CheckNamespace returns an error that says what to do if the namespace does not exist, or cannot be looked at.
func CheckNamespace(ctx context.Context, c client.Client, namespace string) error {
	_, err := c.WorkflowService().DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: namespace})
	var missing *serviceerror.NamespaceNotFound
	var notFound *serviceerror.NotFound
	switch {
	case err == nil:
		return nil
	case errors.As(err, &missing), errors.As(err, &notFound):
		return &NamespaceError{Namespace: namespace}
	default:
		return fmt.Errorf("look at Temporal's namespace %s: %w", namespace, err)
	}
}

// NamespaceError says that a namespace does not exist.
type NamespaceError struct{ Namespace string }

func (e *NamespaceError) Error() string {
	return fmt.Sprintf("Temporal has no namespace %q: make it with `temporal operator namespace create --namespace %s`, or set BERTH_TEMPORAL_NAMESPACE", e.Namespace, e.Namespace)
}

// Answers returns nil if Temporal answers within the context's limit.
func Answers(ctx context.Context, c client.Client) error {
	_, err := c.CheckHealth(ctx, &client.CheckHealthRequest{})
	return err
}
