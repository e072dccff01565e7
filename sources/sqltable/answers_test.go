package sqltable_test

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// wantCannotTell fails unless the answer is an error that says why.
func wantCannotTell(t *testing.T, s sources.Source, ev *sources.Evidence, why string) {
	t.Helper()
	v, err := s.Check(t.Context(), ev)
	if err == nil || !reflect.DeepEqual(v, sources.Verdict{}) {
		t.Fatalf("%+v, %v; want an error alone", v, err)
	}
	if !strings.Contains(err.Error(), why) {
		t.Errorf("the error is %q, want one with %q", err, why)
	}
	if strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "%C3%B6") {
		t.Errorf("the error shows the password: %v", err)
	}
}

func wantListed(t *testing.T, s sources.Source, ev *sources.Evidence, want bool) sources.Verdict {
	t.Helper()
	v, err := s.Check(t.Context(), ev)
	if err != nil || v.Listed != want {
		t.Fatalf("listed is %v, error %v; want %v", v.Listed, err, want)
	}
	return v
}

// What a query may return, and what that means.
func TestAnswers(t *testing.T) {
	label := func(n int) string { return strings.Repeat("x", n) }
	var many []string
	for i := range 65 {
		many = append(many, fmt.Sprintf(`"l%d"`, i))
	}
	quoted := func(s string) string { return "'" + s + "'" }
	on(t, func(t *testing.T, d *database) {
		ev, stranger := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{Name: "us-east-17", Labels: []string{"rack:12", "a:b"}})
		for _, test := range []struct {
			columns string
			name    string
			labels  []string
			err     string // part of the error
		}{
			{columns: "name, labels", name: "us-east-17", labels: []string{"rack:12", "a:b"}},
			{columns: "labels, ek_hash, name", name: "us-east-17", labels: []string{"rack:12", "a:b"}},
			{columns: "ek_hash, name AS \"NAME\"", name: "us-east-17"},
			{columns: "1"},
			{columns: "NULL AS name, NULL AS labels"},
			{columns: "'' AS name, '' AS labels"},
			{columns: "'[\"a\", \"a\", \"b\"]' AS labels", labels: []string{"a", "b"}},
			{columns: "'host-a   ' AS name, '[\" a\", \"a\"]' AS labels", name: "host-a", labels: []string{"a"}},
			{columns: "'null' AS labels"},
			{columns: "name AS other, labels AS more"},
			{columns: "name, ek_hash AS name", err: "two columns called name"},
			{columns: "labels, ek_hash AS labels", err: "two columns called labels"},
			{columns: "5 AS name", err: "the column name is a"},
			{columns: "5 AS labels", err: "the column labels is a"},
			{columns: "'a b' AS labels", err: "not a JSON array of strings"},
			{columns: "'{\"a\": 1}' AS labels", err: "not a JSON array of strings"},
			{columns: "'[1]' AS labels", err: "not a JSON array of strings"},
			{columns: "'[null]' AS labels", err: "not a JSON array of strings"},
			{columns: "'[\"a\"' AS labels", err: "not a JSON array of strings"},
			{columns: "'[\"\"]' AS labels", err: "empty label"},
			{columns: quoted(`["`+label(256)+`"]`) + " AS labels", err: "256 bytes"},
			{columns: quoted("["+strings.Join(many, ",")+"]") + " AS labels", err: "65 labels"},
			{columns: quoted(label(256)) + " AS name", err: "256 bytes"},
			{columns: "'a\tb' AS name", err: "control character"},
			{columns: "repeat('x', 200000) AS labels", err: "200000 bytes"},
			{columns: "repeat('x', 3000000) AS other", err: ""},
			{columns: "nowhere", err: "nowhere"},
		} {
			s := d.open(func(c *sqltable.Config) {
				c.Query = "SELECT " + test.columns + " FROM tpm_machines WHERE ek_hash = ?"
			})
			what := test.columns[:min(len(test.columns), 60)]
			t.Run(what, func(t *testing.T) {
				if strings.Contains(what, "3000000") { // bytes, more than the database may send
					wantCannotTell(t, s, ev, "")
					return
				}
				if test.err != "" {
					wantCannotTell(t, s, ev, test.err)
					return
				}
				v := wantListed(t, s, ev, true)
				if v.Attributes.Name != test.name || !slices.Equal(v.Attributes.Labels, test.labels) {
					t.Errorf("%+v", v.Attributes)
				}
				wantListed(t, s, stranger, false)
			})
		}
	})
}

