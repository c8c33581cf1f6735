package windows

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/osmodules"
	"berth/osmodules/climb/climbtest"
	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/osmodules/steps"
	"berth/reservation"
)

// loaded is a guest that is up, and what a configuration of it needs.
type loaded struct {
	*guest
	module  *Module
	request osmodules.Request
	report  *climbtest.Recorder
}

func newLoaded(t *testing.T, change ...func(*Options)) *loaded {
	g := newGuest()
	return &loaded{guest: g, module: g.module(t, change...), request: g.request(), report: climbtest.NewRecorder()}
}

// configure waits for the guest and configures it, as a phase does.
func (l *loaded) configure(t *testing.T) (osmodules.Report, error) {
	t.Helper()
	answer, err := l.module.WaitForResponse(t.Context(), l.request, l.report)
	require.NoError(t, err)
	defer answer.Channel.Close()
	return l.module.PostLoad(t.Context(), l.request, answer, l.report)
}

func (l *loaded) options() *reservation.PostLoadOptions { return &l.request.Reservation.Image.PostLoad }

// on answers one script in its own way.
func (l *loaded) on(name string, fields answer) {
	before := l.act
	l.act = func(r run) (answer, error) {
		if r.name == name {
			return fields, nil
		}
		if before != nil {
			return before(r)
		}
		return nil, nil
	}
}

