package simsite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"berth/internal/simsite/guestos"
	"berth/internal/simsite/winos"
	"berth/internal/simsite/xcatmn"
	"berth/reservation"
)

// The names of the xCAT management node in the catalog, and its files in the site's folder.
const (
	metalSite        = "metal"
	metalProvisioner = "xcat"
	metalSecret      = "xcat-metal"
	metalCA          = "tls/xcat-ca.pem"
	metalCertificate = "secrets/xcat-metal.pem"
	metalUser        = "berth" // the name in our certificate
	metalSSHPort     = 22001   // of every node, at an address of its own
	xcatdPort        = 3001    // where the site has a network of its own; elsewhere it is a free one
)

// Metal is an xCAT management node with its nodes. Its times are a machine room's, divided by Speed.
type Metal struct {
	Name     string    `yaml:"name" json:"name,omitempty"`   // of the site in the catalog; "" is metal
	Speed    float64   `yaml:"speed" json:"speed,omitempty"` // 0 is 60: an install then takes about ten seconds
	Installs int       `yaml:"installs" json:"installs,omitempty"`
	OSImages []OSImage `yaml:"osimages" json:"osimages"`
	Nodes    []Node    `yaml:"nodes" json:"nodes"`
}

// OSImage is what a management node can install.
type OSImage struct {
	Name         string               `yaml:"name" json:"name"`                           // xCAT's: os-arch-provmethod-profile
	Image        string               `yaml:"image" json:"image"`                         // the catalog's image of it, if the script has no images
	Distribution guestos.Distribution `yaml:"distribution" json:"distribution,omitempty"` // what its nodes run
	Windows      winos.Version        `yaml:"windows" json:"windows,omitempty"`           // instead: a Windows, with Sysprep and by SSH or WinRM, as a template's
	Sysprep      bool                 `yaml:"sysprep" json:"sysprep,omitempty"`
	Channel      string               `yaml:"channel" json:"channel,omitempty"`
	Source       map[string]string    `yaml:"source" json:"source,omitempty"` // more of the catalog's image: expected_minutes, start_limit and so on
}

// template is what a vCenter would have of it.
func (i OSImage) template() Template {
	return Template{Name: i.Name, Distribution: i.Distribution, Windows: i.Windows, Sysprep: i.Sysprep, Channel: i.Channel}
}

// Node is a physical node: how it loads, and how its system behaves. Behaviours count from its n-th install or boot.
type Node struct {
	Name       string      `yaml:"name" json:"name"`
	Mode       xcatmn.Mode `yaml:"mode" json:"mode,omitempty"` // "" works
	Behaviours `yaml:",inline"`
}

// metal is a running management node and the systems of its nodes.
type metal struct {
	site    *Site
	script  Metal
	manager *xcatmn.Manager
	images  map[string]*image // by osimage
	nodes   map[string]*node
}

// node is one physical node: what its last install has put on its disk.
type node struct {
	Node
	address  string
	installs int // that have been there when its system was made
	guest    *guest
}

func (m Metal) faults(path string) []*ScriptError {
	var all []*ScriptError
	if m.Speed < 0 {
		all = append(all, &ScriptError{path + "speed", fmt.Sprint(m.Speed), "give a factor above 0, or leave it out"})
	}
	if len(m.OSImages) == 0 {
		all = append(all, &ScriptError{path + "osimages", "", "give one at least"})
	}
	for i, image := range m.OSImages {
		at := fmt.Sprintf("%sosimages[%d].", path, i)
		if image.Windows != "" {
			all = append(all, image.template().windowsFaults(at)...)
		} else if !slices.Contains(guestos.Distributions(), image.Distribution) {
			all = append(all, &ScriptError{at + "distribution", string(image.Distribution), fmt.Sprintf("use one of %v", guestos.Distributions())})
		}
		if image.Image != "" && reservation.CheckName("", image.Image) != nil {
			all = append(all, &ScriptError{at + "image", image.Image, "give an image's name, in lower case"})
		}
	}
	names := map[string]bool{}
	for i, n := range m.Nodes {
		at := fmt.Sprintf("%snodes[%d].", path, i)
		if reservation.CheckName("", n.Name) != nil || names[n.Name] {
			all = append(all, &ScriptError{at + "name", n.Name, "give each node a name of its own, in lower case"})
		}
		names[n.Name] = true
		if n.Mode != "" && !slices.Contains(xcatmn.Modes(), n.Mode) {
			all = append(all, &ScriptError{at + "mode", string(n.Mode), fmt.Sprintf("use one of %v", xcatmn.Modes())})
		}
		all = append(all, n.Behaviours.faults(at)...)
	}
	return all
}

