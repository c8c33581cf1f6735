// Package devservertest gives tests a real Temporal server.
package devservertest

import (
	"context"
	"errors"
	"testing"

	"berth/internal/devserver"
)

// ForTest starts a server in memory for a test, a benchmark or a group of them, and stops it when that is over. Without
// a Temporal CLI the test fails and says how to get one: a test that needs a server proves nothing when it is skipped.
func ForTest(t testing.TB) *devserver.Server {
	t.Helper()
	return Start(t, devserver.Options{})
}

// Start is ForTest with options. A TestMain that shares one server among its tests uses devserver.Start itself.
func Start(t testing.TB, o devserver.Options) *devserver.Server {
	t.Helper()
	server, err := devserver.Start(context.Background(), o)
	var missing *devserver.MissingError
	if errors.As(err, &missing) {
		t.Fatalf("this test needs a real Temporal server: %v", missing)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return server
}
