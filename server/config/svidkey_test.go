package config_test

import (
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// What DESIGN's surface says works as written, and off is what an older configuration gets.
func TestSVIDKey(t *testing.T) {
	const socket = "svid_key_socket = \"/run/spire/tpm/svid.sock\"\n"
	for _, tt := range []struct{ text, mode, socket, warning string }{
		{text: ``, mode: "off"},
		{text: `svid_key = "off"`, mode: "off"},
		{text: socket + `svid_key = "optional"`, mode: "optional", socket: "/run/spire/tpm/svid.sock"},
		{text: socket + `svid_key = "required"`, mode: "required", socket: "/run/spire/tpm/svid.sock"},
		{
			text: socket + `svid_key = "required" agent_path_template = "/tpm/site-1/{{ .PubHash }}"`, mode: "required",
			socket: "/run/spire/tpm/svid.sock",
		},
		{
			text: socket + `svid_key = "required" agent_path_template = "/{{ .PluginName }}/{{ .PubHash }}" reattest = true`,
			mode: "required", socket: "/run/spire/tpm/svid.sock",
		},
		{
			text: socket + `svid_key = "off"`, mode: "off", socket: "/run/spire/tpm/svid.sock",
			warning: `svid_key: is "off": if CredentialComposer "tpm" is configured, it refuses every agent of this plugin`,
		},
	} {
		c := mustParse(t, factory+tt.text)
		if c.SVIDKey != tt.mode || c.SVIDKeySocket != tt.socket {
			t.Errorf("%s: %q at %q", tt.text, c.SVIDKey, c.SVIDKeySocket)
		}
		warned := strings.Join(c.Warnings, "\n")
		if !strings.Contains(warned, tt.warning) || tt.warning == "" && strings.Contains(warned, "svid_key") {
			t.Errorf("%s: warnings %q", tt.text, c.Warnings)
		}
	}
}

// A configuration that would give an agent an SVID for any key, although it looks as if it did not,
// is refused, with what to write.
func TestSVIDKeyProblems(t *testing.T) {
	const socket = ` svid_key_socket = "/run/spire/tpm/svid.sock" `
	for _, tt := range []struct{ text, want string }{
		{`svid_key = "optional"`, `svid_key_socket: is missing: write svid_key_socket = "/run/spire/tpm/svid.sock", ` +
			`and the same as socket of CredentialComposer "tpm"`},
		{`svid_key = "required"`, `svid_key_socket: is missing`},
		{socket, `svid_key_socket: is set, but svid_key is not: write svid_key = "optional" or svid_key = "required"`},
		{`svid_key = "require"` + socket, `svid_key: is "require"; did you mean required?`},
		{`svid_key = true` + socket, `svid_key: is true, but must be a string`},
		{`svid_key = "required" svid_key_socket = "svid.sock"`, `svid_key_socket: "svid.sock" is no absolute path`},
		{`svid_key = "required" svid_key_socket = ""`, `svid_key_socket: is empty: give it a value`},
		{
			`svid_key = "required" svid_key_socket = "/` + strings.Repeat("x", 120) + `/s"`,
			`is 123 bytes long, and the path of a socket has at most 107`,
		},
		{`svid_key = "required" reattest = false` + socket, `svid_key: is "required", but reattest is false`},
		{`svid_key = "optional" reattest = false` + socket, `svid_key: is "optional", but reattest is false`},
		{
			`svid_key = "optional" agent_path_template = "/machines/{{ .PubHash }}"` + socket,
			`svid_key: is "optional", but agent_path_template does not begin with /tpm/`,
		},
		{
			`svid_key = "required" agent_path_template = "/tpm-{{ .PubHash }}"` + socket,
			`svid_key: is "required", but agent_path_template does not begin with /tpm/`,
		},
		{
			`svid_key = "required" agent_path_template = "/TPM/{{ .PubHash }}"` + socket,
			`svid_key: is "required", but agent_path_template does not begin with /tpm/`,
		},
	} {
		_, err := config.Parse(factory+tt.text, "example.org")
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.text, err, tt.want)
		}
	}
}

// In a configuration of SPIRE's server as a whole, the two plugins have to fit together: neither
// sees the other's when it runs, and then no agent gets an SVID.
func TestComposerBesideAttestor(t *testing.T) {
	const (
		on       = `svid_key = "optional" svid_key_socket = "/run/spire/tpm/svid.sock"`
		composer = `CredentialComposer "tpm" { plugin_cmd = "/x" plugin_data { socket = "/run/spire/tpm/svid.sock" } }`
	)
	for _, tt := range []struct{ attestor, composer, want string }{
		{on, composer, ""},
		{``, ``, ""},
		{`svid_key = "off"`, ``, ""},
		{on, `CredentialComposer "uniqueid" {}`, `svid_key: is "optional", but there is no CredentialComposer "tpm"`},
		{on, ``, `svid_key: is "optional", but there is no CredentialComposer "tpm", so no agent of this plugin would get ` +
			`an SVID: add it with the same plugin_cmd and plugin_data { socket = "/run/spire/tpm/svid.sock" }`},
		{
			on, `CredentialComposer "tpm" { enabled = false plugin_data { socket = "/run/spire/tpm/svid.sock" } }`,
			`svid_key: is "optional", but CredentialComposer "tpm" has enabled = false, so no agent of this plugin would get`,
		},
		{``, composer, `CredentialComposer "tpm": is there, but svid_key of NodeAttestor "tpm" is "off": it would refuse ` +
			`every agent of that plugin; remove it, or write svid_key = "optional"`},
		{
			on, `CredentialComposer "tpm" { plugin_data { socket = "/run/spire/tpm/other.sock" } }`,
			`CredentialComposer "tpm": socket: is "/run/spire/tpm/other.sock", but svid_key_socket of NodeAttestor "tpm" is ` +
				`"/run/spire/tpm/svid.sock": write the same in both`,
		},
		{on, `CredentialComposer "tpm" {}`, `CredentialComposer "tpm": socket: is missing: write socket = `},
		{
			on, `CredentialComposer "tpm" { plugin_data { socket = "x" bogus = 1 } }`,
			`CredentialComposer "tpm": bogus: unknown key`,
		},
	} {
		text := `server { trust_domain = "example.org" } plugins { NodeAttestor "tpm" { plugin_cmd = "/x" plugin_data {` +
			factory + tt.attestor + "}}\n" + tt.composer + "\n}"
		_, err := config.NewLoader().Open(t.Context(), text).Parse()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n%v, want %q", text, err, tt.want)
		}
	}
	// Of plugin_data alone nobody can tell.
	if _, err := config.NewLoader().Open(t.Context(), factory+on).Parse(); err != nil {
		t.Error(err)
	}
}
