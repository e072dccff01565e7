package config

import (
	"context"
	"errors"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// Examine makes the sources of c show, beside a running server, what that server has: they read its caches, whoever
// owns the files, write nothing, and use the network only if network is true. Evidence that is Incomplete is then
// that of a machine whose certificates are not known, as only a challenge would show them. Call Examine before the
// sources are started, with admission.Options.Once.
func (c *Config) Examine(network bool) {
	for i := range c.Members {
		m := &c.Members[i]
		if s, ok := m.Source.(interface{ Examine(network bool) }); ok {
			s.Examine(network)
		}
		if kindNamed(kinds(), m.Kind).online && !network {
			m.Source = notAsked{}
		}
		if s, ok := m.Source.(*ekca.Source); ok {
			m.Source = uncertified{s}
		}
	}
}

// Follow makes the sources of c follow those of a running server. A list from a web server is read from the
// server's cache, whoever owns the file, and caches are never written. Files, folders and databases are read as the
// server reads them. What a machine would have to show, such as its EK certificate, is not known, so the sources
// that check it load nothing. Call Follow before the sources are started.
func (c *Config) Follow() {
	for i := range c.Members {
		m := &c.Members[i]
		if k := kindNamed(kinds(), m.Kind); k.byVendor || k.byBoot || k.byDevID {
			m.Source = notShown{}
		}
		if s, ok := m.Source.(interface{ Follow() }); ok {
			s.Follow()
		}
	}
}

// notShown replaces a source that checks what a machine shows.
type notShown struct{}

var errNotShown = fmt.Errorf("needs what the machine would show: %w", sources.ErrNeedsChallenge)

// Check implements sources.Source.
func (notShown) Check(context.Context, *sources.Evidence) (sources.Verdict, error) {
	return sources.Verdict{}, errNotShown
}

// notAsked replaces a source that needs the network for each check.
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

// uncertified is an ek_ca that may lack the certificates of the machine.
type uncertified struct{ *ekca.Source }

// ErrNeedsCertificate is the error of a source that needs the machine's EK certificate.
var ErrNeedsCertificate = fmt.Errorf("needs the machine's EK certificate: %w", sources.ErrNeedsChallenge)

// Check implements sources.Source.
func (s uncertified) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	v, err := s.Source.Check(ctx, ev)
	if errors.Is(err, ekca.ErrIncomplete) {
		err = ErrNeedsCertificate
	}
	return v, err
}
