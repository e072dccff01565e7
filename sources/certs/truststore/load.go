package truststore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

const (
	// maxReadings is how often files are read if they change while they are read.
	maxReadings = 3
	// maxWarnings is the maximum number of warnings in a status.
	maxWarnings = 100
)

// Load implements sources.Loader. Unless the files have not changed, it reads all of them and
// replaces what the store uses. It fails, and all of the last good data stays, if the files exceed
// a limit or if no certificate that is valid now is left. It also fails if a configured path is
// missing or cannot be read: what was loaded from that path before stays, and what the other paths
// hold now is used; if nothing was loaded before, nothing is used.
//
// The first Load also reads Config.CachePath. If that fails, Status has a warning, and the objects
// are fetched again.
func (s *Store) Load(ctx context.Context) error {
	begun := time.Now()
	s.loadFetched(ctx)
	previous := s.state.Load()
	if previous != nil && previous.failed == nil {
		if current, err := previous.current(ctx, s.paths); err == nil && current {
			s.confirmed.Store(&begun)
			return nil
		}
	}
	next, err := s.load(ctx, previous)
	if err != nil {
		return err
	}
	if next.failed == nil {
		s.confirmed.Store(&begun)
	} else if next.holdsTheSame(previous) {
		return next.failed // nothing was loaded
	}
	s.state.Store(next)
	return next.failed
}

// Schedule implements sources.Loader.
func (s *Store) Schedule() sources.Schedule { return sources.Schedule{Every: s.cfg.PollInterval} }

// current reports whether the files are still those that have been read. It compares their content
// as well: a file may be overwritten in place with another of the same size within the resolution
// of the file system's clock.
func (s *state) current(ctx context.Context, paths []location) (bool, error) {
	seen, err := look(ctx, paths)
	if err != nil || !seen.same(s.seen) {
		return false, err
	}
	files := make(map[location]*caFile, len(s.files))
	for i, f := range s.files {
		files[location{f.Bundle, f.Path}] = &s.files[i]
	}
	for _, f := range seen {
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("read the CA files: %w", err)
		}
		held := files[f.location]
		if held == nil || f.fault() != "" {
			continue
		}
		data, err := f.read()
		unread := err != nil && !errors.Is(err, errTooLarge)
		if unread != held.unread || !unread && sha256.Sum256(data) != held.sum {
			return false, nil
		}
	}
	return true, nil
}

// load reads all files and returns what they hold.
func (s *Store) load(ctx context.Context, previous *state) (*state, error) {
	for n := 1; ; n++ {
		seen, err := look(ctx, s.paths)
		if err != nil {
			return nil, err
		}
		r := reading{previous: previous, last: n == maxReadings, mayBeEmpty: s.cfg.MayBeEmpty}
		err = r.readAll(ctx, seen)
		if errors.Is(err, errChanged) && !r.last {
			continue
		}
		if err != nil {
			return nil, err
		}
		again, err := look(ctx, s.paths)
		if err != nil {
			return nil, err
		}
		if seen.same(again) || r.last { // later changes are found by the next Load
			return s.assemble(ctx, seen, &r)
		}
	}
}

// assemble turns what has been read into the state that is used.
func (s *Store) assemble(ctx context.Context, seen fileSet, r *reading) (*state, error) {
	files := make([]certs.File, len(r.files))
	for i, f := range r.files {
		files[i] = f.File
	}
	all, warnings, err := certs.NewAnchors(ctx, files, s.profile, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	warnings = shorten(append(r.warnings, warnings...))
	if all.Valid() == 0 && !r.empty {
		return nil, fmt.Errorf("no usable CA certificate at %s: %s",
			s.describePaths(), strings.Join(append(warnings, "put a CA certificate there"), "; "))
	}
	return &state{
		anchors: all,
		seen:    seen,
		files:   r.files,
		failed:  errors.Join(r.failed...),
		status:  sources.Status{Loaded: time.Now(), Entries: all.Valid(), Warnings: warnings},
	}, nil
}

func (s *Store) describePaths() string {
	quoted := make([]string, len(s.paths))
	for i, l := range s.paths {
		quoted[i] = fmt.Sprintf("%q", l.path)
	}
	return strings.Join(quoted, ", ")
}

// shorten limits the number of warnings.
func shorten(warnings []string) []string {
	if extra := len(warnings) - maxWarnings; extra > 0 {
		warnings = append(warnings[:maxWarnings:maxWarnings], fmt.Sprintf("and %d more", extra))
	}
	return warnings
}

// A reading is one pass over all files.
type reading struct {
	previous *state // nil at first
	last     bool   // no further pass follows: a file that keeps changing stays as it was
	// mayBeEmpty is Config.MayBeEmpty. empty is true if a folder has no files and may be empty.
	mayBeEmpty, empty bool
	files             []caFile
	warnings          []string
	failed            []error // why configured paths could not be read
	size              int
	entries           int
}

func (r *reading) readAll(ctx context.Context, seen fileSet) error {
	for len(seen) > 0 {
		first := seen[0]
		at := slices.IndexFunc(seen, func(f seenFile) bool { return f.root != first.root || f.bundle != first.bundle })
		if at < 0 {
			at = len(seen)
		}
		if err := r.readPath(ctx, seen[:at]); err != nil {
			return err
		}
		seen = seen[at:]
	}
	return nil
}

// readPath reads the files of one configured path. If a file in a folder cannot be read, only that
// file is affected: it keeps what it held, or is left out. If the path is itself such a file, or if
// nothing in a folder could ever be read, the content of the path is not known.
func (r *reading) readPath(ctx context.Context, files fileSet) error {
	before := r.entries
	var unread error
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the CA files: %w", err)
		}
		if _, empty := errors.AsType[emptyFolderError](f.err); empty && r.mayBeEmpty && !r.previous.holds() {
			r.empty = true
			r.warn(f, "is an empty folder: no machine is listed for its EK certificate until a CA certificate is there")
			return nil
		}
		why, err := f.fault(), error(nil)
		if why == "" {
			err = r.read(f)
		}
		switch {
		case errors.Is(err, errLimit), errors.Is(err, errChanged) && !r.last:
			return err
		case why != "" && f.alone():
			return r.keepPath(f, errors.New(why))
		case why != "":
			r.warn(f, why)
		case err != nil && f.alone():
			return r.keepPath(f, err)
		case err != nil:
			unread = err
			r.keepFile(f, err)
		}
	}
	if unread != nil && r.previous == nil && r.entries == before {
		return fmt.Errorf("no CA file in %q can be read: %w", files[0].root, unread)
	}
	return nil
}

