package evict

import (
	"context"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// A suspect is an agent that the configuration refuses.
type suspect struct {
	*agent
	since  time.Time // when it was first seen to be refused
	told   bool      // a dry run has said that it would be evicted
	reason string
}

// suspectAll makes suspects of the refused agents. status is the status of the sources before they were asked.
// An agent that has attested after the server last confirmed a list is not a suspect: another server, with a
// later list, may have admitted it. If the server does not confirm the list within unconfirmedFor, suspectAll
// returns that as the problem.
func (e *evicter) suspectAll(
	ctx context.Context, refused []screened, status []admission.SourceStatus,
) (problem string) {
	suspects := map[string]*suspect{}
	later := slices.DeleteFunc(refused, func(s screened) bool {
		if !e.site.previewer.RefusedSince(s.decision.Answers, status, s.attested) {
			return false
		}
		suspects[s.name] = e.suspect(s)
		return true
	})
	if len(later) > 0 && e.site.previewer.Refresh(ctx) == nil {
		status = e.site.previewer.Status()
	}
	for _, s := range later {
		e.counts.Refused--
		s.decision = e.site.previewer.Screen(ctx, s.evidence())
		e.count(s)
		switch {
		case s.decision.Outcome == policy.Unavailable:
			problem = s.decision.Explain()
		case s.decision.Outcome != policy.Refused:
		case e.site.previewer.RefusedSince(s.decision.Answers, status, s.attested):
			suspects[s.name] = e.suspect(s)
		case time.Since(s.attested) > e.unconfirmedFor:
			e.counts.CannotTell++
			e.counts.Refused--
			problem = "a list was not confirmed since it has attested: " + s.decision.Explain()
		}
	}
	e.suspects = suspects
	return problem
}

// suspect returns the suspect for an agent that is refused. An agent that has attested again since it
// became a suspect is a new suspect.
func (e *evicter) suspect(s screened) *suspect {
	if old := e.suspects[s.name]; old != nil && old.sameAttestation(s.agent) {
		old.agent = s.agent
		return old
	}
	return &suspect{agent: s.agent, since: e.now(), reason: s.decision.Explain()}
}
