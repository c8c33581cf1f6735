package vmware_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"berth/provisioners"
	"berth/provisioners/vmware"
	"berth/reservation"
)

func TestLoad(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, *lab)
	}{
		{"a first try loads a linked clone and powers it on", loadAFirstTryLoadsALinkedCloneAndPowersItOn},
		{"a full clone has disks of its own", loadAFullCloneHasDisksOfItsOwn},
		{"a guest that brings its own host key is handed none", loadAGuestThatBringsItsOwnHostKeyIsHandedNone},
		{"the catalog's hardware and placement reach the clone", loadTheCatalogsHardwareAndPlacementReachTheClone},
		{"the template is unchanged by its clones' interfaces", loadTheTemplateIsUnchangedByItsClonesInterfaces},
		{"a reload removes the earlier VM", loadAReloadRemovesTheEarlierVM},
		{"a VM of this very attempt is kept", loadAVMOfThisVeryAttemptIsKept},
		{"a late worker touches nothing", loadALateWorkerTouchesNothing},
		{"a worker that is not confirmed touches nothing", loadAWorkerThatIsNotConfirmedTouchesNothing},
		{"the template is never removed", loadTheTemplateIsNeverRemoved},
		{"what the catalog names and the vCenter lacks is a fail that says so", loadWhatTheCatalogNamesAndTheVCenterLacksIsAFailThatSaysSo},
		{"a site needs no name when there is only one", loadASiteNeedsNoNameWhenThereIsOnlyOne},
		{"a snapshot that is taken later is found", loadASnapshotThatIsTakenLaterIsFound},
		{"the first clones fail", loadTheFirstClonesFail},
		{"a fault that ends a clone is said once and then cloned again", loadAFaultThatEndsACloneIsSaidOnceAndThenClonedAgain},
		{"a VM that the clone left off is powered on once", loadAVMThatTheCloneLeftOffIsPoweredOnOnce},
		{"a duplicate name makes it look again", loadADuplicateNameMakesItLookAgain},
		{"a template that was made anew is found again", loadATemplateThatWasMadeAnewIsFoundAgain},
		{"a load costs few calls", loadALoadCostsFewCalls},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.renew(t)
			c.test(t, l)
		})
	}
}

func loadAFirstTryLoadsALinkedCloneAndPowersItOn(t *testing.T, l *lab) {
	m := l.module()
	report := newReporter()
	loaded, err := m.Load(within(t, 10*time.Second), request("vm-01"), report)
	require.NoError(t, err)

	vm := l.vm("vm-01")
	require.NotNil(t, vm)
	require.Equal(t, vm.Self.Value, loaded.Reference)
	require.Equal(t, types.VirtualMachinePowerStatePoweredOn, vm.Runtime.PowerState)
	require.Equal(t, "res-vm-01/run-1/1", extra(vm, vmware.KeyMark))
	require.Equal(t, "res-vm-01", extra(vm, vmware.KeyReservation))
	require.Equal(t, "debian12-r3", extra(vm, vmware.KeyImage))
	require.Equal(t, "vm-01", extra(vm, vmware.KeyHostname))
	require.Contains(t, extra(vm, vmware.KeyHostKey), "OPENSSH PRIVATE KEY")
	require.Equal(t, extra(vm, vmware.KeyHostKeyPublic), loaded.HostKey)
	require.Contains(t, loaded.HostKey, "ssh-ed25519 ")
	require.Equal(t, 1, l.cloned("vm-01"))
	require.Zero(t, l.poweredOn(vm.Self.Value), "the clone powers itself on")

	spec := l.specs["vm-01"].Spec
	require.NotNil(t, spec.Snapshot)
	template := l.vm(templateName)
	require.Equal(t, template.Snapshot.RootSnapshotList[0].Snapshot, *spec.Snapshot)
	parent := l.disks(vm)[0].Parent
	require.NotNil(t, parent, "a linked clone's disk grows from the template's")
	require.Equal(t, l.disks(template)[0].FileName, parent.FileName)
	require.NotEqual(t, parent.FileName, l.disks(vm)[0].FileName)
}

