package linux

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote"
	"berth/osmodules/remote/ssh"
	"berth/reservation"
)

// The ladder's rungs above a connection's own.
const (
	rungNonce  = "nonce"
	rungBoot   = "boot id"
	rungSetup  = "set-up"
	rungSettle = "settle"
)

// rungs are all there are, in order.
func rungs() []string {
	return []string{string(ssh.RungTCP), string(ssh.RungBanner), string(ssh.RungHandshake), string(ssh.RungAuthentication),
		rungNonce, rungBoot, rungSetup, rungSettle}
}

// WaitForResponse climbs the ladder. See the package's documentation for the rungs and the verdicts.
func (m *Module) WaitForResponse(ctx context.Context, request osmodules.Request, report reservation.Reporter) (osmodules.Answer, error) {
	m.options.Waiting(1)
	defer m.options.Waiting(-1)
	aim, err := target(request, report)
	if err != nil {
		return osmodules.Answer{}, err
	}
	if err := m.options.Dialer.CheckCredential(aim.Credential); err != nil {
		return osmodules.Answer{}, err
	}
	l := m.newLadder(request, report, aim)
	l.begin(time.Now())
	wait := climb.Wait[osmodules.Answer]{Try: l.climb, Deadline: func() time.Time { return l.limit }, Note: l.note, Pause: l.pause, Expire: l.expire,
		Within: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithDeadline(ctx, l.limit)
		}}
	return wait.Run(ctx)
}

// ladder is one wait for one guest.
type ladder struct {
	module  *Module
	request osmodules.Request
	report  reservation.Reporter
	log     zerolog.Logger
	aim     ssh.Target

	limit    time.Time // when this wait ends
	half     time.Time // when it is late
	reset    time.Time // when the power reset was given; zero: not yet
	boot     string    // the last boot id seen
	refusals climb.Refusals
	last     error // what went wrong last
	unreset  error // why the power reset could not be given
	host     climb.HostCache
	stages   *climb.Stages

	mu  sync.Mutex // the dial's callbacks come from goroutines of its own
	pin ssh.Pin
}

func (m *Module) newLadder(request osmodules.Request, report reservation.Reporter, aim ssh.Target) *ladder {
	l := &ladder{module: m, request: request, report: report, log: climb.Logger(m.options.Logger, request), aim: aim,
		stages: climb.NewStages(report, rungs(), "", nil)}
	l.aim.Reached, l.aim.Shown = l.stages.Reached, l.shown
	return l
}

// begin sets the limit. It counts from the phase's first start, but a worker that has just taken over has not looked
// yet: it gets a look of its own, because a worker's absence is not the guest's silence.
func (l *ladder) begin(now time.Time) {
	limits, pace := l.request.Limits, l.module.pace
	began := l.request.Began
	if began.IsZero() {
		began = now
	}
	response := limits.Response.Std()
	first := began.Add(limits.InitialDelay.Std() + response)
	look := now.Add(min(pace.look, response))
	l.half = began.Add(limits.InitialDelay.Std() + response/2)
	switch {
	case l.report.Kept(keepAnswered) != "":
		// It was up, and a worker was lost while it configured. It answers again at once or it has died.
		l.limit = now.Add(min(pace.reconnect, response))
		if first.After(l.limit) {
			l.limit = first
		}
	case l.report.Kept(keepReset) != "":
		given, err := time.Parse(time.RFC3339Nano, l.report.Kept(keepReset))
		if err != nil {
			given = now
		}
		l.again(given)
	default:
		l.limit = first
	}
	if look.After(l.limit) {
		l.limit = look
	}
}

func (l *ladder) again(given time.Time) {
	again := l.request.Limits.ResponseAgain.Std()
	l.reset, l.limit, l.half = given, given.Add(again), given.Add(again/2)
}

// expire is called when a wait's limit has passed: it gives the one power reset and begins the second wait, or returns
// the verdict.
func (l *ladder) expire(ctx context.Context) error {
	answered := l.report.Kept(keepAnswered) != ""
	if l.request.PowerReset == nil || l.request.Limits.ResponseAgain <= 0 || !l.reset.IsZero() || answered {
		return l.silent(answered)
	}
	var err error
	if l.unreset, err = l.stages.PowerReset(ctx, l.request.PowerReset, keepReset, l.last, l.log); err != nil {
		return err
	}
	l.again(time.Now())
	l.refusals.None()
	return nil
}

