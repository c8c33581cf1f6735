package xcat

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/reservation"
)

const (
	// installerLimit is how long an installer may take to answer; it does so at once or not at all.
	installerLimit = 3 * time.Second
	maxLine        = 200

	// manySilent loads in a row in which nothing has started point at the management node.
	manySilent = 3
)

// reading is what is seen of a node at one look.
type reading struct {
	view
	news     string // its status, if it is one of this load's
	line     string // what its installer says
	services string // what nodestat sees, while no installer answers
}

// watch waits until the node's provisioning state is boot. It powers the node on once more if nothing starts, and once more
// if the installer hangs.
func (l *load) watch(ctx context.Context) error {
	l.remember()
	for last := time.Now(); ; {
		started := l.report.Kept(keptStarted) != ""
		r, err := l.read(ctx, started)
		now := time.Now()
		if err == nil {
			var done bool
			if done, err = l.judge(ctx, r); done || err != nil {
				return err
			}
			started = l.note(r, started)
		} else if ctx.Err() != nil || reservation.VerdictOf(Classify(err)) != "" {
			return err
		} else {
			// While xcatd does not answer nothing can be seen, so nothing counts against the node.
			l.log.Warn().Err(err).Msg("the management node does not answer; going on")
			l.report.Stage(l.stage(started), "the management node does not answer: "+err.Error())
			l.powered, l.changed = l.powered.Add(now.Sub(last)), l.changed.Add(now.Sub(last))
			l.count(l.began.Add(now.Sub(last)))
			l.keepChanged()
			l.report.Keep(keptLogin, "")
		}
		last = now
		if err := l.limit(ctx, started); err != nil {
			return err
		}
		every := l.limits.PollStart
		if started {
			every = l.limits.PollInstall
		}
		if err := pause(ctx, every); err != nil {
			return err
		}
	}
}

func (l *load) stage(started bool) string {
	if started {
		return stageInstall
	}
	return stageStart
}

// remember takes up the no-progress clock where a worker before us left it.
func (l *load) remember() {
	at, seen, _ := strings.Cut(l.report.Kept(keptChanged), " ")
	if kept, err := time.Parse(time.RFC3339, at); err == nil {
		l.changed, l.seen = kept, seen
		return
	}
	l.changed, l.seen = l.powered, ""
}

func (l *load) keepChanged() {
	l.report.Keep(keptChanged, l.changed.Format(time.RFC3339)+" "+l.seen)
}

func (l *load) read(ctx context.Context, started bool) (reading, error) {
	v, err := l.look(ctx)
	if err != nil {
		return reading{}, err
	}
	r := reading{view: v, news: l.news(v), line: l.module.installer(ctx, l.host())}
	if r.line == "" && (!started || l.answered()) {
		// It is a help, no more: what it does not see is not missed.
		if r.services, err = l.client.Services(ctx, l.node.node); err != nil && ctx.Err() != nil {
			return reading{}, ctx.Err()
		}
	}
	return r, nil
}

// judge says whether the bits are on the disk, or that they will not get there.
func (l *load) judge(ctx context.Context, r reading) (done bool, err error) {
	if err := l.owned(r.view); err != nil {
		return false, err
	}
	if r.state == stateBoot {
		state, err := l.client.State(ctx, l.node.node)
		if err != nil || state != stateBoot {
			return false, nil // the next look will tell
		}
		l.started()
		if r.news == "failed" {
			l.log.Warn().Msg("the node reports failed after its disk was loaded: a script of its first boot; whether it is usable the OS tells")
		}
		return true, nil
	}
	if r.state != "" && !arms(r.state) {
		return false, &ForeignError{Node: l.node.node, Found: fmt.Sprintf("set to %q by somebody else", r.state)}
	}
	switch r.news {
	case "failed":
		return false, reservation.Reload(fmt.Sprintf("a post-install script of osimage %s failed on node %s: see /var/log/xcat/cluster.log and computes.log on management node %s",
			l.osimage, l.node.node, l.name), nil)
	case "installing":
		first := l.report.Kept(keptInstall)
		if first == "" {
			l.report.Keep(keptInstall, r.status.Time)
		} else if apart(first, r.status.Time) >= l.limits.NextLate { // a repeated note is no second install
			return false, l.loops("it began to install again by itself")
		}
	case "postbooting", "booted":
		// One such look may fall between the node's two notes.
		if l.early++; l.early > 1 {
			return false, l.loops("its system has booted (status " + r.news + ") and its state still is " + r.state)
		}
		return false, nil
	}
	l.early = 0
	return false, l.login(r)
}

// login returns an error when a system has been running for a while whose node would install again: the installer that
// answered is gone, something answers by SSH, and the management node has not heard of it, nor of anything else.
func (l *load) login(r reading) error {
	if r.line != "" || !l.answered() || !slices.Contains(strings.Split(r.services, ","), "sshd") {
		if r.line != "" && l.report.Kept(keptLogin) != "" {
			l.report.Keep(keptLogin, "")
		}
		return nil
	}
	since, err := time.Parse(time.RFC3339, l.report.Kept(keptLogin))
	if err != nil {
		l.report.Keep(keptLogin, time.Now().Format(time.RFC3339))
		return nil
	}
	if time.Since(since) < l.limits.NextLate {
		return nil
	}
	return l.loops("its system answers by SSH (" + r.services + "), no installer does, and its state still is " + r.state)
}

