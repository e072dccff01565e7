package ekca

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
)

// Limits on what is read: those of package truststore.
const (
	MaxFileSize     = truststore.MaxFileSize
	MaxTotalSize    = truststore.MaxTotalSize
	MaxFiles        = truststore.MaxFiles
	MaxCertificates = truststore.MaxCertificates
)

// The keys of Config.EKCertificateURLs.
const (
	EKServiceIntel = certs.EKServiceIntel
	EKServiceAMD   = certs.EKServiceAMD
)

// CRLMode says how the certificate revocation lists (CRLs) of a chain's CAs are used.
type CRLMode = certs.CRLMode

// The modes. The empty one is CRLOff.
const (
	CRLOff         = certs.CRLOff
	CRLIfAvailable = certs.CRLIfAvailable
	CRLRequired    = certs.CRLRequired
)

// Config says where the authorities are, and from whom missing certificates may be fetched.
type Config struct {
	// Config says where the authorities are. Leave its Bases empty: they are taken from EKCertificateURLs.
	truststore.Config
	// EKCertificateURLs are the base URLs of vendors' services that have the EK certificates that
	// TPMs do not carry. The keys are EKServiceIntel and EKServiceAMD. All services are asked about
	// a TPM that has sent no certificate. If there are none, only certificates that machines send
	// count.
	EKCertificateURLs map[string]string
}

// store returns the configuration of the trust store.
func (c Config) store() truststore.Config {
	c.Bases = slices.Sorted(maps.Values(c.EKCertificateURLs))
	return c.Config
}

// Check returns all mistakes in a configuration as New does, one sources.FieldError for each.
func (c Config) Check() error {
	store := c.store()
	return errors.Join(store.Check(), c.checkServices())
}

// checkServices returns what is wrong with EKCertificateURLs.
func (c Config) checkServices() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.EKCertificateURLs)) {
		if name != EKServiceIntel && name != EKServiceAMD {
			errs = append(errs, sources.BadField("ek_certificate_urls",
				"%.80q is not a known EK certificate service: choose from %s, %s", name, EKServiceAMD, EKServiceIntel))
		}
	}
	return errors.Join(append(errs,
		truststore.CheckOrigins("ek_certificate_urls", fetch.Config{Bases: c.store().Bases}))...)
}

// Warnings says what a person should know about a valid configuration.
func (c Config) Warnings() []sources.FieldError {
	all := c.store().Warnings()
	for _, name := range slices.Sorted(maps.Keys(c.EKCertificateURLs)) {
		base := c.EKCertificateURLs[name]
		if c.MirrorURL != "" && !strings.HasPrefix(base, c.MirrorURL) {
			all = append(all, sources.FieldError{Field: "ek_certificate_urls", Problem: fmt.Sprintf(
				"%s: is not under mirror_url, which replaces aia_hosts only: %.80q itself is contacted",
				name, fetch.Shown(base))})
		}
	}
	return all
}
