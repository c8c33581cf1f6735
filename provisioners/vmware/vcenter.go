package vmware

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"berth/reservation"
)

const (
	// graceOfCalls is how long a call that changes something is waited for after its context has ended: only its answer
	// tells what was begun. Such calls answer at once, because what they begin is a task.
	graceOfCalls = 5 * time.Second
	// graceOfCancel bounds cancelling a task and waiting for its end after the load's context has ended.
	graceOfCancel = 10 * time.Second
)

// vcenter is one vCenter as this process uses it: one session, one wait, one queue for clones.
type vcenter struct {
	name      string
	log       zerolog.Logger
	stop      context.CancelFunc
	session   *session
	watch     *watch
	slots     *slots
	inventory *inventory

	mu     sync.Mutex
	clones map[types.ManagedObjectReference]reservation.Mark // clones of ours that may still run, by task
}

func newVCenter(field string, site Site, log zerolog.Logger, observe func(vcenter, method string)) (*vcenter, error) {
	if site.Clones < 0 || site.ClonesPerHost < 0 {
		return nil, &reservation.FieldError{Field: field + ".clones", Value: fmt.Sprintf("%d, %d per host", site.Clones, site.ClonesPerHost),
			Remedy: fmt.Sprintf("give 1 or more, or leave it out for %d and %d per host", DefaultClones, DefaultClonesPerHost)}
	}
	log = log.With().Str("site", site.Name).Logger()
	ctx, stop := context.WithCancel(context.Background())
	s, err := newSession(ctx, field, site, log, func(method string) { observe(site.Name, method) })
	if err != nil {
		stop()
		return nil, err
	}
	return &vcenter{
		name: site.Name, log: log, stop: stop, session: s,
		watch:     newWatch(ctx, site.Name, s, log),
		slots:     newSlots(limitOr(site.Clones, DefaultClones), limitOr(site.ClonesPerHost, DefaultClonesPerHost)),
		inventory: &inventory{site: site, session: s, memory: newMemory()},
		clones:    map[types.ManagedObjectReference]reservation.Mark{},
	}, nil
}

func (vc *vcenter) close(ctx context.Context) {
	vc.stop()
	select {
	case <-vc.watch.done:
	case <-ctx.Done():
	}
	vc.session.logOut(ctx)
}

// change sends a call that changes something. It is not cut off when ctx ends but gets graceOfCalls to be answered:
// whether it had an effect would be unknown otherwise.
func change[Q, A any](ctx context.Context, vc *vcenter, method func(context.Context, soap.RoundTripper, *Q) (A, error), request *Q) (A, error) {
	var none A
	client, err := vc.session.connect(ctx)
	if err != nil {
		return none, err
	}
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(graceOfCalls)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-call.Done():
		}
	})
	defer stop()
	answer, err := method(call, client, request)
	if err != nil && call.Err() != nil && ctx.Err() != nil {
		return none, ctx.Err()
	}
	return answer, err
}

// note remembers a clone of ours until forget.
func (vc *vcenter) note(task types.ManagedObjectReference, mark reservation.Mark) {
	vc.mu.Lock()
	defer vc.mu.Unlock()
	vc.clones[task] = mark
}

func (vc *vcenter) forget(task types.ManagedObjectReference) {
	vc.mu.Lock()
	defer vc.mu.Unlock()
	delete(vc.clones, task)
}

// clonesOf returns the clones that this process knows to have begun for a reservation's run.
func (vc *vcenter) clonesOf(mark reservation.Mark) []types.ManagedObjectReference {
	vc.mu.Lock()
	defer vc.mu.Unlock()
	var tasks []types.ManagedObjectReference
	for task, whose := range vc.clones {
		if whose.Same(mark) {
			tasks = append(tasks, task)
		}
	}
	return tasks
}

// running returns the tasks that run or are queued on an entity. Clones of a template are among the template's. Those
// that this process knows to be clones for others are left out.
func (vc *vcenter) running(ctx context.Context, entity types.ManagedObjectReference, mark reservation.Mark) ([]types.ManagedObjectReference, error) {
	client, err := vc.session.connect(ctx)
	if err != nil {
		return nil, err
	}
	// The task manager lists everything that runs or is queued in the vCenter, and what ended in the last ten minutes.
	// The entity has such a list, too, but vcsim lets nobody read an entity that a task works on.
	answer, err := property.DefaultCollector(client).RetrieveProperties(ctx, types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		ObjectSet: []types.ObjectSpec{{
			Obj: *client.ServiceContent.TaskManager, Skip: types.NewBool(true),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "TaskManager", Path: "recentTask"}},
		}},
		PropSet: []types.PropertySpec{{Type: "Task", PathSet: []string{"info.state", "info.entity"}}},
	}}})
	if err != nil {
		return nil, fmt.Errorf("site %s: look at the running tasks: %w", vc.name, err)
	}
	vc.mu.Lock()
	defer vc.mu.Unlock()
	var tasks []types.ManagedObjectReference
	for _, object := range answer.Returnval {
		live, on := false, false
		for _, p := range object.PropSet {
			switch value := p.Val.(type) {
			case types.TaskInfoState:
				live = value == types.TaskInfoStateRunning || value == types.TaskInfoStateQueued
			case types.ManagedObjectReference:
				on = value == entity
			}
		}
		if whose, known := vc.clones[object.Obj]; live && on && (!known || whose.Same(mark)) {
			tasks = append(tasks, object.Obj)
		}
	}
	return tasks, nil
}

// await waits for a task, and tells a person how far it is.
func (vc *vcenter) await(ctx context.Context, task types.ManagedObjectReference, tell func(detail string)) (types.AnyType, error) {
	return vc.watch.wait(ctx, task, tell)
}

// cancel cancels a task after the context of whoever began it has ended, and waits for its end for a while.
func (vc *vcenter) cancel(ctx context.Context, task types.ManagedObjectReference) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), graceOfCancel)
	defer stop()
	if _, err := change(ctx, vc, methods.CancelTask, &types.CancelTask{This: task}); err != nil {
		// It ended by itself (InvalidState), cannot be cancelled (NotSupported) or is gone: what it left is cleaned.
		vc.log.Debug().Err(err).Str("task", task.Value).Msg("cancel a task")
	}
	if _, err := vc.await(ctx, task, nil); err != nil && ctx.Err() != nil {
		vc.log.Warn().Str("task", task.Value).Msg("the task has not ended after it was cancelled; what it leaves is found by name and mark")
		return
	}
	vc.forget(task)
}
