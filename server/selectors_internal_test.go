package server

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// The selectors are matched against registration entries letter by letter.
func TestSelectors(t *testing.T) {
	const hash = "00ff"
	for _, tt := range []struct {
		name string
		d    sources.Decision
		want []string
	}{
		{"nothing known", sources.Decision{}, []string{"pub_hash:00ff"}},
		{
			"everything, twice",
			sources.Decision{
				Rules: []string{"b", "a"}, Listed: []string{"inventory", "vendors"},
				Attributes: []sources.Attributes{
					{Name: "web-1", Labels: []string{"env:prod", "rack:12"}},
					{
						Name: "web-1", Labels: []string{"env:prod"}, CAs: []string{"infineon", "stm"},
						Certificate: &sources.EKCertificate{
							IssuerCN: "Infineon OPTIGA(TM) TPM 2.0 RSA CA 042", IssuerKeyHash: "ab", Serial: "1f",
							Manufacturer: "id:49465800", Model: "SLB9670", Version: "id:00070055",
						},
					},
				},
			},
			[]string{
				"ca:infineon", "ca:stm", "ek:issuer:cn:Infineon OPTIGA(TM) TPM 2.0 RSA CA 042", "ek:serial:1f",
				"label:env:prod", "label:rack:12", "manufacturer:id:49465800", "model:SLB9670", "name:web-1",
				"pub_hash:00ff", "rule:a", "rule:b", "source:inventory", "source:vendors", "version:id:00070055",
			},
		},
		{
			// The labels of a list that somebody else writes must stay labels.
			"forged labels",
			sources.Decision{Attributes: []sources.Attributes{{Labels: []string{"rule:admin", "pub_hash:1", "ca:x"}}}},
			[]string{"label:ca:x", "label:pub_hash:1", "label:rule:admin", "pub_hash:00ff"},
		},
		{
			"an empty certificate",
			sources.Decision{Attributes: []sources.Attributes{{Certificate: &sources.EKCertificate{}}}},
			[]string{"pub_hash:00ff"},
		},
	} {
		if d := cmp.Diff(tt.want, selectors(hash, &tt.d)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}
