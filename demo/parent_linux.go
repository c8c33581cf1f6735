package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// endWithParent has Linux send this process SIGTERM when the one that started it ends.
func endWithParent() error {
	parent := os.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return err
	}
	if os.Getppid() != parent { // it ended before it was asked for
		return unix.Kill(os.Getpid(), unix.SIGTERM)
	}
	return nil
}
