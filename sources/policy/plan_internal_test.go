package policy

import (
	"fmt"
	"slices"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// The laws of the logic are proved by enumeration: every policy of up to two allow and two deny
// rules over three sources, under every combination of what the three can say. The reference is
// the two-valued meaning of a Policy, which is written against Rule and not against the code
// under test.

var lawSources = []string{"a", "b", "c"}

// everyRule returns every rule over lawSources: each source is in All, in Any or in neither.
func everyRule() []Rule {
	var rules []Rule
	for i := 1; i < 27; i++ {
		r := Rule{Name: fmt.Sprintf("r%d", i)}
		for k, n := i, 0; n < 3; n, k = n+1, k/3 {
			switch k % 3 {
			case 1:
				r.All = append(r.All, lawSources[n])
			case 2:
				r.Any = append(r.Any, lawSources[n])
			}
		}
		rules = append(rules, r)
	}
	return rules
}

// drawn returns a function that reports whether the next of many cases is looked at: each
// is, and with -short every seventh. The laws are of a pure function, of which the race
// detector finds nothing that it does not find in fewer cases.
func drawn() func() bool {
	n, step := 0, 1
	if testing.Short() {
		step = 7
	}
	return func() bool {
		n++
		return n%step == 0
	}
}

// everyPolicy calls f with every policy of one or two allow rules and up to one
// deny rule, and of one allow rule and two deny rules, or with those that are drawn.
func everyPolicy(f func(Policy)) {
	isDrawn := drawn()
	each := func(p Policy) {
		if isDrawn() {
			f(p)
		}
	}
	rules := everyRule()
	var one, two [][]Rule
	for i, r := range rules {
		one = append(one, []Rule{r})
		for _, s := range rules[:i] {
			two = append(two, []Rule{r, s})
		}
	}
	for _, allow := range one {
		for _, deny := range slices.Concat([][]Rule{nil}, one, two) {
			each(Policy{Allow: allow, Deny: deny})
		}
	}
	for _, allow := range two {
		for _, deny := range append([][]Rule{nil}, one...) {
			each(Policy{Allow: allow, Deny: deny})
		}
	}
}

// assignments returns every way to give n sources one of the values.
func assignments(n int, values ...value) [][]value {
	all := [][]value{nil}
	for range n {
		var next [][]value
		for _, v := range all {
			for _, x := range values {
				next = append(next, append(slices.Clone(v), x))
			}
		}
		all = next
	}
	return all
}

// resolutions returns every way to replace the values of v that are from.
func resolutions(v []value, from value, to ...value) [][]value {
	i := slices.Index(v, from)
	if i < 0 {
		return [][]value{v}
	}
	var all [][]value
	for _, x := range to {
		w := slices.Clone(v)
		w[i] = x
		all = append(all, resolutions(w, from, to...)...)
	}
	return all
}

// lists reports whether the source of this name lists the TPM. No value is unknown.
func lists(v []value, name string) bool { return v[slices.Index(lawSources, name)] == yes }

// refHolds is the two-valued meaning of a rule.
func refHolds(r Rule, v []value) bool {
	for _, n := range r.All {
		if !lists(v, n) {
			return false
		}
	}
	return len(r.Any) == 0 || slices.ContainsFunc(r.Any, func(n string) bool { return lists(v, n) })
}

// refAdmits is the two-valued meaning of a policy.
func refAdmits(p Policy, v []value) bool {
	holds := func(r Rule) bool { return !r.Trial && refHolds(r, v) }
	return slices.ContainsFunc(p.Allow, holds) && !slices.ContainsFunc(p.Deny, holds)
}

// TestDecideIsExact proves the two laws that everything else follows from. A TPM is admitted,
// or worth a challenge, exactly if some way for the open answers to turn out admits it whatever
// the failed sources would have said. It is Unavailable exactly if that is not so, but some way
// for the open answers and the failed sources together admits it.
//
// So an outage admits nobody and clears nobody under a deny rule, nothing that is missing could
// change a refusal, and nobody is told to try again without a chance.
func TestDecideIsExact(t *testing.T) {
	type ways struct {
		v []value
		// ends has, for each way for the open answers to turn out, every way for the
		// failed sources to have answered.
		ends [][][]value
	}
	var every []ways
	for _, v := range assignments(3, no, open, unsure, yes) {
		w := ways{v: v}
		for _, seen := range resolutions(v, open, no, yes) {
			w.ends = append(w.ends, resolutions(seen, unsure, no, yes))
		}
		every = append(every, w)
	}
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		for _, w := range every {
			want := Refused
			for _, ends := range w.ends {
				all, some := true, false
				for _, end := range ends {
					admits := refAdmits(p, end)
					all, some = all && admits, some || admits
				}
				if all {
					want = Admitted
				} else if some && want != Admitted {
					want = Unavailable
				}
			}
			if got := pl.decide(w.v); got != want {
				t.Fatalf("%+v with %v: %v, want %v", p, w.v, got, want)
			}
		}
	})
}

