package httplist_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// An error names what was asked, without its secrets, and whose answer it is: with
// three sources, "the server answered 404" was anybody's.
func TestErrorsNameTheURL(t *testing.T) {
	o := newOrigin(t, nil)
	cfg := o.config()
	cfg.URL += "?key=SECRET"
	s := newSource(t, cfg)
	o.answer(http.StatusNotFound, "")
	err := s.Load(t.Context())
	wantError(t, err, "the list's server answered 404 Not Found to "+o.URL+"/tpm.json?…")
	o.Close()
	err = s.Load(t.Context())
	wantError(t, err, "ask "+o.URL+"/tpm.json?…: ", "connection refused")
	wantNoSecret(t, s)
}

// A client certificate that has expired is told by its own date: servers say anything
// from "bad certificate" to 400. That of the server is told by its date too, in words
// that are the same at each poll.
func TestExpiredCertificatesAreTold(t *testing.T) {
	ca, c := newAuthority(t), newClock()
	o := newOrigin(t, func(config *tls.Config) {
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		config.ClientCAs.AddCert(ca.cert)
	})
	until := time.Now().Add(-time.Hour)
	cert, key := ca.issue(t, "client", until)
	cfg := o.config()
	cfg.ClientCertPath, cfg.ClientKeyPath = write(t, "cert.pem", cert), write(t, "key.pem", key)
	wantError(t, newSource(t, cfg).Load(t.Context()),
		"the client certificate \""+cfg.ClientCertPath+"\" (\"CN=client\") expired at "+until.UTC().Format(time.RFC3339),
		"the list's server refused the TLS connection")

	soon := ca.pair(t, "server", time.Now().Add(30*time.Minute))
	o = newOrigin(t, func(config *tls.Config) { config.Certificates = []tls.Certificate{soon} })
	cfg = o.config()
	cfg.Now, cfg.CAPath = c.Now, write(t, "ca.pem", ca.pem())
	s := loaded(t, cfg)
	c.move(40 * time.Minute)
	first := s.Load(t.Context())
	wantError(t, first, "a certificate of the list's server (\"CN=server\") expired at "+
		soon.Leaf.NotAfter.UTC().Format(time.RFC3339))
	c.move(time.Minute)
	if second := s.Load(t.Context()); second == nil || second.Error() != first.Error() {
		t.Errorf("%v\nafter %v: a line in the log at each poll", second, first)
	}
}

// What a proxy refuses is no answer of the list's server, which never was asked. The
// environment is read once a process, so the test is run in another one.
func TestProxyIsToldFromTheServer(t *testing.T) {
	if os.Getenv("TEST_BEHIND_PROXY") != "" {
		s, err := httplist.New(httplist.Config{URL: "https://list.example.org/tpm.json?key=SECRET"})
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, s.Load(t.Context()), os.Getenv("TEST_WANT"), "ask https://list.example.org/tpm.json?…: ")
		wantNoSecret(t, s)
		return
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusProxyAuthRequired)
		_, _ = io.WriteString(w, "log in")
	}))
	defer proxy.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // a port that nobody is at
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + listener.Addr().String()
	must(t, listener.Close())
	host := strings.TrimPrefix(proxy.URL, "http://")
	for url, want := range map[string]string{
		strings.Replace(proxy.URL, "://", "://user:SECRET@", 1): "the proxy " + host + ", which the environment names, " +
			"answered \"407 Proxy Authentication Required\"",
		nobody: "the proxy, which the environment names, cannot be reached: ",
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyIsToldFromTheServer$")
		cmd.Env = append(os.Environ(), "TEST_BEHIND_PROXY=1", "TEST_WANT="+want, "HTTPS_PROXY="+url, "NO_PROXY=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", want, err, out)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Why a list is stale is what has kept it from being confirmed: "stale since" alone
// sends whoever reads it to another line of the log.
func TestStaleSaysWhy(t *testing.T) {
	o := newOrigin(t, nil)
	c := newClock()
	cfg := o.config()
	cfg.Now, cfg.MaxStaleness = c.Now, time.Hour
	o.answer(http.StatusOK, list("", "one"))
	s := loaded(t, cfg)
	o.answer(http.StatusForbidden, "")
	if err := s.Load(t.Context()); err == nil {
		t.Fatal("403 is no error")
	}
	c.move(2 * time.Hour)
	wantCannotTell(t, s, "the list is stale: it was last confirmed at")
	wantCannotTell(t, s, "the list's server answered 403 Forbidden to "+o.URL)
}

// A list that has lost most of its machines, a misspelt field, and a machine that is
// "revoked" in a list that lists it are served as they are, and said.
func TestWarningsOfTheList(t *testing.T) {
	o := newOrigin(t, nil)
	var names []string
	for i := range 30 {
		names = append(names, strings.Repeat("x", i+1))
	}
	o.answer(http.StatusOK, list("", names...))
	s := loaded(t, o.config())
	if w := s.Status().Warnings; len(w) != 0 {
		t.Fatalf("%q", w)
	}
	o.answer(http.StatusOK, `{"Serial": 5, "keys": [{"hash": "`+hash("one")+`", "name": "one", "revoked": true}]}`)
	for range 2 {
		refresh(t, s)
		w := strings.Join(s.Status().Warnings, "\n")
		for _, want := range []string{
			`is it meant to be "serial"?`, `the field "revoked" means nothing, and the TPM is listed all the same`,
			"it has 1 entries now and had 30 before, of which 30 are gone",
		} {
			if !strings.Contains(w, want) {
				t.Errorf("%s\nwant %s", w, want)
			}
		}
		wantListed(t, s, "one")
	}
	o.answer(http.StatusOK, list("", "one", "two"))
	refresh(t, s)
	if w := s.Status().Warnings; len(w) != 0 {
		t.Errorf("%q", w)
	}
}
