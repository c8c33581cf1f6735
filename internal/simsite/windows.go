package simsite

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"berth/internal/simsite/guestos"
	"berth/internal/simsite/winos"
	"berth/reservation"
)

// windowsUser is who logs in to Windows guests: an account of its own, because each load makes the Administrator's password
// anew.
const windowsUser = "berth"

// Stage is one state of a Windows guest's set-up after Sysprep, how long it lasts and what goes wrong in it. A set-up
// ends with complete, whether that stands there or not.
type Stage struct {
	State string   `yaml:"state" json:"state"` // specialize, oobe, mini-setup (XP and 2003), reboot or complete
	Takes Duration `yaml:"takes" json:"takes,omitzero"`

	Answers    bool     `yaml:"answers" json:"answers,omitempty"`         // its port is open in it already
	NoLogin    bool     `yaml:"no_login" json:"no_login,omitempty"`       // logins are refused in it
	Address    string   `yaml:"address" json:"address,omitempty"`         // where it answers in it; "" is the computer's own address
	AwayAfter  Duration `yaml:"away_after" json:"away_after,omitzero"`    // so long after the stage's begin its port closes ...
	AwayFor    Duration `yaml:"away_for" json:"away_for,omitzero"`        // ... for so long
	NewKey     bool     `yaml:"new_key" json:"new_key,omitempty"`         // has another host key and certificate from here on
	Quiet      bool     `yaml:"quiet" json:"quiet,omitempty"`             // its log does not grow
	NeverEnds  bool     `yaml:"never_ends" json:"never_ends,omitempty"`   // it stays in this state
	UntilReset bool     `yaml:"until_reset" json:"until_reset,omitempty"` // silent in this state until its power was cut once
	Command    string   `yaml:"command" json:"command,omitempty"`         // a program that the set-up has started and waits for in it
	Error      string   `yaml:"error" json:"error,omitempty"`             // in setuperr.log from its begin on; it goes on all the same
	Fails      string   `yaml:"fails" json:"fails,omitempty"`             // its end: an error, with this text in setuperr.log ...
	Leaves     bool     `yaml:"leaves" json:"leaves,omitempty"`           // ... and nothing of the set-up runs any more
	ImageState string   `yaml:"image_state" json:"image_state,omitempty"` // instead of the usual one of this state, or of a failure
}

func (s Stage) winos() winos.Stage {
	return winos.Stage{State: s.State, Takes: s.Takes.Std(), Answers: s.Answers, NoLogin: s.NoLogin, Address: s.Address, AwayAfter: s.AwayAfter.Std(), AwayFor: s.AwayFor.Std(),
		NewKey: s.NewKey, Quiet: s.Quiet, NeverEnds: s.NeverEnds, UntilReset: s.UntilReset, Command: s.Command, Error: s.Error, Fails: s.Fails, Leaves: s.Leaves, ImageState: s.ImageState}
}

func (t Template) windowsFaults(path string) []*ScriptError {
	var all []*ScriptError
	if t.Distribution != "" {
		all = append(all, &ScriptError{path + "windows", string(t.Windows), "give a distribution or a Windows, not both"})
	}
	if !slices.Contains(winos.Versions(), t.Windows) {
		all = append(all, &ScriptError{path + "windows", string(t.Windows), fmt.Sprintf("use one of %v", winos.Versions())})
	}
	if !slices.Contains([]string{"", reservation.ChannelSSH, reservation.ChannelWinRM}, t.Channel) {
		all = append(all, &ScriptError{path + "channel", t.Channel, "write ssh or winrm"})
	}
	return all
}

func (b Behaviour) windowsFaults(path string) []*ScriptError {
	var all []*ScriptError
	for i, s := range b.Setup {
		at := fmt.Sprintf("%s.setup[%d]", path, i)
		if !slices.Contains(winos.States(), s.State) {
			all = append(all, &ScriptError{at + ".state", s.State, fmt.Sprintf("write one of %v", winos.States())})
		}
		for name, d := range map[string]Duration{"takes": s.Takes, "away_after": s.AwayAfter, "away_for": s.AwayFor} {
			if d < 0 || d.Std() > 24*time.Hour {
				all = append(all, &ScriptError{at + "." + name, d.String(), "give a duration up to 24h, such as 20s"})
			}
		}
		if s.Address != "" {
			if address, err := netip.ParseAddrPort(s.Address); err != nil || !address.Addr().IsLoopback() || address.Port() == 0 {
				all = append(all, &ScriptError{at + ".address", s.Address, "give a loopback address and a port, such as 127.0.0.1:22001"})
			}
		}
	}
	for script := range b.Codes {
		if !slices.Contains(winos.ScriptNames(), script) {
			all = append(all, &ScriptError{path + ".codes", script, fmt.Sprintf("name scripts that a Windows guest knows: %v", winos.ScriptNames())})
		}
	}
	if b.CutsIn != "" && !slices.Contains(winos.ScriptNames(), b.CutsIn) {
		all = append(all, &ScriptError{path + ".cuts_in", b.CutsIn, fmt.Sprintf("name one of the scripts that a Windows guest knows: %v", winos.ScriptNames())})
	}
	return all
}

