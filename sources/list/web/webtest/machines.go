package webtest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Hash returns the EK hash of a machine.
func Hash(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// Machine returns the evidence of a machine.
func Machine(name string) *sources.Evidence {
	return &sources.Evidence{EKHash: sha256.Sum256([]byte(name))}
}

// List returns a list of machines in JSON. fields are further members, inserted before "keys".
func List(fields string, machines ...string) string {
	entries := make([]string, 0, len(machines))
	for _, m := range machines {
		entries = append(entries, fmt.Sprintf(`{"hash": %q, "name": %q}`, Hash(m), m))
	}
	return fmt.Sprintf(`{%s"keys": [%s]}`, fields, strings.Join(entries, ", "))
}

// WantListed fails the test unless the given machines, and no others of "one", "two", "three" and
// "stranger", are listed.
func WantListed(tb testing.TB, s sources.Source, machines ...string) {
	tb.Helper()
	for _, m := range []string{"one", "two", "three", "stranger"} {
		want := strings.Contains(" "+strings.Join(machines, " ")+" ", " "+m+" ")
		v, err := s.Check(tb.Context(), Machine(m))
		if err != nil || v.Listed != want {
			tb.Errorf("%s: listed is %v, error %v, want %v", m, v.Listed, err, want)
		}
		if v.Listed && v.Attributes.Name != m {
			tb.Errorf("%s has the name %q", m, v.Attributes.Name)
		}
	}
}

// WantCannotTell fails the test unless the source cannot tell about any machine, with an error that
// contains says.
func WantCannotTell(tb testing.TB, s sources.Source, says string) {
	tb.Helper()
	for _, m := range []string{"one", "stranger"} {
		v, err := s.Check(tb.Context(), Machine(m))
		if WantError(tb, err, says); v.Listed {
			tb.Errorf("%s is listed", m)
		}
	}
}

// WantError fails the test unless the text of err contains all of says.
func WantError(tb testing.TB, err error, says ...string) {
	tb.Helper()
	if err == nil {
		tb.Errorf("no error, want one that says %q", says)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			tb.Errorf("the error is %q, want %q in it", err, s)
		}
	}
}

// Write writes a file in a new folder and returns its path.
func Write(tb testing.TB, name string, data []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), name)
	Rewrite(tb, path, data)
	return path
}

// Rewrite writes a file.
func Rewrite(tb testing.TB, path string, data []byte) {
	tb.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		tb.Fatal(err)
	}
}
