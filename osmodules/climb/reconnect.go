package climb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"berth/reservation"
)

// Reconnects counts how often the connection to a guest that had answered was lost. It is not safe for concurrent use.
type Reconnects struct {
	Most   int           // more is reload
	Within time.Duration // for one way back
	Times  int           // so far
}

// Reconnect comes back to the same boot of the same guest after its connection was lost in the middle of name. dial makes
// a connection and returns the boot that answers; pause is how long to wait after one that went wrong. A guest that
// rebooted, does not come back, or was lost too often is reload.
func Reconnect[S io.Closer](ctx context.Context, r *Reconnects, name, boot string, lost error,
	dial func(context.Context) (S, string, error), pause func(err error, began time.Time) time.Duration,
) (S, error) {
	var none S
	if r.Times++; r.Times > r.Most {
		return none, reservation.Reload(fmt.Sprintf("%s: the connection was lost for the %dth time", name, r.Times), lost)
	}
	within, cancel := context.WithTimeout(ctx, r.Within)
	defer cancel()
	var last error
	for {
		began := time.Now()
		session, now, err := dial(within)
		switch {
		case err == nil && boot != "" && now != boot:
			session.Close()
			return none, reservation.Reload(name+": the guest rebooted while it was configured", &Rebooted{From: boot, To: now})
		case err == nil:
			return session, nil
		case ctx.Err() != nil:
			return none, ctx.Err()
		case Final(err):
			return none, err
		case within.Err() != nil:
			return none, reservation.Reload(fmt.Sprintf("%s: the guest died: it has not answered for %s", name, r.Within), errors.Join(lost, last))
		}
		last = err
		if Sleep(within, pause(err, began), nil) != nil && ctx.Err() != nil {
			return none, ctx.Err()
		}
	}
}
