package xcat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"berth/provisioners"
	"berth/reservation"
)

// What a load keeps for a successor. A missing one means that it has not come so far.
const (
	keptBegan     = "began"      // when the load had its slot: its overall limit counts from here
	keptBaseline  = "baseline"   // the node's status and its time before the load cleared them: not news
	keptArmed     = "armed"      // the provisioning state that our nodeset gave
	keptAsked     = "power"      // an rpower boot was asked for; whether the node was "on" or "off" before it
	keptPowered   = "powered"    // when the node was seen powered on after it
	keptStarted   = "started"    // when the first sign of the installer was seen since
	keptChanged   = "changed"    // when something last changed, and what was seen then
	keptLogin     = "login"      // since when a system answers by SSH, and no installer any more, while the node's state is install
	keptInstall   = "installing" // the time of the status installing, by the management node's clock
	keptRestarted = "restarted"  // the node was powered on again because nothing started
	keptReset     = "reset"      // the node was reset because its installer hung
	keptLeft      = "left"       // the node was reset because its installer did not let go of it
)

// The stages of a load.
const (
	stageSlot    = "wait for a slot"
	stageCheck   = "check"
	stageArm     = "arm"
	stagePower   = "power on"
	stageStart   = "wait for installer"
	stageInstall = "install"
	stageLeave   = "leave installer"
)

// reserve is kept of the phase's limit to disarm the node in.
const reserve = time.Minute

// load is one call of Load.
type load struct {
	*node
	source  map[string]string
	module  *Module
	method  string    // the osimage's provmethod
	began   time.Time // when it had its slot
	overall time.Time // when it has to be loaded
	powered time.Time
	changed time.Time
	seen    string
	early   int // readings in a row of a booted system whose state still is install
}

// Load is part of provisioners.Provisioner. It installs the image's osimage on the computer's node and returns once the
// node's provisioning state is boot and the node is powered on. Its stages are "wait for a slot", "check", "arm", "power on", "wait for
// installer", "install" and "leave installer". When it ends in a verdict the node is disarmed; when it ends with its context
// the workflow's Abort does that. The slot is given up when the node is no longer armed, and not before: a fault's next try gets
// the same one, and Abort gives up what a cancelled load has kept.
func (m *Module) Load(ctx context.Context, request provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	l, err := m.prepare(request, report)
	if err != nil {
		return provisioners.Loaded{}, err
	}
	leave := func() {}
	if request.Enter != nil {
		// A node is armed from here until its disk is loaded, and xcatd, DHCP and the installer's source serve only so many.
		leave, err = request.Enter(ctx, l.gate(), l.installs, func(place int) {
			report.Stage(stageSlot, fmt.Sprintf("number %d in line at management node %s, which installs %d at once", place, l.name, l.installs))
		})
		if err != nil {
			return provisioners.Loaded{}, ended(ctx, err)
		}
	}
	switch err = Classify(l.run(ctx)); {
	case err == nil:
		leave()
		return provisioners.Loaded{Reference: l.name + "/" + l.node.node}, nil
	case ctx.Err() != nil:
		return provisioners.Loaded{}, ctx.Err()
	case reservation.VerdictOf(err) == "":
		return provisioners.Loaded{}, err // the same attempt goes on with the node as it is
	}
	disarmed, err := l.undo(ctx, err)
	if disarmed {
		leave()
	}
	return provisioners.Loaded{}, err
}

// armInTurn arms the node. Where the site says so it waits until nodes that others have armed leave room for it, one load after
// the other: two that counted at once would both take the last place.
func (l *load) armInTurn(ctx context.Context) error {
	if l.countArmed == "" {
		return l.arm(ctx)
	}
	if l.request.Enter != nil {
		leave, err := l.request.Enter(ctx, l.armingGate(), 1, func(place int) {
			l.report.Stage(stageSlot, fmt.Sprintf("number %d in line to be armed at management node %s, where others arm nodes too", place, l.name))
		})
		if err != nil {
			return err
		}
		defer leave()
	}
	if err := l.room(ctx); err != nil {
		return err
	}
	l.count(time.Now())
	return l.arm(ctx)
}

// room waits until nodes that others have armed leave room for this one.
func (l *load) room(ctx context.Context) error {
	for {
		states, err := l.client.States(ctx, l.countArmed)
		if err != nil {
			return err
		}
		armed := 0
		for node, state := range states {
			if node != l.node.node && arms(state) {
				armed++
			}
		}
		if armed < l.installs {
			return nil
		}
		l.report.Stage(stageSlot, fmt.Sprintf("%d nodes of %s are armed at management node %s, which installs %d at once", armed, l.countArmed, l.name, l.installs))
		if err := pause(ctx, l.limits.PollInstall); err != nil {
			return err
		}
	}
}

