package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"go.temporal.io/sdk/client"

	"berth/internal/catalog"
	"berth/internal/hold"
	"berth/internal/labtest"
	"berth/internal/process"
	"berth/internal/simsite"
	"berth/provisioners"
	"berth/provisioners/vmware"
	"berth/reservation"
	"berth/workflows"
)

// lab is a simulated site as one test uses it: under a name of its own in a catalog of its own, behind proxies of its own.
type lab struct {
	world   *world
	name    string // of the site in the catalog; its queue is berth-vmware-NAME
	site    *site
	shared  bool // others use the site, too
	vcenter *vcenterProxy
	doors   map[string]*door // by computer
	catalog string
	folder  string
	workers int
}

// labOptions say what a lab is.
type labOptions struct {
	site      *site           // to share; nil starts one
	vcenter   simsite.VCenter // of the site that is started
	computers []simsite.Computer
	doors     map[string]holdsFrom // a door before a computer's guest
	image     func(*reservation.Image)
	clones    int // the catalog's limit of clones that run at once; 0 leaves it out
}

func (w *world) newLab(t *testing.T, name string, o labOptions) *lab {
	t.Helper()
	l := &lab{world: w, name: name, site: o.site, shared: o.site != nil, folder: t.TempDir(), doors: map[string]*door{}}
	if l.site == nil {
		l.site = w.startSite(t, simsite.Script{VCenter: o.vcenter, Computers: o.computers})
	} else {
		l.site.addComputers(t, o.computers)
	}
	l.vcenter = newVCenterProxy(t, w, strings.TrimSuffix(l.site.url, "/sdk"))
	l.catalog = l.writeCatalog(t, o)
	return l
}

// writeCatalog writes a catalog with this lab's site and, for the worker to choose from, another one.
func (l *lab) writeCatalog(t *testing.T, o labOptions) string {
	t.Helper()
	site := func(name, url, thumbprint string) catalog.Site {
		return catalog.Site{Name: name, Provisioner: vmware.Type, VMware: &catalog.VMware{URL: url, User: simsite.User, Credential: "vcenter-" + name, Thumbprint: thumbprint}}
	}
	mine := site(l.name, l.vcenter.url(), l.world.thumbprint)
	mine.VMware.Clones = o.clones
	image := testImage()
	if o.image != nil {
		o.image(&image)
	}
	var computers []reservation.Computer
	for _, one := range o.computers {
		noun := l.site.computer(t, one.Name)
		noun.Site = l.name
		if stop, ok := o.doors[one.Name]; ok {
			stop.counts = func() simsite.Counts { return l.site.peek(one.Name) }
			l.doors[one.Name] = newDoor(t, noun.Address, stop)
			noun.Address = l.doors[one.Name].address
		}
		computers = append(computers, noun)
	}
	type secret struct {
		File string `json:"file"`
	}
	text, err := json.MarshalIndent(map[string]any{ // JSON is YAML
		"secrets": map[string]secret{
			"vcenter-" + l.name: {filepath.Join(l.site.dir, passwordFile)},
			"vcenter-elsewhere": {filepath.Join(l.folder, "no-such-file")},
			"linux-root":        {filepath.Join(l.site.dir, loginKeyFile)},
		},
		"sites": []any{
			compact(t, mine),
			compact(t, site("elsewhere", "https://127.0.0.1:1/sdk", l.world.thumbprint)),
		},
		"images":    []reservation.Image{image},
		"computers": computers,
	}, "", "  ")
	require.NoError(t, err)
	path := filepath.Join(l.folder, "catalog.yaml")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	return path
}

// compact leaves out what is empty.
func compact(t *testing.T, v any) any {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	var all map[string]any
	require.NoError(t, json.Unmarshal(text, &all))
	for key, value := range all {
		if value == nil || value == "" || value == false || value == 0.0 {
			delete(all, key)
		}
		if inner, ok := value.(map[string]any); ok {
			all[key] = compact(t, inner)
		}
	}
	return all
}

const imageName = "debian12"

