package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// stallLimit is how long a source may send nothing until the transfer is ended and tried again.
const stallLimit = 60 * time.Second

// SourceError says that an image's source does not give its bits, and will not at another try either.
type SourceError struct {
	Master string
	Err    error
}

func (e *SourceError) Error() string { return "image source " + e.Master + ": " + e.Err.Error() }

func (e *SourceError) Unwrap() error { return e.Err }

// bits is an open source.
type bits struct {
	io.ReadCloser
	total uint64 // of the whole source, in bytes; 0 if it does not say
}

// open opens a source, which is a file or a URL, at an offset.
func open(ctx context.Context, client *http.Client, source string, offset uint64) (*bits, error) {
	if !strings.Contains(source, "://") {
		return openFile(source, offset)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		cancel(nil)
		return nil, &SourceError{Master: source, Err: err}
	}
	if offset > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	stalled := time.AfterFunc(stallLimit, func() { cancel(fmt.Errorf("image source %s: nothing has come for %s", source, stallLimit)) })
	end := func() {
		stalled.Stop()
		cancel(nil)
	}
	answer, err := client.Do(request)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		end()
		return nil, fmt.Errorf("image source %s: %w", source, err)
	}
	b := &bits{ReadCloser: &body{ReadCloser: answer.Body, ctx: ctx, stalled: stalled, end: end}}
	switch answer.StatusCode {
	case http.StatusOK:
		b.total = uint64(max(answer.ContentLength, 0))
		// It does not know ranges: what is there already is read over.
		if _, err := io.CopyN(io.Discard, b, int64(offset)); err != nil {
			_ = b.Close()
			return nil, fmt.Errorf("image source %s: it ended before byte %d: %w", source, offset, err)
		}
		return b, nil
	case http.StatusPartialContent:
		// "bytes 100-199/200"
		_, total, _ := strings.Cut(answer.Header.Get("Content-Range"), "/")
		b.total, _ = strconv.ParseUint(total, 10, 64)
		if !strings.HasPrefix(answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			_ = b.Close()
			return nil, &SourceError{Master: source, Err: fmt.Errorf("asked for what follows byte %d, it sends %q", offset,
				answer.Header.Get("Content-Range"))}
		}
		return b, nil
	case http.StatusRequestedRangeNotSatisfiable:
		// There is nothing after the offset: it is the end, or lies behind it.
		_, total, _ := strings.Cut(answer.Header.Get("Content-Range"), "/")
		b.total, _ = strconv.ParseUint(total, 10, 64)
		_ = b.Close()
		b.ReadCloser = io.NopCloser(strings.NewReader(""))
		return b, nil
	}
	_ = b.Close()
	err = errors.New("it answers " + answer.Status)
	if answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode == http.StatusRequestTimeout {
		return nil, fmt.Errorf("image source %s: %w", source, err)
	}
	return nil, &SourceError{Master: source, Err: err}
}

func openFile(path string, offset uint64) (*bits, error) {
	file, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			err = &SourceError{Master: path, Err: fmt.Errorf("this worker cannot read it: %w", err)}
		}
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &SourceError{Master: path, Err: errors.New("it is no file")}
	}
	if err == nil {
		_, err = file.Seek(int64(offset), io.SeekStart)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &bits{ReadCloser: file, total: uint64(info.Size())}, nil
}

// body is an answer's body that ends with an error when nothing comes for stallLimit.
type body struct {
	io.ReadCloser
	ctx     context.Context
	stalled *time.Timer
	end     func()
}

func (b *body) Read(p []byte) (int, error) {
	b.stalled.Reset(stallLimit)
	n, err := b.ReadCloser.Read(p)
	b.stalled.Stop() // whoever takes what was read may take his time
	if cause := context.Cause(b.ctx); err != nil && err != io.EOF && cause != nil {
		err = cause
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}
