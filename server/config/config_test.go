package config_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

const (
	factory = `source "hash_dir" "factory" { path = "/srv/tpm/hashes" }` + "\n"
	vendors = `source "ek_ca" "vendors" { ca_path = "/etc/tpm/cas" }` + "\n"
	both    = factory + vendors
	bundles = `source "ek_ca" "vendors" { bundles = { stm = "/etc/tpm/stm.pem" } }` + "\n"
)

// A key that is not set must have the default that the documentation names.
func TestDefaults(t *testing.T) {
	c := mustParse(t, factory)
	if !c.Reattest || c.AllowWeakEK || c.CheckTimeout != 5*time.Second ||
		c.AgentPath.String() != "/tpm/{{ .PubHash }}" || c.TrustDomain.Name() != trustDomain || len(c.Warnings) != 0 {
		t.Errorf("defaults: %+v", c)
	}
	want := policy.Policy{Allow: []policy.Rule{{Name: "default", Any: []string{"factory"}}}}
	if d := cmp.Diff(want, c.Policy); d != "" {
		t.Errorf("policy (-want +got):\n%s", d)
	}
}

// A site that comes from the incumbent keeps its configuration, and trusts
// nothing that it does not name.
func TestIncumbentKeys(t *testing.T) {
	for _, tt := range []struct {
		text    string
		members []string
	}{
		{`hash_path = "/opt/hashes"`, []string{"hash_dir hash_path"}},
		{`ca_path = "/opt/certs"`, []string{"ek_ca ca_path"}},
		{
			`hash_path = "/opt/hashes"` + "\n" + `ca_path = "/opt/certs"`,
			[]string{"ek_ca ca_path", "hash_dir hash_path"},
		},
		{`{"hash_path": "/opt/hashes", "source": {}, "allow": []}`, []string{"hash_dir hash_path"}},
		// What a template of configurations writes for what is not set.
		{`{"hash_path": "", "ca_path": "/opt/certs"}`, []string{"ek_ca ca_path"}},
		{`hash_path = "/opt/hashes"` + "\n" + `ca_path = ""`, []string{"hash_dir hash_path"}},
		{factory + `"ca_path" = ""`, []string{"hash_dir factory"}},
	} {
		c := mustParse(t, tt.text)
		var members, names []string
		for _, m := range c.Members {
			members, names = append(members, m.Kind+" "+m.Name), append(names, m.Name)
		}
		if !slices.Equal(members, tt.members) {
			t.Errorf("%s: members %v, want %v", tt.text, members, tt.members)
		}
		want := policy.Policy{Allow: []policy.Rule{{Name: "default", Any: names}}}
		if d := cmp.Diff(want, c.Policy); d != "" {
			t.Errorf("%s: policy (-want +got):\n%s", tt.text, d)
		}
	}
}

