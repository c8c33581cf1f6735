package devserver_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/sdk/client"

	"berth/internal/devserver"
	"berth/internal/devserver/devservertest"
)

func TestAServerAnswersAndIsGoneAfterStop(t *testing.T) {
	server := devservertest.Start(t, devserver.Options{UI: true, SearchAttributes: map[string]string{"BerthPhase": "Keyword"}})
	c, err := client.Dial(client.Options{HostPort: server.Address, Namespace: server.Namespace})
	require.NoError(t, err)
	defer c.Close()
	attributes, err := c.OperatorService().ListSearchAttributes(t.Context(), &operatorservice.ListSearchAttributesRequest{Namespace: server.Namespace})
	require.NoError(t, err)
	require.Contains(t, attributes.GetCustomAttributes(), "BerthPhase")
	page, err := http.Get(server.WebUI)
	require.NoError(t, err)
	page.Body.Close()
	require.Equal(t, http.StatusOK, page.StatusCode)

	server.Stop()
	_, err = net.DialTimeout("tcp", server.Address, time.Second)
	require.Error(t, err)
	require.NoFileExists(t, server.Log)
	server.Stop()
}

func TestADatabaseFileOutlivesItsServer(t *testing.T) {
	options := devserver.Options{Database: filepath.Join(t.TempDir(), "temporal.db")}
	first := devservertest.Start(t, options)
	start(t, first, "kept")
	first.Stop()

	second := devservertest.Start(t, options)
	c, err := client.Dial(client.Options{HostPort: second.Address})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.DescribeWorkflowExecution(t.Context(), "kept", "")
	require.NoError(t, err)
}

func start(t *testing.T, server *devserver.Server, id string) {
	c, err := client.Dial(client.Options{HostPort: server.Address})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: id, TaskQueue: "nobody"}, "None")
	require.NoError(t, err)
}

func TestAPortThatIsTakenIsNamed(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	_, err = devserver.Start(t.Context(), devserver.Options{Port: port})
	require.ErrorContains(t, err, "port "+strconv.Itoa(port))
}

func TestACLIThatFailsIsAnErrorWithTheEndOfItsLog(t *testing.T) {
	cli := filepath.Join(t.TempDir(), "temporal")
	require.NoError(t, os.WriteFile(cli, []byte("#!/bin/sh\necho the disk is full >&2\nexit 3\n"), 0o755))
	_, err := devserver.Start(t.Context(), devserver.Options{CLI: cli})
	require.ErrorContains(t, err, "exit status 3")
	require.ErrorContains(t, err, "the disk is full")
}

func TestACLIThatNeverAnswersIsStoppedWithTheContext(t *testing.T) {
	cli := filepath.Join(t.TempDir(), "temporal")
	require.NoError(t, os.WriteFile(cli, []byte("#!/bin/sh\nexec sleep 600\n"), 0o755))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := devserver.Start(ctx, devserver.Options{CLI: cli})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestTheCLIIsLookedForInThreePlaces(t *testing.T) {
	put := func(path string) string {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755))
		return path
	}
	home, onPath := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	t.Setenv("PATH", onPath)
	t.Setenv(devserver.EnvCLI, "")

	_, err := devserver.FindCLI()
	var missing *devserver.MissingError
	require.ErrorAs(t, err, &missing)
	require.ErrorContains(t, err, "make temporal")

	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	// Each place goes before the ones that were filled earlier.
	for _, path := range []string{filepath.Join(cache, "berth", "bin", "temporal"), filepath.Join(onPath, "temporal")} {
		want := put(path)
		found, err := devserver.FindCLI()
		require.NoError(t, err)
		require.Equal(t, want, found)
	}
	named := put(filepath.Join(home, "mine"))
	t.Setenv(devserver.EnvCLI, named)
	found, err := devserver.FindCLI()
	require.NoError(t, err)
	require.Equal(t, named, found)

	t.Setenv(devserver.EnvCLI, filepath.Join(home, "none"))
	_, err = devserver.FindCLI()
	require.ErrorContains(t, err, devserver.EnvCLI)
}
