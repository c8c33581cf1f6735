package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	xssh "golang.org/x/crypto/ssh"

	"berth/activities"
	"berth/internal/catalog"
	"berth/internal/metrics"
	"berth/internal/secrets"
	"berth/osmodules"
	"berth/osmodules/linux"
	"berth/osmodules/remote"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/winrm"
	"berth/osmodules/windows"
	"berth/provisioners"
	"berth/provisioners/libvirt"
	"berth/provisioners/vmware"
	"berth/provisioners/xcat"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// checkLimit bounds a provisioner's check at the start: a login takes seconds, and a vCenter that does not answer must not
// hold up the list of faults.
const checkLimit = 30 * time.Second

// site is what this worker serves of a provisioner type.
type site struct {
	provisioner string
	sites       []catalog.Site // the selected ones
	queues      []string       // task queues
}

// modules are what a worker loads and configures computers with, and the queues that it serves with them.
type modules struct {
	provisioners map[string]provisioners.Provisioner
	os           map[reservation.OSFamily]osmodules.Module
	queues       []string
	close        []func(context.Context)
}

// validators returns the checks of a catalog that are particular to a provisioner type.
func validators() map[string]provisioners.Validator {
	return map[string]provisioners.Validator{vmware.Type: &vmware.Module{}, xcat.Type: &xcat.Module{}, libvirt.Type: &libvirt.Module{}}
}

// build makes the modules of the configured provisioner types from the catalog. Its error joins every fault of the
// catalog, the secrets and the settings. Nothing is reached over the network.
func build(c config, lookupEnv func(string) (string, bool), log zerolog.Logger, m *metrics.Metrics) (*modules, error) {
	built := &modules{provisioners: map[string]provisioners.Provisioner{}, os: map[reservation.OSFamily]osmodules.Module{}}
	if len(c.Provisioners) == 0 {
		return built, nil
	}
	read, err := catalog.Load(c.Catalog, catalog.Options{Validators: validators()})
	if err != nil {
		return built, err
	}
	log.Info().Str("catalog", c.Catalog).Msg("catalog read: " + read.Summary())
	served, err := choose(read, c.Provisioners, c.Sites)
	faults := []error{err}

	store := secrets.NewStore(secrets.Options{Sources: read.Secrets, LookupEnv: lookupEnv, Logger: log})
	login := func(name string) (remote.Credential, error) { return credential(store, name) }
	dialer, winrmDialer := ssh.NewDialer(ssh.Options{Credential: login}), winrm.NewDialer(winrm.Options{Credential: login})
	faults = append(faults, checkSecrets(read, served, store, map[string]checker{reservation.ChannelSSH: dialer, reservation.ChannelWinRM: winrmDialer}))

	guests, err := linux.New(linux.Options{Dialer: dialer, ScriptsDir: c.Scripts, Logger: log, Waiting: m.GuestsWaiting})
	for _, fault := range flatten(err) {
		faults = append(faults, fmt.Errorf("BERTH_SCRIPTS: %w", fault))
	}
	built.os[reservation.Linux] = guests
	machines, err := windows.New(windows.Options{
		Dialers: map[string]windows.Dialer{
			reservation.ChannelSSH:   windows.SSH(dialer),
			reservation.ChannelWinRM: windows.WinRM(winrmDialer, filepath.Dir(c.Catalog)),
		},
		Secret: store.Text, ScriptsDir: c.Scripts, Logger: log, Waiting: m.GuestsWaiting,
	})
	for _, fault := range flatten(err) {
		// A fault of the folder itself is the Linux module's, too.
		if err := fmt.Errorf("BERTH_SCRIPTS: %w", fault); !slices.ContainsFunc(faults, func(f error) bool { return f != nil && f.Error() == err.Error() }) {
			faults = append(faults, err)
		}
	}
	built.os[reservation.Windows] = machines
	for _, s := range served {
		built.queues = append(built.queues, s.queues...)
		switch s.provisioner {
		case vmware.Type:
			module, err := vmware.New(vmware.Options{Sites: vcenters(s.sites, store), Logger: log, Observe: m.VSphereCall})
			if err != nil {
				faults = append(faults, err)
				continue
			}
			built.provisioners[vmware.Type] = module
			built.close = append(built.close, module.Close)
		case xcat.Type:
			module, err := xcat.New(xcat.Options{Sites: managementNodes(s.sites, store), Logger: log})
			if err != nil {
				faults = append(faults, err)
				continue
			}
			built.provisioners[xcat.Type] = module
		case libvirt.Type:
			module, err := libvirt.New(libvirt.Options{Sites: hosts(s.sites, store, dialer), Logger: log, ControlKey: dialer.PublicKey})
			if err != nil {
				faults = append(faults, err)
				continue
			}
			built.provisioners[libvirt.Type] = module
			built.close = append(built.close, module.Close)
		}
	}
	return built, errors.Join(faults...)
}