// Every mistake is refused, by its path in the configuration. Each line here is
// a configuration that must not be guessed at: a guess widens trust, or loses a
// deny rule.
func TestProblems(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		// Nothing to decide by.
		{``, `source: no source is configured: write source "hash_dir" "machines" { path = "/srv/tpm/hashes" }`},
		{`reattest = true`, `source: no source is configured`},
		{`source = {}`, `source: no source is configured`},

		// Syntax.
		{`source "hash_dir" {`, `the configuration is not valid HCL: `},
		{factory + `agent_path_template =`, `a value is missing at the end`},
		{`{"hash_path": "/x"`, `the configuration is not valid JSON: `},
		{`{"hash_path": "/x"} x`, `the configuration is not valid JSON: `},
		{`{"hash_path": "/x", "hash_path": "/y"}`, `the configuration is not valid JSON: `},
		{`hash_path = "/x\q"`, `the configuration is not valid HCL: `},
		{`hash_path = ${x}`, `the configuration is not valid HCL: `},
		{strings.Repeat(`a {`, 20) + strings.Repeat(`}`, 20), `more than 16 levels`},
		{strings.Repeat(`{"a":`, 20) + `1` + strings.Repeat(`}`, 20), `more than 16 levels`},
		{"# " + strings.Repeat("x", 1<<20), `at most 1048576 are allowed`},

		// Keys and kinds.
		{factory + `reatest = false`, `reatest: unknown key; did you mean reattest?`},
		{factory + `"reatest" = false`, `reatest: unknown key; did you mean reattest?`},
		{factory + `quux = false`, `quux: unknown key; choose from agent_path_template, allow, `},
		{`source "ldap" "inventory" { url = "https://x" }`, `source "ldap": unknown kind; choose from `},
		{`source "hashdir" "x" { path = "/x" }`, `source "hashdir": unknown kind; did you mean hash_dir?`},
		{
			`source "hash_dir" "x" { path = "/x" pth = "/y" }`,
			`source "hash_dir" "x": pth: unknown key; did you mean path?`,
		},
		{
			`source "ek_ca" "x" { ca_path = "/x" poll_intervall = "3s" }`,
			`source "ek_ca" "x": poll_intervall: unknown key; did you mean poll_interval?`,
		},
		{`source "ek_ca" "x" { ca_path = "/x" aia_host = ["x"] }`, `aia_host: unknown key; did you mean aia_hosts?`},
		{
			factory + `allow "x" { any = ["factory"] enforced = false }`,
			`allow "x": enforced: unknown key; did you mean enforce?`,
		},

		// Duplicates.
		{factory + factory, `source "hash_dir" "factory": is defined 2 times: keep one`},
		{both + `source "ek_ca" "factory" { ca_path = "/x" }`, `has the same name as source`},
		{
			`source "hash_dir" "x" { path = "/x" path = "/y" }`,
			`source "hash_dir" "x": path: is set 2 times: keep one`,
		},
		{factory + "reattest = true\nreattest = false", `reattest: is set 2 times: keep one`},
		{factory + "reattest = true\n\"reattest\" = true", `reattest: is set 2 times: keep one`},
		{
			factory + `allow "x" { any = ["factory"] } allow "x" { all = ["factory"] }`,
			`allow "x": is defined 2 times: keep one`,
		},
		{factory + `allow "x" { any = ["factory"] any = ["factory"] }`, `allow "x": any: is set 2 times`},
		{factory + `allow "x" { any = ["factory", "factory"] }`, `allow "x": any: contains "factory" twice`},
		{
			`source "ek_ca" "v" { bundles = { a = "/a" a = "/b" } }`,
			`source "ek_ca" "v": bundles: a: is set 2 times`,
		},
		{
			`{"source": {"hash_dir": {"x": [{"path": "/x"}, {"marker": "m"}]}}}`,
			`source "hash_dir" "x": is defined 2 times`,
		},

		// Types.
		{
			`source "hash_dir" "x" { path = 5 }`,
			`source "hash_dir" "x": path: is the number 5, but must be a string: write path = "5"`,
		},
		{`source "hash_dir" "x" { path = true }`, `source "hash_dir" "x": path: is true, but must be a string`},
		{`source "hash_dir" "x" { path = ["/x"] }`, `source "hash_dir" "x": path: is a list, but must be a string`},
		{`source "hash_dir" "x" { path { a = 1 } }`, `source "hash_dir" "x": path: is a block, but must be a string`},
		{`source "hash_dir" "x" { path = "" }`, `source "hash_dir" "x": path: is empty`},
		{
			`source "hash_dir" "x" { path = "/a\nb" }`,
			`source "hash_dir" "x": path: is the string "/a\nb", but must not have control`,
		},
		{`{"source": {"hash_dir": {"x": {"path": null}}}}`, `source "hash_dir" "x": path: is null`},
		{factory + `reattest = "false"`, `reattest: is the string "false", but must be true or false, without quotes`},
		{factory + `reattest = 0`, `reattest: is the number 0, but must be true or false`},
		{
			factory + `check_timeout = 5`,
			`check_timeout: is the number 5, but must be a duration in quotes: write check_timeout = "5s"`,
		},
		{
			factory + `check_timeout = "5"`,
			`check_timeout: is the string "5", but must be a duration: write check_timeout = "5s"`,
		},
		{factory + `check_timeout = "1h"`, `check_timeout: is the string "1h", but must be from 100ms to 1m0s`},
		{factory + `check_timeout = "-1s"`, `check_timeout: is the string "-1s", but must be from`},
		{
			`source "ek_ca" "v" { ca_path = "/x" poll_interval = "1ms" }`,
			`source "ek_ca" "v": poll_interval: is the string "1ms", but must be from 1s to 24h0m0s`,
		},
		{
			factory + `allow "x" { any = "factory" }`,
			`allow "x": any: is the string "factory", but must be a list: write any = ["factory"]`,
		},
		{factory + `allow "x" { any = 1 }`, `allow "x": any: is the number 1, but must be a list: write any = ["…"]`},
		{factory + `allow "x" { any = [1] }`, `allow "x": any: contains the number 1, but must be a list of strings`},
		{
			`source "ek_ca" "v" { bundles = "/x" }`,
			`source "ek_ca" "v": bundles: is the string "/x", but must be a block: write bundles = {`,
		},
		{`source "ek_ca" "v" { bundles = { a = 5 } }`, `source "ek_ca" "v": bundles: a: is the number 5`},
		{`source "ek_ca" "v" { bundles = {} }`, `source "ek_ca" "v": bundles: is empty`},
		{`source = "x"`, `source: is the string "x", but must be a block`},
		{
			`source "hash_dir" { path = "/x" }`,
			`source "hash_dir": has no name before path: write source "hash_dir" "machines" {`,
		},
		{`source "hash_dir" {}`, `source "hash_dir": has no name: write`},
		{factory + `allow { any = ["factory"] }`, `allow: has no name before any: write allow "<name>" {`},

		// Missing.
		{`source "hash_dir" "x" {}`, `source "hash_dir" "x": path: is missing: write path = "/srv/tpm/hashes"`},
		{
			`source "ek_ca" "x" {}`,
			`source "ek_ca" "x": ca_path: write either ca_path = "/etc/tpm/cas" or bundles = {`,
		},
		{`source "ek_ca" "x" { ca_path = "/x" bundles = { a = "/a" } }`, `source "ek_ca" "x": ca_path: write either`},

		// Names.
		{
			`source "hash_dir" "Factory" { path = "/x" }`,
			`source "hash_dir" "Factory": is not a valid name: use 1 to 64 of a-z, 0-9, _ and -`,
		},
		{`source "hash_dir" "a:b" { path = "/x" }`, `source "hash_dir" "a:b": is not a valid name`},
		{`source "hash_dir" "" { path = "/x" }`, `source "hash_dir" "": is not a valid name`},
		{factory + `allow "a b" { any = ["factory"] }`, `allow "a b": is not a valid name`},
		{`source "ek_ca" "v" { bundles = { "a:b" = "/a" } }`, `source "ek_ca" "v": bundles: "a:b" is not a valid name`},

		// Rules.
		{
			both,
			"allow: there are several sources but no rule says which of them admit machines: " +
				`write allow "<name>" { any = ["factory", "vendors"] }`,
		},
		{factory + `allow "x" {}`, `allow "x": names no source`},
		{factory + `allow "x" { any = [] }`, `allow "x": any: is empty`},
		{factory + `allow "x" { any = ["factory"] all = [] }`, `allow "x": all: is empty`},
		{
			factory + `allow "x" { any = ["factry"] }`,
			`allow "x": any: names the source factry, which is not configured; did you mean factory?`,
		},
		{both + `allow "x" { any = ["factory"] }`, `source "ek_ca" "vendors": no rule names this source`},
		{factory + `deny "x" { any = ["factory"] }`, `allow: there are deny rules but no allow rule`},
		{
			both + `allow "x" { any = ["vendors"] } deny "y" { any = ["factory"] }`,
			`source "hash_dir" "factory": marker: a deny rule uses this source`,
		},

		// The incumbent's keys.
		{factory + `hash_path = "/x"`, `hash_path: cannot be combined with source`},
		{factory + `ca_path = "/x"`, `ca_path: cannot be combined with source`},
		{`hash_path = "/x"` + "\n" + `allow "x" { any = ["hash_path"] }`, `hash_path: cannot be combined with allow`},
		{`ca_path = "/x"` + "\n" + `deny "x" { any = ["ca_path"] }`, `ca_path: cannot be combined with deny`},
		{`hash_path = 5`, `hash_path: is the number 5, but must be a string`},
		{`hash_path = ""`, `source: no source is configured`},
		{`hash_path = ""` + "\n" + `ca_path = ""`, `source: no source is configured`},
		{`hash_path = ""` + "\n" + `hash_path = "/x"`, `hash_path: is set 2 times: keep one`},
		{`{"hash_path": null}`, `hash_path: is null`},

		// The template.
		{factory + `agent_path_template = "/x"`, `agent_path_template: "/x" would give several machines the same ID`},
		{factory + `agent_path_template = 5`, `agent_path_template: is the number 5`},

		// Limits.
		{
			many(300, `source "hash_dir" "s%d" { path = "/x" }`),
			`source: there are 300 sources; at most 256 are allowed`,
		},
		{
			factory + many(300, `allow "r%d" { any = ["factory"] }`),
			`allow: there are 300 rules; at most 256 are allowed`,
		},
		{factory + many(300, `bogus%d = 1`), `and 250 more mistakes`},
	} {
		c, err := config.Parse(tt.text, trustDomain)
		if err == nil {
			t.Errorf("accepted: %.200s", tt.text)
			continue
		}
		if c != nil {
			t.Errorf("a configuration beside an error: %.200s", tt.text)
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.200s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
}

func many(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format+"\n", i)
	}
	return b.String()
}

