package sourcetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A web is the network of the sources in these tests.
type web struct {
	mu    sync.Mutex
	cut   bool
	stall chan struct{} // nil while it answers
}

var errCut = errors.New("no route to host")

// get makes a request to the network.
func (w *web) get(ctx context.Context) error {
	w.mu.Lock()
	cut, stall := w.cut, w.stall
	w.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case cut:
		return errCut
	case stall == nil:
		return nil
	}
	select {
	case <-stall:
		return errCut
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *web) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// fetcher is a correct source that looks TPMs up, and needs the network once for each TPM.
type fetcher struct {
	lookup
	web *web

	mu      sync.Mutex
	fetched map[sources.EKHash]bool
}

func (f *fetcher) has(ev *sources.Evidence) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetched[ev.EKHash]
}

func (f *fetcher) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if !f.has(ev) {
		return sources.Verdict{}, sources.ErrNeedsNetwork
	}
	return f.lookup.Check(ctx, ev)
}

func (f *fetcher) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if !f.has(ev) {
		if err := f.web.get(ctx); err != nil {
			return sources.Verdict{}, err
		}
		f.mu.Lock()
		f.fetched[ev.EKHash] = true
		f.mu.Unlock()
	}
	return f.lookup.Check(ctx, ev)
}

// forgetful is a correct fetcher that keeps nothing and makes a request each time.
type forgetful struct{ *fetcher }

func (f forgetful) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if err := f.web.get(ctx); err != nil {
		return sources.Verdict{}, err
	}
	return f.lookup.Check(ctx, ev)
}

// proofFetcher is a correct fetcher that needs the proof first.
type proofFetcher struct{ *fetcher }

func (f proofFetcher) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if ev.Proof == nil {
		return sources.Verdict{}, sources.ErrNeedsChallenge
	}
	return f.fetcher.Check(ctx, ev)
}

// loadingFetcher is a correct fetcher over data in memory.
type loadingFetcher struct {
	*fetcher
	*loader
}

func (f loadingFetcher) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	switch {
	case f.state.Load() == nil:
		return sources.Verdict{}, errors.New("not loaded yet")
	case !f.has(ev):
		return sources.Verdict{}, sources.ErrNeedsNetwork
	}
	return f.loader.Check(ctx, ev)
}

func (f loadingFetcher) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if f.has(ev) {
		return f.loader.Check(ctx, ev)
	}
	if err := f.web.get(ctx); err != nil {
		return sources.Verdict{}, err
	}
	f.mu.Lock()
	f.fetched[ev.EKHash] = true
	f.mu.Unlock()
	return f.loader.Check(ctx, ev)
}

// fetchHarness returns the Harness of sources that open makes from a fetcher.
func fetchHarness(open func(f *fetcher) sources.Source) Harness {
	var w *web
	h := harness(func(d *data) sources.Source {
		return open(&fetcher{lookup: lookup{d}, web: w, fetched: map[sources.EKHash]bool{}})
	})
	h.Fetches = true
	full := h.New
	h.New = func(tb testing.TB) Backend {
		tb.Helper()
		w = &web{}
		net := w
		b := full(tb)
		b.Cut = func() { net.change(func() { net.cut = true }) }
		b.Stall = func() { net.change(func() { net.stall = make(chan struct{}) }) }
		b.Restore = func() {
			net.change(func() {
				if net.stall != nil {
					close(net.stall)
				}
				net.cut, net.stall = false, nil
			})
		}
		return b
	}
	return h
}

// TestCorrectFetchersPass stops the suite from failing a fetcher that keeps the contract: a
// fetcher that keeps what it fetches or does not, that needs the proof first, that loads and
// answers from memory, or whose network cannot be made to hang.
func TestCorrectFetchersPass(t *testing.T) {
	plain := fetchHarness(func(f *fetcher) sources.Source { return f })
	t.Run("keeps", func(t *testing.T) { Run(t, plain) })
	t.Run("keeps nothing", func(t *testing.T) {
		Run(t, fetchHarness(func(f *fetcher) sources.Source { return forgetful{f} }))
	})
	t.Run("needs proof", func(t *testing.T) {
		h := fetchHarness(func(f *fetcher) sources.Source { return proofFetcher{f} })
		h.NeedsProof = true
		Run(t, h)
	})
	t.Run("from memory", func(t *testing.T) {
		Run(t, fetchHarness(func(f *fetcher) sources.Source {
			return loadingFetcher{f, &loader{data: f.data}}
		}))
	})
	t.Run("never hangs", func(t *testing.T) {
		h, full := plain, plain.New
		h.New = func(tb testing.TB) Backend {
			tb.Helper()
			b := full(tb)
			b.Stall = nil
			return b
		}
		Run(t, h)
	})
}

