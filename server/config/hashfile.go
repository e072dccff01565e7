package config

import (
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashfile"
)

// mostStaleFile is how long a file that cannot be read may serve at most.
const mostStaleFile = 366 * 24 * time.Hour

func decodeHashFile(b *body) definition {
	cfg := hashfile.Config{
		Path:         b.required("path", "/etc/tpm/machines.txt"),
		PollInterval: b.duration("poll_interval", hashfile.DefaultPollInterval, leastPoll, mostPoll),
		MaxStaleness: b.duration("max_staleness", hashfile.DefaultMaxStaleness, 2*leastPoll, mostStaleFile),
		MaxBytes:     b.integer("max_bytes", eklist.DefaultMaxBytes, 1, eklist.MaxBytes),
		AllowEmpty:   b.boolean("allow_empty", false),
	}
	if cfg.MaxStaleness < 2*cfg.PollInterval {
		b.fail("max_staleness", "is %s, but must be at least twice poll_interval, which is %s",
			cfg.MaxStaleness, cfg.PollInterval)
	}
	d := definition{
		config: cfg,
		open:   func() (sources.Source, error) { return hashfile.New(cfg) },
		gives:  []agentpath.Field{agentpath.Name},
	}
	if cfg.Path != "" {
		d.files = append(d.files, file{at: under(b.path, "path"), path: cfg.Path, regular: true})
	}
	return d
}
