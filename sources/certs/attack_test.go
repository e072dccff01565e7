package certs_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

// A machine whose EK was revoked chooses by which certificate of its CA it comes. If one of them
// does not allow the CA to sign CRLs, the CRL by that same key cannot clear anybody there, but
// what it lists stays revoked.
func TestRevokedByAKeyThatAnotherCertificateDoesNotLetSignCRLs(t *testing.T) {
	root := newCA(t, "Root", nil)
	low := newCA(t, "Low", root)
	mute := root.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Low"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, low.key.Public(), nil)
	ek := low.ek(t, "/low.crl")
	for name, sent := range map[string]*x509.Certificate{"that allows it": low.cert, "that does not": mute} {
		hand := &shelf{bodies: map[string][]byte{"/low.crl": low.crl(t, ek)}}
		result, err := certs.Find(certs.Request{
			Leaf: ek, Sent: [][]byte{sent.Raw}, Anchors: anchors(t, map[string]*ca{"": root}), Profile: certs.EK(),
			Now: now(), CRLs: certs.CRLIfAvailable, Hand: hand,
		})
		if err != nil || result.Chain != nil {
			t.Errorf("by the certificate %s: %+v, %v", name, result.Chain, err)
		}
	}
}
