package config_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

const (
	cas = `source "ek_ca" "vendors" { ca_path = "/cas"`
	aia = cas + ` aia_hosts = ["pki.infineon.com"]`
)

// A key that is set reaches the source in every syntax, and a key that is not set has the
// default that the documentation names: nothing is fetched, nothing is revoked.
func TestEKCA(t *testing.T) {
	defaults := ekca.Config{Config: truststore.Config{CAPath: "/cas", PollInterval: 30 * time.Second, CRL: ekca.CRLOff}}
	all := ekca.Config{
		Config: truststore.Config{
			CAPath:       "/cas",
			PollInterval: time.Minute,
			AIAHosts:     []string{"10.0.0.7:8080", "pki.infineon.com"},
			MirrorURL:    "http://10.0.0.5/",
			CRL:          ekca.CRLRequired,
			CachePath:    "/var/lib/x.db",
		},
		EKCertificateURLs: map[string]string{
			"amd": "https://ftpm.amd.com/pki/aia/", "intel": "https://ekop.intel.com/ekcertservice/",
		},
	}
	const allHCL = `source "ek_ca" "vendors" {
		ca_path       = "/cas"
		poll_interval = "1m"
		aia_hosts     = ["pki.infineon.com", "10.0.0.7:8080"]
		ek_certificate_urls = {
			intel = "https://ekop.intel.com/ekcertservice/"
			amd   = "https://ftpm.amd.com/pki/aia/"
		}
		mirror_url = "http://10.0.0.5/"
		crl        = "required"
		cache_path = "/var/lib/x.db"
	}`
	const allJSON = `{"source": {"ek_ca": {"vendors": {"ca_path": "/cas", "poll_interval": "1m",
		"aia_hosts": ["pki.infineon.com", "10.0.0.7:8080"], "mirror_url": "http://10.0.0.5/", "crl": "required",
		"ek_certificate_urls": [{"intel": "https://ekop.intel.com/ekcertservice/"}, {"amd": "https://ftpm.amd.com/pki/aia/"}],
		"cache_path": "/var/lib/x.db"}}}}`
	for text, want := range map[string]ekca.Config{
		cas + `}`:                                defaults,
		cas + ` crl = "off" }`:                   defaults,
		allHCL:                                   all,
		throughSPIRE(t, inHCL(allHCL)):           all,
		allJSON:                                  all,
		throughSPIRE(t, inJSON(allJSON)):         all,
		sortedJSON(t, allJSON):                   all,
		throughSPIRE(t, inJSONLists(allJSON)):    all,
		strings.ReplaceAll(allHCL, "\n", "\r\n"): all,
	} {
		if d := cmp.Diff(want, mustParse(t, text).Members[0].Config); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
}

// A map may be written as a block, and Helm prints keys in quotes: a service must
// not be lost by it.
func TestServicesInABlock(t *testing.T) {
	printed := throughSPIRE(t, inJSON(`{"source": {"ek_ca": {"v": {"ca_path": "/cas",
		"ek_certificate_urls": {"amd": "https://ftpm.amd.com/pki/aia/"}}}}}`))
	block := cas + ` ek_certificate_urls { amd = "https://ftpm.amd.com/pki/aia/" } }`
	for _, text := range []string{printed, block, throughSPIRE(t, inHCL(block))} {
		cfg, _ := mustParse(t, text).Members[0].Config.(ekca.Config)
		want := map[string]string{"amd": "https://ftpm.amd.com/pki/aia/"}
		if d := cmp.Diff(want, cfg.EKCertificateURLs); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
}

// A key that would silently have no effect, such as a revocation mode that asks
// nobody, is refused by its path, with what to write.
func TestEKCAProblems(t *testing.T) {
	const at = `source "ek_ca" "vendors": `
	for _, tt := range []struct{ text, want string }{
		{cas + ` aia_hosts = "x" }`, at + `aia_hosts: is the string "x", but must be a list: write aia_hosts = ["x"]`},
		{cas + ` aia_hosts = [] }`, at + `aia_hosts: is empty: add an entry, or leave the key out`},
		{cas + ` aia_hosts = [5] }`, at + `aia_hosts: contains the number 5, but must be a list of strings`},
		{cas + ` aia_hosts = ["a", "a"] }`, at + `aia_hosts: contains "a" twice`},
		{cas + ` aia_hosts = ["http://x/"] }`, at + `aia_hosts: allowed host "http://x/": write just a host`},
		{cas + ` aia_hosts = ["", "x:0"] }`, at + `aia_hosts: allowed host "": `},
		{aia + ` mirror_url = "10.0.0.5" }`, at + `mirror_url: mirror URL "10.0.0.5": `},
		{
			cas + ` ek_certificate_urls = { amd = "ftp://x/" } }`,
			at + `ek_certificate_urls: base URL "ftp://x/": `,
		},
		{aia + ` crl = "on" }`, at + `crl: is the string "on", but must be one of "off", "if_available", "required"`},
		{aia + ` crl = true }`, at + `crl: is true, but must be a string`},
		{cas + ` crl = "required" }`, at + `crl: is "required", but there are no hosts that CRLs may be fetched from: ` +
			`write aia_hosts = ["pki.infineon.com"]`},
		{cas + ` mirror_url = "http://x/" }`, at + `mirror_url: replaces the hosts in aia_hosts, but there are none`},
		{
			cas + ` mirror_url = "http://x/" ek_certificate_urls = { amd = "http://x/" } }`,
			at + `mirror_url: replaces the hosts in aia_hosts, but there are none`,
		},
		{cas + ` cache_path = "/x/y" }`, at + `cache_path: nothing is fetched, so there is nothing to cache`},
		{
			cas + ` ek_certificate_urls = { inte = "https://x/" } }`,
			at + `ek_certificate_urls: "inte" is not a known EK certificate service: choose from amd, intel`,
		},
		{cas + ` ek_certificate_urls = "https://x/" }`, at + `ek_certificate_urls: is the string "https://x/", but must be a block`},
		{cas + ` ek_certificate_urls = {} }`, at + `ek_certificate_urls: is empty: write ek_certificate_urls = {`},
		{cas + ` ek_certificate_urls = { amd = 5 } }`, at + `ek_certificate_urls: amd: is the number 5, but must be a string`},
		{aia + ` mirror_url = ["http://x/"] }`, at + `mirror_url: is a list, but must be a string`},
		{aia + ` cache_path = "" }`, at + `cache_path: is empty: give it a value, or leave the key out`},
		{aia + ` aia_host = "x" }`, at + `aia_host: unknown key; did you mean aia_hosts?`},
		{
			aia + ` cache_path = "/x/y" } source "http" "lab" { url = "https://y/" cache_path = "/x//y" }`,
			`source "ek_ca" "vendors": cache_path: is also the cache of source "http" "lab"`,
		},
	} {
		_, err := config.Parse(tt.text, trustDomain)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
	// All at once, not one a try.
	_, err := config.Parse(cas+` crl = "on" mirror_url = "http://x/" aia_host = "x" }`, trustDomain)
	for _, key := range []string{"crl", "mirror_url", "aia_host"} {
		if err == nil || !strings.Contains(err.Error(), at+key+": ") {
			t.Errorf("%s is not told: %v", key, err)
		}
	}
}

// The folder of a cache is not made by the server: a name that is mistyped is
// found before the server runs without one.
func TestEKCACacheFolder(t *testing.T) {
	dir := t.TempDir()
	text := func(cache string) string {
		return `source "ek_ca" "v" { ca_path = "` + dir + `" aia_hosts = ["x"] cache_path = "` + cache + `" }`
	}
	l := config.NewLoader()
	if _, err := l.Load(t.Context(), text(dir+"/new.db"), trustDomain); err != nil {
		t.Error(err)
	}
	want := `source "ek_ca" "v": cache_path: "` + dir + `/none`
	if _, err := l.Load(t.Context(), text(dir+"/none/x.db"), trustDomain); err == nil || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
}

// A configuration that fetches without a cache gets a warning about what a restart costs. One with a
// cache, or that fetches nothing, gets none.
func TestEKCAWarnings(t *testing.T) {
	for text, want := range map[string]bool{
		cas + `}`: false,
		aia + `}`: true,
		cas + ` ek_certificate_urls = { amd = "https://x/" } }`: true,
		aia + ` cache_path = "/x.db" }`:                         false,
	} {
		warnings := mustParse(t, text).Warnings
		got := slices.ContainsFunc(warnings, func(w string) bool {
			return strings.HasPrefix(w, `source "ek_ca" "vendors": cache_path: is missing: `)
		})
		if got != want {
			t.Errorf("%s: %q", text, warnings)
		}
	}
}

// A site without the Internet that has forgotten one of the vendors' URLs learns so
// before a machine is waited for.
func TestServiceBesideTheMirror(t *testing.T) {
	c := mustParse(t, aia+` cache_path = "/x.db" mirror_url = "http://10.0.0.5/" ek_certificate_urls = {
		amd = "https://ftpm.amd.com/pki/aia/" intel = "http://10.0.0.5/ekop.intel.com/ekcertservice/" } }`)
	const want = `source "ek_ca" "vendors": ek_certificate_urls: amd: is not under mirror_url, ` +
		`which replaces aia_hosts only: "https://ftpm.amd.com/pki/aia/" itself is contacted`
	if !slices.Contains(c.Warnings, want) || slices.ContainsFunc(c.Warnings, func(w string) bool {
		return strings.Contains(w, "intel")
	}) {
		t.Errorf("%q", c.Warnings)
	}
}
