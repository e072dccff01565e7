package certs

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/crl"
)

// A revocation determines which certificates of a search have been revoked.
type revocation struct {
	*search
	known map[issuance]state
	// revoked names the first certificate that was found to be revoked.
	revoked string
	// unchecked names the certificates that count although it is not known whether they have been
	// revoked, and says why it is not.
	unchecked []string
}

// An issuance is a certificate and a CA that has signed it.
type issuance struct {
	cert   *node
	issuer *signer
}

// A state is what is known about whether a certificate has been revoked.
type state int

const (
	broken  state = iota // it has been revoked, or is treated as revoked
	good                 // it counts
	pending              // a CRL is wanted
)

// unrevoked returns the chain of certificates that have not been revoked, or why there is none.
func (s *search) unrevoked() (Result, error) {
	r := revocation{search: s, known: make(map[issuance]state)}
	found := s.climb(func(n, issuer *node) bool { return r.state(n, issuer.signer) == good })
	switch {
	case s.complete(found), found != nil && len(s.wants) == 0:
		found.Unchecked = strings.Join(r.unchecked, "; ")
		return Result{Chain: found}, nil
	case len(s.wants) > 0:
		// The CRLs further up may be looked up at the same time.
		s.climb(func(n, issuer *node) bool { return r.state(n, issuer.signer) != broken })
		return Result{Wants: s.wants}, nil
	}
	if err := errors.Join(s.failures...); err != nil {
		return Result{}, fmt.Errorf("check for revocation: %w", err)
	}
	return Result{Why: r.revoked}, nil
}

// state returns what is known about a certificate from one of its issuers.
func (r *revocation) state(n *node, issuer *signer) state {
	key := issuance{n, issuer}
	known, ok := r.known[key]
	if !ok {
		known = r.ask(n, issuer)
		r.known[key] = known
	}
	return known
}

// ask looks up the CRLs at the certificate's distribution points, in their order, until it is known
// whether the certificate is revoked (RFC 5280, 6.3). All other available CRLs of the same CAs are
// taken into account as well.
func (r *revocation) ask(n *node, issuer *signer) state {
	points, faults := r.points(n, issuer)
	kept := r.kept(n, issuer, points)
	var asked []heldList
	for _, p := range points {
		want := r.wantCRL(p, n.cert)
		answer, ok := r.look(want)
		if !ok { // later points are used only when this one is known
			r.wants = append(r.wants, want)
			return pending
		}
		list, err := r.list(answer, p, n)
		if list == nil && answer.NotAsked { // it is not known whether there is a CRL
			r.failures = append(r.failures, fmt.Errorf("the CRL at %q: %w", p.url, err))
			return broken
		}
		if list != nil {
			asked = append(asked, heldList{list, p.url, err == nil})
		}
		by, older := weigh(slices.Concat(asked, kept), n.issuer, n.cert.SerialNumber)
		if err = cmp.Or(err, older); by != nil {
			return r.revoke(n, by)
		}
		if err == nil {
			return good
		}
		faults = append(faults, fmt.Errorf("the CRL at %q: %w", p.url, err))
	}
	if len(points) == 0 {
		if by, _ := weigh(kept, n.issuer, n.cert.SerialNumber); by != nil {
			return r.revoke(n, by)
		}
	}
	return r.pass(n, errors.Join(faults...))
}

// revoke records that a list revokes a certificate.
func (r *revocation) revoke(n *node, by *heldList) state {
	if r.revoked == "" {
		r.revoked = fmt.Sprintf("%s has been revoked, according to the CRL at %q", r.describe(n), by.url)
	}
	return broken
}

// pass decides about a certificate if it is not known whether it has been revoked.
func (r *revocation) pass(n *node, why error) state {
	if why == nil {
		why = errors.New("it names no CRL")
	}
	if r.r.CRLs == CRLRequired {
		r.failures = append(r.failures, fmt.Errorf("%s: %w", r.describe(n), why))
		return broken
	}
	text := strings.ReplaceAll(why.Error(), "\n", "; ")
	r.unchecked = append(r.unchecked, fmt.Sprintf("whether %s is revoked is not known: %s", r.describe(n), text))
	return good
}

