package libvirt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/kdomanski/iso9660"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
	"libvirt.org/go/libvirtxml"

	"berth/internal/hostkey"
	"berth/provisioners/libvirt/dial"
	"berth/reservation"
)

func TestASourceHasWhatALoadNeeds(t *testing.T) {
	good := func(change map[string]string) map[string]string {
		source := map[string]string{sourceMaster: "/srv/debian12.qcow2", sourceSHA256: digest}
		for key, value := range change {
			source[key] = value
		}
		return source
	}
	for name, c := range map[string]struct {
		source map[string]string
		want   string // "" for no fault
	}{
		"a file":                      {good(nil), ""},
		"a URL":                       {good(map[string]string{sourceMaster: "https://images.example.org/debian12.qcow2"}), ""},
		"a volume":                    {good(map[string]string{sourceMaster: "", sourceVolume: "debian12.qcow2"}), ""},
		"everything":                  {good(map[string]string{sourceSize: "1", sourceFormat: "raw", sourceCloudInit: "true", sourceMachine: "pc-q35-7.2", sourceFirmware: "uefi", sourceDiskBus: "scsi", sourceNIC: "e1000e", sourceCPU: "host-passthrough", sourceCPUs: "2", sourceMemory: "512", sourceDisk: "20", sourceGraphics: "none"}), ""},
		"nothing":                     {map[string]string{}, "image.sources.libvirt.master"},
		"two places":                  {good(map[string]string{sourceVolume: "x"}), "keep one"},
		"a relative path":             {good(map[string]string{sourceMaster: "debian12.qcow2"}), "absolute path"},
		"another scheme":              {good(map[string]string{sourceMaster: "ftp://x/y"}), `is "ftp://x/y"`},
		"a password in the URL":       {good(map[string]string{sourceMaster: "https://a:hunter2@x/y"}), "without user and password"},
		"a volume with a path":        {good(map[string]string{sourceMaster: "", sourceVolume: "../x"}), "virsh vol-list"},
		"no digest":                   {good(map[string]string{sourceSHA256: ""}), "image.sources.libvirt.sha256"},
		"an upper-case digest":        {good(map[string]string{sourceSHA256: strings.ToUpper(digest)}), "lower-case"},
		"a size that is no number":    {good(map[string]string{sourceSize: "2G"}), "number of bytes"},
		"no CPUs":                     {good(map[string]string{sourceCPUs: "0"}), "1 to 1024"},
		"an unknown format":           {good(map[string]string{sourceFormat: "vmdk"}), "qcow2, raw"},
		"yes":                         {good(map[string]string{sourceCloudInit: "yes"}), "false, true"},
		"an unknown firmware":         {good(map[string]string{sourceFirmware: "coreboot"}), "bios, uefi, uefi-secure"},
		"a machine that is two words": {good(map[string]string{sourceMachine: "pc,accel=kvm"}), "one word"},
		"an unknown key":              {good(map[string]string{"template": "x"}), "knows no such key"},
	} {
		t.Run(name, func(t *testing.T) {
			err := new(Module).ValidateSource(c.source)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "hunter2")
			require.ErrorAs(t, err, new(*reservation.FieldError))
		})
	}
}

