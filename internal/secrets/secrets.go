// Package secrets reads the secrets that a catalog names: from the environment or from a file, at the moment they are
// used. Nothing is kept, so a secret that was changed is the changed one from its next use on.
package secrets

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/rs/zerolog"
)

// maxSize is far above any key or password. It keeps a mistaken path (a disk image, a device) out of memory.
const maxSize = 1 << 20

// worldReadable is the permission bit by which everybody on the machine may read a file.
const worldReadable fs.FileMode = 0o004

// Source says where a secret is read: exactly one of Env and File.
type Source struct {
	Env  string `json:"env,omitempty"`  // the environment variable's name
	File string `json:"file,omitempty"` // the file's path
	// Passphrase names another secret: the passphrase of an encrypted private key. "" if the key is not encrypted.
	Passphrase string `json:"passphrase,omitempty"`
}

// String returns where the secret is read, as "environment variable X" or "file Y". It never holds the secret.
func (s Source) String() string {
	if s.Env != "" {
		return "environment variable " + s.Env
	}
	return "file " + s.File
}

// Error says that a secret cannot be read. It names the secret and where it was looked for, and never holds a value.
type Error struct {
	Name   string // the name in the catalog
	Source Source
	Reason string // what is wrong, and what to do
	Cause  error  // may be nil
}

func (e *Error) Error() string {
	where := ""
	if e.Source.Env != "" || e.Source.File != "" {
		where = " (" + e.Source.String() + ")"
	}
	return fmt.Sprintf("secret %s%s: %s", e.Name, where, e.Reason)
}

func (e *Error) Unwrap() error { return e.Cause }

// Options are what a Store reads with.
type Options struct {
	Sources map[string]Source // by the secret's name
	// LookupEnv reads the environment; a main package gives os.LookupEnv. With nil every variable is unset.
	LookupEnv func(key string) (string, bool)
	Logger    zerolog.Logger // told of files that everybody may read, once for each
}

// Store reads secrets by name. It is safe for concurrent use.
type Store struct {
	options Options
	warned  sync.Map // file path -> true
}

// NewStore returns a store of the given sources. Nothing is read yet.
func NewStore(options Options) *Store { return &Store{options: options} }

// Bytes reads a secret. One newline at its end is not part of it. The error is an *Error: a name that the catalog does
// not have, a variable that is not set, a file that cannot be read, or nothing in it.
func (s *Store) Bytes(name string) ([]byte, error) {
	source, ok := s.options.Sources[name]
	if !ok {
		return nil, &Error{Name: name, Reason: "the catalog has no secret of this name: add it under secrets, as {env: NAME} or {file: PATH}"}
	}
	value, err := s.read(name, source)
	if err != nil {
		return nil, err
	}
	value = bytes.TrimSuffix(value, []byte("\n"))
	value = bytes.TrimSuffix(value, []byte("\r"))
	if len(value) == 0 {
		return nil, &Error{Name: name, Source: source, Reason: "it is empty: put the secret there"}
	}
	return value, nil
}

// Text is Bytes as a string.
func (s *Store) Text(name string) (string, error) {
	value, err := s.Bytes(name)
	return string(value), err
}

// Passphrase reads the passphrase that belongs to a secret; "" if the catalog names none.
func (s *Store) Passphrase(name string) (string, error) {
	of := s.options.Sources[name].Passphrase
	if of == "" {
		return "", nil
	}
	return s.Text(of)
}

// Check reads each of the named secrets, and its passphrase, and returns every error, joined.
func (s *Store) Check(names ...string) error {
	names = slices.Clone(names)
	for _, name := range names {
		if of := s.options.Sources[name].Passphrase; of != "" {
			names = append(names, of)
		}
	}
	slices.Sort(names)
	var faults []error
	for _, name := range slices.Compact(names) {
		if _, err := s.Bytes(name); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

func (s *Store) read(name string, source Source) ([]byte, error) {
	if source.Env != "" {
		if s.options.LookupEnv != nil {
			if value, ok := s.options.LookupEnv(source.Env); ok {
				return []byte(value), nil
			}
		}
		return nil, &Error{Name: name, Source: source, Reason: "it is not set: set it in this worker's environment"}
	}
	return s.readFile(name, source)
}

func (s *Store) readFile(name string, source Source) ([]byte, error) {
	refuse := func(reason string, cause error) ([]byte, error) {
		return nil, &Error{Name: name, Source: source, Reason: reason, Cause: cause}
	}
	// Looked at before it is opened: opening a pipe would wait for somebody who writes.
	info, err := os.Stat(source.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("there is no such file: put the secret there, or change the path in the catalog", err)
	case err != nil:
		return refuse(reason(err)+": make it readable for this worker's user", err)
	case !info.Mode().IsRegular():
		return refuse("it is not a regular file: give the path of a file that holds nothing but the secret", nil)
	case info.Size() > maxSize:
		return refuse(fmt.Sprintf("it has %d bytes, and a secret has at most %d: is it the right file?", info.Size(), maxSize), nil)
	}
	file, err := os.Open(source.File)
	if err != nil {
		return refuse(reason(err)+": make it readable for this worker's user", err)
	}
	defer file.Close()
	value, err := io.ReadAll(io.LimitReader(file, maxSize))
	if err != nil {
		return refuse(reason(err), err)
	}
	if info.Mode().Perm()&worldReadable != 0 {
		if _, again := s.warned.LoadOrStore(source.File, true); !again {
			s.options.Logger.Warn().Str("secret", name).Str("file", source.File).Str("mode", info.Mode().Perm().String()).
				Msg("everybody on this machine can read this secret: chmod 600")
		}
	}
	return value, nil
}

// reason returns an I/O error's own words without the path, which the *Error names already.
func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return strings.TrimSpace(err.Error())
}
