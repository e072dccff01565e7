package hashdir

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A list made from a directory has the machines that a check finds in it: in both places and both
// cases, with what the content says, and with an error where a check cannot tell.
func TestEntries(t *testing.T) {
	dir, s := emptyDirectory(t)
	write(t, dir, hash(1), "host-1\n")
	write(t, dir, strings.ToUpper(hash(2)[:2])+"/"+strings.ToUpper(hash(2)), `{"name": "n"}`)
	write(t, dir, strings.ToUpper(hash(0xabc)), `{"name": "m", "label": "x"}`)
	write(t, dir, hash(4), `{"name": `)
	write(t, dir, hash(5)+".txt", "")
	write(t, dir, "README.md", "")
	write(t, dir, ".mounted", "")
	link(t, "nothing", dir, hash(6))
	link(t, "nothing", dir, "ff")
	link(t, "README.md", dir, "fe")
	must(t, os.Mkdir(filepath.Join(dir, hash(7)), 0o755))
	var found []string
	warnings, others, err := Entries(t.Context(), dir, func(path string, hash sources.EKHash, attrs sources.Attributes, err error) {
		v, checkErr := s.Check(t.Context(), evidence(hash.String()))
		if (err == nil) != (checkErr == nil) || v.Listed != (err == nil) || v.Attributes.Name != attrs.Name {
			t.Errorf("%s: %v, a check says %v, %v", path, err, v, checkErr)
		}
		found = append(found, fmt.Sprintf("%s %q %v", path, attrs.Name, err != nil))
	})
	must(t, err)
	slices.Sort(found)
	want := []string{
		hash(1) + ` "" false`, strings.ToUpper(hash(0xabc)) + ` "m" false`,
		strings.ToUpper(hash(2)[:2]+"/"+hash(2)) + ` "n" false`, hash(4) + ` "" true`,
	}
	slices.Sort(want)
	if d := cmp.Diff(want, found); d != "" {
		t.Error(d)
	}
	if all := strings.Join(warnings, "\n"); len(warnings) != 5 || others != 1 || !strings.Contains(all, ".txt") ||
		!strings.Contains(all, `"label" means nothing`) {
		t.Errorf("%d others, warnings:\n%s", others, all)
	}
	if _, _, err := Entries(t.Context(), dir+".gone", nil); err == nil {
		t.Error("a directory that is not there")
	}
}
