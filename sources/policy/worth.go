package policy

import "slices"

// maxTried is the largest number of open answers for which all 3^n combinations are tried.
const maxTried = 6

// worthFetching returns the sources whose answer is open and can change the outcome or, if that
// is Admitted, which rules hold and what their sources list.
//
// It tries all combinations of open answers, including failed fetches. A source that makes no
// difference in any combination makes none at all, not even together with other such sources. A
// source that makes a difference in some combination must be asked, since that may be the actual
// one. If more than maxTried answers are open, it returns all sources that an enforced rule names.
func (p *plan) worthFetching(v []value) []int {
	if p.decide(v) == Refused { // whatever the open answers turn out to be
		return nil
	}
	var opened []int
	for i, x := range v {
		if x == open && p.enforces(i) {
			opened = append(opened, i)
		}
	}
	if len(opened) > maxTried {
		return opened
	}
	outcomes, granted := p.tryAll(v, opened)
	var worth []int
	for digit, i := range opened {
		if granted[i] || differ(outcomes, digit) {
			worth = append(worth, i)
		}
	}
	return worth
}

// tryAll decides every combination of opened answers. In combination k, the answer of opened[n] is
// digit n of k in base 3, digit 0 being the lowest. granted are the sources of the rules that hold
// in the combinations that admit.
func (p *plan) tryAll(v []value, opened []int) (outcomes []Outcome, granted []bool) {
	ways := 1
	for range opened {
		ways *= 3
	}
	w := slices.Clone(v)
	for i, x := range w {
		if x == open {
			w[i] = unsure // sources that no enforced rule names
		}
	}
	outcomes, granted = make([]Outcome, ways), make([]bool, len(v))
	for k := range outcomes {
		rest := k
		for _, i := range opened {
			w[i] = [...]value{no, unsure, yes}[rest%3]
			rest /= 3
		}
		if outcomes[k] = p.decide(w); outcomes[k] != Admitted {
			continue
		}
		for r := range p.allow {
			if rule := &p.allow[r]; !rule.trial && rule.value(w) == yes {
				for i := range granted {
					granted[i] = granted[i] || rule.names(i)
				}
			}
		}
	}
	return outcomes, granted
}

// differ reports whether there are two different outcomes whose numbers differ only in this digit.
func differ(outcomes []Outcome, digit int) bool {
	place := 1
	for range digit {
		place *= 3
	}
	for k, o := range outcomes {
		if k/place%3 > 0 && o != outcomes[k-place] {
			return true
		}
	}
	return false
}

// enforces reports whether an enforced rule names a source.
func (p *plan) enforces(source int) bool {
	named := func(r planRule) bool { return !r.trial && r.names(source) }
	return slices.ContainsFunc(p.allow, named) || slices.ContainsFunc(p.deny, named)
}