// Bytes that are not UTF-8 are no name: they would become a selector.
func TestInvalidUTF8(t *testing.T) {
	for _, test := range []struct {
		engine  *engine
		columns string
	}{
		{mariadb, "X'6aff' AS name"},
		{mariadb, "X'5b226aff225d' AS labels"},
		{postgres, "decode('6aff', 'hex') AS name"},
		{postgres, "decode('5b226aff225d', 'hex') AS labels"},
	} {
		t.Run(test.engine.name+" "+test.columns, func(t *testing.T) {
			d, ev := test.engine.database(t), sourcetest.NewEvidence(t)
			d.insert(ev.EKHash, sources.Attributes{})
			s := d.open(func(c *sqltable.Config) {
				c.Query = "SELECT " + test.columns + " FROM tpm_machines WHERE ek_hash = ?"
			})
			wantCannotTell(t, s, ev, "")
		})
	}
}

// A query that returns a row for every hash would admit everybody: a count, an aggregate, a
// condition that always holds.
func TestQueryThatListsEverybody(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		listed := sourcetest.NewEvidence(t)
		d.insert(listed.EKHash, sources.Attributes{})
		for _, query := range []string{
			"SELECT count(*) FROM tpm_machines WHERE ek_hash = ?",
			"SELECT EXISTS (SELECT 1 FROM tpm_machines WHERE ek_hash = ?)",
			"SELECT max(name) AS name FROM tpm_machines WHERE ek_hash = ?",
			"SELECT name FROM tpm_machines WHERE ek_hash = ? OR 1 = 1",
			"SELECT name FROM tpm_machines WHERE ek_hash <> ?",
		} {
			s := d.open(func(c *sqltable.Config) { c.Query = query })
			wantCannotTell(t, s, sourcetest.NewEvidence(t), "it would list every TPM")
			wantCannotTell(t, s, listed, "it would list every TPM")
		}
	})
}

// Two rows for one hash name two machines, and nobody can tell which it is. Further rows are
// not read.
func TestMoreThanOneRow(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		one, two := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
		d.exec("CREATE TABLE " + d.name + ".many (ek_hash char(64), name varchar(255))")
		grantee := d.name
		if d.dialect == sqltable.MySQL {
			grantee = d.user()
		}
		d.exec("GRANT SELECT ON " + d.name + ".many TO " + grantee)
		d.exec("INSERT INTO " + d.name + ".many VALUES ('" + one.EKHash.String() + "', 'x')" +
			strings.Repeat(", ('"+one.EKHash.String()+"', 'y')", 100))
		d.exec(fmt.Sprintf("INSERT INTO %s.many VALUES ('%s', 'one')", d.name, two.EKHash))
		s := d.open(func(c *sqltable.Config) { c.Query = "SELECT name FROM many WHERE ek_hash = ?" })
		run(t, s)
		wantCannotTell(t, s, one, "more than one row")
		wantListed(t, s, two, true)
		wantCannotTell(t, s, one, "more than one row")

		all := d.open(func(c *sqltable.Config) {
			c.Query = "SELECT a.name FROM many a, many b, many c WHERE a.ek_hash = ?" // a million rows
		})
		wantCannotTell(t, all, one, "more than one row")
	})
}

// A query in another database's dialect, a missing table and a missing privilege are for a
// person to correct, and are no answer.
func TestErrorsOfTheDatabase(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		for _, query := range []string{
			"SELECT name FROM nowhere WHERE ek_hash = ?",
			"SELECT nothing FROM tpm_machines WHERE ek_hash = ?",
			"SELECT name FROM tpm_machines WHERE ek_hash = ? FROM",
			"SELECT name FROM tpm_machines WHERE ek_hash LIKE ? OR name = '",
		} {
			s, err := sqltable.New(sqltable.Config{Dialect: d.dialect, DSNPath: d.path, Query: query})
			if err != nil {
				continue // New refuses it
			}
			wantCannotTell(t, s, ev, "prepare the query")
		}
		s := d.open(nil)
		s.SetRetryPause(0)
		run(t, s)
		wantListed(t, s, ev, false)
		grantee := d.name
		if d.dialect == sqltable.MySQL {
			grantee = d.user()
		}
		d.exec("REVOKE SELECT ON " + d.table() + " FROM " + grantee)
		wantCannotTell(t, s, ev, "denied")
		d.exec("GRANT SELECT ON " + d.table() + " TO " + grantee)
		wantListed(t, s, ev, false) // at once: the database has answered all the time
	})
}

