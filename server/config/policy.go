package config

import (
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// defaultRule is the name of the allow rule that holds if none is written.
const defaultRule = "default"

// maxRules is how many rules of one effect there may be.
const maxRules = 256

// rule is a rule with its path of keys.
type rule struct {
	policy.Rule
	path string
}

// decodeRules reads all blocks of one effect, "allow" or "deny".
func decodeRules(ps *problems, effect string, values []*node, known declared) []rule {
	example := effect + ` "<name>" { any = ["<source>"] }`
	blocks := ps.blocks(effect, values, example)
	blocks = slices.DeleteFunc(blocks, func(n *node) bool { return len(n.items) == 0 && !n.folded })
	var all []rule
	named := namedBlocks(ps, effect, blocks, example)
	if len(named) > maxRules { // before each rule is compared with the sources
		ps.add(effect, "there are %d rules; at most %d are allowed", len(named), maxRules)
		named = named[:maxRules]
	}
	names := known.names()
	for _, n := range named {
		all = append(all, decodeRule(ps, n, known, names))
	}
	return all
}

// decodeRule reads one rule. names are the names in known.
func decodeRule(ps *problems, n namedBlock, known declared, names []string) rule {
	b := newBody(n.path, ps, n.parts...)
	r := rule{path: n.path, Rule: policy.Rule{
		Name:  n.name,
		All:   b.texts("all"),
		Any:   b.texts("any"),
		Trial: !b.boolean("enforce", true),
	}}
	if !b.has("all") && !b.has("any") {
		b.problems.add(n.path, `names no source: write any = ["<source>"] or all = ["<source>"]`)
	}
	b.finish()
	for _, key := range []struct {
		name  string
		names []string
	}{{"all", r.All}, {"any", r.Any}} {
		for _, source := range key.names {
			if _, ok := known[source]; !ok {
				b.fail(key.name, "names the source %s, which is not configured%s",
					printable(source), ps.suggest(source, names))
			}
		}
	}
	return r
}

// checkPolicy refuses a policy that does not say who is admitted.
func checkPolicy(ps *problems, all []definition, known declared, allow, deny []rule) {
	switch {
	case len(allow) == 0 && len(deny) > 0:
		ps.add("allow", `there are deny rules but no allow rule, so no machine could be admitted: `+
			`write allow "<name>" { any = ["<source>"] }`)
	case len(allow) == 0 && len(known) > 1:
		ps.add("allow", "there are several sources but no rule says which of them admit machines: "+
			`write allow "<name>" { any = [%s] } or all = […]`, quoted(known.names()))
	case len(allow) > 0:
		for source, path := range known {
			if !named(source, allow) && !named(source, deny) {
				ps.add(path, "no rule names this source: add it to one, or remove it")
			}
		}
	}
	for _, d := range all {
		for _, r := range deny {
			if d.kind.neverDenies != "" && named(d.name, []rule{r}) {
				ps.add(r.path, "names %s, a %s, which cannot deny: %s", d.name, d.kind.name, d.kind.neverDenies)
			}
		}
		if d.unmet.key != "" && named(d.name, deny) {
			ps.add(under(d.path, d.unmet.key), "%s", d.unmet.because)
		}
	}
}

// named reports whether one of the rules names a source.
func named(source string, rules []rule) bool {
	return slices.ContainsFunc(rules, func(r rule) bool {
		return slices.Contains(r.All, source) || slices.Contains(r.Any, source)
	})
}

// quoted lists names as they are written in a list.
func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = `"` + shorten(n) + `"`
	}
	return strings.Join(q, ", ")
}

// warnOfPolicy warns about the consequences of an accepted policy.
func (c *Config) warnOfPolicy(all []definition, allow, deny []rule) {
	w := adviser{all: all, warn: c.warn, certified: true}
	for _, r := range allow {
		if !r.Trial {
			w.allow(r)
		}
	}
	if !w.enforced {
		w.warn("allow", "no allow rule is enforced: no machine is admitted")
	}
	for _, r := range deny {
		if !r.Trial {
			w.deny(r)
		}
	}
}

// An adviser warns about the consequences of rules. It must see the allow rules before the deny rules.
type adviser struct {
	all  []definition
	warn func(path, message string)

	enforced bool
	// anyEK is true if a rule may admit a machine by any of the EKs in its TPM.
	anyEK bool
	// certified is true if every rule needs an EK certificate.
	certified bool
}

// of returns a function that reports whether a source is of a kind for which kinds is true.
func (w *adviser) of(kinds func(kind) bool) func(source string) bool {
	return func(source string) bool {
		return slices.ContainsFunc(w.all, func(d definition) bool { return d.name == source && kinds(d.kind) })
	}
}

// allow warns about an enforced allow rule.
func (w *adviser) allow(r rule) {
	byVendor, byDevID := w.of(func(k kind) bool { return k.byVendor }), w.of(func(k kind) bool { return k.byDevID })
	byBoot := enough(r.Rule, w.of(func(k kind) bool { return k.byBoot }))
	byNothing := enough(r.Rule, w.of(func(k kind) bool { return k.byBoot || k.byDevID }))
	w.enforced = true
	w.certified = w.certified && slices.ContainsFunc(r.All, byVendor)
	if !byBoot && enough(r.Rule, w.of(func(k kind) bool { return k.byVendor || k.byBoot || k.byDevID })) {
		w.anyEK = true
	}
	switch {
	case byBoot:
		w.warn(r.path, "this rule admits by the boot alone: anybody with a TPM in software can have it quote "+
			"any PCR values; name a source in its all that knows the TPM, such as a list or an ek_ca")
	case enough(r.Rule, byVendor):
		w.warn(r.path, "this rule admits by the CAs of TPM vendors alone: "+
			"any TPM of these vendors is admitted, whoever owns it")
	case enough(r.Rule, w.of(func(k kind) bool { return k.byVendor || k.byBoot })):
		w.warn(r.path, "this rule admits by the CAs of TPM vendors and the boot alone: "+
			"any TPM of these vendors is admitted, whoever owns it, if its machine boots what a profile knows")
	}
	if byNothing && slices.ContainsFunc(slices.Concat(r.All, r.Any), byDevID) {
		w.warn(r.path, "this rule admits by the DevID alone, on the word of its CA that the key is in a real TPM: "+
			"a TPM in software proves a DevID just as well; name a source in its all that knows the TPM, "+
			"such as an ek_ca or a list")
	}
}

// deny warns about an enforced deny rule.
func (w *adviser) deny(r rule) {
	byVendor := w.of(func(k kind) bool { return k.byVendor })
	byCertificate := slices.ContainsFunc(slices.Concat(r.All, r.Any), byVendor)
	switch {
	case byCertificate && !w.certified:
		w.warn(r.path, "an ek_ca cannot deny a machine that leaves out its EK certificate: "+
			"name an ek_ca in the all of every allow rule")
	case !byCertificate && w.anyEK:
		w.warn(r.path, "a TPM has several EKs, and its vendor may vouch for each: a machine that is denied "+
			"by the hash of one can attest with another; deny the hashes of all, or require a list to admit")
	}
}

// enough reports whether a rule can hold by sources of some kinds alone.
func enough(r policy.Rule, kinds func(source string) bool) bool {
	for _, s := range r.All {
		if !kinds(s) {
			return false
		}
	}
	return len(r.Any) == 0 || slices.ContainsFunc(r.Any, kinds)
}
