package windows

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/winrm"
	"berth/reservation"
)

// The ladder's rungs above a connection's own.
const (
	rungNonce  = "nonce"
	rungSetup  = "set-up"
	rungSettle = "settle"
)

// rungs are all there are, in order.
func rungs() []string {
	return []string{string(remote.RungTCP), string(ssh.RungBanner), string(remote.RungHandshake), string(remote.RungAuthentication),
		string(winrm.RungShell), rungNonce, rungSetup, rungSettle}
}

// WaitForResponse climbs the ladder. See the package's documentation for the rungs and the verdicts.
func (m *Module) WaitForResponse(ctx context.Context, request osmodules.Request, report reservation.Reporter) (osmodules.Answer, error) {
	m.options.Waiting(1)
	defer m.options.Waiting(-1)
	l, err := m.newLadder(request, report)
	if err != nil {
		return osmodules.Answer{}, err
	}
	l.begin(time.Now())
	session, err := l.wait(ctx)
	if err != nil {
		return osmodules.Answer{}, err
	}
	report.Keep(keepAnswered, time.Now().UTC().Format(time.RFC3339))
	return osmodules.Answer{Channel: session, HostKey: session.Fingerprint()}, nil
}

// ladder is one wait for one guest.
type ladder struct {
	module  *Module
	request osmodules.Request
	report  reservation.Reporter
	log     zerolog.Logger
	dialer  Dialer
	aim     Target
	host    climb.HostCache
	stages  *climb.Stages
	// rebooting is the step whose reboot this wait is for: its limit is pace.reboot, and no power reset is given.
	rebooting string
	unsure    bool // whether the guest knows of that reboot is not known

	overall  time.Time // when this wait ends, whatever changes
	reset    time.Time // when the power reset was given; zero: not yet
	refusals climb.Refusals
	last     error  // what went wrong last
	unreset  error  // why the power reset could not be given
	boot     string // the last boot seen
	state    string // the set-up's last state
	logSize  int64
	errors   string // the last lines of the set-up's error log
	old      bool   // XP or 2003, which have no ImageState
	talking  bool   // the guest told us how its set-up stands, and has not fallen silent since

	// The dial's callbacks come from goroutines of its own.
	mu      sync.Mutex
	silence time.Time // when nothing has changed for too long
	changed time.Time // when something changed last
}

func (m *Module) newLadder(request osmodules.Request, report reservation.Reporter) (*ladder, error) {
	dialer, err := m.dialer(request)
	if err != nil {
		return nil, err
	}
	control := request.Reservation.Image.Control
	if err := dialer.CheckCredential(control.Credential); err != nil {
		return nil, err
	}
	l := &ladder{module: m, request: request, report: report, log: climb.Logger(m.options.Logger, request), dialer: dialer}
	l.stages = climb.NewStages(report, rungs(), report.Kept(keepRung), l.higher)
	l.aim = Target{Address: climb.Address(request, dialer.DefaultPort()), Control: control, Pin: report.Kept(keepPin), Reached: l.stages.Reached, Shown: l.shown}
	if host, _, err := net.SplitHostPort(l.aim.Address); err == nil {
		l.aim.ServerName = host
	}
	switch {
	case control.Channel == reservation.ChannelSSH && request.HostKey != "":
		pin, err := ssh.PinOf(request.HostKey)
		if err != nil {
			return nil, reservation.Fail("the key that the provisioner handed to the guest", err)
		}
		l.aim.Pin = pin.String()
	case control.HostKey == reservation.HostKeyHanded:
		return nil, climb.KeyNotHanded()
	}
	l.resume()
	return l, nil
}

// resume reads what a lost worker kept.
func (l *ladder) resume() {
	l.boot = l.report.Kept(keepSeen)
	state, size, _ := strings.Cut(l.report.Kept(keepState), "|")
	l.state = state
	l.logSize, _ = strconv.ParseInt(size, 10, 64)
}

