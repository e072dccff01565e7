package ekca_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// Operators configure whatever they hold of a vendor's chain: any part of it is
// enough, and only what is missing in between must come from the machine.
func TestEveryConfiguredCAIsAnAnchor(t *testing.T) {
	root := newRoot(t, "Root")
	middle := root.sub(t, "Middle")
	low := middle.sub(t, "Low")
	ek := low.ek(t)
	for name, c := range map[string]struct {
		configured []*authority
		sent       []*authority
		listed     bool
	}{
		"all":                          {[]*authority{root, middle, low}, nil, true},
		"lowest alone":                 {[]*authority{low}, nil, true},
		"lowest, more sent":            {[]*authority{low}, []*authority{middle, root}, true},
		"middle, lowest sent":          {[]*authority{middle}, []*authority{low}, true},
		"root, both sent":              {[]*authority{root}, []*authority{low, middle}, true},
		"root, both sent, other order": {[]*authority{root}, []*authority{middle, low}, true},
		"root, all sent, twice":        {[]*authority{root}, []*authority{root, low, low, root, middle, middle}, true},
		"root, one missing":            {[]*authority{root}, []*authority{low}, false},
		"root, other missing":          {[]*authority{root}, []*authority{middle}, false},
		"root and lowest":              {[]*authority{root, low}, nil, true},
		"another, all sent":            {[]*authority{newRoot(t, "Other")}, []*authority{low, middle, root}, false},
	} {
		t.Run(name, func(t *testing.T) {
			src, sent := trusting(t, c.configured...), certsOf(c.sent...)
			if c.listed {
				wantListed(t, src, ek, sent...)
			} else {
				wantNotListed(t, "no configured CA", src, ek, sent...)
			}
		})
	}
}

// Stops a machine that makes a CA of its own: with the name and the key
// identifier of a configured one, and sends it along.
func TestAnImpostorOfAConfiguredCA(t *testing.T) {
	root := newRoot(t, "Root")
	impostor := newRoot(t, "Root", func(c *x509.Certificate) {
		c.SubjectKeyId, c.SerialNumber = root.cert.SubjectKeyId, root.cert.SerialNumber
	})
	src := trusting(t, root)
	ek := impostor.ek(t)
	wantNotListed(t, "no configured CA", src, ek)
	wantNotListed(t, "no configured CA", src, ek, impostor.cert)
	wantNotListed(t, "no configured CA", src, ek, impostor.cert, root.cert)
	sub := impostor.sub(t, "Sub")
	wantNotListed(t, "no configured CA", src, sub.ek(t), sub.cert, impostor.cert, root.cert)
}

func forTLS(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

// Stops the owner of one genuine certificate, an EK's or a TLS server's, who
// signs certificates with its key. Each row is a certificate by the configured
// root that must not join.
func TestWhatMayNotJoin(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	for name, edit := range map[string]edit{
		"no CA":                func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageCertSign },
		"no basic constraints": func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false },
		"may not sign":         func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature },
		"expired":              func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(-time.Hour) },
		"not yet valid":        func(c *x509.Certificate) { c.NotBefore = certstest.Today().Add(time.Hour) },
		"for TLS servers":      forTLS,
		"name constraints":     func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} },
		"critical and unknown": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{certstest.Extension(t, true, asn1.ObjectIdentifier{1, 2, 3}, 1)}
		},
		"demands a policy": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{certstest.Extension(t, true, asn1.ObjectIdentifier{2, 5, 29, 36}, struct {
				N int `asn1:"tag:0"`
			}{0})}
		},
		"unreadable alternative name": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{certstest.Extension(t, true, asn1.ObjectIdentifier{2, 5, 29, 17}, []int{1})}
		},
	} {
		t.Run(name, func(t *testing.T) {
			key := certstest.NewKey(t)
			der, err := x509.CreateCertificate(nil, certstest.CA(t, "Sub", edit), root.cert, key.Public(), root.key)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatalf("it cannot be sent, so nothing is tested: %v", err)
			}
			sub := &authority{cert: cert, key: key}
			// What it signs looks as if a CA had.
			ek := sub.as(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }).ek(t)
			wantNotListed(t, "no configured CA", src, ek, sub.cert)
		})
	}
	good := root.sub(t, "Sub", func(c *x509.Certificate) {
		c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
	})
	wantListed(t, src, good.ek(t), good.cert)
}

