package ekca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// site is a web server of a vendor's, on a loopback address.
type site struct {
	server *httptest.Server
	mu     sync.Mutex
	pages  map[string]http.HandlerFunc
	asked  map[string]int
}

func newSite(tb testing.TB) *site {
	tb.Helper()
	return newSiteAt(tb, "127.0.0.1:0")
}

func newSiteAt(tb testing.TB, address string) *site {
	tb.Helper()
	listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	s := &site{pages: make(map[string]http.HandlerFunc), asked: make(map[string]int)}
	s.server = httptest.NewUnstartedServer(s)
	_ = s.server.Listener.Close()
	s.server.Listener = listener
	s.server.Start()
	tb.Cleanup(s.server.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked[r.URL.EscapedPath()]++
	page := s.pages[r.URL.EscapedPath()]
	s.mu.Unlock()
	if page == nil {
		http.NotFound(w, r)
		return
	}
	page(w, r)
}

// host is what a configuration names the site by.
func (s *site) host() string { return strings.TrimPrefix(s.server.URL, "http://") }

func (s *site) url(path string) string { return s.server.URL + path }

// handle has page at path, and nothing where it is nil.
func (s *site) handle(path string, page http.HandlerFunc) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages[path] = page
	return s.url(path)
}

// put has body at path.
func (s *site) put(path string, body []byte) string {
	return s.handle(path, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(body)
	})
}

// requests counts those for a path, or for all where it is empty.
func (s *site) requests(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if path != "" {
		return s.asked[path]
	}
	n := 0
	for _, m := range s.asked {
		n += m
	}
	return n
}

// wantRequests wants as many requests altogether.
func (s *site) wantRequests(tb testing.TB, want int) {
	tb.Helper()
	if got := s.requests(""); got != want {
		tb.Errorf("%d requests, want %d", got, want)
	}
}

// issuersAt and crlsAt name URLs in a certificate.
func issuersAt(urls ...string) edit {
	return func(c *x509.Certificate) { c.IssuingCertificateURL = urls }
}

func crlsAt(urls ...string) edit {
	return func(c *x509.Certificate) { c.CRLDistributionPoints = urls }
}

// clock is a clock that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: certstest.Today()} }

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fetching returns a source that trusts one CA and may ask sites.
func fetching(tb testing.TB, root *authority, sites ...*site) *ekca.Source {
	tb.Helper()
	return load(tb, fetchConfig(tb, root, sites...))
}

func fetchConfig(tb testing.TB, root *authority, sites ...*site) ekca.Config {
	tb.Helper()
	cfg := ekca.Config{Config: truststore.Config{CAPath: certstest.File(tb, root.cert)}}
	for _, s := range sites {
		cfg.AIAHosts = append(cfg.AIAHosts, s.host())
	}
	return cfg
}

// asked is what the Set does: Fetch is called where Check needs the network.
func asked(tb testing.TB, src *ekca.Source, ev *sources.Evidence) (sources.Verdict, error) {
	tb.Helper()
	v, err := src.Check(context.Background(), ev)
	if errors.Is(err, sources.ErrNeedsNetwork) {
		wantNothing(tb, v)
		v, err = src.Fetch(context.Background(), ev)
		again, errAgain := src.Check(context.Background(), ev)
		if v.Listed != again.Listed || (err == nil) != (errAgain == nil) {
			tb.Errorf("Fetch = %v, %v, and Check behind it = %v, %v", v, err, again, errAgain)
		}
		if errors.Is(errAgain, sources.ErrNeedsNetwork) {
			tb.Errorf("Check behind Fetch: %v", errAgain)
		}
	}
	if err != nil || !v.Listed {
		wantNothing(tb, v)
	}
	return v, err
}

// wantNothing wants a verdict that lists nobody and tells nothing of him.
func wantNothing(tb testing.TB, v sources.Verdict) {
	tb.Helper()
	if v.Listed || v.Attributes.Certificate != nil || v.Attributes.CAs != nil {
		tb.Errorf("listed: %+v", v)
	}
}

// outcome is what a source can say.
type outcome string

const (
	listed     outcome = "listed"
	notListed  outcome = "not listed"
	cannotTell outcome = "cannot tell"
)

func outcomeOf(v sources.Verdict, err error) outcome {
	switch {
	case err != nil:
		return cannotTell
	case v.Listed:
		return listed
	}
	return notListed
}

// wantOutcome wants a source to say so of a certificate, and why.
func wantOutcome(
	tb testing.TB, want outcome, why string, src *ekca.Source, ek *x509.Certificate, sent ...*x509.Certificate,
) sources.Verdict {
	tb.Helper()
	v, err := asked(tb, src, evidence(ek, sent...))
	text := v.Reason
	if err != nil {
		text = err.Error()
	}
	if got := outcomeOf(v, err); got != want || !strings.Contains(text, why) {
		tb.Errorf("%s (%s), want %s (%s)", got, text, want, why)
	}
	return v
}

// crl returns a CRL of a CA in DER, current for a day.
func (a *authority) crl(tb testing.TB, edits ...func(*x509.RevocationList)) []byte {
	tb.Helper()
	template := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: certstest.Today().Add(-time.Hour), NextUpdate: certstest.Today().Add(24 * time.Hour),
	}
	for _, e := range edits {
		e(template)
	}
	issuer := *a.cert
	if len(issuer.SubjectKeyId) == 0 {
		issuer.SubjectKeyId = []byte{1}
	}
	issuer.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, template, &issuer, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// revoking lists certificates.
func revoking(certs ...*x509.Certificate) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		for _, c := range certs {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{
				SerialNumber: c.SerialNumber, RevocationTime: certstest.Today().Add(-2 * time.Hour),
			})
		}
	}
}

// openCRL returns a CRL that does not say when the next one is due. It takes that
// out of another one and signs what is left.
func (a *authority) openCRL(tb testing.TB, issued time.Time, revoked *x509.Certificate) []byte {
	tb.Helper()
	der := a.crl(tb, revoking(revoked), func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = issued, issued.Add(time.Hour)
	})
	parsed, err := x509.ParseRevocationList(der)
	if err != nil {
		tb.Fatal(err)
	}
	var whole asn1.RawValue
	if _, err := asn1.Unmarshal(parsed.RawTBSRevocationList, &whole); err != nil {
		tb.Fatal(err)
	}
	tbs := certstest.Marshal(tb, asn1.RawValue{
		Tag: asn1.TagSequence, IsCompound: true,
		Bytes: bytes.Replace(whole.Bytes, certstest.Marshal(tb, parsed.NextUpdate), nil, 1),
	})
	hash := sha256.Sum256(tbs)
	signature, err := a.key.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		tb.Fatal(err)
	}
	return certstest.Marshal(tb, struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
}
