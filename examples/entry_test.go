package examples_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// Entries of a hash_dir, as the documentation shows them, give a machine the
// name and the labels that they show.
func TestEntriesAreRead(t *testing.T) {
	tried := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang() != "json" || !strings.HasPrefix(b.text, `{"name"`) {
				continue
			}
			tried++
			dir, ev := t.TempDir(), sourcetest.NewEvidence(t)
			if err := os.WriteFile(filepath.Join(dir, ev.EKHash.String()), []byte(b.text), 0o600); err != nil {
				t.Fatal(err)
			}
			source, err := hashdir.New(hashdir.Config{Path: dir})
			if err != nil {
				t.Fatal(err)
			}
			v, err := source.Check(t.Context(), ev)
			if err != nil || !v.Listed || v.Attributes.Name == "" || len(v.Attributes.Labels) == 0 {
				t.Errorf("%s:%d: %+v, %v", b.file, b.line, v, err)
			}
		}
	}
	if tried == 0 {
		t.Error("no entry was found in the documentation")
	}
}
