package policy

import "slices"

// What a person is told about a decision: the result of each rule, how a decision that is still
// open may turn out, and what would have to be different for the TPM to be admitted.

// A Held is the result of one rule.
type Held struct {
	Rule
	// Deny is true for a deny rule.
	Deny bool
	// Result is "holds" or "holds_not", "might_hold" if a source cannot tell, or "open" if it
	// depends on the answer to the challenge or on the network.
	Result string
}

// Explain returns the result of each rule, allow rules first, each kind sorted by name.
func (p *Plan) Explain(answers []Answer) []Held {
	v := values(answers)
	named := func(is []int) (names []string) {
		for _, i := range is {
			names = append(names, answers[i].Source)
		}
		slices.Sort(names)
		return names
	}
	var all []Held
	for i, rules := range [][]planRule{p.allow, p.deny} {
		for _, r := range rules {
			all = append(all, Held{
				Rule: Rule{Name: r.name, Trial: r.trial, All: named(r.all), Any: named(r.any)},
				Deny: i > 0, Result: [...]string{"holds_not", "open", "might_hold", "holds"}[r.value(v)],
			})
		}
	}
	return all
}

// Possible returns the different outcomes that After can have, depending on how the open answers
// turn out, the worst first. There is only one if no open answer matters.
func (p *Plan) Possible(answers []Answer) []Outcome {
	v := values(answers)
	var opened []int
	for i, x := range v {
		if x == open && p.enforces(i) {
			opened = append(opened, i)
		}
	}
	if len(opened) > maxTried {
		if p.decide(v) == Refused {
			return []Outcome{Refused}
		}
		return []Outcome{Refused, Unavailable, Admitted}
	}
	outcomes, _ := p.tryAll(v, opened)
	slices.Sort(outcomes)
	return slices.Compact(outcomes)
}

// A Change is an answer of a source that would have to be different.
type Change struct {
	Source string
	// Listed is what the source would have to say.
	Listed bool
}

// A Way is what would have to be different for a TPM to be admitted.
type Way struct {
	// Changes are the answers that would have to be different, sorted by source; empty if it
	// depends on If alone.
	Changes []Change
	// If are the open answers and how they would have to turn out, sorted by source.
	If []Change
}

// Ways changes at most maxChanges answers; if there are more than manySources sources, one less.
const maxChanges, manySources = 3, 40

// Ways returns the ways to admit a TPM that change the fewest answers, in the order of the sources.
// It returns nil if the TPM is admitted however the open answers turn out, or if more than
// maxChanges answers would have to change.
func (p *Plan) Ways(answers []Answer) []Way {
	v := values(answers)
	if possible := p.Possible(answers); len(possible) == 1 && possible[0] == Admitted {
		return nil
	}
	var known []int // sources whose answer is known and can matter
	for i, x := range v {
		if x != open && p.enforces(i) {
			known = append(known, i)
		}
	}
	most := maxChanges
	if len(known) > manySources {
		most--
	}
	for n := range most + 1 {
		var ways []Way
		p.change(v, known, n, func(changed []value) {
			if way, ok := p.way(answers, v, changed); ok {
				ways = append(ways, way)
			}
		})
		if len(ways) > 0 {
			return ways
		}
	}
	return nil
}

// change calls f with each way to change n of the values in some.
func (p *Plan) change(v []value, some []int, n int, f func([]value)) {
	if n == 0 {
		f(v)
		return
	}
	for k, i := range some {
		for _, to := range []value{yes, no} {
			if v[i] == to {
				continue
			}
			changed := slices.Clone(v)
			changed[i] = to
			p.change(changed, some[k+1:], n-1, f)
		}
	}
}

// way returns a way if a TPM with these values can be admitted.
func (p *Plan) way(answers []Answer, before, v []value) (w Way, ok bool) {
	if p.decide(v) != Admitted {
		return Way{}, false
	}
	var opened []int
	closed := slices.Clone(v)
	for i := range v {
		if before[i] != v[i] {
			w.Changes = append(w.Changes, Change{answers[i].Source, v[i] == yes})
		}
		if v[i] == open {
			closed[i] = unsure
			opened = append(opened, i)
		}
	}
	for n := range len(opened) + 1 {
		found := false
		p.change(closed, opened, n, func(tried []value) {
			if found || p.decide(tried) != Admitted {
				return
			}
			found = true
			for _, i := range opened {
				if tried[i] != unsure {
					w.If = append(w.If, Change{answers[i].Source, tried[i] == yes})
				}
			}
		})
		if found {
			return w, true
		}
		if n == maxTried {
			break
		}
	}
	return w, true
}
