package certs

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// ErrUndecided is the error that Find returns when it is done if Request.Everything is set.
var ErrUndecided = errors.New("everything was looked up, and nothing was decided")

// A Named is what a certificate names, and what was found.
type Named struct {
	// Kind is Issuer or List: the certificates of its issuer, or the CRLs for it.
	Kind Kind
	// By is the certificate that names them.
	By *x509.Certificate
	// Had is true if there is an issuer, configured or fetched, or a current CRL.
	Had bool
	// Faults say why some or all of the URLs cannot be used. If Had is false and there are no
	// Faults, no URL leads to the issuer, or no issuer is known with which to verify a CRL.
	Faults []error
}

// everything wants all that the leaf and the certificates above it name: the issuers, up to
// self-signed ones, and then the CRLs, since a CA further up may issue one.
//
// The number of signatures is not limited: the anchors may be from files of machines, and forged
// certificates among them must not use up a limit.
func (s *search) everything() (Result, error) {
	s.lookups, s.v.left = MaxChain*maxLookups, math.MaxInt
	var all []Named
	var listed []*node // whose CRLs are looked up
	nodes := []*node{s.leaf}
	for i := 0; i < len(nodes); i++ {
		n := nodes[i]
		if s.v.selfSigned(n) {
			continue
		}
		named := s.namedIssuers(n)
		all = append(all, named)
		if len(n.cert.CRLDistributionPoints) > 0 && (named.Had || len(named.Faults) == 0) {
			listed = append(listed, n)
		}
		for _, issuer := range n.issuers {
			if !slices.Contains(nodes, issuer) {
				nodes = append(nodes, issuer)
			}
		}
	}
	if len(s.wants) == 0 && s.r.CRLs != "" && s.r.CRLs != CRLOff {
		for _, n := range listed {
			all = append(all, s.namedCRLs(n))
		}
	}
	if len(s.wants) > 0 {
		return Result{Wants: s.wants}, nil
	}
	return Result{Named: all}, ErrUndecided
}

// namedIssuers looks up the issuers of n, among the configured CAs and at all URLs.
func (s *search) namedIssuers(n *node) Named {
	urls, faults := s.allowed(n.cert.IssuingCertificateURL)
	named := Named{Kind: Issuer, By: n.cert, Faults: faults}
	var found issuers
	for by := range s.all.candidates(n) {
		found = append(found, by.certs...)
	}
	for _, url := range urls {
		fetched, _ := s.lookNamed(s.wantIssuersOf(n, url), &named).(issuers)
		found = append(found, fetched...)
	}
	for _, issuer := range found {
		s.adopt(n, s.add(issuer))
	}
	n.issuers = n.parents
	if named.Had = len(n.issuers) > 0; named.Had && len(urls) == 0 {
		named.Faults = nil // what is configured need not be fetched
	}
	return named
}

// lookNamed looks up what is named. It returns the value, or adds a want or a fault.
func (s *search) lookNamed(w Want, named *Named) any {
	answer, ok := s.look(w)
	switch {
	case !ok:
		s.wants = append(s.wants, w)
	case answer.Value == nil:
		named.Faults = append(named.Faults, orNothing(answer.Err))
	}
	return answer.Value
}

// wantIssuersOf returns the Want for the issuers of n at a URL. Read refuses an answer in which no
// certificate has signed n, or only expired ones have.
func (s *search) wantIssuersOf(n *node, url string) Want {
	want := s.wantIssuers(url)
	// A CA of both EKs and DevIDs may be acceptable for only one of the two kinds of leaves.
	want.Scope = hex.EncodeToString(n.sum[:]) + " " + s.r.Profile.name
	read := want.read
	want.read = func(body []byte) (any, time.Time, error) {
		value, until, err := read(body)
		if err != nil {
			return nil, time.Time{}, err
		}
		fetched, _ := value.(issuers)
		err = errors.New("it exists, but did not sign the certificate that names it")
		v := verifier{left: len(fetched), memo: s.r.Verified}
		for _, by := range fetched {
			switch {
			case !v.issued(n, by):
			case s.now.After(by.cert.NotAfter):
				err = fmt.Errorf("it exists, but expired on %s: its CA has to publish a new one",
					by.cert.NotAfter.UTC().Format(time.DateOnly))
			default:
				return value, until, nil
			}
		}
		return nil, time.Time{}, err
	}
	return want
}

// namedCRLs looks up the CRLs for n at all URLs that it names.
func (s *search) namedCRLs(n *node) Named {
	named := Named{Kind: List, By: n.cert}
	if len(n.issuers) == 0 {
		return named
	}
	r := revocation{search: s}
	var points []crlPoint
	for i, ca := range n.issuers {
		same := func(other *node) bool { return other.signer.keyHash == ca.signer.keyHash }
		if slices.IndexFunc(n.issuers, same) < i {
			continue
		}
		of, faults := r.points(n, ca.signer)
		points, named.Faults = append(points, of...), append(named.Faults, faults...)
	}
	for _, p := range points {
		list, had := s.lookNamed(r.wantCRL(p, n.cert), &named).(*CRL)
		if !had {
			continue
		}
		if err := list.fault(s.now); err != nil {
			named.Faults = append(named.Faults, fmt.Errorf("%q: %w", p.url, err))
			continue
		}
		named.Had = true
	}
	return named
}
