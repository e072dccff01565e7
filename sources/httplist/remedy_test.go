package httplist_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// What the error of a poll says to do is done, and the list is served.
func TestRemediesOfPolls(t *testing.T) {
	elsewhere := newOrigin(t, nil)
	elsewhere.serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, list("", "one")) })
	token := write(t, "token", []byte("secret"))
	for name, c := range map[string]struct {
		serve  http.HandlerFunc
		broken func(cfg *httplist.Config)
		err    string
		mend   func(o *origin, cfg *httplist.Config)
	}{
		"a redirect": {
			func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, elsewhere.URL+"/tpm.json", http.StatusFound)
			}, nil, "configure the final URL",
			func(_ *origin, cfg *httplist.Config) { *cfg = elsewhere.config() },
		},
		"no token": {
			func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer secret" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_, _ = io.WriteString(w, list("", "one"))
			}, nil, "check the client certificate and the bearer token",
			func(_ *origin, cfg *httplist.Config) { cfg.BearerTokenPath = token },
		},
		"a token of two lines": {
			func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, list("", "one")) },
			func(cfg *httplist.Config) { cfg.BearerTokenPath = write(t, "two", []byte("a\nb")) },
			"write one line without blanks",
			func(_ *origin, cfg *httplist.Config) { rewrite(t, cfg.BearerTokenPath, []byte("a\n")) },
		},
		"expired": {
			func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, list(`"expires": "2020-01-01T00:00:00Z", `, "one"))
			}, nil, "publish one with a later date",
			func(o *origin, _ *httplist.Config) {
				later := time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339)
				o.serve(func(w http.ResponseWriter, _ *http.Request) {
					_, _ = io.WriteString(w, list(`"expires": "`+later+`", `, "one"))
				})
			},
		},
		"an empty CA file": {
			func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, list("", "one")) },
			func(cfg *httplist.Config) { cfg.CAPath = write(t, "ca", nil) }, "there is no CA certificate in",
			func(o *origin, cfg *httplist.Config) { cfg.CAPath = o.config().CAPath },
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, nil)
			o.serve(c.serve)
			cfg := o.config()
			if c.broken != nil {
				c.broken(&cfg)
			}
			wantError(t, newSource(t, cfg).Load(t.Context()), c.err)
			c.mend(o, &cfg)
			if err := newSource(t, cfg).Load(t.Context()); err != nil {
				t.Errorf("as advised: %v", err)
			}
		})
	}
}