// Each row is a CA certificate that an operator has configured: what it says about itself applies,
// and the operator reads why it is not used.
func TestConfiguredCAThatMayNotVouch(t *testing.T) {
	other := newRoot(t, "Other")
	for name, c := range map[string]struct {
		edit edit
		want string
	}{
		"no CA": {func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }, "is not a CA certificate"},
		"no basic constraints": {func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid = false, false
		}, "is not a CA certificate"},
		"may not sign":  {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }, "no keyCertSign"},
		"expired":       {func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(-time.Hour) }, "has expired on"},
		"not yet valid": {func(c *x509.Certificate) { c.NotBefore = certstest.Today().Add(time.Hour) }, "is not valid before"},
		"name constraints": {func(c *x509.Certificate) {
			c.ExcludedDNSDomains = []string{"org"}
		}, "name constraints"},
		"critical and unknown": {func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{certstest.Extension(t, true, asn1.ObjectIdentifier{1, 2, 3}, 1)}
		}, "extension 1.2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			root := newRoot(t, "Root", c.edit)
			src := trusting(t, other, root)
			status := src.Status()
			if status.Entries != 1 || len(status.Warnings) != 1 {
				t.Fatalf("Status = %+v", status)
			}
			wantText(t, status.Warnings[0], c.want)
			wantText(t, status.Warnings[0], `ca.pem": certificate 2`)
			wantNotListed(t, "no configured CA", src, root.as(func(c *x509.Certificate) {
				c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
			}).ek(t))
		})
	}
}

// An EK certificate in a folder of CAs is a mistake and admits nobody.
func TestConfiguredEKCertificate(t *testing.T) {
	root := newRoot(t, "Root")
	ek := root.ek(t)
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: certstest.File(t, newRoot(t, "Other").cert, ek)}})
	wantText(t, strings.Join(src.Status().Warnings, "\n"), "is not a CA certificate")
	wantNotListed(t, "no configured CA", src, ek)
}

// A vendor limits what a CA may issue, but a CA that is configured itself is not limited by the CAs
// above it.
func TestPathLength(t *testing.T) {
	limit := func(n int) edit {
		return func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = n, n == 0 }
	}
	root := newRoot(t, "Root", limit(1))
	middle := root.sub(t, "Middle", limit(0))
	low := middle.sub(t, "Low")
	src := trusting(t, root)
	wantListed(t, src, middle.ek(t), middle.cert)
	wantListed(t, src, root.ek(t))
	wantNotListed(t, "no configured CA", src, low.ek(t), low.cert, middle.cert)
	wantListed(t, trusting(t, low), low.ek(t))

	// With the way through Low too long, a shorter one must still be found.
	key := certstest.NewKey(t)
	long := root.sub(t, "Between").subWithKey(t, "Issuer", key)
	short := root.subWithKey(t, "Issuer", key)
	wantNotListed(t, "no configured CA", trusting(t, newRoot(t, "Unrelated")), long.ek(t), long.cert, short.cert)
	wantListed(t, src, long.ek(t), long.cert, short.cert)
}

// pile returns a chain of n CAs below root, the lowest first.
func pile(tb testing.TB, root *authority, n int) []*authority {
	tb.Helper()
	var out []*authority
	for i := range n {
		root = root.sub(tb, fmt.Sprint("CA ", i))
		out = append([]*authority{root}, out...)
	}
	return out
}

// A chain has at most 8 CA certificates, the configured one among them.
func TestChainLength(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	for n, listed := range map[int]bool{6: true, 7: true, 8: false, 15: false, 50: false} {
		cas := pile(t, root, n)
		if v := check(t, src, cas[0].ek(t), certsOf(cas...)...); v.Listed != listed {
			t.Errorf("%d CAs sent: %+v", n, v)
		}
	}
}

// Stops chains that a stranger has tangled: certificates that certify each other, many with the
// same name, a self-signed one. None of them causes more than one or two signature checks, since no
// configured CA has signed any.
func TestTangledChains(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	a := newRoot(t, "A")
	b := a.sub(t, "B")
	aByB := b.subWithKey(t, "A", a.key)
	wantNotListed(t, "no configured CA", src, b.ek(t), a.cert, b.cert, aByB.cert)

	var same []*x509.Certificate
	key := certstest.NewKey(t)
	for range 50 {
		same = append(same, newRootWithKey(t, "Same", key).cert)
	}
	wantNotListed(t, "no configured CA", src, (&authority{cert: same[0], key: key}).ek(t), same...)

	named := newRoot(t, "Root")
	var roots []*x509.Certificate
	for range 16 {
		roots = append(roots, named.sub(t, "Root").cert)
	}
	wantNotListed(t, "no configured CA", src, named.ek(t), append(roots, nil)...)
	wantNotListed(t, "no configured CA", src, named.ek(t), nil, nil)
}

