package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// Who may be given a DevID is never decided by a DevID: a rule would vouch for itself, and anybody
// could have one. Nor is it decided by the boot alone, which a TPM in software can claim.
func TestForEnrolment(t *testing.T) {
	t.Parallel()
	const blocks = `
		quote { pcrs = [0, 7] }
		source "hash_dir"    "list"    { path = "/" }
		source "hash_dir"    "stolen"  {
			path   = "/"
			marker = "m"
		}
		source "ek_ca"       "vendors" { ca_path = "/" }
		source "boot_policy" "boot"    { path = "/boot.json" }
		source "devid"       "devid"   { ca_path = "/" }
		source "devid"       "other"   { ca_path = "/" }
		deny "stolen" { any = ["stolen"] }
		allow "rest" {
			any     = ["list", "vendors", "boot", "devid", "other"]
			enforce = false
		}
	`
	for rule, want := range map[string]*policy.Rule{ // nil: no rule is left that admits
		`all = ["list"]`:                                   {All: []string{"list"}},
		`any = ["boot"]`:                                   {Any: []string{"boot"}}, // the server admits it, too
		`all = ["devid", "list"]`:                          {All: []string{"list"}},
		`all = ["devid", "vendors", "boot"]`:               {All: []string{"vendors", "boot"}},
		`any = ["devid", "list"]`:                          {Any: []string{"list"}},
		"all = [\"list\"]\nany = [\"devid\", \"other\"]":   {All: []string{"list"}},
		"all = [\"devid\"]\nany = [\"list\", \"vendors\"]": {Any: []string{"list", "vendors"}},
		`any = ["devid"]`:                                  nil,
		`all = ["devid", "other"]`:                         nil,
		`all = ["devid", "boot"]`:                          nil,
		`any = ["devid", "boot"]`:                          nil,
		"all = [\"devid\", \"boot\"]\nany = [\"other\"]":   nil,
		"all = [\"devid\"]\nany = [\"boot\", \"list\"]":    nil,
		"all = [\"devid\", \"list\"]\nenforce = false":     nil,
	} {
		c, err := config.Parse(blocks+`allow "rule" { `+rule+"\n}", "example.org")
		if err != nil {
			t.Fatal(rule, err)
		}
		err = c.ForEnrolment()
		if want == nil {
			if err == nil || !strings.Contains(err.Error(), "none says who may be given one") {
				t.Errorf("%s: %v", rule, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", rule, err)
			continue
		}
		got := c.Policy.Allow[slices.IndexFunc(c.Policy.Allow, func(r policy.Rule) bool { return r.Name == "rule" })]
		want.Name = "rule"
		for _, names := range []*[]string{&got.All, &got.Any, &want.All, &want.Any} {
			slices.Sort(*names)
			*names = append([]string{}, *names...)
		}
		if diff := cmp.Diff(*want, got); diff != "" {
			t.Errorf("%s: %s", rule, diff)
		}
		var members []string
		for _, m := range c.Members {
			members = append(members, m.Name)
		}
		if slices.Contains(members, "devid") || slices.Contains(members, "other") || !slices.Contains(members, "stolen") {
			t.Errorf("%s: the sources %q", rule, members)
		}
		if _, err := c.NewSet(admission.Options{}); err != nil {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

// Whoever issues DevIDs is told whether the rules know this machine, or admit anybody's with a vendor's TPM.
func TestKnowsMachine(t *testing.T) {
	t.Parallel()
	c, err := config.Parse(`
		source "hash_dir" "list"    { path = "/" }
		source "ek_ca"    "vendors" { ca_path = "/" }
		allow "any" { any = ["list", "vendors"] }
	`, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	if c.KnowsMachine([]string{"vendors"}) || !c.KnowsMachine([]string{"list", "vendors"}) || c.KnowsMachine(nil) {
		t.Error("vendors know no machine, lists do")
	}
}
