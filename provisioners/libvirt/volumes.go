package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

const (
	// refreshEvery and refreshLimit pace the refresh of a pool in which volumes are just being made: libvirt refuses it then.
	refreshEvery = 250 * time.Millisecond
	refreshLimit = 60 * time.Second
	// scarce is what a pool has free when a volume that was refused is taken to have been refused for want of room, in bytes.
	scarce = 16 << 20
	// What libvirt writes to is the owner's alone; a master is everybody's to read and, but for libvirt, nobody's to write.
	modeMaster  = "0444"
	modePrivate = "0600"
)

// MissingError says that something that the catalog names is not on the host, or is of no use there.
type MissingError struct {
	Site   string
	Kind   string // "storage pool", "network", ...
	Name   string
	Remedy string
	Err    error // libvirt's, if it said so
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("site %s: no %s %q: %s", e.Site, e.Kind, e.Name, e.Remedy)
}

func (e *MissingError) Unwrap() error { return e.Err }

// NoSpaceError says that a pool is full.
type NoSpaceError struct {
	Site, Pool  string
	Needs, Free uint64 // bytes; Needs is 0 if unknown
	Err         error
}

func (e *NoSpaceError) Error() string {
	needs := "more"
	if e.Needs > 0 {
		needs = byteSize(e.Needs)
	}
	text := fmt.Sprintf("site %s: storage pool %s has %s free, and %s is needed", e.Site, e.Pool, byteSize(e.Free), needs)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *NoSpaceError) Unwrap() error { return e.Err }

// code says whether an error is libvirt's of one of the given codes.
func code(err error, codes ...rpc.ErrorNumber) bool {
	var said rpc.Error
	return errors.As(err, &said) && slices.Contains(codes, rpc.ErrorNumber(said.Code))
}

// pool is a storage pool that files can be made in.
type pool struct {
	host   *host
	handle rpc.StoragePool
	folder string // on the host
}

// pool looks a storage pool up: it must be active, and a folder of files.
func (h *host) pool(ctx context.Context, name string) (*pool, error) {
	missing := func(remedy string, err error) error {
		return &MissingError{Site: h.site.Name, Kind: "usable storage pool", Name: name, Remedy: remedy, Err: err}
	}
	p := &pool{host: h}
	description, err := ask(ctx, h, func(l *rpc.Libvirt) (described libvirtxml.StoragePool, err error) {
		if p.handle, err = l.StoragePoolLookupByName(name); err != nil {
			return described, err
		}
		text, err := l.StoragePoolGetXMLDesc(p.handle, 0)
		if err != nil {
			return described, err
		}
		return described, described.Unmarshal(text)
	})
	if code(err, rpc.ErrNoStoragePool) {
		return nil, missing("define it on the host (virsh pool-define-as), or write another one into the site's pool or the computer's placement", err)
	}
	if err != nil {
		return nil, fmt.Errorf("site %s: look up storage pool %s: %w", h.site.Name, name, err)
	}
	if !slices.Contains([]string{"dir", "fs", "netfs"}, description.Type) || description.Target == nil {
		return nil, missing(fmt.Sprintf("it is of type %s, and copy-on-write disks need a pool of files: dir, fs or netfs",
			description.Type), nil)
	}
	p.folder = description.Target.Path
	active, err := ask(ctx, h, func(l *rpc.Libvirt) (int32, error) { return l.StoragePoolIsActive(p.handle) })
	if err != nil {
		return nil, fmt.Errorf("site %s: look at storage pool %s: %w", h.site.Name, name, err)
	}
	if active == 0 {
		return nil, missing("it is not started: virsh pool-start, and pool-autostart for the host's next start", nil)
	}
	return p, nil
}

func (p *pool) name() string { return p.handle.Name }

// path returns where a volume of the pool is on the host.
func (p *pool) path(volume string) string { return path.Join(p.folder, volume) }

