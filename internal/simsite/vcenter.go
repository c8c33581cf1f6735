package simsite

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"berth/internal/simsite/guestos"
)

// Keys of the extra configuration that guests and people read.
const (
	keyHostKey = "guestinfo.berth.hostkey" // the private host key for the guest, OpenSSH PEM
	keyMark    = "berth.mark"
)

// vcenter is the simulated vCenter: govmomi's simulator, with what it lacks. It counts, delays and fails calls and
// tasks, lets several clones of one template run at a time, and tells the site what happens to VMs.
type vcenter struct {
	site     *Site
	model    *simulator.Model
	registry *simulator.Registry
	// inventory is held while a VM comes or goes, and shared while one is looked for by its name. The simulator puts a clone
	// among its folder's children before the clone has a name, and ends the process when a search meets one that has none
	// (registry.go, entityName); and what one destroy reads of the datastore another one writes.
	inventory sync.RWMutex

	mu       sync.Mutex
	delay    time.Duration
	faults   []*Fault
	calls    map[string]int
	names    map[types.ManagedObjectReference]string
	clones   map[types.ManagedObjectReference]*guest
	images   map[types.ManagedObjectReference]*image // by snapshot
	kinds    map[types.ManagedObjectReference]string // snapshots' names
	cloning  map[string]bool                         // names reserved by running clones
	most     int                                     // clones that ran at once
	tasks    int
	watching types.ManagedObjectReference
}

// newVCenter makes the inventory. It is not served yet.
func newVCenter(ctx context.Context, site *Site, script *Script, user, password string) (*vcenter, error) {
	v := &vcenter{site: site, calls: map[string]int{}, names: map[types.ManagedObjectReference]string{}, clones: map[types.ManagedObjectReference]*guest{},
		images: map[types.ManagedObjectReference]*image{}, kinds: map[types.ManagedObjectReference]string{}, cloning: map[string]bool{},
		delay: script.VCenter.APIDelay.Std(), watching: types.ManagedObjectReference{Type: "SimulatedSite", Value: "site"}}
	for _, f := range script.VCenter.Faults {
		v.addFault(f)
	}
	v.model = simulator.VPX()
	v.model.Host, v.model.Cluster, v.model.Machine, v.model.Autostart = 0, 1, 0, false
	v.model.ClusterHost = orDefault(script.VCenter.Hosts, 4)
	v.model.Datastore = orDefault(script.VCenter.Datastores, 2)
	if err := v.model.Create(); err != nil {
		return nil, fmt.Errorf("vCenter's inventory: %w", err)
	}
	v.registry = v.model.Map()
	service := v.model.Service
	service.Listen = &url.URL{User: url.UserPassword(user, password), Path: vim25.Path}
	service.Context.Map.SessionManager().ValidLogin = func(l *types.Login) bool {
		return subtle.ConstantTimeCompare([]byte(l.UserName), []byte(user))&subtle.ConstantTimeCompare([]byte(l.Password), []byte(password)) == 1
	}
	if d := script.VCenter.SessionTimeout; d > 0 {
		v.registry.OptionManager().UpdateOptions(&types.UpdateOptions{ChangedValue: []types.BaseOptionValue{
			&types.OptionValue{Key: "config.vmacore.soap.sessionTimeout", Value: d.String()}}})
	}
	client, err := vim25.NewClient(ctx, service)
	if err == nil {
		err = v.furnish(ctx, client, script)
	}
	if err != nil {
		v.model.Remove()
		return nil, fmt.Errorf("vCenter's inventory: %w", err)
	}
	v.registry.Put(&orderlyIndex{SearchIndex: v.registry.SearchIndex(), inventory: &v.inventory})
	v.registry.AddHandler(v)
	v.registry.Handler = v.handle
	return v, nil
}

