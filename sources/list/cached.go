package list

import (
	"context"
	"errors"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// restore serves the list in the cache if nothing is served yet. It keeps even a stale list, since
// its serial tells which lists are replays. An error means that the content of the cache is not
// known. Then no list may be accepted: it might be older than the list in the cache.
func (l *List[T]) restore(ctx context.Context) error {
	if l.state.Load() != nil || l.cfg.Cache == nil {
		return nil
	}
	c, err := l.cfg.Cache.read(ctx)
	if errors.Is(err, boltfile.ErrNone) {
		return nil
	}
	var st *state[T]
	if err == nil {
		if st, err = l.read(c); err != nil {
			err = l.cfg.Cache.in(err)
		}
	}
	if err != nil {
		if l.loadFault == "" { // it may already say that the list was dropped
			l.loadFault = fmt.Sprintf("the cache was not used: %v", err)
		}
		if errors.Is(err, boltfile.ErrBusy) || ctx.Err() != nil {
			return fmt.Errorf("no list is accepted before the serial in the cache is known: %w", err)
		}
		return nil
	}
	l.saved, l.loadFault, l.unsaved = st.confirmed, "", Copy{}
	l.state.Store(st)
	return nil
}

// save writes a new list into the cache. It returns an error if the list may not be served. A file
// that cannot be written only causes a warning, since the list is good. But if the file holds a
// later list, because it could not be read before or another process has written it, the list from
// the origin is a replay, and the later list is served.
func (l *List[T]) save(ctx context.Context, st *state[T], c Copy) error {
	if l.cfg.Cache == nil {
		return nil
	}
	err := l.cfg.Cache.write(ctx, st.content.Header(), c, func(there Copy) (Header, error) {
		old, err := l.read(there)
		if err != nil {
			return Header{}, err
		}
		return old.content.Header(), nil
	})
	l.unsaved = Copy{}
	if err = l.saw(ctx, st, err); l.saveFault != "" {
		l.unsaved = c
	}
	return err
}

// touchShare is the share of MaxStaleness (1/touchShare) that may pass before a confirmation is
// written to the cache. Each write replaces the whole file, and it does no harm if, after a
// restart, a list counts as slightly older than it is.
const touchShare = 50

// touch records in the cache, now and then, that the list was confirmed.
func (l *List[T]) touch(ctx context.Context, st *state[T]) error {
	if l.cfg.Cache == nil {
		return nil
	}
	if c := l.unsaved; c.Data != nil {
		c.Tag, c.At = st.tag, st.confirmed
		return l.save(ctx, st, c)
	}
	if age := st.confirmed.Sub(l.saved); age >= 0 && age < l.cfg.MaxStaleness/touchShare {
		l.cfg.Cache.stamp(st.confirmed)
		return nil
	}
	return l.saw(ctx, st, l.cfg.Cache.touch(ctx, st.digest, st.confirmed, st.tag))
}

// saw records whether writing the cache has succeeded.
func (l *List[T]) saw(ctx context.Context, st *state[T], err error) error {
	l.saveFault = ""
	if err == nil {
		l.saved = st.confirmed
		l.cfg.Cache.stamp(st.confirmed)
		return nil
	}
	if ahead := (*aheadError)(nil); errors.As(err, &ahead) {
		l.state.Store(nil)
		return errors.Join(replay("%w", err), l.restore(ctx))
	}
	l.cfg.Cache.stamp(disowned)
	l.saveFault = fmt.Sprintf("the cache was not written, so this list is lost at a restart: %v", err)
	return nil
}
