package sources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A runner is one source at work: its slots, its life cycle (lifecycle.go) and
// what is known of its health. Several Sets may hold it.
type runner struct {
	name, kind     string
	source         Source
	fetcher        Fetcher // the same, or nil where it asks no network
	prompt         Prompt  // the same, or nil where it always has to be waited for
	log            *slog.Logger
	refreshTimeout time.Duration
	changed        func()

	slots   chan struct{} // holds one element for each check under way
	fetches chan struct{} // for each that asks the network; nil without a fetcher
	stuck   atomic.Int64  // of both, those that were abandoned and have not returned
	failing atomic.Bool   // the last check could not tell
	why     atomic.Value  // the error of the check by which that began
	network networkHealth
	// passed is what was logged of answers that were not checked in full.
	passed uncheckedLog

	life
}

func newRunner(m Member, opts Options) *runner {
	r := &runner{
		name:           m.Name,
		kind:           m.Kind,
		source:         m.Source,
		log:            opts.Log.With("source", m.Name, "kind", m.Kind),
		refreshTimeout: opts.RefreshTimeout,
		changed:        opts.Changed,
		slots:          make(chan struct{}, opts.Slots),
		life:           life{first: make(chan struct{})},
	}
	r.prompt, _ = m.Source.(Prompt)
	if f, ok := m.Source.(Fetcher); ok {
		r.fetcher, r.fetches = f, make(chan struct{}, opts.Slots)
	}
	return r
}

// A check is one question to one source. Its state is what the one who waits
// and the one who answers agree by.
type check struct {
	state    atomic.Int32
	fetch    bool      // it is a question to Fetch
	deadline time.Time // the source's
}

const (
	waiting   int32 = iota // for a slot
	answering              // in the source
	abandoned              // nobody waits any more
	answered
)

// A reply is the answer to a check of the source with this index.
type reply struct {
	source  int
	verdict Verdict
	err     error
}

// answer waits for a slot, asks the source and replies, unless c has been
// abandoned by then. It runs in a goroutine of its own, which may get stuck in
// the source; replies has room for every reply.
func (r *runner) answer(ctx context.Context, ev *Evidence, index int, c *check, replies chan<- reply) {
	slots, what := r.slots, "checks"
	if c.fetch {
		slots, what = r.fetches, "fetches"
	}
	growStack(index)
	ctx, cancel := context.WithDeadline(ctx, c.deadline)
	defer cancel()
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		if c.state.CompareAndSwap(waiting, answered) {
			err := fmt.Errorf("%d earlier %s have not returned: %w", cap(slots), what, ctx.Err())
			replies <- reply{source: index, err: err}
		}
		return
	}
	if !c.state.CompareAndSwap(waiting, answering) {
		<-slots
		return
	}
	a := reply{source: index, err: errGoexit}
	defer func() {
		<-slots
		if c.state.Swap(answered) != abandoned {
			replies <- a
		} else if r.stuck.Add(-1) == 0 {
			r.log.Info("no check of the source is stuck any longer")
			r.changed()
		}
	}()
	if c.fetch {
		a.verdict, a.err = r.fetch(ctx, ev)
	} else {
		a.verdict, a.err = r.check(ctx, ev)
	}
}

// growStack gives a goroutine that has just begun the stack that a source is likely
// to need, as long as there is next to nothing on it: to move it later, one or two
// times, takes longer than a look into a directory.
//
//go:noinline
func growStack(i int) byte {
	var room [6 << 10]byte
	room[uint(i)%uint(len(room))] = 1
	return room[uint(i+1)%uint(len(room))]
}

// check asks the source. What the source does wrong is the error.
func (r *runner) check(ctx context.Context, ev *Evidence) (v Verdict, err error) {
	defer r.guardAnswer("source panicked in Check", &v, &err)
	if err := ctx.Err(); err != nil {
		return Verdict{}, err
	}
	v, err = r.source.Check(ctx, ev)
	return settle(v, err, ev.Proof != nil, r.fetcher != nil)
}

// checkNow asks a prompt source for what it has at hand. ErrWouldWait says that this
// is nothing.
func (r *runner) checkNow(ctx context.Context, ev *Evidence) (v Verdict, err error) {
	defer r.guardAnswer("source panicked in CheckNow", &v, &err)
	if err := ctx.Err(); err != nil {
		return Verdict{}, err
	}
	v, err = r.prompt.CheckNow(ctx, ev)
	return settle(v, err, ev.Proof != nil, r.fetcher != nil)
}

// fetch asks the fetcher, as check asks the source.
func (r *runner) fetch(ctx context.Context, ev *Evidence) (v Verdict, err error) {
	defer r.guardAnswer("source panicked in Fetch", &v, &err)
	if err := ctx.Err(); err != nil {
		return Verdict{}, err
	}
	v, err = r.fetcher.Fetch(ctx, ev)
	return settle(v, err, true, false)
}

// guardAnswer, deferred, makes a panic the answer "cannot tell".
func (r *runner) guardAnswer(message string, v *Verdict, err *error) {
	if p := recover(); p != nil {
		*v, *err = Verdict{}, recovered(p)
		r.log.Error(message, stackOf(*err)...)
	}
}

