package policy

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// answersOf returns the answers with these values.
func answersOf(v []value) []Answer {
	all := make([]Answer, len(v))
	for i, x := range v {
		all[i] = Answer{Source: lawSources[i]}
		switch x {
		case yes:
			all[i].Verdict.Listed = true
		case open:
			all[i].Err = sources.ErrNeedsNetwork
		case unsure:
			all[i].Err = errors.New("down")
		case no:
		}
	}
	return all
}

// Somebody who is told how to admit a machine does just that. So each way that is told admits, no
// way with fewer changes does, and if none is told there is none.
func TestWaysAdmit(t *testing.T) {
	all, ends := assignments(3, no, open, unsure, yes), assignments(3, no, unsure, yes)
	everyPolicy(func(p Policy) {
		plan := NewPlan(p, lawSources, make([]bool, len(lawSources)))
		var admit [][]value // the ends that do
		for _, v := range ends {
			if plan.decide(v) == Admitted {
				admit = append(admit, v)
			}
		}
		for _, v := range all {
			least := leastChanges(admit, v)
			ways := plan.Ways(answersOf(v))
			if always := slices.Equal(plan.Possible(answersOf(v)), []Outcome{Admitted}); always || least < 0 {
				if ways != nil {
					t.Fatalf("%+v: %v: ways %v, but admitted: %v", p, v, ways, always)
				}
				continue
			}
			if len(ways) == 0 {
				t.Fatalf("%+v: %v: no way, but %d changes would admit", p, v, least)
			}
			for _, w := range ways {
				if len(w.Changes) != least || plan.decide(walk(v, w)) != Admitted {
					t.Fatalf("%+v: %v: the way %+v does not admit, or is not the shortest (%d)", p, v, w, least)
				}
			}
		}
	})
}

// walk returns the values when a way has been gone.
func walk(v []value, w Way) []value {
	v = slices.Clone(v)
	for i := range v {
		if v[i] == open {
			v[i] = unsure
		}
	}
	for _, c := range slices.Concat(w.Changes, w.If) {
		v[slices.Index(lawSources, c.Source)] = map[bool]value{true: yes}[c.Listed]
	}
	return v
}

// leastChanges returns the smallest number of answers that have to change for the answers to be
// those of an end; -1 if there is no end.
func leastChanges(ends [][]value, v []value) int {
	least := -1
	for _, w := range ends {
		changed := 0
		for i := range v {
			if v[i] != open && v[i] != w[i] {
				changed++
			}
		}
		if least < 0 || changed < least {
			least = changed
		}
	}
	return least
}

// What is said to be possible is what can happen, and nothing else.
func TestPossible(t *testing.T) {
	everyPolicy(func(p Policy) {
		plan := NewPlan(p, lawSources, make([]bool, len(lawSources)))
		for _, v := range assignments(3, no, open, unsure, yes) {
			var want []Outcome
			for _, end := range resolutions(v, open, no, unsure, yes) {
				want = append(want, plan.decide(end))
			}
			slices.Sort(want)
			want = slices.Compact(want)
			if got := plan.Possible(answersOf(v)); !slices.Equal(got, want) {
				t.Fatalf("%+v: %v: possible are %v, want %v", p, v, got, want)
			}
		}
	})
}

// The rules are told as they are configured, those on trial too, with what they come to.
func TestExplain(t *testing.T) {
	plan := NewPlan(Policy{
		Allow: []Rule{{Name: "b", All: []string{"y", "x"}}, {Name: "a", Any: []string{"z"}, Trial: true}},
		Deny:  []Rule{{Name: "d", All: []string{"x"}, Any: []string{"y"}}},
	}, []string{"x", "y", "z"}, make([]bool, 3))
	got := plan.Explain(answersFor("x", yes, "y", unsure, "z", open))
	want := []Held{
		{Rule{Name: "a", Any: []string{"z"}, Trial: true}, false, "open"},
		{Rule{Name: "b", All: []string{"x", "y"}}, false, "might_hold"},
		{Rule{Name: "d", All: []string{"x"}, Any: []string{"y"}}, true, "might_hold"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func answersFor(pairs ...any) []Answer {
	v, names := []value{}, []string{}
	for i := 0; i < len(pairs); i += 2 {
		names, v = append(names, pairs[i].(string)), append(v, pairs[i+1].(value))
	}
	all := answersOf(v)
	for i := range all {
		all[i].Source = names[i]
	}
	return all
}

// A configuration may have 256 sources, and whoever asks does not want to wait for long.
func TestWaysOfManySources(t *testing.T) {
	const n = 256
	var rule Rule
	answers, names := make([]Answer, n), make([]string, n)
	for i := range n {
		names[i] = string([]byte{'a' + byte(i/16), 'a' + byte(i%16)})
		answers[i].Source = names[i]
		if i%2 > 0 {
			answers[i].Err = sources.ErrNeedsNetwork
		}
	}
	rule.Name, rule.All = "all", names
	plan := NewPlan(Policy{Allow: []Rule{rule}}, names, make([]bool, n))
	begun := time.Now()
	if ways := plan.Ways(answers); ways != nil {
		t.Errorf("%d ways, but 128 sources do not list the TPM", len(ways))
	}
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("it took %v", took)
	}
}