func orDefault(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// datacenter is the name that govmomi's model gives the one that there is.
const datacenter = "DC0"

// furnish makes folders and templates.
func (v *vcenter) furnish(ctx context.Context, client *vim25.Client, script *Script) error {
	index := object.NewSearchIndex(client)
	look := func(path string) (object.Reference, error) {
		ref, err := index.FindByInventoryPath(ctx, path)
		if err == nil && ref == nil {
			err = fmt.Errorf("%s is missing", path)
		}
		return ref, err
	}
	ref, err := look("/" + datacenter + "/vm")
	if err != nil {
		return err
	}
	vms := object.NewFolder(client, ref.Reference())
	for _, name := range script.VCenter.Folders {
		if _, err := vms.CreateFolder(ctx, name); err != nil {
			return fmt.Errorf("folder %s: %w", name, err)
		}
	}
	if ref, err = look("/" + datacenter + "/host/" + datacenter + "_C0/Resources"); err != nil {
		return err
	}
	pool := object.NewResourcePool(client, ref.Reference())
	if ref, err = look("/" + datacenter + "/network/VM Network"); err != nil {
		return err
	}
	backing, err := object.NewNetwork(client, ref.Reference()).EthernetCardBackingInfo(ctx)
	if err != nil {
		return err
	}
	for _, t := range script.Templates {
		if err := v.template(ctx, client, vms, pool, backing, t); err != nil {
			return fmt.Errorf("template %s: %w", t.Name, err)
		}
	}
	return nil
}

func (v *vcenter) template(ctx context.Context, client *vim25.Client, folder *object.Folder, pool *object.ResourcePool, network types.BaseVirtualDeviceBackingInfo, t Template) error {
	var devices object.VirtualDeviceList
	scsi, err := devices.CreateSCSIController("pvscsi")
	if err != nil {
		return err
	}
	disk := devices.CreateDisk(scsi.(types.BaseVirtualController), types.ManagedObjectReference{}, "[LocalDS_0] "+t.Name+"/disk1.vmdk")
	disk.CapacityInKB = 10 << 20
	card, err := devices.CreateEthernetCard("vmxnet3", network)
	if err != nil {
		return err
	}
	changes, err := append(devices, scsi, disk, card).ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		return err
	}
	guestID := types.VirtualMachineGuestOsIdentifierDebian12_64Guest
	switch t.Distribution {
	case guestos.Ubuntu2404:
		guestID = types.VirtualMachineGuestOsIdentifierUbuntu64Guest
	case guestos.Rocky9:
		guestID = types.VirtualMachineGuestOsIdentifierRockylinux_64Guest
	}
	if t.Windows != "" {
		guestID = windowsGuestID(t.Windows)
	}
	task, err := folder.CreateVM(ctx, types.VirtualMachineConfigSpec{Name: t.Name, GuestId: string(guestID), NumCPUs: 1, MemoryMB: 1024,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[LocalDS_0]"}, DeviceChange: changes}, pool, nil)
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	vm := object.NewVirtualMachine(client, info.Result.(types.ManagedObjectReference))
	for _, name := range t.Snapshots {
		image, err := v.site.newImage(t, name)
		if err != nil {
			return err
		}
		if task, err = vm.CreateSnapshot(ctx, name, "", false, false); err != nil {
			return err
		}
		if info, err = task.WaitForResult(ctx, nil); err != nil {
			return err
		}
		snapshot := info.Result.(types.ManagedObjectReference)
		v.dropMemoryFile(t.Name)
		v.images[snapshot] = image
		v.kinds[snapshot] = name
		v.images[vm.Reference()] = image // a clone without a snapshot is made of what the template holds now: the last one
	}
	if err := vm.MarkAsTemplate(ctx); err != nil {
		return err
	}
	v.names[vm.Reference()] = t.Name
	v.adopt(v.model.Service.Context, vm.Reference())
	return nil
}

// dropMemoryFile removes the file that the simulator makes for a template's first snapshot. It is empty, and the simulator
// complains to the log of the process when it comes across it at the next snapshot.
func (v *vcenter) dropMemoryFile(template string) {
	for _, entity := range v.registry.All("Datastore") {
		if ds, ok := entity.(*simulator.Datastore); ok {
			_ = os.Remove(filepath.Join(ds.Summary.Url, template, template+"-Snapshot1.vmsn")) // on the other datastores there is none
		}
	}
}

// adopt puts our own type in place of the simulator's for one VM.
func (v *vcenter) adopt(ctx *simulator.Context, ref types.ManagedObjectReference) {
	vm, ok := v.registry.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return
	}
	v.registry.WithLock(ctx, ref, func() { v.registry.Put(&scriptedVM{VirtualMachine: vm, v: v}) })
}

// ---- calls

func (v *vcenter) addFault(f Fault) {
	f.Left, f.passed = f.Times, 0
	if f.At == "" {
		f.At = atCall
		if hasTask(f.Method) {
			f.At = atTask
		}
	}
	v.mu.Lock()
	v.faults = append(v.faults, &f)
	v.mu.Unlock()
}

func (v *vcenter) clearFaults() {
	v.mu.Lock()
	v.faults = nil
	v.mu.Unlock()
}

// take returns the fault that is due for a call, and counts it; nil when none is.
func (v *vcenter) take(where, method, computer string) *Fault {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, f := range v.faults {
		if f.At != where || f.Method != "*" && f.Method != method || f.Computer != "" && f.Computer != computer || f.Times > 0 && f.Left == 0 {
			continue
		}
		if f.passed < f.Skip {
			f.passed++
			continue
		}
		if f.Times > 0 {
			f.Left--
		}
		taken := *f
		return &taken
	}
	return nil
}

// handle sees every call before the simulator does.
func (v *vcenter) handle(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	v.mu.Lock()
	v.calls[m.Name]++
	delay := v.delay
	computer := v.names[m.This]
	v.mu.Unlock()
	if clone, ok := m.Body.(*types.CloneVM_Task); ok {
		computer = clone.Name
	}
	if delay > 0 {
		v.site.pause(delay)
	}
	if ctx.Session == nil {
		switch m.Name {
		case "LoginByToken", "LoginExtensionByCertificate", "CloneSession":
			return nil, new(types.InvalidLogin) // the simulator would let anybody in by these
		case "Fetch", "RetrieveProperties", "RetrievePropertiesEx":
			// The simulator answers these to anybody; a vCenter does not, and a client must see that its session is over.
			return nil, &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &m.This, PrivilegeId: "System.View"}}
		}
	}
	if f := v.take(atCall, m.Name, computer); f != nil {
		v.site.pause(f.Delay.Std())
		if f.Type != "" {
			return nil, newFault(f.Type)
		}
	}
	return nil, nil
}

