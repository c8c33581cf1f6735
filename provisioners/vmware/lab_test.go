package vmware_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"berth/provisioners"
	"berth/provisioners/vmware"
	"berth/reservation"
)

const (
	templateName = "debian12-template"
	snapshotName = "r3"
	user         = "berth@vsphere.local"
	password     = "correct horse"
)

// creating is held while a model is created: vcsim sets package variables of its own then.
var creating sync.Mutex

// lab is a simulated vCenter (vcsim) with a template that has a snapshot.
//
// vcsim's handlers and tasks race with each other in places, so world lets one call in at a time and keeps it until the
// task that it began is done. Only the wait for updates and the time that a clone takes are outside of it.
type lab struct {
	world    sync.Mutex
	t        *testing.T
	model    *simulator.Model
	service  *simulator.Service
	registry *simulator.Registry
	client   *govmomi.Client // of the lab itself, past every front
	template *object.VirtualMachine
	pool     types.ManagedObjectReference
	folder   *object.Folder
	slow     *slowTemplate

	mu     sync.Mutex
	calls  map[string]int // SOAP calls that reached the vCenter, by method
	power  map[string]int // PowerOnVM_Task, by VM
	clones map[string]int // CloneVM_Task, by name
	specs  map[string]types.CloneVM_Task
	busy   int           // clones that run now
	most   int           // and the most that ever did
	hold   chan struct{} // clones wait for it
	takes  time.Duration // or take so long
	faults []*injected
	cancel map[string]chan struct{} // clones that can be cancelled, by task
}

func newLab(t *testing.T) *lab {
	t.Helper()
	model := simulator.VPX()
	model.Machine, model.ClusterHost, model.Autostart = 1, 2, false
	creating.Lock()
	err := model.Create()
	creating.Unlock()
	require.NoError(t, err)
	l := &lab{
		t: t, model: model, service: model.Service, registry: model.Service.Context.Map,
		calls: map[string]int{}, power: map[string]int{}, clones: map[string]int{}, specs: map[string]types.CloneVM_Task{}, cancel: map[string]chan struct{}{},
	}
	l.registry.Handler = l.see
	model.Service.TLS = new(tls.Config)
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(user, password)}
	server := model.Service.NewServer()
	t.Cleanup(func() {
		server.Listener.Close()
		l.world.Lock()
		defer l.world.Unlock()
		model.Remove()
	})
	ctx := context.Background()
	own, err := url.Parse(l.front().server.URL + "/sdk")
	require.NoError(t, err)
	own.User = url.UserPassword(user, password)
	client, err := govmomi.NewClient(ctx, own, true)
	require.NoError(t, err)
	l.client = client

	finder := find.NewFinder(client.Client, false)
	dc, err := finder.DatacenterOrDefault(ctx, "")
	require.NoError(t, err)
	finder.SetDatacenter(dc)
	vm, err := finder.VirtualMachine(ctx, "DC0_C0_RP0_VM0")
	require.NoError(t, err)
	l.template = vm
	pool, err := finder.ResourcePool(ctx, "DC0_C0/Resources")
	require.NoError(t, err)
	l.pool = pool.Reference()
	l.folder, err = finder.FolderOrDefault(ctx, "")
	require.NoError(t, err)
	finish := func(task *object.Task, err error) {
		t.Helper()
		require.NoError(t, err)
		require.NoError(t, task.Wait(ctx))
	}
	finish(vm.Rename(ctx, templateName))
	l.snapshot(snapshotName)
	require.NoError(t, vm.MarkAsTemplate(ctx))
	l.slow = &slowTemplate{VirtualMachine: l.registry.Get(vm.Reference()).(*simulator.VirtualMachine), lab: l}
	l.registry.Put(l.slow)
	l.reset()
	return l
}

// snapshot takes a snapshot of the template.
func (l *lab) snapshot(name string) {
	l.t.Helper()
	if l.slow != nil {
		l.registry.Put(l.slow.VirtualMachine) // vcsim takes snapshots of its own type only
		defer l.registry.Put(l.slow)
	}
	task, err := l.template.CreateSnapshot(context.Background(), name, "", false, false)
	require.NoError(l.t, err)
	require.NoError(l.t, task.Wait(context.Background()))
}

