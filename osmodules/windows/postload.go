package windows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/osmodules/sitescripts"
	"berth/reservation"
)

// step is one step of PostLoad.
type step struct {
	name      string
	script    string
	limit     time.Duration
	onFailure string // sitescripts.Warn, Reload or Fail: what a limit that passed or a script that broke means
	// prepare returns the script's values and its data, or why it is not to run. It is called anew for each try.
	prepare func() (map[string]string, []byte, *skip, error)
	// do, if not nil, is what the step does instead of running its script once.
	do func(ctx context.Context, s step) (powershell.Answer, *skip, error)
	// after, if not nil, is told the answer of a step that went well.
	after func(powershell.Answer)
	own   bool // the script is the site's, judged by its exit code
}

// skip says why a step does not run.
type skip struct {
	result reservation.StepResult // skipped or warned
	why    string
}

const (
	// clockTolerance is in seconds, as for Linux (VCL Linux.pm: rdate -t 3). Kerberos takes up to 300.
	clockTolerance = 3
	// activationLimit bounds each call (VCL Windows.pm: slmgr 240 s).
	activationLimit = 240 * time.Second
	usualRDP        = 3389
	usualKMS        = "1688"
	// nameLength is the longest name of a Windows computer (NetBIOS).
	nameLength = 15
)