// TestWithoutFailureTheLogicIsTwoValued stops a policy from meaning anything but what its
// operator reads if every source can tell.
func TestWithoutFailureTheLogicIsTwoValued(t *testing.T) {
	every := assignments(3, no, yes)
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		for _, v := range every {
			if got := pl.decide(v); (got == Admitted) != refAdmits(p, v) || got == Unavailable {
				t.Fatalf("%+v with %v: %v", p, v, got)
			}
		}
	})
}

// TestBeforeTheChallenge proves what the first step promises about the second, even if sources
// begin to fail between them: a refusal is final, a challenge has a purpose, and Unavailable
// spares the machine a challenge that cannot help.
func TestBeforeTheChallenge(t *testing.T) {
	every := assignments(3, no, open, unsure, yes)
	var later [][][]value
	for _, v := range every {
		later = append(later, resolutions(v, open, no, yes, unsure))
	}
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		for i, v := range every {
			before, admitted := pl.decide(v), false
			for _, w := range later[i] {
				after := pl.decide(w)
				admitted = admitted || after == Admitted
				if before == Refused && after != Refused {
					t.Fatalf("%+v: refused with %v, but %v with %v", p, v, after, w)
				}
			}
			if admitted != (before == Admitted) {
				t.Fatalf("%+v with %v: %v, but the second step can admit: %v", p, v, before, admitted)
			}
		}
	})
}

// TestAnOutageOnlyTakesAway proves that replacing any answer by a failure never
// admits a TPM, never turns a refusal by a deny rule into an admission, and
// never adds a rule, a source or an attribute to an admission.
func TestAnOutageOnlyTakesAway(t *testing.T) {
	every := assignments(3, no, unsure, yes)
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		for _, v := range every {
			with := admission(&pl, v)
			for i := range v {
				if v[i] == unsure {
					continue
				}
				w := slices.Clone(v)
				w[i] = unsure
				without := admission(&pl, w)
				if without.Outcome == Admitted && with.Outcome != Admitted {
					t.Fatalf("%+v: %v with %v, admitted with %v", p, with.Outcome, v, w)
				}
				if !subset(without.Rules, with.Rules) || !subset(without.Listed, with.Listed) ||
					!subset(names(without.Attributes), names(with.Attributes)) {
					t.Fatalf("%+v: %+v with %v, %+v with %v", p, with, v, without, w)
				}
			}
		}
	})
}

// TestAdmissionNamesWhatAdmitted pins the selectors: the rules that hold, and those of their
// sources that list the TPM, whatever other sources list it.
func TestAdmissionNamesWhatAdmitted(t *testing.T) {
	every := assignments(3, no, unsure, yes)
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		for _, v := range every {
			d := admission(&pl, v)
			if d.Outcome != Admitted {
				if d.Rules != nil || d.Listed != nil || d.Attributes != nil || d.Unsure != nil {
					t.Fatalf("%+v with %v: %+v", p, v, d)
				}
				continue
			}
			var want Decision
			for _, r := range p.Allow {
				if refHolds(r, v) { // lists counts unsure as no
					want.Rules = append(want.Rules, r.Name)
				}
			}
			for i, s := range lawSources {
				member := slices.ContainsFunc(p.Allow, func(r Rule) bool {
					return refHolds(r, v) && (slices.Contains(r.All, s) || slices.Contains(r.Any, s))
				})
				if member && v[i] == yes {
					want.Listed = append(want.Listed, s)
				}
				if member && v[i] == unsure {
					want.Unsure = append(want.Unsure, s)
				}
			}
			slices.Sort(want.Rules)
			if !slices.Equal(d.Rules, want.Rules) || !slices.Equal(d.Listed, want.Listed) ||
				!slices.Equal(d.Unsure, want.Unsure) || !slices.Equal(names(d.Attributes), want.Listed) {
				t.Fatalf("%+v with %v: %+v, want %+v", p, v, d, want)
			}
		}
	})
}