func loadAFullCloneHasDisksOfItsOwn(t *testing.T, l *lab) {
	_, err := l.module().Load(within(t, 10*time.Second), request("vm-01", func(r *provisioners.Request) {
		r.Reservation.Image.Sources[vmware.Type] = map[string]string{"template": templateName, "clone": "full"}
	}), newReporter())
	require.NoError(t, err)
	require.Nil(t, l.disks(l.vm("vm-01"))[0].Parent)
	spec := l.specs["vm-01"].Spec
	require.Equal(t, string(types.VirtualMachineRelocateDiskMoveOptionsMoveAllDiskBackingsAndDisallowSharing), spec.Location.DiskMoveType)
	require.Nil(t, spec.Snapshot)
}

func loadAGuestThatBringsItsOwnHostKeyIsHandedNone(t *testing.T, l *lab) {
	m := l.module()
	r := request("vm-01", func(r *provisioners.Request) { r.Reservation.Image.Control.HostKey = reservation.HostKeyFirst })
	loaded, err := m.Load(within(t, 10*time.Second), r, newReporter())
	require.NoError(t, err)
	require.Empty(t, loaded.HostKey)
	vm := l.vm("vm-01")
	require.Empty(t, extra(vm, vmware.KeyHostKey))
	require.Empty(t, extra(vm, vmware.KeyHostKeyPublic))
	l.reset()
	require.NoError(t, m.AfterResponse(within(t, 5*time.Second), r, newReporter()))
	require.Zero(t, l.called("ReconfigVM_Task"))
}

func loadTheCatalogsHardwareAndPlacementReachTheClone(t *testing.T, l *lab) {
	_, err := l.module().Load(within(t, 10*time.Second), request("vm-01", func(r *provisioners.Request) {
		c := &r.Reservation.Computer
		c.CPUs, c.MemoryMiB = 3, 1536
		c.MACs = []string{"00:50:56:00:00:0A", "00:50:56:00:00:0B"}
		c.Networks = []string{"DC0_DVPG0", "VM Network"} // a distributed and a standard port group
		c.Placement = map[string]string{"folder": "vm", "resource_pool": "DC0_C0/Resources", "datastore": "LocalDS_0", "host": "DC0_C0_H1"}
	}), newReporter())
	require.NoError(t, err)
	vm := l.vm("vm-01")
	require.EqualValues(t, 3, vm.Config.Hardware.NumCPU)
	require.EqualValues(t, 1536, vm.Config.Hardware.MemoryMB)
	var cards []*types.VirtualEthernetCard
	for _, device := range vm.Config.Hardware.Device {
		if card, ok := device.(types.BaseVirtualEthernetCard); ok {
			cards = append(cards, card.GetVirtualEthernetCard())
		}
	}
	require.Len(t, cards, 2, "the template's interface was changed and the second one added")
	require.Equal(t, "00:50:56:00:00:0a", cards[0].MacAddress)
	require.Equal(t, "manual", cards[0].AddressType)
	require.IsType(t, &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{}, cards[0].Backing)
	require.Equal(t, "00:50:56:00:00:0b", cards[1].MacAddress)
	require.Equal(t, "VM Network", cards[1].Backing.(*types.VirtualEthernetCardNetworkBackingInfo).DeviceName)
	require.True(t, cards[1].Connectable.StartConnected)

	host := l.registry.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	require.Equal(t, "DC0_C0_H1", host.Name)
	location := l.specs["vm-01"].Spec.Location
	require.Equal(t, "DC0_C0_H1", l.registry.Get(*location.Host).(*simulator.HostSystem).Name)
	require.Equal(t, "LocalDS_0", l.registry.Get(*location.Datastore).(*simulator.Datastore).Name)
	require.Equal(t, "Resources", l.registry.Get(*location.Pool).(mo.Entity).Entity().Name)
}

func loadTheTemplateIsUnchangedByItsClonesInterfaces(t *testing.T, l *lab) {
	m := l.module()
	for _, computer := range []string{"vm-01", "vm-02"} {
		_, err := m.Load(within(t, 10*time.Second), request(computer, func(r *provisioners.Request) {
			if computer == "vm-01" {
				r.Reservation.Computer.MACs = []string{"00:50:56:00:00:01"}
			} else {
				r.Reservation.Computer.Networks = []string{"DC0_DVPG0"}
			}
		}), newReporter())
		require.NoError(t, err)
	}
	change := l.specs["vm-02"].Spec.Config.DeviceChange[0].GetVirtualDeviceConfigSpec()
	require.NotEqual(t, "00:50:56:00:00:01", change.Device.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard().MacAddress)
}

