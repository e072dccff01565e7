package tpm

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// firstEKIndex is the first of the NV indices that the profile reserves for EKs
// (2.2.1.4 and 2.2.1.5). The last is lastChainIndex.
const firstEKIndex tpm2.TPMHandle = 0x01C00000

// A Certificate is what was found at an NV index for EK certificates.
type Certificate struct {
	// Index is the NV index.
	Index uint32
	// Certificate is nil if Err is not.
	Certificate *x509.Certificate
	// Err says why the certificate could not be read.
	Err error
	// Raw is the certificate in DER. It is nil if not even the key in it could be read.
	Raw []byte

	key crypto.PublicKey // the public key in Raw
}

// readCertificates reads the EK certificates at all of the given NV indices that are
// for EK certificates. If a certificate cannot be read, its Err says why, and the
// others are still read. readCertificates itself fails only if the connection does.
func (t *TPM) readCertificates(c *conn, indices []tpm2.TPMHandle, bufferSize uint16) ([]Certificate, error) {
	var certs []Certificate
	for _, template := range attestor.EKTemplates() {
		if !slices.Contains(indices, tpm2.TPMHandle(template.CertificateIndex)) {
			continue
		}
		cert := Certificate{Index: template.CertificateIndex}
		content, err := t.readNV(c, tpm2.TPMHandle(cert.Index), bufferSize)
		if err == nil {
			cert.Raw, cert.key, _ = attestor.ReadEKCertificate(content) // the next line returns the error
			cert.Certificate, err = attestor.ParseEKCertificate(content)
		}
		if c.err != nil {
			return nil, explain("read EK certificates", c.err)
		}
		if err != nil {
			cert.Err = fmt.Errorf("NV index %#08x: %w", cert.Index, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}
