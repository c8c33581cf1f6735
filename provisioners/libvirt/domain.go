package libvirt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"berth/provisioners"
	"berth/reservation"
)

// metadataURI is the namespace of what Berth writes into a domain's metadata.
const metadataURI = "urn:berth:libvirt:1"

// tag is what stands in a domain's metadata: whose it is, and what belongs to it.
type tag struct {
	Mark    string `xml:"mark"` // reservation.Mark.String()
	Image   string `xml:"image"`
	User    string `xml:"user"`
	Pool    string `xml:"pool"` // of the volumes
	Disk    string `xml:"disk"` // volumes' names
	Seed    string `xml:"seed,omitempty"`
	HostKey string `xml:"hostkey,omitempty"` // the public one that was handed, an authorized_keys line
}

// metadata writes a tag as libvirt wants it: each element with a prefix.
func (t tag) metadata() (string, error) {
	type element struct {
		XMLName xml.Name
		Text    string `xml:",chardata"`
	}
	root := struct {
		XMLName  xml.Name `xml:"berth:load"`
		URI      string   `xml:"xmlns:berth,attr"`
		Elements []element
	}{URI: metadataURI}
	for _, one := range [][2]string{{"mark", t.Mark}, {"image", t.Image}, {"user", t.User}, {"pool", t.Pool}, {"disk", t.Disk},
		{"seed", t.Seed}, {"hostkey", t.HostKey}} {
		if one[1] != "" {
			root.Elements = append(root.Elements, element{XMLName: xml.Name{Local: "berth:" + one[0]}, Text: one[1]})
		}
	}
	text, err := xml.Marshal(root)
	return string(text), err
}

// machine is a domain as it stood when it was read.
type machine struct {
	domain   rpc.Domain
	power    power
	marked   bool
	mark     reservation.Mark
	scribble string // what stands in the mark's place when it is none of ours
	tag      tag
}

func (m *machine) id() string { return uuid.UUID(m.domain.UUID).String() }

// String returns "vm-01 (UUID) of reservation r1, attempt 1".
func (m *machine) String() string {
	switch {
	case m.marked:
		return fmt.Sprintf("%s (%s) of reservation %s, attempt %d", m.domain.Name, m.id(), m.mark.Reservation, m.mark.Attempt)
	case m.scribble != "":
		return fmt.Sprintf("%s (%s) with the unknown mark %q", m.domain.Name, m.id(), m.scribble)
	default:
		return fmt.Sprintf("%s (%s) without a mark", m.domain.Name, m.id())
	}
}

// find returns the domain of a name, or nil when there is none.
func (h *host) find(ctx context.Context, name string) (*machine, error) {
	m := &machine{}
	text, err := ask(ctx, h, func(l *rpc.Libvirt) (text string, err error) {
		if m.domain, err = l.DomainLookupByName(name); err != nil {
			return "", err
		}
		state, reason, err := l.DomainGetState(m.domain, 0)
		if err != nil {
			return "", err
		}
		m.power = power{rpc.DomainState(state), reason}
		text, err = l.DomainGetMetadata(m.domain, int32(rpc.DomainMetadataElement), rpc.OptString{metadataURI}, 0)
		if code(err, rpc.ErrNoDomainMetadata) {
			return "", nil
		}
		return text, err
	})
	if code(err, rpc.ErrNoDomain) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("site %s: look for domain %s: %w", h.site.Name, name, err)
	}
	if text == "" {
		return m, nil
	}
	if err := xml.Unmarshal([]byte(text), &m.tag); err != nil {
		m.scribble = text
		return m, nil
	}
	if m.mark, err = reservation.ParseMark(m.tag.Mark); err != nil {
		m.scribble = m.tag.Mark
	}
	m.marked = err == nil
	return m, nil
}

// How a computer's volumes are called: berth_disk_COMPUTER_LOAD.qcow2 and berth_seed_COMPUTER_LOAD.iso. The load's part
// comes from the mark: a worker that is late cannot make, write or delete a volume of another load's.
const (
	diskPrefix = "berth_disk_"
	seedPrefix = "berth_seed_"
)

func diskName(computer string, mark reservation.Mark) string {
	return diskPrefix + computer + "_" + loadOf(mark) + ".qcow2"
}

func seedName(computer string, mark reservation.Mark) string {
	return seedPrefix + computer + "_" + loadOf(mark) + ".iso"
}

