package ekca

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/apart"
)

const (
	// maxReadings is how often files that change meanwhile are read again.
	maxReadings = 3
	// maxWarnings is the number of warnings in a status.
	maxWarnings = 100
)

// Refresh implements sources.Refresher: it reads all files and replaces what the
// source serves. It fails, and the last good data stays, where a path is missing
// or cannot be read, where the files change while they are read or exceed a
// limit, and where no certificate that is valid now is left.
//
// The first one loads what was fetched earlier from Config.CachePath. Where that
// cannot be read, Status has a warning, and it is fetched again.
func (s *Source) Refresh(ctx context.Context) error {
	begun := time.Now()
	s.loadStore(ctx)
	previous := s.state.Load()
	next, err := apart.Do(ctx, s.files, func() (*state, error) { return s.load(ctx, previous) }, nil)
	if err != nil {
		return err
	}
	s.state.Store(next)
	s.confirmed.Store(&begun)
	return nil
}

// Run implements sources.Runner: it looks at the files every PollInterval, and
// refreshes when they have changed and for as long as the last refresh has
// failed. What is fetched meanwhile is written to Config.CachePath. It returns nil
// when ctx has ended and that is done.
func (s *Source) Run(ctx context.Context, refresh func() error) error {
	if s.store == nil {
		return s.follow(ctx, refresh)
	}
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	kept := make(chan error, 1)
	go func() { kept <- s.runStore(within) }()
	err := s.follow(ctx, refresh)
	cancel()
	return errors.Join(err, <-kept)
}

// follow looks at the files until ctx ends.
func (s *Source) follow(ctx context.Context, refresh func() error) error {
	ticker := time.NewTicker(s.interval)
	defer ticker.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if failed || s.changed(ctx) {
			failed = refresh() != nil
		}
	}
}

// changed reports whether the files are others than those that are served. Where
// that cannot be told, a refresh will say why.
func (s *Source) changed(ctx context.Context) bool {
	st := s.state.Load()
	if st == nil {
		return true
	}
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, s.interval)
	defer cancel()
	current, err := apart.Do(limited, s.files, func() (bool, error) { return st.current(limited, s.paths) }, nil)
	if ctx.Err() != nil {
		return false
	}
	if err != nil || !current {
		return true
	}
	s.confirmed.Store(&begun)
	return false
}

// current reports whether the files are still those that have been read. Their
// content is compared as well: a file may be written in place, with one of the
// same size and within what the file system's clock tells apart.
func (s *state) current(ctx context.Context, paths []location) (bool, error) {
	seen, err := look(ctx, paths)
	if err != nil || !seen.same(s.seen) {
		return false, err
	}
	files := s.files // those of seen that have no fault
	for _, f := range seen {
		if f.fault() != "" {
			continue
		}
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("read the CA files: %w", err)
		}
		data, err := f.read()
		if err != nil && !errors.Is(err, errTooLarge) {
			return false, err
		}
		if sha256.Sum256(data) != files[0].sum {
			return false, nil
		}
		files = files[1:]
	}
	return true, nil
}

// load reads all files and returns what they hold.
func (s *Source) load(ctx context.Context, previous *state) (*state, error) {
	for range maxReadings {
		seen, err := look(ctx, s.paths)
		if err != nil {
			return nil, err
		}
		r := reading{previous: previous}
		err = r.readAll(ctx, seen)
		if errors.Is(err, errChanged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		again, err := look(ctx, s.paths)
		if err != nil {
			return nil, err
		}
		if seen.same(again) {
			return s.assemble(ctx, seen, &r)
		}
	}
	return nil, errors.New("the CA files keep changing while they are read")
}

// assemble makes what has been read into what is served.
func (s *Source) assemble(ctx context.Context, seen fileSet, r *reading) (*state, error) {
	all, warnings, err := build(ctx, r.files, s.now())
	if err != nil {
		return nil, err
	}
	warnings = shorten(append(r.warnings, warnings...))
	if all.valid == 0 {
		return nil, fmt.Errorf("no usable CA certificate at %s: %s",
			s.describePaths(), strings.Join(append(warnings, "put a CA certificate there"), "; "))
	}
	return &state{
		authorities: all,
		seen:        seen,
		files:       r.files,
		status:      sources.Status{Loaded: time.Now(), Entries: all.valid, Warnings: warnings},
	}, nil
}

func (s *Source) describePaths() string {
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
	files    []caFile
	warnings []string
	size     int
	entries  int
}

func (r *reading) readAll(ctx context.Context, seen fileSet) error {
	for _, f := range seen {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the CA files: %w", err)
		}
		if why := f.fault(); why != "" {
			r.warn(f, why)
			continue
		}
		if err := r.read(f); err != nil {
			return err
		}
	}
	return nil
}

func (r *reading) warn(f seenFile, what string) {
	r.warnings = append(r.warnings, fmt.Sprintf("%q: %s", f.path, what))
}

// read reads one file. What a damaged one held when it was whole is taken in its
// stead: writing a file in place may not take its CAs away for a moment.
func (r *reading) read(f seenFile) error {
	var entries []entry
	var notes []string
	data, err := f.read()
	switch {
	case err == nil:
		entries, notes, err = parseFile(data)
	case !errors.Is(err, errTooLarge):
		return err
	}
	if r.size += len(data); r.size > MaxTotalSize {
		return fmt.Errorf("the CA files are larger than %d bytes together", MaxTotalSize)
	}
	if err != nil {
		entries = r.previous.entriesOf(f.location)
		switch {
		case entries != nil:
			notes = append(notes, err.Error()+
				"; what it held before stays in use: fix the file, or delete it to withdraw its CAs")
		case !errors.Is(err, errNoCertificate): // the notes say why
			notes = append(notes, err.Error())
		}
	}
	for _, note := range notes {
		r.warn(f, note)
	}
	if r.entries += len(entries); r.entries > MaxCertificates {
		return fmt.Errorf("the CA files hold more than %d certificates", MaxCertificates)
	}
	r.files = append(r.files, caFile{
		bundle: f.bundle, path: f.path, entries: entries, sum: sha256.Sum256(data),
	})
	return nil
}

// entriesOf returns what a file held at the last Refresh. s may be nil.
func (s *state) entriesOf(l location) []entry {
	if s == nil {
		return nil
	}
	for _, f := range s.files {
		if f.bundle == l.bundle && f.path == l.path {
			return f.entries
		}
	}
	return nil
}
