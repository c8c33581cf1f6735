package xcat

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"berth/provisioners"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// stateBoot is the provisioning state of a node whose disk is loaded.
const stateBoot = "boot"

// arms says whether a provisioning state makes the node load something at its next boot from the net.
func arms(state string) bool {
	method, _, _ := strings.Cut(state, " ")
	switch method {
	case "install", "netboot", "statelite", "sysclone", "image":
		return true
	}
	return false
}

// ForeignError says that a node is not this reservation's to touch.
type ForeignError struct {
	Node  string
	Found string // what it is instead
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("node %s is %s; it is not touched", e.Node, e.Found)
}

// LateError says that a later attempt of the same reservation has the node already: this worker was paused or cut off, and
// touches nothing.
type LateError struct {
	Mine, Found reservation.Mark
}

func (e *LateError) Error() string {
	return fmt.Sprintf("this worker is late: it works on attempt %d of reservation %s, and the node is of attempt %d already",
		e.Mine.Attempt, e.Mine.Reservation, e.Found.Attempt)
}

// claim is what Berth writes into a node's usercomment: whose it is, and what it was armed for.
type claim struct {
	mark    reservation.Mark
	osimage string
}

func (c claim) String() string { return fmt.Sprintf("[berth %s %s]", c.mark, c.osimage) }

func claims() *regexp.Regexp { return regexp.MustCompile(`\s*\[berth (\S+) (\S+)\]`) }

// claimIn returns the claim in a usercomment, and the rest of it, which is somebody else's.
func claimIn(comment string) (found claim, ok bool, rest string) {
	rest = strings.TrimSpace(claims().ReplaceAllString(comment, ""))
	match := claims().FindStringSubmatch(comment)
	if match == nil {
		return claim{}, false, rest
	}
	mark, err := reservation.ParseMark(match[1])
	return claim{mark, match[2]}, err == nil, rest
}

// view is a node as xCAT tells of it.
type view struct {
	status  xcatd.Status
	state   string // currstate; "" is no reading
	method  string // provmethod: the osimage that it was last armed for; "" is no reading
	claim   claim
	claimed bool
	rest    string // of usercomment
}

// node is one node in one call of the module.
type node struct {
	*management
	request provisioners.Request
	report  reservation.Reporter // nil in a power reset
	limits  Limits
	node    string
	osimage string
	armed   string // the provisioning state that our nodeset gave; "" if there was none
	uefi    bool
	log     zerolog.Logger
}

// open returns the node of a request.
func (m *Module) open(request provisioners.Request, report reservation.Reporter) (*node, error) {
	computer, source := request.Reservation.Computer, request.Reservation.Image.Sources[Type]
	mn, err := provisioners.SiteOf(m.nodes, computer)
	if err != nil {
		return nil, err
	}
	if err := m.ValidatePlacement(computer.Placement); err != nil {
		return nil, reservation.Fail("computer "+computer.Name+" cannot be placed", err)
	}
	if err := m.ValidateSource(source); err != nil {
		return nil, reservation.Fail("image "+request.Reservation.Image.String()+" cannot be loaded", err)
	}
	n := &node{management: mn, request: request, report: report, node: computer.Placement[placeNode], osimage: source[sourceOSImage],
		uefi: computer.Placement[placeFirmware] == "uefi", limits: m.limits.of(request.Mark.Attempt, source)}
	if n.node == "" {
		n.node = computer.Name
	}
	n.log = mn.log.With().Str("computer", computer.Name).Str("node", n.node).Str("reservation", request.Reservation.Name).Logger()
	return n, nil
}

// look reads the node.
func (n *node) look(ctx context.Context) (view, error) {
	status, err := n.client.Status(ctx, n.node)
	if err != nil {
		return view{}, err
	}
	object, err := n.client.Node(ctx, n.node, "currstate", "provmethod")
	if err != nil {
		return view{}, err
	}
	v := view{status: status, state: object["currstate"], method: object["provmethod"]}
	v.claim, v.claimed, v.rest = claimIn(status.Comment)
	return v, nil
}

