package sourcetest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A recorder is a testing.TB that keeps failures instead of failing the test.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failures []string
}

func (r *recorder) add(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, s)
}

func (r *recorder) Helper()                   {}
func (r *recorder) Error(args ...any)         { r.add(fmt.Sprint(args...)) }
func (r *recorder) Errorf(f string, a ...any) { r.add(fmt.Sprintf(f, a...)) }
func (r *recorder) Fatalf(f string, a ...any) {
	r.Errorf(f, a...)
	runtime.Goexit()
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures) > 0
}

// failures returns what one clause of the suite reports about a source.
func failures(t *testing.T, h Harness, name string) []string {
	t.Helper()
	i := slices.IndexFunc(clauses(), func(c clause) bool { return c.name == name })
	if i < 0 {
		t.Fatalf("there is no clause %q", name)
	}
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		clauses()[i].test(run{r, h, time.Second / 2})
	}()
	<-done
	return r.failures
}

// bent is a loader with some methods replaced by broken ones.
type bent struct {
	*loader
	check  func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error)
	load   func(ctx context.Context) error
	watch  func(ctx context.Context, changed func()) error
	status func() sources.Status
}

func (b *bent) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if b.check != nil {
		return b.check(ctx, ev)
	}
	return b.loader.Check(ctx, ev)
}

func (b *bent) Load(ctx context.Context) error {
	if b.load != nil {
		return b.load(ctx)
	}
	return b.loader.Load(ctx)
}

func (b *bent) Watch(ctx context.Context, changed func()) error {
	if b.watch != nil {
		return b.watch(ctx, changed)
	}
	return b.loader.Watch(ctx, changed)
}

func (b *bent) Status() sources.Status {
	if b.status != nil {
		return b.status()
	}
	return b.loader.Status()
}

// bentHarness returns the Harness of loaders that bend has broken.
func bentHarness(bend func(b *bent)) Harness {
	h := harness(func(d *data) sources.Source {
		b := &bent{loader: &loader{data: d}}
		bend(b)
		return b
	})
	h.Watches = true
	return h
}

// bentLookup is a lookup whose Check is replaced by a broken one.
type bentLookup struct {
	lookup
	check lookupCheck
}

// A lookupCheck is a broken Check over a lookup that keeps the contract.
type lookupCheck func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error)

func (b bentLookup) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return b.check(b.lookup, ctx, ev)
}

func bentLookupHarness(check lookupCheck) Harness {
	return harness(func(d *data) sources.Source { return bentLookup{lookup{d}, check} })
}

// TestSuiteCatches: each source breaks the contract in one way, and the clause about it must
// fail. Otherwise a backend could pass the suite and still admit a stranger.
func TestSuiteCatches(t *testing.T) {
	release := make(chan struct{})
	var files sync.Map // files that the sources leave open
	t.Cleanup(func() {
		close(release)
		files.Range(func(f, _ any) bool { return f.(*os.File).Close() == nil })
	})
	for _, broken := range slices.Concat(
		brokenChecks(), brokenByEvidence(), brokenByBoot(), brokenByDevID(), brokenLoaders(),
		brokenRunners(release, &files), brokenOpenings(release, &files),
	) {
		t.Run(broken.name, func(t *testing.T) {
			if len(failures(t, broken.h, broken.clause)) == 0 {
				t.Errorf("clause %q found nothing", broken.clause)
			}
		})
	}
}

type brokenSource struct {
	name, clause string
	h            Harness
}