func loadAReloadRemovesTheEarlierVM(t *testing.T, l *lab) {
	m := l.module()
	for name, config := range map[string][]string{
		"of the attempt before":          {vmware.KeyMark, "res-vm-01/run-1/1"},
		"of an earlier reservation":      {vmware.KeyMark, "other/run-0/3"},
		"of an earlier run of this name": {vmware.KeyMark, "res-vm-01/run-0/2"},
		"that bears no mark at all":      nil,
		"with an unreadable mark":        {vmware.KeyMark, "scribble"},
	} {
		t.Run(name, func(t *testing.T) {
			l.clear("vm-01")
			earlier := l.stray("vm-01", config...)
			report := newReporter()
			confirmed := 0
			report.confirm = func() error { confirmed++; return nil }
			loaded, err := m.Load(within(t, 10*time.Second), request("vm-01", attempt(2)), report)
			require.NoError(t, err)
			require.NotEqual(t, earlier.Value, loaded.Reference)
			require.Nil(t, l.registry.Get(earlier), "the earlier VM is destroyed")
			require.Equal(t, "res-vm-01/run-1/2", extra(l.vm("vm-01"), vmware.KeyMark))
			require.Equal(t, 3, confirmed, "before powering off, destroying and cloning")
			require.True(t, report.saw("remove earlier vm: "+earlier.Value))
		})
	}
}

func loadAVMOfThisVeryAttemptIsKept(t *testing.T, l *lab) {
	m := l.module()
	first, err := m.Load(within(t, 10*time.Second), request("vm-01"), newReporter())
	require.NoError(t, err)
	again, err := m.Load(within(t, 10*time.Second), request("vm-01"), newReporter())
	require.NoError(t, err)
	require.Equal(t, first, again, "the same VM and the same host key")
	require.Equal(t, 1, l.cloned("vm-01"))
}

func loadALateWorkerTouchesNothing(t *testing.T, l *lab) {
	ref := l.stray("vm-01", vmware.KeyMark, "res-vm-01/run-1/2")
	_, err := l.module().Load(within(t, 10*time.Second), request("vm-01"), newReporter())
	var late *vmware.LateError
	require.ErrorAs(t, err, &late)
	require.Empty(t, reservation.VerdictOf(err), "no verdict")
	require.Equal(t, ref, l.vm("vm-01").Self)
	require.Equal(t, types.VirtualMachinePowerStatePoweredOn, l.vm("vm-01").Runtime.PowerState)
	require.Zero(t, l.cloned("vm-01"))
}

func loadAWorkerThatIsNotConfirmedTouchesNothing(t *testing.T, l *lab) {
	ref := l.stray("vm-01", vmware.KeyMark, "other/run-0/1")
	stale := errors.New("another worker has taken over")
	report := newReporter()
	report.confirm = func() error { return stale }
	m := l.module()
	_, err := m.Load(within(t, 10*time.Second), request("vm-01"), report)
	require.ErrorIs(t, err, stale)
	require.Equal(t, ref, l.vm("vm-01").Self)
	require.Equal(t, types.VirtualMachinePowerStatePoweredOn, l.vm("vm-01").Runtime.PowerState)

	_, err = m.Load(within(t, 10*time.Second), request("vm-02"), report)
	require.ErrorIs(t, err, stale)
	require.Zero(t, l.cloned("vm-02"))
}

func loadTheTemplateIsNeverRemoved(t *testing.T, l *lab) {
	_, err := l.module().Load(within(t, 10*time.Second), request(templateName), newReporter())
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), err)
	require.ErrorContains(t, err, "rename")
	require.NotNil(t, l.vm(templateName))
}

