package libvirt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"berth/provisioners"
)

// How volumes are called. Names have no underscore of their own, so none of these can be taken for another.
const (
	masterPrefix  = "berth_image_"
	checkedSuffix = ".checked"
	// digestInName is how many hex digits of the digest are in a master's name: 128 bits.
	digestInName = 32
	// showEvery is how often the progress of a transfer is told.
	showEvery = time.Second
	// followEvery is how often a load that waits for another one's transfer looks how far it is.
	followEvery = 2 * time.Second
)

// DigestError says that an image's bits are not those that the catalog names.
type DigestError struct {
	Where      string
	Want, Have string // SHA-256, hex
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s has SHA-256 %s, and the catalog says %s", e.Where, e.Have, e.Want)
}

// FormatError says that an image's bits are no disk of the format that the catalog names, or not one by itself.
type FormatError struct {
	Where, Problem string
}

func (e *FormatError) Error() string { return e.Where + " " + e.Problem }

// master is an image's master on the host, complete and checked.
type master struct {
	path     string
	format   string
	capacity uint64 // of the disk, in bytes
}

// wanted is the master that an image's source asks for.
type wanted struct {
	source string // file or URL; "" for a volume that is on the host already
	volume string
	sha256 string
	size   uint64 // in bytes; 0 if unknown
	format string
}

// wants reads an image's source, which has been validated.
func wants(source map[string]string) wanted {
	w := wanted{source: source[sourceMaster], volume: source[sourceVolume], sha256: source[sourceSHA256], format: source[sourceFormat]}
	w.size, _ = strconv.ParseUint(source[sourceSize], 10, 64)
	if w.format == "" {
		w.format = formatQCOW2
	}
	if w.volume == "" {
		w.volume = w.prefix() + "." + w.format
	}
	return w
}

func (w wanted) prefix() string { return masterPrefix + w.sha256[:digestInName] }

// checked returns the name of the volume whose existence says that a master's bits were checked when it had the size and the
// time that it has now. It is empty: a name is there or not, and never half there.
func (w wanted) checked(v *volume) string {
	return fmt.Sprintf("%s_%d_%s%s", w.prefix(), v.size, v.modified, checkedSuffix)
}

// master brings the image's master to the host unless it is there, and returns it.
func (l *load) master(ctx context.Context, p *pool) (master, error) {
	w := wants(l.request.Reservation.Image.Sources[Type])
	v, err := p.ready(ctx, w)
	if err != nil {
		return master{}, err
	}
	if v == nil {
		l.report.Stage(stageFetch, w.sha256[:digestInName])
		leave, there, err := l.enterFetch(ctx, p, w)
		if err != nil {
			return master{}, err
		}
		if !there {
			err = l.fetch(ctx, p, w)
			leave()
			if err != nil {
				return master{}, err
			}
		}
		if v, err = p.ready(ctx, w); err != nil {
			return master{}, err
		}
		if v == nil {
			return master{}, fmt.Errorf("site %s: volume %s/%s was changed or removed right after it had been checked",
				l.host.site.Name, p.name(), w.volume)
		}
	}
	where := "volume " + p.name() + "/" + w.volume
	if v.format != w.format {
		// libvirt may have seen it last before its bits were there.
		if err := p.refresh(ctx); err != nil {
			return master{}, err
		}
		if v, err = p.find(ctx, w.volume); err != nil || v == nil {
			return master{}, errors.Join(err, fmt.Errorf("site %s: %s is gone", l.host.site.Name, where))
		}
	}
	switch {
	case v.format != w.format:
		return master{}, &FormatError{where, fmt.Sprintf("is of format %s, and the image's source says %s", v.format, w.format)}
	case v.backed:
		return master{}, &FormatError{where, "stands on another disk: flatten it with qemu-img convert"}
	}
	return master{path: p.path(w.volume), format: v.format, capacity: v.capacity}, nil
}

// ready returns the master if it is there and was checked as it is now, and nil otherwise.
func (p *pool) ready(ctx context.Context, w wanted) (*volume, error) {
	v, err := p.find(ctx, w.volume)
	if err != nil || v == nil {
		return nil, err
	}
	mark, err := p.find(ctx, w.checked(v))
	if err != nil || mark == nil {
		return nil, err
	}
	return v, nil
}

