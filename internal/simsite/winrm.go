package simsite

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"berth/internal/simsite/winos"
	"berth/osmodules/remote/winrm/winrmtest"
)

// winrmService is WinRM on a guest, for one boot: shells do not outlive it.
type winrmService struct {
	server *winrmtest.Server
	conns  *handedConns
}

// handedConns is a listener whose connections the guest's own port accepts.
type handedConns struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (h *handedConns) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handedConns) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handedConns) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// handedConn tells when it is closed.
type handedConn struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *handedConn) Close() error {
	defer c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// serveWinRM serves one connection of HTTPS until it ends.
func (t *boot) serveWinRM(conn net.Conn) {
	machine, ok := t.guest.machineNow().(*winos.Machine)
	if !ok {
		return
	}
	certificate, err := machine.Certificate()
	if t.behaviour.WrongKey {
		certificate, err = winrmtest.NewCertificate("somebody-else")
	}
	if err != nil {
		t.guest.site.log.Error().Str("computer", t.guest.name).Err(err).Msg("no certificate")
		return
	}
	t.mu.Lock()
	if t.ctx.Err() != nil {
		t.mu.Unlock()
		return
	}
	if t.winrm == nil {
		t.winrm = t.newWinRM(machine)
	}
	service := t.winrm
	t.mu.Unlock()
	service.server.Change(func(o *winrmtest.Options) { o.Certificate = certificate })
	handed := &handedConn{Conn: gate{conn, t}, closed: make(chan struct{})}
	select {
	case service.conns.conns <- handed:
	case <-t.ctx.Done():
		return
	}
	select {
	case <-handed.closed:
	case <-t.ctx.Done():
	}
}

func (t *boot) newWinRM(machine *winos.Machine) *winrmService {
	service := &winrmService{conns: &handedConns{conns: make(chan net.Conn), closed: make(chan struct{})}}
	service.server = winrmtest.New(winrmtest.Options{
		Users: func(name string) (string, bool) {
			if !t.lets() {
				return "", false
			}
			return machine.PasswordOf(name)
		},
		Before: func(_ context.Context, action string) error {
			switch {
			case action == "Command" && t.behaviour.Refuses == refusesCommands:
				return errors.New("no commands here")
			case action == "Create": // a shell is what a login is to SSH
				t.loggedIn()
			}
			return nil
		},
		Exec: func(ctx context.Context, line string, in io.Reader, out, errOut io.Writer) int {
			t.guest.site.count(t.guest.name, func(c *Counts) { c.Commands++ })
			defer t.guest.site.count(t.guest.name, func(c *Counts) { c.Finished++ })
			return t.run(ctx, machine, line, in, out, errOut, nil)
		},
	})
	t.guest.site.group.Go(func() { _ = service.server.Serve(service.conns) })
	return service
}

// endWinRM ends the shells of a boot and what runs in them.
func (t *boot) endWinRM() {
	t.mu.Lock()
	service := t.winrm
	t.mu.Unlock()
	if service == nil {
		return
	}
	_ = service.conns.Close()
	t.guest.site.group.Go(func() { service.server.Close() })
}

// forgetShells ends the shells of a boot, as a restart of the service does: whoever waits for a command's output is told
// that there is no such shell.
func (t *boot) forgetShells() {
	t.mu.Lock()
	service := t.winrm
	t.mu.Unlock()
	if service != nil {
		service.server.Forget()
	}
}
