package sqltable

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A fault is what the error of a look-up implies about the database.
type fault int

const (
	// answered: the database has answered, if only with a refusal or with a result that cannot be
	// used.
	answered fault = iota
	// stale: the connection, or the statement prepared on it, can no longer be used. A new
	// connection may work.
	stale
	// down: the database does not answer, or not in time.
	down
)

// faultOf returns what an error implies; nil is an answer. An unknown error counts as a lost
// connection.
func faultOf(err error) fault {
	if _, ok := errors.AsType[shapeError](err); ok || err == nil {
		return answered
	}
	if _, ok := errors.AsType[*connectError](err); ok {
		return down
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return down
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return postgresFault(pg.Code)
	}
	if my, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return mysqlFault(my.Number)
	}
	return stale
}

// ErrDown is wrapped by the error of Check if the database could not be reached, or did not answer
// in time.
var ErrDown = errors.New("the database is down")

// A downError is an error that is ErrDown according to errors.Is, with a text of its own.
type downError struct{ error }

// Is implements the interface that errors.Is looks for.
func (downError) Is(target error) bool { return target == ErrDown }

// unreachable reports whether err is a network error or an expired deadline.
func unreachable(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, context.DeadlineExceeded)
}

// postgresFault returns what an error code implies (PostgreSQL's documentation, appendix A).
func postgresFault(code string) fault {
	switch {
	case code == "57014": // query_canceled: by statement_timeout
		return down
	case code == "0A000", // the plan was cached before the table changed
		code == "26000", // invalid_sql_statement_name: the statement was deallocated
		strings.HasPrefix(code, "57P"), strings.HasPrefix(code, "08"):
		return stale
	case strings.HasPrefix(code, "53"), strings.HasPrefix(code, "58"): // no resources, system errors
		return down
	}
	return answered
}

// mysqlFault returns what an error number of MySQL or MariaDB implies.
func mysqlFault(number uint16) fault {
	switch number {
	case 1205, 1317, 1969, 3024: // waited for a lock, interrupted, max_statement_time, max_execution_time
		return down
	case 1053, 1243, 1615, 1927: // shutdown, no such statement, must be prepared again, killed
		return stale
	}
	return answered
}

// secretsOf returns the texts that no log may show: the DSN, and its password, both plain and
// URL-encoded; the longest first.
func secretsOf(dialect Dialect, dsn string) []string {
	secrets := []string{dsn}
	password := ""
	if dialect == MySQL {
		if c, err := mysql.ParseDSN(dsn); err == nil {
			password = c.Passwd
		}
	} else if c, err := pgx.ParseConfig(dsn); err == nil {
		password = c.Password
	}
	if password != "" {
		secrets = append(secrets, password, url.QueryEscape(password), url.PathEscape(password))
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	return secrets
}

// maxErrorText is the maximum number of bytes that are kept of a database's error.
const maxErrorText = 1024

// scrub returns an error with the text of err on one line and without secrets. It does not wrap
// err, which may contain them.
func scrub(err error, secrets []string) error {
	s := strings.ToValidUTF8(err.Error(), "")
	for _, secret := range secrets {
		s = strings.ReplaceAll(s, secret, "…")
	}
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || unicode.IsControl(r) }), " ")
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + "…"
	}
	return errors.New(s)
}