// describe names a certificate for people.
func (s *search) describe(n *node) string {
	if n.signer == nil {
		return "the " + s.r.Profile.name
	}
	return "the certificate of the CA " + describe(n.cert.Subject)
}

// A heldList is a CRL for one certificate, from a CA that may issue it.
type heldList struct {
	*CRL
	url string
	// clears is true if the list can show that the certificate is good.
	clears bool
}

// weigh compares the CRLs for a certificate; issuer is the canonical form of the name of its
// issuer. It returns a list that revokes the certificate. If there is none, older says why no list
// shows that the certificate is good although some could: each of those was issued before another
// list.
//
// A list that revokes the certificate is overruled only by a newer list that can show that a
// certificate is good. A revocation counts at any age, by any clock, and even if the CA certificate
// does not allow signing CRLs, since the machine chooses which certificate of the CA is used.
func weigh(lists []heldList, issuer string, serial *big.Int) (by *heldList, older error) {
	var clearing []heldList
	for _, l := range lists {
		if !l.clears || l.Lists(issuer, serial) {
			continue
		}
		if at := slices.IndexFunc(lists, func(o heldList) bool { return l.Before(o.List) }); at >= 0 {
			older = fmt.Errorf("it was issued on %s, before the one from %q", l.issued(), lists[at].url)
			continue
		}
		clearing = append(clearing, l)
	}
	for i, l := range lists {
		overruled := slices.ContainsFunc(clearing, func(c heldList) bool { return l.Before(c.List) })
		if l.Lists(issuer, serial) && !overruled {
			return &lists[i], nil
		}
	}
	if len(clearing) > 0 {
		return nil, nil
	}
	return nil, older
}

var errSomeReasons = errors.New("its distribution point is for some reasons only")

// A crlPoint is the URL of a CRL for a certificate, and the CA that issues the CRL.
type crlPoint struct {
	url    string
	issuer *signer
	// indirect is true if the CRL is issued by a CA other than the certificate's issuer.
	indirect bool
	// some is true if it is for some reasons only.
	some bool
}

// points returns the places of CRLs for a certificate of issuer that may be requested and can be
// used, and why others cannot.
func (r *revocation) points(n *node, issuer *signer) (points []crlPoint, faults []error) {
	all, err := crl.PointsOf(n.cert)
	if err != nil {
		return nil, []error{err}
	}
	for _, p := range all {
		signers, indirect := []*signer{issuer}, false
		if name := canonical(p.Issuer); p.Issuer != nil && name != issuer.subject {
			if signers, indirect = r.crlIssuers(n, name), true; len(signers) == 0 {
				faults = append(faults, fmt.Errorf("its CRL is issued by %s, which is no configured CA and not in the "+
					"chain: add the certificate of that CA to the CA files", describeRaw(p.Issuer)))
				continue
			}
		}
		urls, refused := r.allowed(p.URLs)
		switch {
		case r.r.Everything:
			faults = append(faults, refused...)
		case len(urls) == 0:
			faults = append(faults, fmt.Errorf("it names no CRL on an allowed host: %.200q", p.URLs))
		}
		for _, url := range urls {
			for _, s := range signers {
				if len(points) < MaxURLs {
					points = append(points, crlPoint{url, s, indirect, p.SomeReasons})
				}
			}
		}
	}
	return points, faults
}

// crlIssuers returns the CAs with a name that may issue the CRL for a certificate of another CA:
// those above the certificate, and configured ones. RFC 5280, 6.3.3 (f) requires that their chains
// end at the same anchor as the certificate's.
func (s *search) crlIssuers(n *node, name string) []*signer {
	var found []*signer
	for _, ca := range n.above() {
		if by := ca.signer; by.subject == name && !slices.Contains(found, by) {
			found = append(found, by)
		}
	}
	for _, by := range s.all.byName[name] {
		if !slices.Contains(found, by) {
			found = append(found, by)
		}
	}
	return found
}

