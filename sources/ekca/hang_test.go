package ekca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// pipes are a network in memory, for the clock of a bubble: web servers at any address,
// of which some swallow what they are sent.
type pipes struct {
	mu    sync.Mutex
	pages map[string]http.HandlerFunc // by host and path
	dead  map[string]bool             // hosts that drop packets
	asked map[string]int              // by host and path, or host where it is dead
}

func newPipes() *pipes {
	return &pipes{
		pages: make(map[string]http.HandlerFunc), dead: make(map[string]bool), asked: make(map[string]int),
	}
}

// hosts are those that may be asked.
const firstHost, secondHost, thirdHost, mirrorHost = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9"

func (n *pipes) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	dead := n.dead[host]
	if dead {
		n.asked[host]++
	}
	n.mu.Unlock()
	if dead {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	client, server := net.Pipe()
	web := http.Server{Handler: n, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Hour}
	go func() { _ = web.Serve(&oneConn{conn: server}) }() // ends when it has accepted this one
	return client, nil
}

// oneConn is a listener that has one connection.
type oneConn struct{ conn net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	return nil, io.EOF
}

func (*oneConn) Close() error   { return nil }
func (*oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// ServeHTTP implements http.Handler.
func (n *pipes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	n.asked[r.Host+r.URL.Path]++
	page := n.pages[r.Host+r.URL.Path]
	n.mu.Unlock()
	if page == nil {
		http.NotFound(w, r)
		return
	}
	page(w, r)
}

// put has a body at a URL, and returns that.
func (n *pipes) put(host, path string, body []byte) string {
	return n.handle(host, path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
}

func (n *pipes) handle(host, path string, page http.HandlerFunc) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pages[host+path] = page
	return "http://" + host + path
}

// kill has hosts drop what they are sent.
func (n *pipes) kill(hosts ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range hosts {
		n.dead[h] = true
	}
}

func (n *pipes) requests(of string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[of]
}

// stall answers nobody.
func stall(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// over returns a source that trusts a CA and asks over n, and has it run as the Set
// does until the test ends.
func (n *pipes) over(t *testing.T, cfg ekca.Config, root *authority) *ekca.Source {
	t.Helper()
	if cfg.Bundles == nil {
		cfg.CAPath = certstest.File(t, root.cert)
	}
	cfg.AIAHosts = []string{firstHost, secondHost, thirdHost}
	src := ekca.NewOver(t, cfg, n.dial)
	if err := src.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- src.Watch(ctx, func() {}) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, src.CloseStore()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute) // what was being connected to gives up
	})
	return src
}

// fetchTimeout is what an attestation has for Fetch in a Set: 20 seconds, less a
// grace.
const fetchTimeout = 19 * time.Second

// attested returns what a source says within the time that there is, and how long
// it took.
func attested(t *testing.T, src *ekca.Source, ev *sources.Evidence) (sources.Verdict, time.Duration, error) {
	t.Helper()
	begun := time.Now()
	v, err := src.Check(t.Context(), ev)
	if errors.Is(err, sources.ErrNeedsNetwork) {
		ctx, cancel := context.WithTimeout(t.Context(), fetchTimeout)
		defer cancel()
		v, err = src.Fetch(ctx, ev)
	}
	return v, time.Since(begun), err
}

// wantWithin wants an answer in a time.
func wantWithin(
	t *testing.T, want outcome, most time.Duration, src *ekca.Source, ek *x509.Certificate, sent ...*x509.Certificate,
) {
	t.Helper()
	v, took, err := attested(t, src, evidence(ek, sent...))
	if got := outcomeOf(v, err); got != want || took > most {
		t.Errorf("%s after %v (%s, %v), want %s within %v", got, took, v.Reason, err, want, most)
	}
}

