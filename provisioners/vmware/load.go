package vmware

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"berth/internal/hostkey"
	"berth/provisioners"
	"berth/reservation"
)

// What a load keeps for a successor, under keptClone: "" means that no clone was asked for, keptAsked that one was and
// its answer is not known, and anything else is the reference of the clone's task.
const (
	keptClone = "clone"
	keptAsked = "asked"
)

// The stages of a load.
const (
	stageLook    = "look up"
	stageRemove  = "remove earlier vm"
	stageClone   = "clone"
	stagePowerOn = "power on"
)

// maxRounds bounds how often one call of Load looks again after the vCenter has changed under it.
const maxRounds = 4

// LateError says that a later attempt of the same reservation has the computer already: this worker was paused or cut
// off, and touches nothing.
type LateError struct {
	Mine, Found reservation.Mark
}

func (e *LateError) Error() string {
	return fmt.Sprintf("this worker is late: it works on attempt %d of reservation %s, and the computer's VM is of attempt %d already",
		e.Mine.Attempt, e.Mine.Reservation, e.Found.Attempt)
}

// load is one call of Load.
type load struct {
	vc      *vcenter
	request provisioners.Request
	report  reservation.Reporter

	template template
	snapshot *types.ManagedObjectReference
	folder   types.ManagedObjectReference
}

// Load is part of provisioners.Provisioner. It clones the image's template under the computer's name, powered on, and
// removes what stood under that name from an earlier load. Its stages are "look up", "remove earlier vm", "clone" and,
// where the clone did not do it, "power on".
func (m *Module) Load(ctx context.Context, request provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	loaded, err := m.load(ctx, request, report)
	if err != nil && ctx.Err() != nil {
		return provisioners.Loaded{}, ctx.Err()
	}
	return loaded, Classify(err)
}

func (m *Module) load(ctx context.Context, request provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	computer, image := request.Reservation.Computer, request.Reservation.Image
	vc, err := provisioners.SiteOf(m.vcenters, computer)
	if err != nil {
		return provisioners.Loaded{}, err
	}
	report.Stage(stageLook, fmt.Sprintf("%s at site %s", image.Sources[Type][sourceTemplate], vc.name))
	if err := m.ValidatePlacement(computer.Placement); err != nil {
		return provisioners.Loaded{}, reservation.Fail("computer "+computer.Name+" cannot be placed", err)
	}
	l := &load{vc: vc, request: request, report: report}
	var again error
	for range maxRounds {
		if l.template, l.snapshot, err = m.source(ctx, vc, image); err != nil {
			return provisioners.Loaded{}, err
		}
		if l.folder, err = vc.inventory.folder(ctx, computer.Placement[placeFolder]); err != nil {
			return provisioners.Loaded{}, err
		}
		loaded, err := l.round(ctx)
		if err == nil {
			return loaded, nil
		}
		_, duplicate := faultAs[*types.DuplicateName](err)
		_, missing := faultAs[*types.ManagedObjectNotFound](err)
		if ctx.Err() != nil || !(duplicate || missing || errors.As(err, new(*GoneError))) {
			return provisioners.Loaded{}, err
		}
		// The vCenter has changed between our look and our call: look again, at what stands under the name, at the
		// running tasks, and at what we remember of the catalog's names.
		vc.log.Info().Err(err).Str("computer", computer.Name).Msg("looking again")
		vc.inventory.memory.forget()
		again = err
	}
	return provisioners.Loaded{}, fmt.Errorf("gave up after %d looks: %w", maxRounds, again)
}

