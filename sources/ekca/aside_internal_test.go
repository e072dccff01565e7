package ekca

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A mount whose server has gone answers nothing. Whoever waits for it goes on at
// his deadline, and a hundred attempts leave one goroutine, not a hundred.
func TestAsideStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAside()
		var begun atomic.Int32
		mount := make(chan struct{})
		stuck := func() (int, error) {
			begun.Add(1)
			<-mount
			return 1, nil
		}
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if n, err := in(ctx, a, stuck); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %d, %v", n, err)
			}
			cancel()
		}
		if n := begun.Load(); n != 1 {
			t.Errorf("%d attempts are stuck, want 1", n)
		}
		close(mount)
		synctest.Wait()
		if n, err := in(t.Context(), a, func() (int, error) { return 2, nil }); n != 2 || err != nil {
			t.Errorf("when the mount is back: %d, %v", n, err)
		}
	})
}

// A file that no parser has foreseen must not stop the process.
func TestAsidePanic(t *testing.T) {
	a := newAside()
	for range 2 {
		n, err := in(t.Context(), a, func() (int, error) { panic("no parser has foreseen this") })
		if n != 0 || err == nil {
			t.Errorf("got %d, %v", n, err)
		}
	}
}

// A source on a stuck mount says so: Run calls refresh, which fails and is
// reported, and Run ends when it is told to.
func TestRunOnAStuckMount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, err := New(Config{CAPath: "/does/not/exist"})
		if err != nil {
			t.Fatal(err)
		}
		src.state.Store(&state{})
		src.files.busy <- struct{}{} // somebody reads and never ends
		ctx, cancel := context.WithCancel(t.Context())
		refreshes := 0
		ended := make(chan error, 1)
		go func() {
			ended <- src.Run(ctx, func() error {
				refreshes++
				limited, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				return src.Refresh(limited)
			})
		}()
		<-time.After(5 * time.Minute)
		cancel()
		if err := <-ended; err != nil || refreshes < 4 {
			t.Errorf("Run = %v after %d refreshes", err, refreshes)
		}
	})
}
