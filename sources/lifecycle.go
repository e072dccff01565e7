package sources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"time"
)

const (
	// stopTimeout is how long Close waits for a source to end.
	stopTimeout = 5 * time.Second
	// A source that fails to load, or to follow its data, is tried again
	// after minPause, which doubles up to maxPause.
	minPause, maxPause = time.Second, time.Minute
	// maxWarnings is how many warnings of a source are logged at once.
	maxWarnings = 20
)

// start makes the first Refresh and follows the source until the runner is
// released by all who hold it. It is called once.
func (r *runner) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holders, r.ctx, r.cancel, r.started = 1, ctx, cancel, time.Now()
	r.work.Go(func() { r.live(ctx) })
}

// retain takes the runner over, and reports false where it does not run.
func (r *runner) retain() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holders == 0 {
		return false
	}
	r.holders++
	return true
}

// release gives the runner up and reports whether that stops it.
func (r *runner) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holders--; r.holders > 0 {
		return false
	}
	r.cancel() // under the lock: see beginRefresh
	return true
}

// waitStopped waits until all that start began has ended, but for stopTimeout at
// most.
func (r *runner) waitStopped() {
	ended := make(chan struct{})
	go func() {
		r.work.Wait()
		close(ended)
	}()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		r.log.Warn("source is stuck: it has not stopped and is left behind", slog.Duration("after", stopTimeout))
	}
}

// live is the life of a runner, from the first Refresh to the end of ctx.
func (r *runner) live(ctx context.Context) {
	_, loads := r.source.(Refresher)
	_ = r.refresh(ctx) // logged there
	close(r.first)
	if !loads {
		r.work.Go(func() { r.watchProbes(ctx) })
	}
	if follow, ok := r.source.(Runner); ok {
		r.follow(ctx, follow)
		return
	}
	for pause := minPause; loads && !r.hasLoaded() && sleep(ctx, pause); pause = min(2*pause, maxPause) {
		_ = r.refresh(ctx)
	}
}

