package xcatmn

import (
	"bufio"
	"context"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// How long things take in the machine room.
const (
	firmwareTime = 90 * time.Second // power-on self test
	pxeTime      = 20 * time.Second // kernel and initrd of the installer
	stepTime     = 2 * time.Minute  // between two things that the installer says
	shutTime     = 10 * time.Second // the installer's last words
	bootTime     = 40 * time.Second // from the disk to sshd
	slowSSHTime  = 10 * time.Minute
	noteRetry    = 10 * time.Second // updateflag.awk: 10 times, 10 s apart
	noteTries    = 10
)

// machine is a node: its rows in xCAT's tables, its BMC and what runs on it. The manager's lock guards it.
type machine struct {
	Node
	manager *Manager

	currstate, provmethod      string
	stamped                    time.Time         // the last statustime
	status, statustime, remark string            // remark is the attribute usercomment
	reads                      int               // of the status by lsdef
	cached                     map[string]string // what lsdef tells while the mode is StaleCache
	cachedAt                   time.Time
	restarted                  map[string]bool // in what xcatd has restarted since the mode was set to Restarts

	on     bool
	device string // what the BMC boots from next, once: net, hd or ""
	disk   string

	boots    chan struct{}      // closed when what the last boot began has ended; nil before the first
	stop     context.CancelFunc // ends what the last boot began
	netBoots int                // since the mode was set
	installs int                // likewise
	pings    bool
	line     string // what the installer says; "" if there is none
	sshd     bool

	counts Counts
}

// set writes the status, as the management node does. Minutes pass in moments here, and xCAT writes whole seconds: each
// status gets a later one than the status before it, as it would in a machine room. The lock is held.
func (n *machine) set(status string) {
	now := time.Now()
	if least := n.stamped.Add(time.Second); now.Before(least) {
		now = least
	}
	n.stamped = now
	n.status, n.statustime = status, now.Format("01-02-2006 15:04:05")
}

// arm has the node install at its next boot from the net. The lock is held.
func (n *machine) arm(image osimage) {
	n.currstate, n.provmethod = image.state(), image.name
	armed := 0
	for _, other := range n.manager.nodes {
		if arms(other.currstate) {
			armed++
		}
	}
	n.manager.mostArmed = max(n.manager.mostArmed, armed)
}

// say adds a line about the node to the history. The lock is held.
func (n *machine) say(text string) { n.manager.note("%s: %s", n.Name, text) }

// with runs something under the lock unless ctx has ended: the power is gone then, and with it who asks.
func (n *machine) with(ctx context.Context, do func()) bool {
	n.manager.mu.Lock()
	defer n.manager.unlock()
	if ctx.Err() != nil {
		return false
	}
	do()
	return true
}

// halt ends what runs on the node. The lock is held.
func (n *machine) halt() {
	if n.stop != nil {
		n.stop()
	}
	n.pings, n.sshd, n.line = false, false, ""
}

// powerOff cuts the node's power. The lock is held.
func (n *machine) powerOff() {
	n.counts.PowerOffs++
	n.on = false
	n.say("bmc power off")
	n.halt()
}

// powerOn powers the node on, or resets it. The lock is held.
func (n *machine) powerOn() {
	if n.on {
		n.counts.Resets++
		n.say("bmc reset")
	} else {
		n.counts.PowerOns++
		n.say("bmc power on")
	}
	n.begin()
}

// begin starts what a node does when its power comes. The lock is held.
func (n *machine) begin() {
	n.on = true
	n.halt()
	ctx, stop := context.WithCancel(n.manager.ctx)
	before, done := n.boots, make(chan struct{})
	n.stop, n.boots = stop, done
	n.manager.running.Go(func() {
		defer close(done)
		defer stop()
		if before != nil {
			<-before // what ran until now has stopped
		}
		n.run(ctx)
	})
}

// run is the node's life from the moment its power comes until it goes.
func (n *machine) run(ctx context.Context) {
	for n.manager.pause(ctx, firmwareTime) {
		var install bool
		var image, lost string
		if !n.with(ctx, func() {
			fromNet := n.device == "net" || n.device == "" && n.NetworkFirst
			if n.device == "net" {
				n.say("POST, boot override network")
			}
			n.device = ""
			if !fromNet {
				return
			}
			n.netBoots++
			switch {
			case n.Mode == NoPXE, n.Mode == PXELostOnce && n.netBoots <= 1, n.Mode == PXELostTwice && n.netBoots <= 2:
				lost = "PXE: no DHCP offer, hung at firmware"
				n.say(lost)
			default:
				install, image = arms(n.currstate), n.provmethod
			}
		}) {
			return
		}
		switch {
		case lost != "":
			<-ctx.Done()
			return
		case install:
			if !n.install(ctx, image) {
				<-ctx.Done()
				return
			}
		default:
			n.bootDisk(ctx)
			<-ctx.Done()
			return
		}
	}
}

// install runs the installer. It returns whether the node reboots after it.
func (n *machine) install(ctx context.Context, image string) bool {
	mode := Works
	if !n.manager.pause(ctx, pxeTime) || !n.with(ctx, func() {
		n.counts.Installs++
		n.installs++
		if mode = n.Mode; mode == HangsOnce && n.installs == 1 {
			mode = Hangs
		}
		n.say("PXE -> installer: #" + n.currstate)
		n.disk = "" // it is partitioned anew
		n.pings = true
	}) {
		return false
	}
	if mode != NeverCallsBack {
		n.tell(ctx, "installstatus installing")
	}
	away := n.installer(ctx)
	defer away()
	if !n.with(ctx, func() { n.line = "installing prep" }) {
		return false
	}
	for _, line := range []string{"installing glibc (10%)", "installing kernel (40%)", "installing openssh-server (80%)", "installing post scripts"} {
		if !n.manager.pause(ctx, stepTime) || !n.with(ctx, func() { n.line = line }) {
			return false
		}
		if mode == Hangs && line == "installing kernel (40%)" {
			n.with(ctx, func() { n.say("HANG in installer") })
			return n.held(ctx)
		}
		if line == "installing kernel (40%)" {
			n.with(ctx, func() { n.interrupts("install") })
		}
	}
	if !n.manager.pause(ctx, stepTime) {
		return false
	}
	if mode == PostFails {
		n.tell(ctx, "installstatus failed")
		n.with(ctx, func() { n.say("post script failed, node stays in installer") })
		return n.held(ctx)
	}
	if !n.with(ctx, func() { n.disk = image }) {
		return false
	}
	if mode != NextLost {
		n.tell(ctx, "next")
	}
	// The installer answers a moment longer than the management node is told.
	return n.manager.pause(ctx, shutTime) && n.with(ctx, func() {
		n.say("installed, rebooting")
		n.pings, n.line = false, ""
	})
}

// services returns what nodestat sees of the node; with power also whether it is on. The lock is held.
func (n *machine) services(withPower bool) string {
	switch {
	case n.sshd:
		return "sshd"
	case n.line != "" && n.manager.options.InstallerPort == 3001: // nodestat knows no other port
		return n.line
	case n.pings:
		return n.currstate
	case withPower:
		return "noping(" + power(n.on) + ")"
	default:
		return "noping"
	}
}

// interrupts restarts xcatd, once for each thing that it is doing for a node whose mode says so. It returns whether it did:
// the answer of what it is doing is lost then. The lock is held.
func (n *machine) interrupts(doing string) bool {
	if n.Mode != Restarts || n.restarted[doing] {
		return false
	}
	if n.restarted == nil {
		n.restarted = map[string]bool{}
	}
	n.restarted[doing] = true
	m := n.manager
	m.note("xcatd restarts in %s", doing)
	m.dropLocked()
	m.running.Go(func() { _ = m.Restart() })
	return true
}

// held keeps the installer up until the power goes.
func (n *machine) held(ctx context.Context) bool {
	<-ctx.Done()
	return false
}

// installer answers "stat" at the node's address. The function that it returns ends that.
func (n *machine) installer(ctx context.Context) func() {
	listener, err := net.Listen("tcp", net.JoinHostPort(n.Address, strconv.Itoa(n.manager.options.InstallerPort)))
	if err != nil {
		n.with(ctx, func() { n.say("its installer cannot listen: " + err.Error()) })
		return func() {}
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				if text, err := bufio.NewReader(io.LimitReader(conn, 64)).ReadString('\n'); err != nil || text != "stat \n" {
					return
				}
				n.with(ctx, func() { _, _ = io.WriteString(conn, n.line+"\n") })
			})
		}
	})
	return func() { stop(); listener.Close(); running.Wait() }
}