// begin sets the limits. They count from the phase's first start, but a worker that has just taken over has not looked
// yet: it gets a look of its own, because a worker's absence is not the guest's silence.
func (l *ladder) begin(now time.Time) {
	limits, pace := l.request.Limits, l.module.pace
	began := l.request.Began
	if began.IsZero() {
		began = now
	}
	due := began.Add(limits.InitialDelay.Std())
	look := now.Add(min(pace.look, limits.Response.Std()))
	l.overall = due.Add(limits.Response.Std())
	l.changed = due
	if changed, err := time.Parse(time.RFC3339Nano, l.report.Kept(keepProgress)); err == nil {
		l.changed = changed
	}
	if given, err := time.Parse(time.RFC3339Nano, l.report.Kept(keepReset)); err == nil {
		l.again(given)
	}
	l.renew()
	if l.report.Kept(keepAnswered) != "" {
		// It was up, and a worker was lost while it configured. It may be in the middle of a reboot of ours.
		look = now.Add(min(pace.reboot, max(limits.Response.Std(), pace.look)))
	}
	l.overall, l.silence = later(l.overall, look), later(l.silence, look)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// again begins the second wait.
func (l *ladder) again(given time.Time) {
	limits := l.request.Limits
	began := l.request.Began.Add(limits.InitialDelay.Std() + limits.Response.Std() + limits.ResponseAgain.Std())
	l.mu.Lock()
	l.reset = given
	l.overall = later(began, given.Add(limits.ResponseAgain.Std()))
	l.silence = given.Add(limits.ResponseAgain.Std())
	l.mu.Unlock()
}

// renew moves the limit of silence after a change, and never to an earlier time than it was.
func (l *ladder) renew() {
	if limit := l.request.Limits.NoProgress.Std(); limit > 0 {
		l.silence = later(l.silence, l.changed.Add(limit))
	} else {
		l.silence = l.overall
	}
}

// progress notes that something has changed.
func (l *ladder) progress(what string) {
	now := time.Now()
	l.mu.Lock()
	l.changed = now
	l.renew()
	l.mu.Unlock()
	l.report.Keep(keepProgress, now.UTC().Format(time.RFC3339Nano))
	l.log.Debug().Str("change", what).Msg("the guest makes progress")
}

// deadline returns when the wait is over as things stand.
func (l *ladder) deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.silence.Before(l.overall) {
		return l.silence
	}
	return l.overall
}

// watch returns a context that ends at the deadline, wherever progress moves it.
func (l *ladder) watch(ctx context.Context) (context.Context, context.CancelFunc) {
	within, cancel := context.WithCancel(ctx)
	go func() {
		for within.Err() == nil {
			left := time.Until(l.deadline())
			if left <= 0 {
				cancel()
				return
			}
			if climb.Sleep(within, left, nil) != nil {
				return
			}
		}
	}()
	return within, cancel
}

func (l *ladder) wait(ctx context.Context) (Session, error) {
	return climb.Wait[Session]{Try: l.climb, Within: l.watch, Deadline: l.deadline, Note: l.note, Pause: l.pause, Expire: l.expire}.Run(ctx)
}

// expire is called when a limit has passed: it gives the one power reset and begins the second wait, or returns the
// verdict. A guest that talks while its set-up stands still gets no reset, which would break its set-up for good.
func (l *ladder) expire(ctx context.Context) error {
	answered := l.report.Kept(keepAnswered) != ""
	if l.request.PowerReset == nil || l.request.Limits.ResponseAgain <= 0 || !l.reset.IsZero() || answered || l.talking || l.rebooting != "" {
		return l.verdict(answered)
	}
	var err error
	if l.unreset, err = l.stages.PowerReset(ctx, l.request.PowerReset, keepReset, l.last, l.log); err != nil {
		return err
	}
	l.again(time.Now())
	l.refusals.None()
	return nil
}

func (l *ladder) verdict(answered bool) error {
	rung, since := l.stages.Current()
	l.mu.Lock()
	still, stood := time.Since(l.changed), l.silence.Before(l.overall)
	l.mu.Unlock()
	limits := l.request.Limits
	var reason string
	switch {
	case l.rebooting != "":
		reason = fmt.Sprintf("%s: the guest did not come back within %s, it hangs at %s", l.rebooting, l.module.pace.reboot, rung)
	case answered:
		reason = fmt.Sprintf("the guest had answered at %s and does so no more: it hangs at %s", l.report.Kept(keepAnswered), rung)
	case l.talking && stood:
		reason = fmt.Sprintf("the guest's set-up is stuck: nothing has changed for %s (limit %s), it stands at %s", climb.Round(still), limits.NoProgress, l.state)
	case l.talking:
		reason = fmt.Sprintf("the guest's set-up is not over after the whole limit of %s: it stands at %s", limits.InitialDelay+limits.Response, l.state)
	case !l.reset.IsZero():
		reason = fmt.Sprintf("the guest is not up: it hung at %s for %s, after a power reset and %s more", rung, climb.Round(time.Since(since)), limits.ResponseAgain)
	default:
		reason = fmt.Sprintf("the guest is not up: it hung at %s for %s, and nothing has changed for %s", rung, climb.Round(time.Since(since)), climb.Round(still))
		if l.request.PowerReset == nil {
			reason += "; its provisioner cannot reset it"
		}
	}
	if l.talking && l.errors != "" {
		reason += "; setuperr.log: " + l.errors
	}
	if l.unreset != nil {
		reason += fmt.Sprintf(" (the power reset went wrong: %s)", l.unreset)
	}
	return reservation.Reload(reason, l.last)
}

