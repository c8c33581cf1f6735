//go:build e2e

package libvirt

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/labtest"
	"berth/internal/libvirthost"
	"berth/reservation"
)

// otherAddress is an address of the guests' network from which nobody may reach a configured guest's control port.
const otherAddress = "10.77.0.2"

// TestGuests loads real guests, one scenario beside the other, on one host.
func TestGuests(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.host.Bridged(t.Context(), net.ParseIP(otherAddress)))
	type scenario struct {
		name string
		run  func(*testing.T, *world)
	}
	together := func(name string, scenarios ...scenario) {
		t.Run(name, func(t *testing.T) {
			for _, one := range scenarios {
				t.Run(one.name, func(t *testing.T) {
					t.Parallel()
					one.run(t, w)
				})
			}
		})
	}
	// The full Debian takes a processor for a minute, and each of its commands a second, where instructions are translated.
	// A guest that hangs takes none.
	together("beside a full Debian",
		scenario{"a full Debian", testDebian},
		scenario{"guests that hang in their boot", testHangs},
	)
	together("all",
		scenario{"a small guest, and its computer used again", testUsedAgain},
		scenario{"a small guest by UEFI", testUEFI},
		scenario{"a guest that dies while it is configured", testDies},
		scenario{"a guest that shows another host key", testOtherKey},
		scenario{"libvirtd is killed and restarted", testDaemonKilled},
		scenario{"a worker killed in each stage", testWorkerKilled},
		scenario{"cancelled in each stage", testCancelled},
		scenario{"the host's disk is full", testDiskFull},
		scenario{"the master on the host is damaged", testMasterDamaged},
		scenario{"ten loads of an image that is not on the host", testTenLoads},
	)
	domains, err := w.host.Domains(t.Context())
	require.NoError(t, err)
	require.Empty(t, domains, "no domain is left")
	volumes, err := w.host.Volumes(libvirthost.Pool)
	require.NoError(t, err)
	for _, volume := range volumes {
		require.True(t, strings.HasPrefix(volume, "berth_image_"), "%s is left", volume)
	}
	t.Logf("left in the pool: %q", volumes)
}

// configured holds every claim of PostLoad against the guest itself.
func (b *booking) configured(t *testing.T, status reservation.Status) {
	t.Helper()
	require.Equal(t, reservation.PhaseReady, status.Phase)
	last := status.Phases[len(status.Phases)-1]
	claims := map[string]reservation.Step{}
	for _, step := range last.Steps {
		claims[step.Name] = step
		t.Logf("%s: %-20s %-8s %s", b.computer.Name, step.Name, step.Result, step.Detail)
		require.NotEqual(t, reservation.StepFailed, step.Result, step.Name)
	}
	done := func(step string) {
		t.Helper()
		require.Equal(t, reservation.StepDone, claims[step].Result, "%s: %+v", step, claims[step])
	}

	// One login, and the answers apart by lines that no answer has.
	questions := []struct{ key, line string }{
		{"rules", "nft list table inet berth"},
		{"addresses", "ip -4 -o addr show scope global"},
		{"time", "date +%s"},
		{"root", "grep ^root: /etc/shadow"},
		{"keys", "cat /root/.ssh/authorized_keys"},
		{"ssh folder", "ls /root/.ssh"},
		{"hostname", "hostname; cat /etc/hostname; grep 127.0.1.1 /etc/hosts"},
		{"note", "cat /root/note"},
		{"tag", "cat /etc/berth/load.json"},
	}
	var line []string
	for _, q := range questions {
		line = append(line, "echo '=== "+q.key+"'", q.line)
	}
	asked := time.Now()
	answers := map[string]string{}
	for _, part := range strings.Split(b.ask(t, status, strings.Join(line, "; ")), "=== ")[1:] {
		key, answer, _ := strings.Cut(part, "\n")
		answers[key] = strings.TrimSpace(answer)
	}

	require.Contains(t, claims, "firewall")
	require.Contains(t, answers["rules"], "tcp dport 22 drop")
	require.Contains(t, answers["rules"], "ip saddr "+libvirthost.Gateway)
	done("public address")
	require.Equal(t, b.computer.Address, status.PublicAddress)
	require.Contains(t, answers["addresses"], " "+status.PublicAddress+"/")
	now, err := strconv.ParseInt(answers["time"], 10, 64)
	require.NoError(t, err)
	require.InDelta(t, asked.Unix(), now, 30, "the guest's clock")
	done("root password")
	require.Regexp(t, `^root:\$?[A-Za-z0-9]`, answers["root"], "root's password was locked in the image and is a hash now")
	done("leftover keys")
	require.Equal(t, b.public, withoutComment(answers["keys"]), "only our key is left of root's")
	require.NotContains(t, answers["ssh folder"], "id_")
	done("hostname")
	require.Equal(t, 3, strings.Count(answers["hostname"], b.computer.Name), answers["hostname"])
	done("script all/10-note")
	require.Equal(t, fmt.Sprintf("%s %d", b.name, status.Attempt.Number), answers["note"])
	done("tag")
	var tag struct {
		Image, Computer, Reservation, Run string
		Revision, Attempt                 int
		PostLoad                          string `json:"post_load"`
	}
	require.NoError(t, json.Unmarshal([]byte(answers["tag"]), &tag))
	require.Equal(t, []any{b.image.Name, b.computer.Name, b.name, b.run.GetRunID(), b.image.Revision, status.Attempt.Number, "done"},
		[]any{tag.Image, tag.Computer, tag.Reservation, tag.Run, tag.Revision, tag.Attempt, tag.PostLoad})

	// Nobody else reaches the control port; it is our rules that close it.
	out, err := b.login(t, status, "true", "-b", otherAddress, "-o", "ConnectTimeout=5")
	require.Error(t, err, "another address gets in: %s", out)

	state, err := b.host.Virsh(t.Context(), "domstate", b.computer.Name)
	require.NoError(t, err)
	require.Equal(t, "running", state)
	metadata, err := b.host.Virsh(t.Context(), "dumpxml", b.computer.Name)
	require.NoError(t, err)
	require.Contains(t, metadata, reservation.Mark{Reservation: b.name, Run: b.run.GetRunID(), Attempt: status.Attempt.Number}.String(), "the fencing mark")
	for _, volume := range b.volumes(t) {
		if text, err := os.ReadFile(filepath.Join(b.host.PoolDir, volume)); err == nil && strings.Contains(volume, "seed") {
			require.NotContains(t, string(text), "PRIVATE KEY", "the handed host key is taken off the host once the guest has it")
		}
	}
}

