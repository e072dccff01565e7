package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// Whoever edits a configuration looks for the line, and whoever reads the log must not
// find a password there: what stands behind a key is not shown, nor what the parser
// quotes of it.
func TestSyntaxErrorsShowTheLine(t *testing.T) {
	const head = "# ours\nsource \"http\" \"x\" {\n"
	for _, tt := range []struct{ text, want string }{
		{head + "  url = \"https://u:hunter2@h/\n}\n", `HCL: line 3, column 30 (url = …): literal not terminated`},
		{head + "  url = https://u:hunter2@h/\n}\n", `HCL: line 3, column 9 (url = …): a value is missing here, or has no quotes`},
		{head + "  \"url\" = 'hunter2'\n}\n", `HCL: line 3, column 11 ("url" = …): illegal char`},
		{head + "  url = \"https://h/\"\n", `HCL: line 4, column 2: object expected closing RBRACE`},
		{head + "  hunter2 hunter2\n}\n", `HCL: line 4, column 1: a key is not followed by = or {`},
		{head + "  \"aHVudGVyMg==\n}\n", `HCL: line 3, column 16: literal not terminated`},
		{head + "  url = <<X\nhunter2==\n", `HCL: line 5, column 1: heredoc not terminated`},
		{head + "  url = \"\\400hunter2\"\n}\n", `HCL: line 3, column 9 (url = …): a string cannot be read`},
		{head + "  url = [\"a\" \"hunter2\"]\n}\n", `HCL: line 3, column 14 (url = …): error parsing list`},
		{"allow \"a\" { all = [\"x\" \"y\"] }", `HCL: line 1, column 24 (allow "a" { …): error parsing list`},
		{head + "  url =\n", `HCL: line 3, column 7 (url = …): a value is missing at the end`},
		{"\ufeff" + head + "  url =", `HCL: line 3, column 7 (url = …): a value is missing at the end`},
		{"{\n \"url\": hunter2}", `JSON: line 2, column 9 ("url": …): invalid character 'h'`},
		{"{\"url\": \"hunter2\n\"}", `JSON: line 1, column 17 ("url": …): invalid character '\n' in string`},
		{"{\"source\":\n{\"url\": \"a\",\n \"url\": \"hunter2\"}}", `JSON: line 3, column 2 ("url": …): duplicate object member name`},
		{"{\"url\":\n\"hunter2\",", `JSON: line 2, column 11: unexpected EOF`},
	} {
		for name, parse := range map[string]func() (*config.Config, error){
			"plugin_data_file": func() (*config.Config, error) { return config.Parse(tt.text, trustDomain) },
			"-validate":        func() (*config.Config, error) { return config.NewLoader().Open(t.Context(), tt.text).Parse() },
		} {
			_, err := parse()
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %q: %v\nwant %s", name, tt.text, err, tt.want)
			}
		}
	}
}

// A password, in its place or out of place, gets into no log: not by an error, a warning or a
// remedy.
func TestSecretsAreNotShown(t *testing.T) {
	const (
		http = `source "http" "x" { url = "https://list.example.org/tpm.json" `
		ekca = `source "ek_ca" "v" { ca_path = "/etc" aia_hosts = ["a.example.org"] cache_path = "/tmp/x" `
		sql  = `source "sql" "s" { dialect = "postgres" `
	)
	for _, text := range []string{
		ekca + `mirror_url = "http://user:hunter2@mirror.example.org/" }`,
		ekca + `mirror_url = "http://mirror.example.org/?token=hunter2" }`,
		ekca + `mirror_url = ["http://user:hunter2@mirror.example.org/"] }`,
		ekca + `ek_certificate_urls = { intel = "https://user:hunter2@ekop.intel.com/" } }`,
		ekca + `ek_certificate_urls = { other = "https://user:hunter2@ekop.intel.com/" } }`,
		ekca + `crl = "https://user:hunter2@ekop.intel.com/" }`,
		`source "ek_ca" "v" { ca_path = "/etc" aia_hosts = "http://user:hunter2@h/" }`,
		`source "ek_ca" "v" { ca_path = "/etc" aia_hosts = ["user:hunter2@h"] }`,
		`source "http" "x" { url = "https://user:hunter2@list.example.org/tpm.json" }`,
		`source "http" "x" { url = "https://user:hunter2%zz@list.example.org/tpm.json" }`,
		http + `poll_interval = "https://user:hunter2@list.example.org/" }`,
		http + `auth = "https://user:hunter2@list.example.org/" }`,
		http + `server_id = "spiffe://user:hunter2@list.example.org/" }`,
		http + `bearer_token_path = "hunter2" }`,
		http + `bearer_token_path = "hunter2\n" }`,
		http + `bearer_token_path = ["hunter2"] }`,
		http + `bearer_token = "hunter2" }`,
		http + `client_cert_path = "/etc/passwd" client_key_path = "-----BEGIN PRIVATE KEY-----hunter2" }`,
		sql + `dsn_path = "postgres://user:hunter2@db.example.org/x" }`,
		sql + `dsn_path = "host=db.example.org password=hunter2" }`,
		sql + `dsn = "postgres://user:hunter2@db.example.org/x" }`,
		`hash_path = "https://user:hunter2@h/"`,
	} {
		for _, data := range []string{text, throughSPIRE(t, inHCL(text))} {
			_, err := config.NewLoader().Load(t.Context(), data, trustDomain)
			if err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s\n%v", data, err)
			}
		}
	}
}

// Another user of the machine who may read the token or the key can read the list, or
// feed it: a warning at Configure, at Validate and by -validate, and none once what it
// advises was done.
func TestSecretsThatEveryUserMayRead(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ key, block string }{
		{"bearer_token_path", `source "http" "x" { url = "https://list.example.org/a" bearer_token_path = %q }`},
		{"client_key_path", `source "http" "x" { url = "https://list.example.org/a" client_cert_path = "/etc/passwd" client_key_path = %q }`},
		{"dsn_path", `source "sql" "x" { dialect = "postgres" dsn_path = %q }`},
		{"client_key_path", `source "sql" "x" { dialect = "postgres" dsn_path = "/etc/passwd" ca_path = "/etc/passwd" ` +
			`client_cert_path = "/etc/passwd" client_key_path = %q }`},
	} {
		path := filepath.Join(dir, tt.key)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(tt.block, path)
		for mode, warned := range map[os.FileMode]bool{0o644: true, 0o604: true, 0o606: true, 0o640: false, 0o600: false} {
			if err := os.Chmod(path, mode); err != nil { // 0o640 is 0o644 after "chmod o="
				t.Fatal(err)
			}
			for _, load := range []func() (*config.Config, error){
				func() (*config.Config, error) { return config.NewLoader().Load(t.Context(), text, trustDomain) },
				func() (*config.Config, error) { return config.NewLoader().LoadFile(t.Context(), text) },
			} {
				c, err := load()
				if err != nil {
					t.Fatal(err)
				}
				want := tt.key + `: "` + path + `" holds a secret but every user on this machine may read it: chmod o= it`
				if strings.Contains(strings.Join(c.Warnings, "\n"), want) != warned {
					t.Errorf("%s with %o: warnings %q", text, mode, c.Warnings)
				}
			}
		}
	}
}
