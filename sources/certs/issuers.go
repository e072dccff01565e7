package certs

import (
	"crypto/x509"
	"fmt"
	"strings"
	"time"
)

// maxIssuers is the maximum number of certificates at one URL.
const maxIssuers = 32

// issuers are the CA certificates at a URL, with what a search needs. They are cached together with
// the answer, and shared by all searches.
type issuers []*node

// ReadIssuers reads what an issuer URL has returned (RFC 5280, 4.2.2.1): one certificate in DER, or
// a PKCS #7 bundle of at most 32. PEM of either is accepted as well; it does not conform to the
// standard but cannot be mistaken for anything else. Certificates that cannot be those of CAs for
// the profile are left out, and if nothing remains, that is an error. No signature is verified.
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

// overdueAge is how long something that has expired is kept: its successor may be published at any
// time.
const overdueAge = time.Hour

// maxAge is how long a certificate need not be fetched again.
const maxAge = 30 * 24 * time.Hour

// keptUntil returns when the first of the certificates expires that has not expired yet: by then,
// the vendor has renewed it, at the same URL. It returns zero if that is more than 30 days away.
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

// fetchedIssuer returns the node of a CA certificate that was fetched.
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
