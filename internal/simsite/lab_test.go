package simsite

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/crypto/ssh"

	"berth/internal/simsite/guestos"
)

// lab is a site and a client of its vCenter's that is logged in.
type lab struct {
	*Site
	t      *testing.T
	client *govmomi.Client
	finder *find.Finder

	template *object.VirtualMachine
	snapshot *types.ManagedObjectReference
	folder   *object.Folder
	pool     types.ManagedObjectReference
}

// start starts a site with a script and logs in.
func start(t *testing.T, script string, computers int) *lab {
	t.Helper()
	s, err := ParseScript("test", []byte(script))
	require.NoError(t, err)
	site, err := Start(t.Context(), Options{Dir: t.TempDir(), Script: s, Computers: computers, Control: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(site.Stop)
	l := &lab{Site: site, t: t}
	l.client, err = l.login(User, site.Password(), site.Thumbprint())
	require.NoError(t, err)
	l.finder = find.NewFinder(l.client.Client, false)
	dc, err := l.finder.Datacenter(t.Context(), datacenter)
	require.NoError(t, err)
	l.finder.SetDatacenter(dc)
	return l
}

func (l *lab) login(user, password, thumbprint string) (*govmomi.Client, error) {
	u, err := url.Parse(l.URL())
	require.NoError(l.t, err)
	s := soap.NewClient(u, false)
	s.SetThumbprint(u.Host, thumbprint)
	v, err := vim25.NewClient(l.t.Context(), s)
	if err != nil {
		return nil, err
	}
	c := &govmomi.Client{Client: v, SessionManager: newSessionManager(v)}
	return c, c.Login(l.t.Context(), url.UserPassword(user, password))
}

// clone begins a linked clone, powered on.
func (l *lab) clone(name, hostKey string) *object.Task {
	l.t.Helper()
	ctx := l.t.Context()
	if l.template == nil {
		var err error
		l.template, err = l.finder.VirtualMachine(ctx, l.script.Templates[0].Name)
		require.NoError(l.t, err)
		l.snapshot, err = l.template.FindSnapshot(ctx, l.script.Templates[0].Snapshots[0])
		require.NoError(l.t, err)
		l.folder, err = l.finder.Folder(ctx, "vm")
		require.NoError(l.t, err)
		pool, err := l.finder.ResourcePool(ctx, "*/Resources")
		require.NoError(l.t, err)
		l.pool = pool.Reference()
	}
	config := &types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: keyMark, Value: "res-1/run/1"}}}
	if hostKey != "" {
		config.ExtraConfig = append(config.ExtraConfig, &types.OptionValue{Key: keyHostKey, Value: hostKey})
	}
	task, err := l.template.Clone(ctx, l.folder, name, types.VirtualMachineCloneSpec{Snapshot: l.snapshot, PowerOn: true, Config: config,
		Location: types.VirtualMachineRelocateSpec{Pool: &l.pool, DiskMoveType: string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking)}})
	require.NoError(l.t, err)
	return task
}

// load clones and waits for the task's good end.
func (l *lab) load(name, hostKey string) *object.VirtualMachine {
	l.t.Helper()
	require.NoError(l.t, l.clone(name, hostKey).Wait(l.t.Context()))
	return l.vm(name)
}

func (l *lab) vm(name string) *object.VirtualMachine {
	l.t.Helper()
	vm, err := l.finder.VirtualMachine(l.t.Context(), name)
	require.NoError(l.t, err)
	return vm
}

func (l *lab) unload(name string) {
	l.t.Helper()
	vm := l.vm(name)
	task, err := vm.PowerOff(l.t.Context())
	require.NoError(l.t, err)
	_ = task.Wait(l.t.Context()) // it may be off already
	task, err = vm.Destroy(l.t.Context())
	require.NoError(l.t, err)
	require.NoError(l.t, task.Wait(l.t.Context()))
}

func (l *lab) guest(name string) Guest {
	l.t.Helper()
	g, err := l.Guest(name)
	require.NoError(l.t, err)
	return g
}

// until polls for a condition.
func (l *lab) until(what string, condition func() bool) {
	l.t.Helper()
	require.Eventually(l.t, condition, 15*time.Second, 5*time.Millisecond, what)
}

func (l *lab) answering(name string) {
	l.t.Helper()
	l.until(name+" answers", func() bool { return l.guest(name).Answering })
}

// connect logs in to a guest and returns the key that it showed; each try of its own.
func (l *lab) connect(name string) (*ssh.Client, ssh.PublicKey, error) {
	signer, err := ssh.ParsePrivateKey(l.PrivateKey())
	require.NoError(l.t, err)
	return l.connectWith(name, ssh.PublicKeys(signer))
}

func (l *lab) connectWith(name string, auth ssh.AuthMethod) (*ssh.Client, ssh.PublicKey, error) {
	var shown ssh.PublicKey
	var address string
	for _, c := range l.Computers() {
		if c.Name == name {
			address = c.Address
		}
	}
	client, err := ssh.Dial("tcp", address, &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{auth}, Timeout: 5 * time.Second,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error { shown = key; return nil }})
	return client, shown, err
}

// ssh logs in to a guest that answers.
func (l *lab) ssh(name string) *ssh.Client {
	l.t.Helper()
	l.answering(name)
	client, _, err := l.connect(name)
	require.NoError(l.t, err)
	l.t.Cleanup(func() { _ = client.Close() })
	return client
}

// run runs a command in a session of its own.
func run(t *testing.T, client *ssh.Client, line, stdin string) (string, int) {
	t.Helper()
	session, err := client.NewSession()
	require.NoError(t, err)
	defer session.Close()
	session.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	session.Stdout = &out
	err = session.Run(line)
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		return out.String(), exit.ExitStatus()
	}
	if errors.As(err, new(*ssh.ExitMissingError)) {
		return out.String(), -1 // the guest went down before it could say
	}
	require.NoError(t, err)
	return out.String(), 0
}

// ended waits for a connection's end.
func ended(t *testing.T, client *ssh.Client) {
	t.Helper()
	over := make(chan struct{})
	go func() { _ = client.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Fatal("the connection stands still")
	}
}

func hostKey(t *testing.T) (pem string, fingerprint string) {
	t.Helper()
	image, err := guestos.NewImage(guestos.ImageOptions{Distribution: guestos.Debian12})
	require.NoError(t, err)
	m := guestos.New(guestos.Options{Image: image})
	m.Boot()
	signer, err := m.HostKey()
	require.NoError(t, err)
	text, err := m.ReadFile(guestos.HostKeyPath)
	require.NoError(t, err)
	return string(text), ssh.FingerprintSHA256(signer.PublicKey())
}

// greeting reads what a port says first, within a while.
func greeting(address string, within time.Duration) (string, error) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(within))
	b := make([]byte, 4)
	n, err := io.ReadFull(conn, b)
	return string(b[:n]), err
}

func taskContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