// TestMissing proves what SPIFFE IDs rely on: Missing has exactly the sources whose attributes
// a machine that is admitted now might have as well if the failed sources had answered. If one
// were left out, an outage would choose the ID; if there were one too many, an outage that
// changes nothing would withhold it.
func TestMissing(t *testing.T) {
	every := assignments(3, no, unsure, yes)
	var answered [][][]value
	for _, v := range every {
		answered = append(answered, resolutions(v, unsure, no, yes))
	}
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		for i, v := range every {
			d := admission(&pl, v)
			if d.Outcome != Admitted {
				if d.Missing != nil {
					t.Fatalf("%+v with %v: %+v", p, v, d)
				}
				continue
			}
			var want []string
			for _, w := range answered[i] {
				want = append(want, admission(&pl, w).Listed...)
			}
			want = slices.DeleteFunc(want, func(s string) bool { return slices.Contains(d.Listed, s) })
			slices.Sort(want)
			if want = slices.Compact(want); !slices.Equal(d.Missing, want) {
				t.Fatalf("%+v with %v: %v are missing, want %v", p, v, d.Missing, want)
			}
			if plain := admissionWithout(&pl, v, []bool{true, true, true}); plain.Missing != nil {
				t.Fatalf("%+v with %v, without attributes: %v are missing", p, v, plain.Missing)
			}
		}
	})
}

// TestReportedDenials proves that a rule is reported as denying exactly if it holds whatever
// the failed sources would have said, and as perhaps denying exactly if they decide that.
func TestReportedDenials(t *testing.T) {
	for _, r := range everyRule() {
		pl := newPlan(Policy{Deny: []Rule{r}}, lawSources)
		for _, v := range assignments(3, no, unsure, yes) {
			all, some := true, false
			for _, w := range resolutions(v, unsure, no, yes) {
				all, some = all && refHolds(r, w), some || refHolds(r, w)
			}
			d := pl.report(v)
			if (len(d.Denied) == 1) != all || (len(d.MaybeDenied) == 1) != (some && !all) {
				t.Fatalf("%+v with %v: %+v", r, v, d)
			}
		}
	}
}

// TestOpenIsNoFailure: a deny rule that only waits for the challenge is not reported as perhaps
// denying, which would look like an outage in the log.
func TestOpenIsNoFailure(t *testing.T) {
	for _, r := range everyRule() {
		pl := newPlan(Policy{Deny: []Rule{r}}, lawSources)
		for _, v := range assignments(3, no, open, yes) {
			if d := pl.report(v); d.MaybeDenied != nil {
				t.Fatalf("%+v with %v: %+v", r, v, d)
			}
		}
	}
}

// TestOrderMeansNothing stops a policy from depending on the order of blocks,
// which Helm and SPIRE change.
func TestOrderMeansNothing(t *testing.T) {
	every := assignments(3, no, open, unsure, yes)
	reversed := []string{"c", "b", "a"}
	everyPolicy(func(p Policy) {
		q := Policy{Allow: reverseRules(p.Allow), Deny: reverseRules(p.Deny)}
		here, there := newPlan(p, lawSources), newPlan(q, reversed)
		for _, v := range every {
			w := slices.Clone(v)
			slices.Reverse(w)
			d, e := here.report(v), there.report(w)
			if here.decide(v) != there.decide(w) ||
				!slices.Equal(d.Denied, e.Denied) || !slices.Equal(d.MaybeDenied, e.MaybeDenied) {
				t.Fatalf("%+v with %v: %v %+v, in another order %v %+v", p, v, here.decide(v), d, there.decide(w), e)
			}
		}
	})
}

