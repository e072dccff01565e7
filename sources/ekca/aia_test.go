package ekca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// bundleOfCerts is a PKCS #7 bundle, in DER or with elements of indefinite length.
func bundleOfCerts(open bool, certs ...*x509.Certificate) []byte {
	wrap := func(tag byte, parts ...[]byte) []byte {
		content := bytes.Join(parts, nil)
		if open {
			return append(append([]byte{tag, 0x80}, content...), 0, 0)
		}
		return append([]byte{tag, 0x82, byte(len(content) >> 8), byte(len(content))}, content...)
	}
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	const oid = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07"
	return wrap(0x30, []byte(oid+"\x02"), wrap(0xa0, wrap(0x30, []byte{2, 1, 1}, wrap(0x31),
		wrap(0x30, []byte(oid+"\x01")), wrap(0xa0, all), wrap(0x31))))
}

// Vendors serve issuers in several forms. In each form, a chain that the machine does not send is
// found with one request: afterwards nothing is requested, and the answer is immediate.
func TestFetchedIssuers(t *testing.T) {
	root := newRoot(t, "Root")
	for name, serve := range map[string]func(*x509.Certificate, ...*x509.Certificate) []byte{
		"DER": func(c *x509.Certificate, _ ...*x509.Certificate) []byte { return c.Raw },
		"PEM": func(c *x509.Certificate, _ ...*x509.Certificate) []byte { return certstest.PEM(c) },
		"DER and a line end": func(c *x509.Certificate, _ ...*x509.Certificate) []byte {
			return append(slices.Clone(c.Raw), '\n')
		},
		"PKCS #7, padded": func(c *x509.Certificate, _ ...*x509.Certificate) []byte {
			return append(bundleOfCerts(false, c), make([]byte, 100)...)
		},
		"PKCS #7": func(c *x509.Certificate, more ...*x509.Certificate) []byte {
			return bundleOfCerts(false, append(more, c)...)
		},
		"PKCS #7 in BER": func(c *x509.Certificate, more ...*x509.Certificate) []byte {
			return bundleOfCerts(true, append(more, c)...)
		},
		"PKCS #7 in PEM": func(c *x509.Certificate, _ ...*x509.Certificate) []byte {
			return pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: bundleOfCerts(false, c)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			web := newSite(t)
			middle := root.sub(t, "Middle", issuersAt(web.url("/root")))
			low := middle.sub(t, "Low", issuersAt(web.url("/middle")))
			ek := low.ek(t, issuersAt(web.url("/low")))
			web.put("/low", serve(low.cert, newRoot(t, "Unrelated").cert))
			web.put("/middle", serve(middle.cert))
			src := fetching(t, root, web)
			want := wantListed(t, trusting(t, root, middle, low), ek)
			for range 3 {
				got := wantOutcome(t, listed, "chains to a configured CA", src, ek)
				if diff := cmp.Diff(want, got.Attributes); diff != "" {
					t.Error(diff)
				}
			}
			web.wantRequests(t, 2)
			other := low.ek(t, issuersAt(web.url("/low")))
			wantListed(t, src, other) // of the same CA: from memory
		})
	}
}

// A bundle that holds the whole chain needs no further request.
func TestWholeChainInABundle(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	middle := root.sub(t, "Middle")
	low := middle.sub(t, "Low", issuersAt(web.url("/middle")))
	ek := low.ek(t, issuersAt(web.put("/low", bundleOfCerts(false, middle.cert, low.cert, root.cert))))
	web.put("/middle", middle.cert.Raw)
	wantOutcome(t, listed, "", fetching(t, root, web), ek)
	if n := web.requests("/low"); n != 1 {
		t.Errorf("%d requests for the bundle", n)
	}
}

// What the machine sends and what is fetched make one chain together.
func TestSentAndFetched(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	top := root.sub(t, "Top")
	middle := top.sub(t, "Middle", issuersAt(web.put("/top", top.cert.Raw)))
	low := middle.sub(t, "Low")
	src := fetching(t, root, web)
	wantOutcome(t, notListed, "", src, low.ek(t), middle.cert)
	web.wantRequests(t, 0) // it is not known to be above the EK certificate
	wantOutcome(t, listed, "", src, low.ek(t), middle.cert, low.cert)
	web.wantRequests(t, 1)
}

