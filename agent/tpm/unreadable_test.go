package tpm

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// unreadableCertificate returns a certificate for pub, in DER, that package x509 refuses:
// an extension is in it twice.
func unreadableCertificate(t *testing.T, pub crypto.PublicKey) []byte {
	t.Helper()
	return attestortest.NewCA(t, "root").Issue(t, pub, attestortest.Certificate{Change: func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, c.ExtraExtensions...)
	}})
}

// If the EK's certificate cannot be parsed, the agent sends it as it is, so that the server does
// not say that there is none. If the EK has a second certificate, which can be parsed, the agent
// sends that instead.
func TestUnreadableCertificateIsSent(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	ek := attest(t, newTPM(t, Config{Device: tpm.Device})).Public
	unreadable, good := unreadableCertificate(t, ek), ekCertificate(t, ek)
	defineNV(t, tpm.Device, nvContent{0x01C00002, append(bytes.Clone(unreadable), 0x11, 0x11), readable, ""})
	device := newTPM(t, Config{Device: tpm.Device})
	if got := attest(t, device); !bytes.Equal(got.Certificate, unreadable) {
		t.Errorf("the server sees the certificate %x", got.Certificate)
	}
	report, err := device.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := report.EK.Certificate; c == nil || c.Index != 0x01C00002 || c.Err == nil || c.Certificate != nil {
		t.Errorf("the report has the certificate %+v", c)
	}
	defineNV(t, tpm.Device, nvContent{0x01C00012, good, readable, ""})
	if got := attest(t, newTPM(t, Config{Device: tpm.Device})); !bytes.Equal(got.Certificate, good) {
		t.Errorf("the server sees the certificate %x", got.Certificate)
	}
}

// The key in a certificate says which persistent key is the EK, whether or not the rest
// can be parsed: the machine must neither wait for a better certificate nor change its
// identity.
func TestUnreadableCertificateDecidesForAPersistentKey(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	persist(t, tpm.Device, tpm2.TPMRHEndorsement, otherNonce(), 0x81010001)
	made := attest(t, newTPM(t, Config{Device: tpm.Device}))
	template, err := attestor.TemplateFor(attestor.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	var vendors *endorsementKey
	direct(t, tpm.Device, func(c transport.TPM) {
		rsp := must(t, c, tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81010001)})
		if vendors, err = newEndorsementKey(persistentKey(0x81010001, rsp), template); err != nil {
			t.Fatal(err)
		}
	})
	for _, pub := range []crypto.PublicKey{vendors.pub, made.Public} {
		defineNV(t, tpm.Device, nvContent{0x01C00002, unreadableCertificate(t, pub), readable, ""})
		want, err := attestor.HashEK(pub)
		if err != nil {
			t.Fatal(err)
		}
		if got := attest(t, newTPM(t, Config{Device: tpm.Device})); got.Hash != want || got.Certificate == nil {
			t.Errorf("EK %x, want %x and its certificate", got.Hash, want)
		}
		undefineNV(t, tpm.Device, 0x01C00002)
	}
}
