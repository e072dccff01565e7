package server_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// An operator enrols a machine, and finds out why one is refused, from the log
// alone: it has the rule, each source's verdict, the EK hash and the address.
func TestRefusalsAreLogged(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	p := serve(t)
	denied := hashDir(t, tpm)
	list(t, denied, "marker", "")
	p.configure(t, oneHashDir(hashDir(t, tpm))+fmt.Sprintf(`
		source "hash_dir" "stolen" { path = %q marker = "marker" }
		source "hash_dir" "trial" { path = %q marker = "marker" }
		allow "fleet" { any = ["factory"] }
		deny "stolen" { any = ["stolen"] }
		deny "new" { any = ["trial"] enforce = false }`, denied, denied))
	_, _ = p.attestTPM(t, tpm)
	line := p.log.find(t, "Attestation failed")
	if line["name"] != nil {
		t.Errorf("a machine without a name is called %v", line["name"])
	}
	for key, want := range map[string]string{
		"@level": "warn", "outcome": "refused", "reason": "deny rule stolen holds", "denied_by": "stolen",
		"ek_hash": tpm.EKHash(), "peer": agentAddress, "trials": "deny new: would hold",
	} {
		if got := fmt.Sprint(line[key]); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	for _, want := range []string{"factory: listed", "stolen: listed", "trial: listed"} {
		if got := fmt.Sprint(line["sources"]); !strings.Contains(got, want) {
			t.Errorf("sources is %q, want %q in it", got, want)
		}
	}

	list(t, denied, tpm.EKHash(), `{"name": "stolen-laptop"}`)
	_, _ = p.attestTPM(t, tpm)
	if line = p.log.find(t, "Attestation failed"); line["name"] != "stolen-laptop" {
		t.Errorf("a person cannot tell which machine this is: %v", line)
	}

	_, _ = p.attest(t, []byte("{\"EK\":\"\x1b[2J\"}"), nil)
	line = p.log.find(t, "Attestation failed")
	if fmt.Sprint(line["outcome"]) != "malformed" || line["ek_hash"] != nil || line["peer"] != agentAddress {
		t.Errorf("the log says %v", line)
	}
}

// Every decision is one line, admissions too: whoever asks later who was admitted, by which rule
// and from where, has nothing else. Programs read these lines, so the names of the fields stay,
// and are documented. A change of the golden file is a change for them.
func TestAuditLines(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	listed := sourcetest.Lists(sources.Attributes{Name: "us-east-17", Labels: []string{"rack:12"}})
	down := sourcetest.Fails(errors.New("down"))
	rule := func(name string, trial bool, names ...string) policy.Rule {
		return policy.Rule{Name: name, Any: names, Trial: trial}
	}
	trials := policy.Policy{
		Allow: []policy.Rule{rule("a", false, "x"), rule("t", true, "y")}, Deny: []policy.Rule{rule("d", true, "y")},
	}
	denies := policy.Policy{Allow: []policy.Rule{rule("a", false, "x")}, Deny: []policy.Rule{rule("d", false, "y")}}
	var got strings.Builder
	for _, tt := range []struct {
		what   string
		policy policy.Policy
		x, y   sourcetest.Answer
	}{
		{"admitted", policy.AnyOf("x", "y"), listed, listed},
		{"admitted, a source cannot tell", policy.AnyOf("x", "y"), listed, down},
		{"admitted, rules on trial hold", trials, listed, listed},
		{"admitted, rules on trial do not hold", trials, listed, sourcetest.ListsNot()},
		{"admitted, rules on trial might hold", trials, listed, down},
		{"refused", denies, sourcetest.ListsNot(), sourcetest.ListsNot()},
		{"denied", denies, listed, listed},
		{"perhaps denied", denies, listed, down},
		{"cannot tell", policy.AnyOf("x", "y"), sourcetest.ListsNot(), down},
	} {
		p, log := server.New(), &logBuffer{}
		p.SetLogger(log.logger())
		p.Use(t, `hash_path = "/x"`, tt.policy, member("x", tt.x), member("y", tt.y))
		_ = p.Attest(honest(t.Context(), t, tpm))
		fmt.Fprintf(&got, "# %s\n%s\n", tt.what, strings.ReplaceAll(log.decision(t), tpm.EKHash(), "<ek hash>"))
	}
	golden(t, "testdata/audit.golden", got.String())
}

// decision returns the only line about an attestation, without its time.
func (b *logBuffer) decision(t *testing.T) string {
	t.Helper()
	documented := documentedFields(t)
	var found []string
	for line := range strings.Lines(b.buf.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		delete(entry, "@timestamp")
		if entry["peer"] == nil { // it is about a source
			continue
		}
		for field := range entry {
			if !strings.HasPrefix(field, "@") && !strings.Contains(documented, "`"+field+"`") {
				t.Errorf("the field %q is not documented", field)
			}
		}
		sorted, _ := json.Marshal(entry)
		found = append(found, string(sorted))
	}
	if len(found) != 1 {
		t.Fatalf("%d lines about one attestation: %q", len(found), found)
	}
	return found[0]
}

// documentedFields returns the table of the audit line's fields, on whatever page it is.
func documentedFields(t *testing.T) string {
	t.Helper()
	const mark = "<!-- fields -->\n\n"
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, table, found := strings.Cut(string(text), mark); found {
			table, _, _ = strings.Cut(table, "\n\n")
			return table
		}
	}
	t.Fatalf("no page in docs has a table below %q", mark)
	return ""
}

// golden compares a text with a file. With UPDATE_GOLDEN=1, it writes the file.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%v: got\n%s\nwant, as in %s,\n%s", err, got, path, want)
	}
}
