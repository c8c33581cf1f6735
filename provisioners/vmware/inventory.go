package vmware

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"berth/reservation"
)

// remembered is how long a name that was found is not looked up again. A name that stops being right earlier shows
// when the clone is refused, and everything is then looked up anew.
const remembered = 5 * time.Minute

// MissingError says that a vCenter does not have what the catalog names.
type MissingError struct {
	Site   string
	Kind   string // template, snapshot, folder, ...
	Name   string
	Remedy string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("site %s has no %s %q: %s", e.Site, e.Kind, e.Name, e.Remedy)
}

// inventory finds what the catalog names, and remembers it.
type inventory struct {
	site    Site
	session *session
	memory  *memory
}

// datacenter is where a site's names are looked up.
type datacenter struct {
	object *object.Datacenter
	vms    types.ManagedObjectReference // its VM folder
}

// template is a VM that images are cloned from.
type template struct {
	name      string
	ref       types.ManagedObjectReference
	host      types.ManagedObjectReference
	pool      *types.ManagedObjectReference // a template proper has none
	hardware  types.VirtualHardware
	snapshots []types.VirtualMachineSnapshotTree
}

func (i *inventory) datacenter(ctx context.Context) (datacenter, error) {
	return remember(ctx, i.memory, "datacenter", func() (datacenter, error) {
		client, err := i.session.connect(ctx)
		if err != nil {
			return datacenter{}, err
		}
		dc, err := find.NewFinder(client, false).DatacenterOrDefault(ctx, i.site.Datacenter)
		if err != nil {
			remedy := "correct the site's datacenter"
			if i.site.Datacenter == "" {
				remedy = "name the site's datacenter: it has not exactly one"
			}
			return datacenter{}, i.failed("datacenter", i.site.Datacenter, remedy, err)
		}
		folders, err := dc.Folders(ctx)
		if err != nil {
			return datacenter{}, i.failed("datacenter", dc.InventoryPath, "", err)
		}
		return datacenter{object: dc, vms: folders.VmFolder.Reference()}, nil
	})
}

// failed turns the finder's answer for a name that is not there, or is there twice, into one that says what to do.
func (i *inventory) failed(kind, name, remedy string, err error) error {
	if _, ok := unresolved(err); ok {
		return fmt.Errorf("%w (%w)", &MissingError{Site: i.site.Name, Kind: kind, Name: name, Remedy: remedy}, err)
	}
	return fmt.Errorf("site %s: look up %s %q: %w", i.site.Name, kind, name, err)
}

// named refuses what the finder found under a name that looks like a managed object's ID ("host-21", "vm-12"): it takes
// the ID for the name, and finds another object.
func (i *inventory) named(kind, name, inventoryPath string) error {
	if strings.Contains(name, "/") || path.Base(inventoryPath) == name {
		return nil
	}
	return &MissingError{Site: i.site.Name, Kind: kind + " called", Name: name,
		Remedy: "the name looks like an ID in the vCenter, there that of " + inventoryPath + ": write the inventory path instead"}
}

func (i *inventory) finder(ctx context.Context) (*find.Finder, *vim25.Client, datacenter, error) {
	dc, err := i.datacenter(ctx)
	if err != nil {
		return nil, nil, dc, err
	}
	client, err := i.session.connect(ctx)
	if err != nil {
		return nil, nil, dc, err
	}
	return find.NewFinder(client, false).SetDatacenter(dc.object), client, dc, nil
}

func (i *inventory) template(ctx context.Context, name string) (template, error) {
	return remember(ctx, i.memory, "template "+name, func() (template, error) {
		finder, client, _, err := i.finder(ctx)
		if err != nil {
			return template{}, err
		}
		vm, err := finder.VirtualMachine(ctx, name)
		if err != nil {
			return template{}, i.failed("template", name, "put it there, or correct the image's source; "+
				"write its inventory path if the name stands more than once", err)
		}
		if err := i.named("template", name, vm.InventoryPath); err != nil {
			return template{}, err
		}
		var read mo.VirtualMachine
		properties := []string{"snapshot", "config.hardware", "runtime.host", "resourcePool"}
		if err := property.DefaultCollector(client).RetrieveOne(ctx, vm.Reference(), properties, &read); err != nil {
			return template{}, fmt.Errorf("site %s: read template %s: %w", i.site.Name, name, err)
		}
		found := template{name: name, ref: vm.Reference(), pool: read.ResourcePool}
		if read.Config != nil {
			found.hardware = read.Config.Hardware
		}
		if read.Snapshot != nil {
			found.snapshots = read.Snapshot.RootSnapshotList
		}
		if read.Runtime.Host != nil {
			found.host = *read.Runtime.Host
		}
		return found, nil
	})
}