func (m *Module) prepare(request provisioners.Request, report reservation.Reporter) (*load, error) {
	n, err := m.open(request, report)
	if err != nil {
		return nil, err
	}
	l := &load{node: n, source: request.Reservation.Image.Sources[Type], module: m}
	l.armed = report.Kept(keptArmed)
	if l.source[sourceKnownHosts] == hostKeysOwn && n.tools == nil {
		return nil, reservation.Fail("image "+request.Reservation.Image.String()+" cannot be loaded at site "+n.name, &reservation.FieldError{
			Field: "image.sources.xcat." + sourceKnownHosts, Value: hostKeysOwn, Remedy: "give the site tools: its keys are scanned on the management node"})
	}
	if request.Reservation.Image.Control.HostKey == reservation.HostKeyHanded {
		return nil, reservation.Fail("image "+request.Reservation.Image.String()+" cannot be loaded", &reservation.FieldError{
			Field: "image.control.host_key", Value: reservation.HostKeyHanded, Remedy: "xCAT hands no key over: write " + reservation.HostKeyFirst + ", or leave it out"})
	}
	return l, nil
}

// begin takes up the clock of the overall limit, which counts from when the load has its slot.
func (l *load) begin() {
	began, err := time.Parse(time.RFC3339, l.report.Kept(keptBegan))
	if err != nil {
		began = time.Now()
	}
	l.count(began)
}

// count has the overall limit count from a time, and keeps that.
func (l *load) count(from time.Time) {
	l.began = from
	l.report.Keep(keptBegan, from.Format(time.RFC3339))
	l.overall = from.Add(l.limits.Overall)
	// A short limit keeps less back: it has to be good for something.
	if last := l.request.Deadline.Add(-min(reserve, l.request.Limit/10)); !l.request.Deadline.IsZero() && last.Before(l.overall) {
		l.overall = last
	}
}

func (l *load) run(ctx context.Context) error {
	l.begin()
	if l.armed == "" {
		if err := l.check(ctx); err != nil {
			return err
		}
		if err := l.armInTurn(ctx); err != nil {
			return err
		}
	}
	if err := l.power(ctx); err != nil {
		return err
	}
	if err := l.watch(ctx); err != nil {
		return err
	}
	return l.leave(ctx)
}

// undo disarms the node after a verdict, unless it is somebody else's. It returns whether nothing of this load is armed any
// more, and the verdict.
func (l *load) undo(ctx context.Context, verdict error) (disarmed bool, _ error) {
	if errors.As(verdict, new(*ForeignError)) {
		return true, verdict
	}
	// A worker that was lost may have armed it without a word, so the node itself is asked.
	v, err := l.guard(ctx)
	if err == nil && (arms(v.state) || l.armed != "" && v.state != stateBoot) {
		err = l.disarm(ctx)
	}
	switch {
	case err == nil:
		l.report.Keep(keptArmed, "")
		return true, verdict
	case errors.As(err, new(*ForeignError)), errors.As(err, new(*LateError)):
		return true, verdict // it is not ours, or not any more
	case l.armed == "":
		return true, verdict // as far as we know nothing was ever armed, and what is wrong the verdict says
	}
	l.log.Error().Err(err).Msg("the node is left armed")
	var judged *reservation.VerdictError
	if errors.As(verdict, &judged) {
		return false, &reservation.VerdictError{Verdict: judged.Verdict, Reason: "the node could not be disarmed (" + err.Error() + "); " + judged.Reason, Cause: judged.Cause}
	}
	return false, verdict
}

// check looks at everything that must be so before anything is changed.
func (l *load) check(ctx context.Context) error {
	l.report.Stage(stageCheck, fmt.Sprintf("node %s and osimage %s at site %s", l.node.node, l.osimage, l.name))
	fail := func(format string, values ...any) error {
		return reservation.Fail(fmt.Sprintf("node %s cannot be loaded with osimage %s: ", l.node.node, l.osimage)+fmt.Sprintf(format, values...), nil)
	}
	defined, err := l.client.Node(ctx, l.node.node, "mac", "mgt", "arch")
	if err != nil {
		return err
	}
	if defined["mac"] == "" {
		return fail("xCAT knows no MAC of it: set its attribute mac")
	}
	for _, mac := range l.request.Reservation.Computer.MACs[:min(1, len(l.request.Reservation.Computer.MACs))] {
		if !strings.Contains(strings.ToLower(defined["mac"]), strings.ToLower(mac)) {
			return fail("its mac is %s in xCAT and %s in the catalog: correct the wrong one", defined["mac"], mac)
		}
	}
	if defined["mgt"] == "" {
		return fail("xCAT does not know how its power is controlled: set its attribute mgt")
	}
	image, err := l.client.OSImage(ctx, l.osimage, "provmethod", "osarch")
	if err != nil {
		return err
	}
	l.method = image["provmethod"]
	switch l.method {
	case "install", "sysclone":
	case "netboot", "statelite":
		return fail("its provmethod is %s, which puts nothing on the disk: use an osimage of provmethod install", l.method)
	default:
		return fail("its provmethod is %q: use an osimage of provmethod install or sysclone", l.method)
	}
	if arch := image["osarch"]; arch != "" && defined["arch"] != "" && arch != defined["arch"] {
		return fail("the osimage is for %s and the node is %s", arch, defined["arch"])
	}
	l.report.Stage(stageCheck, "the BMC of node "+l.node.node)
	_, err = l.on(ctx)
	return err
}

