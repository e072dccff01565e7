package admission

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

const (
	// After a failure, the next attempt comes after minPause, which doubles with each
	// failure up to the interval of the source's Schedule.
	minPause = time.Second
	// maxPause is the longest pause before Watch is called again.
	maxPause = time.Minute
	// An interval is shortened by up to 1/jitter, so that the servers of a fleet do not all ask at
	// the same time.
	jitter = 10
	// earlyLoads is the maximum number of Loads that attestations may cause ahead of schedule in
	// one interval: a stranger must not be able to make the server poll.
	earlyLoads = 3
	// A change causes a Load when no further change has followed for debounce, but after
	// mostDebounce at the latest.
	debounce, mostDebounce = 100 * time.Millisecond, time.Second
	// probeInterval is how often a source that loads nothing is probed. Without probes, a directory
	// that may not be searched or a database that is down would be noticed only when a machine
	// attests, and its recovery only when the next machine does.
	probeInterval = 30 * time.Second
)

// A poll decides when a source is loaded.
type poll struct {
	schedule sources.Schedule
	changes  chan struct{} // signals a change to the loop
	wanted   chan struct{} // signals to the loop that an attestation wants a Load now

	mu      sync.Mutex
	working bool
	made    *attempt              // the Load in progress
	asked   *attempt              // the Load that was asked for ahead of schedule
	early   [earlyLoads]time.Time // a ring: when the last such Loads were asked for
	next    int                   // the index of the oldest in early
	quiet   time.Time             // the time until which the origin has asked to be left alone
	at      time.Time             // when the next attempt is due; zero if none is scheduled
}

// An attempt is one Load. Any number of goroutines may wait for it to end.
type attempt struct {
	ended chan struct{}
	// loaded is set before ended is closed. It is true if the Load has succeeded.
	loaded bool
}

func newPoll(s sources.Source) *poll {
	p := &poll{
		schedule: sources.Schedule{Every: probeInterval},
		changes:  make(chan struct{}, 1), wanted: make(chan struct{}, 1),
	}
	if loader, ok := s.(sources.Loader); ok {
		p.schedule = loader.Schedule()
		p.schedule.Every = max(p.schedule.Every, minPause)
	}
	return p
}

// keepCurrent makes the first attempt, and further attempts until ctx ends: within every interval,
// sooner after a failure, after a change, and when an attestation wants one. With Options.Once, it
// makes only the first attempt. Nothing else calls Load.
func (r *runner) keepCurrent(ctx context.Context) {
	r.poll.start()
	defer r.poll.stop()
	began := time.Now()
	err := r.attempt(ctx)
	close(r.first)
	if r.once {
		return
	}
	if w, ok := r.source.(sources.Watcher); ok {
		r.work.Go(func() { r.watch(ctx, w) })
	}
	for failures := 0; ; {
		if err == nil {
			failures = 0
		}
		if !r.waitForNext(ctx, r.poll.pause(err, failures, time.Since(began))) {
			return
		}
		if err != nil {
			failures++
		}
		began = time.Now()
		err = r.attempt(ctx)
	}
}

// pause returns the time to the next attempt. The last attempt took took and ended with err;
// failures is the number of failures in a row before it.
func (p *poll) pause(err error, failures int, took time.Duration) time.Duration {
	every := p.schedule.Every
	shortened := every - rand.N(every/jitter+1) //nolint:gosec // G404: jitter is no secret
	if err == nil {
		return max(shortened-took, every/jitter)
	}
	if asked := sources.Wait(err); asked > 0 {
		return min(max(asked, minPause), every)
	}
	return min(minPause<<min(failures, 20), shortened)
}

// waitForNext waits until the next attempt is due, and returns false if ctx ends first.
func (r *runner) waitForNext(ctx context.Context, pause time.Duration) bool {
	p := r.poll
	p.mu.Lock()
	p.at = time.Now().Add(pause)
	p.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-p.wanted:
	case <-p.changes:
		p.settle(ctx)
	}
	return ctx.Err() == nil
}