// orderlyIndex searches while no VM comes or goes.
type orderlyIndex struct {
	*simulator.SearchIndex
	inventory *sync.RWMutex
}

// FindChild is part of the vSphere API.
func (i *orderlyIndex) FindChild(ctx *simulator.Context, req *types.FindChild) soap.HasFault {
	i.inventory.RLock()
	defer i.inventory.RUnlock()
	return i.SearchIndex.FindChild(ctx, req)
}

// Calls returns how often each method of the vSphere API was called.
func (v *vcenter) Calls() map[string]int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.calls)
}

// expireSessions ends every session; what its owners call next is answered with NotAuthenticated.
func (v *vcenter) expireSessions() int {
	c := *v.model.Service.Context
	manager := v.registry.SessionManager()
	view, ok := c.Session.Get(manager.Reference()).(*simulator.SessionManager)
	if !ok {
		return 0
	}
	ended := 0
	for _, s := range view.SessionList {
		if manager.TerminateSession(&c, &types.TerminateSession{SessionId: []string{s.Key}}).Fault() == nil {
			ended++
		}
	}
	return ended
}

// ---- tasks

// plan is what a task is to do beyond its work.
type plan struct {
	delay time.Duration
	fault types.BaseMethodFault
	hangs bool
}

func (p plan) empty() bool { return p == plan{} }