func TestAPlacementSaysWhereAndWithWhichAddress(t *testing.T) {
	for name, c := range map[string]struct {
		placement map[string]string
		want      string
	}{
		"nothing":                      {nil, ""},
		"everything":                   {map[string]string{placePool: "fast", placeAddress: "10.77.0.21/24", placeGateway: "10.77.0.1", placeDNS: "10.77.0.1 10.77.0.2"}, ""},
		"an address without bits":      {map[string]string{placeAddress: "10.77.0.21"}, "with its bits"},
		"a gateway without an address": {map[string]string{placeGateway: "10.77.0.1"}, "of use with address only"},
		"a gateway that is a name":     {map[string]string{placeAddress: "10.77.0.21/24", placeGateway: "gw"}, `is "gw"`},
		"a server that is a name":      {map[string]string{placeAddress: "10.77.0.21/24", placeDNS: "10.77.0.1 dns"}, "spaces between"},
		"an unknown key":               {map[string]string{"folder": "vm"}, "knows no such key"},
	} {
		t.Run(name, func(t *testing.T) {
			err := new(Module).ValidatePlacement(c.placement)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestWhatCannotGoTogetherFailsBeforeTheHostIsAsked(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*reservation.Reservation)
		want   string
	}{
		"a handed key without cloud-init": {func(r *reservation.Reservation) {
			delete(r.Image.Sources[Type], sourceCloudInit)
			r.Image.Control.HostKey = reservation.HostKeyHanded
		}, "image.control.host_key"},
		"an address without cloud-init": {func(r *reservation.Reservation) {
			delete(r.Image.Sources[Type], sourceCloudInit)
			r.Computer.Placement = map[string]string{placeAddress: "10.77.0.21/24"}
		}, "computer.placement.address"},
		"no source":               {func(r *reservation.Reservation) { r.Image.Sources[Type] = nil }, "image.sources.libvirt.master"},
		"a placement":             {func(r *reservation.Reservation) { r.Computer.Placement = map[string]string{"x": "y"} }, "computer.placement.x"},
		"a secret without a key":  {func(r *reservation.Reservation) { r.Image.Control.Credential = "broken" }, "broken"},
		"a site of another place": {func(r *reservation.Reservation) { r.Computer.Site = "elsewhere" }, "computer.site"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := New(Options{Sites: []Site{{Name: "h1", URI: "qemu+unix:///system?socket=/nowhere/sock"}}, ControlKey: func(name string) (string, error) {
				if name == "broken" {
					return "", errors.New("broken: no key")
				}
				return "", nil
			}})
			require.NoError(t, err)
			defer m.Close(t.Context())
			_, err = m.Load(t.Context(), requestFor(c.change), &reporter{})
			require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err), "%v", err)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestAHostThatDoesNotAnswerIsAFault(t *testing.T) {
	m, err := New(Options{Sites: []Site{{Name: "h1", URI: "qemu+unix:///system?socket=/nowhere/sock"}}})
	require.NoError(t, err)
	defer m.Close(t.Context())
	_, err = m.Load(t.Context(), requestFor(nil), &reporter{})
	require.ErrorContains(t, err, "site h1: look up storage pool default: connect with /nowhere/sock")
	require.Empty(t, reservation.VerdictOf(err))
	require.ErrorContains(t, m.Check(t.Context()), "site h1")
}

func TestASiteIsCheckedBeforeItIsReached(t *testing.T) {
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	key := func() (ssh.Signer, error) { return nil, nil }
	line := newKey(t)
	for name, c := range map[string]struct {
		site Site
		want string
	}{
		"here":                     {Site{Name: "h", URI: "qemu:///system"}, ""},
		"by SSH, a pinned key":     {Site{Name: "h", URI: "qemu+ssh://berth@h.example.org/system", Key: key, HostKey: line}, ""},
		"by SSH, known_hosts":      {Site{Name: "h", URI: "qemu+ssh://berth@h.example.org:2222/system", Key: key, KnownHostsFile: write("known", "[h.example.org]:2222 "+line+"\n")}, ""},
		"by SSH, another host's":   {Site{Name: "h", URI: "qemu+ssh://berth@h.example.org/system", Key: key, KnownHostsFile: write("others", "i.example.org "+line+"\n")}, "sites[0].known_hosts_file"},
		"by SSH, no key of ours":   {Site{Name: "h", URI: "qemu+ssh://berth@h.example.org/system", HostKey: line}, "sites[0].credential"},
		"by SSH, no key of theirs": {Site{Name: "h", URI: "qemu+ssh://berth@h.example.org/system", Key: key}, "sites[0].known_hosts_file"},
		"by SSH, a broken key":     {Site{Name: "h", URI: "qemu+ssh://berth@h.example.org/system", Key: key, HostKey: "ssh-ed25519"}, "sites[0].host_key"},
		"by TLS, no authority":     {Site{Name: "h", URI: "qemu+tls://h.example.org/system", Certificate: func() ([]byte, error) { return nil, nil }}, "sites[0].ca_file"},
		"by TLS, no certificate":   {Site{Name: "h", URI: "qemu+tls://h.example.org/system"}, "sites[0].credential"},
		"another way to run":       {Site{Name: "h", URI: "qemu:///system", Accel: "hvf"}, "sites[0].accel"},
		"less than no loads":       {Site{Name: "h", URI: "qemu:///system", Loads: -1}, "sites[0].loads"},
		"no URI":                   {Site{Name: "h"}, "sites[0].uri"},
		"no name":                  {Site{URI: "qemu:///system"}, "sites[0].name"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := New(Options{Sites: []Site{c.site}})
			if c.want == "" {
				require.NoError(t, err)
				m.Close(t.Context())
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
	_, err := New(Options{Sites: []Site{{Name: "h", URI: "qemu:///system"}, {Name: "h", URI: "qemu:///system"}}})
	require.ErrorContains(t, err, "sites[1].name")
	_, err = New(Options{})
	require.ErrorContains(t, err, "sites")
}

func newKey(t *testing.T) string {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	public, err := ssh.NewPublicKey(&private.PublicKey)
	require.NoError(t, err)
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}

func TestEachErrorHasItsVerdict(t *testing.T) {
	const reload, fail, plain = reservation.VerdictReload, reservation.VerdictFail, reservation.Verdict("")
	said := func(code rpc.ErrorNumber) error {
		return fmt.Errorf("site h1: do it: %w", rpc.Error{Code: uint32(code), Message: "libvirt's words"})
	}
	for name, c := range map[string]struct {
		err  error
		want reservation.Verdict
	}{
		"the host refuses the login":       {fmt.Errorf("site h1: %w", &dial.RefusedError{Where: "h1", Err: io.EOF}), fail},
		"the host shows another key":       {fmt.Errorf("site h1: %w", &dial.HostKeyError{Address: "h1:22", Err: errors.New("mismatch")}), fail},
		"the host shows another paper":     {fmt.Errorf("site h1: %w", &tls.CertificateVerificationError{Err: errors.New("unknown authority")}), fail},
		"the pool is full":                 {&NoSpaceError{Site: "h1", Pool: "p", Err: said(rpc.ErrSystemError)}, fail},
		"no pool":                          {&MissingError{Site: "h1", Kind: "pool", Name: "p", Err: said(rpc.ErrNoStoragePool)}, fail},
		"other bits":                       {&DigestError{Where: "x"}, fail},
		"another format":                   {&FormatError{Where: "x"}, fail},
		"no bits":                          {&SourceError{Master: "x", Err: errors.New("404 Not Found")}, fail},
		"access denied":                    {said(rpc.ErrAccessDenied), fail},
		"operation denied":                 {said(rpc.ErrOperationDenied), fail},
		"authentication failed":            {said(rpc.ErrAuthFailed), fail},
		"authentication cancelled":         {said(rpc.ErrAuthCancelled), fail},
		"no authentication to be had":      {said(rpc.ErrAuthUnavailable), fail},
		"no network":                       {said(rpc.ErrNoNetwork), fail},
		"no storage pool":                  {said(rpc.ErrNoStoragePool), fail},
		"XML error":                        {said(rpc.ErrXMLError), fail},
		"XML detail":                       {said(rpc.ErrXMLDetail), fail},
		"XML schema":                       {said(rpc.ErrXMLInvalidSchema), fail},
		"invalid argument":                 {said(rpc.ErrInvalidArg), fail},
		"unsupported configuration":        {said(rpc.ErrConfigUnsupported), fail},
		"unsupported argument":             {said(rpc.ErrArgumentUnsupported), fail},
		"CPU incompatible":                 {said(rpc.ErrCPUIncompatible), fail},
		"OS type":                          {said(rpc.ErrOsType), fail},
		"invalid MAC":                      {said(rpc.ErrInvalidMac), fail},
		"no support":                       {said(rpc.ErrNoSupport), fail},
		"start: unsupported configuration": {startError("h1", "vm", said(rpc.ErrConfigUnsupported)), fail},
		"start: internal error":            {startError("h1", "vm", said(rpc.ErrInternalError)), reload},
		"start: operation failed":          {startError("h1", "vm", said(rpc.ErrOperationFailed)), reload},
		"start: system error":              {startError("h1", "vm", said(rpc.ErrSystemError)), reload},
		"start: no memory":                 {startError("h1", "vm", said(rpc.ErrNoMemory)), reload},
		"start: busy":                      {startError("h1", "vm", said(rpc.ErrResourceBusy)), reload},
		"start: connection cut":            {startError("h1", "vm", &LostError{Site: "h1", Err: rpc.ErrInterrupted}), plain},
		"start: timed out":                 {startError("h1", "vm", said(rpc.ErrOperationTimeout)), plain},
		"off at once":                      {&StartError{Site: "h1", Err: errors.New("it is off")}, reload},
		"connection cut":                   {&LostError{Site: "h1", Err: rpc.ErrInterrupted}, plain},
		"late":                             {&LateError{}, plain},
		"foreign":                          {&ForeignError{}, plain},
		"no domain":                        {said(rpc.ErrNoDomain), plain},
		"no volume":                        {said(rpc.ErrNoStorageVol), plain},
		"volume there":                     {said(rpc.ErrStorageVolExist), plain},
		"domain there":                     {said(rpc.ErrDomExist), plain},
		"wrong state":                      {said(rpc.ErrOperationInvalid), plain},
		"lock not got":                     {said(rpc.ErrOperationTimeout), plain},
		"busy":                             {said(rpc.ErrResourceBusy), plain},
		"internal error":                   {said(rpc.ErrInternalError), plain},
		"operation failed":                 {said(rpc.ErrOperationFailed), plain},
		"system error":                     {said(rpc.ErrSystemError), plain},
		"RPC":                              {said(rpc.ErrRPC), plain},
		"anything else":                    {errors.New("hm"), plain},
		"a verdict stays":                  {reservation.Reload("again", said(rpc.ErrNoNetwork)), reload},
	} {
		t.Run(name, func(t *testing.T) {
			got := Classify(c.err)
			require.Equal(t, c.want, reservation.VerdictOf(got))
			require.ErrorIs(t, got, c.err)
		})
	}
	require.NoError(t, Classify(nil))
	require.Equal(t, context.Canceled, Classify(context.Canceled))
}

func TestADomainIsWhatTheCatalogAsksFor(t *testing.T) {
	mark := reservation.Mark{Reservation: "r1", Run: "run-1", Attempt: 1}
	for name, c := range map[string]struct {
		change func(*reservation.Reservation)
		virt   string
		check  func(*testing.T, libvirtxml.Domain)
	}{
		"by default": {nil, "kvm", func(t *testing.T, d libvirtxml.Domain) {
			require.Equal(t, "kvm", d.Type)
			require.Equal(t, "q35", d.OS.Type.Machine)
			require.Equal(t, "host-model", d.CPU.Mode)
			require.Equal(t, uint(DefaultCPUs), d.VCPU.Value)
			require.Equal(t, uint(DefaultMemoryMiB), d.Memory.Value)
			require.Empty(t, d.OS.Firmware)
			require.Len(t, d.Devices.Disks, 2)
			require.Equal(t, "/pool/"+diskName("vm-01", mark), d.Devices.Disks[0].Source.File.File)
			require.Equal(t, "vda", d.Devices.Disks[0].Target.Dev)
			require.NotNil(t, d.Devices.Disks[1].ReadOnly)
			require.Equal(t, "52:54:00:77:00:01", d.Devices.Interfaces[0].MAC.Address)
			require.Equal(t, "berth", d.Devices.Interfaces[0].Source.Network.Network)
			require.Equal(t, "virtio", d.Devices.Interfaces[0].Model.Type)
			require.Equal(t, "127.0.0.1", d.Devices.Graphics[0].VNC.Listen)
		}},
		"emulated": {nil, "qemu", func(t *testing.T, d libvirtxml.Domain) { require.Equal(t, "maximum", d.CPU.Mode) }},
		"the computer's hardware before the image's": {func(r *reservation.Reservation) {
			r.Computer.CPUs, r.Image.Sources[Type][sourceCPUs] = 4, "2"
			r.Image.Sources[Type][sourceMemory] = "512"
		}, "kvm", func(t *testing.T, d libvirtxml.Domain) {
			require.Equal(t, uint(4), d.VCPU.Value)
			require.Equal(t, uint(512), d.Memory.Value)
		}},
		"a Windows on SATA with UEFI": {func(r *reservation.Reservation) {
			r.Image.OS.Family = reservation.Windows
			source := r.Image.Sources[Type]
			source[sourceDiskBus], source[sourceNIC], source[sourceFirmware], source[sourceGraphics] = "sata", "e1000e", firmwareSecure, graphicsNone
		}, "kvm", func(t *testing.T, d libvirtxml.Domain) {
			require.Equal(t, "localtime", d.Clock.Offset)
			require.Equal(t, "efi", d.OS.Firmware)
			require.Equal(t, "yes", d.OS.FirmwareInfo.Features[0].Enabled)
			require.NotNil(t, d.Features.SMM)
			require.Equal(t, "cdrom", d.Devices.Disks[1].Device)
			require.Equal(t, "sdb", d.Devices.Disks[1].Target.Dev)
			require.Equal(t, "e1000e", d.Devices.Interfaces[0].Model.Type)
			require.Empty(t, d.Devices.Graphics)
		}},
		"SCSI": {func(r *reservation.Reservation) { r.Image.Sources[Type][sourceDiskBus] = "scsi" }, "kvm", func(t *testing.T, d libvirtxml.Domain) {
			require.Equal(t, "virtio-scsi", d.Devices.Controllers[0].Model)
		}},
		"a bridge, and an interface more than MACs": {func(r *reservation.Reservation) {
			r.Computer.Networks = []string{"bridge:br0", "lab"}
		}, "kvm", func(t *testing.T, d libvirtxml.Domain) {
			require.Equal(t, "br0", d.Devices.Interfaces[0].Source.Bridge.Bridge)
			require.Equal(t, "lab", d.Devices.Interfaces[1].Source.Network.Network)
			require.Nil(t, d.Devices.Interfaces[1].MAC)
		}},
		"another processor": {func(r *reservation.Reservation) { r.Image.OS.Architecture = "aarch64" }, "qemu", func(t *testing.T, d libvirtxml.Domain) {
			require.Equal(t, "aarch64", d.OS.Type.Arch)
			require.Empty(t, d.OS.Type.Machine)
			require.Nil(t, d.Features.APIC)
		}},
		"words that are XML": {func(r *reservation.Reservation) { r.User = `</mark><x a="&` }, "kvm", func(t *testing.T, d libvirtxml.Domain) {
			require.Contains(t, d.Description, `</mark><x a="&`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			request := requestFor(c.change)
			tag := tag{Mark: mark.String(), Image: "debian12-r3", User: request.Reservation.User, Pool: "p", Disk: diskName("vm-01", mark),
				Seed: seedName("vm-01", mark), HostKey: "ssh-ed25519 AAAA vm-01"}
			text, err := describe(request, hardware{virt: c.virt, pool: &pool{folder: "/pool"}, tag: tag})
			require.NoError(t, err)
			var domain libvirtxml.Domain
			require.NoError(t, domain.Unmarshal(text))
			require.Equal(t, "vm-01", domain.Name)
			c.check(t, domain)
			read := tag
			read.Mark, read.Seed = "", ""
			require.NoError(t, xml.Unmarshal([]byte(domain.Metadata.XML), &read))
			require.Equal(t, tag, read, "what is written into the metadata is read back")
		})
	}
}

func TestVolumesBelongToOneComputerAndOneReservation(t *testing.T) {
	mark := reservation.Mark{Reservation: "r1", Run: "run-1", Attempt: 1}
	later := mark
	later.Attempt = 12
	other := mark
	other.Run = "run-2"
	for _, name := range []string{diskName("vm-01", mark), seedName("vm-01", mark), diskName("vm-01", later)} {
		require.True(t, belongs(name, "vm-01", ""))
		require.True(t, belongs(name, "vm-01", runOf(mark)+"-"))
		require.False(t, belongs(name, "vm-01", runOf(other)+"-"))
		require.False(t, belongs(name, "vm-0", ""))
		require.False(t, belongs(name, "vm-01-b", ""))
	}
	require.NotEqual(t, diskName("vm-01", mark), diskName("vm-01", later))
	require.False(t, belongs(masterPrefix+digest+".qcow2", "vm-01", ""))
	require.False(t, belongs("vm-01.qcow2", "vm-01", ""))
}

// mount reads a seed with a library that knows nothing of how it was written.
func mount(t *testing.T, text []byte) (label string, files map[string]string) {
	t.Helper()
	disk, err := iso9660.OpenImage(bytes.NewReader(text))
	require.NoError(t, err)
	label, err = disk.Label()
	require.NoError(t, err)
	root, err := disk.RootDir()
	require.NoError(t, err)
	children, err := root.GetChildren()
	require.NoError(t, err)
	files = map[string]string{}
	for _, child := range children {
		content, err := io.ReadAll(child.Reader())
		require.NoError(t, err)
		files[strings.ToLower(child.Name())] = string(content)
	}
	return label, files
}

func TestASeedTellsAGuestItsNameItsKeysAndItsAddress(t *testing.T) {
	key, err := hostkey.New("vm-01")
	require.NoError(t, err)
	request := requestFor(func(r *reservation.Reservation) {
		r.Computer.Placement = map[string]string{placeAddress: "10.77.0.21/24", placeGateway: "10.77.0.1", placeDNS: "10.77.0.1"}
	})
	text, err := seed(request, "ssh-ed25519 CCCC", key)
	require.NoError(t, err)
	require.Len(t, text, seedSize)
	label, files := mount(t, text)
	require.Equal(t, "cidata", strings.TrimSpace(label))
	require.True(t, strings.HasPrefix(files["user-data"], "#cloud-config\n"))
	var user struct {
		Hostname    string            `yaml:"hostname"`
		DisableRoot *bool             `yaml:"disable_root"`
		HostKeys    map[string]string `yaml:"ssh_keys"`
		Users       []struct {
			Name string
			Keys []string `yaml:"ssh_authorized_keys"`
			Sudo string
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(files["user-data"]), &user))
	require.Equal(t, "vm-01", user.Hostname)
	require.Equal(t, map[string]string{"ed25519_private": key.Private, "ed25519_public": key.Public}, user.HostKeys)
	require.Equal(t, "root", user.Users[0].Name)
	require.Equal(t, []string{"ssh-ed25519 CCCC"}, user.Users[0].Keys)
	require.Empty(t, user.Users[0].Sudo)
	require.False(t, *user.DisableRoot)
	var meta map[string]string
	require.NoError(t, yaml.Unmarshal([]byte(files["meta-data"]), &meta))
	require.Equal(t, "vm-01", meta["local-hostname"])
	var network struct {
		Version   int
		Ethernets map[string]struct {
			Match     map[string]string
			Addresses []string
			Routes    []map[string]string
		}
	}
	require.NoError(t, yaml.Unmarshal([]byte(files["network-config"]), &network))
	require.Equal(t, 2, network.Version)
	require.Equal(t, "52:54:00:77:00:01", network.Ethernets["eth0"].Match["macaddress"])
	require.Equal(t, []string{"10.77.0.21/24"}, network.Ethernets["eth0"].Addresses)
	require.Equal(t, []map[string]string{{"to": "0.0.0.0/0", "via": "10.77.0.1"}}, network.Ethernets["eth0"].Routes)

	cleared, err := seed(request, "ssh-ed25519 CCCC", hostkey.Pair{})
	require.NoError(t, err)
	require.Len(t, cleared, seedSize, "written over the first one it leaves nothing of it")
	require.NotContains(t, string(cleared), "PRIVATE KEY")
	_, rest := mount(t, cleared)
	require.Equal(t, files["meta-data"], rest["meta-data"], "it is the same instance to cloud-init")

	request.Mark.Attempt = 2
	request.Reservation.Computer.Placement = nil
	request.Reservation.Image.Control.User = "debian"
	next, err := seed(request, "", key)
	require.NoError(t, err)
	_, rest = mount(t, next)
	require.NotEqual(t, files["meta-data"], rest["meta-data"], "another load is another instance")
	require.NotContains(t, rest, "network-config")
	require.NotContains(t, rest["user-data"], "users:")
	next, err = seed(request, "ssh-ed25519 CCCC", key)
	require.NoError(t, err)
	_, rest = mount(t, next)
	require.Contains(t, rest["user-data"], "NOPASSWD")

	request.Reservation.Computer.Placement = map[string]string{placeAddress: "10.77.0.21/24"}
	request.Reservation.Computer.MACs = nil
	_, err = seed(request, "", key)
	require.Equal(t, reservation.VerdictFail, reservation.VerdictOf(err))
	_, err = seed(requestFor(nil), strings.Repeat("x", seedSize), key)
	require.ErrorContains(t, err, "longer than")
}

func TestAHostKeyIsHandedWhereCloudInitTakesIt(t *testing.T) {
	for name, c := range map[string]struct {
		cloudInit, hostKey string
		family             reservation.OSFamily
		want               bool
	}{
		"cloud-init":                       {"true", "", reservation.Linux, true},
		"cloud-init, asked for":            {"true", reservation.HostKeyHanded, reservation.Windows, true},
		"cloud-init, not wanted":           {"true", reservation.HostKeyFirst, reservation.Linux, false},
		"a Windows":                        {"true", "", reservation.Windows, false},
		"no cloud-init":                    {"", "", reservation.Linux, false},
		"no cloud-init, and nothing of it": {"false", reservation.HostKeyFirst, reservation.Linux, false},
	} {
		request := requestFor(func(r *reservation.Reservation) {
			r.Image.Sources[Type][sourceCloudInit], r.Image.Control.HostKey, r.Image.OS.Family = c.cloudInit, c.hostKey, c.family
		})
		require.Equal(t, c.want, handsHostKey(request.Reservation.Image), name)
	}
}

func TestASourceIsReadFromWhereItIsNeeded(t *testing.T) {
	text := bytes.Repeat([]byte("0123456789"), 1000)
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	answers := map[string]http.HandlerFunc{
		"/ranges": func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) },
		"/no-ranges": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10000")
			_, _ = w.Write(text)
		},
		"/wrong-range": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9999/10000")
			w.WriteHeader(http.StatusPartialContent)
		},
		"/busy":      func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"/forbidden": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"/short": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10000")
			_, _ = w.Write(text[:5000])
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answer, ok := answers[r.URL.Path]; ok {
			answer(w, r)
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	const plain = reservation.Verdict("")
	for name, c := range map[string]struct {
		source  string
		offset  uint64
		want    []byte
		verdict reservation.Verdict
		fault   string
	}{
		"a file":                           {path, 0, text, plain, ""},
		"a file, from the middle":          {path, 4321, text[4321:], plain, ""},
		"a file, from its end":             {path, 10000, nil, plain, ""},
		"HTTP":                             {server.URL + "/ranges", 0, text, plain, ""},
		"HTTP, from the middle":            {server.URL + "/ranges", 4321, text[4321:], plain, ""},
		"HTTP, from its end":               {server.URL + "/ranges", 10000, nil, plain, ""},
		"HTTP that knows no ranges":        {server.URL + "/no-ranges", 4321, text[4321:], plain, ""},
		"HTTP that sends another range":    {server.URL + "/wrong-range", 4321, nil, reservation.VerdictFail, "what follows byte 4321"},
		"no such file":                     {path + "x", 0, nil, reservation.VerdictFail, "cannot read it"},
		"a folder":                         {filepath.Dir(path), 0, nil, reservation.VerdictFail, "it is no file"},
		"no such page":                     {server.URL + "/x", 0, nil, reservation.VerdictFail, "404 Not Found"},
		"a page that is not for us":        {server.URL + "/forbidden", 0, nil, reservation.VerdictFail, "403 Forbidden"},
		"a server that is busy":            {server.URL + "/busy", 0, nil, plain, "503"},
		"a server that is not there":       {gone.URL, 0, nil, plain, "refused"},
		"a server that hangs up":           {server.URL + "/short", 0, nil, plain, "unexpected EOF"},
		"a server that hangs up before us": {server.URL + "/short", 6000, nil, plain, "it ended before byte 6000"},
	} {
		t.Run(name, func(t *testing.T) {
			from, err := open(t.Context(), &http.Client{}, c.source, c.offset)
			var got []byte
			if err == nil {
				defer from.Close()
				require.Equal(t, uint64(len(text)), from.total)
				got, err = io.ReadAll(from)
			}
			if c.fault == "" {
				require.NoError(t, err)
				require.Equal(t, string(c.want), string(got))
				return
			}
			require.ErrorContains(t, err, c.fault)
			require.Equal(t, c.verdict, reservation.VerdictOf(Classify(err)))
		})
	}
}

func TestAReaderThatBreaksOffEndsWellAndSaysLaterWhy(t *testing.T) {
	broken := errors.New("broken")
	r := &faultyReader{Reader: io.MultiReader(strings.NewReader("all that came"), &failing{broken})}
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "all that came", string(got))
	require.ErrorIs(t, r.err, broken)
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestTheMarkOfACheckedMasterIsOfItsDigestItsSizeAndItsTime(t *testing.T) {
	w := wants(map[string]string{sourceMaster: "/x", sourceSHA256: digest})
	v := &volume{size: 100, modified: "1.5"}
	require.Equal(t, masterPrefix+digest[:32]+".qcow2", w.volume)
	require.Equal(t, masterPrefix+digest[:32]+"_100_1.5.checked", w.checked(v))
	other := sha256.Sum256([]byte("other"))
	for _, changed := range []string{
		w.checked(&volume{size: 101, modified: "1.5"}), w.checked(&volume{size: 100, modified: "1.6"}),
		wants(map[string]string{sourceSHA256: hex.EncodeToString(other[:])}).checked(v),
	} {
		require.NotEqual(t, w.checked(v), changed)
	}
}

func TestBytesAreWrittenForPeople(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536 << 20: "1.5 GiB", 1 << 60: "1.0 EiB"} {
		require.Equal(t, want, byteSize(n))
	}
	require.Equal(t, "1.0 MiB of 4.0 MiB, 25 %", progress(1<<20, 4<<20))
	require.Equal(t, "1.0 MiB", progress(1<<20, 0))
}

func TestAPausedGuestIsWaitedForOnlyWhileItStarts(t *testing.T) {
	for p, want := range map[power]bool{
		{rpc.DomainRunning, 0}:                                true,
		{rpc.DomainShutoff, int32(rpc.DomainShutoffCrashed)}:  true,
		{rpc.DomainCrashed, 0}:                                true,
		{rpc.DomainPaused, int32(rpc.DomainPausedIoerror)}:    true,
		{rpc.DomainPaused, int32(rpc.DomainPausedUser)}:       true,
		{rpc.DomainPaused, int32(rpc.DomainPausedStartingUp)}: false,
		{rpc.DomainShutdown, 0}:                               false,
		{rpc.DomainNostate, 0}:                                false,
	} {
		require.Equal(t, want, p.settled(), p.String())
	}
}

func TestAGateHoldsAsManyAsItIsTold(t *testing.T) {
	var g gates
	var places []int
	waiting := func(place int) { places = append(places, place) }
	leave, err := g.enter(t.Context(), "x", 1, waiting)
	require.NoError(t, err)
	ended, end := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer end()
	_, err = g.enter(ended, "x", 1, waiting)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, []int{1}, places)
	other, err := g.enter(t.Context(), "y", 1, waiting)
	require.NoError(t, err)
	other()
	leave()
	leave()
	leave, err = g.enter(t.Context(), "x", 1, waiting)
	require.NoError(t, err)
	leave()
}