// testImage is the image of most tests: short where a test would only wait, and with room for a lost worker elsewhere.
func testImage() reservation.Image {
	return reservation.Image{
		Name: imageName, Revision: 3, OS: reservation.OS{Family: reservation.Linux, Version: "12", Architecture: "x86_64"},
		Sources: map[string]map[string]string{vmware.Type: {"template": "debian12-template", "snapshot": "r3", "clone": "linked"}},
		Control: reservation.Control{Channel: "ssh", User: "root", Credential: "linux-root", HostKey: reservation.HostKeyHanded},
		Limits: reservation.Limits{Load: limit(180), InitialDelay: limit(0.1), Response: limit(180), ResponseAgain: limit(60),
			Configure: limit(120), Settle: limit(0.5), Queue: limit(120)},
		PostLoad: reservation.PostLoadOptions{Hostname: true, ManagementSources: []string{"127.0.0.0/8"}},
	}
}

// ---- workers

// workerProcess is a production worker that serves.
type workerProcess struct {
	*labtest.Worker
	identity string
}

type workerOptions struct {
	env      []string
	temporal string // where Temporal is; "" is the server itself
	plain    bool   // without the race detector, in any case: it starts sooner
	program  string // another one than this version's
}

// startWorker starts a worker and returns once it serves.
func (w *world) startWorker(t *testing.T, name string, o workerOptions) *workerProcess {
	t.Helper()
	if o.temporal == "" {
		o.temporal = w.server.Address
	}
	program := w.watched
	if o.plain {
		program = w.plain
	}
	if o.program != "" {
		program = o.program
	}
	w.starting <- struct{}{}
	defer func() { <-w.starting }()
	env := append(os.Environ(), "BERTH_TEMPORAL_ADDRESS="+o.temporal, "BERTH_TEMPORAL_NAMESPACE="+w.server.Namespace, "BERTH_LISTEN=", "BERTH_LOG_LEVEL=debug")
	p := &workerProcess{Worker: labtest.StartWorker(t, patience, name, process.Options{Path: program, Env: append(append(env, w.env...), o.env...),
		Log: filepath.Join(t.TempDir(), name+".log")})}
	host, err := os.Hostname()
	require.NoError(t, err)
	p.identity = fmt.Sprintf("worker@%s:%d", host, p.Pid())
	return p
}

// worker starts a worker for this lab's site.
func (l *lab) worker(t *testing.T, o ...workerOptions) *workerProcess {
	t.Helper()
	l.workers++
	var options workerOptions
	if len(o) > 0 {
		options = o[0]
	}
	options.env = append([]string{"BERTH_WORKFLOWS=false", "BERTH_PROVISIONERS=vmware", "BERTH_CATALOG=" + l.catalog, "BERTH_SITES=" + l.name}, options.env...)
	return l.world.startWorker(t, fmt.Sprintf("%s-%d", l.name, l.workers), options)
}

func (p *workerProcess) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	require.NoError(t, syscall.Kill(p.Pid(), s))
}

// says waits until the worker's log holds every one of the words in one line.
func (p *workerProcess) says(t *testing.T, words ...string) {
	t.Helper()
	labtest.Eventually(t, patience, func() (bool, string) {
		for line := range strings.Lines(p.Text()) {
			all := true
			for _, word := range words {
				all = all && strings.Contains(line, word)
			}
			if all {
				return true, ""
			}
		}
		return false, fmt.Sprintf("the worker has not said %q", words)
	})
}

// ---- reservations

// booking is a reservation that was started.
type booking struct {
	lab      *lab
	run      client.WorkflowRun
	name     string
	computer string
}

func (l *lab) reservation(t *testing.T, name, computer string) reservation.Reservation {
	t.Helper()
	read, err := catalog.Load(l.catalog, catalog.Options{Validators: map[string]provisioners.Validator{vmware.Type: &vmware.Module{}}})
	require.NoError(t, err)
	r, err := read.Reservation(name, "ana", computer, imageName, time.Now().Add(time.Hour))
	require.NoError(t, err)
	return r
}

// reserve starts a reservation of a computer.
func (l *lab) reserve(t *testing.T, computer string) *booking {
	t.Helper()
	return l.reserveAs(t, "r-"+computer, computer)
}

func (l *lab) reserveAs(t *testing.T, name, computer string) *booking {
	t.Helper()
	run, err := hold.Start(t.Context(), l.world.client, l.reservation(t, name, computer))
	require.NoError(t, err)
	return &booking{lab: l, run: run, name: name, computer: computer}
}

// booking returns a reservation that the command line has started.
func (l *lab) booking(w *world, name, computer, id, run string) *booking {
	return &booking{lab: l, run: w.client.GetWorkflow(context.Background(), id, run), name: name, computer: computer}
}

