package server

import (
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// MaxUnderWay is how many attestations may be under way at once.
const MaxUnderWay = maxUnderWay

// MaxUnknown is how many attestations may wait whose TPMs no source lists so far.
const MaxUnknown = maxUnknown

// Use makes the plugin serve sources that no configuration can name, with the
// other keys of a configuration.
func (p *Plugin) Use(tb testing.TB, text string, policy policy.Policy, members ...admission.Member) {
	tb.Helper()
	c, err := config.Parse(text, "example.org")
	if err != nil {
		tb.Fatal(err)
	}
	c.Members, c.Policy = members, policy
	g, err := p.start(tb.Context(), c, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(g.set.Close)
	p.current.Store(g)
}

// Arriving is how many bytes are held of messages that are arriving or wait to be checked, and of what machines have
// answered.
func (p *Plugin) Arriving() int64 {
	return p.held.payloads.bytes.Load() + p.held.responses.bytes.Load() + p.held.answers.bytes.Load()
}

// UnderWay is how many attestations are under way.
func (p *Plugin) UnderWay() int64 { return p.underWay.Load() }

// SetUnderWay pretends that n attestations are under way.
func (p *Plugin) SetUnderWay(n int64) { p.underWay.Store(n) }

// InService identifies the configuration in service; nil if there is none.
func (p *Plugin) InService() any {
	if g := p.current.Load(); g != nil {
		return g
	}
	return nil
}

// Asked is how many bytes of certificates are held of machines about which the sources are
// being asked.
func (p *Plugin) Asked() int64 { return p.held.asked.bytes.Load() }

// Held is how many bytes of certificates are held of machines that have proved nothing.
func (p *Plugin) Held() int64 {
	return p.held.asked.bytes.Load() + p.held.strangers.bytes.Load() + p.held.listed.bytes.Load()
}

// Answers is how many bytes of event logs and DevIDs are held.
func (p *Plugin) Answers() int64 { return p.held.answers.bytes.Load() }

// UseConfig makes the plugin serve a configuration, until the returned function is called.
func (p *Plugin) UseConfig(tb testing.TB, c *config.Config) (stop func()) {
	tb.Helper()
	g, err := p.start(tb.Context(), c, nil)
	if err != nil {
		tb.Fatal(err)
	}
	p.current.Store(g)
	return g.set.Close
}
