//go:build e2e

package libvirt

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	noise "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"berth/internal/libvirthost"
	"berth/internal/process"
	"berth/provisioners"
	"berth/reservation"
)

// smallPool is a pool that is soon full.
const smallPool = "small"

// real is the libvirt host that the tests share.
var real *libvirthost.Host

// limit is for one step of a test: generous, because guests are emulated and machines are slow.
const limit = 2 * time.Minute

// envSkip tells the run inside the namespaces why there is no host.
const envSkip = "BERTH_E2E_SKIP"

// TestMain runs the tests in namespaces of their own, with a libvirt host in them.
func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	stage := os.Getenv(libvirthost.EnvStage)
	if stage == "" {
		missing := libvirthost.Check()
		if os.Getuid() != 0 {
			missing = errors.New("a libvirt host of its own takes root")
		}
		if missing != nil {
			os.Setenv(envSkip, missing.Error())
			return m.Run()
		}
	}
	inside, code, err := libvirthost.Apart(stage)
	if err == nil && !inside {
		return code
	}
	var folder string
	if err == nil {
		folder, err = os.MkdirTemp("", "berth-libvirt-")
	}
	if err == nil {
		defer os.RemoveAll(folder)
		real, err = libvirthost.Start(context.Background(), libvirthost.Options{Dir: folder})
	}
	if err == nil {
		defer real.Stop()
		err = real.AddSmallPool(context.Background(), smallPool, 60<<20)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// needs skips a test where there is no libvirt host.
func needs(t *testing.T) {
	t.Helper()
	if why := os.Getenv(envSkip); why != "" {
		t.Skip(why)
	}
}

func newModule(t *testing.T, change func(*Site)) *Module {
	t.Helper()
	needs(t)
	site := Site{Name: "h1", URI: libvirthost.URI, Pool: libvirthost.Pool, Accel: AccelTCG}
	if change != nil {
		change(&site)
	}
	m, err := New(Options{Sites: []Site{site}, Logger: zerolog.New(zerolog.NewTestWriter(t)),
		ControlKey: func(string) (string, error) { return "ssh-ed25519 AAAA control", nil }})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close(context.Background()) })
	return m
}

func virsh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := real.Virsh(t.Context(), args...)
	require.NoError(t, err)
	return out
}

// left lists what stands on the host but masters and their marks.
func left(t *testing.T) []string {
	t.Helper()
	all := strings.Fields(virsh(t, "list", "--all", "--name"))
	for _, pool := range []string{libvirthost.Pool, smallPool} {
		virsh(t, "pool-refresh", pool)
		for _, line := range strings.Split(virsh(t, "vol-list", pool), "\n") {
			if name := strings.Fields(line); len(name) > 0 && !strings.HasPrefix(name[0], masterPrefix) {
				all = append(all, name[0])
			}
		}
	}
	return all
}

// clean removes everything from the host.
func clean(t *testing.T) {
	t.Helper()
	needs(t)
	for _, domain := range strings.Fields(virsh(t, "list", "--name")) {
		virsh(t, "destroy", domain)
	}
	for _, domain := range strings.Fields(virsh(t, "list", "--all", "--name")) {
		virsh(t, "undefine", domain)
	}
	for _, pool := range []string{libvirthost.Pool, smallPool} {
		virsh(t, "pool-refresh", pool)
		for _, line := range strings.Split(virsh(t, "vol-list", pool), "\n") {
			if name := strings.Fields(line); len(name) > 0 {
				virsh(t, "vol-delete", "--pool", pool, name[0])
			}
		}
	}
}

// newImage makes a qcow2 image of megabytes of noise.
func newImage(t *testing.T, megabytes int) (path, digest string) {
	t.Helper()
	needs(t)
	folder := t.TempDir()
	raw := filepath.Join(folder, "raw")
	content := make([]byte, megabytes<<20)
	source := noise.NewChaCha8([32]byte{byte(megabytes)})
	_, _ = source.Read(content)
	require.NoError(t, os.WriteFile(raw, content, 0o600))
	path = filepath.Join(folder, "image.qcow2")
	out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path).CombinedOutput()
	require.NoError(t, err, string(out))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	sum := sha256.Sum256(text)
	return path, hex.EncodeToString(sum[:])
}

