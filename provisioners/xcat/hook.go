package xcat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"berth/provisioners"
	"berth/provisioners/xcat/xcatd"
	"berth/reservation"
)

// stageKeys is the stage of the hook.
const stageKeys = "host keys"

// AfterResponse is part of provisioners.AfterResponder. Berth keeps host keys itself, so this does nothing unless the image
// asks for the management node's known_hosts to be kept too: own has the node's old lines removed and its keys scanned on
// the management node, shared writes xCAT's shared key there. One node after the other does so, over all workers.
func (m *Module) AfterResponse(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	keys := request.Reservation.Image.Sources[Type][sourceKnownHosts]
	if keys == "" {
		return nil
	}
	err := func() error {
		n, err := m.open(request, report)
		if err != nil {
			return err
		}
		v, err := n.guard(ctx)
		if err == nil {
			err = n.booted(v) // what answers otherwise is an installer
		}
		if err != nil {
			return err
		}
		if request.Enter != nil {
			leave, err := request.Enter(ctx, n.keysGate(), 1, func(place int) {
				report.Stage(stageKeys, fmt.Sprintf("number %d in line for the management node's known_hosts", place))
			})
			if err != nil {
				return err
			}
			defer leave()
		}
		report.Stage(stageKeys, keys+", in the management node's known_hosts")
		if keys == hostKeysShared {
			return n.client.ShareKnownHost(ctx, n.node)
		}
		return n.scan(ctx)
	}()
	return ended(ctx, err)
}

// scan replaces the node's lines in the management node's known_hosts by the keys that it shows now.
func (n *node) scan(ctx context.Context) error {
	if n.tools == nil {
		return reservation.Fail("site "+n.name+" has no tools to scan host keys with", nil)
	}
	run := func(input []byte, words ...string) (xcatd.Output, error) {
		output, err := n.tools.Execute(ctx, words, input)
		if err != nil {
			return output, fmt.Errorf("site %s: %s on the management node: %w", n.name, words[0], err)
		}
		return output, nil
	}
	names := []string{n.node}
	host := n.request.Reservation.Computer.Address
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host != n.node {
		names = append(names, host)
	}
	scanned, err := run(nil, "ssh-keyscan", "-T", "5", "-t", "rsa,ecdsa,ed25519", strings.Join(names, ","))
	if err != nil {
		return err
	}
	if scanned.Code != 0 || strings.TrimSpace(scanned.Stdout) == "" {
		return fmt.Errorf("site %s: ssh-keyscan on the management node found no key of %s: %s", n.name, n.node, strings.TrimSpace(scanned.Stderr))
	}
	for _, name := range names {
		if _, err := run(nil, "ssh-keygen", "-R", name, "-f", n.knownHosts); err != nil { // a name that is not there is none to remove
			return err
		}
	}
	added, err := run([]byte(scanned.Stdout), "tee", "-a", n.knownHosts)
	if err == nil && added.Code != 0 {
		err = errors.New(strings.TrimSpace(added.Stderr))
	}
	return err
}
