// Package climb holds what every wait for a guest needs, whatever its OS: pauses, the cache of a name's address, and how
// a rung is shown.
package climb

import (
	"context"
	"crypto/rand"
	random "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Span is a range of durations.
type Span struct{ From, To time.Duration }

// Jittered returns a random duration of the span, so that 1,000 guests are not all tried at once.
func (s Span) Jittered() time.Duration {
	if s.To <= s.From {
		return s.From
	}
	return s.From + random.N(s.To-s.From)
}

// Sleep waits for d or until ctx ends, which is its error, or until stop is closed, which is none.
func Sleep(ctx context.Context, d time.Duration, stop <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-stop:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Round makes a duration fit for a person.
func Round(d time.Duration) time.Duration {
	if d >= 10*time.Second {
		return d.Round(time.Second)
	}
	return d.Round(100 * time.Millisecond)
}

// HostCache keeps a host name's address for some seconds: 1,000 guests that are tried twice a second must not ask the
// name service as often.
type HostCache struct {
	address string
	until   time.Time
}

// Resolve returns host:port with the host's address. It is not safe for concurrent use.
func (h *HostCache) Resolve(ctx context.Context, address string) (string, error) {
	const keep, limit = 10 * time.Second, 3 * time.Second
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return address, nil
	}
	if time.Now().Before(h.until) {
		return h.address, nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", err
	}
	h.address, h.until = net.JoinHostPort(found[0].Unmap().String(), port), time.Now().Add(keep)
	return h.address, nil
}

// Cut shortens a text that travels with heartbeats.
func Cut(text string, longest int) string {
	if len(text) <= longest {
		return text
	}
	return strings.ToValidUTF8(text[:longest], "") + "..."
}

// RandomPassword returns 24 random characters (142 bits), none of which a shell or chpasswd reads as anything else.
func RandomPassword() string {
	const length, letters = 24, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	password := make([]byte, 0, length)
	one := make([]byte, 1)
	for len(password) < length {
		rand.Read(one)                               // never fails (Go 1.24 and later)
		if n := int(one[0]) & 63; n < len(letters) { // 62 and 63 are thrown away: each letter is as likely
			password = append(password, letters[n])
		}
	}
	return string(password)
}
