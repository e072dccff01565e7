package ekca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// fixedCA returns a CA that is the same in every process, for a corpus that
// stays worth something.
func fixedCA(tb testing.TB, name string, parent *authority) *authority {
	tb.Helper()
	var seed [ed25519.SeedSize]byte
	copy(seed[:], name)
	key := ed25519.NewKeyFromSeed(seed[:])
	template := certstest.CA(tb, name, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(int64(len(name))) })
	if parent == nil {
		return &authority{cert: certstest.Sign(tb, template, template, key.Public(), key), key: key}
	}
	return &authority{cert: certstest.Sign(tb, template, parent.cert, key.Public(), parent.key), key: key}
}

func fixedEK(tb testing.TB) crypto.PublicKey {
	tb.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 5))
	if err != nil {
		tb.Fatal(err)
	}
	return key.Public()
}

// No bytes in the place of a certificate stop a Check, and none are listed that
// no configured CA has signed, directly or through one that it has signed.
func FuzzCertificate(f *testing.F) {
	root := fixedCA(f, "Root", nil)
	sub := fixedCA(f, "Sub", root)
	byRoot := certstest.Sign(f, ekTemplate(f), root.cert, fixedEK(f), root.key)
	bySub := certstest.Sign(f, ekTemplate(f), sub.cert, fixedEK(f), sub.key)
	f.Add(byRoot.Raw, []byte(nil))
	f.Add(byRoot.Raw, byRoot.Raw)
	f.Add(bySub.Raw, sub.cert.Raw)
	f.Add(sub.cert.Raw, root.cert.Raw)
	f.Add([]byte{0x30, 0}, []byte{0x30, 0})
	src := load(f, ekca.Config{Config: truststore.Config{CAPath: certstest.File(f, root.cert)}})
	signed := func(c *x509.Certificate, by *x509.Certificate) bool {
		return by.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
	}
	f.Fuzz(func(t *testing.T, der, chain []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		sent, err := x509.ParseCertificates(chain)
		if err != nil {
			sent = nil
		}
		v, err := src.Check(t.Context(), evidence(cert, sent...))
		if err != nil {
			if v.Listed {
				t.Error("listed beside an error")
			}
			return
		}
		if err := v.Attributes.Validate(); err != nil {
			t.Error(err)
		}
		vouched := signed(cert, root.cert)
		for _, c := range sent {
			vouched = vouched || c.IsCA && signed(c, root.cert) && signed(cert, c)
		}
		if v.Listed && (!vouched || cert.IsCA) {
			t.Errorf("listed: %s", v.Reason)
		}
	})
}
