package crl_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/crl"
)

type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newCA returns a CA, the same in every process.
func newCA(tb testing.TB, name string) ca {
	tb.Helper()
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return caOf(tb, name, ed25519.NewKeyFromSeed(seed))
}

func caOf(tb testing.TB, name string, key crypto.Signer) ca {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(4e9, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
		SubjectKeyId: []byte{1, 2, 3},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return ca{cert, key}
}

func issued() time.Time { return time.Unix(1_700_000_000, 0).UTC() }

// list returns a CRL of a CA in DER.
func (a ca) list(tb testing.TB, edits ...func(*x509.RevocationList)) []byte {
	tb.Helper()
	template := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: issued(), NextUpdate: issued().Add(time.Hour),
	}
	for _, e := range edits {
		e(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func revoking(serials ...*big.Int) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		for _, s := range serials {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: s, RevocationTime: issued()})
		}
	}
}

func withExtension(id asn1.ObjectIdentifier, critical bool, value []byte) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: id, Critical: critical, Value: value})
	}
}

func withEntry(reason int, extensions ...pkix.Extension) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: big.NewInt(7), RevocationTime: issued(), ReasonCode: reason, ExtraExtensions: extensions,
		})
	}
}

// asItIs takes two names for the same if their DER is.
func asItIs(name []byte) string { return string(name) }

// lists reports whether l lists a certificate of its own issuer.
func lists(l *crl.List, serial *big.Int) bool { return l.Lists(string(l.RawIssuer), serial) }

