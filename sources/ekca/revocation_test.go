package ekca_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// crlConfig trusts one CA, and looks for CRLs on a site.
func crlConfig(tb testing.TB, mode ekca.CRLMode, root *authority, web *site) ekca.Config {
	tb.Helper()
	cfg := fetchConfig(tb, root, web)
	cfg.CRL = mode
	return cfg
}

// listEdit is what a test changes in a CRL.
type listEdit = func(*x509.RevocationList)

// scoped gives a CRL an issuing distribution point.
func scoped(value ...byte) listEdit {
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{
			Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: append([]byte{0x30, byte(len(value))}, value...),
		})
	}
}

// partition gives a CRL the URL of a distribution point.
func partition(url string) listEdit {
	name := append([]byte{0x86, byte(len(url))}, url...)
	full := append([]byte{0xa0, byte(len(name))}, name...)
	return scoped(append([]byte{0xa0, byte(len(full))}, full...)...)
}

// What is at a CRL's URL, and what each mode makes of it. The EK certificate of
// the test has the serial number abc.
func TestCRLs(t *testing.T) {
	root := newRoot(t, "Root")
	other := newRoot(t, "Root", func(c *x509.Certificate) { c.SubjectKeyId = root.cert.SubjectKeyId })
	stranger := newRoot(t, "Stranger").as(func(c *x509.Certificate) { c.SubjectKeyId = root.cert.SubjectKeyId })
	stranger.key = root.key // signs under a name of its own
	ek := func(l *x509.RevocationList) {
		revoking(&x509.Certificate{SerialNumber: big.NewInt(0xabc)})(l)
	}
	reason := func(code int) listEdit {
		return func(l *x509.RevocationList) {
			ek(l)
			l.RevokedCertificateEntries[0].ReasonCode = code
		}
	}
	until := func(d time.Duration) listEdit {
		return func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = certstest.Today().Add(d-48*time.Hour), certstest.Today().Add(d)
		}
	}
	future := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = certstest.Today().Add(time.Hour), certstest.Today().Add(48*time.Hour)
	}
	other1 := func(l *x509.RevocationList) { revoking(&x509.Certificate{SerialNumber: big.NewInt(0xabd)})(l) }
	delta := func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{certstest.Extension(t, true, asn1.ObjectIdentifier{2, 5, 29, 27}, 1)}
	}
	unknown := func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{certstest.Extension(t, true, asn1.ObjectIdentifier{1, 2, 3}, 1)}
	}
	const yes = 0xff
	for name, c := range map[string]struct {
		body                  []byte
		ifAvailable, required outcome
	}{
		"good":                    {root.crl(t), listed, listed},
		"lists others":            {root.crl(t, other1), listed, listed},
		"lists the EK":            {root.crl(t, ek), notListed, notListed},
		"lists the EK, on hold":   {root.crl(t, reason(6)), notListed, notListed},
		"removes the EK":          {root.crl(t, reason(8)), listed, listed},
		"PEM":                     {pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: root.crl(t, ek)}), notListed, notListed},
		"for a year":              {root.crl(t, until(365*24*time.Hour-49*time.Hour), func(l *x509.RevocationList) { l.ThisUpdate = certstest.Today().Add(-time.Hour) }), listed, listed},
		"expired":                 {root.crl(t, until(-time.Minute)), listed, cannotTell},
		"expired, lists the EK":   {root.crl(t, until(-time.Minute), ek), notListed, notListed},
		"of tomorrow":             {root.crl(t, future), listed, cannotTell},
		"for users":               {root.crl(t, scoped(0x81, 1, yes), ek), notListed, notListed},
		"for CAs":                 {root.crl(t, scoped(0x82, 1, yes), ek), listed, cannotTell},
		"for attributes":          {root.crl(t, scoped(0x85, 1, yes)), listed, cannotTell},
		"indirect, of its own":    {root.crl(t, scoped(0x84, 1, yes)), listed, listed},
		"for some reasons":        {root.crl(t, scoped(0x83, 2, 1, 2)), listed, cannotTell},
		"for another partition":   {root.crl(t, partition("http://another.test/crl")), listed, cannotTell},
		"delta":                   {root.crl(t, delta), listed, cannotTell},
		"critical and unknown":    {root.crl(t, unknown), listed, cannotTell},
		"by another key":          {other.crl(t, ek), listed, cannotTell},
		"by another name":         {stranger.crl(t, ek), listed, cannotTell},
		"changed":                 {append(root.crl(t)[:100], root.crl(t, ek)[100:]...), listed, cannotTell},
		"HTML":                    {[]byte("<html>"), listed, cannotTell},
		"the issuer, as some put": {root.cert.Raw, listed, cannotTell},
		"nothing":                 {nil, listed, cannotTell},
		"50 MB":                   {make([]byte, 50<<20), listed, cannotTell},
		"PEM and more":            {append(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: root.crl(t)}), certstest.PEM(root.cert)...), listed, cannotTell},
		"PEM of something else":   {certstest.PEM(root.cert), listed, cannotTell},
	} {
		t.Run(name, func(t *testing.T) {
			for mode, want := range map[ekca.CRLMode]outcome{
				"": listed, ekca.CRLOff: listed, ekca.CRLIfAvailable: c.ifAvailable, ekca.CRLRequired: c.required,
			} {
				web := newSite(t)
				src := load(t, crlConfig(t, mode, root, web))
				ek := root.ek(t, crlsAt(web.put("/crl", c.body)))
				why := ""
				if want == notListed {
					why = "the EK certificate has been revoked"
				}
				for range 2 {
					wantOutcome(t, want, why, src, ek)
				}
				asked := 1
				if mode == "" || mode == ekca.CRLOff {
					asked = 0
				}
				web.wantRequests(t, asked)
			}
		})
	}
}

