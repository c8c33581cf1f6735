package powershell

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"berth/osmodules/remote"
)

// Runner is the part of a remote.Channel that scripts need.
type Runner interface {
	Run(ctx context.Context, command remote.Command) (remote.Result, error)
}

// Run runs a script over a channel and returns its answer. A channel's faults are returned as they are; a script that
// gave no answer is a *NoAnswerError.
func Run(ctx context.Context, channel Runner, script string, values map[string]string, data []byte, limit time.Duration) (Answer, error) {
	input, err := Input(script, values, data)
	if err != nil {
		return Answer{}, err
	}
	result, err := channel.Run(ctx, remote.Command{Line: Line(), Stdin: bytes.NewReader(input), Limit: limit})
	if err != nil {
		return Answer{}, err
	}
	return ParseAnswer(result)
}

// CopyLimit is how long Copy may take for its first MiB; each further one gets as much again. The first PowerShell after
// a boot takes up to a minute by itself, and WinRM carries some 100 KB/s.
const CopyLimit = 2 * time.Minute

// Copy writes a file over a channel, in one piece: the content goes to a new file beside it, which then takes its place.
// The folder must be there. The file gets its folder's permissions, or keeps those it has: File.Mode is not looked at.
// A Channel for Windows calls it as its Copy.
func Copy(ctx context.Context, channel Runner, file remote.File) error {
	if !absolute(file.Path) {
		return fmt.Errorf(`path %q to copy to is not a clean absolute path of Windows: give one like C:\folder\file.txt`, file.Path)
	}
	limit := CopyLimit * time.Duration(1+len(file.Content)>>20)
	answer, err := Run(ctx, channel, CopyScript(), map[string]string{"Path": file.Path}, file.Content, limit)
	if err != nil {
		return fmt.Errorf("copying to %s: %w", file.Path, err)
	}
	if answer.Result != ResultDone {
		return fmt.Errorf("copying to %s: %s: %s", file.Path, answer.Result, answer.Detail)
	}
	return nil
}

// absolute says whether a path is a drive's, without . or .. and without what Windows takes in no name.
func absolute(path string) bool {
	if !regexp.MustCompile(`^[A-Za-z]:\\[^\x00-\x1f"*/:<>?|]+$`).MatchString(path) {
		return false
	}
	names := strings.Split(path[3:], `\`)
	return !slices.ContainsFunc(names, func(name string) bool { return name == "" || strings.TrimRight(name, ". ") != name })
}
