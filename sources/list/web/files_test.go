package web_test

import (
	"os"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// A file that is missing, empty, too long or never ends is an error of this
// attempt, and neither stops the source nor sends a request without what the file
// should hold.
func TestFilesThatCannotBeRead(t *testing.T) {
	o := webtest.NewServer(t, nil)
	cert, key := webtest.NewAuthority(t).Issue(t, "client", time.Now().Add(time.Hour))
	_, other := webtest.NewAuthority(t).Issue(t, "other", time.Now().Add(time.Hour))
	certPath, keyPath := webtest.Write(t, "cert.pem", cert), webtest.Write(t, "key.pem", key)
	for name, tt := range map[string]struct {
		change func(*web.Config)
		want   string
	}{
		"no CA file":      {func(c *web.Config) { c.CAPath = "/nonexistent" }, "read the CA certificates: open"},
		"no CA in it":     {func(c *web.Config) { c.CAPath = webtest.Write(t, "x", nil) }, "there is no CA certificate in"},
		"a folder":        {func(c *web.Config) { c.CAPath = t.TempDir() }, "is not a regular file"},
		"endless CA file": {func(c *web.Config) { c.CAPath = long(t) }, "is longer than"},
		"no token file":   {func(c *web.Config) { c.BearerTokenPath = "/nonexistent" }, "read the bearer token"},
		"empty token":     {func(c *web.Config) { c.BearerTokenPath = webtest.Write(t, "x", []byte(" \n")) }, "no bearer token"},
		"header in token": {
			func(c *web.Config) { c.BearerTokenPath = webtest.Write(t, "x", []byte("a\r\nX-Evil: b")) }, "no bearer token",
		},
		"no certificate": {
			func(c *web.Config) { c.ClientCertPath, c.ClientKeyPath = "/nonexistent", keyPath },
			"read the client certificate",
		},
		"no key": {
			func(c *web.Config) { c.ClientCertPath, c.ClientKeyPath = certPath, "/nonexistent" },
			"read the key of the client certificate",
		},
		"another key": {
			func(c *web.Config) { c.ClientCertPath, c.ClientKeyPath = certPath, webtest.Write(t, "k", other) },
			"the client certificate",
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := configFor(o)
			tt.change(&cfg)
			s := newSource(t, cfg)
			webtest.WantError(t, s.Load(t.Context()), tt.want)
			webtest.WantCannotTell(t, s, "no list")
		})
	}
	if n := o.Requests(); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

// long returns a file of a gigabyte that takes no room.
func long(tb testing.TB) string {
	tb.Helper()
	path := webtest.Write(tb, "long", nil)
	if err := os.Truncate(path, 1<<30); err != nil {
		tb.Fatal(err)
	}
	return path
}
