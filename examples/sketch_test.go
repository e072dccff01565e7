package examples_test

import (
	"encoding/json"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The source in CONTRIBUTING compiles against the interfaces as they are, and
// passes the conformance suite: whoever begins with it begins with what works. With its
// entry in the table of kinds, everything that is tested of configurations holds.
func TestSketchIsASource(t *testing.T) {
	if testing.Short() {
		t.Skip("what it runs is another process, in which the race detector is not")
	}
	var sketch []string
	for _, b := range pageOf(t, "CONTRIBUTING.md").blocks {
		if b.lang() == "go" {
			sketch = append(sketch, b.text)
		}
	}
	for _, text := range sketch {
		if formatted, err := format.Source([]byte(text)); err != nil || string(formatted) != text {
			t.Errorf("not as gofmt writes it, or no Go: %v\n%s", err, formatted)
		}
	}
	if len(sketch) != 3 {
		t.Fatalf("CONTRIBUTING.md has %d blocks of Go, want a source, its test and its entry", len(sketch))
	}
	overlay := newOverlay(t)
	overlay.add("sources/textfile/textfile.go", sketch[0])
	overlay.add("sources/textfile/textfile_test.go", sketch[1])
	const table, imported = "return []kind{", "import (\n"
	kinds := read(t, "server/config/kinds.go")
	if !strings.Contains(kinds, table) {
		t.Fatalf("kinds.go has no %q", table)
	}
	kinds = strings.Replace(kinds, table, table+"textFile(), ", 1)
	kinds = strings.Replace(kinds, imported, imported+`"github.com/spire-tpm/spire-tpm-attestor/sources/textfile"`+"\n", 1)
	overlay.add("server/config/kinds.go", kinds+sketch[2])
	overlay.test("sources/textfile")
	overlay.test("server/config")
}

// overlay puts files where a contributor would put them, and leaves the tree alone.
type overlay struct {
	t       *testing.T
	dir     string
	replace map[string]string
}

func newOverlay(t *testing.T) *overlay {
	t.Helper()
	return &overlay{t: t, dir: t.TempDir(), replace: map[string]string{}}
}

// add puts a text at a path in the repository.
func (o *overlay) add(path, text string) {
	o.t.Helper()
	target, err := filepath.Abs(filepath.Join(root, path))
	must(o.t, err)
	file := filepath.Join(o.dir, strings.ReplaceAll(path, "/", "_"))
	must(o.t, os.WriteFile(file, []byte(text), 0o600))
	o.replace[target] = file
}

// test runs the tests of a package.
func (o *overlay) test(pkg string) {
	o.t.Helper()
	list, err := json.Marshal(map[string]any{"Replace": o.replace})
	must(o.t, err)
	file, binary := filepath.Join(o.dir, "overlay.json"), filepath.Join(o.dir, "test")
	must(o.t, os.WriteFile(file, list, 0o600))
	build := exec.CommandContext(o.t.Context(), "go", "test", "-c", "-vet=off", "-o", binary, "-overlay", file, "./"+pkg)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		o.t.Fatalf("%s: %v\n%s", pkg, err, out)
	}
	run := exec.CommandContext(o.t.Context(), binary)
	run.Dir = o.dir
	if out, err := run.CombinedOutput(); err != nil {
		o.t.Errorf("%s: %v\n%s", pkg, err, out)
	}
}