// pause returns how long to wait after a climb that went wrong.
func (l *ladder) pause(err error, began time.Time) time.Duration {
	between := l.module.pace.due
	if time.Now().Before(l.request.Began.Add(l.request.Limits.InitialDelay.Std())) {
		between = l.module.pace.early
	}
	return l.refusals.Pause(err, began, l.module.pace.refused, between)
}

// climb makes one connection and goes as far up as it gets. within ends with the wait's limit; whole does not: a guest
// whose set-up is finished is not judged silent while it settles.
func (l *ladder) climb(within, whole context.Context) (Session, error) {
	session, err := l.dial(within)
	if err != nil {
		return nil, err
	}
	l.refusals.None()
	if err := l.examine(within, whole, session); err != nil {
		session.Close()
		return nil, err
	}
	return session, nil
}

func (l *ladder) dial(ctx context.Context) (Session, error) {
	aim := l.aim
	if aim.Pin == "" { // shown by a guest that has not let us in yet
		aim.Pin = l.report.Kept(keepPin)
	}
	var err error
	if aim.Address, err = l.host.Resolve(ctx, aim.Address); err != nil {
		return nil, &remote.RungError{Rung: remote.RungTCP, Err: err}
	}
	session, err := l.dialer.Dial(ctx, aim)
	if err == nil {
		l.aim.Pin = session.Identity()
		return session, nil
	}
	l.talking = false
	var mismatch *PinError
	if errors.As(err, &mismatch) {
		return nil, l.strange(mismatch)
	}
	return nil, err
}

// strange judges a guest that shows another key or certificate than the pinned one. Sysprep makes a new one, once.
func (l *ladder) strange(mismatch *PinError) error {
	log := l.log.With().Str("want", mismatch.Want).Str("got", mismatch.Got).Logger()
	switch {
	case l.request.HostKey != "" && l.aim.Control.Channel == reservation.ChannelSSH:
		log.Error().Msg("the guest's host key is not the one handed to it")
		return reservation.Fail("the guest does not show the host key that was handed to it (another machine answers, or the image starts sshd before it has installed the key)", mismatch)
	case l.request.Reservation.Image.Sysprep && l.report.Kept(keepRepinned) == "" && l.report.Kept(keepAnswered) == "":
		log.Info().Msg("the guest's key or certificate has changed, as Sysprep makes it once")
		l.report.Keep(keepRepinned, time.Now().UTC().Format(time.RFC3339))
		l.report.Keep(keepPin, mismatch.Got)
		l.aim.Pin = mismatch.Got
		l.progress("a new key or certificate")
		return &remote.RungError{Rung: remote.RungHandshake, Err: errors.New("a new key or certificate after Sysprep, pinned from now on")}
	case l.report.Kept(keepRepinned) != "":
		log.Error().Msg("the guest's key or certificate changed for the second time")
		return reservation.Fail("the guest's key or certificate changed for the second time, and Sysprep makes a new one once", mismatch)
	default:
		log.Error().Msg("the guest's key or certificate is not the pinned one")
		return reservation.Fail("the guest's key or certificate changed inside the attempt", mismatch)
	}
}

// examine asks a connected guest whether it is up.
func (l *ladder) examine(within, whole context.Context, session Session) error {
	l.stages.Show(rungNonce, "")
	boot, err := l.echo(within, session)
	if err != nil {
		return err
	}
	if l.rebooting != "" && boot == l.report.Kept(keepBefore+l.rebooting) {
		if err := l.askAgain(within, session); err != nil {
			return err
		}
		return fmt.Errorf("the guest is still in boot %s and has not begun its reboot", boot)
	}
	l.seen(boot)
	if err := l.finished(within, session, boot); err != nil {
		return err
	}
	if l.report.Kept(keepBoot) != boot {
		settle := l.request.Limits.Settle.Std()
		l.stages.Show(rungSettle, fmt.Sprintf("the boot must stay for %s", settle))
		if err := climb.Sleep(whole, settle, session.Done()); err != nil {
			return err
		}
		// Asked again, because Sysprep reboots once or twice and answers in between.
		s, err := l.look(whole, session, boot)
		if err != nil {
			return err
		}
		if !s.finished {
			return fmt.Errorf("the set-up goes on: %s", s.detail)
		}
	}
	l.report.Keep(keepBoot, boot)
	l.log.Info().Str("boot", boot).Str("pin", session.Identity()).Msg("the guest is up")
	return nil
}

