package sqltable

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
)

// simpleQuery is a query whose table and column are known.
var simpleQuery = regexp.MustCompile(
	`(?is)^\s*SELECT\b[^()]*?\bFROM\s+([a-z_][a-z0-9_.]*)\s+WHERE\s+([a-z_][a-z0-9_.]*)\s*=\s*\?\s*;?\s*$`)

// CountMalformed returns the number of rows that have, in place of an EK hash, something that no
// look-up finds, since it is not 64 lower-case hex digits. Under a deny rule, such a row denies
// nobody. It reads the whole table, within Config.Timeout. known is false if the query does not
// have the form SELECT … FROM <table> WHERE <column> = ?, so that it is not known which column has
// the hashes.
func (s *Source) CountMalformed(ctx context.Context) (n int, known bool, err error) {
	parts := simpleQuery.FindStringSubmatch(s.cfg.Query)
	if parts == nil {
		return 0, false, nil
	}
	const digits = `'^[0-9a-f]{64}$'`
	wrong := parts[2] + ` !~ ` + digits
	if s.cfg.Dialect == MySQL {
		wrong = `CONVERT(` + parts[2] + ` USING utf8mb4) COLLATE utf8mb4_bin NOT REGEXP ` + digits
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	p, release, err := s.acquire()
	if err != nil {
		return 0, true, err
	}
	defer release()
	query := `SELECT count(*) FROM ` + parts[1] + ` WHERE ` + parts[2] + ` IS NULL OR ` + wrong
	if n, err = count(ctx, p.db, query); err != nil {
		return 0, true, fmt.Errorf("count the rows without an EK hash: %w", s.explain(p, err, ctx.Err() != nil))
	}
	return n, true, nil
}

// count runs a query that returns a number.
func count(ctx context.Context, db *sql.DB, query string) (n int, err error) {
	stmt, err := db.PrepareContext(ctx, query) // the driver for PostgreSQL runs prepared statements only
	if err != nil {
		return 0, err
	}
	defer func() { _ = stmt.Close() }()
	err = stmt.QueryRowContext(ctx).Scan(&n)
	return n, err
}
