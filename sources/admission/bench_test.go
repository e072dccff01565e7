package admission_test

import (
	"fmt"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// BenchmarkEvaluation is what a Set adds to its sources: both steps of an attestation over
// sources that answer at once.
func BenchmarkEvaluation(b *testing.B) {
	ev := sourcetest.NewEvidence(b)
	proven := sourcetest.Proven(ev)
	for _, n := range []int{1, 2, 5} {
		b.Run(fmt.Sprintf("sources=%d", n), func(b *testing.B) {
			var members []admission.Member
			var names []string
			for i := range n {
				names = append(names, fmt.Sprintf("s%d", i))
				members = append(members, member(names[i], sourcetest.NewFake(sourcetest.Lists(named("n")))))
			}
			s := newSet(b, policy.AnyOf(names...), admission.Options{}, members...)
			s.Start(b.Context(), nil)
			b.ReportAllocs()
			for b.Loop() {
				if s.BeforeChallenge(b.Context(), ev).Outcome != policy.Challenge ||
					s.AfterChallenge(b.Context(), proven).Outcome != policy.Admitted {
					b.Fatal("not admitted")
				}
			}
		})
	}
}

// BenchmarkEvaluationParallel is the same from many attestations at once.
func BenchmarkEvaluationParallel(b *testing.B) {
	ev := sourcetest.NewEvidence(b)
	s := newSet(b, policy.AnyOf("x"), admission.Options{}, member("x", sourcetest.NewFake(sourcetest.ListsNot())))
	s.Start(b.Context(), nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if s.BeforeChallenge(b.Context(), ev).Outcome != policy.Refused {
				b.Error("not refused")
			}
		}
	})
}

// BenchmarkEvaluationFetcher is the same with a source that may have to ask the network: it
// need not, its answer changes nothing, or it is asked.
func BenchmarkEvaluationFetcher(b *testing.B) {
	ev := sourcetest.NewEvidence(b)
	proven := sourcetest.Proven(ev)
	knows := sourcetest.NewFetchingFake(nil)
	knows.Set(sourcetest.Lists(named("n")))
	asks := sourcetest.NewFetchingFake(sourcetest.Lists(named("n")))
	for _, c := range []struct {
		name   string
		f      *sourcetest.FetchingFake
		policy policy.Policy
	}{
		{"knows", knows, policy.AnyOf("list", "fetcher")},
		{"skipped", asks, policy.Policy{Allow: []policy.Rule{
			{Name: "a", Any: []string{"list"}}, {Name: "t", Any: []string{"fetcher"}, Trial: true},
		}}},
		{"asks", asks, policy.AnyOf("list", "fetcher")},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newSet(b, c.policy, admission.Options{}, member("fetcher", c.f),
				member("list", sourcetest.NewFake(sourcetest.Lists(named("n")))))
			s.Start(b.Context(), nil)
			b.ReportAllocs()
			for b.Loop() {
				if s.BeforeChallenge(b.Context(), ev).Outcome != policy.Challenge ||
					s.AfterChallenge(b.Context(), proven).Outcome != policy.Admitted {
					b.Fatal("not admitted")
				}
			}
		})
	}
}
