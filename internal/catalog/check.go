package catalog

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"berth/provisioners"
	"berth/reservation"
)

// The provisioner types whose sites have a section of their name.
const (
	typeVMware  = "vmware"
	typeXCAT    = "xcat"
	typeLibvirt = "libvirt"
)

// provisionerTypes returns the types that a catalog may name.
func provisionerTypes(options Options) []string {
	types := []string{typeVMware, typeXCAT, typeLibvirt}
	for name := range options.Validators {
		types = append(types, name)
	}
	slices.Sort(types)
	return slices.Compact(types)
}

// channels returns the control channels that an image may name.
func channels() []string { return []string{reservation.ChannelSSH, reservation.ChannelWinRM} }

// check records every fault of a decoded catalog, and fills in what a computer takes from its site.
func check(d *decoder, c *content, options Options) {
	k := checker{decoder: d, content: c, options: options, types: provisionerTypes(options)}
	k.secrets()
	k.sites()
	k.images()
	k.computers()
}

type checker struct {
	*decoder
	content *content
	options Options
	types   []string
}

func (k *checker) secrets() {
	for _, name := range slices.Sorted(maps.Keys(k.content.Secrets)) {
		source := k.content.Secrets[name]
		path := under("secrets", name)
		k.name(path, name)
		if k.faulty[path] {
			continue
		}
		switch {
		case source.Env == "" && source.File == "":
			k.fault(path, "", "say where it is read: {env: NAME} or {file: PATH}")
		case source.Env != "" && source.File != "":
			k.fault(path, "", "it has both env and file: keep one")
		case source.Env != "" && !isVariable(source.Env):
			k.fault(under(path, "env"), "", "write the NAME of an environment variable (letters, digits and _), never the secret itself")
		}
		if source.Passphrase != "" {
			k.secret(under(path, "passphrase"), source.Passphrase)
		}
	}
}

func isVariable(name string) bool {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return name != ""
}

// secret checks a reference to a secret.
func (k *checker) secret(path, name string) {
	if name == "" {
		k.fault(path, "", "name one of the catalog's secrets: "+listOrNone(slices.Sorted(maps.Keys(k.content.Secrets))))
		return
	}
	if _, ok := k.content.Secrets[name]; !ok {
		k.fault(path, name, suggestion("secret", name, slices.Sorted(maps.Keys(k.content.Secrets))))
	}
}

func listOrNone(names []string) string {
	if len(names) == 0 {
		return "it has none"
	}
	return enumerate(names)
}

// name checks a name against the allow-list.
func (k *checker) name(path, name string) {
	for _, fault := range fieldErrors(reservation.CheckName(path, name)) {
		k.fault(path, name, fault.Remedy)
	}
}

// provisioner checks a provisioner type.
func (k *checker) provisioner(path, name string) {
	if name == "" {
		k.fault(path, "", "name its provisioner: "+strings.Join(k.types, ", "))
		return
	}
	if !slices.Contains(k.types, name) {
		k.fault(path, name, unknown("provisioner", name, k.types))
	}
}

func unknown(kind, name string, known []string) string {
	if nearest := Nearest(name, known); nearest != "" {
		return fmt.Sprintf("there is no such %s; did you mean %s?", kind, nearest)
	}
	return fmt.Sprintf("there is no such %s; there are %s", kind, strings.Join(known, ", "))
}

func (k *checker) sites() {
	first := map[string]string{}
	for i, site := range k.content.Sites {
		path := fmt.Sprintf("sites[%d]", i)
		k.name(under(path, "name"), site.Name)
		k.once(first, site.Name, under(path, "name"), site.Name, "site")
		k.provisioner(under(path, "provisioner"), site.Provisioner)
		if k.faulty[under(path, "provisioner")] {
			continue
		}
		k.section(path, site.Provisioner, typeVMware, site.VMware != nil, "its vCenter is reached: {url, user, credential, thumbprint or ca_file}",
			func(at string) { k.vmware(at, *site.VMware) })
		k.section(path, site.Provisioner, typeXCAT, site.XCAT != nil, "its management node is reached: {address, ca_file, credential} or {tools}",
			func(at string) { k.xcat(at, *site.XCAT) })
		k.section(path, site.Provisioner, typeLibvirt, site.Libvirt != nil, "its host is reached: {uri}, and what the URI's transport needs",
			func(at string) { k.libvirt(at, *site.Libvirt) })
	}
}

