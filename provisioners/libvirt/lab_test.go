package libvirt

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"berth/provisioners"
	"berth/reservation"
)

// reporter records what a load reports. It is a reservation.Reporter.
type reporter struct {
	// at, if not nil, is called at each stage and detail, before it is recorded.
	at func(stage, detail string)
	// refuse, if not nil, says whether Confirm refuses.
	refuse func() bool

	mu     sync.Mutex
	stages []string // "name: detail"
	kept   map[string]string
}

var errRefused = errors.New("another worker has taken over")

func (r *reporter) Stage(name, detail string) {
	if r.at != nil {
		r.at(name, detail)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stages = append(r.stages, name+": "+detail)
}

func (r *reporter) Keep(key, value string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept == nil {
		r.kept = map[string]string{}
	}
	r.kept[key] = value
}

func (r *reporter) Kept(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept[key]
}

func (r *reporter) Confirm(ctx context.Context) error {
	if r.refuse != nil && r.refuse() {
		return errRefused
	}
	return ctx.Err()
}

func (r *reporter) all() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.stages, "\n")
}

const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// requestFor returns a load of computer vm-01.
func requestFor(change func(*reservation.Reservation)) provisioners.Request {
	r := reservation.Reservation{
		Name: "r1", User: "ana", End: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC),
		Computer: reservation.Computer{Name: "vm-01", Provisioner: Type, Hardware: reservation.Virtual, Address: "10.77.0.21",
			MACs: []string{"52:54:00:77:00:01"}, Networks: []string{"berth"}},
		Image: reservation.Image{Name: "debian12", Revision: 3, OS: reservation.OS{Family: reservation.Linux, Version: "12"},
			Sources: map[string]map[string]string{Type: {sourceMaster: "/srv/debian12.qcow2", sourceSHA256: digest, sourceCloudInit: "true"}},
			Control: reservation.Control{Channel: reservation.ChannelSSH, User: "root", Credential: "linux-root"}},
	}
	if change != nil {
		change(&r)
	}
	return provisioners.Request{Reservation: r, Mark: reservation.Mark{Reservation: r.Name, Run: "run-1", Attempt: 1},
		Attempt: reservation.Attempt{Number: 1, Of: 3}}
}
