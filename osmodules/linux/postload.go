package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/sitescripts"
	"berth/osmodules/steps"
	"berth/reservation"
)

// step is one step of PostLoad.
type step struct {
	name      string
	script    string
	limit     time.Duration
	onFailure string // sitescripts.Warn, Reload or Fail: what a limit that passed or a script that broke means
	// prepare returns the script's values and its data, or why it is not to run.
	prepare func() (values, string, *steps.Result)
	// own: the script is the site's, judged by its exit code.
	own bool
}

// Seconds that the guest's clock may differ (VCL Linux.pm synchronize_time: rdate -t 3), and for which a public address
// may be late (VCL OS.pm wait_for_public_ip_address: 60 s).
const (
	clockTolerance = 3
	addressWait    = 60
)

// PostLoad configures the guest. See the package's documentation for the steps.
func (m *Module) PostLoad(ctx context.Context, request osmodules.Request, answer osmodules.Answer, report reservation.Reporter) (osmodules.Report, error) {
	aim, err := target(request, report)
	if err != nil {
		return osmodules.Report{}, err
	}
	if answer.HostKey != "" && aim.Pin.Fingerprint != answer.HostKey {
		aim.Pin = ssh.Pin{Fingerprint: answer.HostKey}
	}
	// A worker that was paused may wake up when the computer has moved on.
	if err := report.Confirm(ctx); err != nil {
		return osmodules.Report{}, err
	}
	c := &configuration{module: m, request: request, report: report, log: climb.Logger(m.options.Logger, request), aim: aim,
		channel:    answer.Channel,
		reconnects: climb.Reconnects{Most: m.pace.reconnects, Within: m.pace.reconnect}}
	// Some of what steps do (rules, the clock) ends with the boot.
	c.runner = steps.Runner{Report: report, Log: c.log, Key: keepStep, PerBoot: true, Boot: report.Kept(keepBoot),
		Done: osmodules.Report{PublicAddress: report.Kept(keepAddress)}}
	defer func() {
		if c.again != nil {
			c.again.Close()
		}
	}()
	all, err := c.steps()
	if err == nil {
		err = c.runner.Run(ctx, all)
	}
	return c.runner.Done, err
}

// configuration is one run of PostLoad.
type configuration struct {
	module  *Module
	request osmodules.Request
	report  reservation.Reporter
	log     zerolog.Logger
	aim     ssh.Target

	channel    remote.Channel
	again      *ssh.Client // the channel, if we made it anew
	reconnects climb.Reconnects
	runner     steps.Runner
}

func (c *configuration) steps() ([]steps.Step, error) {
	const warn, reload = sitescripts.Warn, sitescripts.Reload
	image := c.request.Reservation.Image
	if name := image.PostLoad.PublicInterface; strings.ContainsAny(name, " \t/") || strings.HasPrefix(name, "-") || len(name) > 15 {
		return nil, reservation.Fail("", &reservation.FieldError{Field: "image.post_load.public_interface", Value: name,
			Remedy: "write the name of an interface, such as eth1, or leave it out for the one with the default route"})
	}
	all := []step{
		{name: "firewall", script: "firewall.sh", limit: 60 * time.Second, onFailure: reload, prepare: c.firewall},
		{name: "public address", script: "address.sh", limit: (addressWait + 30) * time.Second, onFailure: reload, prepare: c.address},
		{name: "sshd", script: "sshd.sh", limit: 60 * time.Second, onFailure: reload, prepare: c.sshd},
		{name: "time", script: "time.sh", limit: 60 * time.Second, onFailure: warn, prepare: c.time},
		{name: "root password", script: "password.sh", limit: 30 * time.Second, onFailure: reload, prepare: c.password},
		{name: "leftover keys", script: "keys.sh", limit: 60 * time.Second, onFailure: reload, prepare: c.keys},
		{name: "hostname", script: "hostname.sh", limit: 30 * time.Second, onFailure: reload, prepare: c.hostname},
	}
	found, err := sitescripts.Of(c.module.options.ScriptsDir, image.PostLoad.Scripts, sitescripts.Program)
	if err != nil {
		return nil, err
	}
	for _, script := range found {
		all = append(all, step{name: "script " + script.Name, script: "site.sh", limit: script.Limit, onFailure: script.OnFailure, own: true,
			prepare: func() (values, string, *steps.Result) { return c.site(script), script.Text, nil }})
	}
	all = append(all, step{name: "tag", script: "tag.sh", limit: 30 * time.Second, onFailure: reload, prepare: c.tag})
	var runnable []steps.Step
	for _, s := range all {
		runnable = append(runnable, steps.Step{Name: s.name, Limit: s.limit, OnFailure: s.onFailure,
			Do: func(ctx context.Context) (steps.Result, error) { return c.step(ctx, s) }})
	}
	return runnable, nil
}

