// Package dial reaches the daemon of a libvirt host: by its unix socket here, by TLS, or through sshd on the host.
//
// The SSH of this package goes to hosts only, with their own keys and users; guests are the OS modules' business.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"berth/reservation"
)

// Transport is how the daemon is reached.
type Transport string

// The transports, as they stand in a URI after the plus sign.
const (
	Unix Transport = "unix"
	TLS  Transport = "tls"
	SSH  Transport = "ssh"
)

// The daemon's own ports and sockets.
const (
	DefaultTLSPort = 16514                         // libvirtd.conf, tls_port
	DefaultSocket  = "/run/libvirt/libvirt-sock"   // libvirtd, and virtproxyd where the daemons are split
	QEMUSocket     = "/run/libvirt/virtqemud-sock" // where the daemons are split and there is no virtproxyd
	localURI       = "qemu:///system"              // what the daemon is asked to open
	reachLimit     = 20 * time.Second              // to connect and log in
	keepAlive      = 15 * time.Second              // a peer that has died is noticed after four of them
	unanswered     = 4                             // of those
	tlsAccepted    = 1                             // the byte with which the daemon accepts a certificate
	sshPort        = 22                            // sshd's
	keepAliveName  = "keepalive@openssh.com"       // the request that any sshd answers
)

// URI is a parsed connection URI.
type URI struct {
	Transport Transport
	Address   string // host:port; "" for Unix
	User      string // SSH only
	Socket    string // Unix and SSH; "" is the daemon's own
	Local     string // the URI that the daemon is asked to open
}

// String returns where the daemon is, for texts.
func (u URI) String() string {
	switch {
	case u.Transport == Unix && u.Socket != "":
		return u.Socket
	case u.Transport == Unix:
		return DefaultSocket
	default:
		return string(u.Transport) + "://" + u.Address
	}
}

// Parse reads a libvirt URI: qemu:///system, qemu+unix:///system?socket=PATH, qemu+tls://HOST[:PORT]/system or
// qemu+ssh://USER@HOST[:PORT]/system[?socket=PATH]. Other parameters are refused rather than left without effect.
// The error is a *reservation.FieldError of the field.
func Parse(field, text string) (URI, error) {
	fault := func(remedy string) (URI, error) {
		return URI{}, &reservation.FieldError{Field: field, Value: text, Remedy: remedy}
	}
	const forms = "write qemu:///system, qemu+tls://HOST/system or qemu+ssh://USER@HOST/system"
	u, err := url.Parse(text)
	if err != nil {
		return URI{}, &reservation.FieldError{Field: field, Value: "", Remedy: forms} // it may hold a password
	}
	if _, password := u.User.Password(); password {
		return URI{}, &reservation.FieldError{Field: field, Value: u.Redacted(),
			Remedy: "take the password out: name a secret as credential"}
	}
	driver, transport, given := strings.Cut(u.Scheme, "+")
	if driver != "qemu" {
		return fault(forms + ": only QEMU's driver loads computers")
	}
	if u.Path != "/system" {
		return fault("end it with /system: " + forms)
	}
	parsed := URI{Transport: Transport(transport), Local: localURI, User: u.User.Username()}
	if !given {
		parsed.Transport = Unix
	}
	for name, values := range u.Query() {
		if name != "socket" || parsed.Transport == TLS || len(values) != 1 || !strings.HasPrefix(values[0], "/") {
			return fault("it may have ?socket=/PATH only, and not with tls: other settings have fields of their own")
		}
		parsed.Socket = values[0]
	}
	port := 0
	switch parsed.Transport {
	case Unix:
		if u.Host != "" || parsed.User != "" {
			return fault("a unix socket has neither host nor user: " + forms)
		}
		return parsed, nil
	case TLS:
		if parsed.User != "" {
			return fault("leave the user out: by TLS the certificate says who we are")
		}
		port = DefaultTLSPort
	case SSH:
		if parsed.User == "" {
			return fault("name the user that Berth logs in as: qemu+ssh://USER@HOST/system")
		}
		port = sshPort
	default:
		return fault("there is no such transport: " + forms)
	}
	if u.Port() != "" {
		port, _ = strconv.Atoi(u.Port()) // url.Parse has checked it
	}
	if err := reservation.CheckAddress(field, u.Hostname()); err != nil || port < 1 || port > 65535 {
		return fault("it needs a host name or an IP address: " + forms)
	}
	parsed.Address = net.JoinHostPort(u.Hostname(), strconv.Itoa(port))
	return parsed, nil
}

// Dialer opens connections to one host's daemon. It is safe for concurrent use.
type Dialer interface {
	// Dial connects and logs in, within 20 s. An error that another try cannot mend is a *RefusedError, a *HostKeyError or a
	// *tls.CertificateVerificationError.
	Dial(ctx context.Context) (net.Conn, error)
	// Close ends what connections share. It may be called again.
	Close()
}

// RefusedError says that the host does not let us in.
type RefusedError struct {
	Where string
	Err   error
}

func (e *RefusedError) Error() string { return e.Where + " does not let us in: " + e.Err.Error() }

func (e *RefusedError) Unwrap() error { return e.Err }

// NewUnix returns a dialer of a socket on this machine; "" is the daemon's own.
func NewUnix(socket string) Dialer { return unix(socket) }

type unix string

func (u unix) Dial(ctx context.Context) (net.Conn, error) {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "unix", sockets(string(u))[0])
	if u == "" && errors.Is(err, os.ErrNotExist) {
		connection, err = dialer.DialContext(ctx, "unix", QEMUSocket)
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, &RefusedError{Where: u.String(), Err: fmt.Errorf("%w: add the worker's user to the group libvirt", err)}
	}
	return connection, err
}

func (u unix) String() string { return sockets(string(u))[0] }

func (u unix) Close() {}

// sockets returns the sockets to try, in order.
func sockets(given string) []string {
	if given != "" {
		return []string{given}
	}
	return []string{DefaultSocket, QEMUSocket}
}