func withoutComment(key string) string {
	return strings.Join(strings.Fields(key)[:2], " ")
}

func testDebian(t *testing.T, w *world) {
	l := w.newLab(t, "debian", labOptions{master: w.images.Debian, change: func(i *reservation.Image) {
		i.Sources["libvirt"]["memory_mib"] = "512"
	}})
	l.worker(t)
	b := l.reserve(t, 0, "r-debian")
	status := b.ready(t)
	require.Equal(t, "load done, post-load done", verdicts(status))
	b.configured(t, status)
	require.Equal(t, "status: done", b.ask(t, status, "cloud-init status"))
	require.Equal(t, "running", b.ask(t, status, "systemctl is-system-running"))
	require.Equal(t, "enabled\nenabled", b.ask(t, status, "systemctl is-enabled ssh.service berth-firewall.service"))
	require.Equal(t, b.computer.Name, b.ask(t, status, "hostnamectl --static"))
	for _, step := range status.Phases[1].Steps {
		if step.Name == "firewall" || step.Name == "sshd" {
			require.Equal(t, reservation.StepDone, step.Result, "%+v", step)
		}
	}
	b.release(t)
}

func testUsedAgain(t *testing.T, w *world) {
	// Whoever made this image has left keys behind.
	master, err := w.images.SmallWith(t.Context(), w.dir, map[string]string{"root/.ssh/id_rsa": "-----BEGIN OPENSSH PRIVATE KEY-----\nleftover\n"})
	require.NoError(t, err)
	l := w.newLab(t, "again", labOptions{master: master})
	l.worker(t)
	first := l.reserve(t, 0, "r-first")
	status := first.ready(t)
	require.Equal(t, "load done, post-load done", verdicts(status))
	first.configured(t, status)
	require.Equal(t, "used", first.ask(t, status, "echo used >/root/used; sync; cat /root/used"))

	// The reservation is lost without a word, and its domain runs on.
	require.NoError(t, w.client.TerminateWorkflow(t.Context(), first.run.GetID(), first.run.GetRunID(), "the test"))
	old, err := w.host.Virsh(t.Context(), "domuuid", first.computer.Name)
	require.NoError(t, err)

	second := l.reserve(t, 0, "r-second")
	again := second.ready(t)
	require.Equal(t, "load done, post-load done", verdicts(again))
	second.configured(t, again)
	require.Equal(t, "gone", second.ask(t, again, "test -e /root/used || echo gone"), "the disk is a new one")
	require.NotEqual(t, status.HostKey, again.HostKey, "each load has a host key of its own")
	now, err := w.host.Virsh(t.Context(), "domuuid", first.computer.Name)
	require.NoError(t, err)
	require.NotEqual(t, old, now)
	require.Len(t, second.volumes(t), 2, "one disk, one seed")
	second.release(t)
}

