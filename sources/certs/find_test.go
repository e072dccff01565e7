package certs_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

func now() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

type ca struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// newCA returns a CA, the same in every process, for a corpus that stays worth something.
func newCA(tb testing.TB, name string, parent *ca, urls ...string) *ca {
	tb.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true,
	}
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	own := &ca{key: ed25519.NewKeyFromSeed(seed)}
	if parent == nil {
		parent = &ca{cert: template, key: own.key}
	}
	own.cert = parent.issue(tb, template, own.key.Public(), urls)
	return own
}

// issue signs a certificate that names URLs for its issuer and, last, for its CRL.
func (a *ca) issue(tb testing.TB, c *x509.Certificate, key any, urls []string) *x509.Certificate {
	tb.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(7), now().AddDate(-1, 0, 0), now().AddDate(1, 0, 0)
	if n := len(urls); n > 0 {
		c.IssuingCertificateURL, c.CRLDistributionPoints = urls[:n-1], urls[n-1:]
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

func (a *ca) ek(tb testing.TB, urls ...string) *x509.Certificate {
	tb.Helper()
	seed := make([]byte, ed25519.SeedSize)
	return a.issue(tb, &x509.Certificate{KeyUsage: x509.KeyUsageKeyAgreement},
		ed25519.NewKeyFromSeed(seed).Public(), urls)
}

func (a *ca) crl(tb testing.TB, revoked ...*x509.Certificate) []byte {
	tb.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now(), NextUpdate: now().Add(time.Hour)}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func anchors(tb testing.TB, bundles map[string]*ca) *certs.Anchors {
	tb.Helper()
	var files []certs.File
	for name, a := range bundles {
		files = append(files, certs.File{Bundle: name, Entries: []certs.Entry{{Certificate: a.cert, Number: 1}}})
	}
	all, warnings, err := certs.NewAnchors(tb.Context(), files, certs.EK(), now())
	if err != nil || len(warnings) > 0 {
		tb.Fatal(err, warnings)
	}
	return all
}

// A shelf has bodies by URL; nil is one that cannot be had.
type shelf struct {
	bodies map[string][]byte
	// every is the answer of all other URLs, if it is not nil.
	every []byte
	held  []string // URLs of CRLs
}

func (*shelf) Allowed(url string) (string, error) {
	if len(url) < 2 || url[0] != '/' {
		return "", errors.New("it is not allowed")
	}
	return url, nil
}

func (s *shelf) Look(w certs.Want) (certs.Answer, bool) {
	body, ok := s.bodies[w.URL]
	if !ok && s.every != nil {
		body, ok = s.every, true
	}
	if !ok || body == nil {
		return certs.Answer{Err: errors.New("it cannot be had")}, ok
	}
	value, _, err := w.Read(body)
	return certs.Answer{Value: value, Err: err}, true
}

func (s *shelf) CRLs(w certs.Want) (all []certs.HeldCRL) {
	for _, url := range s.held {
		if value, _, err := w.Read(s.bodies[url]); err == nil {
			all = append(all, certs.HeldCRL{URL: url, Value: value})
		}
	}
	return all
}

// wanted looks up what Find wants, one round after the other, and returns the URLs of each
// round and the result.
func wanted(tb testing.TB, r certs.Request, have map[string][]byte) (rounds [][]string, result certs.Result) {
	tb.Helper()
	hand := &shelf{bodies: map[string][]byte{}}
	r.Hand = hand
	for range 20 {
		result, err := certs.Find(r)
		if err != nil {
			tb.Fatal(err)
		}
		if len(result.Wants) == 0 {
			return rounds, result
		}
		if result.Chain != nil || result.Why != "" {
			tb.Errorf("beside what is wanted: %+v", result)
		}
		var round []string
		for _, w := range result.Wants {
			round = append(round, w.URL)
			hand.bodies[w.URL] = have[w.URL]
		}
		slices.Sort(round)
		rounds = append(rounds, round)
	}
	tb.Fatal("it wants more and more")
	return nil, result
}

// Find says step by step what a chain needs: issuers from the leaf upwards, the next URL only if
// the previous one did not help, and then all CRLs at once.
func TestWants(t *testing.T) {
	root := newCA(t, "Root", nil)
	middle := newCA(t, "Middle", root, "/root", "/root.crl")
	low := newCA(t, "Low", middle, "/middle", "/middle.crl")
	ek := low.ek(t, "/gone", "ftp://", "/low", "/spare", "/low.crl")
	have := map[string][]byte{
		"/low": low.cert.Raw, "/middle": middle.cert.Raw,
		"/low.crl": low.crl(t), "/middle.crl": middle.crl(t), "/root.crl": root.crl(t),
	}
	r := certs.Request{Leaf: ek, Anchors: anchors(t, map[string]*ca{"": root}), Profile: certs.EK(), Now: now()}
	if result, err := certs.Find(r); err != nil || result.Chain != nil || result.Wants != nil {
		t.Errorf("with nothing to look it up: %+v, %v", result, err)
	}
	issuers := [][]string{{"/gone"}, {"/low"}, {"/middle"}}
	for mode, want := range map[certs.CRLMode][][]string{
		certs.CRLOff:      issuers,
		certs.CRLRequired: append(slices.Clone(issuers), []string{"/low.crl", "/middle.crl", "/root.crl"}),
	} {
		r.CRLs = mode
		rounds, result := wanted(t, r, have)
		if d := cmp.Diff(want, rounds); d != "" || result.Chain == nil {
			t.Errorf("%s: %+v (-want +got):\n%s", mode, result, d)
		}
		if d := cmp.Diff([]string{"/low", "/middle"}, result.Proven); d != "" {
			t.Error(d)
		}
	}
	r.CRLs, have["/middle.crl"] = certs.CRLRequired, middle.crl(t, low.cert)
	if _, result := wanted(t, r, have); result.Chain != nil || result.Why == "" {
		t.Errorf("a revoked CA: %+v", result)
	}
	// What is configured and sent wants nothing.
	r.CRLs, r.Sent = certs.CRLOff, [][]byte{middle.cert.Raw, low.cert.Raw}
	if rounds, result := wanted(t, r, have); rounds != nil || result.Chain == nil {
		t.Errorf("%q, %+v", rounds, result)
	}
}

// With bundles, all URLs are wanted, and Find cannot tell before all are known: selectors must not
// depend on what was available first.
func TestWantsOfBundles(t *testing.T) {
	a, b := newCA(t, "A", nil), newCA(t, "B", nil)
	low := newCA(t, "Low", a)
	byB := &ca{cert: b.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Low"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, low.key.Public(), nil)}
	ek := low.ek(t, "/a", "/b", "/crl")
	r := certs.Request{
		Leaf: ek, Anchors: anchors(t, map[string]*ca{"a": a, "b": b}), Profile: certs.EK(), Now: now(),
		Hand: &shelf{bodies: map[string][]byte{"/a": low.cert.Raw}},
	}
	if result, err := certs.Find(r); err != nil || result.Chain != nil || len(result.Wants) != 1 {
		t.Errorf("with one: %+v, %v", result, err)
	}
	rounds, result := wanted(t, r, map[string][]byte{"/a": low.cert.Raw, "/b": byB.cert.Raw})
	if d := cmp.Diff([][]string{{"/a", "/b"}}, rounds); d != "" {
		t.Error(d)
	}
	if result.Chain == nil || !slices.Equal(result.Chain.Bundles, []string{"a", "b"}) {
		t.Errorf("%+v", result)
	}
}

// A memo does not confuse signatures: what one leaf has proved does not help another, nor the same
// leaf with a byte changed.
func TestMemo(t *testing.T) {
	root, other := newCA(t, "Root", nil), newCA(t, "Other", nil)
	memo := certs.NewMemo()
	find := func(anchor *ca, leaf *x509.Certificate) bool {
		t.Helper()
		result, err := certs.Find(certs.Request{
			Leaf: leaf, Anchors: anchors(t, map[string]*ca{"": anchor}), Profile: certs.EK(), Now: now(), Verified: memo,
		})
		if err != nil {
			t.Fatal(err)
		}
		return result.Chain != nil
	}
	ek := root.ek(t)
	for range 2 {
		if !find(root, ek) {
			t.Error("not found")
		}
	}
	for at := range len(ek.Raw) {
		der := slices.Clone(ek.Raw)
		der[at] ^= 1
		changed, err := x509.ParseCertificate(der)
		if err == nil && find(root, changed) {
			t.Errorf("found with byte %d changed", at)
		}
	}
	if find(other, ek) || !find(root, ek) {
		t.Error("by another CA")
	}
}

// Whatever is at a certificate's URLs, and whatever the machine sends along, Find ends, does not
// panic, and admits no machine whose certificate was not signed by an anchor, directly or through
// others.
func FuzzFind(f *testing.F) {
	root := newCA(f, "Root", nil)
	low := newCA(f, "Low", root, "/root", "/root.crl")
	ek := low.ek(f, "/low", "/low.crl")
	direct := root.ek(f, "/root", "/root.crl")
	f.Add(ek.Raw, low.cert.Raw, low.cert.Raw, root.crl(f), uint8(2))
	f.Add(ek.Raw, []byte(nil), low.cert.Raw, low.crl(f, ek), uint8(1))
	f.Add(direct.Raw, root.cert.Raw, []byte{0x30, 0}, root.crl(f), uint8(2))
	f.Add(ek.Raw, []byte(nil), low.cert.Raw, low.crl(f, ek), uint8(0x41))
	f.Add(low.cert.Raw, low.cert.Raw, root.cert.Raw, []byte{0x30, 0}, uint8(0))
	one, two := anchors(f, map[string]*ca{"": root}), anchors(f, map[string]*ca{"a": root, "b": newCA(f, "B", nil)})
	signed := func(c, by *x509.Certificate) bool {
		return by.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
	}
	f.Fuzz(func(t *testing.T, der, sent, issuer, crl []byte, how uint8) {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		hand := &shelf{bodies: map[string][]byte{"/low.crl": crl, "/root.crl": crl}, every: issuer, held: []string{"/low.crl"}}
		r := certs.Request{
			Leaf: leaf, Sent: [][]byte{sent, issuer}, Anchors: one, Profile: certs.EK(), Now: now(), Hand: hand,
			CRLs: []certs.CRLMode{certs.CRLOff, certs.CRLIfAvailable, certs.CRLRequired}[how%3],
		}
		if how&0x80 != 0 {
			r.Anchors = two
		}
		r.Everything = how&0x40 != 0
		result, err := certs.Find(r)
		if err != nil && (result.Chain != nil || len(result.Wants) > 0) {
			t.Errorf("beside an error: %+v", result)
		}
		if r.Everything && (result.Chain != nil || err == nil && len(result.Wants) == 0) {
			t.Errorf("decided: %+v", result)
		}
		vouched := signed(leaf, root.cert)
		for _, raw := range [][]byte{sent, issuer} {
			all, _ := certs.ReadIssuers(raw, certs.EK())
			if c, err := x509.ParseCertificate(raw); err == nil {
				all = append(all, c)
			}
			for _, c := range all {
				vouched = vouched || c.IsCA && signed(leaf, c)
			}
		}
		if result.Chain != nil && (!vouched || leaf.IsCA) {
			t.Errorf("found: %+v", result.Chain)
		}
	})
}

// A profile decides which leaves count: an EK certificate is not a DevID certificate, and vice
// versa.
func TestProfiles(t *testing.T) {
	root := newCA(t, "Root", nil)
	signs := root.issue(t, &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature}, root.key.Public(), nil)
	for _, c := range []struct {
		profile certs.Profile
		leaf    *x509.Certificate
		why     string
	}{
		{certs.EK(), root.ek(t), ""},
		{certs.EK(), signs, "the EK certificate has a key usage that allows neither key encipherment nor key agreement"},
		{certs.DevID(), signs, ""},
		{certs.DevID(), root.ek(t), "the DevID certificate has a key usage that does not allow digital signatures"},
	} {
		found, err := certs.Find(certs.Request{
			Leaf: c.leaf, Anchors: anchors(t, map[string]*ca{"": root}), Profile: c.profile, Now: now(),
		})
		if err != nil || found.Why != c.why || (found.Chain == nil) != (c.why != "") {
			t.Errorf("%v: %+v, %v, want %q", c.profile, found, err, c.why)
		}
	}
}
