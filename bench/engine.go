package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"berth/activities"
	"berth/internal/devserver"
	"berth/internal/hold"
	"berth/internal/scripted"
	"berth/osmodules"
	"berth/provisioners"
	"berth/reservation"
	"berth/workflows"
)

const (
	noop      = "noop" // the provisioner type of the no-op modules
	bareQueue = "bare"
	bareWork  = "bare-activities"
	bareDone  = "bare_done" // the counter that a bare workflow ends with, as berth_loads does for a load
)

// bare is the yardstick: a workflow of two no-op activities. Each of its parts adds one thing that a load does, so that
// what each costs can be measured by itself.
type bare struct {
	Payload  *reservation.Reservation // carries what a load carries, in its input and in both requests
	Start    bool                     // starts with a load's search attributes and summary
	Upserts  bool                     // upserts search attributes twice, as a first-try load does
	Timer    bool                     // has a timer for its end
	Handlers bool                     // answers a query and an update, shows current details
	Limits   bool                     // its activities have a phase's limits (queue, heartbeat, all tries), retry policy and summary
	Beats    bool                     // its activities heartbeat once
}

func bareWorkflow(ctx workflow.Context, b bare) error {
	if b.Handlers {
		if err := workflow.SetQueryHandler(ctx, workflows.StatusQuery, func() (string, error) { return "", nil }); err != nil {
			return err
		}
		if err := workflow.SetUpdateHandler(ctx, workflows.ExtendUpdate, func(workflow.Context, string) error { return nil }); err != nil {
			return err
		}
	}
	if b.Timer {
		timerCtx, stop := workflow.WithCancel(ctx)
		defer stop()
		workflow.NewTimer(timerCtx, time.Hour)
	}
	request := activities.PhaseRequest{}
	if b.Payload != nil {
		request.Reservation = *b.Payload
	}
	keys := workflows.SearchAttributes()
	for n, phase := range []reservation.Phase{reservation.PhasePostLoad, reservation.PhaseReady} {
		options := workflow.ActivityOptions{TaskQueue: bareWork, StartToCloseTimeout: time.Minute}
		if b.Limits || b.Beats {
			options.HeartbeatTimeout = 30 * time.Second
		}
		if b.Limits {
			options.ScheduleToStartTimeout, options.ScheduleToCloseTimeout = 2*time.Minute, 5*time.Minute
			options.RetryPolicy = &temporal.RetryPolicy{
				InitialInterval: time.Second, MaximumInterval: 30 * time.Second, NonRetryableErrorTypes: []string{activities.TypeReload, activities.TypeFail},
			}
			options.Summary = "post-load: debian12-r1 on vm-1, attempt 1 of 3, limit 30m0s"
		}
		if err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, options), bareActivityName(b), request).Get(ctx, nil); err != nil {
			return err
		}
		if b.Handlers {
			workflow.SetCurrentDetails(ctx, fmt.Sprint("phase ", n))
		}
		if b.Upserts {
			if err := workflow.UpsertTypedSearchAttributes(ctx, keys.Phase.ValueSet(string(phase))); err != nil {
				return err
			}
		}
	}
	workflow.GetMetricsHandler(ctx).Counter(bareDone).Inc(1)
	return nil
}

func bareActivityName(b bare) string {
	if b.Beats {
		return "beat"
	}
	return "nothing"
}

// engine is a server's client with everything that the measurements run, in this process.
type engine struct {
	c       client.Client
	done    atomic.Pointer[func()] // called when a load is ready or a bare workflow is over
	workers []worker.Worker
	runs    atomic.Int64
	server  int // the server's process id
}

