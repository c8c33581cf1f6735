package secrets

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

const value = "correct horse"

func environment(pairs ...string) func(string) (string, bool) {
	return func(key string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	require.NoError(t, os.Chmod(path, mode))
	return path
}

func TestBytesReadsASecret(t *testing.T) {
	folder := t.TempDir()
	for name, test := range map[string]struct {
		source Source
		want   string
	}{
		"from a variable":                            {Source{Env: "PLAIN"}, value},
		"from a variable, without its newline":       {Source{Env: "NEWLINE"}, value},
		"from a file":                                {Source{File: write(t, filepath.Join(folder, "a"), value, 0o600)}, value},
		"from a file, without its newline":           {Source{File: write(t, filepath.Join(folder, "b"), value+"\n", 0o600)}, value},
		"from a file, without its Windows newline":   {Source{File: write(t, filepath.Join(folder, "c"), value+"\r\n", 0o600)}, value},
		"with the spaces and newlines that it holds": {Source{File: write(t, filepath.Join(folder, "d"), " a\nb \n\n", 0o600)}, " a\nb \n"},
	} {
		t.Run(name, func(t *testing.T) {
			store := NewStore(Options{Sources: map[string]Source{"s": test.source}, LookupEnv: environment("PLAIN", value, "NEWLINE", value+"\n"), Logger: zerolog.Nop()})
			got, err := store.Text("s")
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestBytesSaysWhichSecretAndWhereAndWhatToDo(t *testing.T) {
	folder := t.TempDir()
	big := filepath.Join(folder, "big")
	require.NoError(t, os.WriteFile(big, nil, 0o600))
	require.NoError(t, os.Truncate(big, maxSize+1))
	for name, test := range map[string]struct {
		source *Source
		want   []string
	}{
		"no such secret":   {nil, []string{"secret s", "the catalog has no secret"}},
		"variable not set": {&Source{Env: "ABSENT"}, []string{"secret s", "ABSENT", "not set"}},
		"variable empty":   {&Source{Env: "EMPTY"}, []string{"secret s", "EMPTY", "empty"}},
		"no such file":     {&Source{File: filepath.Join(folder, "absent")}, []string{"secret s", filepath.Join(folder, "absent"), "no such file"}},
		"a folder":         {&Source{File: folder}, []string{"secret s", folder, "not a regular file"}},
		"an empty file":    {&Source{File: write(t, filepath.Join(folder, "empty"), "\n", 0o600)}, []string{"secret s", "empty"}},
		"a huge file":      {&Source{File: big}, []string{"secret s", big, "right file?"}},
	} {
		t.Run(name, func(t *testing.T) {
			sources := map[string]Source{}
			if test.source != nil {
				sources["s"] = *test.source
			}
			store := NewStore(Options{Sources: sources, LookupEnv: environment("EMPTY", ""), Logger: zerolog.Nop()})
			_, err := store.Bytes("s")
			var fault *Error
			require.ErrorAs(t, err, &fault)
			for _, words := range test.want {
				require.ErrorContains(t, err, words)
			}
		})
	}
}

func TestASecretThatWasChangedIsReadAnew(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "s"), "first", 0o600)
	store := NewStore(Options{Sources: map[string]Source{"s": {File: path}}, Logger: zerolog.Nop()})
	first, err := store.Text("s")
	require.NoError(t, err)
	write(t, path, "second", 0o600)
	second, err := store.Text("s")
	require.NoError(t, err)
	require.Equal(t, []string{"first", "second"}, []string{first, second})
}

func TestAFileThatEverybodyCanReadIsWarnedOfOnceWithoutItsContent(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "s"), value, 0o644)
	var log bytes.Buffer
	store := NewStore(Options{Sources: map[string]Source{"s": {File: path}}, Logger: zerolog.New(&log)})
	for range 3 {
		_, err := store.Bytes("s")
		require.NoError(t, err)
	}
	require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
	require.Contains(t, log.String(), path)
	require.NotContains(t, log.String(), value)
}

func TestCheckReturnsEveryFaultAndNoValue(t *testing.T) {
	folder := t.TempDir()
	store := NewStore(Options{
		Sources: map[string]Source{
			"good":      {Env: "GOOD"},
			"unset":     {Env: "UNSET"},
			"absent":    {File: filepath.Join(folder, "absent")},
			"encrypted": {Env: "GOOD", Passphrase: "phrase"},
			"phrase":    {Env: "PHRASE"},
			"unused":    {Env: "UNUSED"},
		},
		LookupEnv: environment("GOOD", value), Logger: zerolog.Nop(),
	})
	require.NoError(t, store.Check("good"))
	err := store.Check("good", "unset", "absent", "encrypted", "unset")
	require.ErrorContains(t, err, "secret unset")
	require.ErrorContains(t, err, "secret absent")
	require.ErrorContains(t, err, "secret phrase")
	require.Equal(t, 3, len(strings.Split(err.Error(), "\n")))
	require.NotContains(t, err.Error(), value)
	require.NotContains(t, err.Error(), "unused")
}

func TestPassphraseIsThatOfTheNamedSecret(t *testing.T) {
	store := NewStore(Options{
		Sources:   map[string]Source{"plain": {Env: "KEY"}, "encrypted": {Env: "KEY", Passphrase: "phrase"}, "phrase": {Env: "PHRASE"}},
		LookupEnv: environment("KEY", "k", "PHRASE", "p"), Logger: zerolog.Nop(),
	})
	none, err := store.Passphrase("plain")
	require.NoError(t, err)
	require.Empty(t, none)
	phrase, err := store.Passphrase("encrypted")
	require.NoError(t, err)
	require.Equal(t, "p", phrase)
}
