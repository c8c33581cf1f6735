package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.temporal.io/api/serviceerror"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth/internal/catalog"
	"berth/internal/hold"
	"berth/internal/loadlog"
	"berth/internal/temporalclient"
	"berth/reservation"
)

// The exit codes.
const (
	CodeOK          = 0
	CodeFailed      = 1   // the operation failed, or a reservation that was waited for ended badly
	CodeInput       = 2   // arguments, a batch file or the catalog have a fault; nothing was done
	CodeHeld        = 3   // the computer, or the name, is taken
	CodeNotFound    = 4   // no such reservation
	CodeTemporal    = 5   // Temporal cannot be reached, or is not set up for Berth
	CodeNoWorker    = 6   // no worker answers for the reservations
	CodeInterrupted = 130 // ended by Ctrl-C; what was started goes on
)

func codesHelp() string {
	return fmt.Sprintf(`Exit codes:
  %d    everything went well
  %d    it failed, or a reservation that was waited for ended badly (of several that failed in different ways, too)
  %d    wrong input: arguments, batch file or catalog; nothing was done
  %d    refused: the computer is held by another reservation, or the reservation's name is taken
  %d    not found: no such reservation
  %d    Temporal cannot be reached, or no worker has set it up yet
  %d    no worker answers for the reservations
  %d  interrupted; what was started goes on
`, CodeOK, CodeFailed, CodeInput, CodeHeld, CodeNotFound, CodeTemporal, CodeNoWorker, CodeInterrupted)
}

// Failure is why a command did not do what it was asked: what is wrong, what to do, and the exit code.
type Failure struct {
	Code  int
	Text  string // may have several lines
	Hint  string // what to do; "" when the text says it
	Cause error
}

func (f *Failure) Error() string {
	if f.Hint == "" {
		return f.Text
	}
	return f.Text + " (" + f.Hint + ")"
}

func (f *Failure) Unwrap() error { return f.Cause }

// reported ends the command with a code when everything has been said.
type reported struct{ code int }

func (r *reported) Error() string { return fmt.Sprintf("exit code %d", r.code) }

// explain gives an error its exit code, and words that say what to do.
func (s *session) explain(ctx context.Context, err error) *Failure {
	var done *reported
	if errors.As(err, &done) {
		return &Failure{Code: done.code}
	}
	var failure *Failure
	if errors.As(err, &failure) {
		return failure
	}
	if ctx.Err() != nil {
		return &Failure{Code: CodeInterrupted, Text: "interrupted", Cause: err}
	}
	var held *hold.HeldError
	if errors.As(err, &held) {
		return &Failure{Code: CodeHeld, Text: held.Error(), Cause: err}
	}
	if f := s.explainTemporal(err); f != nil {
		return f
	}
	var field *reservation.FieldError
	if errors.As(err, &field) {
		return &Failure{Code: CodeInput, Text: err.Error(), Cause: err}
	}
	return &Failure{Code: CodeFailed, Text: err.Error(), Cause: err}
}