// requestOf returns a load of a computer with an image.
func requestOf(computer, master, digest string) provisioners.Request {
	request := requestFor(func(r *reservation.Reservation) {
		r.Name = "r-" + computer
		r.Computer.Name, r.Computer.MACs, r.Computer.MemoryMiB = computer, nil, 64
		r.Image.Sources[Type][sourceMaster] = master
		r.Image.Sources[Type][sourceSHA256] = digest
	})
	request.Mark.Reservation = "r-" + computer
	return request
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestALoadCanBeStoppedAnywhereAndGoesOnWithOneDomain(t *testing.T) {
	path, digest := newImage(t, 6)
	for _, stage := range []string{stageLook, stageRemove, stageFetch, stageDefine, stageDisk, stageSeed, stageStart} {
		for _, way := range []string{"handed over", "cancelled"} {
			t.Run(stage+", "+way, func(t *testing.T) {
				clean(t)
				request := requestOf("vm-01", path, digest)
				if stage == stageRemove {
					earlier := request
					earlier.Mark = reservation.Mark{Reservation: "earlier", Run: "x", Attempt: 1}
					_, err := newModule(t, nil).Load(within(t), earlier, &reporter{})
					require.NoError(t, err)
				}
				ctx, end := context.WithCancelCause(within(t))
				reached := false
				_, err := newModule(t, nil).Load(ctx, request, &reporter{at: func(name, _ string) {
					if name == stage {
						reached = true
						if way == "handed over" {
							end(provisioners.HandOver{})
						} else {
							end(context.Canceled)
						}
					}
				}})
				require.True(t, reached)
				require.ErrorIs(t, err, context.Canceled)

				successor := newModule(t, nil) // another process
				if way == "cancelled" {
					require.NoError(t, successor.Abort(within(t), request, &reporter{}))
					if stage == stageLook || stage == stageRemove {
						return // it had no domain of its own yet
					}
					require.Empty(t, left(t))
					require.NoError(t, successor.Abort(within(t), request, &reporter{}), "again")
					return
				}
				loaded, err := successor.Load(within(t), request, &reporter{})
				require.NoError(t, err)
				require.Equal(t, "vm-01", virsh(t, "list", "--name"))
				require.Equal(t, loaded.Reference, virsh(t, "domuuid", "vm-01"))
				require.Len(t, left(t), 3, "a domain, a disk, a seed")
				require.Contains(t, virsh(t, "list", "--all", "--autostart", "--name"), "vm-01")

				again, err := successor.Load(within(t), request, &reporter{})
				require.NoError(t, err)
				require.Equal(t, loaded, again, "it is loaded: nothing is made anew")
				require.NoError(t, successor.Unload(within(t), request, &reporter{}))
				require.Empty(t, left(t))
			})
		}
	}
}

// web serves an image and counts how many bytes of it were asked for; it hangs up after cut bytes of an answer, if not 0.
type web struct {
	*httptest.Server
	sent atomic.Int64
	gets atomic.Int64
	cut  atomic.Int64
	slow atomic.Bool
}

func serve(t *testing.T, path string) *web {
	w := &web{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		w.gets.Add(1)
		http.ServeFile(&counted{out, w}, in, path)
	}))
	t.Cleanup(w.Close)
	return w
}

type counted struct {
	http.ResponseWriter
	web *web
}

