package sqltable_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// BenchmarkLookUpOverBare takes turns between a look-up of the source and the
// same prepared query through package sql alone, over the loopback interface, and
// reports the ratio of their medians. The servers log nothing meanwhile.
func BenchmarkLookUpOverBare(b *testing.B) {
	for _, e := range engines {
		d := e.database(b)
		quiet := "SET GLOBAL general_log = 0"
		if d.dialect == sqltable.Postgres {
			quiet = "ALTER ROLE " + d.name + " SET log_statement = 'none'"
		}
		d.exec(quiet)
		d.writeDSN(d.overTCP("127.0.0.1", map[bool]string{true: "", false: "sslmode=disable"}[d.dialect == sqltable.MySQL]))
		listed, stranger := sourcetest.NewEvidence(b), sourcetest.NewEvidence(b)
		for range 1000 {
			d.insert(sourcetest.NewEvidence(b).EKHash, sources.Attributes{})
		}
		d.insert(listed.EKHash, sources.Attributes{Name: "us-east-17", Labels: []string{"rack:12", "env:prod"}})
		for _, test := range []struct {
			name string
			ev   *sources.Evidence
		}{{"hit", listed}, {"miss", stranger}} {
			b.Run(e.name+"/"+test.name, func(b *testing.B) {
				s := d.open(nil)
				run(b, s)
				bare := d.bare(b)
				want := test.ev == listed
				var bares, wholes []time.Duration
				for b.Loop() {
					start := time.Now()
					if found := bare(test.ev.EKHash.String()); found != want {
						b.Fatalf("found is %v", found)
					}
					middle := time.Now()
					if v, err := s.Check(b.Context(), test.ev); err != nil || v.Listed != want {
						b.Fatalf("%+v, %v", v, err)
					}
					bares = append(bares, middle.Sub(start))
					wholes = append(wholes, time.Since(middle))
				}
				slices.Sort(bares)
				slices.Sort(wholes)
				f, w := bares[len(bares)/2], wholes[len(wholes)/2]
				b.ReportMetric(float64(f.Nanoseconds()), "bare-ns")
				b.ReportMetric(float64(w.Nanoseconds()), "lookup-ns")
				b.ReportMetric(float64(w)/float64(f), "ratio")
			})
		}
		if d.dialect == sqltable.MySQL {
			d.exec("SET GLOBAL general_log = 1")
		}
	}
}

// bare returns a look-up through package sql alone.
func (d *database) bare(b *testing.B) func(hash string) bool {
	b.Helper()
	driver, dsn, query := "mysql", d.overTCP("127.0.0.1", ""), sqltable.DefaultQuery
	if d.dialect == sqltable.Postgres {
		driver, dsn = "pgx", d.overTCP("127.0.0.1", "sslmode=disable")
		query = "SELECT name, labels FROM tpm_machines WHERE ek_hash = $1"
	}
	db, err := sql.Open(driver, dsn)
	must(b, err)
	b.Cleanup(func() { db.Close() })
	stmt, err := db.PrepareContext(b.Context(), query)
	must(b, err)
	return func(hash string) bool {
		ctx, cancel := context.WithTimeout(b.Context(), sqltable.DefaultTimeout)
		defer cancel()
		var name, labels sql.NullString
		err := stmt.QueryRowContext(ctx, hash).Scan(&name, &labels)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			b.Fatal(err)
		}
		return err == nil
	}
}
