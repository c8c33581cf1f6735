//go:build e2e

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"

	"berth/internal/loadlog"
	"berth/reservation"
)

// updateReliability has TestTheStackBrokenOnPurpose write its report into docs/reliability.md.
func updateReliability() bool {
	value := flag.Lookup("update-reliability")
	return value != nil && value.Value.String() == "true"
}

// How long things are broken. A phase whose worker is lost moves after a heartbeat timeout of 30 s, so what is cut or
// paused for longer than that comes back to find its loads with others.
const (
	cutFor     = 90 * time.Second // a worker from Temporal
	vcenterFor = 60 * time.Second // a worker from its vCenter and its guests
	pauseFor   = 2 * time.Minute  // a worker, by SIGSTOP
	between    = 30 * time.Second // two faults: what was hit moves by then
	stepFor    = 10 * time.Second // between two numbers of workers
	tick       = 2 * time.Second
	// A computer is not loading for a few seconds of each turn: with so many VMs more there are always 60 that do.
	moreVMs = 24
)

// churn keeps every computer of the site loading: a reservation that has become ready is released, and the computer is
// reserved again.
type churn struct {
	stack  *stack
	images map[string]string // by computer

	mu     sync.Mutex
	ending bool            // nothing new is reserved, nothing released
	open   map[string]open // as last seen
	tried  map[string]time.Time
	number int
	faults []string // of the command line, while something is broken: for the log
}

func (c *churn) run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		c.turn(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (c *churn) turn(ctx context.Context) {
	all, err := c.stack.list(ctx)
	if err != nil {
		return // Temporal is what is broken just now
	}
	c.mu.Lock()
	c.open = all
	ending := c.ending
	var release, reserve []string
	if !ending {
		for computer := range c.images {
			o, live := all[computer]
			switch {
			case live && o.phase == string(reservation.PhaseReady):
				release = append(release, o.name)
			case !live && time.Since(c.tried[computer]) > 4*tick: // the list lags behind
				c.tried[computer] = time.Now()
				reserve = append(reserve, computer)
			}
		}
	}
	c.number++
	prefix := fmt.Sprintf("c%d", c.number)
	c.mu.Unlock()
	if len(release) > 0 {
		_, err := c.stack.starter(append([]string{"release"}, release...)...)
		c.note(err)
	}
	if len(reserve) > 0 {
		slices.Sort(reserve)
		c.note(c.stack.reserveBatch(prefix, c.images, reserve))
	}
}

func (c *churn) note(err error) {
	if err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, time.Now().Format(time.TimeOnly)+" "+err.Error())
}

// loading returns the reservations that are being loaded, as last seen.
func (c *churn) loading() []open {
	c.mu.Lock()
	defer c.mu.Unlock()
	var loading []open
	for _, o := range c.open {
		if o.phase == string(reservation.PhaseLoad) || o.phase == string(reservation.PhasePostLoad) {
			loading = append(loading, o)
		}
	}
	return loading
}

// enough waits until at least n loads are in flight.
func (c *churn) enough(t *testing.T, n int) {
	t.Helper()
	c.stack.eventually(t, loadsLimit, func() error {
		if in := len(c.loading()); in < n {
			return fmt.Errorf("%d loads in flight, not %d", in, n)
		}
		return nil
	})
}

// fault is one thing that was broken.
type fault struct {
	what     string
	began    time.Time
	inFlight []string // reservations
	hit      []string // those of them that were on what was broken
}

// break breaks something, and notes what was in flight. hit says of a worker's container whether it is hit; nil is
// everything.
func (c *churn) breaks(t *testing.T, what string, hit []string, do func()) *fault {
	t.Helper()
	f := &fault{what: what}
	loading := c.loading()
	var mu sync.Mutex
	var group sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, o := range loading {
		f.inFlight = append(f.inFlight, o.name)
		if hit == nil {
			f.hit = append(f.hit, o.name)
			continue
		}
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			described, err := c.stack.temporal.DescribeWorkflowExecution(context.Background(), "computer/"+o.computer, o.run)
			if err != nil {
				return
			}
			for _, pending := range described.GetPendingActivities() {
				for _, id := range hit {
					if strings.Contains(pending.GetLastWorkerIdentity(), "@"+id[:12]+":") && pending.GetState() == enumspb.PENDING_ACTIVITY_STATE_STARTED {
						mu.Lock()
						f.hit = append(f.hit, o.name)
						mu.Unlock()
					}
				}
			}
		})
	}
	group.Wait()
	f.began = time.Now()
	t.Logf("%s: %s: %d loads in flight, %d of them on it", f.began.Format(time.TimeOnly), what, len(f.inFlight), len(f.hit))
	do()
	return f
}

