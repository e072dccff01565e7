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

// A Preview is what a server would decide about a machine, without an attestation.
type Preview struct {
	// Answers are what the sources say, sorted by source.
	Answers []policy.Answer
	// Status is the state of each source, sorted by name.
	Status []admission.SourceStatus
	// Rules are the rules with their results.
	Rules []policy.Held
	// Possible are the outcomes that the decision may have, the worst first.
	Possible []policy.Outcome
	// Ways are the ways in which the machine would be admitted after all.
	Ways []policy.Way
	// Decision is the decision, and Result what it comes to, if no answer that is still open
	// turns out to list the machine or not to list it.
	Decision policy.Decision
	Result   Result
	// Settled is true if the machine gets Result whatever the open answers turn out to be. It may get more
	// selectors than Result has if Incomplete names sources.
	Settled bool
	// Incomplete are the sources whose open answers may add selectors, sorted.
	Incomplete []string
	// NeedsQuote is true if the configuration refuses machines for a wrong or a missing quote, whatever the sources
	// say.
	NeedsQuote bool
	// NeedsSVIDKey is true if the configuration refuses every agent whose TPM has not certified the agent's SVID
	// key, whatever the sources say.
	NeedsSVIDKey bool
}

// A Previewer says what a server would decide. It is safe for concurrent use.
type Previewer struct {
	config *config.Config
	set    *admission.Set
}

// NewPreviewer loads each source of a configuration once. Config.Examine says what the sources may use. The
// Previewer takes over the sources and must be closed: c cannot be used again.
func NewPreviewer(ctx context.Context, c *config.Config) (*Previewer, error) {
	set, err := c.NewSet(admission.Options{Once: true})
	if err != nil {
		return nil, err
	}
	set.Start(ctx, nil)
	return &Previewer{config: c, set: set}, nil
}

// NewFollower returns a Previewer that keeps its sources current, for a caller that acts upon a refusal: see
// Config.Follow and admission.Options.Strict. It takes over those sources of previous whose configuration has not
// changed; previous may be nil. NewFollower waits for the first loads until ctx ends.
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

// Screen asks each source once and returns what would be decided about a machine before its challenge: see
// admission.Set.Screen.
func (p *Previewer) Screen(ctx context.Context, ev *sources.Evidence) policy.Decision {
	return p.set.Screen(ctx, ev)
}

// RefusedSince reports whether these answers refuse a machine even if sources with old data are ignored: those
// whose data were last confirmed before since, when the machine was admitted, perhaps by a server with later data.
// If since is zero, no source is ignored. status is that of the sources when they answered, or earlier.
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

// Close stops the sources.
func (p *Previewer) Close() { p.set.Close() }

// Preview asks the sources about a machine. ev says what is known of it: ev.EK may be nil, and ev.Incomplete is
// true if the certificates that the machine sends are not known. network says whether sources may use the network
// for this machine.
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

// settle sets the fields that say whether Result depends on open answers.
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
