package activities

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.temporal.io/sdk/temporal"

	"berth/reservation"
)

// maxReason bounds an error's text in bytes. The server keeps 4 KB of a failure (limit.mutableStateActivityFailureSize)
// and drops what is beyond.
const maxReason = 1500

// asApplicationError is the one place that maps a module's error to what the retry policy reads:
//
//	reservation.Reload  ->  TypeReload, named as non-retryable: the workflow counts an attempt
//	reservation.Fail    ->  TypeFail, named as non-retryable: the reservation fails
//	anything else       ->  TypeFault: Temporal tries the same phase of the same attempt again
//
// A verdict carries what the phase did in its details.
func asApplicationError(err error, result PhaseResult) error {
	// A context that ended inside a module although the phase's own goes on is the module's own limit: a fault.
	var applicationErr *temporal.ApplicationError
	if errors.As(err, &applicationErr) {
		return err
	}
	options := temporal.ApplicationErrorOptions{Category: temporal.ApplicationErrorCategoryBenign}
	switch reservation.VerdictOf(err) {
	case reservation.VerdictReload:
		options.Details = []any{result}
		return temporal.NewApplicationErrorWithOptions(shorten(err.Error()), TypeReload, options)
	case reservation.VerdictFail:
		options.Details = []any{result}
		return temporal.NewApplicationErrorWithOptions(shorten(err.Error()), TypeFail, options)
	default:
		return temporal.NewApplicationErrorWithOptions(shorten(err.Error()), TypeFault, temporal.ApplicationErrorOptions{})
	}
}

// handOver says that this worker stops and another one is to go on with the phase at once.
func handOver(identity string) error {
	return temporal.NewApplicationErrorWithOptions(fmt.Sprintf("worker %s stops: another one goes on", identity), TypeFault,
		temporal.ApplicationErrorOptions{Category: temporal.ApplicationErrorCategoryBenign, Cause: context.Canceled})
}

func shorten(text string) string {
	if len(text) > maxReason {
		text = text[:maxReason] + " ..."
	}
	// A guest's words may be no UTF-8, and the wire refuses what is none.
	return strings.ToValidUTF8(text, "?")
}