// round brings the computer from whatever stands there to loaded.
func (l *load) round(ctx context.Context) (provisioners.Loaded, error) {
	vm, err := l.look(ctx)
	if err != nil {
		return provisioners.Loaded{}, err
	}
	waited, err := l.settle(ctx, vm)
	if err != nil {
		return provisioners.Loaded{}, err
	}
	if waited {
		if vm, err = l.look(ctx); err != nil {
			return provisioners.Loaded{}, err
		}
	}
	if vm != nil && !l.owns(vm) {
		l.report.Stage(stageRemove, vm.String())
		if err := l.vc.remove(ctx, vm, l.report.Confirm); err != nil {
			return provisioners.Loaded{}, err
		}
		vm = nil
	}
	if vm == nil {
		made, err := l.clone(ctx)
		if err != nil {
			return provisioners.Loaded{}, err
		}
		if ref, ok := made.(types.ManagedObjectReference); ok {
			vm, err = l.vc.read(ctx, ref)
		} else {
			vm, err = l.look(ctx)
		}
		if err != nil {
			return provisioners.Loaded{}, err
		}
		if vm == nil || !l.owns(vm) {
			return provisioners.Loaded{}, fmt.Errorf("site %s: the clone of %s ended well, and there is no VM %s with our mark; was it renamed or moved?",
				l.vc.name, l.template.name, l.request.Reservation.Computer.Name)
		}
	}
	if vm.hostKey == "" && handsHostKey(l.request.Reservation.Image) {
		// Going on would pin whatever key answers first, which this image is meant to be safe from.
		return provisioners.Loaded{}, reservation.Reload(fmt.Sprintf("site %s: the host key that was handed to %s is no longer in its configuration (%s)",
			l.vc.name, vm, KeyHostKeyPublic), nil)
	}
	if err := l.powerOn(ctx, vm); err != nil {
		return provisioners.Loaded{}, err
	}
	return provisioners.Loaded{HostKey: vm.hostKey, Reference: vm.ref.Value}, nil
}

// owns says whether a VM is what this very attempt has made.
func (l *load) owns(vm *machine) bool { return vm.marked && vm.mark == l.request.Mark }

// look returns what stands under the computer's name, or nil. What must not be touched is an error.
func (l *load) look(ctx context.Context) (*machine, error) {
	name := l.request.Reservation.Computer.Name
	vm, err := l.vc.find(ctx, l.folder, name)
	switch {
	case err != nil || vm == nil:
		return nil, err
	case vm.template || vm.ref == l.template.ref:
		return nil, &OccupiedError{Site: l.vc.name, Object: vm.ref, Name: name}
	case vm.marked && vm.mark.Same(l.request.Mark) && vm.mark.Attempt > l.request.Mark.Attempt:
		return nil, &LateError{Mine: l.request.Mark, Found: vm.mark}
	}
	return vm, nil
}

// settle waits for a clone that was begun by an earlier call for this attempt, perhaps in a worker that is lost. It
// returns whether there was anything to wait for.
func (l *load) settle(ctx context.Context, vm *machine) (bool, error) {
	kept := l.report.Kept(keptClone)
	mine := vm != nil && l.owns(vm)
	if mine && vm.on() {
		return false, nil // to power on is the last thing that a clone does
	}
	var tasks []types.ManagedObjectReference
	switch {
	case kept != "" && kept != keptAsked:
		tasks = []types.ManagedObjectReference{{Type: "Task", Value: kept}}
	case kept == keptAsked, mine, vm != nil && !vm.configured, len(l.vc.clonesOf(l.request.Mark)) > 0:
		// A clone may run, and its task is not known: it is one of the template's. Which one cannot be seen, because a
		// task does not tell what it makes. So all of them are waited for that are not known to be for others.
		var err error
		if tasks, err = l.vc.running(ctx, l.template.ref, l.request.Mark); err != nil {
			return false, err
		}
	}
	if kept == "" && len(tasks) == 0 {
		return false, nil
	}
	for _, task := range tasks {
		if task.Value != kept {
			// It may be somebody else's: what it ends with is none of our business, and what it made shows by name and mark.
			_, err := l.vc.await(ctx, task, func(detail string) {
				l.report.Stage(stageClone, join("waiting for "+task.Value+", which may be this load's", detail))
			})
			if _, ended := endedTask(err); err != nil && !ended && !errors.As(err, new(*GoneError)) {
				return false, err
			}
			l.vc.forget(task)
			continue
		}
		l.report.Stage(stageClone, "going on with "+task.Value)
		l.vc.note(task, l.request.Mark)
		leave, err := l.enterGate(ctx) // the worker before us has a place there
		if err != nil {
			return false, err
		}
		release := l.vc.slots.take(l.hostOf(ctx))
		_, err = l.awaitClone(ctx, task)
		release()
		leave()
		if err != nil && !errors.As(err, new(*GoneError)) {
			return false, err
		}
	}
	l.report.Keep(keptClone, "")
	return true, nil
}