// section checks that a site has the section of its provisioner type, and no other one, and checks what stands in it.
func (k *checker) section(path, provisioner, name string, present bool, how string, check func(at string)) {
	at := under(path, name)
	switch {
	case present && provisioner != name:
		k.fault(at, "", fmt.Sprintf("only a site with provisioner: %s has this section, and this one has %q", name, provisioner))
	case present:
		check(at)
	case provisioner == name:
		k.fault(at, "", "say how "+how)
	}
}

func (k *checker) vmware(path string, site VMware) {
	k.url(under(path, "url"), site.URL)
	if site.User == "" {
		k.fault(under(path, "user"), "", "name the vCenter's user that Berth logs in as")
	}
	k.secret(under(path, "credential"), site.Credential)
	trust := 0
	for _, set := range []bool{site.CAFile != "", site.Thumbprint != "", site.Insecure} {
		if set {
			trust++
		}
	}
	if trust > 1 {
		k.fault(path, "", "it has more than one of ca_file, thumbprint and insecure: true: keep one")
	}
	if site.Thumbprint != "" && !isThumbprint(site.Thumbprint) {
		k.fault(under(path, "thumbprint"), site.Thumbprint, "write the certificate's SHA-256 (32 pairs of hex digits) or SHA-1 (20 pairs), such as AA:BB:...")
	}
	for name, n := range map[string]int{"clones": site.Clones, "clones_per_host": site.ClonesPerHost} {
		if n < 0 {
			k.fault(under(path, name), strconv.Itoa(n), "give how many may run at a time, 1 or more, or leave it out")
		}
	}
}

func (k *checker) libvirt(path string, site Libvirt) {
	transport := ""
	if site.URI == "" {
		k.fault(under(path, "uri"), "", "write qemu:///system for this machine, qemu+tls://HOST/system or qemu+ssh://USER@HOST/system")
	} else if u, err := url.Parse(site.URI); err != nil {
		k.fault(under(path, "uri"), "", "write qemu:///system, qemu+tls://HOST/system or qemu+ssh://USER@HOST/system") // it may hold a password
	} else {
		if _, password := u.User.Password(); password {
			k.fault(under(path, "uri"), u.Redacted(), "take the password out: name a secret as credential")
		}
		_, transport, _ = strings.Cut(u.Scheme, "+")
	}
	of := func(transports string, values map[string]string) {
		if !strings.Contains(" "+transports+" ", " "+transport+" ") || transport == "" {
			k.useless(path, "uri: qemu+"+strings.ReplaceAll(transports, " ", " or qemu+"), values)
		}
	}
	of("tls", map[string]string{"ca_file": site.CAFile, "server_name": site.ServerName})
	of("ssh", map[string]string{"host_key": site.HostKey, "known_hosts_file": site.KnownHosts})
	of("tls ssh", map[string]string{"credential": site.Credential})
	switch transport {
	case "tls":
		k.secret(under(path, "credential"), site.Credential)
		if site.CAFile == "" {
			k.fault(under(path, "ca_file"), "", "name a copy of the host's /etc/pki/CA/cacert.pem: its certificate is checked against it")
		}
	case "ssh":
		k.secret(under(path, "credential"), site.Credential)
		if (site.HostKey == "") == (site.KnownHosts == "") {
			k.fault(under(path, "host_key"), site.HostKey, "give the host's public key here, or a known_hosts_file that has it: one of the two")
		}
	}
	if !slices.Contains([]string{"", "auto", "kvm", "tcg"}, site.Accel) {
		k.fault(under(path, "accel"), site.Accel, "write auto, kvm or tcg, or leave it out for auto")
	}
	if site.Loads < 0 {
		k.fault(under(path, "loads"), strconv.Itoa(site.Loads), "give how many at a time, 1 or more, or leave it out")
	}
}

