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

	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
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

// isLocal reports whether a host is this machine and no other can answer for it:
// where localName leads, dial looks at.
func isLocal(host string) bool {
	if isSocket(host) || host == localName {
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
	return fmt.Errorf("the connection to the database on %q would not be verified by TLS, so anybody in "+
		"between could list any TPM: %s in the DSN, or set the CA path", host, advice)
}

// badDSN returns the error of a DSN that a driver does not take. What the driver
// says may quote the password, so it is left out, but for a file that is missing.
func badDSN(err error, example string) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path
	}
	return fmt.Errorf("is not in the form that the driver expects: write %s", example)
}
