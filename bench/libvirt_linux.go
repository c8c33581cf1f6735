package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"go.temporal.io/sdk/client"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"berth/internal/catalog"
	"berth/internal/guestimage"
	"berth/internal/hold"
	"berth/internal/hostkey"
	"berth/internal/libvirthost"
	"berth/internal/process"
	"berth/provisioners/libvirt"
	"berth/reservation"
	"berth/workflows"
)

// apart has the measurement of real guests run in namespaces of its own, after it has built the guests' images, which takes a
// network. It returns false with the exit code when this process has nothing more to do.
func apart(ctx context.Context) (inside bool, code int, err error) {
	stage := os.Getenv(libvirthost.EnvStage)
	if stage == "" {
		if err := libvirthost.Check(); err != nil {
			return false, 1, err
		}
		if _, err := guestimage.Build(ctx, guestimage.Options{Say: func(step string) { fmt.Println("guest images:", step) }}); err != nil {
			return false, 1, err
		}
	}
	return libvirthost.Apart(stage)
}

// bareEvery is how soon the bare loop tries again after a guest that did not answer.
const bareEvery = 100 * time.Millisecond

// loadLimit bounds one load.
const loadLimit = 20 * time.Minute

// atOnce is how many small guests boot side by side.
const atOnce = 8

// hostLab is a libvirt host with guests, and the production worker beside it.
type hostLab struct {
	lab
	host   *libvirthost.Host
	signer ssh.Signer

	mu    sync.Mutex
	bare  map[string]bareGuest // by computer
	whole []time.Duration      // of the last loads: from the reservation to ready
}

// bareGuest is a computer as Berth has defined it, for the bare loop to start.
type bareGuest struct {
	xml    string // libvirt's, without its UUID
	disk   string // path
	master string // path of what the disk is a copy on write of
	seed   string // path
	boot   []byte // what the seed held when the guest was started

	hostKey ssh.PublicKey // that the seed hands to the guest
}

// measureLibvirt takes the time from power-on to a login, by a bare loop and through Berth, turn and turn about on the same
// host with the same domain, disk and seed.
func measureLibvirt(ctx context.Context, quick bool, figures map[string]float64) error {
	rounds, few := 7, 3
	if quick {
		rounds, few = 3, 1
	}
	l, err := startHostLab(ctx)
	if err != nil {
		return err
	}
	defer l.stop()
	fmt.Printf("\nFrom power-on to a login, the bare loop and Berth turn and turn about; guests run with %s:\n\n", l.host.Accel)
	fmt.Println("| guest | rounds | bare loop | Berth | ratio | Berth, from `reserve` to ready |\n|---|---|---|---|---|---|")
	for _, one := range []struct {
		key       string
		name      string
		computers []string
		rounds    int
	}{
		{"small", "small", l.names("small")[:1], rounds},
		{"small_8", fmt.Sprintf("small, %d side by side", atOnce), l.names("small"), few},
		{"debian", "full Debian", l.names("debian"), few},
	} {
		var bare, berth, whole []time.Duration
		var ratios []float64
		for round := range one.rounds + 1 {
			b, err := l.together(ctx, one.computers, l.berth)
			if err != nil {
				return err
			}
			w := slices.Clone(l.whole)
			n, err := l.together(ctx, one.computers, l.bareLoop)
			if err != nil {
				return err
			}
			if round == 0 {
				continue // it has brought the master to the host, and filled caches
			}
			bare, berth, whole = append(bare, n...), append(berth, b...), append(whole, w...)
			ratios = append(ratios, float64(median(b))/float64(median(n)))
		}
		slices.Sort(ratios)
		ratio := ratios[len(ratios)/2]
		figures["libvirt_"+one.key+"_bare_ms"] = float64(median(bare).Milliseconds())
		figures["libvirt_"+one.key+"_berth_ms"] = float64(median(berth).Milliseconds())
		figures["libvirt_"+one.key+"_ratio"] = ratio
		figures["libvirt_"+one.key+"_ready_ms"] = float64(median(whole).Milliseconds())
		fmt.Printf("| %s | %d | %s | %s | %.3f | %s |\n", one.name, one.rounds, ms(median(bare)), ms(median(berth)), ratio, ms(median(whole)))
	}
	return nil
}

func startHostLab(ctx context.Context) (*hostLab, error) {
	dir, err := os.MkdirTemp("/var/tmp", "berth-bench-")
	if err != nil {
		return nil, err
	}
	l := &hostLab{lab: lab{dir: dir}, bare: map[string]bareGuest{}}
	if err := l.start(ctx); err != nil {
		l.stop()
		return nil, err
	}
	return l, nil
}

func (l *hostLab) stop() {
	if l.worker != nil {
		l.worker.Kill()
	}
	if l.host != nil {
		l.host.Stop()
	}
	l.lab.stop()
}

