package process

import "syscall"

func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// EndsWithParent says whether this system ends a process that Start started when its parent is killed.
func EndsWithParent() bool { return true }
