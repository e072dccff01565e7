package certs

import (
	"crypto/x509"
	"fmt"
	"strings"
	"time"
)

// maxIssuers is the number of certificates that one URL may have.
const maxIssuers = 32

// issuers are the CA certificates that a URL has, with what a search needs of
// them. They are kept for as long as they are, and shared by all searches.
type issuers []*node

// ReadIssuers reads what a URL for the issuer of a certificate has served (RFC
// 5280, 4.2.2.1): one certificate in DER, or a PKCS #7 bundle of 32 at most. PEM
// of either, which is not according to the standard and cannot be mistaken for
// anything else, will do. What cannot be a CA's above an EK certificate is left
// out, and is an error if nothing else is there. No signature is verified.
func ReadIssuers(body []byte, p Profile) ([]*x509.Certificate, error) {
	nodes, err := readIssuers(body, p)
	return nodes.certificates(), err
}

func (all issuers) certificates() []*x509.Certificate {
	certs := make([]*x509.Certificate, len(all))
	for i, n := range all {
		certs[i] = n.cert
	}
	return certs
}

func readIssuers(body []byte, p Profile) (issuers, error) {
	all, notes, err := readCertificates(body, maxIssuers)
	switch {
	case err != nil:
		return nil, fmt.Errorf("it %s", strings.Join(append([]string{err.Error()}, notes...), "; "))
	case len(all) > maxIssuers:
		return nil, fmt.Errorf("it holds more than %d certificates", maxIssuers)
	}
	var fit issuers
	var fault error
	for _, e := range all {
		n, err := fetchedIssuer(e.Certificate, p)
		if err != nil {
			fault = err
			continue
		}
		if !contains(fit, n) {
			fit = append(fit, n)
		}
	}
	if len(fit) == 0 {
		return nil, fault
	}
	return fit, nil
}

// wantIssuers returns the Want for the issuers at a URL.
func (s *search) wantIssuers(url string) Want {
	return Want{Kind: Issuer, URL: url, read: func(body []byte) (any, time.Time, error) {
		fit, err := readIssuers(body, s.r.Profile)
		if err != nil {
			return nil, time.Time{}, err
		}
		return fit, keptUntil(s.r.Now, fit.certificates()...), nil
	}}
}

// overdueAge is how long something is kept that has expired: its successor may be there at
// any time.
const overdueAge = time.Hour

// maxAge is how long a certificate need not be asked for again.
const maxAge = 30 * 24 * time.Hour

// keptUntil is when the first of those certificates expires that has not. A vendor
// has renewed it by then, at the same URL. It is zero if that is more than 30 days away.
func keptUntil(now time.Time, certs ...*x509.Certificate) time.Time {
	var until time.Time
	for _, c := range certs {
		if now.Before(c.NotAfter) && (until.IsZero() || c.NotAfter.Before(until)) {
			until = c.NotAfter
		}
	}
	switch {
	case until.IsZero():
		return now.Add(overdueAge)
	case until.Sub(now) > maxAge:
		return time.Time{}
	}
	return until
}

// fetchedIssuer returns a CA certificate that has been fetched.
func fetchedIssuer(cert *x509.Certificate, p Profile) (*node, error) {
	why := p.faultOfCA(cert)
	if why == "" {
		why = p.faultOfJoiner(cert)
	}
	if why != "" {
		return nil, fmt.Errorf("the certificate of %s %s", describe(cert.Subject), why)
	}
	n, err := newNode(cert)
	if err != nil {
		return nil, err
	}
	n.signer.lasting = true
	return n, nil
}
