package sqltable_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// A row with an upper-case or shortened hash in a table of stolen machines denies nobody, and nothing
// else says so.
func TestCountMalformed(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		to := d.name
		if d.dialect == sqltable.MySQL {
			to = d.user()
		}
		d.exec(`CREATE TABLE ` + d.name + `.stolen (id int PRIMARY KEY, hash varchar(100))`)
		d.exec(`GRANT SELECT ON ` + d.name + `.stolen TO ` + to)
		good := strings.Repeat("0a", 32)
		d.exec(`INSERT INTO ` + d.name + `.stolen VALUES (1, '` + good + `'), (2, '` + strings.ToUpper(good) + `'), ` +
			`(3, '` + good[2:] + `'), (4, NULL), (5, '` + good + ` ')`)
		for query, want := range map[string]struct {
			n     int
			known bool
		}{
			"SELECT hash FROM stolen WHERE hash = ?":                  {4, true},
			"select id\nfrom stolen\nwhere hash=? ;":                  {4, true},
			"SELECT id FROM stolen WHERE hash = ? AND id > 1":         {0, false},
			"SELECT id FROM stolen WHERE lower(hash) = ?":             {0, false},
			"SELECT s.id FROM stolen s JOIN x USING (id) WHERE y = ?": {0, false},
		} {
			s := d.open(func(c *sqltable.Config) { c.Query = query })
			n, known, err := s.CountMalformed(t.Context())
			if err != nil || n != want.n || known != want.known {
				t.Errorf("%s: %d, %v, %v, want %+v", query, n, known, err, want)
			}
		}
		if _, err := d.open(func(c *sqltable.Config) { c.Query = "SELECT x FROM nowhere WHERE x = ?" }).Check(t.Context(),
			&sources.Evidence{}); err == nil || errors.Is(err, sqltable.ErrDown) {
			t.Errorf("a table that is not there: %v", err)
		}
		if n, known, err := d.open(func(*sqltable.Config) {}).CountMalformed(t.Context()); n != 0 || !known || err != nil {
			t.Errorf("the table of the documentation: %d, %v, %v", n, known, err)
		}
		s := d.open(func(c *sqltable.Config) { c.Query = "SELECT hash FROM nowhere WHERE hash = ?" })
		if _, known, err := s.CountMalformed(t.Context()); !known || err == nil || strings.Contains(err.Error(), password) {
			t.Errorf("a table that is not there: %v, %v", known, err)
		}
	})
}

// Whoever asks a database that is not there has not found that anything is wrong with its table.
func TestErrDown(t *testing.T) {
	for dialect, dsn := range map[sqltable.Dialect]string{
		sqltable.Postgres: "postgres://u:hunter2@127.0.0.1:1/x", sqltable.MySQL: "u:hunter2@tcp(127.0.0.1:1)/x",
	} {
		path := filepath.Join(t.TempDir(), "dsn")
		must(t, os.WriteFile(path, []byte(dsn), 0o600))
		s, err := sqltable.New(sqltable.Config{Dialect: dialect, DSNPath: path})
		must(t, err)
		if _, err := s.Check(t.Context(), &sources.Evidence{}); !errors.Is(err, sqltable.ErrDown) ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", dialect, err)
		}
	}
}
