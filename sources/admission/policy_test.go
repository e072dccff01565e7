package admission_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// TestPolicyMistakes: mistakes of an operator are refused rather than guessed at, all at once,
// each with the rule or source that it is about.
func TestPolicyMistakes(t *testing.T) {
	type rules = []policy.Rule
	ab, a := []string{"a", "b"}, []string{"a"}
	ok := policy.Rule{Name: "ok", Any: ab}
	for _, c := range []struct {
		name   string
		policy policy.Policy
		want   []string
	}{
		{"any", policy.AnyOf("a", "b"), nil},
		{"all and any", policy.Policy{Allow: rules{{Name: "x", All: a, Any: []string{"b"}}}}, nil},
		{"a name in each effect", policy.Policy{Allow: rules{ok}, Deny: rules{{Name: "ok", Any: a}}}, nil},
		{
			"a source of a deny rule",
			policy.Policy{Allow: rules{{Name: "x", Any: a}}, Deny: rules{{Name: "y", Any: []string{"b"}}}},
			nil,
		},
		{
			"a source of a trial alone",
			policy.Policy{Allow: rules{{Name: "x", Any: a}, {Name: "y", Any: []string{"b"}, Trial: true}}},
			nil,
		},
		{"trials alone", policy.Policy{Allow: rules{{Name: "x", Any: ab, Trial: true}}}, nil},

		{
			"no rule",
			policy.Policy{},
			[]string{`no allow rule: say which sources admit: allow "…" { any = ["a", "b"] }`},
		},
		{
			"deny alone",
			policy.Policy{Deny: rules{ok}},
			[]string{"deny rules without an allow rule admit nobody"},
		},
		{
			"neither",
			policy.Policy{Allow: rules{ok, {Name: "x"}}},
			[]string{`allow "x": has neither all nor any`},
		},
		{
			"an empty list",
			policy.Policy{Allow: rules{ok, {Name: "x", All: []string{}, Any: a}}},
			[]string{`allow "x": all: an empty list`},
		},
		{
			"an empty list of deny",
			policy.Policy{Allow: rules{ok}, Deny: rules{{Name: "x", Any: []string{}}}},
			[]string{`deny "x": any: an empty list`},
		},
		{
			"an unknown source",
			policy.Policy{Allow: rules{ok, {Name: "x", Any: []string{"c"}}}},
			[]string{`allow "x": any: there is no source "c": the sources are "a", "b"`},
		},
		{
			"a source twice",
			policy.Policy{Allow: rules{ok, {Name: "x", All: []string{"a", "b", "a"}}}},
			[]string{`allow "x": all: names source "a" twice`},
		},
		{
			"a rule twice",
			policy.Policy{Allow: rules{ok, ok}},
			[]string{`allow "ok": there are two allow rules of this name`},
		},
		{
			"a source of no rule",
			policy.Policy{Allow: rules{{Name: "x", Any: a}}},
			[]string{`source "b": no rule names it`},
		},
		{"may only have letters", policy.Policy{Allow: rules{{Any: ab}}}, []string{`allow "": the name is empty`}},
		{
			"a name that forges",
			policy.Policy{Allow: rules{{Name: "a\nb", Any: ab}}},
			[]string{`allow "a\nb": the name has characters other`},
		},
		{
			"a long name",
			policy.Policy{Allow: rules{{Name: strings.Repeat("x", 256), Any: ab}}},
			[]string{"more than 248"},
		},
		{
			"all at once",
			policy.Policy{
				Allow: rules{{Name: "x"}, {Name: "x", Any: []string{"c", "c"}}},
				Deny:  rules{{Name: "Y", All: a}},
			},
			[]string{
				`allow "x": has neither`, `allow "x": there are two`, `there is no source "c"`,
				`names source "c" twice`, `deny "Y": the name`, `source "b": no rule`,
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			errs := c.policy.Validate([]string{"b", "a"})
			match := len(errs) == len(c.want)
			for i := 0; match && i < len(errs); i++ {
				match = strings.Contains(errs[i].Error(), c.want[i])
			}
			if !match {
				t.Errorf("%d mistakes: %v, want %q", len(errs), errs, c.want)
			}
		})
	}
}

// TestNewSetRefuses: members that do not fit are refused before anything runs,
// together with the policy's mistakes.
func TestNewSetRefuses(t *testing.T) {
	f := new(sourcetest.Fake)
	for _, c := range []struct {
		name    string
		members []admission.Member
		want    []string
	}{
		{"none", nil, []string{"no source", "there is no source \"a\""}},
		{"no source behind it", []admission.Member{member("a", nil)}, []string{`source "a": nothing answers for it`}},
		{
			"two of a name",
			[]admission.Member{member("a", f), member("a", f)},
			[]string{`source "a": there are two sources`},
		},
		{
			"a name that forges",
			[]admission.Member{member("a", f), member("b:c", f)},
			[]string{`source "b:c": the name`, `source "b:c": no rule`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := admission.NewSet(c.members, policy.AnyOf("a"), admission.Options{})
			if s != nil || err == nil {
				t.Fatalf("%v, %v", s, err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v, want …%s…", err, w)
				}
			}
		})
	}
}

// TestNewSetKeepsTheCallersOrder: NewSet does not sort the caller's slice of members.
func TestNewSetKeepsTheCallersOrder(t *testing.T) {
	f := new(sourcetest.Fake)
	ms := []admission.Member{member("b", f), member("a", f)}
	newSet(t, policy.AnyOf("a", "b"), admission.Options{}, ms...)
	if got := []string{ms[0].Name, ms[1].Name}; !slices.Equal(got, []string{"b", "a"}) {
		t.Error(got)
	}
}

// TestPaddedNamesOfASource: the answers of other people's sources are trimmed, too.
func TestPaddedNamesOfASource(t *testing.T) {
	f := sourcetest.NewFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{Listed: true, Attributes: sources.Attributes{Name: "host-a ", Labels: []string{" l"}}}, nil
	})
	s := newSet(t, policy.AnyOf("f"), admission.Options{}, member("f", f))
	d := attest(t, s, sourcetest.NewEvidence(t))
	if len(d.Attributes) != 1 || d.Attributes[0].Name != "host-a" || d.Attributes[0].Labels[0] != "l" {
		t.Errorf("%+v: %s", d.Attributes, d.Explain())
	}
}