// mine says whether the node bears a mark of the request's reservation.
func (n *node) mine(v view) bool { return v.claimed && v.claim.mark.Same(n.request.Mark) }

// foreign returns an error if somebody else than Berth has armed the node, for another image than wanted.
func (n *node) foreign(v view) error {
	if !arms(v.state) || v.method == n.osimage || v.claimed && v.claim.osimage == v.method {
		return nil
	}
	return &ForeignError{Node: n.node, Found: fmt.Sprintf("armed for %q (%s) by somebody else", v.method, v.state)}
}

// owned returns an error unless the node bears this very mark and nobody else has armed it.
func (n *node) owned(v view) error {
	switch {
	case n.mine(v) && v.claim.mark.Attempt > n.request.Mark.Attempt:
		return &LateError{Mine: n.request.Mark, Found: v.claim.mark}
	case !v.claimed:
		return &ForeignError{Node: n.node, Found: "no longer marked as reservation " + n.request.Mark.Reservation + "'s"}
	case v.claim.mark != n.request.Mark:
		return &ForeignError{Node: n.node, Found: "marked as " + v.claim.mark.String() + "'s"}
	case arms(v.state) && v.method != "" && v.method != n.osimage:
		return &ForeignError{Node: n.node, Found: fmt.Sprintf("armed for %q (%s) by somebody else", v.method, v.state)}
	}
	return nil
}

// cacheAge is how old what lsdef tells may be: xcatd reads its tables through caches of up to 5 s.
const cacheAge = 6 * time.Second

// fresh reads the node past xcatd's caches: nodeset stat has none, and what lsdef tells counts if it agrees, or is read again
// when its cache has run out.
func (n *node) fresh(ctx context.Context) (view, error) {
	v, err := n.look(ctx)
	if err != nil {
		return v, err
	}
	state, err := n.client.State(ctx, n.node)
	if err != nil {
		return v, err
	}
	if state != "" && v.state != "" && v.state != state {
		if err := pause(ctx, cacheAge); err != nil {
			return v, err
		}
		if v, err = n.look(ctx); err != nil {
			return v, err
		}
	}
	if state != "" {
		v.state = state
	}
	return v, nil
}

// guard reads the node right before something destructive, and returns an error unless it may be done.
func (n *node) guard(ctx context.Context) (view, error) {
	v, err := n.fresh(ctx)
	if err == nil {
		err = n.owned(v)
	}
	if err == nil && n.armed != "" && arms(v.state) && v.state != n.armed {
		err = &ForeignError{Node: n.node, Found: fmt.Sprintf("set to %q by somebody else", v.state)}
	}
	if err == nil && n.report != nil {
		err = n.report.Confirm(ctx)
	}
	return v, err
}

// finishing returns a context for a command that changes something: it ends with ctx, but not when this worker merely hands
// its work over. The command is then let finish, which takes it a second, and the successor finds it done.
func finishing(ctx context.Context) (context.Context, func()) {
	steady, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if !provisioners.HandedOver(ctx) {
			cancel()
		}
	})
	return steady, func() { stop(); cancel() }
}

// disarm makes the node boot from its disk. A BMC that does not answer does not keep it armed.
func (n *node) disarm(ctx context.Context) error {
	steady, end := finishing(ctx)
	defer end()
	if err := n.client.Disarm(steady, n.node); err != nil {
		return err
	}
	if err := n.client.BootNext(steady, n.node, "hd", n.uefi); err != nil {
		if ctx.Err() != nil || bmc(err) == "" {
			return err
		}
		n.log.Warn().Err(err).Msg("the node is disarmed, and its BMC could not be told to boot from the disk")
	}
	return nil
}

// bmc returns the kind of an error of the BMC's, and "" for any other.
func bmc(err error) xcatd.Kind {
	switch kind := xcatd.KindOf(err); kind {
	case xcatd.BMCTimeout, xcatd.BMCRefusal:
		return kind
	}
	return ""
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