// bootDisk starts what is on the disk. It stops it again when the power goes, before it returns.
func (n *machine) bootDisk(ctx context.Context) {
	var image string
	mode := Works
	if !n.with(ctx, func() {
		mode, image = n.Mode, n.disk
		if image == "" {
			n.say("no system on the disk")
			return
		}
		n.say("boot from disk")
		n.pings = true
	}) || image == "" {
		return
	}
	silent := mode == NeverCallsBack
	if !silent {
		n.tell(ctx, "installstatus postbooting")
	}
	wait := bootTime
	if mode == SlowSSHD {
		wait = slowSSHTime
	}
	if !n.manager.pause(ctx, wait) {
		return
	}
	boot, keys := Boot{OSImage: image}, "of its own"
	if mode != OwnHostKeys {
		keys = "from /etc/xcat/hostkeys"
		if n.OS != nil {
			shared, err := n.manager.hostKey()
			if err != nil {
				n.with(ctx, func() { n.say("no shared host key: " + err.Error()) })
				return
			}
			boot.HostKey = shared.private
		}
	}
	if n.OS != nil {
		stop := n.OS(boot)
		defer stop()
	}
	if !n.with(ctx, func() { n.sshd = true; n.say("sshd up, keys " + keys) }) {
		return
	}
	if !silent {
		n.tell(ctx, "installstatus booted")
	}
	<-ctx.Done()
}

// tell sends a note to the monitor port from the node's address, as its scripts do.
func (n *machine) tell(ctx context.Context, line string) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(n.Address)}}
	send := func() error {
		conn, err := dialer.DialContext(ctx, "tcp", n.manager.Monitor)
		if err != nil {
			return err
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		in := bufio.NewReader(conn)
		if _, err := in.ReadString('\n'); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, line+"\n"); err != nil {
			return err
		}
		_, err = in.ReadString('\n')
		return err
	}
	for range noteTries {
		err := send()
		if err == nil {
			n.with(ctx, func() { n.say("3002 '" + line + "' -> done") })
			return
		}
		n.with(ctx, func() { n.say("the monitor port did not take " + strconv.Quote(line) + ": " + err.Error()) })
		if !n.manager.pause(ctx, noteRetry) {
			return
		}
	}
}
