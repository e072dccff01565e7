package ekca_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

const day = 24 * time.Hour

var crlModes = []ekca.CRLMode{ekca.CRLIfAvailable, ekca.CRLRequired}

// down makes a site answer nothing that is of use.
func (s *site) down(paths ...string) {
	for _, p := range paths {
		s.handle(p, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	}
}

// Stops somebody who sets the server's clock, such as NTP or a slow clock at boot, from bringing a
// revoked machine back while the CRL's host is down: what a kept CRL lists counts by any clock, in
// memory and after a restart.
func TestRevokedWhateverTheClockSays(t *testing.T) {
	root := newRoot(t, "Root")
	for name, jump := range map[string]time.Duration{
		"seconds back": -10 * time.Second, "a month back": -30 * day, "200 days back": -200 * day,
		"a month ahead": 30 * day, "two years ahead": 730 * day,
	} {
		for _, mode := range crlModes {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				t.Parallel() // each waits until requests have been made again
				web, now := newSite(t), newClock()
				cfg := crlConfig(t, mode, root, web)
				cfg.Now, cfg.CachePath = now.read, filepath.Join(t.TempDir(), "cache.db")
				bad := root.ek(t, crlsAt(web.url("/crl")))
				web.put("/crl", root.crl(t, dated(2, certstest.Today().Add(-time.Hour), certstest.Today().Add(day)), revoking(bad)))
				src := load(t, cfg)
				runUntilWritten(t, src, func() { wantOutcome(t, notListed, "revoked", src, bad) })
				web.down("/crl")
				now.pass(jump)
				wantOutcome(t, notListed, "revoked", src, bad)
				wantOutcome(t, notListed, "revoked", load(t, cfg), bad)
				// Nor does an older list that is valid by that clock.
				web.put("/crl", root.crl(t, dated(1, certstest.Today().Add(-250*day), certstest.Today().Add(800*day))))
				now.pass(20 * time.Minute)
				wantOutcome(t, notListed, "revoked", src, bad)
				again := load(t, cfg)
				wantOutcome(t, notListed, "revoked", again, bad)
				now.pass(20*time.Minute - jump)
				wantOutcome(t, notListed, "revoked", again, bad)
			})
		}
	}
}

// A CA whose clock was ahead for a moment can publish its next list, if that has all
// that the one from the future has.
func TestCRLFromTheFutureIsFollowed(t *testing.T) {
	root := newRoot(t, "Root")
	web, now := newSite(t), newClock()
	cfg := crlConfig(t, ekca.CRLRequired, root, web)
	cfg.Now = now.read
	src := load(t, cfg)
	other := &x509.Certificate{SerialNumber: big.NewInt(0x777)}
	ek := root.ek(t, crlsAt(web.url("/crl")))
	web.put("/crl", root.crl(t, dated(1, certstest.Today().Add(365*day), certstest.Today().Add(366*day)), revoking(other)))
	wantOutcome(t, cannotTell, "it is not valid before", src, ek)
	now.pass(2 * time.Hour)
	web.put("/crl", root.crl(t, dated(2, now.read(), now.read().Add(day))))
	wantOutcome(t, cannotTell, "", src, ek) // an entry is missing: it may be a replayed one
	now.pass(2 * time.Hour)
	web.put("/crl", root.crl(t, dated(3, now.read(), now.read().Add(day)), revoking(other)))
	wantOutcome(t, listed, "", src, ek)
}