// follow keeps Run at work until ctx ends.
func (r *runner) follow(ctx context.Context, source Runner) {
	pause := minPause
	for {
		begun := time.Now()
		err := <-call(func() error {
			return source.Run(ctx, func() error { return r.refresh(ctx) })
		}, func(error) {})
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > maxPause {
			pause = minPause
		}
		if err == nil {
			err = errors.New("returned before it was asked to stop")
		}
		r.log.Error("source stopped following its data; restarting it",
			append(stackOf(err), slog.Duration("in", pause))...)
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// refresh makes one attempt to load the source's data, after the one that is
// being made where there is one. It returns by its deadline even where the source
// does not; until that attempt has ended, further ones fail at once. A source that
// loads nothing is probed.
func (r *runner) refresh(ctx context.Context) error {
	source, ok := r.source.(Refresher)
	if !ok {
		return r.probe(ctx)
	}
	for {
		attempt, err := r.beginRefresh(ctx)
		if err == nil {
			err = r.attemptRefresh(ctx, source, attempt)
			if err == nil && r.failing.Load() {
				_ = r.probe(ctx) // whether it can tell again shows at once, not at the next attestation
			}
			return err
		}
		if attempt == nil {
			return err
		}
		select {
		case <-attempt:
		case <-ctx.Done():
		}
	}
}

// attemptRefresh makes the attempt that beginRefresh has begun.
func (r *runner) attemptRefresh(ctx context.Context, source Refresher, attempt chan struct{}) error {
	defer r.endAttempt(attempt)
	grace := graceOf(r.refreshTimeout)
	within, cancel := context.WithTimeout(ctx, r.refreshTimeout-grace)
	defer cancel()
	begun := time.Now()
	ended := call(func() error { return source.Refresh(within) },
		func(err error) { r.endRefresh(ctx, err) })
	select {
	case err := <-ended:
		return err
	case <-within.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		return r.leaveRefresh(ctx, time.Since(begun))
	}
}

// beginRefresh makes the caller the only one to refresh, and returns what ends
// with the attempt. Where there is an error, that is another's attempt, or nil
// where it has been left behind. ctx ends under the lock, so nothing begins once
// the runner is stopped, and waitStopped waits for all there is.
func (r *runner) beginRefresh(ctx context.Context) (attempt chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("refresh: the source is stopped: %w", err)
	}
	if r.refreshing {
		return r.attempt, errors.New("refresh: the previous one is still running")
	}
	r.refreshing = true
	r.attempt = make(chan struct{})
	r.work.Add(1)
	return r.attempt, nil
}

// endAttempt ends the wait for an attempt, which has ended or is left behind.
func (r *runner) endAttempt(attempt chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(attempt)
	if r.attempt == attempt { // else the next one has begun already
		r.attempt = nil
	}
}

// endRefresh notes how a Refresh has ended.
func (r *runner) endRefresh(ctx context.Context, err error) {
	defer r.work.Done()
	r.noteRefresh(ctx, err, false)
	if ctx.Err() == nil {
		r.noteStatus()
		r.changed()
	}
}

// leaveRefresh notes that a Refresh has outlived its deadline.
func (r *runner) leaveRefresh(ctx context.Context, after time.Duration) error {
	err := fmt.Errorf("refresh did not return within %v", after.Round(time.Millisecond))
	r.noteRefresh(ctx, err, true)
	r.changed()
	return err
}

// noteRefresh keeps the outcome of a Refresh, and logs it where it differs from
// the one before. A source that is being stopped is past failing and recovering.
func (r *runner) noteRefresh(ctx context.Context, err error, running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if running && !r.refreshing {
		return // it has ended meanwhile, and that is noted
	}
	r.refreshing = running
	if ctx.Err() != nil {
		return
	}
	switch {
	case err == nil:
		r.succeeded++
	case running || !r.left: // one that was left has failed already
		r.failed++
	}
	r.left = running
	before := r.err
	if before != nil && err != nil && sameFailure(before, err) {
		err = before // so that nobody downstream takes it for another one
	}
	r.err = err
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		what := "source failed to load; it cannot tell until it loads"
		if r.loaded {
			what = "source failed to load; the last good data stays in use"
		}
		r.log.Warn(what, stackOf(err)...)
	case err == nil && before != nil:
		r.log.Info("source has recovered: it has loaded again")
	case err == nil && !r.loaded:
		r.log.Info("source has loaded")
	}
	r.loaded = r.loaded || err == nil
}

// passing is what differs from one attempt to the next in errors that mean the same:
// the time in those of crypto/x509, how long something took, and this side's port.
var passing = regexp.MustCompile(`current time \S+|:\d+->|\b\d+(\.\d+)?(ns|µs|ms|s|m|h)[0-9.hmsµn]*\b`)

// sameFailure reports whether two errors are the same but for what is passing: a line
// in the log at each poll hides the others.
func sameFailure(a, b error) bool {
	return passing.ReplaceAllString(a.Error(), "") == passing.ReplaceAllString(b.Error(), "")
}

// noteStatus logs what the source serves, where that has changed.
func (r *runner) noteStatus() {
	s, err := r.report()
	if err != nil {
		r.log.Error("source failed", stackOf(err)...)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Entries != r.entries || s.Serial != r.serial {
		attrs := []any{slog.Int("entries", s.Entries)}
		if s.Serial != 0 {
			attrs = append(attrs, slog.Uint64("serial", s.Serial))
		}
		r.log.Info("source serves", attrs...)
		r.entries, r.serial = s.Entries, s.Serial
	}
	if slices.Equal(s.Warnings, r.warnings) {
		return
	}
	for i, w := range s.Warnings {
		if i == maxWarnings {
			r.log.Warn("source has further warnings", slog.Int("number", len(s.Warnings)-i))
			break
		}
		r.log.Warn("source needs attention", slog.String("warning", w))
	}
	if len(s.Warnings) == 0 {
		r.log.Info("source no longer needs attention")
	}
	r.warnings = slices.Clone(s.Warnings)
}

// call runs f in a goroutine of its own, calls note with its error and sends
// that. A panic and a Goexit are errors.
func call(f func() error, note func(error)) <-chan error {
	ended := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() {
			note(err)
			ended <- err
		}()
		err = guard(f)
	}()
	return ended
}

func (r *runner) lastError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *runner) hasLoaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loaded
}

// sleep waits for d and reports false where ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
