package sqltable

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

var errDown = errors.New("down")

// While the database is down there is one attempt a second, whoever asks, and the
// first that succeeds lets everybody in again.
func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker()
		first, err := b.enter()
		if err != nil {
			t.Fatal(err)
		}
		waiting, err := b.enter()
		if err != nil {
			t.Fatal(err)
		}
		b.fail(first, errDown)
		select {
		case <-waiting.next.begins:
		default:
			t.Error("who waits does not hear of the outage")
		}
		if !errors.Is(waiting.next.err, errDown) {
			t.Errorf("who waits hears %v", waiting.next.err)
		}
		b.leave(waiting)
		attempts := 0
		refused := func() {
			t.Helper()
			for range 1000 {
				if _, err := b.enter(); !errors.Is(err, errDown) {
					t.Fatalf("%v", err)
				}
			}
		}
		for range 10 {
			refused()
			time.Sleep(retryPause)
			e, err := b.enter()
			if err != nil {
				t.Fatal(err)
			}
			attempts++
			refused() // while it tries
			time.Sleep(10 * time.Second)
			refused()
			b.fail(e, errDown)
		}
		time.Sleep(retryPause)
		e, err := b.enter()
		if err != nil {
			t.Fatal(err)
		}
		b.leave(e) // it could not try
		if e, err = b.enter(); err != nil {
			t.Fatalf("nobody may try after one that has left: %v", err)
		}
		b.answer(e)
		for range 10 {
			if _, err := b.enter(); err != nil {
				t.Error(err)
			}
		}
	})
}

// One look-up that fails while others are being answered is not an outage, and an
// answer that comes late ends one.
func TestBreakerKnowsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker()
		slow, _ := b.enter()
		late, _ := b.enter()
		time.Sleep(time.Millisecond)
		other, _ := b.enter()
		b.answer(other)
		b.fail(slow, errDown)
		if _, err := b.enter(); err != nil {
			t.Errorf("one that is slow stops all: %v", err)
		}
		time.Sleep(time.Millisecond)
		next, _ := b.enter()
		b.fail(next, errDown)
		if _, err := b.enter(); err == nil {
			t.Error("an outage is none")
		}
		b.answer(late)
		if _, err := b.enter(); err != nil {
			t.Errorf("it has answered: %v", err)
		}
	})
}