func (c *counted) Write(p []byte) (int, error) {
	if c.web.slow.Load() {
		time.Sleep(5 * time.Millisecond)
	}
	if cut := c.web.cut.Load(); cut > 0 {
		if cut <= int64(len(p)) {
			c.web.cut.Store(0)
			_, _ = c.ResponseWriter.Write(p[:cut])
			panic(http.ErrAbortHandler)
		}
		c.web.cut.Add(-int64(len(p)))
	}
	c.web.sent.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func TestTenLoadsOfAnImageBringItOnce(t *testing.T) {
	clean(t)
	path, digest := newImage(t, 40)
	source := serve(t, path)
	source.slow.Store(true)
	m := newModule(t, nil)
	var group sync.WaitGroup
	waited := make([]bool, 10)
	for n := range 10 {
		group.Go(func() {
			report := &reporter{}
			_, err := m.Load(within(t), requestOf(fmt.Sprintf("vm-%02d", n), source.URL, digest), report)
			require.NoError(t, err)
			waited[n] = strings.Contains(report.all(), "waiting for the load that brings it")
		})
	}
	group.Wait()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, info.Size(), source.sent.Load())
	count := 0
	for _, one := range waited {
		if one {
			count++
		}
	}
	require.Equal(t, 9, count, "the others wait and say so")
	require.Len(t, strings.Fields(virsh(t, "list", "--name")), 10)
	for n := range 10 {
		require.NoError(t, m.Unload(within(t), requestOf(fmt.Sprintf("vm-%02d", n), source.URL, digest), &reporter{}))
	}
	require.Empty(t, left(t))
}

func TestATransferThatWasCutGoesOnWhereItWas(t *testing.T) {
	clean(t)
	path, digest := newImage(t, 40)
	source := serve(t, path)
	source.cut.Store(15 << 20)
	m := newModule(t, nil)
	request := requestOf("vm-01", source.URL, digest)
	_, err := m.Load(within(t), request, &reporter{})
	require.Error(t, err)
	require.Empty(t, reservation.VerdictOf(err), "a fault: %v", err)
	report := &reporter{}
	_, err = m.Load(within(t), request, report)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Less(t, source.sent.Load(), info.Size()+4<<20, "what was there was not brought again")
	require.Contains(t, report.all(), "checking what is on the host")
}

func TestWhatStandsOnTheHostIsCheckedBeforeItIsUsed(t *testing.T) {
	path, digest := newImage(t, 10)
	w := wants(requestOf("vm-01", path, digest).Reservation.Image.Sources[Type])
	file := filepath.Join(real.PoolDir, w.volume)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	damaged := append([]byte{}, text...)
	damaged[len(damaged)/2] ^= 1
	for name, c := range map[string]struct {
		loaded bool // a load has brought it before
		place  []byte
	}{
		"half of it, written by somebody else":    {false, text[:len(text)/2]},
		"half of it, damaged":                     {false, damaged[:len(damaged)*2/3]},
		"all of it, put there by hand":            {false, text},
		"all of it, damaged, not checked":         {false, damaged},
		"all of it, damaged after it was checked": {true, damaged},
		"cut after it was checked":                {true, text[:len(text)/3]},
		"longer after it was checked":             {true, append(append([]byte{}, text...), 1, 2, 3)},
		"another file altogether":                 {true, []byte("hello")},
		"gone after it was checked":               {true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			m := newModule(t, nil)
			request := requestOf("vm-01", path, digest)
			if c.loaded {
				_, err := m.Load(within(t), request, &reporter{})
				require.NoError(t, err)
			}
			if c.place == nil {
				require.NoError(t, os.Remove(file))
			} else {
				require.NoError(t, os.WriteFile(file, c.place, 0o444))
			}
			request.Mark.Attempt++
			_, err := m.Load(within(t), request, &reporter{})
			require.NoError(t, err)
			now, err := os.ReadFile(file)
			require.NoError(t, err)
			sum := sha256.Sum256(now)
			require.Equal(t, digest, hex.EncodeToString(sum[:]))
		})
	}
}