// askAgain asks for a reboot once more, if the first time may not have come through. To a guest that is about to reboot
// it makes no difference.
func (l *ladder) askAgain(ctx context.Context, session Session) error {
	if !l.unsure {
		return nil
	}
	if err := l.report.Confirm(ctx); err != nil {
		return err
	}
	_, err := execute(ctx, session, "reboot", nil, nil, l.module.pace.probe)
	l.unsure = err != nil
	return err
}

// seen notes the boot that answers.
func (l *ladder) seen(boot string) {
	if l.boot == boot {
		return
	}
	before := l.boot
	l.boot = boot
	l.report.Keep(keepSeen, boot)
	if before != "" {
		l.log.Info().Str("from", before).Str("to", boot).Msg("the guest has rebooted")
		l.progress("a reboot")
	}
}

// echo asks for a nonce and returns the guest's boot.
func (l *ladder) echo(ctx context.Context, session Session) (string, error) {
	nonce := rand.Text()
	answer, err := execute(ctx, session, "echo", map[string]string{"Nonce": nonce}, nil, l.module.pace.probe)
	if err != nil {
		return "", err
	}
	if answer.Values["nonce"] != nonce {
		return "", fmt.Errorf("the nonce did not come back: exit code %d, %s", answer.Exit, answer.Output)
	}
	if answer.Values["boot"] == "" {
		return "", errors.New("the guest does not say when it was booted")
	}
	if answer.Values["admin"] != "true" {
		return "", reservation.Fail("", &reservation.FieldError{Field: "image.control.user", Value: l.aim.Control.User,
			Remedy: "it is no administrator on the guest (or its rights are cut by UAC); configuring a guest takes one"})
	}
	if answer.Values["hidden"] == "true" { // the secrets that are to be removed would be, too
		return "", reservation.Fail("", &reservation.FieldError{Field: "image.control.channel", Value: l.aim.Control.Channel,
			Remedy: "its service in the image is a 32-bit one, to which a 64-bit Windows hides half of the registry and of System32: install a 64-bit one"})
	}
	l.old = strings.HasPrefix(answer.Values["version"], "5.")
	return answer.Values["boot"], nil
}

// finished waits until the guest says that its own set-up is over.
func (l *ladder) finished(ctx context.Context, session Session, boot string) error {
	l.stages.Show(rungSetup, "")
	pace := l.module.pace
	over := 0 // looks, one after the other, that found a set-up that broke off
	for pause := pace.setup.From; ; pause = min(pause*5/4, pace.setup.To) {
		s, err := l.look(ctx, session, boot)
		if err != nil {
			return err
		}
		l.talking, l.errors = true, s.errors
		l.stages.Show(rungSetup, s.detail)
		if over++; !s.over || !s.idle {
			over = 0
		}
		s.over = over > 1 // the last process may end a moment before the state is written
		l.mu.Lock()
		s.still = time.Since(l.changed)
		l.mu.Unlock()
		if why := s.failed(pace.quiet); why != "" {
			return reservation.Reload("the guest's own set-up went wrong: "+why, nil)
		}
		if s.finished {
			return nil
		}
		l.last = errors.New(s.detail)
		if err := climb.Sleep(ctx, pause, session.Done()); err != nil {
			return err
		}
	}
}

// look reads how far the set-up is and notes what has changed.
func (l *ladder) look(ctx context.Context, session Session, boot string) (setup, error) {
	answer, err := execute(ctx, session, "setup", nil, nil, l.module.pace.probe)
	if err != nil {
		return setup{}, err
	}
	if now := answer.Values["boot"]; now != boot {
		l.seen(now)
		return setup{}, &climb.Rebooted{From: boot, To: now}
	}
	s := setupState(answer, l.old)
	switch {
	case s.state != l.state:
		l.progress("set-up: " + s.state)
	case s.logSize > l.logSize:
		l.progress("set-up's log grows")
	default:
		return s, nil
	}
	l.state, l.logSize = s.state, s.logSize
	l.report.Keep(keepState, s.state+"|"+strconv.FormatInt(s.logSize, 10))
	return s, nil
}

