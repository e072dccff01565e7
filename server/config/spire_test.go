package config_test

import (
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// Whoever gives the whole configuration of a server means the plugin's part of it,
// in every syntax, and whoever gives that part alone is understood as well.
func TestPluginData(t *testing.T) {
	want := mustParse(t, richHCL)
	for name, text := range map[string]string{
		"HCL": inHCL(richHCL), "JSON": inJSON(richJSON), "JSON in lists": inJSONLists(richJSON),
		"plugin_data": richHCL, "plugin_data in JSON": richJSON,
	} {
		data, err := config.PluginData(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := diff(want, mustParse(t, data)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	for text, want := range map[string]string{
		`plugins { KeyManager "memory" {} }`:                                          `there is no NodeAttestor "tpm"`,
		`plugins { NodeAttestor "tpm" { plugin_data_file = "/etc/spire/tpm.conf" } }`: `give that, "/etc/spire/tpm.conf"`,
		`plugins = 5`: `plugins: `,
	} {
		if data, err := config.PluginData(text); err == nil || data != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v", text, data, err)
		}
	}
	// Broken text is Parse's to refuse.
	if data, err := config.PluginData(`source "x" {`); err != nil || data != `source "x" {` {
		t.Errorf("%q, %v", data, err)
	}
	if data, err := config.PluginData(`plugins { NodeAttestor "tpm" {} }`); err != nil || data != "" {
		t.Errorf("%q, %v", data, err)
	}
}