func startEngine(server *devserver.Server) (*engine, error) {
	e := &engine{server: server.Pid()}
	c, err := client.Dial(client.Options{HostPort: server.Address, Namespace: server.Namespace, Logger: quiet{}, MetricsHandler: counting{e: e}})
	if err != nil {
		return nil, err
	}
	e.c = c
	serve := func(queue string, register func(worker.Worker), options worker.Options) error {
		w := worker.New(c, queue, options)
		register(w)
		e.workers = append(e.workers, w)
		return w.Start()
	}
	acts := activities.New(activities.Options{
		Provisioners: provisioners.NewRegistry(map[string]provisioners.Provisioner{noop: &scripted.Provisioner{}}),
		OSModules:    osmodules.NewRegistry(map[reservation.OSFamily]osmodules.Module{reservation.Linux: &scripted.OSModule{}}),
		Client:       c, Identity: "bench",
	})
	activityOnly := worker.Options{DisableWorkflowWorker: true, MaxHeartbeatThrottleInterval: activities.HeartbeatThrottle}
	for _, err := range []error{
		serve(activities.WorkflowQueue, func(w worker.Worker) { workflows.Register(w); acts.RegisterOnWorkflowQueue(w) }, worker.Options{}),
		serve(activities.Queue(noop, ""), func(w worker.Worker) { acts.Register(w) }, activityOnly),
		serve(bareQueue, func(w worker.Worker) {
			w.RegisterWorkflowWithOptions(bareWorkflow, workflow.RegisterOptions{Name: "bare"})
		}, worker.Options{}),
		serve(bareWork, func(w worker.Worker) {
			w.RegisterActivityWithOptions(func(context.Context, activities.PhaseRequest) (activities.PhaseResult, error) {
				return activities.PhaseResult{}, nil
			}, activity.RegisterOptions{Name: "nothing"})
			w.RegisterActivityWithOptions(func(ctx context.Context, r activities.PhaseRequest) (activities.PhaseResult, error) {
				activity.RecordHeartbeat(ctx, reservation.Progress{Began: time.Now(), Limit: r.Limit, Worker: "bench"})
				return activities.PhaseResult{}, nil
			}, activity.RegisterOptions{Name: "beat"})
		}, activityOnly),
	} {
		if err != nil {
			e.stop()
			return nil, err
		}
	}
	return e, nil
}

func (e *engine) stop() {
	for _, w := range e.workers {
		w.Stop()
	}
	e.c.Close()
}

// start starts one run of something and returns its workflow.
type start func(ctx context.Context) (client.WorkflowRun, error)

// reserve starts a no-op load.
func (e *engine) reserve(ctx context.Context) (client.WorkflowRun, error) {
	return hold.Start(ctx, e.c, e.reservation())
}

func (e *engine) reservation() reservation.Reservation {
	n := e.runs.Add(1)
	r := scripted.Reservation(fmt.Sprintf("bench-%d", n), fmt.Sprintf("vm-%d", n), noop)
	r.End = time.Now().Add(time.Hour)
	return r
}

func (e *engine) bare(b bare) start {
	return func(ctx context.Context) (client.WorkflowRun, error) {
		options := client.StartWorkflowOptions{ID: fmt.Sprintf("bare-%d", e.runs.Add(1)), TaskQueue: bareQueue}
		if b.Start {
			r := e.reservation()
			options.TypedSearchAttributes = temporal.NewSearchAttributes(workflows.SearchAttributes().AtStart(r)...)
			options.StaticSummary = workflows.Summary(r)
		}
		return e.c.ExecuteWorkflow(ctx, options, "bare", b)
	}
}

// rate is what a round of throughput showed.
type rate struct {
	second    float64       // done in a second
	serverCPU time.Duration // the server's CPU time for each
	ownCPU    time.Duration // this process's: client and workers
}

