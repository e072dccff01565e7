package sqltable

import (
	"fmt"
	"sync"
	"time"
)

// retryPause is how long the database is left alone after it has failed.
const retryPause = time.Second

// A breaker keeps look-ups from a database that is down. After a failure all
// fail at once with its error; when pause has passed, one of them tries again.
type breaker struct {
	pause time.Duration

	mu       sync.Mutex
	err      error     // of the last failure; nil where the database answers
	failed   time.Time // when that was
	answered time.Time // when it last answered
	probing  bool      // one look-up tries again
	next     *outage
}

// An outage is a failure that those who wait for a connection hear of.
type outage struct {
	begins chan struct{} // closed when it begins
	err    error         // set before
}

func newOutage() *outage { return &outage{begins: make(chan struct{})} }

func newBreaker() *breaker { return &breaker{pause: retryPause, next: newOutage()} }

// An entry is one look-up that may ask the database.
type entry struct {
	begun time.Time
	next  *outage
	probe bool // it tries again, and heeds no outage
}

// enter lets a look-up through, or returns the error that the database failed
// with. Who is let through calls leave, answer or fail, once.
func (b *breaker) enter() (entry, error) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	e := entry{begun: now, next: b.next}
	switch {
	case b.err == nil:
		return e, nil
	case b.probing || now.Sub(b.failed) < b.pause:
		return entry{}, b.err
	}
	b.probing = true
	e.probe, e.next = true, newOutage()
	return e, nil
}

// leave notes that a look-up was not made.
func (b *breaker) leave(e entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = b.probing && !e.probe
}

// answer notes that the database has answered.
func (b *breaker) answer(e entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = b.probing && !e.probe
	b.answered = time.Now()
	b.err = nil
}

// fail notes that the database has not answered, unless it has answered another
// look-up since this one began: it is then not the database that is down.
func (b *breaker) fail(e entry, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = b.probing && !e.probe
	if b.answered.After(e.begun) {
		return
	}
	b.failed = time.Now()
	b.err = fmt.Errorf("%w (the database is tried again every %v)", err, b.pause)
	b.next.err = b.err
	close(b.next.begins)
	b.next = newOutage()
}
