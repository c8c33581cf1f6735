package activities

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/worker"

	"berth/osmodules"
	"berth/provisioners"
	"berth/reservation"
)

// Options are what the activities run with.
type Options struct {
	Provisioners provisioners.Registry
	OSModules    osmodules.Registry
	// Client is where Confirm asks whether a try still counts, and where QueueServed looks at a queue.
	Client client.Client
	// Identity names this worker in progress and load logs.
	Identity string
}

// A running phase beats on every change of its stage and, when nothing changes, between once in 2 s and once in 10 s:
// a cancel reaches an activity in the answer to a heartbeat, so few phases beat often; many share what a small server
// stands (1,000 phases: 100 beats a second). Both are well below the workflow's heartbeat timeout of 30 s.
const (
	beatMin      = 2 * time.Second
	beatMax      = 10 * time.Second
	beatPerPhase = 10 * time.Millisecond
)

// HeartbeatThrottle is how often a phase beats at most, and the worker.Options.MaxHeartbeatThrottleInterval to serve these
// activities with. The SDK's own throttle (0.8 of the heartbeat timeout: 24 s) would keep a stage from people and from a
// successor for that long.
const HeartbeatThrottle = time.Second

// Activities are Berth's activities. One value serves any number of them at once.
type Activities struct {
	options Options
	running atomic.Int64
	gates   *gatekeepers
}

// New returns the activities.
func New(options Options) *Activities {
	return &Activities{options: options, gates: &gatekeepers{asker: gateClient{options.Client}}}
}

// beatEvery returns how long a phase whose stage does not change waits between two heartbeats.
func (a *Activities) beatEvery() time.Duration {
	return min(max(time.Duration(a.running.Load())*beatPerPhase, beatMin), beatMax)
}

// Register registers what is served on a provisioner's queue.
func (a *Activities) Register(r worker.ActivityRegistry) {
	for name, run := range map[string]any{LoadName: a.Load, PostLoadName: a.PostLoad, AbortName: a.Abort, UnloadName: a.Unload} {
		r.RegisterActivityWithOptions(run, activity.RegisterOptions{Name: name})
	}
}

// RegisterOnWorkflowQueue registers what is served on the workflows' own queue.
func (a *Activities) RegisterOnWorkflowQueue(r worker.ActivityRegistry) {
	r.RegisterActivityWithOptions(a.QueueServed, activity.RegisterOptions{Name: QueueServedName})
	r.RegisterActivityWithOptions(a.GateOver, activity.RegisterOptions{Name: GateOverName})
}

// Load puts the image's bits on the computer's disk and powers it on.
func (a *Activities) Load(ctx context.Context, request PhaseRequest) (PhaseResult, error) {
	return a.run(ctx, request, func(ctx context.Context, p *phase) error {
		module, err := a.options.Provisioners.Find(request.Reservation.Computer.Provisioner)
		if err != nil {
			return reservation.Fail("the worker cannot load this computer", err)
		}
		loaded, err := module.Load(ctx, p.provisioning(), p)
		p.result.HostKey = loaded.HostKey
		p.result.Reference = loaded.Reference
		return err
	})
}

// PostLoad waits for the loaded OS, runs the provisioner's hook if it has one, and configures the OS.
func (a *Activities) PostLoad(ctx context.Context, request PhaseRequest) (PhaseResult, error) {
	return a.run(ctx, request, func(ctx context.Context, p *phase) error {
		provisioner, err := a.options.Provisioners.Find(request.Reservation.Computer.Provisioner)
		if err != nil {
			return reservation.Fail("the worker cannot load this computer", err)
		}
		module, err := a.options.OSModules.Find(request.Reservation.Image.OS.Family)
		if err != nil {
			return reservation.Fail("the worker cannot configure this image", err)
		}
		guest := osmodules.Request{
			Reservation: request.Reservation, Mark: request.Mark, Attempt: request.Attempt, Limits: request.Limits,
			Began: p.progress.Began, Deadline: p.deadline, HostKey: request.HostKey,
		}
		if resetter, ok := provisioner.(provisioners.PowerResetter); ok {
			guest.PowerReset = func(ctx context.Context) error {
				if err := p.Confirm(ctx); err != nil {
					return err
				}
				return resetter.PowerReset(ctx, p.provisioning())
			}
		}
		answer, err := module.WaitForResponse(ctx, guest, p)
		if err != nil {
			return err
		}
		if answer.Channel != nil {
			defer answer.Channel.Close()
		}
		p.result.HostKey = answer.HostKey
		if hook, ok := provisioner.(provisioners.AfterResponder); ok {
			if err := hook.AfterResponse(ctx, p.provisioning(), p); err != nil {
				return err
			}
		}
		report, err := module.PostLoad(ctx, guest, answer, p)
		p.result.Steps = report.Steps
		p.result.PublicAddress = report.PublicAddress
		return err
	})
}