func brokenChecks() []brokenSource {
	var all []brokenSource
	add := func(name, clause string, c lookupCheck) {
		all = append(all, brokenSource{name, clause, bentLookupHarness(c)})
	}
	add("lists everybody", "listed and not listed",
		func(lookup, context.Context, *sources.Evidence) (sources.Verdict, error) {
			return sources.Verdict{Listed: true}, nil
		})
	add("fails open", "cannot tell",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			v, err := l.Check(ctx, ev)
			return v, errorUnless(err, errUnreadable)
		})
	add("a verdict beside the error", "cannot tell",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			v, err := l.Check(ctx, ev)
			v.Listed = v.Listed || err != nil
			return v, err
		})
	add("attributes of a stranger", "listed and not listed",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			v, err := l.Check(ctx, ev)
			if err == nil {
				v.Attributes.Name = "somebody"
			}
			return v, err
		})
	add("attributes that forge", "attributes",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			v, err := l.Check(ctx, ev)
			if v.Listed {
				v.Attributes.Labels = append(v.Attributes.Labels, "a\nb")
			}
			return v, err
		})
	add("asks for the challenge unasked", "needs the challenge",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if ev.Proof == nil {
				return sources.Verdict{}, sources.ErrNeedsChallenge
			}
			return l.Check(ctx, ev)
		})
	add("asks for the challenge for ever", "needs the challenge",
		func(lookup, context.Context, *sources.Evidence) (sources.Verdict, error) {
			return sources.Verdict{}, sources.ErrNeedsChallenge
		})
	add("knows only once", "asked again after the challenge", onlyOnce())
	add("remembers what it said before the challenge", "asked again after the challenge", remembers())
	return all
}

// onlyOnce returns the attributes with the first answer of each step only.
func onlyOnce() lookupCheck {
	var given sync.Map
	return func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		v, err := l.Check(ctx, ev)
		if _, again := given.LoadOrStore([2]any{ev.EKHash, ev.Proof != nil}, true); again && ev.Proof != nil {
			v.Attributes = sources.Attributes{}
		}
		return v, err
	}
}

// remembers gives after the challenge the answer that it gave before.
func remembers() lookupCheck {
	var said sync.Map
	return func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		if v, ok := said.Load(ev.EKHash); ok && ev.Proof != nil {
			return v.(sources.Verdict), nil
		}
		v, err := l.Check(ctx, ev)
		if err == nil && ev.Proof == nil {
			said.Store(ev.EKHash, v)
		}
		return v, err
	}
}

// blindTo lists each TPM whose hash is that of a listed one but for a byte.
func blindTo(at int) lookupCheck {
	return func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		entries, err := l.data.read()
		for hash := range entries {
			hash[at] = ev.EKHash[at]
			if err == nil && hash == ev.EKHash {
				return sources.Verdict{Listed: true}, nil
			}
		}
		return l.Check(ctx, ev)
	}
}

func brokenByEvidence() []brokenSource {
	var all []brokenSource
	add := func(name, clause string, c lookupCheck) {
		all = append(all, brokenSource{name, clause, bentLookupHarness(c)})
	}
	for i := range len(sources.EKHash{}) {
		add(fmt.Sprintf("looks at the hash but for byte %d", i), "hostile evidence", blindTo(i))
	}
	add("panics without an EK", "hostile evidence",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			_ = ev.EK.(*ecdsa.PublicKey).Curve
			return l.Check(ctx, ev)
		})
	add("trusts the chain", "hostile evidence",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			for _, c := range ev.Chain {
				_ = c[0]
			}
			return l.Check(ctx, ev)
		})
	add("says not listed in a hurry", "a context that has ended",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if ended(ctx) {
				return sources.Verdict{}, nil
			}
			return l.Check(ctx, ev)
		})
	add("lists in a hurry", "a context that has ended",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if ended(ctx) {
				return sources.Verdict{Listed: true}, nil
			}
			return l.Check(ctx, ev)
		})
	add("changes the evidence", "listed and not listed",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			defer func() { ev.EKHash[0]++ }()
			return l.Check(ctx, ev)
		})
	add("changes the key", "listed and not listed",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if k, ok := ev.EK.(*ecdsa.PublicKey); ok && k != nil {
				k.Curve = nil
			}
			return l.Check(ctx, ev)
		})
	add("writes a hash down", "nothing is written",
		func(l lookup, ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			l.data.change(func() { l.data.writes++ })
			return l.Check(ctx, ev)
		})
	return all
}

