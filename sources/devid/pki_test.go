package devid_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// forever is when an IDevID ends: never (IEEE 802.1AR-2018, 8.7).
func forever() time.Time { return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }

type edit = certstest.Edit

// authority is a CA that these tests have made.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (a *authority) sign(tb testing.TB, template *x509.Certificate, pub any, edits []edit) *x509.Certificate {
	tb.Helper()
	for _, e := range edits {
		e(template)
	}
	parent := a.cert
	if parent == nil {
		parent = template
	}
	return certstest.Sign(tb, template, parent, pub, a.key)
}

// newRoot returns a root CA.
func newRoot(tb testing.TB, name string, edits ...edit) *authority {
	tb.Helper()
	return newRootWithKey(tb, name, certstest.NewKey(tb), edits...)
}

func newRootWithKey(tb testing.TB, name string, key crypto.Signer, edits ...edit) *authority {
	tb.Helper()
	a := &authority{key: key}
	a.cert = a.sign(tb, certstest.CA(tb, name), a.key.Public(), edits)
	return a
}

// sub returns a CA below a.
func (a *authority) sub(tb testing.TB, name string, edits ...edit) *authority {
	tb.Helper()
	key := certstest.NewKey(tb)
	return &authority{cert: a.sign(tb, certstest.CA(tb, name), key.Public(), edits), key: key}
}

// devID returns the certificate of a DevID, by the TCG's profile: the subject alternative name
// is critical and has the TPM as a hardware module.
func (a *authority) devID(tb testing.TB, key crypto.PublicKey, edits ...edit) *x509.Certificate {
	tb.Helper()
	return a.sign(tb, &x509.Certificate{
		SerialNumber: certstest.NewSerial(tb), Subject: pkix.Name{CommonName: "laptop", SerialNumber: "0815"},
		NotBefore: certstest.Today().AddDate(-1, 0, 0), NotAfter: forever(),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{hardwareModule(tb)},
	}, key, edits)
}

// hardwareModule is a critical subject alternative name with a hardwareModuleName (RFC 4108, 5):
// hwType is tcg-tpm20 (2.23.133.1.2), hwSerialNum is the EK's name.
func hardwareModule(tb testing.TB) pkix.Extension {
	tb.Helper()
	type name struct {
		Type   asn1.ObjectIdentifier
		Serial []byte
	}
	type otherName struct {
		ID    asn1.ObjectIdentifier
		Value name `asn1:"explicit,tag:0"`
	}
	der, err := asn1.MarshalWithParams(otherName{
		asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4},
		name{asn1.ObjectIdentifier{2, 23, 133, 1, 2}, []byte("serial number")},
	}, "tag:0")
	if err != nil {
		tb.Fatal(err)
	}
	return certstest.Extension(tb, true, asn1.ObjectIdentifier{2, 5, 29, 17}, []asn1.RawValue{{FullBytes: der}})
}

func (a *authority) crl(tb testing.TB, revoked ...*x509.Certificate) []byte {
	tb.Helper()
	list := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: certstest.Today().Add(-time.Hour), NextUpdate: certstest.Today().Add(24 * time.Hour),
	}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: certstest.Today().Add(-2 * time.Hour)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func certsOf(cas ...*authority) []*x509.Certificate {
	out := make([]*x509.Certificate, len(cas))
	for i, a := range cas {
		out[i] = a.cert
	}
	return out
}

func newSource(tb testing.TB, cfg devid.Config) *devid.Source {
	tb.Helper()
	if cfg.Now == nil {
		cfg.Now = certstest.Today
	}
	cfg.Patience = time.Minute // on a machine that is busy, a server that is well answers late
	src, err := devid.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return src
}

// load returns a source that has loaded cfg.
func load(tb testing.TB, cfg devid.Config) *devid.Source {
	tb.Helper()
	src := newSource(tb, cfg)
	if err := src.Load(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return src
}

// trusting returns a source with these authorities in one file.
func trusting(tb testing.TB, cas ...*authority) *devid.Source {
	tb.Helper()
	return load(tb, devid.Config{CAPath: certstest.File(tb, certsOf(cas...)...)})
}

// proven is the evidence of a machine that has proved a DevID.
func proven(tb testing.TB, leaf *x509.Certificate, above ...*x509.Certificate) *sources.Evidence {
	tb.Helper()
	ev := sourcetest.Proven(sourcetest.NewEvidence(tb))
	ev.Proof.DevID = &sources.DevID{Chain: [][]byte{leaf.Raw}, Key: leaf.PublicKey}
	for _, c := range above {
		ev.Proof.DevID.Chain = append(ev.Proof.DevID.Chain, c.Raw)
	}
	return ev
}

// wantListed wants that a machine is listed, and returns what is known of it.
func wantListed(tb testing.TB, src *devid.Source, ev *sources.Evidence) sources.Attributes {
	tb.Helper()
	v, err := src.Check(tb.Context(), ev)
	if err != nil || !v.Listed {
		tb.Fatalf("%+v, %v", v, err)
	}
	return v.Attributes
}

// wantNotListed wants "not listed" with a reason that holds a text.
func wantNotListed(tb testing.TB, why string, src *devid.Source, ev *sources.Evidence) {
	tb.Helper()
	v, err := src.Check(tb.Context(), ev)
	if err != nil || v.Listed || v.Attributes.DevID != nil || v.Attributes.CAs != nil {
		tb.Fatalf("%+v, %v", v, err)
	}
	if !strings.Contains(v.Reason, why) {
		tb.Errorf("the reason is %q, want %q in it", v.Reason, why)
	}
}

// site is a web server of an organization's, which can fail.
type site struct {
	server *httptest.Server

	mu      sync.Mutex
	pages   map[string][]byte
	failing bool
	stalled chan struct{} // nil while it answers
	now     time.Time
}

func newSite(tb testing.TB) *site {
	tb.Helper()
	s := &site{pages: make(map[string][]byte), now: certstest.Today()}
	s.server = httptest.NewServer(s)
	tb.Cleanup(s.server.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	page, failing, stalled := s.pages[r.URL.Path], s.failing, s.stalled
	s.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-r.Context().Done():
		}
	}
	switch {
	case failing:
		panic(http.ErrAbortHandler) // the connection ends
	case page == nil:
		http.NotFound(w, r)
	default:
		_, _ = w.Write(page)
	}
}

// host is what a configuration names the site by.
func (s *site) host() string { return strings.TrimPrefix(s.server.URL, "http://") }

// put has body at path, and returns its URL.
func (s *site) put(path string, body []byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages[path] = body
	return s.server.URL + path
}

// set makes the site fail, stall, or work.
func (s *site) set(failing, stalling bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = failing
	if s.stalled != nil {
		close(s.stalled)
		s.stalled = nil
	}
	if stalling {
		s.stalled = make(chan struct{})
	}
}

// clock is the time of who asks the site.
func (s *site) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// pass advances the clock.
func (s *site) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}
