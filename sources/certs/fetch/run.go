package fetch

import (
	"context"
	"errors"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

const (
	// flushDelay is how long to wait for more before writing what was fetched, and flushPause how
	// long to wait after a failed write.
	flushDelay, flushPause = time.Second, time.Minute
	// flushShare limits writing, which always replaces the whole file, to a hundredth of the time.
	flushShare = 100
	// flushTimeout limits how long the last write waits for other processes.
	flushTimeout = 3 * time.Second
)

// touch records that the cache file is out of date. The caller must hold f.mu.
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

// Run writes what is fetched to the cache, soon after it was fetched, until ctx ends. It returns
// nil when the rest has been written and requests for which nobody waits have ended. While it is
// running, a request that has begun continues even if nobody waits for it, so that the next caller
// has its answer. Calls must not overlap.
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
			case errors.Is(err, boltfile.ErrBusy): // callers may be waiting for it
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

// setRunning records whether Run is running, and returns channels that are closed when the requests
// that Run leaves behind have ended.
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

// Close ends all requests, writes what has not been written yet, and returns when no goroutine is
// left. Afterwards, Get fails if something would have to be requested. A caller that has called Run
// and waited for it need not call Close.
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

// flushLast writes what has not been written yet although ctx has ended. It does not wait long for
// other processes.
func (f *Fetcher) flushLast(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	return f.flush(ctx)
}