// loadOf writes a mark into a volume's name: "RUN-ATTEMPT", which begins with runOf.
func loadOf(mark reservation.Mark) string { return runOf(mark) + "-" + strconv.Itoa(mark.Attempt) }

func runOf(mark reservation.Mark) string {
	sum := sha256.Sum256([]byte(mark.Reservation + "/" + mark.Run))
	return hex.EncodeToString(sum[:8])
}

// belongs says whether a volume is a disk or a seed of a computer, of loads whose names begin with load.
func belongs(volume, computer, load string) bool {
	return strings.HasPrefix(volume, diskPrefix+computer+"_"+load) || strings.HasPrefix(volume, seedPrefix+computer+"_"+load)
}

// virtType returns the domain type to run guests of an architecture with; "" is x86_64.
func (h *host) virtType(ctx context.Context, architecture string) (string, error) {
	if architecture == "" {
		architecture = "x86_64"
	}
	h.mu.Lock()
	known, ok := h.virts[architecture]
	h.mu.Unlock()
	if ok {
		return known, nil
	}
	caps, err := ask(ctx, h, func(l *rpc.Libvirt) (caps libvirtxml.Caps, err error) {
		text, err := l.ConnectGetCapabilities()
		if err != nil {
			return caps, err
		}
		return caps, xml.Unmarshal([]byte(text), &caps)
	})
	if err != nil {
		return "", fmt.Errorf("site %s: ask for the host's capabilities: %w", h.site.Name, err)
	}
	var there []string
	for _, guest := range caps.Guests {
		if guest.OSType != "hvm" || guest.Arch.Name != architecture {
			continue
		}
		for _, domain := range guest.Arch.Domains {
			there = append(there, domain.Type)
		}
	}
	choice := ""
	switch kvm, tcg := slices.Contains(there, "kvm"), slices.Contains(there, "qemu"); {
	case kvm && h.site.Accel != AccelTCG:
		choice = "kvm"
	case tcg && h.site.Accel != AccelKVM:
		choice = "qemu"
	default:
		return "", &MissingError{Site: h.site.Name, Kind: "way to run guests of", Name: architecture,
			Remedy: fmt.Sprintf("accel is %s, and the host has [%s]: install QEMU for it, load its KVM module, or change accel",
				h.site.Accel, strings.Join(there, " "))}
	}
	h.log.Info().Str("architecture", architecture).Str("virt", choice).Str("accel", h.site.Accel).Msg("how guests are run")
	h.mu.Lock()
	h.virts[architecture] = choice
	h.mu.Unlock()
	return choice, nil
}

// able looks whether the host has the firmware and the model of CPU that an image asks for by name. libvirt itself says it
// only when the guest is to start, by an error that may mean anything.
func (h *host) able(ctx context.Context, image reservation.Image, virt string) error {
	source := image.Sources[Type]
	uefi, model := source[sourceFirmware] == firmwareUEFI || source[sourceFirmware] == firmwareSecure, ""
	if cpu := cpu(source[sourceCPU], virt, ""); cpu.Model != nil {
		model = cpu.Model.Value
	}
	if !uefi && model == "" {
		return nil
	}
	optional := func(value string) rpc.OptString {
		if value == "" {
			return nil
		}
		return rpc.OptString{value}
	}
	architecture, machineType := platform(image)
	caps, err := ask(ctx, h, func(l *rpc.Libvirt) (caps libvirtxml.DomainCaps, err error) {
		text, err := l.ConnectGetDomainCapabilities(nil, optional(architecture), optional(machineType), optional(virt), 0)
		if err != nil {
			return caps, err
		}
		return caps, caps.Unmarshal(text)
	})
	if err != nil {
		return fmt.Errorf("site %s: ask what machine %q can have: %w", h.site.Name, machineType, err)
	}
	// A machine type may have a firmware, but none with secure boot.
	if uefi && (caps.OS == nil || !offers(caps.OS.Enums, "firmware", "efi") ||
		source[sourceFirmware] == firmwareSecure && (caps.OS.Loader == nil || !offers(caps.OS.Loader.Enums, "secure", "yes"))) {
		return &MissingError{Site: h.site.Name, Kind: "firmware", Name: source[sourceFirmware],
			Remedy: fmt.Sprintf("install it on the host (Debian: ovmf) if there is one for machine type %q, or correct the image's source", machineType)}
	}
	if model != "" && (caps.CPU == nil || !slices.ContainsFunc(caps.CPU.Modes, func(m libvirtxml.DomainCapsCPUMode) bool {
		return m.Name == "custom" && slices.ContainsFunc(m.Models, func(c libvirtxml.DomainCapsCPUModel) bool { return c.Name == model })
	})) {
		return &MissingError{Site: h.site.Name, Kind: "CPU model", Name: model,
			Remedy: "write one of those that virsh cpu-models lists into the image's source"}
	}
	return nil
}