func (k *checker) xcat(path string, site XCAT) {
	switch {
	case site.Address == "" && site.Tools == nil:
		k.fault(under(path, "address"), "", "write the management node's address (its xcatd answers on port 3001), or say where its command-line tools are: tools")
	case site.Address == "":
		k.useless(path, "address", map[string]string{"server_name": site.ServerName, "ca_file": site.CAFile, "credential": site.Credential})
	default:
		for _, fault := range fieldErrors(reservation.CheckAddress("address", site.Address)) {
			k.fault(under(path, "address"), site.Address, fault.Remedy)
		}
		if site.CAFile == "" {
			k.fault(under(path, "ca_file"), "", "name a copy of the management node's /etc/xcat/cert/ca.pem: its certificate is checked against it")
		}
		k.secret(under(path, "credential"), site.Credential)
	}
	for name, n := range map[string]int{"in_flight": site.InFlight, "installs": site.Installs} {
		if n < 0 {
			k.fault(under(path, name), strconv.Itoa(n), "give how many at a time, 1 or more, or leave it out")
		}
	}
	if strings.ContainsFunc(site.CountArmed, func(r rune) bool { return r <= ' ' || r == '<' || r == '&' }) {
		k.fault(under(path, "count_armed"), site.CountArmed, "write a noderange without spaces, such as a group's name, or leave it out")
	}
	if site.KnownHosts != "" && !strings.HasPrefix(site.KnownHosts, "/") {
		k.fault(under(path, "known_hosts_file"), site.KnownHosts, "write the file's whole path on the management node, or leave it out")
	}
	if site.Tools != nil {
		k.xcatTools(under(path, "tools"), *site.Tools)
	}
}

// useless records a fault for each value that counts only beside a field that is missing.
func (k *checker) useless(path, without string, values map[string]string) {
	for name, value := range values {
		if value != "" {
			k.fault(under(path, name), value, "it is of use with "+without+" only: add that, or leave this out")
		}
	}
}

func (k *checker) xcatTools(path string, tools XCATTools) {
	if tools.SSH == "" {
		k.useless(path, "ssh", map[string]string{"identity_file": tools.IdentityFile, "known_hosts_file": tools.KnownHosts})
	} else if user, host, ok := strings.Cut(tools.SSH, "@"); !ok || reservation.CheckUser("", user) != nil ||
		reservation.CheckAddress("", host) != nil || strings.Contains(host, ":") {
		k.fault(under(path, "ssh"), tools.SSH, "write user@host of the management node; a port goes into port")
	}
	if tools.Port < 0 || tools.Port > 65535 {
		k.fault(under(path, "port"), strconv.Itoa(tools.Port), "give a TCP port, 1 to 65535, or leave it out")
	}
	for _, folder := range strings.Split(tools.Path, ":") {
		if tools.Path != "" && !strings.HasPrefix(folder, "/") {
			k.fault(under(path, "path"), tools.Path, "write whole paths of folders, with colons between, or leave it out")
		}
	}
}

func (k *checker) url(path, value string) {
	remedy := "write the vCenter's address as https://HOST/sdk"
	if value == "" {
		k.fault(path, "", remedy)
		return
	}
	u, err := url.Parse(value)
	if err != nil {
		k.fault(path, "", remedy) // what cannot be parsed may hold a password
		return
	}
	if u.User != nil {
		k.fault(path, u.Redacted(), "take the user and the password out: they belong into user and credential")
		return
	}
	if u.Scheme != "https" || u.Host == "" {
		k.fault(path, value, remedy)
	}
}

func isThumbprint(text string) bool {
	pairs := strings.Split(text, ":")
	if len(pairs) == 1 && len(text)%2 == 0 {
		pairs = pairs[:0]
		for i := 0; i < len(text); i += 2 {
			pairs = append(pairs, text[i:i+2])
		}
	}
	for _, pair := range pairs {
		if _, err := strconv.ParseUint(pair, 16, 8); err != nil || len(pair) != 2 {
			return false
		}
	}
	return len(pairs) == 32 || len(pairs) == 20
}

// once records a fault when a value that must be unique was there before. first maps the value to the first field.
func (k *checker) once(first map[string]string, key, path, value, kind string) {
	if key == "" {
		return
	}
	if before, twice := first[key]; twice {
		k.fault(path, value, fmt.Sprintf("the %s in line %d has it already: give each one its own", kind, k.line(before)))
		return
	}
	first[key] = path
}

