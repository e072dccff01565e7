// Package ekca is a source that knows a TPM by the authority that issued its EK
// certificate.
//
// A TPM is listed when its EK certificate chains to a CA certificate that the
// operator has configured. Every configured CA certificate is a trust anchor,
// one of an intermediate CA too. Certificates that the attesting machine sends
// may join its EK certificate to an anchor and never are anchors.
//
// With [Config.AIAHosts], the issuers that certificates name are fetched from
// these hosts, and their CRLs if [Config.CRL] says so; with
// [Config.EKCertificateURLs], so are the EK certificates that TPMs do not carry.
// What is fetched is no more than what a machine sends: it joins, and never is an
// anchor. If it cannot be had, the source cannot tell.
//
// A machine chooses which certificates it sends, and may send none: it is then not
// listed. So the source says who is welcome. Under a deny rule it keeps out only
// machines that have to send that certificate, because an allow rule asks for it too.
//
// Chains are found by package certs, and what is missing is fetched by certs/fetch.
// This package reads the CA files (load.go, files.go), turns evidence into a verdict
// (here), and fetches what certs wants (network.go).
package ekca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// Source is a set of authorities. It is safe for concurrent use.
type Source struct {
	cfg      Config
	paths    []location
	services []service

	// store has what is fetched; nil if nothing is.
	store       *fetch.Fetcher
	storeLoaded atomic.Bool
	// verified remembers signatures from one step of an attestation to the next.
	verified *certs.Memo

	// state is what the last successful Load loaded, nil before it. It is
	// never changed, only replaced.
	state atomic.Pointer[state]
	// confirmed is when the files were last found to be what state holds.
	confirmed atomic.Pointer[time.Time]
}

// state is what one successful Load has loaded.
type state struct {
	anchors *certs.Anchors
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
	if cfg.PollInterval == 0 {
		cfg.PollInterval = DefaultPollInterval
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	store, err := newStore(cfg)
	if err != nil {
		return nil, err
	}
	return &Source{
		cfg: cfg, paths: locations(cfg), store: store, services: services(cfg.EKCertificateURLs),
		verified: certs.NewMemo(),
	}, nil
}

// Check implements sources.Source.
//
// The TPM is listed if [certs.Find] finds a chain by the profile [certs.EK] for
// ev.Certificate, or for the certificate for ev.EK that one of Config.EKCertificateURLs
// has if the machine has sent none.
//
// It is not listed if there is no certificate or no chain, and if it has been revoked. It
// cannot be told
//
//   - before the first successful Load;
//   - if ev is Incomplete;
//   - if the certificate is not the EK's;
//   - if Find cannot tell;
//   - if no service has a certificate, and one that might does not answer, or
//     answers with one of another key.
//
// Check reads no file, takes no lock that is held while something is waited for,
// and asks nobody: it answers from what is configured, what was sent and what is
// kept of what was fetched before, failures included. If something has not
// been asked for yet, the error is sources.ErrNeedsNetwork.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	v, wants, err := s.attempt(ctx, ev, &inquiry{store: s.store, now: s.cfg.Now})
	if len(wants) > 0 {
		err = fmt.Errorf("find the issuers of the EK certificate: %w", sources.ErrNeedsNetwork)
	}
	return v, err
}

// attempt answers from what is at hand, or says what it wants beside that.
func (s *Source) attempt(
	ctx context.Context, ev *sources.Evidence, hand *inquiry,
) (sources.Verdict, []certs.Want, error) {
	st := s.state.Load()
	if st == nil {
		return sources.Verdict{}, nil, errNotLoaded
	}
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, nil, fmt.Errorf("verify the EK certificate: %w", err)
	}
	cert, why, wants, err := s.certificate(ev, hand)
	switch {
	case err != nil || len(wants) > 0:
		return sources.Verdict{}, wants, err
	case cert == nil:
		return sources.Verdict{Reason: why}, nil, nil
	case !certs.SameKey(cert.PublicKey, ev.EK):
		return sources.Verdict{}, nil, errors.New("the key in the EK certificate is not the EK")
	}
	r := certs.Request{
		Leaf: cert, Sent: ev.Chain, Anchors: st.anchors, Profile: certs.EK(), CRLs: s.cfg.CRL, Now: s.cfg.Now(),
		Verified: s.verified,
	}
	if len(s.cfg.AIAHosts) > 0 {
		r.Hand = hand
	}
	found, err := certs.Find(r)
	s.learn(found)
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("find the issuers of the EK certificate: %w", ctx.Err())
	}
	switch {
	case err != nil || len(found.Wants) > 0:
		return sources.Verdict{}, found.Wants, err
	case found.Chain == nil:
		return sources.Verdict{Reason: found.Why}, nil, nil
	}
	return sources.Verdict{
		Listed:     true,
		Reason:     reason(found.Chain, cert, r.Now),
		Unchecked:  found.Chain.Unchecked,
		Attributes: sources.Attributes{CAs: found.Chain.Bundles, Certificate: attributes(cert, found.Chain)},
	}, nil, nil
}

// errIncomplete is the error for evidence whose certificates were not kept.
var errIncomplete = errors.New("the machine's certificates were not kept while it answered its challenge: " +
	"too many machines with many certificates are attesting at the same time")

// certificate returns the EK certificate that the machine has sent, or that a service has,
// or why there is none.
func (s *Source) certificate(
	ev *sources.Evidence, hand *inquiry,
) (cert *x509.Certificate, why string, wants []certs.Want, err error) {
	switch {
	case ev.Incomplete:
		return nil, "", nil, errIncomplete
	case ev.Certificate == nil:
		return s.fromServices(ev.EK, hand)
	}
	if cert, err = attestor.ParseEKCertificate(ev.Certificate); err != nil {
		why = "the EK certificate that the machine has sent cannot be read: " + err.Error()
		return nil, why, nil, nil //nolint:nilerr // a fact about the machine, and no failure
	}
	return cert, "", nil, nil
}

// reason says for people who has vouched for cert.
func reason(c *certs.Chain, cert *x509.Certificate, now time.Time) string {
	by := "the EK certificate by " + strconv.Quote(certs.Presentable("", cert.Issuer.CommonName)) +
		" chains to a configured CA"
	if len(c.Bundles) > 0 {
		by += " in " + strings.Join(c.Bundles, ", ")
	}
	if soon := certs.Expiry(cert.NotAfter, now); soon != "" {
		by += ", and " + soon
	}
	if c.Unchecked != "" {
		by += ", but " + c.Unchecked
	}
	return by
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
	status.Warnings = slices.Concat(status.Warnings, shorten(st.anchors.Expiring(s.cfg.Now())), s.storeWarnings())
	if at := s.confirmed.Load(); at != nil {
		status.Confirmed = *at
	}
	return status
}