// If no URL may be requested, nothing is, and the answer is the same as without URLs.
func TestNothingToFetch(t *testing.T) {
	web, other := newSite(t), newSite(t)
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	path := web.put("/low", low.cert.Raw)
	elsewhere := other.put("/low", low.cert.Raw)
	src := fetching(t, root, web)
	host := web.host()
	for _, urls := range [][]string{
		nil,
		{elsewhere},
		{"http://" + host + "@" + other.host() + "/low"},
		{"http://user@" + host + "/low"},
		{"file:///etc/passwd", "ldap://" + host + "/low", "ftp://" + host + "/low", "", ":", "\x00"},
		{"http://169.254.169.254/latest/meta-data", "http://localhost:" + host[strings.LastIndex(host, ":")+1:] + "/low"},
	} {
		wantOutcome(t, notListed, "no configured CA", src, low.ek(t, issuersAt(urls...)))
	}
	wantOutcome(t, notListed, "no configured CA", trusting(t, root), low.ek(t, issuersAt(path)))
	other.wantRequests(t, 0)
	web.wantRequests(t, 0)
}

// A certificate that could not be accepted in any case causes no request.
func TestNoFetchForWhatCannotVouch(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	url := web.put("/low", low.cert.Raw)
	src := fetching(t, root, web)
	for name, e := range map[string]edit{
		"expired":       func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(-time.Hour) },
		"not yet valid": func(c *x509.Certificate) { c.NotBefore = certstest.Today().Add(time.Hour) },
		"a CA's":        func(c *x509.Certificate) { c.IsCA = true },
		"for TLS":       forTLS,
	} {
		t.Run(name, func(t *testing.T) {
			ek := low.ek(t, issuersAt(url), func(c *x509.Certificate) {
				if name == "for TLS" {
					c.UnknownExtKeyUsage = nil
				}
			}, e)
			wantOutcome(t, notListed, "", src, ek)
		})
	}
	ev := evidence(low.ek(t, issuersAt(url)))
	ev.EK = certstest.NewKey(t).Public()
	if v, err := asked(t, src, ev); outcomeOf(v, err) != cannotTell {
		t.Errorf("another key: %v, %v", v, err)
	}
	web.wantRequests(t, 0)
}

// Whatever a vendor's server, or somebody on the way, serves instead of the issuer neither admits
// nor clears a machine, and is not requested again at once.
func TestFaultyIssuers(t *testing.T) {
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	impostor := newRoot(t, "Low", func(c *x509.Certificate) { c.SubjectKeyId = low.cert.SubjectKeyId })
	bytesOf := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
	}
	var many []*x509.Certificate
	for range 40 {
		many = append(many, low.cert)
	}
	for name, page := range map[string]http.HandlerFunc{
		"not found":      http.NotFound,
		"out of order":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"nothing":        bytesOf(nil),
		"HTML":           bytesOf([]byte("<!DOCTYPE html><html><body>Sign in</body></html>")),
		"cut off":        bytesOf(low.cert.Raw[:len(low.cert.Raw)-1]),
		"another's":      bytesOf(newRoot(t, "Other").cert.Raw),
		"an impostor's":  bytesOf(impostor.cert.Raw),
		"no CA's":        bytesOf(root.ek(t).Raw),
		"the EK's own":   bytesOf(low.ek(t).Raw),
		"for TLS":        bytesOf(root.sub(t, "Low", forTLS).cert.Raw),
		"a bundle of 40": bytesOf(bundleOfCerts(false, many...)),
		"empty bundle":   bytesOf(bundleOfCerts(true)),
		"empty PEM":      bytesOf([]byte("-----BEGIN")),
		"a key":          bytesOf(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")})),
		"a CRL":          bytesOf(low.crl(t)),
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for block := make([]byte, 64<<10); ; {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			web := newSite(t)
			src := fetching(t, root, web)
			ek := low.ek(t, issuersAt(web.handle("/low", page)))
			wantOutcome(t, cannotTell, "", src, ek)
			before := web.requests("")
			for range 3 {
				wantOutcome(t, cannotTell, "", src, ek)
			}
			if web.wantRequests(t, before); before > 2 {
				t.Errorf("%d requests for one URL", before)
			}
			// Another URL that works is enough.
			ek = low.ek(t, issuersAt(web.url("/low"), web.put("/good", low.cert.Raw)))
			wantOutcome(t, listed, "", src, ek)
			wantListed(t, trusting(t, low), ek) // and what is configured needs none
		})
	}
}