func (k *checker) images() {
	first := map[string]string{}
	for i, image := range k.content.Images {
		path := fmt.Sprintf("images[%d]", i)
		k.noun(path, "image", image.Validate())
		k.once(first, image.String(), under(path, "name"), image.String(), "image")
		if image.Control.Channel != "" && !slices.Contains(channels(), image.Control.Channel) {
			k.fault(under(path, "control.channel"), image.Control.Channel, unknown("control channel", image.Control.Channel, channels()))
		}
		if image.Control.User == "" {
			k.fault(under(path, "control.user"), "", "name the user that the control channel logs in as")
		}
		k.secret(under(path, "control.credential"), image.Control.Credential)
		if image.PostLoad.Domain != nil {
			k.secret(under(path, "post_load.domain.credential"), image.PostLoad.Domain.Credential)
		}
		if image.PostLoad.Activation != nil && image.PostLoad.Activation.MAK != "" {
			k.secret(under(path, "post_load.activation.mak"), image.PostLoad.Activation.MAK)
		}
		for _, name := range slices.Sorted(maps.Keys(image.Sources)) {
			at := under(path, "sources."+name)
			if !slices.Contains(k.types, name) {
				k.fault(at, "", unknown("provisioner", name, k.types))
				continue
			}
			k.validate(at, name, func(v provisioners.Validator) error { return v.ValidateSource(image.Sources[name]) })
		}
	}
	// "debian12-r2" must not be both an image's name and another one's second revision.
	for i, image := range k.content.Images {
		if before, twice := first[image.Name]; twice {
			k.fault(fmt.Sprintf("images[%d].name", i), image.Name,
				fmt.Sprintf("it reads like the revision of the image in line %d: choose another name", k.line(before)))
		}
	}
}

// noun records what a noun's own check found.
func (k *checker) noun(path, noun string, err error) {
	for _, fault := range fieldErrors(err) {
		at := path
		if rest := strings.TrimPrefix(fault.Field, noun); rest != "" && rest != fault.Field {
			at += rest
		}
		k.fault(at, fault.Value, fault.Remedy)
	}
}

// validate records what a provisioner's validator found. Validators name their fields as the noun does
// ("image.sources.vmware.template"), or just by the key ("template").
func (k *checker) validate(path, provisioner string, run func(provisioners.Validator) error) {
	validator, ok := k.options.Validators[provisioner]
	if !ok {
		return
	}
	for _, fault := range fieldErrors(run(validator)) {
		at := path
		if fault.Field != "" {
			if key := fault.Field[strings.LastIndex(fault.Field, ".")+1:]; !strings.HasSuffix(path, key) {
				at = under(path, key)
			}
		}
		k.fault(at, fault.Value, fault.Remedy)
	}
}

func (k *checker) computers() {
	names, macs := map[string]string{}, map[string]string{}
	addresses := newAddresses()
	for i := range k.content.Computers {
		computer := &k.content.Computers[i]
		path := fmt.Sprintf("computers[%d]", i)
		k.place(path, computer)
		if computer.Hardware == "" {
			computer.Hardware = usualHardware(computer.Provisioner)
		}
		k.noun(path, "computer", computer.Validate())
		k.once(names, computer.Name, under(path, "name"), computer.Name, "computer")
		for n, mac := range computer.MACs {
			if hw, err := net.ParseMAC(mac); err == nil {
				k.once(macs, hw.String(), fmt.Sprintf("%s.macs[%d]", path, n), mac, "computer")
			}
		}
		if before, twice := addresses.claim(computer.Address, under(path, "address")); twice {
			k.fault(under(path, "address"), computer.Address,
				fmt.Sprintf("the computer in line %d has it already: give each one its own", k.line(before)))
		}
		k.validate(under(path, "placement"), computer.Provisioner, func(v provisioners.Validator) error {
			return v.ValidatePlacement(computer.Placement)
		})
	}
}