func testUEFI(t *testing.T, w *world) {
	descriptions, err := filepath.Glob("/usr/share/qemu/firmware/*.json")
	require.NoError(t, err)
	if len(descriptions) == 0 {
		t.Skip("SKIP: no firmware for UEFI is here; on Debian: apt-get install ovmf")
	}
	l := w.newLab(t, "uefi", labOptions{change: func(i *reservation.Image) { i.Sources["libvirt"]["firmware"] = "uefi" }})
	l.worker(t)
	b := l.reserve(t, 0, "r-uefi")
	status := b.ready(t)
	require.Equal(t, "load done, post-load done", verdicts(status))
	require.Equal(t, "by UEFI", b.ask(t, status, "test -d /sys/firmware/efi && echo by UEFI"))
	b.configured(t, status)
	variables := "/var/lib/libvirt/qemu/nvram/" + b.computer.Name + "_VARS.fd"
	require.FileExists(t, variables)
	b.release(t)
	require.NoFileExists(t, variables, "the firmware's variables go with the reservation")
}

// hangs is a boot script that reads the seed before the guest itself does: whether the guest hangs is a matter of which computer
// it is, which load of it, and which boot of that load.
const hangs = `
echo boot >>/var/lib/boots
sync
modprobe -a isofs nls_ascii nls_cp437 2>/dev/null
until test -b /dev/vdb; do usleep 100000; done
mount -r -t iso9660 /dev/vdb /mnt
which="$(sed -n 's/^local-hostname: //p' /mnt/meta-data), load $(sed -n 's/^instance-id: .*-//p' /mnt/meta-data), boot $(wc -l </var/lib/boots)"
umount /mnt
case "$which" in
*-1,*", boot 1" | *-2,*" load 1,"* | *-3,*)
	say "hangs here: $which"
	while :; do sleep 60; done
	;;
esac
`

// testHangs has guests hang side by side: one in the first boot of its load, one in its whole first load, one for good.
func testHangs(t *testing.T, w *world) {
	const inLoad, forGood = "hangs-in-a-load", "hangs-for-good"
	master, err := w.images.SmallWith(t.Context(), w.dir, map[string]string{"etc/rc.d/10-hang": hangs})
	require.NoError(t, err)
	proxy := newProxy(t)
	l := w.newLab(t, "hangs", labOptions{master: master, computers: 3, socket: proxy.path,
		change: func(i *reservation.Image) { i.Limits.Response = seconds(120) }, // its first boot has begun by then, on a busy machine, too
		others: map[string]func(*reservation.Image){
			// The second attempt has half as much again, and must not need a reset.
			inLoad: func(i *reservation.Image) { i.Limits.Response, i.Limits.ResponseAgain = seconds(120), seconds(10) },
			forGood: func(i *reservation.Image) {
				i.Attempts, i.Limits.Response, i.Limits.ResponseAgain = 2, seconds(20), seconds(20)
			},
		}})
	l.worker(t)
	boot, load, good := l.reserve(t, 0, "r-hangs-in-a-boot"), l.reserveImage(t, 1, inLoad, "r-"+inLoad), l.reserveImage(t, 2, forGood, "r-"+forGood)

	status := boot.ready(t)
	require.Equal(t, "load done, post-load done", verdicts(status), "the power reset saves the attempt")
	require.Contains(t, stages(status.Phases[1]), "power reset")
	require.Equal(t, "2", boot.ask(t, status, "wc -l </var/lib/boots"))
	boot.release(t)

	status, err = good.result(t)
	require.Error(t, err)
	require.Equal(t, reservation.OutcomeFailed, status.Outcome)
	require.Equal(t, "load done, post-load reload, load done, post-load reload", verdicts(status))
	require.Contains(t, status.Reason, "a power reset and")
	good.gone(t)

	status = load.ready(t)
	require.Equal(t, "load done, post-load reload, load done, post-load done", verdicts(status), "the power reset does not save the attempt")
	require.Equal(t, 2, status.Attempt.Number)
	require.Contains(t, stages(status.Phases[1]), "power reset")
	require.Contains(t, status.Phases[1].Reason, "a power reset and")
	require.NotContains(t, stages(status.Phases[len(status.Phases)-1]), "power reset")
	require.Equal(t, "1", load.ask(t, status, "wc -l </var/lib/boots"), "the disk is a new one")
	load.configured(t, status)
	load.release(t)

	for domain, resets := range map[string]int{boot.computer.Name: 1, load.computer.Name: 1, good.computer.Name: 2} {
		require.Equal(t, resets, proxy.count(domainReset, domain), "resets of %s that libvirt was asked for", domain)
	}
}

