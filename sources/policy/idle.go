package policy

import (
	"slices"
	"strings"
)

// An IdleRule is an enforced rule that decides nothing: without it, the same machines would be
// admitted. An idle allow rule may still add selectors.
type IdleRule struct {
	Deny bool // whether it is a deny rule
	Name string
	// By are other enforced rules, sorted by name. Whenever the idle rule holds, at least one of
	// them holds.
	By []string
	// Denied is true for an allow rule if By are deny rules, so that the allow rule never admits a
	// machine.
	Denied bool
}

// Idle returns the idle rules of a policy that Validate has accepted, over sources with these
// names: first allow rules, then deny rules, each sorted by name. If two rules mean the same, only
// the second is idle.
//
// A source that lists the TPM never makes a rule stop holding. So it is enough to look at the
// smallest sets of sources that make a rule hold: all of its All and one of its Any.
func (p Policy) Idle(names []string) []IdleRule {
	all := newPlan(p, names)
	allow, deny := enforced(all.allow), enforced(all.deny)
	var idle []IdleRule
	for _, r := range allow {
		if by := covering(&r, deny, len(names)); by != nil {
			idle = append(idle, IdleRule{Name: r.name, By: by, Denied: true})
		}
	}
	allow = slices.DeleteFunc(allow, func(r planRule) bool {
		return slices.ContainsFunc(idle, func(i IdleRule) bool { return i.Name == r.name })
	})
	idle = append(idle, idleIn(allow, false, len(names))...)
	slices.SortFunc(idle, func(a, b IdleRule) int { return strings.Compare(a.Name, b.Name) })
	return append(idle, idleIn(deny, true, len(names))...)
}

func enforced(rules []planRule) []planRule {
	return slices.DeleteFunc(slices.Clone(rules), func(r planRule) bool { return r.trial })
}

// idleIn returns the idle rules among rules of one effect. An idle rule covers no other: otherwise
// two rules that mean the same would both be idle.
func idleIn(rules []planRule, deny bool, sources int) []IdleRule {
	var idle []IdleRule
	left := slices.Clone(rules)
	for _, r := range slices.Backward(rules) {
		others := slices.DeleteFunc(slices.Clone(left), func(o planRule) bool { return o.name == r.name })
		if by := covering(&r, others, sources); by != nil {
			idle, left = append(idle, IdleRule{Deny: deny, Name: r.name, By: by}), others
		}
	}
	slices.Reverse(idle)
	return idle
}

// covering returns the names of rules, as few as can be found easily, such that whenever r holds,
// at least one of them holds. It returns nil if there are none.
func covering(r *planRule, others []planRule, sources int) []string {
	var by []string
	for _, lists := range r.smallest(sources) {
		holds := func(o planRule) bool { return o.value(lists) == yes }
		if slices.ContainsFunc(others, func(o planRule) bool { return slices.Contains(by, o.name) && holds(o) }) {
			continue
		}
		i := slices.IndexFunc(others, holds)
		if i < 0 {
			return nil
		}
		by = append(by, others[i].name)
	}
	slices.Sort(by)
	return by
}

// smallest returns the values of all sources for each smallest set of sources that makes r hold.
func (r *planRule) smallest(sources int) [][]value {
	base := make([]value, sources)
	for _, i := range r.all {
		base[i] = yes
	}
	if len(r.any) == 0 {
		return [][]value{base}
	}
	var sets [][]value
	for _, i := range r.any {
		set := slices.Clone(base)
		set[i] = yes
		sets = append(sets, set)
	}
	return sets
}