func TestWrongBitsAreNeverUsed(t *testing.T) {
	path, digest := newImage(t, 4)
	rawFile := filepath.Join(t.TempDir(), "raw")
	require.NoError(t, os.WriteFile(rawFile, make([]byte, 1<<20), 0o600))
	zeros := sha256.Sum256(make([]byte, 1<<20))
	backed := filepath.Join(t.TempDir(), "backed.qcow2")
	out, err := exec.Command("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", rawFile, backed).CombinedOutput()
	require.NoError(t, err, string(out))
	text, err := os.ReadFile(backed)
	require.NoError(t, err)
	backedSum := sha256.Sum256(text)
	source := serve(t, path)
	for name, c := range map[string]struct {
		change map[string]string
		want   string
	}{
		"another digest":             {map[string]string{sourceMaster: path, sourceSHA256: strings.Repeat("a", 64)}, "has SHA-256 " + digest},
		"another digest by HTTP":     {map[string]string{sourceMaster: source.URL, sourceSHA256: strings.Repeat("b", 64)}, "has SHA-256 " + digest},
		"another size":               {map[string]string{sourceMaster: path, sourceSHA256: digest, sourceSize: "123"}, "the image's size is 123"},
		"no such file":               {map[string]string{sourceMaster: path + "x", sourceSHA256: digest}, "this worker cannot read it"},
		"no such page":               {map[string]string{sourceMaster: source.URL + "/../x/y", sourceSHA256: strings.Repeat("c", 64)}, ""},
		"a raw disk":                 {map[string]string{sourceMaster: rawFile, sourceSHA256: hex.EncodeToString(zeros[:])}, "is of format raw"},
		"a disk on another one":      {map[string]string{sourceMaster: backed, sourceSHA256: hex.EncodeToString(backedSum[:])}, "stands on another disk"},
		"a volume that is not there": {map[string]string{sourceMaster: "", sourceVolume: "nowhere.qcow2", sourceSHA256: digest}, "no volume"},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			request := requestOf("vm-01", "", "")
			for key, value := range c.change {
				request.Reservation.Image.Sources[Type][key] = value
			}
			_, err := newModule(t, nil).Load(within(t), request, &reporter{})
			require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), "%v", err)
			require.ErrorContains(t, err, c.want)
			require.Empty(t, left(t))
		})
	}
}

func TestAFullPoolIsAVerdictAndTheLoadGoesOnWhenThereIsRoom(t *testing.T) {
	clean(t)
	path, digest := newImage(t, 40)
	source := serve(t, path)
	m := newModule(t, func(s *Site) { s.Pool = smallPool })
	request := requestOf("vm-01", path, digest)
	virsh(t, "vol-create-as", smallPool, "ballast", "30M", "--allocation", "30M")
	_, err := m.Load(within(t), request, &reporter{})
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), "%v", err)
	require.ErrorAs(t, err, new(*NoSpaceError))
	// A source that does not say its size fills the pool.
	unknown := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		out.(http.Flusher).Flush()
		text, _ := os.ReadFile(path)
		_, _ = out.Write(text)
	}))
	t.Cleanup(unknown.Close)
	request = requestOf("vm-01", unknown.URL, digest)
	_, err = m.Load(within(t), request, &reporter{})
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), "%v", err)
	require.ErrorAs(t, err, new(*NoSpaceError))
	require.NoError(t, m.Abort(within(t), request, &reporter{}))
	virsh(t, "vol-delete", "--pool", smallPool, "ballast")
	require.Empty(t, left(t))
	_, err = m.Load(within(t), requestOf("vm-01", source.URL, digest), &reporter{})
	require.NoError(t, err)
	require.NoError(t, m.Unload(within(t), request, &reporter{}))
	require.Empty(t, left(t))
}

func TestWhatIsSomebodyElsesIsLeftAlone(t *testing.T) {
	clean(t)
	path, digest := newImage(t, 2)
	m := newModule(t, nil)
	mine := requestOf("vm-01", path, digest)
	_, err := m.Load(within(t), mine, &reporter{})
	require.NoError(t, err)
	other := mine
	other.Mark = reservation.Mark{Reservation: "other", Run: "y", Attempt: 1}
	require.NoError(t, m.Abort(within(t), other, &reporter{}))
	require.NoError(t, m.Unload(within(t), other, &reporter{}))
	require.ErrorAs(t, m.PowerReset(within(t), other), new(*ForeignError))
	require.ErrorAs(t, m.AfterResponse(within(t), other, &reporter{}), new(*ForeignError))
	require.Len(t, left(t), 3)

	// A worker of an earlier attempt that wakes up.
	later := mine
	later.Mark.Attempt = 2
	_, err = m.Load(within(t), later, &reporter{})
	require.NoError(t, err)
	before := left(t)
	_, err = m.Load(within(t), mine, &reporter{})
	require.ErrorAs(t, err, new(*LateError))
	require.Empty(t, reservation.VerdictOf(err))
	require.Equal(t, before, left(t))

	// The neighbour whose name begins alike, and volumes that are none of Berth's.
	neighbour := requestOf("vm-01-b", path, digest)
	_, err = m.Load(within(t), neighbour, &reporter{})
	require.NoError(t, err)
	virsh(t, "vol-create-as", libvirthost.Pool, "vm-01.qcow2", "1M")
	require.NoError(t, m.Unload(within(t), later, &reporter{}))
	require.Len(t, left(t), 4)
	require.NoError(t, m.Unload(within(t), neighbour, &reporter{}))
	require.Equal(t, []string{"vm-01.qcow2"}, left(t))
}