// A CRL that is nowhere, or where there is nowhere to fetch from.
func TestCRLsThatCannotBeHad(t *testing.T) {
	root := newRoot(t, "Root")
	web, elsewhere := newSite(t), newSite(t)
	web.handle("/down", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	for name, urls := range map[string][]string{
		"no URL":        nil,
		"other host":    {elsewhere.put("/crl", root.crl(t))},
		"other schemes": {"ldap://" + web.host() + "/cn=x", "file:///tmp/crl"},
		"not found":     {web.url("/none")},
		"down":          {web.url("/down")},
	} {
		t.Run(name, func(t *testing.T) {
			ek := root.ek(t, crlsAt(urls...))
			wantOutcome(t, listed, "", load(t, crlConfig(t, ekca.CRLIfAvailable, root, web)), ek)
			wantOutcome(t, cannotTell, "check for revocation: the EK certificate",
				load(t, crlConfig(t, ekca.CRLRequired, root, web)), ek)
		})
	}
	elsewhere.wantRequests(t, 0)
	// One of several that works is enough.
	for _, mode := range []ekca.CRLMode{ekca.CRLIfAvailable, ekca.CRLRequired} {
		src := load(t, crlConfig(t, mode, root, web))
		good, bad := web.put("/good", root.crl(t)), root.ek(t)
		lists := web.put("/lists", root.crl(t, revoking(bad)))
		wantOutcome(t, listed, "", src, root.ek(t, crlsAt(web.url("/none"), "ldap://x.test/", good)))
		wantOutcome(t, notListed, "revoked", src, root.ek(t, crlsAt(web.url("/none"), lists, good)))
		// Partitions, each at a URL of its own: the one that is for the certificate.
		p := web.url("/p2")
		web.put("/p1", root.crl(t, partition(web.url("/elsewhere"))))
		web.put("/p2", root.crl(t, partition(p), revoking(bad)))
		wantOutcome(t, notListed, "revoked", src, root.ek(t, crlsAt(web.url("/p1"), p)))
	}
}

// The CRLs of a whole chain count, those of fetched issuers too; that of the
// configured CA, which the operator trusts, does not.
func TestCRLsOfTheChain(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root", crlsAt(web.url("/none")))
	middle := root.sub(t, "Middle", crlsAt(web.url("/root.crl")))
	low := middle.sub(t, "Low", crlsAt(web.url("/middle.crl")), issuersAt(web.put("/middle", middle.cert.Raw)))
	ek := low.ek(t, crlsAt(web.url("/low.crl")), issuersAt(web.put("/low", low.cert.Raw)))
	web.put("/root.crl", root.crl(t))
	web.put("/middle.crl", middle.crl(t))
	web.put("/low.crl", low.crl(t))
	required := func() *ekca.Source { return load(t, crlConfig(t, ekca.CRLRequired, root, web)) }
	wantOutcome(t, listed, "", required(), ek)
	web.wantRequests(t, 5)

	web.put("/root.crl", root.crl(t, revoking(middle.cert)))
	wantOutcome(t, notListed, `the certificate of the CA "CN=Middle,O=Test" has been revoked`, required(), ek)
	web.put("/root.crl", middle.crl(t)) // of a CA that is not its issuer
	wantOutcome(t, cannotTell, `check for revocation: the certificate of the CA "CN=Middle,O=Test": `, required(), ek)
	wantOutcome(t, listed, "", load(t, crlConfig(t, ekca.CRLRequired, middle, web)), ek)
	web.put("/low.crl", low.crl(t, revoking(ek)))
	wantOutcome(t, notListed, "the EK certificate has been revoked", required(), ek)
}

// A CA that may not sign CRLs has none.
func TestCRLsByACAThatMayNotSignThem(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
	ek := root.ek(t, crlsAt(web.put("/crl", root.crl(t))))
	wantOutcome(t, cannotTell, "cRLSign", load(t, crlConfig(t, ekca.CRLRequired, root, web)), ek)
}

// A certificate that was revoked for one chain breaks that chain and not the
// others; a CRL that cannot be had under "required" takes a bundle away and adds
// none.
func TestRevokedIntermediateOfOneChain(t *testing.T) {
	a, b := newRoot(t, "A"), newRoot(t, "B")
	low := newRoot(t, "Low")
	for name, c := range map[string]struct {
		a, b func(*x509.Certificate, *authority) []byte
		want []string
	}{
		"none":      {goodCRL(t), goodCRL(t), []string{"a", "b"}},
		"one":       {listingCRL(t), goodCRL(t), []string{"b"}},
		"the other": {goodCRL(t), listingCRL(t), []string{"a"}},
		"both":      {listingCRL(t), listingCRL(t), nil},
		"one gone":  {noCRL, goodCRL(t), []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			web := newSite(t)
			under := func(by *authority, name string) *x509.Certificate {
				return certstest.Sign(t, certstest.CA(t, "Low", crlsAt(web.url("/"+name+".crl"))), by.cert, low.key.Public(), by.key)
			}
			byA, byB := under(a, "a"), under(b, "b")
			web.put("/a.crl", c.a(byA, a))
			web.put("/b.crl", c.b(byB, b))
			ek := low.ek(t, crlsAt(web.put("/low.crl", low.crl(t))))
			src := load(t, ekca.Config{
				Config: truststore.Config{
					Bundles:  map[string]string{"a": certstest.File(t, a.cert), "b": certstest.File(t, b.cert)},
					AIAHosts: []string{web.host()},
					CRL:      ekca.CRLRequired,
				},
			})
			if c.want == nil {
				wantOutcome(t, notListed, "revoked", src, ek, byA, byB)
				return
			}
			got := wantOutcome(t, listed, "", src, ek, byA, byB)
			if diff := cmp.Diff(c.want, got.Attributes.CAs); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func goodCRL(t *testing.T) func(*x509.Certificate, *authority) []byte {
	t.Helper()
	return func(_ *x509.Certificate, a *authority) []byte { return a.crl(t) }
}

func listingCRL(t *testing.T) func(*x509.Certificate, *authority) []byte {
	t.Helper()
	return func(c *x509.Certificate, a *authority) []byte { return a.crl(t, revoking(c)) }
}

func noCRL(*x509.Certificate, *authority) []byte { return nil }

// A CRL is asked for again when the next one is due, and after a week at the
// latest; until then it answers from memory. Where it cannot be had any more, what
// it lists stays revoked, and what it does not list is as the mode says.
func TestCRLsGrowOld(t *testing.T) {
	root := newRoot(t, "Root")
	for name, c := range map[string]struct {
		next time.Duration // 0: it does not say
		kept time.Duration
		old  outcome // under required, when it cannot be had any more
	}{
		"a day":       {24 * time.Hour, 24 * time.Hour, cannotTell},
		"half a year": {180 * 24 * time.Hour, 7 * 24 * time.Hour, listed},
		"for ever":    {0, 24 * time.Hour, cannotTell},
	} {
		t.Run(name, func(t *testing.T) {
			for _, mode := range []ekca.CRLMode{ekca.CRLIfAvailable, ekca.CRLRequired} {
				web, now := newSite(t), newClock()
				cfg := crlConfig(t, mode, root, web)
				cfg.Now = now.read
				src := load(t, cfg)
				good := root.ek(t, crlsAt(web.url("/crl")), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1) })
				bad := root.ek(t, crlsAt(web.url("/crl")), func(c *x509.Certificate) { c.SerialNumber = big.NewInt(2) })
				serve := func() {
					if c.next == 0 {
						web.put("/crl", root.openCRL(t, now.read(), bad))
						return
					}
					web.put("/crl", root.crl(t, revoking(bad), func(l *x509.RevocationList) {
						l.ThisUpdate, l.NextUpdate = now.read(), now.read().Add(c.next)
					}))
				}
				serve()
				both := func(of outcome) {
					t.Helper()
					wantOutcome(t, of, "", src, good)
					wantOutcome(t, notListed, "revoked", src, bad)
				}
				both(listed)
				now.pass(c.kept - time.Minute)
				both(listed)
				web.wantRequests(t, 1)
				now.pass(2 * time.Minute)
				serve()
				both(listed)
				web.wantRequests(t, 2)
				web.handle("/crl", nil)
				now.pass(c.kept + time.Minute)
				if mode == ekca.CRLRequired {
					both(c.old)
				} else {
					both(listed)
				}
			}
		})
	}
}

// dated gives a CRL a number and a time, from when to when it is current.
func dated(number int64, from, until time.Time) listEdit {
	return func(l *x509.RevocationList) {
		l.Number, l.ThisUpdate, l.NextUpdate = big.NewInt(number), from, until
	}
}

// Stops somebody on the way, or a mirror that lags behind, who answers with a CRL
// from before a machine was revoked, or with another one that the same CA has
// signed: what the server has had goes on counting, over restarts too, and a newer
// one takes its place.
func TestReplayedCRLs(t *testing.T) {
	root := newRoot(t, "Root")
	renamed := root.as(func(c *x509.Certificate) {
		c.RawSubject, c.Subject.CommonName = nil, "Renamed"
	})
	const day = 24 * time.Hour
	issued, due := certstest.Today(), certstest.Today().Add(2*day)
	later := issued.Add(3 * day) // when it is replayed
	for name, replayed := range map[string][]byte{
		"expired":            root.crl(t, dated(1, issued.Add(-2*day), issued.Add(-day))),
		"older, valid":       root.crl(t, dated(1, issued.Add(-time.Hour), later.Add(30*day))),
		"older, numbered up": root.crl(t, dated(9, issued.Add(-time.Hour), later.Add(30*day))),
		"of the same time":   root.crl(t, dated(1, issued, later.Add(30*day))),
		"for another point":  root.crl(t, dated(3, later, later.Add(day)), partition("http://another.test/crl")),
		"for CAs":            root.crl(t, dated(3, later, later.Add(day)), scoped(0x82, 1, 0xff)),
		"by another name":    renamed.crl(t, dated(3, later, later.Add(day))),
	} {
		for _, mode := range []ekca.CRLMode{ekca.CRLIfAvailable, ekca.CRLRequired} {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				web, now := newSite(t), newClock()
				cfg := crlConfig(t, mode, root, web)
				cfg.Now, cfg.CachePath = now.read, filepath.Join(t.TempDir(), "cache.db")
				bad := root.ek(t, crlsAt(web.url("/crl")))
				revoked := func(src *ekca.Source, requests int) {
					t.Helper()
					wantOutcome(t, notListed, "revoked", src, bad)
					if n := web.requests("/crl"); n != requests {
						t.Errorf("%d requests, want %d", n, requests)
					}
				}
				web.put("/crl", root.crl(t, dated(2, issued, due), revoking(bad)))
				src := load(t, cfg)
				runUntilWritten(t, src, func() { revoked(src, 1) })
				now.pass(3 * day)
				web.put("/crl", replayed)
				revoked(src, 2)
				again := load(t, cfg) // it has the first one from its cache
				runUntilWritten(t, again, func() { revoked(again, 3) })
				now.pass(time.Hour)
				revoked(load(t, cfg), 4)

				web.put("/crl", root.crl(t, dated(3, now.read(), now.read().Add(day))))
				now.pass(time.Hour)
				wantOutcome(t, listed, "", src, bad)
			})
		}
	}
}