// see counts every call that reaches the vCenter.
func (l *lab) see(_ *simulator.Context, method *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.faults {
		if f.method == method.Name && f.times > 0 {
			f.times--
			return nil, f.fault
		}
	}
	l.calls[method.Name]++
	switch method.Name {
	case "PowerOnVM_Task":
		l.power[method.This.Value]++
	case "CancelTask":
		if cancelled, ok := l.cancel[method.This.Value]; ok {
			close(cancelled)
			delete(l.cancel, method.This.Value)
		}
	}
	return nil, nil
}

type injected struct {
	method string
	times  int
	fault  types.BaseMethodFault
}

// refuse makes the next calls of a method be answered with a fault. vcsim's own rules race with the wait for updates.
func (l *lab) refuse(method string, times int, fault types.BaseMethodFault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, &injected{method, times, fault})
}

func (l *lab) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.calls)
	l.most = l.busy
}

func (l *lab) called(method string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls[method]
}

func (l *lab) cloned(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clones[name]
}

func (l *lab) poweredOn(vm string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.power[vm]
}

func (l *lab) running() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busy
}

// holdClones makes clones run until the returned function is called.
func (l *lab) holdClones() (letGo func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hold := make(chan struct{})
	l.hold = hold
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.hold = nil
		close(hold)
	})
}

func (l *lab) clonesTake(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.takes = d
}

// eventually waits for a condition, and fails with what it was waiting for.
func (l *lab) eventually(what string, condition func() bool) {
	l.t.Helper()
	require.Eventually(l.t, condition, 10*time.Second, 2*time.Millisecond, what)
}

// vm returns the VM of a name, or nil. It fails if there are two.
func (l *lab) vm(name string) *mo.VirtualMachine {
	l.t.Helper()
	var found []types.ManagedObjectReference
	for _, entity := range l.registry.All("VirtualMachine") {
		l.registry.WithLock(&simulator.Context{}, entity.Reference(), func() {
			if entity.Entity().Name == name {
				found = append(found, entity.Reference())
			}
		})
	}
	if len(found) == 0 {
		return nil
	}
	require.Len(l.t, found, 1, "there must never be two VMs of one name")
	var read mo.VirtualMachine
	properties := []string{"name", "config", "runtime", "snapshot"}
	require.NoError(l.t, property.DefaultCollector(l.client.Client).RetrieveOne(context.Background(), found[0], properties, &read))
	return &read
}

func extra(vm *mo.VirtualMachine, key string) string {
	for _, option := range vm.Config.ExtraConfig {
		if option.GetOptionValue().Key == key {
			return option.GetOptionValue().Value.(string)
		}
	}
	return ""
}

func (l *lab) disks(vm *mo.VirtualMachine) []*types.VirtualDiskFlatVer2BackingInfo {
	var backings []*types.VirtualDiskFlatVer2BackingInfo
	for _, device := range vm.Config.Hardware.Device {
		if disk, ok := device.(*types.VirtualDisk); ok {
			backings = append(backings, disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo))
		}
	}
	return backings
}

// stray makes a VM of a name with extraConfig, powered on, as an earlier load or a person would have left it.
func (l *lab) stray(name string, config ...string) types.ManagedObjectReference {
	l.t.Helper()
	ctx := context.Background()
	var options []types.BaseOptionValue
	for i := 0; i < len(config); i += 2 {
		options = append(options, &types.OptionValue{Key: config[i], Value: config[i+1]})
	}
	ref := l.pool
	task, err := l.template.Clone(ctx, l.folder, name, types.VirtualMachineCloneSpec{
		Location: types.VirtualMachineRelocateSpec{Pool: &ref}, Config: &types.VirtualMachineConfigSpec{ExtraConfig: options}, PowerOn: true,
	})
	require.NoError(l.t, err)
	info, err := task.WaitForResult(ctx)
	require.NoError(l.t, err)
	l.mu.Lock()
	delete(l.clones, name)
	l.mu.Unlock()
	return info.Result.(types.ManagedObjectReference)
}

// clear removes the VM of a name, if there is one, and forgets its clones.
func (l *lab) clear(name string) {
	l.t.Helper()
	if vm := l.vm(name); vm != nil {
		if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			powerOff(l, vm.Self)
		}
		task, err := object.NewVirtualMachine(l.client.Client, vm.Self).Destroy(context.Background())
		require.NoError(l.t, err)
		require.NoError(l.t, task.Wait(context.Background()))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.clones, name)
}