// A person who corrects one mistake at a time restarts SPIRE once for each: all
// are told at once.
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := config.Parse(`
		source "hash_dir" "a" { pat = "/x" }
		source "ekca" "b" { ca_path = "/x" }
		source "ek_ca" "c" { ca_path = 5 poll_interval = "x" }
		allow "r" { any = ["a", "z"] }
		reattest = 1
	`, "")
	var problems config.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("%T: %v", err, err)
	}
	var paths []string
	for _, p := range problems {
		paths = append(paths, p.Path)
	}
	want := []string{
		`allow "r": any`, `reattest`, `source "ek_ca" "c"`, `source "ek_ca" "c": ca_path`,
		`source "ek_ca" "c": poll_interval`, `source "ekca"`, `source "ekca" "b"`,
		`source "hash_dir" "a": pat`, `source "hash_dir" "a": path`, `trust_domain`,
	}
	if d := cmp.Diff(want, paths); d != "" {
		t.Errorf("(-want +got):\n%s\n%v", d, err)
	}
}

// So are those that only a kind of source knows: beside an unknown key, and each at
// its own key, with nothing left for a second try.
func TestAllProblemsOfAKindAtOnce(t *testing.T) {
	for _, tt := range []struct {
		kind, keys string
		want       []string // the keys, sorted
	}{
		{"hash_dir", `path = "" marker = "../x"`, []string{"bogus", "marker", "path"}},
		{"hash_dir", `path = "/x" marker = "ab"`, []string{"bogus", "marker"}},
		{
			"hash_file", `path = 5 poll_interval = "48h" max_staleness = "0s" max_bytes = 0 allow_empty = 1`,
			[]string{"allow_empty", "bogus", "max_bytes", "max_staleness", "path", "poll_interval"},
		},
		{
			"http", `url = "http://x/#y" signature_url = "http://u:p@other/x" public_key_path = "/x" list_id = "a" timeout = "1ms"`,
			[]string{"bogus", "signature_url", "signature_url", "signature_url", "timeout", "url", "url"},
		},
		{
			"http", `url = "" auth = "tls" server_id = "x" ca_path = 5 client_key_path = "/x"`,
			[]string{"auth", "bogus", "ca_path", "client_cert_path", "server_id", "url"},
		},
		{
			"http", `url = "https://x/" auth = "spiffe" server_id = "spiffe://example.com/x" ca_path = "/x"`,
			[]string{"bogus", "ca_path", "server_id"},
		},
		{
			"ek_ca", `ca_path = 5 aia_hosts = ["http://x/"] ek_certificate_urls = { intl = "ftp://x/" } mirror_url = "x"`,
			[]string{"aia_hosts", "bogus", "ca_path", "ek_certificate_urls", "ek_certificate_urls", "mirror_url"},
		},
		{
			"ek_ca", `bundles = { "A B" = "/x" } crl = "on" mirror_url = "x" cache_path = "/y/z"`,
			[]string{"bogus", "bundles", "cache_path", "crl", "mirror_url", "mirror_url"},
		},
		{
			"sql", `dialect = "oracle" dsn_path = "" query = "DELETE ?" client_key_path = "/x" timeout = "0s"`,
			[]string{"bogus", "ca_path", "client_cert_path", "dialect", "dsn_path", "query", "timeout"},
		},
	} {
		_, err := config.Parse(fmt.Sprintf(`source %q "x" { %s bogus = 1 }`, tt.kind, tt.keys), trustDomain)
		var problems config.Problems
		if !errors.As(err, &problems) {
			t.Errorf("%s { %s }: %v", tt.kind, tt.keys, err)
			continue
		}
		var keys []string
		for _, p := range problems {
			keys = append(keys, p.Path[strings.LastIndex(p.Path, ": ")+2:])
		}
		slices.Sort(keys)
		if d := cmp.Diff(tt.want, keys); d != "" {
			t.Errorf("%s { %s } (-want +got):\n%s\n%v", tt.kind, tt.keys, d, err)
		}
	}
}