// keepFile keeps what an unreadable file held before.
func (r *reading) keepFile(f seenFile, why error) {
	entries := r.previous.entriesOf(f.location)
	what := "; it is left out: make it readable, or delete it"
	if entries != nil {
		what = "; what it held before stays in use: make it readable, or delete it to withdraw its CAs"
	}
	r.warn(f, why.Error()+what)
	r.entries += len(entries)
	r.files = append(r.files, caFile{File: f.with(entries), root: f.root, unread: true})
}

// keepPath keeps what was loaded before from a path whose content is not known.
func (r *reading) keepPath(f seenFile, why error) error {
	why = fmt.Errorf("the CA path %q: %w", f.path, why)
	if r.previous == nil {
		return why
	}
	for _, held := range r.previous.files {
		if held.Bundle == f.bundle && held.root == f.root {
			held.unread = true
			r.entries += len(held.Entries)
			r.files = append(r.files, held)
		}
	}
	r.failed = append(r.failed, why)
	return nil
}

func (r *reading) warn(f seenFile, what string) {
	r.warnings = append(r.warnings, fmt.Sprintf("%q: %s", f.path, what))
}

// errLimit is wrapped by the error about files that together exceed a limit.
var errLimit = errors.New("remove some of them")

// read reads one file. A damaged file keeps what it held when it was intact: its CAs must not be
// lost for a moment while it is written in place. Any error but errLimit means that the file could
// not be read.
func (r *reading) read(f seenFile) error {
	var entries []certs.Entry
	var notes []string
	data, err := f.read()
	switch {
	case err == nil:
		entries, notes, err = certs.ParseFile(data)
	case !errors.Is(err, errTooLarge):
		return err
	}
	if r.size += len(data); r.size > MaxTotalSize {
		return fmt.Errorf("the CA files are larger than %d bytes together: %w", MaxTotalSize, errLimit)
	}
	if err != nil {
		entries = r.previous.entriesOf(f.location)
		switch {
		case entries != nil:
			notes = append(notes, err.Error()+
				"; what it held before stays in use: fix the file, or delete it to withdraw its CAs")
		case !errors.Is(err, certs.ErrNoCertificate): // the notes say why
			notes = append(notes, err.Error())
		}
	}
	for _, note := range notes {
		r.warn(f, note)
	}
	if r.entries += len(entries); r.entries > MaxCertificates {
		return fmt.Errorf("the CA files hold more than %d certificates: %w", MaxCertificates, errLimit)
	}
	r.files = append(r.files, caFile{File: f.with(entries), root: f.root, sum: sha256.Sum256(data)})
	return nil
}

// entriesOf returns the certificates of a file in the last Load. s may be nil.
func (s *state) entriesOf(l location) []certs.Entry {
	if s == nil {
		return nil
	}
	for _, f := range s.files {
		if f.Bundle == l.bundle && f.Path == l.path {
			return f.Entries
		}
	}
	return nil
}

// holds reports whether the state has any files. s may be nil.
func (s *state) holds() bool { return s != nil && len(s.files) > 0 }

// holdsTheSame reports whether two states are made of the same files. previous may be
// nil.
func (s *state) holdsTheSame(previous *state) bool {
	return previous != nil && slices.EqualFunc(s.files, previous.files, func(a, b caFile) bool {
		return a.Bundle == b.Bundle && a.Path == b.Path && (a.unread || a.sum == b.sum)
	})
}
