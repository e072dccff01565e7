// Package sqltable is a source that knows the TPMs in a table of a PostgreSQL,
// MySQL or MariaDB database.
//
// No rows are kept in memory. Each check is one look-up of the EK hash, so inserting a row admits a
// TPM from then on, and deleting it refuses the TPM from then on. The operator writes the query. It
// is a prepared statement with the hash as its only parameter, which is never part of its text.
// Sessions are read-only.
//
// No row means "not listed". One row means "listed", and its columns "name" and "labels" describe
// the TPM. Anything else is an error: two rows, columns that cannot be used, a database that is
// down, hangs or is busy. While the database is down, one look-up a second tries it, and all others
// fail at once.
package sqltable

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// The defaults of a Config.
const (
	DefaultQuery           = "SELECT name, labels FROM tpm_machines WHERE ek_hash = ?"
	DefaultTimeout         = 2 * time.Second
	DefaultMaxOpenConns    = 4
	DefaultConnMaxLifetime = 10 * time.Minute
	// MostOpenConns is the largest Config.MaxOpenConns.
	MostOpenConns = 100
)

// Config says where the table is. Dialect and DSNPath are required. All files must be regular
// files. Certificate files are read for each new connection.
type Config struct {
	// Dialect is the kind of the database. MySQL includes MariaDB.
	Dialect Dialect
	// DSNPath is a file with the data source name: for Postgres a URL, or keywords and values as
	// for libpq; for MySQL user:password@tcp(host:port)/database. It is read when the source is
	// first used, and again within a second after it has changed. If it cannot be read again, the
	// previous DSN stays in use.
	DSNPath string
	// Query is a SELECT with one "?" outside of literals, quoted identifiers and comments, which
	// stands for the EK hash in 64 lower-case hex digits. Empty means DefaultQuery. It must return
	// no row for a TPM that is not listed. Columns called name and labels, in upper or lower case,
	// describe the TPM: a text, and a text with a JSON array of strings; null means none. Other
	// columns are ignored.
	Query string
	// MaxOpenConns is the maximum number of connections, and so of look-ups, at the same time. Zero
	// means DefaultMaxOpenConns.
	MaxOpenConns int
	// Timeout limits one look-up, from the moment that it gets a connection or may make one. Zero
	// means DefaultTimeout.
	Timeout time.Duration
	// ConnMaxLifetime is how long a connection is used. Zero means
	// DefaultConnMaxLifetime.
	ConnMaxLifetime time.Duration
	// CAPath is a PEM file of the CA certificates that are trusted to issue the database's
	// certificate. If it is set, connections over a network use TLS whatever the DSN says, and the
	// certificate must name the host in the DSN.
	CAPath string
	// ClientCertPath and ClientKeyPath are PEM files of the client certificate, with
	// its chain, and its key. Both are set, with CAPath, or neither.
	ClientCertPath, ClientKeyPath string
	// AllowUnverified permits a database on another host without TLS, or without verifying its
	// certificate. Then anybody between it and this machine decides which TPMs are listed.
	AllowUnverified bool
}

// withDefaults fills in what the configuration leaves out.
func (c Config) withDefaults() Config {
	c.Query = cmp.Or(c.Query, DefaultQuery)
	c.MaxOpenConns = cmp.Or(c.MaxOpenConns, DefaultMaxOpenConns)
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.ConnMaxLifetime = cmp.Or(c.ConnMaxLifetime, DefaultConnMaxLifetime)
	return c
}

// check returns all mistakes in a configuration that has its defaults, and the query in the form
// that the database accepts.
func (c Config) check() (query string, err error) {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, sources.BadField(field, format, args...))
	}
	switch {
	case c.Dialect == "":
		bad("dialect", "is missing")
	case c.Dialect != Postgres && c.Dialect != MySQL:
		bad("dialect", "must be %q or %q, which is also for MariaDB", Postgres, MySQL)
	}
	if query, err = rewrite(c.Dialect, c.Query); err != nil {
		bad("query", "%v", err)
	}
	if c.DSNPath == "" {
		bad("dsn_path", "is missing")
	}
	if c.MaxOpenConns < 1 || c.MaxOpenConns > MostOpenConns {
		bad("max_open_conns", "is %d, but must be from 1 to %d", c.MaxOpenConns, MostOpenConns)
	}
	if c.Timeout < 0 {
		bad("timeout", "is %v, but must be positive", c.Timeout)
	}
	if c.ConnMaxLifetime < 0 {
		bad("conn_max_lifetime", "is %v, but must be positive", c.ConnMaxLifetime)
	}
	if (c.ClientCertPath != "" || c.ClientKeyPath != "") && c.CAPath == "" {
		bad("ca_path", "is missing: a client certificate is only sent to a database that ca_path vouches for")
	}
	errs = append(errs, smallfile.CheckPair(c.ClientCertPath, c.ClientKeyPath))
	return query, errors.Join(errs...)
}

// Source is a table of EK hashes. It is safe for concurrent use.
type Source struct {
	cfg   Config
	query string // in the form that the database accepts

	breaker breaker
	slots   chan struct{} // has an element for each look-up under way

	mu      sync.Mutex
	running bool      // whether Watch is running
	pool    *pool     // while Watch is running, once a look-up has needed it
	fileErr error     // why the DSN could not be read again
	looked  time.Time // when the file of the DSN was last read
	// lookPause is the shortest time from one reading of that file to the next.
	lookPause time.Duration
}

// New checks the configuration and returns the source. It opens nothing.
func New(cfg Config) (*Source, error) {
	cfg = cfg.withDefaults()
	query, err := cfg.check()
	if err != nil {
		return nil, err
	}
	return &Source{
		cfg:       cfg,
		query:     query,
		breaker:   breaker{pause: retryPause},
		lookPause: retryPause,
		slots:     make(chan struct{}, cfg.MaxOpenConns),
	}, nil
}

// Check implements sources.Source. It waits for a connection until ctx ends, and for the database
// no longer than Config.Timeout. If ctx ends first, the look-up continues in the background until
// it has an answer or its time runs out: drivers close the connection of a query whose context
// ends, so machines that disconnect would otherwise cause new connections all the time.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, err
	}
	begun, hash := time.Now(), ev.EKHash.String() // ev belongs to the caller again when Check has returned
	if err := s.breaker.enter(begun); err != nil {
		return sources.Verdict{}, err
	}
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return sources.Verdict{}, fmt.Errorf("all %d connections are in use: %w", cap(s.slots), ctx.Err())
	}
	if err := s.breaker.failedSince(begun); err != nil {
		<-s.slots
		return sources.Verdict{}, err
	}
	type result struct {
		verdict sources.Verdict
		err     error
	}
	results := make(chan result, 1) // buffered, so that nobody has to receive the result
	go func() {
		defer func() { <-s.slots }()
		v, err := s.lookUp(context.WithoutCancel(ctx), begun, hash)
		results <- result{v, err}
	}()
	select {
	case r := <-results:
		return r.verdict, r.err
	case <-ctx.Done():
		return sources.Verdict{}, ctx.Err()
	}
}

// Watch implements sources.Watcher. Until ctx ends, connections are kept between look-ups. While
// Watch is not running, each look-up makes its own connection.
func (s *Source) Watch(ctx context.Context, _ func()) error {
	s.hold()
	defer s.letGo()
	<-ctx.Done()
	return nil
}
