package config_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// advice is what an error says to write, in the language of the configuration.
var advice = regexp.MustCompile(`write (?:either )?([a-z_]+ = (?:"[^"]*"|\[[^\]]*\]|\{[^}]*\}|[0-9]+)|` +
	`(?:source|allow|deny) "[^{]*\{[^}]*\})`)

// A remedy that does not work is worse than none. Each error of these says what to write;
// it is written, word for word, in the place of the mistake, and then nothing is wrong.
func TestRemediesAreAccepted(t *testing.T) {
	const (
		ekca = `source "ek_ca" "v" { ca_path = "/x" ` // and, behind it, a mistake
		http = `source "http" "x" { url = "https://h/l.json" `
		sql  = `source "sql" "s" { dsn_path = "/x" `
	)
	for _, tt := range []struct{ before, mistake, after string }{
		{``, ``, ``},
		{`source "hash_dir" "x" { `, ``, ` }`},
		{`source "hash_dir" "x" { `, `path = 5`, ` }`},
		{`source "ek_ca" "v" { `, ``, ` }`},
		{`source "ek_ca" "v" { `, `bundles = "/etc/tpm/infineon.pem"`, ` }`},
		{`source "ek_ca" "v" { `, `bundles = {}`, ` }`},
		{ekca, `poll_interval = 30`, ` }`},
		{ekca, `poll_interval = "soon"`, ` }`},
		{ekca + `cache_path = "/y" `, `aia_hosts = "pki.infineon.com"`, ` }`},
		{ekca + `crl = "required" `, ``, ` }`},
		{ekca + `mirror_url = "http://10.0.0.5/" `, ``, ` }`},
		{ekca + `cache_path = "/y" `, ``, ` }`},
		{ekca, `ek_certificate_urls = "https://ekop.intel.com/ekcertservice/"`, ` }`},
		{`source "http" "x" { `, ``, ` }`},
		{http, `max_bytes = "1"`, ` }`},
		{http + `auth = "spiffe" `, ``, ` }`},
		{http + `auth = "spiffe" `, `server_id = "allowlist"`, ` }`},
		{http + `server_id = "spiffe://example.org/allowlist" `, ``, ` }`},
		{http + `server_id = "spiffe://example.org/allowlist" `, `auth = "spire"`, ` }`},
		{sql, ``, ` }`},
		{sql + ` dialect = "postgres" `, `max_open_conns = "4"`, ` }`},
		{`source "sql" "s" { dialect = "postgres" `, ``, ` }`},
		{``, `source "hash_dir" { path = "/x" }`, ``},
	} {
		broken := tt.before + tt.mistake + tt.after
		_, err := config.Parse(broken, trustDomain)
		var all config.Problems
		if !errors.As(err, &all) {
			t.Errorf("%s: %v", broken, err)
			continue
		}
		for _, p := range all {
			found := advice.FindStringSubmatch(p.Message)
			if found == nil {
				t.Errorf("%s: nothing to write: %s", broken, p)
				continue
			}
			mended := tt.before + found[1] + tt.after
			if _, err := config.Parse(mended, trustDomain); err != nil {
				t.Errorf("%s\nas advised by: %v\n%s\n%v", broken, p, mended, err)
			}
		}
	}
}