// offers says whether one of the host's capabilities can have a value.
func offers(enums []libvirtxml.DomainCapsEnum, name, value string) bool {
	return slices.ContainsFunc(enums, func(e libvirtxml.DomainCapsEnum) bool { return e.Name == name && slices.Contains(e.Values, value) })
}

// platform returns an image's architecture and machine type; "" for the host's own choice of the latter.
func platform(image reservation.Image) (architecture, machineType string) {
	architecture, machineType = image.OS.Architecture, image.Sources[Type][sourceMachine]
	if architecture == "" {
		architecture = "x86_64"
	}
	if machineType == "" && architecture == "x86_64" {
		machineType = "q35"
	}
	return architecture, machineType
}

// hardware is what a domain is described by, beside its request.
type hardware struct {
	virt string
	pool *pool
	tag  tag
}

// describe writes a load's domain down.
func describe(request provisioners.Request, hw hardware) (string, error) {
	r := request.Reservation
	computer, source := r.Computer, r.Image.Sources[Type]
	metadata, err := hw.tag.metadata()
	if err != nil {
		return "", err
	}
	or := func(value, fallback string) string {
		if value == "" {
			return fallback
		}
		return value
	}
	number := func(own int, key string, fallback int) uint {
		if own == 0 {
			own, _ = strconv.Atoi(source[key])
		}
		if own == 0 {
			own = fallback
		}
		return uint(own)
	}
	architecture, machineType := platform(r.Image)
	domain := libvirtxml.Domain{
		Type: hw.virt, Name: computer.Name,
		Title: fmt.Sprintf("Berth: %s on %s", r.Image, computer.Name),
		Description: fmt.Sprintf("Berth: reservation %s of %s, image %s, attempt %d. Removed with the reservation.",
			r.Name, r.User, r.Image, request.Mark.Attempt),
		Metadata: &libvirtxml.DomainMetadata{XML: metadata},
		Memory:   &libvirtxml.DomainMemory{Value: number(computer.MemoryMiB, sourceMemory, DefaultMemoryMiB), Unit: "MiB"},
		VCPU:     &libvirtxml.DomainVCPU{Value: number(computer.CPUs, sourceCPUs, DefaultCPUs)},
		OS:       &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: architecture, Machine: machineType, Type: "hvm"}},
		Features: &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}},
		CPU:      cpu(source[sourceCPU], hw.virt, architecture),
		Clock:    &libvirtxml.DomainClock{Offset: "utc"},
		// A guest that turns itself off stays off: what becomes of it is the reservation's to say.
		OnPoweroff: "destroy", OnReboot: "restart", OnCrash: "destroy",
		Devices: &libvirtxml.DomainDeviceList{
			MemBalloon: &libvirtxml.DomainMemBalloon{Model: "virtio"},
			// Without it a first boot may wait for entropy for minutes.
			RNGs: []libvirtxml.DomainRNG{{Model: "virtio",
				Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}}}},
			Serials: []libvirtxml.DomainSerial{{Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}}},
		},
	}
	if architecture == "x86_64" || architecture == "i686" {
		domain.Features.APIC = &libvirtxml.DomainFeatureAPIC{}
	}
	if r.Image.OS.Family == reservation.Windows {
		domain.Clock.Offset = "localtime"
	}
	firmware(&domain, source[sourceFirmware])
	bus := or(source[sourceDiskBus], "virtio")
	domain.Devices.Disks = disks(hw, bus)
	if bus == "scsi" {
		domain.Devices.Controllers = []libvirtxml.DomainController{{Type: bus, Model: "virtio-scsi"}}
	}
	domain.Devices.Interfaces = interfaces(computer, or(source[sourceNIC], "virtio"))
	if or(source[sourceGraphics], graphicsVNC) == graphicsVNC {
		domain.Devices.Graphics = []libvirtxml.DomainGraphic{{VNC: &libvirtxml.DomainGraphicVNC{AutoPort: "yes", Listen: "127.0.0.1"}}}
		domain.Devices.Videos = []libvirtxml.DomainVideo{{Model: libvirtxml.DomainVideoModel{Type: "vga"}}}
		if architecture != "x86_64" {
			domain.Devices.Videos[0].Model.Type = "virtio"
		}
	} else {
		domain.Devices.Videos = []libvirtxml.DomainVideo{{Model: libvirtxml.DomainVideoModel{Type: "none"}}}
	}
	return domain.Marshal()
}

