package list

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// warmPatience is how long an origin has to answer the first request if a list from the cache is
// already served. A SPIRE server that starts does not wait longer for an origin that is down.
const warmPatience = time.Second

// Load implements sources.Loader. It asks the origin for the list. If there is a new, good list,
// Load writes it into the cache and then serves it. After an error, the last good list stays,
// unless the key that signed it no longer counts.
//
// Until there is a list, Load reads the cache before it asks the origin, and the list in the cache
// is served unless it is stale. Even then, the error says what is wrong with the origin.
func (l *List[T]) Load(ctx context.Context) error {
	err := l.load(ctx)
	l.failure.Store(&err)
	l.warn()
	return err
}

func (l *List[T]) load(ctx context.Context) error {
	if l.state.Load() != nil { // earlier faults of the cache no longer matter
		l.loadFault = ""
	}
	if err := l.readKeys(); err != nil {
		return err
	}
	if err := l.restore(ctx); err != nil {
		return err
	}
	before := l.state.Load()
	c, err := l.ask(ctx, before)
	if errors.Is(err, errOffline) && before != nil {
		return nil // the list from the cache is served
	}
	if err != nil {
		return err
	}
	if c.Data == nil {
		return l.confirm(ctx, before, c)
	}
	return l.accept(ctx, before, c)
}

// ask reads the list from the origin.
func (l *List[T]) ask(ctx context.Context, before *state[T]) (Copy, error) {
	first := !l.asked
	l.asked = true
	if first && before != nil && l.usable(before) == nil {
		within, cancel := context.WithTimeout(ctx, warmPatience)
		defer cancel()
		ctx = within
	}
	return l.origin.Read(ctx, l.tag(before))
}

// tag returns the tag of the list that is served. It is empty if the list must be read anew. If
// lists are signed, that applies to a list from the cache, and to a list that was signed by a key
// other than the last one in the file: the last key may have signed the same list since, and the
// list must not be lost when the other key is removed.
func (l *List[T]) tag(st *state[T]) string {
	switch {
	case st == nil:
		return ""
	case l.cfg.Signing != nil && (!st.here || st.key != l.lastKey()):
		return ""
	case l.saveFault != "" && l.unsaved.Data == nil: // the cache needs its bytes
		return ""
	}
	return st.tag
}

// confirm records that the origin still has the list that is served.
func (l *List[T]) confirm(ctx context.Context, before *state[T], c Copy) error {
	if before == nil {
		return errors.New("the list has not changed, but none is there")
	}
	next := *before
	next.confirmed, next.here, next.tag = c.At, true, c.Tag
	if err := l.touch(ctx, &next); err != nil {
		return err
	}
	l.state.Store(&next)
	return l.unexpired(next.content.Header()) // it may have expired since
}

// accept serves a list that the origin has sent, if it may replace the previous list. If it is the
// same list, it is neither parsed nor written: not all origins have tags.
func (l *List[T]) accept(ctx context.Context, before *state[T], c Copy) error {
	if before != nil && (l.saveFault == "" || l.unsaved.Data != nil) && sha256.Sum256(c.Data) == before.digest {
		if key, err := l.verify(c.Data, c.Signature); err == nil && key == before.key {
			return l.confirm(ctx, before, c)
		}
	}
	next, err := l.read(c)
	if err != nil {
		return err
	}
	next.here = true
	if err := l.succeed(before, next); err != nil {
		return err
	}
	if err := l.save(ctx, next, c); err != nil {
		return err
	}
	l.noteCollapse(before, next)
	l.state.Store(next)
	if len(c.Data) > bigList {
		runtime.GC() // otherwise the garbage of this Load adds to the memory of the next
	}
	return nil
}

// bigList is the length of a list, in bytes, from which on Load runs the garbage collector
// afterwards.
const bigList = 16 << 20

// read verifies and parses a copy.
func (l *List[T]) read(c Copy) (*state[T], error) {
	key, err := l.verify(c.Data, c.Signature)
	if err != nil {
		return nil, err
	}
	content, err := l.parse(c.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.cfg.What, err)
	}
	if err := l.signedHeader(content.Header()); err != nil {
		return nil, err
	}
	return &state[T]{
		content: content, digest: sha256.Sum256(c.Data), key: key, tag: c.Tag,
		loaded: l.cfg.Now(), confirmed: c.At,
	}, nil
}

// succeed returns an error if a list may not replace the previous list. Somebody who has kept an
// old list must not be able to have it served again: after a list with a serial, the next list must
// have a higher serial, or the same serial and the same entries. If nothing has changed, the
// loading time stays as it is.
func (l *List[T]) succeed(before, next *state[T]) error {
	h := next.content.Header()
	if err := l.unexpired(h); err != nil {
		return err
	}
	if before == nil {
		return nil
	}
	b := before.content.Header()
	equal := before.content.Equal(next.content)
	switch {
	case !b.HasSerial:
	case !h.HasSerial:
		return replay("a list without a serial after serial %d", b.Serial)
	case h.Serial < b.Serial:
		return replay("serial %d after serial %d: raise the serial with every change of the list", h.Serial, b.Serial)
	case h.Serial == b.Serial && !equal:
		return replay("different entries with the same serial %d: raise the serial with every change of the list",
			h.Serial)
	}
	if equal && sameHeader(b, h) {
		next.loaded = before.loaded
	}
	return nil
}

func replay(format string, args ...any) error {
	return fmt.Errorf("the list is a replay, or was published without a new serial: "+format, args...)
}

func sameHeader(a, b Header) bool {
	same := a.Expires.Equal(b.Expires)
	a.Expires, b.Expires = time.Time{}, time.Time{}
	return same && a == b
}

// A list collapses if it loses, at once, more than collapseCount entries and more than one entry in
// collapseShare.
const collapseCount, collapseShare = 10, 5

// noteCollapse records that a list has lost many of its entries. The list is served all the same,
// since the operator has published it.
func (l *List[T]) noteCollapse(before, next *state[T]) {
	if before == nil || before.content.Equal(next.content) {
		return
	}
	l.collapsed = ""
	lost, had := next.content.Without(before.content), before.content.Len()
	if lost > collapseCount && lost*collapseShare > had {
		l.collapsed = fmt.Sprintf("the list has collapsed: it has %d entries now and had %d before, of which %d are "+
			"gone; it is served as it is, so publish it anew if that was a mistake", next.content.Len(), had, lost)
	}
}

// warn publishes the warnings of this Load.
func (l *List[T]) warn() {
	var all []string
	for _, w := range []string{l.loadFault, l.saveFault, l.collapsed} {
		if w != "" {
			all = append(all, w)
		}
	}
	l.warnings.Store(&all)
}