// enterFetch waits until this load is the one that brings the master, or another one has: then there is true, and nothing
// is to leave.
func (l *load) enterFetch(ctx context.Context, p *pool, w wanted) (leave func(), there bool, err error) {
	inLine, quit := context.WithCancel(ctx)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var following sync.WaitGroup
	var place atomic.Int64
	came := false
	inner, err := l.enter(inLine, l.host.site.Name+"/image-"+w.sha256[:digestInName], 1, func(n int) {
		if place.Swap(int64(n)) == 0 {
			following.Go(func() {
				if came = l.follow(watching, p, w, &place); came {
					quit()
				}
			})
		}
	})
	stop()
	following.Wait() // what it shows must not come after what the fetch shows
	switch {
	case came:
		if err == nil {
			inner()
		}
		return nil, true, nil
	case err != nil:
		quit()
		return nil, false, err
	}
	return func() { inner(); quit() }, false, nil
}

// follow shows how far the load is that brings the master, until ctx ends or the master is there.
func (l *load) follow(ctx context.Context, p *pool, w wanted, place *atomic.Int64) bool {
	for {
		detail := "waiting for the load that brings it, " + provisioners.InLine(int(place.Load()))
		if v, err := p.ready(ctx, w); err == nil && v != nil {
			return true
		}
		if v, err := p.find(ctx, w.volume); err == nil && v != nil {
			detail += ": " + progress(v.size, w.size)
		}
		if ctx.Err() == nil {
			l.report.Stage(stageFetch, detail)
		}
		timer := time.NewTimer(followEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// fetch brings the master to the host, goes on with what is there of it, and checks the whole. Only one load at a time does.
func (l *load) fetch(ctx context.Context, p *pool, w wanted) error {
	// What came or went behind libvirt's back is seen after a refresh.
	if err := p.refresh(ctx); err != nil {
		return err
	}
	for again := false; ; again = true {
		v, err := p.ready(ctx, w)
		if err != nil || v != nil {
			return err
		}
		wrong, err := l.bring(ctx, p, w)
		if err != nil || wrong == nil {
			return err
		}
		// What stood on the host was cut, changed or damaged. The source itself has not been seen whole yet.
		if again {
			return wrong
		}
		l.host.log.Warn().Err(wrong).Str("volume",
			w.volume).Msg("the image's master on the host is not what it should be; bringing it anew")
	}
}

// bring completes the master and checks it. wrong says that what had been there before was not the image's bits; it has been
// removed then.
func (l *load) bring(ctx context.Context, p *pool, w wanted) (wrong, err error) {
	v, err := p.find(ctx, w.volume)
	if err != nil {
		return nil, err
	}
	where := fmt.Sprintf("volume %s/%s on the host of site %s", p.name(), w.volume, l.host.site.Name)
	if w.source == "" {
		if v == nil {
			return nil, &MissingError{Site: l.host.site.Name, Kind: "volume", Name: p.name() + "/" + w.volume,
				Remedy: "put the image's master there"}
		}
		sum, err := l.sum(ctx, p, v)
		if err != nil {
			return nil, err
		}
		if have := hex.EncodeToString(sum.Sum(nil)); have != w.sha256 {
			return nil, &DigestError{where, w.sha256, have}
		}
		return nil, l.confirmed(ctx, p, w, v)
	}
	var there uint64
	if v != nil {
		there = v.size
	}
	from, err := open(ctx, l.http, w.source, there)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if w.size == 0 {
		w.size = from.total
	}
	if from.total != 0 && from.total != w.size {
		return nil, &SourceError{w.source, fmt.Errorf("it has %d bytes, and the image's size is %d", from.total, w.size)}
	}
	discard := func(wrong error) (error, error) {
		if err := l.report.Confirm(ctx); err != nil {
			return nil, err
		}
		return wrong, p.remove(ctx, w.volume)
	}
	if w.size != 0 && there > w.size {
		return discard(fmt.Errorf("%s has %d bytes, and the image has %d", where, there, w.size))
	}
	if v == nil {
		if free, err := p.free(ctx); err == nil && w.size > 0 && free < w.size+scarce {
			return nil, &NoSpaceError{Site: l.host.site.Name, Pool: p.name(), Needs: w.size, Free: free}
		}
		if err := l.report.Confirm(ctx); err != nil {
			return nil, err
		}
		made, err := p.create(ctx, raw(w.volume, modeMaster))
		if err != nil {
			return nil, err
		}
		v = &volume{handle: made}
	}
	sum := sha256.New()
	if there > 0 {
		// Nobody knows who wrote it, or whether all of it reached the disk: what counts is what stands there.
		if sum, err = l.sum(ctx, p, v); err != nil {
			return nil, err
		}
	}
	read := v
	if w.size == 0 || there < w.size {
		read = nil
		if err := l.report.Confirm(ctx); err != nil {
			return nil, err
		}
		shown := &shownReader{Reader: io.TeeReader(from, sum), show: func(n uint64) {
			l.report.Stage(stageFetch, "to the host: "+progress(there+n, w.size))
		}}
		if err := p.upload(ctx, v.handle, shown, there); err != nil {
			return nil, err
		}
		if whole := there + shown.n; w.size != 0 && whole != w.size {
			return nil, fmt.Errorf("image source %s ended after %d of %d bytes", w.source, whole, w.size)
		}
	}
	if have := hex.EncodeToString(sum.Sum(nil)); have != w.sha256 {
		if there > 0 {
			return discard(&DigestError{where, w.sha256, have})
		}
		if _, err := discard(nil); err != nil {
			return nil, err
		}
		return nil, &DigestError{"image source " + w.source, w.sha256, have}
	}
	return nil, l.confirmed(ctx, p, w, read)
}

// sum reads the whole of a volume on the host.
func (l *load) sum(ctx context.Context, p *pool, v *volume) (hash.Hash, error) {
	sum := sha256.New()
	shown := &shownWriter{Writer: sum, show: func(n uint64) {
		l.report.Stage(stageFetch, "checking what is on the host: "+progress(n, v.size))
	}}
	shown.show(0)
	if err := p.download(ctx, v.handle, shown, v.size); err != nil {
		return nil, err
	}
	if shown.n != v.size {
		return nil, fmt.Errorf("site %s: volume %s/%s changed while it was read: %d of %d bytes came", l.host.site.Name,
			p.name(), v.handle.Name, shown.n, v.size)
	}
	return sum, nil
}

// confirmed writes down that the master's bits were checked as they stand, and forgets older marks. read is how the volume
// stood when the check began, nil if this load has just written it.
func (l *load) confirmed(ctx context.Context, p *pool, w wanted, read *volume) error {
	// The volume was made empty: libvirt sees only now what is in it.
	if err := p.refresh(ctx); err != nil {
		return err
	}
	v, err := p.find(ctx, w.volume)
	if err != nil {
		return err
	}
	if v == nil {
		return fmt.Errorf("site %s: volume %s/%s went away right after it had been checked", l.host.site.Name, p.name(), w.volume)
	}
	if read != nil && w.checked(read) != w.checked(v) {
		return fmt.Errorf("site %s: volume %s/%s was written to while it was checked", l.host.site.Name, p.name(), w.volume)
	}
	mark := w.checked(v)
	old, err := p.names(ctx, func(name string) bool {
		return name != mark && strings.HasPrefix(name, w.prefix()+"_") && strings.HasSuffix(name, checkedSuffix)
	})
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := p.remove(ctx, name); err != nil {
			return err
		}
	}
	if _, err := p.create(ctx, raw(mark, modeMaster)); err != nil && !code(err, rpc.ErrStorageVolExist) {
		return err
	}
	l.host.log.Info().Str("volume", w.volume).Str("sha256", w.sha256).Uint64("bytes",
		v.size).Msg("the image's master is on the host, and checked")
	return nil
}

// progress writes how far a transfer is: "1.5 GiB of 3.0 GiB, 50 %".
func progress(n, of uint64) string {
	if of == 0 {
		return byteSize(n)
	}
	return fmt.Sprintf("%s of %s, %d %%", byteSize(n), byteSize(of), min(n*100/of, 100))
}

// shownReader shows how much was read, now and then.
type shownReader struct {
	io.Reader
	show func(n uint64)
	n    uint64
	last time.Time
}

func (r *shownReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += uint64(n)
	if now := time.Now(); now.Sub(r.last) >= showEvery {
		r.last = now
		r.show(r.n)
	}
	return n, err
}

// shownWriter shows how much was written, now and then.
type shownWriter struct {
	io.Writer
	show func(n uint64)
	n    uint64
	last time.Time
}

func (w *shownWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n += uint64(n)
	if now := time.Now(); now.Sub(w.last) >= showEvery {
		w.last = now
		w.show(w.n)
	}
	return n, err
}
