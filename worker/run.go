package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"golang.org/x/term"

	"berth/activities"
	"berth/internal/logging"
	"berth/internal/metrics"
	"berth/internal/temporalclient"
	"berth/internal/tracing"
	"berth/osmodules"
	"berth/provisioners"
	"berth/workflows"
)

// closeLimit bounds what is left to do once the queues are no longer served: logging out of vCenters, sending the last
// traces.
const closeLimit = 10 * time.Second

// run is one life of the worker: it checks everything, serves its queues until the context ends, and hands over. Its
// error is a *startError if it did not come to serve, or what ended it.
func run(ctx context.Context, c config, stderr io.Writer) error {
	file, isFile := stderr.(*os.File)
	log, err := logging.New(logging.Options{Writer: stderr, Level: c.LogLevel, Format: c.LogFormat, Color: isFile && term.IsTerminal(int(file.Fd()))})
	if err != nil {
		return newStartError(err)
	}
	lookupEnv, all := environment()
	for _, warning := range mistyped(all) {
		log.Warn().Msg(warning)
	}
	p := &program{config: c, log: log, metrics: metrics.New(), identity: temporalclient.Identity("worker")}
	p.health = &health{metrics: p.metrics, log: log}
	defer p.close()
	if err := p.prepare(ctx, lookupEnv); err != nil {
		if ctx.Err() != nil {
			log.Info().Msg("stopped before it had started")
			return nil
		}
		return err
	}
	return p.serve(ctx)
}

// program is a running worker.
type program struct {
	config   config
	log      zerolog.Logger
	metrics  *metrics.Metrics
	health   *health
	identity string

	stopListening func()
	modules       *modules
	tracing       *tracing.Tracing
	client        client.Client
}

// prepare makes and checks everything that serving needs. Its error is a *startError with every fault.
func (p *program) prepare(ctx context.Context, lookupEnv func(string) (string, bool)) error {
	listening := p.listen()
	var building, checking, dialing error
	var group sync.WaitGroup
	group.Go(func() {
		if p.modules, building = build(p.config, lookupEnv, p.log, p.metrics); p.modules != nil {
			// Logging in tells something even if another part has a fault.
			checking = p.modules.check(ctx)
		}
	})
	group.Go(func() { dialing = p.connect(ctx) })
	group.Wait()
	return newStartError(listening, building, checking, dialing)
}

// listen serves health and metrics.
func (p *program) listen() error {
	if p.config.Listen == "" {
		return nil
	}
	listener, err := net.Listen("tcp", p.config.Listen)
	if err != nil {
		return fmt.Errorf("BERTH_LISTEN is %q: %w: choose another address, or set it to nothing for none", p.config.Listen, err)
	}
	p.stopListening = p.health.listen(listener)
	p.log.Info().Str("address", listener.Addr().String()).Msg("health and metrics are served over HTTP: /healthz, /readyz, /metrics")
	return nil
}

// connect connects to Temporal and sees that the namespace and the search attributes are there.
func (p *program) connect(ctx context.Context) error {
	settings := p.config.Settings
	var err error
	p.tracing, err = tracing.New(ctx, tracing.Options{
		Settings: p.config.Tracing, Service: "berth-worker", Identity: p.identity,
		Failed: func(err error) { p.log.Warn().Str("error", err.Error()).Msg("traces are lost") },
	})
	if err != nil {
		return err
	}
	c, err := temporalclient.Dial(ctx, temporalclient.Options{
		Settings:     settings,
		Identity:     p.identity,
		Logger:       logging.Temporal(p.log),
		Metrics:      p.metrics.Handler(),
		Interceptors: p.tracing.Client(),
		Waiting: func(err error) {
			p.log.Warn().Str("address", settings.Address).Str("error", err.Error()).Stringer("patience", settings.Patience).Msg("waiting for Temporal")
		},
	})
	if err != nil {
		return err
	}
	p.client = c
	if err := temporalclient.CheckNamespace(ctx, c, settings.Namespace); err != nil {
		return err
	}
	return temporalclient.EnsureSearchAttributes(ctx, c, settings.Namespace, workflows.SearchAttributes().Keys())
}

// serve serves the queues until the context ends or a worker cannot go on.
func (p *program) serve(ctx context.Context) error {
	fatal := make(chan error, 1)
	workers, queues := p.workers(func(err error) {
		select {
		case fatal <- err:
		default: // one is enough
		}
	})
	started := 0
	var err error
	for _, w := range workers {
		if err = w.Start(); err != nil {
			break
		}
		started++
	}
	if err == nil {
		p.health.serve(true)
		p.log.Info().Strs("queues", queues).Str("identity", p.identity).Str("temporal", p.config.Address).Str("namespace", p.config.Namespace).Msg("the worker serves")
		watching, stopWatching := context.WithCancel(ctx)
		go p.health.watch(watching, p.client)
		if p.config.Workflows {
			go countHeld(watching, p.client, p.metrics)
		}
		select {
		case <-ctx.Done():
			p.log.Info().Stringer("limit", p.config.StopTimeout).Msg("stopping: no more work is taken, running phases hand over")
		case err = <-fatal:
			p.log.Error().Err(err).Msg("stopping: Temporal's SDK cannot go on")
		}
		stopWatching()
	}
	p.health.serve(false)
	var group sync.WaitGroup
	for _, w := range workers[:started] {
		group.Go(w.Stop)
	}
	group.Wait()
	if err != nil {
		return fmt.Errorf("the queues %s cannot be served: %w", strings.Join(queues, ", "), err)
	}
	p.log.Info().Msg("stopped")
	return nil
}

// workers makes a Temporal worker for each queue.
func (p *program) workers(fatal func(error)) ([]worker.Worker, []string) {
	run := activities.New(activities.Options{
		Provisioners: provisioners.NewRegistry(p.modules.provisioners),
		OSModules:    osmodules.NewRegistry(p.modules.os),
		Client:       p.client,
		Identity:     p.identity,
	})
	options := worker.Options{
		MaxConcurrentActivityExecutionSize:     p.config.Slots,
		MaxConcurrentWorkflowTaskExecutionSize: p.config.WorkflowSlots,
		WorkerStopTimeout:                      p.config.StopTimeout,
		MaxHeartbeatThrottleInterval:           activities.HeartbeatThrottle,
		DisableRegistrationAliasing:            true,
		Interceptors:                           append(p.tracing.Worker(), logging.Interceptor()),
		OnFatalError:                           fatal,
	}
	var workers []worker.Worker
	var queues []string
	if p.config.Workflows {
		w := worker.New(p.client, activities.WorkflowQueue, options)
		workflows.Register(w)
		run.RegisterOnWorkflowQueue(w)
		workers, queues = append(workers, w), append(queues, activities.WorkflowQueue)
	}
	options.DisableWorkflowWorker = true
	options.TaskQueueActivitiesPerSecond = p.config.QueueRate // 0 is no limit
	for _, queue := range p.modules.queues {
		w := worker.New(p.client, queue, options)
		run.Register(w)
		workers, queues = append(workers, w), append(queues, queue)
	}
	return workers, queues
}

// close ends what a run has opened.
func (p *program) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	if p.modules != nil {
		p.modules.end(ctx)
	}
	if p.client != nil {
		p.client.Close()
	}
	if p.tracing != nil {
		if err := p.tracing.Close(closeLimit); err != nil {
			p.log.Warn().Str("error", err.Error()).Msg("traces are lost")
		}
	}
	if p.stopListening != nil {
		p.stopListening()
	}
}