// newImage makes what a template holds at one snapshot.
func (s *Site) newImage(t Template, snapshot string) (*image, error) {
	revision := t.Name + " " + snapshot
	if t.Windows != "" {
		return &image{channel: cmp.Or(t.Channel, reservation.ChannelSSH), windows: &winos.Image{Version: t.Windows, Sysprep: t.Sysprep, User: windowsUser, Password: s.keep.windows,
			AuthorizedKeys: s.authorizedKey, Revision: revision}}, nil
	}
	linux, err := guestos.NewImage(guestos.ImageOptions{Distribution: t.Distribution, Revision: revision, AuthorizedKeys: s.authorizedKey, Without: t.Without})
	return &image{linux: linux}, err
}

// windowsGuestID is what vSphere calls a Windows.
func windowsGuestID(v winos.Version) types.VirtualMachineGuestOsIdentifier {
	ids := map[winos.Version]types.VirtualMachineGuestOsIdentifier{
		winos.XP: types.VirtualMachineGuestOsIdentifierWinXPProGuest, winos.Server2003: types.VirtualMachineGuestOsIdentifierWinNetStandardGuest,
		winos.Vista: types.VirtualMachineGuestOsIdentifierWinVista64Guest, winos.Server2008: types.VirtualMachineGuestOsIdentifierWinLonghorn64Guest,
		winos.Windows7: types.VirtualMachineGuestOsIdentifierWindows7_64Guest, winos.Server2008R2: types.VirtualMachineGuestOsIdentifierWindows7Server64Guest,
		winos.Windows8: types.VirtualMachineGuestOsIdentifierWindows8_64Guest, winos.Windows81: types.VirtualMachineGuestOsIdentifierWindows8_64Guest,
		winos.Server2012: types.VirtualMachineGuestOsIdentifierWindows8Server64Guest, winos.Server2012R2: types.VirtualMachineGuestOsIdentifierWindows8Server64Guest,
		winos.Windows10: types.VirtualMachineGuestOsIdentifierWindows9_64Guest, winos.Server2016: types.VirtualMachineGuestOsIdentifierWindows9Server64Guest,
		winos.Server2019: types.VirtualMachineGuestOsIdentifierWindows2019srv_64Guest, winos.Windows11: types.VirtualMachineGuestOsIdentifierWindows11_64Guest,
	}
	return cmp.Or(ids[v], types.VirtualMachineGuestOsIdentifierWindows2022srvNext_64Guest)
}

// installWindows puts a Windows onto the guest's disk.
func (g *guest) installWindows(b Behaviour, h hardware) system {
	var stages []winos.Stage
	for _, s := range b.Setup {
		stages = append(stages, s.winos())
	}
	var adapters []winos.Adapter
	for i, card := range g.interfaces(h.macs)[1:] { // without the loopback
		adapters = append(adapters, winos.Adapter{Name: fmt.Sprintf("Ethernet%d", i), MAC: card.MAC, Address: card.Address, Gateway: card.Default, DHCP: true, Category: "Public"})
	}
	return winos.New(winos.Options{Image: *g.image.windows, Name: g.name, Adapters: adapters, Offset: b.ClockOffset.Std(), Setup: stages, Port: g.port(), Codes: b.Codes, CutsIn: b.CutsIn,
		Hooks: winos.Hooks{
			Reboot:  g.restart,
			Channel: g.answer,
			Drop: func() {
				if t := g.current(); t != nil {
					t.reset()
					t.forgetShells()
				}
			},
			Running: func(script string) bool { return g.executing(context.Background(), script) },
			Unknown: func(what string) {
				g.site.count(g.name, func(c *Counts) { c.Unknown++ })
				g.site.log.Error().Str("computer", g.name).Msg("a Windows guest does not know " + what)
			},
			Ran: func(script, result, detail string) {
				g.site.log.Debug().Str("computer", g.name).Str("script", script).Str("result", result).Msg(detail)
			},
		}})
}

// answer opens or closes the guest's port.
func (g *guest) answer(open bool, address string) {
	t := g.current()
	switch {
	case t == nil:
	case open:
		t.open(cmp.Or(address, g.address))
	default:
		t.shut()
	}
}

// windowsControl is how a catalog's image says that a template's guests are controlled.
func windowsControl(t Template) reservation.Control {
	control := reservation.Control{Channel: cmp.Or(t.Channel, reservation.ChannelSSH), User: windowsUser, Credential: windowsSecret}
	if control.Channel == reservation.ChannelSSH {
		control.HostKey = reservation.HostKeyFirst
	} else {
		control.Certificate = reservation.HostKeyFirst
	}
	return control
}
