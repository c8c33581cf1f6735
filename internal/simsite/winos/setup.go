package winos

import (
	"context"
	"fmt"
	"time"
)

// The states of a set-up after Sysprep.
const (
	Specialize = "specialize" // Vista and later: devices, names, the answer file's specialize pass
	OOBE       = "oobe"       // Vista and later: accounts, the out-of-box experience
	MiniSetup  = "mini-setup" // XP and 2003
	Reboot     = "reboot"     // the guest restarts; takes is how long its power-on self-test takes
	Complete   = "complete"   // the last state, whatever was before
)

// States returns all there are.
func States() []string { return []string{Specialize, OOBE, MiniSetup, Reboot, Complete} }

// Stage is one state of a set-up, how long it lasts and what goes wrong in it.
type Stage struct {
	State string
	Takes time.Duration

	Answers    bool          // the control channel is open in it already; in complete it is in any case
	NoLogin    bool          // logins are refused in it: accounts are made by the set-up
	Address    string        // where the channel answers in it; "" is the computer's own address
	AwayAfter  time.Duration // so long after the stage began the channel closes ...
	AwayFor    time.Duration // ... for so long; 0 is not at all
	NewKey     bool          // the host key and the certificate are made anew when it begins
	Quiet      bool          // nothing is written to the log meanwhile
	NeverEnds  bool
	UntilReset bool   // it hangs, with its channel closed, until the power is cut once
	Command    string // the program that the set-up has started and waits for all the while
	Error      string // it writes this error to setuperr.log at the stage's begin, and goes on: most set-ups do
	Fails      string // the set-up ends in an error at the end of the stage, with this text in setuperr.log ...
	Leaves     bool   // ... and leaves no process, and says that it is not in progress
	ImageState string // instead of what Windows says in this state; with Fails: after the failure
}

// DefaultSetup is a set-up that works and does not take long. Without Sysprep there is nothing to set up.
func DefaultSetup(v Version, sysprep bool) []Stage {
	switch {
	case !sysprep:
		return []Stage{{State: Complete}}
	case v.Old():
		return []Stage{{State: MiniSetup, Takes: 500 * time.Millisecond}, {State: Reboot, Takes: 200 * time.Millisecond}, {State: Complete}}
	}
	return []Stage{{State: Specialize, Takes: 500 * time.Millisecond}, {State: Reboot, Takes: 200 * time.Millisecond},
		{State: OOBE, Takes: 500 * time.Millisecond}, {State: Reboot, Takes: 200 * time.Millisecond}, {State: Complete}}
}

// The values of ImageState (Microsoft: "Windows Setup States").
const (
	ImageComplete     = "IMAGE_STATE_COMPLETE"
	ImageUndeployable = "IMAGE_STATE_UNDEPLOYABLE"
	ImageGeneralized  = "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"
	ImageSpecialized  = "IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE"
)

// The registry keys in which a set-up says how it stands.
const (
	SetupKey       = `HKLM\SYSTEM\Setup`
	ImageStateKey  = `HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Setup\State`
	SysprepKey     = `HKLM\SYSTEM\Setup\Status\SysprepStatus`
	generalizedYes = 7
	generalizedNot = 4
)

// unexpected is what Windows shows after the power was cut in the specialize pass.
const unexpected = "The computer restarted unexpectedly or encountered an unexpected error. Windows installation cannot proceed."

// setup is how the set-up stands: at is on the disk, the rest is in memory.
type setup struct {
	stages    []Stage
	at        int
	began     time.Time // when the stage began
	midway    bool      // the stage has begun and not ended
	saved     bool      // a stage that waited for a power reset got it
	broken    bool      // the power was cut in a pass that Windows begins only once
	failed    bool
	writes    int
	completed time.Time
}

// Setup is how a guest's set-up stands.
type Setup struct {
	State      string // one of States
	Failed     bool
	ImageState string    // "" on XP and 2003
	Completed  time.Time // when Windows first said that it is over; by the clock of who simulates
}

// Setup returns how the set-up stands.
func (m *Machine) Setup() Setup {
	return locked(m, func() Setup {
		return Setup{State: m.stage().State, Failed: m.setup.failed, ImageState: m.reg(ImageStateKey, "ImageState"), Completed: m.setup.completed}
	})
}

// stage is the one that goes on. A reboot that is being waited for counts as one.
func (m *Machine) stage() Stage {
	if m.setup.at >= len(m.setup.stages) {
		return Stage{State: Complete}
	}
	return m.setup.stages[m.setup.at]
}

// logs are where a set-up writes what it does and what went wrong.
func (m *Machine) logs() (act, err string) {
	if m.image.Version.Old() {
		return `C:\Windows\setupact.log`, `C:\Windows\setuperr.log`
	}
	if m.stage().State == OOBE || m.stage().State == Complete {
		return `C:\Windows\Panther\UnattendGC\setupact.log`, `C:\Windows\Panther\UnattendGC\setuperr.log`
	}
	return `C:\Windows\Panther\setupact.log`, `C:\Windows\Panther\setuperr.log`
}

