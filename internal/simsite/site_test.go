package simsite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"berth/internal/catalog"
	"berth/internal/simsite/guestos"
)

func newSessionManager(c *vim25.Client) *session.Manager { return session.NewManager(c) }

func TestTheVCenterLetsNobodyInWithoutPasswordAndCertificate(t *testing.T) {
	l := start(t, "", 1)
	_, err := l.login(User, "wrong", l.Thumbprint())
	require.True(t, fault.Is(err, &types.InvalidLogin{}), "%v", err)
	_, err = l.login("somebody", l.Password(), l.Thumbprint())
	require.True(t, fault.Is(err, &types.InvalidLogin{}), "%v", err)
	_, err = l.login(User, l.Password(), "AA:"+l.Thumbprint()[3:])
	require.Error(t, err)
	_, err = l.login(User, l.Password(), "")
	require.ErrorContains(t, err, "certificate")

	c, err := l.login(User, l.Password(), l.Thumbprint())
	require.NoError(t, err)
	require.NoError(t, c.Logout(t.Context()))
	var content mo.Folder
	err = property.DefaultCollector(c.Client).RetrieveOne(t.Context(), c.ServiceContent.RootFolder, []string{"name"}, &content)
	require.True(t, fault.Is(err, &types.NotAuthenticated{}), "without a session nothing can be read: %v", err)
	_, err = methods.LoginByToken(t.Context(), c.Client, &types.LoginByToken{This: *c.ServiceContent.SessionManager})
	require.True(t, fault.Is(err, &types.InvalidLogin{}), "%v", err)
}

func TestALinkedCloneBootsAGuestThatAnswersWithTheKeyItWasHanded(t *testing.T) {
	l := start(t, "", 2)
	pem, fingerprint := hostKey(t)
	vm := l.load("vm-01", pem)
	client := l.ssh("vm-01")
	_, shown, err := l.connect("vm-01")
	require.NoError(t, err)
	require.Equal(t, fingerprint, ssh.FingerprintSHA256(shown))

	out, status := run(t, client, `cat /etc/image-release; echo "$SSH_CONNECTION" | cut -d' ' -f3-4; cat`, "from outside\n")
	require.Zero(t, status)
	address := l.Computers()[0].Address
	require.Equal(t, "debian12-template r1\n"+strings.Replace(address, ":", " ", 1)+"\nfrom outside\n", out)
	_, status = run(t, client, `exit 9`, "")
	require.Equal(t, 9, status)
	out, _ = run(t, client, `cat /proc/sys/kernel/random/boot_id`, "")
	g := l.guest("vm-01")
	require.Equal(t, g.BootID+"\n", out)
	require.Equal(t, fingerprint, g.HostKey)
	require.Equal(t, "res-1/run/1", g.Mark)
	require.True(t, g.Linked)
	require.Equal(t, "r1", g.Snapshot)
	for _, at := range []time.Time{g.PoweredOn, g.Opened, g.Connected, g.FirstLogin} {
		require.False(t, at.IsZero(), "%+v", g)
	}
	require.False(t, g.Opened.Before(g.PoweredOn))
	require.False(t, g.FirstLogin.Before(g.Opened))

	// The key stays when it is taken out of the configuration, over a reboot too.
	task, err := vm.Reconfigure(t.Context(), types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: keyHostKey, Value: ""}}})
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	var read mo.VirtualMachine
	require.NoError(t, vm.Properties(t.Context(), vm.Reference(), []string{"config.extraConfig"}, &read))
	require.Empty(t, object.OptionValueList(read.Config.ExtraConfig).Map()[keyHostKey])
	_, _ = run(t, client, `reboot`, "")
	ended(t, client)
	l.until("the guest has rebooted", func() bool { return l.guest("vm-01").Boots == 2 && l.guest("vm-01").Answering })
	require.NotEqual(t, g.BootID, l.guest("vm-01").BootID)
	_, shown, err = l.connect("vm-01")
	require.NoError(t, err)
	require.Equal(t, fingerprint, ssh.FingerprintSHA256(shown))

	// Another guest has a key of its own.
	l.load("vm-02", "")
	l.answering("vm-02")
	_, shown, err = l.connect("vm-02")
	require.NoError(t, err)
	require.NotEqual(t, fingerprint, ssh.FingerprintSHA256(shown))

	counts := l.Counts("vm-01")
	require.Equal(t, Counts{CloneCalls: 1, Clones: 1, PowerOns: 1, Reboots: 1, Connections: 3, Logins: 3, Commands: 4, Finished: 4}, counts)
	require.Equal(t, 2, l.Calls()["CloneVM_Task"])
}

