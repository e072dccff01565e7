package httplist_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// No test leaves a connection or a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hash returns the EK hash of a machine.
func hash(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

func machine(name string) *sources.Evidence {
	return &sources.Evidence{EKHash: sha256.Sum256([]byte(name))}
}

// list returns a list of machines, with further fields in front.
func list(fields string, machines ...string) string {
	for i, m := range machines {
		machines[i] = fmt.Sprintf(`{"hash": %q, "name": %q}`, hash(m), m)
	}
	return fmt.Sprintf(`{%s"keys": [%s]}`, fields, strings.Join(machines, ", "))
}

// An origin is a real HTTPS server whose answer can be changed.
type origin struct {
	*httptest.Server
	ca       string // file of what vouches for it
	handler  atomic.Pointer[http.HandlerFunc]
	requests atomic.Int64
}

// newOrigin starts a server. configure, which may be nil, changes its TLS.
func newOrigin(tb testing.TB, configure func(*tls.Config)) *origin {
	tb.Helper()
	o := &origin{}
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.requests.Add(1)
		(*o.handler.Load())(w, r)
	}))
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	ca := newAuthority(tb)
	o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	o.TLS.Certificates = []tls.Certificate{ca.pair(tb, "server", time.Now().Add(years))}
	if configure != nil {
		configure(o.TLS)
	}
	o.answer(http.StatusOK, list(""))
	o.StartTLS()
	tb.Cleanup(func() {
		o.CloseClientConnections()
		o.Close()
	})
	o.ca = write(tb, "ca.pem", ca.pem())
	return o
}

// serve sets what the server does.
func (o *origin) serve(f http.HandlerFunc) { o.handler.Store(&f) }

// answer makes the server answer with one body.
func (o *origin) answer(status int, body string, headers ...string) {
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// publish makes the server answer with one body, or that it has not changed.
func (o *origin) publish(body, etag string) {
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, body)
	})
}

// raw makes the server send these bytes, and then what more writes, until the
// client has gone.
func (o *origin) raw(head string, more func(conn net.Conn, gone <-chan struct{})) {
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, head); err != nil || more == nil {
			return
		}
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = io.Copy(io.Discard, conn)
		}()
		more(conn, gone)
		conn.Close()
		<-gone
	})
}

// config returns a configuration for the server.
func (o *origin) config() httplist.Config {
	return httplist.Config{URL: o.URL + "/tpm.json", CAPath: o.ca}
}

func newSource(tb testing.TB, cfg httplist.Config) *httplist.Source {
	tb.Helper()
	s, err := httplist.New(cfg)
	if err != nil {
		tb.Fatalf("New: %v", err)
	}
	return s
}

// loaded returns a source that has loaded what the server has.
func loaded(tb testing.TB, cfg httplist.Config) *httplist.Source {
	tb.Helper()
	s := newSource(tb, cfg)
	refresh(tb, s)
	return s
}

// fromCache returns a source that serves from its cache, while the server is of no use:
// that is told as the error of Load.
func fromCache(tb testing.TB, cfg httplist.Config, says string) *httplist.Source {
	tb.Helper()
	s := newSource(tb, cfg)
	wantError(tb, s.Load(tb.Context()), says)
	return s
}

func refresh(tb testing.TB, s *httplist.Source) {
	tb.Helper()
	if err := s.Load(tb.Context()); err != nil {
		tb.Fatalf("Load: %v", err)
	}
}

// wantError fails the test unless err says all these.
func wantError(tb testing.TB, err error, says ...string) {
	tb.Helper()
	if err == nil {
		tb.Errorf("no error, want one that says %q", says)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			tb.Errorf("the error is %q, want %q in it", err, s)
		}
	}
}

// wantListed fails the test unless exactly these machines of some are listed.
func wantListed(tb testing.TB, s *httplist.Source, machines ...string) {
	tb.Helper()
	for _, m := range []string{"one", "two", "three", "stranger"} {
		want := strings.Contains(" "+strings.Join(machines, " ")+" ", " "+m+" ")
		v, err := s.Check(tb.Context(), machine(m))
		if err != nil || v.Listed != want {
			tb.Errorf("%s: listed is %v, error %v, want %v", m, v.Listed, err, want)
		}
		if v.Listed && v.Attributes.Name != m {
			tb.Errorf("%s has the name %q", m, v.Attributes.Name)
		}
	}
}

func wantCannotTell(tb testing.TB, s *httplist.Source, says string) {
	tb.Helper()
	for _, m := range []string{"one", "stranger"} {
		v, err := s.Check(tb.Context(), machine(m))
		if wantError(tb, err, says); v.Listed {
			tb.Errorf("%s is listed", m)
		}
	}
}

// write writes a file in a folder of its own and returns its path.
func write(tb testing.TB, name string, data []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name)
	rewrite(tb, path, data)
	return path
}

func rewrite(tb testing.TB, path string, data []byte) {
	tb.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		tb.Fatal(err)
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// years is how far clocks may jump in tests.
const years = 5 * 365 * 24 * time.Hour

// An authority issues certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-years), NotAfter: time.Now().Add(years),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &authority{cert, key}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// issue returns a certificate and its key as PEM.
func (a *authority) issue(tb testing.TB, name string, until time.Time) (cert, key []byte) {
	tb.Helper()
	leaf := newKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-years), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, leaf.Public(), a.key)
	if err != nil {
		tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leaf)
	if err != nil {
		tb.Fatal(err)
	}
	return pemOf("CERTIFICATE", der), pemOf("PRIVATE KEY", keyDER)
}

// pair returns a certificate for a tls.Config.
func (a *authority) pair(tb testing.TB, name string, until time.Time) tls.Certificate {
	tb.Helper()
	pair, err := tls.X509KeyPair(a.issue(tb, name, until))
	if err != nil {
		tb.Fatal(err)
	}
	return pair
}

func (a *authority) pem() []byte { return pemOf("CERTIFICATE", a.cert.Raw) }