// moment is how a reservation stands.
type moment = labtest.Moment

func (b *booking) watched() labtest.Watched {
	return labtest.Watched{Client: b.lab.world.client, Run: b.run}
}

func (b *booking) look(t *testing.T) moment {
	t.Helper()
	return b.watched().Look(t)
}

func (b *booking) until(t *testing.T, limit time.Duration, is func(moment) bool) moment {
	t.Helper()
	return b.watched().Until(t, limit, is)
}

// atStage waits until a phase shows a stage.
func (b *booking) atStage(t *testing.T, phase reservation.Phase, stage string) moment {
	t.Helper()
	return b.until(t, patience, func(m moment) bool { return m.Running() && m.Phase == phase && m.Stage().Name == stage })
}

// ready waits until the computer is handed over, checks what must be true of it then, and returns the status.
func (b *booking) ready(t *testing.T, limit time.Duration) reservation.Status {
	t.Helper()
	b.until(t, limit, func(m moment) bool { return m.Outcome == reservation.OutcomeReady })
	status := b.status(t)
	require.Equal(t, reservation.PhaseReady, status.Phase)
	guest := b.lab.site.mustGuest(t, b.computer)
	require.Equal(t, "on", guest.Power)
	require.Equal(t, b.mark(status.Attempt.Number), guest.Mark)
	require.Equal(t, b.computer, guest.Hostname)
	require.Equal(t, status.HostKey, guest.HostKey, "the pinned key is the one that the guest has")
	text := b.lab.site.file(t, b.computer, "/etc/berth/load.json")
	var tag struct {
		Image, Computer, Reservation, Run string
		Revision, Attempt                 int
		PostLoad                          string `json:"post_load"`
	}
	require.NoError(t, json.Unmarshal([]byte(text), &tag))
	require.Equal(t, []any{imageName, b.computer, b.name, b.run.GetRunID(), 3, status.Attempt.Number, "done"},
		[]any{tag.Image, tag.Computer, tag.Reservation, tag.Run, tag.Revision, tag.Attempt, tag.PostLoad})
	require.Empty(t, b.lab.extraConfig(t, b.computer)[vmware.KeyHostKey], "the handed host key is taken out of the VM's configuration")
	return status
}

// mark is the fencing mark of an attempt of this reservation.
func (b *booking) mark(attempt int) string {
	return reservation.Mark{Reservation: b.name, Run: b.run.GetRunID(), Attempt: attempt}.String()
}

func (b *booking) status(t *testing.T) reservation.Status {
	t.Helper()
	return b.watched().Status(t, patience)
}

// result waits until the reservation is over, and returns its status and the workflow's error.
func (b *booking) result(t *testing.T) (reservation.Status, error) {
	t.Helper()
	return b.watched().Result(t, takeover)
}

// release gives the computer back, and sees that nothing is left.
func (b *booking) release(t *testing.T) reservation.Status {
	t.Helper()
	require.NoError(t, b.lab.world.client.SignalWorkflow(t.Context(), b.run.GetID(), b.run.GetRunID(), workflows.ReleaseSignal, nil))
	status, err := b.result(t)
	require.NoError(t, err)
	require.Equal(t, reservation.OutcomeReleased, status.Outcome)
	require.Empty(t, status.Reason)
	b.lab.gone(t, b.computer)
	return status
}

// phases are the phases and their verdicts: "load reload, load done, post-load done".
func phases(status reservation.Status) string {
	var all []string
	for _, one := range status.Phases {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s", one.Phase, one.Verdict)))
	}
	return strings.Join(all, ", ")
}

// ---- what the vCenter says

// gone sees that a computer has no VM and, at a site that is nobody else's, that nothing runs in the vCenter.
func (l *lab) gone(t *testing.T, computer string) {
	t.Helper()
	guest, ok := l.site.guest(t, computer)
	require.False(t, ok, "%+v", guest)
	require.Nil(t, l.extraConfig(t, computer))
	if !l.shared {
		l.quiet(t)
	}
}

// quiet sees that nothing runs in the vCenter any more. It may be busy for a moment with files of a VM that is gone.
func (l *lab) quiet(t *testing.T) {
	t.Helper()
	labtest.Eventually(t, patience, func() (bool, string) {
		running := l.runningTasks(t)
		return len(running) == 0, fmt.Sprintf("these tasks run: %q", running)
	})
}