// volume is a volume as it stood when it was read.
type volume struct {
	handle   rpc.StorageVol
	size     uint64 // of the file, in bytes
	capacity uint64 // of the disk that it holds, in bytes
	modified string // seconds with nanoseconds
	format   string
	backed   bool // it is a copy-on-write disk on another one
}

// find reads a volume, or returns nil when there is none.
func (p *pool) find(ctx context.Context, name string) (*volume, error) {
	v := &volume{}
	description, err := ask(ctx, p.host, func(l *rpc.Libvirt) (described libvirtxml.StorageVolume, err error) {
		if v.handle, err = l.StorageVolLookupByName(p.handle, name); err != nil {
			return described, err
		}
		text, err := l.StorageVolGetXMLDesc(v.handle, 0)
		if err != nil {
			return described, err
		}
		return described, described.Unmarshal(text)
	})
	if code(err, rpc.ErrNoStorageVol) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("site %s: look at volume %s/%s: %w", p.host.site.Name, p.name(), name, err)
	}
	if description.Physical != nil {
		v.size = description.Physical.Value
	}
	if description.Capacity != nil {
		v.capacity = description.Capacity.Value
	}
	if target := description.Target; target != nil {
		if target.Timestamps != nil {
			v.modified = target.Timestamps.Mtime
		}
		if target.Format != nil {
			v.format = target.Format.Type
		}
	}
	v.backed = description.BackingStore != nil
	return v, nil
}

// names returns the names of those of the pool's volumes that keep wants.
func (p *pool) names(ctx context.Context, keep func(name string) bool) ([]string, error) {
	all, err := ask(ctx, p.host, func(l *rpc.Libvirt) ([]rpc.StorageVol, error) {
		all, _, err := l.StoragePoolListAllVolumes(p.handle, 1, 0)
		return all, err
	})
	if err != nil {
		return nil, fmt.Errorf("site %s: list storage pool %s: %w", p.host.site.Name, p.name(), err)
	}
	var names []string
	for _, v := range all {
		if keep(v.Name) {
			names = append(names, v.Name)
		}
	}
	return names, nil
}

// refresh has libvirt look at the pool's files: at their formats, at how much room is left, and at what came or went behind
// its back.
func (p *pool) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshLimit)
	defer cancel()
	for {
		err := change(ctx, p.host, func(l *rpc.Libvirt) error { return l.StoragePoolRefresh(p.handle, 0) })
		// "has asynchronous jobs running" is an internal error like many others: a moment later it may do.
		if err == nil || !code(err, rpc.ErrInternalError, rpc.ErrOperationInvalid) {
			return err
		}
		timer := time.NewTimer(refreshEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("site %s: refresh storage pool %s: %w", p.host.site.Name, p.name(), err)
		}
	}
}

// free returns how many bytes the pool has left.
func (p *pool) free(ctx context.Context) (uint64, error) {
	if err := p.refresh(ctx); err != nil {
		return 0, err
	}
	return ask(ctx, p.host, func(l *rpc.Libvirt) (uint64, error) {
		_, _, _, available, err := l.StoragePoolGetInfo(p.handle)
		return available, err
	})
}

// full makes err a *NoSpaceError if the pool has no room left: libvirt has no code for that.
func (p *pool) full(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || !code(err, rpc.ErrSystemError, rpc.ErrInternalError, rpc.ErrOperationFailed,
		rpc.ErrWriteFailed, rpc.ErrRPC) {
		return err
	}
	if free, ferr := p.free(ctx); ferr == nil && free < scarce {
		return &NoSpaceError{Site: p.host.site.Name, Pool: p.name(), Free: free, Err: err}
	}
	return err
}

// create makes a volume. One that is there already is an error of libvirt's, ErrStorageVolExist.
func (p *pool) create(ctx context.Context, v libvirtxml.StorageVolume) (rpc.StorageVol, error) {
	text, err := v.Marshal()
	if err != nil {
		return rpc.StorageVol{}, err
	}
	var made rpc.StorageVol
	err = change(ctx, p.host, func(l *rpc.Libvirt) (err error) {
		made, err = l.StorageVolCreateXML(p.handle, text, 0)
		return err
	})
	if err != nil {
		return made, p.full(ctx, fmt.Errorf("site %s: make volume %s/%s: %w", p.host.site.Name, p.name(), v.Name, err))
	}
	return made, nil
}

