package server_test

import (
	"errors"
	"fmt"
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

// An admission is logged if something was in doubt or on trial: that is how an operator learns
// what a rule on trial would do.
func TestAdmissionsAreLogged(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	listed := sourcetest.Lists(sources.Attributes{})
	rule := func(name string, trial bool, names ...string) policy.Rule {
		return policy.Rule{Name: name, Any: names, Trial: trial}
	}
	for _, tt := range []struct {
		policy policy.Policy
		y      sourcetest.Answer
		level  string
		trials any
	}{
		{policy.AnyOf("x", "y"), listed, "debug", nil},
		{policy.AnyOf("x", "y"), sourcetest.Fails(errors.New("down")), "info", nil},
		{
			policy.Policy{Allow: []policy.Rule{rule("a", false, "x"), rule("t", true, "y")}},
			listed, "info",
			"allow t: would hold",
		},
		{
			policy.Policy{Allow: []policy.Rule{rule("a", false, "x")}, Deny: []policy.Rule{rule("t", true, "y")}},
			sourcetest.ListsNot(), "info", "deny t: would not hold",
		},
		{
			policy.Policy{Allow: []policy.Rule{rule("a", false, "x")}, Deny: []policy.Rule{rule("t", true, "y")}},
			sourcetest.Fails(errors.New("down")), "info", "deny t: might hold",
		},
	} {
		p, log := server.New(), &logBuffer{}
		p.SetLogger(log.logger())
		p.Use(t, `hash_path = "/x"`, tt.policy, member("x", listed), member("y", tt.y))
		if err := p.Attest(honest(t.Context(), t, tpm)); err != nil {
			t.Fatal(err)
		}
		line := log.find(t, "Machine admitted")
		if line["@level"] != tt.level || line["trials"] != tt.trials || line["ek_hash"] != tpm.EKHash() {
			t.Errorf("the log says %v, want the level %s and the trials %v", line, tt.level, tt.trials)
		}
	}
}
