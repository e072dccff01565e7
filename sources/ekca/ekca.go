// Package ekca is a source that knows a TPM by the authority that issued its EK
// certificate.
//
// A TPM is listed if its EK certificate chains to a CA certificate that the operator has
// configured. Every configured CA certificate is a trust anchor, even that of an intermediate CA.
// Certificates that the attesting machine sends may link its EK certificate to an anchor but are
// never anchors.
//
// With [Config.AIAHosts], the issuers that certificates name are fetched from these hosts, and so
// are their CRLs if [Config.CRL] says so. With [Config.EKCertificateURLs], EK certificates that
// TPMs do not carry are fetched as well. What is fetched has the same standing as what a machine
// sends: it may link certificates but is never an anchor. If it cannot be fetched, the source
// cannot tell.
//
// A machine chooses which certificates it sends, and may send none; then it is not listed. So this
// source is for saying who is admitted. Under a deny rule it keeps out only those machines that
// must send the certificate because an allow rule needs it, too.
//
// Package truststore manages the CA files, the chains and what is fetched. This package determines
// which certificate is the EK's (here and in services.go) and what it says (attributes.go).
package ekca

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
)

// Source is a set of authorities. It is safe for concurrent use.
type Source struct {
	*truststore.Store
	now      func() time.Time
	services []service
}

// New checks the configuration and returns the source. It opens nothing: the
// first Load does.
func New(cfg Config) (*Source, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	store, err := truststore.New(cfg.store(), certs.EK())
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what it is
	}
	s := &Source{Store: store, now: cfg.Now, services: services(cfg.EKCertificateURLs)}
	if s.now == nil {
		s.now = time.Now
	}
	return s, nil
}

// Check implements sources.Source: see truststore.Store.Check.
//
// The TPM is listed if [certs.Find] finds a chain by the profile [certs.EK] for ev.Certificate, or,
// if the machine has sent none, for the certificate of ev.EK from one of Config.EKCertificateURLs.
//
// It is not listed if there is no certificate or no chain, or if the certificate has been revoked.
// Check cannot tell
//
//   - before the first successful Load;
//   - if ev is Incomplete;
//   - if the certificate is not the EK's;
//   - if Find cannot tell;
//   - if no service has a certificate, and one that might does not answer, or
//     answers with one of another key.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return s.Store.Check(ctx, s.question(ev))
}

// Fetch implements sources.Fetcher: see truststore.Store.Fetch.
func (s *Source) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return s.Store.Fetch(ctx, s.question(ev))
}

func (s *Source) question(ev *sources.Evidence) truststore.Question {
	return truststore.Question{
		Leaf: func(hand certs.Hand) (*x509.Certificate, string, []certs.Want, error) {
			cert, why, wants, err := s.certificate(ev, hand)
			if cert != nil && err == nil && !certs.SameKey(cert.PublicKey, ev.EK) {
				return nil, "", nil, errors.New("the key in the EK certificate is not the EK")
			}
			return cert, why, wants, err
		},
		Sent:       ev.Chain,
		Attributes: attributes,
	}
}

// ErrIncomplete is the error of Check for evidence that is Incomplete.
var ErrIncomplete = errors.New("the machine's certificates were not kept while it answered its challenge: " +
	"too many machines with many certificates are attesting at the same time")

// certificate returns the EK certificate that the machine has sent or that a service has, or the
// reason why there is none.
func (s *Source) certificate(
	ev *sources.Evidence, hand certs.Hand,
) (cert *x509.Certificate, why string, wants []certs.Want, err error) {
	switch {
	case ev.Incomplete:
		return nil, "", nil, ErrIncomplete
	case ev.Certificate == nil:
		return s.fromServices(ev.EK, hand)
	}
	if cert, err = attestor.ParseEKCertificate(ev.Certificate); err != nil {
		why = "the EK certificate that the machine has sent cannot be read: " + err.Error()
		return nil, why, nil, nil //nolint:nilerr // a fact about the machine, and no failure
	}
	return cert, "", nil, nil
}
