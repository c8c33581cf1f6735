package catalog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/secrets"
	"berth/provisioners"
	"berth/reservation"
)

func TestLoadReadsEverything(t *testing.T) {
	c, err := Load("testdata/good.yaml", Options{})
	require.NoError(t, err)

	require.Equal(t, map[string]secrets.Source{
		"vcenter-lab":  {Env: "BERTH_SECRET_VCENTER_LAB"},
		"linux-root":   {File: "testdata/keys/linux-root", Passphrase: "linux-phrase"},
		"linux-phrase": {File: "/etc/berth/phrase"},
	}, c.Secrets)
	require.Equal(t, []Site{{Name: "lab", Provisioner: "vmware", VMware: &VMware{
		URL: "https://127.0.0.1:8989/sdk", User: "berth@vsphere.local", Credential: "vcenter-lab", CAFile: "testdata/keys/ca.pem",
		Datacenter: "DC0", Clones: 6, ClonesPerHost: 3,
	}}}, c.Sites)

	debian := reservation.Image{
		Name: "debian12", Revision: 3, OS: reservation.OS{Family: reservation.Linux, Version: "12", Architecture: "x86_64"},
		Sources:  map[string]map[string]string{"vmware": {"template": "debian12-template", "snapshot": "r3", "clone": "linked"}},
		Control:  reservation.Control{Channel: "ssh", User: "root", Port: 22, Credential: "linux-root", HostKey: reservation.HostKeyHanded},
		Attempts: 2,
		Limits:   reservation.Limits{Load: reservation.Duration(10 * time.Minute), Response: reservation.Duration(2 * time.Minute)},
		PostLoad: reservation.PostLoadOptions{Hostname: true, ManagementSources: []string{"127.0.0.0/8"}, Scripts: []string{"lab"}},
	}
	newer := debian
	newer.Revision, newer.Limits = 10, reservation.Limits{}
	require.Equal(t, []reservation.Image{debian, newer}, c.Images)

	vm := reservation.Computer{
		Name: "vm-01", Provisioner: "vmware", Site: "lab", Hardware: reservation.Virtual, Address: "127.0.0.1:22001",
		MACs: []string{"00:50:56:00:00:01"}, Networks: []string{"VM Network"}, CPUs: 2, MemoryMiB: 2048,
		Placement: map[string]string{"folder": "vm", "resource_pool": "Resources", "datastore": "LocalDS_0", "host": ""},
	}
	second := vm
	second.Name, second.Address, second.MACs = "vm-02", "127.0.0.1:22002", []string{"00:50:56:00:00:02"}
	node := reservation.Computer{Name: "node-01", Provisioner: "xcat", Hardware: reservation.Physical, Address: "node-01.example.org"}
	require.Equal(t, []reservation.Computer{vm, second, node}, c.Computers)

	require.Equal(t, "1 sites, 2 images, 3 computers, 3 secrets", c.Summary())
	require.Equal(t, []string{"debian12"}, c.ImageNames())
	require.Equal(t, []string{"node-01", "vm-01", "vm-02"}, c.ComputerNames())
}

// base is a catalog without faults; each row of the table below makes one of it.
const base = `secrets:
  password: {env: PASSWORD}
  key: {file: keys/key}
sites:
  - name: lab
    provisioner: vmware
    vmware: {url: "https://vc.example.org/sdk", user: berth, credential: password}
images:
  - name: debian12
    revision: 3
    os: {family: linux, version: "12"}
    sources: {vmware: {template: t}}
    control: {channel: ssh, user: root, credential: key}
computers:
  - name: vm-01
    site: lab
    address: 10.0.0.1
    macs: ["00:50:56:00:00:01"]
`

func loadText(t *testing.T, text string, options Options) (*Catalog, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "catalog.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return Load(path, options)
}