// arm claims the node, clears what earlier loads left in its status, and arms it for the osimage.
func (l *load) arm(ctx context.Context) error {
	l.report.Stage(stageArm, "for osimage "+l.osimage)
	v, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	mine := v.claimed && v.claim.mark == l.request.Mark
	if l.mine(v) && v.claim.mark.Attempt > l.request.Mark.Attempt {
		return &LateError{Mine: l.request.Mark, Found: v.claim.mark}
	}
	if err := l.foreign(v); err != nil {
		return err
	}
	if mine && arms(v.state) && v.method == l.osimage {
		// A worker before us has armed it, and was lost before it could say so.
		return l.isArmed(ctx, v.state)
	}
	if arms(v.state) && v.method != l.osimage {
		// An earlier load of Berth's has left it. Once our claim stands there it would look like somebody else's.
		if err := l.report.Confirm(ctx); err != nil {
			return err
		}
		if err := l.client.Disarm(ctx, l.node.node); err != nil {
			return err
		}
		if err := l.settle(ctx, func(v view) bool { return !arms(v.state) }); err != nil {
			return err
		}
	}
	if !mine {
		l.report.Keep(keptBaseline, v.status.Status+" "+v.status.Time)
		if err := l.report.Confirm(ctx); err != nil {
			return err
		}
		comment := strings.TrimSpace(v.rest + " " + claim{l.request.Mark, l.osimage}.String())
		if err := l.client.Change(ctx, l.node.node, "status=", "statustime=", "usercomment="+comment); err != nil {
			return err
		}
		if err := l.settle(ctx, func(v view) bool { return v.claimed && v.claim.mark == l.request.Mark }); err != nil {
			return err
		}
	}
	if _, err := l.guard(ctx); err != nil {
		return err
	}
	steady, end := finishing(ctx)
	defer end()
	state, err := l.client.Arm(steady, l.node.node, l.osimage)
	if err != nil {
		return err
	}
	return l.isArmed(ctx, state)
}

// isArmed reads back that the node is armed as it should be, and keeps it.
func (l *load) isArmed(ctx context.Context, state string) error {
	l.armed = state // even if it is not what we wanted: it has to be undone
	read, err := l.client.State(ctx, l.node.node)
	if err != nil {
		return err
	}
	switch {
	case read != "" && read != state: // nodeset stat has no cache
		return &ForeignError{Node: l.node.node, Found: fmt.Sprintf("set to %q by somebody else right after it was armed", read)}
	case read != state || !strings.HasPrefix(state, l.method+" "):
		return fmt.Errorf("site %s: nodeset %s osimage=%s gave the state %q, and it reads %q", l.name, l.node.node, l.osimage, state, read)
	}
	if err := l.settle(ctx, func(v view) bool { return arms(v.state) && v.method == l.osimage }); err != nil {
		return err
	}
	v, err := l.look(ctx)
	if err == nil {
		err = l.owned(v)
	}
	if err != nil {
		return err
	}
	l.report.Keep(keptArmed, state)
	return nil
}

// How long what was just written may take to be read back.
const (
	settleLimit = cacheAge + 4*time.Second
	settlePoll  = time.Second
)

// settle waits until xcatd tells what was just written, or long enough for it not to be the cache.
func (l *load) settle(ctx context.Context, told func(view) bool) error {
	for end := time.Now().Add(settleLimit); ; {
		v, err := l.look(ctx)
		if err != nil || told(v) || time.Now().After(end) {
			return err
		}
		if err := pause(ctx, settlePoll); err != nil {
			return err
		}
	}
}