// step does one step and judges its answer.
func (c *configuration) step(ctx context.Context, s step) (steps.Result, error) {
	o, skipped, err := c.run(ctx, s)
	switch {
	case skipped != nil:
		return *skipped, nil
	case err != nil:
		return steps.Result{Detail: o.output}, err
	}
	result := s.judge(o)
	if address := o.values["public-address"]; address != "" && result.Result != reservation.StepFailed {
		if _, err := netip.ParseAddr(address); err == nil {
			c.runner.Done.PublicAddress = address
			c.report.Keep(keepAddress, address)
		}
	}
	return result, nil
}

// judge turns a script's answer into the step's result.
func (s step) judge(o outcome) steps.Result {
	and := "" // what it printed
	if o.output != "" {
		and = ": " + o.output
	}
	if s.own {
		const notRun = 125 // site.sh: the script could not be put onto the guest
		switch o.exit {
		case 0:
			return steps.Result{Result: reservation.StepDone, Detail: o.output}
		case notRun:
			return steps.Failed("it could not be put onto the guest" + and)
		default:
			return steps.Failed(fmt.Sprintf("exit code %d%s", o.exit, and))
		}
	}
	if result, ok := steps.ResultOf(o.result); ok && o.exit == 0 {
		return steps.Result{Result: result, Detail: o.detail}
	}
	failed := steps.Failed(o.detail)
	switch o.result {
	case saysReload:
		if s.onFailure == sitescripts.Warn {
			failed.OnFailure = sitescripts.Reload
		}
	case saysFail:
		failed.OnFailure = sitescripts.Fail
	default:
		failed.Detail = fmt.Sprintf("its script ended with exit code %d and no answer%s", o.exit, and)
	}
	return failed
}

// run runs a step's script, over a new connection when the one that stood was lost.
func (c *configuration) run(ctx context.Context, s step) (outcome, *steps.Result, error) {
	for {
		v, data, skipped := s.prepare() // anew each time: one of the values is the time
		if skipped != nil {
			return outcome{}, skipped, nil
		}
		o, err := c.module.execute(ctx, c.channel, s.script, v, data, s.limit)
		var lost *ssh.LostError
		if !errors.As(err, &lost) {
			return o, nil, err
		}
		c.log.Warn().Err(err).Str("step", s.name).Msg("the connection was lost")
		if err := c.reconnect(ctx, s.name, lost); err != nil {
			return outcome{}, nil, err
		}
	}
}

// reconnect comes back to the same boot of the same guest.
func (c *configuration) reconnect(ctx context.Context, name string, lost error) error {
	l := c.module.newLadder(c.request, c.report, c.aim)
	l.half = time.Now().Add(c.module.pace.reconnect)
	back := func(ctx context.Context) (*ssh.Client, string, error) { return c.comeBack(ctx, l) }
	client, err := climb.Reconnect(ctx, &c.reconnects, name, c.runner.Boot, lost, back, l.pause)
	if err != nil {
		return err
	}
	if c.again != nil {
		c.again.Close()
	}
	c.channel, c.again = client, client
	return nil
}