// renew gives the lab to another test: with nothing but its template, and nothing counted.
func (l *lab) renew(t *testing.T) {
	l.t = t
	for _, entity := range l.registry.All("VirtualMachine") {
		var name string
		l.registry.WithLock(&simulator.Context{}, entity.Reference(), func() { name = entity.Entity().Name })
		if name != templateName {
			l.clear(name)
		}
	}
	l.reset()
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.clones)
	clear(l.specs)
	l.faults, l.hold, l.takes = nil, nil, 0
}

// expireSessions ends all sessions but the lab's own, as a vCenter does with idle ones.
func (l *lab) expireSessions() int {
	l.t.Helper()
	ctx := context.Background()
	var manager mo.SessionManager
	require.NoError(l.t, property.DefaultCollector(l.client.Client).RetrieveOne(ctx, *l.client.ServiceContent.SessionManager, nil, &manager))
	var others []string
	for _, s := range manager.SessionList {
		if s.Key != manager.CurrentSession.Key {
			others = append(others, s.Key)
		}
	}
	if len(others) > 0 {
		require.NoError(l.t, session.NewManager(l.client.Client).TerminateSession(ctx, others))
	}
	return len(others)
}

// slowTemplate is a template whose clones take time, can be cancelled and are linked: what vcsim's own lack. vcsim also
// locks a VM against every reader while a task works on it, which no vCenter does; these clones do not.
type slowTemplate struct {
	*simulator.VirtualMachine
	lab *lab
}

// CloneVMTask is what vcsim calls for CloneVM_Task.
func (s *slowTemplate) CloneVMTask(ctx *simulator.Context, request *types.CloneVM_Task) soap.HasFault {
	l := s.lab
	l.mu.Lock()
	l.clones[request.Name]++
	l.specs[request.Name] = *request
	n, hold, takes := l.clones[request.Name], l.hold, l.takes
	l.mu.Unlock()
	cancelled := make(chan struct{})
	lock := types.ManagedObjectReference{Type: "VirtualMachine", Value: fmt.Sprintf("clone-%s-%d", request.Name, n)}
	task := simulator.CreateTask(lock, "cloneVm", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		l.mu.Lock()
		l.busy++
		l.most = max(l.most, l.busy)
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			l.busy--
			l.mu.Unlock()
		}()
		if hold != nil {
			select {
			case <-hold:
			case <-cancelled:
				return nil, &types.RequestCanceled{}
			}
		} else if takes > 0 {
			select {
			case <-time.After(takes):
			case <-cancelled:
				return nil, &types.RequestCanceled{}
			}
		}
		l.world.Lock()
		defer l.world.Unlock()
		body := s.VirtualMachine.CloneVMTask(ctx, request).(*methods.CloneVM_TaskBody)
		inner := ctx.Map.Get(body.Res.Returnval).(*simulator.Task)
		l.settle(inner)
		if inner.Info.Error != nil {
			return nil, inner.Info.Error.Fault
		}
		made := inner.Info.Result.(types.ManagedObjectReference)
		if request.Spec.Location.DiskMoveType == string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking) && request.Spec.Snapshot != nil {
			clone := ctx.Map.Get(made).(*simulator.VirtualMachine)
			ctx.WithLock(clone, func() {
				for _, device := range clone.Config.Hardware.Device {
					if disk, ok := device.(*types.VirtualDisk); ok {
						parent := *object.VirtualDeviceList(s.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))[0].(*types.VirtualDisk).Backing.(*types.VirtualDiskFlatVer2BackingInfo)
						disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo).Parent = &parent
					}
				}
			})
		}
		return made, nil
	})
	ref := task.Run(ctx)
	template := s.Self
	ctx.Map.AtomicUpdate(ctx, task, []types.PropertyChange{{Name: "info.entity", Val: template}})
	l.mu.Lock()
	l.cancel[ref.Value] = cancelled
	l.mu.Unlock()
	return &methods.CloneVM_TaskBody{Res: &types.CloneVM_TaskResponse{Returnval: ref}}
}

// front is a vCenter's front door that one module comes through. It can be cut.
type front struct {
	lab    *lab
	server *httptest.Server

	mu    sync.Mutex
	dead  bool
	calls []string
	cut   func(n int, method string) cut
	died  chan struct{} // closed by the first kill
	waits func()        // ends the wait for updates that is open at the vCenter
}

// cut says what becomes of a call.
type cut int

const (
	pass      cut = iota
	dieBefore     // the call does not reach the vCenter, and no other will
	dieAfter      // the vCenter gets the call, and its answer gets nowhere; no other call will
	dropAfter     // the vCenter gets the call, and its answer gets nowhere
)