// Stops an older CRL that is still valid, at the certificate's other URL, from clearing
// what a newer one lists, over restarts too, and whichever certificate the newer one
// was fetched for.
func TestOlderCRLAtTheOtherURL(t *testing.T) {
	root := newRoot(t, "Root")
	for _, mode := range crlModes {
		t.Run(string(mode), func(t *testing.T) {
			web, now := newSite(t), newClock()
			cfg := crlConfig(t, mode, root, web)
			cfg.Now, cfg.CachePath = now.read, filepath.Join(t.TempDir(), "cache.db")
			bad := root.ek(t, crlsAt(web.url("/a"), web.url("/b")))
			onlyA := root.ek(t, crlsAt(web.url("/a")))            // of the same serial number
			onlyB := root.ek(t, crlsAt(web.url("/b")))            // of the same serial number
			nowhere := root.ek(t, crlsAt("ldap://x.test/cn=crl")) // of the same serial number
			web.down("/a")
			web.put("/b", root.crl(t, dated(2, certstest.Today().Add(-time.Hour), certstest.Today().Add(30*day)), revoking(bad)))
			src := load(t, cfg)
			runUntilWritten(t, src, func() { wantOutcome(t, notListed, "/b", src, onlyB) })
			web.down("/b")
			web.put("/a", root.crl(t, dated(1, certstest.Today().Add(-2*time.Hour), certstest.Today().Add(30*day))))
			now.pass(20 * time.Minute)
			for _, s := range []*ekca.Source{src, load(t, cfg)} {
				for _, ek := range []*x509.Certificate{bad, onlyA, nowhere} {
					wantOutcome(t, notListed, "revoked, according to the CRL at", s, ek)
				}
			}
			// Whoever is not listed has to wait for the newer one, where that is wanted.
			good := root.ek(t, crlsAt(web.url("/a")), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1) })
			wantOutcome(t, listed, "", src, good)
			now.pass(40 * day) // both have run out
			wantOutcome(t, notListed, "revoked", src, bad)
		})
	}
}

// A certificate that was on hold, according to an older list, is released by a newer one
// at its other URL; by one that has run out it is not.
func TestReleasedByTheNewerCRL(t *testing.T) {
	root := newRoot(t, "Root")
	web, now := newSite(t), newClock()
	cfg := crlConfig(t, ekca.CRLRequired, root, web)
	cfg.Now = now.read
	src := load(t, cfg)
	ek := root.ek(t, crlsAt(web.url("/a"), web.url("/b")))
	onlyB := root.ek(t, crlsAt(web.url("/b")), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1) })
	web.put("/a", root.crl(t, dated(1, certstest.Today().Add(-2*time.Hour), certstest.Today().Add(6*day)), revoking(ek)))
	wantOutcome(t, notListed, "revoked", src, ek)
	web.put("/b", root.crl(t, dated(2, certstest.Today().Add(-time.Hour), certstest.Today().Add(day))))
	wantOutcome(t, listed, "", src, onlyB)
	wantOutcome(t, listed, "", src, ek)
	web.down("/b")
	now.pass(2 * day)
	wantOutcome(t, notListed, "revoked", src, ek)
}

// crlBy names a URL of a CRL that another CA issues.
func crlBy(tb testing.TB, issuer *x509.Certificate, urls ...string) edit {
	tb.Helper()
	context := func(tag int, content []byte) []byte {
		return certstest.Marshal(tb, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: true, Bytes: content})
	}
	var points []asn1.RawValue
	for _, url := range urls {
		name := certstest.Marshal(tb, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(url)})
		point := append(context(0, context(0, name)), context(2, context(4, issuer.RawSubject))...)
		points = append(points, asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: point})
	}
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, certstest.Extension(tb, false, asn1.ObjectIdentifier{2, 5, 29, 31}, points))
	}
}

// indirectly makes a CRL an indirect one that lists certificates of some CAs, in turn.
// An entry without a CA is of the same one as that before.
func indirectly(tb testing.TB, entries ...pair) listEdit {
	return func(l *x509.RevocationList) {
		scoped(0x84, 1, 0xff)(l)
		for _, e := range entries {
			entry := x509.RevocationListEntry{SerialNumber: big.NewInt(e.serial), RevocationTime: certstest.Today().Add(-2 * time.Hour)}
			if e.issuer != nil {
				name := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: e.issuer.RawSubject}
				entry.ExtraExtensions = []pkix.Extension{
					certstest.Extension(tb, true, asn1.ObjectIdentifier{2, 5, 29, 29}, []asn1.RawValue{name}),
				}
			}
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, entry)
		}
	}
}

type pair struct {
	issuer *x509.Certificate
	serial int64
}