func TestOnlyTheSitesKeyAndTheRightPasswordLetIn(t *testing.T) {
	l := start(t, "", 1)
	l.load("vm-01", "")
	l.answering("vm-01")
	_, other := otherSigner(t)
	_, _, err := l.connectWith("vm-01", ssh.PublicKeys(other))
	require.ErrorContains(t, err, "unable to authenticate")
	_, _, err = l.connectWith("vm-01", ssh.Password("wrong"))
	require.ErrorContains(t, err, "unable to authenticate")
	client, _, err := l.connectWith("vm-01", ssh.Password(guestos.ImagePassword))
	require.NoError(t, err)
	_, status := run(t, client, `chpasswd`, "root:another\n")
	require.Zero(t, status)
	require.NoError(t, client.Close())
	_, _, err = l.connectWith("vm-01", ssh.Password(guestos.ImagePassword))
	require.ErrorContains(t, err, "unable to authenticate")
}

func otherSigner(t *testing.T) (string, ssh.Signer) {
	t.Helper()
	pem, _ := hostKey(t)
	signer, err := ssh.ParsePrivateKey([]byte(pem))
	require.NoError(t, err)
	return pem, signer
}

func TestTheGuestFollowsThePower(t *testing.T) {
	l := start(t, "", 1)
	vm := l.load("vm-01", "")
	client := l.ssh("vm-01")
	key := l.guest("vm-01").HostKey
	_, status := run(t, client, `echo kept >/var/kept; echo lost >/run/lost`, "")
	require.Zero(t, status)
	boot := l.guest("vm-01").BootID

	task, err := vm.Reset(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	ended(t, client)
	client = l.ssh("vm-01")
	g := l.guest("vm-01")
	require.NotEqual(t, boot, g.BootID)
	require.Equal(t, key, g.HostKey)
	out, _ := run(t, client, `cat /var/kept; cat /run/lost 2>/dev/null || echo gone`, "")
	require.Equal(t, "kept\ngone\n", out)

	task, err = vm.PowerOff(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	ended(t, client)
	_, _, err = l.connect("vm-01")
	require.ErrorContains(t, err, "refused")
	require.Equal(t, "off", l.guest("vm-01").Power)
	_, err = vm.PowerOff(t.Context())
	require.NoError(t, err)

	task, err = vm.Destroy(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	_, err = l.Guest("vm-01")
	require.ErrorAs(t, err, new(*NoGuestError))
	c := l.Counts("vm-01")
	require.Equal(t, []int{1, 1, 1, 1, 1}, []int{c.Clones, c.PowerOns, c.PowerOffs, c.Resets, c.Destroys})

	l.load("vm-01", "") // a new clone has a new disk
	out, _ = run(t, l.ssh("vm-01"), `cat /var/kept 2>/dev/null || echo new`, "")
	require.Equal(t, "new\n", out)
}

func TestACommandGoesOnWhenItsClientIsLostAndEndsWithThePower(t *testing.T) {
	l := start(t, "", 1)
	l.load("vm-01", "")
	client := l.ssh("vm-01")
	s, err := client.NewSession()
	require.NoError(t, err)
	require.NoError(t, s.Start(`echo begun >/var/state; while ! test -e /var/go; do sleep 0.01; done; echo through >/var/state`))
	l.until("it has begun", func() bool {
		text, err := l.ReadFile("vm-01", "/var/state")
		return err == nil && string(text) == "begun\n"
	})
	require.NoError(t, client.Close())
	client = l.ssh("vm-01")
	_, _ = run(t, client, `touch /var/go`, "")
	l.until("it goes on", func() bool {
		text, err := l.ReadFile("vm-01", "/var/state")
		return err == nil && string(text) == "through\n"
	})
	s, err = client.NewSession()
	require.NoError(t, err)
	require.NoError(t, s.Start(`sleep 3600`))
	require.NoError(t, l.Do("vm-01", "power-off"))
	ended(t, client)
	require.Error(t, s.Wait())
}

func TestEachScriptedBehaviourOfAGuest(t *testing.T) {
	cases := map[string]struct {
		loads string
		check func(t *testing.T, l *lab)
	}{
		"late: the port opens after a while": {`{late: 300ms}`, func(t *testing.T, l *lab) {
			_, _, err := l.connect("vm-01")
			require.ErrorContains(t, err, "refused")
			l.answering("vm-01")
			g := l.guest("vm-01")
			require.GreaterOrEqual(t, g.Opened.Sub(g.PoweredOn), 300*time.Millisecond)
		}},
		"silent: the port never opens, not after a reset either": {`{silent: true}`, func(t *testing.T, l *lab) {
			reset(t, l)
			_, _, err := l.connect("vm-01")
			require.ErrorContains(t, err, "refused")
		}},
		"answers_after_reset": {`{answers_after_reset: true}`, func(t *testing.T, l *lab) {
			_, _, err := l.connect("vm-01")
			require.ErrorContains(t, err, "refused")
			reset(t, l)
			l.ssh("vm-01")
		}},
		"banner_hang: the port opens and says nothing": {`{banner_hang: true}`, func(t *testing.T, l *lab) {
			l.answering("vm-01")
			_, err := greeting(l.guest("vm-01").Address, 200*time.Millisecond)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		}},
		"refuses connections": {`{refuses: connections}`, func(t *testing.T, l *lab) {
			l.answering("vm-01")
			_, err := greeting(l.guest("vm-01").Address, 5*time.Second)
			require.Error(t, err)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		}},
		"refuses logins": {`{refuses: logins}`, func(t *testing.T, l *lab) {
			l.answering("vm-01")
			_, _, err := l.connect("vm-01")
			require.ErrorContains(t, err, "unable to authenticate")
		}},
		"refuses commands": {`{refuses: commands}`, func(t *testing.T, l *lab) {
			s, err := l.ssh("vm-01").NewSession()
			require.NoError(t, err)
			require.Error(t, s.Run("true"))
		}},
		"auth_late": {`{auth_late: 300ms}`, func(t *testing.T, l *lab) {
			l.answering("vm-01")
			_, _, err := l.connect("vm-01")
			require.ErrorContains(t, err, "unable to authenticate")
			l.until("logins are let in", func() bool { _, _, err := l.connect("vm-01"); return err == nil })
		}},
		"wrong_key: another key than the one on its disk": {`{wrong_key: true}`, func(t *testing.T, l *lab) {
			l.answering("vm-01")
			_, shown, err := l.connect("vm-01")
			require.NoError(t, err)
			require.NotEqual(t, l.guest("vm-01").HostKey, ssh.FingerprintSHA256(shown))
			_, again, err := l.connect("vm-01")
			require.NoError(t, err)
			require.Equal(t, ssh.FingerprintSHA256(shown), ssh.FingerprintSHA256(again))
		}},
		"key_changes at a reboot": {`{key_changes: true}`, func(t *testing.T, l *lab) {
			client := l.ssh("vm-01")
			_, before, err := l.connect("vm-01")
			require.NoError(t, err)
			_, _ = run(t, client, "reboot", "")
			ended(t, client)
			l.answering("vm-01")
			_, after, err := l.connect("vm-01")
			require.NoError(t, err)
			require.NotEqual(t, ssh.FingerprintSHA256(before), ssh.FingerprintSHA256(after))
		}},
		"reboots by itself": {`{reboots: 2, reboots_after: 50ms, reboot_takes: 50ms}`, func(t *testing.T, l *lab) {
			l.until("it has booted three times", func() bool { return l.guest("vm-01").Boots == 3 && l.guest("vm-01").Answering })
			out, _ := run(t, l.ssh("vm-01"), "cloud-init status", "")
			require.Equal(t, "status: done\n", out)
			require.Equal(t, 3, l.guest("vm-01").Boots)
			require.Equal(t, 2, l.Counts("vm-01").Reboots)
		}},
		"slow_cloud_init": {`{slow_cloud_init: 300ms}`, func(t *testing.T, l *lab) {
			client := l.ssh("vm-01")
			out, _ := run(t, client, "cloud-init status; systemctl is-system-running", "")
			require.Equal(t, "status: running\nstarting\n", out)
			out, _ = run(t, client, "cloud-init status --wait >/dev/null; cloud-init status; systemctl is-system-running", "")
			require.Equal(t, "status: done\nrunning\n", out)
		}},
		"cloud_init_error": {`{cloud_init_error: no datasource}`, func(t *testing.T, l *lab) {
			out, status := run(t, l.ssh("vm-01"), "cloud-init status --long", "")
			require.Equal(t, 1, status)
			require.Contains(t, out, "no datasource")
		}},
		"dies_after: powered off": {`{dies_after: 100ms}`, func(t *testing.T, l *lab) {
			ended(t, l.ssh("vm-01"))
			l.until("it is off", func() bool { return l.guest("vm-01").Power == "off" })
			require.Equal(t, 1, l.Counts("vm-01").PowerOffs)
		}},
		"dies_after: hangs": {`{dies_after: 300ms, dies: hang}`, func(t *testing.T, l *lab) {
			client := l.ssh("vm-01")
			l.until("it hangs", func() bool { return l.guest("vm-01").Hung })
			require.Equal(t, "on", l.guest("vm-01").Power)
			answered := make(chan struct{})
			go func() { _, _, _ = client.SendRequest("keepalive@openssh.com", true, nil); close(answered) }()
			select {
			case <-answered:
				t.Fatal("a guest that hangs answers")
			case <-time.After(200 * time.Millisecond):
			}
			_, err := greeting(l.guest("vm-01").Address, 200*time.Millisecond)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NoError(t, client.Close())
		}},
		"dies_in a command": {`{dies_in: chpasswd}`, func(t *testing.T, l *lab) {
			client := l.ssh("vm-01")
			_, status := run(t, client, "true", "")
			require.Zero(t, status)
			s, err := client.NewSession()
			require.NoError(t, err)
			require.Error(t, s.Run("echo before >/var/state; printf 'root:x' | chpasswd; echo after >/var/state"))
			ended(t, client)
			text, err := l.ReadFile("vm-01", "/var/state")
			require.NoError(t, err)
			require.Equal(t, "before\n", string(text))
		}},
		"exec_takes": {`{exec_takes: 200ms}`, func(t *testing.T, l *lab) {
			client := l.ssh("vm-01")
			began := time.Now()
			_, _ = run(t, client, "true", "")
			require.GreaterOrEqual(t, time.Since(began), 200*time.Millisecond)
		}},
		"clock_offset": {`{clock_offset: -1h}`, func(t *testing.T, l *lab) {
			out, _ := run(t, l.ssh("vm-01"), "date -u +%s", "")
			var seconds int64
			_, err := fmt.Sscan(out, &seconds)
			require.NoError(t, err)
			require.InDelta(t, time.Now().Add(-time.Hour).Unix(), seconds, 10)
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l := start(t, "vcenter: {hosts: 1, datastores: 1}\ncomputers: [{name: vm-01, loads: ["+c.loads+"]}]", 0) // one at a time: see Start
			t.Parallel()
			l.load("vm-01", "")
			c.check(t, l)
		})
	}
}

func reset(t *testing.T, l *lab) {
	t.Helper()
	task, err := l.vm("vm-01").Reset(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
}

func TestEachLoadHasItsOwnBehaviourAndTheLastRepeats(t *testing.T) {
	l := start(t, "defaults: {cloud_init_error: broken}\ncomputers: [{name: vm-01, loads: [{clone_fails: NoDiskSpace}, {silent: true}, {}]}, {name: vm-02, boots: [{silent: true}, {}]}]", 0)
	err := l.clone("vm-01", "").Wait(taskContext(t))
	require.True(t, fault.Is(err, &types.NoDiskSpace{}), "%v", err)
	l.load("vm-01", "")
	require.Equal(t, 2, l.guest("vm-01").Load)
	require.False(t, l.guest("vm-01").Answering)
	for range 2 {
		l.unload("vm-01")
		l.load("vm-01", "")
		out, _ := run(t, l.ssh("vm-01"), "cloud-init status --long", "")
		require.Contains(t, out, "broken", "defaults lie under every behaviour")
	}
	require.Equal(t, Counts{CloneCalls: 4, Clones: 3, PowerOns: 3, PowerOffs: 2, Destroys: 2}, onlyVM(l.Counts("vm-01")))

	vm := l.load("vm-02", "")
	require.False(t, l.guest("vm-02").Answering)
	task, err := vm.Reset(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	l.ssh("vm-02")
}

func onlyVM(c Counts) Counts {
	c.Connections, c.Logins, c.Commands, c.Finished = 0, 0, 0, 0
	return c
}

func TestClonesOfOneTemplateRunSideBySideAndCanBeCancelled(t *testing.T) {
	l := start(t, "defaults: {clone_takes: 3s}\ncomputers: [{name: vm-01}, {name: vm-02}, {name: vm-03}, {name: vm-04, loads: [{clone_hangs: true}]}]", 0)
	tasks := []*object.Task{l.clone("vm-01", ""), l.clone("vm-02", ""), l.clone("vm-03", "")}
	hung := l.clone("vm-04", "")
	// What is being cloned can be read meanwhile, and the task says what it works on.
	var read mo.Task
	require.NoError(t, property.DefaultCollector(l.client.Client).RetrieveOne(taskContext(t), tasks[0].Reference(), []string{"info"}, &read))
	require.Equal(t, types.TaskInfoStateRunning, read.Info.State)
	template, err := l.finder.VirtualMachine(taskContext(t), "debian12-template")
	require.NoError(t, err)
	require.Equal(t, template.Reference(), *read.Info.Entity)
	var recent mo.TaskManager
	require.NoError(t, property.DefaultCollector(l.client.Client).RetrieveOne(taskContext(t), *l.client.ServiceContent.TaskManager, []string{"recentTask"}, &recent))
	require.Contains(t, recent.RecentTask, tasks[0].Reference())

	// A name is taken from the beginning of its clone.
	err = l.clone("vm-01", "").Wait(taskContext(t))
	require.True(t, fault.Is(err, &types.DuplicateName{}), "%v", err)
	var begun, ended []time.Time
	for _, task := range tasks {
		require.NoError(t, task.Wait(taskContext(t)))
		require.NoError(t, property.DefaultCollector(l.client.Client).RetrieveOne(taskContext(t), task.Reference(), []string{"info"}, &read))
		begun, ended = append(begun, *read.Info.StartTime), append(ended, *read.Info.CompleteTime)
	}
	require.True(t, slices.MaxFunc(begun, time.Time.Compare).Before(slices.MinFunc(ended, time.Time.Compare)), "begun %v, ended %v", begun, ended)

	require.NoError(t, property.DefaultCollector(l.client.Client).RetrieveOne(taskContext(t), hung.Reference(), []string{"info"}, &read))
	require.Equal(t, types.TaskInfoStateRunning, read.Info.State)
	require.NoError(t, hung.Cancel(t.Context()))
	err = hung.Wait(taskContext(t))
	require.True(t, fault.Is(err, &types.RequestCanceled{}), "%v", err)
	_, err = l.finder.VirtualMachine(t.Context(), "vm-04")
	require.Error(t, err, "a cancelled clone makes no VM")
	require.Zero(t, l.Counts("vm-04").Clones)
}

// One that was found half made ended the process.
func TestVMsComeAndGoAndAreLookedForSideBySide(t *testing.T) {
	t.Parallel()
	l := start(t, "templates: [{name: debian12-template, distribution: debian12, snapshots: [r1]}]\nvcenter: {clones: 8, clones_per_host: 8}", 8)
	l.load("vm-0001", "")
	l.unload("vm-0001")
	index := object.NewSearchIndex(l.client.Client)
	var group errgroup.Group
	for n := range 8 {
		group.Go(func() error {
			name := fmt.Sprintf("vm-%04d", n+1)
			for range 4 {
				task := l.clone(name, "")
				for range 3 {
					if _, err := index.FindChild(t.Context(), l.folder, name); err != nil {
						return err
					}
				}
				if err := task.Wait(t.Context()); err != nil {
					return fmt.Errorf("clone: %w", err)
				}
				found, err := index.FindChild(t.Context(), l.folder, name)
				if err != nil {
					return err
				}
				vm := object.NewVirtualMachine(l.client.Client, found.Reference())
				if task, err = vm.PowerOff(t.Context()); err == nil {
					err = task.Wait(t.Context())
				}
				if err != nil {
					return fmt.Errorf("power off: %w", err)
				}
				if task, err = vm.Destroy(t.Context()); err == nil {
					err = task.Wait(t.Context())
				}
				if err != nil {
					return fmt.Errorf("destroy: %w", err)
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	for n := range 8 {
		counts := l.Counts(fmt.Sprintf("vm-%04d", n+1))
		require.Equal(t, counts.Clones, counts.Destroys)
	}
}

func TestALinkedCloneNeedsASnapshot(t *testing.T) {
	l := start(t, "", 1)
	template, err := l.finder.VirtualMachine(t.Context(), "debian12-template")
	require.NoError(t, err)
	folder, err := l.finder.Folder(t.Context(), "vm")
	require.NoError(t, err)
	pool, err := l.finder.ResourcePool(t.Context(), "*/Resources")
	require.NoError(t, err)
	ref := pool.Reference()
	location := types.VirtualMachineRelocateSpec{Pool: &ref, DiskMoveType: string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking)}
	_, err = template.Clone(t.Context(), folder, "vm-01", types.VirtualMachineCloneSpec{Location: location})
	require.True(t, fault.Is(err, &types.InvalidArgument{}), "%v", err)
	_, err = template.Clone(t.Context(), folder, "vm-01", types.VirtualMachineCloneSpec{Location: location, Snapshot: &types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: "snapshot-0"}})
	require.True(t, fault.Is(err, &types.ManagedObjectNotFound{}), "%v", err)
	task, err := template.Clone(t.Context(), folder, "vm-01", types.VirtualMachineCloneSpec{Location: types.VirtualMachineRelocateSpec{Pool: &ref}, PowerOn: true})
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	out, _ := run(t, l.ssh("vm-01"), "cat /etc/image-release", "")
	require.Equal(t, "debian12-template r3\n", out, "a full clone without a snapshot is of what the template holds now")
}

func TestFaultsComeAsScriptedAndAtRunTime(t *testing.T) {
	l := start(t, "computers: [{name: vm-01}, {name: vm-02}]\nvcenter: {faults: [{method: CloneVM_Task, computer: vm-01, fault: InsufficientResourcesFault, times: 2}]}", 0)
	for range 2 {
		err := l.clone("vm-01", "").Wait(taskContext(t))
		require.True(t, fault.Is(err, &types.InsufficientResourcesFault{}), "%v", err)
	}
	l.load("vm-02", "")
	vm := l.load("vm-01", "")

	require.NoError(t, l.AddFault(Fault{Method: "PowerOffVM_Task", Computer: "vm-01", Type: "TaskInProgress", At: atCall, Skip: 1, Times: 1}))
	task, err := vm.PowerOff(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	_, err = vm.PowerOff(t.Context())
	require.True(t, fault.Is(err, &types.TaskInProgress{}), "%v", err)

	require.NoError(t, l.AddFault(Fault{Method: "PowerOnVM_Task", NeverEnds: true}))
	task, err = vm.PowerOn(t.Context())
	require.NoError(t, err)
	var read mo.Task
	require.NoError(t, property.DefaultCollector(l.client.Client).RetrieveOne(taskContext(t), task.Reference(), []string{"info"}, &read))
	require.Equal(t, types.TaskInfoStateRunning, read.Info.State)
	require.NoError(t, task.Cancel(t.Context()))
	require.Error(t, task.Wait(taskContext(t)))
	l.ClearFaults()
	task, err = vm.PowerOn(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(taskContext(t)))
	l.ssh("vm-01")

	l.SetAPIDelay(100 * time.Millisecond)
	began := time.Now()
	_, err = methods.GetCurrentTime(t.Context(), l.client.Client)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), 100*time.Millisecond)
	require.ErrorContains(t, l.AddFault(Fault{Method: "CloneVM_Task", Type: "NoSuchFault"}), "vSphere has no such fault")
}

func TestSessionsCanBeEnded(t *testing.T) {
	l := start(t, "vcenter: {session_timeout: 30m}", 1)
	other, err := l.login(User, l.Password(), l.Thumbprint())
	require.NoError(t, err)
	require.Equal(t, 2, l.ExpireSessions())
	for _, c := range []*vim25.Client{l.client.Client, other.Client} {
		_, err := methods.GetCurrentTime(t.Context(), c)
		require.True(t, fault.Is(err, &types.NotAuthenticated{}), "%v", err)
	}
	_, err = l.login(User, l.Password(), l.Thumbprint())
	require.NoError(t, err)
	require.Equal(t, 1, l.ExpireSessions())
}

func TestTheControlAPIDoesWhatItSays(t *testing.T) {
	l := start(t, "", 1)
	call := func(method, path, body string) (int, string) {
		request, err := http.NewRequestWithContext(t.Context(), method, l.Control()+path, strings.NewReader(body))
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(text)
	}
	status, text := call("GET", "/guests/vm-01", "")
	require.Equal(t, 404, status)
	require.Contains(t, text, `was not cloned yet`)
	l.load("vm-01", "")
	l.ssh("vm-01")
	status, text = call("GET", "/status", "")
	require.Equal(t, 200, status)
	var st Status
	require.NoError(t, json.Unmarshal([]byte(text), &st))
	require.Len(t, st.Guests, 1)
	require.Equal(t, "vm-01", st.Guests[0].Name)
	require.Equal(t, 1, st.Counts["vm-01"].Clones)
	require.Equal(t, 1, st.Calls["CloneVM_Task"])
	status, text = call("GET", "/guests/vm-01/files/etc/image-release", "")
	require.Equal(t, 200, status)
	require.Equal(t, "debian12-template r1\n", text)
	status, _ = call("GET", "/guests/vm-01/files/nothing", "")
	require.Equal(t, 404, status)

	status, text = call("POST", "/guests/vm-01", `{"loads": [{"silent": true}]}`)
	require.Equal(t, 204, status, text)
	l.unload("vm-01")
	l.load("vm-01", "")
	require.False(t, l.guest("vm-01").Answering)
	for body, want := range map[string]string{`{"loads": [{"slient": true}]}`: "slient", `{"loads": [{"late": "soon"}]}`: "soon", `{"loads": [{"refuses": "all"}]}`: "write connections, logins or commands", `[`: ""} {
		status, text = call("POST", "/guests/vm-01", body)
		require.Equal(t, 400, status, body)
		require.Contains(t, text, want)
	}
	status, text = call("POST", "/computers", `[{"name": "vm-99", "loads": [{"late": "1s"}]}]`)
	require.Equal(t, 204, status, text)
	written, err := os.ReadFile(l.Catalog())
	require.NoError(t, err)
	require.Contains(t, string(written), "vm-99")
	status, text = call("POST", "/fault", `{"method": "CloneVM_Task", "fault": "NoDiskSpace", "times": 1}`)
	require.Equal(t, 204, status, text)
	require.True(t, fault.Is(l.clone("vm-99", "").Wait(taskContext(t)), &types.NoDiskSpace{}))
	status, _ = call("DELETE", "/fault", "")
	require.Equal(t, 204, status)
	status, text = call("POST", "/expire-sessions", "")
	require.Equal(t, 200, status)
	require.JSONEq(t, `{"ended": 1}`, text)
	status, text = call("POST", "/guests/vm-01/do/dance", "")
	require.Equal(t, 400, status)
	require.Contains(t, text, "use reboot, power-off, hang, drop or new-key")
	status, text = call("POST", "/guests/vm-01/do/power-off", "")
	require.Equal(t, 204, status, text)
	require.Equal(t, "off", l.guest("vm-01").Power)
	status, _ = call("POST", "/calls/reset", "")
	require.Equal(t, 204, status)
	require.Empty(t, l.Calls())
}

func TestTheCatalogIsOneThatBerthReads(t *testing.T) {
	for name, script := range map[string]string{"no script": "", "the demonstration's": string(demoScript)} {
		t.Run(name, func(t *testing.T) {
			l := start(t, script, 3)
			c, err := catalog.Load(l.Catalog(), catalog.Options{})
			require.NoError(t, err)
			require.Len(t, c.Computers, len(l.Computers()))
			require.Equal(t, l.URL(), c.Sites[0].VMware.URL)
			require.Equal(t, l.Thumbprint(), c.Sites[0].VMware.Thumbprint)
			for i, computer := range l.Computers() {
				require.Equal(t, computer.Address, c.Computers[i].Address)
				noun, ok := l.Reservable(computer.Name)
				require.True(t, ok)
				require.Equal(t, c.Computers[i], noun)
			}
			image, err := c.Image("debian12")
			require.NoError(t, err)
			require.Equal(t, 3, image.Revision)
			password, err := os.ReadFile(c.Secrets["vcenter-lab"].File)
			require.NoError(t, err)
			require.Equal(t, l.Password(), strings.TrimSpace(string(password)))
		})
	}
}

func TestAFolderIsUsedAgainAndTheVMsAreGone(t *testing.T) {
	dir := t.TempDir()
	one, err := Start(t.Context(), Options{Dir: dir})
	require.NoError(t, err)
	first := []string{one.Password(), one.Thumbprint(), string(one.PrivateKey())}
	url := one.URL()
	one.Stop()
	one.Stop()
	select {
	case <-one.Done():
	default:
		t.Fatal("a stopped site is done")
	}
	address := strings.TrimSuffix(strings.TrimPrefix(url, "https://"), "/sdk")
	two, err := Start(t.Context(), Options{Dir: dir, Listen: address})
	require.NoError(t, err)
	defer two.Stop()
	require.Equal(t, first, []string{two.Password(), two.Thumbprint(), string(two.PrivateKey())})
	require.Equal(t, url, two.URL())
	require.Empty(t, two.Status().Guests)
	_, err = Start(t.Context(), Options{Listen: address})
	require.ErrorContains(t, err, "is another site running there?")
}

func TestASiteIsOnTheLoopbackOnly(t *testing.T) {
	for _, o := range []Options{{Listen: "0.0.0.0:0"}, {Listen: "8989"}, {Control: "192.0.2.1:1"}, {Guests: "[::]:22"}, {Listen: "localhost:0"}} {
		_, err := Start(t.Context(), o)
		require.Error(t, err, "%+v", o)
		require.ErrorContains(t, err, "127.0.0.1:8989")
	}
}

func TestAScriptIsCheckedWhole(t *testing.T) {
	_, err := ParseScript("bad.yaml", []byte(`vcenter:
  hosts: -1
  faults:
    - {method: "", fault: NoDiskSpace}
    - {method: Login, never_ends: true}
    - {method: CloneVM_Task, fault: Nonsense}
templates:
  - {name: t, distribution: plan9, snapshots: []}
computers:
  - name: Vm-01
    address: 192.0.2.1:22
    loads:
      - late: -1s
      - {refuses: all, dies: slowly}
  - {name: t, address: "127.0.0.1:22001", loads: [{}], boots: [{}]}
  - {name: vm-03, address: "127.0.0.1:22001"}
`))
	require.Error(t, err)
	for _, want := range []string{`line 2: vcenter.hosts is "-1"`, `line 4: vcenter.faults[0].method`, `line 5: vcenter.faults[1].method is "Login"`, `line 6: vcenter.faults[2].fault is "Nonsense"`,
		`line 8: templates[0].distribution is "plan9"`, `line 8: templates[0].snapshots`, `line 10: computers[0].name is "Vm-01"`, `line 11: computers[0].address is "192.0.2.1:22"`,
		`line 13: computers[0].loads[0].late is "-1s"`, `line 14: computers[0].loads[1].refuses is "all"`, `line 14: computers[0].loads[1].dies is "slowly"`,
		`line 15: computers[1].boots`, `line 15: computers[1].name is "t": it stands at templates[0].name already`, `line 16: computers[2].address is "127.0.0.1:22001": it stands at computers[1].address already`} {
		require.ErrorContains(t, err, want)
	}
	for text, want := range map[string]string{
		"computers:\n- {name: a, colour: red}": `line 2: field colour not found in a Computer`, "computers: 3": "line 1", "- a": "a script is a mapping", "computers: [": "line 1",
		"computers:\n- name: a\n  loads: [{late: soon}]":                                     `line 3`,
		"images:\n- {name: a, nothing: 1}":                                                   `line 2: images: json: unknown field "nothing"`,
		"images:\n- {name: A, revision: 0}":                                                  `image.revision`,
		"defaults: {silent: true}\nimages:\n- {name: a, revision: 1}\ncomputers: [{nam: x}]": `field nam not found`,
	} {
		_, err := ParseScript("x", []byte(text))
		require.ErrorContains(t, err, want, text)
	}
	_, err = DemoScript()
	require.NoError(t, err)
	empty, err := ParseScript("x", nil)
	require.NoError(t, err)
	require.Empty(t, empty.Computers)
}

func TestHundredsOfGuestsWaitInLittleMemory(t *testing.T) {
	const guests = 300
	l := start(t, "defaults: {slow_cloud_init: 1h}", guests)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	tasks := make([]*object.Task, guests)
	for i := range guests {
		tasks[i] = l.clone(l.Computers()[i].Name, "")
	}
	l.until("all answer", func() bool {
		answering := 0
		for _, g := range l.Status().Guests {
			if g.Answering {
				answering++
			}
		}
		return answering == guests
	})
	took := time.Since(began)
	// All have ended by now. Waiting for each from its begin would have the simulator look through every task for every waiter
	// whenever one of them changes.
	for _, task := range tasks {
		require.NoError(t, task.Wait(t.Context()))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / guests
	t.Logf("%d guests answer after %s, %d KiB of heap each, with their VMs", guests, took, each>>10)
	require.Less(t, each, int64(400<<10))
	out, _ := run(t, l.ssh("vm-300"), "cloud-init status", "")
	require.Equal(t, "status: running\n", out)
}

func TestAPortThatIsTakenIsWaitedFor(t *testing.T) {
	l := start(t, "computers: [{name: vm-01}]", 0)
	require.NoError(t, l.AddComputers(Computer{Name: "vm-02", Address: l.Computers()[0].Address}))
	l.load("vm-01", "")
	l.answering("vm-01")
	l.load("vm-02", "")
	l.until("the fault is told", func() bool { return strings.Contains(l.guest("vm-02").Fault, "in use") })
	l.unload("vm-01")
	l.answering("vm-02")
}

func TestReadFileTellsWhatIsMissing(t *testing.T) {
	l := start(t, "", 1)
	_, err := l.ReadFile("vm-01", "/etc/hosts")
	require.ErrorAs(t, err, new(*NoGuestError))
	l.load("vm-01", "")
	_, err = l.ReadFile("vm-01", "/nothing")
	require.True(t, errors.Is(err, os.ErrNotExist), "%v", err)
	require.NotEmpty(t, bytes.TrimSpace(l.PrivateKey()))
}

func TestASiteOfANetworkOfItsOwnAnswersThere(t *testing.T) {
	script, err := ParseScript("site.yaml", []byte(`
xcat:
  osimages: [{name: rocky9.4-x86_64-install-compute, image: rocky9, distribution: rocky9}]
  nodes: [{name: node-01}, {name: node-02}]
computers: [{name: vm-01}, {name: vm-02}]
`))
	require.NoError(t, err)
	// Another network than the loopback could be had by root alone; to the site they are the same.
	network := netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 32, byte(os.Getpid() >> 8), 0}), 24)
	first := network.Addr().Next()
	for name, o := range map[string]Options{
		"too small": {Network: netip.PrefixFrom(first, 25)}, "IPv6": {Network: netip.MustParsePrefix("fd00::/16")},
		"the guests elsewhere": {Network: network, Guests: "192.0.2.1:22001"}, "control of everybody without a network": {Control: "0.0.0.0:0"},
	} {
		_, err := Start(t.Context(), o)
		require.Error(t, err, name)
	}
	site, err := Start(t.Context(), Options{Dir: t.TempDir(), Script: script, Network: network, Control: "0.0.0.0:0"})
	require.NoError(t, err)
	defer site.Stop()
	require.Equal(t, "https://"+netip.AddrPortFrom(first, 8989).String()+"/sdk", site.URL())
	catalog, err := os.ReadFile(site.Catalog())
	require.NoError(t, err)
	for _, address := range []netip.AddrPort{netip.AddrPortFrom(first, 3001), netip.AddrPortFrom(first, 22001), netip.AddrPortFrom(first, 22002),
		netip.AddrPortFrom(first.Next(), 22001), netip.AddrPortFrom(first.Next().Next(), 22001)} {
		require.Contains(t, string(catalog), address.String())
	}
}