func TestEveryFaultHasItsLineFieldValueAndRemedy(t *testing.T) {
	_, err := loadText(t, base, Options{})
	require.NoError(t, err, "the rows below each make one fault of a catalog that has none")

	type fault struct {
		line                 int
		field, value, remedy string // remedy: a part of it
	}
	second := func(lines string) string { return "\n  - name: vm-02\n    site: lab\n" + lines }
	for name, test := range map[string]struct {
		old, new string // what is replaced in base; without old, new is put after it
		want     fault
	}{
		"an unknown section":                                {"images:", "imagse:\n- {}\nimages:", fault{8, "imagse", "", "did you mean images?"}},
		"an unknown field of a computer":                    {"address: 10", "adress: x\n    address: 10", fault{17, "computers[0].adress", "", "did you mean address?"}},
		"an unknown field that is like no other":            {"address: 10", "zzzzz: x\n    address: 10", fault{17, "computers[0].zzzzz", "", "it may have address, cpus"}},
		"an unknown field of a site":                        {"user: berth", "user: berth, pasword: hunter2", fault{7, "sites[0].vmware.pasword", "", "there is no such field"}},
		"an unknown field of a control":                     {"user: root", "usr: x, user: root", fault{13, "images[0].control.usr", "", "did you mean user?"}},
		"a field that is there twice":                       {"revision: 3", "revision: 3\n    revision: 4", fault{11, "images[0].revision", "", "first in line 10"}},
		"a word where a number belongs":                     {"revision: 3", "revision: three", fault{10, "images[0].revision", "three", "whole number"}},
		"a word where true or false belongs":                {"user: berth", "user: berth, insecure: sure", fault{7, "sites[0].vmware.insecure", "sure", "true or false"}},
		"a list where a word belongs":                       {"address: 10.0.0.1", "address: [10.0.0.1]", fault{17, "computers[0].address", "", "one value"}},
		"a word where a list belongs":                       {`macs: ["00:50:56:00:00:01"]`, "macs: none", fault{18, "computers[0].macs", "none", "a list"}},
		"a word where a mapping belongs":                    {"sources: {vmware: {template: t}}", "sources: vmware", fault{12, "images[0].sources", "vmware", "a mapping"}},
		"a duration without a unit":                         {"revision: 3", "revision: 3\n    limits: {load: 600}", fault{11, "images[0].limits.load", "600", "with its unit"}},
		"a limit that is too long":                          {"revision: 3", "revision: 3\n    limits: {load: 480h}", fault{11, "images[0].limits.load", "480h0m0s", "48h"}},
		"a key that is no word":                             {"revision: 3", "revision: 3\n    [a, b]: 1", fault{11, "images[0]", "", "one word"}},
		"a secret written into the catalog":                 {"password: {env: PASSWORD}", "password: hunter2", fault{2, "secrets.password", "", "a mapping"}},
		"a secret with neither place":                       {"password: {env: PASSWORD}", "password: {}", fault{2, "secrets.password", "", "env: NAME"}},
		"a secret with both places":                         {"password: {env: PASSWORD}", "password: {env: PASSWORD, file: x}", fault{2, "secrets.password", "", "keep one"}},
		"a secret in the place of a variable":               {"password: {env: PASSWORD}", "password: {env: 'hunter2!'}", fault{2, "secrets.password.env", "", "never the secret itself"}},
		"a secret with an unknown passphrase":               {"key: {file: keys/key}", "key: {file: keys/key, passphrase: pasword}", fault{3, "secrets.key.passphrase", "pasword", "did you mean password?"}},
		"a name of a secret that is not allowed":            {"password: {env", "My_Password: {env: A}\n  password: {env", fault{2, "secrets.My_Password", "My_Password", "1 to 63"}},
		"a computer without a name":                         {"  - name: vm-01\n    site", "  - site", fault{15, "computers[0].name", "", "1 to 63"}},
		"two sites of one name":                             {"images:", "  - {name: lab, provisioner: libvirt, libvirt: {uri: qemu:///system}}\nimages:", fault{8, "sites[1].name", "lab", "line 5"}},
		"an unknown provisioner of a site":                  {"provisioner: vmware", "provisioner: vmwar", fault{6, "sites[0].provisioner", "vmwar", "did you mean vmware?"}},
		"a site without a provisioner":                      {"images:", "  - {name: other}\nimages:", fault{8, "sites[1].provisioner", "", "libvirt, vmware, xcat"}},
		"a vmware section of another provisioner":           {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: qemu:///system}, vmware: {}}\nimages:", fault{8, "sites[1].vmware", "", "only a site with provisioner: vmware"}},
		"a vmware site without its section":                 {"images:", "  - {name: other, provisioner: vmware}\nimages:", fault{8, "sites[1].vmware", "", "how its vCenter is reached"}},
		"a vCenter without an address":                      {`url: "https://vc.example.org/sdk", `, "", fault{7, "sites[0].vmware.url", "", "https://HOST/sdk"}},
		"a vCenter without TLS":                             {"https://vc", "http://vc", fault{7, "sites[0].vmware.url", "http://vc.example.org/sdk", "https://HOST/sdk"}},
		"a password in a vCenter's address":                 {"https://vc", "https://berth:hunter2@vc", fault{7, "sites[0].vmware.url", "https://berth:xxxxx@vc.example.org/sdk", "take the user and the password out"}},
		"a vCenter without a user":                          {"user: berth, ", "", fault{7, "sites[0].vmware.user", "", "logs in as"}},
		"a vCenter without a credential":                    {", credential: password}", "}", fault{7, "sites[0].vmware.credential", "", "key, password"}},
		"an unknown secret of a vCenter":                    {"credential: password", "credential: passwrd", fault{7, "sites[0].vmware.credential", "passwrd", "did you mean password?"}},
		"two ways to trust a vCenter":                       {"user: berth", "user: berth, ca_file: x, insecure: true", fault{7, "sites[0].vmware", "", "keep one"}},
		"a thumbprint of the wrong length":                  {"user: berth", "user: berth, thumbprint: AA:BB", fault{7, "sites[0].vmware.thumbprint", "AA:BB", "SHA-256"}},
		"an xcat section of another provisioner":            {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: qemu:///system}, xcat: {}}\nimages:", fault{8, "sites[1].xcat", "", "only a site with provisioner: xcat"}},
		"a libvirt site without its section":                {"images:", "  - {name: other, provisioner: libvirt}\nimages:", fault{8, "sites[1].libvirt", "", "how its host is reached"}},
		"a libvirt host without a URI":                      {"images:", "  - {name: other, provisioner: libvirt, libvirt: {}}\nimages:", fault{8, "sites[1].libvirt.uri", "", "qemu:///system"}},
		"a password in a libvirt host's URI":                {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu+ssh://a:hunter2@h/system', credential: key, host_key: x}}\nimages:", fault{8, "sites[1].libvirt.uri", "qemu+ssh://a:xxxxx@h/system", "take the password out"}},
		"a libvirt host by TLS without an authority":        {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu+tls://h/system', credential: key}}\nimages:", fault{8, "sites[1].libvirt.ca_file", "", "cacert.pem"}},
		"a libvirt host by TLS without a credential":        {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu+tls://h/system', ca_file: x}}\nimages:", fault{8, "sites[1].libvirt.credential", "", "key, password"}},
		"a libvirt host by SSH without its key":             {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu+ssh://a@h/system', credential: key}}\nimages:", fault{8, "sites[1].libvirt.host_key", "", "one of the two"}},
		"a libvirt host by SSH with two sources of its key": {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu+ssh://a@h/system', credential: key, host_key: x, known_hosts_file: y}}\nimages:", fault{8, "sites[1].libvirt.host_key", "x", "one of the two"}},
		"an unknown secret of a libvirt host":               {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu+ssh://a@h/system', credential: kez, host_key: x}}\nimages:", fault{8, "sites[1].libvirt.credential", "kez", "did you mean key?"}},
		"a certificate for a socket":                        {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu:///system', ca_file: x}}\nimages:", fault{8, "sites[1].libvirt.ca_file", "x", "with uri: qemu+tls only"}},
		"a secret for a socket":                             {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu:///system', credential: key}}\nimages:", fault{8, "sites[1].libvirt.credential", "key", "qemu+tls or qemu+ssh only"}},
		"a host key by TLS":                                 {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu+tls://h/system', ca_file: x, credential: key, host_key: y}}\nimages:", fault{8, "sites[1].libvirt.host_key", "y", "with uri: qemu+ssh only"}},
		"another way to run guests":                         {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu:///system', accel: hvf}}\nimages:", fault{8, "sites[1].libvirt.accel", "hvf", "auto, kvm or tcg"}},
		"less than no loads":                                {"images:", "  - {name: other, provisioner: libvirt, libvirt: {uri: 'qemu:///system', loads: -1}}\nimages:", fault{8, "sites[1].libvirt.loads", "-1", "1 or more"}},
		"an xcat section beside a vmware site's":            {"images:", "    xcat: {}\nimages:", fault{8, "sites[0].xcat", "", "only a site with provisioner: xcat"}},
		"an xcat site without its section":                  {"images:", "  - {name: other, provisioner: xcat}\nimages:", fault{8, "sites[1].xcat", "", "how its management node is reached"}},
		"a management node that is reached by nothing":      {"images:", "  - {name: other, provisioner: xcat, xcat: {}}\nimages:", fault{8, "sites[1].xcat.address", "", "command-line tools"}},
		"a management node at no address":                   {"images:", "  - {name: other, provisioner: xcat, xcat: {address: 'mn:many', ca_file: x, credential: key}}\nimages:", fault{8, "sites[1].xcat.address", "mn:many", "the port must be"}},
		"a management node without an authority":            {"images:", "  - {name: other, provisioner: xcat, xcat: {address: mn, credential: key}}\nimages:", fault{8, "sites[1].xcat.ca_file", "", "ca.pem"}},
		"a management node without a credential":            {"images:", "  - {name: other, provisioner: xcat, xcat: {address: mn, ca_file: x}}\nimages:", fault{8, "sites[1].xcat.credential", "", "key, password"}},
		"an unknown secret of a management node":            {"images:", "  - {name: other, provisioner: xcat, xcat: {address: mn, ca_file: x, credential: kez}}\nimages:", fault{8, "sites[1].xcat.credential", "kez", "did you mean key?"}},
		"an authority without an address":                   {"images:", "  - {name: other, provisioner: xcat, xcat: {ca_file: x, tools: {}}}\nimages:", fault{8, "sites[1].xcat.ca_file", "x", "with address only"}},
		"no checking of a management node":                  {"images:", "  - {name: other, provisioner: xcat, xcat: {address: mn, ca_file: x, credential: key, insecure: true}}\nimages:", fault{8, "sites[1].xcat.insecure", "", "there is no such field"}},
		"less than no installs":                             {"images:", "  - {name: other, provisioner: xcat, xcat: {tools: {}, installs: -1}}\nimages:", fault{8, "sites[1].xcat.installs", "-1", "1 or more"}},
		"less than no commands in flight":                   {"images:", "  - {name: other, provisioner: xcat, xcat: {tools: {}, in_flight: -1}}\nimages:", fault{8, "sites[1].xcat.in_flight", "-1", "1 or more"}},
		"known_hosts that is no whole path":                 {"images:", "  - {name: other, provisioner: xcat, xcat: {tools: {}, known_hosts_file: known_hosts}}\nimages:", fault{8, "sites[1].xcat.known_hosts_file", "known_hosts", "whole path"}},
		"tools at nobody":                                   {"images:", "  - {name: other, provisioner: xcat, xcat: {tools: {ssh: mn}}}\nimages:", fault{8, "sites[1].xcat.tools.ssh", "mn", "user@host"}},
		"tools at an option of ssh's":                       {"images:", "  - {name: other, provisioner: xcat, xcat: {tools: {ssh: '-oProxyCommand=x@mn'}}}\nimages:", fault{8, "sites[1].xcat.tools.ssh", "-oProxyCommand=x@mn", "user@host"}},
		"tools at no port":                                  {"images:", "  - {name: other, provisioner: xcat, xcat: {tools: {ssh: root@mn, port: 70000}}}\nimages:", fault{8, "sites[1].xcat.tools.port", "70000", "TCP port"}},
		"a key for tools that are here":                     {"images:", "  - {name: other, provisioner: xcat, xcat: {tools: {identity_file: x}}}\nimages:", fault{8, "sites[1].xcat.tools.identity_file", "x", "with ssh only"}},
		"tools in no whole path":                            {"images:", "  - {name: other, provisioner: xcat, xcat: {tools: {path: '/opt/xcat/bin:bin'}}}\nimages:", fault{8, "sites[1].xcat.tools.path", "/opt/xcat/bin:bin", "whole paths"}},
		"less than no clones":                               {"user: berth", "user: berth, clones: -1", fault{7, "sites[0].vmware.clones", "-1", "1 or more"}},
		"a name that is not allowed":                        {"name: debian12", "name: Debian_12", fault{9, "images[0].name", "Debian_12", "use 1 to 63 of a-z"}},
		"an image without a revision":                       {"    revision: 3\n", "", fault{9, "images[0].revision", "0", "1 or more"}},
		"an unknown OS family":                              {"family: linux", "family: linus", fault{11, "images[0].os.family", "linus", "linux or windows"}},
		"two images of one name and revision":               {"computers:", "  - {name: debian12, revision: 3, os: {family: linux}, sources: {vmware: {template: t}}, control: {channel: ssh, user: root, credential: key}}\ncomputers:", fault{14, "images[1].name", "debian12-r3", "line 9"}},
		"an image named like another's revision":            {"computers:", "  - {name: debian12-r3, revision: 1, os: {family: linux}, sources: {vmware: {template: t}}, control: {channel: ssh, user: root, credential: key}}\ncomputers:", fault{14, "images[1].name", "debian12-r3", "line 9"}},
		"an image that no provisioner finds":                {"    sources: {vmware: {template: t}}\n", "", fault{9, "images[0].sources", "", "for one provisioner at least"}},
		"a source of an unknown provisioner":                {"sources: {vmware: {template: t}}", "sources: {vmware: {template: t}, libvrt: {}}", fault{12, "images[0].sources.libvrt", "", "did you mean libvirt?"}},
		"an unknown channel":                                {"channel: ssh", "channel: ssl", fault{13, "images[0].control.channel", "ssl", "did you mean ssh?"}},
		"an image without a user":                           {"user: root, ", "", fault{13, "images[0].control.user", "", "logs in as"}},
		"an unknown secret of an image":                     {"credential: key", "credential: kez", fault{13, "images[0].control.credential", "kez", "did you mean key?"}},
		"a management source that is no network":            {"revision: 3", "revision: 3\n    post_load: {management_sources: [10.0.0.0/8, 10.1]}", fault{11, "images[0].post_load.management_sources[1]", "10.1", "address/bits"}},
		"a computer without a site":                         {"    site: lab\n", "", fault{15, "computers[0].site", "", "name its site"}},
		"an unknown site":                                   {"site: lab", "site: lap", fault{16, "computers[0].site", "lap", "did you mean lab?"}},
		"a provisioner that is not the site's":              {"site: lab", "site: lab\n    provisioner: xcat", fault{17, "computers[0].provisioner", "xcat", "site lab has provisioner vmware"}},
		"an unknown provisioner of a computer":              {"site: lab", "provisioner: xkat", fault{16, "computers[0].provisioner", "xkat", "did you mean xcat?"}},
		"a computer without an address":                     {"    address: 10.0.0.1\n", "", fault{15, "computers[0].address", "", "host name or an IP address"}},
		"hardware of an unknown kind":                       {"site: lab", "site: lab\n    hardware: virtal", fault{17, "computers[0].hardware", "virtal", "virtual or physical"}},
		"a MAC that is none":                                {"00:50:56:00:00:01", "00:50:56:00:00", fault{18, "computers[0].macs[0]", "00:50:56:00:00", "six pairs"}},
		"two computers of one name":                         {"", "\n  - name: vm-01\n    site: lab\n    address: 10.0.0.2", fault{19, "computers[1].name", "vm-01", "line 15"}},
		"two computers of one MAC, written otherwise":       {"", second("    address: 10.0.0.2\n    macs: [00-50-56-00-00-01]"), fault{22, "computers[1].macs[0]", "00-50-56-00-00-01", "line 18"}},
		"two computers of one address":                      {"", second("    address: 10.0.0.1"), fault{21, "computers[1].address", "10.0.0.1", "line 17"}},
		"an address whose every port is taken":              {"", second("    address: 10.0.0.1:2222"), fault{21, "computers[1].address", "10.0.0.1:2222", "line 17"}},
		"a merge that holds itself":                         {"  - name: vm-01\n", "  - &vm\n    <<: *vm\n    name: vm-01\n", fault{15, "computers[0]", "*vm", "alias"}},
		"a certificate of another channel":                  {"user: root", "user: root, certificate: ca.pem", fault{13, "images[0].control.certificate", "ca.pem", "only winrm"}},
		"winrm for Linux":                                   {"channel: ssh", "channel: winrm", fault{13, "images[0].control.channel", "winrm", "controlled by ssh"}},
		"a domain for Linux":                                {"revision: 3", "revision: 3\n    post_load: {domain: {name: a.b, user: u, credential: key}}", fault{11, "images[0].post_load.domain", "", "only a Windows image"}},
		"a fixed address that is none":                      {"address: 10.0.0.1", "address: 10.0.0.1\n    public: {interface: Public, address: 192.0.2.7}", fault{18, "computers[0].public.address", "192.0.2.7", "with its bits"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.TrimSuffix(base, "\n") + test.new + "\n"
			if test.old != "" {
				require.Equal(t, 1, strings.Count(base, test.old), "what to replace must be there once")
				text = strings.Replace(base, test.old, test.new, 1)
			}
			_, err := loadText(t, text, Options{})
			var faults *Error
			require.ErrorAs(t, err, &faults)
			require.Len(t, faults.Faults, 1, err.Error())
			got := faults.Faults[0]
			require.Equal(t, fault{test.want.line, test.want.field, test.want.value, got.Remedy}, fault{got.Line, got.Field, got.Value, got.Remedy})
			require.Contains(t, got.Remedy, test.want.remedy)
			require.NotContains(t, err.Error(), "hunter2")
			require.Regexp(t, `catalog\.yaml:\d+: `, err.Error())
		})
	}
}

func TestACatalogThatIsNoYAMLIsAFaultWithItsLine(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		line int
		want string
	}{
		"empty":                {"", 1, "empty"},
		"only a comment":       {"# nothing\n", 1, "empty"},
		"a list":               {"- a\n- b\n", 1, "a mapping"},
		"a bracket left open":  {"sites:\n  - name: [lab\nimages: []\n", 2, "not YAML"},
		"a tab":                {"sites:\n\t- name: lab\n", 2, "not YAML"},
		"an unknown alias":     {"images: []\nsites: *nowhere\n", 2, "&nowhere"},
		"two documents":        {"sites: []\n---\nimages: []\n", 2, "second YAML document"},
		"a bomb of aliases":    {bomb(), 3, "too many values"},
		"nothing but a number": {"7", 1, "a mapping"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadText(t, test.text, Options{})
			var faults *Error
			require.ErrorAs(t, err, &faults)
			require.ErrorContains(t, err, test.want)
			require.Equal(t, test.line, faults.Faults[0].Line, err.Error())
		})
	}
}

// bomb is a small file that stands for four million values.
func bomb() string {
	return "computers:\n- &c\n  macs: [" + strings.Repeat("x,", 2000) + "x]\n" + strings.Repeat("- *c\n", 2000)
}

func TestAFileThatIsNotThereIsAFault(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "absent.yaml"), Options{})
	require.ErrorContains(t, err, "absent.yaml: catalog: cannot be read")
	_, err = Load(t.TempDir(), Options{})
	require.ErrorContains(t, err, "is not a file")
}

func TestAllFaultsComeAtOnceInTheOrderOfTheirLines(t *testing.T) {
	text := strings.NewReplacer("provisioner: vmware", "provisioner: vmwar", "revision: 3", "revision: no", "credential: key}", "credential: kez}",
		"site: lab", "site: lap", "address: 10.0.0.1", "address: 'a b'").Replace(base)
	_, err := loadText(t, text, Options{})
	var faults *Error
	require.ErrorAs(t, err, &faults)
	var fields []string
	for _, fault := range faults.Faults {
		fields = append(fields, fault.Field)
	}
	require.Equal(t, []string{"sites[0].provisioner", "images[0].revision", "images[0].control.credential", "computers[0].site", "computers[0].address"}, fields, err.Error())
	require.Len(t, strings.Split(err.Error(), "\n"), len(fields))
	var fault *Fault
	require.ErrorAs(t, err, &fault)
}

func TestAComputerNamesItsSiteWhereThereAreSeveral(t *testing.T) {
	two := strings.Replace(base, "images:", "  - name: other\n    provisioner: vmware\n    vmware: {url: \"https://vc2.example.org/sdk\", user: berth, credential: password}\nimages:", 1)
	_, err := loadText(t, two, Options{})
	require.NoError(t, err)
	_, err = loadText(t, strings.Replace(two, "site: lab", "provisioner: vmware", 1), Options{})
	require.ErrorContains(t, err, "computers[0].site: there are several sites with provisioner vmware; name one of lab, other")

	c, err := loadText(t, strings.Replace(base, "site: lab", "provisioner: vmware", 1), Options{})
	require.NoError(t, err, "the only site needs no name")
	require.Equal(t, "", c.Computers[0].Site)

	none := strings.Replace(strings.Replace(base, "site: lab", "provisioner: vmware", 1), base[strings.Index(base, "sites:"):strings.Index(base, "images:")], "", 1)
	_, err = loadText(t, none, Options{})
	require.ErrorContains(t, err, "no site has provisioner vmware")
}

// keys is a validator that knows some keys and no others, as modules do.
type keys struct{ source, placement []string }

func (k keys) ValidateSource(source map[string]string) error {
	return k.validate("image.sources.vmware.", source, k.source)
}

func (k keys) ValidatePlacement(placement map[string]string) error {
	return k.validate("computer.placement.", placement, k.placement)
}

func (k keys) validate(prefix string, values map[string]string, known []string) error {
	var faults []error
	for _, key := range known {
		if values[key] == "" {
			faults = append(faults, &reservation.FieldError{Field: prefix + key, Remedy: "is needed"})
		}
	}
	for key, value := range values {
		if Nearest(key, known) != key {
			faults = append(faults, &reservation.FieldError{Field: prefix + key, Value: value, Remedy: "is not known"})
		}
	}
	return errors.Join(faults...)
}

func TestAValidatorsFaultsGetTheirLines(t *testing.T) {
	text := strings.Replace(base, "sources: {vmware: {template: t}}", "sources:\n      vmware:\n        template: t\n        snapshto: r3", 1)
	text += "    placement:\n      pool: x\n"
	_, err := loadText(t, text, Options{Validators: map[string]provisioners.Validator{"vmware": keys{source: []string{"template"}, placement: []string{"folder"}}}})
	var faults *Error
	require.ErrorAs(t, err, &faults)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, 3)
	require.Contains(t, lines[0], `:15: images[0].sources.vmware.snapshto is "r3": is not known`)
	require.Contains(t, lines[1], `:22: computers[0].placement.folder: is needed`)
	require.Contains(t, lines[2], `:23: computers[0].placement.pool is "x": is not known`)

	_, err = loadText(t, text, Options{Validators: map[string]provisioners.Validator{"libvirt": keys{}}})
	require.NoError(t, err, "what nobody here understands is not checked here")
}

func TestAnImagesReferenceIsItsHighestRevisionOrTheNamedOne(t *testing.T) {
	c, err := Load("testdata/good.yaml", Options{})
	require.NoError(t, err)
	for reference, want := range map[string]int{"debian12": 10, "debian12-r3": 3, "debian12-r10": 10} {
		image, err := c.Image(reference)
		require.NoError(t, err)
		require.Equal(t, want, image.Revision, reference)
	}
	for reference, want := range map[string]string{
		"debian21":    "did you mean debian12?",
		"debian12-r1": "no such revision of debian12; it has debian12-r10, debian12-r3",
		"debain12-r3": "did you mean debian12?",
		"windows":     "it has debian12",
		"":            "it has debian12",
	} {
		_, err := c.Image(reference)
		var field *reservation.FieldError
		require.ErrorAs(t, err, &field)
		require.Contains(t, field.Remedy, want, reference)
	}
}

func TestReservationIsOfTheCatalogsComputerAndImage(t *testing.T) {
	c, err := Load("testdata/good.yaml", Options{})
	require.NoError(t, err)
	end := time.Now().Add(time.Hour)
	r, err := c.Reservation("r1", "ann", "vm-02", "debian12-r3", end)
	require.NoError(t, err)
	require.Equal(t, reservation.Reservation{Name: "r1", User: "ann", Computer: c.Computers[1], Image: c.Images[0], End: end.UTC()}, r)
	require.NoError(t, r.Validate(time.Now()))

	for name, test := range map[string]struct {
		reservation, user, computer, image string
		end                                time.Time
		want                               []string
	}{
		"wrong names":                               {"r1", "ann", "vm-0", "debian1", end, []string{"computer is \"vm-0\"", "did you mean vm-0", "image is \"debian1\"", "did you mean debian12?"}},
		"wrong names and a wrong user":              {"R1", "", "vm-0", "debian12", end, []string{"reservation.name", "reservation.user", "did you mean vm-0"}},
		"an end that has passed":                    {"r1", "ann", "vm-01", "debian12", time.Now().Add(-time.Hour), []string{"reservation.end"}},
		"an image that is not for that provisioner": {"r1", "ann", "node-01", "debian12", end, []string{"image.sources", "node-01 is loaded by xcat"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Reservation(test.reservation, test.user, test.computer, test.image, test.end)
			for _, words := range test.want {
				require.ErrorContains(t, err, words)
			}
		})
	}
}

func TestSecretsOfAreThoseThatServingNeeds(t *testing.T) {
	c, err := Load("testdata/good.yaml", Options{})
	require.NoError(t, err)
	require.Equal(t, []string{"linux-root", "vcenter-lab"}, c.SecretsOf([]string{"vmware"}, []string{"lab"}))
	require.Equal(t, []string{"linux-root"}, c.SecretsOf([]string{"vmware"}, nil))
	require.Empty(t, c.SecretsOf([]string{"xcat"}, nil))
	c.Sites = append(c.Sites, Site{Name: "mn", XCAT: &XCAT{Credential: "mn-cert"}}, Site{Name: "mn2", XCAT: &XCAT{Tools: &XCATTools{}}})
	require.Equal(t, []string{"mn-cert"}, c.SecretsOf(nil, []string{"mn", "mn2"}))
}

func TestNearestFindsWhatWasMeantAndNothingElse(t *testing.T) {
	known := []string{"vm-01", "vm-02", "debian12", "lab"}
	for word, want := range map[string]string{"vm01": "vm-01", "VM-02": "vm-02", "debain12": "debian12", "la": "lab", "xyz": "", "windows": "", "": ""} {
		require.Equal(t, want, Nearest(word, known), word)
	}
}

func TestALargeCatalogIsReadAsAWhole(t *testing.T) {
	var b strings.Builder
	b.WriteString(base)
	for i := range 10_000 {
		fmt.Fprintf(&b, "  - {name: n-%d, site: lab, address: \"10.1.%d.%d\", macs: [\"02:00:00:00:%02x:%02x\"], cpus: 2, memory_mib: 2048, placement: {folder: vm}}\n",
			i, i/250, i%250, i/250, i%250)
	}
	began := time.Now()
	c, err := loadText(t, b.String(), Options{})
	require.NoError(t, err)
	require.Len(t, c.Computers, 10_001)
	t.Logf("10,001 computers in %s", time.Since(began))
}

func TestAnXCATSiteIsRead(t *testing.T) {
	c, err := loadText(t, strings.Replace(base, "images:", `  - name: mn
    provisioner: xcat
    xcat:
      address: mn.example.org
      server_name: mn
      ca_file: keys/ca.pem
      credential: key
      installs: 20
      tools: {ssh: root@mn.example.org, identity_file: keys/mn, known_hosts_file: keys/known_hosts}
images:`, 1), Options{})
	require.NoError(t, err)
	folder := filepath.Dir(c.Path)
	require.Equal(t, &XCAT{Address: "mn.example.org", ServerName: "mn", CAFile: filepath.Join(folder, "keys/ca.pem"), Credential: "key", Installs: 20,
		Tools: &XCATTools{SSH: "root@mn.example.org", IdentityFile: filepath.Join(folder, "keys/mn"), KnownHosts: filepath.Join(folder, "keys/known_hosts")}}, c.Sites[1].XCAT)
}

// windows is base with a Windows image.
func windows(image string) string {
	return strings.Replace(base, `    os: {family: linux, version: "12"}
    sources: {vmware: {template: t}}
    control: {channel: ssh, user: root, credential: key}
`, image, 1)
}

func TestAWindowsImageIsReadWhole(t *testing.T) {
	c, err := loadText(t, windows(`    os: {family: windows, version: "2022"}
    sysprep: true
    sources: {vmware: {template: t}}
    control: {channel: winrm, user: berth, credential: key, certificate: first-handshake, auth: basic}
    limits: {no_progress: 20m}
    post_load:
      rdp_port: 3390
      rdp_sources: [10.0.0.0/8]
      domain: {name: ad.example.org, ou: "OU=Lab,DC=example,DC=org", user: join, credential: password}
      activation: {kms: [kms.example.org, "kms2.example.org:1689"], key: AAAAA-BBBBB-CCCCC-DDDDD-EEEEE, mak: password}
      updates: 'C:\Updates'
`), Options{})
	require.NoError(t, err)
	image := c.Images[0]
	require.Equal(t, reservation.Control{Channel: "winrm", User: "berth", Credential: "key", Certificate: "first-handshake", Auth: "basic"}, image.Control)
	require.Equal(t, 20*time.Minute, image.Limits.NoProgress.Std())
	require.Equal(t, &reservation.Domain{Name: "ad.example.org", OU: "OU=Lab,DC=example,DC=org", User: "join", Credential: "password"}, image.PostLoad.Domain)
	require.Equal(t, &reservation.Activation{KMS: []string{"kms.example.org", "kms2.example.org:1689"}, Key: "AAAAA-BBBBB-CCCCC-DDDDD-EEEEE", MAK: "password"}, image.PostLoad.Activation)
	require.Equal(t, []string{"key", "password"}, c.SecretsOf([]string{"vmware"}, nil))
}

func TestEveryFaultOfAWindowsImageHasItsLine(t *testing.T) {
	const head = `    os: {family: windows, version: "10"}
    sources: {vmware: {template: t}}
`
	for name, test := range map[string]struct {
		lines        string // from line 13 on
		line         int
		field, value string
		remedy       string
	}{
		"an unknown way to log in": {"    control: {channel: winrm, user: u, credential: key, auth: kerberos}\n", 13, "control.auth", "kerberos", "ntlm or basic"},
		"a host key of winrm":      {"    control: {channel: winrm, user: u, credential: key, host_key: handed}\n", 13, "control.host_key", "handed", "winrm has no host key"},
		"a network that is none":   {"    control: {channel: ssh, user: u, credential: key}\n    post_load: {rdp_sources: [10.0.0.1]}\n", 14, "post_load.rdp_sources[0]", "10.0.0.1", "address/bits"},
		"a port without networks":  {"    control: {channel: ssh, user: u, credential: key}\n    post_load: {rdp_port: 3389}\n", 14, "post_load.rdp_sources", "", "leave rdp_port out"},
		"a domain's unknown secret": {"    control: {channel: ssh, user: u, credential: key}\n    post_load: {domain: {name: a.example, user: u, credential: pasword}}\n",
			14, "post_load.domain.credential", "pasword", "did you mean password?"},
		"a domain without a name": {"    control: {channel: ssh, user: u, credential: key}\n    post_load: {domain: {user: u, credential: key}}\n", 14, "post_load.domain.name", "", "DNS name"},
		"a key written into the catalog": {"    control: {channel: ssh, user: u, credential: key}\n    post_load: {activation: {mak: maak}}\n",
			14, "post_load.activation.mak", "maak", "no such secret"},
		"no way to activate":        {"    control: {channel: ssh, user: u, credential: key}\n    post_load: {activation: {}}\n", 14, "post_load.activation", "", "give kms"},
		"a KMS server that is none": {"    control: {channel: ssh, user: u, credential: key}\n    post_load: {activation: {kms: ['a b']}}\n", 14, "post_load.activation.kms[0]", "a b", "host name"},
		"a folder that is none":     {"    control: {channel: ssh, user: u, credential: key}\n    post_load: {updates: updates}\n", 14, "post_load.updates", "updates", `C:\Updates`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadText(t, windows(head+test.lines), Options{})
			var all *Error
			require.ErrorAs(t, err, &all)
			require.Len(t, all.Faults, 1, "%s", err)
			got := all.Faults[0]
			require.Equal(t, test.line, got.Line)
			require.Equal(t, "images[0]."+test.field, got.Field)
			require.Equal(t, test.value, got.Value)
			require.Contains(t, got.Remedy, test.remedy)
		})
	}
}