// kill kills a container's program as the kernel would: Docker's restart policy brings it back.
func (s *stack) kill(t *testing.T, id string) {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(s.run(t, time.Minute, "docker", "inspect", "-f", "{{.State.Pid}}", id)))
	require.NoError(t, err)
	require.Positive(t, pid)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}

// apart cuts a container off a network, and returns what heals that.
func (s *stack) apart(t *testing.T, id, service, network string) (heal func()) {
	t.Helper()
	s.run(t, time.Minute, "docker", "network", "disconnect", s.project+"_"+network, id)
	return func() {
		s.run(t, time.Minute, "docker", "network", "connect", "--alias", service, s.project+"_"+network, id)
	}
}

// TestTheStackBrokenOnPurpose breaks every part of the stack under a running batch of mixed loads, and counts.
func TestTheStackBrokenOnPurpose(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("it kills programs in containers: run `make e2e` as root")
	}
	s := newStack(t, moreVMs, "WORKERS=2", "WORKERS_VMWARE=3", "WORKERS_XCAT=2")
	s.build(t)
	s.takeDown(t)
	s.up(t, "--scale", "batch=0")
	s.fetchCatalog(t)
	began := time.Now()

	images := batchImages(t)
	for i := range moreVMs {
		images[moreVM(i)] = []string{"debian12", "rocky9", "ubuntu2404"}[i%3]
	}
	c := &churn{stack: s, images: images, tried: map[string]time.Time{}}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	defer func() {
		stop()
		<-done
	}()
	c.enough(t, 60)

	var faults []*fault
	add := func(f *fault) { faults = append(faults, f) }
	for n := range 3 { // one of each kind at a time: their loads are different ones
		for _, service := range workerServices() {
			if all := s.containers(t, service); n < len(all) {
				add(c.breaks(t, "SIGKILL of a "+service, onWorkers(service, all[n]), func() { s.kill(t, all[n]) }))
			}
		}
		time.Sleep(between)
	}
	add(c.breaks(t, "Temporal killed, restarted by Docker", nil, func() { s.kill(t, s.containers(t, "temporal")[0]) }))
	time.Sleep(between)
	s.ready(t)
	c.enough(t, 60)
	stopped := s.containers(t, "worker-vmware")[:1]
	stopped = append(stopped, s.containers(t, "worker-xcat")[:1]...)
	add(c.breaks(t, "docker stop of a worker-vmware and a worker-xcat, which drain", stopped, func() {
		s.run(t, time.Minute, "docker", append([]string{"stop", "-t", "40"}, stopped...)...)
		for _, id := range stopped { // 137 is one that was killed because it did not end
			require.Equal(t, "0", strings.TrimSpace(s.run(t, time.Minute, "docker", "inspect", "-f", "{{.State.ExitCode}}", id)))
		}
		s.run(t, time.Minute, "docker", append([]string{"start"}, stopped...)...)
	}))
	s.ready(t)
	c.enough(t, 60)
	add(c.breaks(t, "PostgreSQL killed, restarted by Docker", nil, func() { s.kill(t, s.containers(t, "postgresql")[0]) }))
	time.Sleep(between)
	s.ready(t)
	c.enough(t, 60)

	// Three at once, each of a worker of its own. One of each type is well.
	vmware, xcat := s.containers(t, "worker-vmware"), s.containers(t, "worker-xcat")
	require.Len(t, vmware, 3)
	var healed sync.WaitGroup
	for _, one := range []struct {
		what, id string
		broken   time.Duration
		do       func() (heal func())
	}{
		{"a worker-vmware cut off Temporal for 90 s", vmware[0], cutFor, func() func() { return s.apart(t, vmware[0], "worker-vmware", "temporal") }},
		{"a worker-vmware cut off its vCenter and its guests for 60 s", vmware[1], vcenterFor, func() func() { return s.apart(t, vmware[1], "worker-vmware", "lab") }},
		{"a worker-xcat stopped (SIGSTOP) for 2 minutes", xcat[0], pauseFor, func() func() {
			s.run(t, time.Minute, "docker", "kill", "-s", "STOP", xcat[0])
			return func() { s.run(t, time.Minute, "docker", "kill", "-s", "CONT", xcat[0]) }
		}},
	} {
		add(c.breaks(t, one.what, []string{one.id}, func() {
			heal := one.do()
			healed.Add(1)
			time.AfterFunc(one.broken, func() {
				defer healed.Done()
				heal()
			})
		}))
	}
	healed.Wait()
	s.ready(t)
	c.enough(t, 60)
	time.Sleep(between / 2)

	add(c.breaks(t, "everything stopped (but the site) and started again", nil, func() {
		parts := []string{"worker", "worker-vmware", "worker-xcat", "temporal", "postgresql", "ui", "prometheus", "grafana"}
		s.compose(t, upLimit, append([]string{"stop", "-t", "40"}, parts...)...)
		s.compose(t, upLimit, append([]string{"start"}, parts...)...)
	}))
	s.ready(t)
	time.Sleep(between)
	c.enough(t, 60)
	add(c.breaks(t, "workers of each type to 1, to 3, and back to 1", nil, func() {
		for _, n := range []string{"1", "3", "1"} {
			s.compose(t, upLimit, "up", "-d", "--no-recreate", "--scale", "batch=0", "--scale", "worker="+n, "--scale", "worker-vmware="+n, "--scale", "worker-xcat="+n,
				"worker", "worker-vmware", "worker-xcat")
			s.ready(t)
			time.Sleep(stepFor)
		}
	}))

	// What is loading comes to its end, and everything is given back.
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	time.Sleep(2 * tick)
	s.settled(t, 2*loadsLimit)
	s.release(t, func(open) bool { return true })
	c.mu.Lock()
	for _, f := range c.faults {
		t.Logf("the command line met: %s", f)
	}
	c.mu.Unlock()

	all := s.closed(t)
	report := count(all, faults)
	site := s.site(t)
	attempts := map[string]int{}
	for _, v := range all {
		for _, p := range v.Phases {
			if p.Phase == reservation.PhaseLoad {
				attempts[v.Computer]++
			}
		}
	}
	for computer, counts := range site.Counts {
		if extra := counts.Clones - attempts[computer]; extra > 0 {
			report.doubled += extra
			t.Errorf("%s: %d clones in %d attempts", computer, counts.Clones, attempts[computer])
		}
	}
	for _, g := range site.Guests {
		if _, physical := site.Metal.Nodes[g.Name]; physical {
			continue // what is on its disk stays there
		}
		report.stranded++
		t.Errorf("%s: its VM is still there: power %s, mark %s", g.Name, g.Power, g.Mark)
	}
	for name, node := range site.Metal.Nodes {
		if node.Armed() {
			report.armed++
			t.Errorf("%s is left armed: %s", name, node.Currstate)
		}
		if node.Power {
			report.stranded++
			t.Errorf("%s is left powered on", name)
		}
		if extra := node.Installs - attempts[name]; extra > 0 {
			report.doubled += extra
			t.Errorf("%s: %d installs in %d attempts", name, node.Installs, attempts[name])
		}
	}
	for _, lost := range report.lost {
		t.Errorf("lost: %s", lost)
	}
	require.Zero(t, report.heldTwice, "computers that two reservations held at once")
	text := report.text(time.Since(began))
	fmt.Println(text)
	if updateReliability() {
		writeReport(t, text)
	}
	for _, line := range report.rows {
		t.Logf("%s: the latest is %s, late by %s:", line.what, line.latest.Reservation, line.delay.Round(time.Second))
		for _, p := range line.latest.Phases {
			t.Logf("  %s from %s to %s %s, lost %d:", p.Phase, p.Began.Format(time.TimeOnly), p.Ended.Format(time.TimeOnly), p.Verdict, p.Lost)
			for _, stage := range p.Stages {
				t.Logf("    %s %s: %s", stage.Began.Format(time.TimeOnly), stage.Name, stage.Detail)
			}
		}
	}
	for _, f := range faults {
		require.NotEmpty(t, f.inFlight, f.what)
	}
}