func (v *vcenter) plan(method, computer string, delay Duration, fault string, hangs bool) plan {
	p := plan{delay: delay.Std(), hangs: hangs}
	if fault != "" {
		p.fault = newFault(fault)
	}
	if f := v.take(atTask, method, computer); f != nil {
		p.delay += f.Delay.Std()
		p.hangs = p.hangs || f.NeverEnds
		if f.Type != "" {
			p.fault = newFault(f.Type)
		}
	}
	return p
}

// scriptedTask is a task of ours. Unlike the simulator's it does not lock its entity while it runs, so that a template
// that is being cloned can be read, and cloned again; and to cancel it stops what it does.
type scriptedTask struct {
	*simulator.Task
	cancelled chan struct{}
}

// CancelTask is part of the vSphere API.
func (t *scriptedTask) CancelTask(ctx *simulator.Context, req *types.CancelTask) soap.HasFault {
	body := t.Task.CancelTask(ctx, req)
	if body.Fault() == nil {
		close(t.cancelled)
	}
	return body
}

// waiter waits within a task; it returns a fault when the task was cancelled.
type waiter func(time.Duration) types.BaseMethodFault

// work is what a task does.
type work func(ctx *simulator.Context, wait waiter) (types.AnyType, types.BaseMethodFault)

// start runs work as a task of vm's, after what the plan says, and returns the task. after is called at its
// end. The lock of vm must be held by ctx.
func (v *vcenter) start(ctx *simulator.Context, vm *scriptedVM, name string, p plan, after func(), work work) types.ManagedObjectReference {
	v.mu.Lock()
	v.tasks++
	ref := types.ManagedObjectReference{Type: "Task", Value: fmt.Sprintf("task-s%d", v.tasks)}
	v.mu.Unlock()
	task := simulator.CreateTask(vm, name, nil)
	now := time.Now()
	task.Self = ref
	task.Info.Key, task.Info.Task = ref.Value, ref
	task.Info.State, task.Info.StartTime, task.Info.Cancelable = types.TaskInfoStateRunning, &now, true
	v.registry.Put(task)
	scripted := &scriptedTask{Task: task, cancelled: make(chan struct{})}
	v.registry.Put(scripted)

	own := *ctx // locks are held on behalf of a context: the task's must be another than the call's
	wait := func(d time.Duration) types.BaseMethodFault {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-scripted.cancelled:
		case <-v.site.ctx.Done():
		}
		return new(types.RequestCanceled)
	}
	v.site.group.Go(func() {
		result, fault := func() (types.AnyType, types.BaseMethodFault) {
			const steps = 10 // what a person sees of its progress
			for i := range steps {
				if p.delay <= 0 {
					break
				}
				if fault := wait(p.delay / steps); fault != nil {
					return nil, fault
				}
				v.registry.AtomicUpdate(&own, task, []types.PropertyChange{{Name: "info.progress", Val: int32((i + 1) * 90 / steps)}})
			}
			if p.hangs {
				if fault := wait(24 * time.Hour); fault != nil {
					return nil, fault
				}
			}
			if p.fault != nil {
				return nil, p.fault
			}
			return work(&own, wait)
		}()
		after()
		changes := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now()}, {Name: "info.result", Val: result}}
		if fault == nil {
			changes = append(changes, types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
		} else {
			changes = append(changes, types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: fmt.Sprintf("%T", fault)}},
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError})
		}
		v.registry.AtomicUpdate(&own, task, changes)
	})
	return ref
}

// finish waits for one of the simulator's own tasks.
func (v *vcenter) finish(ref types.ManagedObjectReference) (types.AnyType, types.BaseMethodFault) {
	task, ok := v.registry.Get(ref).(*simulator.Task)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	task.Wait()
	if task.Info.Error != nil {
		return nil, task.Info.Error.Fault
	}
	return task.Info.Result, nil
}

// changing begins one of the simulator's own tasks by which a VM comes or goes, and waits for it.
func (v *vcenter) changing(begin func() (types.ManagedObjectReference, *soap.Fault)) (types.AnyType, types.BaseMethodFault) {
	v.inventory.Lock()
	defer v.inventory.Unlock()
	ref, fault := begin()
	if fault != nil {
		return nil, fault.VimFault().(types.BaseMethodFault)
	}
	result, failed := v.finish(ref)
	// A destroy leaves it to a task of the file manager, which has its lock by now, to remove the files.
	v.registry.WithLock(&simulator.Context{Map: v.registry}, v.registry.FileManager().Reference(), func() {})
	return result, failed
}

