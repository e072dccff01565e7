package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A subject is a source under test with its backing data.
type subject struct {
	Backend
	h      Harness
	source sources.Source

	loading sync.Mutex // calls of Load must not overlap
}

// newSubject opens a source over new backing data, without loading it.
func newSubject(tb testing.TB, h Harness) *subject {
	tb.Helper()
	b := h.New(tb)
	return &subject{Backend: b, h: h, source: b.Open()}
}

// evidence returns the evidence of another TPM at each call.
func (s *subject) evidence(tb testing.TB) *sources.Evidence {
	tb.Helper()
	if s.h.Evidence == nil {
		return NewEvidence(tb)
	}
	return s.h.Evidence(tb)
}

// proven returns a copy of ev as it is after the challenge, with everything that the TPM can prove.
func (s *subject) proven(ev *sources.Evidence) *sources.Evidence {
	after := Proven(ev)
	if s.h.Boot != nil {
		after.Proof.Boot = s.h.Boot(ev)
	}
	if s.h.DevID != nil {
		after.Proof.DevID = s.h.DevID(ev)
	}
	return after
}

// list lists ev, with attributes if the source has them.
func (s *subject) list(tb testing.TB, ev *sources.Evidence) {
	tb.Helper()
	s.List(ev, s.attributes(ev))
	s.load(tb)
}

func (s *subject) unlist(tb testing.TB, ev *sources.Evidence) {
	tb.Helper()
	s.Unlist(ev)
	s.load(tb)
}

// attributes returns the attributes with which ev is listed.
func (s *subject) attributes(ev *sources.Evidence) sources.Attributes {
	if !s.h.Attributes {
		return sources.Attributes{}
	}
	return sources.Attributes{Name: "machine-" + ev.EKHash.String()[:8], Labels: []string{"env:test", "rack:12"}}
}

// load loads a Loader, and fails the test if that fails.
func (s *subject) load(tb testing.TB) {
	tb.Helper()
	if err := s.tryLoad(tb.Context()); err != nil {
		tb.Errorf("Load: %v", err)
	}
}

// tryLoad loads a Loader.
func (s *subject) tryLoad(ctx context.Context) (err error) {
	l, ok := s.source.(sources.Loader)
	if !ok {
		return nil
	}
	s.loading.Lock()
	defer s.loading.Unlock()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return l.Load(ctx)
}

// check asks about ev in as many steps as are needed: with its proof if the source needs the
// challenge, and with Fetch if it needs the network. It fails the test if an answer breaks the
// contract by itself.
func (s *subject) check(tb testing.TB, ev *sources.Evidence) (sources.Verdict, error) {
	tb.Helper()
	if s.h.NeedsProof {
		ev = s.proven(ev)
	}
	return s.resolve(tb.Context(), tb, ev)
}

// resolve asks Check about ev as it is, and Fetch if that needs the network.
func (s *subject) resolve(ctx context.Context, tb testing.TB, ev *sources.Evidence) (sources.Verdict, error) {
	tb.Helper()
	v, err := s.checkOnce(ctx, tb, ev)
	if _, ok := s.source.(sources.Fetcher); ok && errors.Is(err, sources.ErrNeedsNetwork) {
		return s.fetchOnce(ctx, tb, s.proven(ev))
	}
	return v, err
}

// checkOnce asks Check about ev as it is.
func (s *subject) checkOnce(ctx context.Context, tb testing.TB, ev *sources.Evidence) (sources.Verdict, error) {
	tb.Helper()
	v, err := s.ask(ctx, tb, "Check", s.source.Check, ev)
	if _, ok := s.source.(sources.Fetcher); !ok && errors.Is(err, sources.ErrNeedsNetwork) {
		tb.Error("Check asks for the network, and there is no Fetch")
	}
	return v, err
}

// fetchOnce asks Fetch about ev, which has its proof.
func (s *subject) fetchOnce(ctx context.Context, tb testing.TB, ev *sources.Evidence) (sources.Verdict, error) {
	tb.Helper()
	f, ok := s.source.(sources.Fetcher)
	if !ok {
		tb.Fatalf("Harness.Fetches is set, and the source is no Fetcher")
	}
	return s.ask(ctx, tb, "Fetch", f.Fetch, ev)
}

// ask puts one question to the source.
func (s *subject) ask(
	ctx context.Context, tb testing.TB, what string, question Answer, ev *sources.Evidence,
) (v sources.Verdict, err error) {
	tb.Helper()
	before := fingerprint(ev)
	defer func() {
		if p := recover(); p != nil {
			tb.Errorf("%s panicked: %v", what, p)
			err = fmt.Errorf("panic: %v", p)
		}
		if fingerprint(ev) != before {
			tb.Errorf("%s changed the evidence", what)
		}
	}()
	v, err = question(ctx, ev)
	switch {
	case err != nil && !reflect.DeepEqual(v, sources.Verdict{}):
		tb.Errorf("%s returned a verdict beside the error %v: %+v", what, err, v)
	case errors.Is(err, sources.ErrNeedsChallenge) && ev.Proof != nil:
		tb.Errorf("%s asks for the challenge after the challenge", what)
	case errors.Is(err, sources.ErrNeedsChallenge) && !s.h.NeedsProof:
		tb.Errorf("%s asks for the challenge: set Harness.NeedsProof", what)
	case err == nil && !v.Listed && !reflect.DeepEqual(v.Attributes, sources.Attributes{}):
		tb.Errorf("attributes of a TPM that is not listed: %+v", v.Attributes)
	}
	if err := v.Attributes.Validate(); err != nil {
		tb.Errorf("attributes that a Set does not take: %v", err)
	}
	return v, err
}

// wantListed fails the test unless the answer is want: listed or not.
func (s *subject) wantListed(tb testing.TB, ev *sources.Evidence, want bool, when string) {
	tb.Helper()
	if v, err := s.check(tb, ev); err != nil {
		tb.Errorf("%s: cannot tell: %v", when, err)
	} else if v.Listed != want {
		tb.Errorf("%s: listed is %v, want %v (%s)", when, v.Listed, want, v.Reason)
	}
}

// wantCannotTell fails the test unless the answer is an error other than ErrNeedsChallenge.
func (s *subject) wantCannotTell(tb testing.TB, ev *sources.Evidence, when string) {
	tb.Helper()
	if v, err := s.check(tb, ev); err == nil {
		tb.Errorf("%s: %+v, want an error", when, v)
	}
}
