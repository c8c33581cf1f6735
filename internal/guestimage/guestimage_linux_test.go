package guestimage

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"mvdan.cc/sh/v3/syntax"
)

func TestEveryScriptOfTheRecipeCanBeRead(t *testing.T) {
	scripts := 0
	require.NoError(t, fs.WalkDir(recipe, "recipe", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := recipe.ReadFile(name)
		require.NoError(t, err)
		first, _, _ := strings.Cut(string(text), "\n")
		if !strings.HasPrefix(first, "#!") {
			return nil
		}
		scripts++
		language := syntax.LangPOSIX
		if strings.HasSuffix(first, "bash") {
			language = syntax.LangBash
		}
		_, err = syntax.NewParser(syntax.Variant(language)).Parse(strings.NewReader(string(text)), name)
		require.NoError(t, err)
		return nil
	}))
	require.GreaterOrEqual(t, scripts, 6)
}

func TestWhatOnlyTheSmallGuestIsMadeByRebuildsOnlyIt(t *testing.T) {
	for name, only := range map[string]bool{
		"recipe/build.sh": false, "recipe/debian/packages": false, "recipe/small/root.sh": false, "recipe/small/initrd": false, "recipe/disk.sh": false,
		"recipe/small.sh": true, "recipe/small/root/etc/init.d/rcS": true,
	} {
		_, err := fs.Stat(recipe, name)
		require.NoError(t, err)
		require.Equal(t, only, smallOnly(name), name)
	}
	whole, err := recipeKey(func(string) bool { return true })
	require.NoError(t, err)
	part, err := recipeKey(smallOnly)
	require.NoError(t, err)
	require.NotEqual(t, whole, part)
}

func TestAnImageIsReadOnlyAndHasItsDigestBesideIt(t *testing.T) {
	dir := t.TempDir()
	made, path := filepath.Join(dir, "made"), filepath.Join(dir, "image.qcow2")
	require.NoError(t, os.WriteFile(made, []byte("bits"), 0o644))
	require.NoError(t, finish(made, path))
	require.NoFileExists(t, made)
	image, err := read(path)
	require.NoError(t, err)
	require.Equal(t, Image{Path: path, SHA256: "e5e59d10f196504b6e08ac7785f84430a61e1558fd6246075a9566edaab2e814", Size: 4}, image)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o222)
}

func TestOneBuildsAndTheOthersWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path)
	require.NoError(t, err)
	short, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = lock(short, path)
	require.ErrorIs(t, err, context.Canceled)
	unlock()
	unlock, err = lock(t.Context(), path)
	require.NoError(t, err)
	unlock()
}