// A hash is only ever the parameter of a prepared statement: the server's own log of all
// statements has no text with the hash in it.
func TestHashNeverReachesTheText(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		s, ev := d.open(nil), sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{})
		run(t, s)
		wantListed(t, s, ev, true)
		// PostgreSQL logs the parameter beside the text. MariaDB logs that it has
		// prepared the text, and inserts the parameter only in the log.
		prepared := "LOG:  execute " // the name of the statement follows
		if d.dialect == sqltable.MySQL {
			prepared = "Prepare\tSELECT name, labels FROM tpm_machines WHERE ek_hash = ?"
		}
		until(t, "the server has logged it", func() bool { return strings.Contains(d.server.Log(), ev.EKHash.String()) })
		log := d.server.Log()
		if !strings.Contains(log, prepared) {
			t.Errorf("the server has logged no prepared statement:\n%s", log)
		}
		for line := range strings.Lines(log) {
			administrators := strings.Contains(line, "INSERT") || strings.Contains(line, "DELETE")
			asParameter := strings.Contains(line, "DETAIL:  parameters: ") || strings.Contains(line, "Execute\t")
			if strings.Contains(line, ev.EKHash.String()) && !administrators && !asParameter {
				t.Errorf("the text has the hash: %s", line)
			}
		}
	})
}

// The session is read-only, so that a query that calls a function cannot write, and each
// look-up sees what has been committed by then.
func TestSessionIsReadOnly(t *testing.T) {
	ev := sourcetest.NewEvidence(t)
	t.Run("postgres", func(t *testing.T) {
		d := postgres.database(t)
		d.exec("GRANT INSERT ON " + d.table() + " TO " + d.name)
		d.exec("CREATE FUNCTION " + d.name + ".enrol(h text) RETURNS SETOF text LANGUAGE sql AS " +
			"'INSERT INTO " + d.table() + " (ek_hash) VALUES (h) RETURNING ek_hash'")
		s := d.open(func(c *sqltable.Config) { c.Query = "SELECT enrol(?)" })
		wantCannotTell(t, s, ev, "read-only transaction")
		if got := d.content(); len(got) > 0 {
			t.Errorf("the table has %q", got)
		}
	})
	t.Run("mariadb", func(t *testing.T) {
		d := mariadb.database(t)
		d.exec("GRANT ALL ON " + d.name + ".* TO " + d.user())
		d.exec("CREATE FUNCTION " + d.name + ".enrol(h char(64)) RETURNS int DETERMINISTIC BEGIN " +
			"INSERT INTO tpm_machines (ek_hash) VALUES (h); RETURN 1; END")
		s := d.open(func(c *sqltable.Config) { c.Query = "SELECT enrol(?)" })
		wantCannotTell(t, s, ev, "READ ONLY transaction")
		if got := d.content(); len(got) > 0 {
			t.Errorf("the table has %q", got)
		}
	})
	// If sessions begin a transaction by themselves, look-ups would see the table as it was
	// when the connection was made.
	t.Run("autocommit", func(t *testing.T) {
		d := mariadb.database(t)
		d.writeDSN(d.dsn + "?autocommit=0")
		s := d.open(func(c *sqltable.Config) { c.MaxOpenConns = 1 })
		run(t, s)
		wantListed(t, s, ev, false)
		d.insert(ev.EKHash, sources.Attributes{})
		wantListed(t, s, ev, true)
		d.remove(ev.EKHash)
		wantListed(t, s, ev, false)
	})
	// A read replica serves as well as any database.
	t.Run("a read-only server", func(t *testing.T) {
		d := mariadb.database(t)
		d.insert(ev.EKHash, sources.Attributes{})
		d.exec("SET GLOBAL read_only = 1")
		defer d.exec("SET GLOBAL read_only = 0")
		wantListed(t, d.open(nil), ev, true)
	})
}

