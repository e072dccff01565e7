package web_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// An error names what was asked, without its secrets, and whose answer it is: with
// three sources, "the server answered 404" was anybody's.
func TestErrorsNameTheURL(t *testing.T) {
	o := webtest.NewServer(t, nil)
	cfg := configFor(o)
	cfg.URL += "?key=SECRET"
	s := newSource(t, cfg)
	o.Answer(http.StatusNotFound, "")
	err := s.Load(t.Context())
	webtest.WantError(t, err, "the list's server answered 404 Not Found to "+o.URL+"/tpm.json?…")
	o.Close()
	err = s.Load(t.Context())
	webtest.WantError(t, err, "ask "+o.URL+"/tpm.json?…: ", "connection refused")
	wantNoSecret(t, s)
}

// A client certificate that has expired is told by its own date: servers say anything
// from "bad certificate" to 400. That of the server is told by its date too, in words
// that are the same at each poll.
func TestExpiredCertificatesAreTold(t *testing.T) {
	ca, c := webtest.NewAuthority(t), newClock()
	o := webtest.NewServer(t, func(config *tls.Config) {
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		config.ClientCAs.AddCert(ca.Cert)
	})
	until := time.Now().Add(-time.Hour)
	cert, key := ca.Issue(t, "client", until)
	cfg := configFor(o)
	cfg.ClientCertPath, cfg.ClientKeyPath = webtest.Write(t, "cert.pem", cert), webtest.Write(t, "key.pem", key)
	webtest.WantError(t, newSource(t, cfg).Load(t.Context()),
		"the client certificate \""+cfg.ClientCertPath+"\" (\"CN=client\") expired at "+until.UTC().Format(time.RFC3339),
		"the list's server refused the TLS connection")

	soon := ca.Pair(t, "server", time.Now().Add(30*time.Minute))
	o = webtest.NewServer(t, func(config *tls.Config) { config.Certificates = []tls.Certificate{soon} })
	cfg = configFor(o)
	cfg.Now, cfg.CAPath = c.Now, webtest.Write(t, "ca.pem", ca.PEM())
	s := loaded(t, cfg)
	c.move(40 * time.Minute)
	first := s.Load(t.Context())
	webtest.WantError(t, first, "a certificate of the list's server (\"CN=server\") expired at "+
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
		s := newSource(t, web.Config{URL: "https://list.example.org/tpm.json?key=SECRET"})
		webtest.WantError(t, s.Load(t.Context()), os.Getenv("TEST_WANT"), "ask https://list.example.org/tpm.json?…: ")
		wantNoSecret(t, s)
		return
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusProxyAuthRequired)
		_, _ = io.WriteString(w, "log in")
	}))
	defer proxy.Close()
	const nobody = "http://127.0.0.1:1" // unlike a port that was free a moment ago
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
