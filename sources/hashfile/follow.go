package hashfile

import (
	"context"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/apart"
)

const (
	// debounce is how long nothing may happen before a change is followed, and
	// mostDebounce how long it is put off where something happens all the time.
	debounce, mostDebounce = 100 * time.Millisecond, time.Second
	// retryPause is how long after a refresh that has failed there is another;
	// it doubles each time, up to the interval.
	retryPause = time.Second
	// watchTimeout bounds making a watch.
	watchTimeout = 5 * time.Second
)

// Run implements sources.Runner: it refreshes when something has changed on the
// way to the file, every PollInterval, and sooner where the last refresh has
// failed. It returns nil when ctx has ended.
func (s *Source) Run(ctx context.Context, refresh func() error) error {
	ticker := time.NewTicker(s.cfg.PollInterval)
	defer ticker.Stop()
	tick := s.now().Add(s.cfg.PollInterval)
	retry := time.NewTimer(s.cfg.PollInterval)
	defer retry.Stop()
	f := follower{source: s}
	defer f.stop()
	for pause := retryPause; ; {
		f.update(ctx)
		next := tick
		if refresh() == nil {
			pause = retryPause
			retry.Stop()
		} else {
			next = s.now().Add(pause)
			retry.Reset(pause)
			pause = min(2*pause, s.cfg.PollInterval)
		}
		if tick.Before(next) {
			next = tick
		}
		s.next.Store(&next)
		select {
		case <-ctx.Done():
			return nil
		case <-f.changed():
			f.settle(ctx)
		case <-retry.C:
		case <-ticker.C:
			tick = s.now().Add(s.cfg.PollInterval)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// A follower has the watch that fits the way to the file.
type follower struct {
	source *Source
	watch  watch // nil where there is none
	route  route // that is watched
	whole  bool  // all of it
}

// changed is nil where nothing tells of changes.
func (f *follower) changed() <-chan struct{} {
	if f.watch == nil {
		return nil
	}
	return f.watch.changed()
}

func (f *follower) stop() {
	if f.watch != nil {
		f.watch.close()
		f.watch = nil
	}
}

// settle waits until nothing has happened for a while.
func (f *follower) settle(ctx context.Context) {
	most := time.NewTimer(mostDebounce)
	defer most.Stop()
	for {
		quiet := time.NewTimer(debounce)
		select {
		case <-f.changed():
			quiet.Stop()
			continue
		case <-quiet.C:
		case <-most.C:
		case <-ctx.Done():
		}
		quiet.Stop()
		return
	}
}

// update makes another watch where the way to the file is another one, and where
// the last watch is not whole or broken. What happens before the new one is in
// place is seen by the refresh that follows.
func (f *follower) update(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	whole := f.watch != nil && f.whole && !f.watch.broken()
	made, err := apart.Do(within, f.source.disk, func() (attempt, error) {
		return f.source.follow(f.route, whole), nil
	}, attempt.drop)
	if err == nil {
		err = made.err
	}
	if ctx.Err() != nil {
		made.drop()
		return
	}
	if made.watch != nil {
		f.stop()
		f.watch, f.route = made.watch, made.route
	}
	f.whole = err == nil
	why := ""
	if err != nil {
		why = fmt.Sprintf("changes to list %q may be noticed only by polling every %v: %v",
			f.source.cfg.Path, f.source.cfg.PollInterval, err)
	}
	f.source.unwatched.Store(&why)
}

// An attempt is one to watch the way to the file.
type attempt struct {
	route route
	watch watch // nil where the one before will do, and where there can be none
	err   error // why not all can be watched
}

func (a attempt) drop() {
	if a.watch != nil {
		a.watch.close()
	}
}

// follow watches the way to the file, unless it is the one that is watched as a
// whole.
func (s *Source) follow(watched route, whole bool) attempt {
	r, err := routeTo(s.cfg.Path)
	if err != nil {
		return attempt{err: err}
	}
	if whole && r.same(watched) {
		return attempt{}
	}
	w, err := s.openWatch(r)
	return attempt{r, w, err}
}