// A binary column that happens to hold the hash's letters lists nobody, and the documented
// forms of the query work.
func TestBinaryColumn(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		kind, literal, query, grantee := "bytea", `'\x`+ev.EKHash.String()+`'`, "SELECT 1 FROM b WHERE h = decode(?, 'hex')", d.name
		if d.dialect == sqltable.MySQL {
			kind, literal, query, grantee = "binary(32)", "X'"+ev.EKHash.String()+"'", "SELECT 1 FROM b WHERE h = UNHEX(?)", d.user()
		}
		d.exec("CREATE TABLE " + d.name + ".b (h " + kind + " PRIMARY KEY)")
		d.exec("GRANT SELECT ON " + d.name + ".b TO " + grantee)
		d.exec("INSERT INTO " + d.name + ".b VALUES (" + literal + ")")
		s := d.open(func(c *sqltable.Config) { c.Query = query })
		wantListed(t, s, ev, true)
		wantListed(t, s, sourcetest.NewEvidence(t), false)
		plain := d.open(func(c *sqltable.Config) { c.Query = "SELECT 1 FROM b WHERE h = ?" })
		if v, err := plain.Check(t.Context(), ev); err == nil && v.Listed {
			t.Error("listed by letters")
		}
	})
}

// No error shows the password, whichever way the DSN is wrong.
func TestNoErrorShowsThePassword(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		for _, dsn := range []string{
			d.dsn + "x y z",
			"postgres://user:" + password + "@[::1/x",
			"postgres://user:" + password + "@127.0.0.1:99999/x",
			"host=127.0.0.1 password='" + password + "' sslmode=nonsense",
			"user:" + password + "@tcp(127.0.0.1:1",
			"user:" + password + "@tcp(127.0.0.1:1)/x?tls=" + password,
			"user:" + password + "@tcp(127.0.0.1:1)/x?timeout=" + password,
			"user:" + password + "@tcp(127.0.0.1:1)/x",
			"user:" + password + "@nonsense(127.0.0.1:1)/x",
			d.overTCP("127.0.0.1", "sslmode=disable&application_name="+d.account()),
			strings.Replace(d.overTCP("127.0.0.1", ""), d.name+":", "nobody:", 1),
			strings.Replace(d.overTCP("127.0.0.1", ""), "@", "x@", 1),
			password,
		} {
			d.writeDSN(dsn)
			s := d.open(nil)
			v, err := s.Check(t.Context(), ev)
			if err == nil || v.Listed {
				if !strings.Contains(dsn, "application_name") {
					t.Errorf("%s: %+v, %v", dsn, v, err)
				}
				continue
			}
			for _, secret := range []string{"pass:w0rd", "öä%", "w0rd%2F", password} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%s: the error shows %q: %v", dsn, secret, err)
				}
			}
		}
	})
}

