// Package sqltable is a source that knows the TPMs in a table of a PostgreSQL,
// MySQL or MariaDB database.
//
// Nothing is held in memory: each check is one look-up of the EK hash by a
// prepared statement, so that a row that is inserted admits from then on and one
// that is deleted refuses from then on. The statement is the operator's, and the
// hash is only ever its parameter, never part of its text. Sessions are
// read-only.
//
// The database answers with no row: not listed. With one row: listed, with what
// its columns "name" and "labels" say. Whatever else happens is an error: two
// rows, columns that cannot be used, a database that is down, hangs or is busy.
// While it is down, one look-up a second tries it and all others fail at once.
package sqltable

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// What a Config has where it says nothing.
const (
	DefaultQuery           = "SELECT name, labels FROM tpm_machines WHERE ek_hash = ?"
	DefaultTimeout         = 2 * time.Second
	DefaultMaxOpenConns    = 4
	DefaultConnMaxLifetime = 10 * time.Minute
	// MostOpenConns is the largest Config.MaxOpenConns.
	MostOpenConns = 100
)

// Config is where the table is. Dialect and DSNPath are required. All files are
// regular files; those of certificates are read for each new connection.
type Config struct {
	// Dialect is what the database speaks; MySQL stands for MariaDB too.
	Dialect Dialect
	// DSNPath is a file with the data source name: for Postgres a URL or
	// keywords and values as libpq takes them, for MySQL
	// user:password@tcp(host:port)/database. It is read when the source is first
	// used and within a second after it has changed; where that fails the one
	// before stays.
	DSNPath string
	// Query is a SELECT with one "?" outside of literals, quoted identifiers and
	// comments, which stands for the EK hash in 64 lower-case hex digits;
	// DefaultQuery where it is empty. It returns no row for a TPM that is not
	// listed. Columns called name and labels, in any case of letters, are what is
	// known of the TPM: a text, and a text with a JSON array of strings; null is
	// none. Other columns mean nothing.
	Query string
	// MaxOpenConns is how many connections, and so look-ups, there may be at
	// once; DefaultMaxOpenConns where it is zero.
	MaxOpenConns int
	// Timeout bounds one look-up, from the moment that a connection may be used
	// or made for it; DefaultTimeout where it is zero.
	Timeout time.Duration
	// ConnMaxLifetime is how long a connection is used;
	// DefaultConnMaxLifetime where it is zero.
	ConnMaxLifetime time.Duration
	// CAPath is a PEM file of the CA certificates that may vouch for the
	// database. Where it is set, connections over a network use TLS, whatever
	// the DSN says, and its certificate has to name the host of the DSN.
	CAPath string
	// ClientCertPath and ClientKeyPath are PEM files of the certificate, with
	// its chain, and the key that are shown to the database. Both are set, with
	// CAPath, or neither.
	ClientCertPath, ClientKeyPath string
	// AllowUnverified permits a database on another host that is asked without
	// TLS, or without knowing that it is the one. Whoever is between the two
	// then decides which TPMs are listed.
	AllowUnverified bool
}

// withDefaults checks the configuration and fills in what it leaves out.
func (c Config) withDefaults() (Config, error) {
	if c.Query == "" {
		c.Query = DefaultQuery
	}
	if c.MaxOpenConns == 0 {
		c.MaxOpenConns = DefaultMaxOpenConns
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.ConnMaxLifetime == 0 {
		c.ConnMaxLifetime = DefaultConnMaxLifetime
	}
	switch {
	case c.DSNPath == "":
		return Config{}, errors.New("the path of the DSN is empty: name a file that holds the data source name")
	case c.MaxOpenConns < 1 || c.MaxOpenConns > MostOpenConns:
		return Config{}, fmt.Errorf("at most %d connections: choose 1 to %d", c.MaxOpenConns, MostOpenConns)
	case c.Timeout < 0:
		return Config{}, fmt.Errorf("timeout %v is negative", c.Timeout)
	case c.ConnMaxLifetime < 0:
		return Config{}, fmt.Errorf("connection lifetime %v is negative", c.ConnMaxLifetime)
	case (c.ClientCertPath == "") != (c.ClientKeyPath == ""):
		return Config{}, errors.New("a client certificate and its key go together")
	case c.ClientCertPath != "" && c.CAPath == "":
		return Config{}, errors.New("a client certificate needs the CA certificates of the database: set the CA path")
	}
	return c, nil
}

// Source is a table of EK hashes. It is safe for concurrent use.
type Source struct {
	cfg   Config
	query string // as the database takes it

	breaker *breaker
	// slots holds an element for each look-up under way.
	slots chan struct{}

	mu sync.Mutex
	// pool is the current one, nil where nobody uses it. It is kept while Run is
	// at work, and otherwise for as long as look-ups need it.
	pool    *pool
	running bool
	fileErr error     // why the DSN was not read again
	looked  time.Time // at the file of the DSN
	// lookPause is how long a file that has been looked at is as it was.
	lookPause time.Duration
}

// New checks the configuration and returns the source. It opens nothing.
func New(cfg Config) (*Source, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	query, err := Rewrite(cfg.Dialect, cfg.Query)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	return &Source{
		cfg:       cfg,
		query:     query,
		breaker:   newBreaker(),
		lookPause: retryPause,
		slots:     make(chan struct{}, cfg.MaxOpenConns),
	}, nil
}

// hashLen is the length of an EK hash in hex digits.
const hashLen = 64

// validHash reports whether s is an EK hash as the database has it.
func validHash(s string) bool {
	if len(s) != hashLen {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Check implements sources.Source. It waits for a connection until ctx ends, and
// for the database for Config.Timeout at most. A caller who leaves does not end
// the look-up, or strangers who come and go would have connections made anew all
// the time; it ends by itself in its time.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if !validHash(ev.EKHash) {
		return sources.Verdict{}, fmt.Errorf("EK hash %.80q is not %d lower-case hex digits", ev.EKHash, hashLen)
	}
	return s.check(ctx, ev.EKHash)
}

// An answer is what came of a look-up.
type answer struct {
	verdict sources.Verdict
	err     error
}

func (s *Source) check(ctx context.Context, hash string) (sources.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, err
	}
	e, err := s.breaker.enter()
	if err != nil {
		return sources.Verdict{}, err
	}
	select {
	case s.slots <- struct{}{}:
	case <-e.next.begins:
		s.breaker.leave(e)
		return sources.Verdict{}, e.next.err
	case <-ctx.Done():
		s.breaker.leave(e)
		return sources.Verdict{}, fmt.Errorf("all %d connections are in use: %w", cap(s.slots), ctx.Err())
	}
	answers := make(chan answer, 1) // so that a late one never blocks
	go func() {
		defer func() { <-s.slots }()
		v, err := s.lookUp(context.WithoutCancel(ctx), e, hash)
		answers <- answer{v, err}
	}()
	select {
	case a := <-answers:
		return a.verdict, a.err
	case <-ctx.Done():
		return sources.Verdict{}, ctx.Err()
	}
}

// Watch implements sources.Watcher: it keeps connections from one look-up to the next
// until ctx ends; without it each look-up makes its own.
func (s *Source) Watch(ctx context.Context, _ func()) error {
	s.hold()
	defer s.letGo()
	<-ctx.Done()
	return nil
}
