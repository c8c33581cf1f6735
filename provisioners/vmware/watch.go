package vmware

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sync/errgroup"

	"berth/reservation"
)

const (
	// updatesWait is how long one WaitForUpdatesEx stays open. It bounds how long a connection that died without a word
	// goes unnoticed.
	updatesWait = 30 * time.Second
	// watchIdle is how long the view of a vCenter is kept when nobody waits: setting it up costs four calls.
	watchIdle = 5 * time.Minute
	// What a broken wait pauses before it is set up again.
	watchPauseMin = 250 * time.Millisecond
	watchPauseMax = 10 * time.Second
)

// GoneError says that a task is no longer known to its vCenter: it ended a while ago, or the vCenter was restarted.
// What the task did must be looked up.
type GoneError struct {
	Task string
}

func (e *GoneError) Error() string { return "the vCenter no longer knows task " + e.Task }

// errLeave ends a follow without a fault.
type errLeave struct{}

func (errLeave) Error() string { return "nobody waits" }

// watch waits for all tasks of one vCenter with one WaitForUpdatesEx at a time, over one list view. Tasks are added to
// the view and taken out of it; a load costs no process and no poll of its own. It outlives the loss of the session and
// a restart of the vCenter: the view is then set up again, and tasks that are no longer known are reported as gone.
type watch struct {
	site    string
	session *session
	log     zerolog.Logger
	context context.Context
	changed chan struct{} // cap 1: there are tasks to add, or the first waiter has come
	done    chan struct{} // closed when the loop has ended

	mu      sync.Mutex
	waiters map[types.ManagedObjectReference][]*waiter
	states  map[types.ManagedObjectReference]taskState
	added   []types.ManagedObjectReference // not yet in the view
	removed []types.ManagedObjectReference // not yet out of the view; goes with the next addition
}

type taskState struct {
	state    types.TaskInfoState
	progress int32
	fault    *types.LocalizedMethodFault
	result   types.AnyType
	gone     bool
	trouble  error // the vCenter cannot be asked just now
	final    error // the wait is over for another reason
}

func (s taskState) ended() bool {
	return s.gone || s.final != nil || s.state == types.TaskInfoStateSuccess || s.state == types.TaskInfoStateError
}

// waiter is handed the latest state of one task.
type waiter struct {
	updates chan taskState // cap 1, the latest
}

func (w *waiter) tell(state taskState) {
	select {
	case <-w.updates:
	default:
	}
	w.updates <- state
}

func newWatch(ctx context.Context, site string, s *session, log zerolog.Logger) *watch {
	w := &watch{
		site: site, session: s, log: log, context: ctx, changed: make(chan struct{}, 1), done: make(chan struct{}),
		waiters: map[types.ManagedObjectReference][]*waiter{}, states: map[types.ManagedObjectReference]taskState{},
	}
	go w.run()
	return w
}

// wait returns when the task has ended: its result, its fault as a task.Error, a *GoneError, or the context's error. A
// result may be nil where the task has one. tell is called with each change of what a person can be shown of it, and
// may be nil.
func (w *watch) wait(ctx context.Context, ref types.ManagedObjectReference, tell func(detail string)) (types.AnyType, error) {
	if tell == nil {
		tell = func(string) {}
	}
	mine := w.add(ref)
	defer w.remove(ref, mine)
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.context.Done():
			return nil, fmt.Errorf("site %s: the module is closed", w.site)
		case s := <-mine.updates:
			switch {
			case s.final != nil:
				return nil, s.final
			case s.gone:
				return nil, &GoneError{Task: ref.Value}
			case s.state == types.TaskInfoStateSuccess:
				tell("") // a finished stage that stands at 90 % for ever looks like one that got stuck
				return s.result, nil
			case s.state == types.TaskInfoStateError:
				return nil, taskError(ref, s.fault)
			case s.trouble != nil:
				tell("waiting for the vCenter: " + s.trouble.Error())
			case s.state == types.TaskInfoStateQueued:
				tell("queued by the vCenter")
			case s.progress > 0:
				tell(fmt.Sprintf("%d %%", s.progress))
			default:
				tell("")
			}
		}
	}
}

