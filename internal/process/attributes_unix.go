//go:build unix && !linux

package process

import "syscall"

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// EndsWithParent says whether this system ends a process that Start started when its parent is killed.
func EndsWithParent() bool { return false }
