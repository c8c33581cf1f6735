package libvirt

import (
	"context"
	"errors"
	"fmt"

	rpc "github.com/digitalocean/go-libvirt"

	"berth/internal/hostkey"
	"berth/provisioners"
	"berth/reservation"
)

// ForeignError says that a computer's domain bears another reservation's mark, or none, and is not touched.
type ForeignError struct {
	Site   string
	Domain string
	Mine   reservation.Mark
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("site %s: %s is not reservation %s's, and is not touched", e.Site, e.Domain, e.Mine.Reservation)
}

// clear removes a computer's domain, if there is one, and the computer's disks and seeds of the loads whose names begin with
// loads: first it is destroyed, then the volumes are deleted, and the domain, which says what belongs to it, goes last. It
// asks confirm before each step that destroys something. What is gone already is fine.
func (h *host) clear(ctx context.Context, computer string, vm *machine, p *pool, loads string,
	confirm func(context.Context) error) error {
	if vm != nil {
		h.log.Info().Str("domain", vm.id()).Str("computer", computer).Stringer("whose", vm).Msg("removing a domain")
		if !vm.power.off() {
			if err := confirm(ctx); err != nil {
				return err
			}
			if err := h.destroy(ctx, vm); err != nil {
				return err
			}
		}
	}
	pools := []*pool{p}
	if vm != nil && vm.tag.Pool != "" && vm.tag.Pool != p.name() {
		// It was placed elsewhere then.
		other, err := h.pool(ctx, vm.tag.Pool)
		if err != nil && !errors.As(err, new(*MissingError)) {
			return err
		}
		if err == nil {
			pools = append(pools, other)
		}
	}
	for _, p := range pools {
		names, err := p.names(ctx, func(name string) bool { return belongs(name, computer, loads) })
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := confirm(ctx); err != nil {
				return err
			}
			if err := p.remove(ctx, name); err != nil {
				return err
			}
		}
	}
	if vm == nil {
		return nil
	}
	if err := confirm(ctx); err != nil {
		return err
	}
	const everything = rpc.DomainUndefineManagedSave | rpc.DomainUndefineSnapshotsMetadata | rpc.DomainUndefineNvram | rpc.DomainUndefineCheckpointsMetadata
	err := change(ctx, h, func(l *rpc.Libvirt) error { return l.DomainUndefineFlags(vm.domain, everything) })
	// A transient domain is gone once it is off.
	if err != nil && !code(err, rpc.ErrNoDomain) {
		return fmt.Errorf("site %s: undefine %s: %w", h.site.Name, vm, err)
	}
	return nil
}

// destroy turns a domain off at once, and waits until it is.
func (h *host) destroy(ctx context.Context, vm *machine) error {
	err := change(ctx, h, func(l *rpc.Libvirt) error { return l.DomainDestroy(vm.domain) })
	if err == nil || code(err, rpc.ErrNoDomain) {
		return nil
	}
	if code(err, rpc.ErrOperationInvalid) {
		if now, perr := h.power(ctx, vm.domain); perr == nil && now.off() || code(perr, rpc.ErrNoDomain) {
			return nil
		}
	}
	return fmt.Errorf("site %s: destroy %s: %w", h.site.Name, vm, err)
}

// Abort is part of provisioners.Aborter. What has been brought of an image's master stays on the host: the next load goes on
// with it.
func (m *Module) Abort(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	return m.take(ctx, request, report)
}

// Unload is part of provisioners.Unloader. The domain is destroyed and undefined, and its disk and seed are deleted.
func (m *Module) Unload(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	return m.take(ctx, request, report)
}

