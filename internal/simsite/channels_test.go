package simsite

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth/internal/simsite/winos"
	"berth/osmodules/remote"
	"berth/osmodules/remote/powershell"
	"berth/osmodules/remote/ssh"
	"berth/osmodules/remote/winrm"
)

// dialed opens a channel to the first computer, as a worker does.
func (l *lab) dialed(channel string) (remote.Channel, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	if channel == "winrm" {
		dialer := winrm.NewDialer(winrm.Options{Credential: func(string) (remote.Credential, error) {
			return remote.Credential{Password: l.WindowsPassword()}, nil
		}})
		client, err := dialer.Dial(ctx, winrm.Target{Address: l.address(), User: windowsUser, Credential: windowsSecret})
		if err != nil {
			return nil, err
		}
		return client, nil
	}
	dialer := ssh.NewDialer(ssh.Options{Credential: func(string) (ssh.Credential, error) { return ssh.Credential{Password: l.WindowsPassword()}, nil }})
	client, err := dialer.Dial(ctx, ssh.Target{Address: l.address(), User: windowsUser, Credential: windowsSecret, Windows: true})
	if err != nil {
		return nil, err
	}
	return client, nil
}

// TestASlowSysprepSeenThroughEachChannel: what a worker sees of a set-up that answers before it is over.
func TestASlowSysprepSeenThroughEachChannel(t *testing.T) {
	script, err := os.ReadFile("../../osmodules/windows/scripts/setup.ps1")
	require.NoError(t, err)
	for _, channel := range []string{"ssh", "winrm"} {
		t.Run(channel, func(t *testing.T) {
			l := windowsSite(t, "2022", channel, "{setup: [{state: specialize, takes: 300ms}, {state: reboot, takes: 100ms}, {state: oobe, takes: 6s, answers: true}, {state: reboot, takes: 100ms}, {state: complete}]}")
			l.load("vm-01", "")
			seen := map[string]map[string]bool{}
			note := func(field, value string) {
				if seen[field] == nil {
					seen[field] = map[string]bool{}
				}
				seen[field][value] = true
			}
			l.until("the set-up says that it is over", func() bool {
				open, err := l.dialed(channel)
				if err != nil {
					return false
				}
				defer open.Close()
				answer, err := powershell.Run(t.Context(), open, string(script), nil, nil, 20*time.Second)
				if err != nil {
					return false
				}
				for _, field := range []string{"boot", "imageState", "oobeInProgress", "processes", "logSize"} {
					note(field, answer.Values[field])
				}
				return answer.Values["imageState"] == winos.ImageComplete
			})
			require.Equal(t, map[string]bool{winos.ImageSpecialized: true, winos.ImageComplete: true}, seen["imageState"])
			require.Equal(t, map[string]bool{"0": true, "1": true}, seen["oobeInProgress"])
			require.Equal(t, map[string]bool{"msoobe,oobeldr,windeploy": true, "": true}, seen["processes"])
			require.Len(t, seen["boot"], 2, "the reboot in between is seen")
			require.Greater(t, len(seen["logSize"]), 1, "the log grows")

			open, err := l.dialed(channel)
			require.NoError(t, err)
			defer open.Close()
			large := bytes.Repeat([]byte{0, 1, 2, 0xff}, 100_000)
			require.NoError(t, open.Copy(t.Context(), remote.File{Path: `C:\Windows\Temp\large.bin`, Content: large}))
			text, err := l.ReadFile("vm-01", "/C:/Windows/Temp/large.bin")
			require.NoError(t, err)
			require.True(t, bytes.Equal(large, text))
			require.Zero(t, l.Counts("vm-01").Unknown)
		})
	}
}