// throughput runs n of them, at most side of them at once.
func (e *engine) throughput(ctx context.Context, n, side int, start start) (rate, []client.WorkflowRun, error) {
	serverBefore, ownBefore := cpuTime(e.server), cpuTime(os.Getpid())
	slots := make(chan struct{}, side)
	finished := make(chan struct{}, n)
	done := func() { <-slots; finished <- struct{}{} }
	e.done.Store(&done)
	defer e.done.Store(nil)
	var runs []client.WorkflowRun
	started := make(chan error, n)
	results := make(chan client.WorkflowRun, n)
	began := time.Now()
	for range n {
		select {
		case slots <- struct{}{}:
		case err := <-started:
			return rate{}, nil, err
		case <-ctx.Done():
			return rate{}, nil, ctx.Err()
		}
		go func() {
			run, err := start(ctx)
			if err != nil {
				started <- err
				return
			}
			results <- run
		}()
	}
	for range n {
		select {
		case <-finished:
		case err := <-started:
			return rate{}, nil, err
		case <-ctx.Done():
			return rate{}, nil, ctx.Err()
		}
	}
	took := time.Since(began)
	for range n {
		runs = append(runs, <-results)
	}
	return rate{
		second:    float64(n) / took.Seconds(),
		serverCPU: (cpuTime(e.server) - serverBefore) / time.Duration(n),
		ownCPU:    (cpuTime(os.Getpid()) - ownBefore) / time.Duration(n),
	}, runs, nil
}

