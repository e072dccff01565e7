package config

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// The limits of a list behind a web server.
const (
	// An attempt ends before the Set gives it up, after 30 seconds.
	leastRequest, mostRequest = 100 * time.Millisecond, 25 * time.Second
	leastStale, mostStale     = 2 * leastPoll, 366 * 24 * time.Hour
)

func decodeHTTP(b *body) definition {
	cfg := httplist.Config{
		URL:             b.required("url", "https://allowlist.example.org/tpm.json"),
		CAPath:          b.text("ca_path"),
		ClientCertPath:  b.text("client_cert_path"),
		ClientKeyPath:   b.text("client_key_path"),
		BearerTokenPath: b.text("bearer_token_path"),
		Timeout:         b.duration("timeout", httplist.DefaultTimeout, leastRequest, mostRequest),
		PollInterval:    b.duration("poll_interval", httplist.DefaultPollInterval, leastPoll, mostPoll),
		MaxStaleness:    b.duration("max_staleness", httplist.DefaultMaxStaleness, leastStale, mostStale),
		MaxBytes:        b.integer("max_bytes", httplist.DefaultMaxBytes, 1, eklist.MaxBytes),
		CachePath:       b.text("cache_path"),
		SignatureURL:    b.text("signature_url"),
		PublicKeyPath:   b.text("public_key_path"),
		ListID:          b.text("list_id"),
		ServerID:        b.text("server_id"),
	}
	checkURLs(b, cfg)
	checkAuth(b, cfg)
	b.together("the client certificate and its key go together", "client_cert_path", "client_key_path")
	b.together("a signed list needs all three", "signature_url", "public_key_path", "list_id")
	if cfg.MaxStaleness < 2*cfg.PollInterval {
		b.fail("max_staleness", "is %s, but must be at least twice poll_interval, which is %s",
			cfg.MaxStaleness, cfg.PollInterval)
	}
	d := definition{
		config: cfg,
		cache:  cfg.CachePath,
		open:   func() (sources.Source, error) { return httplist.New(cfg) },
		gives:  []agentpath.Field{agentpath.Name},
	}
	for _, f := range []struct{ key, path string }{
		{"ca_path", cfg.CAPath},
		{"client_cert_path", cfg.ClientCertPath},
		{"client_key_path", cfg.ClientKeyPath},
		{"bearer_token_path", cfg.BearerTokenPath},
		{"public_key_path", cfg.PublicKeyPath},
	} {
		if f.path != "" {
			d.files = append(d.files, besideFile(b.path, f.key, f.path))
		}
	}
	if cfg.CachePath != "" {
		d.files = append(d.files, cacheFile(b.path, cfg.CachePath))
	}
	return d
}

// checkURLs refuses the URLs that httplist.New would refuse.
func checkURLs(b *body, cfg httplist.Config) {
	fail := func(key string, errs []error) {
		for _, err := range errs {
			b.fail(key, "%v", err)
		}
	}
	if cfg.URL != "" {
		fail("url", httplist.CheckURL(cfg.URL))
	}
	if cfg.SignatureURL != "" {
		fail("signature_url", httplist.CheckSignatureURL(cfg.SignatureURL, cfg.URL))
	}
}

// authSPIFFE is the one value that auth may have.
const authSPIFFE = "spiffe"

// checkAuth checks how the web server and this one know each other.
func checkAuth(b *body, cfg httplist.Config) {
	const example = "spiffe://example.org/allowlist"
	if id, err := spiffeid.FromString(cfg.ServerID); cfg.ServerID != "" && (err != nil || id.Path() == "") {
		b.fail("server_id", "is the string %q, but must be the SPIFFE ID of the web server: write server_id = %q",
			shorten(cfg.ServerID), example)
	}
	switch auth := b.text("auth"); {
	case auth != "" && auth != authSPIFFE:
		b.fail("auth", "is the string %q: write auth = %q, or leave the key out", shorten(auth), authSPIFFE)
		return
	case !b.has("auth") && b.has("server_id"):
		b.fail("auth", "is missing: write auth = %q, which server_id needs", authSPIFFE)
		return
	case auth == "":
		return
	}
	if !b.has("server_id") {
		b.fail("server_id", "is missing: write server_id = %q, the SPIFFE ID of the web server", example)
	}
	for key, instead := range map[string]string{
		"ca_path":          "SPIRE's trust bundle verifies the web server",
		"client_cert_path": "the SPIRE server presents its own X.509-SVID",
		"client_key_path":  "the SPIRE server presents its own X.509-SVID",
	} {
		if b.has(key) {
			b.fail(key, "cannot be combined with auth = %q, where %s: remove it, or remove auth and server_id",
				authSPIFFE, instead)
		}
	}
}

// withIdentity gives those sources a provider that know the web server by its
// SPIFFE ID. It is told apart by its address, so that a source is the same after
// a reconfiguration.
func (c *Config) withIdentity(ps *problems, all []definition, provider httplist.IdentityProvider) {
	for i := range all {
		cfg, is := all[i].config.(httplist.Config)
		if !is || cfg.ServerID == "" {
			continue
		}
		id, err := spiffeid.FromString(cfg.ServerID)
		if err == nil && id.TrustDomain() != c.TrustDomain && !c.TrustDomain.IsZero() {
			ps.add(under(all[i].path, "server_id"), "is in the trust domain %q, but SPIRE's own is %q: "+
				"only web servers in SPIRE's own can be verified", id.TrustDomain().Name(), c.TrustDomain.Name())
		}
		cfg.Identity = provider
		all[i].config = cfg
		all[i].open = func() (sources.Source, error) { return httplist.New(cfg) }
	}
}

// noIdentity provides for configurations that are looked at and never run.
type noIdentity struct{}

func (noIdentity) X509Identity(context.Context) (*x509svid.SVID, *x509bundle.Bundle, error) {
	return nil, nil, errors.New("there is no SPIRE server to ask")
}
