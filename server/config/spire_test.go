package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// Whoever gives the whole configuration of a server means the plugin's part of it,
// in every syntax, and whoever gives that part alone is understood as well.
func TestParseFile(t *testing.T) {
	want := mustParse(t, richHCL)
	want.TrustDomain = spiffeid.TrustDomain{}
	for name, text := range map[string]string{
		"HCL": inHCL(richHCL), "JSON": inJSON(richJSON), "JSON in lists": inJSONLists(richJSON),
		"plugin_data": richHCL, "plugin_data in JSON": richJSON,
	} {
		if d := diff(want, mustParseFile(t, text)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	for text, want := range map[string]string{
		`plugins { KeyManager "memory" {} }`:                      `plugins: there is no NodeAttestor "tpm"`,
		`plugins { NodeAttestor "tpm" {} NodeAttestor "tpm" {} }`: `NodeAttestor "tpm" is there twice`,
		`plugins = 5`:                         `plugins: `,
		`source "x" {`:                        `the configuration is not valid HCL: `,
		`plugins { NodeAttestor "tpm" {} }`:   `source: no source is configured`,
		`server = 5 ` + inHCL(factory):        `server: trust_domain: `,
		inServer(`"a b"`, factory):            `server: trust_domain: `,
		inServer(`"a b"`, `hash_path = true`): `hash_path: is true, but must be a string; server: trust_domain: `,
	} {
		var problems config.Problems
		if c, err := config.NewLoader().Open(t.Context(), text).Parse(); !errors.As(err, &problems) || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", text, c, err)
		}
	}
}

// An operator checks a configuration before SPIRE is told to read it, and SPIRE's
// trust domain is in another file, or in the same one: what names a trust domain is
// refused for being of another only where there is one to compare it with.
func TestTrustDomainOfAFile(t *testing.T) {
	const other = `server_id: is in the trust domain "example.org", but SPIRE's own is "example.com"`
	for text, want := range map[string]struct{ trustDomain, err string }{
		spiffe + `}`: {"", ""},
		`{"source": {"http": {"x": {"url": "https://x/", "auth": "spiffe", "server_id": "spiffe://any.org/x"}}}}`: {"", ""},
		inHCL(spiffe + `}`):                            {"", ""},
		inServer(`"example.org"`, spiffe+`}`):          {"example.org", ""},
		inServer(`"spiffe://example.org"`, spiffe+`}`): {"example.org", ""},
		inServer(`"${TRUST_DOMAIN}"`, spiffe+`}`):      {"", ""},
		inServer(`"example.com"`, spiffe+`}`):          {"", other},
		`{"server": {"trust_domain": "example.org"}, ` + strings.TrimPrefix(inJSON(`{"hash_path": "/x"}`), "{"): {"example.org", ""},
	} {
		c, err := config.NewLoader().Open(t.Context(), text).Parse()
		switch {
		case want.err != "":
			if err == nil || !strings.Contains(err.Error(), want.err) {
				t.Errorf("%s: %v", text, err)
			}
		case err != nil:
			t.Errorf("%s: %v", text, err)
		case c.TrustDomain.Name() != want.trustDomain:
			t.Errorf("%s: the trust domain is %q", text, c.TrustDomain)
		}
		if _, loaded := config.NewLoader().LoadFile(t.Context(), text); want.err != "" && (loaded == nil || loaded.Error() != err.Error()) {
			t.Errorf("%s: LoadFile: %v", text, loaded)
		}
	}
	// The plugin always has one to compare with: it has that or refuses all.
	if _, err := config.Parse(spiffe+`}`, ""); err == nil || !strings.Contains(err.Error(), "trust_domain: SPIRE passed an invalid one") {
		t.Errorf("without a trust domain: %v", err)
	}
}

// inServer is a configuration of SPIRE's server, with its trust domain.
func inServer(trustDomain, data string) string {
	return "server {\n trust_domain = " + trustDomain + "\n}\n" + inHCL(data)
}

func mustParseFile(t *testing.T, text string) *config.Config {
	t.Helper()
	c, err := config.NewLoader().Open(t.Context(), text).Parse()
	if err != nil {
		t.Fatalf("ParseFile: %v\n%s", err, text)
	}
	return c
}
