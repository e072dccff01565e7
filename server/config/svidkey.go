package config

import (
	"errors"

	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
)

// The values of Config.SVIDKey.
const (
	SVIDKeyOff      = "off"
	SVIDKeyOptional = "optional"
	SVIDKeyRequired = "required"
)

const (
	svidKeyKey       = "svid_key"
	svidKeySocketKey = "svid_key_socket"
	composerExample  = `"/run/spire/tpm/svid.sock"`
)

// decodeSVIDKey reads the keys for agents' SVID keys.
func (c *Config) decodeSVIDKey(b *body) {
	c.SVIDKey = b.choice(svidKeyKey, SVIDKeyOff, SVIDKeyOptional, SVIDKeyRequired)
	c.SVIDKeySocket = b.socket(svidKeySocketKey)
	on := c.SVIDKey != SVIDKeyOff
	switch {
	case b.wrong[svidKeyKey] || b.wrong[svidKeySocketKey]:
	case on && c.SVIDKeySocket == "":
		b.fail(svidKeySocketKey, `is missing: write %s = %s, and the same as socket of CredentialComposer "tpm"`,
			svidKeySocketKey, composerExample)
	case !on && c.SVIDKeySocket != "" && !b.has(svidKeyKey):
		b.fail(svidKeySocketKey, `is set, but svid_key is not: write svid_key = "optional" or svid_key = "required", `+
			`or remove svid_key_socket and CredentialComposer "tpm"`)
	case !on && c.SVIDKeySocket != "":
		c.warn(svidKeyKey, `is "off": if CredentialComposer "tpm" is configured, it refuses every agent of this `+
			`plugin, since no key is handed over to it: remove it, or write svid_key = "optional"`)
	}
	if !on {
		return
	}
	if !c.Reattest {
		b.fail(svidKeyKey, `is %q, but reattest is false: SPIRE then renews SVIDs without an attestation, `+
			`for keys that no TPM has certified; remove reattest = false, or svid_key`, c.SVIDKey)
	}
	if c.AgentPath != nil && !c.AgentPath.FollowsConvention() {
		b.fail(svidKeyKey, `is %q, but agent_path_template does not begin with /tpm/: CredentialComposer "tpm" `+
			`decides about IDs below /spire/agent/tpm/ and no other; let agent_path_template begin with /tpm/, `+
			`or remove svid_key`, c.SVIDKey)
	}
}

// socket returns the path of a socket. It returns nothing if the key is missing or its value is wrong.
func (b *body) socket(key string) string {
	path := b.text(key)
	if path == "" {
		return ""
	}
	if err := handover.CheckPath(path); err != nil {
		b.fail(key, "%q %v", shorten(path), err)
		return ""
	}
	return path
}

// A Composer is the configuration of CredentialComposer "tpm".
type Composer struct {
	// Socket is the path at which the composer listens.
	Socket string
}

// ParseComposer reads a configuration of CredentialComposer "tpm" as SPIRE hands it to the plugin.
// It looks at no files. The error is of the type Problems.
func ParseComposer(text string) (*Composer, error) {
	var ps problems
	root, err := parseSyntax(text)
	if err != nil {
		ps.add("", "%v", err)
		return nil, ps.err()
	}
	b := newBody("", &ps, root)
	c := &Composer{Socket: b.socket("socket")}
	if c.Socket == "" && !b.wrong["socket"] {
		b.fail("socket", `is missing: write socket = %s, and the same as svid_key_socket of NodeAttestor "tpm"`,
			composerExample)
	}
	b.finish()
	if err := ps.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// composerPath comes before the composer's keys in messages.
const composerPath = `CredentialComposer "tpm"`

// checkComposer compares the configuration with that of the composer of the same server. If the two do not
// fit together, no agent gets an SVID, and neither plugin can see why: each sees its own configuration only.
func (in *input) checkComposer(c *Config) {
	ps, p := &in.problems, in.composer
	if p == nil {
		return
	}
	on := c.SVIDKey == SVIDKeyOptional || c.SVIDKey == SVIDKeyRequired
	switch {
	case on && p.there && p.off:
		ps.add(svidKeyKey, `is %q, but %s has enabled = false, so no agent of this plugin would get an SVID: remove `+
			`enabled = false`, c.SVIDKey, composerPath)
	case on && !p.there:
		ps.add(svidKeyKey, `is %q, but there is no %s, so no agent of this plugin would get an SVID: add it with the `+
			`same plugin_cmd and plugin_data { socket = %q }`, c.SVIDKey, composerPath, c.SVIDKeySocket)
	case p.loaded() && !on && c.SVIDKey != "":
		ps.addIn("", composerPath, `is there, but svid_key of NodeAttestor "tpm" is %q: it would refuse every agent `+
			`of that plugin; remove it, or write svid_key = "optional"`, c.SVIDKey)
	}
	if !p.loaded() {
		return
	}
	if p.err != nil {
		in.noComposer(c, p.err)
		return
	}
	composer, err := ParseComposer(p.data.Text)
	if problems, ok := err.(Problems); ok { //nolint:errorlint // ParseComposer returns nothing else
		for _, one := range problems {
			ps.addIn(p.data.File, under(composerPath, one.Path), "%s", one.Message)
		}
		return
	}
	if on && c.SVIDKeySocket != "" && composer.Socket != c.SVIDKeySocket {
		ps.addIn(p.data.File, under(composerPath, "socket"),
			`is %q, but svid_key_socket of NodeAttestor "tpm" is %q: write the same in both`,
			composer.Socket, c.SVIDKeySocket)
	}
}

// noComposer says why the composer's configuration is not known. If nobody could look at it, it may be right.
func (in *input) noComposer(c *Config, err error) {
	if _, ok := errors.AsType[*lookError](err); ok {
		c.warned = append(c.warned, Warning{Problem: Problem{Path: pluginsKey, Message: err.Error()}, Unsure: true})
		return
	}
	in.problems.addIn("", pluginsKey, "%v", err)
}
