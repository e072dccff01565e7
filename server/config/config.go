// Package config reads the configuration of the server plugin: the only package
// that knows HCL, and the one that knows which kinds of sources there are.
//
// The text is HCL or JSON. SPIRE reads its own configuration in either, and
// prints the plugin's part anew as HCL; blocks, lists and maps that say the same
// are the same here, in any order.
package config

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// Config is what a configuration says, with its defaults.
type Config struct {
	// TrustDomain is SPIRE's; zero where a file does not tell.
	TrustDomain spiffeid.TrustDomain
	// Members are the sources, sorted by name. None has been started.
	Members []admission.Member
	// Policy are the rules, sorted by name.
	Policy policy.Policy
	// AgentPath forms the IDs of agents.
	AgentPath *agentpath.Template
	// Reattest is false where a machine is admitted once.
	Reattest bool
	// AllowWeakEK admits RSA endorsement keys with the ROCA weakness
	// (CVE-2017-15361).
	AllowWeakEK bool
	// CheckTimeout bounds one question to all sources.
	CheckTimeout time.Duration
	// Warnings are what a person should know, though it is no mistake.
	Warnings []string

	files []file
	// gives are the fields of AgentPath that each source can give.
	gives map[string][]agentpath.Field
}

// Parse reads a configuration as SPIRE hands it to the plugin, with SPIRE's trust
// domain. It looks at no file: see Loader.Load. The error is of the type Problems.
func Parse(text, trustDomain string) (*Config, error) {
	return fromSPIRE(text, trustDomain).parsed()
}

// ParseFile reads a configuration as an operator has it in a file: that of SPIRE's
// server, or what is between the braces of plugin_data alone. Where the file does not
// say what the trust domain is, nothing is refused for being of another one. Else it
// is as Parse.
func ParseFile(text string) (*Config, error) { return fromFile(text).parsed() }

func (in *input) parsed() (*Config, error) {
	c := in.parse(noIdentity{})
	if err := in.problems.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// NewSet returns the configured sources under the configured policy; log and
// limits other than the configured ones come from opts.
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

// parse collects all mistakes and returns what is left without them.
func (in *input) parse(identity httplist.IdentityProvider) *Config {
	c, ps := &Config{TrustDomain: in.trustDomain}, &in.problems
	if in.unread {
		return c
	}
	root, err := parseSyntax(in.data)
	if err != nil {
		ps.add("", "%v", err)
		return c
	}
	b := newBody("", ps, root)
	c.Reattest = b.boolean("reattest", true)
	c.AllowWeakEK = b.boolean("allow_weak_ek", false)
	c.CheckTimeout = b.duration("check_timeout", defaultCheckTimeout, leastCheckTimeout, mostCheckTimeout)
	c.decodeAgentPath(b)
	c.dropEmpty(b)
	all, allow, deny := decodeRoot(ps, b)
	b.finish()
	c.withIdentity(ps, all, identity)
	c.checkAgentPath(ps, all, allow)
	c.assemble(ps, all, allow, deny)
	return c
}

// decodeRoot reads the sources and the rules.
func decodeRoot(ps *problems, b *body) (all []definition, allow, deny []rule) {
	all, declared := decodeSources(ps, b.all("source"))
	if len(declared) > maxSources { // rules are held against each of them
		b.asked = append(b.asked, "allow", "deny", "hash_path", "ca_path")
		return nil, nil, nil
	}
	allow = decodeRules(ps, "allow", b.all("allow"), declared)
	deny = decodeRules(ps, "deny", b.all("deny"), declared)
	switch {
	case b.has("hash_path") || b.has("ca_path"):
		refuseBeside(b, len(declared) > 0, len(allow) > 0, len(deny) > 0)
		all = decodeIncumbent(b)
	case len(declared) == 0:
		ps.add("source", "no source is configured: write %s", exampleOf(1))
	default:
		checkPolicy(ps, all, declared, allow, deny)
	}
	b.asked = append(b.asked, "hash_path", "ca_path")
	if len(allow) == 0 {
		allow = []rule{{Rule: policy.Rule{Name: defaultRule}, path: "rule " + defaultRule}}
		for _, d := range all {
			allow[0].Any = append(allow[0].Any, d.name)
		}
	}
	return all, allow, deny
}

// dropEmpty drops the incumbent's keys where they are empty, which means "not set"
// to the incumbent, and which templates of configurations write.
func (c *Config) dropEmpty(b *body) {
	for _, key := range []string{"ca_path", "hash_path"} {
		if values := b.values[key]; len(values) == 1 && values[0].kind == text && values[0].text == "" {
			delete(b.values, key)
			c.warn(key, "is empty and treated as not set: nothing is trusted because of it")
		}
	}
}

// decodeIncumbent reads the two keys of the incumbent's configuration. Either
// source admits.
func decodeIncumbent(b *body) (all []definition) {
	add := func(kind, key string, d definition) {
		d.kind, d.name, d.path = kind, key, key
		all = append(all, d)
	}
	if path := b.text("ca_path"); path != "" {
		cfg := ekca.Config{CAPath: path, PollInterval: defaultPoll, CRL: ekca.CRLOff}
		add("ek_ca", "ca_path", ekCA(b, cfg, "ca_path"))
	}
	if path := b.text("hash_path"); path != "" {
		add("hash_dir", "hash_path", hashDir(b, hashdir.Config{Path: path}, "hash_path"))
	}
	return all
}

// refuseBeside refuses the incumbent's keys beside blocks, since the rules would
// then leave open what the keys admit.
func refuseBeside(b *body, source, allow, deny bool) {
	for _, key := range []string{"ca_path", "hash_path"} {
		for _, other := range []struct {
			name  string
			there bool
		}{{"source", source}, {"allow", allow}, {"deny", deny}} {
			if b.has(key) && other.there {
				b.fail(key, "cannot be combined with %s blocks: replace it with one such as %s", other.name,
					exampleOf(map[string]int{"ca_path": 0, "hash_path": 1}[key]))
			}
		}
	}
}

// assemble makes members and policy of what was read.
func (c *Config) assemble(ps *problems, all []definition, allow, deny []rule) {
	for _, d := range all {
		c.files = append(c.files, d.files...)
		if d.broken {
			continue
		}
		source, err := d.open()
		if err != nil {
			ps.add(d.path, "%v", err)
			continue
		}
		c.Members = append(c.Members, admission.Member{
			Name: d.name, Kind: d.kind, Config: d.config, Source: source, NoAttributes: d.noAttributes,
		})
	}
	for _, r := range allow {
		c.Policy.Allow = append(c.Policy.Allow, r.Rule)
	}
	for _, r := range deny {
		c.Policy.Deny = append(c.Policy.Deny, r.Rule)
	}
	c.Warnings = append(c.Warnings, policyWarnings(all, allow, deny)...)
	for _, d := range all {
		for _, w := range d.warnings {
			c.Warnings = append(c.Warnings, w.String())
		}
	}
	if len(ps.list) > 0 {
		return
	}
	// What the rules of package sources find beyond those above.
	if _, err := c.NewSet(admission.Options{}); err != nil {
		ps.add("", "%v", err)
	}
}
