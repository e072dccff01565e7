// Package sqltable is a source that knows the TPMs in a table of a PostgreSQL,
// MySQL or MariaDB database.
//
// Nothing is held in memory. Each check is one look-up of the EK hash, so a row that is
// inserted admits from then on, and a row that is deleted refuses from then on. The operator
// writes the query; it is a prepared statement of which the hash is the only parameter, never
// part of its text. Sessions are read-only.
//
// No row means "not listed". One row means "listed", and its columns "name" and "labels" say
// more. Anything else is an error: two rows, columns that cannot be used, a database that is
// down, hangs or is busy. While it is down, one look-up a second tries it, and all others fail
// at once.
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

// The values that stand for the zero value in a Config.
const (
	DefaultQuery           = "SELECT name, labels FROM tpm_machines WHERE ek_hash = ?"
	DefaultTimeout         = 2 * time.Second
	DefaultMaxOpenConns    = 4
	DefaultConnMaxLifetime = 10 * time.Minute
	// MostOpenConns is the largest Config.MaxOpenConns.
	MostOpenConns = 100
)

// Config says where the table is. Dialect and DSNPath are required. All files are regular
// files; those of certificates are read for each new connection.
type Config struct {
	// Dialect is what the database speaks; MySQL stands for MariaDB too.
	Dialect Dialect
	// DSNPath is a file with the data source name: for Postgres a URL, or keywords
	// and values as libpq takes them; for MySQL
	// user:password@tcp(host:port)/database. It is read when the source is first
	// used, and within a second after it has changed. If that fails, the DSN that was
	// read before stays in use.
	DSNPath string
	// Query is a SELECT with one "?" outside of literals, quoted identifiers and
	// comments, which stands for the EK hash in 64 lower-case hex digits. Empty means
	// DefaultQuery. It returns no row for a TPM that is not listed. Columns called
	// name and labels, in any case of letters, are what is known of the TPM: a text,
	// and a text with a JSON array of strings; null is none. Other columns are
	// ignored.
	Query string
	// MaxOpenConns is how many connections, and so look-ups, there may be at once.
	// Zero means DefaultMaxOpenConns.
	MaxOpenConns int
	// Timeout bounds one look-up, from the moment that a connection may be used or
	// made for it. Zero means DefaultTimeout.
	Timeout time.Duration
	// ConnMaxLifetime is how long a connection is used. Zero means
	// DefaultConnMaxLifetime.
	ConnMaxLifetime time.Duration
	// CAPath is a PEM file of the CA certificates that may vouch for the database.
	// If it is set, connections over a network use TLS whatever the DSN says, and the
	// database's certificate must name the host of the DSN.
	CAPath string
	// ClientCertPath and ClientKeyPath are PEM files of the client certificate, with
	// its chain, and its key. Both are set, with CAPath, or neither.
	ClientCertPath, ClientKeyPath string
	// AllowUnverified permits a database on another host without TLS, or without
	// verifying its certificate. Whoever is between it and this machine then decides
	// which TPMs are listed.
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

// check returns all that is wrong with a configuration that has its defaults, and the
// query as the database takes it.
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
	query string // as the database takes it

	breaker breaker
	slots   chan struct{} // has an element for each look-up under way

	mu      sync.Mutex
	running bool      // Watch is
	pool    *pool     // while Watch is running, once a look-up has needed it
	fileErr error     // why the DSN could not be read again
	looked  time.Time // when the file of the DSN was last read
	// lookPause is the least time from one reading of that file to the next.
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

// Check implements sources.Source. It waits for a connection until ctx ends, and for the
// database no longer than Config.Timeout. If ctx ends, the look-up goes on until it has an
// answer or its time is over: drivers close the connection of a query whose context ends, and
// machines that come and go would have new connections made all the time.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, err
	}
	begun, hash := time.Now(), ev.EKHash.String() // ev is the caller's when Check has returned
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
	results := make(chan result, 1) // so that nobody has to receive it
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

// Watch implements sources.Watcher: until ctx ends, connections are kept from one look-up to
// the next. While Watch is not running, each look-up makes its own connection.
func (s *Source) Watch(ctx context.Context, _ func()) error {
	s.hold()
	defer s.letGo()
	<-ctx.Done()
	return nil
}