// scriptedVM is a VM whose tasks follow the script.
type scriptedVM struct {
	*simulator.VirtualMachine
	v *vcenter
}

func (vm *scriptedVM) name() string {
	vm.v.mu.Lock()
	defer vm.v.mu.Unlock()
	return vm.v.names[vm.Self]
}

func (vm *scriptedVM) behaviour() Behaviour {
	vm.v.mu.Lock()
	g := vm.v.clones[vm.Self]
	vm.v.mu.Unlock()
	if g == nil {
		return Behaviour{}
	}
	return g.next()
}

// CloneVMTask is CloneVM_Task of the vSphere API.
func (vm *scriptedVM) CloneVMTask(ctx *simulator.Context, req *types.CloneVM_Task) soap.HasFault {
	v := vm.v
	refuse := func(f types.BaseMethodFault) soap.HasFault {
		return &methods.CloneVM_TaskBody{Fault_: simulator.Fault("", f)}
	}
	linked := req.Spec.Location.DiskMoveType == string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking)
	source := vm.Self
	if req.Spec.Snapshot != nil {
		source = *req.Spec.Snapshot
		if v.registry.Get(source) == nil {
			return refuse(&types.ManagedObjectNotFound{Obj: source})
		}
	} else if linked {
		return refuse(&types.InvalidArgument{InvalidProperty: "spec.snapshot"}) // a child disk needs a parent that stays as it is
	}
	load := v.site.beginLoad(req.Name)
	p := v.plan("CloneVM_Task", req.Name, load.behaviour().CloneTakes, load.behaviour().CloneFails, load.behaviour().CloneHangs)
	key := req.Folder.Value + "/" + req.Name
	v.mu.Lock()
	reserved := v.cloning[key]
	v.cloning[key] = true
	v.most = max(v.most, len(v.cloning))
	v.mu.Unlock()
	release := func() {}
	if reserved {
		p = plan{fault: &types.DuplicateName{Name: req.Name, Object: req.Folder}}
	} else {
		release = func() {
			v.mu.Lock()
			delete(v.cloning, key)
			v.mu.Unlock()
		}
	}
	return &methods.CloneVM_TaskBody{Res: &types.CloneVM_TaskResponse{Returnval: v.start(ctx, vm, "cloneVm", p, release,
		func(own *simulator.Context, wait waiter) (types.AnyType, types.BaseMethodFault) {
			return vm.clone(own, wait, req, load, source, linked)
		})}}
}

// clone does the work of a clone's task: the simulator's clone, powered off; then the guest; then the power.
func (vm *scriptedVM) clone(ctx *simulator.Context, wait waiter, req *types.CloneVM_Task, load *load, source types.ManagedObjectReference, linked bool) (types.AnyType, types.BaseMethodFault) {
	v := vm.v
	inner := *req
	inner.Spec.PowerOn = false
	result, fault := v.changing(func() (ref types.ManagedObjectReference, fault *soap.Fault) {
		v.registry.WithLock(ctx, vm.Self, func() {
			body := vm.VirtualMachine.CloneVMTask(ctx, &inner)
			if fault = body.Fault(); fault == nil {
				ref = body.(*methods.CloneVM_TaskBody).Res.Returnval
			}
		})
		return ref, fault
	})
	if fault != nil {
		return nil, fault
	}
	ref := result.(types.ManagedObjectReference)
	v.mu.Lock()
	image, kind, template := v.images[source], v.kinds[source], v.names[vm.Self]
	v.names[ref] = req.Name
	v.mu.Unlock()
	g := v.site.newGuest(req.Name, ref, load, image)
	g.template, g.snapshot, g.linked = template, kind, linked
	v.mu.Lock()
	v.clones[ref] = g
	v.mu.Unlock()
	v.adopt(ctx, ref)
	v.site.count(req.Name, func(c *Counts) { c.Clones++ })
	if !req.Spec.PowerOn {
		return ref, nil
	}
	machine, ok := v.registry.Get(ref).(*scriptedVM)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	b := g.next()
	p := v.plan("PowerOnVM_Task", req.Name, b.PowerOnTakes, b.PowerOnFails, false)
	if p.delay > 0 {
		if fault := wait(p.delay); fault != nil {
			return nil, fault
		}
	}
	if p.hangs {
		return nil, wait(24 * time.Hour)
	}
	if p.fault != nil {
		return nil, p.fault
	}
	if _, fault := machine.power(ctx, true); fault != nil {
		return nil, fault
	}
	return ref, nil
}

