package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A machine that is not listed is refused, even if its TPM is genuine and another machine is
// listed. The server's log has the hash by which an operator can enrol it.
func TestStrangerIsRefused(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes),
	})
	w.list(hashes, machine{hash: strings.Repeat("ab", 32)})
	line := w.refused(s, w.machine(nil))
	if !strings.Contains(line, "127.0.0.1") {
		t.Errorf("the server's log does not say where the stranger is: %s", line)
	}
}

// With a hash in a folder and no rule, the machine is admitted. Its selectors and its SPIFFE ID
// are those that registration entries rely on.
func TestAdmittedByHash(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes),
	})
	m := w.machine(nil)
	w.write(filepath.Join(hashes, m.hash), `{"name": "edge-1", "labels": ["rack:12"]}`)
	a, known := w.admitted(s, m)
	w.wantSelectors(known, "pub_hash:"+m.hash, "rule:default", "source:fleet", "name:edge-1",
		"label:rack:12")
	if known.AttestationType != "tpm" || !known.CanReattest {
		t.Errorf("attested by %q, can re-attest: %v; want tpm, true", known.AttestationType,
			known.CanReattest)
	}
	w.wantWorkloadSVID(s, a, known)
}

// A trusted CA admits its own machines only. The stranger's certificate is from a CA with the
// same name and another key.
func TestAdmittedByCA(t *testing.T) {
	w := newWorld(t)
	ca := swtpmtest.NewCA(t)
	m := w.machine(ca)
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf(
		"source \"ek_ca\" \"vendors\" { bundles = { example = %q } }", ca.IssuerPath)})
	_, known := w.admitted(s, m)
	w.wantSelectors(known, "pub_hash:"+m.hash, "rule:default", "source:vendors", "ca:example",
		"ek:issuer:cn:swtpm-localca", "ek:serial:[1-9a-f][0-9a-f]*",
		"manufacturer:.+", "model:.+", "version:.+")
	w.refused(s, w.machine(nil))
}

// A rule with all needs every source: neither a listed TPM of an unknown vendor nor an unlisted
// TPM of a known vendor is admitted.
func TestBothInOneRule(t *testing.T) {
	w := newWorld(t)
	ca, hashes := swtpmtest.NewCA(t), w.folder("hashes")
	both, unlisted, unvouched := w.machine(ca), w.machine(ca), w.machine(nil)
	w.list(hashes, both)
	w.list(hashes, unvouched)
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf(`
		source "hash_dir" "fleet" { path = %q }
		source "ek_ca" "vendors" { ca_path = %q }
		allow "production" { all = ["fleet", "vendors"] }`, hashes, ca.IssuerPath)})
	w.refused(s, unlisted)
	w.refused(s, unvouched)
	_, known := w.admitted(s, both)
	w.wantSelectors(known, "pub_hash:"+both.hash, "rule:production", "source:fleet",
		"source:vendors", "ek:issuer:cn:swtpm-localca", "ek:serial:[1-9a-f][0-9a-f]*",
		"manufacturer:.+", "model:.+", "version:.+")
}

// A deny rule overrides every allow rule: one entry refuses a stolen machine, whatever else
// lists it.
func TestDeniedByARule(t *testing.T) {
	w := newWorld(t)
	hashes, stolen := w.folder("hashes"), w.folder("stolen")
	w.write(filepath.Join(stolen, "MARKER"), "")
	honest, lost := w.machine(nil), w.machine(nil)
	for _, m := range []machine{honest, lost} {
		w.list(hashes, m)
	}
	w.list(stolen, lost)
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf(`
		source "hash_dir" "fleet" { path = %q }
		source "hash_dir" "stolen" {
			path   = %q
			marker = "MARKER"
		}
		allow "fleet" { any = ["fleet"] }
		deny "stolen" { any = ["stolen"] }`, hashes, stolen)})
	if line := w.refused(s, lost); !strings.Contains(line, "stolen") {
		t.Errorf("the log does not name the rule: %s", line)
	}
	w.admitted(s, honest)
}

// A folder whose mount has gone looks empty. Without its marker, the server cannot tell who is
// denied: it admits nobody, and the agent tries again.
func TestUnmountedDenyListAdmitsNobody(t *testing.T) {
	w := newWorld(t)
	hashes, stolen := w.folder("hashes"), w.folder("stolen")
	m := w.machine(nil)
	w.list(hashes, m)
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf(`
		source "hash_dir" "fleet" { path = %q }
		source "hash_dir" "stolen" {
			path   = %q
			marker = "MARKER"
		}
		allow "fleet" { any = ["fleet"] }
		deny "stolen" { any = ["stolen"] }`, hashes, stolen)})
	a := w.agent(s, m)
	w.waitLog(a.Process, 0, "Unavailable")
	if len(w.agents(s)) != 0 {
		t.Error("a machine is admitted while the deny list cannot be read")
	}
	w.write(filepath.Join(stolen, "MARKER"), "")
	if _, err := a.Attested(w.ctx); err != nil {
		t.Errorf("with the list back: %v", err)
	}
}

// A machine attests with every type of EK. Each type has its own template, name algorithm and
// encryption of the credential.
func TestEveryTypeOfEK(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes),
	})
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	big := swtpmtest.Start(t, swtpmtest.Options{RSA3072: true})
	for _, m := range []machine{
		{tpm: tpm, ek: "rsa2048"},
		{tpm: tpm, ek: "p256"},
		{tpm: tpm, ek: "p384"},
		{tpm: big, ek: "rsa3072"},
	} {
		t.Run(m.ek, func(t *testing.T) {
			w := w.in(t)
			m := w.enrol(m.tpm, m.ek)
			w.list(hashes, m)
			a, _ := w.admitted(s, m)
			a.Stop() // the next agent needs the TPM
		})
	}
}

// A template makes the SPIFFE ID of a name in the list. A machine without a name there is
// refused: an ID with an empty name could be any machine's.
func TestAgentPathTemplate(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf(`
		agent_path_template = "/tpm/{{ .Name }}"
		source "hash_dir" "fleet" { path = %q }`, hashes)})
	named, nameless := w.machine(nil), w.machine(nil)
	w.write(filepath.Join(hashes, named.hash), `{"name": "edge-1"}`)
	w.list(hashes, nameless)
	w.admittedAs("spiffe://example.org/spire/agent/tpm/edge-1", s, named)
	w.refusedAs("no_id", s, nameless)
}
