package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/printer"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

const trustDomain = "example.org"

// throughSPIRE returns what a plugin gets for a SPIRE configuration, which
// decodes the whole into syntax trees and prints the plugin's part anew.
func throughSPIRE(tb testing.TB, whole string) string {
	tb.Helper()
	var spire struct {
		Plugins ast.Node `hcl:"plugins"`
	}
	if err := hcl.Decode(&spire, whole); err != nil {
		tb.Fatalf("decode the configuration of SPIRE: %v\n%s", err, whole)
	}
	var plugins []map[string]map[string]struct {
		PluginData ast.Node `hcl:"plugin_data"`
	}
	if err := hcl.DecodeObject(&plugins, spire.Plugins); err != nil {
		tb.Fatalf("decode the plugins: %v\n%s", err, whole)
	}
	for _, types := range plugins {
		if p, ok := types["NodeAttestor"]["tpm"]; ok {
			var out bytes.Buffer
			if err := printer.DefaultConfig.Fprint(&out, p.PluginData); err != nil {
				tb.Fatal(err)
			}
			return out.String()
		}
	}
	tb.Fatalf("no plugin found in\n%s", whole)
	return ""
}

// inHCL wraps plugin_data into SPIRE's configuration in HCL.
func inHCL(data string) string {
	return `plugins {
  NodeAttestor "tpm" {
    plugin_cmd = "/opt/tpm-attestor-server"
    plugin_data {
` + data + `
    }
  }
  KeyManager "memory" { plugin_data {} }
}`
}

// inJSON wraps plugin_data into SPIRE's configuration in JSON.
func inJSON(data string) string {
	return `{"plugins": {"KeyManager": {"memory": {"plugin_data": {}}},
  "NodeAttestor": {"tpm": {"plugin_cmd": "/opt/tpm-attestor-server", "plugin_data": ` + data + `}}}}`
}

// inJSONLists is inJSON as converters write it: each block in a list.
func inJSONLists(data string) string {
	return `{"plugins": [{"NodeAttestor": [{"tpm": [{"plugin_cmd": "/x", "plugin_data": [` + data + `]}]}]}]}`
}

const richHCL = `
# The fleet.
reattest            = false
allow_weak_ek       = true
check_timeout       = "2s"
agent_path_template = "/tpm/{{ .CA }}/{{ .Serial }}"

quote {
  pcrs      = [7, 0, 4]
  event_log = "optional"
  selectors = [7]
}
source "hash_dir" "factory" {
  path = "/srv/tpm/hashes" // flat
}
source "hash_dir" "stolen" {
  path       = "/srv/tpm/stolen"
  marker     = ".mounted"
  attributes = false
}
source "ek_ca" "vendors" {
  bundles = {
    infineon = "/etc/tpm/infineon.pem"
    stm      = "/etc/tpm/stm.pem"
  }
}
source "ek_ca" "lab" {
  ca_path       = "/etc/tpm/lab"
  poll_interval = "1m"
}
allow "production" { all = ["factory", "vendors"] }
allow "lab" {
  any = ["lab", "factory"]
  all = ["vendors"]
  enforce = false
}
deny "stolen" { any = ["stolen"] }
`

const richJSON = `{
  "agent_path_template": "/tpm/{{ .CA }}/{{ .Serial }}",
  "allow": {"lab": {"all": ["vendors"], "any": ["lab", "factory"], "enforce": false},
            "production": {"all": ["factory", "vendors"]}},
  "allow_weak_ek": true,
  "check_timeout": "2s",
  "deny": {"stolen": {"any": ["stolen"]}},
  "quote": {"event_log": "optional", "pcrs": [0, 4, 7], "selectors": [7]},
  "reattest": false,
  "source": {
    "ek_ca": {
      "lab": {"ca_path": "/etc/tpm/lab", "poll_interval": "1m"},
      "vendors": {"bundles": {"infineon": "/etc/tpm/infineon.pem", "stm": "/etc/tpm/stm.pem"}}},
    "hash_dir": {
      "factory": {"path": "/srv/tpm/hashes"},
      "stolen": {"attributes": false, "marker": ".mounted", "path": "/srv/tpm/stolen"}}}
}`