// onWorkers is what a killed worker hits: a workflow worker has no phase of a load.
func onWorkers(service, id string) []string {
	if service == "worker" {
		return nil
	}
	return []string{id}
}

// batchImages is what the demonstration's batch loads onto each computer.
func batchImages(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../deploy/demo/batch.yaml")
	require.NoError(t, err)
	images := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		if entry, ok := strings.CutPrefix(line, "- {"); ok {
			fields := map[string]string{}
			for _, field := range strings.Split(strings.TrimSuffix(entry, "}"), ", ") {
				name, value, _ := strings.Cut(field, ": ")
				fields[name] = value
			}
			images[fields["computer"]] = fields["image"]
		}
	}
	require.GreaterOrEqual(t, len(images), 60)
	return images
}

// closed returns how every reservation ended.
func (s *stack) closed(t *testing.T) []loadlog.View {
	t.Helper()
	var views []loadlog.View
	s.eventually(t, time.Minute, func() error { // the list lags behind
		views = nil
		for _, v := range s.show(t, "--all") {
			if !v.Over() {
				return fmt.Errorf("%s is in phase %s", v.Reservation, v.Phase)
			}
			views = append(views, v)
		}
		if len(views) == 0 {
			return errors.New("no reservation is listed")
		}
		return nil
	})
	return views
}

