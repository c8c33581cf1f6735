package vmware

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"berth/reservation"
)

// machine is a VM as it stood when it was read.
type machine struct {
	ref        types.ManagedObjectReference
	name       string
	power      types.VirtualMachinePowerState
	connection types.VirtualMachineConnectionState
	template   bool
	configured bool // its configuration can be read; not so while it is being made, or when its files cannot be reached
	marked     bool
	mark       reservation.Mark
	scribble   string // what stands in the mark's place when it is none of ours
	secret     bool   // the private host key still stands in its configuration
	hostKey    string // public
}

func (m *machine) on() bool { return m.power == types.VirtualMachinePowerStatePoweredOn }

// String returns "vm-12 (vm-01) of reservation r1, attempt 1".
func (m *machine) String() string {
	switch {
	case m.marked:
		return fmt.Sprintf("%s (%s) of reservation %s, attempt %d", m.ref.Value, m.name, m.mark.Reservation, m.mark.Attempt)
	case m.scribble != "":
		return fmt.Sprintf("%s (%s) with the unknown mark %q", m.ref.Value, m.name, m.scribble)
	default:
		return fmt.Sprintf("%s (%s) without a mark", m.ref.Value, m.name)
	}
}

// OccupiedError says that something that is never removed bears a computer's name: a folder, or a template.
type OccupiedError struct {
	Site   string
	Object types.ManagedObjectReference
	Name   string
}

func (e *OccupiedError) Error() string {
	return fmt.Sprintf("site %s: %s, which is no computer's VM, bears the computer's name %s and is not removed: rename it or the computer, "+
		"or give the computer another folder", e.Site, e.Object, e.Name)
}