// The same, with every block in a list, as a JSON form of HCL.
const richJSONLists = `{
  "agent_path_template": "/tpm/{{ .CA }}/{{ .Serial }}",
  "allow": [{"lab": [{"all": ["vendors"], "any": ["lab", "factory"], "enforce": false}]},
            {"production": [{"all": ["factory", "vendors"]}]}],
  "allow_weak_ek": true,
  "check_timeout": "2s",
  "deny": [{"stolen": [{"any": ["stolen"]}]}],
  "quote": [{"event_log": "optional", "pcrs": [0, 4, 7], "selectors": [7]}],
  "reattest": false,
  "source": [
    {"hash_dir": [{"factory": [{"path": "/srv/tpm/hashes"}]}]},
    {"ek_ca": [{"lab": [{"ca_path": "/etc/tpm/lab", "poll_interval": "1m"}]}]},
    {"ek_ca": {"vendors": {"bundles": [{"infineon": "/etc/tpm/infineon.pem"}, {"stm": "/etc/tpm/stm.pem"}]}}},
    {"hash_dir": {"stolen": {"attributes": false, "marker": ".mounted", "path": "/srv/tpm/stolen"}}}]
}`

func richConfig(tb testing.TB) *config.Config {
	tb.Helper()
	c := mustParse(tb, richHCL)
	c.Members = []admission.Member{
		{Name: "factory", Kind: "hash_dir", Config: hashdir.Config{Path: "/srv/tpm/hashes"}},
		{Name: "lab", Kind: "ek_ca", Config: ekca.Config{
			Config: truststore.Config{
				CAPath:       "/etc/tpm/lab",
				PollInterval: time.Minute,
				CRL:          ekca.CRLOff,
			},
		}},
		{
			Name: "stolen", Kind: "hash_dir", NoAttributes: true,
			Config: hashdir.Config{Path: "/srv/tpm/stolen", Marker: ".mounted"},
		},
		{
			Name: "vendors", Kind: "ek_ca",
			Config: ekca.Config{
				Config: truststore.Config{
					Bundles:      map[string]string{"infineon": "/etc/tpm/infineon.pem", "stm": "/etc/tpm/stm.pem"},
					PollInterval: 30 * time.Second,
					CRL:          ekca.CRLOff,
				},
			},
		},
	}
	c.Policy = policy.Policy{
		Allow: []policy.Rule{
			{Name: "lab", All: []string{"vendors"}, Any: []string{"factory", "lab"}, Trial: true},
			{Name: "production", All: []string{"factory", "vendors"}},
		},
		Deny: []policy.Rule{{Name: "stolen", Any: []string{"stolen"}}},
	}
	c.Quote = &config.Quote{PCRs: []int{0, 4, 7}, Bank: "sha256", EventLog: "optional", Selectors: []int{7}}
	c.Reattest, c.AllowWeakEK, c.CheckTimeout = false, true, 2*time.Second
	return c
}

// mustParse is Parse for configurations that are right.
func mustParse(tb testing.TB, text string) *config.Config {
	tb.Helper()
	c, err := config.Parse(text, trustDomain)
	if err != nil {
		tb.Fatalf("Parse: %v\n%s", err, text)
	}
	return c
}

// diff compares what two configurations say.
func diff(a, b *config.Config) string {
	return cmp.Diff(facts(a), facts(b))
}

// facts are the parts of a Config that can be compared.
func facts(c *config.Config) map[string]any {
	members := slices.Clone(c.Members)
	for i := range members {
		members[i].Source = nil
	}
	warnings := slices.Sorted(slices.Values(c.Warnings))
	return map[string]any{
		"members": members, "policy": c.Policy, "path": c.AgentPath.String(), "reattest": c.Reattest,
		"weak": c.AllowWeakEK, "quote": c.Quote, "timeout": c.CheckTimeout, "warnings": warnings, "domain": c.TrustDomain.Name(),
	}
}

