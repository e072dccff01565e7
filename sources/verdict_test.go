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
	for want, as := range map[string][]sources.Attributes{
		"": {
			{},
			{Name: long[:250], Labels: []string{long[:249]}, CAs: []string{"a", long[:252]}},
			{Labels: slices.Repeat([]string{"l"}, 64)},
			{Name: "é — 機"},
			{Profiles: []string{long[:250]}},
			with(func(*sources.EKCertificate) {}),
			with(func(c *sources.EKCertificate) { c.Serial = "0" }),
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
		},
		"with blanks around": {{Name: " a"}, {Labels: []string{"a "}}, {Name: "\u00a0a"}},
		"control character": {
			{Name: "a\x00"},
			{Name: "a\u0085"},
			{Labels: []string{"a\n"}},
			{CAs: []string{"\x7f"}},
			with(func(c *sources.EKCertificate) { c.IssuerCN = "\t" }),
		},
		"a profile without": {{Profiles: []string{""}}},
		"not UTF-8":         {{Name: "\xff"}, with(func(c *sources.EKCertificate) { c.Model = "\xc3" })},
		"an empty":          {{Labels: []string{""}}, {CAs: []string{""}}},
		"65 labels":         {{Labels: slices.Repeat([]string{"l"}, 65)}},
		"not sorted":        {{CAs: []string{"b", "a"}}, {CAs: []string{"a", "a"}}},
		"64 lower-case": {
			with(func(c *sources.EKCertificate) { c.IssuerKeyHash = "" }),
			with(func(c *sources.EKCertificate) { c.IssuerKeyHash = strings.ToUpper(hash) }),
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
