package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// While the server runs, a reload can admit and refuse machines, and a configuration with a
// mistake changes nothing. Attestations never see half of a configuration, and the plugin is
// not restarted.
func TestReconfiguredBySignal(t *testing.T) {
	w := newWorld(t)
	ca, hashes := swtpmtest.NewCA(t), w.folder("hashes")
	m := w.machine(ca)
	listed := fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }\n", hashes)
	vouched := fmt.Sprintf("source \"ek_ca\" \"vendors\" { ca_path = %q }\n", ca.IssuerPath)
	s := w.server(spiretest.ServerConfig{PluginData: listed, DataFile: true})
	plugin := w.pluginPID(s)
	w.refused(s, m)

	w.reconfigure(s, listed+vouched+`allow "any" { any = ["fleet", "vendors"] }`,
		"Plugin reconfigured")
	_, known := w.admitted(s, m)
	w.evict(s, known)

	w.reconfigure(s, listed+vouched+`allow "any" { any = ["fleet", "vendor"] }`,
		"Failed to reconfigure plugin", "vendor")
	_, known = w.admitted(s, m)
	w.evict(s, known)

	w.reconfigure(s, listed, "Plugin reconfigured")
	w.refused(s, m)
	if now := w.pluginPID(s); now != plugin {
		t.Errorf("the plugin was process %d and is process %d", plugin, now)
	}
}

func (w *world) reconfigure(s *spiretest.Server, pluginData string, wantLog ...string) {
	w.t.Helper()
	mark := s.Mark()
	if err := s.Reconfigure(pluginData); err != nil {
		w.t.Fatal(err)
	}
	w.waitLog(s.Process, mark, wantLog...)
}

// Helm writes SPIRE's configuration as JSON with sorted keys, and SPIRE converts it to HCL for
// the plugin. The rules must keep their meaning.
func TestHelmJSON(t *testing.T) {
	w := newWorld(t)
	ca, hashes := swtpmtest.NewCA(t), w.folder("hashes")
	both, unlisted := w.machine(ca), w.machine(ca)
	w.list(hashes, both)
	type object = map[string]any
	data, err := json.Marshal(object{
		"source": object{
			"hash_dir": object{"fleet": object{"path": hashes}},
			"ek_ca":    object{"vendors": object{"bundles": object{"example": ca.IssuerPath}}},
		},
		"allow": object{"production": object{"all": []string{"fleet", "vendors"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := w.server(spiretest.ServerConfig{PluginData: string(data), JSON: true})
	w.refused(s, unlisted)
	_, known := w.admitted(s, both)
	w.wantSelectors(known, "pub_hash:"+both.hash, "rule:production", "source:fleet",
		"source:vendors", "ca:example", "ek:issuer:cn:.+", "ek:serial:.+", "manufacturer:.+",
		"model:.+", "version:.+")
}

// The two keys of spire-tpm-plugin's configuration work unchanged, each on its own.
func TestIncumbentKeys(t *testing.T) {
	w := newWorld(t)
	ca, hashes := swtpmtest.NewCA(t), w.folder("hashes")
	listed, vouched := w.machine(nil), w.machine(ca)
	w.list(hashes, listed)
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("hash_path = %q\nca_path = %q", hashes, ca.IssuerPath),
	})
	w.admitted(s, listed)
	w.admitted(s, vouched)
	w.refused(s, w.machine(nil))
}

// Operators check a configuration with `spire-server validate` before they roll it out. It
// accepts a valid configuration, and names every mistake of another.
func TestValidateCommand(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	for _, test := range []struct {
		name, pluginData string
		mistakes         []string // nil if it is valid
	}{
		{"valid", fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes), nil},
		{
			"two mistakes", fmt.Sprintf(
				"source \"hash_dir\" \"fleet\" {\n path = %q\n sharded = true\n}\n"+
					"allow \"a\" { any = [\"flet\"] }", hashes),
			[]string{"sharded", "flet"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := w.programs.WriteServerConfig(spiretest.ServerConfig{
				Dir: w.folder("server"), PluginData: test.pluginData,
			})
			if err != nil {
				t.Fatal(err)
			}
			out, err := s.Validate(w.ctx)
			if (err == nil) != (test.mistakes == nil) {
				t.Fatalf("validate: %v\n%s", err, out)
			}
			for _, m := range test.mistakes {
				if !strings.Contains(out+err.Error(), m) {
					t.Errorf("%q is not named: %v\n%s", m, err, out)
				}
			}
		})
	}
}