// cpu returns the model of CPU: by KVM the host's, by emulation all that QEMU can do, because distributions of today do
// not boot on its default any more.
func cpu(model, virt, architecture string) *libvirtxml.DomainCPU {
	switch {
	case model == "host-model", model == "host-passthrough", model == "maximum":
		return &libvirtxml.DomainCPU{Mode: model}
	case model != "":
		return &libvirtxml.DomainCPU{Mode: "custom", Match: "exact", Model: &libvirtxml.DomainCPUModel{Value: model}}
	case virt == "kvm" && architecture == "x86_64":
		return &libvirtxml.DomainCPU{Mode: "host-model"}
	case virt == "kvm":
		return &libvirtxml.DomainCPU{Mode: "host-passthrough"}
	default:
		return &libvirtxml.DomainCPU{Mode: "maximum"}
	}
}

// firmware has the host choose its build of the firmware.
func firmware(domain *libvirtxml.Domain, which string) {
	if which != firmwareUEFI && which != firmwareSecure {
		return
	}
	domain.OS.Firmware = "efi"
	secure := "no"
	if which == firmwareSecure {
		secure = "yes"
		domain.Features.SMM = &libvirtxml.DomainFeatureSMM{State: "on"}
	}
	domain.OS.FirmwareInfo = &libvirtxml.DomainOSFirmwareInfo{Features: []libvirtxml.DomainOSFirmwareFeature{{Enabled: secure,
		Name: "secure-boot"}}}
}

// disks returns the computer's disk and, if it has one, its seed, on a bus that the image has a driver for.
func disks(hw hardware, bus string) []libvirtxml.DomainDisk {
	letters := map[string]string{"virtio": "vd", "ide": "hd"}[bus]
	if letters == "" {
		letters = "sd"
	}
	file := func(volume string) *libvirtxml.DomainDiskSource {
		return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: hw.pool.path(volume)}}
	}
	first := uint(1)
	all := []libvirtxml.DomainDisk{{
		Device: "disk", Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: formatQCOW2, Discard: "unmap"},
		Source: file(hw.tag.Disk),
		Target: &libvirtxml.DomainDiskTarget{Dev: letters + "a", Bus: bus}, Boot: &libvirtxml.DomainDeviceBoot{Order: first},
	}}
	if hw.tag.Seed != "" {
		device := "disk" // virtio has no CD-ROM, and a seed is found by its label
		if bus != "virtio" {
			device = "cdrom"
		}
		all = append(all, libvirtxml.DomainDisk{
			Device: device, Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: formatRaw}, Source: file(hw.tag.Seed),
			Target: &libvirtxml.DomainDiskTarget{Dev: letters + "b", Bus: bus}, ReadOnly: &libvirtxml.DomainDiskReadOnly{},
		})
	}
	return all
}

// interfaces returns one interface for each MAC or network of the computer, in order.
func interfaces(computer reservation.Computer, model string) []libvirtxml.DomainInterface {
	var all []libvirtxml.DomainInterface
	for i := range max(len(computer.MACs), len(computer.Networks)) {
		one := libvirtxml.DomainInterface{Model: &libvirtxml.DomainInterfaceModel{Type: model}}
		if i < len(computer.MACs) {
			one.MAC = &libvirtxml.DomainInterfaceMAC{Address: strings.ToLower(computer.MACs[i])}
		}
		name := networkOf(computer, i)
		if bridge, ok := strings.CutPrefix(name, bridgePrefix); ok {
			one.Source = &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: bridge}}
		} else {
			one.Source = &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: name}}
		}
		all = append(all, one)
	}
	return all
}

// networkOf returns the network of a computer's interface; libvirt's own default where the computer names none.
func networkOf(computer reservation.Computer, i int) string {
	if i < len(computer.Networks) {
		return computer.Networks[i]
	}
	return "default"
}
