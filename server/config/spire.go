package config

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/printer"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// input is a configuration before it is parsed.
type input struct {
	data Data
	// trustDomain is zero if it is not known.
	trustDomain spiffeid.TrustDomain
	// problems are those found so far. If unread is true, there is no data. The reason is in
	// problems or, if the file of the data could not be looked at, in failed.
	problems problems
	unread   bool
	failed   error
	// kinds are the kinds of sources that there are.
	kinds []kind
	// composer is the CredentialComposer "tpm"; nil if it is not known whether there is one.
	composer *plugin
}

// fromSPIRE returns the input from what SPIRE passes to the plugin.
func fromSPIRE(data, trustDomain string) *input {
	in := &input{data: Data{Text: data}, kinds: kinds()}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		in.problems.add("trust_domain", "SPIRE passed an invalid one: %v", err)
	}
	in.trustDomain = td
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

// trustDomainOf reads the trust domain from a configuration of SPIRE's server. It returns zero if
// the trust domain is not there: SPIRE may get it from its command line or its environment.
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

// pluginBlock is a plugin in a configuration of SPIRE. SPIRE distinguishes a key that is missing from one
// that is empty.
type pluginBlock struct {
	Data     ast.Node `hcl:"plugin_data"`
	DataFile *string  `hcl:"plugin_data_file"`
	Enabled  *bool    `hcl:"enabled"`
}

// pluginOf returns the plugin "tpm" of a type, or nil if there is none. Two of one type are an
// error, since it is not known which of them SPIRE would use.
func pluginOf(plugins ast.Node, kind string) (*pluginBlock, error) {
	var all []map[string]map[string]pluginBlock
	if err := hcl.DecodeObject(&all, plugins); err != nil {
		return nil, err
	}
	var found *pluginBlock
	for _, types := range all {
		p, ok := types[kind][pluginName]
		switch {
		case !ok:
		case found != nil:
			return nil, fmt.Errorf("%s is there twice: remove one of them", called(kind))
		default:
			found = &p
		}
	}
	return found, nil
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
