package server

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// The selectors are matched against registration entries letter by letter.
func TestSelectors(t *testing.T) {
	hash := sources.EKHash{31: 0xff}
	pubHash := "pub_hash:" + strings.Repeat("00", 31) + "ff"
	for _, tt := range []struct {
		name string
		d    policy.Decision
		want []string
	}{
		{"nothing known", policy.Decision{}, []string{pubHash}},
		{
			"everything, twice",
			policy.Decision{
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
				pubHash, "rule:a", "rule:b", "source:inventory", "source:vendors", "version:id:00070055",
			},
		},
		{
			"a DevID",
			policy.Decision{Attributes: []sources.Attributes{{DevID: &sources.DevIDCertificate{
				SubjectCN: []string{"laptop", "17"}, SubjectO: []string{"Ltd"}, SubjectOU: []string{"IT"},
				SubjectSerialNumber: []string{"0815"}, IssuerCN: []string{"CA"}, IssuerO: []string{"Ltd"},
				IssuerOU: []string{"PKI"}, Serial: "1f", Fingerprint: "ab",
			}}}},
			[]string{
				"devid:fingerprint:ab", "devid:issuer:cn:CA", "devid:issuer:o:Ltd", "devid:issuer:ou:PKI", "devid:serial:1f",
				"devid:subject:cn:17", "devid:subject:cn:laptop", "devid:subject:o:Ltd", "devid:subject:ou:IT",
				"devid:subject:serialnumber:0815", pubHash,
			},
		},
		{
			// Labels of a list that somebody else writes must stay labels.
			"forged labels",
			policy.Decision{Attributes: []sources.Attributes{{Labels: []string{"rule:admin", "pub_hash:1", "ca:x"}}}},
			[]string{"label:ca:x", "label:pub_hash:1", "label:rule:admin", pubHash},
		},
		{
			"an empty certificate",
			policy.Decision{Attributes: []sources.Attributes{{Certificate: &sources.EKCertificate{}}}},
			[]string{pubHash},
		},
	} {
		if d := cmp.Diff(tt.want, selectors(hash, &tt.d, nil)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

// The longest values that a source may give, and the longest names that a configuration may
// have, become selectors that SPIRE's database can store; PostgreSQL and MySQL would refuse
// longer ones after the machine was admitted.
func TestSelectorsFitIntoTheDatabase(t *testing.T) {
	x := strings.Repeat("x", sources.MaxSelector)
	fit := func(prefix string) string { return x[len(prefix):] }
	a := sources.Attributes{
		Name: fit("name:"), Labels: []string{fit("label:")}, CAs: []string{fit("ca:")},
		Certificate: &sources.EKCertificate{
			IssuerCN: fit("ek:issuer:cn:"), IssuerKeyHash: strings.Repeat("0", 64),
			Serial:       strings.Repeat("1", len(fit("ek:serial:"))),
			Manufacturer: fit("manufacturer:"), Model: fit("model:"), Version: fit("version:"),
		},
		DevID: &sources.DevIDCertificate{
			SubjectCN: []string{fit("devid:subject:cn:")}, SubjectO: []string{fit("devid:subject:o:")},
			SubjectOU: []string{fit("devid:subject:ou:")}, SubjectSerialNumber: []string{fit("devid:subject:serialnumber:")},
			IssuerCN: []string{fit("devid:issuer:cn:")}, IssuerO: []string{fit("devid:issuer:o:")},
			IssuerOU: []string{fit("devid:issuer:ou:")}, Serial: strings.Repeat("1", len(fit("devid:serial:"))),
			Fingerprint: strings.Repeat("0", 64),
		},
	}
	if err := a.Validate(); err != nil {
		t.Fatal(err)
	}
	all := selectors(sources.EKHash{}, &policy.Decision{
		Rules: []string{x[:64]}, Listed: []string{x[:64]}, Attributes: []sources.Attributes{a},
	}, nil)
	if len(all) != 20 {
		t.Errorf("%d selectors", len(all))
	}
	for _, s := range all {
		if len(s) > sources.MaxSelector {
			t.Errorf("%d bytes: %s", len(s), s)
		}
	}
}
