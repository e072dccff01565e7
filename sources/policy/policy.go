// Package policy defines how the verdicts of sources combine: the rules, the three-valued logic
// behind them, and the outcome of each step of an evaluation.
//
// It is pure: it asks no source, waits for nothing and has no clock. Package admission asks the
// sources.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A Rule combines the verdicts of sources. It holds if every source of All lists the TPM and,
// unless Any is empty, some source of Any does. At least one of the two is not empty.
type Rule struct {
	// Name is the rule's name: lower-case letters, digits, "_" and "-". No two allow rules
	// and no two deny rules of a policy have the same name.
	Name string
	// All and Any are names of sources, without duplicates. Nil means that the rule does not have
	// the list; an empty list that is not nil is a mistake.
	All, Any []string
	// A rule with Trial set is evaluated and reported, but decides nothing.
	Trial bool
}

// Policy says which TPMs are admitted: those for which some Allow rule holds, and no Deny rule
// holds or might hold. The zero Policy admits nobody, and Validate refuses it. A policy whose Allow
// rules are all on trial admits nobody either; it is valid, so that operators can watch rules
// before they enforce any. The order of rules, and of the names in them, does not matter.
type Policy struct {
	Allow, Deny []Rule
}

// DefaultRule is the name of the allow rule of a configuration that has no rules.
const DefaultRule = "default"

// AnyOf returns the policy of a configuration without rules: each of the sources admits, by the
// rule DefaultRule. It is for a configuration with exactly one source, or one that says in another
// way which sources admit. There is no default for several sources without a rule, since a guess
// could widen trust: anybody can buy a TPM of a trusted vendor.
func AnyOf(names ...string) Policy {
	return Policy{Allow: []Rule{{Name: DefaultRule, Any: names}}}
}

// Validate checks the policy over sources with these names and returns one error for each mistake,
// or nil. Each error begins with the rule or source that it is about: `allow "lab": any: …`.
func (p Policy) Validate(names []string) []error {
	var errs []error
	for _, rs := range []struct {
		effect string
		rules  []Rule
	}{{"allow", p.Allow}, {"deny", p.Deny}} {
		seen := map[string]bool{}
		for _, r := range rs.rules {
			where := fmt.Sprintf("%s %q", rs.effect, r.Name)
			if err := ValidName(r.Name); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", where, err))
			}
			if seen[r.Name] {
				errs = append(errs, fmt.Errorf("%s: there are two %s rules of this name: rename one", where, rs.effect))
			}
			seen[r.Name] = true
			errs = append(errs, r.validate(where, names)...)
		}
	}
	return append(errs, p.validateWhole(names)...)
}

// validate checks one rule.
func (r Rule) validate(where string, known []string) []error {
	var errs []error
	if r.All == nil && r.Any == nil {
		errs = append(errs, fmt.Errorf("%s: has neither all nor any: add all = [\"…\"] or any = [\"…\"]", where))
	}
	for _, list := range []struct {
		key   string
		names []string
	}{{"all", r.All}, {"any", r.Any}} {
		if list.names != nil && len(list.names) == 0 {
			errs = append(errs, fmt.Errorf("%s: %s: an empty list: name a source or remove it", where, list.key))
		}
		for i, n := range list.names {
			switch {
			case slices.Contains(list.names[:i], n):
				errs = append(errs, fmt.Errorf("%s: %s: names source %q twice", where, list.key, n))
			case !slices.Contains(known, n):
				errs = append(errs, fmt.Errorf("%s: %s: there is no source %q: the sources are %s",
					where, list.key, n, quoteAll(known)))
			}
		}
	}
	return errs
}

// validateWhole checks the rules together.
func (p Policy) validateWhole(names []string) []error {
	switch {
	case len(p.Allow) == 0 && len(p.Deny) == 0:
		return []error{fmt.Errorf("no allow rule: say which sources admit: allow \"…\" { any = [%s] }",
			quoteAll(names))}
	case len(p.Allow) == 0:
		return []error{errors.New("deny rules without an allow rule admit nobody: add one")}
	}
	var errs []error
	for _, s := range names {
		named := func(r Rule) bool { return slices.Contains(r.All, s) || slices.Contains(r.Any, s) }
		if !slices.ContainsFunc(p.Allow, named) && !slices.ContainsFunc(p.Deny, named) {
			errs = append(errs, fmt.Errorf("source %q: no rule names it: add it to one or remove the source", s))
		}
	}
	return errs
}

// ValidName returns an error unless s can be the name of a source or a rule. Names become
// selectors.
func ValidName(s string) error {
	other := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}
	switch {
	case s == "":
		return errors.New("the name is empty")
	case len(sources.PrefixSource)+len(s) > sources.MaxSelector: // source: is longer than rule:
		return fmt.Errorf("the name has more than %d characters", sources.MaxSelector-len(sources.PrefixSource))
	case strings.ContainsFunc(s, other):
		return errors.New("the name has characters other than a-z, 0-9, \"_\" and \"-\"")
	}
	return nil
}

func quoteAll(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	slices.Sort(q)
	return strings.Join(q, ", ")
}
