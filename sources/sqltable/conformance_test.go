package sqltable_test

import (
	"fmt"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

var _ sources.Watcher = (*sqltable.Source)(nil)

// TestConformance runs the conformance suite on each engine.
func TestConformance(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			sourcetest.Run(t, sourcetest.Harness{
				Attributes: true,
				New: func(tb testing.TB) sourcetest.Backend {
					tb.Helper()
					d := e.database(tb)
					return sourcetest.Backend{
						Open:    func() sources.Source { return d.open(nil) },
						List:    func(ev *sources.Evidence, a sources.Attributes) { d.insert(ev.EKHash, a) },
						Unlist:  func(ev *sources.Evidence) { d.remove(ev.EKHash) },
						Break:   func() { d.exec("ALTER TABLE " + d.table() + " RENAME TO " + d.away()) },
						Mend:    func() { d.exec("ALTER TABLE " + d.name + ".away RENAME TO " + d.back()) },
						Content: func() any { return d.content() },
					}
				},
			})
		})
	}
}

// away and back are the names that the table is renamed to. MySQL wants them with the database.
func (d *database) away() string {
	if d.dialect == sqltable.MySQL {
		return d.name + ".away"
	}
	return "away"
}

func (d *database) back() string {
	if d.dialect == sqltable.MySQL {
		return d.table()
	}
	return "tpm_machines"
}

// content returns all rows.
func (d *database) content() []string {
	d.tb.Helper()
	rows, err := d.admin.QueryContext(d.tb.Context(), "SELECT ek_hash, name, labels FROM "+d.table()+" ORDER BY ek_hash")
	must(d.tb, err)
	defer rows.Close()
	var all []string
	for rows.Next() {
		var hash string
		var name, labels any
		must(d.tb, rows.Scan(&hash, &name, &labels))
		all = append(all, fmt.Sprintf("%s %s %s", hash, name, labels))
	}
	must(d.tb, rows.Err())
	return all
}