// explainTemporal explains what Temporal answers, or that it does not; nil for any other error.
func (s *session) explainTemporal(err error) *Failure {
	settings := s.settings()
	at := " at " + settings.Address
	remedy := "is the server running? say where it is with --address or BERTH_TEMPORAL_ADDRESS"

	var unreachable *temporalclient.UnreachableError
	var refused *temporalclient.RefusedError
	var missing *serviceerror.NamespaceNotFound
	var denied *serviceerror.PermissionDenied
	var invalid *serviceerror.InvalidArgument
	switch {
	case errors.As(err, &unreachable):
		return &Failure{Code: CodeTemporal, Text: "Temporal does not answer" + at + ": " + rootText(unreachable.Cause), Hint: remedy, Cause: err}
	case errors.As(err, &refused):
		return &Failure{Code: CodeTemporal, Text: refused.Error(), Cause: err}
	case errors.As(err, &missing):
		return &Failure{Code: CodeTemporal, Text: fmt.Sprintf("Temporal%s has no namespace %q", at, settings.Namespace),
			Hint: "choose one that there is with --namespace or BERTH_TEMPORAL_NAMESPACE", Cause: err}
	case errors.As(err, &denied):
		return &Failure{Code: CodeTemporal, Text: "Temporal" + at + " refuses: " + denied.Message,
			Hint: "check BERTH_TEMPORAL_TLS_* and what the namespace permits", Cause: err}
	case errors.As(err, &invalid) && aboutAttributes(invalid.Message):
		return &Failure{Code: CodeTemporal, Text: fmt.Sprintf("namespace %q of Temporal%s does not know Berth's search attributes", settings.Namespace, at),
			Hint: "start a worker once: it registers them", Cause: err}
	}
	switch code := statusCode(err); {
	case code == codes.Unavailable, code == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded):
		return &Failure{Code: CodeTemporal, Text: "Temporal does not answer" + at + ": " + rootText(err), Hint: remedy, Cause: err}
	case code == codes.Unauthenticated:
		return &Failure{Code: CodeTemporal, Text: "Temporal" + at + " does not know us: " + rootText(err), Hint: "check BERTH_TEMPORAL_TLS_*", Cause: err}
	case code == codes.ResourceExhausted:
		return &Failure{Code: CodeTemporal, Text: "Temporal" + at + " is overloaded: " + rootText(err), Hint: "try again later", Cause: err}
	}
	return nil
}

func aboutAttributes(message string) bool {
	return strings.Contains(message, "search attribute") && strings.Contains(message, "Berth")
}

// statusCode returns the gRPC code that err bears; OK if none.
func statusCode(err error) codes.Code {
	for ; err != nil; err = errors.Unwrap(err) {
		if bearer, ok := err.(interface{ Status() *status.Status }); ok {
			return bearer.Status().Code()
		}
		if bearer, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
			return bearer.GRPCStatus().Code()
		}
	}
	return codes.OK
}

// rootText returns the innermost words of a connection's error: gRPC wraps "connection refused" in four layers of its own.
func rootText(err error) string {
	text := err.Error()
	for _, mark := range []string{"Error while dialing: ", "desc = "} {
		if _, inner, ok := strings.Cut(text, mark); ok {
			text = inner
		}
	}
	text = strings.TrimPrefix(text, "failed reaching server: ")
	return strings.TrimSuffix(strings.TrimSpace(text), `"`)
}

// complain writes a failure to standard error.
func (s *session) complain(f *Failure) {
	s.say(s.Stderr, loadlog.Bad, "error", f.Text, f.Hint)
}

// warn writes a warning to standard error.
func (s *session) warn(text, hint string) {
	s.say(s.Stderr, loadlog.Warn, "warning", text, hint)
}

func (s *session) say(w io.Writer, paint loadlog.Paint, word, text, hint string) {
	if text == "" {
		return
	}
	style := s.style(w)
	fmt.Fprintln(w, style.Paint(paint, word+":"), text)
	if hint != "" {
		fmt.Fprintln(w, "  "+hint)
	}
}

// wrongName is the failure of a name that is not among those there are. It suggests the nearest one.
func wrongName(what, name string, there []string, otherwise string) *Failure {
	f := &Failure{Code: CodeInput, Text: fmt.Sprintf("there is no %s %q", what, name), Hint: otherwise}
	if near := catalog.Nearest(name, there); near != "" {
		f.Hint = "did you mean " + near + "?"
	}
	return f
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	add := func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	}
	cmd.Flags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	return names
}

// codeOfAll returns the exit code of several that were asked for together: their own if it is the same for all that
// failed, CodeFailed otherwise.
func codeOfAll(codes []int) int {
	all := CodeOK
	for _, code := range codes {
		switch {
		case code == CodeOK || code == all:
		case all == CodeOK:
			all = code
		default:
			all = CodeFailed
		}
	}
	return all
}
