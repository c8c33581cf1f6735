package xcat

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"berth/provisioners/xcat/xcatd"
)

// How often a BMC is asked again, by what it answered: counted apart, because one that is slow is not one that refuses
// (VCL xCAT.pm: 3 errors, 5 timeouts).
const (
	maxRefusals = 3
	maxTimeouts = 5
)

// budget counts what a BMC has answered.
type budget struct {
	timeouts, refusals int
}

// spend counts an error of the BMC's and waits; it returns the error when the budget is spent or it is another kind.
func (b *budget) spend(ctx context.Context, n *node, err error) error {
	switch bmc(err) {
	case xcatd.BMCTimeout:
		if b.timeouts++; b.timeouts >= maxTimeouts {
			return fmt.Errorf("asked %d times: %w", b.timeouts, err)
		}
	case xcatd.BMCRefusal:
		if b.refusals++; b.refusals >= maxRefusals {
			return fmt.Errorf("told %d times: %w", b.refusals, err)
		}
	default:
		return err
	}
	// Many nodes of one chassis that fail together must not come back together.
	return pause(ctx, n.limits.Retry/2+rand.N(n.limits.Retry))
}

// ask runs something against the BMC until it succeeds or its budget is spent.
func (n *node) ask(ctx context.Context, do func() error) error {
	var b budget
	for {
		err := do()
		if err == nil {
			return nil
		}
		if err := b.spend(ctx, n, err); err != nil {
			return err
		}
	}
}

// on says whether the node is powered on.
func (n *node) on(ctx context.Context) (on bool, err error) {
	err = n.ask(ctx, func() error {
		on, err = n.client.On(ctx, n.node)
		return err
	})
	return on, err
}

// await waits until the BMC says on, or off. It returns whether it has.
func (n *node) await(ctx context.Context, want bool) (bool, error) {
	for end := time.Now().Add(n.limits.PowerOn); ; {
		on, err := n.on(ctx)
		if err != nil || on == want {
			return err == nil, err
		}
		if time.Now().After(end) {
			return false, nil
		}
		if err := pause(ctx, n.limits.PollPower); err != nil {
			return false, err
		}
	}
}

// boot powers the node on, or resets it if it is on, and makes sure that it is on afterwards. before is called before each
// try, with whether the node was on.
func (n *node) boot(ctx context.Context, before func(was bool) error) error {
	var b budget
	for {
		was, err := n.on(ctx)
		if err != nil {
			return err
		}
		if err := before(was); err != nil {
			return err
		}
		steady, end := finishing(ctx)
		_, err = n.client.Power(steady, n.node, "boot")
		end()
		switch {
		case err == nil:
			on, wait := n.await(ctx, true)
			if wait != nil || on {
				return wait
			}
			err = n.untrue("boot", "off")
		case !was && bmc(err) != "":
			// A BMC that was slow to answer may have done it all the same.
			if on, again := n.on(ctx); again != nil || on {
				return again
			}
		}
		if err := b.spend(ctx, n, err); err != nil {
			return err
		}
	}
}

// untrue is the error of an rpower that xCAT called a success, and that did nothing.
func (n *node) untrue(action, still string) error {
	return &xcatd.Error{Kind: xcatd.BMCRefusal, Command: "rpower " + n.node + " " + action, Node: n.node,
		Text: fmt.Sprintf("xCAT reported success, and %s later the node is still %s", n.limits.PowerOn, still)}
}

// off powers the node off and waits until it is.
func (n *node) off(ctx context.Context) error {
	var b budget
	for {
		steady, end := finishing(ctx)
		_, err := n.client.Power(steady, n.node, "off")
		end()
		if err == nil {
			off, wait := n.await(ctx, false)
			if wait != nil || off {
				return wait
			}
			err = n.untrue("off", "on")
		}
		if err := b.spend(ctx, n, err); err != nil {
			return err
		}
	}
}
