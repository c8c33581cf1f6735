package activities

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"berth/provisioners"
	"berth/reservation"
)

// firstBeat is when a phase beats that has shown no stage and kept nothing by then. A phase that is over sooner costs the
// server no beat at all; one that touches anything has beaten before, because modules confirm what is destructive.
const firstBeat = time.Second

// maxStages bounds the stages that travel with every heartbeat: a guest that comes and goes for an hour must not swell
// them. The oldest give way.
const maxStages = 40

// phase is one try of a running phase: the reporter that its module is handed, and the phase's clock.
type phase struct {
	options  Options
	request  PhaseRequest
	token    []byte
	deadline time.Time // a little before the server's own: after that one the SDK keeps our answer to itself
	beat     func(reservation.Progress)

	mu       sync.Mutex
	progress reservation.Progress
	result   PhaseResult
}

func newPhase(ctx context.Context, options Options, request PhaseRequest) *phase {
	info := activity.GetInfo(ctx)
	p := &phase{options: options, request: request, token: info.TaskToken}
	p.beat = func(progress reservation.Progress) { activity.RecordHeartbeat(ctx, progress) }
	if activity.HasHeartbeatDetails(ctx) {
		// Progress that cannot be read is a lost clock, not a lost load: the phase then starts its limit anew.
		if err := activity.GetHeartbeatDetails(ctx, &p.progress); err != nil {
			activity.GetLogger(ctx).Warn("the progress of the worker before this one cannot be read", "error", err)
			p.progress = reservation.Progress{}
		}
	}
	if p.progress.Began.IsZero() {
		p.progress.Began = info.StartedTime
	}
	if info.Attempt > 1 {
		p.progress.Lost = int(info.Attempt) - 1
	}
	if p.progress.Kept == nil {
		p.progress.Kept = map[string]string{}
	}
	p.progress.Limit = request.Limit
	p.progress.Worker = options.Identity
	p.deadline = p.progress.Began.Add(request.Limit.Std() - margin(request.Limit.Std()))
	return p
}

// margin is how much earlier than the server's timeout a phase ends itself, so that its own words reach the workflow.
func margin(limit time.Duration) time.Duration { return min(limit/20, time.Second) }

// start beats until the returned function is called, and returns the phase's context. The context's cause tells why it
// ended: provisioners.HandOver when another worker is to go on or does already, context.DeadlineExceeded when the phase has
// outlived its limit, anything else when it was cancelled.
func (p *phase) start(activityCtx context.Context, beatEvery func() time.Duration) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(context.WithoutCancel(activityCtx))
	detach := context.AfterFunc(activityCtx, func() { end(endOf(context.Cause(activityCtx))) })
	ctx, cancel := context.WithDeadline(ctx, p.deadline)
	stopping := activity.GetWorkerStopChannel(activityCtx)
	go func() {
		next := time.NewTimer(firstBeat)
		defer next.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-stopping:
				p.sendBeat()
				end(provisioners.HandOver{})
				return
			case <-next.C:
				p.sendBeat()
				next.Reset(beatEvery())
			}
		}
	}()
	return ctx, func() {
		detach()
		cancel()
		end(nil)
	}
}

// endOf maps why the SDK ended an activity's context to why the phase's ends. Only a cancel asked for by the workflow stops
// what runs in a control plane. Where the server knows this try no more, has paused or reset it, or could not be reached
// for too long, a successor goes on with what runs.
func endOf(cause error) error {
	if temporal.IsCanceledError(cause) || errors.Is(cause, context.DeadlineExceeded) || errors.Is(cause, context.Canceled) {
		return cause
	}
	return provisioners.HandOver{}
}

func (p *phase) sendBeat() { p.beat(p.snapshot()) }

func (p *phase) snapshot() reservation.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	progress := p.progress
	progress.Stages = slices.Clone(progress.Stages)
	progress.Kept = maps.Clone(progress.Kept)
	return progress
}

// Stage is part of reservation.Reporter. A new stage is sent at once; a new detail goes with the next beat, because details
// can change all the time (percents, places in a line) for a thousand phases at once.
func (p *phase) Stage(name, detail string) {
	if p.enterStage(name, detail) {
		p.sendBeat()
	}
}

// enterStage records a stage and says whether it is another one than before.
func (p *phase) enterStage(name, detail string) bool {
	now := time.Now().UTC()
	p.mu.Lock()
	defer p.mu.Unlock()
	stages := p.progress.Stages
	if last := len(stages) - 1; last >= 0 && stages[last].Ended.IsZero() {
		if stages[last].Name == name {
			stages[last].Detail = detail
			return false
		}
		stages[last].Ended = now
	}
	if len(stages) == maxStages {
		stages = slices.Delete(stages, 0, 1)
	}
	p.progress.Stages = append(stages, reservation.Stage{Name: name, Detail: detail, Began: now})
	return true
}

// Keep is part of reservation.Reporter.
func (p *phase) Keep(key, value string) {
	p.mu.Lock()
	p.progress.Kept[key] = value
	p.mu.Unlock()
	p.sendBeat()
}

// Kept is part of reservation.Reporter.
func (p *phase) Kept(key string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.progress.Kept[key]
}

// Confirm is part of reservation.Reporter. It asks the server, because the SDK's own heartbeats are batched and answer
// nobody: a worker that was paused must hear from the server before it goes on.
func (p *phase) Confirm(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.options.Client == nil {
		return nil
	}
	if err := p.options.Client.RecordActivityHeartbeat(ctx, p.token, p.snapshot()); err != nil {
		return fmt.Errorf("this worker may no longer act for %s: %w", p.request.Mark, err)
	}
	return nil
}

func (p *phase) provisioning() provisioners.Request {
	return provisioners.Request{
		Reservation: p.request.Reservation, Mark: p.request.Mark, Attempt: p.request.Attempt,
		Deadline: p.deadline, Limit: p.request.Limit.Std(),
	}
}

// outlived says that the phase has outlived its limit, and where.
func (p *phase) outlived(cause error) error {
	where := "before its first stage"
	p.mu.Lock()
	if n := len(p.progress.Stages); n > 0 {
		last := p.progress.Stages[n-1]
		where = fmt.Sprintf("at stage %q since %s", last.Name, last.Began.UTC().Format("15:04:05"))
		if last.Detail != "" {
			where += " (" + last.Detail + ")"
		}
	}
	p.mu.Unlock()
	return reservation.Reload(fmt.Sprintf("not done within its limit of %s: %s", p.request.Limit, where), cause)
}

// finish ends the last stage and returns the phase's result.
func (p *phase) finish() PhaseResult {
	now := time.Now().UTC()
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.progress.Stages); n > 0 && p.progress.Stages[n-1].Ended.IsZero() {
		p.progress.Stages[n-1].Ended = now
	}
	result := p.result
	result.Stages = slices.Clone(p.progress.Stages)
	result.Worker = p.progress.Worker
	result.Lost = p.progress.Lost
	return result
}
