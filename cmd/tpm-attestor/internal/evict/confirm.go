package evict

import (
	"context"

	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// evict loads the sources anew, asks them once more about each machine, and evicts the machines that are still
// refused, as long as the configuration has not been edited. It puts what goes wrong into problems.
func (e *evicter) evict(ctx context.Context, due []*suspect, problems map[string]string) {
	if len(due) == 0 {
		return
	}
	within, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	if err := e.site.previewer.Refresh(within); err != nil {
		problems[alarmSources] = err.Error()
		return
	}
	for _, s := range due {
		if e.report.err != nil { // no machine is evicted unless a line says so
			return
		}
		if e.site.edited(ctx) { // the server may run the new configuration by now
			problems[alarmConfiguration] = errChanging.Error()
			return
		}
		if err := e.evictOne(ctx, s); err != nil {
			problems[alarmSPIRE] = err.Error()
			if silent(err) { // any other error is about this agent, and keeps no other agent in
				return
			}
		}
	}
}

func (e *evicter) evictOne(ctx context.Context, s *suspect) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	refused, err := e.confirm(ctx, s)
	switch {
	case err != nil:
		return err
	case !refused:
		e.counts.Refused--
		delete(e.suspects, s.name)
		return nil
	case e.dryRun:
		e.tell(s)
		return nil
	}
	return e.delete(ctx, s)
}

// confirm reports whether a suspect is refused whatever the machine could show, by data that are newer than its
// attestation, and whether SPIRE still has the agent as it was listed.
func (e *evicter) confirm(ctx context.Context, s *suspect) (bool, error) {
	status := e.site.previewer.Status()
	view, err := e.site.previewer.Preview(ctx, s.evidence(), false)
	if err != nil || view.Decision.Outcome != policy.Refused ||
		!e.site.previewer.RefusedSince(view.Answers, status, s.attested) {
		return false, nil //nolint:nilerr // it was interrupted, and nothing is certain then
	}
	s.reason = view.Result.Reason + "; " + view.Decision.Explain()
	return e.spire.unchanged(ctx, s.agent)
}

// delete evicts a suspect.
func (e *evicter) delete(ctx context.Context, s *suspect) error {
	was, err := e.spire.evict(ctx, s.agent)
	if err != nil {
		if silent(err) {
			e.brake.note(s.hash, e.now()) // it may be out by now
		}
		return err
	}
	delete(e.suspects, s.name)
	e.counts.Refused--
	if !was {
		e.report.print(s.event(eventGone))
		return nil
	}
	e.counts.Evicted++
	e.brake.note(s.hash, e.now())
	r := e.returns[s.hash]
	if r == nil {
		r = &returned{}
		e.returns[s.hash] = r
	}
	r.times, r.last = r.times+1, e.now()
	e.report.print(s.event(eventEvicted))
	return nil
}