// tell signals a change to the loop. It never waits.
func (p *poll) tell() {
	select {
	case p.changes <- struct{}{}:
	default:
	}
}

// settle waits until no further change has been signalled for a while.
func (p *poll) settle(ctx context.Context) {
	most := time.NewTimer(mostDebounce)
	defer most.Stop()
	for {
		quiet := time.NewTimer(debounce)
		select {
		case <-p.changes:
			quiet.Stop()
			continue
		case <-quiet.C:
		case <-p.wanted:
		case <-most.C:
		case <-ctx.Done():
		}
		quiet.Stop()
		return
	}
}

// attempt makes one Load, or a probe if the source loads nothing.
func (r *runner) attempt(ctx context.Context) error {
	a := r.poll.begin()
	var err error
	loader, loads := r.source.(sources.Loader)
	if loads {
		err = r.loads.Do(ctx, r.loadTimeout, func(ctx context.Context) error { return seal(loader.Load(ctx)) })
		r.noteLoad(ctx, err)
	}
	if !loads || err == nil && r.health.failing() {
		// Probe the source now, so that its recovery is noticed before the next attestation.
		if probed := r.probe(ctx); !loads {
			err = probed
		}
	}
	r.poll.end(a, err)
	if ctx.Err() == nil {
		r.noteStatus()
		r.changed()
	}
	return err
}

// begin returns the attempt that begins now.
func (p *poll) begin() *attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.asked
	if a == nil {
		a = &attempt{ended: make(chan struct{})}
	}
	select { // this attempt is the one that was wanted
	case <-p.wanted:
	default:
	}
	p.made, p.asked = a, nil
	return a
}

// end ends an attempt, which wakes all who wait for it.
func (p *poll) end(a *attempt, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made, p.quiet, a.loaded = nil, time.Time{}, err == nil
	if wait := sources.Wait(err); wait > 0 {
		p.quiet = time.Now().Add(min(wait, p.schedule.Every))
	}
	close(a.ended)
}

// soon returns the attempt in progress, or else a new attempt that begins now, ahead of schedule.
// It returns nil if the limits do not permit one. underWay is true if the attempt has already
// begun.
func (p *poll) soon() (a *attempt, underWay bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	switch {
	case !p.schedule.Early:
		return nil, false
	case p.made != nil:
		return p.made, true
	case p.asked != nil:
		return p.asked, false
	case now.Before(p.quiet), !p.working:
		return nil, false
	}
	if last := p.early[p.next]; !last.IsZero() && now.Sub(last) < p.schedule.Every {
		return nil, false
	}
	p.early[p.next] = now
	p.next = (p.next + 1) % len(p.early)
	p.asked = &attempt{ended: make(chan struct{})}
	p.wanted <- struct{}{} // does not block: begin empties it when it takes asked
	return p.asked, false
}

// renew returns an attempt that begins after the call. The limits of early loads do not apply to it. It
// returns nil if the source is not running.
func (p *poll) renew() *attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.working {
		return nil
	}
	if p.asked == nil {
		p.asked = &attempt{ended: make(chan struct{})}
		p.wanted <- struct{}{} // does not block, as in soon
	}
	return p.asked
}

// start allows attempts.
func (p *poll) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working = true
}

// stop wakes all who wait for attempts, since there will be no more.
func (p *poll) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.working = time.Time{}, false
	if p.asked != nil {
		close(p.asked.ended)
		p.asked = nil
	}
}

// scheduled returns when the next attempt is due; zero if none is scheduled.
func (p *poll) scheduled() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

// watch calls Watch, and calls it again whenever it returns, until ctx ends.
func (r *runner) watch(ctx context.Context, source sources.Watcher) {
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		begun := time.Now()
		err := <-apart(func() error { return seal(source.Watch(ctx, r.poll.tell)) })
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
	}
}

// noteStuckLoad causes a Load as soon as a Load that hung has returned.
func (r *runner) noteStuckLoad(stuck bool) {
	if !stuck {
		r.poll.tell()
	}
	r.changed()
}