// snapshot returns the template's snapshot of a name. The newest of two of one name would be a guess, so it is refused.
func (i *inventory) snapshot(t template, name string) (types.ManagedObjectReference, error) {
	var found, all []string
	var ref types.ManagedObjectReference
	var walk func([]types.VirtualMachineSnapshotTree)
	walk = func(trees []types.VirtualMachineSnapshotTree) {
		for _, tree := range trees {
			all = append(all, tree.Name)
			if tree.Name == name {
				found = append(found, tree.Snapshot.Value)
				ref = tree.Snapshot
			}
			walk(tree.ChildSnapshotList)
		}
	}
	walk(t.snapshots)
	switch {
	case len(found) == 1:
		return ref, nil
	case len(found) > 1:
		return ref, &MissingError{Site: i.site.Name, Kind: "single snapshot of template " + t.name + " called", Name: name,
			Remedy: fmt.Sprintf("it has %d of that name (%s): rename all but one", len(found), strings.Join(found, ", "))}
	case len(all) == 0:
		return ref, &MissingError{Site: i.site.Name, Kind: "snapshot of template " + t.name + " called", Name: name, Remedy: "the template has no snapshot at all: take one"}
	default:
		return ref, &MissingError{Site: i.site.Name, Kind: "snapshot of template " + t.name + " called", Name: name,
			Remedy: "take it, or name one that there is: " + strings.Join(all, ", ")}
	}
}

// folder returns the VM folder of a name: "" or "vm" is the datacenter's own, a relative path is under it.
func (i *inventory) folder(ctx context.Context, name string) (types.ManagedObjectReference, error) {
	return remember(ctx, i.memory, "folder "+name, func() (types.ManagedObjectReference, error) {
		_, client, dc, err := i.finder(ctx)
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		under := strings.TrimPrefix(strings.Trim(name, "/"), "vm/")
		if under == "" || under == "vm" {
			return dc.vms, nil
		}
		inventoryPath := path.Join(dc.object.InventoryPath, "vm", under)
		if strings.HasPrefix(name, "/") {
			inventoryPath = name
		}
		ref, err := object.NewSearchIndex(client).FindByInventoryPath(ctx, inventoryPath)
		if err != nil {
			return types.ManagedObjectReference{}, i.failed("folder", name, "", err)
		}
		if ref == nil || ref.Reference().Type != "Folder" {
			return types.ManagedObjectReference{}, &MissingError{Site: i.site.Name, Kind: "VM folder", Name: inventoryPath,
				Remedy: "make it, or correct the computer's placement"}
		}
		return ref.Reference(), nil
	})
}

func (i *inventory) host(ctx context.Context, name string) (types.ManagedObjectReference, error) {
	return remember(ctx, i.memory, "host "+name, func() (types.ManagedObjectReference, error) {
		finder, _, _, err := i.finder(ctx)
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		host, err := finder.HostSystem(ctx, name)
		if err != nil {
			return types.ManagedObjectReference{}, i.failed("host", name, "correct the computer's placement", err)
		}
		return host.Reference(), i.named("host", name, host.InventoryPath)
	})
}

func (i *inventory) datastore(ctx context.Context, name string) (types.ManagedObjectReference, error) {
	return remember(ctx, i.memory, "datastore "+name, func() (types.ManagedObjectReference, error) {
		finder, _, _, err := i.finder(ctx)
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		datastore, err := finder.Datastore(ctx, name)
		if err != nil {
			return types.ManagedObjectReference{}, i.failed("datastore", name, "correct the computer's placement", err)
		}
		return datastore.Reference(), i.named("datastore", name, datastore.InventoryPath)
	})
}