// A server that is down is asked again after a while, and what somebody has put in an issuer's
// place does not stay there.
func TestFailuresAreForgotten(t *testing.T) {
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	for name, page := range map[string]http.HandlerFunc{
		"down": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"replaced": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(newRoot(t, "Low").cert.Raw)
		},
	} {
		t.Run(name, func(t *testing.T) {
			web, now := newSite(t), newClock()
			cfg := fetchConfig(t, root, web)
			cfg.Now = now.read
			src := load(t, cfg)
			ek := low.ek(t, issuersAt(web.handle("/low", page)))
			wantOutcome(t, cannotTell, "", src, ek)
			before := web.requests("")
			web.put("/low", low.cert.Raw)
			wantOutcome(t, cannotTell, "", src, ek)
			web.wantRequests(t, before)
			now.pass(time.Hour)
			wantOutcome(t, listed, "", src, ek)
			web.wantRequests(t, before+1)
		})
	}
}

// What was fetched is used when the vendor's server is gone.
func TestIssuersOutliveAnOutage(t *testing.T) {
	web, now := newSite(t), newClock()
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	cfg := fetchConfig(t, root, web)
	cfg.Now = now.read
	src := load(t, cfg)
	ek := low.ek(t, issuersAt(web.put("/low", low.cert.Raw)))
	wantOutcome(t, listed, "", src, ek)
	web.handle("/low", nil)
	for range 10 {
		now.pass(8 * 24 * time.Hour)
		wantOutcome(t, listed, "", src, ek)
	}
}

// An endless chain of certificates, each at its own URL, causes a few requests; a circle causes one
// for each.
func TestLongChainsAndLoops(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	ca := root
	for i := range 50 {
		path := fmt.Sprint("/", i)
		web.put(path, ca.cert.Raw)
		ca = ca.sub(t, fmt.Sprint("CA ", i), issuersAt(web.url(path)))
	}
	src := fetching(t, root, web)
	wantOutcome(t, notListed, "no configured CA", src, ca.ek(t, issuersAt(web.put("/ca", ca.cert.Raw))))
	if n := web.requests(""); n > 8 {
		t.Errorf("%d requests for a chain of 50", n)
	}

	web = newSite(t)
	a, b := newRoot(t, "A"), newRoot(t, "B")
	crossed := func(subject, issuer *authority, path string) {
		template := certstest.CA(t, subject.cert.Subject.CommonName, issuersAt(web.url(path)))
		web.put("/"+subject.cert.Subject.CommonName, certstest.Sign(t, template, issuer.cert, subject.key.Public(), issuer.key).Raw)
	}
	crossed(a, b, "/B")
	crossed(b, a, "/A")
	wantOutcome(t, notListed, "no configured CA", fetching(t, root, web), a.ek(t, issuersAt(web.url("/A"))))
	web.wantRequests(t, 2)
}

// The longest chain that is allowed is found, and one that is longer is not.
func TestLongestFetchedChain(t *testing.T) {
	for length, want := range map[int]outcome{8: listed, 9: notListed} {
		web := newSite(t)
		root := newRoot(t, "Root")
		ca := root
		for i := range length - 1 {
			path := fmt.Sprint("/", i)
			web.put(path, ca.cert.Raw)
			ca = ca.sub(t, fmt.Sprint("CA ", i), issuersAt(web.url(path)))
		}
		wantOutcome(t, want, "", fetching(t, root, web), ca.ek(t, issuersAt(web.put("/ca", ca.cert.Raw))))
	}
}

// A certificate full of URLs does not make the server ask them all.
func TestManyURLs(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	var urls []string
	for i := range 100 {
		urls = append(urls, web.url(fmt.Sprint("/", i)))
	}
	wantOutcome(t, cannotTell, "", fetching(t, root, web), low.ek(t, issuersAt(urls...)))
	if n := web.requests(""); n > 4 {
		t.Errorf("%d requests for one certificate", n)
	}
}

// No attestation makes more than 8 requests, however its certificates branch.
func TestMostRequests(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	several := func(name string) edit {
		var urls []string
		for i := range 4 {
			urls = append(urls, web.url(fmt.Sprint("/", name, i)))
		}
		return issuersAt(urls...)
	}
	ca := root
	for i := range 6 {
		name := fmt.Sprint("CA ", i)
		ca = ca.sub(t, name, several(name))
		for k := range 3 {
			web.handle(fmt.Sprint("/", name, k), nil)
		}
	}
	var sent []*x509.Certificate
	for c := range 4 {
		sent = append(sent, ca.sub(t, "Low", several(fmt.Sprint("x", c))).cert)
	}
	src := fetching(t, root, web)
	ev := evidence(ca.ek(t, several("CA 5")), sent...)
	before := 0
	for range 5 {
		v, err := src.Fetch(t.Context(), ev)
		if err == nil || v.Listed {
			t.Fatalf("Fetch = %+v, %v", v, err)
		}
		if n := web.requests("") - before; n > 8 {
			t.Errorf("%d requests", n)
		}
		before = web.requests("")
	}
}

