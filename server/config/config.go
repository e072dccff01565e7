// Package config reads the configuration of the server plugin. No other package of the
// server knows HCL, or which kinds of sources there are.
//
// kinds.go has the table of kinds, with the keys of each. A rule about the value of a key
// stands in the constructor of the kind's source, which returns a sources.FieldError; this
// package says where the key is, and what to write.
//
// The text is HCL or JSON. SPIRE reads its own configuration in either, and
// prints the plugin's part anew as HCL. Blocks, lists and maps with the same content mean
// the same here, in any order.
package config

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// Config is a configuration after it was parsed, with its defaults.
type Config struct {
	// TrustDomain is SPIRE's; zero if the file does not name it.
	TrustDomain spiffeid.TrustDomain
	// Members are the sources, sorted by name. None of them has been started.
	Members []admission.Member
	// Policy has the rules, sorted by name.
	Policy policy.Policy
	// AgentPath forms the IDs of agents.
	AgentPath *agentpath.Template
	// Reattest is false if a machine is admitted only once.
	Reattest bool
	// Quote is what the server asks about a machine's boot; nil if nothing.
	Quote *Quote
	// AsksDevID is true if the server asks machines for their DevID, since a source needs it.
	AsksDevID bool
	// SVIDKey says for which keys agents get SVIDs: SVIDKeyOff, SVIDKeyOptional or
	// SVIDKeyRequired.
	SVIDKey string
	// SVIDKeySocket is the path at which CredentialComposer "tpm" listens. It may be empty if SVIDKey
	// is SVIDKeyOff.
	SVIDKeySocket string
	// AllowWeakEK admits RSA endorsement keys with the ROCA weakness
	// (CVE-2017-15361).
	AllowWeakEK bool
	// CheckTimeout is how long one evaluation by all sources may take.
	CheckTimeout time.Duration
	// Warnings say what an operator should know about a configuration that has no mistakes.
	Warnings []string

	warned []Warning
	file   string // of plugin_data_file, which has the configuration; empty if there is none
	files  []file
	places map[string]string // the paths of keys of sources
	// gives are the fields of AgentPath that each source, by its name, can give.
	gives map[string][]agentpath.Field
}

// Parse reads a configuration as SPIRE hands it to the plugin, with SPIRE's trust
// domain. It looks at no files, unlike Loader.Load. The error is of the type Problems.
func Parse(text, trustDomain string) (*Config, error) {
	return fromSPIRE(text, trustDomain).parsed()
}

func (in *input) parsed() (*Config, error) { return in.result(in.parse(noIdentity{})) }

// result returns a configuration that was parsed, or why there is none.
func (in *input) result(c *Config) (*Config, error) {
	if in.failed != nil {
		return nil, in.failed
	}
	var places []*Problem
	if all := in.problems.sorted(); len(all) > 0 {
		for i := range all {
			places = append(places, &all[i])
		}
		in.locate(places)
		return nil, all
	}
	for i := range c.warned {
		places = append(places, &c.warned[i].Problem)
	}
	in.locate(places)
	for _, w := range c.warned {
		c.Warnings = append(c.Warnings, w.String())
	}
	return c, nil
}

// NewSet returns the configured sources under the configured policy. opts sets what the configuration does not.
func (c *Config) NewSet(opts admission.Options) (*admission.Set, error) {
	opts.CheckTimeout = c.CheckTimeout
	return admission.NewSet(c.Members, c.Policy, opts)
}

// The bounds of check_timeout.
const (
	defaultCheckTimeout = 5 * time.Second
	leastCheckTimeout   = 100 * time.Millisecond
	mostCheckTimeout    = time.Minute
)

// parse collects all mistakes in in.problems, and returns the rest of the configuration.
func (in *input) parse(identity web.IdentityProvider) *Config {
	c, ps := &Config{TrustDomain: in.trustDomain, places: map[string]string{}}, &in.problems
	if in.unread {
		return c
	}
	c.file, ps.file = in.data.File, in.data.File
	root, err := parseSyntax(in.data.Text)
	if err != nil {
		ps.add("", "%v", err)
		return c
	}
	b := newBody("", ps, root)
	c.Reattest = b.boolean("reattest", true)
	c.AllowWeakEK = b.boolean("allow_weak_ek", false)
	c.CheckTimeout = b.duration("check_timeout", defaultCheckTimeout, leastCheckTimeout, mostCheckTimeout)
	c.decodeAgentPath(b)
	c.decodeSVIDKey(b)
	c.dropEmpty(b)
	c.Quote = decodeQuote(ps, b.all(quoteKey))
	c.warnOfQuote()
	all, allow, deny := in.decodeRoot(b, spire{trustDomain: in.trustDomain, identity: identity, quote: c.Quote})
	b.finish()
	in.checkComposer(c)
	c.checkAgentPath(ps, all, allow)
	c.assemble(ps, all, allow, deny)
	return c
}

