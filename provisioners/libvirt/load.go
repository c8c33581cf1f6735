package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	rpc "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"berth/internal/hostkey"
	"berth/provisioners"
	"berth/reservation"
)

// The stages of a load.
const (
	stageLook   = "look up"
	stageRemove = "remove earlier domain"
	stageFetch  = "fetch image"
	stageWait   = "wait for a slot"
	stageDefine = "define"
	stageDisk   = "make disk"
	stageSeed   = "write seed"
	stageStart  = "power on"
)

// maxRounds bounds how often one call of Load looks again after the host has changed under it.
const maxRounds = 4

// LateError says that a later attempt of the same reservation has the computer already: this worker was paused or cut
// off, and touches nothing.
type LateError struct {
	Mine, Found reservation.Mark
}

func (e *LateError) Error() string {
	return fmt.Sprintf("this worker is late: it works on attempt %d of reservation %s, and the computer's domain is of attempt %d already",
		e.Mine.Attempt, e.Mine.Reservation, e.Found.Attempt)
}

// StartError says that QEMU did not start a guest, or that it was off again at once.
type StartError struct {
	Site   string
	Domain string
	Err    error
}

func (e *StartError) Error() string {
	return fmt.Sprintf("site %s: start %s: %v", e.Site, e.Domain, e.Err)
}

func (e *StartError) Unwrap() error { return e.Err }

// load is one call of Load.
type load struct {
	host    *host
	http    *http.Client
	request provisioners.Request
	report  reservation.Reporter

	pool       *pool
	virt       string
	controlKey string // an authorized_keys line; "" for none
}

// Load is part of provisioners.Provisioner. It removes what stood under the computer's name from an earlier load, brings the
// image's master to the host if it is not there, and makes and starts the domain. Its stages are "look up", "remove earlier
// domain", "fetch image", "wait for a slot", "define", "make disk", "write seed" and "power on", each where there is something
// to do.
func (m *Module) Load(ctx context.Context, request provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	loaded, err := m.load(ctx, request, report)
	if err != nil && ctx.Err() != nil {
		return provisioners.Loaded{}, ctx.Err()
	}
	return loaded, Classify(err)
}

func (m *Module) load(ctx context.Context, request provisioners.Request, report reservation.Reporter) (provisioners.Loaded, error) {
	h, err := provisioners.SiteOf(m.hosts, request.Reservation.Computer)
	if err != nil {
		return provisioners.Loaded{}, err
	}
	report.Stage(stageLook, "at site "+h.site.Name)
	l := &load{host: h, http: m.http, request: request, report: report}
	if err := l.check(m); err != nil {
		return provisioners.Loaded{}, err
	}
	var again error
	for range maxRounds {
		loaded, err := l.round(ctx)
		if err == nil {
			return loaded, nil
		}
		if ctx.Err() != nil || errors.As(err, new(*StartError)) || errors.As(err, new(*MissingError)) ||
			errors.As(err, new(*NoSpaceError)) ||
			!code(err, rpc.ErrOperationFailed, rpc.ErrDomExist, rpc.ErrNoDomain, rpc.ErrNoStorageVol, rpc.ErrStorageVolExist) {
			return provisioners.Loaded{}, err
		}
		// The host has changed between our look and our call, or another worker of this very load is at it, too.
		h.log.Info().Err(err).Str("computer", request.Reservation.Computer.Name).Msg("looking again")
		again = err
	}
	return provisioners.Loaded{}, fmt.Errorf("gave up after %d looks: %w", maxRounds, again)
}

// check checks what needs no host.
func (l *load) check(m *Module) error {
	computer, image := l.request.Reservation.Computer, l.request.Reservation.Image
	if err := m.ValidateSource(image.Sources[Type]); err != nil {
		return reservation.Fail("image "+image.String()+" cannot be loaded", err)
	}
	if err := m.ValidatePlacement(computer.Placement); err != nil {
		return reservation.Fail("computer "+computer.Name+" cannot be placed", err)
	}
	if !seedsCloudInit(image) {
		switch {
		case image.Control.HostKey == reservation.HostKeyHanded:
			return reservation.Fail("image "+image.String()+" cannot be handed a host key",
				&reservation.FieldError{Field: "image.control.host_key",
					Value:  image.Control.HostKey,
					Remedy: "it takes one from cloud-init only: write cloud_init: true into its source, or host_key: " + reservation.HostKeyFirst})
		case computer.Placement[placeAddress] != "":
			return reservation.Fail("computer "+computer.Name+" cannot be given its address",
				&reservation.FieldError{Field: "computer.placement." + placeAddress,
					Value:  computer.Placement[placeAddress],
					Remedy: "image " + image.String() + " takes one from cloud-init only: write cloud_init: true into its source, or leave the address out"})
		}
		return nil
	}
	if image.Control.Channel != reservation.ChannelSSH {
		return nil
	}
	var err error
	if l.controlKey, err = m.controlKey(image.Control.Credential); err != nil {
		return reservation.Fail("the guest cannot be given the key that it is controlled with", err)
	}
	return nil
}

