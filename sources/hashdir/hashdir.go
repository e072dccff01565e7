// Package hashdir is a source that knows a TPM by a file in a directory, named
// by the hash of its endorsement key.
//
// Nothing is held in memory: each check opens the directory and looks for
//
//	<path>/<first two hex digits of hash>/<hash>
//	<path>/<hash>
//
// all in lower case or all in upper case, so that a machine is added by making a file and revoked by removing it, and
// any file system will do. The directory may hold all forms at once; the first
// one wins.
//
// Now and then, and never for an attestation, Run lists the directory and warns of
// what looks like an entry and is none, and of names that are given twice.
//
// A regular file is an entry, and so is a symbolic link to one as long as all
// of the way stays beneath the directory, as it does in a mounted ConfigMap. A
// folder, a socket, a FIFO or a device is no entry, and neither is a link to
// nothing. What is neither "there" nor "not there" is an error: a directory
// that has gone or cannot be searched, an input/output error, a loop of links,
// a link that leads outside.
//
// An entry may be empty. One that is a JSON object of at most 64 KiB says more:
//
//	{"name": "us-east-17", "labels": ["rack:12", "env:prod"]}
//
// Both fields are optional and others are ignored. Content of any other kind
// is left alone, and so is content that the server's user may not read: the
// file is there, which is what counts. What begins as a JSON object and does
// not hold as one, half written for instance, is an error.
package hashdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Config is where the directory is.
type Config struct {
	// Path is the directory. It is resolved anew by each check, links in it
	// included, so that the directory may be swapped by a rename or a mount.
	// A relative one is relative to the working directory of the process.
	Path string
	// Marker is the name of a file in the directory without which the source
	// cannot tell, or empty. It guards against the empty directory that is
	// left where a file system is not mounted. It is a plain file name and
	// neither the name of an entry nor that of a shard.
	Marker string
}

// Source is a directory of EK hashes. It holds no file open and keeps nothing of the
// directory between two checks. Its methods may be called from several goroutines.
type Source struct {
	path, marker string
	// open is what opener returns, and undisturbed the constant of the same
	// name; tests put faults in between, and take any time for too long.
	open        func(path string) (directory, error)
	undisturbed time.Duration
	made        time.Time // the zero of its clock: to read the time of day as well takes longer

	scanner
}

// New checks the configuration and returns the source. It does not touch the
// file system.
func New(cfg Config) (*Source, error) {
	if cfg.Path == "" {
		return nil, errors.New("path is empty: name the directory of EK hashes")
	}
	if strings.ContainsRune(cfg.Path, 0) {
		return nil, fmt.Errorf("path %q has a zero byte in it", cfg.Path)
	}
	if cfg.Marker != "" {
		if err := CheckMarker(cfg.Marker); err != nil {
			return nil, fmt.Errorf("marker: %w", err)
		}
	}
	return &Source{
		path: cfg.Path, marker: cfg.Marker, open: opener(),
		undisturbed: undisturbed, made: time.Now(), scanner: scanner{interval: scanInterval},
	}, nil
}

// CheckMarker refuses names that are not those of a plain file in the
// directory, and those under which the source looks for entries.
func CheckMarker(name string) error {
	if name == "." || !filepath.IsLocal(name) || strings.ContainsAny(name, "/\\\x00") || len(name) > 255 {
		return fmt.Errorf("%.80q is not a file name: write the name of a file in the directory, without a path", name)
	}
	if (len(name) == 2 || len(name) == hashLen) && isEntryCase(name) {
		return fmt.Errorf("%.80q is a name that an entry may have: choose another", name)
	}
	return nil
}

const (
	// attempts is how often a check that finds nothing looks again while the
	// directory is being changed under it.
	attempts = 5
	// undisturbed is how long a check that finds nothing may take and be
	// believed at once where there is no marker. For it to be wrong, the
	// directory must be replaced and the entry removed from the old one within
	// this time: a program that does nothing between the two can, rm -r cannot.
	// A TPM that is listed is then refused once. To be sure takes two more
	// system calls, half as much time again.
	undisturbed = 10 * time.Microsecond
)

// errReplaced ends an attempt whose directory was replaced or is not there, which
// a swap can bring about for a moment.
var errReplaced = errors.New("is the path correct, and its file system mounted?")

