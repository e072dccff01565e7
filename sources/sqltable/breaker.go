package sqltable

import (
	"fmt"
	"sync"
	"time"
)

// retryPause is how long the database is left alone after it has failed.
const retryPause = time.Second

// A breaker is a circuit breaker. After a failure, all look-ups fail at once with the same error,
// except for one look-up in each pause, which tries the database again.
type breaker struct {
	pause time.Duration

	mu       sync.Mutex
	err      error     // of the last failure; nil once the database has answered
	tried    time.Time // when a look-up last failed or was let through
	answered time.Time // when the database last answered
}

// enter returns nil if a look-up that begins now may ask the database, and otherwise the error of
// the last failure.
func (b *breaker) enter(now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil && now.Sub(b.tried) < b.pause {
		return b.err
	}
	b.tried = now
	return nil
}

// failedSince returns the error of the last failure if a look-up has failed, or was let through
// to try again, after begun.
func (b *breaker) failedSince(begun time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tried.After(begun) {
		return b.err
	}
	return nil
}

// answer records that the database has answered.
func (b *breaker) answer() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answered = time.Now()
	b.err = nil
}

// fail records that a look-up that began at begun got no answer. The failure does not count if
// another look-up has got an answer since then: the database is not down.
func (b *breaker) fail(begun time.Time, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answered.After(begun) {
		return
	}
	b.tried = time.Now()
	b.err = fmt.Errorf("%w (the database is tried again every %v)", err, b.pause)
}
