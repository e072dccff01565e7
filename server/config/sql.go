package config

import (
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// The limits of a table in a database.
const (
	leastLookUp, mostLookUp     = 10 * time.Millisecond, 25 * time.Second
	leastLifetime, mostLifetime = time.Second, 24 * time.Hour
)

func decodeSQL(b *body) definition {
	cfg := sqltable.Config{
		Dialect:        sqltable.Dialect(b.required("dialect", string(sqltable.Postgres))),
		DSNPath:        b.required("dsn_path", "/etc/spire/tpm-database.dsn"),
		Query:          b.text("query"),
		CAPath:         b.text("ca_path"),
		ClientCertPath: b.text("client_cert_path"),
		ClientKeyPath:  b.text("client_key_path"),
		Timeout:        b.duration("timeout", sqltable.DefaultTimeout, leastLookUp, mostLookUp),
		MaxOpenConns: int(b.integer("max_open_conns", sqltable.DefaultMaxOpenConns,
			1, sqltable.MostOpenConns)),
		ConnMaxLifetime: b.duration("conn_max_lifetime", sqltable.DefaultConnMaxLifetime, leastLifetime, mostLifetime),
		AllowUnverified: b.boolean("allow_unverified", false),
	}
	if cfg.Query == "" {
		cfg.Query = sqltable.DefaultQuery
	}
	known := cfg.Dialect == sqltable.Postgres || cfg.Dialect == sqltable.MySQL
	if cfg.Dialect != "" && !known {
		b.fail("dialect", "is %q, but must be %q or %q, which is also for MariaDB",
			shorten(string(cfg.Dialect)), sqltable.Postgres, sqltable.MySQL)
	}
	if err := checkQuery(cfg, known); err != nil {
		b.fail("query", "%v", err)
	}
	b.together("the client certificate and its key go together", "client_cert_path", "client_key_path")
	if (b.has("client_cert_path") || b.has("client_key_path")) && !b.has("ca_path") {
		b.fail("ca_path", "is missing: a client certificate is only sent to a database that ca_path vouches for")
	}
	d := definition{
		config: cfg,
		open:   func() (sources.Source, error) { return sqltable.New(cfg) },
		gives:  []agentpath.Field{agentpath.Name},
	}
	for _, f := range []struct{ key, path string }{
		{"dsn_path", cfg.DSNPath},
		{"ca_path", cfg.CAPath},
		{"client_cert_path", cfg.ClientCertPath},
		{"client_key_path", cfg.ClientKeyPath},
	} {
		if f.path != "" {
			d.files = append(d.files, besideFile(b.path, f.key, f.path))
		}
	}
	return d
}

// checkQuery returns what is wrong with the query; where the dialect is to be
// mended first, what is wrong with it in any.
func checkQuery(cfg sqltable.Config, known bool) error {
	if known {
		_, err := sqltable.Rewrite(cfg.Dialect, cfg.Query)
		return err
	}
	_, err := sqltable.Rewrite(sqltable.Postgres, cfg.Query)
	if _, other := sqltable.Rewrite(sqltable.MySQL, cfg.Query); other == nil {
		return nil
	}
	return err
}
