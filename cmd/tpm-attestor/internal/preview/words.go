package preview

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// wording puts a preview into words.
type wording struct {
	config  *config.Config
	subject *Subject
	preview *server.Preview
	answers map[string]policy.Answer
}

// placeOf says where a source's data is.
func placeOf(cfg any) string {
	switch c := cfg.(type) {
	case hashdir.Config:
		return c.Path
	case hashfile.Config:
		return c.Path
	case httplist.Config:
		return c.URL
	case bootpolicy.Config:
		return c.Path + c.URL // one of them is empty
	case ekca.Config:
		return placeOfCAs(c.CAPath, c.Bundles)
	case devid.Config:
		return placeOfCAs(c.CAPath, c.Bundles)
	case sqltable.Config:
		return "the database in " + c.DSNPath
	}
	return ""
}

func placeOfCAs(path string, bundles map[string]string) string {
	if path != "" {
		return path
	}
	return strings.Join(slices.Sorted(maps.Values(bundles)), ", ")
}

// fault returns why a source cannot tell, with the error of its latest load, if there is one.
func (w *wording) fault(a policy.Answer) string {
	text := a.Err.Error()
	for _, s := range w.preview.Status {
		if s.Name == a.Source && s.Err != nil && !strings.Contains(text, s.Err.Error()) {
			text += ": " + s.Err.Error()
		}
	}
	return text
}

// why returns why it is not known whether a source lists the machine.
func (w *wording) why(a policy.Answer) string {
	switch kind := w.member(a.Source).Kind; {
	case a.Err.Error() == config.ErrNeedsCertificate.Error(): // only the text of the error is left
		return "needs the machine's EK certificate: name a file that has it, or run this on the machine"
	case !errors.Is(a.Err, sources.ErrNeedsChallenge):
		text := strings.TrimSuffix(w.fault(a), ": "+sources.ErrNeedsNetwork.Error())
		if a.NeedsNetwork() {
			return "needs the network (--network asks it): " + text
		}
		return text
	case kind == "boot_policy":
		return "needs the machine's quote"
	case kind == "devid":
		return "needs the machine's DevID"
	}
	return "needs the machine's answer to the challenge"
}

// says returns what a source says, in a clause.
func (w *wording) says(source string) string {
	a := w.answers[source]
	switch a.Result() {
	case "listed":
		if a.Verdict.Reason == "" {
			return source + " lists this TPM"
		}
		return fmt.Sprintf("%s lists this TPM (%s)", source, a.Verdict.Reason)
	case "not_listed":
		if w.member(source).Kind == "ek_ca" && a.Verdict.Reason != "" {
			return fmt.Sprintf("%s does not list this TPM (%s)", source, a.Verdict.Reason)
		}
		return source + " does not list this TPM"
	case "cannot_tell":
		return source + " cannot tell: " + w.fault(a)
	}
	return source + " " + w.why(a)
}

func (w *wording) allSay(names []string) string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = w.says(name)
	}
	return strings.Join(all, "; ")
}

// cause returns the first reason why the machine is not admitted, in a sentence.
func (w *wording) cause() string {
	p := w.preview
	d := &p.Decision
	switch {
	case p.Settled && (d.Outcome == policy.Admitted || p.Result.Outcome == "malformed"):
		return p.Result.Reason
	case !p.Settled:
		return w.dependsOn()
	case w.denied("holds") != nil:
		rule := w.denied("holds")
		return fmt.Sprintf("deny rule %q holds: %s", rule.Name, w.sourcesOf(rule, "listed"))
	case w.denied("might_hold") != nil && p.Result.Outcome == Unavailable:
		rule := w.denied("might_hold")
		return fmt.Sprintf("deny rule %q might hold: %s", rule.Name, w.sourcesOf(rule, "cannot_tell"))
	case !slices.ContainsFunc(p.Rules, func(h policy.Held) bool { return !h.Deny && !h.Trial }):
		return "all allow rules are on trial: nobody is admitted"
	}
	var missing []string
	for _, way := range p.Ways[:min(1, len(p.Ways))] {
		for _, c := range slices.Concat(way.Changes, way.If) {
			missing = append(missing, c.Source)
		}
	}
	if len(missing) == 0 {
		return "no allow rule holds"
	}
	return "no allow rule holds: " + w.allSay(missing)
}

// denied returns the first enforced deny rule with this result, or nil.
func (w *wording) denied(result string) *policy.Held {
	rules := w.preview.Rules
	i := slices.IndexFunc(rules, func(h policy.Held) bool { return h.Deny && !h.Trial && h.Result == result })
	if i < 0 {
		return nil
	}
	return &rules[i]
}

// sourcesOf returns what the sources of a rule that have this result say.
func (w *wording) sourcesOf(rule *policy.Held, result string) string {
	var names []string
	for _, name := range slices.Concat(rule.All, rule.Any) {
		if w.answers[name].Result() == result && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return w.allSay(names)
}

// dependsOn returns what a decision depends on that is not known here.
func (w *wording) dependsOn() string {
	p := w.preview
	if len(p.Possible) == 1 {
		if p.NeedsQuote {
			return "needs the machine's quote, without which the block quote of the configuration refuses it"
		}
		if p.NeedsSVIDKey {
			return `needs the agent's SVID key to be in the TPM, without which svid_key = "required" refuses it`
		}
		return "the SPIFFE ID depends on " + w.allSay(p.Incomplete)
	}
	var open []string
	for _, way := range p.Ways {
		for _, c := range way.If {
			if !slices.Contains(open, c.Source) {
				open = append(open, c.Source)
			}
		}
	}
	return w.allSay(open)
}

// how returns what to do so that a source gives the answer that c needs.
func (w *wording) how(c policy.Change) string {
	a := w.answers[c.Source]
	switch {
	case a.Result() == "cannot_tell":
		if c.Listed {
			return "repair " + c.Source + ", which then has to list it"
		}
		return "repair " + c.Source + ", which then must not list it"
	case a.Err != nil:
		return c.Source + " " + w.why(a)
	case c.Listed:
		return w.add(c.Source)
	}
	return w.remove(c.Source)
}

// add returns how to put the machine on a source's list.
func (w *wording) add(source string) string {
	hash := w.subject.Evidence.EKHash.String()
	m := w.member(source)
	place := placeOf(m.Config)
	switch m.Kind {
	case "hash_dir":
		return fmt.Sprintf("create the file %s/%s", strings.TrimRight(place, "/"), hash)
	case "hash_file":
		return fmt.Sprintf("add %s to %s", hash, place)
	case "http":
		return fmt.Sprintf("publish a list at %s that has %s", place, hash)
	case "sql":
		return fmt.Sprintf("add a row for %s to %s", hash, place)
	case "ek_ca":
		return "add the CA certificate to which its EK certificate chains to " + place
	}
	return source + " would have to list it"
}

// remove returns how to take the machine off a source's list.
func (w *wording) remove(source string) string {
	hash := w.subject.Evidence.EKHash.String()
	m := w.member(source)
	place := placeOf(m.Config)
	switch m.Kind {
	case "hash_dir":
		return fmt.Sprintf("remove the file for %s from %s", hash, place)
	case "http":
		return fmt.Sprintf("publish a list at %s without %s", place, hash)
	case "hash_file", "sql":
		return fmt.Sprintf("remove %s from %s", hash, place)
	}
	return source + " would have to not list it"
}
