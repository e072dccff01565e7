package sqltable

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"fmt"
	"net"

	"github.com/go-sql-driver/mysql"
)

// mysql returns the connector to a MySQL or MariaDB.
func (c *connector) mysql(config *tls.Config) (driver.Connector, error) {
	my, err := mysql.ParseDSN(c.dsn)
	if err != nil {
		return nil, badDSN(err, "<user>:<password>@tcp(<host>:3306)/<database>?tls=true, "+
			"and set the CA path if the CA is your own")
	}
	for option, set := range map[string]bool{
		"multiStatements": my.MultiStatements, "interpolateParams": my.InterpolateParams,
		"allowAllFiles": my.AllowAllFiles, "allowOldPasswords": my.AllowOldPasswords,
	} {
		if set {
			return nil, fmt.Errorf("the option %s is not safe here: remove it", option)
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
	my.DialFunc = dial
	return mysql.NewConnector(my)
}

// setMySQL makes a session read-only. Each look-up in it sees what has been committed by then. The
// server, too, ends a look-up that waits too long for a lock. MySQL and MariaDB have different
// names for that limit, and each skips the other's comment.
func (c *connector) setMySQL(ctx context.Context, conn driver.Conn) error {
	session, ok := conn.(driver.ExecerContext)
	if !ok {
		return fmt.Errorf("a %T runs no statement", conn)
	}
	limit := c.cfg.Timeout.Milliseconds()
	for _, statement := range []string{
		fmt.Sprintf("SET SESSION /*!50708 max_execution_time = %d, */ /*M! max_statement_time = %d.%03d, */ "+
			"autocommit = 1", limit, limit/1000, limit%1000),
		"SET SESSION TRANSACTION READ ONLY",
	} {
		if _, err := session.ExecContext(ctx, statement, nil); err != nil {
			return err
		}
	}
	return nil
}
