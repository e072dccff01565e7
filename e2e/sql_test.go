package e2e_test

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable/sqltest"
)

// The paths in examples/postgres of the files about the database.
const (
	dsnFile = "/etc/spire/tpm-database.dsn"
	dsnCA   = "/etc/spire/database-ca.pem"
)

// layTable writes the files with the DSN and the CA where the example expects them. The database
// does not exist yet.
func (s *site) layTable() {
	s.put(dsnCA, "")
	s.put(dsnFile, "")
}

func (s *site) postgres(server *spiretest.Server) {
	db, err := sqltest.Postgres()
	if err != nil {
		s.t.Fatal(err)
	}
	s.table(server, &tableSite{db: db, schema: "schema.sql", system: "postgres", dsn: regexp.MustCompile("postgres://[^']*")})
}

func (s *site) mariadb(server *spiretest.Server) {
	db, err := sqltest.MariaDB()
	if err != nil {
		s.t.Fatal(err)
	}
	s.table(server, &tableSite{
		db: db, schema: "schema-mysql.sql", system: "mysql",
		dsn: regexp.MustCompile("spire_tpm:[^`]*@tcp[^`]*"),
	})
}

// A tableSite is one of the two databases of the example.
type tableSite struct {
	db             *sqltest.Server
	schema, system string
	dsn            *regexp.Regexp // in the README
}

// exec runs statements in a database, as its administrator.
func (s *site) exec(d *tableSite, database, statements string) {
	s.t.Helper()
	if _, err := d.db.Exec(s.ctx, database, statements); err != nil {
		s.t.Fatal(err)
	}
}

// statement returns a statement of the README, with the given hash.
func (s *site) statement(kind, hash string) string {
	s.t.Helper()
	found := regexp.MustCompile(`(?s)` + kind + ` .*?;`).FindString(s.read("README.md"))
	if found == "" {
		s.t.Fatalf("the README has no %s", kind)
	}
	return regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(found, hash)
}

// table checks what the README says. While the database does not exist, or is stopped, nobody is
// admitted. A machine is enrolled and admitted, then removed and refused.
func (s *site) table(server *spiretest.Server, d *tableSite) {
	s.t.Helper()
	s.t.Cleanup(func() {
		if err := d.db.Close(); err != nil {
			s.t.Error(err)
		}
	})
	s.waitLog(server.Process, 0, "source cannot tell", "there is no DSN")
	s.wantCode(server, s.one, codes.Unavailable)

	s.exec(d, d.system, "CREATE DATABASE spire;")
	s.exec(d, "spire", s.read(d.schema))
	ca := d.db.CAPath
	s.sh("cp", ca, s.root+dsnCA)
	dsn := d.dsn.FindString(s.read("README.md"))
	s.put(dsnFile, regexp.MustCompile(`db\.example\.org:\d+`).ReplaceAllString(dsn, d.db.Address())+"\n")

	m := s.machine(nil)
	s.wantCodeSoon(server, s.one, codes.PermissionDenied)
	s.refused(server, m)
	s.exec(d, "spire", s.statement("INSERT", m.hash))
	a, known := s.admitted(server, m)
	s.wantSelectors(known, "pub_hash:"+m.hash, "rule:default", "source:machines", "name:us-east-17", "label:rack:12")
	s.wantWorkloadSVID(server, a, known)

	s.exec(d, "spire", s.statement("DELETE", m.hash))
	s.evict(server, known)
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	if err := a.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
		s.t.Errorf("the machine is still in: %v", err)
	}
	s.refused(server, m)

	s.exec(d, "spire", strings.Replace(s.statement("INSERT", s.one.EKHash()), "us-east-17", "us-east-18", 1))
	s.admits(server, s.one)
	if err := d.db.Stop(); err != nil {
		s.t.Fatal(err)
	}
	mark := server.Mark()
	for range 3 {
		s.wantCode(server, s.one, codes.Unavailable)
		s.wantCode(server, s.stranger, codes.Unavailable)
	}
	s.waitLog(server.Process, mark, "source cannot tell", "source=machines")
	if strings.Contains(server.Log(), "change-me") {
		s.t.Error("the log has the password")
	}
	if err := d.db.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.wantCodeSoon(server, s.one, codes.OK)
	s.refuses(server, s.two)
}
