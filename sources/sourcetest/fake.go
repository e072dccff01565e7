package sourcetest

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// An Answer is what a Fake answers.
type Answer func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error)

// Lists answers that the TPM is listed, with these attributes.
func Lists(a sources.Attributes) Answer {
	return func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{Listed: true, Reason: "a fake lists it", Attributes: a}, nil
	}
}

// ListsNot answers that the TPM is not listed.
func ListsNot() Answer {
	return func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{}, nil
	}
}

// Fails answers that the source cannot tell.
func Fails(err error) Answer {
	return func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{}, err
	}
}

// NeedsChallenge answers sources.ErrNeedsChallenge before the challenge, and gives the answer then
// after it.
func NeedsChallenge(then Answer) Answer {
	return func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		if ev.Proof == nil {
			return sources.Verdict{}, sources.ErrNeedsChallenge
		}
		return then(ctx, ev)
	}
}

// Waits waits until the context ends and answers its error, like a source that obeys its
// deadline.
func Waits() Answer {
	return func(ctx context.Context, _ *sources.Evidence) (sources.Verdict, error) {
		<-ctx.Done()
		return sources.Verdict{}, ctx.Err()
	}
}

// Hangs waits until release is closed, even if the context ends before that, and then gives the
// answer then.
func Hangs(release <-chan struct{}, then Answer) Answer {
	return func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		<-release
		return then(ctx, ev)
	}
}

// Panics panics with v.
func Panics(v any) Answer {
	return func(context.Context, *sources.Evidence) (sources.Verdict, error) { panic(v) }
}

// A Fake is a Source that gives the Answer that a test has set. The zero Fake lists nobody. It
// is safe for concurrent use.
type Fake struct {
	answer atomic.Pointer[Answer]
	mu     sync.Mutex
	calls  int
	busy   int
	most   int
}

// NewFake returns a Fake that gives the answer a.
func NewFake(a Answer) *Fake {
	f := &Fake{}
	f.Set(a)
	return f
}

// Set changes the answer from the next Check on.
func (f *Fake) Set(a Answer) { f.answer.Store(&a) }

// Check implements sources.Source.
func (f *Fake) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	f.enter(1)
	defer f.enter(-1)
	a := f.answer.Load()
	if a == nil {
		return sources.Verdict{}, nil
	}
	return (*a)(ctx, ev)
}

func (f *Fake) enter(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy += n
	f.calls += max(n, 0)
	f.most = max(f.most, f.busy)
}

// Calls returns the number of calls of Check, the number of calls that have not returned yet, and
// the largest number of calls at the same time.
func (f *Fake) Calls() (all, busy, most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls, f.busy, f.most
}

// A FetchingFake is a Fake that is also a Fetcher. The zero FetchingFake lists nobody and needs
// no network.
type FetchingFake struct {
	Fake
	// Network gives the answers of Fetch.
	Network Fake
}

// NewFetchingFake returns a FetchingFake whose Check always needs the network, and whose Fetch
// gives the answer a.
func NewFetchingFake(a Answer) *FetchingFake {
	f := &FetchingFake{}
	f.Set(Fails(sources.ErrNeedsNetwork))
	f.Network.Set(a)
	return f
}

// Fetch implements sources.Fetcher.
func (f *FetchingFake) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return f.Network.Check(ctx, ev)
}

// A LoadingFake is a Fake that is also a Loader, a Watcher and a Reporter. Its fields must be set
// before it is used.
type LoadingFake struct {
	Fake
	// OnLoad is called by Load; if it is nil, Load succeeds.
	OnLoad func(ctx context.Context) error
	// When is the Schedule; zero means an hour.
	When sources.Schedule
	// OnWatch is called by Watch; if it is nil, Watch waits until ctx ends.
	OnWatch func(ctx context.Context, changed func()) error
	// OnStatus is called by Status; if it is nil, the Status is zero.
	OnStatus func() sources.Status
}

// Load implements sources.Loader.
func (f *LoadingFake) Load(ctx context.Context) error {
	if f.OnLoad == nil {
		return nil
	}
	return f.OnLoad(ctx)
}

// Schedule implements sources.Loader.
func (f *LoadingFake) Schedule() sources.Schedule {
	s := f.When
	s.Every = cmp.Or(s.Every, time.Hour)
	return s
}

// Watch implements sources.Watcher.
func (f *LoadingFake) Watch(ctx context.Context, changed func()) error {
	if f.OnWatch == nil {
		<-ctx.Done()
		return nil
	}
	return f.OnWatch(ctx, changed)
}

// Status implements sources.Reporter.
func (f *LoadingFake) Status() sources.Status {
	if f.OnStatus == nil {
		return sources.Status{}
	}
	return f.OnStatus()
}