// Intel's on-die CAs may not sign CRLs, and name an indirect CRL by a CA above them. Only that CA's
// list counts; it clears nobody if it is an ordinary list; and its entries are for the certificates
// of the CA that they name (RFC 5280, 5.3.3 and 6.3.3).
func TestIndirectCRLs(t *testing.T) {
	root := newRoot(t, "Root")
	above := root.sub(t, "ODCA Intermediate")
	noCRLs := func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }
	web := newSite(t)
	const lowSerial = 0xca
	low := above.sub(t, "Kernel CA", noCRLs, crlBy(t, above.cert, web.url("/crl")),
		func(c *x509.Certificate) { c.SerialNumber = big.NewInt(lowSerial) })
	stranger := newRoot(t, "ODCA Intermediate")
	elsewhere := newRoot(t, "Elsewhere")
	silent := root.subWithKey(t, "ODCA Intermediate", certstest.NewKey(t), noCRLs)
	const ekSerial, other = 0xabc, 0xabd
	for name, c := range map[string]struct {
		body                  []byte
		ifAvailable, required outcome
	}{
		"lists nobody":                   {above.crl(t, indirectly(t)), listed, listed},
		"lists the EK":                   {above.crl(t, indirectly(t, pair{low.cert, ekSerial})), notListed, notListed},
		"lists the EK further down":      {above.crl(t, indirectly(t, pair{elsewhere.cert, 1}, pair{low.cert, 2}, pair{nil, ekSerial})), notListed, notListed},
		"lists the CA":                   {above.crl(t, indirectly(t, pair{nil, 3}, pair{above.cert, lowSerial})), notListed, notListed},
		"lists another EK":               {above.crl(t, indirectly(t, pair{low.cert, other})), listed, listed},
		"lists another CA's certificate": {above.crl(t, indirectly(t, pair{elsewhere.cert, ekSerial}, pair{nil, ekSerial})), listed, listed},
		"lists a certificate of its own": {above.crl(t, indirectly(t, pair{nil, ekSerial})), listed, listed},
		"is no indirect list":            {above.crl(t), listed, cannotTell},
		"by another CA of that name":     {stranger.crl(t, indirectly(t)), listed, cannotTell},
		"by the issuer":                  {low.crl(t, indirectly(t)), listed, cannotTell},
		"by a CA that may not":           {silent.crl(t, indirectly(t)), listed, cannotTell},
		"an entry of a CA without name":  {above.crl(t, indirectly(t, pair{&x509.Certificate{}, ekSerial})), listed, cannotTell},
	} {
		t.Run(name, func(t *testing.T) {
			for mode, want := range map[ekca.CRLMode]outcome{ekca.CRLIfAvailable: c.ifAvailable, ekca.CRLRequired: c.required} {
				web.put("/crl", c.body)
				web.put("/root.crl", root.crl(t))
				cfg := crlConfig(t, mode, root, web)
				cfg.CAPath = certstest.File(t, above.cert)
				src := load(t, cfg)
				ek := low.ek(t, crlBy(t, above.cert, web.url("/crl")))
				why := ""
				if want == notListed {
					why = "has been revoked, according to the CRL at"
				}
				v := wantOutcome(t, want, why, src, ek, low.cert)
				if unchecked := want == listed && c.required != listed; unchecked != (v.Unchecked != "") {
					t.Errorf("unchecked: %q", v.Unchecked)
				}
			}
		})
	}
}