// An operator who moves from HCL to Helm must not change who is admitted: every
// way a configuration can reach the plugin means the same.
func TestEverySyntaxMeansTheSame(t *testing.T) {
	want := richConfig(t)
	const nested = `source = {hash_dir = {factory {path = "/srv/tpm/hashes"}}}`
	for name, text := range map[string]string{
		"HCL":                        richHCL,
		"JSON":                       richJSON,
		"JSON lists":                 richJSONLists,
		"JSON with a mark":           "\ufeff \n" + richJSON,
		"HCL, CRLF":                  strings.ReplaceAll(richHCL, "\n", "\r\n"),
		"HCL through SPIRE":          throughSPIRE(t, inHCL(richHCL)),
		"JSON through SPIRE":         throughSPIRE(t, inJSON(richJSON)),
		"JSON lists through SPIRE":   throughSPIRE(t, inJSON(richJSONLists)),
		"JSON in lists":              throughSPIRE(t, inJSONLists(richJSON)),
		"JSON lists in lists":        throughSPIRE(t, inJSONLists(richJSONLists)),
		"nested":                     nested + cut(richHCL, `source "hash_dir" "factory" {`),
		"printed twice":              throughSPIRE(t, inHCL(throughSPIRE(t, inHCL(richHCL)))),
		"JSON from Helm, sorted":     throughSPIRE(t, inJSON(sortedJSON(t, richJSON))),
		"lists from Helm, sorted":    throughSPIRE(t, inJSON(sortedJSON(t, richJSONLists))),
		"empty blocks beside others": strings.ReplaceAll(richHCL, "# The fleet.", "source = {}\nallow = []\ndeny {}\n"),
	} {
		t.Run(name, func(t *testing.T) {
			if d := diff(want, mustParse(t, text)); d != "" {
				t.Errorf("differs (-want +got):\n%s\nfrom:\n%s", d, text)
			}
		})
	}
}

// cut removes a block that begins with a line.
func cut(text, first string) string {
	before, rest, _ := strings.Cut(text, first)
	_, after, _ := strings.Cut(rest, "}\n")
	return before + after
}

// sortedJSON renders JSON as Helm does.
func sortedJSON(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// An object with one key is folded into its parent's keys on the way from JSON:
// a source must not lose its only map by it.
func TestFoldedObjects(t *testing.T) {
	const data = `{"source": {"ek_ca": {"v": {"bundles": {"infineon": "/i"}}}}}`
	printed := throughSPIRE(t, inJSON(data))
	if !strings.Contains(printed, `"source" "ek_ca" "v" "bundles"`) {
		t.Fatalf("nothing is folded any more, this test tests nothing:\n%s", printed)
	}
	want := mustParse(t, `source "ek_ca" "v" { bundles { infineon = "/i" } }`)
	if d := diff(want, mustParse(t, printed)); d != "" {
		t.Errorf("differs (-want +got):\n%s", d)
	}
}

// Guards against a decoder in which the first or the last of several blocks
// wins: in whatever order they come, the result is one.
func TestOrderDoesNotMatter(t *testing.T) {
	blocks := []string{
		`source "hash_dir" "factory" { path = "/srv/tpm/hashes" }`,
		`source "hash_dir" "stolen" { attributes = false marker = ".mounted" path = "/srv/tpm/stolen" }`,
		`source "ek_ca" "vendors" { bundles = { stm = "/etc/tpm/stm.pem" infineon = "/etc/tpm/infineon.pem" } }`,
		`source "ek_ca" "lab" { poll_interval = "1m" ca_path = "/etc/tpm/lab" }`,
		`allow "production" { all = ["vendors", "factory"] }`,
		`allow "lab" { enforce = false any = ["factory", "lab"] all = ["vendors"] }`,
		`deny "stolen" { any = ["stolen"] }`,
		`quote { selectors = [7] event_log = "optional" pcrs = [4, 7, 0] }`,
		`reattest = false`, `allow_weak_ek = true`, `check_timeout = "2s"`,
		`agent_path_template = "/tpm/{{ .CA }}/{{ .Serial }}"`,
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		random.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
		text := strings.Join(blocks, "\n")
		if d := diff(richConfig(t), mustParse(t, text)); d != "" {
			t.Fatalf("differs (-want +got):\n%s\nfrom:\n%s", d, text)
		}
	}
}

// The mistakes that are told must not depend on the order either, or a person
// who corrects them would see them jump.
func TestProblemsAreInOrder(t *testing.T) {
	lines := []string{
		`source "hash_dir" "b" { pat = "/x" }`, `source "hash_dir" "a" { path = 5 }`,
		`source "ek_ca" "a" { ca_path = "/x" }`, `bogus = 1`, `deny "d" { any = ["nobody"] }`,
	}
	_, want := config.Parse(strings.Join(lines, "\n"), trustDomain)
	slices.Reverse(lines)
	_, got := config.Parse(strings.Join(lines, "\n"), trustDomain)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("differs (-in order +reversed):\n%s", d)
	}
}