// clone clones the template under the computer's name, powered on, waits for it, and returns the task's result.
func (l *load) clone(ctx context.Context) (types.AnyType, error) {
	order, err := l.order(ctx)
	if err != nil {
		return nil, err
	}
	// The gate first, as in settle: a load that goes on after its worker was lost has its place there already, and must not
	// wait for slots of loads that wait for such places.
	leave, err := l.enterGate(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	release, err := l.vc.slots.acquire(ctx, l.hostOf(ctx), func(place int) {
		l.report.Stage(stageClone, "waiting for a clone slot, "+provisioners.InLine(place))
	})
	if err != nil {
		return nil, err
	}
	defer release()
	l.report.Stage(stageClone, l.what())
	// From here on a successor knows that a clone may run: Confirm delivers what is kept.
	l.report.Keep(keptClone, keptAsked)
	if err := l.report.Confirm(ctx); err != nil {
		return nil, err
	}
	answer, err := change(ctx, l.vc, methods.CloneVM_Task, order)
	if err != nil {
		_, refused := faultAs[types.BaseMethodFault](err)
		return nil, l.cloneFailed(err, refused)
	}
	task := answer.Returnval
	l.vc.note(task, l.request.Mark)
	l.report.Keep(keptClone, task.Value)
	return l.awaitClone(ctx, task)
}

// enterGate waits until other workers' clones leave room for this one in its vCenter.
func (l *load) enterGate(ctx context.Context) (leave func(), err error) {
	if l.request.Enter == nil {
		return func() {}, nil
	}
	return l.request.Enter(ctx, Type+"/"+l.vc.name, l.vc.slots.total, func(place int) {
		l.report.Stage(stageClone, "waiting for clones of other workers, "+provisioners.InLine(place))
	})
}

// awaitClone waits for a clone of ours. When the context ends it cancels the clone, unless a successor is to go on.
func (l *load) awaitClone(ctx context.Context, task types.ManagedObjectReference) (types.AnyType, error) {
	made, err := l.vc.await(ctx, task, func(detail string) { l.report.Stage(stageClone, join(l.what(), detail)) })
	if ctx.Err() != nil {
		if !provisioners.HandedOver(ctx) {
			l.vc.cancel(ctx, task)
		}
		return nil, ctx.Err()
	}
	_, ended := endedTask(err)
	if err == nil || ended || errors.As(err, new(*GoneError)) {
		l.vc.forget(task)
	}
	if err != nil {
		return nil, l.cloneFailed(err, ended)
	}
	return made, nil
}

// cloneFailed says what failed, and keeps for the next call what it has to know: over says that no clone of ours runs,
// and that the same end must not be found again.
func (l *load) cloneFailed(err error, over bool) error {
	if _, duplicate := faultAs[*types.DuplicateName](err); duplicate {
		// What took the name may be a clone of ours that was lost sight of: it is looked for among the running ones.
		l.report.Keep(keptClone, keptAsked)
	} else if over {
		l.report.Keep(keptClone, "")
	}
	return fmt.Errorf("site %s: %s to %s: %w", l.vc.name, l.what(), l.request.Reservation.Computer.Name, err)
}

// what says what is cloned: "linked clone of debian12-template at r3".
func (l *load) what() string {
	source := l.request.Reservation.Image.Sources[Type]
	kind := source[sourceClone]
	if kind == "" {
		kind = cloneLinked
	}
	what := kind + " clone of " + l.template.name
	if source[sourceSnapshot] != "" {
		what += " at " + source[sourceSnapshot]
	}
	return what
}

// powerOn powers the VM on unless it is, or a task is about to.
func (l *load) powerOn(ctx context.Context, vm *machine) error {
	if vm.on() {
		return nil
	}
	l.report.Stage(stagePowerOn, vm.ref.Value)
	tasks, err := l.vc.running(ctx, vm.ref, l.request.Mark)
	if err != nil {
		return err
	}
	for _, task := range tasks {
		if _, err := l.vc.await(ctx, task, nil); ctx.Err() != nil {
			return err
		}
	}
	if len(tasks) > 0 {
		now, err := l.vc.read(ctx, vm.ref)
		if err != nil {
			return err
		}
		if now == nil {
			return fmt.Errorf("site %s: %s went away while it was to be powered on", l.vc.name, vm)
		}
		if now.on() {
			return nil
		}
	}
	if err := l.report.Confirm(ctx); err != nil {
		return err
	}
	return l.vc.powerOn(ctx, vm)
}

// hostOf returns the host whose share of the clones a clone takes: the one it is placed on, else the template's, which
// does the work of most clones. "" if neither is known.
func (l *load) hostOf(ctx context.Context) string {
	if name := l.request.Reservation.Computer.Placement[placeHost]; name != "" {
		if host, err := l.vc.inventory.host(ctx, name); err == nil {
			return host.Value
		}
	}
	return l.template.host.Value
}

// order writes the clone's order down: where it goes, what it grows from, its hardware, its mark and what its guest is
// told.
func (l *load) order(ctx context.Context) (*types.CloneVM_Task, error) {
	r := l.request.Reservation
	location, err := l.location(ctx)
	if err != nil {
		return nil, err
	}
	devices, err := l.interfaces(ctx)
	if err != nil {
		return nil, err
	}
	config := &types.VirtualMachineConfigSpec{
		NumCPUs:      int32(r.Computer.CPUs),
		MemoryMB:     int64(r.Computer.MemoryMiB),
		DeviceChange: devices,
		Annotation: fmt.Sprintf("Berth: reservation %s of %s, image %s, attempt %d. Removed with the reservation.",
			r.Name, r.User, r.Image, l.request.Mark.Attempt),
	}
	if cores := l.template.hardware.NumCoresPerSocket; cores != nil && *cores > 1 && config.NumCPUs%*cores != 0 {
		config.NumCoresPerSocket = &config.NumCPUs // the template's sockets do not divide them: a vCenter would refuse to power it on
	}
	told := [][2]string{
		{KeyMark, l.request.Mark.String()},
		{KeyReservation, r.Name},
		{KeyImage, r.Image.String()},
		{KeyHostname, r.Computer.Name},
	}
	if handsHostKey(r.Image) {
		key, err := hostkey.New(r.Computer.Name)
		if err != nil {
			return nil, err
		}
		told = append(told, [2]string{KeyHostKey, key.Private}, [2]string{KeyHostKeyPublic, key.Public})
	}
	for _, option := range told {
		config.ExtraConfig = append(config.ExtraConfig, &types.OptionValue{Key: option[0], Value: option[1]})
	}
	return &types.CloneVM_Task{
		This:   l.template.ref,
		Folder: l.folder,
		Name:   r.Computer.Name,
		Spec: types.VirtualMachineCloneSpec{
			Location: location,
			Snapshot: l.snapshot,
			Config:   config,
			// The clone powers itself on: one order, so there is no moment between the two in which a worker could be lost.
			PowerOn: true,
		},
	}, nil
}

// handsHostKey says whether the guest is handed a host key: the default for vSphere, but for Windows, which does not read
// guestinfo by itself.
func handsHostKey(image reservation.Image) bool {
	return image.Control.HostKey == reservation.HostKeyHanded || image.Control.HostKey == "" && image.OS.Family != reservation.Windows
}

func (l *load) location(ctx context.Context) (types.VirtualMachineRelocateSpec, error) {
	placement := l.request.Reservation.Computer.Placement
	move := types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking
	if l.request.Reservation.Image.Sources[Type][sourceClone] == cloneFull {
		move = types.VirtualMachineRelocateDiskMoveOptionsMoveAllDiskBackingsAndDisallowSharing
	}
	location := types.VirtualMachineRelocateSpec{DiskMoveType: string(move), Pool: l.template.pool}
	if name := placement[placeHost]; name != "" {
		host, err := l.vc.inventory.host(ctx, name)
		if err != nil {
			return location, err
		}
		location.Host = &host
	}
	if name := placement[placeDatastore]; name != "" {
		datastore, err := l.vc.inventory.datastore(ctx, name)
		if err != nil {
			return location, err
		}
		location.Datastore = &datastore
	}
	var pool types.ManagedObjectReference
	var err error
	switch {
	case placement[placePool] != "":
		pool, err = l.vc.inventory.pool(ctx, placement[placePool])
	case location.Host != nil:
		pool, err = l.vc.inventory.poolOf(ctx, *location.Host)
	case l.template.pool == nil:
		pool, err = l.vc.inventory.poolOf(ctx, l.template.host)
	default:
		return location, nil
	}
	location.Pool = &pool
	return location, err
}

// interfaces returns the changes that give the template's network interfaces the computer's MACs and networks, in
// order, and add those that the template lacks. Interfaces beyond the computer's stay as they are.
func (l *load) interfaces(ctx context.Context) ([]types.BaseVirtualDeviceConfigSpec, error) {
	computer := l.request.Reservation.Computer
	var cards []types.BaseVirtualEthernetCard
	for _, device := range l.template.hardware.Device {
		if card, ok := device.(types.BaseVirtualEthernetCard); ok {
			cards = append(cards, card)
		}
	}
	var changes []types.BaseVirtualDeviceConfigSpec
	for i := range max(len(computer.MACs), len(computer.Networks)) {
		var card types.BaseVirtualEthernetCard
		operation := types.VirtualDeviceConfigSpecOperationEdit
		if i < len(cards) {
			card = copyOf(cards[i])
		} else {
			if i >= len(computer.Networks) {
				return nil, reservation.Fail(fmt.Sprintf("computer %s has a MAC for interface %d, and template %s has only %d", computer.Name, i+1, l.template.name, len(cards)),
					&reservation.FieldError{Field: fmt.Sprintf("computer.networks[%d]", i), Value: "", Remedy: "name the network that the added interface is connected with"})
			}
			operation = types.VirtualDeviceConfigSpecOperationAdd
			card = &types.VirtualVmxnet3{}
			card.GetVirtualEthernetCard().Key = int32(-1 - i) // negative: the vCenter gives it one
		}
		wire := card.GetVirtualEthernetCard()
		if i < len(computer.Networks) {
			backing, err := l.vc.inventory.network(ctx, computer.Networks[i])
			if err != nil {
				return nil, err
			}
			wire.Backing = backing
		}
		if i < len(computer.MACs) {
			wire.AddressType = string(types.VirtualEthernetCardMacTypeManual)
			wire.MacAddress = strings.ToLower(computer.MACs[i])
		} else {
			wire.AddressType = string(types.VirtualEthernetCardMacTypeGenerated)
			wire.MacAddress = "" // a MAC of the template's own must not be there twice
		}
		wire.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, AllowGuestControl: true, Connected: true}
		changes = append(changes, &types.VirtualDeviceConfigSpec{Operation: operation, Device: card.(types.BaseVirtualDevice)})
	}
	return changes, nil
}

func join(what, detail string) string {
	if detail == "" {
		return what
	}
	return what + ", " + detail
}
