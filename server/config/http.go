package config

import (
	"path/filepath"
	"time"

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
	}
	b.together("the client certificate and its key go together", "client_cert_path", "client_key_path")
	b.together("a signed list needs all three", "signature_url", "public_key_path", "list_id")
	if cfg.MaxStaleness < 2*cfg.PollInterval {
		b.fail("max_staleness", "is %s, must be at least twice poll_interval, which is %s",
			cfg.MaxStaleness, cfg.PollInterval)
	}
	d := definition{
		config: cfg,
		cache:  cfg.CachePath,
		open:   func() (sources.Source, error) { return httplist.New(cfg) },
	}
	for _, f := range []struct{ key, path string }{
		{"ca_path", cfg.CAPath},
		{"client_cert_path", cfg.ClientCertPath},
		{"client_key_path", cfg.ClientKeyPath},
		{"bearer_token_path", cfg.BearerTokenPath},
		{"public_key_path", cfg.PublicKeyPath},
	} {
		if f.path != "" {
			d.files = append(d.files, file{at: under(b.path, f.key), path: f.path})
		}
	}
	if cfg.CachePath != "" {
		d.files = append(d.files, file{at: under(b.path, "cache_path"), path: filepath.Dir(cfg.CachePath), dir: true})
	}
	return d
}
