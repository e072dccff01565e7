package config_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
)

const (
	laptops       = `source "devid" "laptops" { ca_path = "/etc/tpm/devid-ca.pem" }` + "\n"
	laptopBundles = `source "devid" "laptops" { bundles = { corp = "/etc/tpm/devid-ca.pem" } }` + "\n"
)

// A key that is set reaches the source, a key that is not set has the default that the documentation
// names, and the server asks machines for their DevID if, and only if, a source needs it.
func TestDevID(t *testing.T) {
	all := devid.Config{
		Bundles: map[string]string{"corp": "/ca"}, PollInterval: time.Minute, AIAHosts: []string{"pki.example.org"},
		MirrorURL: "http://10.0.0.5/", CRL: certs.CRLRequired, CachePath: "/var/lib/x.db",
	}
	for text, want := range map[string]devid.Config{
		laptops: {CAPath: "/etc/tpm/devid-ca.pem", PollInterval: 30 * time.Second, CRL: certs.CRLOff},
		`source "devid" "laptops" { bundles = { corp = "/ca" } poll_interval = "1m" aia_hosts = ["pki.example.org"]
			mirror_url = "http://10.0.0.5/" crl = "required" cache_path = "/var/lib/x.db" }`: all,
		`{"source": {"devid": {"laptops": {"bundles": {"corp": "/ca"}, "poll_interval": "1m", "aia_hosts": ["pki.example.org"],
			"mirror_url": "http://10.0.0.5/", "crl": "required", "cache_path": "/var/lib/x.db"}}}}`: all,
	} {
		c := mustParse(t, text)
		if d := cmp.Diff(want, c.Members[0].Config); d != "" || c.Members[0].Kind != "devid" || !c.AsksDevID {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
	if mustParse(t, factory).AsksDevID {
		t.Error("machines are asked for a DevID that no source needs")
	}
	if c := mustParse(t, factory+laptops+`allow "a" { any = ["factory"] } allow "b" { all = ["factory", "laptops"] enforce = false }`); !c.AsksDevID {
		t.Error("machines are not asked for a DevID that a rule on trial needs")
	}
}

// A deny that anybody can evade, and keys that only an ek_ca has, are refused where they stand.
func TestDevIDProblems(t *testing.T) {
	const at = `source "devid" "laptops": `
	denies := laptops + factory + `allow "a" { all = ["factory"] } `
	const cannot = `deny "d": names laptops, a devid, which cannot deny: a machine that leaves out its DevID would not be listed by it`
	for _, tt := range []struct{ text, want string }{
		{`source "devid" "laptops" {}`, at + `ca_path: write either ca_path = "/etc/tpm/cas" or bundles = `},
		{`source "devid" "laptops" { ca_path = "/x" ek_certificate_urls = { intel = "https://x/" } }`, at + `ek_certificate_urls: unknown key`},
		{`source "devid" "laptops" { ca_path = "/x" crl = "required" }`, at + `crl: is "required", but there are no hosts`},
		{`source "devid" "laptops" { ca_path = "/x" crl = "on" }`, at + `crl: is the string "on", but must be one of "off"`},
		{`source "devid" "laptops" { ca_path = "/x" aia_hosts = ["http://x"] }`, at + `aia_hosts: `},
		{`source "devid" {}`, `source "devid": has no name: write source "devid" "laptops" { ca_path = "/etc/tpm/devid-ca.pem" }`},
		{`source "devids" "x" {}`, `source "devids": unknown kind; did you mean devid?`},
		{denies + `deny "d" { any = ["laptops"] }`, cannot},
		{denies + `deny "d" { all = ["factory", "laptops"] }`, cannot},
		{denies + `deny "d" { any = ["laptops"] enforce = false }`, cannot},
	} {
		_, err := config.Parse(tt.text, trustDomain)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
}

// A TPM in software proves a DevID as well as a real one: an operator who lets a DevID admit
// alone, or with a boot that the same TPM makes up, has to know that he trusts its CA alone. A
// vendor's CA beside it vouches for any EK in the machine's TPM, so a deny by hash is evaded.
func TestDevIDWarnings(t *testing.T) {
	const (
		alone  = "this rule admits by the DevID alone, on the word of its CA"
		boot   = "this rule admits by the boot alone"
		vendor = "this rule admits by the CAs of TPM vendors alone"
		all    = quoted + golden + factory + vendors + laptops
	)
	for _, tt := range []struct {
		rule string
		want []string
	}{
		{`any = ["laptops"]`, []string{alone}},
		{`all = ["laptops"]`, []string{alone}},
		{`all = ["laptops", "golden"]`, []string{alone}},
		{`all = ["golden"] any = ["factory", "laptops"]`, []string{alone}},
		{`all = ["laptops"] any = ["factory", "golden"]`, []string{alone}},
		{`any = ["laptops", "golden"]`, []string{boot, alone}},
		{`any = ["laptops", "vendors"]`, []string{vendor, alone}},
		{`any = ["laptops", "factory"]`, []string{alone}},
		{`all = ["laptops", "vendors"]`, nil},
		{`all = ["laptops", "factory"]`, nil},
		{`all = ["laptops"] any = ["vendors", "factory"]`, nil},
		{`all = ["laptops", "vendors", "golden"]`, nil},
		{`any = ["laptops"] enforce = false`, nil},
	} {
		rest := `allow "rest" { all = ["golden", "factory", "vendors", "laptops"] } `
		var got []string
		for _, w := range mustParse(t, all+rest+`allow "a" { `+tt.rule+` }`).Warnings {
			if said, ok := strings.CutPrefix(w, `allow "a": `); ok {
				got = append(got, said)
			}
		}
		if !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
			t.Errorf("%s: %q, want %q", tt.rule, got, tt.want)
		}
	}
	warned := func(w string) bool { return strings.HasPrefix(w, "rule default: "+alone) }
	if c := mustParse(t, laptops); !slices.ContainsFunc(c.Warnings, warned) {
		t.Errorf("a devid alone: %q", c.Warnings)
	}
	evaded := func(w string) bool { return strings.HasPrefix(w, `deny "d": a TPM has several EKs`) }
	for rule, want := range map[string]bool{
		`all = ["laptops", "vendors"]`: true, `any = ["laptops"]`: true, `all = ["laptops", "factory"]`: false,
	} {
		c := mustParse(t, factory+vendors+laptops+`source "hash_dir" "stolen" { path = "/s" marker = "m" }
			allow "rest" { all = ["factory", "vendors"] } deny "d" { any = ["stolen"] } allow "a" { `+rule+` }`)
		if slices.ContainsFunc(c.Warnings, evaded) != want {
			t.Errorf("%s: %q", rule, c.Warnings)
		}
	}
}

// An ID by DevID needs a source that gives it. A DevID's bundle must not stand in an ID for
// that of an EK certificate: two vendors may give one serial number.
func TestDevIDAgentPath(t *testing.T) {
	const (
		fingerprint = `agent_path_template = "/tpm/{{ .DevIDFingerprint }}" `
		serial      = `agent_path_template = "/tpm/{{ .CA }}/{{ .Serial }}" `
		ca          = `agent_path_template = "/tpm/{{ .CA }}/{{ .PubHash }}" `
		and         = `allow "a" { all = ["laptops", "vendors"] } `
	)
	for _, tt := range []struct{ text, want string }{
		{laptops + fingerprint, ""},
		{factory + fingerprint, "agent_path_template: uses .DevIDFingerprint, which no source of an enforced allow rule provides, so no machine would get an ID: add a devid, without"},
		{strings.Replace(laptops, "}", "attributes = false }", 1) + fingerprint, "uses .DevIDFingerprint, which no source"},
		{laptopBundles + ca, ""},
		{laptops + ca, "uses .CA, which no source of an enforced allow rule provides, so no machine would get an ID: add an ek_ca or a devid with bundles"},
		{laptopBundles + vendors + and + serial, "uses .CA, which no source of an enforced allow rule provides, so no machine would get an ID: add an ek_ca with bundles"},
		{laptops + bundles + and + serial, ""},
	} {
		c, err := config.Parse(tt.text, trustDomain)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.want)
		}
		if err == nil && !c.MayGive("laptops", agentpath.DevIDFingerprint) {
			t.Errorf("%s: laptops gives no fingerprint", tt.text)
		}
	}
	if c := mustParse(t, laptopBundles+bundles+and+serial); c.MayGive("laptops", agentpath.CA) {
		t.Error("laptops gives the bundle of an EK certificate")
	}
	if c := mustParse(t, laptops+fingerprint); slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.HasPrefix(w, "agent_path") }) {
		t.Errorf("%q", c.Warnings)
	}
}