func find(t *testing.T, report osmodules.Report, name string) reservation.Step {
	t.Helper()
	for _, s := range report.Steps {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no step %q in %v", name, report.Steps)
	return reservation.Step{}
}

func TestEverythingThatAnImageMayWishIsDoneInOrder(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "post-load", "all"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "post-load", "all", "10-a.ps1"), []byte("# berth: limit=20s on-failure=fail\r\n'hello'\r\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "post-load", "all", "10-linux"), []byte("#!/bin/sh\n"), 0o644))
	l := newLoaded(t, func(o *Options) { o.ScriptsDir = dir })
	*l.options() = reservation.PostLoadOptions{
		Hostname: true, ManagementSources: []string{"10.1.0.0/16"}, RDPSources: []string{"10.2.0.0/16", "10.3.0.0/16"}, RDPPort: 3390, Updates: `C:\Updates`,
		Domain:     &reservation.Domain{Name: "ad.example.org", OU: "OU=Lab,DC=example,DC=org", User: "join", Credential: "ad-join"},
		Activation: &reservation.Activation{KMS: []string{"kms.example.org"}},
	}
	l.request.Reservation.Computer.Public = &reservation.PublicNetwork{Interface: "Ethernet 2", Address: "198.51.100.7/25", Gateway: "198.51.100.1", DNS: []string{"192.0.2.53", "192.0.2.54"}}
	report, err := l.configure(t)
	require.NoError(t, err)
	var names []string
	for _, s := range report.Steps {
		names = append(names, s.Name)
		if s.Name != "public address" {
			require.Equal(t, reservation.StepDone, s.Result, "%s: %s", s.Name, s.Detail)
		}
	}
	require.Equal(t, []string{"control service", "control firewall", "remote desktop", "fixed address", "public address", "time", "sleep", "network prompt",
		"image's secrets", "Administrator's password", "root's password", "updates", "hostname", "pending reboot", "reboot", "domain", "reboot after domain",
		"activation", "script all/10-a.ps1", "tag"}, names)
	require.Equal(t, "198.51.100.7", report.PublicAddress)
	require.Equal(t, 3, l.boots, "one reboot for the name, one for the domain")
	require.Equal(t, "for hostname", find(t, report, "reboot").Detail)

	require.Equal(t, map[string]string{"Names": "WinRM"}, l.ran("service")[0].values)
	require.Equal(t, map[string]string{"Ports": "5986", "Sources": "10.1.0.0/16,192.0.2.99"}, l.ran("firewall")[0].values, "our own address is let in, too")
	require.Equal(t, map[string]string{"Port": "3390", "Sources": "10.2.0.0/16,10.3.0.0/16"}, l.ran("rdp")[0].values)
	require.Equal(t, map[string]string{"Interface": "Ethernet 2", "Address": "198.51.100.7", "Mask": "255.255.255.128", "Gateway": "198.51.100.1",
		"Dns": "192.0.2.53,192.0.2.54", "Control": "127.0.0.1"}, l.ran("static")[0].values)
	require.Empty(t, l.ran("address"))
	require.Equal(t, map[string]string{"Name": "vm-01"}, l.ran("hostname")[0].values)
	join := l.ran("join")[0]
	require.Equal(t, map[string]string{"Domain": "ad.example.org", "Ou": "OU=Lab,DC=example,DC=org", "User": "join", "Password": "secret-of-ad-join"}, join.values)
	require.Equal(t, "ann", l.ran("site")[0].values["User"])
	require.Contains(t, string(l.ran("site")[0].data), "'hello'")
	var written steps.Tag
	require.NoError(t, json.Unmarshal(l.ran("tag")[0].data, &written))
	require.Equal(t, steps.Tag{Image: "win2022", Revision: 3, Computer: "vm-01", Reservation: "r-1", Run: "run-1", Attempt: 1, PostLoad: "done", At: written.At}, written)

	first, second := l.ran("password")[0].values, l.ran("password")[1].values
	require.Equal(t, "-500", first["Account"])
	require.Equal(t, "root", second["Account"])
	require.NotEqual(t, first["Password"], second["Password"])
	require.Regexp(t, `^[A-Za-z0-9]{24}-aA1$`, first["Password"])

	// No secret leaves in a line, a result, a stage or what is kept.
	travels, err := json.Marshal(report)
	require.NoError(t, err)
	for _, secret := range []string{"secret-of-ad-join", first["Password"], second["Password"]} {
		require.NotContains(t, string(travels)+l.report.All(), secret)
	}
	for _, r := range l.runs {
		require.Equal(t, powershell.Line(), r.line)
	}
}

func TestWhatAnImageDoesNotWishIsSkipped(t *testing.T) {
	l := newLoaded(t)
	report, err := l.configure(t)
	require.NoError(t, err)
	for _, name := range []string{"remote desktop", "fixed address", "updates", "hostname", "reboot", "domain", "reboot after domain", "activation"} {
		s := find(t, report, name)
		require.Equal(t, reservation.StepSkipped, s.Result, name)
		require.NotEmpty(t, s.Detail)
	}
	require.Equal(t, "198.51.100.7", report.PublicAddress)
	require.Equal(t, 1, l.boots)
	require.Empty(t, l.ran("reboot"))
}

func TestWhichStepsAreEssential(t *testing.T) {
	for script, want := range map[string]reservation.Verdict{
		"service": reservation.VerdictReload, "firewall": reservation.VerdictReload, "rdp": reservation.VerdictReload, "address": reservation.VerdictReload,
		"secrets": reservation.VerdictReload, "password": reservation.VerdictReload, "hostname": reservation.VerdictReload, "pending": reservation.VerdictReload,
		"tag": reservation.VerdictReload, "join": reservation.VerdictReload,
		"time": "", "sleep": "", "prompt": "", "updates": "", "activate": "",
	} {
		for _, how := range []string{"reload", "breaks", "limit"} {
			t.Run(script+" "+how, func(t *testing.T) {
				l := newLoaded(t)
				*l.options() = reservation.PostLoadOptions{Hostname: true, RDPSources: []string{"10.0.0.0/8"}, Updates: `C:\Updates`,
					Domain: &reservation.Domain{Name: "a.example", User: "u", Credential: "c"}, Activation: &reservation.Activation{KMS: []string{"kms"}}}
				l.act = func(r run) (answer, error) {
					switch {
					case r.name != script:
						return nil, nil
					case how == "limit":
						return nil, &remote.LimitError{Command: "powershell.exe", Limit: time.Second}
					case how == "breaks":
						return answer{"result": "nonsense"}, nil
					default:
						return answer{"result": "reload", "detail": "it went wrong"}, nil
					}
				}
				report, err := l.configure(t)
				if want != "" {
					climbtest.Verdict(t, want, err)
					require.Equal(t, reservation.StepFailed, report.Steps[len(report.Steps)-1].Result)
					return
				}
				require.NoError(t, err)
				warned := 0
				for _, s := range report.Steps {
					if s.Result == reservation.StepWarned {
						warned++
					}
				}
				require.Equal(t, 1, warned, "%v", report.Steps)
			})
		}
	}
}

func TestAScriptsOwnFailEndsTheReservation(t *testing.T) {
	l := newLoaded(t)
	l.on("address", answer{"result": "fail", "detail": "there is no network connection Public"})
	_, err := l.configure(t)
	climbtest.Verdict(t, reservation.VerdictFail, err, "public address: there is no network connection Public")
}

func TestADomainIsTriedAgainOnItsOwnFaults(t *testing.T) {
	domain := &reservation.Domain{Name: "a.example", User: "u", Credential: "c"}
	t.Run("until it is found", func(t *testing.T) {
		l := newLoaded(t)
		l.options().Domain = domain
		tries := 0
		l.act = func(r run) (answer, error) {
			if r.name != "join" {
				return nil, nil
			}
			if tries++; tries < 3 {
				return answer{"result": "reload", "detail": "code 1355", "retry": true, "code": 1355}, nil
			}
			return nil, nil
		}
		report, err := l.configure(t)
		require.NoError(t, err)
		require.Equal(t, 3, tries)
		require.Equal(t, reservation.StepDone, find(t, report, "reboot after domain").Result)
		require.Equal(t, 2, l.boots)
	})
	t.Run("so often and no more", func(t *testing.T) {
		l := newLoaded(t)
		l.options().Domain = domain
		l.on("join", answer{"result": "reload", "detail": "code 1355", "retry": true})
		_, err := l.configure(t)
		climbtest.Verdict(t, reservation.VerdictReload, err, "code 1355, 3 times")
	})
	t.Run("not when it refuses us", func(t *testing.T) {
		l := newLoaded(t)
		l.options().Domain = domain
		l.on("join", answer{"result": "fail", "detail": "code 1326", "retry": false})
		_, err := l.configure(t)
		climbtest.Verdict(t, reservation.VerdictFail, err, "code 1326")
		require.Len(t, l.ran("join"), 1)
	})
	t.Run("a secret that is not there is a fault of ours", func(t *testing.T) {
		l := newLoaded(t, func(o *Options) { o.Secret = nil })
		l.options().Domain = domain
		_, err := l.configure(t)
		var credential *remote.CredentialError
		require.ErrorAs(t, err, &credential)
		require.Empty(t, reservation.VerdictOf(err))
	})
	t.Run("its answer never shows the password", func(t *testing.T) {
		l := newLoaded(t)
		l.options().Domain = domain
		l.on("join", answer{"result": "fail", "detail": "no such thing as secret-of-c"})
		_, err := l.configure(t)
		climbtest.Verdict(t, reservation.VerdictFail, err, "no such thing as ***")
	})
}

// A member of a domain is one from its next boot on: also if the answer to the join was lost, and the next try is told that
// it is a member already.
func TestAJoinWhoseAnswerIsLostIsFollowedByItsReboot(t *testing.T) {
	for name, lose := range map[string]func(l *loaded, cancel func()){
		"with its connection": func(l *loaded, _ func()) { l.change(l.drop) },
		"with its worker":     func(_ *loaded, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoaded(t)
			l.options().Domain = &reservation.Domain{Name: "a.example", User: "u", Credential: "c"}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			member := false
			l.before = func(name string) {
				if name == "join" && !member {
					member = true
					lose(l, cancel)
				}
			}
			l.act = func(r run) (answer, error) {
				if r.name == "join" && member {
					return answer{"result": "skipped", "detail": "it is in a.example already", "reboot": false}, nil
				}
				return nil, nil
			}
			first, err := l.module.WaitForResponse(t.Context(), l.request, l.report)
			require.NoError(t, err)
			defer first.Channel.Close()
			report, err := l.module.PostLoad(ctx, l.request, first, l.report)
			if ctx.Err() != nil {
				report, err = l.configure(t)
			}
			require.NoError(t, err)
			require.Equal(t, reservation.StepSkipped, find(t, report, "domain").Result)
			require.Equal(t, reservation.StepDone, find(t, report, "reboot after domain").Result)
			require.Equal(t, 2, l.boots)
		})
	}
	t.Run("but an image's own membership is none", func(t *testing.T) {
		l := newLoaded(t)
		l.options().Domain = &reservation.Domain{Name: "a.example", User: "u", Credential: "c"}
		l.on("join", answer{"result": "skipped", "detail": "it is in a.example already", "reboot": false})
		report, err := l.configure(t)
		require.NoError(t, err)
		require.Equal(t, reservation.StepSkipped, find(t, report, "reboot after domain").Result)
	})
}

