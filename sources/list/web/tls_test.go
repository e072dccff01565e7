package web_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// Whoever answers in place of the server, by DNS or by ARP, serves no list.
func TestWrongServer(t *testing.T) {
	ca := webtest.NewAuthority(t)
	hour := time.Now().Add(time.Hour)
	caFile := webtest.Write(t, "ca.pem", ca.PEM())
	for name, tt := range map[string]struct {
		ca   string
		cert tls.Certificate
		want string
	}{
		"another CA":  {caFile, webtest.NewAuthority(t).Pair(t, "server", hour), "unknown authority"},
		"expired":     {caFile, ca.Pair(t, "server", time.Now().Add(-time.Minute)), "expired"},
		"system's CA": {"", ca.Pair(t, "server", hour), "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			o := webtest.NewServer(t, func(c *tls.Config) { c.Certificates = []tls.Certificate{tt.cert} })
			cfg := configFor(o)
			cfg.CAPath = tt.ca
			s := newSource(t, cfg)
			webtest.WantError(t, s.Load(t.Context()), tt.want)
			webtest.WantCannotTell(t, s, "no list")
			if n := o.Requests(); n != 0 {
				t.Errorf("%d requests were made", n)
			}
		})
	}
	t.Run("another name", func(t *testing.T) {
		o := webtest.NewServer(t, func(c *tls.Config) { c.Certificates = []tls.Certificate{ca.Pair(t, "server", hour)} })
		cfg := configFor(o)
		cfg.URL, cfg.CAPath = "https://localhost:"+port(o.URL)+"/", caFile
		webtest.WantError(t, newSource(t, cfg).Load(t.Context()), "localhost")
	})
}

func port(url string) string { return url[len("https://127.0.0.1:"):] }

// The server's certificate is verified at each poll: one that expires between two
// of them, or whose CA is withdrawn from the file, serves no more.
func TestServerCertificateBetweenPolls(t *testing.T) {
	ca, c := webtest.NewAuthority(t), newClock()
	soon := ca.Pair(t, "server", time.Now().Add(30*time.Minute))
	o := webtest.NewServer(t, func(config *tls.Config) { config.Certificates = []tls.Certificate{soon} })
	cfg := configFor(o)
	cfg.Now, cfg.CAPath = c.Now, webtest.Write(t, "ca.pem", ca.PEM())
	o.Answer(http.StatusOK, webtest.List("", "one"))
	s := loaded(t, cfg)
	c.move(40 * time.Minute)
	webtest.WantError(t, s.Load(t.Context()), "expired")
	webtest.WantListed(t, s, "one")
	c.move(-40 * time.Minute)
	webtest.Rewrite(t, cfg.CAPath, webtest.NewAuthority(t).PEM())
	webtest.WantError(t, s.Load(t.Context()), "unknown authority")
	webtest.Rewrite(t, cfg.CAPath, append(webtest.NewAuthority(t).PEM(), ca.PEM()...))
	refresh(t, s)
}

// Client certificates that are rotated on disk are shown from the next poll on.
func TestClientCertificateIsRotated(t *testing.T) {
	ca := webtest.NewAuthority(t)
	o := webtest.NewServer(t, func(config *tls.Config) {
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		config.ClientCAs.AddCert(ca.Cert)
	})
	shown := ""
	o.Serve(func(w http.ResponseWriter, r *http.Request) {
		shown = r.TLS.PeerCertificates[0].Subject.CommonName
		_, _ = io.WriteString(w, webtest.List("", "one"))
	})
	hour := time.Now().Add(time.Hour)
	cert, key := ca.Issue(t, "first", hour)
	cfg := configFor(o)
	webtest.WantError(t, newSource(t, cfg).Load(t.Context()), "certificate required")
	cfg.ClientCertPath, cfg.ClientKeyPath = webtest.Write(t, "cert.pem", cert), webtest.Write(t, "key.pem", key)
	s := loaded(t, cfg)
	if shown != "first" {
		t.Errorf("showed %q", shown)
	}
	cert, key = ca.Issue(t, "second", hour)
	webtest.Rewrite(t, cfg.ClientCertPath, cert) // half of the rotation
	webtest.WantError(t, s.Load(t.Context()), "the client certificate")
	webtest.WantListed(t, s, "one")
	webtest.Rewrite(t, cfg.ClientKeyPath, key)
	refresh(t, s)
	if shown != "second" {
		t.Errorf("showed %q", shown)
	}
}

// Tokens that are rotated on disk are sent from the next poll on, and to nobody
// but the configured host, even where that redirects elsewhere.
func TestBearerToken(t *testing.T) {
	elsewhere := webtest.NewServer(t, nil)
	o := webtest.NewServer(t, nil)
	sent := ""
	o.Serve(func(w http.ResponseWriter, r *http.Request) {
		switch sent = r.Header.Get("Authorization"); r.URL.Path {
		case "/tpm.json":
			http.Redirect(w, r, "/here.json", http.StatusFound)
		case "/here.json":
			_, _ = io.WriteString(w, webtest.List("", "one"))
		}
	})
	cfg := configFor(o)
	cfg.BearerTokenPath = webtest.Write(t, "token", []byte("\ufefffirst\n")) // as an editor on Windows writes it
	s := loaded(t, cfg)
	if sent != "Bearer first" {
		t.Errorf("sent %q", sent)
	}
	webtest.Rewrite(t, cfg.BearerTokenPath, []byte("second"))
	refresh(t, s)
	if sent != "Bearer second" {
		t.Errorf("sent %q", sent)
	}
	for _, target := range []string{
		elsewhere.URL, "https://localhost:" + port(o.URL) + "/", "https://u:p@127.0.0.1:" + port(o.URL) + "/",
		"http://127.0.0.1:" + port(o.URL) + "/here.json", "//127.0.0.1:" + port(elsewhere.URL) + "/",
	} {
		before := o.Requests()
		o.Answer(http.StatusTemporaryRedirect, "", "Location", target)
		err := s.Load(t.Context())
		webtest.WantError(t, err, "redirected to another host")
		if n := o.Requests() - before; n != 1 {
			t.Errorf("%s: %d requests", target, n)
		}
	}
	if n := elsewhere.Requests(); n != 0 {
		t.Errorf("another host got %d requests", n)
	}
	webtest.WantListed(t, s, "one")
}

// Nothing secret is in an error, which goes to logs.
func TestErrorsHoldNoSecret(t *testing.T) {
	o := webtest.NewServer(t, nil)
	cfg := configFor(o)
	cfg.URL += "?key=SECRET"
	cfg.BearerTokenPath = webtest.Write(t, "token", []byte("SECRET"))
	s := newSource(t, cfg)
	o.Answer(http.StatusNotFound, "")
	wantNoSecret(t, s)
	o.Answer(http.StatusFound, "", "Location", "https://localhost/?key=SECRET")
	wantNoSecret(t, s)
	o.Answer(http.StatusFound, "", "Location", "https://%zz/")
	wantNoSecret(t, s)
	o.Answer(http.StatusOK, "", "Content-Encoding", "gzip")
	wantNoSecret(t, s)
	o.Raw("", nil)
	wantNoSecret(t, s)
	o.Close()
	wantNoSecret(t, s)
}

func wantNoSecret(t *testing.T, s *source) {
	t.Helper()
	err := s.Load(t.Context())
	if err == nil || containsSecret(err.Error()) {
		t.Errorf("the error is %v", err)
	}
}

func containsSecret(s string) bool {
	for i := range len(s) - 5 {
		if s[i:i+6] == "SECRET" {
			return true
		}
	}
	return false
}
