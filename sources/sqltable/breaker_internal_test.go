package sqltable

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

var errDown = errors.New("down")

// While the database is down, there is one attempt a second however many ask, and the first
// that succeeds lets everybody in again.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker{pause: retryPause}
		begun := time.Now()
		if err := b.enter(begun); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		b.fail(begun, errDown)
		if err := b.failedSince(begun); !errors.Is(err, errDown) {
			t.Errorf("a look-up that waits for a connection hears %v", err)
		}
		for range 10 {
			refused(t, &b)
			time.Sleep(retryPause)
			begun = time.Now()
			if err := b.enter(begun); err != nil {
				t.Fatal(err)
			}
			refused(t, &b) // while that one tries
			if err := b.failedSince(begun); err != nil {
				t.Errorf("the look-up that tries again is told of an older failure: %v", err)
			}
			b.fail(begun, errDown)
		}
		time.Sleep(retryPause)
		if err := b.enter(time.Now()); err != nil {
			t.Fatal(err)
		}
		b.answer()
		for range 10 {
			if err := b.enter(time.Now()); err != nil {
				t.Error(err)
			}
		}
	})
}

func refused(t *testing.T, b *breaker) {
	t.Helper()
	for range 1000 {
		if err := b.enter(time.Now()); !errors.Is(err, errDown) {
			t.Fatalf("%v", err)
		}
	}
}

// One look-up that fails while the database answers others is no outage, and an answer that
// comes late ends an outage.
func TestBreakerKnowsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaker{pause: retryPause}
		slow := time.Now()
		time.Sleep(time.Millisecond)
		b.answer() // to another look-up
		b.fail(slow, errDown)
		if err := b.enter(time.Now()); err != nil {
			t.Errorf("one slow look-up stops all: %v", err)
		}
		time.Sleep(time.Millisecond)
		b.fail(time.Now(), errDown)
		refused(t, &b)
		b.answer() // to a look-up that began before
		if err := b.enter(time.Now()); err != nil {
			t.Errorf("the database has answered: %v", err)
		}
	})
}
