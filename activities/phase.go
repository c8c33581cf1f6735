package activities

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"berth/provisioners"
	"berth/reservation"
)

// firstBeat is when a phase beats that has shown no stage and kept nothing by then. A phase that is over sooner costs the
// server no beat at all; one that touches anything has beaten before, because modules confirm what is destructive.
const firstBeat = time.Second

// How long a heartbeat may take. One that is lost is made up for by the next; a last one, which another worker is to go on
// from, has nothing after it and holds up an answer.
const (
	beatLimit     = 10 * time.Second
	lastBeatLimit = 3 * time.Second
)

// maxStages bounds the stages that travel with every heartbeat: a guest that comes and goes for an hour must not swell
// them. The oldest give way.
const maxStages = 40

// phase is one try of a running phase: the reporter that its module is handed, and the phase's clock.
type phase struct {
	options  Options
	request  PhaseRequest
	info     activity.Info
	deadline time.Time     // a little before the server's own: after that one the SDK keeps our answer to itself
	silence  time.Duration // without a heartbeat, after which the server gives the phase to another worker; 0: never
	changed  chan struct{} // cap 1: there is something to tell
	span     trace.Span    // of this try, in the load's trace; records nothing if there is none

	// record sends one heartbeat and returns what the server says to it. We send them ourselves: the SDK gives one no longer
	// than its throttle, and ends the activity when that passes, so a server that is busy for a second would end every phase.
	record  func(context.Context, reservation.Progress) error
	sending chan struct{} // cap 1: held while one is sent

	mu       sync.Mutex
	progress reservation.Progress
	result   PhaseResult
}

func newPhase(ctx context.Context, options Options, request PhaseRequest) *phase {
	info := activity.GetInfo(ctx)
	p := &phase{options: options, request: request, info: info, silence: info.HeartbeatTimeout, span: trace.SpanFromContext(ctx),
		changed: make(chan struct{}, 1), sending: make(chan struct{}, 1)}
	p.record = func(call context.Context, progress reservation.Progress) error {
		if options.Client == nil {
			activity.RecordHeartbeat(ctx, progress)
			return nil
		}
		return options.Client.RecordActivityHeartbeat(call, p.info.TaskToken, progress)
	}
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
	go func() {
		if cause := p.keepBeating(ctx, beatEvery); cause != nil {
			activity.GetLogger(activityCtx).Warn("this worker no longer has the phase", "error", cause)
			end(endOf(cause))
		}
	}()
	stopping := activity.GetWorkerStopChannel(activityCtx)
	go func() {
		select {
		case <-ctx.Done():
		case <-stopping:
			p.lastBeat(ctx)
			end(provisioners.HandOver{})
		}
	}()
	return ctx, func() {
		detach()
		cancel()
		end(nil)
	}
}

// keepBeating sends heartbeats until ctx ends, and then returns nil. It returns the server's answer if that says that the
// phase was cancelled or is no longer ours, and the last error when the server has not been reached for so long that it has
// given the phase away. What is in between is not the phase's business: it goes on.
func (p *phase) keepBeating(ctx context.Context, beatEvery func() time.Duration) error {
	next := time.NewTimer(firstBeat)
	defer next.Stop()
	var began time.Time // of the last beat
	heard := time.Now() // the server knew us then
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
			next.Reset(time.Until(began.Add(HeartbeatThrottle)))
			continue
		case <-next.C:
		}
		began = time.Now()
		err := p.beat(ctx, beatLimit)
		switch {
		case err == nil:
			heard = began
			next.Reset(beatEvery())
		case ctx.Err() != nil:
			return nil
		case decided(err), p.silence > 0 && time.Since(heard) > p.silence:
			return err
		default:
			next.Reset(HeartbeatThrottle)
		}
	}
}

// decided says whether an answer to a heartbeat ends the phase, whenever it comes. Any other error may pass.
func decided(err error) bool {
	var notFound *serviceerror.NotFound
	var namespaceNotFound *serviceerror.NamespaceNotFound
	return temporal.IsCanceledError(err) || errors.Is(err, activity.ErrActivityPaused) || errors.Is(err, activity.ErrActivityReset) ||
		errors.As(err, &notFound) || errors.As(err, &namespaceNotFound)
}

// beat sends one heartbeat. What was recorded before the call is in it, and nothing older follows it.
func (p *phase) beat(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case p.sending <- struct{}{}:
		defer func() { <-p.sending }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return p.record(ctx, p.snapshot())
}

// lastBeat hands what there is to whoever goes on with the phase. If it is lost, that one goes on from the beat before.
func (p *phase) lastBeat(ctx context.Context) {
	_ = p.beat(context.WithoutCancel(ctx), lastBeatLimit)
}

// tell has the next heartbeat sent as soon as the throttle allows it.
func (p *phase) tell() {
	select {
	case p.changed <- struct{}{}:
	default:
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
		p.tell()
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
	p.span.AddEvent(name, trace.WithAttributes(attribute.String("berth.detail", detail)))
	return true
}

// Keep is part of reservation.Reporter.
func (p *phase) Keep(key, value string) {
	p.mu.Lock()
	p.progress.Kept[key] = value
	p.mu.Unlock()
	p.tell()
}

// Kept is part of reservation.Reporter.
func (p *phase) Kept(key string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.progress.Kept[key]
}

// Confirm is part of reservation.Reporter. It asks the server and waits for the answer: a worker that was paused must hear
// from the server before it goes on.
func (p *phase) Confirm(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.options.Client == nil {
		return nil
	}
	if err := p.beat(ctx, beatLimit); err != nil {
		return fmt.Errorf("this worker may no longer act for %s: %w", p.request.Mark, err)
	}
	return nil
}

func (p *phase) provisioning() provisioners.Request {
	return provisioners.Request{
		Reservation: p.request.Reservation, Mark: p.request.Mark, Attempt: p.request.Attempt,
		Deadline: p.deadline, Limit: p.request.Limit.Std(), Enter: p.enter(),
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
	return reservation.Reload(fmt.Sprintf(Outlived+" of %s: %s", p.request.Limit, where), cause)
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