// A loop of genuine certificates, as CAs make them when they certify each
// other, neither hangs a Check nor hides the way out of it.
func TestLoopOfGenuineCAs(t *testing.T) {
	root := newRoot(t, "Root")
	a := root.sub(t, "A")
	b := a.sub(t, "B")
	aByB := b.subWithKey(t, "A", a.key)
	bByItself := b.subWithKey(t, "B", b.key)
	wantListed(t, trusting(t, root), b.ek(t), aByB.cert, bByItself.cert, b.cert, a.cert)
	src := load(t, ekca.Config{
		Config: truststore.Config{
			Bundles: map[string]string{
				"root": certstest.File(t, root.cert), "loop": certstest.File(t, a.cert, b.cert, aByB.cert, bByItself.cert),
			},
		},
	})
	if got := wantListed(t, src, b.ek(t)).CAs; !slices.Equal(got, []string{"loop", "root"}) {
		t.Errorf("CAs = %q", got)
	}
}

// The work that one attestation can cause is limited even for the owner of a CA below a configured
// one. What is not found within the limit is not "not listed".
func TestBoundedWork(t *testing.T) {
	root := newRoot(t, "Root")
	var sent []*x509.Certificate
	for range 16 {
		sent = append(sent, root.sub(t, "Root").cert)
	}
	stranger := newRoot(t, "Root")
	v, err := trusting(t, root).Check(t.Context(), evidence(stranger.ek(t), sent...))
	if err == nil || v.Listed {
		t.Fatalf("Check = %+v, %v", v, err)
	}
	wantText(t, err.Error(), "more than 32 signature checks")
}

// Two CAs of one vendor may bear one name. With the issuer's key identifier the
// right one is tried first, and without it all are.
func TestCAsOfOneName(t *testing.T) {
	a, b := newRoot(t, "Same"), newRoot(t, "Same")
	stranger := newRoot(t, "Same")
	noID := func(c *x509.Certificate) { c.SubjectKeyId = nil }
	wrongID := func(c *x509.Certificate) { c.SubjectKeyId = a.cert.SubjectKeyId }
	src := load(t, ekca.Config{Config: truststore.Config{Bundles: map[string]string{"a": certstest.File(t, a.cert), "b": certstest.File(t, b.cert)}}})
	for _, c := range []struct {
		by   *authority
		want string
	}{{a, "a"}, {b, "b"}, {a.as(noID), "a"}, {b.as(noID), "b"}, {b.as(wrongID), "b"}} {
		if got := wantListed(t, src, c.by.ek(t)).CAs; !slices.Equal(got, []string{c.want}) {
			t.Errorf("CAs = %q, want %q", got, c.want)
		}
	}
	for _, by := range []*authority{stranger, stranger.as(noID), stranger.as(wrongID)} {
		wantNotListed(t, "no configured CA", src, by.ek(t))
	}
}

// rawName is a name of one attribute an RDN, each with a string type of its own.
func rawName(tb testing.TB, values ...asn1.RawValue) []byte {
	tb.Helper()
	var rdns [][]any
	for i, v := range values {
		pair := struct {
			ID    asn1.ObjectIdentifier
			Value asn1.RawValue
		}{asn1.ObjectIdentifier{2, 5, 4, 10 + i}, v}
		rdns = append(rdns, []any{pair})
	}
	var seq []asn1.RawValue
	for _, rdn := range rdns {
		seq = append(seq, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: certstest.Marshal(tb, rdn[0])})
	}
	return certstest.Marshal(tb, seq)
}

func text(tag int, s string) asn1.RawValue { return asn1.RawValue{Tag: tag, Bytes: []byte(s)} }

// CAs and the certificates they have issued write one name in two ways (RFC
// 5280, 7.1); another name is another CA's, whoever has signed.
func TestIssuerNamesAreComparedByMeaning(t *testing.T) {
	const utf8, printable, t61, ia5, bmp = 12, 19, 20, 22, 30
	named := func(name []byte) edit { return func(c *x509.Certificate) { c.RawSubject = name } }
	root := newRoot(t, "", named(rawName(t, text(utf8, "Advanced Micro Devices"), text(utf8, "AMDTPM"))))
	src := trusting(t, root)
	for name, c := range map[string]struct {
		issuer []byte
		listed bool
	}{
		"string types": {rawName(t, text(printable, "Advanced Micro Devices"), text(ia5, "AMDTPM")), true},
		"case":         {rawName(t, text(t61, "ADVANCED micro devices"), text(utf8, "amdtpm")), true},
		"white space": {
			rawName(t, text(utf8, " Advanced  Micro\tDevices "), text(bmp, "\x00A\x00M\x00D\x00T\x00P\x00M")),
			true,
		},
		"another":       {rawName(t, text(utf8, "Advanced Micro Devices"), text(utf8, "AMDTPN")), false},
		"order of RDNs": {rawName(t, text(utf8, "AMDTPM"), text(utf8, "Advanced Micro Devices")), false},
		"less":          {rawName(t, text(utf8, "Advanced Micro Devices")), false},
		"nothing":       {rawName(t), false},
	} {
		t.Run(name, func(t *testing.T) {
			ek := root.as(named(c.issuer)).ek(t)
			if c.listed {
				wantListed(t, src, ek)
			} else {
				wantNotListed(t, "no configured CA", src, ek)
			}
		})
	}
}

