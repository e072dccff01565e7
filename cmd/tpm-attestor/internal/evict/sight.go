package evict

import (
	"fmt"
	"time"
)

// sight counts the agents, and notes which of them have attested since the last look. SPIRE does not say when an
// agent of the first look has attested: it counts as having attested just now or, with --once, long ago, since a
// single look does not wait until the server has polled again.
func (e *evicter) sight(agents []*agent) {
	e.counts = counts{Agents: len(agents), Evicted: e.counts.Evicted}
	seen := make(map[string]*agent, len(agents))
	for _, a := range agents {
		if a.unknown {
			e.counts.Unknown++
		}
		switch old := e.seen[a.name]; {
		case old != nil && old.sameAttestation(a):
			a.attested = old.attested
		case e.seen != nil || !e.options.once:
			a.attested = time.Now() // by the clock of the sources
		}
		seen[a.name] = a
	}
	e.seen = seen
}

// foreign returns why the configuration is another server's, or nothing. It is another server's if the agents are
// of another trust domain.
func (e *evicter) foreign(agents []*agent) string {
	own := e.site.trustDomain
	if own.IsZero() {
		return ""
	}
	for _, a := range agents {
		if a.id.TrustDomain != own.Name() {
			return fmt.Sprintf("the configuration is of the trust domain %q, and the SPIRE server at %s of %q: "+
				"nobody is evicted by the configuration of another server", own.Name(), e.socket, a.id.TrustDomain)
		}
	}
	return ""
}
