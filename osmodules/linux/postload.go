package linux

import (
	"context"
	"encoding/json"
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
	"berth/reservation"
)

// What happens when a step goes wrong.
type onFailure string

const (
	orWarn   onFailure = "warn"
	orReload onFailure = "reload"
	orFail   onFailure = "fail"
)

// step is one step of PostLoad.
type step struct {
	name      string
	script    string
	limit     time.Duration
	onFailure onFailure // what a limit that passed or a script that broke means; a script may say otherwise of itself
	// prepare returns the script's values and its data, or why it is not to run.
	prepare func() (values, string, *skip)
	// own: the script is the site's, judged by its exit code.
	own bool
}

// skip says why a step does not run.
type skip struct {
	result reservation.StepResult // skipped or warned
	why    string
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
	c := &configuration{module: m, request: request, report: report, log: m.logger(request), aim: aim, channel: answer.Channel,
		boot: report.Kept(keepBoot)}
	c.done.PublicAddress = report.Kept(keepAddress)
	defer func() {
		if c.again != nil {
			c.again.Close()
		}
	}()
	steps, err := c.steps()
	if err != nil {
		return c.done, err
	}
	for _, s := range steps {
		if err := c.step(ctx, s); err != nil {
			return c.done, err
		}
	}
	return c.done, nil
}

// configuration is one run of PostLoad.
type configuration struct {
	module  *Module
	request osmodules.Request
	report  reservation.Reporter
	log     zerolog.Logger
	aim     ssh.Target
	boot    string

	channel    remote.Channel
	again      *ssh.Client // the channel, if we made it anew
	reconnects int
	done       osmodules.Report
}

func (c *configuration) steps() ([]step, error) {
	image := c.request.Reservation.Image
	if name := image.PostLoad.PublicInterface; strings.ContainsAny(name, " \t/") || strings.HasPrefix(name, "-") || len(name) > 15 {
		return nil, reservation.Fail("", &reservation.FieldError{Field: "image.post_load.public_interface", Value: name,
			Remedy: "write the name of an interface, such as eth1, or leave it out for the one with the default route"})
	}
	steps := []step{
		{name: "firewall", script: "firewall.sh", limit: 60 * time.Second, onFailure: orReload, prepare: c.firewall},
		{name: "public address", script: "address.sh", limit: (addressWait + 30) * time.Second, onFailure: orReload, prepare: c.address},
		{name: "sshd", script: "sshd.sh", limit: 60 * time.Second, onFailure: orReload, prepare: c.sshd},
		{name: "time", script: "time.sh", limit: 60 * time.Second, onFailure: orWarn, prepare: c.time},
		{name: "root password", script: "password.sh", limit: 30 * time.Second, onFailure: orReload, prepare: c.password},
		{name: "leftover keys", script: "keys.sh", limit: 60 * time.Second, onFailure: orReload, prepare: c.keys},
		{name: "hostname", script: "hostname.sh", limit: 30 * time.Second, onFailure: orReload, prepare: c.hostname},
	}
	if c.module.options.ScriptsDir != "" {
		found, err := sitescripts.Read(c.module.options.ScriptsDir, image.PostLoad.Scripts, sitescripts.Program)
		if err != nil {
			return nil, err // the site's folder is ours to mend, not the image's
		}
		for _, script := range found {
			steps = append(steps, step{name: "script " + script.Name, script: "site.sh", limit: script.Limit, onFailure: onFailure(script.OnFailure), own: true,
				prepare: func() (values, string, *skip) { return c.site(script), script.Text, nil }})
		}
	} else if len(image.PostLoad.Scripts) > 0 {
		return nil, reservation.Fail("", &reservation.FieldError{Field: "image.post_load.scripts", Value: strings.Join(image.PostLoad.Scripts, ", "),
			Remedy: "this worker has no folder of site scripts: give it one, or leave the sets out"})
	}
	return append(steps, step{name: "tag", script: "tag.sh", limit: 30 * time.Second, onFailure: orReload, prepare: c.tag}), nil
}