// A hundred machines of one CA, all at once after a restart: one request.
func TestHundredWaitForOneIssuer(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	const machines = 100
	var begun sync.WaitGroup
	begun.Add(machines)
	url := web.handle("/low", func(w http.ResponseWriter, _ *http.Request) {
		begun.Wait() // all have asked the source, which asks nobody twice
		_, _ = w.Write(low.cert.Raw)
	})
	src := fetching(t, root, web)
	evs := make([]*sources.Evidence, machines)
	for i := range evs {
		evs[i] = evidence(low.ek(t, issuersAt(url)))
	}
	var all sync.WaitGroup
	for _, ev := range evs {
		all.Go(func() {
			if _, err := src.Check(t.Context(), ev); !errors.Is(err, sources.ErrNeedsNetwork) {
				t.Errorf("Check = %v", err)
			}
			begun.Done()
			if v, err := src.Fetch(t.Context(), ev); err != nil || !v.Listed {
				t.Errorf("Fetch = %+v, %v", v, err)
			}
		})
	}
	all.Wait()
	web.wantRequests(t, 1)
}

// A fetched certificate links others and is never an anchor, not even a root's.
func TestFetchedIsNoAnchor(t *testing.T) {
	web := newSite(t)
	other := newRoot(t, "Other")
	ek := other.ek(t, issuersAt(web.put("/other", other.cert.Raw)))
	wantOutcome(t, notListed, "no configured CA", fetching(t, newRoot(t, "Root"), web), ek)
	web.wantRequests(t, 1)
}

