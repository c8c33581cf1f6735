package vmware_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/types"

	"berth/provisioners/vmware"
	"berth/reservation"
)

func TestOneLoginServesManyLoadsAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	var group sync.WaitGroup
	for _, computer := range []string{"pc-1", "pc-2", "pc-3", "pc-4", "pc-5", "pc-6"} {
		group.Go(func() {
			_, err := m.Load(within(t, 15*time.Second), request(computer), newReporter())
			require.NoError(t, err)
		})
	}
	group.Wait()
	require.Equal(t, 1, l.called("Login"))
	require.Equal(t, 1, l.called("CreatePropertyCollector"), "and one wait")
	require.Equal(t, 1, l.called("CreateFilter"))
}

func TestAnExpiredSessionIsLoggedInOnceForAllWhoFindIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	_, err := m.Load(within(t, 15*time.Second), request("pc-0"), newReporter())
	require.NoError(t, err)
	l.reset()
	require.NotZero(t, l.expireSessions())
	var group sync.WaitGroup
	for _, computer := range []string{"pc-1", "pc-2", "pc-3", "pc-4"} {
		group.Go(func() {
			_, err := m.Load(within(t, 15*time.Second), request(computer), newReporter())
			require.NoError(t, err)
		})
	}
	group.Wait()
	require.Equal(t, 1, l.called("Login"))
}

func TestACallThatFindsNoSessionIsRepeated(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	for _, method := range []string{"FindChild", "CloneVM_Task", "RetrievePropertiesEx", "ModifyListView", "WaitForUpdatesEx"} {
		l.refuse(method, 1, &types.NotAuthenticated{})
	}
	_, err := m.Load(within(t, 15*time.Second), request("pc-1"), newReporter())
	require.NoError(t, err)
	require.Equal(t, 1, l.cloned("pc-1"))
	require.Greater(t, l.called("Login"), 2)
}

func TestARefusedLoginIsAFailAndIsNotTriedAgainAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module(func(o *vmware.Options) { o.Sites[0].Password = func() (string, error) { return "wrong", nil } })
	for range 3 {
		_, err := m.Load(within(t, 5*time.Second), request("pc-1"), newReporter())
		require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), err)
		require.ErrorContains(t, err, "site lab")
		require.ErrorContains(t, err, user)
		require.NotContains(t, err.Error(), "wrong")
	}
	require.Equal(t, 1, l.called("Login"), "more would lock the account")
}

func TestAPasswordThatCannotBeReadIsNoVerdict(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module(func(o *vmware.Options) {
		o.Sites[0].Password = func() (string, error) { return "", errors.New("no such file: keys/vcenter") }
	})
	_, err := m.Load(within(t, 5*time.Second), request("pc-1"), newReporter())
	require.ErrorContains(t, err, "keys/vcenter")
	require.Empty(t, reservation.VerdictOf(err))
}

func TestTheServersCertificateIsChecked(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := l.front()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw}), 0o600))
	wrong := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		site func(*vmware.Site)
		says string // "" is accepted
	}{
		"its SHA-256":                {site: func(*vmware.Site) {}},
		"its SHA-1":                  {site: func(s *vmware.Site) { s.Thumbprint = f.sha1() }},
		"capitals and colons":        {site: func(s *vmware.Site) { s.Thumbprint = colons(strings.ToUpper(s.Thumbprint)) }},
		"another SHA-256":            {site: func(s *vmware.Site) { s.Thumbprint = wrong }, says: wrong},
		"another SHA-1":              {site: func(s *vmware.Site) { s.Thumbprint = wrong[:40] }, says: "shows a certificate"},
		"its authority":              {site: func(s *vmware.Site) { s.Thumbprint, s.CAFile = "", ca }},
		"the system's authorities":   {site: func(s *vmware.Site) { s.Thumbprint = "" }, says: "certificate"},
		"no check, by explicit wish": {site: func(s *vmware.Site) { s.Thumbprint, s.Insecure = "", true }},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			m := f.module(func(o *vmware.Options) {
				c.site(&o.Sites[0])
				o.Logger = zerolog.New(zerolog.SyncWriter(&log))
			})
			require.Equal(t, strings.Contains(name, "explicit wish"), strings.Contains(log.String(), `"level":"warn"`), log.String())
			err := m.Check(within(t, 5*time.Second))
			if c.says == "" {
				require.NoError(t, err)
				return
			}
			require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), err)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func colons(hex string) string {
	var pairs []string
	for i := 0; i < len(hex); i += 2 {
		pairs = append(pairs, hex[i:i+2])
	}
	return strings.Join(pairs, ":")
}

func TestCheckTellsTheFaultsOfEverySite(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := l.front()
	dead := l.front()
	dead.kill()
	m := f.module(func(o *vmware.Options) {
		other, nodc, gone := f.site(), f.site(), dead.site()
		other.Name, other.Password = "other", func() (string, error) { return "wrong", nil }
		nodc.Name, nodc.Datacenter = "nodc", "Atlantis"
		gone.Name = "gone"
		o.Sites = append(o.Sites, other, nodc, gone)
	})
	err := m.Check(within(t, 10*time.Second))
	require.ErrorContains(t, err, "site other")
	require.ErrorContains(t, err, "site nodc")
	require.ErrorContains(t, err, "Atlantis")
	require.ErrorContains(t, err, "site gone")
	require.NotContains(t, err.Error(), "site lab")
	require.NoError(t, f.module().Check(within(t, 10*time.Second)))
}