func (l *lab) front() *front {
	f := &front{lab: l, died: make(chan struct{})}
	f.server = httptest.NewUnstartedServer(f)
	f.server.StartTLS()
	l.t.Cleanup(func() {
		f.server.CloseClientConnections()
		f.server.Listener.Close()
	})
	return f
}

// ServeHTTP is part of http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	method := ""
	if found := regexp.MustCompile(`<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)`).FindSubmatch(body); found != nil {
		method = string(found[1])
	}
	f.mu.Lock()
	if method == "WaitForUpdatesEx" {
		if this := regexp.MustCompile(`<_this [^>]*>[^<]*</_this>`).Find(body); this != nil {
			cookies := r.Cookies()
			f.waits = func() { f.lab.cancelWait(string(this), cookies) }
		}
	}
	what := pass
	if f.dead {
		what = dieBefore
	} else if method != "" {
		f.calls = append(f.calls, method)
		if f.cut != nil {
			what = f.cut(len(f.calls), method)
		}
		if what == dieBefore || what == dieAfter {
			f.die()
		}
	}
	f.mu.Unlock()
	if what == dieBefore {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer := f.lab.serve(method, r)
	if what != pass {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// serve lets one call into the vCenter.
func (l *lab) serve(method string, r *http.Request) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	if method == "WaitForUpdatesEx" {
		l.service.ServeMux.ServeHTTP(answer, r)
		return answer
	}
	l.world.Lock()
	defer l.world.Unlock()
	l.service.ServeMux.ServeHTTP(answer, r)
	if begun := regexp.MustCompile(`type="Task"[^>]*>(task-\d+)<`).FindSubmatch(answer.Body.Bytes()); begun != nil && strings.HasSuffix(method, "_Task") {
		if task, ok := l.registry.Get(types.ManagedObjectReference{Type: "Task", Value: string(begun[1])}).(*simulator.Task); ok {
			l.mu.Lock()
			_, slow := l.cancel[string(begun[1])]
			l.mu.Unlock()
			if !slow {
				l.settle(task)
			}
		}
	}
	return answer
}

// settle waits for a task that takes no time of its own.
func (l *lab) settle(task *simulator.Task) {
	for done := false; !done; {
		time.Sleep(time.Millisecond) // vcsim tells nobody in this process
		l.registry.WithLock(&simulator.Context{}, task.Self, func() {
			done = task.Info.State == types.TaskInfoStateSuccess || task.Info.State == types.TaskInfoStateError
		})
	}
}

func (f *front) kill() {
	f.mu.Lock()
	f.die()
	f.mu.Unlock()
	f.server.CloseClientConnections()
}

func (f *front) die() {
	f.dead = true
	select {
	case <-f.died:
	default:
		close(f.died)
	}
}

func (f *front) revive() {
	f.mu.Lock()
	f.dead = false
	f.mu.Unlock()
}

// abandon ends the wait that a killed module has left open: vcsim goes on with it until its time is up, a vCenter
// notices that the connection is gone.
func (f *front) abandon() {
	f.mu.Lock()
	end := f.waits
	f.mu.Unlock()
	if end != nil {
		end()
	}
}

func (l *lab) cancelWait(collector string, cookies []*http.Cookie) {
	body := `<?xml version="1.0"?><Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><CancelWaitForUpdates xmlns="urn:vim25">` +
		collector + `</CancelWaitForUpdates></Body></Envelope>`
	r := httptest.NewRequest(http.MethodPost, "/sdk", strings.NewReader(body))
	for _, c := range cookies {
		r.AddCookie(c)
	}
	l.service.ServeMux.ServeHTTP(httptest.NewRecorder(), r)
}

func (f *front) killed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

func (f *front) site() vmware.Site {
	sum := sha256.Sum256(f.server.Certificate().Raw)
	return vmware.Site{
		Name: "lab", URL: f.server.URL + "/sdk", User: user, Password: func() (string, error) { return password, nil },
		Thumbprint: hex.EncodeToString(sum[:]),
	}
}

func (f *front) sha1() string {
	sum := sha1.Sum(f.server.Certificate().Raw)
	return hex.EncodeToString(sum[:])
}

// module returns a module that comes through the front.
func (f *front) module(change ...func(*vmware.Options)) *vmware.Module {
	f.lab.t.Helper()
	options := vmware.Options{Sites: []vmware.Site{f.site()}, Logger: zerolog.Nop()}
	for _, c := range change {
		c(&options)
	}
	m, err := vmware.New(options)
	require.NoError(f.lab.t, err)
	f.lab.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		m.Close(ctx)
	})
	return m
}