// raw describes a volume of bytes that is empty and grows.
func raw(name, mode string) libvirtxml.StorageVolume {
	return libvirtxml.StorageVolume{
		Name: name, Capacity: &libvirtxml.StorageVolumeSize{}, Allocation: &libvirtxml.StorageVolumeSize{},
		Target: &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: formatRaw},
			Permissions: &libvirtxml.StorageVolumeTargetPermissions{Mode: mode}},
	}
}

// overlay describes a copy-on-write disk on a master.
func overlay(name string, capacity uint64, m master) libvirtxml.StorageVolume {
	return libvirtxml.StorageVolume{
		Name: name, Capacity: &libvirtxml.StorageVolumeSize{Value: capacity, Unit: "bytes"},
		Allocation: &libvirtxml.StorageVolumeSize{},
		Target: &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: formatQCOW2},
			Permissions: &libvirtxml.StorageVolumeTargetPermissions{Mode: modePrivate}},
		BackingStore: &libvirtxml.StorageVolumeBackingStore{Path: m.path,
			Format: &libvirtxml.StorageVolumeTargetFormat{Type: m.format}},
	}
}

// remove deletes a volume. One that is gone is fine.
func (p *pool) remove(ctx context.Context, name string) error {
	err := change(ctx, p.host, func(l *rpc.Libvirt) error {
		v, err := l.StorageVolLookupByName(p.handle, name)
		if err != nil {
			return err
		}
		return l.StorageVolDelete(v, rpc.StorageVolDeleteNormal)
	})
	if err == nil || code(err, rpc.ErrNoStorageVol) {
		return nil
	}
	// Its file may have been removed by hand; libvirt then has an entry that goes with a refresh.
	if rerr := p.refresh(ctx); rerr == nil {
		if v, ferr := p.find(ctx, name); ferr == nil && v == nil {
			return nil
		}
	}
	return fmt.Errorf("site %s: delete volume %s/%s: %w", p.host.site.Name, p.name(), name, err)
}

// upload writes what r yields into a volume, from an offset on. What it has written when it fails stands in the volume. An
// error of r's own comes as it is, once all that came before it has been written.
func (p *pool) upload(ctx context.Context, v rpc.StorageVol, r io.Reader, offset uint64) error {
	source := &faultyReader{Reader: r}
	err := p.host.stream(ctx, func(l *rpc.Libvirt) error { return l.StorageVolUpload(v, source, offset, 0, 0) })
	if err == nil {
		return source.err
	}
	return p.full(ctx, fmt.Errorf("site %s: write into volume %s/%s: %w", p.host.site.Name, p.name(), v.Name, err))
}

// write writes the whole of a small volume.
func (p *pool) write(ctx context.Context, v rpc.StorageVol, text []byte) error {
	return p.upload(ctx, v, bytes.NewReader(text), 0)
}

// faultyReader remembers the error with which its reader ended, and ends well: libvirt throws away what it has not written
// yet of a stream that is broken off.
type faultyReader struct {
	io.Reader
	err error
}

func (r *faultyReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		r.err, err = err, io.EOF
	}
	return n, err
}

// download reads a volume's first bytes into w, which must take all that it is given.
func (p *pool) download(ctx context.Context, v rpc.StorageVol, w io.Writer, length uint64) error {
	err := p.host.stream(ctx, func(l *rpc.Libvirt) error { return l.StorageVolDownload(v, w, 0, length, 0) })
	if err != nil {
		return fmt.Errorf("site %s: read volume %s/%s: %w", p.host.site.Name, p.name(), v.Name, err)
	}
	return nil
}

// byteSize writes a number of bytes for people: "1.5 GiB".
func byteSize(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}