// generalized is how Sysprep leaves the disk.
func (m *Machine) generalized() {
	if !m.image.Sysprep {
		m.complete()
		return
	}
	m.setDword(SetupKey, "SystemSetupInProgress", 1)
	m.setDword(SetupKey, "SetupType", 2)
	if m.image.Version.Old() {
		m.setDword(SetupKey, "MiniSetupInProgress", 1)
		m.setReg(SetupKey, "CmdLine", "setup -newsetup -mini")
		return
	}
	m.setDword(SetupKey, "OOBEInProgress", 1)
	m.setReg(SetupKey, "CmdLine", `oobe\windeploy.exe`)
	m.setReg(ImageStateKey, "ImageState", ImageGeneralized)
	m.setDword(SysprepKey, "GeneralizationState", generalizedNot)
}

// complete is how a set-up leaves the disk that is over.
func (m *Machine) complete() {
	m.setDword(SetupKey, "SystemSetupInProgress", 0)
	m.setDword(SetupKey, "SetupType", 0)
	m.setReg(SetupKey, "CmdLine", "")
	if m.image.Version.Old() {
		m.setDword(SetupKey, "MiniSetupInProgress", 0)
	} else {
		m.setDword(SetupKey, "OOBEInProgress", 0)
		m.setReg(ImageStateKey, "ImageState", ImageComplete)
		if m.image.Sysprep {
			m.setDword(SysprepKey, "GeneralizationState", generalizedYes)
		}
	}
	if m.setup.completed.IsZero() {
		m.setup.completed = time.Now()
	}
}

// Processes returns what runs, without what a set-up has started.
func (m *Machine) Processes() []string {
	return locked(m, func() []string { all, _ := m.processes(); return all })
}

// processes returns what runs, and of that what the set-up has started and waits for.
func (m *Machine) processes() (all, commands []string) {
	all = []string{"System", "smss.exe", "csrss.exe", "winlogon.exe", "services.exe", "lsass.exe", "svchost.exe"}
	stage := m.stage()
	switch {
	case m.setup.failed:
		if !stage.Leaves {
			all = append(all, "setup.exe", "windeploy.exe") // with a message on the screen
		}
		return all, nil
	case stage.State == MiniSetup:
		all = append(all, "setup.exe")
	case stage.State == Specialize:
		all = append(all, "windeploy.exe", "setup.exe")
	case stage.State == OOBE:
		all = append(all, "windeploy.exe", "oobeldr.exe", "msoobe.exe")
	default:
		return append(all, "LogonUI.exe"), nil
	}
	if stage.Command != "" {
		commands = []string{stage.Command}
	}
	return all, commands
}

// Live is one boot: it begins it, takes the set-up on from where the disk says, and returns when ctx ends (the power was
// cut) or the guest restarts by itself (Hooks.Reboot was called).
func (m *Machine) Live(ctx context.Context) {
	m.life.Lock() // the boot before ends first
	defer m.life.Unlock()
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	m.boot()
	m.mu.Unlock()
	for m.pass(ctx) {
	}
	m.mu.Lock()
	m.powerCut(ctx)
	m.mu.Unlock()
	m.channel(false, "")
}

// boot is what every start does. The lock must be held.
func (m *Machine) boot() {
	m.booted = m.now()
	m.boots++
	m.hostname = m.reg(computerNames+`\ComputerName`, "ComputerName")
	m.setReg(computerNames+`\ActiveComputerName`, "ComputerName", m.hostname)
	if domain := m.reg(pendingKey, "Domain"); domain != "" {
		m.domain = domain
		m.deleteReg(pendingKey, "Domain")
	}
	for name, s := range m.services {
		if s.Start == "Automatic" {
			s.Running = true
		}
		m.services[name] = s
	}
	m.clearPendingReboot()
	if m.setup.broken {
		m.setup.broken = false
		m.fail(m.stage(), unexpected) // Windows does not take this pass up again
	}
}

// powerCut is what the end of the power does to a set-up that has not ended. The lock must be held.
func (m *Machine) powerCut(ctx context.Context) {
	if ctx.Err() == nil || !m.setup.midway {
		return
	}
	m.setup.midway = false
	stage := m.stage()
	switch {
	case stage.UntilReset && !m.setup.saved:
		m.setup.saved = true
	case stage.State == Specialize:
		m.setup.broken = true
	}
}

// pass goes through one stage, and says whether there is another one in this boot.
func (m *Machine) pass(ctx context.Context) bool {
	m.mu.Lock()
	stage := m.stage()
	if m.setup.failed {
		m.mu.Unlock()
		m.channel(stage.Answers, stage.Address) // the error is on the screen, and stays there
		<-ctx.Done()
		return false
	}
	hangs := stage.UntilReset && !m.setup.saved
	m.enter(stage)
	m.mu.Unlock()
	switch {
	case stage.State == Reboot:
		m.restart(stage.Takes)
		return false
	case hangs:
		m.channel(false, "")
		<-ctx.Done()
		return false
	}
	if ctx.Err() == nil {
		m.channel(stage.Answers || stage.State == Complete, stage.Address)
	}
	if !m.stay(ctx, stage) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setup.midway = false
	if stage.Fails != "" {
		m.fail(stage, stage.Fails)
	} else {
		m.setup.at++
	}
	return true
}

