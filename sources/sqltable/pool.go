package sqltable

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// maxIdleTime is how long a connection is kept unused. One that a firewall has
// forgotten costs the look-up that is the first to use it.
const maxIdleTime = time.Minute

// A pool is the connections of one data source name.
type pool struct {
	dsn     dsnFile
	db      *sql.DB
	query   string
	conns   int
	secrets []string
	users   int // of Source.mu

	mu   sync.Mutex
	stmt *sql.Stmt // nil until the query is known to tell TPMs apart
}

func newPool(cfg Config, query string, dsn dsnFile) (*pool, error) {
	c := &connector{cfg: cfg, dsn: dsn.text}
	if _, err := c.prepare(); err != nil {
		return nil, err
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(cfg.MaxOpenConns)
	db.SetMaxIdleConns(cfg.MaxOpenConns)
	db.SetConnMaxLifetime(cfg.ConnMaxLifetime)
	db.SetConnMaxIdleTime(maxIdleTime)
	return &pool{
		dsn: dsn, db: db, query: query, conns: cfg.MaxOpenConns,
		secrets: secretsOf(cfg.Dialect, dsn.text),
	}, nil
}

// acquire returns the current pool for a look-up, which calls release.
func (s *Source) acquire() (*pool, error) {
	s.mu.Lock()
	before := s.pool
	err := s.renew()
	p := s.pool
	if p != nil {
		p.users++
		s.fileErr = err
	}
	unused := before != nil && before != p && before.users == 0
	s.mu.Unlock()
	if unused {
		before.close()
	}
	if p == nil {
		return nil, err
	}
	return p, nil
}

// renew makes a new pool where there is none or the DSN has changed, for which the
// file is looked at once in lookPause. On an error the pool stays as it is. It is
// called under s.mu.
func (s *Source) renew() error {
	var last dsnFile
	if s.pool != nil {
		if now := time.Now(); now.Sub(s.looked) < s.lookPause {
			return s.fileErr
		}
		last = s.pool.dsn
	}
	s.looked = time.Now()
	dsn, err := readDSN(s.cfg.DSNPath, last)
	if err != nil {
		return err
	}
	if s.pool != nil && dsn.text == last.text {
		s.pool.dsn = dsn
		return nil
	}
	p, err := newPool(s.cfg, s.query, dsn)
	if err != nil {
		return fmt.Errorf("the DSN in %q: %w", s.cfg.DSNPath, err)
	}
	s.pool = p
	return nil
}

// release gives a pool back, and closes it where nobody needs it any more.
func (s *Source) release(p *pool) {
	s.mu.Lock()
	p.users--
	unused := p.users == 0 && (p != s.pool || !s.running)
	if unused && p == s.pool {
		s.pool = nil
	}
	s.mu.Unlock()
	if unused {
		p.close()
	}
}

// hold keeps pools while nobody uses them, until letGo.
func (s *Source) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = true
}

func (s *Source) letGo() {
	s.mu.Lock()
	s.running = false
	p := s.pool
	unused := p != nil && p.users == 0
	if unused {
		s.pool = nil
	}
	s.mu.Unlock()
	if unused {
		p.close()
	}
}

// close closes all connections. Nobody uses them.
func (p *pool) close() {
	if p.stmt != nil {
		_ = p.stmt.Close()
	}
	_ = p.db.Close()
}

// forget closes the connections that nobody is using.
func (p *pool) forget() {
	p.db.SetMaxIdleConns(-1)
	p.db.SetMaxIdleConns(p.conns)
}

// lookUp asks the database in its time, and tells the breaker how that went. A
// fault in a driver is an error: it runs in a goroutine of its own.
func (s *Source) lookUp(ctx context.Context, e entry, hash string) (v sources.Verdict, err error) {
	settled := false
	defer func() {
		if p := recover(); p != nil {
			v, err = sources.Verdict{}, fmt.Errorf("panic: %.512v", p)
		}
		if !settled {
			s.breaker.leave(e)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	p, err := s.acquire()
	if err != nil {
		return sources.Verdict{}, err
	}
	defer s.release(p)
	v, err = p.ask(ctx, hash)
	if err != nil && isStale(err) && ctx.Err() == nil {
		p.forget()
		v, err = p.ask(ctx, hash)
	}
	settled = true
	if err == nil {
		s.breaker.answer(e)
		return v, nil
	}
	told := s.explain(ctx, p, err)
	if isAnswer(err) {
		s.breaker.answer(e)
	} else {
		s.breaker.fail(e, told)
	}
	return sources.Verdict{}, told
}

// explain returns the error for a log: without the password, and with what a
// person needs to know.
func (s *Source) explain(ctx context.Context, p *pool, err error) error {
	late := ctx.Err() != nil && !isShape(err)
	err = scrub(err, p.secrets)
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

func query(ctx context.Context, stmt *sql.Stmt, hash string) (v sources.Verdict, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := stmt.QueryContext(ctx, hash)
	if err != nil {
		return sources.Verdict{}, err
	}
	defer func() { _ = rows.Close() }()
	if v, err = readRows(rows, cancel); err != nil {
		return sources.Verdict{}, err
	}
	return v, nil
}

// errListsAll is the answer of a query that lists whoever asks.
var errListsAll = errors.New("the query returns a row for a hash that no TPM has, so it would list every TPM: " +
	"write one that returns no row for a TPM that is not listed, without count or exists")

// statement returns the prepared query. The first to use it asks for a hash that
// nobody has: a query that returns a row for it (a count, an aggregate) would
// list every TPM there is.
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

// anyHash returns a hash that nobody has.
func anyHash() string {
	var b [hashLen / 2]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
