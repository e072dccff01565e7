package policy

import "slices"

// maxTried is up to how many open answers every way for them to turn out is tried,
// which is 3 to this power.
const maxTried = 6

// worthFetching returns those sources whose answer is open and can change the
// outcome or, where that is Admitted, which rules hold and what their sources list.
//
// All ways for the answers to turn out are tried, those among them in which a
// fetch fails. A source that makes no difference in any of them makes none at
// all, and neither do several such sources together. One that makes a difference
// has to be asked, since it may be that one. Where more than maxTried are open,
// all that an enforced rule names are worth it.
func (p *plan) worthFetching(v []value) []int {
	if p.decide(v) == Refused { // however they turn out
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

// tryAll decides every way for the opened answers to turn out: number k is the one
// in which the answer of opened[n] is the digit n of k to the base 3, the lowest
// being digit 0. granted are the sources of the rules that hold where that admits.
func (p *plan) tryAll(v []value, opened []int) (outcomes []Outcome, granted []bool) {
	ways := 1
	for range opened {
		ways *= 3
	}
	w := slices.Clone(v)
	for i, x := range w {
		if x == open {
			w[i] = unsure // those that no enforced rule names
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

// differ reports whether two outcomes differ whose numbers differ in this digit
// alone.
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