// Check implements [sources.Source]. It makes its system calls in the calling
// goroutine: a file system that hangs holds it up for as long as it hangs.
//
// A TPM that is listed before and after the directory is replaced is listed at
// every moment between: a directory that was opened a moment ago may have been
// replaced since, and be half removed, so that a missing entry proves nothing.
// With a marker, which a source under a deny rule has to have, this holds always,
// since what is missed there is let past; without one it holds for all but a
// directory that is replaced and emptied within microseconds.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (v sources.Verdict, err error) {
	names, ok := entryNames(ev.EKHash)
	if !ok {
		return sources.Verdict{}, fmt.Errorf("EK hash %q is not %d lower-case hex digits", ev.EKHash, hashLen)
	}
	for range attempts {
		if err := ctx.Err(); err != nil {
			return sources.Verdict{}, err
		}
		if v, err = s.attempt(names); !errors.Is(err, errReplaced) {
			break
		}
	}
	return v, err
}

// attempt opens the directory and looks for an entry. One that finds nothing,
// and is not believed, looks a second time, for the sake of links in the
// directory, and then sees to it that the path still leads to the directory.
func (s *Source) attempt(names [2]string) (sources.Verdict, error) {
	start := time.Since(s.made)
	dir, err := s.open(s.path)
	if err != nil {
		return sources.Verdict{}, s.pathError("open", err)
	}
	defer dir.close()
	v, err := s.look(dir, names)
	if err != nil || v.Listed || s.marker == "" && time.Since(s.made)-start < s.undisturbed {
		return v, err
	}
	if v, err = s.look(dir, names); err != nil || v.Listed {
		return v, err
	}
	at, err := dir.isAt(s.path)
	if err == nil && !at {
		err = fmt.Errorf("replaced during each attempt: %w", errReplaced)
	}
	if err != nil {
		return sources.Verdict{}, s.pathError("stat", err)
	}
	return v, nil
}

// pathError describes an error of the directory itself.
func (s *Source) pathError(op string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errReplaced)
	}
	return fmt.Errorf("%s directory %q: %w", op, s.path, explain(err))
}

// reasons are those of a verdict, by the name that the entry has.
var reasons = [2]string{"has a file named after the hash in its shard", "has a file named after the hash"}

// look looks for an entry under its names, in lower and then in upper case.
func (s *Source) look(dir directory, names [2]string) (sources.Verdict, error) {
	if err := s.checkMarked(dir); err != nil {
		return sources.Verdict{}, err
	}
	v, err := s.lookFor(dir, names)
	if err != nil || v.Listed {
		return v, err
	}
	if upper, ok := upperNames(names[1]); ok {
		return s.lookFor(dir, upper)
	}
	return sources.Verdict{}, nil
}

func (s *Source) lookFor(dir directory, names [2]string) (sources.Verdict, error) {
	for i, name := range names {
		attrs, found, err := lookUp(dir, name)
		if err == nil && found {
			err = s.unique(dir, names[1], attrs.Name)
		}
		if err != nil {
			return sources.Verdict{}, fmt.Errorf("%q in directory %q: %w", name, s.path, explain(err))
		}
		if found {
			return sources.Verdict{Listed: true, Reason: reasons[i], Attributes: attrs}, nil
		}
	}
	return sources.Verdict{}, nil
}

// checkMarked returns an error unless the marker, where there is one, is in the
// directory.
func (s *Source) checkMarked(dir directory) error {
	if s.marker == "" {
		return nil
	}
	f, err := dir.stat(s.marker)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("marker %q in directory %q does not exist: %w", s.marker, s.path, errReplaced)
	}
	if err == nil && !f.regular {
		err = errors.New("is not a regular file")
	}
	if err != nil {
		return fmt.Errorf("marker %q in directory %q: %w", s.marker, s.path, explain(err))
	}
	return nil
}

// lookUp looks for an entry under one name. An empty file is not opened.
func lookUp(dir directory, name string) (attrs sources.Attributes, found bool, err error) {
	f, err := dir.stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return sources.Attributes{}, false, nil
	}
	if err != nil || !f.regular {
		return sources.Attributes{}, false, err
	}
	if f.size == 0 || f.size > maxContent {
		return sources.Attributes{}, true, nil
	}
	content, f, err := dir.read(name, maxContent)
	switch {
	case errors.Is(err, fs.ErrPermission):
		// Existence is what lists a TPM: a directory may be searchable, and
		// its files readable for root alone.
		return sources.Attributes{}, true, nil
	case errors.Is(err, fs.ErrNotExist):
		return sources.Attributes{}, false, nil // removed a moment ago
	case err != nil || !f.regular:
		return sources.Attributes{}, false, err
	}
	attrs, err = parseEntry(content)
	return attrs, err == nil, err
}