// The CA that issues an indirect CRL must be trusted: above the certificate, with whichever of its
// certificates was fetched or sent, or configured.
func TestIssuersOfIndirectCRLs(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	above := root.sub(t, "ODCA Intermediate", crlsAt(web.put("/root.crl", root.crl(t))))
	issuing := above.sub(t, "Issuing CA", crlsAt(web.put("/above.crl", above.crl(t))))
	beside := newRoot(t, "Beside")
	expired := newRoot(t, "Expired", func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(-time.Hour) })
	for name, c := range map[string]struct {
		by   *authority
		cas  []*x509.Certificate
		want outcome
	}{
		"in the chain":   {above, []*x509.Certificate{root.cert}, listed},
		"configured":     {beside, []*x509.Certificate{root.cert, beside.cert}, listed},
		"above the end":  {above, []*x509.Certificate{issuing.cert}, cannotTell},
		"nobody's":       {beside, []*x509.Certificate{root.cert}, cannotTell},
		"out of date":    {expired, []*x509.Certificate{root.cert, expired.cert}, cannotTell},
		"sent by itself": {beside, []*x509.Certificate{root.cert}, cannotTell},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := crlConfig(t, ekca.CRLRequired, root, web)
			cfg.CAPath = certstest.File(t, c.cas...)
			url := web.put("/crl", c.by.crl(t, indirectly(t)))
			ek := issuing.ek(t, crlBy(t, c.by.cert, url))
			sent := []*x509.Certificate{issuing.cert, above.cert}
			if name == "sent by itself" {
				sent = append(sent, c.by.cert)
			}
			wantOutcome(t, c.want, "", load(t, cfg), ek, sent...)
		})
	}
}

// An EK certificate of Intel's 11th generation and its CRL: admitted without a word
// so far, and never under "required".
func TestIntelsIndirectCRL(t *testing.T) {
	read := func(name string) []byte {
		body, err := os.ReadFile(filepath.Join(attestortest.FieldCases(t), name))
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	block, _ := pem.Decode(read("hunt-ca.pem"))
	parse := func(der []byte) *x509.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	hunt, ek, list := parse(block.Bytes), parse(read("intel-resigned.der")), read("indirect.crl")
	const path = "/tsci.intel.com/content/OnDieCA/crls/ODCA_CA2_CSME_Indirect.crl"
	parsed, err := x509.ParseRevocationList(list)
	if err != nil {
		t.Fatal(err)
	}
	named := newRoot(t, "ODCA", func(c *x509.Certificate) { c.RawSubject = parsed.RawIssuer })
	full := func(edits ...listEdit) []byte {
		edits = append(edits, func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate, l.ExtraExtensions = parsed.ThisUpdate, parsed.NextUpdate, parsed.Extensions
		}, func(l *x509.RevocationList) { // as it is, but for the key
			l.ExtraExtensions = nil
			for _, e := range parsed.Extensions {
				if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 28}) {
					l.ExtraExtensions = append(l.ExtraExtensions, e)
				}
			}
		})
		return named.crl(t, edits...)
	}
	for name, c := range map[string]struct {
		cas                   []*x509.Certificate
		body                  []byte
		ifAvailable, required outcome
		why                   string
	}{
		"its CA is unknown": {[]*x509.Certificate{hunt}, list, listed, cannotTell, "ODCA CA2 CSME Intermediate CA"},
		"its CA is another": {[]*x509.Certificate{hunt, named.cert}, list, listed, cannotTell, "not signed by its issuer"},
		"good":              {[]*x509.Certificate{hunt, named.cert}, full(), listed, listed, ""},
		"listed": {[]*x509.Certificate{hunt, named.cert}, full(func(l *x509.RevocationList) {
			indirectly(t, pair{hunt, 1})(l)
			l.RevokedCertificateEntries[0].SerialNumber = ek.SerialNumber
		}), notListed, notListed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for mode, want := range map[ekca.CRLMode]outcome{ekca.CRLIfAvailable: c.ifAvailable, ekca.CRLRequired: c.required} {
				web := newSite(t)
				web.put(path, c.body)
				src := load(t, ekca.Config{
					Config: truststore.Config{
						CAPath:    certstest.File(t, c.cas...),
						AIAHosts:  []string{"tsci.intel.com"},
						MirrorURL: web.url("/"),
						CRL:       mode,
						Now:       func() time.Time { return parsed.ThisUpdate.Add(day) },
					},
				})
				why := c.why
				if want == notListed {
					why = "revoked"
				}
				v := wantOutcome(t, want, why, src, ek)
				if unchecked := want == listed && c.required != listed; unchecked != strings.Contains(v.Unchecked, c.why) && unchecked {
					t.Errorf("unchecked: %q", v.Unchecked)
				}
			}
		})
	}
}

