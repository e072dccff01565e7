package sqltable_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable/sqltest"
)

// An engine is a real database server that the tests share. The first test that needs it starts
// it.
type engine struct {
	name    string
	dialect sqltable.Dialect
	start   func() (*sqltest.Server, error)

	once   sync.Once
	server *sqltest.Server
	err    error
	admin  *sql.DB
}

var (
	postgres = &engine{name: "postgres", dialect: sqltable.Postgres, start: sqltest.Postgres}
	mariadb  = &engine{name: "mariadb", dialect: sqltable.MySQL, start: sqltest.MariaDB}
	engines  = []*engine{postgres, mariadb}
)

// No test leaves a connection or a goroutine behind.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := mysql.SetLogger(&mysql.NopLogger{}); err != nil { // of the administrator's connections
		panic(err)
	}
	code := m.Run()
	for _, e := range engines {
		if e.admin != nil {
			e.admin.Close()
		}
		if e.server != nil {
			if err := e.server.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// on runs a test on each engine.
func on(t *testing.T, test func(t *testing.T, d *database)) {
	t.Helper()
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) { test(t, e.database(t)) })
	}
}

// password is the password of the source's account. In a URL it has to be escaped.
const password = "pass:w0rd/öä%"

// A database is a database in an engine, with the documented table and an account that may read
// it.
type database struct {
	*engine
	tb   testing.TB
	name string
	dsn  string // over the socket
	path string // of the file with the DSN
}

// running starts the engine.
func (e *engine) running(tb testing.TB) *sqltest.Server {
	tb.Helper()
	e.once.Do(func() {
		if e.server, e.err = e.start(); e.err != nil {
			return
		}
		driver, dsn := "pgx", fmt.Sprintf("host=%s port=%d user=postgres database=postgres", e.server.Dir, e.server.Port)
		if e.dialect == sqltable.MySQL {
			driver, dsn = "mysql", "root@unix("+e.server.Socket()+")/mysql?multiStatements=true"
		}
		e.admin, e.err = sql.Open(driver, dsn)
		if e.err != nil {
			return
		}
		e.admin.SetMaxIdleConns(0)
	})
	must(tb, e.err)
	return e.server
}

// database makes a database with an empty table.
func (e *engine) database(tb testing.TB) *database {
	tb.Helper()
	s := e.running(tb)
	d := &database{engine: e, tb: tb, name: "t" + strings.ToLower(rand.Text()[:10]), path: filepath.Join(tb.TempDir(), "dsn")}
	if e.dialect == sqltable.MySQL {
		d.exec(`CREATE DATABASE ` + d.name)
		d.exec(`CREATE USER ` + d.user() + ` IDENTIFIED BY '` + password + `'`)
		d.exec(`CREATE TABLE ` + d.table() + ` (
			ek_hash char(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY CHECK (ek_hash REGEXP '^[0-9a-f]{64}$'),
			name varchar(255) UNIQUE, labels json)`)
		d.exec(`GRANT SELECT ON ` + d.table() + ` TO ` + d.user())
		d.dsn = d.account() + "@unix(" + s.Socket() + ")/" + d.name
	} else {
		d.exec(`CREATE SCHEMA ` + d.name)
		d.exec(`CREATE ROLE ` + d.name + ` LOGIN PASSWORD '` + password + `'`)
		d.exec(`ALTER ROLE ` + d.name + ` SET search_path = ` + d.name)
		d.exec(`GRANT USAGE ON SCHEMA ` + d.name + ` TO ` + d.name)
		d.exec(`CREATE TABLE ` + d.table() + ` (
			ek_hash text PRIMARY KEY CHECK (ek_hash ~ '^[0-9a-f]{64}$'), name varchar(255) UNIQUE, labels jsonb)`)
		d.exec(`GRANT SELECT ON ` + d.table() + ` TO ` + d.name)
		d.dsn = fmt.Sprintf("postgres://%s@/postgres?host=%s&port=%d", d.account(), s.Dir, s.Port)
	}
	d.writeDSN(d.dsn)
	return d
}

func (d *database) table() string { return d.name + ".tpm_machines" }
func (d *database) user() string  { return "'" + d.name + "'@'%'" }

// account is user and password in the form of the DSN.
func (d *database) account() string {
	if d.dialect == sqltable.MySQL {
		return d.name + ":" + password
	}
	return d.name + ":" + url.QueryEscape(password)
}

// overTCP returns a DSN over the network, with options.
func (d *database) overTCP(host, options string) string {
	if d.dialect == sqltable.MySQL {
		return fmt.Sprintf("%s@tcp(%s:%d)/%s?%s", d.account(), host, d.server.Port, d.name, options)
	}
	return fmt.Sprintf("postgres://%s@%s:%d/postgres?%s", d.account(), host, d.server.Port, options)
}

func (d *database) writeDSN(dsn string) {
	d.tb.Helper()
	must(d.tb, os.WriteFile(d.path+".new", []byte(dsn+"\n"), 0o600))
	must(d.tb, os.Rename(d.path+".new", d.path))
}

// exec runs a statement as the administrator.
func (d *database) exec(statement string, args ...any) {
	d.tb.Helper()
	if _, err := d.admin.ExecContext(context.Background(), statement, args...); err != nil {
		d.tb.Fatalf("%s: %v", statement, err)
	}
}

func (d *database) insert(hash sources.EKHash, a sources.Attributes) {
	d.tb.Helper()
	var name, labels any
	if a.Name != "" {
		name = a.Name
	}
	if a.Labels != nil {
		list, err := json.Marshal(a.Labels)
		must(d.tb, err)
		labels = string(list)
	}
	values := "(?, ?, ?)"
	if d.dialect == sqltable.Postgres {
		values = "($1, $2, $3)"
	}
	d.exec("INSERT INTO "+d.table()+" (ek_hash, name, labels) VALUES "+values, hash.String(), name, labels)
}

func (d *database) remove(hash sources.EKHash) {
	d.tb.Helper()
	d.exec("DELETE FROM " + d.table() + " WHERE ek_hash = '" + hash.String() + "'")
}

func (d *database) config() sqltable.Config {
	return sqltable.Config{Dialect: d.dialect, DSNPath: d.path}
}

func (d *database) open(change func(*sqltable.Config)) *sqltable.Source {
	d.tb.Helper()
	cfg := d.config()
	if change != nil {
		change(&cfg)
	}
	s, err := sqltable.New(cfg)
	must(d.tb, err)
	return s
}

// run keeps the source's connections until the test ends, as Watch does.
func run(tb testing.TB, s *sqltable.Source) {
	tb.Helper()
	s.Hold()
	tb.Cleanup(s.LetGo)
}
