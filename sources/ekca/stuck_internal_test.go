package ekca

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/apart"
)

// A source on a stuck mount says so: Run calls refresh, which fails and is
// reported, and Run ends when it is told to.
func TestRunOnAStuckMount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, err := New(Config{CAPath: "/does/not/exist"})
		if err != nil {
			t.Fatal(err)
		}
		src.state.Store(&state{})
		mount := make(chan struct{})
		defer close(mount)
		read := func() (struct{}, error) { <-mount; return struct{}{}, nil } // and never ends
		go func() { _, _ = apart.Do(t.Context(), src.files, read, nil) }()
		synctest.Wait()
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