// power boots the node from the net, unless that was done.
func (l *load) power(ctx context.Context) error {
	if kept, err := time.Parse(time.RFC3339, l.report.Kept(keptPowered)); err == nil {
		l.powered = kept
		return nil
	}
	l.report.Stage(stagePower, l.node.node)
	took := false
	if was := l.report.Kept(keptAsked); was != "" {
		var err error
		if took, err = l.took(ctx, was == "on"); err != nil {
			return err
		}
	}
	if !took {
		if err := l.bootFromNet(ctx); err != nil {
			return err
		}
	}
	l.powered = time.Now()
	l.report.Keep(keptPowered, l.powered.Format(time.RFC3339))
	return nil
}

// took says whether an rpower boot that a lost worker asked for has come about. xcatd goes on with a command whose client is
// gone, so it may come about only now.
func (l *load) took(ctx context.Context, was bool) (bool, error) {
	if !was {
		return l.await(ctx, true)
	}
	// A node that was on is on either way. rpower notes that it powers a node on, and an install notes more.
	v, err := l.look(ctx)
	news := l.news(v)
	if arms(v.state) && (news == "postbooting" || news == "booted") {
		news = "" // late words of the system that ran before
	}
	return err == nil && news != "", err
}

func (l *load) bootFromNet(ctx context.Context) error {
	if _, err := l.guard(ctx); err != nil {
		return err
	}
	err := l.ask(ctx, func() error { return l.client.BootNext(ctx, l.node.node, "net", l.uefi) })
	if err != nil {
		if ctx.Err() != nil || bmc(err) == "" || l.request.Reservation.Computer.Placement[placeBootOrder] != networkFirst {
			return err
		}
		l.log.Warn().Err(err).Msg("the BMC could not be told to boot from the net; the node's own boot order begins there")
	}
	return l.boot(ctx, func(was bool) error {
		asked := "off"
		if was {
			asked = "on"
		}
		l.report.Keep(keptAsked, asked)
		v, err := l.guard(ctx)
		if err == nil && v.state != "" && !arms(v.state) {
			err = &ForeignError{Node: l.node.node, Found: fmt.Sprintf("set to %q by somebody else", v.state)}
		}
		return err
	})
}

// again boots the node from the net once more. cold powers it off before.
func (l *load) again(ctx context.Context, why string, cold bool) error {
	l.report.Stage(stagePower, "again: "+why)
	for _, key := range []string{keptAsked, keptPowered, keptStarted, keptChanged, keptInstall, keptLogin} {
		l.report.Keep(key, "")
	}
	l.changed, l.seen = time.Time{}, ""
	if cold {
		if _, err := l.guard(ctx); err != nil {
			return err
		}
		if err := l.off(ctx); err != nil {
			return err
		}
	}
	return l.power(ctx)
}

// news returns the node's status if it has come since the load began, and "" for anything else: one that is blank, one that
// was there before, and what nodestat and xcatmon write into the same place ("noping", "sshd").
func (l *load) news(v view) string {
	if v.status.Status+" "+v.status.Time == l.report.Kept(keptBaseline) {
		return ""
	}
	if slices.Contains([]string{"powering-on", "installing", "installed", "netbooting", "booting", "postbooting", "booted", "configuring",
		"configured", "failed"}, v.status.Status) {
		return v.status.Status
	}
	return ""
}

// leave waits until the installer has let go of the node, so that nobody takes its sshd for the system's, and makes sure
// that the node is powered on. An installer that does not end is ended once: the disk is loaded.
func (l *load) leave(ctx context.Context) error {
	l.report.Stage(stageLeave, "")
	gone, err := l.gone(ctx)
	if err == nil && !gone && l.report.Kept(keptLeft) == "" {
		l.report.Keep(keptLeft, "1")
		if err = l.bootDisk(ctx, "the installer does not end"); err == nil {
			gone, err = l.gone(ctx)
		}
	}
	if err != nil {
		return err
	}
	if !gone {
		return reservation.Reload(fmt.Sprintf("the installer on node %s still answers %s after the disk was loaded, twice", l.node.node, l.limits.InstallerGone), nil)
	}
	on, err := l.on(ctx)
	if err != nil || on {
		return err
	}
	return l.bootDisk(ctx, "the installer powered the node off")
}

// gone waits until no installer answers, and returns whether it has come to that.
func (l *load) gone(ctx context.Context) (bool, error) {
	for end := time.Now().Add(l.limits.InstallerGone); l.module.installer(ctx, l.host()) != ""; {
		if time.Now().After(end) {
			return false, ctx.Err()
		}
		if err := pause(ctx, l.limits.PollPower); err != nil {
			return false, err
		}
	}
	return true, ctx.Err()
}

// bootDisk boots the node once its disk is loaded.
func (l *load) bootDisk(ctx context.Context, why string) error {
	l.report.Stage(stageLeave, why)
	return l.boot(ctx, func(bool) error {
		v, err := l.guard(ctx)
		if err == nil {
			err = l.booted(v)
		}
		return err
	})
}
