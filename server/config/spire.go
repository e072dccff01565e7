package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/printer"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// input is a configuration before it is parsed.
type input struct {
	data string // what is between the braces of plugin_data
	// trustDomain is zero if it is not known.
	trustDomain spiffeid.TrustDomain
	// problems are those that were found so far. If unread is true, there is no data
	// because of them.
	problems problems
	unread   bool
	// kinds are the kinds of sources that there are.
	kinds []kind
	// composer says whether the configuration has a CredentialComposer "tpm"; nil if that is not known.
	composer *composerBlock
}

// fromSPIRE returns a configuration that SPIRE hands to the plugin.
func fromSPIRE(data, trustDomain string) *input {
	in := &input{data: data, kinds: kinds()}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		in.problems.add("trust_domain", "SPIRE passed an invalid one: %v", err)
	}
	in.trustDomain = td
	return in
}

// fromFile returns a configuration that an operator has in a file. If the text has
// plugins, it is a configuration of SPIRE's server: fromFile takes the plugin_data from it,
// as SPIRE does, and the trust domain. Otherwise the text is plugin_data alone.
func fromFile(text string) *input {
	in := &input{data: text, kinds: kinds()}
	whole, err := wholeFile(text)
	switch {
	case err != nil || whole.Plugins == nil:
		return in // parse says what is wrong with it
	case whole.Agent != nil && whole.Server == nil:
		in.problems.add("agent", "this is SPIRE Agent's configuration: name SPIRE Server's")
		in.unread = true
		return in
	}
	data, err := pluginData(whole.Plugins)
	if err != nil {
		in.problems.add("plugins", "%v", err)
		in.unread = true
	}
	in.data, in.composer = data, composerIn(whole.Plugins)
	if in.trustDomain, err = trustDomainOf(whole.Server); err != nil {
		in.problems.add("server: trust_domain", "%v", err)
	}
	return in
}

// A spireFile is a configuration of SPIRE Server or SPIRE Agent as a whole.
type spireFile struct {
	Agent   ast.Node `hcl:"agent"`
	Server  ast.Node `hcl:"server"`
	Plugins ast.Node `hcl:"plugins"`
}

func wholeFile(text string) (whole spireFile, err error) {
	err = hcl.Decode(&whole, text)
	return whole, err
}

// IsServers tells whether a text is a configuration file of SPIRE Server, whose plugins it has.
func IsServers(text string) bool {
	whole, err := wholeFile(text)
	return err == nil && whole.Server != nil && whole.Agent == nil && whole.Plugins != nil
}

// AgentData returns the plugin_data of NodeAttestor "tpm" in a configuration file of SPIRE
// Agent. If text is not such a file, ok is false.
func AgentData(text string) (data string, ok bool, err error) {
	whole, err := wholeFile(text)
	if err != nil || whole.Agent == nil || whole.Server != nil || whole.Plugins == nil {
		return "", false, nil //nolint:nilerr // the reader of the server's configuration says what is wrong
	}
	data, err = pluginData(whole.Plugins)
	return data, true, err
}

// KeyManagerData returns the plugin_data of KeyManager "tpm" in a configuration file of SPIRE Agent. If
// text is not such a file, or has another key manager, ok is false.
func KeyManagerData(text string) (data string, ok bool, err error) {
	whole, err := wholeFile(text)
	if err != nil || whole.Plugins == nil {
		return "", false, nil //nolint:nilerr // as above
	}
	p, err := pluginOf(whole.Plugins, "KeyManager")
	if err != nil || p.off() {
		return "", false, err
	}
	data, err = p.content("KeyManager")
	return data, true, err
}

// trustDomainOf reads the trust domain from a configuration of SPIRE's server. It is zero
// if it is set on SPIRE's command line or by its environment.
func trustDomainOf(server ast.Node) (spiffeid.TrustDomain, error) {
	var s struct {
		TrustDomain string `hcl:"trust_domain"`
	}
	if server != nil {
		if err := hcl.DecodeObject(&s, server); err != nil {
			return spiffeid.TrustDomain{}, err
		}
	}
	if s.TrustDomain == "" || strings.Contains(s.TrustDomain, "$") {
		return spiffeid.TrustDomain{}, nil
	}
	return spiffeid.TrustDomainFromString(s.TrustDomain)
}

// pluginData returns the plugin_data of NodeAttestor "tpm" as SPIRE prints it.
func pluginData(plugins ast.Node) (string, error) {
	p, err := pluginOf(plugins, "NodeAttestor")
	switch {
	case err != nil:
		return "", err
	case p == nil:
		return "", errors.New(`there is no NodeAttestor "tpm"`)
	}
	return p.content("NodeAttestor")
}

// pluginBlock is a plugin in a configuration of SPIRE.
type pluginBlock struct {
	Data     ast.Node `hcl:"plugin_data"`
	DataFile string   `hcl:"plugin_data_file"`
	Enabled  *bool    `hcl:"enabled"`
}

// pluginOf returns the plugin "tpm" of a type, or nil if there is none. Of two with one name,
// nobody could say which one SPIRE asks.
func pluginOf(plugins ast.Node, kind string) (*pluginBlock, error) {
	var all []map[string]map[string]pluginBlock
	if err := hcl.DecodeObject(&all, plugins); err != nil {
		return nil, err
	}
	var found *pluginBlock
	for _, types := range all {
		p, ok := types[kind]["tpm"]
		switch {
		case !ok:
		case found != nil:
			return nil, fmt.Errorf("%s \"tpm\" is there twice: remove one of them", kind)
		default:
			found = &p
		}
	}
	return found, nil
}

// off reports whether SPIRE does not start the plugin. p is nil if there is none.
func (p *pluginBlock) off() bool { return p == nil || p.Enabled != nil && !*p.Enabled }

// content returns the plugin_data of a plugin of a type. It is an error if that is in a file of its own.
func (p *pluginBlock) content(kind string) (string, error) {
	if p.DataFile != "" {
		return "", fmt.Errorf(`%s "tpm": its plugin_data is in a separate file: name that one, %q`,
			kind, shorten(p.DataFile))
	}
	data, err := p.print()
	if err != nil {
		return "", fmt.Errorf(`%s "tpm": %w`, kind, err)
	}
	return data, nil
}

// print returns the plugin_data as SPIRE prints it.
func (p *pluginBlock) print() (string, error) {
	if p.Data == nil {
		return "", nil
	}
	var out bytes.Buffer
	err := printer.DefaultConfig.Fprint(&out, p.Data)
	return out.String(), err
}
