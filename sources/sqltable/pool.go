package sqltable

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// maxIdleTime is how long an unused connection is kept. If a firewall has dropped an idle
// connection, the next look-up on it hangs until its timeout.
const maxIdleTime = time.Minute

// A pool is the connections of one data source name.
type pool struct {
	dsn     string
	db      *sql.DB
	query   string
	conns   int
	secrets []string

	mu   sync.Mutex
	stmt *sql.Stmt // nil until the query is known to distinguish TPMs
}

// open returns the pool of a DSN. It makes no connection yet.
func (s *Source) open(dsn string) (*pool, error) {
	c := &connector{cfg: s.cfg, dsn: dsn}
	if _, err := c.prepare(); err != nil {
		return nil, fmt.Errorf("the DSN in %q: %w", s.cfg.DSNPath, err)
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(s.cfg.MaxOpenConns)
	db.SetMaxIdleConns(s.cfg.MaxOpenConns)
	db.SetConnMaxLifetime(s.cfg.ConnMaxLifetime)
	db.SetConnMaxIdleTime(maxIdleTime)
	return &pool{
		dsn: dsn, db: db, query: s.query, conns: s.cfg.MaxOpenConns,
		secrets: secretsOf(s.cfg.Dialect, dsn),
	}, nil
}

// acquire returns the pool for a look-up, which must call release when it is done. While Watch is
// running, it is the shared pool, otherwise a new one.
func (s *Source) acquire() (p *pool, release func(), err error) {
	s.mu.Lock()
	if !s.running {
		s.mu.Unlock()
		dsn, err := readDSN(s.cfg.DSNPath)
		if err != nil {
			return nil, nil, err
		}
		if p, err = s.open(dsn); err != nil {
			return nil, nil, err
		}
		return p, p.close, nil
	}
	before := s.pool
	err = s.renew()
	p, s.fileErr = s.pool, err
	s.mu.Unlock()
	if before != nil && before != p {
		before.close()
	}
	if p == nil {
		return nil, nil, err
	}
	return p, func() {}, nil
}

// renew opens a new pool if there is none or the DSN has changed. It reads the file at most once in
// lookPause. After an error, the pool stays as it is. The caller must hold s.mu.
func (s *Source) renew() error {
	if s.pool != nil && time.Since(s.looked) < s.lookPause {
		return s.fileErr
	}
	s.looked = time.Now()
	dsn, err := readDSN(s.cfg.DSNPath)
	if err != nil || s.pool != nil && dsn == s.pool.dsn {
		return err
	}
	p, err := s.open(dsn)
	if err != nil {
		return err
	}
	s.pool = p
	return nil
}

// hold makes look-ups share a pool until letGo.
func (s *Source) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = true
}

func (s *Source) letGo() {
	s.mu.Lock()
	p := s.pool
	s.pool, s.running, s.fileErr = nil, false, nil
	s.mu.Unlock()
	if p != nil {
		p.close()
	}
}

// close closes all idle connections at once, and the others after their look-up. A look-up that has
// not begun yet gets an error that counts as stale.
func (p *pool) close() { _ = p.db.Close() }

// forget closes the idle connections.
func (p *pool) forget() {
	p.db.SetMaxIdleConns(-1)
	p.db.SetMaxIdleConns(p.conns)
}

// lookUp asks the database within Config.Timeout, and tells the breaker whether it answered. begun
// is when Check began. It runs in its own goroutine, so it turns a panic in a driver into an error.
func (s *Source) lookUp(ctx context.Context, begun time.Time, hash string) (v sources.Verdict, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, err = sources.Verdict{}, fmt.Errorf("panic: %.512v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	const tries = 2
	for try := 1; ; try++ {
		p, release, err := s.acquire()
		if err != nil {
			return sources.Verdict{}, err
		}
		v, err = p.ask(ctx, hash)
		what := faultOf(err)
		again := what == stale && try < tries && ctx.Err() == nil
		if again {
			p.forget()
		}
		release()
		if again {
			continue
		}
		if err != nil {
			err = s.explain(p, err, what != answered && ctx.Err() != nil)
		}
		if what == answered {
			s.breaker.answer()
		} else {
			s.breaker.fail(begun, err)
		}
		return v, err
	}
}

// explain returns an error that can be logged: without the password, and with what a person needs
// to know. late means that the time of the look-up has run out.
func (s *Source) explain(p *pool, err error, late bool) error {
	down := late || unreachable(err)
	err = scrub(err, p.secrets)
	if down {
		err = downError{err}
	}
	if late {
		err = fmt.Errorf("the database did not answer within %v: %w", s.cfg.Timeout, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fileErr != nil {
		err = fmt.Errorf("%w (and the DSN could not be read again: %w)", err, s.fileErr)
	}
	return err
}

// ask makes one look-up.
func (p *pool) ask(ctx context.Context, hash string) (sources.Verdict, error) {
	stmt, err := p.statement(ctx)
	if err != nil {
		return sources.Verdict{}, err
	}
	return query(ctx, stmt, hash)
}

func query(ctx context.Context, stmt *sql.Stmt, hash string) (sources.Verdict, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := stmt.QueryContext(ctx, hash)
	if err != nil {
		return sources.Verdict{}, err
	}
	defer func() { _ = rows.Close() }()
	return readRows(rows, cancel)
}

// errListsAll is the error for a query that lists every TPM.
var errListsAll = errors.New("the query returns a row for a hash that no TPM has, so it would list every TPM: " +
	"write one that returns no row for a TPM that is not listed, without count or exists")

// statement returns the prepared query. The first call tries it with a hash that no TPM has: a
// query that returns a row even for that (such as a count or another aggregate) would list every
// TPM.
func (p *pool) statement(ctx context.Context) (*sql.Stmt, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stmt != nil {
		return p.stmt, nil
	}
	stmt, err := p.db.PrepareContext(ctx, p.query)
	if err != nil {
		return nil, fmt.Errorf("prepare the query: %w", err)
	}
	v, err := query(ctx, stmt, anyHash())
	if err == nil && v.Listed {
		err = shapeError{errListsAll}
	}
	if err != nil {
		_ = stmt.Close()
		return nil, err
	}
	p.stmt = stmt
	return stmt, nil
}

// anyHash returns a random hash, which no TPM has.
func anyHash() string {
	var hash sources.EKHash
	_, _ = rand.Read(hash[:]) // never fails
	return hash.String()
}
