package ekca

import (
	"crypto/x509"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

// attributes returns the values of a verified EK certificate that can become selectors.
func attributes(c *x509.Certificate, chain *certs.Chain) sources.Attributes {
	tpm := certs.TPMOf(c)
	return sources.Attributes{Certificate: &sources.EKCertificate{
		IssuerCN:      certs.Presentable(sources.PrefixIssuerCN, c.Issuer.CommonName),
		IssuerKeyHash: chain.IssuerKeyHash,
		Serial:        certs.Serial(c),
		Manufacturer:  certs.Presentable(sources.PrefixManufacturer, tpm.Manufacturer),
		Model:         certs.Presentable(sources.PrefixModel, tpm.Model),
		Version:       certs.Presentable(sources.PrefixVersion, tpm.Version),
	}}
}