// parse reads a list that has to be whole.
func parse(tb testing.TB, der []byte) *crl.List {
	tb.Helper()
	l, err := crl.Parse(der, asItIs)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// A revoked serial number is found and its neighbours are not, whatever their
// lengths, signs and order in the list.
func TestLists(t *testing.T) {
	a := newCA(t, "a")
	long := func(bits uint) *big.Int { return new(big.Int).Lsh(big.NewInt(1), bits) }
	revoked := []*big.Int{
		long(159), big.NewInt(0x80), big.NewInt(3), long(63), big.NewInt(0xff00), long(64), long(1000), big.NewInt(3),
	}
	l := parse(t, a.list(t, revoking(revoked...)))
	if l.Len() != len(revoked) || !l.ThisUpdate.Equal(issued()) || !l.NextUpdate.Equal(issued().Add(time.Hour)) ||
		!bytes.Equal(l.RawIssuer, a.cert.RawSubject) {
		t.Errorf("%d entries, %v to %v", l.Len(), l.ThisUpdate, l.NextUpdate)
	}
	one := big.NewInt(1)
	for _, serial := range revoked {
		if !lists(l, serial) {
			t.Errorf("%x is not listed", serial)
		}
		for _, n := range []*big.Int{
			new(big.Int).Add(serial, one), new(big.Int).Sub(serial, one), new(big.Int).Neg(serial),
			new(big.Int).Lsh(serial, 8),
		} {
			if lists(l, n) {
				t.Errorf("%x is listed", n)
			}
		}
	}
	if lists(l, nil) || lists(l, new(big.Int)) || lists(l, long(2000)) {
		t.Error("a serial number that is not there is listed")
	}
	if empty := parse(t, a.list(t)); empty.Len() != 0 || lists(empty, one) {
		t.Error("an empty list lists something")
	}
}

// The older of two lists is the one that was issued earlier, whatever their numbers are; if both
// were issued at the same time, the numbers decide. A replayed older list must not replace a newer
// one.
func TestBefore(t *testing.T) {
	a := newCA(t, "a")
	at := func(d time.Duration, number int64) *crl.List {
		return parse(t, a.list(t, func(l *x509.RevocationList) {
			l.ThisUpdate, l.Number = issued().Add(d), big.NewInt(number)
		}))
	}
	bare := func(d time.Duration) *crl.List {
		der := a.list(t, func(l *x509.RevocationList) { l.ThisUpdate, l.Number = issued().Add(d), big.NewInt(9) })
		// An extension that nobody knows is in the number's place.
		return parse(t, bytes.Replace(der, []byte("\x06\x03\x55\x1d\x14"), []byte("\x06\x03\x55\x1d\x7f"), 1))
	}
	long := parse(t, a.list(t, func(l *x509.RevocationList) { l.Number = new(big.Int).Lsh(big.NewInt(1), 158) }))
	for name, c := range map[string]struct {
		one, other *crl.List
		want       bool
	}{
		"itself":                      {at(0, 1), at(0, 1), false},
		"a second earlier":            {at(0, 1), at(time.Second, 1), true},
		"a second later":              {at(time.Second, 1), at(0, 1), false},
		"earlier, of a higher number": {at(0, 9), at(time.Second, 1), true},
		"a lower number":              {at(0, 1), at(0, 2), true},
		"a higher number":             {at(0, 2), at(0, 1), false},
		"a number of 20 bytes":        {at(0, 1<<62), long, true},
		"without a number":            {bare(0), at(0, 1), true},
		"before one without":          {at(0, 1), bare(0), false},
		"both without":                {bare(0), bare(0), false},
		"without, later":              {bare(time.Second), at(0, 1), false},
	} {
		if got := c.one.Before(c.other); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A number that is malformed, or longer than RFC 5280 allows, is no reason to believe that a list
// is new.
func TestBadNumber(t *testing.T) {
	a := newCA(t, "a")
	der := a.list(t, func(l *x509.RevocationList) { l.Number = big.NewInt(0x1234) })
	for _, value := range []string{"\x02\x02\x92\x34", "\x02\x02\x00\x34", "\x04\x02\x12\x34", "\x02\x01\x12\x34"} {
		changed := bytes.Replace(der, []byte("\x02\x02\x12\x34"), []byte(value), 1)
		if l, err := crl.Parse(changed, asItIs); err == nil || l != nil {
			t.Errorf("%x is accepted", value)
		}
	}
	// CreateRevocationList makes none that is longer: an extension of the same
	// identifier behind another one takes its place.
	long := a.list(t, withExtension(asn1.ObjectIdentifier{2, 5, 29, 127}, false, append([]byte{2, 22, 1}, make([]byte, 21)...)))
	long = bytes.Replace(long, []byte("\x06\x03\x55\x1d\x14"), []byte("\x06\x03\x55\x1d\x7e"), 1)
	long = bytes.Replace(long, []byte("\x06\x03\x55\x1d\x7f"), []byte("\x06\x03\x55\x1d\x14"), 1)
	if _, err := crl.Parse(long, asItIs); err == nil {
		t.Error("a number of 22 bytes is accepted")
	}
}

// A list of a hundred thousand entries is looked through whole, and kept in four
// bytes an entry beside its own.
func TestLongList(t *testing.T) {
	serials := make([]*big.Int, 50_000)
	for i := range serials {
		serials[i] = new(big.Int).SetUint64(uint64(i)*0x9e3779b97f4a7c15 | 1)
	}
	l := parse(t, newCA(t, "a").list(t, revoking(serials...)))
	for _, s := range serials {
		if !lists(l, s) {
			t.Fatalf("%x is not listed", s)
		}
	}
	if lists(l, big.NewInt(2)) {
		t.Error("2 is listed")
	}
}

// An entry says by its reason that a certificate is revoked, except that it is
// revoked no longer (RFC 5280, 5.3.1).
func TestReasons(t *testing.T) {
	a := newCA(t, "a")
	for reason, want := range map[int]bool{0: true, 1: true, 4: true, 6: true, 8: false, 10: true} {
		if got := lists(parse(t, a.list(t, withEntry(reason))), big.NewInt(7)); got != want {
			t.Errorf("reason %d: listed is %v", reason, got)
		}
	}
}

// Only a list that is signed with the CA's key counts: stops a list that somebody on the way has
// written.
func TestSignedBy(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other := newCA(t, "CA")
	for name, c := range map[string]struct {
		ca         ca
		algorithms []x509.SignatureAlgorithm
	}{
		"RSA": {caOf(t, "CA", rsaKey), []x509.SignatureAlgorithm{
			x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
			x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		}},
		"ECDSA": {caOf(t, "CA", ecKey), []x509.SignatureAlgorithm{
			x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
		}},
		"Ed25519": {newCA(t, "x"), []x509.SignatureAlgorithm{x509.PureEd25519}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, algorithm := range c.algorithms {
				l := parse(t, c.ca.list(t, func(l *x509.RevocationList) { l.SignatureAlgorithm = algorithm }))
				for range 2 {
					if !l.SignedBy(c.ca.cert, "its own") || l.SignedBy(other.cert, "another") {
						t.Errorf("%v: whose signature it is was not found out", algorithm)
					}
				}
				for i := range 20 {
					if l.SignedBy(other.cert, string(rune('a'+i))) {
						t.Error("another's")
					}
				}
				if !l.SignedBy(c.ca.cert, "its own") {
					t.Error("forgotten, and not found out again")
				}
			}
		})
	}
	der := other.list(t, revoking(big.NewInt(5)))
	at := bytes.Index(der, []byte{2, 1, 5}) + 2
	der[at] = 6
	if parse(t, der).SignedBy(other.cert, "") {
		t.Error("a list in which a number has been changed is the CA's")
	}
}

// SHA-1 no longer proves who has signed something.
func TestWeakSignature(t *testing.T) {
	a := newCA(t, "a")
	ed25519OID := []byte("\x30\x05\x06\x03\x2b\x65\x70")
	sha1RSA := []byte("\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05\x05\x00")
	if l, err := crl.Parse(replaceAlgorithms(t, a.list(t), ed25519OID, sha1RSA, sha1RSA), asItIs); err == nil || l != nil {
		t.Errorf("SHA-1: %v, %v", l, err)
	}
	mixed := replaceAlgorithms(t, a.list(t), ed25519OID, ed25519OID, sha1RSA)
	if l, err := crl.Parse(mixed, asItIs); err == nil || l != nil {
		t.Errorf("two algorithms: %v, %v", l, err)
	}
}

// replaceAlgorithms writes other signature algorithms into a list.
func replaceAlgorithms(tb testing.TB, der, old, inner, outer []byte) []byte {
	tb.Helper()
	var list struct {
		TBS, Algorithm asn1.RawValue
		Signature      asn1.BitString
	}
	var tbs asn1.RawValue
	if _, err := asn1.Unmarshal(der, &list); err != nil {
		tb.Fatal(err)
	}
	list.Algorithm.FullBytes = outer
	tbs.Class, tbs.Tag, tbs.IsCompound = 0, asn1.TagSequence, true
	tbs.Bytes = bytes.Replace(list.TBS.Bytes, old, inner, 1)
	list.TBS = tbs
	out, err := asn1.Marshal(list)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// Extensions of CRLs and of their entries.
var (
	delta               = asn1.ObjectIdentifier{2, 5, 29, 27}
	issuingDistribution = asn1.ObjectIdentifier{2, 5, 29, 28}
	certificateIssuer   = asn1.ObjectIdentifier{2, 5, 29, 29}
	unknown             = asn1.ObjectIdentifier{1, 2, 3}
)

func context(tag byte, content ...byte) []byte {
	return append([]byte{tag, byte(len(content))}, content...)
}

func sequence(parts ...[]byte) []byte { return context(0x30, bytes.Join(parts, nil)...) }

// named is a distribution point with a URL.
func named(url string) []byte {
	return context(0xa0, context(0xa0, context(0x86, []byte(url)...)...)...)
}

// A list that is for only some of a CA's certificates, or some reasons, must not clear others. A
// part of it that is not understood may revoke the rest.
func TestUnusable(t *testing.T) {
	a := newCA(t, "a")
	extension := func(critical bool) pkix.Extension {
		return pkix.Extension{Id: unknown, Critical: critical, Value: []byte{5, 0}}
	}
	yes := byte(0xff)
	for name, edit := range map[string]func(*x509.RevocationList){
		"delta":                      withExtension(delta, true, []byte{2, 1, 1}),
		"delta, not critical":        withExtension(delta, false, []byte{2, 1, 1}),
		"critical and unknown":       withExtension(unknown, true, []byte{5, 0}),
		"entry critical and unknown": withEntry(1, extension(true)),
		"entry of another issuer":    withEntry(1, pkix.Extension{Id: certificateIssuer, Value: []byte{0x30, 0}}),
		"some reasons":               withExtension(issuingDistribution, true, sequence(context(0x83, 1, 2))),
		"attribute certificates":     withExtension(issuingDistribution, true, sequence(context(0x85, yes))),
		"named by its issuer":        withExtension(issuingDistribution, true, sequence(context(0xa0, 0xa1, 0))),
		"named otherwise":            withExtension(issuingDistribution, true, sequence(context(0xa0, 0xa0, 2, 0xa4, 0))),
		"not a bool":                 withExtension(issuingDistribution, true, sequence(context(0x81, 1))),
		"not a sequence":             withExtension(issuingDistribution, true, []byte{5, 0}),
		"cut off":                    withExtension(issuingDistribution, true, []byte{0x30, 2, 0x81, 5}),
	} {
		t.Run(name, func(t *testing.T) {
			if l, err := crl.Parse(a.list(t, edit), asItIs); err == nil || l != nil {
				t.Errorf("%v, %v", l, err)
			}
		})
	}
	noReason := bytes.Replace(a.list(t, withEntry(4)), []byte{10, 1, 4}, []byte{5, 1, 4}, 1)
	if l, err := crl.Parse(noReason, asItIs); err == nil || l != nil {
		t.Errorf("a reason that is none: %v, %v", l, err)
	}
	if l := parse(t, a.list(t, withEntry(1, extension(false)))); !lists(l, big.NewInt(7)) {
		t.Error("an extension that is not critical has taken an entry away")
	}
	parse(t, a.list(t, withExtension(unknown, false, []byte{5, 0})))
}

// What a list is for (RFC 5280, 5.2.5): one that does not cover a certificate does
// not clear it.
func TestCovers(t *testing.T) {
	a := newCA(t, "a")
	const url, other = "http://a.test/1.crl", "http://a.test/2.crl"
	yes := byte(0xff)
	for name, c := range map[string]struct {
		scope      []byte
		user, ca   bool
		otherUsers bool
	}{
		"none":                {nil, true, true, true},
		"empty":               {sequence(), true, true, true},
		"all false":           {sequence(context(0x81, 0), context(0x82, 0), context(0x84, 0)), true, true, true},
		"users":               {sequence(context(0x81, yes)), true, false, true},
		"CAs":                 {sequence(context(0x82, yes)), false, true, false},
		"distribution point":  {sequence(named(url)), true, true, false},
		"both":                {sequence(named(url), context(0x81, yes)), true, false, false},
		"another point":       {sequence(named(url + "x")), false, false, false},
		"another point alone": {sequence(named(other)), false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			var edits []func(*x509.RevocationList)
			if c.scope != nil {
				edits = append(edits, withExtension(issuingDistribution, true, c.scope))
			}
			l := parse(t, a.list(t, edits...))
			if l.Covers(false, []string{url}) != c.user || l.Covers(true, []string{url}) != c.ca ||
				l.Covers(false, []string{other}) != c.otherUsers {
				t.Errorf("covers %v, %v, %v", l.Covers(false, []string{url}), l.Covers(true, []string{url}),
					l.Covers(false, []string{other}))
			}
		})
	}
	twice := a.list(t, withExtension(issuingDistribution, true, sequence(named(url))),
		withExtension(issuingDistribution, true, sequence(named(other))))
	if l, err := crl.Parse(twice, asItIs); err == nil || l != nil {
		t.Errorf("a scope given twice: %v, %v", l, err)
	}
}

// A truncated list is an error, at whatever byte, and so is one that never ends.
func TestTorn(t *testing.T) {
	der := newCA(t, "a").list(t, revoking(big.NewInt(5), big.NewInt(6)), withEntry(1))
	for n := range der {
		if l, err := crl.Parse(der[:n], asItIs); err == nil || l != nil {
			t.Fatalf("cut at %d: %v, %v", n, l, err)
		}
	}
	for name, in := range map[string][]byte{
		"something behind": append(slices.Clone(der), 0),
		"HTML":             []byte("<html>"),
		"50 MB":            make([]byte, 50<<20),
		"a certificate":    newCA(t, "a").cert.Raw,
	} {
		if l, err := crl.Parse(in, asItIs); err == nil || l != nil {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
}

// No bytes stop the reader, and what the standard library reads as a plain list
// lists the same here.
func FuzzCRL(f *testing.F) {
	a := newCA(f, "a")
	f.Add(a.list(f))
	f.Add(a.list(f, revoking(big.NewInt(5), big.NewInt(0x80))))
	f.Add(a.list(f, withEntry(8), withEntry(1)))
	f.Add(a.list(f, withExtension(issuingDistribution, true, sequence(named("http://a.test/")))))
	f.Add(a.list(f, withExtension(issuingDistribution, true, sequence(context(0x82, 0xff)))))
	f.Add(a.list(f, withExtension(issuingDistribution, true, sequence(context(0x84, 0xff))), withEntry(1),
		withEntry(1, pkix.Extension{Id: certificateIssuer, Critical: true, Value: sequence(context(0xa4, sequence()...))})))
	f.Fuzz(func(t *testing.T, der []byte) {
		l, err := crl.Parse(der, asItIs)
		if err != nil {
			if l != nil {
				t.Error("a list beside an error")
			}
			return
		}
		l.Covers(true, nil)
		l.SignedBy(a.cert, "a")
		reference, err := x509.ParseRevocationList(der)
		if err != nil {
			return
		}
		if !l.ThisUpdate.Equal(reference.ThisUpdate) || !l.NextUpdate.Equal(reference.NextUpdate) {
			t.Errorf("times %v, %v", l.ThisUpdate, l.NextUpdate)
		}
		removed := make(map[string]bool)
		for _, e := range reference.RevokedCertificateEntries {
			if e.ReasonCode == 8 {
				removed[e.SerialNumber.String()] = true
			}
		}
		for _, e := range reference.RevokedCertificateEntries {
			if !l.Indirect() && !removed[e.SerialNumber.String()] && !lists(l, e.SerialNumber) {
				t.Errorf("%v is not listed", e.SerialNumber)
			}
		}
		if l.SignedBy(a.cert, "a") != (reference.CheckSignatureFrom(a.cert) == nil) {
			t.Error("whose signature it is was not found out")
		}
	})
}