// TestTrialsDecideNothing stops a rule on trial from admitting, from denying and
// from adding selectors; what it would have done is reported.
func TestTrialsDecideNothing(t *testing.T) {
	rules := everyRule()
	for _, allow := range rules {
		for _, trial := range rules {
			trial.Name, trial.Trial = "trial", true
			plain := newPlan(Policy{Allow: []Rule{allow}}, lawSources)
			with := newPlan(Policy{Allow: []Rule{trial, allow}, Deny: []Rule{trial}}, lawSources)
			for _, v := range assignments(3, no, unsure, yes) {
				d, e := admission(&plain, v), admission(&with, v)
				if d.Outcome != e.Outcome || !slices.Equal(d.Rules, e.Rules) || !slices.Equal(d.Listed, e.Listed) ||
					!slices.Equal(d.Missing, e.Missing) || e.Denied != nil || e.MaybeDenied != nil {
					t.Fatalf("%+v beside %+v with %v: %+v, want %+v", trial, allow, v, e, d)
				}
				unknown := slices.Contains(v, unsure) && with.allow[1].value(v) == unsure
				want := Trial{Rule: "trial", Holds: !unknown && refHolds(trial, v), Unsure: unknown}
				wantDeny := want
				wantDeny.Deny = true
				if !slices.Equal(e.Trials, []Trial{want, wantDeny}) {
					t.Fatalf("%+v with %v: %+v", trial, v, e.Trials)
				}
			}
		}
	}
	pl := newPlan(Policy{Allow: []Rule{{Name: "t", Any: lawSources, Trial: true}}}, lawSources)
	if got := pl.decide([]value{yes, yes, yes}); got != Refused {
		t.Errorf("allow rules that are all on trial: %v", got)
	}
}

// TestNoPolicyAdmitsNobody: the zero value refuses.
func TestNoPolicyAdmitsNobody(t *testing.T) {
	pl := newPlan(Policy{}, lawSources)
	for _, v := range assignments(3, no, open, unsure, yes) {
		if got := pl.decide(v); got != Refused {
			t.Fatalf("%v: %v", v, got)
		}
	}
}

// admission returns the decision of the second step.
func admission(p *plan, v []value) Decision {
	return admissionWithout(p, v, make([]bool, len(v)))
}

func admissionWithout(p *plan, v []value, noAttributes []bool) Decision {
	d := p.report(v)
	d.Outcome, d.Answers = p.decide(v), make([]Answer, len(v))
	for i, n := range lawSources {
		d.Answers[i] = Answer{Source: n, Verdict: sources.Verdict{Attributes: sources.Attributes{Name: n}}}
	}
	if d.Outcome == Admitted {
		p.grant(v, noAttributes, &d)
	}
	return d
}

func names(as []sources.Attributes) []string {
	var all []string
	for _, a := range as {
		all = append(all, a.Name)
	}
	return all
}

func subset(part, whole []string) bool {
	return !slices.ContainsFunc(part, func(s string) bool { return !slices.Contains(whole, s) })
}

func reverseRules(rules []Rule) []Rule {
	rules = slices.Clone(rules)
	slices.Reverse(rules)
	for i, r := range rules {
		rules[i].All, rules[i].Any = slices.Clone(r.All), slices.Clone(r.Any)
		slices.Reverse(rules[i].All)
		slices.Reverse(rules[i].Any)
	}
	return rules
}

// TestWorthAskingIsExact: sources are polled early exactly if the decision would be a better
// one if they listed the TPM. One poll too many would be a stranger's; one too few turns away a
// machine that was listed a moment ago.
func TestWorthAskingIsExact(t *testing.T) {
	every := assignments(3, no, open, unsure, yes)
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		for _, v := range every {
			var missed []int
			for i := range v {
				if v[i] == no {
					missed = append(missed, i)
				}
			}
			now, worth := pl.decide(v), pl.worthAsking(v, missed)
			all, some := slices.Clone(v), slices.Clone(v)
			for _, i := range missed {
				all[i] = open
			}
			for _, i := range worth {
				some[i] = open
				if v[i] != no || !pl.allows(i) {
					t.Fatalf("%+v with %v: %v are worth asking", p, v, worth)
				}
			}
			if could := pl.decide(all) > now; could != (pl.decide(some) > now) || could != (len(worth) > 0) {
				t.Fatalf("%+v with %v: %v are worth asking", p, v, worth)
			}
		}
	})
}
