package mirror

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/crl"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// maxLevel is how many certificates are looked at side by side, at one distance
// above an EK certificate. The other limits are those of an ek_ca.
const maxLevel = 8

// machine gets all that an EK needs.
func (f *filler) machine(ctx context.Context, e *ek) {
	certificates := e.certificates
	if len(certificates) == 0 && len(f.cfg.Services) > 0 {
		certificates = f.fromServices(ctx, e)
	} else if len(certificates) == 0 {
		f.missing("EK "+e.hash.String(), errors.New("it has no certificate, and there is no service to fetch "+
			"one from: set ek_certificate_urls"))
	}
	for _, cert := range certificates {
		f.chain(ctx, cert)
	}
}

// fromServices gets the certificate of an EK from the first service that has it.
func (f *filler) fromServices(ctx context.Context, e *ek) []*x509.Certificate {
	var faults []error
	for _, s := range f.cfg.Services {
		url, ok := certs.EKCertificateURL(s.Name, s.Base, e.key)
		if !ok {
			continue
		}
		value, err := f.object(ctx, fetch.EKCertificate, url, parseReply(s.Name, e.key),
			func(any) error { return nil })
		if cert, ok := value.(*x509.Certificate); ok && err == nil {
			return []*x509.Certificate{cert}
		}
		faults = append(faults, fmt.Errorf("%q: %w", url, err))
	}
	if len(faults) == 0 {
		faults = append(faults, errors.New("no service has certificates for EKs of its kind"))
	}
	f.missing("EK "+e.hash.String(), fmt.Errorf("its certificate: %w", errors.Join(faults...)))
	return nil
}

// chain gets the issuers of a certificate, theirs and so on, and then all their CRLs:
// a CA further up may issue the CRL for a certificate.
func (f *filler) chain(ctx context.Context, cert *x509.Certificate) {
	type wanted struct {
		child   *x509.Certificate
		issuers []*x509.Certificate
	}
	var crls []wanted
	var above []*x509.Certificate
	level := []*x509.Certificate{cert}
	for depth := 0; depth < certs.MaxChain && len(level) > 0; depth++ {
		var next []*x509.Certificate
		for _, child := range level {
			if !f.begin(child) || isRoot(child) {
				continue
			}
			issuers, missing := f.issuers(ctx, child)
			if f.cfg.CRLs && !missing {
				crls = append(crls, wanted{child, issuers})
			}
			above = append(above, issuers...)
			for _, i := range issuers {
				if len(next) < maxLevel && !slices.ContainsFunc(next, i.Equal) {
					next = append(next, i)
				}
			}
		}
		level = next
	}
	for _, w := range crls {
		f.crls(ctx, w.child, f.crlSigners(w.child, w.issuers, above))
	}
}

// crlSigners returns the CAs that may have signed the CRL for a certificate: its
// issuers or, if it names another CA for that (RFC 5280, 4.2.1.13), the CAs that are
// configured or above it. Which of these is right, an ek_ca decides.
func (f *filler) crlSigners(child *x509.Certificate, issuers, above []*x509.Certificate) []*x509.Certificate {
	points, err := crl.PointsOf(child)
	if err != nil || !slices.ContainsFunc(points, func(p crl.Point) bool { return p.Issuer != nil }) {
		return issuers
	}
	return slices.Concat(issuers, above, f.machines.cas)
}

// isRoot reports whether a certificate is at the end of a chain.
func isRoot(c *x509.Certificate) bool { return hasSigned(c, c) }

func hasSigned(issuer, child *x509.Certificate) bool {
	return issuer.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature) == nil
}

// issuers gets the certificates of who has signed child, from all URLs for them, or
// says that they are missing.
func (f *filler) issuers(ctx context.Context, child *x509.Certificate) (found []*x509.Certificate, missing bool) {
	take := func(all []*x509.Certificate) {
		for _, c := range all {
			if hasSigned(c, child) {
				found = append(found, c)
			}
		}
	}
	take(f.machines.cas)
	urls, faults := f.urls(child.IssuingCertificateURL)
	for _, url := range urls {
		value, err := f.object(ctx, fetch.Issuer, url, parseIssuers, f.signerOf(child))
		if all, ok := value.([]*x509.Certificate); ok && err == nil {
			take(all)
		} else {
			faults = append(faults, fmt.Errorf("%q: %w", url, err))
		}
	}
	had := len(found) > 0
	switch {
	case !had && len(faults) > 0:
		missing = true
		f.missing("issuer "+name(child.Issuer), errors.Join(faults...))
	case !had:
		f.note("issuer %s: no URL says where it is: add it to the configured CAs", name(child.Issuer))
	case len(faults) > 0 && len(urls) > 0:
		f.note("issuer %s: fetched from one URL but not from another: %v", name(child.Issuer), errors.Join(faults...))
	}
	return found, missing
}

// crls gets the CRLs that a certificate names, by its issuers. Who has made one could
// not be told without these.
func (f *filler) crls(ctx context.Context, child *x509.Certificate, issuers []*x509.Certificate) {
	if len(child.CRLDistributionPoints) == 0 {
		return
	}
	of := "CRL of " + name(child.Issuer)
	if len(issuers) == 0 {
		f.missing(of, errors.New("its issuer is not known, so its signature cannot be verified: "+
			"name a file with the certificate of that CA along with those of the machines"))
		return
	}
	urls, faults := f.urls(child.CRLDistributionPoints)
	had := false
	for _, url := range urls {
		value, err := f.object(ctx, fetch.CRL, url, parseCRL, signedBy(issuers))
		if err == nil {
			err = f.overdue(value)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%q: %w", url, err))
			continue
		}
		had = true
	}
	switch {
	case !had:
		f.missing(of, errors.Join(faults...))
	case len(faults) > 0:
		f.note("%s: fetched from one URL but not from another: %v", of, errors.Join(faults...))
	}
}

// urls returns those of a certificate's URLs that an ek_ca asks, with why others
// may not be asked.
func (f *filler) urls(all []string) (urls []string, faults []error) {
	for _, raw := range all {
		if len(urls) == certs.MaxURLs {
			break
		}
		url, err := f.store.Allowed(raw)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("%q is not on an allowed host: add the host to aia_hosts, "+
				"or pass it with -aia-host, if you trust its owner", raw))
		case !slices.Contains(urls, url):
			urls = append(urls, url)
		}
	}
	return urls, faults
}