// find returns the VM of a name in a folder, or nil when there is none.
func (vc *vcenter) find(ctx context.Context, folder types.ManagedObjectReference, name string) (*machine, error) {
	client, err := vc.session.connect(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := methods.FindChild(ctx, client, &types.FindChild{This: *client.ServiceContent.SearchIndex, Entity: folder, Name: name})
	if err != nil {
		return nil, fmt.Errorf("site %s: look for VM %s: %w", vc.name, name, err)
	}
	if answer.Returnval == nil {
		return nil, nil
	}
	if answer.Returnval.Type != "VirtualMachine" {
		return nil, &OccupiedError{Site: vc.name, Object: *answer.Returnval, Name: name}
	}
	return vc.read(ctx, *answer.Returnval)
}

// read reads a VM, or returns nil when it is gone.
func (vc *vcenter) read(ctx context.Context, ref types.ManagedObjectReference) (*machine, error) {
	client, err := vc.session.connect(ctx)
	if err != nil {
		return nil, err
	}
	var vm mo.VirtualMachine
	properties := []string{"name", "runtime.powerState", "runtime.connectionState", "config.template", "config.extraConfig"}
	if err := property.DefaultCollector(client).RetrieveOne(ctx, ref, properties, &vm); err != nil {
		if gone(err, ref) {
			return nil, nil
		}
		return nil, fmt.Errorf("site %s: read %s: %w", vc.name, ref.Value, err)
	}
	m := &machine{ref: ref, name: vm.Name, power: vm.Runtime.PowerState, connection: vm.Runtime.ConnectionState, configured: vm.Config != nil}
	if vm.Config == nil {
		return m, nil
	}
	m.template = vm.Config.Template
	for _, option := range vm.Config.ExtraConfig {
		value, _ := option.GetOptionValue().Value.(string)
		switch option.GetOptionValue().Key {
		case KeyMark:
			if m.mark, err = reservation.ParseMark(value); err != nil {
				m.scribble = value
			}
			m.marked = err == nil
		case KeyHostKey:
			m.secret = value != ""
		case KeyHostKeyPublic:
			m.hostKey = value
		}
	}
	return m, nil
}

// gone says that an error means that the object itself no longer is.
func gone(err error, ref types.ManagedObjectReference) bool {
	f, ok := faultAs[*types.ManagedObjectNotFound](err)
	return ok && f.Obj == ref
}

// remove powers a VM off and destroys it, and asks confirm before each of the two. A VM that is gone is fine.
func (vc *vcenter) remove(ctx context.Context, m *machine, confirm func(context.Context) error) error {
	vc.log.Info().Str("vm", m.ref.Value).Str("computer", m.name).Stringer("whose", m).Msg("removing a VM")
	if m.connection != "" && m.connection != types.VirtualMachineConnectionStateConnected && m.connection != types.VirtualMachineConnectionStateDisconnected {
		// Inaccessible, invalid or orphaned: there is nothing that could be powered off or whose files could be deleted.
		if err := confirm(ctx); err != nil {
			return err
		}
		_, err := change(ctx, vc, methods.UnregisterVM, &types.UnregisterVM{This: m.ref})
		if err != nil && !gone(err, m.ref) {
			return fmt.Errorf("site %s: unregister %s VM %s: %w", vc.name, m.connection, m, err)
		}
		return nil
	}
	if m.power != types.VirtualMachinePowerStatePoweredOff {
		if err := confirm(ctx); err != nil {
			return err
		}
		err := runTask(ctx, vc, methods.PowerOffVM_Task, &types.PowerOffVM_Task{This: m.ref},
			func(r *types.PowerOffVM_TaskResponse) types.ManagedObjectReference { return r.Returnval })
		if gone(err, m.ref) {
			return nil
		}
		if err != nil && !alreadyIn(err, types.VirtualMachinePowerStatePoweredOff) {
			return fmt.Errorf("site %s: power off %s: %w", vc.name, m, err)
		}
	}
	if err := confirm(ctx); err != nil {
		return err
	}
	err := runTask(ctx, vc, methods.Destroy_Task, &types.Destroy_Task{This: m.ref},
		func(r *types.Destroy_TaskResponse) types.ManagedObjectReference { return r.Returnval })
	if err == nil || gone(err, m.ref) {
		return nil
	}
	if after, rerr := vc.read(ctx, m.ref); errors.As(err, new(*GoneError)) && rerr == nil && after == nil {
		return nil
	}
	return fmt.Errorf("site %s: destroy %s: %w", vc.name, m, err)
}

// powerOn powers a VM on. One that is on is fine: a vCenter powers nothing on twice.
func (vc *vcenter) powerOn(ctx context.Context, m *machine) error {
	err := runTask(ctx, vc, methods.PowerOnVM_Task, &types.PowerOnVM_Task{This: m.ref},
		func(r *types.PowerOnVM_TaskResponse) types.ManagedObjectReference { return r.Returnval })
	if err != nil && !alreadyIn(err, types.VirtualMachinePowerStatePoweredOn) {
		return fmt.Errorf("site %s: power on %s: %w", vc.name, m, err)
	}
	return nil
}

func (vc *vcenter) reset(ctx context.Context, m *machine) error {
	err := runTask(ctx, vc, methods.ResetVM_Task, &types.ResetVM_Task{This: m.ref},
		func(r *types.ResetVM_TaskResponse) types.ManagedObjectReference { return r.Returnval })
	if err != nil {
		return fmt.Errorf("site %s: reset %s: %w", vc.name, m, err)
	}
	return nil
}

// clearHostKey takes the private host key out of a VM's configuration. The public half stays.
func (vc *vcenter) clearHostKey(ctx context.Context, m *machine) error {
	err := runTask(ctx, vc, methods.ReconfigVM_Task, &types.ReconfigVM_Task{This: m.ref, Spec: types.VirtualMachineConfigSpec{
		ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: KeyHostKey, Value: ""}}, // an empty value removes the key
	}}, func(r *types.ReconfigVM_TaskResponse) types.ManagedObjectReference { return r.Returnval })
	if err != nil {
		return fmt.Errorf("site %s: clear the host key from the configuration of %s: %w", vc.name, m, err)
	}
	return nil
}

// alreadyIn says that a power task was refused because the VM is in the wanted state.
func alreadyIn(err error, state types.VirtualMachinePowerState) bool {
	f, ok := faultAs[*types.InvalidPowerState](err)
	return ok && f.ExistingState == state
}

// runTask begins a task and waits for its end.
func runTask[Q, A any](ctx context.Context, vc *vcenter, method func(context.Context, soap.RoundTripper, *Q) (A, error), request *Q,
	reference func(A) types.ManagedObjectReference) error {
	answer, err := change(ctx, vc, method, request)
	if err != nil {
		return err
	}
	_, err = vc.await(ctx, reference(answer), nil)
	return err
}