func loadWhatTheCatalogNamesAndTheVCenterLacksIsAFailThatSaysSo(t *testing.T, l *lab) {
	m := l.module()
	source := func(s map[string]string) func(*provisioners.Request) {
		return func(r *provisioners.Request) { r.Reservation.Image.Sources[vmware.Type] = s }
	}
	place := func(p map[string]string) func(*provisioners.Request) {
		return func(r *provisioners.Request) { r.Reservation.Computer.Placement = p }
	}
	for name, c := range map[string]struct {
		change func(*provisioners.Request)
		want   []string
	}{
		"template":      {source(map[string]string{"template": "nix", "snapshot": "r1"}), []string{"site lab", "template", `"nix"`}},
		"snapshot":      {source(map[string]string{"template": templateName, "snapshot": "r9"}), []string{"site lab", templateName, `"r9"`, snapshotName}},
		"folder":        {place(map[string]string{"folder": "nowhere"}), []string{"site lab", "/DC0/vm/nowhere"}},
		"resource pool": {place(map[string]string{"resource_pool": "nix"}), []string{"site lab", `"nix"`}},
		"two pools":     {place(map[string]string{"resource_pool": "Resources"}), []string{"DC0_C0/Resources", "DC0_H0/Resources"}},
		"datastore":     {place(map[string]string{"datastore": "nix"}), []string{"site lab", "datastore", `"nix"`}},
		"host":          {place(map[string]string{"host": "nix"}), []string{"site lab", "host", `"nix"`}},
		"network": {func(r *provisioners.Request) { r.Reservation.Computer.Networks = []string{"nix"} },
			[]string{"site lab", "network", `"nix"`}},
		"site": {func(r *provisioners.Request) { r.Reservation.Computer.Site = "other" }, []string{"computer.site", `"other"`, "lab"}},
		"network for an added interface": {func(r *provisioners.Request) {
			r.Reservation.Computer.MACs = []string{"00:50:56:00:00:01", "00:50:56:00:00:02"}
		}, []string{"computer.networks[1]"}},
		"datastore by an ID": {place(map[string]string{"datastore": l.datastoreID()}), []string{"LocalDS_0", "inventory path"}},
		"unknown placement":  {place(map[string]string{"rack": "7"}), []string{"computer.placement.rack"}},
		"bad source":         {source(map[string]string{"template": templateName}), []string{"image.sources.vmware.snapshot"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := m.Load(within(t, 10*time.Second), request("vm-01", c.change), newReporter())
			require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), err)
			for _, text := range c.want {
				require.ErrorContains(t, err, text)
			}
			require.Nil(t, l.vm("vm-01"))
		})
	}
}

func loadASiteNeedsNoNameWhenThereIsOnlyOne(t *testing.T, l *lab) {
	_, err := l.module().Load(within(t, 10*time.Second), request("vm-01", func(r *provisioners.Request) { r.Reservation.Computer.Site = "" }), newReporter())
	require.NoError(t, err)
}

func loadASnapshotThatIsTakenLaterIsFound(t *testing.T, l *lab) {
	m := l.module()
	r := request("vm-01")
	_, err := m.Load(within(t, 10*time.Second), r, newReporter())
	require.NoError(t, err)
	l.snapshot("r4")
	r2 := request("vm-02", func(r *provisioners.Request) { r.Reservation.Image.Sources[vmware.Type]["snapshot"] = "r4" })
	_, err = m.Load(within(t, 10*time.Second), r2, newReporter())
	require.NoError(t, err, "although the template was remembered without it")
}

