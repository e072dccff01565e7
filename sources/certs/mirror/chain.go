package mirror

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

// machine fetches everything that is needed for an EK.
func (f *filler) machine(ctx context.Context, e *ek) {
	certificates := e.certificates
	if len(certificates) == 0 && len(f.cfg.Services) > 0 {
		certificates = f.fromServices(ctx, e)
	} else if len(certificates) == 0 {
		f.missing("EK "+e.hash.String(), errors.New("it has no certificate, and there is no service to fetch "+
			"one from: set ek_certificate_urls"))
	}
	for _, cert := range certificates {
		f.chain(ctx, f.eks, cert)
	}
}

// fromServices fetches the certificate of an EK from the first service that has it.
func (f *filler) fromServices(ctx context.Context, e *ek) []*x509.Certificate {
	var faults []error
	for _, s := range f.cfg.Services {
		want, ok := certs.WantEK(s.Name, s.Base, e.key, f.cfg.Now())
		if !ok {
			continue
		}
		answer := f.get(ctx, want)
		if cert, ok := answer.Value.(*x509.Certificate); ok {
			return []*x509.Certificate{cert}
		}
		faults = append(faults, answer.Err)
	}
	if len(faults) == 0 {
		faults = append(faults, errors.New("no service has certificates for EKs of its kind"))
	}
	f.missing("EK "+e.hash.String(), fmt.Errorf("its certificate: %w", errors.Join(faults...)))
	return nil
}

// chain fetches everything that a certificate and the CAs above it name, and reports what is
// missing.
func (f *filler) chain(ctx context.Context, of *leaves, cert *x509.Certificate) {
	if !f.begin(of, certs.EKCertificate, cert) {
		return
	}
	hand := &hand{f, map[string]certs.Answer{}}
	r := certs.Request{
		Leaf: cert, Anchors: of.anchors, Profile: of.profile, Now: f.cfg.Now(), Hand: hand, Verified: f.verified,
		Everything: true,
	}
	if f.cfg.CRLs {
		r.CRLs = certs.CRLRequired
	}
	for ctx.Err() == nil {
		found, done := certs.Find(r)
		for _, w := range found.Wants {
			hand.answers[w.ID()] = f.get(ctx, w)
		}
		for _, n := range found.Named {
			if f.begin(of, n.Kind, n.By) {
				f.report(n)
			}
		}
		if done != nil { // certs.ErrUndecided: nothing more is wanted
			return
		}
	}
}

// report reports what is missing of what a certificate names.
func (f *filler) report(n certs.Named) {
	what := "issuer " + name(n.By.Issuer)
	if n.Kind == certs.List {
		what = "CRL of " + name(n.By.Issuer)
	}
	switch {
	case !n.Had && len(n.Faults) > 0:
		f.missing(what, errors.Join(n.Faults...))
	case !n.Had && n.Kind == certs.List:
		f.missing(what, errors.New("its issuer is not known, so its signature cannot be verified: "+
			"name a file with the certificate of that CA along with those of the machines"))
	case !n.Had:
		f.note("%s: no URL says where it is: add it to the configured CAs", what)
	case len(n.Faults) > 0:
		f.note("%s: fetched from one URL but not from another: %v", what, errors.Join(n.Faults...))
	}
}

// A hand provides certs.Find with what this run has fetched for one certificate.
type hand struct {
	*filler
	answers map[string]certs.Answer
}

// Allowed implements certs.Hand.
func (h *hand) Allowed(url string) (string, error) {
	allowed, err := h.store.Allowed(url)
	if err != nil {
		err = fmt.Errorf("%w: add the host to aia_hosts, or pass it with --aia-host, if you trust its owner", err)
	}
	return allowed, err
}

// Look implements certs.Hand.
func (h *hand) Look(w certs.Want) (certs.Answer, bool) {
	answer, ok := h.answers[w.ID()]
	return answer, ok
}

// CRLs implements certs.Hand. No chain is decided here, so CRLs are not compared.
func (*hand) CRLs(certs.Want) []certs.HeldCRL { return nil }
