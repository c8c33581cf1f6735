package vmware

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmware/govmomi/vim25/types"

	"berth/provisioners"
	"berth/reservation"
)

// ForeignError says that a computer's VM bears another reservation's mark, or none, and is not touched.
type ForeignError struct {
	Site string
	VM   string
	Mine reservation.Mark
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("site %s: %s is not reservation %s's, and is not touched", e.Site, e.VM, e.Mine.Reservation)
}

// Abort is part of provisioners.Aborter. A clone that may still run is cancelled where this process began it, and
// waited for otherwise, because which VM a task makes cannot be seen.
func (m *Module) Abort(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	return m.take(ctx, request, report, true)
}

// Unload is part of provisioners.Unloader. The VM is powered off and destroyed.
func (m *Module) Unload(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	return m.take(ctx, request, report, false)
}

// take removes the computer's VM if it is of the request's reservation.
func (m *Module) take(ctx context.Context, request provisioners.Request, report reservation.Reporter, unfinished bool) error {
	err := func() error {
		vc, err := provisioners.SiteOf(m.vcenters, request.Reservation.Computer)
		if err != nil {
			return err
		}
		report.Stage(stageLook, fmt.Sprintf("%s at site %s", request.Reservation.Computer.Name, vc.name))
		vm, err := m.find(ctx, vc, request)
		var missing *MissingError
		switch {
		case errors.As(err, new(*OccupiedError)), unfinished && errors.As(err, &missing):
			// A folder or a template has the name, or there is no folder for the VM to stand in: so there is no VM.
			vc.log.Warn().Err(err).Str("computer", request.Reservation.Computer.Name).Msg("nothing to remove")
			return nil
		case err != nil:
			return err
		}
		if unfinished && (vm == nil || !vm.on()) {
			if err := m.finish(ctx, vc, request, report); err != nil {
				return err
			}
			if vm, err = m.find(ctx, vc, request); err != nil {
				return err
			}
		}
		if vm == nil {
			return nil
		}
		if !vm.marked || !vm.mark.Same(request.Mark) || vm.template {
			vc.log.Warn().Str("computer", request.Reservation.Computer.Name).Stringer("found", vm).
				Str("reservation", request.Reservation.Name).Msg("what stands under the computer's name is not this reservation's; left alone")
			return nil
		}
		report.Stage("power off and destroy", vm.String())
		return vc.remove(ctx, vm, report.Confirm)
	}()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return Classify(err)
}

// find returns the VM that stands under the computer's name, or nil.
func (m *Module) find(ctx context.Context, vc *vcenter, request provisioners.Request) (*machine, error) {
	computer := request.Reservation.Computer
	folder, err := vc.inventory.folder(ctx, computer.Placement[placeFolder])
	if err != nil {
		return nil, err
	}
	vm, err := vc.find(ctx, folder, computer.Name)
	if _, stale := faultAs[*types.ManagedObjectNotFound](err); stale {
		vc.inventory.memory.forget()
		if folder, err = vc.inventory.folder(ctx, computer.Placement[placeFolder]); err == nil {
			vm, err = vc.find(ctx, folder, computer.Name)
		}
	}
	return vm, err
}

// finish brings clones of the reservation to their end: those that this process began are cancelled, and those that may
// be a lost worker's are waited for.
func (m *Module) finish(ctx context.Context, vc *vcenter, request provisioners.Request, report reservation.Reporter) error {
	for _, task := range vc.clonesOf(request.Mark) {
		report.Stage("cancel the clone", task.Value)
		vc.cancel(ctx, task)
	}
	source, _, err := m.source(ctx, vc, request.Reservation.Image)
	if source.ref.Value == "" {
		if errors.As(err, new(*MissingError)) || errors.As(err, new(*reservation.FieldError)) {
			return nil // what is not there is not being cloned
		}
		return err
	}
	tasks, err := vc.running(ctx, source.ref, request.Mark)
	if err != nil {
		return err
	}
	for _, task := range tasks {
		report.Stage("wait for a clone", task.Value+" of "+source.name+" may be this reservation's")
		if _, err := vc.await(ctx, task, nil); err != nil {
			if _, ended := endedTask(err); !ended && !errors.As(err, new(*GoneError)) {
				return err
			}
		}
	}
	return nil
}

// PowerReset is part of provisioners.PowerResetter. A VM that is off is powered on. It is no graceful restart: the
// guest does not answer.
func (m *Module) PowerReset(ctx context.Context, request provisioners.Request) error {
	vc, vm, err := m.own(ctx, request)
	if err == nil && vm.on() {
		err = vc.reset(ctx, vm)
	} else if err == nil {
		err = vc.powerOn(ctx, vm)
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return Classify(err)
}

// AfterResponse is part of provisioners.AfterResponder. The guest has its host key, so the private half is taken out of
// the VM's configuration, where whoever may read the VM can read it.
func (m *Module) AfterResponse(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	if !handsHostKey(request.Reservation.Image) {
		return nil
	}
	vc, vm, err := m.own(ctx, request)
	if err == nil && vm.secret {
		report.Stage("clear host key", vm.ref.Value)
		err = vc.clearHostKey(ctx, vm)
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return Classify(err)
}

// own returns the computer's VM if it is of the request's reservation and attempt.
func (m *Module) own(ctx context.Context, request provisioners.Request) (*vcenter, *machine, error) {
	vc, err := provisioners.SiteOf(m.vcenters, request.Reservation.Computer)
	if err != nil {
		return nil, nil, err
	}
	vm, err := m.find(ctx, vc, request)
	switch {
	case err != nil:
		return vc, nil, err
	case vm == nil:
		return vc, nil, reservation.Reload(fmt.Sprintf("site %s: the VM of computer %s is gone: somebody removed, renamed or moved it",
			vc.name, request.Reservation.Computer.Name), nil)
	case !vm.marked || vm.mark != request.Mark:
		return vc, nil, &ForeignError{Site: vc.name, VM: vm.String(), Mine: request.Mark}
	}
	return vc, vm, nil
}
