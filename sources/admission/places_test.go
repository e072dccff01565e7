package admission_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// TestStrangersWaitInTheirOwnPlaces: while a source or the early load of a list hangs, machines
// that nobody lists so far wait in a limited number of places. If all are taken, further machines
// are told to retry; a machine that another source lists needs no place; and all places are
// returned.
func TestStrangersWaitInTheirOwnPlaces(t *testing.T) {
	for name, c := range map[string]struct {
		slow func(release chan struct{}) sources.Source
		wait time.Duration // until whoever finds no place is told so
		full time.Duration // of those who have one
		then policy.Outcome
	}{
		"a source that hangs": {func(release chan struct{}) sources.Source {
			return sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.ListsNot()))
		}, admission.Slow, 5 * time.Second, policy.Unavailable},
		"an early poll that hangs": {func(release chan struct{}) sources.Source {
			f := &sourcetest.LoadingFake{When: sources.Schedule{Early: true}}
			loaded := false
			f.OnLoad = func(context.Context) error {
				if loaded {
					<-release
				}
				loaded = true
				return nil
			}
			return f
		}, 0, 4800 * time.Millisecond, policy.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				listed, stranger := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
				healthy := sourcetest.NewFake(func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
					return sources.Verdict{Listed: ev.EKHash == listed.EKHash}, nil
				})
				places := admission.NewPlaces(3)
				s := newSet(t, policy.AnyOf("slow", "healthy"), admission.Options{Wait: places.Wait},
					member("slow", c.slow(release)), member("healthy", healthy))
				s.Start(t.Context(), nil)
				begun := time.Now()
				var all sync.WaitGroup
				var mu sync.Mutex
				took := map[time.Duration]int{}
				for range 10 {
					all.Go(func() {
						d := s.BeforeChallenge(t.Context(), stranger)
						mu.Lock()
						defer mu.Unlock()
						took[time.Since(begun)]++
						want := c.then
						if time.Since(begun) == c.wait {
							want = policy.Unavailable
							if !strings.Contains(d.Explain(), "slow: cannot tell: not waited for: too many") {
								t.Errorf("no place: %s", d.Explain())
							}
						}
						wantOutcome(t, d, want)
					})
				}
				time.Sleep(time.Second)
				if places.Taken() != 3 {
					t.Errorf("%d places are taken", places.Taken())
				}
				for range 20 {
					now := time.Now()
					wantOutcome(t, s.BeforeChallenge(t.Context(), listed), policy.Challenge)
					if took := time.Since(now); took > admission.Slow {
						t.Errorf("a listed machine waited for %v", took)
					}
				}
				all.Wait()
				if took[c.wait] != 7 || took[c.full] != 3 {
					t.Errorf("answered after %v", took)
				}
				if places.Taken() != 0 {
					t.Errorf("%d places are still taken", places.Taken())
				}
				close(release)
				s.Close()
			})
		})
	}
}

// TestDenySourceIsWaitedFor: a machine that an allow list knows is not challenged before a slow
// deny list has answered, and is refused without a challenge if that lists it.
func TestDenySourceIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		places := admission.NewPlaces(0) // it needs none
		slow := func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			time.Sleep(2 * time.Second)
			return sources.Verdict{Listed: true}, nil
		}
		s := newSet(t, allowDeny(policy.Rule{Any: []string{"x"}}, policy.Rule{Any: []string{"y"}}),
			admission.Options{Wait: places.Wait}, member("x", sourcetest.NewFake(sourcetest.Lists(named("m")))),
			member("y", sourcetest.NewFake(slow)))
		begun := time.Now()
		wantOutcome(t, s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t)), policy.Refused)
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("after %v", took)
		}
	})
}