// Where a remedy is in words, what they say to do is done here.
func TestRemediesInWords(t *testing.T) {
	const ekca, http = `source "ek_ca" "v" { ca_path = "/x" `, `source "http" "x" { `
	for _, tt := range []struct{ broken, remedy, mended string }{
		{
			ekca + `aia_hosts = ["https://pki.infineon.com/"] cache_path = "/y" }`, "write just a host",
			ekca + `aia_hosts = ["pki.infineon.com"] cache_path = "/y" }`,
		},
		{
			ekca + `aia_hosts = ["a.example.org"] mirror_url = "mirror.example.org" }`, "write http://<host>/<path>",
			ekca + `aia_hosts = ["a.example.org"] mirror_url = "http://mirror.example.org/vendors" }`,
		},
		{
			ekca + `aia_hosts = ["a.example.org"] mirror_url = "http://u:p@10.0.0.5/" }`, "leave them out",
			ekca + `aia_hosts = ["a.example.org"] mirror_url = "http://10.0.0.5/" }`,
		},
		{
			ekca + `aia_hosts = ["169.254.169.254"] }`, "nobody serves certificates",
			ekca + `aia_hosts = ["10.0.0.5"] }`,
		},
		{ekca + `aia_hosts = [] }`, "add an entry, or leave the key out", ekca + `}`},
		{ekca + `cache_path = "/y" }`, "or leave the key out", ekca + `}`},
		{ekca + `crl = "" }`, "leave the key out", ekca + `}`},
		{
			http + `url = "http://h/l.json" }`, "is not https://<host>/<path>", http + `url = "https://h/l.json" }`,
		},
		{
			http + `url = "https://u:p@h/l.json" }`, "use a client certificate or a bearer token",
			http + `url = "https://h/l.json" bearer_token_path = "/x" }`,
		},
		{http + `url = "https://h/l.json#a" }`, "remove # and what follows", http + `url = "https://h/l.json" }`},
		{
			http + `url = "https://h/l" signature_url = "https://g/l.sig" public_key_path = "/x" list_id = "l" }`,
			"put both on the same one",
			http + `url = "https://h/l" signature_url = "https://h/l.sig" public_key_path = "/x" list_id = "l" }`,
		},
		{
			http + `url = "https://h/l" auth = "spiffe" server_id = "spiffe://example.org/l" ca_path = "/x" }`, "remove it, or",
			http + `url = "https://h/l" auth = "spiffe" server_id = "spiffe://example.org/l" }`,
		},
		{
			http + `url = "https://h/l" auth = "spiffe" server_id = "spiffe://example.org/l" ca_path = "/x" }`,
			"or remove auth and server_id",
			http + `url = "https://h/l" ca_path = "/x" }`,
		},
		{factory + factory, "keep one", factory},
		{
			factory + `svid_key = "required"`, `write svid_key_socket = "/run/spire/tpm/svid.sock"`,
			factory + `svid_key = "required" svid_key_socket = "/run/spire/tpm/svid.sock"`,
		},
		{
			factory + `svid_key_socket = "/x/y"`, `write svid_key = "optional"`,
			factory + `svid_key_socket = "/x/y" svid_key = "optional"`,
		},
		{
			factory + `svid_key = "required" svid_key_socket = "svid.sock"`, `write one such as "/run/spire/tpm/svid.sock"`,
			factory + `svid_key = "required" svid_key_socket = "/run/spire/tpm/svid.sock"`,
		},
		{
			factory + `svid_key = "required" svid_key_socket = "/run//svid.sock"`, `write "/run/svid.sock"`,
			factory + `svid_key = "required" svid_key_socket = "/run/svid.sock"`,
		},
		{
			factory + `svid_key = "required" svid_key_socket = "/x/y" reattest = false`, "remove reattest = false, or svid_key",
			factory + `svid_key = "required" svid_key_socket = "/x/y"`,
		},
		{
			factory + `svid_key = "required" svid_key_socket = "/x/y" agent_path_template = "/m/{{ .PubHash }}"`,
			"let agent_path_template begin with /tpm/",
			factory + `svid_key = "required" svid_key_socket = "/x/y" agent_path_template = "/tpm/m/{{ .PubHash }}"`,
		},
		{
			factory + `source "hash_dir" "x" { path = "/y" } allow "a" { any = ["factory"] }`, "add it to one, or remove it",
			factory + `source "hash_dir" "x" { path = "/y" } allow "a" { any = ["factory", "x"] }`,
		},
		{"hash_path = \"/x\\q\"", "illegal char escape", `hash_path = "/x\\q"`},
		{`hash_path = x`, "has no quotes", `hash_path = "x"`},
		{"hash_path = \"/\\400\"", `write a backslash and a quote in it as \\ and \"`, `hash_path = "/\\400"`},
	} {
		if _, err := config.Parse(tt.broken, trustDomain); err == nil || !strings.Contains(err.Error(), tt.remedy) {
			t.Errorf("%s: %v, want %q", tt.broken, err, tt.remedy)
		}
		if _, err := config.Parse(tt.mended, trustDomain); err != nil {
			t.Errorf("%s, as advised: %v", tt.mended, err)
		}
	}
}