// setup is how far the guest's own set-up is.
type setup struct {
	finished bool
	gaveUp   string // the line of its logs in which set-up says so
	suspect  bool   // the state is one in which a failed set-up stays
	over     bool   // set-up says that it is not in progress, and is not complete
	idle     bool   // no set-up process runs
	waits    bool   // set-up waits for a program that it has started
	errors   string // the last lines of its error log
	state    string // changes with each step of it
	logSize  int64
	detail   string

	still time.Duration // how long nothing has changed
}

// failed says why the set-up has failed, "" if it has not as far as can be seen.
//
// UNDEPLOYABLE is what a pass is while it runs, and a failure if none runs (Microsoft, "Windows Setup States"). Lines in
// setuperr.log are usual in set-ups that go well. So each alone is no failure.
func (s setup) failed(quiet time.Duration) string {
	because := ""
	if s.errors != "" {
		because = "; setuperr.log: " + s.errors
	}
	switch {
	case s.finished:
		return ""
	case s.gaveUp != "":
		return s.gaveUp + because
	case !s.suspect:
		return ""
	case s.over:
		return fmt.Sprintf("it stands at %s, and says that it is not in progress%s", s.state, because)
	// A set-up that is about to reboot, or that has not begun yet in a young boot, has no processes for a while, either.
	case s.idle && s.still >= quiet:
		return fmt.Sprintf("it stands at %s, none of its processes runs, and nothing has changed for %s%s", s.state, climb.Round(s.still), because)
	case s.errors != "" && !s.waits && s.still >= quiet:
		return fmt.Sprintf("it stands at %s, nothing has changed for %s%s", s.state, climb.Round(s.still), because)
	default:
		return ""
	}
}

// setupState reads what setup.ps1 answered. old: XP and 2003 have no ImageState, and nothing is asked of it.
func setupState(answer powershell.Answer, old bool) setup {
	v := answer.Values
	zero := func(name string) bool { return v[name] == "" || v[name] == "0" }
	s := setup{gaveUp: v["failure"], idle: v["processes"] == "", waits: v["commands"] != "", errors: v["errors"]}
	s.logSize, _ = strconv.ParseInt(v["logSize"], 10, 64)
	image, _ := strings.CutPrefix(v["imageState"], "IMAGE_STATE_")
	if image == "" && !old {
		image = "unknown"
	}
	var open []string
	if image != "" && image != "COMPLETE" {
		open = append(open, "ImageState "+image)
	}
	if !zero("setupInProgress") {
		open = append(open, "SystemSetupInProgress "+v["setupInProgress"])
	}
	if !zero("oobeInProgress") {
		open = append(open, "OOBEInProgress "+v["oobeInProgress"])
	}
	if g := v["generalization"]; g != "" && g != "7" {
		open = append(open, "GeneralizationState "+g)
	}
	s.state = strings.Join(open, ", ")
	if !s.idle {
		open = append(open, "running: "+v["processes"])
	}
	if s.waits {
		open = append(open, "waiting for: "+v["commands"])
	}
	s.finished = len(open) == 0
	if s.state == "" {
		s.state = "complete"
	}
	s.detail = strings.Join(open, ", ")
	s.suspect = image == "UNDEPLOYABLE" || strings.HasPrefix(image, "SPECIALIZE")
	// Between two passes it is SPECIALIZE_..., and nothing of it runs.
	s.over = image == "UNDEPLOYABLE" && zero("setupInProgress") && zero("oobeInProgress")
	return s
}

// shown is told the guest's key or certificate, before we authenticate.
func (l *ladder) shown(pin string) {
	if l.report.Kept(keepPin) == "" {
		l.report.Keep(keepPin, pin)
		l.log.Info().Str("pin", pin).Msg("the guest's key or certificate is pinned")
	}
}

// note keeps what went wrong, and shows it on the rung where it did.
func (l *ladder) note(err error) {
	l.last = err
	l.stages.Note(err, rungNonce)
}

// higher is told each rung above all before it.
func (l *ladder) higher(rung string) {
	if rung == string(remote.RungTCP) {
		return // it begins before anything has answered
	}
	l.report.Keep(keepRung, rung)
	l.progress("reached " + rung)
}
