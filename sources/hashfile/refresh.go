package hashfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

const (
	// attempts is how often a file that changes meanwhile is read again.
	attempts = 3
	// quietTime is how long a file has to have been left alone before its
	// content is taken. The first half of a text list is a text list.
	quietTime = 100 * time.Millisecond
	// settleTime is more than the resolution of any file system's clock. A file
	// that looks as it did when it was read may have been changed right after,
	// and is read once more when so much time has passed.
	settleTime = 2 * time.Second
)

// errChanged is the error of a file that has changed while it was read.
var errChanged = errors.New("changed while it was read")

// Load implements sources.Loader: it opens the file, reads it unless it is
// the one that is served, and replaces what is served. It fails, and the last
// good list stays, where the file is missing, is no regular file, cannot be
// read, is longer than MaxBytes, changes all the time or is no list as a whole;
// where the list has expired; and where it may not follow the one before: its
// serial is lower, or gone, or the same with other entries.
func (s *Source) Load(ctx context.Context) error {
	err := s.refresh(ctx)
	s.failure.Store(&err)
	return err
}

func (s *Source) refresh(ctx context.Context) error {
	before := s.state.Load()
	st, err := s.load(ctx, before)
	if err != nil {
		return err
	}
	s.state.Store(st)
	return fresh(st.list, s.now()) // a list that serves may have expired since
}

// load reads the file. before is what is served, or nil.
func (s *Source) load(ctx context.Context, before *state) (*state, error) {
	for range attempts {
		st, err := s.attempt(ctx, before)
		switch {
		case errors.Is(err, errChanged):
			continue
		case err != nil:
			return nil, fmt.Errorf("list %q: %w", s.cfg.Path, err)
		}
		return st, nil
	}
	return nil, fmt.Errorf("list %q keeps changing while it is read: "+
		"write a new file and rename it over this one", s.cfg.Path)
}

// attempt reads the file once.
func (s *Source) attempt(ctx context.Context, before *state) (*state, error) {
	begun := s.now()
	file, id, err := openRegular(s.cfg.Path)
	if err != nil {
		return nil, err
	}
	defer file.close()
	known := before != nil && before.file == id
	if known && before.settled {
		return before.confirm(begun), nil
	}
	if id.size > s.cfg.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", eklist.ErrTooLong, id.size, s.cfg.MaxBytes)
	}
	list, err := s.read(ctx, file, id)
	if err != nil {
		return nil, err
	}
	next := &state{list: list, file: id, since: begun, loaded: s.now(), confirmed: begun}
	if known {
		next.since, next.settled = before.since, begun.Sub(before.since) >= settleTime
	}
	return next.after(before)
}

// confirm returns the state of a file that was seen to be the same at a time.
func (st *state) confirm(at time.Time) *state {
	next := *st
	next.confirmed = at
	return &next
}

// after returns what is served once a file has been read, where before is what
// was served so far, or nil.
func (st *state) after(before *state) (*state, error) {
	if before != nil {
		if err := before.list.CheckSuccession(st.list); err != nil {
			return nil, err
		}
		if sameHeader(before.list, st.list) && before.list.SameEntries(st.list) &&
			slices.Equal(before.list.Warnings(), st.list.Warnings()) {
			st.list, st.loaded, st.collapse = before.list, before.loaded, before.collapse
			return st, nil
		}
		st.collapse = before.list.Collapse(st.list)
	}
	return st, fresh(st.list, st.loaded)
}

func sameHeader(a, b *eklist.Snapshot) bool {
	x, y := a.Header(), b.Header()
	same := x.Expires.Equal(y.Expires)
	x.Expires, y.Expires = time.Time{}, time.Time{}
	return same && x == y
}

// read reads the list, and sees to it that nobody wrote to the file meanwhile.
func (s *Source) read(ctx context.Context, file openFile, id identity) (*eklist.Snapshot, error) {
	c := &content{ctx: ctx, file: file}
	list, problem := eklist.Parse(c, eklist.Options{
		MaxBytes: s.cfg.MaxBytes, Size: id.size, AllowEmpty: s.cfg.AllowEmpty,
	})
	if err := s.untouched(ctx, file, id); err != nil {
		return nil, err
	}
	if problem == nil && c.read != id.size {
		return nil, errChanged
	}
	return list, problem
}

// untouched waits until the file has been left alone for a while, and returns
// errChanged where it has not been, or is not at its path any more.
func (s *Source) untouched(ctx context.Context, file openFile, id identity) error {
	// A file system whose clock is ahead makes it the longest wait.
	if wait := s.quiet - max(s.now().Sub(id.modified()), 0); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	now, err := file.look()
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	switch named, err := lookAt(s.cfg.Path); {
	case errors.Is(err, fs.ErrNotExist):
		return errChanged
	case err != nil:
		return err
	case now != id || !named.resembles(id):
		return errChanged
	}
	return nil
}
