package config

import (
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
)

func (c *Config) decodeAgentPath(b *body) {
	text := b.text(agentPathKey)
	if text == "" {
		text = agentpath.Default
	}
	t, err := agentpath.Parse(text)
	if err != nil {
		b.fail(agentPathKey, "%q %v", shorten(text), err)
		return
	}
	c.AgentPath = t
}

const agentPathKey = "agent_path_template"

// MayGive reports whether a source can provide a field of AgentPath. For a source that is not in the configuration
// it returns true, since nothing is known about it.
func (c *Config) MayGive(source string, f agentpath.Field) bool {
	fields, known := c.gives[source]
	return !known || slices.Contains(fields, f)
}

// checkAgentPath refuses a template whose fields have values for no machine, and warns about the consequences of an
// accepted template.
func (c *Config) checkAgentPath(ps *problems, all []definition, allow []rule) {
	c.gives = map[string][]agentpath.Field{}
	if c.AgentPath == nil {
		return
	}
	for _, d := range all {
		c.gives[d.name] = slices.DeleteFunc(slices.Clone(d.fields), func(f agentpath.Field) bool {
			return d.kind.byDevID && c.AgentPath.OfEKCertificate(f)
		})
	}
	fromBundles := "an ek_ca or a devid with bundles"
	if c.AgentPath.OfEKCertificate(agentpath.CA) {
		fromBundles = "an ek_ca with bundles"
	}
	for _, f := range []struct {
		field agentpath.Field
		from  string
	}{
		{agentpath.Name, "a list, such as a hash_dir or a hash_file"},
		{agentpath.CA, fromBundles},
		{agentpath.Issuer, "an ek_ca"},
		{agentpath.Serial, "an ek_ca"},
		{agentpath.DevIDFingerprint, "a devid"},
	} {
		if c.AgentPath.Uses(f.field) {
			c.checkField(ps, f.field, f.from, allow)
		}
	}
	c.warnOfAgentPath()
}

// checkField refuses a field if no source of an enforced allow rule provides it. It warns if only some of these
// rules have such a source.
func (c *Config) checkField(ps *problems, f agentpath.Field, from string, allow []rule) {
	var with, without []rule
	for _, r := range allow {
		sources := slices.Concat(r.All, r.Any)
		switch {
		case r.Trial:
		case len(sources) == 0 || slices.ContainsFunc(sources, func(s string) bool { return c.MayGive(s, f) }):
			with = append(with, r)
		default:
			without = append(without, r)
		}
	}
	if len(with) == 0 && len(without) > 0 {
		ps.add(agentPathKey, "uses %s, which no source of an enforced allow rule provides, so no machine "+
			"would get an ID: add %s, without attributes = false, to such a rule, or use %s instead",
			f, from, agentpath.PubHash)
		return
	}
	for _, r := range without {
		c.warn(agentPathKey, "uses "+f.String()+", which no source of "+r.path+" provides: "+
			"a machine admitted by this rule alone gets no ID and is refused")
	}
}

// warnOfAgentPath warns about what a template means for the IDs.
func (c *Config) warnOfAgentPath() {
	if !c.AgentPath.FollowsConvention() {
		c.warn(agentPathKey, "the IDs are not under /spire/agent/tpm/, where SPIRE expects those of this plugin")
	}
	uses := c.AgentPath.Uses
	switch {
	case uses(agentpath.PubHash), uses(agentpath.DevIDFingerprint):
	case uses(agentpath.Name):
		c.warn(agentPathKey, "two machines with the same name get the same ID: keep names unique across all lists")
	case !uses(agentpath.Issuer):
		c.warn(agentPathKey, "serial numbers are unique only within one issuer: "+
			"use .Issuer unless each bundle has a single CA")
	}
}
