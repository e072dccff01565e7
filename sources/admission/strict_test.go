package admission_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// An old list cuts nobody off, neither a machine that it lacks nor one that it denies: the server
// may have loaded a later list, which was available for a moment before the list could not be
// loaded any more.
func TestStrictDoesNotTrustAnOldList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		c := newCounted()
		c.When = sources.Schedule{Every: time.Minute}
		c.OnLoad = func(context.Context) error {
			if broken.Load() {
				return errOutage
			}
			return nil
		}
		c.Set(sourcetest.ListsNot())
		s := newSet(t, policy.AnyOf("x"), admission.Options{Strict: true}, member("x", c))
		s.Start(t.Context(), nil)
		ev := sourcetest.NewEvidence(t)
		want := func(outcome policy.Outcome) {
			t.Helper()
			if d := s.Screen(t.Context(), ev); d.Outcome != outcome {
				t.Errorf("%v: %s, want %v", d.Outcome, d.Explain(), outcome)
			}
		}
		want(policy.Refused)
		broken.Store(true)
		if err := s.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		want(policy.Unavailable)
		answers, err := s.Preview(t.Context(), ev, false)
		if err != nil || answers[0].Result() != "cannot_tell" {
			t.Errorf("%v, %v", answers, err)
		}
		c.Set(sourcetest.Lists(named("n")))
		want(policy.Unavailable)
		c.Set(sourcetest.ListsNot())
		broken.Store(false)
		if err := s.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		want(policy.Refused)
		s.Close()
		if err := s.Refresh(t.Context()); err == nil {
			t.Error("closed sources were loaded")
		}
	})
}

// Refresh waits for a Load that begins after it: the Load under way may have read the list before
// the machine was added to it. It waits no longer than it may.
func TestRefreshWaitsForANewLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads atomic.Int64
		c := newCounted()
		c.When = sources.Schedule{Every: time.Hour}
		c.OnLoad = func(ctx context.Context) error {
			if loads.Add(1) > 1 {
				select {
				case <-time.After(10 * time.Second):
				case <-ctx.Done():
				}
			}
			return nil
		}
		f := sourcetest.NewFake(sourcetest.ListsNot()) // loads nothing, so nothing is waited for
		s := newSet(t, policy.AnyOf("x", "y"), admission.Options{}, member("x", c), member("y", f))
		s.Start(t.Context(), nil)
		go func() { _ = s.Refresh(t.Context()) }()
		time.Sleep(time.Second) // the second Load is under way
		begun := time.Now()
		if err := s.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); loads.Load() != 3 || took != 19*time.Second {
			t.Errorf("%d loads, %v", loads.Load(), took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Refresh(ctx); err == nil {
			t.Error("it did not say that a source is still loading")
		}
		s.Close()
	})
}

// A hanging mount costs a caller who asks about a whole fleet one deadline, not one for each
// machine, and a deny rule over another source holds meanwhile. When the mount answers again, it is
// asked again.
func TestStrictDoesNotAskASourceThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		mount := sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.Lists(named("n"))))
		stolen := sourcetest.NewFake(sourcetest.ListsNot())
		rules := allowDeny(policy.Rule{Any: []string{"mount"}}, policy.Rule{Any: []string{"stolen"}})
		s := newSet(t, rules, admission.Options{Strict: true}, member("mount", mount), member("stolen", stolen))
		begun, ev := time.Now(), sourcetest.NewEvidence(t)
		for range 1000 {
			if d := s.Screen(t.Context(), ev); d.Outcome != policy.Unavailable {
				t.Fatalf("%v: %s", d.Outcome, d.Explain())
			}
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		stolen.Set(sourcetest.Lists(sources.Attributes{}))
		if d := s.Screen(t.Context(), ev); d.Outcome != policy.Refused {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
		stolen.Set(sourcetest.ListsNot())
		close(release)
		synctest.Wait()
		if d := s.Screen(t.Context(), ev); d.Outcome != policy.Challenge {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
		if d := s.Screen(t.Context(), sourcetest.Proven(ev)); d.Outcome != policy.Refused {
			t.Errorf("a machine that has proved something: %v", d.Outcome)
		}
	})
}