// Selectors name every bundle to which there is a chain, however the bundles share it, in a fixed
// order.
func TestEveryBundleThatVouches(t *testing.T) {
	root, other := newRoot(t, "Root"), newRoot(t, "Other")
	sub := root.sub(t, "Sub")
	cross := other.subWithKey(t, "Sub", sub.key)
	ek := sub.ek(t)
	for name, c := range map[string]struct {
		bundles map[string][]*authority
		sent    []*authority
		want    []string
	}{
		"one":             {map[string][]*authority{"x": {sub}}, nil, []string{"x"}},
		"the same in two": {map[string][]*authority{"y": {sub}, "x": {sub}}, nil, []string{"x", "y"}},
		"above":           {map[string][]*authority{"up": {root}, "low": {sub}}, nil, []string{"low", "up"}},
		"unrelated":       {map[string][]*authority{"no": {newRoot(t, "No")}, "low": {sub}}, nil, []string{"low"}},
		"both parents": {
			map[string][]*authority{"a": {root, sub}, "b": {other, cross}},
			nil,
			[]string{"a", "b"},
		},
		"both parents, one sent": {
			map[string][]*authority{"a": {root, sub}, "b": {other}},
			[]*authority{cross},
			[]string{"a", "b"},
		},
		"both parents, one unsent": {
			map[string][]*authority{"a": {root, sub}, "b": {other}},
			nil,
			[]string{"a"},
		},
		"both parents, both sent": {
			map[string][]*authority{"a": {root}, "b": {other}},
			[]*authority{sub, cross},
			[]string{"a", "b"},
		},
		"only one vouches": {map[string][]*authority{"a": {root}, "b": {other}}, []*authority{sub}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			paths := make(map[string]string)
			for bundle, cas := range c.bundles {
				paths[bundle] = certstest.File(t, certsOf(cas...)...)
			}
			got := wantListed(t, load(t, ekca.Config{Config: truststore.Config{Bundles: paths}}), ek, certsOf(c.sent...)...)
			if diff := cmp.Diff(c.want, got.CAs); diff != "" {
				t.Error(diff)
			}
			if got.Certificate.IssuerCN != "Sub" {
				t.Errorf("issuer %q", got.Certificate.IssuerCN)
			}
		})
	}
}

// A chain through a CA certificate that has expired, is weakly signed or is for another purpose
// does not count for a bundle, even if that CA is configured.
func TestBundleAboveAnUnfitCA(t *testing.T) {
	root := newRoot(t, "Root")
	low := root.sub(t, "Low", forTLS)
	src := load(t, ekca.Config{Config: truststore.Config{Bundles: map[string]string{"low": certstest.File(t, low.cert), "up": certstest.File(t, root.cert)}}})
	if got := wantListed(t, src, low.ek(t)).CAs; !slices.Equal(got, []string{"low"}) {
		t.Errorf("CAs = %q", got)
	}

	now := certstest.Today()
	old := root.sub(t, "Old", func(c *x509.Certificate) { c.NotAfter = certstest.Today().AddDate(1, 0, 0) })
	src = load(t, ekca.Config{
		Config: truststore.Config{
			Bundles: map[string]string{"old": certstest.File(t, old.cert), "up": certstest.File(t, root.cert)},
			Now:     func() time.Time { return now },
		},
	})
	if got := wantListed(t, src, old.ek(t)).CAs; !slices.Equal(got, []string{"old", "up"}) {
		t.Errorf("CAs = %q", got)
	}
	now = certstest.Today().AddDate(2, 0, 0)
	wantNotListed(t, "no configured CA", src, old.ek(t))
}

// An attacker's verdict must not change what another Check returns.
func TestVerdictsAreNotShared(t *testing.T) {
	root := newRoot(t, "Root")
	src := load(t, ekca.Config{Config: truststore.Config{Bundles: map[string]string{"a": certstest.File(t, root.cert)}}})
	ek := root.ek(t)
	first := check(t, src, ek)
	first.Attributes.CAs[0], first.Attributes.Certificate.IssuerCN = "forged", "forged"
	if second := wantListed(t, src, ek); second.CAs[0] != "a" || second.Certificate.IssuerCN != "Root" {
		t.Errorf("second verdict: %+v", second)
	}
	var _ sources.Source = src
}
