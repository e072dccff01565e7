package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// A Preview is what a server would decide about a machine that is not there.
type Preview struct {
	// Answers are what the sources say, sorted by source.
	Answers []policy.Answer
	// Status is the state of each source, sorted by name.
	Status []admission.SourceStatus
	// Rules are what the rules come to.
	Rules []policy.Held
	// Possible are the outcomes that the decision can have, the worst first.
	Possible []policy.Outcome
	// Ways are what would have to be different for the machine to be admitted.
	Ways []policy.Way
	// Decision is the decision, and Result what it comes to, if no answer that is still open
	// turns out to list the machine or not to list it.
	Decision policy.Decision
	Result   Result
	// Settled is true if the Result is what the machine would get, however the open answers
	// turn out. Its selectors may be more than these if Incomplete names sources.
	Settled bool
	// Incomplete are the sources whose answers are open and may add selectors, sorted.
	Incomplete []string
	// NeedsQuote is true if the configuration refuses a machine for what it quotes or does
	// not quote, whatever the sources say.
	NeedsQuote bool
	// NeedsSVIDKey is true if the configuration refuses every agent whose TPM has not certified the
	// key of its SVID, whatever the sources say.
	NeedsSVIDKey bool
}

// A Previewer says what a server would decide. It is safe for concurrent use.
type Previewer struct {
	config *config.Config
	set    *admission.Set
}

// NewPreviewer loads the sources of a configuration, each once. Config.Examine says what they may
// use. The sources belong to the Previewer, which must be closed: c cannot be used again.
func NewPreviewer(ctx context.Context, c *config.Config) (*Previewer, error) {
	set, err := c.NewSet(admission.Options{Once: true})
	if err != nil {
		return nil, err
	}
	set.Start(ctx, nil)
	return &Previewer{config: c, set: set}, nil
}

// NewFollower returns a Previewer whose sources are kept current, for a caller that acts upon a refusal:
// see Config.Follow and admission.Options.Strict. It takes over the sources of previous, which may be
// nil, whose configuration has not changed. It waits for the first loads until ctx ends.
func NewFollower(ctx context.Context, c *config.Config, previous *Previewer, log *slog.Logger) (*Previewer, error) {
	c.Follow()
	set, err := c.NewSet(admission.Options{Strict: true, Log: log})
	if err != nil {
		return nil, err
	}
	var before *admission.Set
	if previous != nil {
		before = previous.set
	}
	set.Start(ctx, before)
	return &Previewer{config: c, set: set}, nil
}

// Refresh loads the sources anew: see admission.Set.Refresh.
func (p *Previewer) Refresh(ctx context.Context) error { return p.set.Refresh(ctx) }

// Screen returns what would be decided about a machine before its challenge, by one question to
// each source: see admission.Set.Screen.
func (p *Previewer) Screen(ctx context.Context, ev *sources.Evidence) policy.Decision {
	return p.set.Screen(ctx, ev)
}

// RefusedSince reports whether a machine is refused by these answers, although every source may be wrong
// whose data were last known to be current before a time: it was admitted since then, perhaps by a server
// with later data. The time is zero if nobody knows of that. Status is that of the sources when they
// answered, or before.
func (p *Previewer) RefusedSince(answers []policy.Answer, status []admission.SourceStatus, since time.Time) bool {
	answers = slices.Clone(answers)
	for i, a := range answers {
		if slices.ContainsFunc(status, func(s admission.SourceStatus) bool {
			return s.Name == a.Source && !s.Confirmed.IsZero() && s.Confirmed.Before(since)
		}) {
			answers[i] = policy.Answer{Source: a.Source, Err: errOlder}
		}
	}
	possible := p.set.Plan().Possible(answers)
	return len(possible) == 1 && possible[0] == policy.Refused
}

var errOlder = errors.New("its data may be older than the attestation")

// Status returns the state of each source, sorted by name.
func (p *Previewer) Status() []admission.SourceStatus { return p.set.Status() }

// Close ends what the sources do.
func (p *Previewer) Close() { p.set.Close() }

// Preview asks the sources about a machine of which ev says what is known: ev.EK may be nil, and
// ev.Incomplete is true if the certificates that it sends are not known. network says whether
// sources that fetch for each machine may do so.
func (p *Previewer) Preview(ctx context.Context, ev *sources.Evidence, network bool) (*Preview, error) {
	answers, err := p.set.Preview(ctx, ev, network)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	plan := p.set.Plan()
	view := &Preview{
		Answers: answers, Status: p.set.Status(), Rules: plan.Explain(answers),
		Possible: plan.Possible(answers), Ways: plan.Ways(answers), Decision: plan.After(answers),
	}
	view.Result = ResultOf(p.config, ev, &view.Decision)
	view.settle(p.config)
	return view, nil
}

// settle sets whether the Result depends on anything that is open.
func (p *Preview) settle(c *config.Config) {
	for _, a := range p.Answers {
		if r := a.Result(); r != "needs_challenge" && r != "needs_network" {
			continue
		}
		if slices.ContainsFunc(p.Rules, func(h policy.Held) bool {
			return !h.Deny && !h.Trial && h.Result != "holds_not" &&
				(slices.Contains(h.All, a.Source) || slices.Contains(h.Any, a.Source))
		}) {
			p.Incomplete = append(p.Incomplete, a.Source)
		}
	}
	admitted := p.Result.Code == codes.OK
	p.NeedsQuote = c.Quote != nil && (c.Quote.Required || c.Quote.EventLog == config.EventLogRequired)
	p.NeedsSVIDKey = c.SVIDKey == config.SVIDKeyRequired
	switch {
	case p.Result.Outcome == string(outcomeMalformed):
		p.Settled = true
	case len(p.Possible) != 1:
	case p.Possible[0] == policy.Admitted:
		p.Settled = admitted && !p.NeedsQuote && !p.NeedsSVIDKey || !admitted && len(p.Incomplete) == 0
	default:
		p.Settled = true
	}
}