// step runs one step, unless a lost worker did, and judges it.
func (c *configuration) step(ctx context.Context, s step) error {
	if kept, ok := c.kept(s.name); ok {
		c.done.Steps = append(c.done.Steps, kept)
		return nil
	}
	c.report.Stage("configure", s.name) // one stage for all: the steps have a list of their own
	began := time.Now()
	result := reservation.Step{Name: s.name}
	var verdict error
	o, skipped, err := c.run(ctx, s)
	if skipped != nil {
		result.Result, result.Detail = skipped.result, skipped.why
	} else {
		var limit *remote.LimitError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &limit):
			o = outcome{output: o.output, detail: fmt.Sprintf("did not end within its limit of %s", s.limit)}
			result, verdict = s.broken(o)
		case err != nil:
			c.done.Steps = append(c.done.Steps, reservation.Step{Name: s.name, Result: reservation.StepFailed, Detail: err.Error(),
				Took: reservation.Duration(time.Since(began))})
			return err
		default:
			result, verdict = s.judge(o)
			if address := o.values["public-address"]; address != "" && verdict == nil {
				if _, err := netip.ParseAddr(address); err == nil {
					c.done.PublicAddress = address
					c.report.Keep(keepAddress, address)
				}
			}
		}
	}
	result.Took = reservation.Duration(time.Since(began).Round(time.Millisecond))
	c.done.Steps = append(c.done.Steps, result)
	event := c.log.Info()
	if result.Result == reservation.StepWarned || verdict != nil {
		event = c.log.Warn()
	}
	event.Str("step", s.name).Str("result", string(result.Result)).Str("detail", result.Detail).Dur("took", result.Took.Std()).Msg("configured")
	if verdict != nil {
		return verdict
	}
	c.keep(result)
	return nil
}

// judge turns a script's answer into the step's result, and into a verdict where it decides one.
func (s step) judge(o outcome) (reservation.Step, error) {
	if s.own {
		if o.exit == 0 {
			return reservation.Step{Name: s.name, Result: reservation.StepDone, Detail: o.output}, nil
		}
		const notRun = 125 // site.sh: the script could not be put onto the guest
		o.detail = fmt.Sprintf("exit code %d", o.exit)
		if o.exit == notRun {
			o.detail = "it could not be put onto the guest"
		}
		return s.broken(o)
	}
	if result, ok := stepResult(o.result); ok && o.exit == 0 {
		return reservation.Step{Name: s.name, Result: result, Detail: o.detail}, nil
	}
	switch o.result {
	case saysReload:
		if s.onFailure == orWarn {
			s.onFailure = orReload
		}
		return s.broken(outcome{detail: o.detail})
	case saysFail:
		s.onFailure = orFail
		return s.broken(outcome{detail: o.detail})
	}
	o.detail = fmt.Sprintf("its script ended with exit code %d and no answer", o.exit)
	return s.broken(o)
}

// broken is a step that went wrong.
func (s step) broken(o outcome) (reservation.Step, error) {
	detail := o.detail
	if o.output != "" {
		detail += ": " + o.output
	}
	result := reservation.Step{Name: s.name, Result: reservation.StepFailed, Detail: detail}
	switch s.onFailure {
	case orFail:
		return result, reservation.Fail(s.name+": "+detail, nil)
	case orReload:
		return result, reservation.Reload(s.name+": "+detail, nil)
	default:
		result.Result = reservation.StepWarned
		return result, nil
	}
}

