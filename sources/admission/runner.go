package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

const (
	// stopTimeout is how long Close waits for a source to end.
	stopTimeout = 5 * time.Second
	// loadSlots is 1, since calls of Load never overlap.
	loadSlots = 1
	// reportSlots is 1, since there is no use in a second Status while one hangs.
	reportSlots = 1
)

// A runner runs one source, for one or several Sets. Its methods are in the files of the ideas that
// they belong to: poll.go loads, health.go records its health, evaluate.go asks it.
type runner struct {
	name, kind string
	source     sources.Source
	fetcher    sources.Fetcher // the same source if it is a Fetcher, otherwise nil
	log        *slog.Logger
	changed    func()

	checks, fetches, loads, reports *Lane

	loadTimeout time.Duration
	once        bool // Options.Once
	strict      bool // Options.Strict
	poll        *poll
	health      health

	work  sync.WaitGroup // everything that start has begun
	first chan struct{}  // closed once the first Load has ended

	mu      sync.Mutex
	holders int // Sets that have started or taken over the runner
	cancel  context.CancelFunc
}

func newRunner(m Member, opts Options) *runner {
	r := &runner{
		name: m.Name, kind: m.Kind, source: m.Source,
		log:     opts.Log.With("source", m.Name, "kind", m.Kind),
		changed: opts.Changed, loadTimeout: opts.LoadTimeout, once: opts.Once, strict: opts.Strict,
		first: make(chan struct{}),
	}
	r.fetcher, _ = m.Source.(sources.Fetcher)
	r.checks = NewLane("checks", opts.Slots, func(stuck bool) { r.noteStuck(stuck, false) })
	r.fetches = NewLane("fetches", opts.Slots, func(stuck bool) { r.noteStuck(stuck, true) })
	r.loads = NewLane("loads", loadSlots, r.noteStuckLoad)
	r.reports = NewLane("reports of the status", reportSlots, func(bool) { r.changed() })
	r.poll = newPoll(m.Source)
	return r
}

// start makes the first Load, and keeps the data current until all Sets have released the runner.
// It must be called once.
func (r *runner) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.mu.Lock()
	r.holders, r.cancel = 1, cancel
	r.mu.Unlock()
	r.health.begin()
	r.work.Go(func() { r.keepCurrent(ctx) })
}

// retain adds a Set that uses the runner. It returns false if the runner is not running.
func (r *runner) retain() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holders == 0 {
		return false
	}
	r.holders++
	return true
}

// release removes a Set that used the runner, and reports whether that stops the runner.
func (r *runner) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holders--; r.holders > 0 {
		return false
	}
	r.cancel()
	return true
}

// waitStopped waits until everything that start has begun has ended, at most for stopTimeout.
func (r *runner) waitStopped() {
	stopped := make(chan struct{})
	go func() {
		r.work.Wait()
		close(stopped)
	}()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		r.log.Warn("source is stuck: it has not stopped and is left behind", slog.Duration("after", stopTimeout))
	}
}

// check asks the source about a TPM, and fetch does the same with the network. A source that breaks
// its contract causes an error.
func (r *runner) check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	v, err := r.source.Check(ctx, ev)
	if r.strict && err == nil {
		err = r.outdated()
	}
	return settle(v, err, ev.Proof != nil, r.fetcher != nil)
}

func (r *runner) fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	v, err := r.fetcher.Fetch(ctx, ev)
	return settle(v, err, true, false)
}

// settle returns a source's answer in the form that an evaluation may use: a zero verdict with an
// error, no attributes if the TPM is not listed, within the limits, and sharing no memory with the
// source. proven is true after the challenge; fetches is true if the source may say that it needs
// the network.
func settle(v sources.Verdict, err error, proven, fetches bool) (sources.Verdict, error) {
	if err != nil {
		err = seal(err)
		if errors.Is(err, sources.ErrNeedsChallenge) && proven {
			return sources.Verdict{}, errors.New("asks for the challenge after the challenge")
		}
		if errors.Is(err, sources.ErrNeedsNetwork) && !fetches {
			// Not wrapped: asking again would not help.
			return sources.Verdict{}, errors.New("asks for a network that it cannot be given: " + err.Error())
		}
		return sources.Verdict{}, err
	}
	v.Reason = strings.ToValidUTF8(v.Reason[:min(len(v.Reason), sources.MaxReason)], "")
	if !v.Listed {
		return sources.Verdict{Reason: v.Reason}, nil
	}
	v.Unchecked = strings.ToValidUTF8(v.Unchecked[:min(len(v.Unchecked), sources.MaxReason)], "")
	tidy, err := v.Attributes.Tidy()
	if err != nil {
		return sources.Verdict{}, fmt.Errorf("lists the TPM with attributes that are not allowed: %w", err)
	}
	v.Attributes = tidy.Clone()
	return v, nil
}

// A sealedError stands for an error of a source but contains neither the source's code nor its
// data: only its text, and which of the well-known errors it wraps. So it can be inspected outside
// of guard, and kept.
type sealedError struct {
	text string
	is   error // nil if it wraps none of them
}

func (e *sealedError) Error() string { return e.text }
func (e *sealedError) Unwrap() error { return e.is }

// seal seals an error; nil stays nil. It must be called under guard, since the methods of err are
// the source's code.
func seal(err error) error {
	if err == nil {
		return nil
	}
	sealed := &sealedError{text: fmt.Sprint(err)}
	for _, known := range []error{
		sources.ErrNeedsChallenge, sources.ErrNeedsNetwork, context.DeadlineExceeded, context.Canceled,
	} {
		if errors.Is(err, known) {
			sealed.is = known
			break
		}
	}
	if wait := sources.Wait(err); wait > 0 {
		return sources.Later(sealed, wait)
	}
	return sealed
}