// The mistake that is easiest to make: to trust a vendor, and with it everybody
// who buys a machine.
func TestWarnings(t *testing.T) {
	const alone = "this rule admits by the CAs of TPM vendors alone"
	const denied = `source "hash_dir" "stolen" { path = "/z" marker = ".mounted" } `
	for _, tt := range []struct{ text, want string }{
		{factory, ""},
		{vendors, "rule default: " + alone},
		{`ca_path = "/x"`, alone},
		{`ca_path = "/x"` + "\n" + `hash_path = "/y"`, alone},
		{`ca_path = ""` + "\n" + `hash_path = "/y"`, "ca_path: is empty and treated as not set"},
		{both + `allow "x" { any = ["factory", "vendors"] }`, `allow "x": ` + alone},
		{both + `allow "x" { all = ["vendors"] any = ["factory"] }`, ""},
		{both + `allow "x" { all = ["factory", "vendors"] }`, ""},
		{both + `allow "x" { all = ["factory"] } allow "y" { all = ["vendors"] enforce = false }`, ""},
		{both + `allow "x" { any = ["factory", "vendors"] enforce = false }`, "allow: no allow rule is enforced"},
		{both + `allow "x" { any = ["factory"] } deny "y" { any = ["vendors"] }`, `deny "y": an ek_ca cannot deny a machine that leaves`},
		{both + `allow "x" { any = ["factory"] } deny "y" { any = ["vendors"] enforce = false }`, ""},
		{both + `allow "x" { all = ["factory", "vendors"] } deny "y" { any = ["vendors"] }`, ""},
		{both + denied + `allow "x" { all = ["factory", "vendors"] } deny "y" { any = ["stolen"] }`, ""},
		{both + denied + `allow "x" { any = ["factory", "vendors"] } deny "y" { any = ["stolen"] }`, `deny "y": a TPM has several EKs`},
		{factory + `agent_path_template = "/x/{{ .PubHash }}"`, "not under /spire/agent/tpm/"},
		{factory + `agent_path_template = "/tpm/{{ .Name }}"`, "two machines with the same name get the same ID"},
		{factory + `agent_path_template = "/tpm/{{ .Name }}/{{ .PubHash }}"`, ""},
		{
			factory + bundles + `allow "x" { all = ["factory", "vendors"] } agent_path_template = "/tpm/{{ .CA }}/{{ .Serial }}"`,
			"unique only within one issuer",
		},
		{
			both + `allow "x" { all = ["factory", "vendors"] }
				agent_path_template = "/tpm/{{ .Issuer }}/{{ .Serial }}"`,
			"",
		},
	} {
		c := mustParse(t, tt.text)
		all := strings.Join(c.Warnings, "; ")
		if (tt.want == "") != (len(c.Warnings) == 0) || !strings.Contains(all, tt.want) {
			t.Errorf("%s\n warnings %q, want %q", tt.text, all, tt.want)
		}
	}
}

