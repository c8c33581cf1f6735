//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"berth/internal/libvirthost"
)

// envHost tells this test program that it is a libvirt host, and in which folder.
const envHost = "BERTH_E2E_HOST"

// What a libvirt host leaves in its folder.
const (
	hostSocket = "libvirt.sock" // for whoever sees the folder
	hostFacts  = "host.json"    // it is there when the host serves
)

type facts struct {
	Accel string `json:"accel"`
}

// runHost is a libvirt host in namespaces of its own until its standard input ends. It returns the program's exit code.
func runHost(dir string) int {
	inside, code, err := libvirthost.Apart(os.Getenv(libvirthost.EnvStage))
	if err == nil && !inside {
		return code
	}
	if err == nil {
		err = serveHost(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "libvirt host:", err)
		return 1
	}
	return 0
}

func serveHost(dir string) error {
	host, err := libvirthost.Start(context.Background(), libvirthost.Options{Dir: dir})
	if err != nil {
		return err
	}
	defer host.Stop()
	// libvirtd's own socket is where nobody outside sees it.
	socket := filepath.Join(dir, hostSocket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := os.Chmod(socket, 0o777); err != nil { // workers in containers are nobody here
		return err
	}
	go libvirthost.Relay(listener, "unix", libvirthost.Socket)
	text, err := json.Marshal(facts{Accel: host.Accel})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, hostFacts)
	if err := os.WriteFile(file+".new", text, 0o644); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
