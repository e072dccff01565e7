package hashfile

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// The contract of every source, in both forms of a list, over the ways in which a
// file is replaced and those in which it is lost.
func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name    string
		form    func(entries map[sources.EKHash]sources.Attributes) string
		replace func(tb testing.TB, path, content string)
		lost    string // what is moved away to break it

		mayBeEmpty bool
	}{
		{"text that is renamed over", textOf, replace, "list", true},
		{"JSON that is renamed over", jsonOf, replace, "list", false},
		{"JSON that is written in place", jsonOf, write, ".", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			sourcetest.Run(t, sourcetest.Harness{Attributes: true, Watches: true, New: func(tb testing.TB) sourcetest.Backend {
				dir := filepath.Join(tb.TempDir(), "lists")
				must(tb, os.Mkdir(dir, 0o700))
				path, lost := filepath.Join(dir, "list"), filepath.Join(dir, test.lost)
				entries := map[sources.EKHash]sources.Attributes{}
				set := func() { test.replace(tb, path, test.form(entries)) }
				set()
				return sourcetest.Backend{
					Open: func() sources.Source {
						// Only a text needs leave to be empty, and only a
						// writer in place may be seen to have truncated it.
						return open(tb, Config{Path: path, AllowEmpty: test.mayBeEmpty, PollInterval: time.Minute})
					},
					List: func(ev *sources.Evidence, a sources.Attributes) {
						entries[ev.EKHash] = a
						set()
					},
					Unlist: func(ev *sources.Evidence) {
						delete(entries, ev.EKHash)
						set()
					},
					Break:   func() { must(tb, os.Rename(lost, lost+".away")) },
					Mend:    func() { must(tb, os.Rename(lost+".away", lost)) },
					Content: func() any { return sourcetest.Tree(dir) },
				}
			}})
		})
	}
}

// What a Set asks of a list that is polled.
var (
	_ sources.Loader   = (*Source)(nil)
	_ sources.Watcher  = (*Source)(nil)
	_ sources.Reporter = (*Source)(nil)
)

func textOf(entries map[sources.EKHash]sources.Attributes) string {
	var b strings.Builder
	b.WriteString("# machines\n")
	for hash, a := range entries {
		name := a.Name
		if name == "" {
			name = "-"
		}
		b.WriteString(strings.Join(append([]string{hash.String(), name}, a.Labels...), " ") + "\n")
	}
	return b.String()
}

func jsonOf(entries map[sources.EKHash]sources.Attributes) string {
	type entry struct {
		Hash   sources.EKHash `json:"hash"`
		Name   string         `json:"name,omitempty"`
		Labels []string       `json:"labels,omitempty"`
	}
	keys := []entry{}
	for hash, a := range entries {
		keys = append(keys, entry{hash, a.Name, a.Labels})
	}
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		panic(err)
	}
	return string(b)
}
