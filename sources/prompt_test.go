package sources_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// goroutine identifies the goroutine that calls it.
func goroutine() string {
	b := make([]byte, 64)
	return string(bytes.Fields(b[:runtime.Stack(b, false)])[1])
}

// TestPromptIsAskedInPlace: a source that has its answer at hand costs no
// goroutine, no timer and no slot; any other is never asked in the attestation's
// own goroutine, since it may hang there.
func TestPromptIsAskedInPlace(t *testing.T) {
	var inMemory, outside string
	asked := func(where *string) sourcetest.Answer {
		return func(ctx context.Context, _ *sources.Evidence) (sources.Verdict, error) {
			*where = goroutine()
			if _, limited := ctx.Deadline(); limited == (where == &inMemory) {
				t.Errorf("limited: %v", limited)
			}
			return sources.Verdict{Listed: true}, nil
		}
	}
	memory := member("memory", sourcetest.NewMemoryFake(asked(&inMemory)))
	other := member("other", sourcetest.NewFake(asked(&outside)))
	for _, members := range [][]sources.Member{{memory}, {other}, {memory, other}} {
		inMemory, outside = goroutine(), ""
		names := make([]string, len(members))
		for i, m := range members {
			names[i] = m.Name
		}
		s := newSet(t, allow(sources.Rule{All: names}), sources.Options{}, members...)
		if d := attest(t, s, sourcetest.NewEvidence(t)); d.Outcome != sources.Admitted {
			t.Errorf("%q: %v: %s", names, d.Outcome, d.Explain())
		}
		if inMemory != goroutine() || outside == goroutine() {
			t.Errorf("%q: asked in %s and %s, by %s", names, inMemory, outside, goroutine())
		}
	}
}

// TestPromptBesideOneThatHangs: what is at hand is asked while the others
// are at work, whatever becomes of these, and at the first step as at the second.
func TestPromptBesideOneThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, asked := make(chan struct{}), make(chan time.Duration, 2)
		defer close(release)
		begun := time.Now()
		lists := sourcetest.NeedsChallenge(sourcetest.Lists(named("m")))
		memory := sourcetest.NewMemoryFake(func(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			asked <- time.Since(begun)
			return lists(ctx, ev)
		})
		s := newSet(t, sources.AnyOf("memory", "stuck"), sources.Options{}, member("memory", memory),
			member("stuck", sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.ListsNot()))))
		d := attest(t, s, sourcetest.NewEvidence(t))
		if d.Outcome != sources.Admitted || time.Since(begun) != 5*time.Second+sources.Slow {
			t.Errorf("%v after %v: %s", d.Outcome, time.Since(begun), d.Explain())
		}
		if first, second := <-asked, <-asked; first != 0 || second != sources.Slow {
			t.Errorf("asked after %v and after %v", first, second)
		}
	})
}

// TestPromptThatBreaksTheContract: an answer at hand is under the same
// guard as any other.
func TestPromptThatBreaksTheContract(t *testing.T) {
	for name, a := range map[string]sourcetest.Answer{
		"panics":          sourcetest.Panics("index out of range"),
		"fails":           sourcetest.Fails(errOutage),
		"for ever asking": fails2(),
		"breaks a limit":  sourcetest.Lists(named("a\nb")),
	} {
		log := newJournal()
		s := newSet(t, sources.AnyOf("x"), sources.Options{Log: slogOf(log)},
			member("x", sourcetest.NewMemoryFake(a)))
		if d := attest(t, s, sourcetest.NewEvidence(t)); d.Outcome != sources.Unavailable {
			t.Errorf("%s: %v: %s", name, d.Outcome, d.Explain())
		}
		if len(log.take()) == 0 {
			t.Errorf("%s: nothing is logged", name)
		}
	}
}

// atTimes has an answer at hand every other time.
type atTimes struct {
	*sourcetest.Fake
	now *sourcetest.Fake
}

func (s atTimes) CheckNow(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return s.now.Check(ctx, ev)
}

// TestPromptThatWouldWait: Check answers then, in a goroutine and under a deadline,
// and that an answer is not at hand is no failure; where it is, nobody else is asked.
func TestPromptThatWouldWait(t *testing.T) {
	x := atTimes{
		Fake: sourcetest.NewFake(func(ctx context.Context, _ *sources.Evidence) (sources.Verdict, error) {
			_, limited := ctx.Deadline()
			return sources.Verdict{Listed: limited}, nil
		}),
		now: sourcetest.NewFake(sourcetest.Fails(fmt.Errorf("not yet read: %w", sources.ErrWouldWait))),
	}
	log := newJournal()
	s := newSet(t, sources.AnyOf("x"), sources.Options{Log: slogOf(log)}, member("x", x))
	for range 2 {
		if d := attest(t, s, sourcetest.NewEvidence(t)); d.Outcome != sources.Admitted {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
	}
	x.now.Set(sourcetest.ListsNot())
	if d := s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t)); d.Outcome != sources.Refused {
		t.Errorf("%v: %s", d.Outcome, d.Explain())
	}
	if n, _, _ := x.Calls(); n != 4 {
		t.Errorf("Check was called %d times, want 4", n)
	}
	log.wantLines(t)
	x.Set(sourcetest.Fails(sources.ErrWouldWait)) // which says nothing in Check
	x.now.Set(sourcetest.Fails(sources.ErrWouldWait))
	if d := s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t)); d.Outcome != sources.Unavailable {
		t.Errorf("%v: %s", d.Outcome, d.Explain())
	}
}

// TestPromptOfACallerWhoHasLeft: nobody is asked on his behalf, and the source
// has not failed.
func TestPromptOfACallerWhoHasLeft(t *testing.T) {
	log := newJournal()
	x := sourcetest.NewMemoryFake(sourcetest.Lists(sources.Attributes{}))
	s := newSet(t, sources.AnyOf("x"), sources.Options{Log: slogOf(log)}, member("x", x))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d := s.BeforeChallenge(ctx, sourcetest.NewEvidence(t)); d.Outcome != sources.Unavailable {
		t.Errorf("%v: %s", d.Outcome, d.Explain())
	}
	if n, _, _ := x.Calls(); n != 0 {
		t.Errorf("asked %d times", n)
	}
	log.wantLines(t)
}

// TestPromptAtOnce: many attestations ask at once, with no slot between them.
func TestPromptAtOnce(t *testing.T) {
	var all sync.WaitGroup
	entered := make(chan struct{}, 100)
	release := make(chan struct{})
	x := sourcetest.NewMemoryFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		entered <- struct{}{}
		<-release // no source may: this shows that all are in it
		return sources.Verdict{Listed: true}, nil
	})
	s := newSet(t, sources.AnyOf("x"), sources.Options{Slots: 1}, member("x", x))
	ev := sourcetest.NewEvidence(t)
	for range cap(entered) {
		all.Go(func() {
			if d := s.BeforeChallenge(t.Context(), ev); d.Outcome != sources.Challenge {
				t.Errorf("%v: %s", d.Outcome, d.Explain())
			}
		})
	}
	for range cap(entered) {
		<-entered
	}
	close(release)
	all.Wait()
}
