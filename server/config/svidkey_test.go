package config_test

import (
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// What DESIGN's surface says works as written, and off is what a configuration of before gets.
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
		{`svid_key = "required" svid_key_socket = "svid.sock"`, `svid_key_socket: must be an absolute path`},
		{`svid_key = "required" svid_key_socket = ""`, `svid_key_socket: is empty: give it a value`},
		{
			`svid_key = "required" svid_key_socket = "/` + strings.Repeat("x", 120) + `/s"`,
			`svid_key_socket: is 123 bytes long, and the path of a socket has at most 107`,
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
