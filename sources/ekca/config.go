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

// CRLMode says what the certificate revocation lists (CRLs) of a chain's CAs mean.
type CRLMode = certs.CRLMode

// The modes. The empty one is CRLOff.
const (
	CRLOff         = certs.CRLOff
	CRLIfAvailable = certs.CRLIfAvailable
	CRLRequired    = certs.CRLRequired
)

// Config is where the authorities are, and who may be asked for what is not there.
type Config struct {
	// Config says where the authorities are. Leave its Bases empty: they are taken from EKCertificateURLs.
	truststore.Config
	// EKCertificateURLs are the base URLs of the vendors' services for EK
	// certificates that a TPM does not carry, by EKServiceIntel and
	// EKServiceAMD. All of them are asked about a TPM that has sent none. None:
	// only certificates that the machine sends count.
	EKCertificateURLs map[string]string
}

// store returns what the trust store needs.
func (c Config) store() truststore.Config {
	c.Bases = slices.Sorted(maps.Values(c.EKCertificateURLs))
	return c.Config
}

// Check returns all mistakes in a configuration, a sources.FieldError for each, as New does.
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

// Warnings says what a person should know of a configuration that is right.
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
