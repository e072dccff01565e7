package httplist

import (
	"context"
	"math/rand/v2"
	"time"
)

// firstPause is how long Run waits after a first failure; it doubles with each
// further one, up to Config.PollInterval.
const firstPause = time.Second

// Run implements sources.Runner: it refreshes within every PollInterval, a
// random tenth of it earlier, so that the servers of a fleet do not all ask at
// once. After a failure it tries again sooner, or when the server has asked for
// by Retry-After, and never later. It returns nil when ctx has ended.
func (s *Source) Run(ctx context.Context, refresh func() error) error {
	defer s.next.Store(nil)
	wait := s.interval()
	if st := s.state.Load(); st == nil || !st.here {
		wait = 0 // nothing is known from the server yet
	}
	failures := 0
	for s.sleep(ctx, wait) {
		begun := time.Now()
		if err := refresh(); err != nil {
			wait = s.afterFailure(failures)
			failures++
			continue
		}
		failures = 0
		// What the attempt has taken is part of the interval.
		wait = max(s.interval()-time.Since(begun), s.cfg.PollInterval/10)
	}
	return nil
}

// interval returns the time to the next poll.
func (s *Source) interval() time.Duration {
	return s.cfg.PollInterval - rand.N(s.cfg.PollInterval/10+1) //nolint:gosec // G404: jitter is no secret
}

// afterFailure returns the time to the next poll, after a number of failures in
// a row that came before the last one.
func (s *Source) afterFailure(before int) time.Duration {
	if asked := time.Duration(s.pause.Load()); asked > 0 {
		return min(max(asked, firstPause), s.cfg.PollInterval)
	}
	return min(firstPause<<min(before, 20), s.interval())
}

// sleep waits and reports false where ctx ends first.
func (s *Source) sleep(ctx context.Context, d time.Duration) bool {
	next := time.Now().Add(d)
	s.next.Store(&next)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