func (l *hostLab) start(ctx context.Context) error {
	images, err := guestimage.Build(ctx, guestimage.Options{})
	if err != nil {
		return err
	}
	if l.host, err = libvirthost.Start(ctx, libvirthost.Options{Dir: filepath.Join(l.dir, "libvirt")}); err != nil {
		return err
	}
	if l.server, err = startServer(ctx); err != nil {
		return err
	}
	pair, err := hostkey.New("bench") // any ed25519 key
	if err != nil {
		return err
	}
	if l.signer, err = ssh.ParsePrivateKey([]byte(pair.Private)); err != nil {
		return err
	}
	key := filepath.Join(l.dir, "login")
	if err := os.WriteFile(key, []byte(pair.Private), 0o600); err != nil {
		return err
	}
	limit := reservation.Duration(loadLimit)
	image := func(name, memory string, master guestimage.Image) reservation.Image {
		return reservation.Image{Name: name, Revision: 1, OS: reservation.OS{Family: reservation.Linux, Version: "12", Architecture: "x86_64"},
			Sources: map[string]map[string]string{libvirt.Type: {"master": master.Path, "sha256": master.SHA256,
				"cloud_init": "true", "graphics": "none", "memory_mib": memory}},
			Control: reservation.Control{Channel: "ssh", User: "root", Credential: "login", HostKey: reservation.HostKeyHanded},
			Limits: reservation.Limits{Load: limit, InitialDelay: reservation.Duration(time.Second), Response: limit, Configure: limit,
				Settle: reservation.Duration(time.Second)}}
	}
	var computers []reservation.Computer
	for n, name := range append(l.names("small"), l.names("debian")...) {
		computers = append(computers, reservation.Computer{Name: name, Site: "here", Address: libvirthost.Address(n + 1),
			MACs: []string{libvirthost.MAC(n + 1)}, Networks: []string{libvirthost.Network}})
	}
	text, err := json.Marshal(map[string]any{ // JSON is YAML
		"secrets": map[string]any{"login": map[string]string{"file": key}},
		"sites": []any{map[string]any{"name": "here", "provisioner": libvirt.Type,
			"libvirt": map[string]any{"uri": libvirthost.URI, "pool": libvirthost.Pool, "accel": l.host.Accel, "loads": atOnce}}},
		"images":    []reservation.Image{image("small", "256", images.Small), image("debian", "512", images.Debian)},
		"computers": computers,
	})
	if err != nil {
		return err
	}
	path := filepath.Join(l.dir, "catalog.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return err
	}
	if l.catalog, err = catalog.Load(path, catalog.Options{}); err != nil {
		return err
	}
	l.worker, err = process.Start(process.Options{Path: "bin/worker", Log: filepath.Join(l.dir, "worker.log"),
		Env: append(os.Environ(), "BERTH_CATALOG="+path, "BERTH_TEMPORAL_ADDRESS="+l.server.Address, "BERTH_PROVISIONERS="+libvirt.Type,
			"BERTH_LISTEN=", "BERTH_LOG_LEVEL=warn")})
	if err != nil {
		return fmt.Errorf("%w; run make build first", err)
	}
	l.client, err = client.Dial(client.Options{HostPort: l.server.Address, Namespace: l.server.Namespace, Logger: quiet{}})
	return err
}

// names are the computers of an image.
func (l *hostLab) names(image string) []string {
	if image == "debian" {
		return []string{"debian-1"}
	}
	var names []string
	for n := range atOnce {
		names = append(names, fmt.Sprintf("small-%d", n+1))
	}
	return names
}

// together has something done with each computer at the same time, and returns how long each took.
func (l *hostLab) together(ctx context.Context, computers []string, do func(context.Context, string) (time.Duration, error)) ([]time.Duration, error) {
	l.whole = nil
	took := make([]time.Duration, len(computers))
	group, ctx := errgroup.WithContext(ctx)
	for i, computer := range computers {
		group.Go(func() (err error) {
			if took[i], err = do(ctx, computer); err != nil {
				err = fmt.Errorf("%s: %w\n  %s", computer, err, l.worker.Tail(5))
			}
			return err
		})
	}
	return took, group.Wait()
}

// berth loads a computer, takes it back, and returns the time from its power-on to Berth's login.
func (l *hostLab) berth(ctx context.Context, computer string) (time.Duration, error) {
	image, _, _ := strings.Cut(computer, "-")
	r, err := l.catalog.Reservation("bench-"+computer, "bench", computer, image, time.Now().Add(2*time.Hour))
	if err != nil {
		return 0, err
	}
	run, err := hold.Start(ctx, l.client, r)
	if err != nil {
		return 0, err
	}
	var status reservation.Status
	// Seldom: what asks takes a part of the processors that the guest has to itself in the bare loop.
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	var asked error
	err = until(ctx, time.Second, func() (bool, error) {
		if status, asked = l.status(ctx, run); asked != nil {
			return false, nil // the server is as busy as the machine
		}
		if status.Phase == reservation.PhasePostLoad {
			if err := l.keep(ctx, computer); err != nil {
				return false, err
			}
		}
		if status.Outcome != "" && status.Outcome != reservation.OutcomeReady || status.Attempt.Number > 1 {
			return false, &failedError{status}
		}
		return status.Outcome == reservation.OutcomeReady, nil
	})
	if err != nil {
		return 0, errors.Join(err, asked)
	}
	began := func(phase int, name string) time.Time {
		stages := status.Phases[phase].Stages
		if at := slices.IndexFunc(stages, func(s reservation.Stage) bool { return s.Name == name }); at >= 0 {
			return stages[at].Began
		}
		return time.Time{}
	}
	powered, answered := began(0, "power on"), began(1, "nonce")
	if powered.IsZero() || answered.IsZero() {
		return 0, fmt.Errorf("its record does not say when it was powered on, or when it let us in: %+v", status.Phases)
	}
	l.mu.Lock()
	l.whole = append(l.whole, status.Ready.Sub(status.Began))
	l.mu.Unlock()
	if err := l.client.SignalWorkflow(ctx, run.GetID(), run.GetRunID(), workflows.ReleaseSignal, nil); err != nil {
		return 0, err
	}
	return answered.Sub(powered), run.Get(ctx, nil)
}