// Stops "not checked" from looking like "checked": under "if_available", a certificate that is
// accepted although no CRL says that it is good comes with the reason, in the verdict and in the
// log line about the decision.
func TestUncheckedIsSaid(t *testing.T) {
	root := newRoot(t, "Root")
	web := newSite(t)
	web.down("/down")
	reasons := func(tb testing.TB, url string) edit {
		name := certstest.Marshal(tb, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(url)})
		full := certstest.Marshal(tb, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: name})
		point := certstest.Marshal(tb, asn1.RawValue{Class: asn1.ClassContextSpecific, IsCompound: true, Bytes: full})
		point = append(point, 0x81, 2, 1, 2)
		return func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, certstest.Extension(tb, false, asn1.ObjectIdentifier{2, 5, 29, 31},
				[]asn1.RawValue{{Tag: asn1.TagSequence, IsCompound: true, Bytes: point}}))
		}
	}
	delta := func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{certstest.Extension(t, true, asn1.ObjectIdentifier{2, 5, 29, 27}, 1)}
	}
	unknown := func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{certstest.Extension(t, true, asn1.ObjectIdentifier{1, 2, 3}, 1)}
	}
	for name, c := range map[string]struct {
		names edit
		why   string
	}{
		"no CRL":          {crlsAt(), "it names no CRL"},
		"another host":    {crlsAt("http://crl.test/x"), `no CRL on an allowed host: ["http://crl.test/x"]`},
		"another scheme":  {crlsAt("ldap://" + web.host() + "/x"), "no CRL on an allowed host"},
		"not found":       {crlsAt(web.url("/none")), "404"},
		"down":            {crlsAt(web.url("/down")), "502"},
		"HTML":            {crlsAt(web.put("/html", []byte("<html>"))), "read a CRL"},
		"a delta":         {crlsAt(web.put("/delta", root.crl(t, delta))), "delta"},
		"an extension":    {crlsAt(web.put("/unknown", root.crl(t, unknown))), "1.2.3"},
		"split":           {crlsAt(web.put("/split", root.crl(t, scoped(0x83, 2, 1, 2)))), "some reasons"},
		"split by itself": {reasons(t, web.put("/full", root.crl(t))), "some reasons"},
		"malformed": {func(c *x509.Certificate) {
			crlBy(t, &x509.Certificate{RawSubject: []byte{0x30, 0}}, web.url("/full"))(c)
		}, "no configured CA"},
	} {
		t.Run(name, func(t *testing.T) {
			src := load(t, crlConfig(t, ekca.CRLIfAvailable, root, web))
			v := wantOutcome(t, listed, c.why, src, root.ek(t, c.names))
			wantText(t, v.Unchecked, "whether the EK certificate is revoked is not known: ")
			wantText(t, v.Unchecked, c.why)
			wantText(t, policy.Answer{Source: "x", Verdict: v}.String(), c.why)
			wantOutcome(t, cannotTell, c.why, load(t, crlConfig(t, ekca.CRLRequired, root, web)), root.ek(t, c.names))
			off := wantOutcome(t, listed, "", load(t, crlConfig(t, ekca.CRLOff, root, web)), root.ek(t, c.names))
			wantText(t, off.Unchecked+".", ".")
		})
	}
	checked := wantOutcome(t, listed, "", load(t, crlConfig(t, ekca.CRLIfAvailable, root, web)),
		root.ek(t, crlsAt(web.put("/good", root.crl(t)))))
	if checked.Unchecked != "" {
		t.Errorf("checked, and yet: %s", checked.Unchecked)
	}
	// What a list for some reasons has revoked is revoked.
	ek := root.ek(t, reasons(t, web.url("/full")))
	web.put("/full", root.crl(t, revoking(ek)))
	wantOutcome(t, notListed, "revoked", load(t, crlConfig(t, ekca.CRLIfAvailable, root, web)), ek)
}