// A CRL that is published anew with the same time and number, as some CAs do each
// hour, is as good as a newer one.
func TestCRLPublishedAgain(t *testing.T) {
	root := newRoot(t, "Root")
	web, now := newSite(t), newClock()
	cfg := crlConfig(t, ekca.CRLRequired, root, web)
	cfg.Now = now.read
	src := load(t, cfg)
	ek := root.ek(t, crlsAt(web.url("/crl")))
	for until := range 3 {
		web.put("/crl", root.crl(t, dated(1, certstest.Today(), certstest.Today().Add(time.Duration(until+1)*time.Hour))))
		wantOutcome(t, listed, "", src, ek)
		web.wantRequests(t, until+1)
		now.pass(time.Hour + time.Minute)
	}
}

// Under "if_available", a CRL that nobody was asked for is not one that cannot be
// had: a thousand URLs that strangers name at a CRL's host, or a reconfiguration at
// that moment, would admit a revoked TPM.
func TestCRLNotAskedFor(t *testing.T) {
	root, key := newRoot(t, "Root"), certstest.NewKey(t)
	web := newSite(t)
	src := load(t, crlConfig(t, ekca.CRLIfAvailable, root, web))
	bad := root.ek(t, crlsAt(web.url("/crl")))
	web.put("/crl", root.crl(t, revoking(bad)))
	forger := newRoot(t, "Forger")
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	asked := make(chan struct{}, 4)
	for i := range 4 { // as many as there are requests to one host
		url := web.handle(fmt.Sprint("/", i), func(_ http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			<-r.Context().Done()
		})
		ev := evidence(certstest.Sign(t, ekTemplate(t, issuersAt(url)), forger.cert, key.Public(), forger.key))
		all.Go(func() { _, _ = src.Fetch(ctx, ev) })
	}
	for range 4 {
		<-asked
	}
	waiting, giveUp := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer giveUp()
	if v, err := src.Fetch(waiting, evidence(bad)); outcomeOf(v, err) != cannotTell {
		t.Errorf("while the host is busy: %+v, %v", v, err)
	}
	cancel()
	all.Wait()
	if err := src.CloseStore(); err != nil {
		t.Fatal(err)
	}
	v, err := src.Fetch(t.Context(), evidence(bad))
	if outcomeOf(v, err) != cannotTell || !errors.Is(err, fetch.ErrNotAsked) {
		t.Errorf("at its end: %+v, %v", v, err)
	}
}
