// Package admission runs sources under a policy: it decides which sources are asked, when, and for
// how long, and what happens if a source fails, hangs or panics.
//
// Each file has one idea:
//
//   - set.go: the Set, its members and its life;
//   - evaluate.go: one evaluation, from top to bottom;
//   - preview.go: an evaluation without the machine;
//   - strict.go: what is different for a caller that acts upon a refusal;
//   - wait.go: how to wait for a call that may hang;
//   - poll.go: when a source is loaded;
//   - handover.go: what a reconfiguration takes over;
//   - health.go: what is known of a source's health, and logged about it;
//   - runner.go: one source at work, which poll, handover and health are about;
//   - places.go: how many unknown machines may be waited for.
package admission

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// Member is one source of a Set.
type Member struct {
	// Name is the source's configured name, unique in the Set: lower-case
	// letters, digits, "_" and "-".
	Name string
	// Kind is the source's kind, such as "hash_dir".
	Kind string
	// Config is the source's typed configuration. A later Set that has a member with the same Name,
	// Kind and Config (reflect.DeepEqual) takes over the running source and drops its own. Nil
	// equals nothing.
	Config any
	// Source is the source itself. Each member must have its own.
	Source sources.Source
	// NoAttributes keeps the source's attributes, except boot profiles, out of decisions.
	NoAttributes bool
}

// Options are a Set's limits. The zero value means the defaults.
type Options struct {
	// Log receives what happens to sources: loaded, failed, recovered,
	// panicked, stuck. Nil discards it.
	Log *slog.Logger
	// Changed is called when the Status of a source may have changed: it has loaded, failed,
	// recovered or got stuck. It may be called from several goroutines at once, and must not block.
	// It may be nil.
	Changed func()
	// CheckTimeout limits one question to all sources; 5 seconds by default. Sources see a slightly
	// earlier deadline, so that a source that obeys it can still say why it cannot tell.
	CheckTimeout time.Duration
	// FetchTimeout limits the time that all sources together may spend on the network for one
	// attestation, in addition to CheckTimeout; 20 seconds by default.
	FetchTimeout time.Duration
	// LoadTimeout limits one Load; 30 seconds by default.
	LoadTimeout time.Duration
	// Slots is the maximum number of checks of one source that may be in progress at once,
	// including stuck ones; 64 by default. Further checks wait for a slot until their deadline.
	Slots int
	// Once makes Start load each source once and then leave it alone: nothing is loaded again, and
	// no changes are followed. It is for callers that examine what a server has.
	Once bool
	// Strict is for a caller that acts upon a refusal. A source that loads its data can then tell
	// only if its last Load has succeeded: otherwise a server beside this process may have a later
	// version of the list. While a check of a source hangs, that source is not asked again, so that
	// the caller can ask about many machines.
	Strict bool
	// Wait is called before BeforeChallenge waits for a slow source or for an early load. known is
	// true if another source already lists the machine. If Wait returns false, the machine is not
	// waited for. If it returns true, leave is called once, when the wait is over. Wait may be
	// called from several goroutines at once, and must not block. If it is nil, every machine is
	// waited for.
	Wait func(ev *sources.Evidence, known bool) (leave func(), ok bool)
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.Wait == nil {
		o.Wait = func(*sources.Evidence, bool) (func(), bool) { return func() {}, true }
	}
	if o.CheckTimeout <= 0 {
		o.CheckTimeout = 5 * time.Second
	}
	if o.FetchTimeout <= 0 {
		o.FetchTimeout = 20 * time.Second
	}
	if o.LoadTimeout <= 0 {
		o.LoadTimeout = 30 * time.Second
	}
	if o.Slots <= 0 {
		o.Slots = 64
	}
	return o
}

// A Set runs sources under a policy. It is safe for concurrent use.
//
// NewSet validates, Start loads, BeforeChallenge and AfterChallenge ask, Close stops. When the
// configuration changes, a new Set is started with the previous Set and takes over what has not
// changed; then the previous Set is closed. After the challenge, the Set that is current by then
// must be asked, even if another one was asked before the challenge. A Set that was never started
// may be closed or dropped.
//
// A faulty source affects only itself: if it panics, calls runtime.Goexit, never returns or breaks
// its contract, it cannot tell. Its errors are replaced by their text, since their methods are the
// source's code, too.
type Set struct {
	members []Member // sorted by name
	plan    *policy.Plan
	opts    Options

	// polled are the members that an enforced allow rule names and that may be loaded ahead of
	// schedule.
	polled []int

	mu              sync.RWMutex
	running         []*runner // one for each member
	started, closed bool
	closing         sync.Once
}

// NewSet checks that members and policy fit together, and returns the Set. It starts nothing. The
// error joins all mistakes.
func NewSet(members []Member, rules policy.Policy, opts Options) (*Set, error) {
	s := &Set{members: slices.Clone(members), opts: opts.withDefaults()}
	slices.SortFunc(s.members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	var errs []error
	if len(members) == 0 {
		errs = append(errs, errors.New("no source"))
	}
	names, silent := make([]string, len(members)), make([]bool, len(members))
	for i, m := range s.members {
		names[i], silent[i] = m.Name, m.NoAttributes
		if err := policy.ValidName(m.Name); err != nil {
			errs = append(errs, fmt.Errorf("source %q: %w", m.Name, err))
		}
		if i > 0 && names[i-1] == m.Name {
			errs = append(errs, fmt.Errorf("source %q: there are two sources of this name: rename one", m.Name))
		}
		if m.Source == nil {
			errs = append(errs, fmt.Errorf("source %q: nothing answers for it", m.Name))
			continue
		}
		s.running = append(s.running, newRunner(m, s.opts))
	}
	if errs = append(errs, rules.Validate(names)...); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	s.plan = policy.NewPlan(rules, names, silent)
	for i, m := range s.members {
		if loader, ok := m.Source.(sources.Loader); ok && loader.Schedule().Early && s.plan.Allows(i) {
			s.polled = append(s.polled, i)
		}
	}
	return s, nil
}

// Close stops everything that Start has started, except for sources that a later Set has taken
// over, and waits until it has ended. What has not ended after 5 seconds is logged and left behind.
// The Set still answers, from the data that it last had. Close may be called at any time and more
// than once; each call returns when the Set has stopped.
func (s *Set) Close() { s.closing.Do(s.close) }

func (s *Set) close() {
	s.mu.Lock()
	s.closed = true
	running, started := s.running, s.started
	s.mu.Unlock()
	if !started {
		return
	}
	var stopping sync.WaitGroup
	for _, r := range running {
		if r.release() {
			stopping.Go(r.waitStopped)
		}
	}
	stopping.Wait()
}
