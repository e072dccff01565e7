package config

import (
	"errors"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// ForEnrolment changes c so that it decides whether a machine may be given a DevID, by what is known about the
// machine without one. It removes the sources that know DevIDs from the rules. A rule that has other sources needs
// those; a rule that has none is dropped. A rule that would then hold by the boot alone is dropped too, since the
// boot does not say whose machine it is. It is an error if no enforced rule is left.
func (c *Config) ForEnrolment() error {
	byDevID := c.are(func(k *kind) bool { return k.byDevID })
	byBoot := c.are(func(k *kind) bool { return k.byBoot })
	var allow []policy.Rule
	enforced := false
	for _, r := range c.Policy.Allow {
		if slices.ContainsFunc(slices.Concat(r.All, r.Any), byDevID) {
			r.All, r.Any = without(byDevID, r.All), without(byDevID, r.Any)
			if enough(r, byBoot) { // also true for a rule without a source
				continue
			}
		}
		enforced = enforced || !r.Trial
		allow = append(allow, r)
	}
	if !enforced {
		return errors.New("no allow rule knows machines by anything but a DevID, so none says who may be given one: " +
			`name a source such as a list in the all of a rule, beside the source "devid"`)
	}
	c.Policy.Allow = allow
	c.Members = slices.DeleteFunc(slices.Clone(c.Members), func(m admission.Member) bool {
		return !slices.ContainsFunc(slices.Concat(allow, c.Policy.Deny), func(r policy.Rule) bool {
			return slices.Contains(r.All, m.Name) || slices.Contains(r.Any, m.Name)
		})
	})
	return nil
}

// without returns the names for which out is false, or nil if there are none.
func without(out func(string) bool, names []string) []string {
	var left []string
	for _, name := range names {
		if !out(name) {
			left = append(left, name)
		}
	}
	return left
}

// KnowsMachine reports whether one of these sources knows the machine itself, not only the vendor of its TPM, its
// boot or its DevID.
func (c *Config) KnowsMachine(listed []string) bool {
	return slices.ContainsFunc(listed, c.are(func(k *kind) bool { return !k.byVendor && !k.byBoot && !k.byDevID }))
}

// are returns a function that reports whether a source is of a kind for which some is true.
func (c *Config) are(some func(*kind) bool) func(source string) bool {
	all := kinds()
	return func(source string) bool {
		return slices.ContainsFunc(c.Members, func(m admission.Member) bool {
			k := kindNamed(all, m.Kind)
			return m.Name == source && k != nil && some(k)
		})
	}
}