func taskError(ref types.ManagedObjectReference, fault *types.LocalizedMethodFault) error {
	if fault == nil {
		fault = &types.LocalizedMethodFault{Fault: &types.SystemError{}, LocalizedMessage: "no fault given"}
	}
	return fmt.Errorf("%s: %w", ref.Value, task.Error{LocalizedMethodFault: fault})
}

func (w *watch) add(ref types.ManagedObjectReference) *waiter {
	mine := &waiter{updates: make(chan taskState, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiters[ref]) == 0 {
		w.removed = slices.DeleteFunc(w.removed, func(r types.ManagedObjectReference) bool { return r == ref })
		w.added = append(w.added, ref)
	} else if s, ok := w.states[ref]; ok {
		mine.tell(s)
	}
	w.waiters[ref] = append(w.waiters[ref], mine)
	w.wake()
	return mine
}

func (w *watch) remove(ref types.ManagedObjectReference, mine *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := slices.DeleteFunc(w.waiters[ref], func(other *waiter) bool { return other == mine })
	if len(left) > 0 {
		w.waiters[ref] = left
		return
	}
	delete(w.waiters, ref)
	delete(w.states, ref)
	if slices.Contains(w.added, ref) {
		w.added = slices.DeleteFunc(w.added, func(r types.ManagedObjectReference) bool { return r == ref })
		return
	}
	w.removed = append(w.removed, ref)
}

func (w *watch) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// tell hands a task's changed state to its waiters. The lock is held.
func (w *watch) tell(ref types.ManagedObjectReference, change func(*taskState)) {
	if len(w.waiters[ref]) == 0 {
		return
	}
	state := w.states[ref]
	if state.ended() {
		return
	}
	state.trouble = nil
	change(&state)
	w.states[ref] = state
	for _, mine := range w.waiters[ref] {
		mine.tell(state)
	}
}

func (w *watch) tellAll(change func(*taskState)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ref := range w.waiters {
		w.tell(ref, change)
	}
}

// run follows the tasks as long as somebody waits for one, and sets the wait up again when it breaks.
func (w *watch) run() {
	defer close(w.done)
	for pause := watchPauseMin; ; {
		select {
		case <-w.context.Done():
			return
		case <-w.changed:
		}
		for w.waited() {
			began := time.Now()
			err := w.follow()
			if w.context.Err() != nil {
				return
			}
			if errors.As(err, new(errLeave)) {
				continue
			}
			if reservation.VerdictOf(Classify(err)) != "" {
				// Nothing gets better by asking again, and a refused login locks the account.
				w.tellAll(func(s *taskState) { s.final = err })
				break
			}
			w.log.Warn().Err(err).Msg("the wait for the vCenter's tasks broke; setting it up again")
			w.tellAll(func(s *taskState) { s.trouble = err })
			if time.Since(began) > watchPauseMax {
				pause = watchPauseMin
			}
			timer := time.NewTimer(pause + rand.N(pause))
			select {
			case <-w.context.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			pause = min(2*pause, watchPauseMax)
		}
	}
}

func (w *watch) waited() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiters) > 0
}

// follow sets up the view and follows it until it breaks or nobody has waited for watchIdle.
func (w *watch) follow() error {
	client, err := w.session.connect(w.context)
	if err != nil {
		return err
	}
	collector, view, err := w.setUp(w.context, client)
	if err != nil {
		return fmt.Errorf("site %s: set up the wait for tasks: %w", w.site, err)
	}
	// In the new view there is nothing yet.
	w.mu.Lock()
	w.removed = nil
	w.added = w.added[:0]
	for ref := range w.waiters {
		w.added = append(w.added, ref)
	}
	w.wake()
	w.mu.Unlock()

	group, ctx := errgroup.WithContext(w.context)
	group.Go(func() error { return w.modify(ctx, client, view) })
	group.Go(func() error { return w.updates(ctx, client, collector) })
	err = group.Wait()
	w.tearDown(client, collector, view)
	return err
}

