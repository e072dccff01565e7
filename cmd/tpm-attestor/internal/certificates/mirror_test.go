package certificates

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/mirror"
)

// A mirror is filled by the configuration that the server has which uses it: the
// vendors' services are asked, and not the mirror that is not there yet.
func TestMirrored(t *testing.T) {
	parse := func(text string) *config.Config {
		c, err := config.NewLoader().Open(t.Context(), text).Parse()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := parse(`
		source "ek_ca" "a" {
			ca_path = "/cas"
			aia_hosts = ["b", "a"]
			mirror_url = "http://10.0.0.5/tpm"
			ek_certificate_urls = { intel = "http://10.0.0.5/tpm/ekop.intel.com/ekcertservice/" }
			crl = "if_available"
		}
		source "ek_ca" "b" {
			ca_path = "/cas"
			aia_hosts = ["b", "c:8080"]
			ek_certificate_urls = {
				intel = "https://ekop.intel.com/ekcertservice/"
				amd   = "https://ftpm.amd.com/pki/aia/"
			}
		}
		source "hash_dir" "c" { path = "/x" }
		source "devid" "d" { ca_path = "/cas" aia_hosts = ["pki.example.org"] }
		allow "x" { any = ["a", "b", "c", "d"] }`)
	want := mirror.Config{
		Hosts: []string{"a", "b", "c:8080", "pki.example.org"}, CRLs: true,
		Services: []mirror.Service{
			{Name: "intel", Base: "https://ekop.intel.com/ekcertservice/"},
			{Name: "amd", Base: "https://ftpm.amd.com/pki/aia/"},
		},
	}
	if d := cmp.Diff(want, mirrored(c), cmpopts.IgnoreFields(mirror.Config{}, "Now")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if d := cmp.Diff(mirror.Config{}, mirrored(parse(`source "ek_ca" "vendors" { ca_path = "/cas" }`)), cmpopts.IgnoreFields(mirror.Config{}, "Now")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
