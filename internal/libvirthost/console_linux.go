package libvirthost

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
)

// consoleAgain is how soon a console that is not there is looked for again: a guest that is off, or not yet made.
const consoleAgain = 300 * time.Millisecond

// Console hands on the lines of a domain's serial console, one after the other, until ctx ends: over restarts of the domain
// and of libvirtd, and over loads of the computer. The error is ctx's.
func (h *Host) Console(ctx context.Context, domain string, line func(string)) error {
	for {
		// That there is nothing to read yet is what it waits for.
		_ = h.console(ctx, domain, line)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(consoleAgain):
		}
	}
}

// console reads one connection's lines until it breaks.
func (h *Host) console(ctx context.Context, name string, line func(string)) error {
	l := rpc.NewWithDialer(dialers.NewLocal(dialers.WithSocket(Socket), dialers.WithLocalTimeout(startLimit)))
	if err := l.ConnectToURI(URI); err != nil {
		return err
	}
	defer l.Disconnect()
	domain, err := l.DomainLookupByName(name)
	if err != nil {
		return err
	}
	active, err := l.DomainIsActive(domain)
	if err != nil || active == 0 {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Disconnect() })
	defer stop()
	lines := &lineWriter{line: line}
	if err := l.DomainOpenConsole(domain, nil, lines, uint32(rpc.DomainConsoleForce)); err != nil {
		return fmt.Errorf("console of %s: %w", name, err)
	}
	return nil
}

// lineWriter hands on the lines of what is written to it, without what steers a terminal.
type lineWriter struct {
	line func(string)
	rest []byte
}

func (w *lineWriter) Write(text []byte) (int, error) {
	w.rest = append(w.rest, text...)
	for {
		end := bytes.IndexAny(w.rest, "\r\n")
		if end < 0 {
			return len(text), nil
		}
		if line := plain(string(w.rest[:end])); line != "" {
			w.line(line)
		}
		w.rest = w.rest[end+1:]
	}
}

// plain takes escape sequences ("\x1b[0;32m") and control characters out.
func plain(text string) string {
	var b strings.Builder
	escape := false
	for _, r := range text {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r == '[' || r == ';' || r == '?' || unicode.IsDigit(r)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		}
	}
	return strings.TrimSpace(b.String())
}
