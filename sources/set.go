package sources

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"
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
	Source Source
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
	// RefreshTimeout bounds one Refresh; 30 seconds by default.
	RefreshTimeout time.Duration
	// Slots is how many checks of one source may be in progress at once, stuck
	// ones included; 64 by default. Further ones wait for a slot until their
	// deadline.
	Slots int
	// Strangers are the places of machines that no source lists so far, while
	// BeforeChallenge waits for a source that is slow or for an early poll. Several
	// Sets may share them. Nil has room for all.
	Strangers *Places
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.CheckTimeout <= 0 {
		o.CheckTimeout = 5 * time.Second
	}
	if o.FetchTimeout <= 0 {
		o.FetchTimeout = 20 * time.Second
	}
	if o.RefreshTimeout <= 0 {
		o.RefreshTimeout = 30 * time.Second
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
// source cannot tell. Only CheckNow of a [Prompt] source is trusted to return.
type Set struct {
	members []Member // sorted by name
	plan    plan
	opts    Options

	// noAttributes is Member.NoAttributes of each member.
	noAttributes []bool
	// polled are the members that are a Poller and that an enforced allow rule
	// names.
	polled []int

	mu              sync.RWMutex
	running         []*runner // of each member
	started, closed bool
	closing         sync.Once
}

// NewSet checks that members and policy fit together and returns the Set. It
// starts nothing. The error joins all mistakes.
func NewSet(members []Member, policy Policy, opts Options) (*Set, error) {
	s := &Set{members: slices.Clone(members), opts: opts.withDefaults()}
	slices.SortFunc(s.members, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	var errs []error
	if len(members) == 0 {
		errs = append(errs, errors.New("no source"))
	}
	names := make([]string, len(members))
	for i, m := range s.members {
		names[i] = m.Name
		if err := validName(m.Name); err != nil {
			errs = append(errs, fmt.Errorf("source %q: %w", m.Name, err))
		}
		if i > 0 && names[i-1] == m.Name {
			errs = append(errs, fmt.Errorf("source %q: there are two sources of this name: rename one", m.Name))
		}
		if m.Source == nil {
			errs = append(errs, fmt.Errorf("source %q: nothing answers for it", m.Name))
		}
		s.noAttributes = append(s.noAttributes, m.NoAttributes)
		s.running = append(s.running, newRunner(m, s.opts))
	}
	if errs = append(errs, policy.Validate(names)...); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	s.plan = newPlan(policy, names)
	for i, m := range s.members {
		if _, ok := m.Source.(Poller); ok && s.plan.allows(i) {
			s.polled = append(s.polled, i)
		}
	}
	return s, nil
}

// Start makes each source's first Refresh, all concurrently, and starts following
// their changes. It returns when all of these have ended, or when ctx ends: a
// Refresh still in progress then continues until its own deadline. A source whose
// first Refresh fails is logged and cannot tell until a later one succeeds.
//
// Sources that previous, which may be nil, already runs with the same configuration
// are taken over with everything they have loaded, and with the Options they were
// started with; they are not refreshed. Nothing is taken over from a previous Set
// that was never started or is closed.
//
// Start must be called once, before anything is asked. After Close it does nothing.
func (s *Set) Start(ctx context.Context, previous *Set) {
	for _, r := range s.launch(previous) { //nolint:contextcheck // a source outlives the ctx that bounds Start
		select {
		case <-r.first:
		case <-ctx.Done():
			select {
			case <-r.first:
			default:
				r.log.Warn("source is still loading; it cannot tell until it has loaded")
			}
		}
	}
}

// launch takes over and starts, and returns the runners that it started.
func (s *Set) launch(previous *Set) []*runner {
	var before map[string]handover
	if previous != nil && previous != s {
		before = previous.handover()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.closed {
		return nil
	}
	s.started = true
	running := slices.Clone(s.running) // evaluations may hold the old slice
	var fresh []*runner
	for i, m := range s.members {
		h, ok := before[m.Name]
		if ok && m.Kind == h.Kind && m.Config != nil && reflect.DeepEqual(m.Config, h.Config) && h.runner.retain() {
			running[i] = h.runner
			continue
		}
		running[i].start()
		fresh = append(fresh, running[i])
	}
	s.running = running
	return fresh
}

// A handover is what a later Set may take over.
type handover struct {
	Member
	runner *runner
}

func (s *Set) handover() map[string]handover {
	running := s.runners()
	m := make(map[string]handover, len(running))
	for i, member := range s.members {
		m[member.Name] = handover{member, running[i]}
	}
	return m
}

func (s *Set) runners() []*runner {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.running
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

// SourceStatus is the state of one source of a Set.
type SourceStatus struct {
	Name, Kind string
	// Started is when it was started; zero before. A source that a later Set
	// takes over keeps it.
	Started time.Time
	// Loads is true if the source is a Refresher.
	Loads bool
	// Status is what the source reports; zero if it is not a Reporter.
	Status
	// Err is why the last Refresh failed or, if none has, why the last check could
	// not tell; otherwise nil.
	Err error
	// Refreshed and Failed count the attempts to load that have succeeded and
	// failed since the source was started.
	Refreshed, Failed uint64
	// Failing is true if the last check could not tell. It is never true for a
	// Fetcher, whose answers depend on what one machine's evidence names.
	Failing bool
	// Fetches is true if the source is a Fetcher. Fetched and FetchesFailed count
	// the answers of Fetch and its errors.
	Fetches                bool
	Fetched, FetchesFailed uint64
	// Stuck is the number of checks that have outlived their deadline and
	// have not returned yet.
	Stuck int
}

// Up reports whether the source itself is healthy: it has loaded what it serves,
// the last attempt to load has not failed, and the last check could tell. Failures
// of the servers that a Fetcher asks do not count.
func (s SourceStatus) Up() bool {
	return s.Err == nil && !s.Failing && (s.Refreshed > 0 || !s.Loads)
}

// Status returns the state of every source, sorted by name.
func (s *Set) Status() []SourceStatus {
	running := s.runners()
	all := make([]SourceStatus, len(running))
	for i, r := range running {
		all[i] = r.status()
	}
	return all
}