// place finds a computer's provisioner by its site.
func (k *checker) place(path string, computer *reservation.Computer) {
	of := map[string][]string{} // the sites of each provisioner
	var known []string
	for _, site := range k.content.Sites {
		of[site.Provisioner] = append(of[site.Provisioner], site.Name)
		known = append(known, site.Name)
	}
	if computer.Site == "" {
		k.provisionerOfSiteless(path, computer, of)
		return
	}
	at := slices.IndexFunc(k.content.Sites, func(site Site) bool { return site.Name == computer.Site })
	if at < 0 {
		k.fault(under(path, "site"), computer.Site, suggestion("site", computer.Site, known))
		k.faulty[under(path, "provisioner")] = true // it would come from the site
		return
	}
	provisioner := k.content.Sites[at].Provisioner
	if computer.Provisioner != "" && computer.Provisioner != provisioner {
		k.fault(under(path, "provisioner"), computer.Provisioner,
			fmt.Sprintf("its site %s has provisioner %s: leave it out here, or name another site", computer.Site, provisioner))
	}
	computer.Provisioner = provisioner
	// A site without a right provisioner is one fault, and not one for each of its computers.
	if !slices.Contains(k.types, provisioner) {
		k.faulty[under(path, "provisioner")] = true
	}
}

func (k *checker) provisionerOfSiteless(path string, computer *reservation.Computer, of map[string][]string) {
	if computer.Provisioner == "" {
		k.fault(under(path, "site"), "", "name its site, or its provisioner: "+strings.Join(k.types, ", "))
		k.faulty[under(path, "provisioner")] = true
		return
	}
	k.provisioner(under(path, "provisioner"), computer.Provisioner)
	sites := of[computer.Provisioner]
	switch {
	case len(sites) > 1:
		k.fault(under(path, "site"), "", fmt.Sprintf("there are several sites with provisioner %s; name one of %s", computer.Provisioner, enumerate(sites)))
	case len(sites) == 0 && computer.Provisioner == typeVMware:
		k.fault(under(path, "site"), "", "no site has provisioner vmware: add one under sites, which says how its vCenter is reached")
	case len(sites) == 0 && computer.Provisioner == typeLibvirt:
		k.fault(under(path, "site"), "", "no site has provisioner libvirt: add one under sites, which says how its host is reached")
	}
}

// usualHardware returns what a provisioner loads unless a computer says otherwise; "" if both are usual.
func usualHardware(provisioner string) reservation.Hardware {
	switch provisioner {
	case typeXCAT:
		return reservation.Physical
	default:
		return reservation.Virtual
	}
}

// addresses finds control addresses that two computers claim. An address without a port claims every port of its host,
// because the port is then the image's.
type addresses struct {
	whole map[string]string            // host -> field that claims the host
	ports map[string]map[string]string // host -> port -> field
}

func newAddresses() addresses {
	return addresses{whole: map[string]string{}, ports: map[string]map[string]string{}}
}

// claim returns the field that claimed the address before, if one did.
func (a addresses) claim(address, field string) (string, bool) {
	if address == "" {
		return "", false
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = strings.Trim(address, "[]"), ""
	}
	host = strings.ToLower(host)
	if before, claimed := a.whole[host]; claimed {
		return before, true
	}
	if port == "" {
		for _, before := range a.ports[host] {
			return before, true
		}
		a.whole[host] = field
		return "", false
	}
	if before, claimed := a.ports[host][port]; claimed {
		return before, true
	}
	if a.ports[host] == nil {
		a.ports[host] = map[string]string{}
	}
	a.ports[host][port] = field
	return "", false
}

// SecretsOf returns the names of the secrets that serving the given sites and images' provisioners needs, sorted: the
// sites' credentials, and the credentials of the images that have a source for a provisioner type.
func (c *Catalog) SecretsOf(types, sites []string) []string {
	var names []string
	for _, site := range c.Sites {
		if site.VMware != nil && slices.Contains(sites, site.Name) {
			names = append(names, site.VMware.Credential)
		}
		if site.XCAT != nil && site.XCAT.Credential != "" && slices.Contains(sites, site.Name) {
			names = append(names, site.XCAT.Credential)
		}
		if site.Libvirt != nil && site.Libvirt.Credential != "" && slices.Contains(sites, site.Name) {
			names = append(names, site.Libvirt.Credential)
		}
	}
	for _, image := range c.Images {
		if slices.ContainsFunc(types, func(name string) bool { _, ok := image.Sources[name]; return ok }) {
			names = append(names, image.Control.Credential)
			if image.PostLoad.Domain != nil {
				names = append(names, image.PostLoad.Domain.Credential)
			}
			if image.PostLoad.Activation != nil && image.PostLoad.Activation.MAK != "" {
				names = append(names, image.PostLoad.Activation.MAK)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
