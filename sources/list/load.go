package list

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// warmPatience is how long an origin has to answer when it is asked for the first time, if a
// list from the cache serves already: a SPIRE server that starts does not wait longer for an
// origin that is down.
const warmPatience = time.Second

// Load implements sources.Loader: it asks the origin for the list. If there is a new list
// and it is good, Load writes it into the cache and then serves it. If there is an error,
// the last good list stays, unless the key that has signed it does not count any more.
//
// As long as there is no list, Load reads the cache before it asks the origin, and the list
// in the cache serves unless it is stale. Even then, the error says what is wrong with the
// origin.
func (l *List[T]) Load(ctx context.Context) error {
	err := l.load(ctx)
	l.failure.Store(&err)
	l.warn()
	return err
}

func (l *List[T]) load(ctx context.Context) error {
	if l.state.Load() != nil { // what was wrong before has been overcome
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
		return nil // the cache serves, as long as it may
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

// tag returns the tag of what serves; it is empty if the list is to be read anew. If lists
// are signed, a list from the cache is read anew. So is a list that another key than the
// last key in the file has signed: the last key may have signed the same list since, and
// the list must not be lost when the other key is taken out.
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

// confirm notes that the origin still has what serves.
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

// accept serves a list that the origin has sent, if it may replace the list before. Nothing
// is parsed or written if it is the same list: not all origins have tags.
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
		runtime.GC() // else the next Load comes on top of the garbage of this one
	}
	return nil
}

// bigList is the length of a list in bytes from which on its garbage is worth a
// collection of its own.
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

// succeed returns why a list may not replace the list before, or nil. Somebody who has kept
// a copy of an old list must not be able to serve it again: after a list with a serial,
// the next list has a higher serial, or the same serial and the same entries.
// If nothing has changed, the time at which it was loaded stays.
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

// A list collapses if it loses more than collapseCount entries at once, and more than an
// entry in collapseShare.
const collapseCount, collapseShare = 10, 5

// noteCollapse notes that a list has lost much of what it had. It serves all the same:
// the list is the operator's word.
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
