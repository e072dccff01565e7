package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// twoCaches is a configuration of two sources with caches at some paths.
func twoCaches(first, second string) string {
	return `source "http" "a" { url = "https://x/" cache_path = "` + first + `" }
		source "ek_ca" "b" { ca_path = "/" aia_hosts = ["x"] cache_path = "` + second + `" }
		allow "all" { all = ["a", "b"] }`
}

// Two sources whose caches meet would take each other's files: one would be written
// over, or both would count as none at each start. They meet as one file, as one beside
// the other, through a link, and in a folder that has two names.
func TestCachesThatMeet(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Mkdir(at("folder"), 0o700),
		os.Symlink("folder", at("other")),
		os.WriteFile(at("there"), nil, 0o600),
		os.Symlink("there", at("link")),
		os.Link(at("there"), at("hard")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const beside, same, one = "meets the cache of", "leads to the same file as", "is also the cache of"
	for _, test := range []struct{ first, second, want string }{
		{"c", "c", one},
		{"c", "folder/../c", one},
		{"c", "c.new", beside},
		{"c.lock", "c", beside},
		{"there", "link", same},
		{"there", "hard", same},
		{"folder/c", "other/c", same},
		{"folder/c", "other/c.new", same},
		{"c", "d", ""},
		{"c.new", "c.lock", ""},
		{"folder/c", "other/d", ""},
		{"folder/c", "c", ""},
	} {
		_, err := config.NewLoader().Load(t.Context(), twoCaches(at(test.first), at(test.second)), trustDomain)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s and %s: %v", test.first, test.second, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), "cache_path: "+test.want) ||
			strings.Count(err.Error(), "cache_path") != strings.Count(test.want, "leads")+1):
			t.Errorf("%s and %s: %v, want %q", test.first, test.second, err, test.want)
		}
	}
}

// A cache that others may write to counts as none, which a person learns before the
// server runs with it.
func TestCacheThatOthersMayWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o644: false, 0o620: true, 0o666: true} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		c, err := config.NewLoader().Load(t.Context(), twoCaches(path, path+"2"), trustDomain)
		if err != nil {
			t.Fatal(err)
		}
		want := `source "http" "a": cache_path: "` + path + `" may be written by other users`
		if got := strings.Contains(strings.Join(c.Warnings, "\n"), want); got != warned {
			t.Errorf("%v: %q", mode, c.Warnings)
		}
	}
}
