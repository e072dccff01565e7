package sources_test

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestStandardLibraryOnly: other people's backends import this package and run its suite, and
// must not get dependencies that they do not ask for.
func TestStandardLibraryOnly(t *testing.T) {
	const self = "github.com/spire-tpm/spire-tpm-attestor/sources"
	for dir, own := range map[string][]string{
		".":          nil,
		"policy":     {self},
		"admission":  {self, self + "/policy"},
		"sourcetest": {self, self + "/policy", self + "/admission"},
	} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", dir, len(files), err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range f.Imports {
				path, _ := strconv.Unquote(spec.Path.Value)
				if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") && !slices.Contains(own, path) {
					t.Errorf("%s imports %s", file, path)
				}
			}
		}
	}
}
