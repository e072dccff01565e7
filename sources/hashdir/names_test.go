package hashdir

import (
	"path/filepath"
	"strings"
	"testing"
)

// FuzzPath stops a hash that walks out of the directory, or that names
// something in it which is no entry: whatever comes in, only 64 lower-case hex
// digits become names, and the two names have the one separator between them.
func FuzzPath(f *testing.F) {
	digits := strings.Repeat("0123456789abcdef", 4)
	for _, seed := range []string{
		digits,
		strings.ToUpper(digits),
		digits[1:],
		digits + "0",
		digits[:63] + "/",
		digits[:63] + "\x00",
		digits[:63] + "g",
		"../" + digits[3:],
		"..\\" + digits[3:],
		strings.Repeat("../", 21) + "a",
		strings.Repeat("/", 64),
		strings.Repeat(".", 64),
		strings.Repeat("é", 32),
		"",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, hash string) {
		names, ok := entryNames(hash)
		valid := len(hash) == 64 && strings.Trim(hash, "0123456789abcdef") == ""
		if ok != valid {
			t.Fatalf("entryNames(%q) is accepted: %v, want %v", hash, ok, valid)
		}
		if !ok {
			if names != [2]string{} {
				t.Fatalf("entryNames(%q) refuses and returns %q", hash, names)
			}
			return
		}
		if want := [2]string{hash[:2] + "/" + hash, hash}; names != want {
			t.Fatalf("entryNames(%q) = %q, want %q", hash, names, want)
		}
		upper, differs := upperNames(hash)
		if h := strings.ToUpper(hash); upper != [2]string{h[:2] + "/" + h, h} || differs != (h != hash) {
			t.Fatalf("upperNames(%q) = %q, %v", hash, upper, differs)
		}
		for _, name := range append(names[:], upper[:]...) {
			if !filepath.IsLocal(name) || filepath.Clean(name) != name {
				t.Fatalf("entryNames(%q) has %q, which is not local", hash, name)
			}
		}
	})
}
