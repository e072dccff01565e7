package config_test

import (
	"slices"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// A tool that looks at what a configuration names must know all of it: a path that is left out would
// be called readable although the server cannot read it.
func TestPaths(t *testing.T) {
	t.Parallel()
	c := mustParse(t, `
		source "http" "inventory" {
			url = "https://allowlist.example.org/tpm.json"
			bearer_token_path = "/etc/token"
			cache_path = "/var/cache.db"
		}
		source "ek_ca" "vendors" { bundles = { stm = "/etc/stm" } }
		source "hash_dir" "machines" { path = "/srv/hashes" }
		allow "a" { all = ["inventory", "vendors", "machines"] }`)
	want := []config.Path{
		{"inventory", `source "http" "inventory": bearer_token_path`, "/etc/token", false, true, true, false},
		{"inventory", `source "http" "inventory": cache_path`, "/var/cache.db", false, true, false, true},
		{"machines", `source "hash_dir" "machines": path`, "/srv/hashes", true, false, false, false},
		{"vendors", `source "ek_ca" "vendors": bundles: stm`, "/etc/stm", false, false, false, false},
	}
	if got := c.Paths(); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if got := c.Place("vendors"); got != `source "ek_ca" "vendors"` {
		t.Errorf("the source is at %q", got)
	}
	old := mustParse(t, `hash_path = "/srv/hashes"`)
	if got := old.Place("hash_path"); got != "hash_path" || old.Paths()[0].At != got {
		t.Errorf("the source is at %q, its path at %+v", got, old.Paths())
	}
}

// Warnings have their place apart, for those who show it apart.
func TestWarned(t *testing.T) {
	t.Parallel()
	c := mustParse(t, `source "ek_ca" "vendors" { ca_path = "/etc/cas" }`)
	if len(c.Warnings) != 1 || len(c.Warned()) != 1 || c.Warned()[0].String() != c.Warnings[0] ||
		c.Warned()[0].Path != "rule default" || c.Warned()[0].Unsure {
		t.Errorf("%q, %+v", c.Warnings, c.Warned())
	}
}
