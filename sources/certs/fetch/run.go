package fetch

import (
	"context"
	"errors"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

const (
	// flushDelay is how long what was fetched waits for more before it is
	// written, and flushPause how long a write that has failed waits.
	flushDelay, flushPause = time.Second, time.Minute
	// flushShare keeps writing, which is always of the whole file, to a hundredth of
	// the time.
	flushShare = 100
	// flushTimeout bounds how long the last write waits for others.
	flushTimeout = 3 * time.Second
)

// touch says that the cache file is not up to date. The caller holds f.mu.
func (f *Fetcher) touch() {
	if f.path == "" {
		return
	}
	f.changed = true
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run writes what is fetched to the cache, soon after it was fetched, until ctx
// ends. It returns nil when the rest is written then, and what nobody waits for
// any more has ended. While it runs, a request that has begun goes on if nobody
// waits for it: the next one who asks has its answer. It is never called twice at
// once.
func (f *Fetcher) Run(ctx context.Context) error {
	f.setRunning(true)
	timer := time.NewTimer(0)
	defer timer.Stop()
	wake, delay := f.wake, flushDelay
	for {
		select {
		case <-wake:
			wake = nil
			timer.Reset(delay)
		case <-timer.C:
			wake = f.wake
			begun := time.Now()
			switch err := f.flush(ctx); {
			case errors.Is(err, boltfile.ErrBusy): // somebody may be waiting for it
				timer.Reset(flushDelay)
			case err != nil:
				wake = nil
				timer.Reset(flushPause)
			default:
				delay = max(flushDelay, min(flushShare*time.Since(begun), 10*flushPause))
			}
		case <-ctx.Done():
			for _, done := range f.setRunning(false) {
				<-done
			}
			_ = f.flushLast(ctx) // CacheError has it
			return nil
		}
	}
}

// setRunning says whether Run is there, and returns what ends the requests that
// it leaves behind.
func (f *Fetcher) setRunning(running bool) (ending []<-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = running
	for _, fl := range f.flights {
		if !running && fl.waiters == 0 {
			f.endDeserted(fl)
			ending = append(ending, fl.done)
		}
	}
	return ending
}

// Close ends all requests, writes what is not written yet, and returns when no
// goroutine is left. Get fails from then on if something would have to be
// asked for. Who calls Run to its end need not call Close.
func (f *Fetcher) Close() error {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.flights {
		fl.cancel()
	}
	f.mu.Unlock()
	f.work.Wait()
	return f.flushLast(context.Background())
}

// flushLast writes what is not written yet though ctx has ended. It waits for no other
// process for long.
func (f *Fetcher) flushLast(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	return f.flush(ctx)
}
