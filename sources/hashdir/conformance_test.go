package hashdir_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// TestConformance runs the conformance suite for each form of an entry and each way to lose a
// directory.
func TestConformance(t *testing.T) {
	flat := func(hash string) string { return hash }
	sharded := func(hash string) string { return filepath.Join(hash[:2], hash) }
	for _, test := range []struct {
		name   string
		entry  func(hash string) string
		marker string
		lost   string // the name in the directory that is moved away to break it
		empty  bool   // entries say nothing, so that they may be at hand
	}{
		{name: "flat", entry: flat, lost: "."},
		{name: "sharded", entry: sharded, lost: "."},
		{name: "marked", entry: flat, marker: ".mounted", lost: ".mounted"},
		{name: "empty", entry: flat, lost: ".", empty: true},
		{name: "empty and marked", entry: sharded, marker: ".mounted", lost: ".mounted", empty: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			sourcetest.Run(t, sourcetest.Harness{
				Attributes: !test.empty,
				New: func(tb testing.TB) sourcetest.Backend {
					dir := filepath.Join(tb.TempDir(), "hashes")
					must(tb, os.Mkdir(dir, 0o755))
					if test.marker != "" {
						must(tb, os.WriteFile(filepath.Join(dir, test.marker), nil, 0o644))
					}
					return backend(tb, hashdir.Config{Path: dir, Marker: test.marker}, test.entry, test.lost)
				},
			})
		})
	}
}

func backend(tb testing.TB, cfg hashdir.Config, entry func(string) string, lost string) sourcetest.Backend {
	file := func(ev *sources.Evidence) string { return filepath.Join(cfg.Path, entry(ev.EKHash.String())) }
	lost = filepath.Join(cfg.Path, lost)
	return sourcetest.Backend{
		Open: func() sources.Source {
			s, err := hashdir.New(cfg)
			must(tb, err)
			return s
		},
		List: func(ev *sources.Evidence, a sources.Attributes) {
			var content []byte
			if a.Name != "" {
				var err error
				content, err = json.Marshal(map[string]any{"name": a.Name, "labels": a.Labels})
				must(tb, err)
			}
			must(tb, os.MkdirAll(filepath.Dir(file(ev)), 0o755))
			must(tb, os.WriteFile(file(ev), content, 0o644))
		},
		Unlist:  func(ev *sources.Evidence) { must(tb, os.Remove(file(ev))) },
		Break:   func() { must(tb, os.Rename(lost, lost+".away")) },
		Mend:    func() { must(tb, os.Rename(lost+".away", lost)) },
		Content: func() any { return sourcetest.Tree(cfg.Path) },
	}
}
