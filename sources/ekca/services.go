package ekca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// A service is a web service with EK certificates that a vendor's TPMs do not carry.
type service struct {
	name string // a key of Config.EKCertificateURLs
	base string
}

// services returns the configured services in the order of their names.
func services(urls map[string]string) []service {
	all := make([]service, 0, len(urls))
	for _, name := range slices.Sorted(maps.Keys(urls)) {
		all = append(all, service{name, urls[name]})
	}
	return all
}

// fromServices returns a service's certificate for an EK, or the reason why there is none. All
// services are asked at once, and the first that has a certificate is used: its key is checked
// here, and its signature decides later.
func (s *Source) fromServices(
	ek crypto.PublicKey, hand certs.Hand,
) (cert *x509.Certificate, why string, wants []certs.Want, err error) {
	var failures []error
	for _, service := range s.services {
		w, ok := certs.WantEK(service.name, service.base, ek, s.now())
		if !ok {
			continue
		}
		a, ok := hand.Look(w)
		cert, isCert := a.Value.(*x509.Certificate)
		switch {
		case !ok:
			wants = append(wants, w)
		case isCert && certs.SameKey(cert.PublicKey, ek):
			return cert, "", nil, nil
		case isCert:
			failures = append(failures, fmt.Errorf("the service %q: the certificate is for another key", service.name))
		case !errors.Is(a.Err, fetch.ErrNotFound):
			failures = append(failures, fmt.Errorf("the service %q: %w", service.name, a.Err))
		}
	}
	if err := errors.Join(failures...); err != nil && len(wants) == 0 {
		return nil, "", nil, fmt.Errorf("find the EK certificate: %w", err)
	}
	if len(s.services) == 0 {
		return nil, "there is no EK certificate", nil, nil
	}
	return nil, "there is no EK certificate, and no service has one for the EK", wants, nil
}
