package sqltable

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// A connector makes connections to a database. It reads the certificate files again for each
// connection.
type connector struct {
	cfg Config
	dsn string
}

// A connectError says why no connection could be made.
type connectError struct{ err error }

func (e *connectError) Error() string { return "connect: " + e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// Driver implements driver.Connector. Nobody calls it.
func (c *connector) Driver() driver.Driver { return nil }

// Connect implements driver.Connector.
func (c *connector) Connect(ctx context.Context) (conn driver.Conn, err error) {
	defer func() { // package sql may call Connect in a goroutine of its own
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

// prepare parses the DSN and returns the driver's connector.
func (c *connector) prepare() (driver.Connector, error) {
	config, err := c.tls()
	if err != nil {
		return nil, err
	}
	if c.cfg.Dialect == MySQL {
		return c.mysql(config)
	}
	pg, err := c.pgConfig(config)
	if err != nil {
		return nil, err
	}
	return stdlib.GetConnector(*pg), nil
}

// tls returns the settings for TLS if CA certificates are configured, otherwise nil.
func (c *connector) tls() (*tls.Config, error) {
	if c.cfg.CAPath == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	pool, err := smallfile.CertPool(c.cfg.CAPath)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	if c.cfg.ClientCertPath == "" {
		return config, nil
	}
	pair, err := smallfile.KeyPair(c.cfg.ClientCertPath, c.cfg.ClientKeyPath)
	if err != nil {
		return nil, err
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// toHost returns a copy of config for a host, or nil if the host is a socket or config is nil.
func toHost(config *tls.Config, host string) *tls.Config {
	if config == nil || isSocket(host) {
		return nil
	}
	config = config.Clone()
	config.ServerName = host
	return config
}

func isSocket(host string) bool { return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") }

// isLocal reports whether a host is this machine, so that no other machine can answer for it. For
// localName, dial makes sure of that.
func isLocal(host string) bool {
	if isSocket(host) || host == localName {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// verified reports whether TLS verifies that this is the operator's database.
func verified(config *tls.Config) bool {
	switch {
	case config == nil:
		return false
	case !config.InsecureSkipVerify:
		return config.ServerName != ""
	}
	// sslmode=verify-ca: any certificate from the operator's own CA is accepted.
	return config.VerifyPeerCertificate != nil && config.RootCAs != nil
}

// checkHost refuses a database that somebody on the network could impersonate.
func (c *connector) checkHost(host string, config *tls.Config, advice string) error {
	if c.cfg.AllowUnverified || isLocal(host) || verified(config) {
		return nil
	}
	return fmt.Errorf("the connection to the database on %q would not be verified by TLS, so anybody in "+
		"between could list any TPM: %s in the DSN, or set the CA path", host, advice)
}

// badDSN returns the error for a DSN that a driver refuses. The driver's error may quote the
// password, so only a file's error is kept.
func badDSN(err error, example string) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path
	}
	return fmt.Errorf("is not in the form that the driver expects: write %s", example)
}
