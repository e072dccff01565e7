package truststore

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// A folder that is not one of CAs, a spool for example, may not fill the memory:
// no more names of it are read than there may be.
func TestReadNamesLimit(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := readNames(dir, 3); err != nil || !slices.Equal(names, []string{"0", "1", "2"}) {
		t.Errorf("3 of 3: %q, %v", names, err)
	}
	if names, err := readNames(dir, 2); err == nil {
		t.Errorf("3 of 2: %q", names)
	}
}

// Each difference between two looks must be noticed, since otherwise the change is not loaded: a CA
// that was withdrawn would still be trusted.
func TestFileSetSame(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	see := func() fileSet {
		seen, err := look(t.Context(), []location{{bundle: "b", path: dir}})
		must(err)
		return seen
	}
	path := filepath.Join(dir, "a")
	write("a", "1")
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"more", func() { write("b", "") }},
		{"longer", func() { write("a", "123") }},
		{"another file", func() { write("c", "1"); must(os.Rename(filepath.Join(dir, "c"), path)) }},
		{"a link away", func() { must(os.Symlink("nowhere", filepath.Join(dir, "d"))) }},
		{"it leads back", func() { write("nowhere", "") }},
		{"mode", func() { must(os.Chmod(path, 0o400)) }},
		{"gone", func() { must(os.Remove(filepath.Join(dir, "nowhere"))) }},
	} {
		before := see()
		if !before.same(see()) {
			t.Fatalf("%s: two looks at the same differ", c.name)
		}
		if c.change(); before.same(see()) {
			t.Errorf("%s: not seen", c.name)
		}
	}
	info, err := os.Stat(path)
	must(err)
	before := see()
	must(os.Chtimes(path, info.ModTime(), info.ModTime().Add(1)))
	if before.same(see()) {
		t.Error("another time: not seen")
	}
}