// Unsafe options in a DSN are refused, with what to write instead.
func TestUnsafeDSN(t *testing.T) {
	ev := sourcetest.NewEvidence(t)
	for _, test := range []struct {
		dialect   sqltable.Dialect
		dsn, want string
	}{
		{sqltable.MySQL, "u:p@tcp(127.0.0.1:1)/x?multiStatements=true", "multiStatements is not safe"},
		{sqltable.MySQL, "u:p@tcp(127.0.0.1:1)/x?interpolateParams=true", "interpolateParams is not safe"},
		{sqltable.MySQL, "u:p@tcp(127.0.0.1:1)/x?allowAllFiles=true", "allowAllFiles is not safe"},
		{sqltable.MySQL, "u:p@tcp(127.0.0.1:1)/x?allowOldPasswords=true", "allowOldPasswords is not safe"},
		{sqltable.MySQL, "u:p@tcp(db.example.org:3306)/x", `"db.example.org" would not be verified by TLS`},
		{sqltable.MySQL, "u:p@tcp(192.0.2.1:3306)/x?tls=skip-verify", "would not be verified by TLS"},
		{sqltable.MySQL, "u:p@tcp(db.example.org:3306)/x?tls=preferred", "write tls=true in the DSN"},
		{sqltable.MySQL, "u:p@tcp(db.example.org:3306)/x?tls=true&allowFallbackToPlaintext=true", "not be verified by TLS"},
		{sqltable.MySQL, "nonsense", "is not in the form that the driver expects: write <user>"},
		{sqltable.Postgres, "postgres://u:p@127.0.0.1:1/x?default_query_exec_mode=simple_protocol", "part of the SQL text"},
		{sqltable.Postgres, "postgres://u:p@db.example.org/x", "write sslmode=verify-full in the DSN"},
		{sqltable.Postgres, "postgres://u:p@db.example.org/x?sslmode=disable", "not be verified by TLS"},
		{sqltable.Postgres, "postgres://u:p@db.example.org/x?sslmode=require", "not be verified by TLS"},
		{sqltable.Postgres, "postgres://u:p@db.example.org/x?sslmode=verify-ca", "not be verified by TLS"},
		{sqltable.Postgres, "host=127.0.0.1,192.0.2.1 user=u", `"192.0.2.1" would not be verified by TLS`},
		{sqltable.Postgres, "host=127.0.0.1.example.org user=u", "not be verified by TLS"},
		{sqltable.Postgres, "host=localhost.example.org user=u", "not be verified by TLS"},
		{sqltable.Postgres, "postgres://u:p@db.example.org/x?sslrootcert=/nowhere/ca.pem", "/nowhere/ca.pem"},
		{sqltable.Postgres, "postgres://u:p@127.0.0.1:x/", "is not in the form that the driver expects: write postgres://"},
	} {
		d := &database{tb: t, path: t.TempDir() + "/dsn"}
		d.writeDSN(test.dsn)
		s, err := sqltable.New(sqltable.Config{Dialect: test.dialect, DSNPath: d.path})
		must(t, err)
		wantCannotTell(t, s, ev, test.want)
	}
}

// The file of the DSN must be a small regular file of one line.
func TestFileOfTheDSN(t *testing.T) {
	ev, dir := sourcetest.NewEvidence(t), t.TempDir()
	for name, content := range map[string]string{
		"empty": "", "blank": " \n\n", "two lines": "host=/x\nhost=/y", "zero": "host=/x\x00", "long": strings.Repeat("x", 20<<10),
	} {
		path := dir + "/" + name
		must(t, os.WriteFile(path, []byte(content), 0o600))
		s, err := sqltable.New(sqltable.Config{Dialect: sqltable.Postgres, DSNPath: path})
		must(t, err)
		wantCannotTell(t, s, ev, "")
	}
	for path, want := range map[string]string{dir: "not a regular file", dir + "/none": "no such file"} {
		s, err := sqltable.New(sqltable.Config{Dialect: sqltable.Postgres, DSNPath: path})
		must(t, err)
		wantCannotTell(t, s, ev, want)
	}
}

// A mistake in the configuration is found before anything is opened.
func TestNew(t *testing.T) {
	good := sqltable.Config{Dialect: sqltable.MySQL, DSNPath: "/dsn"}
	if _, err := sqltable.New(good); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*sqltable.Config){
		"dsn_path is missing":       func(c *sqltable.Config) { c.DSNPath = "" },
		"dialect must be":           func(c *sqltable.Config) { c.Dialect = "oracle" },
		"query has no":              func(c *sqltable.Config) { c.Query = "SELECT 1" },
		"from 1 to 100":             func(c *sqltable.Config) { c.MaxOpenConns = 101 },
		"max_open_conns is -1":      func(c *sqltable.Config) { c.MaxOpenConns = -1 },
		"timeout is -1ns":           func(c *sqltable.Config) { c.Timeout = -1 },
		"conn_max_lifetime is -1ns": func(c *sqltable.Config) { c.ConnMaxLifetime = -1 },
		"go together":               func(c *sqltable.Config) { c.ClientCertPath = "/x" },
		"ca_path is missing":        func(c *sqltable.Config) { c.ClientCertPath, c.ClientKeyPath = "/x", "/y" },
	} {
		c := good
		change(&c)
		if _, err := sqltable.New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
