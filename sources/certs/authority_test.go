package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

type change = func(*x509.Certificate)

// lineage returns the certificates of CAs, each by the one after it, and a DevID by the first. The changes
// are to the CAs' certificates, the root's first.
func lineage(t *testing.T, changes []change) (cas []*x509.Certificate, leaf *x509.Certificate) {
	t.Helper()
	var issuer *x509.Certificate
	var by *ecdsa.PrivateKey
	sign := func(c *x509.Certificate) *x509.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if issuer == nil {
			issuer, by = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, issuer, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		made, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		issuer, by = made, key
		return made
	}
	for i, change := range changes {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: []string{"root", "middle", "low"}[i]},
			NotBefore: now().AddDate(-1, 0, 0), NotAfter: now().AddDate(1, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		change(c)
		cas = slices.Insert(cas, 0, sign(c))
	}
	leaf = sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: now().AddDate(-1, 0, 0), NotAfter: now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	})
	return cas, leaf
}

// Otherwise an issuer of DevIDs would learn only from refused machines that no server accepts
// certificates from its CA. The result of CheckAuthority is that of Find.
func TestAuthorities(t *testing.T) {
	t.Parallel()
	as := func(*x509.Certificate) {}
	pathLen := func(n int) change {
		return func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = n, n == 0 }
	}
	constrained := func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} }
	demanding := func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
	}
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }
	expired := func(c *x509.Certificate) { c.NotAfter = now().Add(-time.Second) }
	early := func(c *x509.Certificate) { c.NotBefore = now().Add(time.Hour) }
	noCA := func(c *x509.Certificate) { c.IsCA = false }
	mute := func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }
	forClients := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	for name, c := range map[string]struct {
		down []change // the root first
		why  string   // empty: it will do
	}{
		"a root":                       {[]change{as}, ""},
		"below a root":                 {[]change{as, as}, ""},
		"below two":                    {[]change{as, as, as}, ""},
		"for TLS clients":              {[]change{as, forClients}, ""},
		"a root by SHA-1":              {[]change{sha1, as}, ""},
		"name constraints":             {[]change{as, constrained}, `1, of "CN=middle", has name constraints`},
		"name constraints above":       {[]change{as, constrained, as}, `2, of "CN=middle", has name constraints`},
		"name constraints of the root": {[]change{constrained, as}, `2, of "CN=root", has name constraints`},
		"a demand":                     {[]change{as, demanding}, "has the critical extension 1.2.3"},
		"a demand of the root":         {[]change{demanding, as}, `2, of "CN=root", has the critical extension 1.2.3`},
		"by SHA-1":                     {[]change{as, sha1}, "is signed with ECDSA-SHA1"},
		"by SHA-1 above":               {[]change{as, sha1, as}, `2, of "CN=middle", is signed with ECDSA-SHA1`},
		"a path just long enough":      {[]change{pathLen(2), pathLen(1), pathLen(0)}, ""},
		"a path too long":              {[]change{pathLen(0), as}, "allows 0 CAs below it in a chain (pathLenConstraint), and there are 1"},
		"a path too long by one":       {[]change{pathLen(1), as, as}, `3, of "CN=root", allows 1 CAs below it`},
		"expired":                      {[]change{as, expired}, "has expired on 2026-06-01"},
		"expired above":                {[]change{as, expired, as}, `2, of "CN=middle", has expired on 2026-06-01`},
		"expired root":                 {[]change{expired, as}, `2, of "CN=root", has expired on 2026-06-01`},
		"of tomorrow":                  {[]change{as, early}, "is not valid before"},
		"no CA":                        {[]change{as, noCA}, "is not a CA certificate"},
		"may not sign":                 {[]change{as, mute}, "may not sign certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cas, leaf := lineage(t, c.down)
			for what, err := range map[string]error{
				"CheckAuthority": certs.CheckAuthority(certs.DevID(), cas, now()),
				"CheckIssued":    certs.CheckIssued(t.Context(), certs.DevID(), leaf, cas, now()),
			} {
				if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if found := chainTo(t, cas[len(cas)-1], leaf, cas[:len(cas)-1]); found != (c.why == "") {
				t.Errorf("Find finds a chain: %v", found)
			}
		})
	}
}

// chainTo reports whether Find finds a chain from a DevID to an anchor.
func chainTo(t *testing.T, anchor, leaf *x509.Certificate, sent []*x509.Certificate) bool {
	t.Helper()
	file := certs.File{Entries: []certs.Entry{{Certificate: anchor, Number: 1}}}
	anchors, _, err := certs.NewAnchors(t.Context(), []certs.File{file}, certs.DevID(), now())
	if err != nil {
		t.Fatal(err)
	}
	r := certs.Request{Leaf: leaf, Anchors: anchors, Profile: certs.DevID(), Now: now()}
	for _, c := range sent {
		r.Sent = append(r.Sent, c.Raw)
	}
	result, err := certs.Find(r)
	return err == nil && result.Chain != nil
}

// A file with the CA's certificate in another place, with one left out or with another CA's is told, and so
// is a leaf of another CA.
func TestAuthorityInDisorder(t *testing.T) {
	t.Parallel()
	as := func(*x509.Certificate) {}
	cas, leaf := lineage(t, []change{as, as, as})
	others, foreign := lineage(t, []change{as, as, as})
	for name, chain := range map[string][]*x509.Certificate{
		"the root first": {cas[2], cas[0]},
		"one left out":   {cas[0], cas[2]},
		"another's":      {cas[0], others[1]},
	} {
		err := certs.CheckAuthority(certs.DevID(), chain, now())
		if err == nil || !strings.Contains(err.Error(), "has not issued the certificate before it") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := certs.CheckAuthority(certs.DevID(), nil, now()); err == nil {
		t.Error("no certificate will do")
	}
	if err := certs.CheckAuthority(certs.DevID(), slices.Repeat(cas[:1], 9), now()); err == nil {
		t.Error("nine certificates will do")
	}
	if err := certs.CheckIssued(t.Context(), certs.DevID(), foreign, cas, now()); err == nil {
		t.Error("a leaf of another CA will do")
	}
	if err := certs.CheckIssued(t.Context(), certs.DevID(), cas[0], cas[1:], now()); err == nil {
		t.Error("a CA as a leaf will do")
	}
	if err := certs.CheckIssued(t.Context(), certs.DevID(), leaf, cas[:2], now()); err != nil {
		t.Error(err) // a server may have the intermediate CA alone
	}
}
