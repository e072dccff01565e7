package httplist

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

// startPatience is how long a source that serves from its cache waits at its
// start for the server.
const startPatience = time.Second

// Refresh implements sources.Refresher: it asks the server for the list, and
// where there is a new one that is good, stores it in the cache and then serves
// it. On an error the last good list stays.
//
// The first Refresh serves the list in the cache before it asks. Where that is
// not stale, the server has a second to answer, and there is no error if it does
// not: what was loaded is good, and Run asks again at once.
func (s *Source) Refresh(ctx context.Context) error {
	timeout := s.cfg.Timeout
	warm := false
	s.loadWarning = ""
	defer s.warn()
	if !s.restored {
		s.restored = true
		if warm = s.restore(ctx); warm {
			timeout = min(timeout, startPatience)
		}
	}
	err := s.poll(ctx, timeout)
	if warm && err != nil {
		return nil // the cache has loaded, and Run reports what the server does
	}
	return err
}

// restore loads the cache, and reports whether what it holds may serve. A list
// that may not, since it is stale, is kept nevertheless: it tells which serials
// are replays.
func (s *Source) restore(ctx context.Context) bool {
	if s.cache == nil {
		return false
	}
	list, meta, err := s.cache.Load(ctx)
	if err != nil {
		if !errors.Is(err, listcache.ErrNone) {
			s.loadWarning = fmt.Sprintf("the cache was not used: %v", err)
		}
		return false
	}
	st := &state{
		list:       list,
		validators: validators{meta.ETag, meta.LastModified},
		loaded:     time.Now(),
		confirmed:  meta.Confirmed,
	}
	s.state.Store(st)
	return st.fresh(s.cfg.Now(), s.cfg.MaxStaleness) == nil
}

// warn publishes the warnings of this Refresh.
func (s *Source) warn() {
	var all []string
	for _, w := range []string{s.loadWarning, s.saveWarning} {
		if w != "" {
			all = append(all, w)
		}
	}
	s.warnings.Store(&all)
}

// poll makes one attempt.
func (s *Source) poll(ctx context.Context, timeout time.Duration) error {
	s.pause.Store(0)
	a, err := s.ask(ctx, timeout)
	if err != nil {
		if status := (*statusError)(nil); errors.As(err, &status) {
			s.pause.Store(int64(status.retryAfter))
		}
		s.unconditional = s.unconditional || errors.Is(err, errOtherVersion)
		return err
	}
	s.unconditional = false
	previous := s.state.Load()
	if a.list == nil {
		st := *previous
		st.confirmed, st.here = a.at, true
		s.touch(ctx, &st)
		s.state.Store(&st)
		return nil
	}
	if err := s.succeeds(previous, a.list); err != nil {
		return err
	}
	st := &state{
		list: a.list, validators: a.validators, loaded: time.Now(), confirmed: a.at,
		size: a.size, here: true, key: a.key,
	}
	s.save(ctx, previous, st)
	s.state.Store(st)
	return nil
}

// ask fetches the list within the timeout.
func (s *Source) ask(ctx context.Context, timeout time.Duration) (*answer, error) {
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	a, err := s.fetch(within)
	switch {
	case err == nil:
		return a, nil
	case within.Err() != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("not done within the timeout of %v: %w", timeout, err)
	}
	return nil, err
}

// succeeds returns why a list may not take the place of the one before, or nil.
func (s *Source) succeeds(previous *state, next *eklist.Snapshot) error {
	if next.Header().Expired(s.cfg.Now()) {
		return fmt.Errorf("the list has expired, at %s: publish one with a later date", stamp(next.Header().Expires))
	}
	if previous == nil {
		return nil
	}
	if err := previous.list.CheckSuccession(next); err != nil {
		return fmt.Errorf("the list is a replay, or was published without a new serial: %w", err)
	}
	return nil
}

// save puts a new list into the cache. What goes wrong there is a warning: the
// list is good.
func (s *Source) save(ctx context.Context, previous, next *state) {
	if s.cache == nil {
		return
	}
	var before *eklist.Snapshot
	if previous != nil {
		before = previous.list
	}
	s.saved(next, s.cache.Save(ctx, before, next.list, next.meta()))
}

// touch notes in the cache that the list was confirmed, now and then: the file
// need not be written at every poll.
func (s *Source) touch(ctx context.Context, st *state) {
	if s.cache == nil {
		return
	}
	age := st.confirmed.Sub(s.touched)
	if s.saveWarning == "" && age >= 0 && age < min(time.Minute, s.cfg.MaxStaleness/100) {
		return
	}
	s.saved(st, s.cache.Touch(ctx, st.list, st.meta()))
}

// saved notes how writing the cache has ended.
func (s *Source) saved(st *state, err error) {
	s.saveWarning, s.touched = "", st.confirmed
	if err != nil {
		s.saveWarning = fmt.Sprintf("the cache was not written, a restart will not have this list: %v", err)
	}
}

func (st *state) meta() listcache.Meta {
	return listcache.Meta{ETag: st.validators.etag, LastModified: st.validators.lastModified, Confirmed: st.confirmed}
}
