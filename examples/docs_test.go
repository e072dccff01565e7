// Package examples_test keeps the documentation true: every configuration in
// it passes through the plugins' own Validate, every key in its tables is one
// that the code knows, and every link, command and flag is there.
package examples_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/composer"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// validate asks the plugin of a role what it says of a configuration, as
// SPIRE's validate command does. No note means that it is valid.
func validate(t *testing.T, role, data string) []string {
	t.Helper()
	plugins := map[string]interface{ configv1.ConfigServer }{
		"server": server.New(),
		"agent":  agent.New(),

		"key manager": agent.NewKeyManager(),
		"composer":    composer.New(),
	}
	resp, err := plugins[role].Validate(t.Context(), &configv1.ValidateRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"},
		HclConfiguration:  data,
	})
	if err != nil {
		t.Fatalf("validate: %v", err)
	}
	if resp.GetValid() != (len(resp.GetNotes()) == 0) {
		t.Errorf("valid is %t with the notes %q", resp.GetValid(), resp.GetNotes())
	}
	return resp.GetNotes()
}

// What the documentation shows can be pasted: it is valid, down to the last
// block. What it shows as a mistake is one.
func TestConfigurationsAreValid(t *testing.T) {
	ca := newCA(t)
	mistakes := 0
	for _, s := range slices.Concat(hclFiles(t), hclBlocks(t)) {
		if s.wrong {
			mistakes++
		}
		t.Run(s.place, func(t *testing.T) {
			data, err := s.data()
			if err != nil {
				t.Fatal(err)
			}
			if data.inFile {
				return
			}
			notes := validate(t, data.role, underTemp(t, data.text, ca))
			if s.wrong && len(notes) == 0 {
				t.Error("is shown as a mistake, and is valid")
			}
			if !s.wrong && len(notes) > 0 {
				t.Errorf("is not valid: %q", notes)
			}
		})
	}
	if mistakes == 0 {
		t.Error("no block is marked as a mistake: is the test looking at the info strings?")
	}
}

// The same of the plugins beside the node attestor, which SPIRE starts for the same binaries.
func TestOtherPluginsAreValid(t *testing.T) {
	found := make(map[string]bool)
	for _, s := range slices.Concat(hclFiles(t), hclBlocks(t)) {
		others, err := s.others()
		if err != nil {
			t.Errorf("%s: %v", s.place, err)
		}
		for _, data := range others {
			found[data.role] = true
			if notes := validate(t, data.role, data.text); len(notes) > 0 {
				t.Errorf("%s: the %s is not valid: %q", s.place, data.role, notes)
			}
		}
	}
	if len(found) != len(otherRoles) {
		t.Errorf("found only %v", found)
	}
}

// So does what an operator checks by hand, `tpm-attestor-server -validate` and
// `certificates fill --config`: a whole file, and the plugin_data of one alone, for which
// nobody says what the trust domain is.
func TestConfigurationsAreValidByHand(t *testing.T) {
	ca := newCA(t)
	spiffe := 0
	for _, s := range slices.Concat(hclFiles(t), hclBlocks(t)) {
		data, err := s.data()
		if err != nil {
			t.Fatal(err)
		}
		if data.role != "server" || data.inFile || s.wrong {
			continue
		}
		texts := []string{data.text}
		if s.whole {
			texts = append(texts, s.text)
		}
		for _, text := range texts {
			if strings.Contains(text, `"spiffe"`) {
				spiffe++
			}
			text = underTemp(t, text, ca)
			if _, err := config.NewLoader().LoadFile(t.Context(), text); err != nil {
				t.Errorf("%s: -validate: %v", s.place, err)
			}
			if _, err := config.NewLoader().Open(t.Context(), text).Parse(); err != nil {
				t.Errorf("%s: certificates fill --config: %v", s.place, err)
			}
		}
	}
	if spiffe == 0 {
		t.Error("nothing names a trust domain: is the test looking at the right blocks?")
	}
}

// The tests above must be able to fail: a key that is misspelt, in any of the
// forms that it reads, is found.
func TestMistakesAreFound(t *testing.T) {
	const block = `NodeAttestor "tpm" {
  plugin_cmd = "/usr/libexec/spire/plugins/tpm-attestor-server"
  plugin_data { source "hash_dir" "a" { pathh = "/srv/a" } }
}`
	for name, s := range map[string]snippet{
		"whole": {whole: true, text: "server {\n}\nplugins {\n" + block + "\n}"},
		"block": {text: block},
		"body":  {role: "server", text: `source "hash_dir" "a" { pathh = "/srv/a" }`},
		"json": {text: `{"plugins": {"NodeAttestor": {"tpm": {"plugin_cmd": "tpm-attestor-server",
			"plugin_data": {"source": {"hash_dir": {"a": {"pathh": "/srv/a"}}}}}}}}`},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := s.data()
			if err != nil {
				t.Fatal(err)
			}
			notes := validate(t, data.role, underTemp(t, data.text, nil))
			if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "pathh") }) {
				t.Errorf("pathh is not refused: %q", notes)
			}
		})
	}
}

// keyTable is one of the documentation's tables of keys, with a configuration
// that has an unknown key in the same place.
type keyTable struct{ mark, role, probe string }

// keyTables returns the tables that there have to be, one for each kind of source
// among them.
func keyTables(t *testing.T) []keyTable {
	t.Helper()
	tables := []keyTable{
		{"keys: server", "server", `unknown_key = 1`},
		{"keys: rule", "server", `allow "a" { unknown_key = 1 }`},
		{"keys: composer", "composer", `unknown_key = 1`},
		{"keys: quote", "server", `quote { unknown_key = 1 }`},
		{"keys: agent", "agent", `unknown_key = 1`},
		{"keys: keymanager", "key manager", `unknown_key = 1`},
		{"keys: agent's devid", "agent", `devid { unknown_key = 1 }`},
	}
	for _, kind := range namedIn(t, validate(t, "server", `source "unknown_kind" "a" {}`)) {
		probe := `source "` + kind + `" "a" { unknown_key = 1 }`
		tables = append(tables, keyTable{"keys: " + kind, "server", probe})
	}
	return tables
}

// thereAre finds what there is in the refusal of something unknown.
var thereAre = regexp.MustCompile(`unknown_k.*(?:; choose from|the keys are) ([a-z_, ]+)`)

// namedIn returns, sorted, the keys or kinds that a refusal names.
func namedIn(t *testing.T, notes []string) []string {
	t.Helper()
	match := thereAre.FindStringSubmatch(strings.Join(notes, "\n"))
	if match == nil {
		t.Fatalf("the refusal does not name what there is: %q", notes)
	}
	return slices.Sorted(strings.SplitSeq(strings.TrimSpace(match[1]), ", "))
}

// A key that was added, renamed or removed is so in the documentation as well, and
// so is a kind of source.
func TestKeysAreDocumented(t *testing.T) {
	for _, table := range keyTables(t) {
		t.Run(table.mark, func(t *testing.T) {
			var keys []string
			for _, row := range documented(t, table.mark) {
				for _, span := range spans(row[0]) {
					key, _, _ := strings.Cut(span, " ")
					keys = append(keys, key)
				}
			}
			slices.Sort(keys)
			known := namedIn(t, validate(t, table.role, table.probe))
			if !slices.Equal(keys, known) {
				t.Errorf("documented are %q, there are %q", keys, known)
			}
		})
	}
}