func TestNothingIsTouchedOnceAnotherWorkerHasTakenOver(t *testing.T) {
	path, digest := newImage(t, 2)
	clean(t)
	m := newModule(t, nil)
	earlier := requestOf("vm-01", path, digest)
	_, err := m.Load(within(t), earlier, &reporter{})
	require.NoError(t, err)
	before := virsh(t, "dumpxml", "vm-01")
	mine := earlier
	mine.Mark = reservation.Mark{Reservation: "mine", Run: "z", Attempt: 1}
	_, err = m.Load(within(t), mine, &reporter{refuse: func() bool { return true }})
	require.ErrorIs(t, err, errRefused)
	require.ErrorIs(t, m.Unload(within(t), earlier, &reporter{refuse: func() bool { return true }}), errRefused)
	require.ErrorIs(t, m.AfterResponse(within(t), earlier, &reporter{refuse: func() bool { return true }}), errRefused)
	require.Equal(t, before, virsh(t, "dumpxml", "vm-01"))
}

func TestAPowerResetStartsWhateverStateTheGuestIsIn(t *testing.T) {
	clean(t)
	path, digest := newImage(t, 2)
	m := newModule(t, nil)
	request := requestOf("vm-01", path, digest)
	require.Equal(t, reservation.VerdictReload, reservation.VerdictOf(m.PowerReset(within(t), request)), "it is gone")
	_, err := m.Load(within(t), request, &reporter{})
	require.NoError(t, err)
	for name, before := range map[string][]string{"running": nil, "paused": {"suspend", "vm-01"}, "off": {"destroy", "vm-01"}} {
		if before != nil {
			virsh(t, before...)
		}
		require.NoError(t, m.PowerReset(within(t), request), name)
		require.Equal(t, "running", virsh(t, "domstate", "vm-01"), name)
	}
}

func TestThePrivateHostKeyIsOnTheHostUntilTheGuestHasIt(t *testing.T) {
	clean(t)
	path, digest := newImage(t, 2)
	m := newModule(t, nil)
	request := requestOf("vm-01", path, digest)
	loaded, err := m.Load(within(t), request, &reporter{})
	require.NoError(t, err)
	seedFile := filepath.Join(real.PoolDir, seedName("vm-01", request.Mark))
	text, err := os.ReadFile(seedFile)
	require.NoError(t, err)
	require.Contains(t, string(text), "OPENSSH PRIVATE KEY")
	require.Contains(t, string(text), loaded.HostKey)
	require.NotContains(t, virsh(t, "dumpxml", "vm-01"), "PRIVATE")
	for range 2 {
		require.NoError(t, m.AfterResponse(within(t), request, &reporter{}))
		after, err := os.ReadFile(seedFile)
		require.NoError(t, err)
		require.NotContains(t, string(after), "PRIVATE KEY")
		require.Contains(t, string(after), "local-hostname: vm-01")
		require.Len(t, after, len(text))
	}
	again, err := m.Load(within(t), request, &reporter{})
	require.NoError(t, err)
	require.Equal(t, loaded.HostKey, again.HostKey)
}

