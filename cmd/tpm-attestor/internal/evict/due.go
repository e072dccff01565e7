package evict

import (
	"cmp"
	"slices"
)

// braked returns why nobody may be evicted, or nothing.
func (e *evicter) braked(agents []*agent) string {
	suspected := func(a *agent) bool { return e.suspects[a.name] != nil }
	why := e.brake.holds(agents, len(e.suspects), suspected, e.now())
	if why == "" || e.force {
		return ""
	}
	return why + ": nobody is evicted; see who it is with --once --dry-run, and if that is meant, evict them with " +
		"--once --force"
}

// due returns the suspects that are to be evicted now, sorted by SPIFFE ID.
func (e *evicter) due() (due []*suspect) {
	for hash, r := range e.returns {
		if e.now().Sub(r.last) > 2*mostReturn { //nolint:mnd // well after the longest quiet
			delete(e.returns, hash)
		}
	}
	for _, s := range e.suspects {
		r := e.returns[s.hash]
		if e.now().Sub(s.since) >= e.confirmAfter && (r == nil || e.now().Sub(r.last) >= r.quiet()) {
			due = append(due, s)
		}
	}
	slices.SortFunc(due, func(a, b *suspect) int { return cmp.Compare(a.name, b.name) })
	return due
}

// tell prints which suspects would be evicted, each of them once.
func (e *evicter) tell(due ...*suspect) {
	for _, s := range due {
		if !s.told {
			s.told = true
			e.report.print(s.event(eventWouldEvict))
		}
	}
}

func (s *suspect) event(name string) *event {
	return &event{Event: name, SPIFFEID: s.name, EKHash: s.hash.String(), Name: s.machine, Reason: s.reason}
}
