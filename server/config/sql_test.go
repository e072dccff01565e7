package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

const table = `source "sql" "fleet" { dialect = "postgres" dsn_path = "/dsn"`

// A key that is set reaches the source, and a key that is not set has the default that the
// documentation names.
func TestSQL(t *testing.T) {
	defaults := sqltable.Config{
		Dialect: "postgres", DSNPath: "/dsn", Query: "SELECT name, labels FROM tpm_machines WHERE ek_hash = ?",
		MaxOpenConns: 4, Timeout: 2 * time.Second, ConnMaxLifetime: 10 * time.Minute,
	}
	all := sqltable.Config{
		Dialect: "mysql", DSNPath: "/dsn", Query: "SELECT 1 FROM t WHERE h = UNHEX(?)", MaxOpenConns: 8,
		Timeout: time.Second, ConnMaxLifetime: time.Hour, CAPath: "/ca", ClientCertPath: "/cert", ClientKeyPath: "/key",
		AllowUnverified: true,
	}
	for text, want := range map[string]sqltable.Config{
		table + `}`: defaults,
		`source "sql" "fleet" { dialect = "mysql" dsn_path = "/dsn" query = "SELECT 1 FROM t WHERE h = UNHEX(?)"
			max_open_conns = 8 timeout = "1s" conn_max_lifetime = "1h" ca_path = "/ca" client_cert_path = "/cert"
			client_key_path = "/key" allow_unverified = true }`: all,
		`{"source": {"sql": {"fleet": {"dialect": "postgres", "dsn_path": "/dsn", "max_open_conns": 4}}}}`: defaults,
	} {
		c := mustParse(t, text)
		if d := cmp.Diff(want, c.Members[0].Config); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
		if c.Members[0].Kind != "sql" {
			t.Errorf("the kind is %q", c.Members[0].Kind)
		}
	}
}

// A query that could mean something else than it says, and a database that nobody
// has, are refused by the key that is to be mended.
func TestSQLProblems(t *testing.T) {
	const at = `source "sql" "fleet": `
	for _, tt := range []struct{ text, want string }{
		{`source "sql" "fleet" {}`, at + `dialect: is missing: write dialect = "postgres"`},
		{`source "sql" "fleet" {}`, at + `dsn_path: is missing: write dsn_path = "/etc/spire/tpm-database.dsn"`},
		{`source "sql" "fleet" { dialect = "oracle" dsn_path = "/x" }`, at + `dialect: is the string "oracle", but must be "postgres" or "mysql"`},
		{table + ` query = "SELECT 1" }`, at + `query: has no "?"`},
		{table + ` query = "SELECT ? = ?" }`, at + `query: has more than one "?"`},
		{table + ` query = "SELECT 1 WHERE h = $1 AND ?" }`, at + `query: has a backslash or a dollar sign`},
		{table + ` query = "DELETE FROM t WHERE h = ?" }`, at + `query: does not begin with SELECT`},
		{table + ` query = "" }`, at + `query: is empty`},
		{table + ` max_open_conns = 0 }`, at + `max_open_conns: is the number 0, but must be a whole number from 1 to 100`},
		{table + ` max_open_conns = 101 }`, at + `max_open_conns: is the number 101`},
		{table + ` timeout = "1ms" }`, at + `timeout: is the string "1ms", but must be from 10ms to 25s`},
		{table + ` conn_max_lifetime = "0s" }`, at + `conn_max_lifetime: is the string "0s", but must be from 1s to 24h0m0s`},
		{table + ` client_cert_path = "/x" ca_path = "/y" }`, at + `client_key_path: is missing: the client certificate and its key`},
		{table + ` client_cert_path = "/x" client_key_path = "/y" }`, at + `ca_path: is missing`},
		{table + ` client_key_path = "/y" }`, at + `ca_path: is missing`},
		{table + ` allow_unverified = "yes" }`, at + `allow_unverified: is the string "yes", but must be true or false`},
		{table + ` dsn = "postgres://u:p@h/d" }`, at + `dsn: unknown key`},
	} {
		_, err := config.Parse(tt.text, trustDomain)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
}

// A path that is mistyped is found before the server runs with it, and a password
// that others can read is said, by the path and not by its content.
func TestSQLFiles(t *testing.T) {
	dir := t.TempDir()
	dsn := filepath.Join(dir, "dsn")
	text := `source "sql" "fleet" { dialect = "mysql" dsn_path = "` + dsn + `" }`
	l := config.NewLoader()
	if _, err := l.Load(t.Context(), text, trustDomain); err == nil || !strings.Contains(err.Error(), "dsn_path: ") {
		t.Errorf("a file that there is not: %v", err)
	}
	if err := os.WriteFile(dsn, []byte("user:password@/db"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o640: false, 0o644: true, 0o604: true, 0o606: true} {
		if err := os.Chmod(dsn, mode); err != nil {
			t.Fatal(err)
		}
		c, err := l.Load(t.Context(), text, trustDomain)
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Contains(strings.Join(c.Warnings, "\n"), `source "sql" "fleet": dsn_path: "`+dsn+`" holds a secret but every user`)
		if said != warned || strings.Contains(strings.Join(c.Warnings, ""), "password@") {
			t.Errorf("mode %o: %q", mode, c.Warnings)
		}
	}
}
