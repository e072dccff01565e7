package httplist

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listsig"
)

// startPatience is how long a source that serves from its cache waits at its
// start for the server.
const startPatience = time.Second

// Load implements sources.Loader: it asks the server for the list, and
// where there is a new one that is good, stores it in the cache and then serves
// it. On an error the last good list stays, unless its key does not count any more.
//
// While there is no list, Load serves the one in the cache before it asks. If that is not
// stale, the server has a second to answer. While another process has the cache locked,
// Load asks for nothing: without the serial in the cache, it could not tell an older list
// from a newer one.
func (s *Source) Load(ctx context.Context) error {
	timeout := s.cfg.Timeout
	defer s.warn()
	if s.state.Load() != nil { // what was wrong before has been overcome
		s.loadWarning = ""
	}
	if err := s.trust(); err != nil {
		return err
	}
	warm, err := s.restore(ctx)
	if err != nil {
		return err
	}
	if warm {
		timeout = min(timeout, startPatience)
	}
	err = s.poll(ctx, timeout)
	if warm && err != nil {
		return nil // the cache has loaded, and the next poll reports what the server does
	}
	return err
}

// restore loads the cache while there is no list, and reports whether what it holds may
// serve. A list that may not, since it is stale, is kept nevertheless: it tells which
// serials are replays. The error says that it is not known what the cache holds.
func (s *Source) restore(ctx context.Context) (fresh bool, err error) {
	if s.cache == nil || s.state.Load() != nil {
		return false, nil
	}
	list, meta, err := s.cache.Load(ctx)
	if err != nil {
		if !errors.Is(err, listcache.ErrNone) {
			s.loadWarning = fmt.Sprintf("the cache was not used: %v", err)
		}
		if errors.Is(err, listcache.ErrBusy) || ctx.Err() != nil {
			return false, fmt.Errorf("no list is accepted before the serial in the cache is known: %w", err)
		}
		return false, nil
	}
	st := &state{
		list:       list,
		validators: validators{meta.ETag, meta.LastModified},
		loaded:     time.Now(),
		confirmed:  meta.Confirmed,
		key:        listsig.ID(meta.Key),
	}
	s.state.Store(st)
	s.loadWarning = ""
	return st.fresh(s.cfg.Now(), s.cfg.MaxStaleness, nil) == nil, nil
}

// warn publishes the warnings of this Load.
func (s *Source) warn() {
	var all []string
	for _, w := range []string{s.loadWarning, s.saveWarning} {
		if w != "" {
			all = append(all, w)
		}
	}
	if st := s.state.Load(); st != nil {
		all = append(all, st.list.Warnings()...)
		if st.collapse != "" {
			all = append(all, st.collapse)
		}
	}
	s.warnings.Store(&all)
}

// poll makes one attempt.
func (s *Source) poll(ctx context.Context, timeout time.Duration) error {
	err := s.pollOnce(ctx, timeout)
	s.failure.Store(&err)
	return err
}

func (s *Source) pollOnce(ctx context.Context, timeout time.Duration) error {
	a, err := s.ask(ctx, timeout)
	if err != nil {
		if status := (*statusError)(nil); errors.As(err, &status) {
			err = sources.Later(err, status.retryAfter)
		}
		s.unconditional = s.unconditional || errors.Is(err, errOtherVersion)
		return err
	}
	s.unconditional = false
	previous := s.state.Load()
	if a.list == nil {
		st := *previous
		st.confirmed, st.here = a.at, true
		if err := s.touch(ctx, &st); err != nil {
			return err
		}
		s.state.Store(&st)
		return s.expired(st.list)
	}
	if err := s.succeeds(previous, a.list); err != nil {
		return err
	}
	st := &state{
		list: a.list, validators: a.validators, loaded: time.Now(), confirmed: a.at,
		size: a.size, here: true, key: a.key,
	}
	if previous != nil {
		st.collapse = previous.list.Collapse(st.list)
		if st.collapse == "" && previous.list.SameEntries(st.list) {
			st.collapse = previous.collapse // published anew, as it was
		}
	}
	if err := s.save(ctx, st); err != nil {
		return err
	}
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
		return nil, fmt.Errorf("not finished within the timeout of %v: %w", timeout, err)
	}
	return nil, err
}

// succeeds returns why a list may not take the place of the one before, or nil.
func (s *Source) succeeds(previous *state, next *eklist.Snapshot) error {
	if err := s.expired(next); err != nil || previous == nil {
		return err
	}
	if err := previous.list.CheckSuccession(next); err != nil {
		return replay(err)
	}
	return nil
}

func replay(err error) error {
	return fmt.Errorf("the list is a replay, or was published without a new serial: %w", err)
}

// expired returns an error where the list says that it is too old. One that serves
// may have expired since, however often the server confirms it.
func (s *Source) expired(list *eklist.Snapshot) error {
	if h := list.Header(); h.Expired(s.cfg.Now()) {
		return fmt.Errorf("the list expired at %s: publish one with a later date", stamp(h.Expires))
	}
	return nil
}

// save puts a list into the cache. It returns an error where the list may not serve.
// What goes wrong with the file is a warning: the list is good. But where the cache
// holds a later list than this one, which it may if it could not be read before, that
// one takes its place, and this one is a replay.
func (s *Source) save(ctx context.Context, st *state) error {
	if s.cache == nil {
		return nil
	}
	err := s.cache.Save(ctx, st.list, st.meta())
	s.saveWarning, s.touched = "", st.confirmed
	if ahead := (*listcache.AheadError)(nil); errors.As(err, &ahead) {
		s.state.Store(nil)
		_, loadErr := s.restore(ctx)
		return errors.Join(replay(err), loadErr)
	}
	if err != nil {
		s.saveWarning = fmt.Sprintf("the cache was not written, so this list is lost at a restart: %v", err)
	}
	return nil
}

// touch notes in the cache that the list was confirmed, now and then: the file is
// written as a whole, and a list that counts as older than it is by a fiftieth of
// MaxStaleness, after a restart, harms nobody.
func (s *Source) touch(ctx context.Context, st *state) error {
	age := st.confirmed.Sub(s.touched)
	if s.saveWarning == "" && age >= 0 && age < s.cfg.MaxStaleness/50 {
		return nil
	}
	return s.save(ctx, st)
}

func (st *state) meta() listcache.Meta {
	return listcache.Meta{
		ETag: st.validators.etag, LastModified: st.validators.lastModified, Confirmed: st.confirmed,
		Key: listcache.Key(st.key),
	}
}
