package libvirthost

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// What a guest's instructions are run by.
const (
	AccelKVM = "kvm" // the processor itself
	AccelTCG = "tcg" // QEMU's translator, ten to thirty times slower
)

const (
	qemu = "qemu-system-x86_64"

	exitPort  = 0xf4 // of QEMU's device isa-debug-exit
	exitValue = 0x10
	exitCode  = exitValue<<1 | 1 // how QEMU ends when the value is written to the port

	// A KVM that works is through within a second. One inside another virtual machine may interpret what a guest does before
	// it has switched paging on: such a guest gets to its boot sector, and spends an hour in its boot loader.
	bootLimit = 10 * time.Second
	rounds    = 1 << 25
)

// Accelerator finds out what guests run with here. That /dev/kvm is there says little: it may belong to a machine whose
// guests hang or crawl. So a guest of one sector is booted with it, which counts down and tells QEMU to end with a certain code.
func Accelerator(ctx context.Context) (string, error) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return AccelTCG, nil
	}
	works, err := boots(ctx, AccelKVM)
	if err != nil {
		return "", err
	}
	if works {
		return AccelKVM, nil
	}
	return AccelTCG, nil
}

// boots says whether a guest gets as far as its boot sector.
func boots(ctx context.Context, accel string) (bool, error) {
	dir, err := os.MkdirTemp("", "berth-boot-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, bootSector(), 0o600); err != nil {
		return false, err
	}
	if err := os.Truncate(disk, 1<<20); err != nil { // the firmware reads no smaller disk
		return false, err
	}
	limited, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	// The machine and the processor are those that Berth's guests get: a KVM inside another virtual machine may run an older
	// machine with a made-up processor, and no guest of today.
	model := "host"
	if accel == AccelTCG {
		model = "max"
	}
	command := exec.CommandContext(limited, qemu, "-accel", accel, "-machine", "q35", "-cpu", model, "-m", "64",
		"-display", "none", "-nodefaults", "-no-user-config",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=4", exitPort), "-drive", "format=raw,if=virtio,file="+disk)
	err = command.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case err == nil, errors.As(err, &exit):
		return err != nil && exit.ExitCode() == exitCode, nil
	}
	return false, fmt.Errorf("%s: %w", qemu, err)
}

// bootSector is a boot sector of real-mode code:
//
//	mov dx, exitPort
//	mov ecx, rounds
//	dec ecx; jnz to the dec
//	mov al, exitValue
//	out dx, al
//	hlt
//	jmp to the hlt
func bootSector() []byte {
	const size = 512
	sector := make([]byte, size)
	code := append([]byte{0xba, exitPort, 0x00, 0x66, 0xb9}, binary.LittleEndian.AppendUint32(nil, rounds)...)
	copy(sector, append(code, 0x66, 0x49, 0x75, 0xfc, 0xb0, exitValue, 0xee, 0xf4, 0xeb, 0xfd))
	sector[size-2], sector[size-1] = 0x55, 0xaa
	return sector
}