func TestWhatTheHostLacksFailsBeforeAnythingIsTouched(t *testing.T) {
	path, digest := newImage(t, 2)
	clean(t)
	m := newModule(t, nil)
	standing := requestOf("vm-01", path, digest)
	_, err := m.Load(within(t), standing, &reporter{})
	require.NoError(t, err)
	for name, change := range map[string]func(*reservation.Reservation){
		"network":      func(r *reservation.Reservation) { r.Computer.Networks = []string{"nowhere"} },
		"pool":         func(r *reservation.Reservation) { r.Computer.Placement = map[string]string{placePool: "nowhere"} },
		"architecture": func(r *reservation.Reservation) { r.Image.OS.Architecture = "s390x" },
	} {
		t.Run(name, func(t *testing.T) {
			request := requestOf("vm-01", path, digest)
			request.Mark = reservation.Mark{Reservation: "next", Run: "n", Attempt: 1}
			change(&request.Reservation)
			_, err := m.Load(within(t), request, &reporter{})
			require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), "%v", err)
			require.ErrorAs(t, err, new(*MissingError))
			require.Equal(t, "vm-01", virsh(t, "list", "--name"))
		})
	}
}

func TestAGuestThatQEMURefusesIsAVerdict(t *testing.T) {
	path, digest := newImage(t, 2)
	for name, c := range map[string]struct {
		change func(*reservation.Reservation)
		want   reservation.Verdict
	}{
		"a machine type that is not there": {func(r *reservation.Reservation) { r.Image.Sources[Type][sourceMachine] = "pc-q35-99.9" }, reservation.VerdictFail},
		"a CPU that is not there":          {func(r *reservation.Reservation) { r.Image.Sources[Type][sourceCPU] = "Cray-1" }, reservation.VerdictFail},
		"a firmware that is not there": {func(r *reservation.Reservation) { // no build of it runs on this machine type
			r.Image.Sources[Type][sourceFirmware], r.Image.Sources[Type][sourceMachine] = firmwareSecure, "pc"
		}, reservation.VerdictFail},
		"a firmware that is there":      {func(r *reservation.Reservation) { r.Image.Sources[Type][sourceFirmware] = firmwareSecure }, reservation.VerdictDone},
		"a CPU that is there":           {func(r *reservation.Reservation) { r.Image.Sources[Type][sourceCPU] = "qemu64" }, reservation.VerdictDone},
		"more memory than the host has": {func(r *reservation.Reservation) { r.Computer.MemoryMiB = 32 << 20 }, reservation.VerdictReload},
		"a bridge that is not there":    {func(r *reservation.Reservation) { r.Computer.Networks = []string{bridgePrefix + "nowhere0"} }, reservation.VerdictReload},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			m := newModule(t, nil)
			request := requestOf("vm-01", path, digest)
			c.change(&request.Reservation)
			if _, err := os.Stat("/usr/share/qemu/firmware"); err != nil && request.Reservation.Image.Sources[Type][sourceFirmware] != "" {
				t.Skip("SKIP: no firmware for UEFI is here; on Debian: apt-get install ovmf")
			}
			_, err := m.Load(within(t), request, &reporter{})
			require.Equal(t, c.want, reservation.VerdictOf(err), "%v", err)
			t.Log(err)
			require.NoError(t, m.Abort(within(t), request, &reporter{}))
			require.Empty(t, left(t))
		})
	}
}

func TestADaemonThatIsKilledInTheMiddleIsAFault(t *testing.T) {
	path, digest := newImage(t, 60)
	for _, stage := range []string{stageFetch, stageDefine, stageDisk, stageSeed, stageStart} {
		t.Run(stage, func(t *testing.T) {
			clean(t)
			m := newModule(t, nil)
			request := requestOf("vm-01", path, digest)
			killed, launched := false, make(chan error, 1)
			report := &reporter{at: func(name, detail string) {
				if name == stage && !killed && (stage != stageFetch || strings.HasPrefix(detail, "to the host")) {
					killed = true
					real.Kill()
					go func() { launched <- real.Launch(t.Context()) }()
				}
			}}
			_, err := m.Load(within(t), request, report)
			require.Error(t, err)
			for ctx := within(t); err != nil && ctx.Err() == nil; _, err = m.Load(ctx, request, report) {
				require.Empty(t, reservation.VerdictOf(err), "%v", err)
				time.Sleep(50 * time.Millisecond) // the retry policy's pause
			}
			require.NoError(t, err)
			require.True(t, killed)
			require.NoError(t, <-launched)
			require.Equal(t, "running", virsh(t, "domstate", "vm-01"))
			require.Len(t, left(t), 3)
			require.NoError(t, m.Unload(within(t), request, &reporter{}))
			require.Empty(t, left(t))
		})
	}
}