// brokenByDevID are sources that look at less than the key and the first certificate.
func brokenByDevID() []brokenSource {
	var all []brokenSource
	add := func(name string, same func(got, want *sources.DevID) bool) {
		all = append(all, brokenSource{name, "a hostile DevID", byDevIDHarness(same)})
	}
	add("lists without a DevID", func(got, want *sources.DevID) bool { return got == nil || sameDevID(got, want) })
	add("panics without a DevID", func(got, want *sources.DevID) bool {
		return len(got.Chain) > 0 && sameDevID(got, want)
	})
	add("panics without a certificate", func(got, want *sources.DevID) bool {
		return got != nil && bytes.Equal(got.Chain[0], want.Chain[0]) && reflect.DeepEqual(got.Key, want.Key)
	})
	add("looks at the certificate alone", func(got, want *sources.DevID) bool {
		return got != nil && len(got.Chain) > 0 && bytes.Equal(got.Chain[0], want.Chain[0])
	})
	add("looks at the key alone", func(got, want *sources.DevID) bool {
		return got != nil && reflect.DeepEqual(got.Key, want.Key)
	})
	add("looks at all certificates", func(got, want *sources.DevID) bool {
		return got != nil && slices.ContainsFunc(got.Chain, func(c []byte) bool { return bytes.Equal(c, want.Chain[0]) })
	})
	return all
}

// brokenByBoot are sources that look at less than the whole boot.
func brokenByBoot() []brokenSource {
	var all []brokenSource
	add := func(name string, meets func(got, want *sources.Boot) bool) {
		all = append(all, brokenSource{name, "a hostile boot", byBootHarness(meets)})
	}
	samePCRs := func(got, want *sources.Boot) bool { return got != nil && reflect.DeepEqual(got.PCRs, want.PCRs) }
	add("lists without a boot", func(got, want *sources.Boot) bool { return got == nil || meets(got, want) })
	add("panics without a boot", func(got, want *sources.Boot) bool { return got.Bank == want.Bank && meets(got, want) })
	add("takes any bank", func(got, want *sources.Boot) bool {
		return samePCRs(got, want) && got.Log != nil && got.Log.SecureBoot != ""
	})
	add("needs no log", func(got, want *sources.Boot) bool { return samePCRs(got, want) && got.Bank == want.Bank })
	add("compares what there is", func(got, want *sources.Boot) bool {
		for pcr := range want.PCRs {
			if got == nil || !bytes.HasPrefix(want.PCRs[pcr], got.PCRs[pcr]) {
				return false
			}
		}
		return true
	})
	return all
}

func ended(ctx context.Context) bool { return ctx.Err() != nil }

// errorUnless returns err, or nil if it is swallowed.
func errorUnless(err, swallowed error) error {
	if errors.Is(err, swallowed) {
		return nil
	}
	return err
}

