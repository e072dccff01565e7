// Package ekca is a source that knows a TPM by the authority that issued its EK
// certificate.
//
// A TPM is listed when its EK certificate chains to a CA certificate that the
// operator has configured. Every configured CA certificate is a trust anchor,
// one of an intermediate CA too. Certificates that the attesting machine sends
// may join its EK certificate to an anchor and never are one.
//
// With [Config.AIAHosts], the issuers that certificates name are fetched from
// these hosts, and their CRLs where [Config.CRL] says so; with
// [Config.EKCertificateURLs], so are the EK certificates that TPMs do not carry.
// What is fetched is no more than what a machine sends: it joins, and never is an
// anchor. Where it cannot be had, the source cannot tell.
//
// A machine chooses which certificates it sends, and may send none: it is then not
// listed. So the source says who is welcome. Under a deny rule it keeps out only
// who has to send that certificate, since an allow rule asks for one as well.
//
// How certificates are read from files stands at [Config], what makes an EK
// certificate vouch for its TPM at [Source.Check].
//
// To read the package, in this order:
//
//   - ekca.go, config.go: what it is, and what is configured;
//   - refresh.go, files.go, parse.go: from files to certificates, again when they
//     change;
//   - authorities.go: the anchors, indexed by name.go and linked to each other;
//   - answer.go: an attestation, from its evidence to the verdict;
//   - search.go, rules.go: which chains there are, and which certificates may be
//     in one; attributes.go: what a certificate says of its TPM;
//   - inquiry.go, aia.go, issuers.go, proofs.go: issuers that are fetched;
//     revocation.go: CRLs; services.go, reply.go: EK certificates; store.go: where
//     all of them are kept.
package ekca

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
)

// Source is a set of authorities. It is safe for concurrent use.
type Source struct {
	paths    []location
	interval time.Duration
	now      func() time.Time

	// store has what is fetched; nil where nothing is. services have EK
	// certificates.
	store       *certfetch.Fetcher
	storeLoaded atomic.Bool
	services    []ekService
	// fetches is whether what certificates name is fetched.
	fetches bool
	crl     CRLMode

	// state is what the last successful Load loaded, nil before it. It is
	// never changed, only replaced.
	state atomic.Pointer[state]
	// confirmed is when the files were last found to be what state holds.
	confirmed atomic.Pointer[time.Time]
}

// location is a configured path with the name of its bundle, which is empty for
// Config.CAPath.
type location struct {
	bundle string
	path   string
}

// state is what one successful Load has loaded.
type state struct {
	authorities *authorities
	// seen is what the files were, files what they held.
	seen   fileSet
	files  []caFile
	status sources.Status
	// failed is why configured paths could not be read: what they held before is
	// among files.
	failed error
}

var errNotLoaded = errors.New("no CA certificates have been loaded yet")

// New checks the configuration and returns the source. It opens nothing: the
// first Load does.
func New(cfg Config) (*Source, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Source{
		paths: locations(cfg), interval: cfg.PollInterval, now: cfg.Now,
		services: ekServices(cfg.EKCertificateURLs), fetches: len(cfg.AIAHosts) > 0, crl: cfg.CRL,
	}
	if s.interval == 0 {
		s.interval = DefaultPollInterval
	}
	if s.now == nil {
		s.now = time.Now
	}
	var err error
	if s.store, err = newStore(cfg, s.now); err != nil {
		return nil, err
	}
	return s, nil
}

// Check implements sources.Source.
//
// The TPM is listed when ev.Certificate, or the certificate for ev.EK that one of
// Config.EKCertificateURLs has where the machine has sent none, can be read and
//
//   - is an X.509 v3 certificate that is valid now, is not a CA's, and is meant
//     for an EK as far as it says (TCG EK Credential Profile 2.5, 3.2): where
//     there is a key usage it has keyEncipherment or keyAgreement, where there is
//     an extended key usage it has tcg-kp-EKCertificate (2.23.133.8.1) or
//     anyExtendedKeyUsage;
//   - has no critical extension other than those that are processed here (RFC
//     5280, 4.2);
//   - is joined to a configured CA certificate by a chain of at most 8 CA
//     certificates, the configured one among them, in which each is named by the
//     one below as its issuer (RFC 5280, 7.1), has signed it with SHA-256 or
//     stronger, is valid now, may sign certificates, and allows a chain of that
//     length;
//   - is joined in that way by certificates that no CRL lists, as Config.CRL has
//     it.
//
// The chain is made of configured certificates and of those that the machine has
// sent. Only where these give none, certificates join it that are at the URLs of
// the caIssuers (RFC 5280, 4.2.2.1) of those below, if their hosts are among
// Config.AIAHosts.
//
// It is not listed where there is no certificate or no such chain, and where it
// has been revoked. It cannot be told
//
//   - before the first successful Load;
//   - if it would be listed once its certificate, or the certificate of a CA above it,
//     becomes valid, within 5 minutes: a clock may be wrong;
//   - where ev is Incomplete;
//   - where the certificate is not the EK's;
//   - where the chain is so tangled that more than 32 signatures would have to be
//     verified, or more than 24 certificates and CRLs looked up;
//   - where no chain is found, and an allowed URL that should have led to one does
//     not answer, or with something else than what has signed the certificate
//     below;
//   - where no service has a certificate, and one that might does not answer, or
//     with one of another key.
//
// Check reads no file, takes no lock that is held while something is waited for,
// and asks nobody: it answers from what is configured, what was sent and what is
// kept of what was fetched before, failures included. Where something has not
// been asked for yet, the error is sources.ErrNeedsNetwork. It verifies one
// signature for each certificate of the chain below the first one that is
// configured or was fetched, whatever the number of configured ones.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return s.answer(ctx, ev, false)
}

// Fetch implements sources.Fetcher: it answers as Check does, and asks for what is
// missing. It makes at most 8 requests, besides one to each service for EK
// certificates where the machine has sent none; attestations that wait for the
// same URL share one. Where ctx has a deadline, each may take half of what is left
// until then, and 5 seconds at least. Nothing is asked for a certificate that could
// not vouch whoever has issued it.
func (s *Source) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return s.answer(ctx, ev, true)
}

// Status implements sources.Reporter. Entries is the number of different
// configured CA certificates that were valid when they were loaded. A warning says
// which of them expire within 30 days, and why Config.CachePath cannot be read or
// written.
func (s *Source) Status() sources.Status {
	st := s.state.Load()
	if st == nil {
		return sources.Status{}
	}
	status := st.status
	status.Warnings = slices.Concat(status.Warnings, st.authorities.warnings(s.now()), s.storeWarnings())
	if at := s.confirmed.Load(); at != nil {
		status.Confirmed = *at
	}
	return status
}