// power switches the VM at once.
func (vm *scriptedVM) power(ctx *simulator.Context, on bool) (types.AnyType, types.BaseMethodFault) {
	var ref types.ManagedObjectReference
	var fault *soap.Fault
	vm.v.registry.WithLock(ctx, vm.Self, func() {
		if on {
			body := vm.VirtualMachine.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm.Self})
			if fault = body.Fault(); fault == nil {
				ref = body.(*methods.PowerOnVM_TaskBody).Res.Returnval
			}
			return
		}
		body := vm.VirtualMachine.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: vm.Self})
		if fault = body.Fault(); fault == nil {
			ref = body.(*methods.PowerOffVM_TaskBody).Res.Returnval
		}
	})
	if fault != nil {
		return nil, fault.VimFault().(types.BaseMethodFault)
	}
	return vm.v.finish(ref)
}

// PowerOnVMTask is PowerOnVM_Task of the vSphere API.
func (vm *scriptedVM) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	b := vm.behaviour()
	p := vm.v.plan("PowerOnVM_Task", vm.name(), b.PowerOnTakes, b.PowerOnFails, false)
	if p.empty() {
		return vm.VirtualMachine.PowerOnVMTask(ctx, req)
	}
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: vm.v.start(ctx, vm, "powerOn", p, func() {},
		func(own *simulator.Context, _ waiter) (types.AnyType, types.BaseMethodFault) {
			return vm.power(own, true)
		})}}
}

// PowerOffVMTask is PowerOffVM_Task of the vSphere API.
func (vm *scriptedVM) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	p := vm.v.plan("PowerOffVM_Task", vm.name(), 0, "", false)
	if p.empty() {
		return vm.VirtualMachine.PowerOffVMTask(ctx, req)
	}
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: vm.v.start(ctx, vm, "powerOff", p, func() {},
		func(own *simulator.Context, _ waiter) (types.AnyType, types.BaseMethodFault) {
			return vm.power(own, false)
		})}}
}

// ResetVMTask is ResetVM_Task of the vSphere API.
func (vm *scriptedVM) ResetVMTask(ctx *simulator.Context, _ *types.ResetVM_Task) soap.HasFault {
	p := vm.v.plan("ResetVM_Task", vm.name(), 0, "", false)
	return &methods.ResetVM_TaskBody{Res: &types.ResetVM_TaskResponse{Returnval: vm.v.start(ctx, vm, "reset", p, func() {},
		func(own *simulator.Context, _ waiter) (types.AnyType, types.BaseMethodFault) {
			vm.v.mu.Lock()
			g := vm.v.clones[vm.Self]
			vm.v.mu.Unlock()
			g.resetting(true)
			defer g.resetting(false)
			if _, fault := vm.power(own, false); fault != nil {
				return nil, fault
			}
			return vm.power(own, true)
		})}}
}

// DestroyTask is Destroy_Task of the vSphere API.
func (vm *scriptedVM) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	p := vm.v.plan("Destroy_Task", vm.name(), 0, "", false)
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: vm.v.start(ctx, vm, "destroy", p, func() {},
		func(own *simulator.Context, _ waiter) (types.AnyType, types.BaseMethodFault) {
			return vm.v.changing(func() (ref types.ManagedObjectReference, fault *soap.Fault) {
				vm.v.registry.WithLock(own, vm.Self, func() {
					ref = vm.VirtualMachine.DestroyTask(own, req).(*methods.Destroy_TaskBody).Res.Returnval
				})
				return ref, nil
			})
		})}}
}

