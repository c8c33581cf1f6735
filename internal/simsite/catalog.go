package simsite

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"berth/internal/simsite/guestos"
	"berth/reservation"
)

// The names that the catalog uses.
const (
	siteName        = "lab"
	vcenterSecret   = "vcenter-lab"
	loginSecret     = "linux-root"
	windowsSecret   = "windows-admin"
	provisioner     = "vmware"
	catalogPreamble = "# Written by simsite: a catalog of the simulated site, for worker and starter (BERTH_CATALOG).\n# It is written anew at each start.\n"
)

// catalogContent is the file's shape, in the order in which a person reads it.
type catalogContent struct {
	Secrets   map[string]map[string]string `json:"secrets"`
	Sites     []catalogSite                `json:"sites"`
	Images    []reservation.Image          `json:"images"`
	Computers []reservation.Computer       `json:"computers"`
}

type catalogSite struct {
	Name        string         `json:"name"`
	Provisioner string         `json:"provisioner"`
	VMware      *catalogVMware `json:"vmware,omitempty"`
	XCAT        *catalogXCAT   `json:"xcat,omitempty"`
}

type catalogXCAT struct {
	Address    string `json:"address"`
	CAFile     string `json:"ca_file"`
	Credential string `json:"credential"`
	Installs   int    `json:"installs,omitempty"`
}

type catalogVMware struct {
	URL           string `json:"url"`
	User          string `json:"user"`
	Credential    string `json:"credential"`
	Thumbprint    string `json:"thumbprint"`
	Datacenter    string `json:"datacenter"`
	Clones        int    `json:"clones,omitempty"`
	ClonesPerHost int    `json:"clones_per_host,omitempty"`
}

// WriteCatalog writes the catalog of the site as it is now, in one piece.
func (s *Site) WriteCatalog() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	c := catalogContent{
		Secrets: map[string]map[string]string{vcenterSecret: {"file": passwordFile}, loginSecret: {"file": loginKeyFile}},
		Sites: []catalogSite{{Name: siteName, Provisioner: provisioner, VMware: &catalogVMware{URL: s.url, User: User, Credential: vcenterSecret,
			Thumbprint: s.keep.thumbprint, Datacenter: datacenter, Clones: s.script.VCenter.Clones, ClonesPerHost: s.script.VCenter.ClonesPerHost}}},
		Images: s.Images(),
	}
	if slices.ContainsFunc(c.Images, func(i reservation.Image) bool { return i.Control.Credential == windowsSecret }) {
		c.Secrets[windowsSecret] = map[string]string{"file": windowsFile}
	}
	for i, computer := range s.Computers() {
		c.Computers = append(c.Computers, s.noun(i, computer))
	}
	if s.metal != nil {
		s.metal.toCatalog(&c, len(s.script.Images) == 0)
	}
	text, err := blockYAML(c)
	if err != nil {
		return err
	}
	path := s.Catalog()
	if err := os.WriteFile(path+".new", append([]byte(catalogPreamble), text...), 0o600); err != nil {
		return fmt.Errorf("catalog: %w", err)
	}
	return os.Rename(path+".new", path)
}

// Images returns the catalog's images: the script's, or one of each template.
func (s *Site) Images() []reservation.Image {
	if len(s.script.Images) > 0 {
		return s.script.Images
	}
	var images []reservation.Image
	for _, t := range s.script.Templates {
		os := linuxOS(t.Distribution)
		control := reservation.Control{Channel: reservation.ChannelSSH, User: "root", Port: 22, Credential: loginSecret, HostKey: reservation.HostKeyHanded}
		name := "debian12"
		switch t.Distribution {
		case guestos.Ubuntu2404:
			name = "ubuntu2404"
		case guestos.Rocky9:
			name = "rocky9"
		}
		if t.Windows != "" {
			os.Family, os.Version, name = reservation.Windows, string(t.Windows), "windows"+string(t.Windows)
			control = windowsControl(t)
		}
		if trimmed, ok := strings.CutSuffix(t.Name, "-template"); ok {
			name = trimmed
		}
		for i, snapshot := range t.Snapshots {
			revision := i + 1
			if n, err := strconv.Atoi(strings.TrimPrefix(snapshot, "r")); err == nil && n > 0 {
				revision = n
			}
			images = append(images, reservation.Image{Name: name, Revision: revision, OS: os, Sysprep: t.Sysprep,
				Sources:  map[string]map[string]string{provisioner: {"template": t.Name, "snapshot": snapshot, "clone": "linked"}},
				Control:  control,
				PostLoad: reservation.PostLoadOptions{Hostname: true, ManagementSources: []string{"127.0.0.0/8"}}})
		}
	}
	return images
}

// Reservable returns a computer of the site as the catalog has it; false when there is none of the name.
func (s *Site) Reservable(name string) (reservation.Computer, bool) {
	for i, c := range s.Computers() {
		if c.Name == name {
			return s.noun(i, c), true
		}
	}
	if s.metal != nil && s.metal.nodes[name] != nil {
		return s.metal.noun(name), true
	}
	return reservation.Computer{}, false
}

func linuxOS(d guestos.Distribution) reservation.OS {
	os := reservation.OS{Family: reservation.Linux, Version: "12", Architecture: "x86_64"}
	switch d {
	case guestos.Ubuntu2404:
		os.Version = "24.04"
	case guestos.Rocky9:
		os.Version = "9"
	}
	return os
}

func (s *Site) noun(i int, c Computer) reservation.Computer {
	n := reservation.Computer{Name: c.Name, Provisioner: provisioner, Site: siteName, Hardware: reservation.Virtual, Address: c.Address, MACs: c.MACs, Networks: c.Networks,
		CPUs: cmp.Or(c.CPUs, 2), MemoryMiB: cmp.Or(c.MemoryMiB, 2048), Placement: c.Placement}
	if len(n.MACs) == 0 {
		n.MACs = []string{fmt.Sprintf("00:50:56:00:%02x:%02x", (i+1)>>8&0xff, (i+1)&0xff)} // VMware's own range for MACs given by hand
	}
	if len(n.Networks) == 0 {
		n.Networks = []string{"VM Network"}
	}
	if n.Placement == nil {
		n.Placement = map[string]string{"folder": "vm", "resource_pool": "Resources", "datastore": "LocalDS_0"}
	}
	return n
}

// blockYAML writes a value with its JSON names, in their order, as YAML in block style.
func blockYAML(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	plain(&doc)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// plain takes the quotes and braces of JSON away where YAML needs none.
func plain(n *yaml.Node) {
	n.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	for _, child := range n.Content {
		plain(child)
	}
	if n.Kind == yaml.SequenceNode && len(n.Content) > 0 && n.Content[0].Kind == yaml.ScalarNode {
		n.Style |= yaml.FlowStyle
	}
}
