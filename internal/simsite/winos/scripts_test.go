package winos_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/simsite/winos"
	"berth/osmodules/remote/powershell"
)

// embedded are the scripts that run on guests, by name.
func embedded(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"copy": powershell.CopyScript()}
	paths, err := filepath.Glob("../../../osmodules/windows/scripts/*.ps1")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(path), ".ps1")] = string(text)
	}
	return all
}

// TestEveryScriptIsKnown: a script that was changed is simulated as it was. Look at what its act does before you write the
// new digest.
func TestEveryScriptIsKnown(t *testing.T) {
	digests := map[string]string{}
	for _, s := range winos.Scripts() {
		if digests[s.Name] != "" {
			t.Errorf("%s stands twice in Scripts", s.Name)
		}
		digests[s.Name] = s.Digest
	}
	scripts := embedded(t)
	for name, text := range scripts {
		digest := powershell.Digest(text)
		switch known, ok := digests[name]; {
		case !ok:
			t.Errorf("no guest knows %s.ps1: write its act, and into Scripts {%q, %q, act}", name, name, digest)
		case known != digest:
			t.Errorf("%s.ps1 was changed: change its act likewise, then its digest in Scripts to %q", name, digest)
		}
	}
	for name := range digests {
		if scripts[name] == "" {
			t.Errorf("there is no script %s.ps1: take it out of Scripts", name)
		}
	}
}
