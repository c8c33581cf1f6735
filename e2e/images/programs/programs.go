//go:build programs

// Package programs names the programs, so that go.mod and go.sum hold what building them needs.
package programs

import (
	_ "github.com/temporalio/ui-server/v2/cmd/server"
	_ "go.temporal.io/server/cmd/server"
	_ "go.temporal.io/server/cmd/tools/sql"
)
