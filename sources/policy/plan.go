package policy

import (
	"cmp"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A value is the answer of one source about a TPM, or the result of a rule over sources. The logic
// is Kleene's three-valued logic, with two reasons for not knowing.
type value uint8

const (
	// no: the source does not list the TPM; the rule does not hold.
	no value = iota
	// open: not known yet; it depends on the challenge or the network.
	open
	// unsure: not known, because a source cannot tell.
	unsure
	// yes: the source lists the TPM; the rule holds.
	yes
)

// or returns the larger value: "yes" wins, and a failure is a stronger reason for not knowing than
// an answer that is still to come.
func or(a, b value) value { return max(a, b) }

func and(a, b value) value {
	switch {
	case a == no || b == no:
		return no
	case a == yes:
		return b
	case b == yes:
		return a
	}
	return max(a, b)
}

// A Plan is a policy over sources that are identified by their index. It is immutable, and so safe
// for concurrent use.
//
// The methods take the answers of all sources, in the order of the names that were passed to
// NewPlan. A source that has not answered yet counts as one that cannot tell.
type Plan struct {
	plan
	// silent are the sources whose attributes are left out.
	silent []bool
}

// NewPlan compiles a policy, which Validate must have accepted, over sources in the order of names.
// Silent sources contribute no attributes except boot profiles.
func NewPlan(p Policy, names []string, silent []bool) *Plan {
	return &Plan{newPlan(p, names), slices.Clone(silent)}
}

// Before decides, by the answers before the challenge, whether to challenge a machine:
//
//   - Challenge, if the answer to the challenge can still admit it;
//   - Unavailable, if it can not, but could if the sources that cannot tell had answered;
//   - Refused otherwise.
//
// If the outcome is Challenge, the answers in the Decision have no attributes: nothing is granted
// yet.
func (p *Plan) Before(answers []Answer) Decision {
	v := values(answers)
	d := p.report(v)
	if d.Outcome = p.decide(v); d.Outcome == Admitted {
		d.Outcome, d.Known = Challenge, p.knows(v)
	}
	d.Answers = slices.Clone(answers)
	for i := range d.Answers {
		if d.Outcome == Challenge { // the caller may keep d for a while
			d.Answers[i].Verdict.Attributes = sources.Attributes{}
		}
	}
	return d
}

// After decides about a machine that has answered its challenge:
//
//   - Admitted, if an allow rule holds, and no deny rule holds or might hold;
//   - Unavailable, if that would be so had the sources that cannot tell answered otherwise;
//   - Refused otherwise.
//
// A source that needs the network but was not told to use it counts as one that cannot tell.
func (p *Plan) After(answers []Answer) Decision {
	v := values(answers)
	d := p.report(v)
	d.Answers = slices.Clone(answers)
	for i := range v {
		if v[i] == open { // not known, and no failure
			v[i] = unsure
		}
	}
	if d.Outcome = p.decide(v); d.Outcome == Admitted {
		p.grant(v, p.silent, &d)
	}
	return d
}

// Knows reports whether a source that an enforced allow rule names, which can still hold, lists the
// TPM.
func (p *Plan) Knows(answers []Answer) bool { return p.knows(values(answers)) }

// Challenges reports whether the machine is to be challenged, whatever the sources that have not
// answered yet would say.
func (p *Plan) Challenges(answers []Answer) bool { return p.decide(values(answers)) == Admitted }

// Allows reports whether an enforced allow rule names a source.
func (p *Plan) Allows(source int) bool { return p.allows(source) }

// WorthPolling returns those of some sources that do not list the TPM and would improve the
// decision if they did.
func (p *Plan) WorthPolling(answers []Answer, some []int) []int {
	v := values(answers)
	var missed []int
	for _, i := range some {
		if v[i] == no {
			missed = append(missed, i)
		}
	}
	return p.worthAsking(v, missed)
}

// WorthFetching returns the sources that need the network and whose answers can change the
// outcome or, if that is Admitted, which rules hold and what their sources list.
func (p *Plan) WorthFetching(answers []Answer) []int { return p.worthFetching(values(answers)) }

func values(answers []Answer) []value {
	v := make([]value, len(answers))
	for i, a := range answers {
		v[i] = a.value()
	}
	return v
}

type plan struct {
	allow, deny []planRule
}

type planRule struct {
	name     string
	trial    bool
	all, any []int
}

// newPlan compiles a valid policy over sources in the order of names.
func newPlan(p Policy, names []string) plan {
	indices := func(list []string) []int {
		var is []int
		for _, n := range list {
			is = append(is, slices.Index(names, n))
		}
		return is
	}
	compile := func(rules []Rule) []planRule {
		var rs []planRule
		for _, r := range rules {
			rs = append(rs, planRule{r.Name, r.Trial, indices(r.All), indices(r.Any)})
		}
		slices.SortFunc(rs, func(a, b planRule) int { return cmp.Compare(a.name, b.name) })
		return rs
	}
	return plan{compile(p.Allow), compile(p.Deny)}
}

// value returns the result of the rule.
func (r *planRule) value(v []value) value {
	all, some := yes, no
	for _, i := range r.all {
		all = and(all, v[i])
	}
	for _, i := range r.any {
		some = or(some, v[i])
	}
	if len(r.any) == 0 {
		return all
	}
	return and(all, some)
}

// decide returns Admitted if the open answers can turn out so that the TPM is admitted. It returns
// Unavailable if they cannot, but could if the sources that cannot tell had answered. Otherwise it
// returns Refused.
//
// While answers are open, Admitted only means that the TPM is worth a challenge. If no answer is
// open, it means that an enforced allow rule holds, and that no enforced deny rule holds or might
// hold.
func (p *plan) decide(v []value) Outcome {
	switch {
	case p.canAdmit(v, false):
		return Admitted
	case p.canAdmit(v, true):
		return Unavailable
	}
	return Refused
}

// canAdmit reports whether the open answers can turn out so that the TPM is admitted. If answered
// is true, a source that is unsure counts as open. If it is false, an unsure source counts in
// whichever way admits less: as not listing the TPM under an allow rule, and as listing it under a
// deny rule.
//
// A source that lists the TPM never makes a rule stop holding. So it is enough to try each
// smallest set of sources that makes an allow rule hold, which is all of its All and one of its
// Any, and to assume that no other open source lists the TPM.
func (p *plan) canAdmit(v []value, answered bool) bool {
	can := func(i int) bool { return v[i] == yes || v[i] == open || answered && v[i] == unsure }
	for _, r := range p.allow {
		if r.trial || slices.ContainsFunc(r.all, func(i int) bool { return !can(i) }) {
			continue
		}
		if len(r.any) == 0 && !p.denies(v, answered, r.all, -1) {
			return true
		}
		for _, i := range r.any {
			if can(i) && !p.denies(v, answered, r.all, i) {
				return true
			}
		}
	}
	return false
}

// denies reports whether an enforced deny rule holds or might hold if, among the sources whose
// answer is not known, exactly those in all and the source one list the TPM.
func (p *plan) denies(v []value, answered bool, all []int, one int) bool {
	lists := func(i int) bool {
		switch {
		case v[i] == yes, v[i] == no:
			return v[i] == yes
		case v[i] == unsure && !answered:
			return true
		}
		return i == one || slices.Contains(all, i)
	}
	for _, r := range p.deny {
		if r.trial || slices.ContainsFunc(r.all, func(i int) bool { return !lists(i) }) {
			continue
		}
		if len(r.any) == 0 || slices.ContainsFunc(r.any, lists) {
			return true
		}
	}
	return false
}

// knows implements Knows.
func (p *plan) knows(v []value) bool {
	lists := func(i int) bool { return v[i] == yes }
	return slices.ContainsFunc(p.allow, func(r planRule) bool {
		return !r.trial && r.value(v) != no && (slices.ContainsFunc(r.all, lists) || slices.ContainsFunc(r.any, lists))
	})
}

// allows reports whether an enforced allow rule names a source.
func (p *plan) allows(source int) bool {
	return slices.ContainsFunc(p.allow, func(r planRule) bool { return !r.trial && r.names(source) })
}

func (r *planRule) names(source int) bool {
	return slices.Contains(r.all, source) || slices.Contains(r.any, source)
}

// worthAsking implements WorthPolling. It returns the missed sources of each enforced allow rule
// that could then admit, or whose result could then depend on a source that cannot tell.
func (p *plan) worthAsking(v []value, missed []int) []int {
	now := p.decide(v)
	if now == Admitted || len(missed) == 0 {
		return nil
	}
	listed := slices.Clone(v)
	for _, i := range missed {
		listed[i] = open
	}
	var worth []int
	for k, r := range p.allow {
		alone := plan{allow: p.allow[k : k+1], deny: p.deny}
		if alone.decide(listed) <= now {
			continue
		}
		for _, i := range missed {
			if r.names(i) && !slices.Contains(worth, i) {
				worth = append(worth, i)
			}
		}
	}
	return worth
}
