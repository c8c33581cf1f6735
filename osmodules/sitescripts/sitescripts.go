// Package sitescripts reads the site's own scripts, which run on guests once they are configured: STAGE/SET/NN-NAME under
// one folder. What ends with .ps1 is PowerShell and runs on Windows guests; the rest runs on Linux guests.
package sitescripts

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/reservation"
)

const (
	// StagePostLoad is the folder of what runs at the end of PostLoad.
	StagePostLoad = "post-load"
	// setAll is the set of scripts that every guest gets.
	setAll = "all"
	// siteLimit is a site script's limit where it names none (VCL Linux.pm: 300 s for an image's vcl_post_load).
	siteLimit = 300 * time.Second
	// siteLimitMost bounds what a script may ask for.
	siteLimitMost = 24 * time.Hour
	// siteSizeMost bounds a script: it is sent whole, with each load.
	siteSizeMost = 1 << 20
)

// Kind is what a script is written in.
type Kind int

// The kinds.
const (
	Program    Kind = iota // begins with #!
	PowerShell             // its name ends with .ps1
)

// What a script that fails means, as its header says it.
const (
	Warn   = "warn"
	Reload = "reload"
	Fail   = "fail"
)

// Script is one of the site's own scripts.
type Script struct {
	Name      string // "set/NN-name"
	Text      string
	Limit     time.Duration
	OnFailure string // Warn, Reload or Fail
}

// Check reads every set of the folder, to find a fault at a worker's start rather than in a load.
func Check(dir string, kind Kind) error {
	entries, err := os.ReadDir(filepath.Join(dir, StagePostLoad))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("the folder of site scripts: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("the folder of site scripts: %w", err)
	}
	var faults []error
	for _, entry := range entries {
		if !entry.IsDir() {
			faults = append(faults, fmt.Errorf("%s is no folder: scripts stand in %s/SET/NN-NAME", filepath.Join(dir, StagePostLoad, entry.Name()), StagePostLoad))
			continue
		}
		if err := reservation.CheckName("site scripts' set", entry.Name()); err != nil {
			faults = append(faults, err)
			continue
		}
		_, err := readSet(dir, entry.Name(), kind)
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// Of returns the scripts of an image's sets, as Read does. dir is "" on a worker that has no folder: then there are none,
// and an image that names sets is a fail.
func Of(dir string, sets []string, kind Kind) ([]Script, error) {
	if dir != "" {
		return Read(dir, sets, kind) // its faults are the site's to mend, not the image's
	}
	if len(sets) > 0 {
		return nil, reservation.Fail("", &reservation.FieldError{Field: "image.post_load.scripts", Value: strings.Join(sets, ", "),
			Remedy: "this worker has no folder of site scripts: give it one, or leave the sets out"})
	}
	return nil, nil
}

// Read returns the scripts of "all" and of the sets, in the order in which they run. A set that an image names
// must be there; "all" need not.
func Read(dir string, sets []string, kind Kind) ([]Script, error) {
	var found []Script
	for _, set := range append([]string{setAll}, sets...) {
		if err := reservation.CheckName("image.post_load.scripts", set); err != nil {
			return nil, reservation.Fail("", err)
		}
		if set == setAll && len(found) > 0 {
			continue // named by the image, too
		}
		scripts, err := readSet(dir, set, kind)
		if errors.Is(err, os.ErrNotExist) {
			if set == setAll {
				continue
			}
			return nil, reservation.Fail("", &reservation.FieldError{Field: "image.post_load.scripts", Value: set,
				Remedy: fmt.Sprintf("there is no folder %s", filepath.Join(dir, StagePostLoad, set))})
		}
		if err != nil {
			return nil, err
		}
		found = append(found, scripts...)
	}
	return found, nil
}

func readSet(dir, set string, kind Kind) ([]Script, error) {
	folder := filepath.Join(dir, StagePostLoad, set)
	entries, err := os.ReadDir(folder) // sorted by name
	if err != nil {
		return nil, err
	}
	var scripts []Script
	var faults []error
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") {
			continue // an editor's
		}
		if strings.HasSuffix(name, ".ps1") != (kind == PowerShell) && !entry.IsDir() {
			continue // the other kind's
		}
		path := filepath.Join(folder, name)
		if entry.IsDir() || !scriptName(name) {
			faults = append(faults, fmt.Errorf("%s: a site script is a file named by two digits, '-' and a-z, 0-9, '.' and '-', such as 10-packages", path))
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		script := Script{Name: set + "/" + name, Text: string(text), Limit: siteLimit, OnFailure: Warn}
		if err := script.readHeader(kind); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", path, err))
			continue
		}
		scripts = append(scripts, script)
	}
	return scripts, errors.Join(faults...)
}

func scriptName(name string) bool {
	digit := func(b byte) bool { return b >= '0' && b <= '9' }
	return len(name) > 3 && digit(name[0]) && digit(name[1]) && name[2] == '-' && reservation.CheckName("", name) == nil
}

// readHeader reads the "# berth:" line among the first 20 lines.
func (s *Script) readHeader(kind Kind) error {
	const headerLines = 20
	if len(s.Text) > siteSizeMost {
		return fmt.Errorf("it is %d bytes long: a script has at most %d", len(s.Text), siteSizeMost)
	}
	if kind == Program && !strings.HasPrefix(s.Text, "#!") {
		return errors.New("it has no #! line: begin with one, such as #!/bin/sh")
	}
	if kind == Program && bytes.IndexByte([]byte(s.Text), '\r') >= 0 {
		return errors.New("it has carriage returns: end lines with a line feed only")
	}
	for _, text := range slices.Collect(strings.Lines(s.Text))[:min(headerLines, strings.Count(s.Text, "\n"))] {
		header, ok := strings.CutPrefix(strings.TrimSpace(text), "# berth:")
		if !ok {
			continue
		}
		for _, word := range strings.Fields(header) {
			key, value, _ := strings.Cut(word, "=")
			switch key {
			case "limit":
				limit, err := time.ParseDuration(value)
				if err != nil || limit <= 0 || limit > siteLimitMost {
					return fmt.Errorf("limit is %q: write a duration up to %s, such as 90s", value, siteLimitMost)
				}
				s.Limit = limit
			case "on-failure":
				switch value {
				case Warn, Reload, Fail:
					s.OnFailure = value
				default:
					return fmt.Errorf("on-failure is %q: write warn, reload or fail", value)
				}
			default:
				return fmt.Errorf("%q is unknown: write limit=DURATION or on-failure=warn|reload|fail", word)
			}
		}
	}
	return nil
}
