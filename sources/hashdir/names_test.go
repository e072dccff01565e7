package hashdir

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// TestEntryNames: the names of an entry consist of hex digits and the separator after the
// shard, so that no hash leads out of the directory.
func TestEntryNames(t *testing.T) {
	for _, h := range []sources.EKHash{{}, evidence(hash(1)).EKHash, sources.EKHash([]byte("../../../../../../../etc/passwd\x00"))} {
		names, digits := entryNames(h), h.String()
		if want := [2]string{digits[:2] + "/" + digits, digits}; names != want {
			t.Errorf("entryNames(%s) = %q, want %q", h, names, want)
		}
		upper, differs := upperNames(digits)
		if h := strings.ToUpper(digits); upper != [2]string{h[:2] + "/" + h, h} || differs != (h != digits) {
			t.Errorf("upperNames(%s) = %q, %v", digits, upper, differs)
		}
		for _, name := range append(names[:], upper[:]...) {
			if !filepath.IsLocal(name) || filepath.Clean(name) != name {
				t.Errorf("entryNames(%s) has %q, which is not local", h, name)
			}
		}
	}
}
