package httplist_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// Whoever answers in place of the server, by DNS or by ARP, serves no list.
func TestWrongServer(t *testing.T) {
	ca := newAuthority(t)
	hour := time.Now().Add(time.Hour)
	caFile := write(t, "ca.pem", ca.pem())
	for name, tt := range map[string]struct {
		ca   string
		cert tls.Certificate
		want string
	}{
		"another CA":  {caFile, newAuthority(t).pair(t, "server", hour), "unknown authority"},
		"expired":     {caFile, ca.pair(t, "server", time.Now().Add(-time.Minute)), "expired"},
		"system's CA": {"", ca.pair(t, "server", hour), "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, func(c *tls.Config) { c.Certificates = []tls.Certificate{tt.cert} })
			cfg := o.config()
			cfg.CAPath = tt.ca
			s := newSource(t, cfg)
			wantError(t, s.Load(t.Context()), tt.want)
			wantCannotTell(t, s, "no list")
			if n := o.requests.Load(); n != 0 {
				t.Errorf("%d requests were made", n)
			}
		})
	}
	t.Run("another name", func(t *testing.T) {
		o := newOrigin(t, func(c *tls.Config) { c.Certificates = []tls.Certificate{ca.pair(t, "server", hour)} })
		cfg := o.config()
		cfg.URL, cfg.CAPath = "https://localhost:"+port(o.URL)+"/", caFile
		wantError(t, newSource(t, cfg).Load(t.Context()), "localhost")
	})
}

func port(url string) string { return url[len("https://127.0.0.1:"):] }

// The server's certificate is verified at each poll: one that expires between two
// of them, or whose CA is withdrawn from the file, serves no more.
func TestServerCertificateBetweenPolls(t *testing.T) {
	ca, c := newAuthority(t), newClock()
	soon := ca.pair(t, "server", time.Now().Add(30*time.Minute))
	o := newOrigin(t, func(config *tls.Config) { config.Certificates = []tls.Certificate{soon} })
	cfg := o.config()
	cfg.Now, cfg.CAPath = c.Now, write(t, "ca.pem", ca.pem())
	o.answer(http.StatusOK, list("", "one"))
	s := loaded(t, cfg)
	c.move(40 * time.Minute)
	wantError(t, s.Load(t.Context()), "expired")
	wantListed(t, s, "one")
	c.move(-40 * time.Minute)
	rewrite(t, cfg.CAPath, newAuthority(t).pem())
	wantError(t, s.Load(t.Context()), "unknown authority")
	rewrite(t, cfg.CAPath, append(newAuthority(t).pem(), ca.pem()...))
	refresh(t, s)
}

// Client certificates that are rotated on disk are shown from the next poll on.
func TestClientCertificateIsRotated(t *testing.T) {
	ca := newAuthority(t)
	o := newOrigin(t, func(config *tls.Config) {
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		config.ClientCAs.AddCert(ca.cert)
	})
	shown := ""
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		shown = r.TLS.PeerCertificates[0].Subject.CommonName
		_, _ = io.WriteString(w, list("", "one"))
	})
	hour := time.Now().Add(time.Hour)
	cert, key := ca.issue(t, "first", hour)
	cfg := o.config()
	wantError(t, newSource(t, cfg).Load(t.Context()), "certificate required")
	cfg.ClientCertPath, cfg.ClientKeyPath = write(t, "cert.pem", cert), write(t, "key.pem", key)
	s := loaded(t, cfg)
	if shown != "first" {
		t.Errorf("showed %q", shown)
	}
	cert, key = ca.issue(t, "second", hour)
	rewrite(t, cfg.ClientCertPath, cert) // half of the rotation
	wantError(t, s.Load(t.Context()), "the client certificate")
	wantListed(t, s, "one")
	rewrite(t, cfg.ClientKeyPath, key)
	refresh(t, s)
	if shown != "second" {
		t.Errorf("showed %q", shown)
	}
}

// Tokens that are rotated on disk are sent from the next poll on, and to nobody
// but the configured host, even where that redirects elsewhere.
func TestBearerToken(t *testing.T) {
	elsewhere := newOrigin(t, nil)
	o := newOrigin(t, nil)
	sent := ""
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		switch sent = r.Header.Get("Authorization"); r.URL.Path {
		case "/tpm.json":
			http.Redirect(w, r, "/here.json", http.StatusFound)
		case "/here.json":
			_, _ = io.WriteString(w, list("", "one"))
		}
	})
	cfg := o.config()
	cfg.BearerTokenPath = write(t, "token", []byte("\ufefffirst\n")) // as an editor on Windows writes it
	s := loaded(t, cfg)
	if sent != "Bearer first" {
		t.Errorf("sent %q", sent)
	}
	rewrite(t, cfg.BearerTokenPath, []byte("second"))
	refresh(t, s)
	if sent != "Bearer second" {
		t.Errorf("sent %q", sent)
	}
	for _, target := range []string{
		elsewhere.URL, "https://localhost:" + port(o.URL) + "/", "https://u:p@127.0.0.1:" + port(o.URL) + "/",
		"http://127.0.0.1:" + port(o.URL) + "/here.json", "//127.0.0.1:" + port(elsewhere.URL) + "/",
	} {
		before := o.requests.Load()
		o.answer(http.StatusTemporaryRedirect, "", "Location", target)
		err := s.Load(t.Context())
		wantError(t, err, "redirected to another host")
		if n := o.requests.Load() - before; n != 1 {
			t.Errorf("%s: %d requests", target, n)
		}
	}
	if n := elsewhere.requests.Load(); n != 0 {
		t.Errorf("another host got %d requests", n)
	}
	wantListed(t, s, "one")
}

// Nothing secret is in an error, which goes to logs.
func TestErrorsHoldNoSecret(t *testing.T) {
	o := newOrigin(t, nil)
	cfg := o.config()
	cfg.URL += "?key=SECRET"
	cfg.BearerTokenPath = write(t, "token", []byte("SECRET"))
	s := newSource(t, cfg)
	o.answer(http.StatusNotFound, "")
	wantNoSecret(t, s)
	o.answer(http.StatusFound, "", "Location", "https://localhost/?key=SECRET")
	wantNoSecret(t, s)
	o.answer(http.StatusFound, "", "Location", "https://%zz/")
	wantNoSecret(t, s)
	o.answer(http.StatusOK, "", "Content-Encoding", "gzip")
	wantNoSecret(t, s)
	o.raw("", nil)
	wantNoSecret(t, s)
	o.Close()
	wantNoSecret(t, s)
}

func wantNoSecret(t *testing.T, s *httplist.Source) {
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
