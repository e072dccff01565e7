package ekca_test

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// besideStrangers has as many strangers as a host has slots wait for URLs of it that
// hang, and returns what waits for them to leave.
func besideStrangers(t *testing.T, n *pipes, src *ekca.Source) (wait func()) {
	t.Helper()
	const slots = 4
	forger, key := newRoot(t, "Forger"), certstest.NewKey(t)
	var all sync.WaitGroup
	for i := range slots {
		ev := evidence(strangersEK(t, forger, key, n.handle(firstHost, fmt.Sprint("/", i), stall)))
		all.Go(func() { _, _, _ = attested(t, src, ev) })
	}
	return all.Wait
}

// A host that says no, however late, has answered: the next CRL that a certificate
// names there is asked for, or a revoked machine would be admitted whose first CRL is
// gone. Strangers who keep the host's slots busy must not bring that about.
func TestCRLBehindOneThatIsGone(t *testing.T) {
	for _, strangers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n, root := newPipes(), newRoot(t, "Root")
			bad := root.ek(t, crlsAt("http://"+firstHost+"/gone.crl", "http://"+firstHost+"/crl"))
			n.put(firstHost, "/crl", root.crl(t, revoking(bad)))
			src := n.over(t, ekca.Config{Config: truststore.Config{CRL: ekca.CRLIfAvailable, Now: certstest.Today}}, root)
			if strangers {
				defer besideStrangers(t, n, src)()
				time.Sleep(3 * time.Second)
			} else {
				n.handle(firstHost, "/gone.crl", func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(4 * time.Second)
					http.NotFound(w, r)
				})
			}
			v, took, err := attested(t, src, evidence(bad))
			if v.Listed {
				t.Errorf("strangers %v: a revoked EK is listed after %v, %v; its CRL was asked for %d times",
					strangers, took, err, n.requests(firstHost+"/crl"))
			}
		})
	}
}

// A request that has had its slot a moment ago says nothing of the server: who holds
// the slots of a CRL's host decides when it begins, and would have a revoked machine
// admitted.
func TestCRLThatWasJustAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, root := newPipes(), newRoot(t, "Root")
		bad := root.ek(t, crlsAt("http://"+firstHost+"/crl"))
		list := root.crl(t, revoking(bad))
		n.handle(firstHost, "/crl", func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(200 * time.Millisecond)
			_, _ = w.Write(list)
		})
		src := n.over(t, ekca.Config{Config: truststore.Config{CRL: ekca.CRLIfAvailable, Now: certstest.Today}}, root)
		defer besideStrangers(t, n, src)()
		time.Sleep(600 * time.Millisecond)
		if v, took, err := attested(t, src, evidence(bad)); v.Listed {
			t.Errorf("a revoked EK is listed after %v, %v; its CRL was asked for %d times",
				took, err, n.requests(firstHost+"/crl"))
		}
		time.Sleep(time.Minute)
		wantWithin(t, notListed, time.Second, src, bad)
	})
}

// The CRL that is kept has run out, and the next one lists a machine: it is waited for
// as if none were kept, at a host that is slow and at one whose slots strangers hold, or
// every renewal would let the machine in for a moment. What the old one lists stays
// revoked meanwhile.
func TestCRLThatHasRunOut(t *testing.T) {
	for name, busy := range map[string]bool{"slow": false, "strangers": true} {
		synctest.Test(t, func(t *testing.T) {
			n, root, now := newPipes(), newRoot(t, "Root"), newClock()
			at := crlsAt("http://" + firstHost + "/crl")
			bad, before := root.ek(t, at), root.ek(t, at, func(c *x509.Certificate) { c.SerialNumber = certstest.NewSerial(t) })
			n.put(firstHost, "/crl", root.crl(t, revoking(before)))
			src := n.over(t, ekca.Config{Config: truststore.Config{CRL: ekca.CRLIfAvailable, Now: now.read}}, root)
			wantWithin(t, listed, time.Second, src, bad)
			now.pass(48 * time.Hour)
			list := root.crl(t, dated(2, now.read().Add(-time.Hour), now.read().Add(24*time.Hour)), revoking(bad, before))
			n.handle(firstHost, "/crl", func(w http.ResponseWriter, _ *http.Request) {
				time.Sleep(3 * time.Second)
				_, _ = w.Write(list)
			})
			if busy {
				defer besideStrangers(t, n, src)()
				time.Sleep(600 * time.Millisecond)
			}
			var both sync.WaitGroup
			for _, ek := range []*x509.Certificate{bad, before} {
				both.Go(func() {
					if v, took, err := attested(t, src, evidence(ek)); v.Listed {
						t.Errorf("%s: a revoked EK is listed after %v, %v", name, took, err)
					}
				})
			}
			both.Wait()
		})
	}
}

// A CA whose clock was a year ahead for a moment must not keep its right CRLs out for
// that year, and revoked machines in.
func TestClockOfACAThatWasAhead(t *testing.T) {
	const day = 24 * time.Hour
	root := newRoot(t, "Root")
	for _, mode := range []ekca.CRLMode{ekca.CRLIfAvailable, ekca.CRLRequired} {
		t.Run(string(mode), func(t *testing.T) {
			web, now := newSite(t), newClock()
			cfg := crlConfig(t, mode, root, web)
			cfg.Now = now.read
			bad := root.ek(t, crlsAt(web.url("/crl")))
			good := root.ek(t, crlsAt(web.url("/crl")), func(c *x509.Certificate) { c.SerialNumber = certstest.NewSerial(t) })
			web.put("/crl", root.crl(t, dated(1, certstest.Today().Add(365*day), certstest.Today().Add(372*day))))
			src := load(t, cfg)
			_, _ = src.Fetch(t.Context(), evidence(good))
			for i := range 12 {
				now.pass(10 * day)
				right := dated(int64(i+2), now.read().Add(-time.Hour), now.read().Add(7*day))
				web.put("/crl", root.crl(t, right, revoking(bad)))
				if v, err := src.Fetch(t.Context(), evidence(bad)); v.Listed || err != nil {
					t.Errorf("%d days later a revoked EK: %+v, %v", 10*(i+1), v, err)
				}
				if v, err := src.Fetch(t.Context(), evidence(good)); !v.Listed {
					t.Errorf("%d days later a good EK: %+v, %v", 10*(i+1), v, err)
				}
			}
		})
	}
}

// What a vendor adds to the file at an issuer's URL is seen within 30 days, however
// long the certificates that were there are valid.
func TestIssuersAreAskedForEachMonth(t *testing.T) {
	const day = 24 * time.Hour
	root := newRoot(t, "Root")
	low := root.sub(t, "Low", func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(20 * 365 * day) })
	web, now := newSite(t), newClock()
	cfg := crlConfig(t, ekca.CRLOff, root, web)
	cfg.Now = now.read
	ek := low.ek(t, issuersAt(web.url("/low")))
	web.put("/low", low.cert.Raw)
	src := load(t, cfg)
	for month := range 4 {
		if v, err := src.Fetch(t.Context(), evidence(ek)); !v.Listed {
			t.Errorf("month %d: %+v, %v", month, v, err)
		}
		if n := web.requests("/low"); n != month+1 {
			t.Errorf("month %d: the issuer was asked for %d times", month, n)
		}
		now.pass(31 * day)
	}
}
