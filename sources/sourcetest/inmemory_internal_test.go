package sourcetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// remembering is a bent loader that says that it answers from memory.
type remembering struct{ *bent }

func (remembering) InMemory() bool { return true }

// rememberingLookup says that it answers from memory, and reads its data.
type rememberingLookup struct{ lookup }

func (rememberingLookup) InMemory() bool { return true }

// wavering says so every other time.
type wavering struct {
	*loader
	asked *int
}

func (w wavering) InMemory() bool {
	*w.asked++
	return *w.asked%2 == 1
}

func rememberingHarness(bend func(b *bent)) Harness {
	return harness(func(d *data) sources.Source {
		b := &bent{loader: &loader{data: d}}
		bend(b)
		return remembering{b}
	})
}

// TestInMemoryPasses stops the suite from refusing a source that keeps its word.
func TestInMemoryPasses(t *testing.T) {
	Run(t, rememberingHarness(func(*bent) {}))
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

// TestSuiteCatchesWhoWaits: a source that says that it answers from memory and
// then waits would hold up an attestation, which nothing bounds, for ever.
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
		"reads": harness(func(d *data) sources.Source { return rememberingLookup{lookup{d}} }),
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
		"wavers": harness(func(d *data) sources.Source { return wavering{&loader{data: d}, new(int)} }),
	} {
		t.Run(name, func(t *testing.T) {
			found := failures(t, h, "in memory")
			if len(found) == 0 || slices.Contains(found, "") {
				t.Errorf("found %q", found)
			}
		})
	}
}
