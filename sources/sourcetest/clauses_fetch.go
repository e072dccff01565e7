package sourcetest

import (
	"context"
	"errors"
	"reflect"
	"runtime"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// The clauses about sources that fetch. If Check needs the network, the other clauses use Fetch as
// well.

// newFetching opens a source that fetches, over new backing data, and returns it with the proven
// evidence of a TPM that is listed and of one that is not. It returns nil if the harness does not
// test fetching.
func newFetching(tb run) (s *subject, listed, stranger *sources.Evidence) {
	tb.Helper()
	if !tb.h.Fetches {
		return nil, nil, nil
	}
	s = newSubject(tb, tb.h)
	if s.Cut == nil || s.Restore == nil {
		tb.Fatalf("Harness.Fetches is set: Backend.Cut and Backend.Restore are needed")
	}
	ev := s.evidence(tb)
	s.list(tb, ev)
	listed, stranger = s.proven(ev), s.proven(s.evidence(tb))
	return s, listed, stranger
}

// testNeedsNetwork: Check makes no request, however often it is called, and Fetch knows the answer.
// If Check made requests, anybody could cause them without answering a challenge.
func testNeedsNetwork(tb run) {
	s, listed, stranger := newFetching(tb)
	if s == nil {
		return
	}
	for range rounds {
		for _, ev := range []*sources.Evidence{listed, stranger} {
			if v, err := s.checkOnce(tb.Context(), tb, ev); !errors.Is(err, sources.ErrNeedsNetwork) {
				tb.Errorf("before anything was fetched: %+v, %v, want ErrNeedsNetwork", v, err)
			}
		}
		runtime.Gosched() // give what Check may have started a chance to run
	}
	s.wantFetched(tb, listed, true, "the first fetch")
	s.wantFetched(tb, stranger, false, "the first fetch")
}

// testFetchAgrees: Check and Fetch agree, and the backing data still decides which TPMs are listed.
func testFetchAgrees(tb run) {
	s, listed, stranger := newFetching(tb)
	if s == nil {
		return
	}
	same := func(ev *sources.Evidence, want bool, when string) {
		tb.Helper()
		s.wantListed(tb, ev, want, when) // by Check, if it knows already
		s.wantFetched(tb, ev, want, when)
		fetched, _ := s.fetchOnce(tb.Context(), tb, ev)
		checked, err := s.checkOnce(tb.Context(), tb, ev)
		if errors.Is(err, sources.ErrNeedsNetwork) {
			return
		}
		if err != nil || checked.Listed != want || !reflect.DeepEqual(checked.Attributes, fetched.Attributes) {
			tb.Errorf("%s: Check says %+v, error %v, and Fetch %+v", when, checked, err, fetched)
		}
	}
	same(listed, true, "listed")
	same(stranger, false, "not listed")
	s.unlist(tb, listed)
	same(listed, false, "listed no more")
	s.list(tb, listed)
	same(listed, true, "listed again")
	s.list(tb, stranger)
	same(stranger, true, "a stranger who is listed now")
}

// testNetworkFails: if something cannot be fetched, the answer is neither "listed" nor "not
// listed". What was fetched before needs no network, or is fetched again later.
func testNetworkFails(tb run) {
	s, listed, stranger := newFetching(tb)
	if s == nil {
		return
	}
	known := s.proven(s.evidence(tb))
	s.list(tb, known)
	s.wantFetched(tb, known, true, "before the network fails")
	s.Cut()
	for range 2 {
		for _, ev := range []*sources.Evidence{listed, stranger} {
			if v, err := s.checkOnce(tb.Context(), tb, ev); err == nil {
				tb.Errorf("Check where nothing was fetched: %+v, want an error", v)
			}
			if v, err := s.fetchOnce(tb.Context(), tb, ev); err == nil {
				tb.Errorf("Fetch where the network fails: %+v, want an error", v)
			}
		}
		if v, err := s.resolve(tb.Context(), tb, known); err == nil && !v.Listed {
			tb.Error("a listed TPM is not listed since the network fails")
		}
	}
	s.Restore()
	s.wantListed(tb, listed, true, "the network is back")
	s.wantListed(tb, stranger, false, "the network is back")
	s.wantListed(tb, known, true, "the network is back")
}

// testNetworkHangs: Fetch returns when its context ends, whatever the network does, and cannot
// tell. Meanwhile, Check does not wait for the network.
func testNetworkHangs(tb run) {
	s, listed, stranger := newFetching(tb)
	if s == nil || s.Stall == nil {
		return
	}
	s.Stall()
	for _, ev := range []*sources.Evidence{listed, stranger} {
		within(tb, "a Fetch from a network that hangs", func() {
			ctx, cancel := context.WithTimeout(tb.Context(), 50*time.Millisecond)
			defer cancel()
			if v, err := s.fetchOnce(ctx, tb, ev); err == nil {
				tb.Errorf("Fetch where the network hangs: %+v, want an error", v)
			}
		})
		within(tb, "a Check beside a network that hangs", func() {
			if v, err := s.checkOnce(tb.Context(), tb, ev); err == nil {
				tb.Errorf("Check where nothing was fetched: %+v, want an error", v)
			}
		})
	}
	s.Restore()
	s.wantListed(tb, listed, true, "the network is back")
	s.wantListed(tb, stranger, false, "the network is back")
}

// testFetchContextEnded: a fetch whose context has ended returns. Its answer is right or an error,
// and the source does not count it as a failure of the network.
func testFetchContextEnded(tb run) {
	s, listed, stranger := newFetching(tb)
	if s == nil {
		return
	}
	ctx, cancel := context.WithCancel(tb.Context())
	cancel()
	within(tb, "a Fetch whose context has ended", func() {
		for range 2 {
			if v, err := s.fetchOnce(ctx, tb, listed); err == nil && !v.Listed {
				tb.Error("a listed TPM is not listed where the context has ended")
			}
			if v, err := s.fetchOnce(ctx, tb, stranger); err == nil && v.Listed {
				tb.Error("a stranger is listed where the context has ended")
			}
		}
	})
	s.wantListed(tb, listed, true, "after a Fetch whose context had ended")
	s.wantListed(tb, stranger, false, "after a Fetch whose context had ended")
}

// testFetchesAtOnce: many attestations fetch the same and different things at the same time, and
// one of them is cancelled; each gets its own answer. The race detector does the rest.
func testFetchesAtOnce(tb run) {
	s, listed, stranger := newFetching(tb)
	if s == nil {
		return
	}
	type one struct {
		ev   *sources.Evidence
		want bool
	}
	all := []one{{listed, true}, {stranger, false}}
	for range 4 {
		ev := s.evidence(tb)
		s.list(tb, ev)
		all = append(all, one{s.proven(ev), true}, one{s.proven(s.evidence(tb)), false})
	}
	gone, cancel := context.WithCancel(tb.Context())
	cancel()
	var work sync.WaitGroup
	for range 4 {
		for _, a := range all {
			work.Go(func() { s.wantListed(tb, a.ev, a.want, "fetched beside others") })
		}
		work.Go(func() { _, _ = s.fetchOnce(gone, tb, listed) })
	}
	within(tb, "fetches at once", work.Wait)
}

// testFetchedIsCallers: two verdicts share no memory with each other, and no answer changes if
// a caller reuses the memory of its evidence.
func testFetchedIsCallers(tb run) {
	s, listed, stranger := newFetching(tb)
	if s == nil {
		return
	}
	reused := *listed
	first, err := s.fetchOnce(tb.Context(), tb, &reused)
	if err != nil {
		tb.Errorf("Fetch: %v", err)
	}
	kept := first.Attributes.Clone()
	forge(&first)
	reused = *stranger
	s.wantFetched(tb, &reused, false, "a stranger in memory that was a listed TPM's")
	for _, f := range []func() (sources.Verdict, error){
		func() (sources.Verdict, error) { return s.fetchOnce(tb.Context(), tb, listed) },
		func() (sources.Verdict, error) { return s.resolve(tb.Context(), tb, listed) },
	} {
		v, err := f()
		if err != nil || !v.Listed || !reflect.DeepEqual(v.Attributes, kept) {
			tb.Errorf("a caller changed a verdict, and the next one is %+v, error %v, want %+v", v, err, kept)
		}
		forge(&v)
	}
}

// wantFetched fails the test unless Fetch says that ev, which has its proof, is listed or not, as
// want says.
func (s *subject) wantFetched(tb run, ev *sources.Evidence, want bool, when string) {
	tb.Helper()
	if v, err := s.fetchOnce(tb.Context(), tb, ev); err != nil {
		tb.Errorf("%s: Fetch cannot tell: %v", when, err)
	} else if v.Listed != want {
		tb.Errorf("%s: fetched, listed is %v, want %v (%s)", when, v.Listed, want, v.Reason)
	}
}
