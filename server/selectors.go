package server

import (
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// selectors returns the selectors of an admitted machine, sorted, without
// duplicates. SPIRE puts the plugin's name in front of each. A label is always
// behind "label:", so that no list can forge another selector.
func selectors(ekHash string, d *sources.Decision) []string {
	s := make([]string, 0, 16)
	s = append(s, "pub_hash:"+ekHash)
	for _, rule := range d.Rules {
		s = append(s, "rule:"+rule)
	}
	for _, source := range d.Listed {
		s = append(s, "source:"+source)
	}
	for i := range d.Attributes {
		a := &d.Attributes[i]
		s = appendValue(s, "name:", a.Name)
		for _, label := range a.Labels {
			s = appendValue(s, "label:", label)
		}
		for _, ca := range a.CAs {
			s = appendValue(s, "ca:", ca)
		}
		if c := a.Certificate; c != nil {
			s = appendValue(s, "ek:issuer:cn:", c.IssuerCN)
			s = appendValue(s, "ek:serial:", c.Serial)
			s = appendValue(s, "manufacturer:", c.Manufacturer)
			s = appendValue(s, "model:", c.Model)
			s = appendValue(s, "version:", c.Version)
		}
	}
	slices.Sort(s)
	return slices.Compact(s)
}

// appendValue appends a selector unless it has no value.
func appendValue(s []string, prefix, value string) []string {
	if value == "" {
		return s
	}
	return append(s, prefix+value)
}
