package ekca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca/crl"
)

// How long a CRL is kept.
const (
	// maxCRLAge is how long at most.
	maxCRLAge = 7 * 24 * time.Hour
	// openCRLAge is how long where it does not say when the next one is due.
	openCRLAge = 24 * time.Hour
	// overdueCRLAge is how long where the next one is overdue.
	overdueCRLAge = time.Hour
)

// A revocation finds out which certificates of a search have been revoked.
type revocation struct {
	mode  CRLMode
	now   time.Time
	q     *inquiry
	known map[issuance]bool
	// revoked says which certificate has been, the first one that was met.
	revoked string
}

// An issuance is a certificate and one of those who have signed it.
type issuance struct {
	cert   *node
	issuer *signer
}

// unrevoked returns who vouches by certificates that have not been revoked, or why
// nobody does.
func (s *search) unrevoked(ctx context.Context, mode CRLMode, q *inquiry) (*finding, string, error) {
	r := revocation{mode: mode, now: s.now, q: q, known: make(map[issuance]bool)}
	found := s.climb(func(n, issuer *node) bool { return r.permits(ctx, n, issuer.signer) })
	if err := ctx.Err(); err != nil {
		return nil, "", fmt.Errorf("find out whether the EK certificate has been revoked: %w", err)
	}
	if s.complete(found) || found != nil && !q.pending {
		return found, "", nil
	}
	if err := q.err(); err != nil {
		return nil, "", fmt.Errorf("find out what has been revoked: %w", err)
	}
	return nil, r.revoked, nil
}

// permits reports whether a chain may go on from a certificate to its issuer, for
// all that the issuer's CRLs say.
func (r *revocation) permits(ctx context.Context, n *node, issuer *signer) bool {
	key := issuance{n, issuer}
	permitted, ok := r.known[key]
	if !ok {
		permitted = r.ask(ctx, n, issuer)
		r.known[key] = permitted
	}
	return permitted
}

// ask looks up the CRLs at the certificate's distribution points, in their order,
// until one says whether it is revoked (RFC 5280, 6.3).
func (r *revocation) ask(ctx context.Context, n *node, issuer *signer) bool {
	var faults []error
	urls := r.q.allowed(n.cert.CRLDistributionPoints)
	for _, url := range urls {
		list, err := r.list(ctx, url, issuer)
		switch {
		case errors.Is(err, sources.ErrNeedsNetwork):
			r.q.pending = true // whatever a later one says: the first that can be had answers
			return false
		case errors.Is(err, errLookups), errors.Is(err, errRequests):
			r.q.fail(err)
			return false
		case list != nil && list.lists(n.cert):
			if r.revoked == "" {
				r.revoked = fmt.Sprintf("%s has been revoked, says the CRL at %q", n.describe(), url)
			}
			return false
		case err == nil:
			err = list.fault(n.cert, r.now)
		}
		if err == nil {
			return true
		}
		faults = append(faults, fmt.Errorf("the CRL at %q: %w", url, err))
	}
	switch {
	case r.mode != CRLRequired:
		return true
	case len(urls) == 0:
		faults = []error{errors.New("it has no CRL distribution point on a host that may be asked")}
	}
	r.q.fail(fmt.Errorf("whether %s has been revoked: %w", n.describe(), errors.Join(faults...)))
	return false
}

// describe names a certificate for people.
func (n *node) describe() string {
	if n.signer == nil {
		return "the EK certificate"
	}
	return "the certificate of the CA " + describe(n.cert.Subject)
}

// list returns the CRL that an allowed URL has, signed by issuer. One beside an
// error is too old to say that a certificate is good.
func (r *revocation) list(ctx context.Context, url string, issuer *signer) (*revocationList, error) {
	parse := func(body []byte) (any, time.Time, error) {
		list, err := parseCRL(body)
		if err == nil && !list.SignedBy(issuer.certs[0].cert, issuer.keyHash) {
			err = errSignature
		}
		if err != nil {
			return nil, time.Time{}, err
		}
		until := list.until(r.now)
		return list, until, nil
	}
	object, err := r.q.lookUp(ctx, certfetch.CRL.Of(issuer.keyHash), url, parse)
	if err != nil {
		return nil, err
	}
	list, ok := object.Value.(*revocationList)
	if !ok {
		return nil, errors.New("it is no CRL")
	}
	if err := list.signedBy(issuer); err != nil {
		return nil, err
	}
	if list.NextUpdate.IsZero() && object.Stale != nil {
		return list, fmt.Errorf("it is too old, and there is no newer one: %w", object.Stale)
	}
	return list, nil
}

// A revocationList is a CRL that has been fetched.
type revocationList struct {
	*crl.List
	issuer string // the canonical form of its name
}

// parseCRL reads a CRL in DER, or in PEM.
func parseCRL(body []byte) (*revocationList, error) {
	if bytes.HasPrefix(body, []byte(pemBegin)) {
		block, rest := pem.Decode(body)
		if block == nil || block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, errors.New("it is not one CRL in PEM")
		}
		body = block.Bytes
	}
	list, err := crl.Parse(body)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what it is
	}
	return &revocationList{List: list, issuer: canonical(list.RawIssuer)}, nil
}

// until is when the next one is due, within limits.
func (l *revocationList) until(now time.Time) time.Time {
	switch {
	case l.NextUpdate.IsZero():
		return now.Add(openCRLAge)
	case l.NextUpdate.Before(now):
		return now.Add(overdueCRLAge)
	case l.NextUpdate.Sub(now) > maxCRLAge:
		return now.Add(maxCRLAge)
	}
	return l.NextUpdate
}

// signedBy returns why the list is not one of issuer's, or nil.
func (l *revocationList) signedBy(issuer *signer) error {
	if l.issuer != issuer.subject {
		return errors.New("it is of another issuer")
	}
	if !slices.ContainsFunc(issuer.certs, func(n *node) bool {
		return !has(n.cert, keyUsage) || n.cert.KeyUsage&x509.KeyUsageCRLSign != 0
	}) {
		return errors.New("its issuer may not sign CRLs: its key usage has no cRLSign")
	}
	if !l.SignedBy(issuer.certs[0].cert, issuer.keyHash) {
		return errSignature
	}
	return nil
}

var errSignature = errors.New("its signature is not its issuer's")

// covers reports whether the list is for a certificate of its issuer.
func (l *revocationList) covers(c *x509.Certificate) bool {
	return l.Covers(c.IsCA, c.CRLDistributionPoints)
}

// lists reports whether a certificate of its issuer has been revoked. A list that
// is too old to say that one is good says so as well.
func (l *revocationList) lists(c *x509.Certificate) bool {
	return l.covers(c) && l.Lists(c.SerialNumber)
}

// fault returns why the list cannot say that a certificate is good, or nil.
func (l *revocationList) fault(c *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(l.ThisUpdate):
		return fmt.Errorf("it is not valid before %s", l.ThisUpdate.UTC().Format(time.RFC3339))
	case !l.NextUpdate.IsZero() && now.After(l.NextUpdate):
		return fmt.Errorf("it has expired on %s", l.NextUpdate.UTC().Format(time.RFC3339))
	case !l.covers(c):
		return errors.New("it is not for this certificate")
	}
	return nil
}