func TestSomebodyElsesCallIsSeenWithoutWaiting(t *testing.T) {
	clean(t)
	path, digest := newImage(t, 2)
	m := newModule(t, nil)
	_, err := m.Load(within(t), requestOf("vm-01", path, digest), &reporter{})
	require.NoError(t, err)
	h := m.hosts["h1"]
	vm, err := h.find(within(t), "vm-01")
	require.NoError(t, err)
	changed := h.watch.add(vm.domain.UUID)
	defer h.watch.remove(vm.domain.UUID, changed)
	virsh(t, "suspend", "vm-01")
	select {
	case <-changed:
	case <-time.After(limit):
		t.Fatal("no event came")
	}
	now, err := h.power(within(t), vm.domain)
	require.NoError(t, err)
	require.Equal(t, rpc.DomainPaused, now.state)
}

// The host's sshd forwards to libvirtd's socket: the whole load goes through one login.
func TestAHostIsReachedThroughItsSSHD(t *testing.T) {
	clean(t)
	path, err := exec.LookPath("sshd")
	if err != nil {
		t.Skip("no sshd: apt-get install openssh-server")
	}
	image, digest := newImage(t, 10)
	folder := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(folder, name)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return file
	}
	newKey := func() (ssh.Signer, string) {
		_, private, err := ed25519.GenerateKey(nil)
		require.NoError(t, err)
		block, err := ssh.MarshalPrivateKey(private, "")
		require.NoError(t, err)
		signer, err := ssh.NewSignerFromKey(private)
		require.NoError(t, err)
		return signer, string(pem.EncodeToMemory(block))
	}
	host, hostPEM := newKey()
	user, _ := newKey()
	require.NoError(t, os.MkdirAll("/run/sshd", 0o755)) // where sshd's unprivileged part lives
	config := write("config", strings.Join([]string{
		"ListenAddress 127.0.0.1", "Port 22", "PidFile none", "UsePAM no", "StrictModes no", "PermitRootLogin prohibit-password", "ForceCommand /bin/false",
		"HostKey " + write("host", hostPEM), "AuthorizedKeysFile " + write("authorized", string(ssh.MarshalAuthorizedKey(user.PublicKey()))),
	}, "\n")+"\n")
	daemon := exec.Command(path, "-D", "-e", "-f", config)
	said, err := os.Create(filepath.Join(folder, "log")) // no pipe: the process of a login outlives the daemon
	require.NoError(t, err)
	defer said.Close()
	daemon.Stderr = said
	require.NoError(t, daemon.Start())
	stopped := make(chan struct{})
	go func() {
		_ = daemon.Wait()
		close(stopped)
	}()
	defer func() {
		_ = daemon.Process.Kill()
		<-stopped
		if t.Failed() {
			text, _ := os.ReadFile(said.Name())
			t.Log(string(text))
		}
	}()
	require.Eventually(t, func() bool {
		connection, err := net.Dial("tcp", "127.0.0.1:22")
		if err == nil {
			connection.Close()
		}
		return err == nil
	}, limit, 20*time.Millisecond)

	m := newModule(t, func(s *Site) {
		s.URI = "qemu+ssh://root@127.0.0.1/system"
		s.HostKey = string(ssh.MarshalAuthorizedKey(host.PublicKey()))
		s.Key = func() (ssh.Signer, error) { return user, nil }
	})
	require.NoError(t, m.Check(within(t)))
	request := requestOf("vm-01", image, digest)
	_, err = m.Load(within(t), request, &reporter{})
	require.NoError(t, err)
	require.Equal(t, "running", virsh(t, "domstate", "vm-01"))
	require.NoError(t, m.AfterResponse(within(t), request, &reporter{}))
	require.NoError(t, m.Unload(within(t), request, &reporter{}))
	require.Empty(t, left(t))

	stranger := newModule(t, func(s *Site) {
		s.URI = "qemu+ssh://root@127.0.0.1/system"
		s.HostKey = string(ssh.MarshalAuthorizedKey(user.PublicKey()))
		s.Key = func() (ssh.Signer, error) { return user, nil }
	})
	require.ErrorContains(t, stranger.Check(within(t)), "the host shows another key")
}