// bentFetcher is a fetcher with some methods replaced by broken ones.
type bentFetcher struct {
	*fetcher
	check, fetch Answer
}

func (b *bentFetcher) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if b.check != nil {
		return b.check(ctx, ev)
	}
	return b.fetcher.Check(ctx, ev)
}

func (b *bentFetcher) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if b.fetch != nil {
		return b.fetch(ctx, ev)
	}
	return b.fetcher.Fetch(ctx, ev)
}

// TestSuiteCatchesBrokenFetchers: each source breaks the contract in one way, and the clause
// about it must fail.
func TestSuiteCatchesBrokenFetchers(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	for _, c := range []struct {
		name, clause string
		bend         func(b *bentFetcher)
	}{
		{"asks the network in Check", "needs the network", func(b *bentFetcher) {
			b.check = b.fetcher.Fetch
		}},
		{"begins to ask in Check", "needs the network", func(b *bentFetcher) {
			b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Check(ctx, ev)
				if err != nil {
					_, _ = b.fetcher.Fetch(ctx, ev)
				}
				return v, err
			}
		}},
		{"takes what it lacks for not listed", "needs the network", func(b *bentFetcher) {
			b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Check(ctx, ev)
				return v, errorUnless(err, sources.ErrNeedsNetwork)
			}
		}},
		{"needs the network for ever", "needs the network", func(b *bentFetcher) {
			b.fetch = Fails(sources.ErrNeedsNetwork)
		}},
		{"lists whatever it fetches", "needs the network", func(b *bentFetcher) {
			b.fetch = Lists(sources.Attributes{})
		}},
		{"keeps the verdict", "Fetch and Check agree", func(b *bentFetcher) {
			var kept sync.Map
			b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if v, ok := kept.Load(ev.EKHash); ok {
					return v.(sources.Verdict), nil
				}
				return b.fetcher.Check(ctx, ev)
			}
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				if err == nil {
					kept.Store(ev.EKHash, v)
				}
				return v, err
			}
		}},
		{"fetches other attributes", "Fetch and Check agree", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				if v.Listed {
					v.Attributes.Name = "other"
				}
				return v, err
			}
		}},
		{"takes an outage for not listed", "a network that fails", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				return v, errorUnless(err, errCut)
			}
		}},
		{"takes a remembered outage for not listed", "a network that fails", func(b *bentFetcher) {
			var failed sync.Map
			b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if _, ok := failed.Load(ev.EKHash); ok {
					return sources.Verdict{}, nil
				}
				return b.fetcher.Check(ctx, ev)
			}
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				if err != nil {
					failed.Store(ev.EKHash, nil)
				}
				return v, err
			}
		}},
		{"a verdict beside the error", "a network that fails", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				v.Listed = v.Listed || err != nil
				return v, err
			}
		}},
		{"asks for the challenge in Fetch", "a network that fails", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				if err != nil {
					err = sources.ErrNeedsChallenge
				}
				return v, err
			}
		}},
		{"forgets who is listed in an outage", "a network that fails", func(b *bentFetcher) {
			b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Check(ctx, ev)
				if down := b.web.get(ctx) != nil; down && err == nil {
					v = sources.Verdict{}
				}
				return v, err
			}
		}},
		{"ignores its context", "a network that hangs", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if b.web.get(ctx) != nil {
					<-release
				}
				return b.fetcher.Fetch(ctx, ev)
			}
		}},
		{"takes a network that hangs for not listed", "a network that hangs", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				return v, errorUnless(err, context.DeadlineExceeded)
			}
		}},
		{"waits for a fetch in Check", "a network that hangs", func(b *bentFetcher) {
			var locked atomic.Bool
			b.check = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if locked.Load() {
					<-release
				}
				return b.fetcher.Check(ctx, ev)
			}
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				locked.Store(err != nil)
				return v, err
			}
		}},
		{"says not listed in a hurry", "a fetch whose context has ended", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				return v, errorUnless(err, context.Canceled)
			}
		}},
		{"lists in a hurry", "a fetch whose context has ended", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if ended(ctx) {
					return sources.Verdict{Listed: true}, nil
				}
				return b.fetcher.Fetch(ctx, ev)
			}
		}},
		{"hangs once its context has ended", "a fetch whose context has ended", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if ended(ctx) {
					<-release
				}
				return b.fetcher.Fetch(ctx, ev)
			}
		}},
		{"remembers a hurry as a failure", "a fetch whose context has ended", func(b *bentFetcher) {
			var failed sync.Map
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if err, ok := failed.Load(ev.EKHash); ok {
					return sources.Verdict{}, err.(error)
				}
				v, err := b.fetcher.Fetch(ctx, ev)
				if err != nil {
					failed.Store(ev.EKHash, err)
				}
				return v, err
			}
		}},
		{"gives one the answer of another", "fetches at once", func(b *bentFetcher) {
			b.fetch = shared(b.fetcher.Fetch)
		}},
		{"fails all with one who has left", "fetches at once", func(b *bentFetcher) {
			var mu sync.Mutex
			left := false
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				mu.Lock()
				defer mu.Unlock()
				if left = left || ended(ctx); left {
					return sources.Verdict{}, context.Canceled
				}
				return b.fetcher.Fetch(ctx, ev)
			}
			b.check = Fails(sources.ErrNeedsNetwork)
		}},
		{"shares its labels", "what is fetched is the caller's", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				v, err := b.fetcher.Fetch(ctx, ev)
				if err == nil && v.Listed {
					entries, _ := b.data.read()
					v.Attributes = entries[ev.EKHash]
				}
				return v, err
			}
		}},
		{"remembers by the address of the evidence", "what is fetched is the caller's", func(b *bentFetcher) {
			var seen sync.Map
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if v, ok := seen.Load(ev); ok {
					return v.(sources.Verdict), nil
				}
				v, err := b.fetcher.Fetch(ctx, ev)
				if err == nil {
					seen.Store(ev, v)
				}
				return v, err
			}
		}},
		{"panics at what is twisted", "hostile evidence", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				for _, c := range ev.Chain {
					_ = c[0]
				}
				return b.fetcher.Fetch(ctx, ev)
			}
		}},
		{"changes the evidence", "needs the network", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				defer func() { ev.Chain = append(ev.Chain, nil) }()
				return b.fetcher.Fetch(ctx, ev)
			}
		}},
		{"writes a hash down", "nothing is written", func(b *bentFetcher) {
			b.fetch = func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				b.data.change(func() { b.data.writes++ })
				return b.fetcher.Fetch(ctx, ev)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := fetchHarness(func(f *fetcher) sources.Source {
				b := &bentFetcher{fetcher: f}
				c.bend(b)
				return b
			})
			if len(failures(t, h, c.clause)) == 0 {
				t.Errorf("clause %q found nothing", c.clause)
			}
		})
	}
}

