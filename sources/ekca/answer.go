package ekca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// errIncomplete is the error for evidence whose certificates were not kept.
var errIncomplete = errors.New("the machine's certificates were not kept while it answered its challenge: " +
	"too many machines with many certificates are attesting at the same time")

// answer is Check, or Fetch with network.
func (s *Source) answer(ctx context.Context, ev *sources.Evidence, network bool) (sources.Verdict, error) {
	st := s.state.Load()
	if st == nil {
		return sources.Verdict{}, errNotLoaded
	}
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, fmt.Errorf("verify the EK certificate: %w", err)
	}
	cert, why, err := s.certificate(ctx, ev, network)
	switch {
	case err != nil:
		return sources.Verdict{}, err
	case cert == nil:
		return sources.Verdict{Reason: why}, nil
	case !sameKey(cert.PublicKey, ev.EK):
		return sources.Verdict{}, errors.New("the key in the EK certificate is not the EK")
	}
	now := s.now()
	at := now
	if soon(cert.NotBefore, now) {
		at = cert.NotBefore // to know whether it is worth waiting for
	}
	if why := faultOfEK(cert, at); why != "" {
		return sources.Verdict{Reason: "the EK certificate " + why}, nil
	}
	found, why, err := s.vouch(ctx, newSearch(st.authorities, cert, at), ev.Chain, s.inquiry(network))
	switch {
	case err != nil:
		return sources.Verdict{}, err
	case found == nil:
		return sources.Verdict{Reason: why}, nil
	case at != now:
		return sources.Verdict{}, errEarly("the EK certificate", cert.NotBefore, now)
	}
	return sources.Verdict{
		Listed:    true,
		Reason:    found.reason(cert, now),
		Unchecked: found.unchecked,
		Attributes: sources.Attributes{
			CAs:         found.bundles,
			Certificate: attributes(cert, found.issuer),
		},
	}, nil
}

// certificate returns the EK certificate that the machine has sent, or that a
// service has, or why there is none.
func (s *Source) certificate(
	ctx context.Context, ev *sources.Evidence, network bool,
) (cert *x509.Certificate, why string, err error) {
	switch {
	case ev.Incomplete:
		return nil, "", errIncomplete
	case ev.Certificate != nil:
		if cert, err = attestor.ParseEKCertificate(ev.Certificate); err != nil {
			why = "the EK certificate that the machine has sent cannot be read: " + err.Error()
			return nil, why, nil //nolint:nilerr // a fact about the machine, and no failure
		}
		return cert, "", nil
	}
	cert, err = s.fromServices(ctx, ev.EK, network)
	switch {
	case err != nil || cert != nil:
		return cert, "", err
	case len(s.services) > 0:
		return nil, "there is no EK certificate, and no service has one for the EK", nil
	}
	return nil, "there is no EK certificate", nil
}

// inquiry begins one; nil where nothing that certificates name is fetched.
func (s *Source) inquiry(network bool) *inquiry {
	if !s.fetches {
		return nil
	}
	return &inquiry{store: s.store, network: network}
}

// vouch returns who vouches, or why nobody does.
func (s *Source) vouch(
	ctx context.Context, search *search, sent [][]byte, q *inquiry,
) (*finding, string, error) {
	found, err := search.configured(ctx, sent)
	if err == nil && found == nil && q != nil {
		found, err = search.fetch(ctx, q)
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("find the issuers of the EK certificate: %w", ctx.Err())
	}
	if err != nil {
		return nil, "", err
	}
	if !search.complete(found) {
		// An answer that may be incomplete only for now is none: selectors
		// depend on what can be had and not on when.
		if err := q.err(); err != nil && (found == nil || q.pending) {
			return nil, "", fmt.Errorf("find the issuers of the EK certificate: %w", err)
		}
	}
	if found == nil {
		why, err := search.whyNot(q)
		return nil, why, err
	}
	if q == nil || s.crl == "" || s.crl == CRLOff {
		return found, "", nil
	}
	// What failures might have added is not missed. Who was waited for counts
	// anew: so far it was also for URLs that may be the machine's own.
	q.failures, q.waited = nil, nil
	return search.unrevoked(ctx, s.crl, q)
}

// reason says for people who has vouched for cert.
func (f *finding) reason(cert *x509.Certificate, now time.Time) string {
	by := "the EK certificate by " + strconv.Quote(presentable("", cert.Issuer.CommonName)) +
		" chains to a configured CA"
	if len(f.bundles) > 0 {
		by += " in " + strings.Join(f.bundles, ", ")
	}
	if soon := expiry(cert.NotAfter, now); soon != "" {
		by += ", and " + soon
	}
	if f.unchecked != "" {
		by += ", but " + f.unchecked
	}
	return by
}

// sameKey reports whether a and b are one public key, of the kinds that an EK
// can be.
func sameKey(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		b, ok := b.(*rsa.PublicKey)
		return ok && a != nil && b != nil && a.N != nil && b.N != nil && a.Equal(b)
	case *ecdsa.PublicKey:
		b, ok := b.(*ecdsa.PublicKey)
		return ok && whole(a) && whole(b) && a.Equal(b)
	}
	return false
}

// whole reports whether k is a key, and not the zero value of one.
func whole(k *ecdsa.PublicKey) bool {
	//nolint:staticcheck // SA1019: the coordinates are looked at and not changed
	return k != nil && k.Curve != nil && k.X != nil && k.Y != nil
}
