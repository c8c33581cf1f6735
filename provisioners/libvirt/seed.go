package libvirt

import (
	"encoding/binary"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"berth/internal/hostkey"
	"berth/provisioners"
	"berth/reservation"
)

// seedSize is the size of every seed, in bytes: one that is written over another one leaves nothing of it.
const seedSize = 128 << 10

// seedsCloudInit says whether an image is told its name and keys by a NoCloud seed.
func seedsCloudInit(image reservation.Image) bool {
	return image.Sources[Type][sourceCloudInit] == "true"
}

// handsHostKey says whether the guest is handed a host key: the default for images with cloud-init, but for Windows, where
// what stands in for cloud-init does not take one.
func handsHostKey(image reservation.Image) bool {
	return seedsCloudInit(image) &&
		(image.Control.HostKey == reservation.HostKeyHanded || image.Control.HostKey == "" && image.OS.Family != reservation.Windows)
}

// seed writes the guest's NoCloud seed: the computer's name, the key that the control channel logs in with ("" for none), and
// the host key. With a zero key it is the seed that takes the handed one's place once the guest has it.
func seed(request provisioners.Request, controlKey string, key hostkey.Pair) ([]byte, error) {
	r := request.Reservation
	type user struct {
		Name   string   `yaml:"name"`
		Keys   []string `yaml:"ssh_authorized_keys"`
		Sudo   string   `yaml:"sudo,omitempty"`
		Shell  string   `yaml:"shell,omitempty"`
		Locked *bool    `yaml:"lock_passwd,omitempty"`
	}
	type hostKeys struct {
		Private string `yaml:"ed25519_private"`
		Public  string `yaml:"ed25519_public"`
	}
	config := struct {
		Hostname    string    `yaml:"hostname"`
		Preserve    bool      `yaml:"preserve_hostname"`
		DisableRoot *bool     `yaml:"disable_root,omitempty"`
		DeleteKeys  bool      `yaml:"ssh_deletekeys"`
		HostKeys    *hostKeys `yaml:"ssh_keys,omitempty"`
		Users       []user    `yaml:"users,omitempty"`
	}{Hostname: r.Computer.Name, DeleteKeys: true}
	if key.Private != "" {
		config.HostKeys = &hostKeys{key.Private, key.Public}
	}
	if controlKey != "" {
		who := user{Name: r.Image.Control.User, Keys: []string{controlKey}}
		no := false
		if who.Name == "root" {
			config.DisableRoot = &no
		} else {
			yes := true
			who.Sudo, who.Shell, who.Locked = "ALL=(ALL) NOPASSWD:ALL", "/bin/sh", &yes
		}
		config.Users = []user{who}
	}
	userData, err := yaml.Marshal(config)
	if err != nil {
		return nil, err
	}
	// One ID a load: cloud-init does its once-an-instance work for each.
	metaData, err := yaml.Marshal(map[string]string{"instance-id": "berth-" + loadOf(request.Mark), "local-hostname": r.Computer.Name})
	if err != nil {
		return nil, err
	}
	files := []file{{"META-DATA", metaData}, {"USER-DATA", append([]byte("#cloud-config\n"), userData...)}}
	network, err := networkConfig(r.Computer)
	if err != nil {
		return nil, err
	}
	if network != nil {
		files = append(files, file{"NETWORK-CONFIG", network})
	}
	return image("cidata", files, seedSize)
}