func TestNewTellsEveryFaultOfTheSites(t *testing.T) {
	t.Parallel()
	secret := func() (string, error) { return "", nil }
	good := vmware.Site{Name: "a", URL: "https://vc/sdk", User: "u", Password: secret}
	with := func(change func(*vmware.Site)) vmware.Site {
		s := good
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		sites []vmware.Site
		says  string
	}{
		"no site":         {nil, "sites"},
		"bad name":        {[]vmware.Site{with(func(s *vmware.Site) { s.Name = "A B" })}, "sites[0].name"},
		"twice":           {[]vmware.Site{good, good}, "sites[1].name"},
		"no https":        {[]vmware.Site{with(func(s *vmware.Site) { s.URL = "http://vc/sdk" })}, "sites[0].url"},
		"password in URL": {[]vmware.Site{with(func(s *vmware.Site) { s.URL = "https://u:geheim@vc/sdk" })}, "sites[0].url"},
		"no user":         {[]vmware.Site{with(func(s *vmware.Site) { s.User = "" })}, "sites[0].user"},
		"no password":     {[]vmware.Site{with(func(s *vmware.Site) { s.Password = nil })}, "sites[0].credential"},
		"short pin":       {[]vmware.Site{with(func(s *vmware.Site) { s.Thumbprint = "ab:cd" })}, "sites[0].thumbprint"},
		"two checks":      {[]vmware.Site{with(func(s *vmware.Site) { s.Thumbprint, s.Insecure = strings.Repeat("0", 40), true })}, "only one of"},
		"no CA file":      {[]vmware.Site{with(func(s *vmware.Site) { s.CAFile = "/nowhere.pem" })}, "sites[0].ca_file"},
		"negative limit":  {[]vmware.Site{with(func(s *vmware.Site) { s.ClonesPerHost = -1 })}, "sites[0].clones"},
		"second site":     {[]vmware.Site{good, with(func(s *vmware.Site) { s.Name, s.URL = "b", "vc" })}, "sites[1].url"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := vmware.New(vmware.Options{Sites: c.sites, Logger: zerolog.Nop()})
			require.ErrorContains(t, err, c.says)
			require.ErrorAs(t, err, new(*reservation.FieldError))
			require.NotContains(t, err.Error(), "geheim")
		})
	}
}

func TestTheModuleTellsWhichKeysItKnows(t *testing.T) {
	t.Parallel()
	m, err := vmware.New(vmware.Options{Sites: []vmware.Site{{Name: "a", URL: "https://vc", User: "u", Password: func() (string, error) { return "", nil }}}})
	require.NoError(t, err)
	defer m.Close(t.Context())
	require.NoError(t, m.ValidateSource(map[string]string{"template": "t", "snapshot": "s"}))
	require.NoError(t, m.ValidateSource(map[string]string{"template": "t", "clone": "full"}))
	require.NoError(t, m.ValidatePlacement(nil))
	require.NoError(t, m.ValidatePlacement(map[string]string{"folder": "vm", "resource_pool": "", "datastore": "d", "host": ""}))
	for field, err := range map[string]error{
		"image.sources.vmware.template": m.ValidateSource(nil),
		"image.sources.vmware.snapshot": m.ValidateSource(map[string]string{"template": "t", "clone": "linked"}),
		"image.sources.vmware.clone":    m.ValidateSource(map[string]string{"template": "t", "clone": "half"}),
		"image.sources.vmware.tempalte": m.ValidateSource(map[string]string{"tempalte": "t"}),
		"computer.placement.rack":       m.ValidatePlacement(map[string]string{"rack": "7", "host": "*"}),
		"computer.placement.host":       m.ValidatePlacement(map[string]string{"rack": "7", "host": "*"}),
	} {
		require.ErrorContains(t, err, field)
		require.ErrorAs(t, err, new(*reservation.FieldError))
	}
}

func TestNoSecretReachesTheLog(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var log bytes.Buffer
	m := l.module(func(o *vmware.Options) { o.Logger = zerolog.New(zerolog.SyncWriter(&log)).Level(zerolog.TraceLevel) })
	l.stray("pc-1")
	report := newReporter()
	_, err := m.Load(within(t, 10*time.Second), request("pc-1"), report)
	require.NoError(t, err)
	vm := l.vm("pc-1")
	require.NoError(t, m.AfterResponse(within(t, 5*time.Second), request("pc-1"), report))
	require.NoError(t, m.Unload(within(t, 5*time.Second), request("pc-1"), report))
	private := strings.Split(extra(vm, vmware.KeyHostKey), "\n")[2]
	for _, text := range append(report.seen(), log.String(), report.Kept("clone")) {
		require.NotContains(t, text, password)
		require.NotContains(t, text, private)
	}
	require.Contains(t, log.String(), "logged in")
}

func TestAClosedModuleSaysSoAndItsSessionIsGone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	m := l.module()
	_, err := m.Load(within(t, 10*time.Second), request("pc-1"), newReporter())
	require.NoError(t, err)
	m.Close(t.Context())
	m.Close(t.Context())
	require.Equal(t, 1, l.called("Logout"))
	require.Zero(t, l.expireSessions(), "no session is left")
	_, err = m.Load(within(t, 10*time.Second), request("pc-2"), newReporter())
	require.ErrorContains(t, err, "closed")
}
