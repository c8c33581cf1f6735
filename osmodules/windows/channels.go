package windows

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"berth/osmodules/remote"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/winrm"
	"berth/reservation"
)

// Dialer makes connections over one kind of control channel.
type Dialer interface {
	// CheckCredential returns an error unless there is a usable secret of that name.
	CheckCredential(name string) error
	// Dial connects. Its error says the rung (*remote.RungError), and holds a *PinError if the guest shows another key or
	// certificate than the pinned one, or a *remote.AuthError if it refuses us.
	Dial(ctx context.Context, target Target) (Session, error)
	// DefaultPort is the port of an image that names none.
	DefaultPort() int
	// Services are the names that the channel's service may have on the guest, the first that is there counts.
	Services() []string
}

// Target is what to connect to, and as whom.
type Target struct {
	Address    string // host:port
	Control    reservation.Control
	Pin        string // as a Session returned it; "": any, reported to Shown
	ServerName string // whom a certificate must be made out to, where authorities vouch for it
	Reached    func(remote.Rung)
	Shown      func(pin string)
}

// Session is an open connection.
type Session interface {
	remote.Channel
	Identity() string      // what the guest proved to be, as a pin
	Fingerprint() string   // of it, as "SHA256:..."
	Password() bool        // whether we logged in with a password
	Done() <-chan struct{} // closed when the connection is lost
	LocalAddress() string  // ours, as this host sees it
}

// PinError says that a guest showed another key or certificate than the pinned one.
type PinError struct {
	Want, Got string // pins; Got is what to pin from now on if the change was expected
	Err       error
}

func (e *PinError) Error() string { return e.Err.Error() }

func (e *PinError) Unwrap() error { return e.Err }

// SSH returns the dialer of Win32-OpenSSH and of Cygwin's sshd.
func SSH(dialer *ssh.Dialer) Dialer { return sshDialer{dialer} }

type sshDialer struct{ *ssh.Dialer }

func (sshDialer) DefaultPort() int   { return 22 }
func (sshDialer) Services() []string { return []string{"sshd", "cygsshd", "OpenSSHd"} }

func (d sshDialer) Dial(ctx context.Context, target Target) (Session, error) {
	client, err := d.Dialer.Dial(ctx, ssh.Target{
		Address: target.Address, User: target.Control.User, Credential: target.Control.Credential, Pin: sshPin(target.Pin), Windows: true,
		Reached: target.Reached, Shown: func(pin ssh.Pin) { target.Shown(pin.String()) },
	})
	if err != nil {
		var mismatch *ssh.HostKeyError
		if errors.As(err, &mismatch) {
			err = &PinError{Want: mismatch.Want, Got: mismatch.Got, Err: err}
		}
		return nil, err
	}
	return sshSession{client}, nil
}

// sshPin reads what Pin.String wrote.
func sshPin(text string) ssh.Pin {
	if kind, fingerprint, ok := strings.Cut(text, " "); ok {
		return ssh.Pin{Type: kind, Fingerprint: fingerprint}
	}
	return ssh.Pin{Fingerprint: text}
}

type sshSession struct{ *ssh.Client }

func (s sshSession) Identity() string    { return s.Pin().String() }
func (s sshSession) Fingerprint() string { return s.Pin().Fingerprint }
func (s sshSession) Password() bool      { return s.Method() == ssh.MethodPassword }

// WinRM returns the dialer of Windows Remote Management. Files of authorities that images name are relative to folder.
func WinRM(dialer *winrm.Dialer, folder string) Dialer { return winrmDialer{dialer, folder} }

type winrmDialer struct {
	*winrm.Dialer
	folder string
}

func (winrmDialer) DefaultPort() int   { return 5986 }
func (winrmDialer) Services() []string { return []string{"WinRM"} }

func (d winrmDialer) Dial(ctx context.Context, target Target) (Session, error) {
	aim := winrm.Target{
		Address: target.Address, User: target.Control.User, Credential: target.Control.Credential, Auth: target.Control.Auth,
		Reached: target.Reached, Shown: func(pin winrm.Pin) { target.Shown(pin.String()) },
	}
	if file := target.Control.Certificate; file != "" && file != reservation.HostKeyFirst {
		if !filepath.IsAbs(file) {
			file = filepath.Join(d.folder, file)
		}
		pem, err := os.ReadFile(file)
		if err == nil {
			aim.Roots, err = winrm.ReadRoots(pem)
		}
		if err != nil {
			return nil, reservation.Fail("the authorities of image.control.certificate", err)
		}
		aim.ServerName = target.ServerName
	} else {
		aim.Pin = winrm.Pin{Fingerprint: target.Pin}
	}
	client, err := d.Dialer.Dial(ctx, aim)
	if err != nil {
		var mismatch *winrm.CertificateError
		if errors.As(err, &mismatch) {
			err = &PinError{Want: mismatch.Want, Got: mismatch.Got, Err: err}
		}
		return nil, err
	}
	return winrmSession{client}, nil
}

type winrmSession struct{ *winrm.Client }

func (s winrmSession) Identity() string    { return s.Pin().String() }
func (s winrmSession) Fingerprint() string { return s.Pin().Fingerprint }
func (s winrmSession) Password() bool      { return true }
