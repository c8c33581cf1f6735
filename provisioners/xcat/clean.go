package xcat

import (
	"context"
	"fmt"
	"strings"

	"berth/provisioners"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// Abort is part of provisioners.Aborter. The node is disarmed: it boots from its disk, whatever is on it. Its power is left
// as it is. The slot that the load has kept is given up then.
func (m *Module) Abort(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	err := m.take(ctx, request, report, false)
	if err == nil && request.Leave != nil {
		if mn, err := provisioners.SiteOf(m.nodes, request.Reservation.Computer); err == nil {
			request.Leave(ctx, mn.gate())
		}
	}
	return err
}

// Unload is part of provisioners.Unloader. The node is disarmed and powered off.
func (m *Module) Unload(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	return m.take(ctx, request, report, true)
}

// take disarms a node of the request's reservation and gives up its mark. Another's is left alone.
func (m *Module) take(ctx context.Context, request provisioners.Request, report reservation.Reporter, powerOff bool) error {
	err := func() error {
		n, err := m.open(request, report)
		if err != nil {
			return err
		}
		report.Stage("look up", n.node+" at site "+n.name)
		v, err := n.fresh(ctx)
		if xcatd.KindOf(err) == xcatd.UnknownNode {
			n.log.Warn().Err(err).Msg("nothing to disarm")
			return nil
		}
		if err != nil {
			return err
		}
		if !n.mine(v) {
			n.log.Info().Str("state", v.state).Msg("the node is not marked as this reservation's; left alone")
			return nil
		}
		if arms(v.state) && v.method != "" && v.method != v.claim.osimage {
			n.log.Warn().Str("osimage", v.method).Msg("somebody else has armed the node; left alone")
			return nil
		}
		report.Stage("disarm", v.state)
		if err := report.Confirm(ctx); err != nil {
			return err
		}
		if err := n.disarm(ctx); err != nil {
			return err
		}
		if powerOff {
			report.Stage("power off", n.node)
			if err := n.off(ctx); err != nil {
				return err
			}
		}
		return n.client.Change(ctx, n.node, strings.TrimSpace("usercomment="+v.rest))
	}()
	return ended(ctx, err)
}

// PowerReset is part of provisioners.PowerResetter: a hard reset, or a power-on of a node that is off. A node that would
// install at its next boot is not reset.
func (m *Module) PowerReset(ctx context.Context, request provisioners.Request) error {
	n, err := m.open(request, nil)
	if err == nil {
		err = n.boot(ctx, func(bool) error {
			v, err := n.guard(ctx)
			if err == nil {
				err = n.booted(v)
			}
			return err
		})
	}
	return ended(ctx, err)
}

// booted returns an error unless the node boots from its disk.
func (n *node) booted(v view) error {
	if v.state == stateBoot {
		return nil
	}
	return reservation.Reload(fmt.Sprintf("node %s is no longer set to boot from its disk: its state is %q", n.node, v.state), nil)
}

// ended is how every call but Load ends.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return Classify(err)
}