// PostLoad configures the guest. See the package's documentation for the steps.
func (m *Module) PostLoad(ctx context.Context, request osmodules.Request, answer osmodules.Answer, report reservation.Reporter) (osmodules.Report, error) {
	dialer, err := m.dialer(request)
	if err != nil {
		return osmodules.Report{}, err
	}
	session, ok := answer.Channel.(Session)
	if !ok {
		return osmodules.Report{}, fmt.Errorf("the channel is a %T and not one that WaitForResponse returned", answer.Channel)
	}
	// A worker that was paused may wake up when the computer has moved on.
	if err := report.Confirm(ctx); err != nil {
		return osmodules.Report{}, err
	}
	c := &configuration{module: m, request: request, report: report, log: m.logger(request), dialer: dialer, session: session, boot: report.Kept(keepBoot)}
	c.done.PublicAddress = report.Kept(keepAddress)
	defer func() {
		if c.session != session {
			c.session.Close()
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
	dialer  Dialer
	boot    string

	session    Session
	reconnects int
	done       osmodules.Report
}

func (c *configuration) steps() ([]step, error) {
	const warn, reload = sitescripts.Warn, sitescripts.Reload
	options := c.request.Reservation.Image.PostLoad
	nothing := func() (map[string]string, []byte, *skip, error) { return nil, nil, nil, nil }
	minute := time.Minute
	steps := []step{
		{name: "control service", script: "service", limit: minute, onFailure: reload, prepare: c.service},
		{name: "control firewall", script: "firewall", limit: minute, onFailure: reload, prepare: c.firewall},
		{name: "remote desktop", script: "rdp", limit: 2 * minute, onFailure: reload, prepare: c.rdp, after: c.due("remote desktop", "reboot")},
		{name: "fixed address", script: "static", limit: 2 * minute, onFailure: reload, prepare: c.static, after: c.address},
		{name: "public address", script: "address", limit: time.Duration(2*c.module.pace.addressWait)*time.Second + 2*minute, onFailure: reload, prepare: c.dynamic, after: c.address},
		{name: "time", script: "time", limit: minute, onFailure: warn, prepare: c.time},
		{name: "sleep", script: "sleep", limit: minute, onFailure: warn, prepare: nothing},
		{name: "network prompt", script: "prompt", limit: minute, onFailure: warn, prepare: nothing},
		{name: "image's secrets", script: "secrets", limit: minute, onFailure: reload, prepare: nothing},
		{name: "Administrator's password", script: "password", limit: minute, onFailure: reload, prepare: c.password("-500")},
		{name: "root's password", script: "password", limit: minute, onFailure: reload, prepare: c.password("root")},
		{name: "updates", script: "updates", limit: 20 * minute, onFailure: warn, prepare: c.updates, after: c.due("updates", "reboot")},
		{name: "hostname", script: "hostname", limit: minute, onFailure: reload, prepare: c.hostname, after: c.due("hostname", "reboot")},
		// What is pending already takes effect with the reboot for the name, and not with one of its own.
		{name: "pending reboot", script: "pending", limit: minute, onFailure: reload, prepare: nothing, after: c.due("pending", "pending")},
		{name: "reboot", limit: c.module.pace.reboot, onFailure: reload, do: c.reboot},
		{name: "domain", script: "join", limit: 3 * minute, onFailure: reload, prepare: c.join, do: c.joinWithPatience, after: c.due("domain", "reboot")},
		{name: "reboot after domain", limit: c.module.pace.reboot, onFailure: reload, do: c.reboot},
		{name: "activation", script: "activate", limit: activationLimit, onFailure: warn, do: c.activate},
	}
	if c.module.options.ScriptsDir != "" {
		found, err := sitescripts.Read(c.module.options.ScriptsDir, options.Scripts, sitescripts.PowerShell)
		if err != nil {
			return nil, err // the site's folder is ours to mend, not the image's
		}
		for _, script := range found {
			steps = append(steps, step{name: "script " + script.Name, script: "site", limit: script.Limit, onFailure: script.OnFailure, own: true,
				prepare: func() (map[string]string, []byte, *skip, error) { return c.site(script), []byte(script.Text), nil, nil }})
		}
	} else if len(options.Scripts) > 0 {
		return nil, reservation.Fail("", &reservation.FieldError{Field: "image.post_load.scripts", Value: strings.Join(options.Scripts, ", "),
			Remedy: "this worker has no folder of site scripts: give it one, or leave the sets out"})
	}
	return append(steps, step{name: "tag", script: "tag", limit: minute, onFailure: reload, prepare: c.tag}), nil
}

// step runs one step, unless a lost worker did, and judges it.
func (c *configuration) step(ctx context.Context, s step) error {
	if kept, ok := c.kept(s.name); ok {
		c.done.Steps = append(c.done.Steps, kept)
		return nil
	}
	c.report.Stage("configure", s.name) // one stage for all: the steps have a list of their own
	began := time.Now()
	do := s.do
	if do == nil {
		do = c.run
	}
	result := reservation.Step{Name: s.name}
	var verdict error
	answer, skipped, err := do(ctx, s)
	var limit *remote.LimitError
	var none *powershell.NoAnswerError
	switch {
	case skipped != nil:
		result.Result, result.Detail = skipped.result, skipped.why
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &limit):
		result, verdict = s.broken(fmt.Sprintf("did not end within its limit of %s", s.limit))
	case errors.As(err, &none):
		result, verdict = s.broken(none.Error())
	case err != nil:
		c.done.Steps = append(c.done.Steps, reservation.Step{Name: s.name, Result: reservation.StepFailed, Detail: err.Error(),
			Took: reservation.Duration(time.Since(began).Round(time.Millisecond))})
		return err
	default:
		result, verdict = s.judge(answer)
	}
	if verdict == nil && err == nil && skipped == nil && s.after != nil {
		s.after(answer)
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
func (s step) judge(a powershell.Answer) (reservation.Step, error) {
	if s.own {
		if a.Values["exit"] == "0" {
			return reservation.Step{Name: s.name, Result: reservation.StepDone, Detail: a.Values["output"]}, nil
		}
		return s.broken(strings.TrimSuffix("exit code "+a.Values["exit"]+": "+a.Values["output"], ": "))
	}
	switch a.Result {
	case powershell.ResultDone, powershell.ResultSkipped, powershell.ResultWarned:
		return reservation.Step{Name: s.name, Result: reservation.StepResult(a.Result), Detail: a.Detail}, nil
	case powershell.ResultReload:
		if s.onFailure == sitescripts.Warn {
			return s.broken(a.Detail)
		}
		s.onFailure = sitescripts.Reload
	case powershell.ResultFail:
		s.onFailure = sitescripts.Fail
	default:
		return s.broken(fmt.Sprintf("its script answered %q, which is no result", a.Result))
	}
	return s.broken(a.Detail)
}

// broken is a step that went wrong.
func (s step) broken(detail string) (reservation.Step, error) {
	result := reservation.Step{Name: s.name, Result: reservation.StepFailed, Detail: detail}
	switch s.onFailure {
	case sitescripts.Fail:
		return result, reservation.Fail(s.name+": "+detail, nil)
	case sitescripts.Reload:
		return result, reservation.Reload(s.name+": "+detail, nil)
	default:
		result.Result = reservation.StepWarned
		return result, nil
	}
}

// run runs a step's script once, over a new connection when the one that stood was lost.
func (c *configuration) run(ctx context.Context, s step) (powershell.Answer, *skip, error) {
	for {
		values, data, skipped, err := s.prepare()
		if skipped != nil || err != nil {
			return powershell.Answer{}, skipped, err
		}
		answer, err := execute(ctx, c.session, s.script, values, data, s.limit)
		var lost *remote.LostError
		if !errors.As(err, &lost) || ctx.Err() != nil {
			return answer, nil, err
		}
		c.log.Warn().Err(err).Str("step", s.name).Msg("the connection was lost")
		if err := c.reconnect(ctx, s.name, lost); err != nil {
			return powershell.Answer{}, nil, err
		}
	}
}

// reconnect comes back to the same boot of the same guest.
func (c *configuration) reconnect(ctx context.Context, name string, lost error) error {
	pace := c.module.pace
	if c.reconnects++; c.reconnects > pace.reconnects {
		return reservation.Reload(fmt.Sprintf("%s: the connection was lost for the %dth time", name, c.reconnects), lost)
	}
	l, err := c.module.newLadder(c.request, c.report)
	if err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, pace.reconnect)
	defer cancel()
	for {
		began := time.Now()
		session, boot, err := c.comeBack(within, l)
		switch {
		case err == nil && c.boot != "" && boot != c.boot:
			session.Close()
			return reservation.Reload(name+": the guest rebooted while it was configured", &errReboot{from: c.boot, to: boot})
		case err == nil:
			c.session.Close()
			c.session = session
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

func (c *configuration) comeBack(ctx context.Context, l *ladder) (Session, string, error) {
	session, err := l.dial(ctx)
	if err != nil {
		return nil, "", err
	}
	boot, err := l.echo(ctx, session)
	if err != nil {
		session.Close()
		return nil, "", err
	}
	return session, boot, nil
}

// due returns what keeps a reboot due, if the answer's field says so.
func (c *configuration) due(what, field string) func(powershell.Answer) {
	return func(answer powershell.Answer) {
		if answer.Values[field] != "true" {
			return
		}
		all := strings.FieldsFunc(c.report.Kept(keepDue), func(r rune) bool { return r == ',' })
		if !slices.Contains(all, what) {
			c.report.Keep(keepDue, strings.Join(append(all, what), ","))
		}
	}
}

// reboot reboots the guest if a step before it has made that due, and waits until it is up in another boot. A successor
// of a lost worker that finds another boot than the one to be ended does not reboot it again.
func (c *configuration) reboot(ctx context.Context, s step) (powershell.Answer, *skip, error) {
	why := c.report.Kept(keepDue)
	if why == "" {
		return powershell.Answer{}, &skip{reservation.StepSkipped, "no reboot is due"}, nil
	}
	pace := c.module.pace
	before := c.report.Kept(keepBefore + s.name)
	if before == "" {
		n, _ := strconv.Atoi(c.report.Kept(keepReboots))
		if n >= pace.reboots {
			return powershell.Answer{}, nil, reservation.Reload(fmt.Sprintf("%s: the guest was rebooted %d times, and more is due for %s", s.name, n, why), nil)
		}
		before = c.boot
		c.report.Keep(keepReboots, strconv.Itoa(n+1))
		c.report.Keep(keepBefore+s.name, before)
	}
	if c.boot == before {
		if err := c.report.Confirm(ctx); err != nil {
			return powershell.Answer{}, nil, err
		}
		c.report.Stage("configure", s.name+" for "+why)
		answer, err := execute(ctx, c.session, "reboot", nil, nil, pace.probe)
		var lost *remote.LostError
		switch {
		case ctx.Err() != nil:
			return powershell.Answer{}, nil, ctx.Err()
		case errors.As(err, &lost): // it began before its answer was out, or the request was lost: the boot will tell
		case err != nil:
			return powershell.Answer{}, nil, err
		case answer.Result != powershell.ResultDone:
			return powershell.Answer{}, nil, reservation.Reload(s.name+": "+answer.Detail, nil)
		}
		if err := c.comeUp(ctx, s.name, lost != nil); err != nil {
			return powershell.Answer{}, nil, err
		}
	}
	c.report.Keep(keepDue, "")
	return powershell.Answer{Result: powershell.ResultDone, Detail: "for " + why}, nil, nil
}

// comeUp waits for the boot after this one. unsure: whether the guest knows of its reboot is not known.
func (c *configuration) comeUp(ctx context.Context, name string, unsure bool) error {
	c.session.Close()
	l, err := c.module.newLadder(c.request, c.report)
	if err != nil {
		return err
	}
	l.rebooting, l.unsure = name, unsure
	now := time.Now()
	l.changed, l.overall, l.silence = now, now.Add(c.module.pace.reboot), now.Add(c.module.pace.reboot)
	session, err := l.wait(ctx)
	if err != nil {
		return err
	}
	c.session, c.boot = session, c.report.Kept(keepBoot)
	return nil
}

// keep stores a step's result for a worker that takes over. It holds across our own reboots; a reboot of the guest's
// own ends the attempt.
func (c *configuration) keep(s reservation.Step) {
	const longest = 160
	c.report.Keep(keepStep+s.Name, strings.Join([]string{string(s.Result), s.Took.String(), climb.Cut(s.Detail, longest)}, "|"))
}

func (c *configuration) kept(name string) (reservation.Step, bool) {
	parts := strings.SplitN(c.report.Kept(keepStep+name), "|", 3)
	if len(parts) != 3 {
		return reservation.Step{}, false
	}
	took, err := time.ParseDuration(parts[1])
	if err != nil {
		return reservation.Step{}, false
	}
	return reservation.Step{Name: name, Result: reservation.StepResult(parts[0]), Detail: parts[2], Took: reservation.Duration(took)}, true
}

func (c *configuration) service() (map[string]string, []byte, *skip, error) {
	return map[string]string{"Names": strings.Join(c.dialer.Services(), ",")}, nil, nil, nil
}

// firewall lets the image's management sources in, and always our own address, so that it cannot cut us off.
func (c *configuration) firewall() (map[string]string, []byte, *skip, error) {
	sources := slices.Clone(c.request.Reservation.Image.PostLoad.ManagementSources)
	if own, err := netip.ParseAddr(c.session.LocalAddress()); err == nil {
		sources = append(sources, own.Unmap().String())
	}
	if len(sources) == 0 {
		return nil, nil, nil, reservation.Fail("", &reservation.FieldError{Field: "image.post_load.management_sources", Value: "",
			Remedy: "our own address is not known: list the networks that the workers are in"})
	}
	port := c.request.Reservation.Image.Control.Port
	if port == 0 {
		port = c.dialer.DefaultPort()
	}
	ports := []string{strconv.Itoa(port)}
	// The computer's own port may be a way to the image's, or what the guest listens on.
	if _, own, err := net.SplitHostPort(address(c.request, port)); err == nil && own != ports[0] {
		ports = append(ports, own)
	}
	return map[string]string{"Ports": strings.Join(ports, ","), "Sources": strings.Join(sources, ",")}, nil, nil, nil
}

func (c *configuration) rdp() (map[string]string, []byte, *skip, error) {
	options := c.request.Reservation.Image.PostLoad
	if len(options.RDPSources) == 0 {
		return nil, nil, &skip{reservation.StepSkipped, "left as the image has it (image.post_load.rdp_sources)"}, nil
	}
	port := options.RDPPort
	if port == 0 {
		port = usualRDP
	}
	return map[string]string{"Port": strconv.Itoa(port), "Sources": strings.Join(options.RDPSources, ",")}, nil, nil, nil
}

func (c *configuration) static() (map[string]string, []byte, *skip, error) {
	public := c.request.Reservation.Computer.Public
	if public == nil {
		return nil, nil, &skip{reservation.StepSkipped, "the computer has none (computer.public)"}, nil
	}
	prefix, err := netip.ParsePrefix(public.Address)
	if err != nil {
		return nil, nil, nil, reservation.Fail("", &reservation.FieldError{Field: "computer.public.address", Value: public.Address, Remedy: "write an IPv4 address with its bits"})
	}
	values := map[string]string{
		"Interface": public.Interface, "Address": prefix.Addr().String(), "Mask": net.IP(net.CIDRMask(prefix.Bits(), 32)).String(),
		"Gateway": public.Gateway, "Dns": strings.Join(public.DNS, ","), "Control": "",
	}
	if end, ok := c.session.(interface{ RemoteAddress() string }); ok {
		values["Control"] = end.RemoteAddress()
	} else if host, _, err := net.SplitHostPort(address(c.request, c.dialer.DefaultPort())); err == nil {
		values["Control"] = host
	}
	return values, nil, nil, nil
}

func (c *configuration) dynamic() (map[string]string, []byte, *skip, error) {
	if c.request.Reservation.Computer.Public != nil {
		return nil, nil, &skip{reservation.StepSkipped, "it is fixed"}, nil
	}
	return map[string]string{"Interface": c.request.Reservation.Image.PostLoad.PublicInterface, "Wait": strconv.Itoa(c.module.pace.addressWait)}, nil, nil, nil
}

func (c *configuration) address(answer powershell.Answer) {
	if ip, err := netip.ParseAddr(answer.Values["publicAddress"]); err == nil {
		c.done.PublicAddress = ip.String()
		c.report.Keep(keepAddress, ip.String())
	}
}

func (c *configuration) time() (map[string]string, []byte, *skip, error) {
	return map[string]string{"Now": strconv.FormatInt(time.Now().Unix(), 10), "Tolerance": strconv.Itoa(clockTolerance)}, nil, nil, nil
}

// password sets a random password that nobody keeps.
func (c *configuration) password(account string) func() (map[string]string, []byte, *skip, error) {
	return func() (map[string]string, []byte, *skip, error) {
		keep := ""
		if c.session.Password() {
			keep = c.request.Reservation.Image.Control.User
			if _, name, ok := strings.Cut(keep, `\`); ok {
				keep = name
			}
		}
		// The end makes it a password of every kind that a policy may ask for.
		return map[string]string{"Account": account, "Password": climb.RandomPassword() + "-aA1", "Keep": keep}, nil, nil, nil
	}
}

func (c *configuration) updates() (map[string]string, []byte, *skip, error) {
	folder := c.request.Reservation.Image.PostLoad.Updates
	if folder == "" {
		return nil, nil, &skip{reservation.StepSkipped, "the image names no folder (image.post_load.updates)"}, nil
	}
	return map[string]string{"Folder": folder}, nil, nil, nil
}

func (c *configuration) hostname() (map[string]string, []byte, *skip, error) {
	if !c.request.Reservation.Image.PostLoad.Hostname {
		return nil, nil, &skip{reservation.StepSkipped, "the image does not wish it (image.post_load.hostname)"}, nil
	}
	name := c.request.Reservation.Computer.Name
	if err := reservation.CheckName("computer.name", name); err != nil || len(name) > nameLength || strings.Contains(name, ".") {
		return nil, nil, nil, reservation.Fail("", &reservation.FieldError{Field: "computer.name", Value: name,
			Remedy: fmt.Sprintf("a Windows computer's name has at most %d characters and no dot: take another, or leave image.post_load.hostname out", nameLength)})
	}
	return map[string]string{"Name": name}, nil, nil, nil
}

func (c *configuration) join() (map[string]string, []byte, *skip, error) {
	domain := c.request.Reservation.Image.PostLoad.Domain
	if domain == nil {
		return nil, nil, &skip{reservation.StepSkipped, "the image names none (image.post_load.domain)"}, nil
	}
	password, err := c.module.options.Secret(domain.Credential)
	if err != nil {
		return nil, nil, nil, err
	}
	return map[string]string{"Domain": domain.Name, "Ou": domain.OU, "User": domain.User, "Password": password}, nil, nil, nil
}

// joinWithPatience tries again while the fault is the domain's and may pass: its controllers are not found yet.
func (c *configuration) joinWithPatience(ctx context.Context, s step) (powershell.Answer, *skip, error) {
	pace := c.module.pace
	if c.request.Reservation.Image.PostLoad.Domain == nil {
		return c.run(ctx, s)
	}
	// A guest that was told to join in this boot, by a try whose answer was lost, says that it is a member already, and is
	// none before its next boot.
	told := c.report.Kept(keepJoin) == c.boot
	c.report.Keep(keepJoin, c.boot)
	if err := c.report.Confirm(ctx); err != nil {
		return powershell.Answer{}, nil, err
	}
	reconnects := c.reconnects
	for n := 1; ; n++ {
		answer, skipped, err := c.run(ctx, s)
		if answer.Result == powershell.ResultSkipped && (told || c.reconnects > reconnects || n > 1) {
			answer.Values["reboot"] = "true"
		}
		if skipped != nil || err != nil || answer.Values["retry"] != "true" || answer.Result != powershell.ResultReload {
			return answer, skipped, err
		}
		if n >= pace.joins {
			answer.Detail += fmt.Sprintf(", %d times", n)
			return answer, nil, nil
		}
		c.log.Warn().Str("step", s.name).Str("detail", answer.Detail).Int("try", n).Msg("tried again")
		c.report.Stage("configure", fmt.Sprintf("%s: %s, tried again", s.name, answer.Detail))
		if err := climb.Sleep(ctx, pace.joinPause, nil); err != nil {
			return powershell.Answer{}, nil, err
		}
	}
}

// activate tries the KMS servers in order, then the key. What goes wrong is a warning: a Windows that is not activated
// works.
func (c *configuration) activate(ctx context.Context, s step) (powershell.Answer, *skip, error) {
	wish := c.request.Reservation.Image.PostLoad.Activation
	if wish == nil {
		return powershell.Answer{}, &skip{reservation.StepSkipped, "the image does not wish it (image.post_load.activation)"}, nil
	}
	type way struct {
		name   string
		values func() (map[string]string, error)
	}
	var ways []way
	for _, server := range wish.KMS {
		host, port, err := net.SplitHostPort(server)
		if err != nil {
			host, port = server, usualKMS
		}
		ways = append(ways, way{"KMS " + server, func() (map[string]string, error) {
			return map[string]string{"Server": host, "Port": port, "Key": wish.Key}, nil
		}})
	}
	if wish.MAK != "" {
		ways = append(ways, way{"MAK", func() (map[string]string, error) {
			key, err := c.module.options.Secret(wish.MAK)
			return map[string]string{"Server": "", "Port": "", "Key": strings.TrimSpace(key)}, err
		}})
	}
	var wrong []string
	for _, w := range ways {
		s.prepare = func() (map[string]string, []byte, *skip, error) {
			values, err := w.values()
			return values, nil, nil, err
		}
		answer, _, err := c.run(ctx, s)
		var limit *remote.LimitError
		var none *powershell.NoAnswerError
		switch {
		case errors.As(err, &limit), errors.As(err, &none):
			wrong = append(wrong, w.name+": "+err.Error())
		case err != nil:
			return answer, nil, err
		case answer.Result == powershell.ResultDone || answer.Result == powershell.ResultSkipped:
			answer.Detail = w.name + ": " + answer.Detail
			return answer, nil, nil
		default:
			wrong = append(wrong, w.name+": "+answer.Detail)
		}
	}
	return powershell.Answer{Result: powershell.ResultWarned, Detail: strings.Join(wrong, "; ")}, nil, nil
}

func (c *configuration) site(script sitescripts.Script) map[string]string {
	r := c.request.Reservation
	return map[string]string{
		"Name": script.Name, "Reservation": r.Name, "User": r.User, "Computer": r.Computer.Name, "Image": r.Image.Name,
		"Revision": strconv.Itoa(r.Image.Revision), "Attempt": strconv.Itoa(c.request.Attempt.Number),
		"Address": r.Computer.Address, "PublicAddress": c.done.PublicAddress,
	}
}

// tag is what stands in %ALLUSERSPROFILE%\Berth\load.json on a configured guest.
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

func (c *configuration) tag() (map[string]string, []byte, *skip, error) {
	r := c.request.Reservation
	text, err := json.MarshalIndent(tag{
		Image: r.Image.Name, Revision: r.Image.Revision, Computer: r.Computer.Name, Reservation: r.Name, Run: c.request.Mark.Run,
		Attempt: c.request.Attempt.Number, PostLoad: string(reservation.VerdictDone), At: time.Now().UTC().Truncate(time.Second),
	}, "", "  ")
	return nil, append(text, '\n'), nil, err
}