// round brings the computer from whatever stands there to loaded.
func (l *load) round(ctx context.Context) (provisioners.Loaded, error) {
	if err := l.lookUp(ctx); err != nil {
		return provisioners.Loaded{}, err
	}
	vm, err := l.look(ctx)
	if err != nil {
		return provisioners.Loaded{}, err
	}
	if vm != nil && l.owns(vm) && !vm.power.settled() {
		// A worker before us has begun to start it.
		l.report.Stage(stageStart, "going on with "+vm.id())
		if vm.power, err = l.await(ctx, vm.domain); err != nil {
			return provisioners.Loaded{}, err
		}
	}
	if vm != nil && l.owns(vm) && vm.power.on() {
		if err := l.autostart(ctx, vm.domain); err != nil {
			return provisioners.Loaded{}, err
		}
		return provisioners.Loaded{HostKey: vm.tag.HostKey, Reference: vm.id()}, nil
	}
	if vm != nil {
		// What this attempt has made and not started is made anew: half of it may be missing.
		l.report.Stage(stageRemove, vm.String()+", "+vm.power.String())
	}
	if err := l.host.clear(ctx, l.request.Reservation.Computer.Name, vm, l.pool, "", l.report.Confirm); err != nil {
		return provisioners.Loaded{}, err
	}
	master, err := l.master(ctx, l.pool)
	if err != nil {
		return provisioners.Loaded{}, err
	}
	leave, err := l.enter(ctx, l.host.site.Name, l.host.site.Loads, func(place int) {
		l.report.Stage(stageWait, "for other loads on this host, "+provisioners.InLine(place))
	})
	if err != nil {
		return provisioners.Loaded{}, err
	}
	defer leave()
	return l.make(ctx, master)
}