// report is what came of it.
type report struct {
	reservations, loads, attempts int
	lost                          []string
	heldTwice, doubled, stranded  int
	armed                         int
	rows                          []row
}

type row struct {
	*fault
	resumed, reloaded int
	delay             time.Duration
	latest            loadlog.View // whose delay it is
}

// scripted says whether the demonstration's site has scripted that a load fails or needs another attempt: the first one of
// these computers does.
func scripted(v loadlog.View) (fails, reloads bool) {
	switch v.Computer {
	case "vm-05":
		return v.Outcome == reservation.OutcomeFailed, false
	case "vm-03", "node-02":
		return false, true
	}
	return false, false
}

func count(all []loadlog.View, faults []*fault) report {
	r := report{reservations: len(all)}
	took := map[string][]time.Duration{} // undisturbed loads, by image
	byName := map[string]loadlog.View{}
	byComputer := map[string][]loadlog.View{}
	for _, v := range all {
		byName[v.Reservation] = v
		byComputer[v.Computer] = append(byComputer[v.Computer], v)
		fails, _ := scripted(v)
		switch {
		case fails:
		case v.Ready.IsZero() || v.Outcome != reservation.OutcomeReleased || v.LeftBehind():
			r.lost = append(r.lost, fmt.Sprintf("%s: outcome %q, attempt %d: %s", v.Reservation, v.Outcome, v.Attempt.Number, v.Reason))
		default:
			r.loads++
		}
		disturbed := v.Attempt.Number > 1
		for _, p := range v.Phases {
			disturbed = disturbed || p.Lost > 0
			if p.Phase == reservation.PhaseLoad {
				r.attempts++
			}
		}
		if !disturbed && !v.Ready.IsZero() {
			took[v.Image] = append(took[v.Image], v.Ready.Sub(v.Began))
		}
	}
	for _, views := range byComputer {
		slices.SortFunc(views, func(a, b loadlog.View) int { return a.Began.Compare(b.Began) })
		for i := 1; i < len(views); i++ {
			if views[i].Began.Before(views[i-1].Ended) {
				r.heldTwice++
			}
		}
	}
	for _, f := range faults {
		line := row{fault: f}
		for _, name := range f.inFlight {
			v, ok := byName[name]
			if !ok {
				r.lost = append(r.lost, name+": it is not listed any more")
				continue
			}
			resumed, reloaded := false, false
			for _, p := range v.Phases {
				spans := slices.Contains(f.hit, name) && !p.Began.After(f.began) && (p.Ended.IsZero() || p.Ended.After(f.began))
				resumed = resumed || spans && p.Lost > 0
				reloaded = reloaded || spans && p.Verdict == reservation.VerdictReload
			}
			_, reloads := scripted(v)
			if resumed {
				line.resumed++
			}
			if reloaded && !reloads {
				line.reloaded++
			}
			usual := took[v.Image]
			if slices.Contains(f.hit, name) && len(usual) > 0 && !v.Ready.IsZero() && !reloads {
				slices.Sort(usual)
				if delay := v.Ready.Sub(v.Began) - usual[len(usual)/2]; delay > line.delay {
					line.delay, line.latest = delay, v
				}
			}
		}
		r.rows = append(r.rows, line)
	}
	return r
}

// text is the report as a table in Markdown.
func (r report) text(took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d reservations in %s, %d loads that became ready, in %d attempts.\n\n", r.reservations, took.Round(time.Second), r.loads, r.attempts)
	b.WriteString("| lost | clones or installs doubled | computers held twice | stranded | nodes left armed |\n|---|---|---|---|---|\n")
	fmt.Fprintf(&b, "| %d | %d | %d | %d | %d |\n\n", len(r.lost), r.doubled, r.heldTwice, r.stranded, r.armed)
	b.WriteString("| what was done | loads in flight | of them on it | resumed | reloaded | longest delay |\n|---|---|---|---|---|---|\n")
	for _, line := range r.rows {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %s |\n", line.what, len(line.inFlight), len(line.hit), line.resumed, line.reloaded, line.delay.Round(time.Second))
	}
	return b.String()
}

// The report stands between these lines of docs/reliability.md.
const (
	reportFrom = "<!-- the report of the last run: go test writes it -->\n"
	reportTo   = "<!-- end of the report -->\n"
)

func writeReport(t *testing.T, text string) {
	t.Helper()
	const file = "../docs/reliability.md"
	page, err := os.ReadFile(file)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(page), reportFrom)
	require.True(t, ok, "%s has no %q", file, reportFrom)
	_, after, ok := strings.Cut(rest, reportTo)
	require.True(t, ok, "%s has no %q", file, reportTo)
	require.NoError(t, os.WriteFile(file, []byte(before+reportFrom+text+reportTo+after), 0o644))
}