// shared gives its first answer to every question.
func shared(answer Answer) Answer {
	var first atomic.Pointer[sources.Verdict]
	return func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		v, err := answer(ctx, ev)
		if err != nil {
			return v, err
		}
		first.CompareAndSwap(nil, &v)
		return *first.Load(), nil
	}
}

// TestSuiteCatchesWhoCannotFetch: a harness that promises too much or too little about fetching
// fails.
func TestSuiteCatchesWhoCannotFetch(t *testing.T) {
	lookups := bentLookupHarness(func(lookup, context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{}, sources.ErrNeedsNetwork
	})
	noNetwork := fetchHarness(func(f *fetcher) sources.Source { return f })
	full := noNetwork.New
	noNetwork.New = func(tb testing.TB) Backend {
		tb.Helper()
		b := full(tb)
		b.Cut = nil
		return b
	}
	noFetcher := fetchHarness(func(f *fetcher) sources.Source { return f.lookup })
	unasked := fetchHarness(func(f *fetcher) sources.Source { return f })
	unasked.Fetches = false
	for name, c := range map[string]struct {
		h      Harness
		clause string
	}{
		"a network that nobody can be asked for":      {lookups, "listed and not listed"},
		"a network that cannot be cut":                {noNetwork, "a network that fails"},
		"a promise to fetch, and no Fetcher":          {noFetcher, "needs the network"},
		"a network that the harness does not tell of": {unasked, "needs the challenge"},
	} {
		t.Run(name, func(t *testing.T) {
			if len(failures(t, c.h, c.clause)) == 0 {
				t.Errorf("clause %q found nothing", c.clause)
			}
		})
	}
}
