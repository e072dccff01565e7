package config

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/printer"
)

// PluginData returns the plugin_data of NodeAttestor "tpm" in a configuration of
// SPIRE's server, as SPIRE hands it to the plugin; a text that has no plugins is
// taken for plugin_data itself and returned as it is.
func PluginData(text string) (string, error) {
	var spire struct {
		Plugins ast.Node `hcl:"plugins"`
	}
	if err := hcl.Decode(&spire, text); err != nil || spire.Plugins == nil {
		return text, nil //nolint:nilerr // Parse says what is wrong with it
	}
	var plugins []map[string]map[string]struct {
		Data     ast.Node `hcl:"plugin_data"`
		DataFile string   `hcl:"plugin_data_file"`
	}
	if err := hcl.DecodeObject(&plugins, spire.Plugins); err != nil {
		return "", fmt.Errorf("plugins: %w", err)
	}
	for _, types := range plugins {
		p, ok := types["NodeAttestor"]["tpm"]
		switch {
		case !ok:
			continue
		case p.DataFile != "":
			return "", fmt.Errorf(`plugins: NodeAttestor "tpm": it is in a file of its own: give that, %q`,
				shorten(p.DataFile))
		case p.Data == nil:
			return "", nil
		}
		var out bytes.Buffer
		if err := printer.DefaultConfig.Fprint(&out, p.Data); err != nil {
			return "", fmt.Errorf(`plugins: NodeAttestor "tpm": %w`, err)
		}
		return out.String(), nil
	}
	return "", errors.New(`plugins: there is no NodeAttestor "tpm"`)
}
