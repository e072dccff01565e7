package apart_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/apart"
)

// A mount whose server has gone answers nothing. Whoever waits for it goes on at
// his deadline, and a hundred attempts leave one goroutine, not a hundred.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := apart.New("the mount")
		var begun, dropped atomic.Int32
		drop := func(n int) { dropped.Add(int32(n)) }
		mount := make(chan struct{})
		stuck := func() (int, error) {
			begun.Add(1)
			<-mount
			return 1, nil
		}
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if n, err := apart.Do(ctx, l, stuck, drop); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %d, %v", n, err)
			}
			cancel()
		}
		if n := begun.Load(); n != 1 {
			t.Errorf("%d attempts are stuck, want 1", n)
		}
		close(mount)
		synctest.Wait()
		if n := dropped.Load(); n != 1 {
			t.Errorf("what came too late was given back %d times, want once", n)
		}
		if n, err := apart.Do(t.Context(), l, func() (int, error) { return 2, nil }, drop); n != 2 || err != nil {
			t.Errorf("when the mount is back: %d, %v", n, err)
		}
		if n := dropped.Load(); n != 1 {
			t.Errorf("what came in time was given back as well: %d", n)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if n, err := apart.Do(ended, l, stuck, drop); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("for somebody who has left: %d, %v", n, err)
		}
	})
}

// A file that no parser has foreseen must not stop the process.
func TestPanic(t *testing.T) {
	l := apart.New("the mount")
	for range 2 {
		n, err := apart.Do(t.Context(), l, func() (int, error) { panic("no parser has foreseen this") }, nil)
		if n != 0 || err == nil {
			t.Errorf("got %d, %v", n, err)
		}
	}
}

// An operator is told which storage it is, and whether this read is stuck or one
// before it; what a stuck one returns in the end is given back.
func TestErrors(t *testing.T) {
	l := apart.New("the list's storage")
	if _, err := apart.Do(t.Context(), l, func() (int, error) { panic("boom") }, nil); err == nil ||
		!strings.Contains(err.Error(), "boom") {
		t.Errorf("a panic is the error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stuck, free, dropped := make(chan struct{}), make(chan struct{}), make(chan int)
	go func() {
		<-stuck
		cancel()
	}()
	_, err := apart.Do(ctx, l, func() (int, error) {
		close(stuck)
		<-free
		return 42, nil
	}, func(n int) { dropped <- n })
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("a read that is stuck: %v", err)
	}
	if _, err := apart.Do(ctx, l, func() (int, error) { return 0, nil }, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
	short, end := context.WithTimeout(t.Context(), time.Millisecond)
	defer end()
	if _, err := apart.Do(short, l, func() (int, error) { return 0, nil }, nil); err == nil ||
		!strings.Contains(err.Error(), "has not answered an earlier request") {
		t.Errorf("behind a read that is stuck: %v", err)
	}
	close(free)
	if n := <-dropped; n != 42 {
		t.Errorf("dropped %d", n)
	}
	if n, err := apart.Do(t.Context(), l, func() (int, error) { return 7, nil }, nil); n != 7 || err != nil {
		t.Errorf("after it: %d, %v", n, err)
	}
}