func stages(phase reservation.PhaseRecord) []string {
	var names []string
	for _, stage := range phase.Stages {
		names = append(names, stage.Name)
	}
	return names
}

func testDies(t *testing.T, w *world) {
	l := w.newLab(t, "dies", labOptions{change: func(i *reservation.Image) { i.PostLoad.Scripts = []string{"linger"} }})
	l.worker(t)
	b := l.reserve(t, 0, "r-dies")
	b.until(t, func(m moment) bool {
		return m.Stage().Name == "configure" && strings.Contains(m.Stage().Detail, "linger/50-hold")
	})
	_, err := w.host.Virsh(t.Context(), "destroy", b.computer.Name)
	require.NoError(t, err)
	status := b.ready(t)
	require.Equal(t, "load done, post-load reload, load done, post-load done", verdicts(status))
	require.Contains(t, status.Phases[1].Reason, "the guest died")
	b.configured(t, status)
	b.release(t)
}

func testOtherKey(t *testing.T, w *world) {
	master, err := w.images.SmallWith(t.Context(), w.dir, map[string]string{"etc/rc.late/10-key": `
rm -f /etc/ssh/ssh_host_ed25519_key
ssh-keygen -q -t ed25519 -N '' -C '' -f /etc/ssh/ssh_host_ed25519_key
`})
	require.NoError(t, err)
	l := w.newLab(t, "other-key", labOptions{master: master})
	l.worker(t)
	b := l.reserve(t, 0, "r-other-key")
	status, err := b.result(t)
	require.Error(t, err)
	require.Equal(t, reservation.OutcomeFailed, status.Outcome)
	require.Equal(t, "load done, post-load fail", verdicts(status))
	require.Contains(t, status.Reason, "host key")
	b.gone(t)
}

// testDaemonKilled kills libvirtd under a load that brings its image, and under one that is configured. It is the one daemon
// of all scenarios here, so each of them meets the same fault.
func testDaemonKilled(t *testing.T, w *world) {
	master, err := w.images.SmallWith(t.Context(), w.dir, map[string]string{"etc/motd": "for the daemon's scenario\n"})
	require.NoError(t, err)
	proxy := newProxy(t)
	l := w.newLab(t, "daemon", labOptions{master: master, computers: 2, socket: proxy.path})
	l.worker(t)
	upload := proxy.hold(volumeUpload, 1)
	fetching := l.reserve(t, 0, "r-fetching")
	<-upload.reached
	w.host.Kill()
	upload.open()
	require.NoError(t, w.host.Launch(t.Context()))
	fetching.atStage(t, 1, reservation.PhasePostLoad, "tcp")
	w.host.Quit()
	require.NoError(t, w.host.Launch(t.Context()))
	status := fetching.ready(t)
	require.Equal(t, "load done, post-load done", verdicts(status), "a fault costs no attempt")
	require.Equal(t, 1, status.Attempt.Number)
	fetching.configured(t, status)
	fetching.release(t)
}

// point is where a load is held: before a call to libvirt, or at a stage that the guest takes its time for.
type point struct {
	name  string
	phase reservation.Phase
	stage string
	call  procedure
	nth   int  // of the calls
	after bool // libvirt has done it, and the worker does not hear
	fresh bool // the image is not on the host yet
}

