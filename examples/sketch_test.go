package examples_test

import (
	"encoding/json"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The source in CONTRIBUTING compiles against the interfaces as they are, and
// passes the conformance suite: whoever begins with it begins with what works.
func TestSketchIsASource(t *testing.T) {
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
	if len(sketch) != 2 {
		t.Fatalf("CONTRIBUTING.md has %d blocks of Go, want a source and its test", len(sketch))
	}
	// The overlay puts the package where a contributor would, and leaves the
	// tree alone.
	dir := t.TempDir()
	folder, err := filepath.Abs(filepath.Join(root, "sources", "textfile"))
	if err != nil {
		t.Fatal(err)
	}
	replace := map[string]string{}
	for name, text := range map[string]string{"textfile.go": sketch[0], "textfile_test.go": sketch[1]} {
		replace[filepath.Join(folder, name)] = filepath.Join(dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "textfile.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-o", binary,
		"-overlay", overlayFile, "./sources/textfile")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := exec.CommandContext(t.Context(), binary)
	run.Dir = dir
	if out, err := run.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
