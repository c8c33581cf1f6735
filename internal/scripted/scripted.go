// Package scripted holds a provisioner and an OS module that do what a script says, attempt by attempt, and remember
// what they were asked. With no script they do nothing at once: the engine alone, for tests of the workflow and for
// measuring it.
package scripted

import (
	"context"
	"sync"

	"berth/osmodules"
	"berth/provisioners"
	"berth/reservation"
)

// Act is what a module does in one call.
type Act func(ctx context.Context, report reservation.Reporter) error

// Acts is a script: the act of attempt 1, of attempt 2, and so on. The last one repeats; none means "done at once".
type Acts []Act

func (a Acts) play(ctx context.Context, attempt int, report reservation.Reporter) error {
	if len(a) == 0 {
		return nil
	}
	act := a[min(attempt, len(a))-1]
	if act == nil {
		return nil
	}
	return act(ctx, report)
}

// Calls remembers calls as "name attempt". It is safe for concurrent use.
type Calls struct {
	mu    sync.Mutex
	calls []Call
}

// Call is one call of a module.
type Call struct {
	Name     string
	Attempt  int
	Mark     reservation.Mark
	Computer string
}

// All returns the calls so far, in order.
func (c *Calls) All() []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Call(nil), c.calls...)
}

// Names returns the names of the calls so far, in order.
func (c *Calls) Names() []string {
	var names []string
	for _, call := range c.All() {
		names = append(names, call.Name)
	}
	return names
}

func (c *Calls) add(name string, mark reservation.Mark, computer string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, Call{Name: name, Attempt: mark.Attempt, Mark: mark, Computer: computer})
}

// Provisioner is a provisioner with every capability the workflow uses.
type Provisioner struct {
	Loads   Acts
	Aborts  Acts
	Unloads Acts
	HostKey string // what Load hands over
	Calls   *Calls // may be nil
}

// Load is part of provisioners.Provisioner.
func (p *Provisioner) Load(ctx context.Context, r provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	p.Calls.add("load", r.Mark, r.Reservation.Computer.Name)
	if err := p.Loads.play(ctx, r.Attempt.Number, report); err != nil {
		return provisioners.Loaded{}, err
	}
	return provisioners.Loaded{HostKey: p.HostKey}, nil
}

// Abort is part of provisioners.Aborter.
func (p *Provisioner) Abort(ctx context.Context, r provisioners.Request, report reservation.Reporter) error {
	p.Calls.add("abort", r.Mark, r.Reservation.Computer.Name)
	return p.Aborts.play(ctx, r.Attempt.Number, report)
}

// Unload is part of provisioners.Unloader.
func (p *Provisioner) Unload(ctx context.Context, r provisioners.Request, report reservation.Reporter) error {
	p.Calls.add("unload", r.Mark, r.Reservation.Computer.Name)
	return p.Unloads.play(ctx, r.Attempt.Number, report)
}

// PowerReset is part of provisioners.PowerResetter.
func (p *Provisioner) PowerReset(_ context.Context, r provisioners.Request) error {
	p.Calls.add("power-reset", r.Mark, r.Reservation.Computer.Name)
	return nil
}

// AfterResponse is part of provisioners.AfterResponder.
func (p *Provisioner) AfterResponse(_ context.Context, r provisioners.Request, _ reservation.Reporter) error {
	p.Calls.add("after-response", r.Mark, r.Reservation.Computer.Name)
	return nil
}

// OSModule is an OS module without a guest: its answers have no channel.
type OSModule struct {
	Waits         Acts
	PostLoads     Acts
	HostKey       string // the fingerprint it answers with
	PublicAddress string
	Steps         []reservation.Step
	Calls         *Calls // may be nil
}

// WaitForResponse is part of osmodules.Module.
func (m *OSModule) WaitForResponse(ctx context.Context, r osmodules.Request, report reservation.Reporter) (osmodules.Answer, error) {
	m.Calls.add("wait-for-response", r.Mark, r.Reservation.Computer.Name)
	if err := m.Waits.play(ctx, r.Attempt.Number, report); err != nil {
		return osmodules.Answer{}, err
	}
	return osmodules.Answer{HostKey: m.HostKey}, nil
}

// PostLoad is part of osmodules.Module.
func (m *OSModule) PostLoad(ctx context.Context, r osmodules.Request, _ osmodules.Answer, report reservation.Reporter) (osmodules.Report, error) {
	m.Calls.add("post-load", r.Mark, r.Reservation.Computer.Name)
	return osmodules.Report{Steps: m.Steps, PublicAddress: m.PublicAddress}, m.PostLoads.play(ctx, r.Attempt.Number, report)
}

// Reload returns an act that answers reload (0).
func Reload(reason string) Act {
	return func(context.Context, reservation.Reporter) error { return reservation.Reload(reason, nil) }
}

// Fail returns an act that answers fail (undef).
func Fail(reason string) Act {
	return func(context.Context, reservation.Reporter) error { return reservation.Fail(reason, nil) }
}

// Hang returns an act that shows a stage, closes began (unless nil), and goes on until its context ends.
func Hang(stage string, began chan<- struct{}) Act {
	var once sync.Once
	return func(ctx context.Context, report reservation.Reporter) error {
		report.Stage(stage, "")
		if began != nil {
			once.Do(func() { close(began) })
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

// Reservation returns a valid reservation of a scripted computer, loaded by a provisioner of the given type.
func Reservation(name, computer, provisioner string) reservation.Reservation {
	return reservation.Reservation{
		Name: name, User: "ana",
		Computer: reservation.Computer{Name: computer, Provisioner: provisioner, Hardware: reservation.Virtual, Address: "127.0.0.1:2201"},
		Image: reservation.Image{
			Name: "debian12", Revision: 3, OS: reservation.OS{Family: reservation.Linux, Version: "12"},
			Sources: map[string]map[string]string{provisioner: {"template": "debian12-template", "snapshot": "r3"}},
			Control: reservation.Control{Channel: "ssh", User: "root", Credential: "linux-root", HostKey: reservation.HostKeyHanded},
		},
	}
}