func points() []point {
	load, postLoad := reservation.PhaseLoad, reservation.PhasePostLoad
	return []point{
		{name: "before its image is sent", phase: load, stage: "fetch image", call: volumeUpload, nth: 1, fresh: true},
		{name: "before it is defined", phase: load, stage: "define", call: domainDefine, nth: 1},
		{name: "after it is defined", phase: load, stage: "define", call: domainDefine, nth: 1, after: true},
		{name: "before its disk is made", phase: load, stage: "make disk", call: volumeCreate, nth: 1},
		{name: "before its seed is written", phase: load, stage: "write seed", call: volumeUpload, nth: 1},
		{name: "before it is powered on", phase: load, stage: "power on", call: domainStart, nth: 1},
		{name: "after it is powered on", phase: load, stage: "power on", call: domainStart, nth: 1, after: true},
		{name: "while it boots", phase: postLoad, stage: "tcp"},
		{name: "while it is configured", phase: postLoad, stage: "configure"},
	}
}

// holdAt brings a load to a point and returns it there.
func holdAt(t *testing.T, w *world, prefix string, n int, p point) (*booking, *labtest.Worker, *proxy, *gate) {
	t.Helper()
	o := labOptions{change: func(i *reservation.Image) { i.PostLoad.Scripts = []string{"linger"} }}
	if p.fresh {
		master, err := w.images.SmallWith(t.Context(), w.dir, map[string]string{"etc/motd": prefix + " " + p.name + "\n"})
		require.NoError(t, err)
		o.master = master
	} else {
		w.ensureMaster(t)
	}
	proxy := newProxy(t)
	o.socket = proxy.path
	l := w.newLab(t, fmt.Sprintf("%s-%d", prefix, n), o)
	victim := l.worker(t)
	var g *gate
	if p.call != 0 {
		g = proxy.hold(p.call, p.nth)
		g.answer = p.after
	}
	b := l.reserve(t, 0, "r-"+l.name)
	if g != nil {
		select {
		case <-g.reached:
		case <-time.After(patience):
			require.FailNow(t, "the load does not come to the point", b.look(t))
		}
	}
	b.until(t, func(m moment) bool {
		return m.Pending != nil && m.Phase == p.phase && m.Stage().Name == p.stage &&
			(p.stage != "configure" || strings.Contains(m.Stage().Detail, "linger"))
	})
	return b, victim, proxy, g
}

func testWorkerKilled(t *testing.T, w *world) {
	for n, p := range points() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			b, victim, proxy, g := holdAt(t, w, "killed", n, p)
			victim.Kill()
			if g != nil {
				g.open()
			}
			b.worker(t)
			if p.stage == "configure" {
				labtest.Eventually(t, patience, func() (bool, string) {
					out, err := b.login(t, b.status(t), "touch /run/go-on")
					return err == nil, out
				})
			}
			b.until(t, func(m moment) bool {
				return m.Phase == reservation.PhasePostLoad && m.Stage().Name == "configure" || m.Outcome == reservation.OutcomeReady
			})
			status := b.letGo(t)
			require.Equal(t, "load done, post-load done", verdicts(status))
			require.Equal(t, 1, status.Attempt.Number)
			b.configured(t, status)
			require.Len(t, b.volumes(t), 2, "one disk, one seed")
			require.LessOrEqual(t, proxy.count(domainStart, b.computer.Name), 2)
			boots := b.ask(t, status, "cat /proc/sys/kernel/random/boot_id; ls /var/lib/seeded")
			require.Regexp(t, regexp.MustCompile(`^[0-9a-f-]{36}\n`), boots)
			b.release(t)
		})
	}
}

// letGo lets the lingering script of the first attempt end, and returns the status of the ready computer.
func (b *booking) letGo(t *testing.T) reservation.Status {
	t.Helper()
	labtest.Eventually(t, patience, func() (bool, string) {
		m := b.look(t)
		if m.Outcome == reservation.OutcomeReady {
			return true, ""
		}
		if m.Stage().Name == "configure" && strings.Contains(m.Stage().Detail, "linger") {
			pinned := reservation.Status{HostKey: strings.TrimPrefix(m.Progress.Kept["linux.hostkey"], "ssh-ed25519 ")}
			out, err := b.login(t, pinned, "touch /run/go-on")
			return false, fmt.Sprint(m, out, err)
		}
		return false, m.String()
	})
	return b.status(t)
}

func testCancelled(t *testing.T, w *world) {
	for n, p := range points() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			b, _, _, g := holdAt(t, w, "cancelled", n, p)
			require.NoError(t, b.client.CancelWorkflow(t.Context(), b.run.GetID(), b.run.GetRunID()))
			if g != nil {
				g.open()
			}
			b.cancelled(t)
		})
	}
}

