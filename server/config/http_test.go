package config_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
)

const inventory = `source "http" "inventory" { url = "https://x/tpm.json"`

const spiffe = inventory + ` auth = "spiffe" server_id = "spiffe://example.org/allowlist"`

// A key that is set reaches the source, and a key that is not set has the default that the
// documentation names.
func TestHTTP(t *testing.T) {
	defaults := httplist.Config{
		URL: "https://x/tpm.json", Timeout: 10 * time.Second, PollInterval: 30 * time.Second,
		MaxStaleness: 24 * time.Hour, MaxBytes: 256 << 20,
	}
	all := httplist.Config{
		URL: "https://x/tpm.json", CAPath: "/ca", ClientCertPath: "/cert", ClientKeyPath: "/key",
		BearerTokenPath: "/token", Timeout: time.Second, PollInterval: time.Minute, MaxStaleness: time.Hour,
		MaxBytes: 1000, CachePath: "/cache/x.db", SignatureURL: "https://x/tpm.sig", PublicKeyPath: "/pub", ListID: "fleet",
	}
	for text, want := range map[string]httplist.Config{
		inventory + `}`: defaults,
		inventory + ` ca_path = "/ca" client_cert_path = "/cert" client_key_path = "/key"
			bearer_token_path = "/token" timeout = "1s" poll_interval = "1m" max_staleness = "1h" max_bytes = 1000
			cache_path = "/cache/x.db" signature_url = "https://x/tpm.sig" public_key_path = "/pub"
			list_id = "fleet" }`: all,
		`{"source": {"http": {"inventory": {"url": "https://x/tpm.json", "max_bytes": 268435456}}}}`: defaults,
	} {
		c := mustParse(t, text)
		if d := cmp.Diff(want, c.Members[0].Config); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
		if c.Members[0].Kind != "http" {
			t.Errorf("the kind is %q", c.Members[0].Kind)
		}
	}
}

