package hashdir

import (
	"context"
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A name in upper case is an entry, as in every list: under a deny rule it used to clear a
// stolen machine silently.
func TestUpperCaseEntries(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Path: dir})
	upper := strings.ToUpper
	write(t, dir, upper(hash(1)), "")
	write(t, dir, filepath.Join(upper(hash(2)[:2]), upper(hash(2))), `{"name": "two"}`)
	expect(t, s, hash(1), listed)
	expect(t, s, hash(2), answer{listed: true, attrs: sources.Attributes{Name: "two"}})
	expect(t, s, hash(3), notListed)
	// A name with letters of both cases is no entry, which TestNamesThatAreNoEntries checks
	// is said.
	write(t, dir, upper(hash(4)[:32])+hash(4)[32:], "")
	expect(t, s, hash(4), notListed)
	// If both are there, the lower case wins, whatever the other says.
	write(t, dir, upper(hash(5)), "{")
	write(t, dir, hash(5), `{"name": "five"}`)
	expect(t, s, hash(5), answer{listed: true, attrs: sources.Attributes{Name: "five"}})
	if err := checkMarker(upper(hash(1))); err == nil {
		t.Error("a marker that would be an entry")
	}
}

// scanned returns the warnings of a scan.
func scanned(t *testing.T, s *Source) string {
	t.Helper()
	s.scan(t.Context())
	return strings.Join(s.Status().Warnings, "\n")
}

// A name that looks like an entry but is not one clears a stolen machine under a deny rule, and
// refuses a machine under an allow rule, and nothing shows that at the attestation. The directory
// is listed periodically to warn of each such name. Entries, and names that do not look like a
// hash, cause no warning.
func TestNamesThatAreNoEntries(t *testing.T) {
	h, dir := hash(1), t.TempDir()
	mixed := strings.ToUpper(h[:32]) + h[32:]
	cases := map[string]string{
		h + ".txt":                       "is not named by 64 hex digits",
		h + " ":                          "has a blank or a line end in its name",
		h + "\r":                         "has a blank or a line end in its name",
		h[:63]:                           "is not named by 64 hex digits",
		h + "0":                          "is not named by 64 hex digits",
		"sha256:" + h:                    "is not named by 64 hex digits",
		strings.Join(pairs(h), ":"):      "is not named by 64 hex digits",
		mixed:                            "has letters of both cases",
		h[:2] + "/" + h[2:]:              "lacks the two digits of its folder",
		"00/" + h:                        "is in the folder of other hashes",
		strings.ToUpper(h[:2]) + "/" + h: "is in the folder of other hashes",
		h[:2] + "/" + h + ".json":        "is not named by 64 hex digits",
		h[:2] + "/" + h[2:4] + "/" + h:   "is a folder in a folder",
	}
	for name := range cases {
		write(t, dir, name, "")
	}
	write(t, dir, hash(2)+"/README", "") // a folder with the name of an entry
	link(t, "nowhere", dir, hash(3))
	write(t, dir, hash(4), "{")
	write(t, dir, hash(5), `{"label": ["a"], "revoked": true, "owner": "x"}`)
	maps.Copy(cases, map[string]string{
		hash(2): "is no entry: it is not a regular file", hash(3): "is no entry: it is not a regular file",
		hash(4): "cannot be used: content", hash(5): `is it meant to be "labels"?`,
	})
	s := open(t, Config{Path: dir, Marker: "mounted"})
	for _, name := range []string{
		"mounted", "README.md", ".git/" + h + ".txt", "..data/" + h + ".x", "Makefile", hash(6), "ab/README",
		strings.ToUpper(hash(7)), "list.json", base64.StdEncoding.EncodeToString([]byte("a short name")),
	} {
		write(t, dir, name, "")
	}
	got := scanned(t, s)
	for name, want := range cases {
		name := strings.Trim(name, "\r")
		found := false
		for line := range strings.SplitSeq(got, "\n") {
			found = found || strings.Contains(line, strings.TrimSuffix(name, "/"+h)) && strings.Contains(line, want)
		}
		if !found {
			t.Errorf("%q: not said that it %s", name, want)
		}
	}
	if !strings.Contains(got, `"revoked" means nothing, and the TPM is listed all the same`) {
		t.Error("a revoked entry is not warned of")
	}
	if n := strings.Count(got, "\n") + 1; n != len(cases)+1 {
		t.Errorf("%d warnings, want %d:\n%s", n, len(cases)+1, got)
	}
	must(t, os.RemoveAll(dir))
	must(t, os.Mkdir(dir, 0o755))
	write(t, dir, hash(1), "")
	if got := scanned(t, s); got != "" {
		t.Errorf("nothing is wrong any more, and the warnings are %s", got)
	}
}

func pairs(s string) (all []string) {
	for ; len(s) > 1; s = s[2:] {
		all = append(all, s[:2])
	}
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Two machines with one name would have one selector and, if the ID is made from the name, one
// SPIFFE ID. Lists with such names are refused. In a directory a scan finds them, and the
// source cannot tell about either machine until one of them has another name.
func TestNameOfTwoEntries(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Path: dir})
	write(t, dir, hash(1), `{"name": "a"}`)
	write(t, dir, filepath.Join(hash(2)[:2], hash(2)), `{"name": "a "}`)
	write(t, dir, hash(3), `{"name": "b"}`)
	write(t, dir, filepath.Join(hash(3)[:2], hash(3)), `{"name": "b"}`) // the same machine in both forms
	if got := scanned(t, s); strings.Count(got, "\n") != 0 || !strings.Contains(got, `the name "a" is given by several entries`) {
		t.Errorf("warnings %s", got)
	}
	both := answer{text: `gives the name "a", which`}
	expect(t, s, hash(1), both)
	expect(t, s, hash(2), both)
	expect(t, s, hash(3), answer{listed: true, attrs: sources.Attributes{Name: "b"}})
	write(t, dir, hash(1), `{"name": "c"}`) // counts at once, before the next scan
	expect(t, s, hash(1), answer{listed: true, attrs: sources.Attributes{Name: "c"}})
	expect(t, s, hash(2), answer{listed: true, attrs: sources.Attributes{Name: "a"}})
	write(t, dir, hash(1), `{"name": "a"}`)
	must(t, os.Remove(filepath.Join(dir, hash(2)[:2], hash(2))))
	expect(t, s, hash(1), answer{listed: true, attrs: sources.Attributes{Name: "a"}})
}

// A directory with endless doubtful names causes only as many warnings as a log can take, and a
// scan that runs out of time says that it has not seen everything.
func TestScanIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Path: dir})
	for i := range maxScanWarnings + 50 {
		write(t, dir, hash(i)+".txt", "")
	}
	s.scan(t.Context())
	if w := s.Status().Warnings; len(w) != maxScanWarnings+1 || w[maxScanWarnings] != "50 more names like these" {
		t.Errorf("%d warnings, the last is %q", len(w), w[len(w)-1])
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	found, err := s.scanNow(over)
	if err != nil || len(found.warnings) != 1 || !strings.Contains(found.warnings[0], "not all of its names were checked") {
		t.Errorf("%+v, %v", found, err)
	}
}