// A host that drops packets is an outage like any other: what was fetched before is used in any
// mode, after two seconds at first and at once from then on; and when the host is back, old objects
// are renewed.
func TestHangingHostAfterAMonth(t *testing.T) {
	for _, mode := range []ekca.CRLMode{ekca.CRLOff, ekca.CRLIfAvailable, ekca.CRLRequired} {
		synctest.Test(t, func(t *testing.T) {
			n, now := newPipes(), newClock()
			root := newRoot(t, "Root")
			middle := root.sub(t, "Middle", crlsAt(n.put(firstHost, "/root.crl", root.crl(t, yearly))))
			low := middle.sub(t, "Low", crlsAt("http://"+firstHost+"/middle.crl"),
				issuersAt(n.put(firstHost, "/middle", middle.cert.Raw)))
			n.put(firstHost, "/middle.crl", middle.crl(t, yearly))
			issuer, list := issuersAt(n.put(firstHost, "/low", low.cert.Raw)), crlsAt("http://"+firstHost+"/low.crl")
			good := low.ek(t, issuer, list, func(c *x509.Certificate) { c.SerialNumber = certstest.NewSerial(t) })
			bad := low.ek(t, issuer, list)
			n.put(firstHost, "/low.crl", low.crl(t, yearly, revoking(bad)))
			revoked := notListed
			if mode == ekca.CRLOff {
				revoked = listed
			}
			src := n.over(t, ekca.Config{Config: truststore.Config{CRL: mode, Now: now.read}}, root)
			wantWithin(t, listed, time.Second, src, good)
			wantWithin(t, revoked, time.Second, src, bad)
			now.pass(31 * 24 * time.Hour)
			n.kill(firstHost)
			for range 4 {
				// The issuers' certificates are waited for, and then the CRLs.
				wantWithin(t, listed, 4*time.Second, src, good)
				wantWithin(t, revoked, 4*time.Second, src, bad)
			}
			wantWithin(t, listed, 0, src, good)
			time.Sleep(time.Minute) // all requests have ended
			wantWithin(t, listed, 0, src, good)
			wantWithin(t, revoked, 0, src, bad)

			n.mu.Lock()
			n.dead[firstHost] = false
			before := n.asked[firstHost+"/low.crl"]
			n.mu.Unlock()
			now.pass(time.Hour)
			wantWithin(t, listed, time.Second, src, good)
			if mode != ekca.CRLOff && n.requests(firstHost+"/low.crl") == before {
				t.Error("the CRL was not renewed")
			}
		})
	}
}

// yearly has a CRL be current for a year.
func yearly(l *x509.RevocationList) { l.NextUpdate = certstest.Today().Add(365 * 24 * time.Hour) }

// Nothing is there yet, and the hosts of CRLs drop packets. With "if_available" a
// machine is admitted in the time that there is for it, whichever hosts these are,
// and with "required" nobody is. Connections are refused after a time, or never.
func TestHangingHostsOfCRLs(t *testing.T) {
	for name, hosts := range map[string][3]string{
		"one host":    {firstHost, firstHost, firstHost},
		"two hosts":   {firstHost, secondHost, firstHost},
		"another two": {firstHost, secondHost, secondHost},
	} {
		for mode, want := range map[ekca.CRLMode]outcome{ekca.CRLIfAvailable: listed, ekca.CRLRequired: cannotTell} {
			for _, mute := range []bool{true, false} {
				synctest.Test(t, func(t *testing.T) {
					t.Log(name, mode, mute)
					n := newPipes()
					at := func(i int, path string) edit { return crlsAt(n.handle(hosts[i], path, stall)) }
					if !mute {
						n.kill(hosts[:]...)
					}
					root := newRoot(t, "Root")
					middle := root.sub(t, "Middle", at(0, "/root.crl"))
					low := middle.sub(t, "Low", at(1, "/middle.crl"))
					ek := low.ek(t, at(2, "/low.crl"))
					src := n.over(t, ekca.Config{Config: truststore.Config{CRL: mode, Now: certstest.Today}}, root)
					wantWithin(t, want, fetchTimeout, src, ek, middle.cert, low.cert)
					n.kill(mirrorHost) // by another source: all of them are at one mirror
					src = n.over(t, ekca.Config{Config: truststore.Config{CRL: mode, Now: certstest.Today, MirrorURL: "http://" + mirrorHost}}, root)
					wantWithin(t, want, fetchTimeout/2, src, ek, middle.cert, low.cert)
				})
			}
		}
	}
}

// A machine that names its own URLs, which hang, does not reduce the time for the CRL that lists
// it: if no time is left, the source cannot tell, and "if_available" does not admit the machine for
// having used up the time. The URLs are in a certificate that the machine has made for its issuer's
// real key.
func TestTimeUsedUpBeforeTheCRL(t *testing.T) {
	for wasted := range 5 {
		for _, bundles := range []bool{false, true} { // with bundles all URLs are waited for
			synctest.Test(t, func(t *testing.T) { timeUsedUpBeforeTheCRL(t, wasted, bundles) })
		}
	}
}