// choose returns the sites and queues of each provisioner type. It is a fault to name a site that the catalog does not
// have, or one of another provisioner, or to serve a type for which nothing is left.
func choose(c *catalog.Catalog, types, names []string) ([]site, error) {
	var faults []error
	of := map[string][]catalog.Site{}
	for _, s := range c.Sites {
		of[s.Provisioner] = append(of[s.Provisioner], s)
	}
	for _, name := range names {
		at := slices.IndexFunc(c.Sites, func(s catalog.Site) bool { return s.Name == name })
		switch {
		case at < 0:
			known := make([]string, len(c.Sites))
			for i, s := range c.Sites {
				known[i] = s.Name
			}
			remedy := "the catalog has the sites " + strings.Join(known, ", ")
			if nearest := catalog.Nearest(name, known); nearest != "" {
				remedy = "the catalog has no such site; did you mean " + nearest + "?"
			}
			faults = append(faults, &reservation.FieldError{Field: "BERTH_SITES", Value: name, Remedy: remedy})
		case !slices.Contains(types, c.Sites[at].Provisioner):
			faults = append(faults, &reservation.FieldError{Field: "BERTH_SITES", Value: name,
				Remedy: fmt.Sprintf("its provisioner is %s, which BERTH_PROVISIONERS does not name", c.Sites[at].Provisioner)})
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	var served []site
	for _, name := range types {
		s := site{provisioner: name}
		for _, one := range of[name] {
			if len(names) == 0 || slices.Contains(names, one.Name) {
				s.sites = append(s.sites, one)
				s.queues = append(s.queues, activities.Queue(name, one.Name))
			}
		}
		siteless := slices.ContainsFunc(c.Computers, func(computer reservation.Computer) bool {
			return computer.Provisioner == name && computer.Site == ""
		})
		// Computers without a site are those of the type's only site, if it has one at all.
		all := len(s.sites) == len(of[name])
		if all && (len(of[name]) == 1 || siteless) {
			s.queues = append(s.queues, activities.Queue(name, ""))
		}
		if len(s.queues) == 0 {
			faults = append(faults, &reservation.FieldError{Field: "BERTH_PROVISIONERS", Value: name,
				Remedy: "there is nothing to serve: the catalog (and BERTH_SITES) leaves it neither a site nor a computer"})
			continue
		}
		served = append(served, s)
	}
	return served, errors.Join(faults...)
}

// checker says whether a control channel can log in with a secret.
type checker interface{ CheckCredential(name string) error }

// checkSecrets reads every secret that serving needs, and has each channel look at those that it logs in with.
func checkSecrets(c *catalog.Catalog, served []site, store *secrets.Store, channels map[string]checker) error {
	var types, sites []string
	for _, s := range served {
		types = append(types, s.provisioner)
		for _, one := range s.sites {
			sites = append(sites, one.Name)
		}
	}
	var faults []error
	unreadable := map[string]bool{}
	for _, name := range c.SecretsOf(types, sites) {
		if err := store.Check(name); err != nil {
			faults = append(faults, err)
			unreadable[name] = true
		}
	}
	logins := map[string]map[string]bool{} // channel -> secret
	for _, image := range c.Images {
		if slices.ContainsFunc(types, func(name string) bool { return image.Sources[name] != nil }) {
			if logins[image.Control.Channel] == nil {
				logins[image.Control.Channel] = map[string]bool{}
			}
			logins[image.Control.Channel][image.Control.Credential] = true
		}
	}
	for _, channel := range slices.Sorted(maps.Keys(logins)) {
		for _, name := range slices.Sorted(maps.Keys(logins[channel])) {
			if !unreadable[name] {
				faults = append(faults, channels[channel].CheckCredential(name))
			}
		}
	}
	return errors.Join(faults...)
}

// credential turns a secret into what a channel logs in with: a private key if it is one, a password otherwise.
func credential(store *secrets.Store, name string) (remote.Credential, error) {
	value, err := store.Bytes(name)
	if err != nil {
		return remote.Credential{}, err
	}
	if !bytes.HasPrefix(bytes.TrimSpace(value), []byte("-----BEGIN ")) {
		return remote.Credential{Password: string(value)}, nil
	}
	passphrase, err := store.Passphrase(name)
	return remote.Credential{PrivateKey: value, Passphrase: passphrase}, err
}

func vcenters(sites []catalog.Site, store *secrets.Store) []vmware.Site {
	var all []vmware.Site
	for _, s := range sites {
		all = append(all, vmware.Site{
			Name: s.Name, URL: s.VMware.URL, User: s.VMware.User,
			Password: func() (string, error) { return store.Text(s.VMware.Credential) },
			CAFile:   s.VMware.CAFile, Thumbprint: s.VMware.Thumbprint, Insecure: s.VMware.Insecure, Datacenter: s.VMware.Datacenter,
			Clones: s.VMware.Clones, ClonesPerHost: s.VMware.ClonesPerHost,
		})
	}
	return all
}

func managementNodes(sites []catalog.Site, store *secrets.Store) []xcat.Site {
	var all []xcat.Site
	for _, s := range sites {
		site := xcat.Site{
			Name: s.Name, Address: s.XCAT.Address, ServerName: s.XCAT.ServerName, CAFile: s.XCAT.CAFile,
			Certificate: func() ([]byte, error) { return store.Bytes(s.XCAT.Credential) },
			KnownHosts:  s.XCAT.KnownHosts, InFlight: s.XCAT.InFlight, Installs: s.XCAT.Installs, CountArmed: s.XCAT.CountArmed,
		}
		if tools := s.XCAT.Tools; tools != nil {
			site.Tools = &xcatd.Tools{Path: tools.Path}
			if tools.SSH != "" {
				site.Tools.SSH = xcatd.Remote{Destination: tools.SSH, Port: tools.Port, IdentityFile: tools.IdentityFile, KnownHostsFile: tools.KnownHosts}.Command()
			}
		}
		all = append(all, site)
	}
	return all
}

func hosts(sites []catalog.Site, store *secrets.Store, dialer *ssh.Dialer) []libvirt.Site {
	var all []libvirt.Site
	for _, s := range sites {
		all = append(all, libvirt.Site{
			Name: s.Name, URI: s.Libvirt.URI, CAFile: s.Libvirt.CAFile, ServerName: s.Libvirt.ServerName,
			Certificate: func() ([]byte, error) { return store.Bytes(s.Libvirt.Credential) },
			Key:         func() (xssh.Signer, error) { return dialer.Signer(s.Libvirt.Credential) },
			HostKey:     s.Libvirt.HostKey, KnownHostsFile: s.Libvirt.KnownHosts,
			Pool: s.Libvirt.Pool, Accel: s.Libvirt.Accel, Loads: s.Libvirt.Loads,
		})
	}
	return all
}

// check asks every module whether it can reach what it serves. A fault that is no verdict may have passed at the next
// start.
func (m *modules) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(m.provisioners)) {
		checker, ok := m.provisioners[name].(provisioners.Checker)
		if !ok {
			continue
		}
		for _, err := range flatten(checker.Check(ctx)) {
			faults = append(faults, passing{fmt.Errorf("provisioner %s: %w", name, err)})
		}
	}
	return errors.Join(faults...)
}

// end closes the modules. It may be called again.
func (m *modules) end(ctx context.Context) {
	for _, end := range m.close {
		end(ctx)
	}
}
