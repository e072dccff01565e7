package config

import (
	"context"
	"errors"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// An Examination is a look at what a server would decide, beside that server.
type Examination struct {
	// Network says that sources may use the network.
	Network bool
	// NoCertificate says that it is not known which EK certificate the machine sends.
	NoCertificate bool
}

// Examine makes the sources of c examine what a server has: they read its caches, whoever owns
// the files, write nothing, and use no network unless they are told to. It must be called before
// the sources are started, with admission.Options.Once.
func (c *Config) Examine(x Examination) {
	for i := range c.Members {
		m := &c.Members[i]
		if s, ok := m.Source.(interface{ Examine(network bool) }); ok {
			s.Examine(x.Network)
		}
		switch kind := kindNamed(kinds(), m.Kind); {
		case kind.online && !x.Network:
			m.Source = notAsked{}
		case kind.byVendor && x.NoCertificate:
			if s, ok := m.Source.(*ekca.Source); ok {
				m.Source = uncertified{s}
			}
		}
	}
}

// notAsked is in the place of a source that needs the network for each check.
type notAsked struct{}

var errNotAsked = fmt.Errorf("not asked: %w", sources.ErrNeedsNetwork)

// Check implements sources.Source.
func (notAsked) Check(context.Context, *sources.Evidence) (sources.Verdict, error) {
	return sources.Verdict{}, errNotAsked
}

// Fetch implements sources.Fetcher, since only a Fetcher may say that it needs the network.
func (n notAsked) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return n.Check(ctx, ev)
}

// uncertified is a source that would judge the machine by its EK certificate. It takes what the
// machine has not sent for something that the challenge would show.
type uncertified struct{ *ekca.Source }

// ErrNeedsCertificate is the error of a source that would judge the machine by its EK certificate.
var ErrNeedsCertificate = fmt.Errorf("needs the machine's EK certificate: %w", sources.ErrNeedsChallenge)

// Check implements sources.Source.
func (s uncertified) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	without := *ev
	without.Certificate, without.Chain, without.Incomplete = nil, nil, true
	v, err := s.Source.Check(ctx, &without)
	if errors.Is(err, ekca.ErrIncomplete) {
		err = ErrNeedsCertificate
	}
	return v, err
}