// lookUp finds what the computer needs on the host, before anything is touched.
func (l *load) lookUp(ctx context.Context) (err error) {
	computer := l.request.Reservation.Computer
	name := computer.Placement[placePool]
	if name == "" {
		name = l.host.site.Pool
	}
	if l.pool, err = l.host.pool(ctx, name); err != nil {
		return err
	}
	if l.virt, err = l.host.virtType(ctx, l.request.Reservation.Image.OS.Architecture); err != nil {
		return err
	}
	if err := l.host.able(ctx, l.request.Reservation.Image, l.virt); err != nil {
		return err
	}
	for i := range max(len(computer.MACs), len(computer.Networks)) {
		if name := networkOf(computer, i); !strings.HasPrefix(name, bridgePrefix) {
			if err := l.host.network(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// network looks whether a network is there and active.
func (h *host) network(ctx context.Context, name string) error {
	active, err := ask(ctx, h, func(l *rpc.Libvirt) (int32, error) {
		network, err := l.NetworkLookupByName(name)
		if err != nil {
			return 0, err
		}
		return l.NetworkIsActive(network)
	})
	switch {
	case code(err, rpc.ErrNoNetwork):
		return &MissingError{Site: h.site.Name, Kind: "network", Name: name, Err: err,
			Remedy: "define it on the host, or correct the computer's networks; one of the host's bridges is written as " + bridgePrefix + "NAME"}
	case err != nil:
		return fmt.Errorf("site %s: look up network %s: %w", h.site.Name, name, err)
	case active == 0:
		return &MissingError{Site: h.site.Name, Kind: "active network", Name: name,
			Remedy: "start it: virsh net-start, and net-autostart for the host's next start"}
	}
	return nil
}

// owns says whether a domain is what this very attempt has made.
func (l *load) owns(vm *machine) bool { return vm.marked && vm.mark == l.request.Mark }

// look returns what stands under the computer's name, or nil. What must not be touched is an error.
func (l *load) look(ctx context.Context) (*machine, error) {
	vm, err := l.host.find(ctx, l.request.Reservation.Computer.Name)
	if err != nil || vm == nil {
		return nil, err
	}
	if vm.marked && vm.mark.Same(l.request.Mark) && vm.mark.Attempt > l.request.Mark.Attempt {
		return nil, &LateError{Mine: l.request.Mark, Found: vm.mark}
	}
	return vm, nil
}

// enter enters a gate of this provisioner's.
func (l *load) enter(ctx context.Context, name string, capacity int, waiting func(place int)) (leave func(), err error) {
	name = Type + "/" + name
	if l.request.Enter == nil {
		return l.host.gates.enter(ctx, name, capacity, waiting)
	}
	return l.request.Enter(ctx, name, capacity, waiting)
}

// make makes the domain and its volumes, and starts it.
func (l *load) make(ctx context.Context, m master) (provisioners.Loaded, error) {
	r, mark := l.request.Reservation, l.request.Mark
	computer := r.Computer.Name
	hw := hardware{virt: l.virt, pool: l.pool, tag: tag{Mark: mark.String(), Image: r.Image.String(), User: r.User,
		Pool: l.pool.name(), Disk: diskName(computer, mark)}}
	var key hostkey.Pair
	var err error
	if seedsCloudInit(r.Image) {
		hw.tag.Seed = seedName(computer, mark)
	}
	if handsHostKey(r.Image) {
		if key, err = hostkey.New(computer); err != nil {
			return provisioners.Loaded{}, err
		}
		hw.tag.HostKey = key.Public
	}
	domain, err := l.define(ctx, hw)
	if err != nil {
		return provisioners.Loaded{}, err
	}
	l.report.Stage(stageDisk, hw.tag.Disk)
	capacity := m.capacity
	if gib, _ := strconv.ParseUint(r.Image.Sources[Type][sourceDisk], 10, 64); gib<<30 > capacity {
		capacity = gib << 30
	}
	if _, err := l.pool.create(ctx, overlay(hw.tag.Disk, capacity, m)); err != nil {
		return provisioners.Loaded{}, err
	}
	if hw.tag.Seed != "" {
		l.report.Stage(stageSeed, hw.tag.Seed)
		text, err := seed(l.request, l.controlKey, key)
		if err != nil {
			return provisioners.Loaded{}, err
		}
		made, err := l.pool.create(ctx, raw(hw.tag.Seed, modePrivate))
		if err != nil {
			return provisioners.Loaded{}, err
		}
		// Another worker of this attempt may have taken over, and made a seed of its own by this name.
		if err := l.report.Confirm(ctx); err != nil {
			return provisioners.Loaded{}, err
		}
		if err := l.pool.write(ctx, made, text); err != nil {
			return provisioners.Loaded{}, err
		}
	}
	if err := l.start(ctx, domain); err != nil {
		return provisioners.Loaded{}, err
	}
	if err := l.autostart(ctx, domain); err != nil {
		return provisioners.Loaded{}, err
	}
	return provisioners.Loaded{HostKey: hw.tag.HostKey, Reference: uuid.UUID(domain.UUID).String()}, nil
}

// define defines the domain, with its mark, before anything else is made. libvirt gives it a new UUID, and so refuses to put it
// in the place of one that has the name already.
func (l *load) define(ctx context.Context, hw hardware) (rpc.Domain, error) {
	l.report.Stage(stageDefine, l.request.Reservation.Computer.Name+" by "+hw.virt)
	text, err := describe(l.request, hw)
	if err != nil {
		return rpc.Domain{}, err
	}
	if err := l.report.Confirm(ctx); err != nil {
		return rpc.Domain{}, err
	}
	var domain rpc.Domain
	err = change(ctx, l.host, func(c *rpc.Libvirt) (err error) {
		domain, err = c.DomainDefineXML(text)
		return err
	})
	if err != nil {
		return domain, fmt.Errorf("site %s: define %s: %w", l.host.site.Name, l.request.Reservation.Computer.Name, err)
	}
	return domain, nil
}

// start starts the domain and waits until it runs.
func (l *load) start(ctx context.Context, domain rpc.Domain) error {
	l.report.Stage(stageStart, uuid.UUID(domain.UUID).String())
	if err := l.report.Confirm(ctx); err != nil {
		return err
	}
	started := change(ctx, l.host, func(c *rpc.Libvirt) error { return c.DomainCreate(domain) })
	// It may run already, started by a worker before us: a domain is not started twice.
	if started != nil && !code(started, rpc.ErrOperationInvalid) {
		return startError(l.host.site.Name, domain.Name, started)
	}
	now, err := l.await(ctx, domain)
	switch {
	case err != nil:
		return err
	case now.on():
		return nil
	case started != nil:
		return &StartError{Site: l.host.site.Name, Domain: domain.Name, Err: started}
	default:
		return &StartError{Site: l.host.site.Name, Domain: domain.Name, Err: errors.New("it is " + now.String())}
	}
}

// autostart has the host start the guest again when the host itself was restarted: whoever has it reserved cannot. It is
// done last, so that nothing that is half made is ever started.
func (l *load) autostart(ctx context.Context, domain rpc.Domain) error {
	if err := change(ctx, l.host, func(c *rpc.Libvirt) error { return c.DomainSetAutostart(domain, 1) }); err != nil {
		return fmt.Errorf("site %s: have the host start %s at its own start: %w", l.host.site.Name, domain.Name, err)
	}
	return nil
}

// startError marks as such what libvirt says of a start that failed. A broken connection says nothing of it.
func startError(site, domain string, err error) error {
	if code(err, rpc.ErrInternalError, rpc.ErrOperationFailed, rpc.ErrSystemError, rpc.ErrResourceBusy, rpc.ErrNoMemory,
		rpc.ErrOperationUnsupported) {
		return &StartError{Site: site, Domain: domain, Err: err}
	}
	return fmt.Errorf("site %s: start %s: %w", site, domain, err)
}

func (l *load) await(ctx context.Context, domain rpc.Domain) (power, error) {
	now, err := l.host.await(ctx, domain, func(p power) { l.report.Stage(stageStart, uuid.UUID(domain.UUID).String()+", "+p.String()) })
	if err != nil {
		return now, fmt.Errorf("site %s: wait for %s: %w", l.host.site.Name, domain.Name, err)
	}
	return now, nil
}