func TestActivationTakesTheFirstWayThatWorks(t *testing.T) {
	wish := &reservation.Activation{KMS: []string{"kms1.example.org", "kms2.example.org:1690"}, Key: "AAAAA-BBBBB-CCCCC-DDDDD-EEEEE", MAK: "mak"}
	for name, c := range map[string]struct {
		works  string // the server, "" the key, "-" none
		result reservation.StepResult
		detail string
		tries  int
	}{
		"the first server":  {"kms1.example.org", reservation.StepDone, "KMS kms1.example.org: activated", 1},
		"the second server": {"kms2.example.org", reservation.StepDone, "KMS kms2.example.org:1690: activated", 2},
		"the key":           {"", reservation.StepDone, "MAK: activated", 3},
		"none":              {"-", reservation.StepWarned, "0xC004F074; KMS kms2.example.org:1690: ", 3},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoaded(t)
			l.options().Activation = wish
			l.act = func(r run) (answer, error) {
				switch {
				case r.name != "activate":
					return nil, nil
				case r.values["Server"] == c.works:
					return answer{"detail": "activated"}, nil
				case r.values["Server"] == "kms2.example.org":
					return nil, &remote.LimitError{Command: "powershell.exe", Limit: activationLimit}
				default:
					return answer{"result": "warned", "detail": "0xC004F074"}, nil
				}
			}
			report, err := l.configure(t)
			require.NoError(t, err)
			s := find(t, report, "activation")
			require.Equal(t, c.result, s.Result)
			require.Contains(t, s.Detail, c.detail)
			tries := l.ran("activate")
			require.Len(t, tries, c.tries, "%v", tries)
			require.Equal(t, map[string]string{"Server": "kms1.example.org", "Port": "1688", "Key": wish.Key}, tries[0].values)
			if c.tries > 1 {
				require.Equal(t, "1690", tries[1].values["Port"])
			}
			if c.tries > 2 {
				require.Equal(t, map[string]string{"Server": "", "Port": "", "Key": "secret-of-mak"}, tries[2].values)
			}
			require.NotContains(t, l.report.All(), "secret-of-mak")
		})
	}
}

