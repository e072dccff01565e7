package policy

import "github.com/spire-tpm/spire-tpm-attestor/sources"

// report returns the results of the rules, without what an admission grants.
func (p *plan) report(v []value) (d Decision) {
	for i := range p.allow {
		if r := &p.allow[i]; r.trial {
			d.Trials = append(d.Trials, r.tried(v, false))
		}
	}
	for i := range p.deny {
		r := &p.deny[i]
		if r.trial {
			d.Trials = append(d.Trials, r.tried(v, true))
			continue
		}
		switch r.value(v) {
		case yes:
			d.Denied = append(d.Denied, r.name)
		case unsure:
			d.MaybeDenied = append(d.MaybeDenied, r.name)
		}
	}
	return d
}

func (r *planRule) tried(v []value, deny bool) Trial {
	held := r.value(v)
	return Trial{Rule: r.name, Deny: deny, Holds: held == yes, Unsure: held == unsure || held == open}
}

// grant fills in what an admission grants: the enforced allow rules that hold, and their
// sources. silent are the sources whose attributes are left out, except the boot profiles that
// they have checked.
func (p *plan) grant(v []value, silent []bool, d *Decision) {
	held := make([]value, len(v)) // for each source, the highest value among the rules that name it
	for i := range p.allow {
		r := &p.allow[i]
		if r.trial {
			continue
		}
		came := r.value(v)
		if came == yes {
			d.Rules = append(d.Rules, r.name)
		}
		for _, s := range r.all {
			held[s] = or(held[s], came)
		}
		for _, s := range r.any {
			held[s] = or(held[s], came)
		}
	}
	for i, a := range d.Answers {
		switch {
		case held[i] == yes && v[i] == yes:
			d.Listed = append(d.Listed, a.Source)
			switch known := a.Verdict.Attributes; {
			case !silent[i]:
				d.Attributes = append(d.Attributes, known)
			case len(known.Profiles) > 0:
				d.Attributes = append(d.Attributes, sources.Attributes{Profiles: known.Profiles})
			}
		case held[i] == no || v[i] == no || silent[i]: // nothing of this source can be missing
		default:
			d.Missing = append(d.Missing, a.Source)
			if held[i] == yes {
				d.Unsure = append(d.Unsure, a.Source)
			}
		}
	}
}