func (w *watch) setUp(ctx context.Context, client *vim25.Client) (collector, view types.ManagedObjectReference, err error) {
	made, err := methods.CreatePropertyCollector(ctx, client, &types.CreatePropertyCollector{This: client.ServiceContent.PropertyCollector})
	if err != nil {
		return collector, view, err
	}
	list, err := methods.CreateListView(ctx, client, &types.CreateListView{This: *client.ServiceContent.ViewManager})
	if err != nil {
		return collector, view, err
	}
	_, err = methods.CreateFilter(ctx, client, &types.CreateFilter{
		This: made.Returnval,
		Spec: types.PropertyFilterSpec{
			ObjectSet: []types.ObjectSpec{{
				Obj:  list.Returnval,
				Skip: types.NewBool(true),
				SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{
					Type: "ListView", Path: "view",
				}},
			}},
			PropSet: []types.PropertySpec{{Type: "Task", PathSet: []string{"info.state", "info.progress", "info.error", "info.result"}}},
		},
	})
	return made.Returnval, list.Returnval, err
}

func (w *watch) tearDown(client *vim25.Client, collector, view types.ManagedObjectReference) {
	// Best effort: the usual reason to be here is that they are gone with their session.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.context), 5*time.Second)
	defer cancel()
	if w.context.Err() != nil {
		// The log-out that follows takes the rest with it; a wait that is still open at the vCenter ends at once.
		_, _ = methods.CancelWaitForUpdates(ctx, client, &types.CancelWaitForUpdates{This: collector})
		return
	}
	_, _ = methods.DestroyPropertyCollector(ctx, client, &types.DestroyPropertyCollector{This: collector})
	_, _ = methods.DestroyView(ctx, client, &types.DestroyView{This: view})
}

// modify brings the view up to date whenever tasks are to be added. What is added while a call runs goes with the next
// one, so many loads that begin at once share a call.
func (w *watch) modify(ctx context.Context, client *vim25.Client, view types.ManagedObjectReference) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.changed:
		}
		w.mu.Lock()
		added, removed := w.added, w.removed
		w.added, w.removed = nil, nil
		w.mu.Unlock()
		if len(added) == 0 {
			w.mu.Lock()
			w.removed = append(removed, w.removed...)
			w.mu.Unlock()
			continue
		}
		answer, err := methods.ModifyListView(ctx, client, &types.ModifyListView{This: view, Add: added, Remove: removed})
		if err != nil {
			// Whoever sets the view up again adds everything that is waited for.
			return err
		}
		w.mu.Lock()
		for _, ref := range answer.Returnval {
			w.tell(ref, func(s *taskState) { s.gone = true })
		}
		w.mu.Unlock()
	}
}

// updates receives what changes, one long call after the other.
func (w *watch) updates(ctx context.Context, client *vim25.Client, collector types.ManagedObjectReference) error {
	seconds := int32(updatesWait / time.Second)
	request := &types.WaitForUpdatesEx{This: collector, Options: &types.WaitOptions{MaxWaitSeconds: &seconds}}
	last := time.Now()
	for {
		answer, err := methods.WaitForUpdatesEx(ctx, client, request)
		if err != nil {
			return err
		}
		if w.waited() {
			last = time.Now()
		} else if time.Since(last) > watchIdle {
			return errLeave{}
		}
		if answer.Returnval == nil {
			continue
		}
		request.Version = answer.Returnval.Version
		w.mu.Lock()
		for _, filter := range answer.Returnval.FilterSet {
			for _, object := range filter.ObjectSet {
				w.apply(object)
			}
		}
		w.mu.Unlock()
	}
}

// apply takes in one object's update. The lock is held.
//
// vcsim reports every task of the view as entering whenever the view changes; a vCenter only those that do. Both are
// fine, because a state that is told again changes nothing.
func (w *watch) apply(update types.ObjectUpdate) {
	if update.Kind == types.ObjectUpdateKindLeave {
		// It has left because the vCenter forgot it, or because we took it out before somebody waited for it again.
		// Adding it tells which: what the vCenter does not know comes back unresolved.
		if len(w.waiters[update.Obj]) > 0 {
			w.added = append(w.added, update.Obj)
			w.wake()
		}
		return
	}
	w.tell(update.Obj, func(s *taskState) {
		for _, change := range update.ChangeSet {
			switch change.Name {
			case "info.state":
				if state, ok := change.Val.(types.TaskInfoState); ok {
					s.state = state
				}
			case "info.progress":
				if progress, ok := change.Val.(int32); ok {
					s.progress = progress
				}
			case "info.result":
				s.result = change.Val
			case "info.error":
				switch fault := change.Val.(type) {
				case types.LocalizedMethodFault:
					s.fault = &fault
				case *types.LocalizedMethodFault:
					s.fault = fault
				}
			}
		}
	})
}
