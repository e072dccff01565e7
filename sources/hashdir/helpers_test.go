package hashdir

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// hash returns the EK hash of machine number i.
func hash(i int) string {
	sum := sha256.Sum256([]byte(strconv.Itoa(i)))
	return hex.EncodeToString(sum[:])
}

// evidence returns the evidence of the TPM with an EK hash.
func evidence(hash string) *sources.Evidence {
	h, err := sources.ParseEKHash(hash)
	if err != nil {
		panic(err)
	}
	return &sources.Evidence{EKHash: h}
}

// write writes a file below dir, and makes the folders above it.
func write(t testing.TB, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// link makes a symbolic link below dir, and the folders above it.
func link(t testing.TB, target, dir, name string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// emptyDirectory returns an empty directory and a source of it.
func emptyDirectory(t *testing.T) (dir string, s *Source) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "hashes")
	must(t, os.Mkdir(dir, 0o755))
	return dir, open(t, Config{Path: dir})
}

// open calls New with a valid configuration.
func open(t testing.TB, cfg Config) *Source {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// answer is the expected result of a check.
type answer struct {
	listed bool
	attrs  sources.Attributes
	err    error  // matched with errors.Is
	text   string // contained in the error
}

var (
	listed    = answer{listed: true}
	notListed = answer{}
)

// expect checks the TPM with EK hash h.
func expect(t testing.TB, s *Source, h string, want answer) {
	t.Helper()
	v, err := s.Check(t.Context(), evidence(h))
	if want.err != nil || want.text != "" {
		if err == nil || (want.err != nil && !errors.Is(err, want.err)) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("Check(%s) says %v, %v, want the error %v %q", h, v, err, want.err, want.text)
		}
		if diff := cmp.Diff(sources.Verdict{}, v); diff != "" {
			t.Errorf("Check(%s) has a verdict beside its error (-want +got):\n%s", h, diff)
		}
		return
	}
	if err != nil || v.Listed != want.listed {
		t.Fatalf("Check(%s) says listed %v, %v, want %v", h, v.Listed, err, want.listed)
	}
	if diff := cmp.Diff(want.attrs, v.Attributes); diff != "" {
		t.Errorf("Check(%s) has attributes (-want +got):\n%s", h, diff)
	}
	if v.Listed != (v.Reason != "") {
		t.Errorf("Check(%s) says listed %v with the reason %q", h, v.Listed, v.Reason)
	}
}
