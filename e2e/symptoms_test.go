package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// Whoever follows the page on troubleshooting compares SPIRE's log with what the page quotes. So this
// test makes a real agent log each message. If a release of SPIRE changes the words, the test fails.
func TestSymptomsInSPIREsLog(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf("hash_path = %q", hashes)})
	ca := swtpmtest.NewCA(t)
	stranger, banned, evicted := w.machine(ca), w.machine(ca), w.machine(ca)
	w.list(hashes, banned)
	w.list(hashes, evicted)
	first, known := w.admitted(s, banned)
	second, gone := w.admitted(s, evicted)
	if err := os.Remove(filepath.Join(hashes, evicted.hash)); err != nil {
		t.Fatal(err)
	}
	w.evict(s, gone)
	if _, err := w.agentAPI(s).BanAgent(w.ctx, &agentv1.BanAgentRequest{Id: known.Id}); err != nil {
		t.Fatal(err)
	}

	var said []string
	says := func(p *spiretest.Process, words ...string) {
		t.Helper()
		said = append(said, words[0])
		w.waitLog(p, 0, words...)
		p.Stop() // the next agent may use its TPM
	}
	dir := w.folder("agent")
	says(w.agentIn(dir, s, stranger).Process, "failed to receive attestation response", "this TPM is not admitted")
	_, port, _ := strings.Cut(s.Address, ":")
	for _, tt := range []struct {
		old, changed string
		words        []string
	}{
		{`NodeAttestor "tpm"`, `NodeAttestor "tpm_direct"`, []string{"could not find node attestor type"}},
		{
			"plugin_cmd", fmt.Sprintf("plugin_checksum = \"%064d\"\nplugin_cmd", 0),
			[]string{"checksums did not match", "Agent crashed"},
		},
		{"tpm-attestor-agent", "tpm-attestor-nobody", []string{"failed to launch plugin", "Agent crashed"}},
		{"device = ", "devise = ", []string{"failed to configure plugin", "devise: unknown key"}},
		{stranger.tpm.Device, "/dev/no-tpm", []string{"nodeattestor(tpm): use the TPM"}},
		{port, "1", []string{"could not open attestation stream to SPIRE server"}},
		{
			s.BundlePath, ca.IssuerPath,
			[]string{"could not open attestation stream to SPIRE server", "certificate signed by unknown authority"},
		},
	} {
		says(w.changedAgent(dir, tt.old, tt.changed), tt.words...)
	}
	says(second.Process, "Agent failed re-attestation; removing SVID and shutting down")
	says(second.Process, "authorization denied for method", "Agent crashed") // its last line
	says(first.Process, "Agent is banned: removing SVID and shutting down")
	says(w.agent(s, banned).Process, "failed to attest: agent is banned")

	page, err := os.ReadFile("../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := quotedOfSPIRE(string(page))
	slices.Sort(said)
	if said = slices.Compact(said); !slices.Equal(quoted, said) {
		t.Errorf("the page quotes %q, SPIRE says %q", quoted, said)
	}
}

// quotedOfSPIRE returns the messages in the first column of the page's table of SPIRE's, sorted.
func quotedOfSPIRE(page string) (all []string) {
	_, table, _ := strings.Cut(page, "<!-- messages: SPIRE -->\n\n")
	table, _, _ = strings.Cut(table, "\n\n")
	span := regexp.MustCompile("`([^`]+)`")
	for row := range strings.Lines(table) {
		cells := strings.SplitN(row, "|", 3)
		for _, m := range span.FindAllStringSubmatch(cells[1], -1) {
			all = append(all, m[1])
		}
	}
	slices.Sort(all)
	return all
}

// changedAgent starts an agent with the configuration of another agent, in which a text is replaced.
func (w *world) changedAgent(dir, old, changed string) *spiretest.Process {
	w.t.Helper()
	own := w.folder("changed")
	config, err := os.ReadFile(filepath.Join(dir, "agent.conf"))
	if err != nil {
		w.t.Fatal(err)
	}
	text := string(config)
	if !strings.Contains(text, old) {
		w.t.Fatalf("the agent's configuration has no %q:\n%s", old, text)
	}
	text = strings.ReplaceAll(strings.ReplaceAll(text, old, changed), dir, own)
	path := filepath.Join(own, "agent.conf")
	w.write(path, text)
	p, err := spiretest.Start("spire-agent", exec.Command(w.programs.Agent, "run", "-config", path),
		filepath.Join(own, "agent.log"), false)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Stop)
	w.keepLog(p)
	return p
}