// abandon gives up c, which then sends no reply. It reports false where c has
// ended and its reply is on its way.
func (r *runner) abandon(c *check) bool {
	if c.state.CompareAndSwap(waiting, abandoned) {
		return true
	}
	stuck := r.stuck.Add(1)
	if !c.state.CompareAndSwap(answering, abandoned) {
		r.stuck.Add(-1)
		return false
	}
	if stuck == 1 {
		r.log.Warn("a check of the source is stuck: it has not returned by its deadline",
			slog.Int("slots", cap(r.slots)), slog.Bool("network", c.fetch))
		r.changed()
	}
	return true
}

// noteCheck logs when the source begins to fail and when it has recovered. What a
// Fetcher says is no news of it: that is about what the evidence of one machine
// names, from what was fetched for it before, failures included.
func (r *runner) noteCheck(err error) {
	if r.fetcher != nil {
		return
	}
	failed := err != nil && !errors.Is(err, ErrNeedsChallenge)
	if failed {
		r.why.Store(checkError{err})
	}
	if r.failing.Load() == failed || r.failing.Swap(failed) == failed {
		return
	}
	if failed {
		r.log.Warn("source cannot tell", slog.Any("error", err))
	} else {
		r.log.Info("source can tell again")
	}
	r.changed()
}

// A checkError is the error of a check, of one type for atomic.Value.
type checkError struct{ error }

func (e checkError) Unwrap() error { return e.error }

// fetchLogPause is how long no further failure to fetch is logged of one source:
// each is about the evidence of one machine, and is in the line about that.
const fetchLogPause = 10 * time.Minute

// networkHealth is how fetches have ended.
type networkHealth struct {
	mu         sync.Mutex
	ok, failed uint64
	logged     time.Time
}

// noteFetch counts how a fetch has ended, and logs failures now and then.
func (r *runner) noteFetch(err error) {
	n := &r.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		n.ok++
		return
	}
	n.failed++
	if now := time.Now(); n.logged.IsZero() || now.Sub(n.logged) >= fetchLogPause {
		n.logged = now
		r.log.Warn("source could not fetch what a machine's evidence needs",
			slog.Any("error", err), slog.Uint64("failed", n.failed), slog.Uint64("succeeded", n.ok))
	}
}

// uncheckedLogMost is how many lines about Verdict.Unchecked one source causes within
// fetchLogPause. Each says something else.
const uncheckedLogMost = 8

// uncheckedLog is what of Verdict.Unchecked was logged since a time.
type uncheckedLog struct {
	mu    sync.Mutex
	since time.Time
	said  []string
}

// noteUnchecked logs what could not be checked of a TPM that is listed nevertheless,
// the same text once within fetchLogPause.
func (r *runner) noteUnchecked(what string) {
	if what == "" {
		return
	}
	p := &r.passed
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.since.IsZero() || now.Sub(p.since) >= fetchLogPause {
		p.since, p.said = now, nil
	}
	if len(p.said) < uncheckedLogMost && !slices.Contains(p.said, what) {
		p.said = append(p.said, what)
		r.log.Warn("source lists a TPM although not everything could be checked", slog.String("unchecked", what))
	}
}

// status returns the runner's state; a panic in the source's Status is its
// error.
func (r *runner) status() SourceStatus {
	reported, err := r.report()
	s := SourceStatus{
		Name: r.name, Kind: r.kind, Status: reported,
		Failing: r.failing.Load(), Stuck: int(r.stuck.Load()),
	}
	_, s.Loads = r.source.(Refresher)
	r.mu.Lock()
	s.Started, s.Err, s.Refreshed, s.Failed = r.started, r.err, r.succeeded, r.failed
	r.mu.Unlock()
	s.Fetches = r.fetcher != nil
	r.network.mu.Lock()
	s.Fetched, s.FetchesFailed = r.network.ok, r.network.failed
	r.network.mu.Unlock()
	if why, ok := r.why.Load().(checkError); ok && s.Failing && s.Err == nil {
		s.Err = why
	}
	if err != nil {
		s.Err = err
	}
	return s
}

func (r *runner) report() (s Status, err error) {
	reporter, ok := r.source.(Reporter)
	if !ok {
		return Status{}, nil
	}
	err = guard(func() error {
		s = reporter.Status()
		return nil
	})
	if err != nil {
		return Status{}, fmt.Errorf("report the status: %w", err)
	}
	return s, nil
}

// life is a runner's life cycle.
type life struct {
	first chan struct{} // closed once the first Refresh has ended
	work  sync.WaitGroup

	mu         sync.Mutex
	started    time.Time
	holders    int             // Sets that have started or taken over the runner
	ctx        context.Context //nolint:containedctx // it is the runner's life, which cancel ends
	cancel     context.CancelFunc
	refreshing bool          // a Refresh has begun and has not returned
	attempt    chan struct{} // closed when that is waited for no more, and then nil
	early      *earlyRefresh // the one that attestations wait for

	left              bool   // the Refresh before was left behind
	succeeded, failed uint64 // attempts

	loaded   bool  // a Refresh has succeeded
	err      error // of the last Refresh
	entries  int   // and the next two, as they were logged
	serial   uint64
	warnings []string
}
