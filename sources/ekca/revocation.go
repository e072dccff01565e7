package ekca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
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
		return nil, "", fmt.Errorf("check whether the EK certificate has been revoked: %w", err)
	}
	if s.complete(found) || found != nil && !q.pending {
		return found, "", nil
	}
	if err := q.err(); err != nil {
		return nil, "", fmt.Errorf("check for revocation: %w", err)
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
		list, err := r.list(ctx, url, n, issuer)
		switch {
		case errors.Is(err, sources.ErrNeedsNetwork):
			r.q.pending = true // whatever a later one says: the first that can be had answers
			return false
		case errors.Is(err, errLookups), errors.Is(err, errRequests), errors.Is(err, certfetch.ErrNotAsked):
			r.q.fail(fmt.Errorf("the CRL at %q: %w", url, err)) // whether there is one, nobody knows
			return false
		case list != nil && list.Lists(n.cert.SerialNumber): // however old it is
			if r.revoked == "" {
				r.revoked = fmt.Sprintf("%s has been revoked, according to the CRL at %q", n.describe(), url)
			}
			return false
		case err == nil:
			err = list.fault(r.now)
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
		faults = []error{errors.New("it has no CRL distribution point on an allowed host")}
	}
	r.q.fail(fmt.Errorf("%s: %w", n.describe(), errors.Join(faults...)))
	return false
}

// describe names a certificate for people.
func (n *node) describe() string {
	if n.signer == nil {
		return "the EK certificate"
	}
	return "the certificate of the CA " + describe(n.cert.Subject)
}

// list returns the CRL for a certificate of issuer that an allowed URL has. One
// beside an error is too old to say that the certificate is good.
func (r *revocation) list(ctx context.Context, url string, n *node, issuer *signer) (*revocationList, error) {
	parse := func(body []byte) (any, time.Time, error) {
		list, err := parseCRL(body)
		if err == nil {
			err = list.faultFor(n.cert, issuer)
		}
		if err != nil {
			return nil, time.Time{}, err
		}
		list.read = r.now
		until := list.until(r.now)
		return list, until, nil
	}
	object, err := r.q.lookUp(ctx, crlsFor(n.cert, issuer), url, parse)
	if err != nil {
		return nil, err
	}
	list, ok := object.Value.(*revocationList)
	switch {
	case !ok:
		return nil, errors.New("it is not a CRL")
	case !issuer.maySignCRLs():
		return nil, errors.New("its issuer may not sign CRLs: its key usage has no cRLSign")
	case errors.Is(object.Stale, certfetch.ErrNotAsked) && !list.Current(r.now) && !list.Lists(n.cert.SerialNumber):
		return nil, fmt.Errorf("the cached one is out of date, and nothing is known of a newer one: %w", object.Stale)
	case list.NextUpdate.IsZero() && object.Stale != nil:
		return list, fmt.Errorf("it is too old, and there is no newer one: %w", object.Stale)
	}
	return list, nil
}

// crlsFor returns the kind of the CRLs that can be for a certificate: all that
// faultFor looks at is in it. What else the same key has signed, for other
// certificates or under another name, cannot take the place of one of these.
func crlsFor(c *x509.Certificate, issuer *signer) certfetch.Kind {
	h := sha256.New()
	for _, part := range slices.Concat(
		[]string{issuer.keyHash, issuer.subject, strconv.FormatBool(c.IsCA)}, c.CRLDistributionPoints,
	) {
		fmt.Fprintf(h, "%d %s", len(part), part)
	}
	return certfetch.CRL.Of(hex.EncodeToString(h.Sum(nil)))
}

// maySignCRLs reports whether a CA may (RFC 5280, 4.2.1.3).
func (s *signer) maySignCRLs() bool {
	return slices.ContainsFunc(s.certs, func(n *node) bool {
		return !has(n.cert, keyUsage) || n.cert.KeyUsage&x509.KeyUsageCRLSign != 0
	})
}

// A revocationList is a CRL that has been fetched.
type revocationList struct {
	*crl.List
	issuer string // the canonical form of its name
	read   time.Time
}

// parseCRL reads a CRL in DER, or in PEM.
func parseCRL(body []byte) (*revocationList, error) {
	if bytes.HasPrefix(body, []byte(pemBegin)) {
		block, rest := pem.Decode(body)
		if block == nil || block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, errors.New("it is not a single CRL in PEM")
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
	case l.NextUpdate.Before(now), now.Before(l.ThisUpdate):
		return now.Add(overdueAge)
	case l.NextUpdate.Sub(now) > maxCRLAge:
		return now.Add(maxCRLAge)
	}
	return l.NextUpdate
}

// Current implements certfetch.Dated. A list that does not say when the next one is due
// is asked for anew each day, and is not current beyond that.
func (l *revocationList) Current(now time.Time) bool {
	return !l.NextUpdate.IsZero() && l.fault(now) == nil
}

// Succeed implements certfetch.Successor: an older list, which somebody on the way
// may have kept, does not take the place of a newer one. One from the future, by a CA
// whose clock was ahead, keeps nothing out.
func (l *revocationList) Succeed(held any) error {
	before, ok := held.(*revocationList)
	if !ok || before.ThisUpdate.After(l.read) || !l.Before(before.List) {
		return nil
	}
	return fmt.Errorf("a CRL from %s, older than the cached one from %s",
		l.ThisUpdate.UTC().Format(time.RFC3339), before.ThisUpdate.UTC().Format(time.RFC3339))
}

// faultFor returns why the list is not one for a certificate of issuer, or nil.
func (l *revocationList) faultFor(c *x509.Certificate, issuer *signer) error {
	switch {
	case l.issuer != issuer.subject:
		return errors.New("it is from another issuer")
	case !l.SignedBy(issuer.certs[0].cert, issuer.keyHash):
		return errors.New("it is not signed by its issuer")
	case !l.Covers(c.IsCA, c.CRLDistributionPoints):
		return errors.New("it is not for this certificate")
	}
	return nil
}

// fault returns why the list cannot say that a certificate is good, or nil.
func (l *revocationList) fault(now time.Time) error {
	switch {
	case now.Before(l.ThisUpdate):
		return fmt.Errorf("it is not valid before %s", l.ThisUpdate.UTC().Format(time.RFC3339))
	case !l.NextUpdate.IsZero() && now.After(l.NextUpdate):
		return fmt.Errorf("it expired on %s", l.NextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}