func timeUsedUpBeforeTheCRL(t *testing.T, wasted int, bundles bool) {
	t.Helper()
	n := newPipes()
	root := newRoot(t, "Root")
	middle := root.sub(t, "Middle")
	low := middle.sub(t, "Low", issuersAt(n.put(thirdHost, "/middle", middle.cert.Raw)))
	bad := low.ek(t, crlsAt("http://"+firstHost+"/crl"), issuersAt(n.put(firstHost, "/low", low.cert.Raw)))
	list := low.crl(t, revoking(bad))
	n.handle(firstHost, "/crl", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(4 * time.Second) // slow, and no more
		_, _ = w.Write(list)
	})
	var urls []string
	for i := range wasted {
		urls = append(urls, n.handle([]string{firstHost, secondHost}[i%2], fmt.Sprint("/", i), stall))
	}
	forger := newRoot(t, "Forger")
	own := certstest.Sign(t, certstest.CA(t, "Low", issuersAt(urls...)), forger.cert, low.key.Public(), forger.key)
	cfg := ekca.Config{Config: truststore.Config{CRL: ekca.CRLIfAvailable, Now: certstest.Today}}
	if bundles {
		cfg.Bundles = map[string]string{"root": certstest.File(t, root.cert), "other": certstest.File(t, newRoot(t, "Other").cert)}
	}
	src := n.over(t, cfg, root)
	for range 3 {
		if v, took, err := attested(t, src, evidence(bad, own)); v.Listed {
			t.Fatalf("with %d, bundles %v, after %v: %+v, %v", wasted, bundles, took, v, err)
		}
	}
}

// Stops strangers, each with a TPM in software and with URLs at a host that may be
// asked and drops packets, or lets some URLs hang, from keeping out machines that need
// another host: there are 64 slots for those who fetch, and they do not get them all.
func TestStrangersAtAHangingHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newPipes()
		n.kill(secondHost)
		root, forger, key := newRoot(t, "Root"), newRoot(t, "Forger"), certstest.NewKey(t)
		low := root.sub(t, "Low")
		src := n.over(t, ekca.Config{Config: truststore.Config{Now: certstest.Today}}, root)
		set, err := admission.NewSet([]admission.Member{{Name: "vendors", Kind: "ek_ca", Source: src}},
			policy.AnyOf("vendors"), admission.Options{})
		if err != nil {
			t.Fatal(err)
		}
		attest := func(ev *sources.Evidence) policy.Decision {
			ev.EKHash = sources.EKHash{31: 1}
			if d := set.BeforeChallenge(t.Context(), ev); d.Outcome != policy.Challenge {
				return d
			}
			proven := *ev
			proven.Proof = &sources.Proof{}
			return set.AfterChallenge(t.Context(), &proven)
		}
		var all sync.WaitGroup
		for i := range 3000 { // 100 a second, for half a minute
			url := fmt.Sprintf("http://%s/%d", secondHost, i%1000)
			ev := evidence(strangersEK(t, forger, key, url))
			all.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Millisecond)
				if d := attest(ev); d.Outcome != policy.Unavailable {
					t.Errorf("a stranger is %v: %s", d.Outcome, d.Explain())
				}
			})
		}
		for i := range 25 {
			ev := evidence(low.ek(t, issuersAt(n.put(firstHost, fmt.Sprint("/low", i), low.cert.Raw))))
			all.Go(func() {
				time.Sleep(time.Duration(i+1) * time.Second)
				begun := time.Now()
				if d := attest(ev); d.Outcome != policy.Admitted || time.Since(begun) > 2*time.Second {
					t.Errorf("a machine that needs another host is %v after %v: %s", d.Outcome, time.Since(begun), d.Explain())
				}
			})
		}
		all.Wait()
	})
}

// strangersEK is what a TPM in software may have: anything.
func strangersEK(t *testing.T, forger *authority, key crypto.Signer, url string) *x509.Certificate {
	t.Helper()
	return certstest.Sign(t, ekTemplate(t, issuersAt(url)), forger.cert, key.Public(), forger.key)
}

// A request that has to wait for others to the same host is not one that its server
// has not answered: under "if_available" it admits nobody.
func TestCRLBehindStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newPipes()
		root, forger, key := newRoot(t, "Root"), newRoot(t, "Forger"), certstest.NewKey(t)
		bad := root.ek(t, crlsAt("http://"+firstHost+"/crl"))
		n.put(firstHost, "/crl", root.crl(t, revoking(bad)))
		src := n.over(t, ekca.Config{Config: truststore.Config{CRL: ekca.CRLIfAvailable, Now: certstest.Today}}, root)
		var all sync.WaitGroup
		for i := range 40 {
			ev := evidence(strangersEK(t, forger, key, n.handle(firstHost, fmt.Sprint("/", i), stall)))
			all.Go(func() { _, _, _ = attested(t, src, ev) })
		}
		synctest.Wait()
		v, _, err := attested(t, src, evidence(bad))
		if outcomeOf(v, err) != cannotTell || !errors.Is(err, fetch.ErrNotAsked) {
			t.Errorf("behind strangers: %+v, %v", v, err)
		}
		all.Wait()
		time.Sleep(time.Minute)
		wantWithin(t, notListed, time.Second, src, bad)
	})
}