func (l *ladder) silent(answered bool) error {
	rung, since := l.stages.Current()
	limits := l.request.Limits
	reason := fmt.Sprintf("the guest is not up: it hung at %s for %s", rung, climb.Round(time.Since(since)))
	switch {
	case answered:
		reason = fmt.Sprintf("the guest had answered at %s and does so no more: it hangs at %s", l.report.Kept(keepAnswered), rung)
	case !l.reset.IsZero():
		reason += fmt.Sprintf(", after %s, a power reset and %s more", limits.InitialDelay+limits.Response, limits.ResponseAgain)
	default:
		reason += fmt.Sprintf(" of its limit of %s", limits.InitialDelay+limits.Response)
		if l.request.PowerReset == nil {
			reason += ", and its provisioner cannot reset it"
		}
	}
	if l.unreset != nil {
		reason += fmt.Sprintf(" (the power reset went wrong: %s)", l.unreset)
	}
	return reservation.Reload(reason, l.last)
}

// pause returns how long to wait after a climb that went wrong.
func (l *ladder) pause(err error, began time.Time) time.Duration {
	pace, now := l.module.pace, time.Now()
	between := pace.due
	switch {
	case l.reset.IsZero() && now.Before(l.request.Began.Add(l.request.Limits.InitialDelay.Std())):
		between = pace.early
	case now.After(l.half):
		between = pace.late
	}
	return l.refusals.Pause(err, began, pace.refused, between)
}

// climb makes one connection and goes as far up as it gets. within ends with the wait's limit; whole does not: a guest
// whose set-up is finished is not judged silent while it settles.
func (l *ladder) climb(within, whole context.Context) (osmodules.Answer, error) {
	aim := l.aim
	l.mu.Lock()
	if l.pin.Known() {
		aim.Pin = l.pin
	}
	l.mu.Unlock()
	var err error
	if aim.Address, err = l.host.Resolve(within, aim.Address); err != nil {
		return osmodules.Answer{}, &ssh.RungError{Rung: ssh.RungTCP, Err: err}
	}
	client, err := l.module.options.Dialer.Dial(within, aim)
	var mismatch *ssh.HostKeyError
	if errors.As(err, &mismatch) {
		return osmodules.Answer{}, l.strange(mismatch)
	}
	if err != nil {
		return osmodules.Answer{}, err
	}
	l.refusals.None()
	if err := l.examine(within, whole, client); err != nil {
		client.Close()
		return osmodules.Answer{}, err
	}
	return osmodules.Answer{Channel: client, HostKey: client.Pin().Fingerprint}, nil
}

// strange is the verdict on a guest that shows another key than the pinned one.
func (l *ladder) strange(mismatch *ssh.HostKeyError) error {
	l.log.Error().Str("want", mismatch.Want).Str("got", mismatch.Got).Msg("the guest's host key is not the pinned one")
	if l.request.HostKey != "" {
		return reservation.Fail("the guest does not show the host key that was handed to it (another machine answers, or the image starts sshd before it has installed the key)", mismatch)
	}
	return reservation.Fail("the guest's host key changed inside the attempt", mismatch)
}

// examine asks a connected guest whether it is up.
func (l *ladder) examine(within, whole context.Context, client *ssh.Client) error {
	l.stages.Show(rungNonce, "")
	if err := l.echo(within, client); err != nil {
		return err
	}
	l.stages.Show(rungBoot, "")
	boot, err := l.readBoot(within, client)
	if err != nil {
		return err
	}
	if l.boot != "" && l.boot != boot {
		l.log.Info().Str("from", l.boot).Str("to", boot).Msg("the guest has rebooted")
	}
	l.boot = boot
	if err := l.finished(within, client, boot); err != nil {
		return err
	}
	if l.report.Kept(keepBoot) != boot {
		settle := l.request.Limits.Settle.Std()
		l.stages.Show(rungSettle, fmt.Sprintf("the boot id must stay for %s", settle))
		if err := climb.Sleep(whole, settle, client.Done()); err != nil {
			return err
		}
		now, err := l.readBoot(whole, client)
		if err != nil {
			return err
		}
		if now != boot {
			l.boot = now
			return &climb.Rebooted{From: boot, To: now}
		}
	}
	l.report.Keep(keepBoot, boot)
	l.report.Keep(keepAnswered, time.Now().UTC().Format(time.RFC3339))
	l.log.Info().Str("boot", boot).Str("host_key", client.Pin().String()).Msg("the guest is up")
	return nil
}

