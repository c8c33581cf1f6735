package windows

import (
	"context"
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
	"berth/osmodules/steps"
	"berth/reservation"
)

// step is one step of PostLoad.
type step struct {
	name      string
	script    string
	limit     time.Duration
	onFailure string // sitescripts.Warn, Reload or Fail: what a limit that passed or a script that broke means
	// prepare returns the script's values and its data, or why it is not to run. It is called anew for each try.
	prepare func() (map[string]string, []byte, *steps.Result, error)
	// do, if not nil, is what the step does instead of running its script once.
	do func(ctx context.Context, s step) (powershell.Answer, *steps.Result, error)
	// after, if not nil, is told the answer of a step that went well.
	after func(powershell.Answer)
	own   bool // the script is the site's, judged by its exit code
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
	c := &configuration{module: m, request: request, report: report, log: climb.Logger(m.options.Logger, request), dialer: dialer,
		session: session, boot: report.Kept(keepBoot),
		reconnects: climb.Reconnects{Most: m.pace.reconnects, Within: m.pace.reconnect}}
	c.runner = steps.Runner{Report: report, Log: c.log, Key: keepStep, Done: osmodules.Report{PublicAddress: report.Kept(keepAddress)}}
	defer func() {
		if c.session != session {
			c.session.Close()
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
	dialer  Dialer
	boot    string

	session    Session
	reconnects climb.Reconnects
	runner     steps.Runner
}

func (c *configuration) steps() ([]steps.Step, error) {
	const warn, reload = sitescripts.Warn, sitescripts.Reload
	options := c.request.Reservation.Image.PostLoad
	nothing := func() (map[string]string, []byte, *steps.Result, error) { return nil, nil, nil, nil }
	minute := time.Minute
	all := []step{
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
	found, err := sitescripts.Of(c.module.options.ScriptsDir, options.Scripts, sitescripts.PowerShell)
	if err != nil {
		return nil, err
	}
	for _, script := range found {
		all = append(all, step{name: "script " + script.Name, script: "site", limit: script.Limit, onFailure: script.OnFailure, own: true,
			prepare: func() (map[string]string, []byte, *steps.Result, error) {
				return c.site(script), []byte(script.Text), nil, nil
			}})
	}
	all = append(all, step{name: "tag", script: "tag", limit: minute, onFailure: reload, prepare: c.tag})
	var runnable []steps.Step
	for _, s := range all {
		runnable = append(runnable, steps.Step{Name: s.name, Limit: s.limit, OnFailure: s.onFailure,
			Do: func(ctx context.Context) (steps.Result, error) { return c.step(ctx, s) }})
	}
	return runnable, nil
}

// step does one step and judges its answer.
func (c *configuration) step(ctx context.Context, s step) (steps.Result, error) {
	do := s.do
	if do == nil {
		do = c.run
	}
	answer, skipped, err := do(ctx, s)
	var none *powershell.NoAnswerError
	switch {
	case skipped != nil:
		return *skipped, nil
	case errors.As(err, &none):
		return steps.Failed(none.Error()), nil
	case err != nil:
		return steps.Result{}, err
	}
	result := s.judge(answer)
	if s.after != nil && result.Result != reservation.StepFailed {
		s.after(answer)
	}
	return result, nil
}

// judge turns a script's answer into the step's result.
func (s step) judge(a powershell.Answer) steps.Result {
	if s.own {
		if a.Values["exit"] == "0" {
			return steps.Result{Result: reservation.StepDone, Detail: a.Values["output"]}
		}
		return steps.Failed(strings.TrimSuffix("exit code "+a.Values["exit"]+": "+a.Values["output"], ": "))
	}
	if result, ok := steps.ResultOf(a.Result); ok {
		return steps.Result{Result: result, Detail: a.Detail}
	}
	failed := steps.Failed(a.Detail)
	switch a.Result {
	case powershell.ResultReload:
		if s.onFailure != sitescripts.Warn {
			failed.OnFailure = sitescripts.Reload
		}
	case powershell.ResultFail:
		failed.OnFailure = sitescripts.Fail
	default:
		failed.Detail = fmt.Sprintf("its script answered %q, which is no result", a.Result)
	}
	return failed
}

// run runs a step's script once, over a new connection when the one that stood was lost.
func (c *configuration) run(ctx context.Context, s step) (powershell.Answer, *steps.Result, error) {
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
	l, err := c.module.newLadder(c.request, c.report)
	if err != nil {
		return err
	}
	back := func(ctx context.Context) (Session, string, error) { return c.comeBack(ctx, l) }
	session, err := climb.Reconnect(ctx, &c.reconnects, name, c.boot, lost, back, l.pause)
	if err != nil {
		return err
	}
	c.session.Close()
	c.session = session
	return nil
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
func (c *configuration) reboot(ctx context.Context, s step) (powershell.Answer, *steps.Result, error) {
	why := c.report.Kept(keepDue)
	if why == "" {
		return powershell.Answer{}, steps.Skip("no reboot is due"), nil
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

func (c *configuration) service() (map[string]string, []byte, *steps.Result, error) {
	return map[string]string{"Names": strings.Join(c.dialer.Services(), ",")}, nil, nil, nil
}

// firewall lets the image's management sources in, and always our own address, so that it cannot cut us off.
func (c *configuration) firewall() (map[string]string, []byte, *steps.Result, error) {
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
	if _, own, err := net.SplitHostPort(climb.Address(c.request, port)); err == nil && own != ports[0] {
		ports = append(ports, own)
	}
	return map[string]string{"Ports": strings.Join(ports, ","), "Sources": strings.Join(sources, ",")}, nil, nil, nil
}

func (c *configuration) rdp() (map[string]string, []byte, *steps.Result, error) {
	options := c.request.Reservation.Image.PostLoad
	if len(options.RDPSources) == 0 {
		return nil, nil, steps.Skip("left as the image has it (image.post_load.rdp_sources)"), nil
	}
	port := options.RDPPort
	if port == 0 {
		port = usualRDP
	}
	return map[string]string{"Port": strconv.Itoa(port), "Sources": strings.Join(options.RDPSources, ",")}, nil, nil, nil
}

func (c *configuration) static() (map[string]string, []byte, *steps.Result, error) {
	public := c.request.Reservation.Computer.Public
	if public == nil {
		return nil, nil, steps.Skip("the computer has none (computer.public)"), nil
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
	} else if host, _, err := net.SplitHostPort(climb.Address(c.request, c.dialer.DefaultPort())); err == nil {
		values["Control"] = host
	}
	return values, nil, nil, nil
}

func (c *configuration) dynamic() (map[string]string, []byte, *steps.Result, error) {
	if c.request.Reservation.Computer.Public != nil {
		return nil, nil, steps.Skip("it is fixed"), nil
	}
	return map[string]string{"Interface": c.request.Reservation.Image.PostLoad.PublicInterface, "Wait": strconv.Itoa(c.module.pace.addressWait)}, nil, nil, nil
}

func (c *configuration) address(answer powershell.Answer) {
	if ip, err := netip.ParseAddr(answer.Values["publicAddress"]); err == nil {
		c.runner.Done.PublicAddress = ip.String()
		c.report.Keep(keepAddress, ip.String())
	}
}

func (c *configuration) time() (map[string]string, []byte, *steps.Result, error) {
	return map[string]string{"Now": strconv.FormatInt(time.Now().Unix(), 10), "Tolerance": strconv.Itoa(clockTolerance)}, nil, nil, nil
}

// password sets a random password that nobody keeps.
func (c *configuration) password(account string) func() (map[string]string, []byte, *steps.Result, error) {
	return func() (map[string]string, []byte, *steps.Result, error) {
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

func (c *configuration) updates() (map[string]string, []byte, *steps.Result, error) {
	folder := c.request.Reservation.Image.PostLoad.Updates
	if folder == "" {
		return nil, nil, steps.Skip("the image names no folder (image.post_load.updates)"), nil
	}
	return map[string]string{"Folder": folder}, nil, nil, nil
}

func (c *configuration) hostname() (map[string]string, []byte, *steps.Result, error) {
	if !c.request.Reservation.Image.PostLoad.Hostname {
		return nil, nil, steps.Skip("the image does not wish it (image.post_load.hostname)"), nil
	}
	name := c.request.Reservation.Computer.Name
	if err := reservation.CheckName("computer.name", name); err != nil || len(name) > nameLength || strings.Contains(name, ".") {
		return nil, nil, nil, reservation.Fail("", &reservation.FieldError{Field: "computer.name", Value: name,
			Remedy: fmt.Sprintf("a Windows computer's name has at most %d characters and no dot: take another, or leave image.post_load.hostname out", nameLength)})
	}
	return map[string]string{"Name": name}, nil, nil, nil
}

func (c *configuration) join() (map[string]string, []byte, *steps.Result, error) {
	domain := c.request.Reservation.Image.PostLoad.Domain
	if domain == nil {
		return nil, nil, steps.Skip("the image names none (image.post_load.domain)"), nil
	}
	password, err := c.module.options.Secret(domain.Credential)
	if err != nil {
		return nil, nil, nil, err
	}
	return map[string]string{"Domain": domain.Name, "Ou": domain.OU, "User": domain.User, "Password": password}, nil, nil, nil
}

// joinWithPatience tries again while the fault is the domain's and may pass: its controllers are not found yet.
func (c *configuration) joinWithPatience(ctx context.Context, s step) (powershell.Answer, *steps.Result, error) {
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
	reconnects := c.reconnects.Times
	for n := 1; ; n++ {
		answer, skipped, err := c.run(ctx, s)
		if answer.Result == powershell.ResultSkipped && (told || c.reconnects.Times > reconnects || n > 1) {
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
func (c *configuration) activate(ctx context.Context, s step) (powershell.Answer, *steps.Result, error) {
	wish := c.request.Reservation.Image.PostLoad.Activation
	if wish == nil {
		return powershell.Answer{}, steps.Skip("the image does not wish it (image.post_load.activation)"), nil
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
		s.prepare = func() (map[string]string, []byte, *steps.Result, error) {
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
		"Address": r.Computer.Address, "PublicAddress": c.runner.Done.PublicAddress,
	}
}

// tag is what stands in %ALLUSERSPROFILE%\Berth\load.json on a configured guest.
func (c *configuration) tag() (map[string]string, []byte, *steps.Result, error) {
	text, err := steps.TagOf(c.request)
	return nil, text, nil, err
}