// govmomi logs in to the site's vCenter, past the proxy.
func (l *lab) govmomi(t *testing.T) *govmomi.Client {
	t.Helper()
	u, err := url.Parse(l.site.url)
	require.NoError(t, err)
	u.User = url.UserPassword(simsite.User, l.site.secret(t, passwordFile))
	c, err := govmomi.NewClient(t.Context(), u, true)
	require.NoError(t, err)
	return c
}

// vm returns the VM of a computer; nil if there is none.
func (l *lab) vm(t *testing.T, c *govmomi.Client, computer string) *object.VirtualMachine {
	t.Helper()
	ref, err := object.NewSearchIndex(c.Client).FindByInventoryPath(t.Context(), "/DC0/vm/"+computer)
	require.NoError(t, err)
	if ref == nil {
		return nil
	}
	return ref.(*object.VirtualMachine)
}

// extraConfig returns the extra configuration of a computer's VM; nil if there is no VM.
func (l *lab) extraConfig(t *testing.T, computer string) map[string]string {
	t.Helper()
	c := l.govmomi(t)
	defer c.Logout(context.Background())
	vm := l.vm(t, c, computer)
	if vm == nil {
		return nil
	}
	var read mo.VirtualMachine
	require.NoError(t, vm.Properties(t.Context(), vm.Reference(), []string{"config.extraConfig"}, &read))
	found := map[string]string{}
	for _, option := range read.Config.ExtraConfig {
		value, _ := option.GetOptionValue().Value.(string)
		found[option.GetOptionValue().Key] = value
	}
	return found
}

// runningTasks returns the tasks of the vCenter that run or wait.
func (l *lab) runningTasks(t *testing.T) []string {
	t.Helper()
	c := l.govmomi(t)
	defer c.Logout(context.Background())
	var manager mo.TaskManager
	require.NoError(t, c.RetrieveOne(t.Context(), *c.ServiceContent.TaskManager, []string{"recentTask"}, &manager))
	var running []string
	for _, ref := range manager.RecentTask {
		var task mo.Task
		if err := property.DefaultCollector(c.Client).RetrieveOne(t.Context(), ref, []string{"info"}, &task); err != nil {
			continue // it is gone already
		}
		if task.Info.State == types.TaskInfoStateRunning || task.Info.State == types.TaskInfoStateQueued {
			running = append(running, task.Info.DescriptionId+" "+ref.Value)
		}
	}
	return running
}

// leave puts a VM under a computer's name that nobody has marked, powered on, as somebody or something else may have left it.
func (l *lab) leave(t *testing.T, computer string) {
	t.Helper()
	c := l.govmomi(t)
	defer c.Logout(context.Background())
	finder := find.NewFinder(c.Client)
	template, err := finder.VirtualMachine(t.Context(), "/DC0/vm/debian12-template")
	require.NoError(t, err)
	pool, err := finder.ResourcePool(t.Context(), "/DC0/host/DC0_C0/Resources")
	require.NoError(t, err)
	folder, err := finder.Folder(t.Context(), "/DC0/vm")
	require.NoError(t, err)
	where := pool.Reference()
	task, err := template.Clone(t.Context(), folder, computer, types.VirtualMachineCloneSpec{PowerOn: true, Location: types.VirtualMachineRelocateSpec{Pool: &where}})
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
}

// ---- the command line

// starter runs the command line as a person would, and returns what it wrote and its exit code.
func (l *lab) starter(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, complaints bytes.Buffer
	env := append(os.Environ(), "BERTH_TEMPORAL_ADDRESS="+l.world.server.Address, "BERTH_TEMPORAL_NAMESPACE="+l.world.server.Namespace,
		"BERTH_TEMPORAL_PATIENCE=30s", "BERTH_CATALOG="+l.catalog, "BERTH_USER=ana")
	env = append(env, l.world.env...)
	p, err := process.Start(process.Options{Path: l.world.starter, Args: args, Env: env, Stdout: &out, Stderr: &complaints})
	require.NoError(t, err)
	defer p.Kill()
	select {
	case <-p.Done():
	case <-time.After(takeover):
		p.Kill()
		require.FailNow(t, "the command does not end", "starter %s\n%s%s", strings.Join(args, " "), out.String(), complaints.String())
	}
	return out.String(), complaints.String(), exitCode(p.Err())
}

func exitCode(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}
