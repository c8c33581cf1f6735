package xcatd

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// words are what a shell would take apart, run or lose.
func words() []string {
	return []string{"plain", "two words", "", "it's", `"quoted"`, "$(touch pwned)", "`id`", "a;b|c&d", "*", "~root", `back\slash`, "line\nbreak", "-x", "é", "''", "#no"}
}

func TestAShellReadsQuotedWordsBackUnchanged(t *testing.T) {
	output, err := exec.Command("sh", "-c", "printf '%s\\0' "+QuoteAll(words())).Output()
	require.NoError(t, err)
	want := ""
	for _, word := range words() {
		want += word + "\x00"
	}
	require.Equal(t, want, string(output))
}

// program writes an executable into a folder of its own and returns the folder.
func program(t *testing.T, name, script string) string {
	folder := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte("#!/bin/sh\n"+script), 0o755))
	return folder
}

// ssh is a stand-in for the ssh client: like it, it gives the last word to a shell.
func ssh(t *testing.T) []string {
	return []string{filepath.Join(program(t, "ssh", `for last; do :; done; exec /bin/sh -c "$last"`), "ssh"), "-o", "BatchMode=yes", "root@mn"}
}

func TestToolsAreHandedTheirWordsOneByOne(t *testing.T) {
	folder := program(t, "chdef", `printf '%s\0' "$@"`)
	for name, tools := range map[string]*Tools{
		"here":   {Path: folder + ":/usr/bin:/bin"},
		"by SSH": {Path: folder + ":/usr/bin:/bin", SSH: ssh(t)},
	} {
		output, err := tools.Execute(t.Context(), append([]string{"chdef"}, words()...), nil)
		require.NoError(t, err, name)
		want := ""
		for _, word := range words() {
			want += word + "\x00"
		}
		require.Equal(t, want, output.Stdout, name)
	}
}

func TestToolsGiveTheirAnswersAndErrors(t *testing.T) {
	folder := program(t, "rpower", `case "$1" in
n01) echo "n01: on";;
n04) echo "n04: [mn]: Error: ERROR: timeout" >&2; exit 1;;
n05) echo "n05: on"; kill -9 $$;;
*) echo "Unable to open socket connection to xcatd daemon on localhost:3001." ; echo "Verify that the xcatd daemon is running and that your SSL setup is correct."; exit 1;;
esac`)
	for name, tools := range map[string]*Tools{
		"here":   {Path: folder + ":/usr/bin:/bin"},
		"by SSH": {Path: folder + ":/usr/bin:/bin", SSH: ssh(t)},
	} {
		client := NewClient(tools, 0)
		on, err := client.On(soon(t), "n01")
		require.NoError(t, err, name)
		require.True(t, on, name)
		_, err = client.On(soon(t), "n04")
		require.Equal(t, BMCTimeout, KindOf(err), "%s: %v", name, err)
		_, err = client.On(soon(t), "n05")
		require.Equal(t, Connection, KindOf(err), "%s: a killed tool has not answered: %v", name, err)
		_, err = client.On(soon(t), "n06")
		require.Equal(t, Connection, KindOf(err), "%s: %v", name, err)
	}
	_, err := NewClient(&Tools{SSH: []string{filepath.Join(program(t, "ssh", `echo "Host key verification failed." >&2; exit 255`), "ssh")}}, 0).On(soon(t), "n01")
	require.Equal(t, Connection, KindOf(err), "%v", err)
	require.ErrorContains(t, err, "Host key verification failed")
	_, err = NewClient(&Tools{Path: "/nowhere:/usr/bin:/bin"}, 0).On(soon(t), "n01")
	require.Error(t, err)
}

func TestAnAbortedToolIsAskedToEnd(t *testing.T) {
	marks := t.TempDir()
	folder := program(t, "rpower", `trap 'touch "`+marks+`/aborted"; exit 0' TERM
touch "`+marks+`/began"
while :; do sleep 0.05; done`)
	ctx, cancel := context.WithCancel(soon(t))
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(marks, "began")); err == nil {
				cancel()
			}
		}
	}()
	_, err := NewClient(&Tools{Path: folder + ":/usr/bin:/bin"}, 0).Power(ctx, "n01", "boot")
	require.ErrorIs(t, err, ctx.Err())
	require.FileExists(t, filepath.Join(marks, "aborted"))
}

func TestSSHNeverAsksAndKnowsItsHost(t *testing.T) {
	words := Remote{Destination: "root@mn", Port: 2222, IdentityFile: "/keys/mn", KnownHostsFile: "/keys/known_hosts"}.Command()
	require.Equal(t, "root@mn", words[len(words)-1])
	for _, option := range []string{"BatchMode=yes", "StrictHostKeyChecking=yes", "UserKnownHostsFile=/keys/known_hosts", "IdentitiesOnly=yes", "/keys/mn", "2222"} {
		require.Contains(t, words, option)
	}
}
