package sqltable

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// A connector makes connections to a database. Files of certificates are read
// for each of them.
type connector struct {
	cfg Config
	dsn string
}

// A connectError is why no connection could be made.
type connectError struct{ err error }

func (e *connectError) Error() string { return "connect: " + e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// Driver implements driver.Connector. Nobody asks for it.
func (c *connector) Driver() driver.Driver { return nil }

// Connect implements driver.Connector.
func (c *connector) Connect(ctx context.Context) (conn driver.Conn, err error) {
	defer func() { // package sql connects in a goroutine of its own, too
		if p := recover(); p != nil {
			conn, err = nil, fmt.Errorf("panic: %.512v", p)
		}
		if err != nil {
			err = &connectError{err}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	inner, err := c.prepare()
	if err != nil {
		return nil, err
	}
	if conn, err = inner.Connect(ctx); err != nil {
		return nil, err
	}
	if c.cfg.Dialect == MySQL {
		if err := c.setMySQL(ctx, conn); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("set up the session: %w", err)
		}
	}
	return conn, nil
}

// prepare reads the DSN and returns what connects by it.
func (c *connector) prepare() (driver.Connector, error) {
	config, err := c.tls()
	if err != nil {
		return nil, err
	}
	if c.cfg.Dialect == MySQL {
		return c.mysql(config)
	}
	return c.postgres(config)
}

// tls returns how TLS is spoken where the CA certificates are configured, and
// nil where they are not.
func (c *connector) tls() (*tls.Config, error) {
	if c.cfg.CAPath == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	pem, err := readFile(c.cfg.CAPath, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("read the CA certificates: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("there is no CA certificate in %q: write it there as PEM", c.cfg.CAPath)
	}
	if c.cfg.ClientCertPath == "" {
		return config, nil
	}
	cert, err := readFile(c.cfg.ClientCertPath, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("read the client certificate: %w", err)
	}
	key, err := readFile(c.cfg.ClientKeyPath, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("read the key of the client certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the client certificate %q with the key %q: %w",
			c.cfg.ClientCertPath, c.cfg.ClientKeyPath, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// toHost returns config for a host; nil for a socket and where there is none.
func toHost(config *tls.Config, host string) *tls.Config {
	if config == nil || isSocket(host) {
		return nil
	}
	config = config.Clone()
	config.ServerName = host
	return config
}

func isSocket(host string) bool { return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") }

// isLocal reports whether a host is this machine, by a name that no network can
// answer for.
func isLocal(host string) bool {
	if isSocket(host) || host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// verified reports whether TLS makes sure that the database is the one.
func verified(config *tls.Config) bool {
	switch {
	case config == nil:
		return false
	case !config.InsecureSkipVerify:
		return config.ServerName != ""
	}
	// sslmode=verify-ca: any certificate of an authority of the operator's own.
	return config.VerifyPeerCertificate != nil && config.RootCAs != nil
}

// checkHost refuses a database that somebody else could play.
func (c *connector) checkHost(host string, config *tls.Config, advice string) error {
	if c.cfg.AllowUnverified || isLocal(host) || verified(config) {
		return nil
	}
	return fmt.Errorf("the database on %q would be asked without TLS that makes sure of it, so that whoever is in between "+
		"could list any TPM: %s in the DSN, or set the CA path", host, advice)
}

// badDSN returns the error of a DSN that a driver does not take. What the driver
// says may quote the password, so it is left out, but for a file that is missing.
func badDSN(err error, example string) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path
	}
	return fmt.Errorf("is not as the driver wants it: write %s", example)
}

// postgres returns what connects to a PostgreSQL.
func (c *connector) postgres(config *tls.Config) (driver.Connector, error) {
	pg, err := pgx.ParseConfig(c.dsn)
	if err != nil {
		return nil, badDSN(err, "postgres://<user>:<password>@<host>/<database>?sslmode=verify-full")
	}
	if pg.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol {
		return nil, errors.New("default_query_exec_mode=simple_protocol would make the hash part of the SQL text: " +
			"leave it out; behind PgBouncer, set max_prepared_statements there")
	}
	pg.Tracer, pg.StatementCacheCapacity, pg.DescriptionCacheCapacity = nil, 0, 0
	if config != nil {
		c.useTLS(pg, config)
	}
	hosts := append([]*pgconn.FallbackConfig{{Host: pg.Host, Port: pg.Port, TLSConfig: pg.TLSConfig}}, pg.Fallbacks...)
	for _, h := range hosts {
		if err := c.checkHost(h.Host, h.TLSConfig, "write sslmode=verify-full"); err != nil {
			return nil, err
		}
	}
	pg.ConnectTimeout = c.cfg.Timeout / time.Duration(len(hosts))
	pg.DialFunc = dial
	pg.RuntimeParams["default_transaction_read_only"] = "on"
	setDefault(pg.RuntimeParams, "application_name", "tpm-attestor")
	// A look-up that hangs on a lock ends there as well, and leaves no session.
	setDefault(pg.RuntimeParams, "statement_timeout", fmt.Sprint(c.cfg.Timeout.Milliseconds()))
	return stdlib.GetConnector(*pg), nil
}

func setDefault(m map[string]string, key, value string) {
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

// useTLS has each host be asked over TLS, and by no other way.
func (c *connector) useTLS(pg *pgx.ConnConfig, config *tls.Config) {
	type target struct {
		host string
		port uint16
	}
	seen := map[target]bool{{pg.Host, pg.Port}: true}
	pg.TLSConfig = toHost(config, pg.Host)
	var others []*pgconn.FallbackConfig
	for _, f := range pg.Fallbacks {
		if t := (target{f.Host, f.Port}); !seen[t] {
			seen[t] = true
			others = append(others, &pgconn.FallbackConfig{Host: f.Host, Port: f.Port, TLSConfig: toHost(config, f.Host)})
		}
	}
	pg.Fallbacks = others
}

// mysql returns what connects to a MySQL or a MariaDB.
func (c *connector) mysql(config *tls.Config) (driver.Connector, error) {
	my, err := mysql.ParseDSN(c.dsn)
	if err != nil {
		return nil, badDSN(err, "<user>:<password>@tcp(<host>:3306)/<database>?tls=true, and name your own CA by the CA path")
	}
	for option, set := range map[string]bool{
		"multiStatements": my.MultiStatements, "interpolateParams": my.InterpolateParams,
		"allowAllFiles": my.AllowAllFiles, "allowOldPasswords": my.AllowOldPasswords,
	} {
		if set {
			return nil, fmt.Errorf("the option %s is not safe here: leave it out", option)
		}
	}
	host := my.Addr
	if my.Net != "unix" {
		if h, _, err := net.SplitHostPort(my.Addr); err == nil {
			host = h
		}
		if config != nil {
			my.TLS, my.TLSConfig, my.AllowFallbackToPlaintext = toHost(config, host), "", false
		}
	}
	settings := my.TLS
	if my.AllowFallbackToPlaintext {
		settings = nil
	}
	if my.Net != "unix" {
		if err := c.checkHost(host, settings, "write tls=true"); err != nil {
			return nil, err
		}
	}
	my.Logger = &mysql.NopLogger{}
	my.MaxAllowedPacket = mysqlPacket
	my.DialFunc = dial
	return mysql.NewConnector(my)
}

// mysqlPacket is the largest packet that is sent, in bytes: the query.
const mysqlPacket = 1 << 20

// setMySQL makes a session read-only, has it see what has been committed at each
// look-up, and ends a look-up that hangs on a lock there as well. The limit has
// another name in MariaDB, whose comments MySQL skips, and the other way round.
func (c *connector) setMySQL(ctx context.Context, conn driver.Conn) error {
	session, ok := conn.(driver.ExecerContext)
	if !ok {
		return fmt.Errorf("a %T runs no statement", conn)
	}
	limit := c.cfg.Timeout.Milliseconds()
	for _, statement := range []string{
		fmt.Sprintf("SET SESSION /*!50708 max_execution_time = %d, */ /*M! max_statement_time = %d.%03d, */ autocommit = 1",
			limit, limit/1000, limit%1000),
		"SET SESSION TRANSACTION READ ONLY",
	} {
		if _, err := session.ExecContext(ctx, statement, nil); err != nil {
			return err
		}
	}
	return nil
}

// keepAlive finds out about a peer that has gone within half a minute.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}

// dial opens a connection of which no answer may be too long.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: keepAlive}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: conn}, nil
}

// maxAnswer is how much the database may send before it is asked again, in
// bytes: far more than one row, and its certificates.
const maxAnswer = 1 << 20

// A boundedConn ends with an error where an answer is too long.
type boundedConn struct {
	net.Conn
	read atomic.Int64 // since the last Write
}

var errTooLong = fmt.Errorf("the database has sent more than %d bytes at once", maxAnswer)

func (c *boundedConn) Read(b []byte) (int, error) {
	left := maxAnswer - c.read.Load()
	if left <= 0 {
		return 0, errTooLong
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), left)])
	c.read.Add(int64(n))
	return n, err
}

func (c *boundedConn) Write(b []byte) (int, error) {
	c.read.Store(0)
	return c.Conn.Write(b)
}

// SyscallConn lets the driver of MySQL see whether an idle connection is dead.
func (c *boundedConn) SyscallConn() (syscall.RawConn, error) {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, io.ErrUnexpectedEOF
	}
	return conn.SyscallConn()
}