func TestAPendingRebootIsReadBeforeTheFirstIsAskedFor(t *testing.T) {
	l := newLoaded(t)
	l.on("pending", answer{"pending": true, "reasons": "updates"})
	report, err := l.configure(t)
	require.NoError(t, err)
	require.Equal(t, "for pending", find(t, report, "reboot").Detail)
	require.Equal(t, 2, l.boots)
	var order []string
	for _, r := range l.runs {
		if r.name == "pending" || r.name == "reboot" {
			order = append(order, r.name)
		}
	}
	require.Equal(t, []string{"pending", "reboot"}, order)
}

func TestRebootsAreBounded(t *testing.T) {
	l := newLoaded(t)
	l.options().Hostname = true
	l.report.Keep(keepReboots, "2")
	_, err := l.configure(t)
	climbtest.Verdict(t, reservation.VerdictReload, err, "rebooted 2 times")
	require.Empty(t, l.ran("reboot"))
}

func TestAGuestThatDoesNotComeBackFromItsRebootIsReload(t *testing.T) {
	l := newLoaded(t)
	l.options().Hostname = true
	l.module.pace.reboot = 300 * time.Millisecond
	l.before = func(name string) {
		if name == "reboot" {
			l.change(func() { l.down = true })
		}
	}
	_, err := l.configure(t)
	climbtest.Verdict(t, reservation.VerdictReload, err, "reboot: the guest did not come back within 300ms")
}

func TestAGuestThatNeverBeginsItsRebootIsReload(t *testing.T) {
	l := newLoaded(t)
	l.options().Hostname = true
	l.module.pace.reboot = 300 * time.Millisecond
	l.on("reboot", answer{"detail": "asked"})
	_, err := l.configure(t)
	climbtest.Verdict(t, reservation.VerdictReload, err, "has not begun its reboot")
}

func TestARebootWhoseRequestIsLostIsAskedForAgain(t *testing.T) {
	l := newLoaded(t)
	l.options().Hostname = true
	asked := 0
	l.before = func(name string) {
		if name == "reboot" {
			if asked++; asked == 1 {
				l.change(l.drop)
			}
		}
	}
	report, err := l.configure(t)
	require.NoError(t, err)
	require.Equal(t, 2, asked)
	require.Equal(t, 2, l.boots)
	require.Equal(t, reservation.StepDone, find(t, report, "reboot").Result)
}

