package admission

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

var errStuck = errors.New("not asked: an earlier check has not returned")

// outdated returns an error if the data here may be older than the data at the source's origin.
func (r *runner) outdated() error {
	if _, loads := r.source.(sources.Loader); !loads {
		return nil
	}
	r.health.mu.Lock()
	defer r.health.mu.Unlock()
	if err := r.health.loadErr; err != nil {
		return fmt.Errorf("the last good data may be outdated, since the last load has failed: %w", err)
	}
	return nil
}

// Screen asks every source once about a machine that is not connected, and decides as before the
// challenge. It waits for each source, but no longer than Options.CheckTimeout. ev.Proof must be
// nil, otherwise the decision is a refusal. Screen loads no list early and does not use the
// network.
func (s *Set) Screen(ctx context.Context, ev *sources.Evidence) policy.Decision {
	if ev == nil || ev.Proof != nil {
		return policy.Decision{}
	}
	e := s.begin(ev)
	e.patient = true
	e.ask(ctx, time.Now().Add(s.opts.CheckTimeout), e.all(), (*runner).checkLane)
	return s.plan.Before(e.answers)
}

// Refresh starts a new Load of every source that loads its data, and returns when all of these
// Loads have ended. It returns an error if ctx ends first or if the Set is not running. Whether a
// Load has succeeded is in Status and, with Options.Strict, in the answers.
func (s *Set) Refresh(ctx context.Context) error {
	attempts := map[string]*attempt{}
	for _, r := range s.runners() {
		if _, loads := r.source.(sources.Loader); !loads || r.once {
			continue
		}
		if attempts[r.name] = r.poll.renew(); attempts[r.name] == nil {
			return errors.New("the sources are not running")
		}
	}
	for name, a := range attempts {
		select {
		case <-a.ended:
		case <-ctx.Done():
			return fmt.Errorf("source %q is still loading: %w", name, ctx.Err())
		}
	}
	return ctx.Err()
}
