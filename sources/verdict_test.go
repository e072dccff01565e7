package sources_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// TestAttributeLimits: what becomes a selector is bounded and cannot hold what
// another selector or a log line could be forged with.
func TestAttributeLimits(t *testing.T) {
	long, hash := strings.Repeat("x", 256), strings.Repeat("0f", 32)
	good := sources.EKCertificate{IssuerCN: "CN", IssuerKeyHash: hash, Serial: "1f", Manufacturer: "id:49465800"}
	with := func(f func(c *sources.EKCertificate)) sources.Attributes {
		c := good
		f(&c)
		return sources.Attributes{Certificate: &c}
	}
	devID := func(f func(c *sources.DevIDCertificate)) sources.Attributes {
		c := sources.DevIDCertificate{SubjectCN: []string{"a", "b"}, IssuerOU: []string{"é"}, Fingerprint: hash}
		f(&c)
		return sources.Attributes{DevID: &c}
	}
	for want, as := range map[string][]sources.Attributes{
		"": {
			{},
			{Name: long[:250], Labels: []string{long[:249]}, CAs: []string{"a", long[:252]}},
			{Labels: slices.Repeat([]string{"l"}, 64)},
			{Name: "é — 機"},
			{Profiles: []string{long[:250]}},
			with(func(*sources.EKCertificate) {}),
			with(func(c *sources.EKCertificate) { c.Serial = "0" }),
			devID(func(*sources.DevIDCertificate) {}),
			devID(func(c *sources.DevIDCertificate) { c.Serial = strings.Repeat("1", 242) }),
			devID(func(c *sources.DevIDCertificate) { c.SubjectSerialNumber = []string{long[:228]} }),
		},
		// With its prefix, each would be 256 bytes long.
		"bytes, more than": {
			{Name: long[:251]},
			{Labels: []string{long[:250]}},
			{CAs: []string{long[:253]}},
			{Profiles: []string{long[:251]}},
			with(func(c *sources.EKCertificate) { c.IssuerCN = long[:243] }),
			with(func(c *sources.EKCertificate) { c.Manufacturer = long[:243] }),
			with(func(c *sources.EKCertificate) { c.Model = long[:250] }),
			with(func(c *sources.EKCertificate) { c.Version = long[:248] }),
			devID(func(c *sources.DevIDCertificate) { c.SubjectSerialNumber = []string{long[:229]} }),
			devID(func(c *sources.DevIDCertificate) { c.IssuerO = []string{"a", long[:241]} }),
		},
		"with blanks around": {{Name: " a"}, {Labels: []string{"a "}}, {Name: "\u00a0a"}},
		"control character": {
			{Name: "a\x00"},
			{Name: "a\u0085"},
			{Labels: []string{"a\n"}},
			{CAs: []string{"\x7f"}},
			with(func(c *sources.EKCertificate) { c.IssuerCN = "\t" }),
			devID(func(c *sources.DevIDCertificate) { c.SubjectO = []string{"a\n"} }),
		},
		"a profile without": {{Profiles: []string{""}}},
		"not UTF-8":         {{Name: "\xff"}, with(func(c *sources.EKCertificate) { c.Model = "\xc3" })},
		"an empty": {
			{Labels: []string{""}},
			{CAs: []string{""}},
			devID(func(c *sources.DevIDCertificate) { c.IssuerCN = []string{""} }),
		},
		"65 labels":  {{Labels: slices.Repeat([]string{"l"}, 65)}},
		"not sorted": {{CAs: []string{"b", "a"}}, {CAs: []string{"a", "a"}}},
		"64 lower-case": {
			with(func(c *sources.EKCertificate) { c.IssuerKeyHash = "" }),
			with(func(c *sources.EKCertificate) { c.IssuerKeyHash = strings.ToUpper(hash) }),
			devID(func(c *sources.DevIDCertificate) { c.Fingerprint = "" }),
			devID(func(c *sources.DevIDCertificate) { c.Fingerprint = hash[:62] }),
		},
		"the DevID's serial": {
			devID(func(c *sources.DevIDCertificate) { c.Serial = "0f" }),
			devID(func(c *sources.DevIDCertificate) { c.Serial = strings.Repeat("1", 243) }),
		},
		"the serial": {
			with(func(c *sources.EKCertificate) { c.Serial = "" }),
			with(func(c *sources.EKCertificate) { c.Serial = "0f" }),
			with(func(c *sources.EKCertificate) { c.Serial = "-1" }),
			with(func(c *sources.EKCertificate) { c.Serial = strings.Repeat("1", 246) }),
		},
	} {
		for _, a := range as {
			if err := a.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v, want %q", a, err, want)
			}
		}
	}
}

// TestTidyAttributes: a database's char(20) is padded with blanks, and a name with blanks
// around it forms no SPIFFE ID and matches no registration entry. A label of blanks alone is
// empty, and a line end is no blank.
func TestTidyAttributes(t *testing.T) {
	given := sources.Attributes{Name: "host-a   ", Labels: []string{" env:prod", "env:prod", "rack 12\u00a0"}}
	got, err := given.Tidy()
	want := sources.Attributes{Name: "host-a", Labels: []string{"env:prod", "rack 12"}}
	if err != nil || got.Name != want.Name || !slices.Equal(got.Labels, want.Labels) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if given.Labels[0] != " env:prod" {
		t.Error("the caller's labels were changed")
	}
	for _, a := range []sources.Attributes{
		{Labels: []string{"  "}}, {Name: "host-a\n"}, {Labels: slices.Repeat([]string{"l"}, 65)},
	} {
		if got, err := a.Tidy(); err == nil {
			t.Errorf("%+v becomes %+v", a, got)
		}
	}
}

// A caller that changes a clone must not change what a source will answer next.
func TestCloneSharesNothing(t *testing.T) {
	a := sources.Attributes{
		Labels: []string{"l"}, CAs: []string{"c"}, Profiles: []string{"p"},
		Certificate: &sources.EKCertificate{Serial: "1"},
		DevID: &sources.DevIDCertificate{
			SubjectCN: []string{"1"}, SubjectO: []string{"2"}, SubjectOU: []string{"3"}, SubjectSerialNumber: []string{"4"},
			IssuerCN: []string{"5"}, IssuerO: []string{"6"}, IssuerOU: []string{"7"}, Serial: "8", Fingerprint: "9",
		},
	}
	b := a.Clone()
	b.Labels[0], b.CAs[0], b.Profiles[0], b.Certificate.Serial = "x", "x", "x", "x"
	d := b.DevID
	for _, values := range [][]string{
		d.SubjectCN, d.SubjectO, d.SubjectOU, d.SubjectSerialNumber, d.IssuerCN, d.IssuerO, d.IssuerOU,
	} {
		values[0] = "x"
	}
	d.Serial, d.Fingerprint = "x", "x"
	var got []string
	for prefix, value := range a.DevID.Values() {
		got = append(got, prefix+value)
	}
	want := []string{
		"devid:subject:cn:1", "devid:subject:o:2", "devid:subject:ou:3", "devid:subject:serialnumber:4",
		"devid:issuer:cn:5", "devid:issuer:o:6", "devid:issuer:ou:7", "devid:serial:8", "devid:fingerprint:9",
	}
	if !slices.Equal(got, want) || a.Labels[0] != "l" || a.CAs[0] != "c" || a.Profiles[0] != "p" ||
		a.Certificate.Serial != "1" {
		t.Errorf("%+v, %q, want %q", a, got, want)
	}
}
