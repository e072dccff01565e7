package sources

import (
	"context"
	"time"
)

// An earlyRefresh is one Refresh before its time, for all who wait for it.
type earlyRefresh struct {
	ended chan struct{}
	// loaded is set before ended is closed: the data is newer than it was.
	loaded bool
}

// refreshEarly returns the early refresh that is being made, and begins one where
// there is none. It is nil where the runner is not at work.
func (r *runner) refreshEarly() *earlyRefresh {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holders <= 0 {
		return nil
	}
	if r.early == nil {
		early, ctx := &earlyRefresh{ended: make(chan struct{})}, r.ctx
		r.early = early
		r.work.Go(func() { r.makeEarly(ctx, early) })
	}
	return r.early
}

// makeEarly makes an early refresh, if the source allows one.
func (r *runner) makeEarly(ctx context.Context, early *earlyRefresh) {
	loaded := r.tryEarly(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.early = nil
	early.loaded = loaded
	close(early.ended)
}

// tryEarly reports whether the source has loaded its data anew. A Refresh that is
// under way anyway will do.
func (r *runner) tryEarly(ctx context.Context) bool {
	r.mu.Lock()
	attempt, refreshing := r.attempt, r.refreshing
	r.mu.Unlock()
	switch {
	case attempt != nil:
		select {
		case <-attempt:
			return r.lastError() == nil
		case <-ctx.Done():
			return false
		}
	case refreshing: // left behind: no other can begin
		return false
	}
	allowed := false
	err := <-call(func() error {
		source, ok := r.source.(Poller)
		allowed = ok && source.RefreshEarly()
		return nil
	}, func(error) {})
	if err != nil {
		r.log.Error("source panicked in RefreshEarly", stackOf(err)...)
		return false
	}
	return allowed && r.refresh(ctx) == nil
}

// askEarly has the sources polled that do not list the TPM and would decide if
// they did, and asks again those that have new data, all by the time until.
func (e *evaluation) askEarly(ctx context.Context, until time.Time) {
	var missed []int
	for _, i := range e.set.polled {
		if e.values[i] == no {
			missed = append(missed, i)
		}
	}
	if missed = e.set.plan.worthAsking(e.values, missed); len(missed) == 0 {
		return
	}
	if !e.takePlace() {
		for _, i := range missed { // a poll that is not waited for might list it
			e.values[i], e.answers[i].Verdict, e.answers[i].Err = unsure, Verdict{}, errCrowded
		}
		return
	}
	// There has to be time to ask again.
	within, cancel := context.WithDeadline(ctx, until.Add(-2*graceOf(e.set.opts.CheckTimeout)))
	defer cancel()
	refreshes := make([]*earlyRefresh, len(missed))
	for k, i := range missed {
		refreshes[k] = e.running[i].refreshEarly()
	}
	clear(e.due)
	again := false
	for k, i := range missed {
		if refreshes[k] == nil {
			continue
		}
		select {
		case <-refreshes[k].ended:
			e.due[i] = refreshes[k].loaded
			again = again || e.due[i]
		case <-within.Done():
		}
	}
	if again && ctx.Err() == nil {
		e.ask(ctx, until)
	}
}