// libvirtd itself listens for TLS, and lets nobody in whom its authority has not signed.
func TestAHostIsReachedByTLS(t *testing.T) {
	clean(t)
	image, digest := newImage(t, 10)
	folder := t.TempDir()
	authority := newPair(t, folder, "ca", nil)
	newPair(t, folder, "host", authority)
	newPair(t, folder, "berth", authority)
	newPair(t, folder, "stranger", newPair(t, folder, "others", nil))
	config := filepath.Join(folder, "libvirtd.conf")
	at := func(name string) string { return filepath.Join(folder, name) }
	require.NoError(t, os.WriteFile(config, []byte(strings.Join([]string{
		`unix_sock_rw_perms = "0700"`, `auth_unix_rw = "none"`, `auth_unix_ro = "none"`, `log_outputs = "2:stderr"`,
		`listen_tls = 1`, `listen_tcp = 0`, `listen_addr = "127.0.0.1"`, `auth_tls = "none"`,
		`ca_file = "` + at("ca.pem") + `"`, `cert_file = "` + at("host.pem") + `"`, `key_file = "` + at("host.key") + `"`,
	}, "\n")+"\n"), 0o600))
	path, err := exec.LookPath("libvirtd")
	require.NoError(t, err)
	real.Quit()
	daemon, err := process.Start(process.Options{Path: path, Args: []string{"--listen", "--config", config, "--pid-file", at("pid")}, Log: at("log")})
	require.NoError(t, err)
	defer func() {
		daemon.Stop(limit)
		require.NoError(t, real.Launch(t.Context()))
	}()
	module := func(name, ca string) *Module {
		return newModule(t, func(s *Site) {
			s.URI, s.ServerName, s.CAFile = "qemu+tls://127.0.0.1/system", "host", at(ca)
			s.Certificate = func() ([]byte, error) {
				certificate, err := os.ReadFile(at(name + ".pem"))
				if err != nil {
					return nil, err
				}
				key, err := os.ReadFile(at(name + ".key"))
				return append(certificate, key...), err
			}
		})
	}
	m := module("berth", "ca.pem")
	for ctx := within(t); ; time.Sleep(100 * time.Millisecond) { // until it listens
		err := m.Check(ctx)
		if err == nil {
			break
		}
		require.Empty(t, reservation.VerdictOf(err), "%v\n%s", err, daemon.Tail(20))
		require.NoError(t, ctx.Err(), "%v\n%s", err, daemon.Tail(20))
	}
	request := requestOf("vm-01", image, digest)
	_, err = m.Load(within(t), request, &reporter{})
	require.NoError(t, err)
	require.Equal(t, "running", virsh(t, "domstate", "vm-01"))
	require.NoError(t, m.Unload(within(t), request, &reporter{}))
	require.Empty(t, left(t))

	for name, c := range map[string]struct{ name, ca, want string }{
		"we are signed by somebody else":      {"stranger", "ca.pem", "the host refuses us"},
		"the host is signed by somebody else": {"berth", "others.pem", "the host's certificate is not the expected one"},
	} {
		err := module(c.name, c.ca).Check(within(t))
		require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), "%s: %v", name, err)
		require.ErrorContains(t, err, c.want, name)
	}
}

// pair is a certificate and its key.
type pair struct {
	certificate *x509.Certificate
	key         ed25519.PrivateKey
}

// newPair makes NAME.pem and NAME.key in a folder, signed by an authority, or an authority itself.
func newPair(t *testing.T, folder, name string, by *pair) *pair {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	mine := &pair{template, key}
	if by == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage, template.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		by = mine
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, public, by.key)
	require.NoError(t, err)
	mine.certificate, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	for file, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name+file), pem.EncodeToMemory(block), 0o600))
	}
	return mine
}