func loadTheFirstClonesFail(t *testing.T, l *lab) {
	m := l.module()
	for name, c := range map[string]struct {
		fault   types.BaseMethodFault
		verdict reservation.Verdict
	}{
		"for want of memory":      {&types.InsufficientMemoryResourcesFault{}, reservation.VerdictReload},
		"for want of disk space":  {&types.NoDiskSpace{Datastore: "LocalDS_0"}, reservation.VerdictFail},
		"for want of a privilege": {&types.NoPermission{PrivilegeId: "VirtualMachine.Provisioning.Clone", Object: &types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-1"}}, reservation.VerdictFail},
		"because of a hiccup":     {&types.SystemErrorFault{Reason: "hiccup"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l.clear("vm-01")
			l.refuse("CloneVM_Task", 2, c.fault)
			report := newReporter()
			for range 2 {
				_, err := m.Load(within(t, 10*time.Second), request("vm-01"), report)
				require.Error(t, err)
				require.Equal(t, c.verdict, reservation.VerdictOf(err), err)
				require.ErrorContains(t, err, "site lab: linked clone of debian12-template at r3 to vm-01")
			}
			_, err := m.Load(within(t, 10*time.Second), request("vm-01"), report)
			require.NoError(t, err)
			require.Equal(t, 1, l.cloned("vm-01"))
		})
	}
}

func loadAFaultThatEndsACloneIsSaidOnceAndThenClonedAgain(t *testing.T, l *lab) {
	m := l.module()
	letGo := l.holdClones()
	report := newReporter()
	done := make(chan error, 1)
	ctx := within(t, 10*time.Second)
	go func() {
		_, err := m.Load(ctx, request("vm-01"), report)
		done <- err
	}()
	l.eventually("the clone runs", func() bool { return strings.HasPrefix(report.Kept("clone"), "task-") })
	// An operator cancels the task.
	task := types.ManagedObjectReference{Type: "Task", Value: report.Kept("clone")}
	require.NoError(t, cancelTask(t.Context(), l, task))
	err := <-done
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(err), err)
	letGo()
	_, err = m.Load(ctx, request("vm-01"), report)
	require.NoError(t, err)
	require.Equal(t, 2, l.cloned("vm-01"))
}

func loadAVMThatTheCloneLeftOffIsPoweredOnOnce(t *testing.T, l *lab) {
	m := l.module()
	ref := l.stray("vm-01", vmware.KeyMark, "res-vm-01/run-1/1", vmware.KeyHostKeyPublic, "ssh-ed25519 AAAA vm-01")
	powerOff(l, ref)
	report := newReporter()
	loaded, err := m.Load(within(t, 10*time.Second), request("vm-01"), report)
	require.NoError(t, err)
	require.Equal(t, loadedAs(ref, "ssh-ed25519 AAAA vm-01"), loaded, "the public host key is read from the VM")
	require.Equal(t, 1, l.poweredOn(ref.Value))
	require.Zero(t, l.cloned("vm-01"))
	require.Equal(t, types.VirtualMachinePowerStatePoweredOn, l.vm("vm-01").Runtime.PowerState)
}

func loadADuplicateNameMakesItLookAgain(t *testing.T, l *lab) {
	m := l.module()
	report := newReporter()
	var once bool
	var ref types.ManagedObjectReference
	report.on = func(_ int, call string) {
		if call == "confirm" && !once {
			once = true
			// Between our look and our clone somebody else makes a VM of that name.
			ref = l.stray("vm-01")
		}
	}
	loaded, err := m.Load(within(t, 10*time.Second), request("vm-01"), report)
	require.NoError(t, err)
	require.NotEqual(t, ref.Value, loaded.Reference)
	require.Equal(t, "res-vm-01/run-1/1", extra(l.vm("vm-01"), vmware.KeyMark))
	require.Equal(t, 2, l.cloned("vm-01"), "the first one found the name taken")
}

func loadATemplateThatWasMadeAnewIsFoundAgain(t *testing.T, l *lab) {
	m := l.module()
	_, err := m.Load(within(t, 10*time.Second), request("vm-01"), newReporter())
	require.NoError(t, err)
	// Whatever is remembered of the template's folder, pool or snapshot has gone; the first call says so.
	l.refuse("CloneVM_Task", 1, &types.ManagedObjectNotFound{Obj: l.template.Reference()})
	_, err = m.Load(within(t, 10*time.Second), request("vm-02"), newReporter())
	require.NoError(t, err)
	require.Equal(t, 1, l.cloned("vm-02"))
}

func loadALoadCostsFewCalls(t *testing.T, l *lab) {
	counts := map[string]int{}
	calls := make(chan string, 1000)
	m := l.module(func(o *vmware.Options) { o.Observe = func(_, method string) { calls <- method } })
	_, err := m.Load(within(t, 10*time.Second), request("vm-00"), newReporter())
	require.NoError(t, err)
	const loads = 10
	for drained := false; !drained; {
		select {
		case <-calls:
		default:
			drained = true
		}
	}
	for i := range loads {
		_, err := m.Load(within(t, 10*time.Second), request("vm-1"+string(rune('0'+i))), newReporter())
		require.NoError(t, err)
	}
	total := 0
	for len(calls) > 0 {
		counts[<-calls]++
		total++
	}
	t.Logf("%.1f calls a load: %v over %d loads, one at a time", float64(total)/loads, counts, loads)
	require.Equal(t, loads, counts["FindChild"])
	require.Equal(t, loads, counts["CloneVM_Task"])
	require.Equal(t, loads, counts["ModifyListView"])
	require.Equal(t, loads, counts["RetrievePropertiesEx"])
	require.Zero(t, counts["Login"])
	require.LessOrEqual(t, total, 10*loads)
}