// kept returns the available CRLs for a certificate, from any URL, of its issuer and of the CAs at
// its distribution points.
func (r *revocation) kept(n *node, issuer *signer, points []crlPoint) []heldList {
	whose := []crlPoint{{issuer: issuer}}
	for _, p := range points {
		if p.indirect && !slices.ContainsFunc(whose, func(w crlPoint) bool { return w.issuer == p.issuer }) {
			whose = append(whose, crlPoint{issuer: p.issuer, indirect: true})
		}
	}
	var lists []heldList
	for _, p := range whose {
		unfit := p.issuer.faultOfCRLs(r.now, p.indirect)
		for _, k := range r.r.Hand.CRLs(r.wantCRL(p, nil)) {
			list, ok := k.Value.(*CRL)
			if !ok || list.faultFor(n.cert, p) != nil ||
				unfit != nil && !list.Lists(n.issuer, n.cert.SerialNumber) {
				continue
			}
			some := slices.ContainsFunc(points, func(p crlPoint) bool { return p.some && p.url == k.URL })
			lists = append(lists, heldList{list, k.URL, unfit == nil && !some && list.Current(r.now)})
		}
	}
	return lists
}

// list returns the CRL for a certificate from a point. If it also returns an error, that says why
// the CRL cannot clear the certificate.
func (r *revocation) list(a Answer, p crlPoint, n *node) (*CRL, error) {
	list, ok := a.Value.(*CRL)
	if !ok {
		return nil, orNothing(a.Err)
	}
	if err := list.faultFor(n.cert, p); err != nil {
		return nil, err
	}
	listed := list.Lists(n.issuer, n.cert.SerialNumber)
	unfit := p.issuer.faultOfCRLs(r.now, p.indirect)
	switch {
	case unfit != nil && !listed:
		return nil, unfit
	case unfit != nil:
		return list, unfit
	case a.NotAsked && !list.Current(r.now) && !listed:
		return nil, fmt.Errorf("the cached one is out of date, and nothing is known of a newer one: %w", a.Err)
	case list.NextUpdate.IsZero() && a.Err != nil:
		return list, fmt.Errorf("it is too old, and there is no newer one: %w", a.Err)
	case p.some:
		return list, errSomeReasons
	}
	err := list.fault(r.now)
	return list, err
}

// wantCRL returns the Want for the CRL at a point. If c is not nil, the CRL must be for that
// certificate, and the scope contains everything about it that faultFor depends on. So nothing else
// that the same key has signed, for other certificates or under another name, can be used in place
// of the CRL.
func (r *revocation) wantCRL(p crlPoint, c *x509.Certificate) Want {
	w := Want{Kind: List, URL: p.url, CA: digest(p.issuer.keyHash, p.issuer.subject)}
	if c != nil {
		w.Scope = digest(slices.Concat(
			[]string{strconv.FormatBool(c.IsCA), strconv.FormatBool(p.indirect)}, c.CRLDistributionPoints,
		)...)
	}
	now := r.r.Now
	w.read = func(body []byte) (any, time.Time, error) {
		list, err := readCRL(body)
		switch {
		case err != nil:
		case c != nil:
			err = list.faultFor(c, p)
		default:
			err = list.faultBy(p)
		}
		if err != nil {
			return nil, time.Time{}, err
		}
		list.read = now
		until := list.until(now)
		return list, until, nil
	}
	return w
}

// digest returns a hash of the parts. Different parts have different hashes.
func digest(parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d %s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// faultOfCRLs returns an error if the CRLs of a CA cannot clear any certificate: the CA may not
// sign them (RFC 5280, 4.2.1.3) or, if it is not the issuer of the certificate, whose dates are
// checked elsewhere, it has no certificate that is valid.
func (s *signer) faultOfCRLs(now time.Time, indirect bool) error {
	if !slices.ContainsFunc(s.certs, func(n *node) bool {
		return !has(n.cert, keyUsage) || n.cert.KeyUsage&x509.KeyUsageCRLSign != 0
	}) {
		return errors.New("its issuer may not sign CRLs: its key usage has no cRLSign")
	}
	if indirect && !slices.ContainsFunc(s.certs, func(n *node) bool { return faultOfDates(n.cert, now) == "" }) {
		return errors.New("the certificate of its issuer " + faultOfDates(s.certs[0].cert, now))
	}
	return nil
}