func brokenLoaders() []brokenSource {
	var all []brokenSource
	add := func(name, clause string, bend func(b *bent)) {
		all = append(all, brokenSource{name, clause, bentHarness(bend)})
	}
	add("remembers by the address of the evidence", "evidence is the caller's", func(b *bent) {
		var seen sync.Map
		b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if v, ok := seen.Load(ev); ok {
				return v.(sources.Verdict), nil
			}
			v, err := b.loader.Check(ctx, ev)
			if err == nil {
				seen.Store(ev, v)
			}
			return v, err
		}
	})
	add("shares its labels", "the verdict is the caller's", func(b *bent) {
		b.check = func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			st := b.state.Load()
			if st == nil {
				return sources.Verdict{}, errors.New("not loaded yet")
			}
			a, ok := st.entries[ev.EKHash]
			return sources.Verdict{Listed: ok, Attributes: a}, nil
		}
	})
	add("lists nobody before it has loaded", "not loaded yet", func(b *bent) {
		b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			v, err := b.loader.Check(ctx, ev)
			if b.state.Load() == nil {
				return v, nil
			}
			return v, err
		}
	})
	add("says nothing of a load that fails", "cannot tell", func(b *bent) {
		b.load = func(ctx context.Context) error {
			_ = b.loader.Load(ctx)
			return nil
		}
	})
	add("forgets the last good data", "cannot tell", func(b *bent) {
		b.load = func(ctx context.Context) error {
			err := b.loader.Load(ctx)
			if err != nil {
				b.state.Store(&loaded{at: time.Now()})
			}
			return err
		}
	})
	add("a hole while it loads", "concurrent use", func(b *bent) {
		var asked atomic.Int64
		b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			defer asked.Add(1)
			return b.loader.Check(ctx, ev)
		}
		b.load = func(ctx context.Context) error {
			st := b.state.Load()
			b.state.Store(&loaded{})
			// The hole stays open until checks have fallen into it, including all
			// four that are under way, if there are any.
			for seen, n := asked.Load(), 0; asked.Load() < seen+12 && n < 5000; n++ {
				runtime.Gosched()
			}
			if err := b.loader.Load(ctx); err != nil {
				b.state.Store(st)
				return err
			}
			return nil
		}
	})
	add("loads half", "attributes", func(b *bent) {
		b.load = func(ctx context.Context) error {
			err := b.loader.Load(ctx)
			if st := b.state.Load(); st != nil && len(st.entries) > 1 {
				for h := range st.entries {
					delete(st.entries, h)
					break
				}
			}
			return err
		}
	})
	add("a Status of nothing", "Status", func(b *bent) {
		b.status = func() sources.Status { return sources.Status{} }
	})
	add("a Status before it has loaded", "Status", func(b *bent) {
		b.status = func() sources.Status { return sources.Status{Loaded: time.Now(), Entries: 2} }
	})
	add("an empty warning", "Status", func(b *bent) {
		b.status = func() sources.Status {
			st := b.loader.Status()
			st.Warnings = []string{" "}
			return st
		}
	})
	add("a Check that never knows", "in a Set", func(b *bent) {
		b.check = func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			return sources.Verdict{}, errors.New("never")
		}
	})
	return all
}

func brokenRunners(release <-chan struct{}, files *sync.Map) []brokenSource {
	var all []brokenSource
	add := func(name, clause string, bend func(b *bent)) {
		all = append(all, brokenSource{name, clause, bentHarness(bend)})
	}
	add("a Watch that returns", "Watch tells", func(b *bent) {
		b.watch = func(context.Context, func()) error { return nil }
	})
	add("a Watch that does not look", "Watch tells", func(b *bent) {
		b.watch = func(ctx context.Context, _ func()) error {
			<-ctx.Done()
			return nil
		}
	})
	add("a Watch that does not end", "Watch ends", func(b *bent) {
		b.watch = func(context.Context, func()) error {
			<-release
			return nil
		}
	})
	add("a Load that ignores its context", "a context that has ended", func(b *bent) {
		b.load = func(ctx context.Context) error {
			if ctx.Err() != nil {
				<-release
			}
			return b.loader.Load(ctx)
		}
	})
	add("a Check that ignores its context", "a context that has ended", func(b *bent) {
		b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if ctx.Err() != nil {
				<-release
			}
			return b.loader.Check(ctx, ev)
		}
	})
	add("a Load that panics", "cannot tell", func(b *bent) {
		b.load = func(context.Context) error { panic("a fault") }
	})
	add("a Watch that leaves a goroutine", "Watch ends", func(b *bent) {
		b.watch = func(ctx context.Context, changed func()) error {
			go func() { <-release }()
			return b.loader.Watch(ctx, changed)
		}
	})
	add("a Watch that leaves a file", "Watch ends", func(b *bent) {
		b.watch = func(ctx context.Context, changed func()) error {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return err
			}
			files.Store(f, nil)
			return b.loader.Watch(ctx, changed)
		}
	})
	return all
}

func brokenOpenings(release <-chan struct{}, files *sync.Map) []brokenSource {
	opening := func(open func()) Harness {
		return harness(func(d *data) sources.Source {
			open()
			return &loader{data: d}
		})
	}
	return []brokenSource{
		{"opening starts a goroutine", "opening does nothing", opening(func() {
			go func() { <-release }()
		})},
		{"opening opens a file", "opening does nothing", opening(func() {
			if f, err := os.Open(os.DevNull); err == nil {
				files.Store(f, nil)
			}
		})},
	}
}
