package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
)

const (
	quoted = `quote { pcrs = [0, 4, 7] event_log = "optional" }` + "\n"
	golden = `source "boot_policy" "golden" { path = "/etc/tpm/boot.json" }` + "\n"
	site   = `source "boot_policy" "golden" { url = "https://x/boot.json"`
)

// A key that is set reaches the source, and so does what machines are asked for. A key that is not
// set has the default that the documentation names.
func TestBootPolicy(t *testing.T) {
	asked := &bootprofiles.Quote{Bank: "sha256", PCRs: []int{0, 4, 7}, EventLog: true}
	file := bootpolicy.Config{Path: "/etc/tpm/boot.json", Quote: asked, ListConfig: web.ListConfig{
		PollInterval: 30 * time.Second, MaxStaleness: 24 * time.Hour, MaxBytes: 4 << 20,
	}}
	server := bootpolicy.Config{Quote: asked, ListConfig: web.ListConfig{
		URL: "https://x/boot.json", CAPath: "/ca", ClientCertPath: "/cert", ClientKeyPath: "/key",
		BearerTokenPath: "/token", Timeout: time.Second, PollInterval: time.Minute, MaxStaleness: time.Hour,
		MaxBytes: 1000, CachePath: "/cache/x.db", SignatureURL: "https://x/boot.sig", PublicKeyPath: "/pub", ListID: "fleet",
	}}
	plain, off := server, file
	plain.ListConfig = web.ListConfig{
		URL: "https://x/boot.json", Timeout: 10 * time.Second, PollInterval: 30 * time.Second,
		MaxStaleness: 24 * time.Hour, MaxBytes: 4 << 20,
	}
	off.Quote = &bootprofiles.Quote{Bank: "sha384", PCRs: []int{7}}
	for text, want := range map[string]bootpolicy.Config{
		quoted + golden:      file,
		quoted + site + ` }`: plain,
		quoted + site + ` ca_path = "/ca" client_cert_path = "/cert" client_key_path = "/key"
			bearer_token_path = "/token" timeout = "1s" poll_interval = "1m" max_staleness = "1h" max_bytes = 1000
			cache_path = "/cache/x.db" signature_url = "https://x/boot.sig" public_key_path = "/pub" list_id = "fleet" }`: server,
		`quote { pcrs = [7] bank = "sha384" }` + golden: off,
		`{"quote": {"pcrs": [7, 4, 0], "event_log": "required"}, "source": {"boot_policy": {"golden": {"path": "/etc/tpm/boot.json"}}}}`: file,
	} {
		c := mustParse(t, text)
		if d := cmp.Diff(want, c.Members[0].Config); d != "" || c.Members[0].Kind != "boot_policy" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
	// Another quote block makes another source, since it refuses other files.
	a, b := mustParse(t, quoted+golden), mustParse(t, `quote { pcrs = [0, 4, 7] }`+golden)
	if reflect.DeepEqual(a.Members[0].Config, b.Members[0].Config) {
		t.Error("another quote block is taken for the same source")
	}
	if c := mustParse(t, quoted+golden); !reflect.DeepEqual(a.Members[0].Config, c.Members[0].Config) {
		t.Error("the same configuration is taken for another source")
	}
}

// Profiles that nobody can meet, that anybody can, or that are read from anywhere else than
// somebody meant, are refused by the key that is to be mended.
func TestBootPolicyProblems(t *testing.T) {
	const at = `source "boot_policy" "golden": `
	denies := quoted + golden + factory + `allow "a" { all = ["factory"] } `
	const cannot = `names golden, a boot_policy, which cannot deny: a machine that withholds its quote would not be listed by it`
	inJSONForm := func(deny string) string {
		return `{"source": {"hash_dir": {"factory": {"path": "/x"}}, "boot_policy": {"golden": {"path": "/etc/tpm/boot.json"}}},
			"quote": {"pcrs": [7]}, "allow": {"a": {"any": ["factory"]}}, "deny": ` + deny + `}`
	}
	for _, tt := range []struct{ text, want string }{
		{inJSONForm(`{"d": {"any": ["golden"]}}`), `deny "d": ` + cannot},
		{inJSONForm(`[{"d": [{"any": ["golden"]}]}]`), `deny "d": ` + cannot},
		{throughSPIRE(t, inJSON(inJSONForm(`{"d": {"all": ["golden"], "enforce": false}}`))), `deny "d": ` + cannot},
		{throughSPIRE(t, inJSONLists(inJSONForm(`[{"d": {"all": ["factory", "golden"]}}]`))), `deny "d": ` + cannot},
		{golden, at + `quote is missing: machines are not asked for their PCRs, so none could meet a profile; write a block such as quote { pcrs = [0, 2, 4, 7] } beside the sources`},
		{quoted + `source "boot_policy" "golden" {}`, at + `path: write either path = "/etc/tpm/boot.json" or url = "https://allowlist.example.org/boot.json"`},
		{quoted + site + ` path = "/x" }`, at + `path: write either path = `},
		{quoted + `source "boot_policy" "golden" { path = "/x" timeout = "10s" }`, at + `timeout: cannot be combined with path, since it is about a web server: remove it, or write url instead`},
		{quoted + `source "boot_policy" "golden" { path = "/x" cache_path = "/y/z" }`, at + `cache_path: cannot be combined with path`},
		{quoted + `source "boot_policy" "golden" { path = "/x" public_key_path = "/y" }`, at + `public_key_path: cannot be combined with path`},
		{quoted + `source "boot_policy" "golden" { path = 5 }`, at + `path: is the number 5, but must be a string`},
		{quoted + site + ` max_bytes = 4194305 }`, at + `max_bytes: is the number 4194305, but must be a whole number from 1 to 4194304`},
		{quoted + site + ` timeout = "1m" }`, at + `timeout: is the string "1m", but must be from 100ms to 25s`},
		{quoted + site + ` list_id = "x" }`, at + `signature_url: is missing: a signed list needs all three`},
		{quoted + site + ` auth = "spiffe" }`, at + `server_id: is missing: write server_id = "spiffe://example.org/allowlist"`},
		{quoted + site + ` auth = "spiffe" server_id = "spiffe://example.com/x" }`, at + `server_id: is in the trust domain "example.com"`},
		{quoted + `source "boot_policy" "golden" { url = "http://x/" }`, at + `url: is not https://<host>/<path>`},
		{quoted + `source "boot_policy" "golden" { paht = "/x" }`, at + `paht: unknown key; did you mean path?`},
		{quoted + `source "bootpolicy" "golden" { path = "/x" }`, `source "bootpolicy": unknown kind; did you mean boot_policy?`},
		{denies + `deny "d" { any = ["golden"] }`, `deny "d": ` + cannot},
		{denies + `deny "d" { all = ["factory", "golden"] }`, `deny "d": ` + cannot},
		{denies + `deny "d" { any = ["golden"] enforce = false }`, `deny "d": ` + cannot},
		{`quote { pcrs = [24] }` + golden, `quote: pcrs: contains the number 24, but must be a list of whole numbers from 0 to 23`},
	} {
		_, err := config.Parse(tt.text, trustDomain)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
	// A quote block with a mistake is there all the same.
	if _, err := config.Parse(`quote = 5 `+golden, trustDomain); err == nil || strings.Contains(err.Error(), "quote is missing") {
		t.Errorf("%v", err)
	}
}

// A boot is no identity: an operator who lets it admit alone lets anybody in who can read the
// profiles, or boot what everybody boots.
func TestBootPolicyWarnings(t *testing.T) {
	const (
		boot    = "this rule admits by the boot alone: anybody with a TPM in software can have it quote any PCR values"
		vendor  = "this rule admits by the CAs of TPM vendors alone"
		either  = "this rule admits by the CAs of TPM vendors and the boot alone"
		sources = quoted + golden + factory + vendors
	)
	for _, tt := range []struct {
		rule string
		want string // empty if there is no such warning
	}{
		{`any = ["golden"]`, boot},
		{`any = ["golden", "factory"]`, boot},
		{`all = ["golden"] any = ["golden", "factory"]`, boot},
		{`all = ["golden", "vendors"]`, either},
		{`all = ["golden"] any = ["vendors", "factory"]`, either},
		{`all = ["golden", "factory"]`, ""},
		{`all = ["golden"] any = ["factory"]`, ""},
		{`all = ["golden", "factory", "vendors"]`, ""},
		{`any = ["vendors"] all = ["factory"]`, ""},
		{`any = ["vendors"]`, vendor},
		{`any = ["golden"] enforce = false`, ""},
	} {
		rest := `allow "rest" { all = ["golden", "factory", "vendors"] } `
		c := mustParse(t, sources+rest+`allow "a" { `+tt.rule+` }`)
		var got []string
		for _, w := range c.Warnings {
			if strings.HasPrefix(w, `allow "a": `) {
				got = append(got, w)
			}
		}
		switch {
		case tt.want == "" && len(got) > 0:
			t.Errorf("%s: %q", tt.rule, got)
		case tt.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], `allow "a": `+tt.want)):
			t.Errorf("%s: %q, want %q", tt.rule, got, tt.want)
		}
	}
	warned := func(w string) bool { return strings.HasPrefix(w, "rule default: "+boot) }
	if c := mustParse(t, quoted+golden); !slices.ContainsFunc(c.Warnings, warned) {
		t.Errorf("a boot_policy alone: %q", c.Warnings)
	}
}

// A path that is mistyped is found before the server runs with it.
func TestBootPolicyFiles(t *testing.T) {
	dir := t.TempDir()
	l := config.NewLoader()
	load := func(path string) error {
		_, err := l.Load(t.Context(), quoted+`source "boot_policy" "golden" { path = "`+path+`" }`, trustDomain)
		return err
	}
	if err := load(filepath.Join(dir, "boot.json")); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("%v", err)
	}
	if err := load(dir); err == nil || !strings.Contains(err.Error(), "is a folder: name a file in it") {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "boot.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := load(filepath.Join(dir, "boot.json")); err != nil { // what is in it is read later
		t.Errorf("%v", err)
	}
}
