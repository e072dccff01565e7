package policy_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

func TestIdle(t *testing.T) {
	t.Parallel()
	names := []string{"x", "y", "z"}
	allow := func(name string, all, some []string) policy.Rule { return policy.Rule{Name: name, All: all, Any: some} }
	trial := func(r policy.Rule) policy.Rule { r.Trial = true; return r }
	s := func(names ...string) []string { return names }
	for name, tt := range map[string]struct {
		allow, deny []policy.Rule
		want        []policy.IdleRule
	}{
		"a rule that asks for more": {
			allow: []policy.Rule{allow("a", nil, s("x")), allow("b", s("x", "y"), nil)},
			want:  []policy.IdleRule{{Name: "b", By: s("a")}},
		},
		"other sources": {allow: []policy.Rule{allow("a", s("x"), nil), allow("b", s("y"), nil)}},
		"the same twice": {
			allow: []policy.Rule{allow("a", s("x"), nil), allow("b", nil, s("x"))},
			want:  []policy.IdleRule{{Name: "b", By: s("a")}},
		},
		"two rules together": {
			allow: []policy.Rule{allow("a", s("x"), nil), allow("b", nil, s("x", "y")), allow("c", s("y"), nil)},
			want:  []policy.IdleRule{{Name: "a", By: s("b")}, {Name: "c", By: s("b")}},
		},
		"covered by two": {
			allow: []policy.Rule{
				allow("a", s("x"), nil), allow("c", s("y"), nil), allow("d", s("z"), s("x", "y")),
			},
			want: []policy.IdleRule{{Name: "d", By: s("a", "c")}},
		},
		"a trial neither covers nor is covered": {
			allow: []policy.Rule{
				allow("a", s("x"), nil), trial(allow("b", s("x", "y"), nil)), trial(allow("c", s("z"), nil)),
				allow("d", s("z", "y"), nil),
			},
		},
		"what a deny rule denies": {
			allow: []policy.Rule{allow("a", s("x", "y"), nil), allow("b", s("x"), nil)},
			deny:  []policy.Rule{allow("lost", nil, s("y", "z"))},
			want:  []policy.IdleRule{{Name: "a", By: s("lost"), Denied: true}},
		},
		"deny rules": {
			allow: []policy.Rule{allow("a", s("x"), nil)},
			deny:  []policy.Rule{allow("p", nil, s("y", "z")), allow("q", s("z"), nil)},
			want:  []policy.IdleRule{{Deny: true, Name: "q", By: s("p")}},
		},
	} {
		got := policy.Policy{Allow: tt.allow, Deny: tt.deny}.Idle(names)
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// An operator who removes the rules that are called idle must admit exactly the same machines, also
// while a source cannot tell; and a rule that is not called idle must matter.
func TestIdleRulesDecideNothing(t *testing.T) {
	t.Parallel()
	names := []string{"p", "q", "r"}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		p := policy.Policy{Allow: randomRules(rng, names, 1), Deny: randomRules(rng, names, 0)}
		idle := p.Idle(names)
		kept := policy.Policy{
			Allow: without(p.Allow, false, idle), Deny: without(p.Deny, true, idle),
		}
		if got, want := outcomes(kept, names), outcomes(p, names); got != want {
			t.Fatalf("%+v\nidle %+v\n%s\n%s", p, idle, got, want)
		}
		for i, r := range kept.Allow {
			less := policy.Policy{Allow: slices.Delete(slices.Clone(kept.Allow), i, i+1), Deny: kept.Deny}
			if !r.Trial && len(kept.Deny) == 0 && outcomes(less, names) == outcomes(kept, names) {
				t.Fatalf("%+v: the allow rule %q does not matter, idle are %+v", p, r.Name, idle)
			}
		}
	}
}

func randomRules(rng *rand.Rand, names []string, least int) []policy.Rule {
	var rules []policy.Rule
	for i := range least + rng.IntN(3) {
		r := policy.Rule{Name: fmt.Sprint("rule", i), Trial: rng.IntN(5) == 0}
		for _, n := range names {
			switch rng.IntN(4) {
			case 0:
				r.All = append(r.All, n)
			case 1:
				r.Any = append(r.Any, n)
			}
		}
		if r.All == nil && r.Any == nil {
			r.Any = names[:1]
		}
		rules = append(rules, r)
	}
	return rules
}

func without(rules []policy.Rule, deny bool, idle []policy.IdleRule) []policy.Rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r policy.Rule) bool {
		return !r.Trial && slices.ContainsFunc(idle, func(i policy.IdleRule) bool {
			return i.Deny == deny && i.Name == r.Name
		})
	})
}

// outcomes returns whether a machine is admitted, for everything that the sources may say.
func outcomes(p policy.Policy, names []string) string {
	plan := policy.NewPlan(p, names, make([]bool, len(names)))
	var text strings.Builder
	for n := range 27 {
		answers := make([]policy.Answer, len(names))
		for i := range answers {
			answers[i].Source = names[i]
			switch n % 3 {
			case 1:
				answers[i].Verdict = sources.Verdict{Listed: true}
			case 2:
				answers[i].Err = errors.New("down")
			}
			n /= 3
		}
		fmt.Fprint(&text, plan.After(answers).Outcome == policy.Admitted, " ")
	}
	return text.String()
}