// ReconfigVMTask is ReconfigVM_Task of the vSphere API.
func (vm *scriptedVM) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	p := vm.v.plan("ReconfigVM_Task", vm.name(), 0, "", false)
	if p.empty() {
		return vm.VirtualMachine.ReconfigVMTask(ctx, req)
	}
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: vm.v.start(ctx, vm, "reconfigVm", p, func() {},
		func(own *simulator.Context, _ waiter) (types.AnyType, types.BaseMethodFault) {
			var body soap.HasFault
			vm.v.registry.WithLock(own, vm.Self, func() { body = vm.VirtualMachine.ReconfigVMTask(own, req) })
			return vm.v.finish(body.(*methods.ReconfigVM_TaskBody).Res.Returnval)
		})}}
}

// ---- what happens to VMs

// Reference is part of simulator.RegisterObject.
func (v *vcenter) Reference() types.ManagedObjectReference { return v.watching }

// PutObject is part of simulator.RegisterObject.
func (v *vcenter) PutObject(*simulator.Context, mo.Reference) {}

// UpdateObject is part of simulator.RegisterObject. The simulator calls it under the VM's lock.
func (v *vcenter) UpdateObject(_ *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	vm, ok := obj.(*mo.VirtualMachine)
	if !ok {
		return
	}
	v.mu.Lock()
	g := v.clones[vm.Self]
	v.mu.Unlock()
	if g == nil {
		return
	}
	for _, change := range changes {
		switch change.Name {
		case "runtime.powerState":
			if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
				g.powerOn(hardwareOf(vm))
			} else {
				g.powerOff()
			}
		case "config.extraConfig":
			g.setMark(extra(vm, keyMark))
		case "name":
			v.mu.Lock()
			v.names[vm.Self] = vm.Name
			v.mu.Unlock()
		}
	}
}

// RemoveObject is part of simulator.RegisterObject.
func (v *vcenter) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) {
	v.mu.Lock()
	g := v.clones[ref]
	delete(v.clones, ref)
	delete(v.names, ref)
	v.mu.Unlock()
	if g != nil {
		g.destroy()
	}
}

// hardware is what a guest sees of its VM at power-on.
type hardware struct {
	macs    []string
	hostKey string
	mark    string
}

func hardwareOf(vm *mo.VirtualMachine) hardware {
	h := hardware{hostKey: extra(vm, keyHostKey), mark: extra(vm, keyMark)}
	for _, device := range vm.Config.Hardware.Device {
		if card, ok := device.(types.BaseVirtualEthernetCard); ok {
			h.macs = append(h.macs, strings.ToLower(card.GetVirtualEthernetCard().MacAddress))
		}
	}
	return h
}

func extra(vm *mo.VirtualMachine, key string) string {
	if vm.Config == nil {
		return ""
	}
	for _, option := range vm.Config.ExtraConfig {
		if o := option.GetOptionValue(); o != nil && o.Key == key {
			text, _ := o.Value.(string)
			return text
		}
	}
	return ""
}

// switchOff powers a VM off from within: its guest has died, or has asked for it.
func (v *vcenter) switchOff(ref types.ManagedObjectReference) error {
	vm, ok := v.registry.Get(ref).(*scriptedVM)
	if !ok {
		return errors.New("the VM is gone")
	}
	c := *v.model.Service.Context
	if _, fault := vm.power(&c, false); fault != nil {
		return fmt.Errorf("power off: %T", fault)
	}
	return nil
}

// guests returns the clones there are, by name.
func (v *vcenter) guests() []*guest {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.SortedFunc(maps.Values(v.clones), func(a, b *guest) int { return strings.Compare(a.name, b.name) })
}

func (v *vcenter) close() { v.model.Remove() }

// mostClones returns how many clones have run at once so far, at most.
func (v *vcenter) mostClones() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.most
}
