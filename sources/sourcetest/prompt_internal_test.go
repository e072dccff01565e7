package sourcetest

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// remembering is a bent loader that has its answers at hand.
type remembering struct{ *bent }

func (r remembering) CheckNow(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return r.Check(ctx, ev)
}

// fitful is a loader that has every other answer at hand.
type fitful struct {
	*loader
	asked *atomic.Int64
}

func (f fitful) CheckNow(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if f.asked.Add(1)%2 == 0 {
		return sources.Verdict{}, sources.ErrWouldWait
	}
	return f.Check(ctx, ev)
}

// stale is a lookup that has at hand what it once found.
type stale struct {
	lookup
	found *sync.Map
}

func (s stale) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	v, err := s.lookup.Check(ctx, ev)
	if err == nil {
		s.found.Store(ev.EKHash, v.Listed)
	}
	return v, err
}

func (s stale) CheckNow(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	listed, ok := s.found.Load(ev.EKHash)
	if !ok {
		return sources.Verdict{}, sources.ErrWouldWait
	}
	return sources.Verdict{Listed: listed == true}, nil
}

func rememberingHarness(bend func(b *bent)) Harness {
	return harness(func(d *data) sources.Source {
		b := &bent{loader: &loader{data: d}}
		bend(b)
		return remembering{b}
	})
}

// TestPromptPasses stops the suite from refusing a source that keeps its word, with
// all of its answers at hand or some.
func TestPromptPasses(t *testing.T) {
	Run(t, rememberingHarness(func(*bent) {}))
	Run(t, harness(func(d *data) sources.Source { return fitful{&loader{data: d}, new(atomic.Int64)} }))
}

// eager allows every early refresh.
type eager struct{ *loader }

func (eager) RefreshEarly() bool { return true }

// patient allows one.
type patient struct {
	*loader
	asked *int
}

func (p patient) RefreshEarly() bool { *p.asked++; return *p.asked == 1 }

// TestEarlyRefreshesAreLimited: a source without a limit would let any stranger
// poll its origin.
func TestEarlyRefreshesAreLimited(t *testing.T) {
	Run(t, harness(func(d *data) sources.Source { return patient{&loader{data: d}, new(int)} }))
	h := harness(func(d *data) sources.Source { return eager{&loader{data: d}} })
	if len(failures(t, h, "early refreshes are limited")) == 0 {
		t.Error("nothing was found")
	}
}

// TestSuiteCatchesWhoWaits: a source that says that it has its answer at hand and
// then waits would hold up an attestation, which nothing bounds, for ever. One that
// has an old answer at hand would admit whoever has been removed.
func TestSuiteCatchesWhoWaits(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	checks := func(check func(b *bent, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error)) Harness {
		return rememberingHarness(func(b *bent) {
			b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				return check(b, ctx, ev)
			}
		})
	}
	for name, h := range map[string]Harness{
		"remembers": harness(func(d *data) sources.Source { return stale{lookup{d}, &sync.Map{}} }),
		"loads as it is asked": checks(
			func(b *bent, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if err := b.loader.Refresh(ctx); err != nil {
					return sources.Verdict{}, err
				}
				return b.loader.Check(ctx, ev)
			}),
		"bounds itself": checks(
			func(b *bent, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				ctx, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				return b.loader.Check(ctx, ev)
			}),
		"hangs": checks(
			func(b *bent, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				<-release
				return b.loader.Check(ctx, ev)
			}),
	} {
		t.Run(name, func(t *testing.T) {
			found := failures(t, h, "at hand")
			if len(found) == 0 || slices.Contains(found, "") {
				t.Errorf("found %q", found)
			}
		})
	}
}
