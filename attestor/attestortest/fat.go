package attestortest

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// Usages returns a change that adds n extended key usages of three bytes each to a
// certificate. Parsed, they are many times as large.
func Usages(n int) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for i := range n {
			c.UnknownExtKeyUsage = append(c.UnknownExtKeyUsage, asn1.ObjectIdentifier{1, i % 40})
		}
	}
}

// Padding returns a change that adds an extension of n bytes to a certificate.
func Padding(n int) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{
			Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: bytes.Repeat([]byte{0xFF}, n),
		})
	}
}

// FatPayload returns a payload of t that is about as large as a server accepts, 40 KiB:
// four or five certificates by ca hold as much as a certificate may, and so does the EK
// certificate if t has one.
func (t *TPM) FatPayload(tb TB, ca *CA) []byte {
	tb.Helper()
	fat := func(c *x509.Certificate) {
		const usages, padding = 400, 6200 // beside what any certificate has: 512 values, 8 KiB
		Usages(usages)(c)
		Padding(padding)(c)
	}
	claim, further := t.Claim(), 5
	if claim.Certificate != nil {
		further = 4
		claim.Certificate = ca.Issue(tb, claim.EK, Certificate{Change: fat})
	}
	for range further {
		claim.Chain = append(claim.Chain, ca.NewCAWith(tb, ca.Certificate.Subject.CommonName, fat).Certificate.Raw)
	}
	b, err := attestor.NewProver(claim, t).Payload()
	if err != nil {
		tb.Fatalf("attestortest: %v", err)
	}
	return b
}