// enter is a stage's begin. The lock must be held.
func (m *Machine) enter(stage Stage) {
	m.setup.began = time.Now()
	m.setup.midway = stage.State != Complete && stage.State != Reboot
	if stage.State == Reboot {
		m.setup.at++ // the next boot begins after it
	}
	if stage.NewKey {
		m.forgetIdentity()
	}
	m.logLine(fmt.Sprintf("Info  [windeploy.exe] begin of %s", stage.State))
	switch stage.State {
	case Specialize:
		m.setReg(ImageStateKey, "ImageState", ImageUndeployable) // what it is while a pass runs
	case OOBE:
		m.setReg(ImageStateKey, "ImageState", ImageSpecialized)
	case Complete:
		m.complete()
	}
	if stage.ImageState != "" && stage.Fails == "" {
		m.setReg(ImageStateKey, "ImageState", stage.ImageState)
	}
	if stage.Error != "" {
		m.logError(stage.Error)
	}
}

// stay waits until a stage is over: true, or the power is cut: false.
func (m *Machine) stay(ctx context.Context, stage Stage) bool {
	wait := func(d time.Duration) <-chan time.Time {
		if d <= 0 {
			return nil
		}
		timer := time.NewTimer(d)
		context.AfterFunc(ctx, func() { timer.Stop() })
		return timer.C
	}
	var end, away, back <-chan time.Time
	if stage.State != Complete && !stage.NeverEnds {
		end = wait(max(stage.Takes, time.Nanosecond))
	}
	if stage.AwayFor > 0 {
		away = wait(max(stage.AwayAfter, time.Nanosecond))
	}
	var tick <-chan time.Time
	if !stage.Quiet && stage.State != Complete {
		ticker := time.NewTicker(m.log)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-end:
			return true
		case <-away:
			m.channel(false, "")
			back = wait(stage.AwayFor)
		case <-back:
			m.channel(stage.Answers || stage.State == Complete, stage.Address)
		case <-tick:
			m.mu.Lock()
			m.setup.writes++
			m.logLine(fmt.Sprintf("Info  [%s] step %d", stage.State, m.setup.writes))
			m.mu.Unlock()
		}
	}
}

// fail ends a set-up in an error. The lock must be held.
func (m *Machine) fail(stage Stage, text string) {
	m.setup.failed = true
	m.logError(text)
	if stage.Leaves {
		m.setDword(SetupKey, "SystemSetupInProgress", 0)
	}
	if m.image.Version.Old() {
		return
	}
	if stage.Leaves {
		m.setDword(SetupKey, "OOBEInProgress", 0)
	}
	state := ImageUndeployable
	if stage.ImageState != "" {
		state = stage.ImageState
	}
	m.setReg(ImageStateKey, "ImageState", state)
}

func (m *Machine) logError(text string) {
	_, errors := m.logs()
	m.append(errors, m.now().Format("2006-01-02 15:04:05")+", Error [setup.exe] "+text+"\r\n")
	m.logLine("Error [setup.exe] " + text)
}

func (m *Machine) logLine(text string) {
	act, _ := m.logs()
	m.append(act, m.now().Format("2006-01-02 15:04:05")+", "+text+"\r\n")
}

// restart asks for a reboot from within.
func (m *Machine) restart(takes time.Duration) {
	m.channel(false, "")
	if m.hooks.Reboot != nil {
		m.hooks.Reboot(takes)
	}
}

func (m *Machine) channel(open bool, address string) {
	m.mu.Lock()
	same := m.open == open && m.address == address
	m.open, m.address = open, address
	m.mu.Unlock()
	if !same && m.hooks.Channel != nil {
		m.hooks.Channel(open, address)
	}
}

// Login says whether a user may log in with a password now.
func (m *Machine) Login(user, password string) bool {
	known, ok := m.PasswordOf(user)
	return ok && known == password
}

// PasswordOf returns a user's password; false when nobody may log in under that name now.
func (m *Machine) PasswordOf(user string) (string, bool) {
	u, ok := m.User(user)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !ok || u.Disabled || u.Password == "" || m.stage().NoLogin {
		return "", false
	}
	return u.Password, true
}

// pendingKey holds what the next boot does; it is no key of Windows'.
const pendingKey = `HKLM\SYSTEM\Simulation\Pending`

// The places in which Windows says that it wants to be rebooted.
const (
	pendingServicing = `HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending`
	pendingUpdate    = `HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired`
	sessionManager   = `HKLM\SYSTEM\CurrentControlSet\Control\Session Manager`
)

func (m *Machine) clearPendingReboot() {
	delete(m.registry, lower(pendingServicing))
	delete(m.registry, lower(pendingUpdate))
	m.deleteReg(sessionManager, "PendingFileRenameOperations")
}