// answered says whether the installer has answered since the node was powered on.
func (l *load) answered() bool { return l.seen != "" && !strings.HasPrefix(l.seen, "|") }

func (l *load) loops(why string) error {
	return reservation.Fail(fmt.Sprintf("node %s would install for ever: %s. Management node %s has not heard that the disk is loaded; see its port 3002 and /var/log/messages",
		l.node.node, why, l.name), nil)
}

// apart returns the time between two of the management node's times; 0 if it cannot be told.
func apart(first, second string) time.Duration {
	const layout = "01-02-2006 15:04:05"
	a, errA := time.Parse(layout, first)
	b, errB := time.Parse(layout, second)
	if errA != nil || errB != nil {
		return 0
	}
	return b.Sub(a)
}

// note keeps what has changed, re-arms the clock and tells people. It returns whether the installation has started.
func (l *load) note(r reading, started bool) bool {
	evidence := r.line != "" || r.news == "installing" || r.news == "installed" || r.news == "booting" ||
		arms(r.services) || strings.HasPrefix(r.services, "installing")
	begins := evidence && !started
	if begins {
		started = true
		l.started()
	}
	// A blank is no reading: what was there before still counts.
	before := strings.SplitN(l.seen+"||", "|", 4)
	line, news, state := firstOf(r.line, before[0]), firstOf(r.news, before[1]), firstOf(r.state, before[2])
	if seen := line + "|" + news + "|" + state; seen != l.seen || begins {
		l.changed, l.seen = time.Now(), seen
		l.keepChanged()
	}
	switch {
	case !started:
		l.report.Stage(stageStart, firstOf(news, r.services))
	case news == "powering-on": // that is of before the installation
		l.report.Stage(stageInstall, firstOf(line, state))
	default:
		l.report.Stage(stageInstall, firstOf(line, news, state))
	}
	return started
}

// last returns what was seen last, for people.
func (l *load) last() string {
	parts := strings.FieldsFunc(l.seen, func(r rune) bool { return r == '|' })
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

func firstOf(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

// started keeps that the installer has shown itself.
func (l *load) started() {
	l.report.Keep(keptStarted, time.Now().Format(time.RFC3339))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = 0
}

// limit acts when nothing has started, or nothing has changed, for too long.
func (l *load) limit(ctx context.Context, started bool) error {
	now := time.Now()
	switch {
	case now.After(l.overall):
		return reservation.Reload(fmt.Sprintf("node %s is not loaded within the overall limit; last seen: %s", l.node.node, l.last()), nil)
	case !started && now.Sub(l.powered) > l.limits.Start:
		if l.report.Kept(keptRestarted) == "" {
			l.report.Keep(keptRestarted, "1")
			// The first boot was a reset if the node was on, and some BMCs' reset is no cold start.
			return l.again(ctx, "nothing has started", l.report.Kept(keptAsked) == "on")
		}
		return reservation.Reload(fmt.Sprintf("no installer has started on node %s within %s of its power-on, twice: does it get an answer to DHCP (makedhcp -q %s) and its boot file by TFTP?%s",
			l.node.node, l.limits.Start, l.node.node, l.suspicion()), nil)
	case started && now.Sub(l.changed) > l.limits.NoProgress:
		if l.report.Kept(keptReset) == "" {
			l.report.Keep(keptReset, "1")
			return l.again(ctx, "no progress at "+strconv.Quote(l.last()), false)
		}
		return reservation.Reload(fmt.Sprintf("the installer on node %s has made no progress for %s, twice; last seen: %s", l.node.node, l.limits.NoProgress, l.last()), nil)
	}
	return nil
}

// suspicion counts loads in a row in which nothing has started, and names the management node when there are many.
func (l *load) suspicion() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.silent++; l.silent < manySilent {
		return ""
	}
	l.log.Error().Int("loads", l.silent).Msg("no load of this management node starts: its monitor (port 3002), DHCP or TFTP may be at fault")
	return fmt.Sprintf(" It is load %d in a row on management node %s in which nothing starts: look at the management node, not at the node.", l.silent, l.name)
}

// host is where the node's installer answers.
func (l *load) host() string {
	if host, _, err := net.SplitHostPort(l.request.Reservation.Computer.Address); err == nil {
		return host
	}
	return strings.Trim(l.request.Reservation.Computer.Address, "[]")
}

// installer returns a function that asks a node's installer what it does: "installing kernel (40%)".
func installer(ports []int) func(context.Context, string) string {
	return func(ctx context.Context, host string) string {
		for _, port := range ports {
			if line := stat(ctx, net.JoinHostPort(host, strconv.Itoa(port))); line != "" {
				return line
			}
		}
		return ""
	}
}

// stat asks at one address. Anything but a short line of text is no answer: who knows what listens there.
func stat(ctx context.Context, address string) string {
	ctx, cancel := context.WithTimeout(ctx, installerLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return ""
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if _, err := io.WriteString(conn, "stat \n"); err != nil {
		return ""
	}
	line, _ := bufio.NewReader(io.LimitReader(conn, maxLine)).ReadString('\n')
	line = strings.TrimSpace(line)
	for _, r := range line {
		if r < ' ' || r > '~' || r == '|' {
			return ""
		}
	}
	return line
}