// The resulting bundles do not depend on what was fetched first: all of a certificate's URLs count,
// and one that fails may remove a bundle but adds none.
func TestBundlesOfFetchedChains(t *testing.T) {
	a, b := newRoot(t, "A"), newRoot(t, "B")
	low := newRoot(t, "Low")
	under := func(by *authority) *x509.Certificate {
		return certstest.Sign(t, certstest.CA(t, "Low"), by.cert, low.key.Public(), by.key)
	}
	byA, byB := under(a), under(b)
	bundles := map[string]string{"a": certstest.File(t, a.cert), "b": certstest.File(t, b.cert)}
	for name, c := range map[string]struct {
		first, second []byte
		want          []string
	}{
		"both":   {byA.Raw, byB.Raw, []string{"a", "b"}},
		"first":  {byA.Raw, nil, []string{"a"}},
		"second": {nil, byB.Raw, []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			web := newSite(t)
			first, second := web.put("/1", c.first), web.put("/2", c.second)
			src := load(t, ekca.Config{Config: truststore.Config{Bundles: bundles, AIAHosts: []string{web.host()}}})
			// Another machine has the first one fetched: that alone is no answer.
			alone := low.ek(t, issuersAt(first))
			_, _ = asked(t, src, evidence(alone))
			v, err := src.Check(t.Context(), evidence(low.ek(t, issuersAt(first, second))))
			if !errors.Is(err, sources.ErrNeedsNetwork) {
				t.Errorf("Check with one of two = %+v, %v", v, err)
			}
			for range 2 {
				got := wantOutcome(t, listed, "", src, low.ek(t, issuersAt(first, second)))
				if diff := cmp.Diff(c.want, got.Attributes.CAs); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
	// What is configured or sent is enough: nothing is asked for more.
	web := newSite(t)
	src := load(t, ekca.Config{Config: truststore.Config{Bundles: bundles, AIAHosts: []string{web.host()}}})
	ek := low.ek(t, issuersAt(web.put("/2", byB.Raw)))
	if got := wantListed(t, src, ek, byA); !cmp.Equal(got.CAs, []string{"a"}) {
		t.Errorf("CAs %q", got.CAs)
	}
	web.wantRequests(t, 0)
}

// Stops a thousand machines that each name a URL of their own, at a server that
// never answers: what is asked at a time stays within a limit, and a machine whose
// chain is known attests meanwhile as ever.
func TestManyURLsAtOnce(t *testing.T) {
	web, slow := newSite(t), newSiteAt(t, "127.0.0.2:0")
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	honest := low.ek(t, issuersAt(web.put("/low", low.cert.Raw)))
	src := fetching(t, root, web, slow)
	wantOutcome(t, listed, "", src, honest)

	const machines = 1000
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var at, most atomic.Int32
	reached := make(chan struct{}, machines)
	stall := func(_ http.ResponseWriter, r *http.Request) {
		if n := at.Add(1); n > most.Load() {
			most.Store(n)
		}
		reached <- struct{}{}
		<-r.Context().Done()
		at.Add(-1)
	}
	key := certstest.NewKey(t)
	begun := time.Now()
	var all sync.WaitGroup
	for i := range machines {
		url := slow.handle(fmt.Sprint("/", i), stall)
		ev := evidence(certstest.Sign(t, ekTemplate(t, issuersAt(url)), low.cert, key.Public(), low.key))
		all.Go(func() {
			if v, err := src.Fetch(ctx, ev); err == nil || v.Listed {
				t.Errorf("Fetch = %+v, %v", v, err)
			}
		})
	}
	<-reached // the server is being asked
	for range 100 {
		wantListed(t, src, honest)
	}
	other := low.ek(t, issuersAt(web.put("/low2", low.cert.Raw)))
	wantOutcome(t, listed, "", src, other) // and another host is asked beside it
	// A request ends after 10 seconds, and the server also counts those whose end it has not seen
	// yet: a machine that is busy gets here too late to count.
	if n := most.Load(); n > 4 && time.Since(begun) < 10*time.Second {
		t.Errorf("%d requests at a time", n)
	}
	cancel()
	all.Wait()
}

// Certificates that a machine has made itself, in the name of its issuer and with
// its key identifier, take neither the chain from it nor the issuer's name.
func TestImpostorsBesideAFetchedChain(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	middle := root.sub(t, "Middle")
	low := middle.sub(t, "Low", issuersAt(web.put("/middle", middle.cert.Raw)))
	ek := low.ek(t, issuersAt(web.put("/low", low.cert.Raw)))
	src := fetching(t, root, web)
	var sent []*x509.Certificate
	for i := range 16 {
		like := []*authority{low, middle}[i%2]
		sent = append(sent, newRoot(t, like.cert.Subject.CommonName, func(c *x509.Certificate) {
			c.SubjectKeyId = like.cert.SubjectKeyId
		}).cert)
	}
	want := wantOutcome(t, listed, "", src, ek).Attributes
	got := wantOutcome(t, listed, "", src, ek, sent...).Attributes
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	web.wantRequests(t, 2)
}

// A vendor renews an intermediate's certificate at the same URL, and the old one that is kept
// expires: the renewed one is then fetched, so its machines are not refused for the rest of a
// month. Until it is there, the verdict says what has expired, and it is requested every ten
// minutes.
func TestIssuerIsRenewed(t *testing.T) {
	root, key := newRoot(t, "Root"), certstest.NewKey(t)
	web, now := newSite(t), newClock()
	const day = 24 * time.Hour
	expires := certstest.Today().Add(5 * day)
	middle := root.subWithKey(t, "Middle", key, func(c *x509.Certificate) { c.NotAfter = expires })
	renewed := root.subWithKey(t, "Middle", key)
	cfg := fetchConfig(t, root, web)
	cfg.Now = now.read
	cfg.CachePath = filepath.Join(t.TempDir(), "cache.db")
	src := load(t, cfg)
	ek := middle.ek(t, issuersAt(web.put("/middle", bundleOfCerts(false, newRoot(t, "Unrelated").cert, middle.cert))))
	runUntilWritten(t, src, func() { wantOutcome(t, listed, "", src, ek) })
	now.pass(5*day - time.Minute)
	wantOutcome(t, listed, "", src, ek)
	web.wantRequests(t, 1)
	now.pass(2 * time.Minute)
	restarted := load(t, cfg)
	for i, each := range []*ekca.Source{src, restarted} {
		for range 3 {
			wantOutcome(t, notListed, `certificate of the CA "CN=Middle,O=Test" has expired on 2026-06-06T12:00:00Z`, each, ek)
			web.wantRequests(t, i+2)
		}
	}
	web.put("/middle", renewed.cert.Raw)
	now.pass(10 * time.Minute)
	for range 30 {
		wantOutcome(t, listed, "", src, ek)
		now.pass(12 * time.Hour)
	}
	web.wantRequests(t, 4)
	wantOutcome(t, listed, "", restarted, ek)
}