// take removes the computer's domain if it is of the request's reservation, and what volumes this reservation's loads have
// left.
func (m *Module) take(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	err := func() error {
		computer := request.Reservation.Computer
		h, err := provisioners.SiteOf(m.hosts, computer)
		if err != nil {
			return err
		}
		report.Stage(stageLook, fmt.Sprintf("%s at site %s", computer.Name, h.site.Name))
		name := computer.Placement[placePool]
		if name == "" {
			name = h.site.Pool
		}
		p, err := h.pool(ctx, name)
		if errors.As(err, new(*MissingError)) {
			// No domain of a load stands on a pool that is not there: it is made after the pool was found. But the pool may have
			// been stopped since.
			if vm, ferr := h.find(ctx, computer.Name); ferr == nil && (vm == nil || !vm.mark.Same(request.Mark)) {
				h.log.Warn().Err(err).Str("computer", computer.Name).Msg("nothing to remove")
				return nil
			}
		}
		if err != nil {
			return err
		}
		vm, err := h.find(ctx, computer.Name)
		if err != nil {
			return err
		}
		if vm != nil && (!vm.marked || !vm.mark.Same(request.Mark)) {
			h.log.Warn().Str("computer", computer.Name).Stringer("found", vm).Str("reservation", request.Reservation.Name).
				Msg("what stands under the computer's name is not this reservation's; left alone")
			vm = nil
		}
		if vm != nil {
			report.Stage("destroy and undefine", vm.String())
		}
		return h.clear(ctx, computer.Name, vm, p, runOf(request.Mark)+"-", report.Confirm)
	}()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return Classify(err)
}

// PowerReset is part of provisioners.PowerResetter. A domain that is off is started, and one that is paused or has crashed is
// turned off and started. It is no graceful restart: the guest does not answer.
func (m *Module) PowerReset(ctx context.Context, request provisioners.Request) error {
	err := func() error {
		h, vm, err := m.own(ctx, request)
		if err != nil {
			return err
		}
		if vm.power.on() {
			if err := change(ctx, h, func(l *rpc.Libvirt) error { return l.DomainReset(vm.domain, 0) }); err != nil {
				return fmt.Errorf("site %s: reset %s: %w", h.site.Name, vm, err)
			}
			return nil
		}
		if !vm.power.off() {
			if err := h.destroy(ctx, vm); err != nil {
				return err
			}
		}
		err = change(ctx, h, func(l *rpc.Libvirt) error { return l.DomainCreate(vm.domain) })
		if code(err, rpc.ErrOperationInvalid) {
			if now, perr := h.power(ctx, vm.domain); perr == nil && now.on() {
				return nil
			}
		}
		if err != nil {
			return startError(h.site.Name, vm.domain.Name, err)
		}
		return nil
	}()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return Classify(err)
}

// AfterResponse is part of provisioners.AfterResponder. The guest has its host key, so the seed is written over by one without
// it. The rest of the seed stays for cloud-init to find at the guest's next boot.
func (m *Module) AfterResponse(ctx context.Context, request provisioners.Request, report reservation.Reporter) error {
	if !handsHostKey(request.Reservation.Image) {
		return nil
	}
	err := func() error {
		h, vm, err := m.own(ctx, request)
		if err != nil || vm.tag.Seed == "" {
			return err
		}
		report.Stage("clear host key", vm.tag.Seed)
		l := &load{host: h, request: request}
		if err := l.check(m); err != nil {
			return err
		}
		text, err := seed(request, l.controlKey, hostkey.Pair{})
		if err != nil {
			return err
		}
		p, err := h.pool(ctx, vm.tag.Pool)
		if err != nil {
			return err
		}
		v, err := p.find(ctx, vm.tag.Seed)
		if err != nil || v == nil {
			return err // gone, and the key with it
		}
		if err := report.Confirm(ctx); err != nil {
			return err
		}
		return p.write(ctx, v.handle, text)
	}()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return Classify(err)
}

// own returns the computer's domain if it is of the request's reservation and attempt.
func (m *Module) own(ctx context.Context, request provisioners.Request) (*host, *machine, error) {
	h, err := provisioners.SiteOf(m.hosts, request.Reservation.Computer)
	if err != nil {
		return nil, nil, err
	}
	vm, err := h.find(ctx, request.Reservation.Computer.Name)
	switch {
	case err != nil:
		return h, nil, err
	case vm == nil:
		return h, nil, reservation.Reload(fmt.Sprintf("site %s: the domain of computer %s is gone: somebody undefined or renamed it",
			h.site.Name, request.Reservation.Computer.Name), nil)
	case !vm.marked || vm.mark != request.Mark:
		return h, nil, &ForeignError{Site: h.site.Name, Domain: vm.String(), Mine: request.Mark}
	}
	return h, vm, nil
}
