package certfetch

import (
	"context"
	"time"
)

const (
	// flushDelay is how long what was fetched waits for more before it is
	// written, and flushPause how long a write that has failed waits.
	flushDelay, flushPause = time.Second, time.Minute
	// maxChanged is the number of names that wait to be written.
	maxChanged = 2 * (maxObjects + maxFailures)
	// flushTimeout bounds the last write.
	flushTimeout = 3 * time.Second
)

// touch says that the cache file has to be told of a name. The caller holds f.mu.
func (f *Fetcher) touch(n name) {
	if f.path == "" {
		return
	}
	f.note(n)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// note takes a name down that is to be written. Where a disk fails for so long that
// these are too many, the file will be replaced as a whole.
func (f *Fetcher) note(n name) {
	if len(f.changed) >= maxChanged {
		clear(f.changed)
		f.spoiled = true
	}
	f.changed[n] = true
}

// Run writes what is fetched to the cache, soon after it was fetched, until ctx
// ends. It returns nil when the rest is written then, and what nobody waits for
// any more has ended. While it runs, a request that has begun goes on where nobody
// waits for it: the next one who asks has its answer. It is never called twice at
// once.
func (f *Fetcher) Run(ctx context.Context) error {
	f.setRunning(true)
	timer := time.NewTimer(0)
	defer timer.Stop()
	wake := f.wake
	for {
		select {
		case <-wake:
			wake = nil
			timer.Reset(flushDelay)
		case <-timer.C:
			wake = f.wake
			if f.flush(ctx) != nil {
				wake = nil
				timer.Reset(flushPause)
			}
		case <-ctx.Done():
			for _, done := range f.setRunning(false) {
				<-done
			}
			_ = f.flushLast(ctx) // Stats has it
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
// goroutine is left. Get fails from then on where something would have to be
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

// flushLast writes what is not written yet though ctx has ended, in a bounded time.
func (f *Fetcher) flushLast(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	return f.flush(ctx)
}
