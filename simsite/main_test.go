package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serveIn runs "simsite serve" in the process and returns its ready line; the site ends with the test.
func serveIn(t *testing.T, args ...string) (ready, func() error) {
	t.Helper()
	t.Setenv("TMPDIR", os.TempDir()) // serve changes it
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() {
		c := newCommand(write, io.Discard)
		c.SetArgs(append([]string{"serve"}, args...))
		err := c.ExecuteContext(ctx)
		_ = write.CloseWithError(err)
		done <- err
	}()
	line, err := bufio.NewReader(read).ReadBytes('\n')
	require.NoError(t, err)
	var r ready
	require.NoError(t, json.Unmarshal(line, &r))
	stop := func() error {
		cancel()
		select {
		case err := <-done:
			done <- err
			return err
		case <-time.After(15 * time.Second):
			t.Fatal("the site does not end")
			return nil
		}
	}
	t.Cleanup(func() { _ = stop() })
	return r, stop
}

func TestServeSaysWhenItIsReadyAndEndsInOrder(t *testing.T) {
	dir := t.TempDir()
	r, stop := serveIn(t, "--dir", dir, "--computers", "2")
	require.Equal(t, filepath.Join(dir, "catalog.yaml"), r.Catalog)
	require.Equal(t, 2, r.Computers)
	require.NotEmpty(t, r.Thumbprint)
	response, err := http.Get(r.Control + "/status") //nolint:noctx // a test
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.DirExists(t, filepath.Join(dir, "tmp"))

	second := newCommand(io.Discard, io.Discard)
	second.SetArgs([]string{"serve", "--dir", dir})
	require.ErrorContains(t, second.ExecuteContext(t.Context()), "another simsite runs in "+dir)

	require.NoError(t, stop())
	require.NoDirExists(t, filepath.Join(dir, "tmp"))
	_, err = http.Get(r.Control + "/status") //nolint:noctx,bodyclose // a test; there is no body
	require.Error(t, err)
}

func TestServeRunsTheDemonstrationsScriptWithoutOne(t *testing.T) {
	r, _ := serveIn(t, "--dir", t.TempDir())
	require.Equal(t, 9, r.Computers)
}

func TestWhatCannotBeServedIsSaid(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("computers: [{name: UPPER}]"), 0o600))
	for want, args := range map[string][]string{
		`required flag(s) "dir" not set`:          {"serve"},
		`computers[0].name is "UPPER"`:            {"serve", "--dir", t.TempDir(), "--script", bad},
		`script: open /nowhere/x.yaml`:            {"serve", "--dir", t.TempDir(), "--script", "/nowhere/x.yaml"},
		`"0.0.0.0:1" is not on the loopback`:      {"serve", "--dir", t.TempDir(), "--listen", "0.0.0.0:1"},
		`--log-level is "loud"`:                   {"serve", "--dir", t.TempDir(), "--log-level", "loud"},
		`bad.yaml: line 1: computers[0].name is`:  {"check", bad},
		`unknown command "srve" for "simsite"`:    {"srve"},
		`accepts 1 arg(s), received 0`:            {"check"},
		`unknown command "extra" for "simsite se`: {"serve", "--dir", t.TempDir(), "extra"},
	} {
		t.Setenv("TMPDIR", os.TempDir())
		c := newCommand(io.Discard, io.Discard)
		c.SetArgs(args)
		require.ErrorContains(t, c.ExecuteContext(t.Context()), want)
	}
}

func TestCheckSaysWhatAScriptHolds(t *testing.T) {
	var out bytes.Buffer
	c := newCommand(&out, io.Discard)
	c.SetArgs([]string{"check", filepath.Join("..", "internal", "simsite", "demo.yaml")})
	require.NoError(t, c.Execute())
	require.Contains(t, out.String(), "6 templates, 6 images, 9 computers")
}

func TestHelpHelps(t *testing.T) {
	var out bytes.Buffer
	c := newCommand(&out, io.Discard)
	c.SetArgs([]string{"serve", "--help"})
	require.NoError(t, c.Execute())
	for _, want := range []string{"BERTH_CATALOG=DIR/catalog.yaml", "--script", "POST   /fault", "simsite serve --dir var/site"} {
		require.Contains(t, out.String(), want)
	}
}