// keep copies a computer's domain and seed as they were when its guest was started: the seed loses the guest's host key when
// the guest has it.
func (l *hostLab) keep(ctx context.Context, computer string) error {
	l.mu.Lock()
	_, known := l.bare[computer]
	l.mu.Unlock()
	if known {
		return nil
	}
	text, err := l.host.Virsh(ctx, "dumpxml", "--inactive", computer)
	if err != nil {
		return err
	}
	files := regexp.MustCompile(`<source file='([^']+)'`).FindAllStringSubmatch(text, -1)
	if len(files) != 2 {
		return fmt.Errorf("its domain has %d disks, not a disk and a seed", len(files))
	}
	g := bareGuest{xml: regexp.MustCompile(`<uuid>.*</uuid>`).ReplaceAllString(text, ""), disk: files[0][1], seed: files[1][1]}
	if g.boot, err = os.ReadFile(g.seed); err != nil {
		return err
	}
	if !strings.Contains(string(g.boot), "PRIVATE KEY") {
		return errors.New("its seed has lost the host key already")
	}
	public := regexp.MustCompile(`ed25519_public: (.+)`).FindSubmatch(g.boot)
	if public == nil {
		return errors.New("its seed does not say which host key it hands over")
	}
	if g.hostKey, _, _, _, err = ssh.ParseAuthorizedKey(public[1]); err != nil {
		return fmt.Errorf("the host key of its seed: %w", err)
	}
	out, err := exec.CommandContext(ctx, "qemu-img", "info", "--force-share", "--output=json", g.disk).Output()
	if err != nil {
		return err
	}
	var info struct {
		Master string `json:"full-backing-filename"`
	}
	if err := json.Unmarshal(out, &info); err != nil || info.Master == "" {
		return fmt.Errorf("its disk is no copy on write: %w %s", err, out)
	}
	g.master = info.Master
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bare[computer] = g
	return nil
}

// bareLoop starts the same guest without Berth, tries to log in until it is let in, and returns how long that took.
func (l *hostLab) bareLoop(ctx context.Context, computer string) (time.Duration, error) {
	l.mu.Lock()
	g, known := l.bare[computer]
	l.mu.Unlock()
	if !known {
		return 0, errors.New("it has not been loaded yet")
	}
	xml := filepath.Join(l.dir, computer+".xml")
	if err := errors.Join(os.WriteFile(xml, []byte(g.xml), 0o600), os.WriteFile(g.seed, g.boot, 0o600)); err != nil {
		return 0, err
	}
	defer os.Remove(g.seed)
	defer os.Remove(g.disk)
	if out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", g.master, g.disk).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("qemu-img: %w: %s", err, out)
	}
	if _, err := l.host.Virsh(ctx, "define", xml); err != nil {
		return 0, err
	}
	defer func() {
		_, _ = l.host.Virsh(context.WithoutCancel(ctx), "destroy", computer)
		_, _ = l.host.Virsh(context.WithoutCancel(ctx), "undefine", computer)
	}()
	at := slices.IndexFunc(l.catalog.Computers, func(c reservation.Computer) bool { return c.Name == computer })
	config := &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(l.signer)},
		HostKeyCallback: ssh.FixedHostKey(g.hostKey), HostKeyAlgorithms: []string{g.hostKey.Type()}}
	address := net.JoinHostPort(l.catalog.Computers[at].Address, "22")
	began := time.Now()
	if _, err := l.host.Virsh(ctx, "start", computer); err != nil {
		return 0, err
	}
	for {
		err := login(ctx, address, config)
		if err == nil {
			return time.Since(began), nil
		}
		select {
		case <-ctx.Done():
			return 0, errors.Join(ctx.Err(), err)
		case <-time.After(bareEvery):
		}
	}
}

// login tries once. The connection gets little time, because one that was begun before the guest had its address is late by
// seconds; a guest that listens gets more.
func login(ctx context.Context, address string, config *ssh.ClientConfig) error {
	conn, err := (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return err
	}
	guest, _, _, err := ssh.NewClientConn(conn, address, config)
	if err != nil {
		return err
	}
	return guest.Close()
}