// startMetal starts the script's management node. base is an address of the site's: the nodes get the ones after it.
func (s *Site) startMetal(ctx context.Context, script Metal, base netip.Addr, network netip.Prefix) error {
	m := &metal{site: s, script: script, images: map[string]*image{}, nodes: map[string]*node{}}
	options := xcatmn.Options{Speed: cmp.Or(script.Speed, 60), Policy: []xcatmn.Row{{CN: metalUser}}, Network: network}
	if network.IsValid() {
		options.Listen = netip.AddrPortFrom(base, xcatdPort).String()
		options.Monitor = netip.AddrPortFrom(base, 0).String()
	}
	for _, one := range script.OSImages {
		options.OSImages = append(options.OSImages, one.Name)
		disk, err := s.newImage(one.template(), "")
		if err != nil {
			return err
		}
		m.images[one.Name] = disk
	}
	for _, one := range script.Nodes {
		if base = base.Next(); network.IsValid() && !network.Contains(base) {
			return fmt.Errorf("%d nodes are more than there are addresses in %s", len(script.Nodes), network)
		}
		n := &node{Node: one, address: base.String()}
		m.nodes[one.Name] = n
		options.Nodes = append(options.Nodes, xcatmn.Node{Name: one.Name, Address: n.address, Mode: one.Mode, MAC: m.mac(n),
			OS: func(boot xcatmn.Boot) func() { return m.boot(n, boot) }})
	}
	s.metal = m // before any node can boot
	manager, err := xcatmn.Start(ctx, options)
	if err != nil {
		return err
	}
	m.manager = manager
	certificate, err := manager.ClientCertificate(metalUser)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(s.dir, metalCA), manager.CA, 0o600),
		os.WriteFile(filepath.Join(s.dir, metalCertificate), certificate, 0o600),
	)
}

func (m *metal) name() string { return cmp.Or(m.script.Name, metalSite) }

func (m *metal) mac(n *node) string {
	ip := netip.MustParseAddr(n.address).As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", ip[0], ip[1], ip[2], ip[3])
}

// boot starts what is on a node's disk and returns what cuts its power. Each install makes a system of its own.
func (m *metal) boot(n *node, boot xcatmn.Boot) (stop func()) {
	installs := m.manager.Counts(n.Name).Installs
	s := m.site
	s.mu.Lock()
	g := n.guest
	if g == nil || installs != n.installs {
		number := s.loads[n.Name]
		s.loads[n.Name]++
		g = &guest{site: s, name: n.Name, address: netip.AddrPortFrom(netip.MustParseAddr(n.address), metalSSHPort).String(), image: m.images[boot.OSImage],
			load: &load{number: number, behaviours: n.Behaviours, defaults: s.script.Defaults},
			off:  func() error { return m.manager.PowerOff(n.Name) }}
		n.guest, n.installs = g, installs
	}
	s.mu.Unlock()
	h := hardware{macs: []string{m.mac(n)}}
	if g.image != nil && g.image.windows == nil { // xCAT gives its shared key to Linux
		h.hostKey = string(boot.HostKey)
	}
	g.powerOn(h)
	return g.powerOff
}

// guests returns the systems on the nodes' disks.
func (m *metal) guests() []*guest {
	m.site.mu.Lock()
	defer m.site.mu.Unlock()
	var all []*guest
	for _, one := range m.script.Nodes {
		if g := m.nodes[one.Name].guest; g != nil {
			all = append(all, g)
		}
	}
	return all
}

func (m *metal) status() *MetalStatus {
	status := &MetalStatus{MostArmed: m.manager.MostArmed(), Nodes: map[string]NodeStatus{}}
	for name := range m.nodes {
		status.Nodes[name] = NodeStatus{m.manager.State(name), m.manager.Counts(name)}
	}
	return status
}

// Metal returns the site's management node, to look at it and to meddle with it; nil if the script has none.
func (s *Site) Metal() *xcatmn.Manager {
	if s.metal == nil {
		return nil
	}
	return s.metal.manager
}

// toCatalog adds the management node, its images and its nodes.
func (m *metal) toCatalog(c *catalogContent, images bool) {
	c.Secrets[metalSecret] = map[string]string{"file": metalCertificate}
	c.Sites = append(c.Sites, catalogSite{Name: m.name(), Provisioner: metalProvisioner,
		XCAT: &catalogXCAT{Address: m.manager.Address, CAFile: metalCA, Credential: metalSecret, Installs: m.script.Installs}})
	if images {
		for _, one := range m.script.OSImages {
			if one.Image != "" {
				c.Images = append(c.Images, m.catalogImage(one))
			}
		}
	}
	for _, one := range m.script.Nodes {
		c.Computers = append(c.Computers, m.noun(one.Name))
	}
}

func (m *metal) catalogImage(one OSImage) reservation.Image {
	source := map[string]string{"osimage": one.Name, "poll": "1s"}
	maps.Copy(source, one.Source)
	os := linuxOS(one.Distribution)
	control := reservation.Control{Channel: reservation.ChannelSSH, User: "root", Credential: loginSecret, HostKey: reservation.HostKeyFirst}
	if one.Windows != "" {
		os.Family, os.Version = reservation.Windows, string(one.Windows)
		control = windowsControl(one.template())
	}
	control.Port = metalSSHPort
	return reservation.Image{Name: one.Image, Revision: 1, OS: os, Sysprep: one.Sysprep,
		Sources:  map[string]map[string]string{metalProvisioner: source},
		Control:  control,
		PostLoad: reservation.PostLoadOptions{Hostname: true, ManagementSources: []string{"127.0.0.0/8"}}}
}

func (m *metal) noun(name string) reservation.Computer {
	n := m.nodes[name]
	return reservation.Computer{Name: name, Provisioner: metalProvisioner, Site: m.name(), Hardware: reservation.Physical,
		Address: netip.AddrPortFrom(netip.MustParseAddr(n.address), metalSSHPort).String(), MACs: []string{m.mac(n)}}
}