func (i *inventory) pool(ctx context.Context, name string) (types.ManagedObjectReference, error) {
	return remember(ctx, i.memory, "pool "+name, func() (types.ManagedObjectReference, error) {
		finder, _, _, err := i.finder(ctx)
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		pools, err := finder.ResourcePoolList(ctx, name)
		if err != nil {
			return types.ManagedObjectReference{}, i.failed("resource pool", name, "correct the computer's placement", err)
		}
		if len(pools) > 1 {
			paths := make([]string, len(pools))
			for n, pool := range pools {
				paths[n] = pool.InventoryPath
			}
			return types.ManagedObjectReference{}, &MissingError{Site: i.site.Name, Kind: "single resource pool called", Name: name,
				Remedy: "write one of " + strings.Join(paths, ", ")}
		}
		return pools[0].Reference(), i.named("resource pool", name, pools[0].InventoryPath)
	})
}

// poolOf returns the root pool of the cluster or the standalone host that a host belongs to.
func (i *inventory) poolOf(ctx context.Context, host types.ManagedObjectReference) (types.ManagedObjectReference, error) {
	return remember(ctx, i.memory, "pool of "+host.Value, func() (types.ManagedObjectReference, error) {
		client, err := i.session.connect(ctx)
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		pool, err := object.NewHostSystem(client, host).ResourcePool(ctx)
		if err != nil {
			return types.ManagedObjectReference{}, fmt.Errorf("site %s: look up the resource pool of %s: %w", i.site.Name, host.Value, err)
		}
		return pool.Reference(), nil
	})
}

// network returns what an interface is connected with: a standard port group, a distributed one or an opaque network.
func (i *inventory) network(ctx context.Context, name string) (types.BaseVirtualDeviceBackingInfo, error) {
	return remember(ctx, i.memory, "network "+name, func() (types.BaseVirtualDeviceBackingInfo, error) {
		finder, _, _, err := i.finder(ctx)
		if err != nil {
			return nil, err
		}
		network, err := finder.Network(ctx, name)
		if err != nil {
			return nil, i.failed("network", name, "correct the computer's networks; write the inventory path if the name stands more than once", err)
		}
		if err := i.named("network", name, network.GetInventoryPath()); err != nil {
			return nil, err
		}
		backing, err := network.EthernetCardBackingInfo(ctx)
		if err != nil {
			return nil, fmt.Errorf("site %s: connect an interface with network %q: %w", i.site.Name, name, err)
		}
		return backing, nil
	})
}

// memory remembers what was looked up. Two who look for the same thing share one look.
type memory struct {
	mu      sync.Mutex
	entries map[string]*memo
}

type memo struct {
	lock  chan struct{} // cap 1
	value any
	until time.Time
}

func newMemory() *memory { return &memory{entries: map[string]*memo{}} }

// forget makes everything be looked up anew.
func (m *memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = map[string]*memo{}
}

func (m *memory) entry(key string) *memo {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[key]
	if !ok {
		e = &memo{lock: make(chan struct{}, 1)}
		m.entries[key] = e
	}
	return e
}

// remember returns what key stands for, and looks it up if that is not known. Errors are not remembered.
func remember[T any](ctx context.Context, m *memory, key string, look func() (T, error)) (T, error) {
	var zero T
	e := m.entry(key)
	select {
	case <-ctx.Done():
		return zero, ctx.Err()
	case e.lock <- struct{}{}:
	}
	defer func() { <-e.lock }()
	if time.Now().Before(e.until) {
		return e.value.(T), nil
	}
	value, err := look()
	if err != nil {
		return zero, err
	}
	e.value, e.until = value, time.Now().Add(remembered)
	return value, nil
}

// source checks the request's image source and finds it.
func (m *Module) source(ctx context.Context, vc *vcenter, image reservation.Image) (template, *types.ManagedObjectReference, error) {
	source := image.Sources[Type]
	if err := m.ValidateSource(source); err != nil {
		return template{}, nil, reservation.Fail("image "+image.String()+" cannot be cloned", err)
	}
	t, err := vc.inventory.template(ctx, source[sourceTemplate])
	if err != nil || source[sourceSnapshot] == "" {
		return t, nil, err
	}
	snapshot, err := vc.inventory.snapshot(t, source[sourceSnapshot])
	if errors.As(err, new(*MissingError)) {
		// It may have been taken since the template was looked up.
		vc.inventory.memory.forget()
		if t, err = vc.inventory.template(ctx, source[sourceTemplate]); err == nil {
			snapshot, err = vc.inventory.snapshot(t, source[sourceSnapshot])
		}
	}
	if err != nil {
		return t, nil, err
	}
	return t, &snapshot, nil
}