// cpuTime returns the CPU time that a process has used so far (proc(5), stat: utime and stime, in ticks of 10 ms).
func cpuTime(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, uerr := strconv.Atoi(fields[11])
	system, serr := strconv.Atoi(fields[12])
	if uerr != nil || serr != nil {
		return 0
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// compare runs bare workflows and loads turn and turn about, so that whatever else the machine does weighs on both alike,
// and returns one of the loads.
func (e *engine) compare(ctx context.Context, rounds, n, side int, figures map[string]float64) (client.WorkflowRun, error) {
	var sample client.WorkflowRun
	var bares, loads rates
	var ratios []float64
	// A first round that is not counted: connections, caches and the store's first pages.
	for round := range rounds + 1 {
		b, _, err := e.throughput(ctx, n, side, e.bare(bare{}))
		if err != nil {
			return nil, err
		}
		l, runs, err := e.throughput(ctx, n, side, e.reserve)
		if err != nil {
			return nil, err
		}
		sample = runs[0]
		if err := e.release(ctx, runs); err != nil {
			return nil, err
		}
		if round > 0 {
			bares, loads, ratios = append(bares, b), append(loads, l), append(ratios, l.second/b.second)
		}
	}
	figures["throughput_ratio"] = median(ratios)
	fmt.Printf("\nThroughput, %d side by side, %d a round, %d rounds of each, turn and turn about:\n\n", side, n, rounds)
	printRates()
	bares.print("bare workflow, two no-op activities", 1)
	loads.print("Berth, no-op modules, to ready", figures["throughput_ratio"])
	fmt.Printf("\nThe ratio went from %.2f to %.2f between rounds; CPU time of a bare workflow over that of a load: %.2f.\n",
		percentile(ratios, 0), percentile(ratios, 100), float64(bares.cpu())/float64(loads.cpu()))
	return sample, nil
}

// compareLatency runs bare workflows and loads one at a time, turn and turn about.
func (e *engine) compareLatency(ctx context.Context, n int, figures map[string]float64) error {
	var bares, loads []time.Duration
	one := func(start start) (time.Duration, []client.WorkflowRun, error) {
		began := time.Now()
		_, runs, err := e.throughput(ctx, 1, 1, start)
		return time.Since(began), runs, err
	}
	for range n {
		b, _, err := one(e.bare(bare{}))
		if err != nil {
			return err
		}
		l, runs, err := one(e.reserve)
		if err != nil {
			return err
		}
		if err := e.release(ctx, runs); err != nil {
			return err
		}
		bares, loads = append(bares, b), append(loads, l)
	}
	figures["latency_ratio"] = float64(median(loads)) / float64(median(bares))
	fmt.Printf("\nOne at a time, medians of %d from start to done: bare %s, Berth from reserve to ready %s: %.2f times.\n", n,
		median(bares).Round(100*time.Microsecond), median(loads).Round(100*time.Microsecond), figures["latency_ratio"])
	return nil
}

// dissect shows what each part of a load costs a bare workflow that has nothing else of it.
func (e *engine) dissect(ctx context.Context, rounds, n, side int) error {
	example := e.reservation()
	parts := []struct {
		name string
		bare bare
	}{
		{"bare workflow", bare{}},
		{"  + a load's input and requests", bare{Payload: &example}},
		{"  + search attributes and summary at start", bare{Start: true}},
		{"  + two upserts of search attributes", bare{Upserts: true}},
		{"  + a timer for the end", bare{Timer: true}},
		{"  + query, update, current details", bare{Handlers: true}},
		{"  + a phase's limits, retry policy, summary", bare{Limits: true}},
		{"  + all of these", bare{Payload: &example, Start: true, Upserts: true, Timer: true, Handlers: true, Limits: true}},
		{"  + a heartbeat in each activity (no-op modules send none)", bare{Beats: true}},
	}
	all, ratios := make([]rates, len(parts)), make([][]float64, len(parts))
	for range rounds {
		for i, part := range parts {
			// Each part beside a bare round of its own: the machine may be another one half a minute later.
			base, _, err := e.throughput(ctx, n, side, e.bare(bare{}))
			if err != nil {
				return err
			}
			r, _, err := e.throughput(ctx, n, side, e.bare(part.bare))
			if err != nil {
				return err
			}
			all[i], ratios[i] = append(all[i], r), append(ratios[i], r.second/base.second)
		}
	}
	fmt.Printf("\nWhat each part of a load costs, %d rounds, each beside a bare round of its own:\n\n", rounds)
	printRates()
	for i, part := range parts {
		all[i].print(part.name, median(ratios[i]))
	}
	return nil
}

// rates are the rounds of one thing.
type rates []rate

func printRates() {
	fmt.Printf("| what | a second | of the bare workflow | server CPU each | client and worker CPU each |\n|---|---|---|---|---|\n")
}

func (r rates) print(name string, ratio float64) {
	seconds, server, own := r.columns()
	fmt.Printf("| %s | %.1f | %.2f | %s | %s |\n", name, median(seconds), ratio,
		median(server).Round(100*time.Microsecond), median(own).Round(100*time.Microsecond))
}

// cpu returns the median of the CPU time of one, server and ours together.
func (r rates) cpu() time.Duration {
	_, server, own := r.columns()
	return median(server) + median(own)
}

func (r rates) columns() (seconds []float64, server, own []time.Duration) {
	for _, one := range r {
		seconds, server, own = append(seconds, one.second), append(server, one.serverCPU), append(own, one.ownCPU)
	}
	return seconds, server, own
}

// release ends reservations and waits until they are over, so that they do not weigh on the next measurement.
func (e *engine) release(ctx context.Context, runs []client.WorkflowRun) error {
	for _, run := range runs {
		if err := e.c.SignalWorkflow(ctx, run.GetID(), run.GetRunID(), workflows.ReleaseSignal, nil); err != nil {
			return err
		}
	}
	for _, run := range runs {
		if err := run.Get(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// counting calls the engine's done for the counters that end a load and a bare workflow.
type counting struct{ e *engine }

func (c counting) WithTags(tags map[string]string) client.MetricsHandler {
	if outcome, ok := tags["outcome"]; ok && outcome != string(reservation.OutcomeReady) {
		return client.MetricsNopHandler
	}
	return c
}

func (c counting) Counter(name string) client.MetricsCounter {
	if name != "berth_loads" && name != bareDone {
		return client.MetricsNopHandler.Counter(name)
	}
	return counter(c)
}

func (counting) Gauge(name string) client.MetricsGauge { return client.MetricsNopHandler.Gauge(name) }
func (counting) Timer(name string) client.MetricsTimer { return client.MetricsNopHandler.Timer(name) }

type counter struct{ e *engine }

func (c counter) Inc(int64) {
	if done := c.e.done.Load(); done != nil {
		(*done)()
	}
}

type number interface{ ~int64 | ~float64 }

func median[T number](values []T) T { return percentile(values, 50) }

// percentile returns the smallest value that is at least as large as p percent of them.
func percentile[T number](values []T, p int) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

// quiet keeps the SDK's log out of the figures.
type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}
