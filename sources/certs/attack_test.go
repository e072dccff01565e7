package certs_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

// A machine whose EK was revoked chooses which certificate of its CA it sends. If one of them does
// not allow the CA to sign CRLs, a CRL by the same key cannot clear the machine there, but what it
// lists stays revoked.
func TestRevokedByAKeyThatAnotherCertificateDoesNotLetSignCRLs(t *testing.T) {
	root := newCA(t, "Root", nil)
	low := newCA(t, "Low", root)
	mute := root.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Low"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, low.key.Public(), nil)
	ek := low.ek(t, "/low.crl")
	for name, sent := range map[string]*x509.Certificate{"that allows it": low.cert, "that does not": mute} {
		list := low.crl(t, ek)
		for where, hand := range map[string]*shelf{
			"where it says": {bodies: map[string][]byte{"/low.crl": list}},
			"elsewhere":     {bodies: map[string][]byte{"/low.crl": nil, "/other.crl": list}, held: []string{"/other.crl"}},
		} {
			result, err := certs.Find(certs.Request{
				Leaf: ek, Sent: [][]byte{sent.Raw}, Anchors: anchors(t, map[string]*ca{"": root}),
				Profile: certs.EK(), Now: now(), CRLs: certs.CRLIfAvailable, Hand: hand,
			})
			if err != nil || result.Chain != nil {
				t.Errorf("by the certificate %s, with the CRL %s: %+v, %v", name, where, result.Chain, err)
			}
		}
	}
}

// An attacker's URL may return more certificates with the name of the issuer than are verified.
// That gains nothing: Find cannot tell, even if the right certificate is among them or at the next
// URL, and no URL that may have the right one counts as doubted.
func TestTangledURLs(t *testing.T) {
	root := newCA(t, "Root", nil)
	low := newCA(t, "Low", root)
	tangle := func() (body []byte) {
		for range 20 {
			public, _, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			other := root.issue(t, &x509.Certificate{
				Subject: pkix.Name{CommonName: "Low"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
			}, public, nil)
			body = append(body, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Raw})...)
		}
		return body
	}
	hand := &shelf{bodies: map[string][]byte{"/a": tangle(), "/b": tangle(), "/low": low.cert.Raw}}
	for name, configured := range map[string]map[string]*ca{"CAs": {"": root}, "bundles": {"a": root, "b": newCA(t, "B", nil)}} {
		result, err := certs.Find(certs.Request{
			Leaf: low.ek(t, "/a", "/b", "/low", "/crl"), Anchors: anchors(t, configured), Profile: certs.EK(), Now: now(), Hand: hand,
		})
		if err == nil || !strings.Contains(err.Error(), "signature checks") || !cmp.Equal(result, certs.Result{}) {
			t.Errorf("%s: %+v, %v", name, result, err)
		}
	}
}

// A somewhere has a CRL at each URL, with what is known of how it came there.
type somewhere struct {
	shelf
	fault certs.Answer // beside the CRL that the certificate names
}

func (s *somewhere) Look(w certs.Want) (certs.Answer, bool) {
	a, ok := s.shelf.Look(w)
	if a.Value != nil {
		a.Err, a.NotAsked = s.fault.Err, s.fault.NotAsked
	}
	return a, ok
}

// drawCRL returns a CRL of some time, with some number, that lists the leaf or not.
func drawCRL(tb testing.TB, rnd *rand.Rand, by *ca, leaf *x509.Certificate) (der []byte, list *x509.RevocationList) {
	tb.Helper()
	list = &x509.RevocationList{
		Number:     big.NewInt(int64(rnd.IntN(3))),
		ThisUpdate: now().Add(time.Duration(rnd.IntN(5)-3) * time.Hour),
	}
	list.NextUpdate = list.ThisUpdate.Add(time.Duration(1+rnd.IntN(5)) * time.Hour)
	if rnd.IntN(2) == 0 {
		list.RevokedCertificateEntries = []x509.RevocationListEntry{
			{SerialNumber: leaf.SerialNumber, RevocationTime: now()},
		}
	}
	der, err := x509.CreateRevocationList(nil, list, by.cert, by.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der, list
}

// An attacker who chooses which CRLs of a CA the server has, from which URLs and of which times,
// and whether the named URL answers, can admit no machine that any of them lists, unless a newer
// CRL that is current by the server's clock does not list it.
func TestNoChoiceOfCRLsClearsWhomOneLists(t *testing.T) {
	root := newCA(t, "Root", nil)
	ek := root.ek(t, "/crl")
	all := anchors(t, map[string]*ca{"": root})
	rnd := rand.New(rand.NewPCG(1, 2)) // the same each time
	rounds, admitted := 2000, 0
	if testing.Short() {
		rounds /= 8
	}
	for range rounds {
		hand := &somewhere{shelf: shelf{bodies: map[string][]byte{"/crl": nil}}}
		hand.fault = []certs.Answer{{}, {Err: errors.New("down")}, {Err: errors.New("busy"), NotAsked: true}}[rnd.IntN(3)]
		var lists []*x509.RevocationList
		for _, url := range []string{"/crl", "/old", "/other"}[rnd.IntN(3):] {
			der, list := drawCRL(t, rnd, root, ek)
			hand.bodies[url], lists = der, append(lists, list)
			hand.held = append(hand.held, url)
		}
		result, err := certs.Find(certs.Request{
			Leaf: ek, Anchors: all, Profile: certs.EK(), Now: now(), CRLs: certs.CRLIfAvailable, Hand: hand,
		})
		if err == nil && result.Chain != nil {
			admitted++
			wantCleared(t, lists, hand.fault)
		}
	}
	if admitted < rounds/20 {
		t.Errorf("only %d were admitted: the test shows nothing", admitted)
	}
}

// wantCleared fails the test if a list stands that lists the leaf.
func wantCleared(tb testing.TB, lists []*x509.RevocationList, fault certs.Answer) {
	tb.Helper()
	newer := func(a, b *x509.RevocationList) bool {
		c := a.ThisUpdate.Compare(b.ThisUpdate)
		return c > 0 || c == 0 && a.Number.Cmp(b.Number) > 0
	}
	for _, l := range lists {
		if len(l.RevokedCertificateEntries) > 0 && !slices.ContainsFunc(lists, func(o *x509.RevocationList) bool {
			return len(o.RevokedCertificateEntries) == 0 && newer(o, l) &&
				!now().Before(o.ThisUpdate) && !now().After(o.NextUpdate)
		}) {
			tb.Fatalf("admitted (%+v), though one lists it: %+v", fault, lists)
		}
	}
}
