package linux

import (
	"errors"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/sitescripts"
	"berth/reservation"
)

// Options are a Module's settings.
type Options struct {
	Dialer *ssh.Dialer
	// ScriptsDir is the folder of the site's own scripts; "" when there are none. It is checked by New and read anew
	// for each load.
	ScriptsDir string
	Logger     zerolog.Logger
	// Waiting, if not nil, is called with 1 when a wait for a guest begins and with -1 when it ends.
	Waiting func(delta int)
}

// Module is the OS module of Linux guests. It implements osmodules.Module and is safe for concurrent use.
type Module struct {
	options Options
	pace    pace
	root    string // "" but in tests: stands before every path on the guest
}

// New returns the module, or every fault of the settings, joined.
func New(options Options) (*Module, error) {
	var faults []error
	if options.Dialer == nil {
		faults = append(faults, errors.New("the Linux module has no dialer: give Options.Dialer"))
	}
	if options.ScriptsDir != "" {
		faults = append(faults, sitescripts.Check(options.ScriptsDir, sitescripts.Program))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if options.Waiting == nil {
		options.Waiting = func(int) {}
	}
	return &Module{options: options, pace: defaultPace()}, nil
}

// pace is how often what is tried.
type pace struct {
	early, due, late climb.Span      // between two dials, begin to begin
	setup            climb.Span      // between two looks at the set-up; the second is reached by and by
	refused          []time.Duration // after a refused authentication; the last repeats
	look             time.Duration   // the least that a wait gets, however late its limit is
	reconnect        time.Duration   // for coming back to a guest that had answered
	nonce, probe     time.Duration   // limits of the ladder's commands
	addressWait      int             // seconds for which a public address may be late
	reconnects       int             // how often a connection may be made again while configuring
}

func defaultPace() pace {
	return pace{
		early:       climb.Span{From: 800 * time.Millisecond, To: 1200 * time.Millisecond},
		due:         climb.Span{From: 250 * time.Millisecond, To: 700 * time.Millisecond},
		late:        climb.Span{From: 600 * time.Millisecond, To: 950 * time.Millisecond},
		setup:       climb.Span{From: time.Second, To: 3 * time.Second},
		refused:     []time.Duration{time.Second, 2 * time.Second, 5 * time.Second},
		look:        30 * time.Second,
		reconnect:   60 * time.Second,
		nonce:       15 * time.Second, // VCL OS.pm is_ssh_responding: test command 15 s
		probe:       60 * time.Second,
		addressWait: addressWait,
		reconnects:  3,
	}
}

// usualPort is the control port of an image that names none.
const usualPort = 22

// What the reporter keeps for a worker that takes over.
const (
	keepHostKey  = "linux.hostkey"  // "TYPE SHA256:..." of the pinned key
	keepReset    = "linux.reset"    // when the power reset was given (RFC 3339)
	keepBoot     = "linux.boot"     // the boot id of the guest that was up
	keepAnswered = "linux.answered" // when it was up (RFC 3339)
	keepAddress  = "linux.address"  // the public address
	keepStep     = "linux.step."    // and the step's name: how it went
)

// target returns whom to connect to, with the key that is pinned by now.
func target(request osmodules.Request, report reservation.Reporter) (ssh.Target, error) {
	control := request.Reservation.Image.Control
	if control.Channel != "ssh" {
		return ssh.Target{}, reservation.Fail("", &reservation.FieldError{Field: "image.control.channel", Value: control.Channel,
			Remedy: "Linux images are controlled by ssh"})
	}
	pin, err := pinned(request, report)
	if err != nil {
		return ssh.Target{}, err
	}
	user := control.User
	if user == "" {
		user = "root"
	}
	return ssh.Target{Address: climb.Address(request, usualPort), User: user, Credential: control.Credential, Pin: pin}, nil
}

func pinned(request osmodules.Request, report reservation.Reporter) (ssh.Pin, error) {
	if request.HostKey != "" {
		pin, err := ssh.PinOf(request.HostKey)
		if err != nil {
			return ssh.Pin{}, reservation.Fail("the key that the provisioner handed to the guest", err)
		}
		return pin, nil
	}
	if request.Reservation.Image.Control.HostKey == reservation.HostKeyHanded {
		return ssh.Pin{}, climb.KeyNotHanded()
	}
	kept := report.Kept(keepHostKey)
	if kept == "" {
		return ssh.Pin{}, nil
	}
	kind, fingerprint, ok := strings.Cut(kept, " ")
	if !ok {
		return ssh.Pin{Fingerprint: kept}, nil
	}
	return ssh.Pin{Type: kind, Fingerprint: fingerprint}, nil
}
