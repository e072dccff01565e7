package web_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// What the error of a poll says to do is done, and the list is served.
func TestRemediesOfPolls(t *testing.T) {
	elsewhere := webtest.NewServer(t, nil)
	elsewhere.Serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, webtest.List("", "one")) })
	token := webtest.Write(t, "token", []byte("secret"))
	for name, c := range map[string]struct {
		serve  http.HandlerFunc
		broken func(cfg *web.Config)
		err    string
		mend   func(o *webtest.Server, cfg *web.Config)
	}{
		"a redirect": {
			func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, elsewhere.URL+"/tpm.json", http.StatusFound)
			}, nil, "configure the final URL",
			func(_ *webtest.Server, cfg *web.Config) { *cfg = configFor(elsewhere) },
		},
		"no token": {
			func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer secret" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_, _ = io.WriteString(w, webtest.List("", "one"))
			}, nil, "check the client certificate and the bearer token",
			func(_ *webtest.Server, cfg *web.Config) { cfg.BearerTokenPath = token },
		},
		"a token of two lines": {
			func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, webtest.List("", "one")) },
			func(cfg *web.Config) { cfg.BearerTokenPath = webtest.Write(t, "two", []byte("a\nb")) },
			"write one line without blanks",
			func(_ *webtest.Server, cfg *web.Config) { webtest.Rewrite(t, cfg.BearerTokenPath, []byte("a\n")) },
		},
		"expired": {
			func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, webtest.List(`"expires": "2020-01-01T00:00:00Z", `, "one"))
			}, nil, "publish one with a later date",
			func(o *webtest.Server, _ *web.Config) {
				later := time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339)
				o.Serve(func(w http.ResponseWriter, _ *http.Request) {
					_, _ = io.WriteString(w, webtest.List(`"expires": "`+later+`", `, "one"))
				})
			},
		},
		"an empty CA file": {
			func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, webtest.List("", "one")) },
			func(cfg *web.Config) { cfg.CAPath = webtest.Write(t, "ca", nil) }, "there is no CA certificate in",
			func(o *webtest.Server, cfg *web.Config) { cfg.CAPath = configFor(o).CAPath },
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := webtest.NewServer(t, nil)
			o.Serve(c.serve)
			cfg := configFor(o)
			if c.broken != nil {
				c.broken(&cfg)
			}
			webtest.WantError(t, newSource(t, cfg).Load(t.Context()), c.err)
			c.mend(o, &cfg)
			if err := newSource(t, cfg).Load(t.Context()); err != nil {
				t.Errorf("as advised: %v", err)
			}
		})
	}
}
