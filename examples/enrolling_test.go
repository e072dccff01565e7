package examples_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" // what a vendor may give instead of an EK hash
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable/sqltest"
)

// Whoever enrols a fleet pastes the page's commands over a list of their own. So all of them are
// run over one of 2,000 machines with the mistakes that vendors make, and print what the page
// shows.
func TestEnrollingCommands(t *testing.T) {
	const least = 20
	buildTool(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "delivery.csv"), []byte(deliveryList()), 0o600))
	attested := strings.Join([]string{hashOf(1), hashOf(2), hashOf(3), hashOf(7)}, "\n") + "\n" // 7 is in no list
	must(t, os.WriteFile(filepath.Join(dir, "attested.txt"), []byte(attested), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "certificates"), 0o700))
	for i := range 3 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		must(t, err)
		block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		must(t, os.WriteFile(filepath.Join(dir, "certificates", serialOf(9001+i)+".pem"), block, 0o600))
	}
	if commands := runPage(t, dir, pageOf(t, "docs/enrolling.md")); commands < least {
		t.Errorf("found only %d commands: is the test looking in the right place?", commands)
	}
}

// The statements that bring a list into a database leave there what the list has, with and without
// names, and nothing of the list before: a machine that has gone would stay in.
func TestListIntoTheDatabase(t *testing.T) {
	db, err := sqltest.Postgres()
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	run := func(database, statements string) string {
		t.Helper()
		out, err := db.Exec(t.Context(), database, statements)
		must(t, err)
		return out
	}
	run("postgres", "CREATE DATABASE spire;")
	run("spire", read(t, "examples/postgres/schema.sql"))
	run("spire", "INSERT INTO tpm_machines (ek_hash, name) VALUES ('"+hashOf(1)+"', 'pf0001'), ('"+hashOf(9)+"', 'gone');")
	list := filepath.Join(t.TempDir(), "tpm.json")
	text := fmt.Sprintf(`{"keys": [%q, {"hash": %q, "name": "pf0001", "labels": ["site:ber"]}]}`, hashOf(2), hashOf(1))
	must(t, os.WriteFile(list, []byte(text), 0o600))
	run("spire", strings.Replace(blockWith(t, "docs/enrolling.md", "BEGIN;"), "tpm.json", list, 1))
	got := run("spire", "SELECT ek_hash, name, labels FROM tpm_machines ORDER BY name;")
	if want := hashOf(1) + `|pf0001|["site:ber"]` + "\n" + hashOf(2) + "||"; got != want {
		t.Errorf("the table has\n%s\nwant\n%s", got, want)
	}
}

// deliveryList is a vendor's list of 2,000 machines. One has a SHA-1, and one the hash of another.
func deliveryList() string {
	const machines, pilot, wrong, twice, other = 2000, 20, 41, 1200, 7
	var b strings.Builder
	b.WriteString("Serial;Model;EK Hash;Site\n")
	for i := 1; i <= machines; i++ {
		model, site, hash := "T14", "muc", hashOf(i)
		if i%3 == 0 {
			model = "M75"
		}
		if i <= pilot {
			site = "ber"
		}
		switch i {
		case wrong:
			sum := sha1.Sum([]byte(serialOf(i)))
			hash = hex.EncodeToString(sum[:])
		case twice:
			hash = hashOf(other)
		}
		fmt.Fprintf(&b, "%s;%s;%s;%s\n", serialOf(i), model, hash, site)
	}
	return b.String()
}

func serialOf(i int) string { return fmt.Sprintf("PF%04d", i) }

func hashOf(i int) string {
	sum := sha256.Sum256([]byte(serialOf(i)))
	return hex.EncodeToString(sum[:])
}
