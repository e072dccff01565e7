// Package admission runs sources under a policy: it decides who is asked, when and for how
// long, and what happens to a source that fails, hangs or panics.
//
// Each file has one idea:
//
//   - set.go: the Set, its members and its life;
//   - evaluate.go: one evaluation, from top to bottom;
//   - wait.go: how a call is waited for that may hang;
//   - poll.go: when a source is loaded;
//   - handover.go: what a reconfiguration takes over;
//   - health.go: what is known of a source, and logged of it;
//   - runner.go: one source at work, which the last three are about;
//   - places.go: how many machines are waited for that nobody knows.
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
	// Kind is the source's kind, "hash_dir" for example.
	Kind string
	// Config is the source's typed configuration. A later Set that has a member
	// with the same Name, Kind and Config, compared by reflect.DeepEqual, takes
	// over the running source and drops its own. Nil equals nothing.
	Config any
	// Source answers. Each member must have its own.
	Source sources.Source
	// NoAttributes keeps the source's attributes out of decisions.
	NoAttributes bool
}

// Options are a Set's limits. The zero value means the defaults.
type Options struct {
	// Log receives what happens to sources: loaded, failed, recovered,
	// panicked, stuck. Nil discards it.
	Log *slog.Logger
	// Changed is called when the Status of a source may have changed: it has
	// loaded, failed, recovered or got stuck. It may be called from several
	// goroutines at once, and must not block. Nil is never called.
	Changed func()
	// CheckTimeout bounds one question to all sources; 5 seconds by default.
	// Sources see a slightly earlier deadline, so that one that obeys it can
	// say why it cannot tell.
	CheckTimeout time.Duration
	// FetchTimeout bounds what all sources together may fetch over the network
	// for one attestation, in addition to CheckTimeout; 20 seconds by default.
	FetchTimeout time.Duration
	// LoadTimeout bounds one Load; 30 seconds by default.
	LoadTimeout time.Duration
	// Slots is how many checks of one source may be in progress at once, stuck
	// ones included; 64 by default. Further ones wait for a slot until their
	// deadline.
	Slots int
	// Wait is called before BeforeChallenge waits for a source that is slow or for an
	// early poll; known is whether another source lists the machine so far. If it
	// returns false, the machine is not waited for, and leave is not called;
	// otherwise that is called once, when the wait is over. It may be called from
	// several goroutines at once, and must not block. Nil has all waited for.
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
// NewSet validates, Start loads, BeforeChallenge and AfterChallenge ask, Close stops.
// When the configuration changes, a new Set is started with the previous one and
// takes over what has not changed; then the previous one is closed. Ask the Set that
// is current after the challenge, which need not be the one that was asked before it.
// A Set that was never started can be closed and dropped.
//
// A faulty source affects nothing but itself: a panic, a runtime.Goexit, a call
// that never returns and an answer that breaks the contract all mean that this
// source cannot tell.
type Set struct {
	members []Member // sorted by name
	plan    *policy.Plan
	opts    Options

	// polled are the members that may be loaded ahead of time and that an enforced
	// allow rule names.
	polled []int

	mu              sync.RWMutex
	running         []*runner // of each member
	started, closed bool
	closing         sync.Once
}

// NewSet checks that members and policy fit together and returns the Set. It
// starts nothing. The error joins all mistakes.
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

// Close stops everything that Start started, except the sources that a later Set
// has taken over, and waits until it has ended. Whatever does not end within 5
// seconds is logged and left behind. Whoever asks meanwhile, or later, still gets
// answers from the last data. Close may be called at any time and
// more than once; each call returns when the Set has stopped.
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