func (c *configuration) comeBack(ctx context.Context, l *ladder) (*ssh.Client, string, error) {
	client, err := c.module.options.Dialer.Dial(ctx, c.aim)
	var mismatch *ssh.HostKeyError
	if errors.As(err, &mismatch) {
		return nil, "", l.strange(mismatch)
	}
	if err != nil {
		return nil, "", err
	}
	boot, err := l.readBoot(ctx, client)
	if err != nil {
		client.Close()
		return nil, "", err
	}
	return client, boot, nil
}

func (c *configuration) firewall() (values, string, *steps.Result) {
	v := values{
		"SOURCES": strings.Join(c.request.Reservation.Image.PostLoad.ManagementSources, " "),
	}
	c.local(v)
	return v, "", nil
}

// local adds our address and the control port as this host sees them, for guests whose sshd tells neither.
func (c *configuration) local(v values) {
	if client, ok := c.channel.(interface{ LocalAddress() string }); ok {
		v["FROM"] = client.LocalAddress()
	}
	if end, err := netip.ParseAddrPort(c.aim.Address); err == nil {
		v["PORT"] = strconv.Itoa(int(end.Port()))
	}
}

func (c *configuration) address() (values, string, *steps.Result) {
	return values{"INTERFACE": c.request.Reservation.Image.PostLoad.PublicInterface, "WAIT": strconv.Itoa(c.module.pace.addressWait)}, "", nil
}

func (c *configuration) sshd() (values, string, *steps.Result) {
	v := values{}
	c.local(v)
	return v, "", nil
}

func (c *configuration) time() (values, string, *steps.Result) {
	return values{"NOW": strconv.FormatInt(time.Now().Unix(), 10), "TOLERANCE": strconv.Itoa(clockTolerance)}, "", nil
}

func (c *configuration) password() (values, string, *steps.Result) {
	if c.method() == ssh.MethodPassword {
		return nil, "", steps.Warn("kept: the control channel logs in with a password; give the image's credential a key")
	}
	return values{"PASSWORD": climb.RandomPassword()}, "", nil
}

func (c *configuration) method() string {
	if client, ok := c.channel.(interface{ Method() string }); ok {
		return client.Method()
	}
	return ssh.MethodPublicKey
}

func (c *configuration) keys() (values, string, *steps.Result) {
	public, err := c.module.options.Dialer.PublicKey(c.aim.Credential)
	if err != nil {
		return nil, "", steps.Warn("our own public key is not known: " + err.Error())
	}
	v := values{"KEY": ""}
	if _, blob, ok := strings.Cut(public, " "); ok {
		v["KEY"] = blob
	}
	return v, "", nil
}

func (c *configuration) hostname() (values, string, *steps.Result) {
	if !c.request.Reservation.Image.PostLoad.Hostname {
		return nil, "", steps.Skip("the image does not wish it (image.post_load.hostname)")
	}
	name := c.request.Reservation.Computer.Name
	if err := reservation.CheckName("computer.name", name); err != nil {
		return nil, "", steps.Warn(err.Error())
	}
	return values{"NAME": name}, "", nil
}

func (c *configuration) site(script sitescripts.Script) values {
	r := c.request.Reservation
	return values{
		"SCRIPT":               script.Name,
		"SIZE":                 strconv.Itoa(len(script.Text)),
		"BERTH_STAGE":          sitescripts.StagePostLoad,
		"BERTH_RESERVATION":    r.Name,
		"BERTH_USER":           r.User,
		"BERTH_COMPUTER":       r.Computer.Name,
		"BERTH_IMAGE":          r.Image.Name,
		"BERTH_REVISION":       strconv.Itoa(r.Image.Revision),
		"BERTH_ATTEMPT":        strconv.Itoa(c.request.Attempt.Number),
		"BERTH_ADDRESS":        r.Computer.Address,
		"BERTH_PUBLIC_ADDRESS": c.runner.Done.PublicAddress,
	}
}

// tag is what stands in /etc/berth/load.json on a configured guest.
func (c *configuration) tag() (values, string, *steps.Result) {
	text, err := steps.TagOf(c.request)
	if err != nil {
		return nil, "", steps.Warn(err.Error())
	}
	return values{"SIZE": strconv.Itoa(len(text))}, string(text), nil
}
