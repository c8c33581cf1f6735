package libvirthost

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// EnvStage is the environment variable that tells a program's run how far Apart is with it. Only Apart sets it.
const EnvStage = "BERTH_LIBVIRT_STAGE"

const (
	stageInit   = "init"   // process 1 of the new namespaces
	stageInside = "inside" // the program proper
)

// marker is the source of the mounts that hide the machine's own libvirt, as /proc/self/mountinfo shows it.
const marker = "berth-libvirt"

// hidden are libvirt's folders: its configuration, state, caches, logs and sockets. libvirtd has their paths compiled in.
func hidden() []string {
	return []string{"/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/run/libvirt"}
}

// Apart runs the calling program once more, with the same arguments, in network, mount, process and IPC namespaces of its
// own, where libvirt's folders are empty and in memory. A main program calls it first with the value of EnvStage; it must
// end with code unless inside is true:
//
//	inside, code, err := libvirthost.Apart(os.Getenv(libvirthost.EnvStage))
//
// When the program ends inside, or the one outside is killed, the kernel ends all that was started inside: libvirtd,
// the guests' QEMU and everything else. It takes root.
func Apart(stage string) (inside bool, code int, err error) {
	switch stage {
	case stageInside:
		return true, 0, nil
	case stageInit:
		code, err = initProcess()
		return false, code, err
	case "":
		code, err = enter()
		return false, code, err
	}
	return false, 1, fmt.Errorf("%s is %q: leave it unset", EnvStage, stage)
}

// enter starts process 1 of the new namespaces and hands signals on to it until it has ended.
func enter() (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("namespaces of its own for libvirt take root: run it as root")
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	cmd := exec.Command(self)
	cmd.Args = os.Args
	cmd.Env = append(cmd.Environ(), EnvStage+"="+stageInit)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		// A group of its own: a Ctrl-C in the terminal reaches it once, through us.
		Setpgid: true, Pdeathsig: unix.SIGKILL,
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	// The kernel sends the parent-death signal when the thread that started the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("namespaces of its own for libvirt: %w", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// initProcess is process 1: it makes the namespaces ready, runs the program inside, and takes the exit codes of all
// processes that lose their parent, as QEMU does: for libvirtd a process whose code nobody took is still running.
func initProcess() (int, error) {
	if err := furnish(); err != nil {
		return 1, err
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	program, err := os.StartProcess(self, os.Args, &os.ProcAttr{
		Env:   (&exec.Cmd{Env: append((&exec.Cmd{}).Environ(), EnvStage+"="+stageInside)}).Environ(), // the last one of a name counts
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			_ = program.Signal(s)
		}
	}()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait for the program: %w", err)
		case pid == program.Pid && status.Exited():
			return status.ExitStatus(), nil
		case pid == program.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		}
	}
}

// furnish makes /proc and /sys those of the new namespaces, hides libvirt's folders, and switches the loopback on.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", plain, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// The old one goes with the control groups that are mounted on it: libvirt's would outlive us.
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", plain, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	for _, folder := range hidden() {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(marker, folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("hide %s: %w", folder, err)
		}
	}
	if err := addAccount("passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin"); err != nil {
		return err
	}
	if err := addAccount("group", "libvirt-qemu:x:64055:"); err != nil {
		return err
	}
	return interfaceUp("lo")
}

// addAccount adds a line to /etc/passwd or /etc/group as they are seen inside. Debian's libvirtd looks its guests' user up
// whether its configuration names another one or not, and the package that makes the account would also set up a libvirtd for
// the machine itself.
func addAccount(file, line string) error {
	name, _, _ := strings.Cut(line, ":")
	text, err := os.ReadFile("/etc/" + file)
	if err != nil || strings.HasPrefix(string(text), name+":") || strings.Contains(string(text), "\n"+name+":") {
		return err
	}
	longer := "/etc/libvirt/" + file // in memory, and ours
	if err := os.WriteFile(longer, append(text, line+"\n"...), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(longer, "/etc/"+file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("add %s to /etc/%s: %w", name, file, err)
	}
	return nil
}

func interfaceUp(name string) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, request); err != nil {
		return fmt.Errorf("read the flags of %s: %w", name, err)
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("switch %s on: %w", name, err)
	}
	return nil
}

// apart says whether this process is inside: whether libvirt's folders are ours.
func apart() (bool, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for _, folder := range hidden() {
		ours := false
		for line := range strings.Lines(string(mounts)) {
			ours = ours || strings.Contains(line, " "+folder+" ") && strings.Contains(line, " - tmpfs "+marker+" ")
		}
		if !ours {
			return false, nil
		}
	}
	return true, nil
}
