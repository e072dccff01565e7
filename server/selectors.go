package server

import (
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// selectors returns the selectors of an admitted machine, sorted and without duplicates. SPIRE puts the plugin's
// name in front of each. Every label is under "label:", so that no list can forge another selector. No selector is
// longer than sources.MaxSelector: a value that would make a longer one is refused when it is read. proved are the
// selectors for what the answer to the challenge proves.
func selectors(ekHash sources.EKHash, d *policy.Decision, proved []string) []string {
	s := make([]string, 0, 16)
	s = append(s, sources.PrefixPubHash+ekHash.String())
	for _, rule := range d.Rules {
		s = append(s, sources.PrefixRule+rule)
	}
	for _, source := range d.Listed {
		s = append(s, sources.PrefixSource+source)
	}
	for i := range d.Attributes {
		a := &d.Attributes[i]
		s = appendValue(s, sources.PrefixName, a.Name)
		for _, label := range a.Labels {
			s = appendValue(s, sources.PrefixLabel, label)
		}
		for _, ca := range a.CAs {
			s = appendValue(s, sources.PrefixCA, ca)
		}
		for _, profile := range a.Profiles {
			s = appendValue(s, sources.PrefixBoot, profile)
		}
		if c := a.Certificate; c != nil {
			s = appendValue(s, sources.PrefixIssuerCN, c.IssuerCN)
			s = appendValue(s, sources.PrefixSerial, c.Serial)
			s = appendValue(s, sources.PrefixManufacturer, c.Manufacturer)
			s = appendValue(s, sources.PrefixModel, c.Model)
			s = appendValue(s, sources.PrefixVersion, c.Version)
		}
		if c := a.DevID; c != nil {
			for prefix, value := range c.Values() {
				s = appendValue(s, prefix, value)
			}
		}
	}
	s = append(s, proved...)
	slices.Sort(s)
	return slices.Compact(s)
}

// appendValue appends a selector, unless value is empty.
func appendValue(s []string, prefix, value string) []string {
	if value == "" {
		return s
	}
	return append(s, prefix+value)
}
