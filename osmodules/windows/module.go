package windows

import (
	"context"
	"embed"
	"errors"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"berth/osmodules"
	"berth/osmodules/climb"
	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/osmodules/sitescripts"
	"berth/reservation"
)

// scripts are the texts that run on the guest, one a step.
//
//go:embed scripts/*.ps1
var scripts embed.FS

// Options are a Module's settings.
type Options struct {
	// Dialers are the control channels by image.control.channel.
	Dialers map[string]Dialer
	// Secret returns the secret of a name: a domain's password, a product key. It is asked anew for each use.
	Secret func(name string) (string, error)
	// ScriptsDir is the folder of the site's own scripts; "" when there are none. It is checked by New and read anew
	// for each load.
	ScriptsDir string
	Logger     zerolog.Logger
	// Waiting, if not nil, is called with 1 when a wait for a guest begins and with -1 when it ends.
	Waiting func(delta int)
}

// Module is the OS module of Windows guests. It implements osmodules.Module and is safe for concurrent use.
type Module struct {
	options Options
	pace    pace
}

// New returns the module, or every fault of the settings, joined.
func New(options Options) (*Module, error) {
	var faults []error
	if len(options.Dialers) == 0 {
		faults = append(faults, errors.New("the Windows module has no dialer: give Options.Dialers"))
	}
	if options.ScriptsDir != "" {
		faults = append(faults, sitescripts.Check(options.ScriptsDir, sitescripts.PowerShell))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if options.Waiting == nil {
		options.Waiting = func(int) {}
	}
	if options.Secret == nil {
		options.Secret = func(name string) (string, error) {
			return "", &remote.CredentialError{Name: name, Err: errors.New("this worker has no source of secrets")}
		}
	}
	return &Module{options: options, pace: defaultPace()}, nil
}

// pace is how often what is tried.
type pace struct {
	early, due  climb.Span      // between two dials, begin to begin: before the initial delay is over, and after
	setup       climb.Span      // between two looks at the set-up; the second is reached by and by
	refused     []time.Duration // after a refused authentication; the last repeats
	look        time.Duration   // the least that a wait gets, however late its limit is
	quiet       time.Duration   // set-up with an error, or without a process, and without any change has failed after this
	reconnect   time.Duration   // for coming back to a guest that had answered
	reboot      time.Duration   // for a reboot that we asked for
	probe       time.Duration   // limit of the ladder's scripts
	joinPause   time.Duration   // between two tries to join a domain
	addressWait int             // seconds for which a public address may be late
	reconnects  int             // how often a connection may be made again while configuring
	joins       int             // how often joining a domain is tried
	reboots     int             // how often we may reboot a guest in one load
}

func defaultPace() pace {
	return pace{
		early: climb.Span{From: 800 * time.Millisecond, To: 1200 * time.Millisecond},
		due:   climb.Span{From: 500 * time.Millisecond, To: 1000 * time.Millisecond},
		// Each look starts a PowerShell, which costs a Windows in set-up a second of its own.
		setup:       climb.Span{From: 1000 * time.Millisecond, To: 1500 * time.Millisecond},
		refused:     []time.Duration{time.Second, 2 * time.Second, 5 * time.Second},
		look:        30 * time.Second,
		quiet:       3 * time.Minute,
		reconnect:   2 * time.Minute,
		reboot:      600 * time.Second, // VCL Windows.pm reboot: 300 s, twice
		probe:       60 * time.Second,
		joinPause:   10 * time.Second,
		addressWait: 60, // VCL OS.pm wait_for_public_ip_address: 60 s
		reconnects:  3,
		joins:       5,
		reboots:     4,
	}
}

// What the reporter keeps for a worker that takes over.
const (
	keepPin      = "windows.pin"      // the pinned key or certificate
	keepRepinned = "windows.repinned" // when it had changed, as Sysprep makes it (RFC 3339)
	keepReset    = "windows.reset"    // when the power reset was given (RFC 3339)
	keepProgress = "windows.progress" // when something changed last (RFC 3339)
	keepRung     = "windows.rung"     // the highest rung so far
	keepSeen     = "windows.seen"     // the boot that was seen last
	keepState    = "windows.state"    // the set-up's last state and the size of its log
	keepBoot     = "windows.boot"     // the boot of the guest that was up
	keepAnswered = "windows.answered" // when it was up (RFC 3339)
	keepAddress  = "windows.address"  // the public address
	keepReboots  = "windows.reboots"  // how often we rebooted it
	keepBefore   = "windows.before."  // and the reboot's name: the boot that it is to end
	keepDue      = "windows.due"      // why the next reboot is due
	keepJoin     = "windows.join"     // the boot in which it was told to join its domain
	keepStep     = "windows.step."    // and the step's name: how it went
)

// dialer returns the image's channel.
func (m *Module) dialer(request osmodules.Request) (Dialer, error) {
	control := request.Reservation.Image.Control
	if dialer, ok := m.options.Dialers[control.Channel]; ok {
		return dialer, nil
	}
	return nil, reservation.Fail("", &reservation.FieldError{Field: "image.control.channel", Value: control.Channel,
		Remedy: "Windows images are controlled by ssh or winrm"})
}

// execute runs a script of ours over a channel. Its values go through standard input, never into a command line.
func execute(ctx context.Context, channel remote.Channel, name string, values map[string]string, data []byte, limit time.Duration) (powershell.Answer, error) {
	script, err := scripts.ReadFile("scripts/" + name + ".ps1")
	if err != nil {
		return powershell.Answer{}, err
	}
	answer, err := powershell.Run(ctx, channel, string(script), values, data, limit)
	answer.Detail, answer.Output = hide(answer.Detail, values), hide(answer.Output, values)
	var none *powershell.NoAnswerError
	if errors.As(err, &none) {
		none.Output = hide(none.Output, values)
	}
	return answer, err
}

// hide takes the secrets among a script's values out of what it said, should Windows ever name one in an error.
func hide(text string, values map[string]string) string {
	for _, name := range []string{"Password", "Key"} {
		if secret := values[name]; secret != "" {
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	return text
}
