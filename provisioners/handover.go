package provisioners

import (
	"context"
	"errors"
)

// HandOver is the cause of a context that ends because this worker stops while another is to go on: return at once, and
// leave what runs in the control plane running, so that the successor finds it. A context that ends for any other cause
// was cancelled or has outlived its limit: stop what runs.
type HandOver struct{}

func (HandOver) Error() string { return "this worker stops; another goes on with the phase" }

// HandedOver says whether ctx ended because this worker hands its work over.
func HandedOver(ctx context.Context) bool {
	return errors.As(context.Cause(ctx), new(HandOver))
}