// ensureMaster has the small guest's master on the host.
func (w *world) ensureMaster(t *testing.T) {
	t.Helper()
	w.master.Do(func() {
		l := w.newLab(t, "master", labOptions{})
		l.worker(t)
		b := l.reserve(t, 0, "r-master")
		b.until(t, func(m moment) bool { return m.Phase == reservation.PhasePostLoad })
		b.cancel(t)
	})
}

const mebibyte = 1 << 20

func testDiskFull(t *testing.T, w *world) {
	const pool = "full"
	size := w.images.Small.Size
	require.NoError(t, w.host.AddSmallPool(t.Context(), pool, size/2))
	l := w.newLab(t, "full", labOptions{pool: pool})
	l.worker(t)
	b := l.reserve(t, 0, "r-full")
	status, err := b.result(t)
	require.Error(t, err)
	require.Equal(t, reservation.OutcomeFailed, status.Outcome)
	require.Equal(t, "load fail", verdicts(status))
	b.gone(t)

	// Half of the image is there at most, and is never taken for the whole.
	require.NoError(t, w.host.Resize(pool, size+200*mebibyte))
	again := l.reserve(t, 0, "r-room")
	ready := again.ready(t)
	again.configured(t, ready)
	again.release(t)
}

func testMasterDamaged(t *testing.T, w *world) {
	const pool = "damaged"
	require.NoError(t, w.host.AddSmallPool(t.Context(), pool, 3*w.images.Small.Size+200*mebibyte))
	l := w.newLab(t, "damaged", labOptions{pool: pool})
	l.worker(t)
	b := l.reserve(t, 0, "r-whole")
	b.until(t, func(m moment) bool { return m.Phase == reservation.PhasePostLoad })
	b.cancel(t)

	var master string
	volumes, err := w.host.Volumes(pool)
	require.NoError(t, err)
	for _, volume := range volumes {
		if path := filepath.Join(filepath.Dir(w.host.PoolDir), pool, volume); !strings.HasSuffix(volume, ".checked") {
			master = path
		}
	}
	require.NotEmpty(t, master, "%q", volumes)
	info, err := os.Stat(master)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o222, "the master is read-only")
	file, err := os.OpenFile(master, os.O_WRONLY, 0) // root may
	require.NoError(t, err)
	_, err = file.WriteAt(make([]byte, 4*mebibyte), info.Size()/2)
	require.NoError(t, err)
	require.NoError(t, file.Close())

	again := l.reserve(t, 0, "r-mended")
	status := again.ready(t)
	require.Equal(t, "load done, post-load done", verdicts(status))
	require.Contains(t, stages(status.Phases[0]), "fetch image", "it was brought anew")
	again.configured(t, status)
	again.release(t)
	after, err := os.ReadFile(master)
	require.NoError(t, err)
	require.Equal(t, w.images.Small.SHA256, digest(after))
}

func testTenLoads(t *testing.T, w *world) {
	master, err := w.images.SmallWith(t.Context(), w.dir, map[string]string{"etc/motd": "for ten\n"})
	require.NoError(t, err)
	store := newStore(t, master)
	l := w.newLab(t, "ten", labOptions{master: master, url: store.url, computers: 10})
	l.worker(t)
	l.worker(t)
	var all []*booking
	for n := range l.computers {
		all = append(all, l.reserve(t, n, fmt.Sprintf("r-ten-%d", n)))
	}
	waited := map[string]bool{}
	for _, b := range all {
		b.until(t, func(m moment) bool {
			for _, other := range all {
				if stage := other.look(t).Stage(); stage.Name == "fetch image" && strings.Contains(stage.Detail, "waiting for the load that brings it") {
					waited[other.name] = true
				}
			}
			return m.Phase == reservation.PhasePostLoad || m.Outcome == reservation.OutcomeReady
		})
		state, err := w.host.Virsh(t.Context(), "domstate", b.computer.Name)
		require.NoError(t, err)
		require.Equal(t, "running", state)
	}
	require.Equal(t, master.Size, store.sent.Load(), "the image was fetched once, and no byte of it twice")
	require.NotEmpty(t, waited, "those that wait say so")
	t.Logf("%d of 10 loads showed that they waited for another one's fetch", len(waited))
	for _, b := range all {
		b.cancel(t)
	}
}