// A list that would be read from anybody, never be fresh, or be trusted without
// the signature that somebody meant, is refused by the key that is to be mended.
func TestHTTPProblems(t *testing.T) {
	const at = `source "http" "inventory": `
	for _, tt := range []struct{ text, want string }{
		{`source "http" "inventory" {}`, at + `url: is missing: write url = "https://allowlist.example.org/tpm.json"`},
		{`source "http" "inventory" { url = "http://x/" }`, at + `url: is not https://<host>/<path>`},
		{`source "http" "inventory" { url = "https://u:p@x/" }`, at + `url: contains a user: use a client certificate`},
		{inventory + ` public_key_path = "/x" list_id = "y" signature_url = "https://y/sig" }`, at + `signature_url: is on a different host`},
		{inventory + ` public_key_path = "/x" list_id = "y" signature_url = "http://x/sig" }`, at + `signature_url: is not https://`},
		{inventory + ` client_cert_path = "/x" }`, at + `client_key_path: is missing: the client certificate and its key`},
		{inventory + ` client_key_path = "/x" }`, at + `client_cert_path: is missing`},
		{inventory + ` public_key_path = "/x" }`, at + `list_id: is missing: a signed list needs all three`},
		{inventory + ` public_key_path = "/x" list_id = "y" }`, at + `signature_url: is missing`},
		{inventory + ` timeout = "1ms" }`, at + `timeout: is the string "1ms", but must be from 100ms to 25s`},
		{inventory + ` timeout = "1m" }`, at + `timeout: is the string "1m", but must be from 100ms to 25s`},
		{inventory + ` poll_interval = "10ms" }`, at + `poll_interval: is the string "10ms", but must be from 1s to 24h0m0s`},
		{inventory + ` poll_interval = "24h" }`, at + `max_staleness: is 24h0m0s, but must be at least twice poll_interval`},
		{inventory + ` max_staleness = "0s" }`, at + `max_staleness: is the string "0s", but must be from 2s`},
		{inventory + ` max_bytes = "10" }`, at + `max_bytes: is the string "10", but must be a number without quotes: write max_bytes = 268435456`},
		{inventory + ` max_bytes = 0 }`, at + `max_bytes: is the number 0, but must be a whole number from 1 to 4294967295`},
		{inventory + ` max_bytes = 1.5 }`, at + `max_bytes: is the number 1.5, but must be a whole number`},
		{inventory + ` max_bytes = 99999999999999999999 }`, `must be a whole number`},
		{
			inventory + ` cache_path = "/x/y" } source "http" "lab" { url = "https://y/" cache_path = "/x//y" }`,
			`source "http" "lab": cache_path: is also the cache of source "http" "inventory"`,
		},
		{inventory + ` auth = "tls" }`, at + `auth: is the string "tls", but must be "spiffe": write auth = "spiffe", or leave the key out`},
		{inventory + ` auth = "" }`, at + `auth: is empty`},
		{inventory + ` auth = true }`, at + `auth: is true, but must be a string`},
		{inventory + ` auth = "spiffe" }`, at + `server_id: is missing: write server_id = "spiffe://example.org/allowlist"`},
		{inventory + ` server_id = "x" }`, at + `server_id: is the string "x", but must be the SPIFFE ID`},
		{inventory + ` server_id = "spiffe://example.org/x" }`, at + `auth: is missing: write auth = "spiffe", which server_id needs`},
		{spiffe + ` ca_path = "/x" }`, at + `ca_path: cannot be combined with auth = "spiffe", where SPIRE's trust bundle verifies the web server: remove it`},
		{spiffe + ` client_cert_path = "/x" client_key_path = "/y" }`, at + `client_cert_path: cannot be combined with auth = "spiffe", where the SPIRE server presents its own X.509-SVID: remove it`},
		{spiffe + ` client_cert_path = "/x" client_key_path = "/y" }`, at + `client_key_path: cannot be combined with auth = "spiffe"`},
		{inventory + ` auth = "spiffe" server_id = "allowlist" }`, at + `server_id: is the string "allowlist", but must be the SPIFFE ID of the web server: write server_id = "spiffe://`},
		{inventory + ` auth = "spiffe" server_id = "spiffe://example.org" }`, at + `server_id: is the string "spiffe://example.org", but must be the SPIFFE ID`},
		{inventory + ` auth = "spiffe" server_id = "spiffe://example.org/a/../b" }`, at + `server_id: is the string`},
		{inventory + ` auth = "spiffe" server_id = "spiffe://example.com/x" }`, at + `server_id: is in the trust domain "example.com", but SPIRE's own is "example.org"`},
		{inventory + ` bearer_token = "x" }`, at + `bearer_token: unknown key`},
	} {
		_, err := config.Parse(tt.text, trustDomain)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
}

// A provider is one of SPIRE's identity.
type provider struct{ asked int }

func (p *provider) X509Identity(context.Context) (*x509svid.SVID, *x509bundle.Bundle, error) {
	p.asked++
	return nil, nil, errors.New("not yet")
}

// A source that shows SPIRE's own identity is the same one after a
// reconfiguration that does not change it, so that it keeps what it has loaded;
// and nobody is asked for the identity while a configuration is looked at, when
// there is none yet.
func TestHTTPWithSPIFFE(t *testing.T) {
	l, p := config.NewLoader(), &provider{}
	l.Identity = p
	load := func(text string) any {
		t.Helper()
		c, err := l.Load(t.Context(), text, trustDomain)
		if err != nil {
			t.Fatal(err)
		}
		return c.Members[0].Config
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := spiffe + fmt.Sprintf(" bearer_token_path = %q }", token)
	first, again := load(text), load("# moved\n"+text)
	if !reflect.DeepEqual(first, again) {
		t.Errorf("%+v is taken for another than %+v", again, first)
	}
	if other := load(strings.Replace(text, "allowlist", "other", 1)); reflect.DeepEqual(first, other) {
		t.Error("another server_id is taken for the same source")
	}
	cfg, _ := first.(httplist.Config)
	if cfg.ServerID != "spiffe://example.org/allowlist" || cfg.Identity != web.IdentityProvider(p) || cfg.CAPath != "" {
		t.Errorf("the source is %+v", cfg)
	}
	if p.asked != 0 {
		t.Errorf("the identity was asked for %d times", p.asked)
	}
	// What only looks at a configuration has nobody to ask, and accepts it.
	source, _ := mustParse(t, spiffe+" }").Members[0].Source.(sources.Loader)
	if err := source.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "no SPIRE server to ask") {
		t.Errorf("Load: %v", err)
	}
}

// A path that is mistyped is found before the server runs with it; the cache is
// made by the server, and its folder is not.
func TestHTTPFiles(t *testing.T) {
	dir := t.TempDir()
	l := config.NewLoader()
	text := func(key, path string) string { return inventory + ` ` + key + ` = "` + path + `" }` }
	if _, err := l.Load(t.Context(), text("cache_path", dir+"/new.db"), trustDomain); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"ca_path", "bearer_token_path", "cache_path"} {
		want := `source "http" "inventory": ` + key + `: "` + dir + `/none`
		_, err := l.Load(t.Context(), text(key, dir+"/none/x"), trustDomain)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", key, err)
		}
	}
	_, err := l.Load(t.Context(), text("ca_path", dir), trustDomain)
	if err == nil || !strings.Contains(err.Error(), `ca_path: "`+dir+`" is a folder: name a file in it`) {
		t.Errorf("a folder for a file: %v", err)
	}
}
