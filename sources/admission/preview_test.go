package admission_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// A preview has the answers that the decision would rest on: those after the challenge of
// sources that answer without it, however slow, and no guess about those that need the machine.
func TestPreview(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		filter := sourcetest.NewFake(func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			return sources.Verdict{Listed: ev.Proof == nil}, nil
		})
		slow := sourcetest.NewFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			time.Sleep(time.Second)
			return sources.Verdict{Listed: true}, nil
		})
		boot := sourcetest.NewFake(sourcetest.NeedsChallenge(sourcetest.ListsNot()))
		remote := sourcetest.NewFetchingFake(sourcetest.Lists(named("n")))
		rules := policy.Policy{Allow: []policy.Rule{
			{Name: "a", Any: []string{"filter", "slow"}}, {Name: "b", All: []string{"boot", "remote"}},
		}}
		s := newSet(t, rules, admission.Options{},
			member("filter", filter), member("slow", slow), member("boot", boot), member("remote", remote))
		ev := sourcetest.NewEvidence(t)
		for _, tt := range []struct {
			network bool
			want    []string
		}{
			{false, []string{"needs_challenge", "not_listed", "needs_network", "listed"}},
			{true, []string{"needs_challenge", "not_listed", "listed", "listed"}},
		} {
			answers, err := s.Preview(t.Context(), ev, tt.network)
			var got []string
			for _, a := range answers {
				got = append(got, a.Result())
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("network %v: %v, %v, want %v", tt.network, got, err, tt.want)
			}
		}
		if n, _, _ := boot.Calls(); n != 2 || fetches(remote) != 1 {
			t.Errorf("boot was asked %d times, want once a preview; %d fetches, want 1", n, fetches(remote))
		}
		if ev.Proof != nil {
			t.Error("the evidence was changed")
		}
		if a, err := s.Preview(t.Context(), sourcetest.Proven(ev), false); err == nil || a != nil {
			t.Errorf("a machine that has proved something: %v, %v", a, err)
		}
	})
}

// Examining what a server has is done once: nothing is polled or watched beside the server, and
// nothing is left behind.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounted()
		c.When = sources.Schedule{Every: time.Second, Early: true}
		s := newSet(t, policy.AnyOf("x"), admission.Options{Once: true}, member("x", c))
		s.Start(t.Context(), nil)
		time.Sleep(time.Minute)
		c.want(t, "after a minute", 1, 0)
		if d := attest(t, s, sourcetest.NewEvidence(t)); d.Outcome != policy.Refused {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
		c.want(t, "after an attestation", 1, 0)
		s.Close()
	})
}