// networkConfig writes the fixed address of the first interface down, nil where the guest is to ask DHCP.
func networkConfig(computer reservation.Computer) ([]byte, error) {
	place := computer.Placement
	if place[placeAddress] == "" {
		return nil, nil
	}
	type route struct {
		To  string `yaml:"to"`
		Via string `yaml:"via"`
	}
	type nameservers struct {
		Addresses []string `yaml:"addresses"`
	}
	type nic struct {
		Match       map[string]string `yaml:"match,omitempty"`
		Name        string            `yaml:"set-name,omitempty"`
		Addresses   []string          `yaml:"addresses"`
		Routes      []route           `yaml:"routes,omitempty"`
		Nameservers *nameservers      `yaml:"nameservers,omitempty"`
	}
	first := nic{Addresses: []string{place[placeAddress]}}
	if len(computer.MACs) == 0 {
		return nil, reservation.Fail("computer "+computer.Name+" cannot be given its address",
			&reservation.FieldError{Field: "computer.macs", Value: "",
				Remedy: "give the first interface's MAC: the guest knows by it which interface the address is for"})
	}
	first.Match, first.Name = map[string]string{"macaddress": strings.ToLower(computer.MACs[0])}, "eth0"
	if via := place[placeGateway]; via != "" {
		to := "0.0.0.0/0"
		if strings.Contains(via, ":") {
			to = "::/0"
		}
		first.Routes = []route{{to, via}}
	}
	if servers := strings.Fields(place[placeDNS]); len(servers) > 0 {
		first.Nameservers = &nameservers{servers}
	}
	return yaml.Marshal(map[string]any{"version": 2, "ethernets": map[string]nic{"eth0": first}})
}

// file is a file of an ISO 9660 image; its name is in upper case, and comes in lower case to a Linux that mounts it.
type file struct {
	name string
	data []byte
}

const sector = 2048

// image writes an ISO 9660 file system (ECMA-119) with the given files, of size bytes. The libraries for this stage what they
// write in files on the disk, and a seed has a private key in it.
func image(label string, files []file, size int) ([]byte, error) {
	const root, first = 20, 21 // sectors; 16: volume descriptor, 17: its end, 18 and 19: path tables
	disk := make([]byte, size)
	at := func(n int) []byte { return disk[n*sector:] }
	both32 := func(to []byte, n int) {
		binary.LittleEndian.PutUint32(to, uint32(n))
		binary.BigEndian.PutUint32(to[4:], uint32(n))
	}
	both16 := func(to []byte, n int) {
		binary.LittleEndian.PutUint16(to, uint16(n))
		binary.BigEndian.PutUint16(to[2:], uint16(n))
	}
	padded := func(to []byte, text string) {
		for i := range to {
			to[i] = ' '
		}
		copy(to, text)
	}
	record := func(name string, where, length int, directory bool) []byte {
		r := make([]byte, (33+len(name)+1)&^1)
		r[0] = byte(len(r))
		both32(r[2:], where)
		both32(r[10:], length)
		copy(r[18:], []byte{70, 1, 1, 0, 0, 0, 0}) // its date: none
		if directory {
			r[25] = 2
		}
		both16(r[28:], 1)
		r[32] = byte(len(name))
		copy(r[33:], name)
		return r
	}

	next := first
	listing := append(record("\x00", root, sector, true), record("\x01", root, sector, true)...)
	for _, f := range files {
		listing = append(listing, record(f.name+".;1", next, len(f.data), false)...)
		end := next + (len(f.data)+sector-1)/sector
		if end*sector > size || len(listing) > sector {
			return nil, fmt.Errorf("the seed is longer than %d bytes", size)
		}
		copy(at(next), f.data)
		next = end
	}
	copy(at(root), listing)

	pvd := at(16)
	pvd[0] = 1
	copy(pvd[1:], "CD001\x01")
	padded(pvd[8:40], "LINUX")
	padded(pvd[40:72], label)
	both32(pvd[80:], size/sector)
	both16(pvd[120:], 1)
	both16(pvd[124:], 1)
	both16(pvd[128:], sector)
	both32(pvd[132:], 10) // length of a path table
	binary.LittleEndian.PutUint32(pvd[140:], 18)
	binary.BigEndian.PutUint32(pvd[148:], 19)
	copy(pvd[156:], record("\x00", root, sector, true))
	padded(pvd[190:813], "")
	for _, date := range []int{813, 830, 847, 864} {
		copy(pvd[date:], "0000000000000000")
	}
	pvd[881] = 1
	copy(at(17), "\xffCD001\x01")
	for n, order := range map[int]binary.ByteOrder{18: binary.LittleEndian, 19: binary.BigEndian} {
		table := at(n)
		table[0] = 1
		order.PutUint32(table[2:], root)
		order.PutUint16(table[6:], 1)
	}
	return disk, nil
}
