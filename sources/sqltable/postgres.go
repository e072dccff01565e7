package sqltable

import (
	"crypto/tls"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pgConfig returns the settings of the driver for PostgreSQL.
func (c *connector) pgConfig(config *tls.Config) (*pgx.ConnConfig, error) {
	pg, err := pgx.ParseConfig(c.dsn)
	if err != nil {
		return nil, badDSN(err, "postgres://<user>:<password>@<host>/<database>?sslmode=verify-full")
	}
	if pg.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
		return nil, errors.New("default_query_exec_mode=simple_protocol would make the hash part of the SQL text: " +
			"remove it; behind PgBouncer, set max_prepared_statements there")
	}
	pg.Tracer, pg.StatementCacheCapacity, pg.DescriptionCacheCapacity = nil, 0, 0
	if config != nil {
		c.useTLS(pg, config)
	}
	hosts := hostsOf(pg)
	for _, h := range hosts {
		if err := c.checkHost(h.Host, h.TLSConfig, "write sslmode=verify-full"); err != nil {
			return nil, err
		}
	}
	pg.ConnectTimeout = c.cfg.Timeout / time.Duration(len(hosts))
	pg.DialFunc, pg.LookupFunc = dial, lookUp
	pg.RuntimeParams["default_transaction_read_only"] = "on"
	setDefault(pg.RuntimeParams, "application_name", "tpm-attestor")
	// The server, too, ends a look-up that waits for a lock, so that no session is left behind.
	setDefault(pg.RuntimeParams, "statement_timeout", strconv.FormatInt(c.cfg.Timeout.Milliseconds(), 10))
	return pg, nil
}

func setDefault(m map[string]string, key, value string) {
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

// hostsOf returns the hosts to which the driver tries to connect, in order.
func hostsOf(pg *pgx.ConnConfig) []*pgconn.FallbackConfig {
	return append([]*pgconn.FallbackConfig{{Host: pg.Host, Port: pg.Port, TLSConfig: pg.TLSConfig}}, pg.Fallbacks...)
}

// useTLS makes the driver connect to each host with TLS only.
func (c *connector) useTLS(pg *pgx.ConnConfig, config *tls.Config) {
	// A host occurs twice in a row if the DSN would have it tried with and without TLS.
	hosts := slices.CompactFunc(hostsOf(pg), func(a, b *pgconn.FallbackConfig) bool {
		return a.Host == b.Host && a.Port == b.Port
	})
	for _, h := range hosts {
		h.TLSConfig = toHost(config, h.Host)
	}
	pg.TLSConfig, pg.Fallbacks = hosts[0].TLSConfig, hosts[1:]
}