// decodeRoot reads the sources and the rules.
func (in *input) decodeRoot(b *body, of spire) (all []definition, allow, deny []rule) {
	ps := b.problems
	b.asked = append(b.asked, "allow", "deny", "ca_path", "hash_path")
	all, declared := decodeSources(ps, b.all("source"), in.kinds, of)
	if len(declared) > maxSources { // each rule would be compared with all of them
		return nil, nil, nil
	}
	allow = decodeRules(ps, "allow", b.all("allow"), declared)
	deny = decodeRules(ps, "deny", b.all("deny"), declared)
	switch old := in.decodeIncumbent(b, of); {
	case len(old) > 0:
		in.refuseBeside(b, map[string]bool{"source": len(declared) > 0, "allow": len(allow) > 0, "deny": len(deny) > 0})
		all = old
	case len(declared) == 0:
		ps.add("source", "no source is configured: write %s", kindNamed(in.kinds, firstKind).example)
	default:
		checkPolicy(ps, all, declared, allow, deny)
	}
	if len(allow) == 0 {
		allow = []rule{{Rule: policy.Rule{Name: defaultRule}, path: "rule " + defaultRule}}
		for _, d := range all {
			allow[0].Any = append(allow[0].Any, d.name)
		}
	}
	return all, allow, deny
}

// firstKind is the kind of source that the message suggests if no source is configured.
const firstKind = "hash_dir"

// incumbentKeys are the keys of the incumbent's configuration. Each of them means a source that has the key's name
// and a single key of its own.
var incumbentKeys = []struct{ name, kind, key string }{
	{"ca_path", "ek_ca", "ca_path"},
	{"hash_path", "hash_dir", "path"},
}

// dropEmpty drops the incumbent's keys if they are empty. The incumbent treats an empty key as not set, and
// templates of configurations contain empty keys.
func (c *Config) dropEmpty(b *body) {
	for _, old := range incumbentKeys {
		values := b.values[old.name]
		if len(values) == 1 && values[0].kind == text && values[0].text == "" {
			delete(b.values, old.name)
			c.warn(old.name, "is empty and treated as not set: nothing is trusted because of it")
		}
	}
}

// decodeIncumbent reads the keys of the incumbent's configuration. Each source that it returns admits machines on
// its own.
func (in *input) decodeIncumbent(b *body, of spire) (all []definition) {
	of.besideHashes = b.has("hash_path")
	for _, old := range incumbentKeys {
		if !b.has(old.name) {
			continue
		}
		block := newBody("", b.problems)
		block.values[old.key], block.named = b.values[old.name], map[string]string{old.key: old.name}
		d := decodeSource(block, *kindNamed(in.kinds, old.kind), old.name, of)
		d.path = old.name
		all = append(all, d)
	}
	return all
}

// refuseBeside refuses the incumbent's keys if there are blocks as well: the rules do not say what the keys admit.
func (in *input) refuseBeside(b *body, blocks map[string]bool) {
	for _, old := range incumbentKeys {
		for other, there := range blocks {
			if there && b.has(old.name) {
				b.fail(old.name, "cannot be combined with %s blocks: replace it with one such as %s",
					other, kindNamed(in.kinds, old.kind).example)
			}
		}
	}
}

// assemble sets the members and the policy from what was read.
func (c *Config) assemble(ps *problems, all []definition, allow, deny []rule) {
	for _, d := range all {
		for _, f := range d.files {
			f.source = d.name
			c.files = append(c.files, f)
		}
		c.places[d.name] = d.path
		c.AsksDevID = c.AsksDevID || d.kind.byDevID
		if d.broken {
			continue
		}
		c.Members = append(c.Members, admission.Member{
			Name: d.name, Kind: d.kind.name, Config: d.config, Source: d.source, NoAttributes: d.noAttributes,
		})
	}
	for _, r := range allow {
		c.Policy.Allow = append(c.Policy.Allow, r.Rule)
	}
	for _, r := range deny {
		c.Policy.Deny = append(c.Policy.Deny, r.Rule)
	}
	c.warnOfPolicy(all, allow, deny)
	for _, d := range all {
		for _, w := range d.warnings() {
			c.warn(under(d.path, w.Field), w.Problem)
		}
	}
	if len(ps.list) > 0 {
		return
	}
	// NewSet has rules of its own, which hold for any caller.
	if _, err := c.NewSet(admission.Options{}); err != nil {
		ps.add("", "%v", err)
	}
}