// run runs a step's script, over a new connection when the one that stood was lost.
func (c *configuration) run(ctx context.Context, s step) (outcome, *skip, error) {
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
	pace := c.module.pace
	if c.reconnects++; c.reconnects > pace.reconnects {
		return reservation.Reload(fmt.Sprintf("%s: the connection was lost for the %dth time", name, c.reconnects), lost)
	}
	within, cancel := context.WithTimeout(ctx, pace.reconnect)
	defer cancel()
	l := &ladder{module: c.module, request: c.request, report: c.report, log: c.log, aim: c.aim, half: time.Now().Add(pace.reconnect)}
	for {
		began := time.Now()
		client, boot, err := c.comeBack(within, l)
		switch {
		case err == nil && c.boot != "" && boot != c.boot:
			client.Close()
			return reservation.Reload(name+": the guest rebooted while it was configured", &errReboot{from: c.boot, to: boot})
		case err == nil:
			if c.again != nil {
				c.again.Close()
			}
			c.channel, c.again = client, client
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case final(err):
			return err
		case within.Err() != nil:
			return reservation.Reload(fmt.Sprintf("%s: the guest died: it has not answered for %s", name, pace.reconnect), errors.Join(lost, l.last))
		}
		l.last = err
		if climb.Sleep(within, l.pause(err, began), nil) != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
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

// keep stores a step's result for a worker that takes over. It holds for one boot of the guest: some of what steps do
// (rules, the clock) ends with it.
func (c *configuration) keep(s reservation.Step) {
	const longest = 160
	detail := s.Detail
	if len(detail) > longest {
		detail = strings.ToValidUTF8(detail[:longest], "") + "..."
	}
	c.report.Keep(keepStep+s.Name, strings.Join([]string{c.bootMark(), string(s.Result), s.Took.String(), detail}, "|"))
}

func (c *configuration) kept(name string) (reservation.Step, bool) {
	parts := strings.SplitN(c.report.Kept(keepStep+name), "|", 4)
	if len(parts) != 4 || parts[0] == "" || parts[0] != c.bootMark() {
		return reservation.Step{}, false
	}
	result, ok := stepResult(parts[1])
	took, err := time.ParseDuration(parts[2])
	if !ok || err != nil {
		return reservation.Step{}, false
	}
	return reservation.Step{Name: name, Result: result, Detail: parts[3], Took: reservation.Duration(took)}, true
}

// bootMark is the beginning of the boot id: enough to tell one boot from the next.
func (c *configuration) bootMark() string { return c.boot[:min(8, len(c.boot))] }

func (c *configuration) firewall() (values, string, *skip) {
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

func (c *configuration) address() (values, string, *skip) {
	return values{"INTERFACE": c.request.Reservation.Image.PostLoad.PublicInterface, "WAIT": strconv.Itoa(c.module.pace.addressWait)}, "", nil
}

func (c *configuration) sshd() (values, string, *skip) {
	v := values{}
	c.local(v)
	return v, "", nil
}

func (c *configuration) time() (values, string, *skip) {
	return values{"NOW": strconv.FormatInt(time.Now().Unix(), 10), "TOLERANCE": strconv.Itoa(clockTolerance)}, "", nil
}

func (c *configuration) password() (values, string, *skip) {
	if c.method() == ssh.MethodPassword {
		return nil, "", &skip{reservation.StepWarned, "kept: the control channel logs in with a password; give the image's credential a key"}
	}
	return values{"PASSWORD": climb.RandomPassword()}, "", nil
}

func (c *configuration) method() string {
	if client, ok := c.channel.(interface{ Method() string }); ok {
		return client.Method()
	}
	return ssh.MethodPublicKey
}

func (c *configuration) keys() (values, string, *skip) {
	public, err := c.module.options.Dialer.PublicKey(c.aim.Credential)
	if err != nil {
		return nil, "", &skip{reservation.StepWarned, "our own public key is not known: " + err.Error()}
	}
	v := values{"KEY": ""}
	if _, blob, ok := strings.Cut(public, " "); ok {
		v["KEY"] = blob
	}
	return v, "", nil
}

func (c *configuration) hostname() (values, string, *skip) {
	if !c.request.Reservation.Image.PostLoad.Hostname {
		return nil, "", &skip{reservation.StepSkipped, "the image does not wish it (image.post_load.hostname)"}
	}
	name := c.request.Reservation.Computer.Name
	if err := reservation.CheckName("computer.name", name); err != nil {
		return nil, "", &skip{reservation.StepWarned, err.Error()}
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
		"BERTH_PUBLIC_ADDRESS": c.done.PublicAddress,
	}
}

// tag is what stands in /etc/berth/load.json on a configured guest.
type tag struct {
	Image       string    `json:"image"`
	Revision    int       `json:"revision"`
	Computer    string    `json:"computer"`
	Reservation string    `json:"reservation"`
	Run         string    `json:"run"`
	Attempt     int       `json:"attempt"`
	PostLoad    string    `json:"post_load"` // "done"
	At          time.Time `json:"at"`
}

func (c *configuration) tag() (values, string, *skip) {
	r := c.request.Reservation
	text, err := json.MarshalIndent(tag{
		Image: r.Image.Name, Revision: r.Image.Revision, Computer: r.Computer.Name, Reservation: r.Name, Run: c.request.Mark.Run,
		Attempt: c.request.Attempt.Number, PostLoad: string(reservation.VerdictDone), At: time.Now().UTC().Truncate(time.Second),
	}, "", "  ")
	if err != nil {
		return nil, "", &skip{reservation.StepWarned, err.Error()}
	}
	data := string(text) + "\n"
	return values{"SIZE": strconv.Itoa(len(data))}, data, nil
}