func (l *ladder) echo(ctx context.Context, client *ssh.Client) error {
	nonce := rand.Text()
	result, err := client.Run(ctx, remote.Command{Line: "cat", Stdin: strings.NewReader(nonce + "\n"), Limit: l.module.pace.nonce})
	if err != nil {
		return err
	}
	// Contains, because a shell's start-up files may print something of their own.
	if !strings.Contains(string(result.Stdout), nonce) {
		return fmt.Errorf("the nonce did not come back: exit code %d, %s", result.Exit, parse(result).output)
	}
	return nil
}

func (l *ladder) readBoot(ctx context.Context, client *ssh.Client) (string, error) {
	o, err := l.module.execute(ctx, client, "boot.sh", nil, "", l.module.pace.probe)
	if err != nil {
		return "", err
	}
	boot := o.values["boot"]
	if boot == "" {
		return "", fmt.Errorf("no boot id could be read: exit code %d, %s", o.exit, o.output)
	}
	if uid := o.values["uid"]; uid != "0" {
		return "", reservation.Fail("", &reservation.FieldError{Field: "image.control.user", Value: l.aim.User,
			Remedy: fmt.Sprintf("its user id on the guest is %q; configuring a guest takes root's, 0", uid)})
	}
	return boot, nil
}

// finished waits until the guest says that its own set-up is finished.
func (l *ladder) finished(ctx context.Context, client *ssh.Client, boot string) error {
	l.stages.Show(rungSetup, "")
	pace := l.module.pace
	for pause := pace.setup.From; ; pause = min(pause*3/2, pace.setup.To) {
		o, err := l.module.execute(ctx, client, "setup.sh", nil, "", pace.probe)
		if err != nil {
			return err
		}
		if now := o.values["boot"]; now != boot {
			return &climb.Rebooted{From: boot, To: now}
		}
		state := setupState(o)
		l.stages.Show(rungSetup, state.detail)
		switch {
		case state.broken != "":
			return reservation.Reload("the guest's own set-up went wrong: "+state.broken, nil)
		case state.finished:
			return nil
		}
		l.note(errors.New(state.detail))
		if err := climb.Sleep(ctx, pause, client.Done()); err != nil {
			return err
		}
	}
}

// setup is how far the guest's own set-up is.
type setup struct {
	finished bool
	broken   string // why it will never be
	detail   string
}

func setupState(o outcome) setup {
	cloud, system := o.values["cloud-init"], o.values["system"]
	var notes []string
	s := setup{finished: true}
	switch cloud {
	case "absent", "disabled":
	case "done":
		if extended := o.values["cloud-init-extended"]; strings.Contains(extended, "degraded") {
			notes = append(notes, "cloud-init: "+extended)
		}
	case "error":
		s.finished, s.broken = false, strings.TrimSpace("cloud-init: error: "+o.values["cloud-init-text"])
		notes = append(notes, "cloud-init: error")
	case "":
		s.finished = false
		notes = append(notes, fmt.Sprintf("no answer: exit code %d, %s", o.exit, o.output))
	default: // running, not run, not started
		s.finished = false
		notes = append(notes, "cloud-init: "+cloud)
	}
	switch system {
	case "absent", "running", "":
	case "degraded":
		notes = append(notes, strings.TrimSpace("systemd: degraded "+o.values["failed-units"]))
	default: // initializing, starting, maintenance, stopping
		s.finished = false
		notes = append(notes, "systemd: "+system)
	}
	s.detail = strings.Join(notes, "; ")
	return s
}

// shown is told the guest's host key, before we authenticate.
func (l *ladder) shown(pin ssh.Pin) {
	l.mu.Lock()
	known := l.pin.Known() || l.aim.Pin.Known()
	l.pin = pin
	l.mu.Unlock()
	if l.report.Kept(keepHostKey) == "" {
		l.report.Keep(keepHostKey, pin.String())
	}
	if !known {
		l.log.Info().Str("host_key", pin.String()).Msg("the guest's host key is pinned")
	}
}

// note keeps what went wrong, and shows it on the rung where it did.
func (l *ladder) note(err error) {
	l.last = err
	l.stages.Note(err, rungBoot)
}