func TestAPortOfRemoteDesktopThatHoldsFromTheNextBootGetsIt(t *testing.T) {
	l := newLoaded(t)
	l.options().RDPSources = []string{"10.0.0.0/8"}
	l.on("rdp", answer{"reboot": true})
	report, err := l.configure(t)
	require.NoError(t, err)
	require.Equal(t, "for remote desktop", find(t, report, "reboot").Detail)
}

func TestASuccessorGoesOnWhereTheLostWorkerWas(t *testing.T) {
	l := newLoaded(t)
	l.options().Hostname = true
	answer, err := l.module.WaitForResponse(t.Context(), l.request, l.report)
	require.NoError(t, err)
	// The worker is lost right after it has asked for the reboot.
	ctx, cancel := context.WithCancel(t.Context())
	l.before = func(name string) {
		if name == "echo" {
			cancel()
		}
	}
	_, err = l.module.PostLoad(ctx, l.request, answer, l.report)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 2, l.boots)
	l.change(func() { l.before = nil })

	report, err := l.configure(t)
	require.NoError(t, err)
	require.Equal(t, 2, l.boots, "the reboot is not repeated")
	require.Equal(t, reservation.StepDone, find(t, report, "reboot").Result)
	for _, once := range []string{"firewall", "secrets", "hostname", "reboot", "tag"} {
		require.Len(t, l.ran(once), 1, once)
	}
	require.Equal(t, "198.51.100.7", report.PublicAddress)
}

func TestAConnectionThatIsLostIsMadeAgain(t *testing.T) {
	l := newLoaded(t)
	cut := true
	l.before = func(name string) {
		if name == "secrets" && cut {
			cut = false
			l.change(l.drop)
		}
	}
	report, err := l.configure(t)
	require.NoError(t, err)
	require.Equal(t, reservation.StepDone, find(t, report, "image's secrets").Result)

	l = newLoaded(t)
	l.before = func(name string) {
		if name == "secrets" {
			l.change(l.drop)
		}
	}
	_, err = l.configure(t)
	climbtest.Verdict(t, reservation.VerdictReload, err, "lost for the 4th time")

	l = newLoaded(t)
	l.before = func(name string) {
		if name == "secrets" {
			l.change(l.reboot)
		}
	}
	_, err = l.configure(t)
	climbtest.Verdict(t, reservation.VerdictReload, err, "rebooted while it was configured")
}

func TestThePasswordOfTheControlAccountIsKept(t *testing.T) {
	l := newLoaded(t)
	l.password = true
	l.request.Reservation.Image.Control.User = `LAB\Administrator`
	_, err := l.configure(t)
	require.NoError(t, err)
	require.Equal(t, "Administrator", l.ran("password")[0].values["Keep"])
}

func TestANameThatWindowsCannotHaveIsNamed(t *testing.T) {
	for _, name := range []string{"a-name-of-16-char", "vm.example"} {
		l := newLoaded(t)
		l.options().Hostname = true
		l.request.Reservation.Computer.Name = name
		_, err := l.configure(t)
		climbtest.Verdict(t, reservation.VerdictFail, err, "computer.name", name)
	}
}

func TestSiteScriptsAreJudgedByTheirExitCode(t *testing.T) {
	for header, want := range map[string]reservation.Verdict{"": "", "# berth: on-failure=reload\n": reservation.VerdictReload, "# berth: on-failure=fail\n": reservation.VerdictFail} {
		dir := t.TempDir()
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "post-load", "lab"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "post-load", "lab", "20-x.ps1"), []byte(header+"exit 3\n"), 0o644))
		l := newLoaded(t, func(o *Options) { o.ScriptsDir = dir })
		l.options().Scripts = []string{"lab"}
		l.on("site", answer{"exit": "3", "output": "no licence"})
		report, err := l.configure(t)
		require.Equal(t, want == "", err == nil)
		if want != "" {
			climbtest.Verdict(t, want, err, "exit code 3: no licence")
			continue
		}
		s := find(t, report, "script lab/20-x.ps1")
		require.Equal(t, reservation.StepWarned, s.Result)
		require.True(t, strings.HasPrefix(s.Detail, "exit code 3"))
	}
}
