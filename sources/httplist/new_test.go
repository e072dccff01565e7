package httplist_test

import (
	"os"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// A configuration that cannot be meant is refused before anything runs, and no
// secret in it reaches a log.
func TestNewRefuses(t *testing.T) {
	const good = "https://example.org/tpm.json"
	for name, tt := range map[string]struct {
		cfg  httplist.Config
		want string
	}{
		"no URL":              {httplist.Config{}, "url is missing"},
		"plain HTTP":          {httplist.Config{URL: "http://example.org/"}, "not https://"},
		"no host":             {httplist.Config{URL: "https:///tpm.json"}, "not https://"},
		"no URL at all":       {httplist.Config{URL: "https://secret\x00/"}, "is malformed"},
		"user":                {httplist.Config{URL: "https://u:secret@example.org/"}, "contains a user"},
		"fragment":            {httplist.Config{URL: good + "#x"}, "fragment"},
		"certificate alone":   {httplist.Config{URL: good, ClientCertPath: "/x"}, "go together"},
		"key alone":           {httplist.Config{URL: good, ClientKeyPath: "/x"}, "go together"},
		"timeout":             {httplist.Config{URL: good, Timeout: -1}, "timeout is -1ns"},
		"poll interval":       {httplist.Config{URL: good, PollInterval: -time.Second}, "poll_interval is -1s"},
		"staleness":           {httplist.Config{URL: good, MaxStaleness: -time.Second}, "max_staleness is -1s"},
		"stale at once":       {httplist.Config{URL: good, MaxStaleness: time.Minute - 1}, "at least twice poll_interval"},
		"size":                {httplist.Config{URL: good, MaxBytes: -1}, "max_bytes is -1"},
		"size beyond":         {httplist.Config{URL: good, MaxBytes: 4 << 30}, "must be from 1 to"},
		"half a signature":    {httplist.Config{URL: good, PublicKeyPath: "/x"}, "signature_url is missing"},
		"signature elsewhere": {signed("https://elsewhere.org/sig"), "a different host"},
		"signature by HTTP":   {signed("http://example.org/sig"), "signature_url is not https"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := httplist.New(tt.cfg)
			wantError(t, err, tt.want)
		})
	}
	_, err := httplist.New(httplist.Config{URL: "http://u@x/#y", Timeout: -1})
	wantError(t, err, "https", "user", "fragment", "timeout") // all at once
	elsewhere := signed("http://u:secret@elsewhere.org/sig")
	elsewhere.Timeout = -1
	_, err = httplist.New(elsewhere)
	wantError(t, err, "signature_url is not https", "signature_url contains a user", "signature_url is on a different host", "timeout")
}

func signed(signature string) httplist.Config {
	return httplist.Config{
		URL: "https://example.org/l", SignatureURL: signature, PublicKeyPath: "/x", ListID: "fleet",
	}
}

// A file that is missing, empty, too long or never ends is an error of this
// attempt, and neither stops the source nor sends a request without what the file
// should hold.
func TestFilesThatCannotBeRead(t *testing.T) {
	o := newOrigin(t, nil)
	cert, key := newAuthority(t).issue(t, "client", time.Now().Add(time.Hour))
	_, other := newAuthority(t).issue(t, "other", time.Now().Add(time.Hour))
	certPath, keyPath := write(t, "cert.pem", cert), write(t, "key.pem", key)
	for name, tt := range map[string]struct {
		change func(*httplist.Config)
		want   string
	}{
		"no CA file":      {func(c *httplist.Config) { c.CAPath = "/nonexistent" }, "read the CA certificates: open"},
		"no CA in it":     {func(c *httplist.Config) { c.CAPath = write(t, "x", nil) }, "there is no CA certificate in"},
		"a folder":        {func(c *httplist.Config) { c.CAPath = t.TempDir() }, "is not a regular file"},
		"endless CA file": {func(c *httplist.Config) { c.CAPath = long(t) }, "is longer than"},
		"no token file":   {func(c *httplist.Config) { c.BearerTokenPath = "/nonexistent" }, "read the bearer token"},
		"empty token":     {func(c *httplist.Config) { c.BearerTokenPath = write(t, "x", []byte(" \n")) }, "no bearer token"},
		"header in token": {
			func(c *httplist.Config) { c.BearerTokenPath = write(t, "x", []byte("a\r\nX-Evil: b")) }, "no bearer token",
		},
		"no certificate": {
			func(c *httplist.Config) { c.ClientCertPath, c.ClientKeyPath = "/nonexistent", keyPath },
			"read the client certificate",
		},
		"no key": {
			func(c *httplist.Config) { c.ClientCertPath, c.ClientKeyPath = certPath, "/nonexistent" },
			"read the key of the client certificate",
		},
		"another key": {
			func(c *httplist.Config) { c.ClientCertPath, c.ClientKeyPath = certPath, write(t, "k", other) },
			"the client certificate",
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := o.config()
			tt.change(&cfg)
			s := newSource(t, cfg)
			wantError(t, s.Load(t.Context()), tt.want)
			wantCannotTell(t, s, "no list")
		})
	}
	if n := o.requests.Load(); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

// long returns a file of a gigabyte that takes no room.
func long(tb testing.TB) string {
	tb.Helper()
	path := write(tb, "long", nil)
	if err := os.Truncate(path, 1<<30); err != nil {
		tb.Fatal(err)
	}
	return path
}
