// Package remote holds what a control channel to a guest is. Each implementation has a folder of its own: ssh and
// winrm. Neither is known to any provisioner.
package remote

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Channel is one open connection to a guest, used for all of one load. It is safe for concurrent use.
type Channel interface {
	// Run runs one command and returns its output. A command that ran and ended with another exit code than 0 is no
	// error; a connection that broke, a limit that passed (*LimitError) and a context that ended are.
	Run(ctx context.Context, command Command) (Result, error)
	// Copy writes a file in one piece: a reader of the old or of the new content, never of half of it.
	Copy(ctx context.Context, file File) error
	// Close ends the connection. It may be called again.
	Close() error
}

// Command is one command on a guest.
type Command struct {
	// Line is a constant of ours, as the guest's shell reads it. Values of reservations never stand in it: they go
	// through Stdin.
	Line  string
	Stdin io.Reader
	Limit time.Duration // 0 is refused: every command has a limit
}

// Result is what a finished command left.
type Result struct {
	Stdout []byte
	Stderr []byte
	Exit   int
}

// File is a file to write on a guest.
type File struct {
	Path    string // absolute, a constant of ours
	Mode    fs.FileMode
	Content []byte
}

// LimitError says that a command did not end within its limit.
type LimitError struct {
	Command string
	Limit   time.Duration
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%s did not end within its limit of %s", e.Command, e.Limit)
}
