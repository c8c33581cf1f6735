package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
)

// siteScript is what the simulated site is and does.
//
//go:embed site.yaml
var siteScript []byte

// siteArgs writes the site's script and returns the simulated site's arguments. Its own default ports are taken where
// they are free.
func (s *stage) siteArgs() ([]string, error) {
	script := s.path("site.yaml")
	if err := os.WriteFile(script, siteScript, 0o644); err != nil {
		return nil, err
	}
	guests := "127.0.0.1:22001"
	for n := range len(playbill()) {
		if portOrFree(22001+n) == 0 {
			guests = "" // a loopback address that nobody uses
		}
	}
	return []string{"serve", "--dir", filepath.Dir(s.catalog()), "--script", script, "--guests", guests,
		"--listen", fmt.Sprintf("127.0.0.1:%d", portOrFree(8989)), "--control", fmt.Sprintf("127.0.0.1:%d", portOrFree(8990))}, nil
}