// Abort removes what an unfinished or failed load left, if the provisioner can.
func (a *Activities) Abort(ctx context.Context, request PhaseRequest) (PhaseResult, error) {
	return a.run(ctx, request, func(ctx context.Context, p *phase) error {
		module, err := a.options.Provisioners.Find(request.Reservation.Computer.Provisioner)
		if err != nil {
			return reservation.Fail("the worker cannot clean this computer", err)
		}
		aborter, ok := module.(provisioners.Aborter)
		if !ok {
			p.Stage("nothing to clean", request.Reservation.Computer.Provisioner+" leaves nothing that it could remove")
			return nil
		}
		return aborter.Abort(ctx, p.provisioning(), p)
	})
}

// Unload takes the computer back, if the provisioner can.
func (a *Activities) Unload(ctx context.Context, request PhaseRequest) (PhaseResult, error) {
	return a.run(ctx, request, func(ctx context.Context, p *phase) error {
		module, err := a.options.Provisioners.Find(request.Reservation.Computer.Provisioner)
		if err != nil {
			return reservation.Fail("the worker cannot take this computer back", err)
		}
		unloader, ok := module.(provisioners.Unloader)
		if !ok {
			p.Stage("left as it is", request.Reservation.Computer.Provisioner+" has nothing to unload")
			return nil
		}
		return unloader.Unload(ctx, p.provisioning(), p)
	})
}

// QueueServed says whether any worker polls a task queue for activities. It tells a queue that nobody serves from one
// whose workers are all busy.
func (a *Activities) QueueServed(ctx context.Context, queue string) (bool, error) {
	described, err := a.options.Client.DescribeTaskQueue(ctx, queue, enumspb.TASK_QUEUE_TYPE_ACTIVITY)
	if err != nil {
		return false, fmt.Errorf("look at task queue %s: %w", queue, err)
	}
	for _, poller := range described.GetPollers() {
		// The server lists a poller for five minutes after its last poll; a live one polls at least once a minute.
		if time.Since(poller.GetLastAccessTime().AsTime()) < 90*time.Second {
			return true, nil
		}
	}
	return false, nil
}

// run gives a phase its reporter and its clock, and turns its error into what the retry policy reads.
func (a *Activities) run(ctx context.Context, request PhaseRequest, do func(context.Context, *phase) error) (PhaseResult, error) {
	a.running.Add(1)
	defer a.running.Add(-1)
	p := newPhase(ctx, a.options, request)
	p.gates = a.gates
	phaseCtx, stop := p.start(ctx, a.beatEvery)
	defer stop()
	var err error
	if phaseCtx.Err() == nil {
		err = do(phaseCtx, p)
	} else {
		err = phaseCtx.Err()
	}
	stop()
	switch cause := context.Cause(phaseCtx); {
	case err == nil:
		return p.finish(), nil
	case ctx.Err() != nil:
		// Cancelled, or the server has given this try to another worker: never turned into anything else.
		return PhaseResult{}, ctx.Err()
	case temporal.IsCanceledError(cause):
		// The SDK answers the server that a phase was cancelled only if it has heard of the cancel itself.
		activity.RecordHeartbeat(ctx, p.snapshot())
		return PhaseResult{}, temporal.NewCanceledError()
	case errors.As(cause, new(provisioners.HandOver)):
		return PhaseResult{}, handOver(a.options.Identity)
	case errors.Is(cause, context.DeadlineExceeded) && reservation.VerdictOf(err) == "":
		return PhaseResult{}, asApplicationError(p.outlived(err), p.finish())
	default:
		if reservation.VerdictOf(err) == "" {
			// The next try of a fault needs the clock and the stages of this one.
			p.lastBeat(ctx)
		}
		return PhaseResult{}, asApplicationError(err, p.finish())
	}
}