func (l *lab) module(change ...func(*vmware.Options)) *vmware.Module {
	l.t.Helper()
	return l.front().module(change...)
}

// request returns a load of a computer, attempt 1.
func request(computer string, change ...func(*provisioners.Request)) provisioners.Request {
	r := provisioners.Request{
		Reservation: reservation.Reservation{
			Name: "res-" + computer, User: "ada",
			Computer: reservation.Computer{
				Name: computer, Provisioner: vmware.Type, Site: "lab", Hardware: reservation.Virtual, Address: "127.0.0.1",
			},
			Image: reservation.Image{
				Name: "debian12", Revision: 3, OS: reservation.OS{Family: reservation.Linux, Version: "12"},
				Sources: map[string]map[string]string{vmware.Type: {"template": templateName, "snapshot": snapshotName}},
			},
		},
		Mark:    reservation.Mark{Reservation: "res-" + computer, Run: "run-1", Attempt: 1},
		Attempt: reservation.Attempt{Number: 1, Of: 3},
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func attempt(n int) func(*provisioners.Request) {
	return func(r *provisioners.Request) {
		r.Mark.Attempt = n
		r.Attempt.Number = n
	}
}

// reporter is a reservation.Reporter that remembers, and that can cut the load off at any of its calls.
type reporter struct {
	mu        sync.Mutex
	stages    []string
	kept      map[string]string // what this worker knows
	delivered map[string]string // what a successor is told: only Confirm delivers for sure
	calls     int
	on        func(n int, call string) // before each call
	confirm   func() error
	frozen    bool
}

func newReporter() *reporter {
	return &reporter{kept: map[string]string{}, delivered: map[string]string{}}
}

func (r *reporter) call(name string) {
	r.mu.Lock()
	r.calls++
	n, on := r.calls, r.on
	r.mu.Unlock()
	if on != nil {
		on(n, name)
	}
}

// Stage is part of reservation.Reporter.
func (r *reporter) Stage(name, detail string) {
	r.call("stage " + name)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stages = append(r.stages, strings.TrimSuffix(name+": "+detail, ": "))
}

// Keep is part of reservation.Reporter.
func (r *reporter) Keep(key, value string) {
	r.call("keep " + key)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.frozen {
		r.kept[key] = value
	}
}

// Kept is part of reservation.Reporter.
func (r *reporter) Kept(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept[key]
}

// Confirm is part of reservation.Reporter.
func (r *reporter) Confirm(ctx context.Context) error {
	r.mu.Lock()
	if !r.frozen {
		r.delivered = maps.Clone(r.kept)
	}
	confirm := r.confirm
	r.mu.Unlock()
	r.call("confirm")
	if confirm != nil {
		return confirm()
	}
	return ctx.Err()
}

func (r *reporter) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.stages)
}

func (r *reporter) saw(text string) bool {
	return slices.ContainsFunc(r.seen(), func(s string) bool { return strings.Contains(s, text) })
}

// successor returns the reporter of the worker that goes on: with what was kept, or only what was surely delivered.
func (r *reporter) successor(all bool) *reporter {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := newReporter()
	next.kept = maps.Clone(r.delivered)
	if all {
		next.kept = maps.Clone(r.kept)
	}
	next.delivered = maps.Clone(next.kept)
	return next
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func cancelTask(ctx context.Context, l *lab, task types.ManagedObjectReference) error {
	_, err := methods.CancelTask(ctx, l.client, &types.CancelTask{This: task})
	return err
}

func powerOff(l *lab, ref types.ManagedObjectReference) {
	l.t.Helper()
	task, err := object.NewVirtualMachine(l.client.Client, ref).PowerOff(context.Background())
	require.NoError(l.t, err)
	require.NoError(l.t, task.Wait(context.Background()))
}

func loadedAs(ref types.ManagedObjectReference, key string) provisioners.Loaded {
	return provisioners.Loaded{HostKey: key, Reference: ref.Value}
}

// datastoreID returns the managed object's ID of LocalDS_0.
func (l *lab) datastoreID() string {
	for _, entity := range l.registry.All("Datastore") {
		if entity.Entity().Name == "LocalDS_0" {
			return entity.Reference().Value
		}
	}
	l.t.Fatal("no LocalDS_0")
	return ""
}
