package policy

import (
	"slices"
	"strings"
	"testing"
)

// The laws of what is fetched are proved over the same policies as those of the logic. An
// ending is what each source says in the end, with nothing left open, as a number to the base
// 4. What an ending comes to is computed once for each policy.

// A result is everything in a decision that somebody acts upon: the outcome, the rules that
// hold, the sources whose attributes count, and the sources that are missing.
type result struct {
	outcome               Outcome
	rules, listed, unsure string
}

func resultOf(d Decision) result {
	words := func(names []string) string { return strings.Join(names, " ") }
	return result{d.Outcome, words(d.Rules), words(d.Listed), words(d.Unsure)}
}

func number(v []value) (n int) {
	for _, x := range v {
		n = 4*n + int(x)
	}
	return n
}

// A situation is what the sources have said after the challenge, with all ways for the
// remaining fetches to end.
type situation struct {
	v    []value
	ends [][]value
}

func everySituation() []situation {
	var all []situation
	for _, v := range assignments(3, no, open, unsure, yes) {
		all = append(all, situation{v, resolutions(v, open, no, unsure, yes)})
	}
	return all
}

// everyResult calls f with every policy, and with what every ending comes to under it.
func everyResult(f func(Policy, *plan, *[64]result)) {
	endings := assignments(3, no, unsure, yes)
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		var results [64]result
		for _, v := range endings {
			results[number(v)] = resultOf(admission(&pl, v))
		}
		f(p, &pl, &results)
	})
}

// without returns the ending in which only the sources in worth have been asked.
func without(s situation, end []value, worth []int) []value {
	w := slices.Clone(end)
	for i, x := range s.v {
		if x == open && !slices.Contains(worth, i) {
			w[i] = unsure
		}
	}
	return w
}

// TestWorthFetchingIsExact proves two laws. What is not asked changes nothing: outcome, rules,
// sources and what is missing are the same as if everybody were asked, however the fetches end,
// even if they fail. And nobody is asked in vain: each fetch makes a difference in some ending,
// since otherwise an attesting machine could make the server send requests at will.
func TestWorthFetchingIsExact(t *testing.T) {
	every := everySituation()
	everyResult(func(p Policy, pl *plan, results *[64]result) {
		for _, s := range every {
			worth := pl.worthFetching(s.v)
			needed := make([]bool, len(s.v))
			for _, end := range s.ends {
				all := results[number(end)]
				if got := results[number(without(s, end, worth))]; got != all {
					t.Fatalf("%+v with %v: %v are fetched: %+v where they end as %v, and %+v if all were",
						p, s.v, worth, got, end, all)
				}
				for _, i := range worth {
					w := slices.Clone(end)
					w[i] = unsure
					needed[i] = needed[i] || results[number(w)] != all
				}
			}
			for _, i := range worth {
				if s.v[i] != open || !needed[i] {
					t.Fatalf("%+v with %v: %v are fetched, %s for nothing", p, s.v, worth, lawSources[i])
				}
			}
		}
	})
}

// TestNotAskedIsNotMissing: a source that is not asked because its answer would change nothing
// does not withhold an ID, as long as no source has failed.
func TestNotAskedIsNotMissing(t *testing.T) {
	var every []situation
	for _, v := range assignments(3, no, open, yes) {
		every = append(every, situation{v, resolutions(v, open, no, yes)})
	}
	everyPolicy(func(p Policy) {
		pl := newPlan(p, lawSources)
		for _, s := range every {
			worth := pl.worthFetching(s.v)
			for _, end := range s.ends {
				if d := admission(&pl, without(s, end, worth)); d.Missing != nil {
					t.Fatalf("%+v with %v: %v are fetched, and %v are missing where they end as %v", p, s.v, worth, d.Missing, end)
				}
			}
		}
	})
}

// TestNobodyIsFetchedForARefusal: a machine that is refused whatever the network says causes no
// request. Strangers would use a fault in this half of the law.
func TestNobodyIsFetchedForARefusal(t *testing.T) {
	every := everySituation()
	everyResult(func(p Policy, pl *plan, results *[64]result) {
		for _, s := range every {
			refused := !slices.ContainsFunc(s.ends, func(end []value) bool {
				return results[number(end)].outcome != Refused
			})
			if worth := pl.worthFetching(s.v); refused && len(worth) > 0 {
				t.Fatalf("%+v with %v: refused, and %v are fetched", p, s.v, worth)
			}
		}
	})
}

// TestAnOutageOfTheNetworkOnlyTakesAway proves that if a fetch fails, or a source fails before
// it and other fetches are made because of that, no TPM is admitted for it, and no admission
// gains a rule or a source.
func TestAnOutageOfTheNetworkOnlyTakesAway(t *testing.T) {
	every := everySituation()
	everyResult(func(p Policy, pl *plan, results *[64]result) {
		worth := map[int][]int{}
		for _, s := range every {
			worth[number(s.v)] = pl.worthFetching(s.v)
		}
		for _, s := range every {
			for _, end := range s.ends {
				with := results[number(without(s, end, worth[number(s.v)]))]
				for i := range s.v {
					failed := situation{v: slices.Clone(s.v)}
					if s.v[i] != open { // Check fails, otherwise Fetch
						failed.v[i] = unsure
					}
					broken := slices.Clone(end)
					broken[i] = unsure
					left := results[number(without(failed, broken, worth[number(failed.v)]))]
					if left.outcome == Admitted &&
						(with.outcome != Admitted || !within(left.rules, with.rules) || !within(left.listed, with.listed)) {
						t.Fatalf("%+v with %v: %+v, and %+v where %s fails", p, s.v, with, left, lawSources[i])
					}
				}
			}
		}
	})
}

// within reports whether whole has each word of part.
func within(part, whole string) bool { return subset(strings.Fields(part), strings.Fields(whole)) }

// TestTrialsFetchNothing stops a rule on trial from causing a request, and from preventing one.
func TestTrialsFetchNothing(t *testing.T) {
	every := everySituation()
	rules := everyRule()
	isDrawn := drawn()
	for _, allow := range rules {
		for _, trial := range rules {
			trial.Name, trial.Trial = "trial", true
			for _, deny := range rules {
				if !isDrawn() {
					continue
				}
				plain := newPlan(Policy{Allow: []Rule{allow}, Deny: []Rule{deny}}, lawSources)
				with := newPlan(Policy{Allow: []Rule{trial, allow}, Deny: []Rule{deny, trial}}, lawSources)
				for _, s := range every {
					if w, p := with.worthFetching(s.v), plain.worthFetching(s.v); !slices.Equal(w, p) {
						t.Fatalf("%+v beside %+v and %+v with %v: %v are fetched, want %v", trial, allow, deny, s.v, w, p)
					}
				}
			}
		}
	}
}

// TestManyFetchers: if there are too many open answers to try, all that an enforced rule names
// are asked, so that the decision is the same; for a refusal, none is asked.
func TestManyFetchers(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"}
	p := Policy{
		Allow: []Rule{{Name: "some", Any: names[1:]}, {Name: "trial", Any: names[:1], Trial: true}},
		Deny:  []Rule{{Name: "stolen", All: names[7:8]}},
	}
	v := make([]value, len(names))
	for i := range v {
		v[i] = open
	}
	pl := newPlan(p, names)
	if worth := pl.worthFetching(v); !slices.Equal(worth, []int{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("%v are fetched", worth)
	}
	v[7] = yes
	if worth := pl.worthFetching(v); worth != nil {
		t.Errorf("for a refusal, %v are fetched", worth)
	}
}
