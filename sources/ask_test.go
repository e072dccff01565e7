package sources_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// TestAskedMeanwhile: who asks beforehand waits for nothing, each source is asked
// once, and what answers from memory not before it is due; the decision is the
// same.
func TestAskedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		slow := sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.Lists(named("slow"))))
		memory := sourcetest.NewMemoryFake(sourcetest.Lists(sources.Attributes{}))
		s := newSet(t, allow(sources.Rule{All: []string{"memory", "slow"}}), sources.Options{},
			member("slow", slow), member("memory", memory))
		ev := sourcetest.NewEvidence(t)
		e := s.Begin(ev)
		defer e.Close(t.Context())
		e.Ask(t.Context())
		e.Ask(t.Context())
		synctest.Wait()
		if n, busy, _ := slow.Calls(); n != 1 || busy != 1 {
			t.Errorf("the slow source was asked %d times, %d are under way", n, busy)
		}
		if n, _, _ := memory.Calls(); n != 0 {
			t.Errorf("what answers from memory was asked %d times before it was due", n)
		}
		close(release)
		if d := e.BeforeChallenge(t.Context()); d.Outcome != sources.Challenge {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
		if d := e.AfterChallenge(t.Context(), sourcetest.NewProof(ev)); d.Outcome != sources.Admitted {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
		for _, f := range []*sourcetest.Fake{slow, &memory.Fake} {
			if n, _, _ := f.Calls(); n != 1 {
				t.Errorf("a source was asked %d times", n)
			}
		}
	})
}

// TestTimeRunsFromAsk: what the caller does meanwhile adds nothing to what a source
// that hangs costs.
func TestTimeRunsFromAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		s := newSet(t, sources.AnyOf("stuck"), sources.Options{},
			member("stuck", sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.ListsNot()))))
		begun := time.Now()
		e := s.Begin(sourcetest.NewEvidence(t))
		e.Ask(t.Context())
		<-time.After(2 * time.Second)
		d := e.BeforeChallenge(t.Context())
		if took := time.Since(begun); d.Outcome != sources.Unavailable || took != 5*time.Second {
			t.Errorf("%v after %v: %s", d.Outcome, took, d.Explain())
		}
	})
}

// TestAskedInVain: an evaluation that ends before its first step leaves nothing
// behind but a check that is stuck, and that one is known to be. Otherwise evidence
// that is refused for another reason would be a way to use up slots unseen.
func TestAskedInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		stuck := sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.ListsNot()))
		s := newSet(t, sources.AnyOf("stuck", "up"), sources.Options{},
			member("stuck", stuck), member("up", sourcetest.NewFake(sourcetest.Lists(named("up")))))
		begun := time.Now()
		e := s.Begin(sourcetest.NewEvidence(t))
		e.Ask(t.Context())
		e.Close(t.Context())
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("closed after %v", took)
		}
		if st := s.Status(); st[0].Stuck != 1 || st[1].Stuck != 0 || st[1].Failing {
			t.Errorf("status %+v", st)
		}
		if d := e.BeforeChallenge(t.Context()); d.Outcome != sources.Refused || d.Answers != nil {
			t.Errorf("after its end: %v: %s", d.Outcome, d.Explain())
		}
		e.Ask(t.Context()) // too late as well
		e.Close(t.Context())
		close(release)
		synctest.Wait()
		if st := s.Status(); st[0].Stuck != 0 {
			t.Errorf("status %+v", st)
		}
		if n, _, _ := stuck.Calls(); n != 1 {
			t.Errorf("the source was asked %d times", n)
		}
	})
}

// TestAskOfNobody: the zero Evaluation, one with a proof and one of a caller who has
// left ask nobody.
func TestAskOfNobody(t *testing.T) {
	f := sourcetest.NewFake(sourcetest.Lists(sources.Attributes{}))
	s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
	var zero sources.Evaluation
	proven := sourcetest.NewEvidence(t)
	proven.Proof = sourcetest.NewProof(proven)
	for _, e := range []*sources.Evaluation{&zero, s.Begin(proven), s.Begin(nil)} {
		e.Ask(t.Context())
		if d := e.BeforeChallenge(t.Context()); d.Outcome != sources.Refused {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
		e.Close(t.Context())
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	e := s.Begin(sourcetest.NewEvidence(t))
	e.Ask(left)
	e.Close(left)
	if n, _, _ := f.Calls(); n != 0 {
		t.Errorf("the source was asked %d times", n)
	}
}
