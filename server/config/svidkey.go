package config

import (
	"github.com/hashicorp/hcl/hcl/ast"

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

// decodeSVIDKey reads what the server does about the keys of agents' SVIDs.
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

// composerBlock is the CredentialComposer "tpm" in a configuration of SPIRE's server.
type composerBlock struct {
	there  bool   // there is one, and it is enabled
	inFile bool   // its plugin_data is in a file of its own
	data   string // its plugin_data
}

// composerIn returns the composer's block. It returns nil if plugins cannot be read; pluginData then
// returns the error.
func composerIn(plugins ast.Node) *composerBlock {
	p, err := pluginOf(plugins, "CredentialComposer")
	switch {
	case err != nil:
		return nil
	case p.off():
		return &composerBlock{}
	}
	data, err := p.print()
	if err != nil {
		return nil
	}
	return &composerBlock{there: true, inFile: p.DataFile != "", data: data}
}

// checkComposer compares the configuration with the composer's in the same file. If the two do not fit
// together, no agent gets an SVID, and neither plugin can see why: each sees its own configuration only.
func (c *Config) checkComposer(ps *problems, block *composerBlock) {
	if block == nil {
		return
	}
	on := c.SVIDKey == SVIDKeyOptional || c.SVIDKey == SVIDKeyRequired
	switch {
	case on && !block.there:
		ps.add(svidKeyKey, `is %q, but there is no %s, so no agent of this plugin would get an SVID: add it with the `+
			`same plugin_cmd and plugin_data { socket = %q }`, c.SVIDKey, composerPath, c.SVIDKeySocket)
	case block.there && !on && c.SVIDKey != "":
		ps.add(composerPath, `is there, but svid_key of NodeAttestor "tpm" is %q: it would refuse every agent of that `+
			`plugin; remove it, or write svid_key = "optional"`, c.SVIDKey)
	}
	if !block.there || block.inFile {
		return
	}
	composer, err := ParseComposer(block.data)
	if problems, ok := err.(Problems); ok { //nolint:errorlint // ParseComposer returns nothing else
		for _, p := range problems {
			ps.add(under(composerPath, p.Path), "%s", p.Message)
		}
		return
	}
	if on && c.SVIDKeySocket != "" && composer.Socket != c.SVIDKeySocket {
		ps.add(under(composerPath, "socket"),
			`is %q, but svid_key_socket of NodeAttestor "tpm" is %q: write the same in both`,
			composer.Socket, c.SVIDKeySocket)
	}
}