// A template that has a value for no machine would have every attestation refused,
// and every agent exit, by a configuration that was found to be valid.
func TestTemplateWithoutAValue(t *testing.T) {
	const (
		name, serial = `agent_path_template = "/tpm/{{ .Name }}" `, `agent_path_template = "/tpm/{{ .Issuer }}/{{ .Serial }}" `
		ca           = `agent_path_template = "/tpm/{{ .CA }}/{{ .Serial }}" `
		lab          = `source "hash_file" "lab" { path = "/lab" attributes = false }` + "\n"
		either       = `allow "a" { any = ["factory"] } allow "b" { any = ["vendors"] } `
		no           = "which no source of an enforced allow rule provides, so no machine would get an ID: add "
	)
	for _, tt := range []struct{ text, problem, warning string }{
		{vendors + name, "agent_path_template: uses .Name, " + no + "a list, such as a hash_dir", ""},
		{lab + name, "uses .Name, " + no, ""},
		{`ca_path = "/x" ` + "\n" + name, "uses .Name, " + no, ""},
		{vendors + ca, "uses .CA, " + no + "an ek_ca with bundles, without attributes = false, to such a rule, or use .PubHash", ""},
		{factory + ca, "uses .Serial, " + no + "an ek_ca, without", ""},
		{factory + serial, "uses .Issuer, " + no + "an ek_ca, without", ""},
		{`source "ek_ca" "v" { ca_path = "/x" attributes = false } ` + serial, "uses .Issuer, " + no, ""},
		{`source "sql" "s" { dialect = "mysql" dsn_path = "/x" } ` + serial, "uses .Issuer, " + no, ""},
		// A rule on trial decides nothing, and a deny rule gives nothing.
		{both + name + `allow "a" { any = ["vendors"] } allow "b" { any = ["factory"] enforce = false }`, "uses .Name, " + no, ""},
		{lab + vendors + serial + `allow "a" { any = ["lab"] } deny "b" { any = ["vendors"] }`, "uses .Issuer, " + no, ""},
		// Beside other mistakes, at once.
		{vendors + name + `bogus = 1`, "uses .Name, " + no, ""},

		{factory + name, "", ""},
		{vendors + serial, "", ""},
		{bundles + ca, "", ""},
		{inventory + "}\n" + name, "", ""},
		{table + "}\n" + name, "", ""},
		{`ca_path = "/x"` + "\n" + `hash_path = "/y"` + "\n" + name, "", ""},
		{lab + factory + name + `allow "a" { any = ["lab", "factory"] }`, "", ""},
		{both + name + `allow "a" { all = ["vendors"] any = ["factory"] }`, "", ""},
		// Rules are watched before any is enforced.
		{vendors + name + `allow "a" { any = ["vendors"] enforce = false }`, "", ""},
		// Some machines have no ID.
		{both + name + either, "", `uses .Name, which no source of allow "b" provides: a machine admitted by this rule alone`},
		{both + serial + either, "", `uses .Issuer, which no source of allow "a" provides`},
	} {
		c, err := config.Parse(tt.text, trustDomain)
		switch {
		case tt.problem != "":
			if err == nil || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.problem)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.text, err)
		case (tt.warning != "") != strings.Contains(strings.Join(c.Warnings, "; "), "provides: a machine admitted by this"),
			!strings.Contains(strings.Join(c.Warnings, "; "), tt.warning):
			t.Errorf("%s\n warnings %q, want %q", tt.text, c.Warnings, tt.warning)
		}
	}
	// What is not known gives anything, so that one mistake is not told as two.
	_, err := config.Parse(`source "ldap" "x" {} allow "a" { any = ["x", "y"] } `+name, trustDomain)
	if err == nil || strings.Contains(err.Error(), "agent_path_template") {
		t.Errorf("%v", err)
	}
}