// FuzzConfig: whatever the text, nothing panics; Parse and Load agree; and what
// is accepted means the same once it is printed anew.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		richHCL, richJSON, richJSONLists, `hash_path = "/x"`, `source = [{`, "path = <<X\n/x\nX\n", `{"source": null}`,
		`source "ek_ca" "v" "bundles" { a = "/x" }`, strings.Repeat("a{", 40), `reattest =`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Parse(text, trustDomain)
		loader := config.NewLoaderWith(everythingExists)
		c2, err2 := loader.Load(t.Context(), text, trustDomain)
		if (err == nil) != (err2 == nil) {
			// A file is where a folder must be, or the like: no other reason.
			if err != nil || !strings.Contains(err2.Error(), "is not a folder") {
				t.Fatalf("Parse: %v; Load: %v", err, err2)
			}
		}
		if err != nil {
			var ps config.Problems
			if !errors.As(err, &ps) || len(ps) == 0 || strings.TrimSpace(err.Error()) == "" {
				t.Fatalf("an empty error: %#v", err)
			}
			return
		}
		if d := diff(c, c2); err2 == nil && d != "" {
			t.Fatalf("Load differs from Parse:\n%s", d)
		}
		if strings.HasPrefix(strings.TrimLeft(text, "\ufeff \t\r\n"), "{") {
			return // the printer reads HCL
		}
		again, ok := reprint(text)
		if !ok {
			return
		}
		c3, err := config.Parse(again, trustDomain)
		if err != nil {
			t.Fatalf("printed anew, it is refused: %v\n%s", err, again)
		}
		if d := diff(c, c3); d != "" {
			t.Fatalf("printed anew, it differs:\n%s\n%s", d, again)
		}
	})
}

// reprint prints HCL as SPIRE does. It answers false where there is more in the
// text than SPIRE prints faithfully: comments, and strings over several lines.
func reprint(text string) (string, bool) {
	if strings.ContainsAny(text, "#<") || strings.Contains(text, "//") || strings.Contains(text, "/*") {
		return "", false
	}
	file, err := hcl.Parse(text)
	if err != nil {
		return "", false
	}
	var out bytes.Buffer
	if err := printer.DefaultConfig.Fprint(&out, file.Node); err != nil {
		return "", false
	}
	return out.String(), true
}

// Guards the table of kinds: each must show an example that is right, which
// errors and documentation print.
func TestExamplesOfKinds(t *testing.T) {
	for kind, example := range config.KindExamples() {
		c := mustParse(t, "quote { pcrs = [7] }\n"+example)
		if len(c.Members) != 1 || c.Members[0].Kind != kind {
			t.Errorf("the example of %s configures %v", kind, c.Members)
		}
	}
}
