package sqltable

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func newCA(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A database is accepted on any host if TLS verifies it, and on this machine in any case.
func TestSafeDSN(t *testing.T) {
	ca := newCA(t)
	for _, test := range []struct {
		dsn string
		cfg Config
	}{
		{"postgres://u@/x?host=/run/postgresql", Config{}},
		{"host=127.0.0.1,::1,localhost user=u", Config{}},
		{"postgres://u@db.example.org/x?sslmode=verify-full", Config{}},
		{"postgres://u@db.example.org/x?sslmode=verify-ca&sslrootcert=" + ca, Config{}},
		{"postgres://u@db.example.org/x?sslrootcert=system", Config{}},
		{"host=a.example.org,b.example.org user=u", Config{CAPath: ca}},
		{"postgres://u@db.example.org/x?sslmode=disable", Config{CAPath: ca}},
		{"postgres://u@db.example.org/x", Config{AllowUnverified: true}},
		{"u@unix(/run/mysqld.sock)/x", Config{Dialect: MySQL}},
		{"u@/x", Config{Dialect: MySQL}},
		{"u@tcp([::1]:3306)/x", Config{Dialect: MySQL}},
		{"u@tcp(db.example.org)/x?tls=true", Config{Dialect: MySQL}},
		{"u@tcp(db.example.org:3306)/x", Config{Dialect: MySQL, CAPath: ca}},
		{"u@tcp(db.example.org:3306)/x?tls=preferred", Config{Dialect: MySQL, CAPath: ca}},
		{"u@tcp(db.example.org:3306)/x?tls=skip-verify", Config{Dialect: MySQL, AllowUnverified: true}},
	} {
		test.cfg.Timeout = time.Second
		if _, err := (&connector{cfg: test.cfg, dsn: test.dsn}).prepare(); err != nil {
			t.Errorf("%s: %v", test.dsn, err)
		}
	}
}

// With CA certificates, the only way to a host is TLS that verifies it, although libpq's
// default would try without TLS next.
func TestNoWayAround(t *testing.T) {
	c := &connector{cfg: Config{CAPath: newCA(t)}}
	config, err := c.tls()
	if err != nil {
		t.Fatal(err)
	}
	pg, err := pgx.ParseConfig("host=a.example.org,/run/postgresql,b.example.org user=u sslmode=prefer")
	if err != nil {
		t.Fatal(err)
	}
	if len(pg.Fallbacks) < 3 {
		t.Fatalf("%d ways beside the first", len(pg.Fallbacks))
	}
	c.useTLS(pg, config)
	if pg.TLSConfig.ServerName != "a.example.org" || len(pg.Fallbacks) != 2 {
		t.Errorf("%+v, %d further ones", pg.TLSConfig, len(pg.Fallbacks))
	}
	for _, f := range pg.Fallbacks {
		if isSocket(f.Host) != (f.TLSConfig == nil) || f.TLSConfig != nil && f.TLSConfig.ServerName != f.Host {
			t.Errorf("%s by %+v", f.Host, f.TLSConfig)
		}
	}
}

// A name server that answers for localhost could impersonate the database without TLS. The
// address is checked when the connection is made, with either driver.
func TestLocalhostOfAnotherMachine(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:5432": true, "127.9.9.9:5432": true, "[::1]:5432": true, "[::ffff:127.0.0.1]:5432": true,
		"192.0.2.1:5432": false, "10.0.0.1:5432": false, "[2001:db8::1]:5432": false, "0.0.0.0:5432": false,
		"[64:ff9b::7f00:1]:5432": false, "/run/mysqld.sock": false, "localhost:5432": false,
	} {
		if err := onlyLoopback(t.Context(), "tcp", address, nil); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	if dialerTo("localhost:3306").ControlContext == nil || dialerTo("db.example.org:3306").ControlContext != nil {
		t.Error("localhost is not looked at, or another host is")
	}
	// The driver of PostgreSQL resolves names before it dials, but not this name.
	if got, err := lookUp(t.Context(), "localhost"); err != nil || len(got) != 1 || got[0] != "localhost" {
		t.Errorf("localhost is resolved to %q, %v", got, err)
	}
	for _, host := range []string{"Localhost", "localhost.", "localhost.example.org", "ip6-localhost"} {
		if isLocal(host) {
			t.Errorf("%s needs no TLS", host)
		}
	}
}

// The check is made for each connection to localhost.
func TestLocalhostIsThisMachine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dial(t.Context(), "tcp", net.JoinHostPort("localhost", port))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	pg, err := (&connector{dsn: "host=localhost user=u"}).pgConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pg.LookupFunc(t.Context(), "localhost"); err != nil || len(got) != 1 || got[0] != "localhost" {
		t.Errorf("localhost is resolved to %q, %v, before it is dialled", got, err)
	}
}

// An endless answer does not fill the memory.
func TestAnswerWithoutEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var serving sync.WaitGroup
	serving.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		zeros := make([]byte, 64<<10)
		for err == nil {
			_, err = conn.Write(zeros)
		}
	})
	conn, err := dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	read := func() int64 {
		n, err := io.Copy(io.Discard, conn)
		if !errors.Is(err, errTooLong) {
			t.Errorf("%v", err)
		}
		return n
	}
	if n := read(); n != maxAnswer {
		t.Errorf("%d bytes were read", n)
	}
	if _, err := conn.Write([]byte{0}); err != nil {
		t.Error(err)
	}
	if n := read(); n != maxAnswer {
		t.Errorf("%d bytes were read after a further question", n)
	}
	conn.Close()
	serving.Wait()
}

// What an error says about the database: only an error that the database itself has returned,
// and that another connection would not change, counts as its answer.
func TestFaults(t *testing.T) {
	pg := func(code string) error { return &pgconn.PgError{Code: code} }
	my := func(number uint16) error { return &mysql.MySQLError{Number: number} }
	for _, test := range []struct {
		err  error
		want fault
	}{
		{shapeError{errTwoRows}, answered},
		{pg("42P01"), answered},
		{pg("42501"), answered},
		{my(1146), answered},
		{my(1142), answered},
		{pg("57014"), down},
		{pg("53300"), down},
		{pg("58030"), down},
		{my(3024), down},
		{my(1969), down},
		{my(1205), down},
		{my(1317), down},
		{pg("0A000"), stale},
		{pg("26000"), stale},
		{pg("57P01"), stale},
		{pg("08006"), stale},
		{my(1053), stale},
		{my(1243), stale},
		{my(1615), stale},
		{my(1927), stale},
		{mysql.ErrInvalidConn, stale},
		{io.ErrUnexpectedEOF, stale},
		{io.EOF, stale},
		{&connectError{pg("28P01")}, down},
		{&connectError{io.EOF}, down},
		{context.DeadlineExceeded, down},
		{context.Canceled, down},
	} {
		if got := faultOf(fmt.Errorf("around it: %w", test.err)); got != test.want {
			t.Errorf("%v: %d, want %d", test.err, got, test.want)
		}
	}
}

// An error of the database is one line of limited length in the log.
func TestErrorsAreOneLine(t *testing.T) {
	err := scrub(errors.New("a\nforged=line\x00"+strings.Repeat("ö", 2000)+"\xff secret"), []string{"secret"})
	if s := err.Error(); strings.ContainsAny(s, "\n\x00") || !utf8.ValidString(s) || len(s) > maxErrorText+len("…") {
		t.Errorf("%q", s)
	}
	if s := scrub(errors.New("the secret is secret"), []string{"secret"}).Error(); s != "the … is …" {
		t.Errorf("%q", s)
	}
}
