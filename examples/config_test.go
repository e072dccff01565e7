package examples_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/printer"
)

// plugin is the configuration of a NodeAttestor "tpm" as SPIRE reads it.
type plugin struct {
	Cmd      string   `hcl:"plugin_cmd"`
	Checksum string   `hcl:"plugin_checksum"`
	Data     ast.Node `hcl:"plugin_data"`
	DataFile *string  `hcl:"plugin_data_file"`
}

// spireConfig is as much of SPIRE's configuration as matters here.
type spireConfig struct {
	Server  ast.Node `hcl:"server"`
	Agent   ast.Node `hcl:"agent"`
	Plugins ast.Node `hcl:"plugins"`
}

// snippet is a configuration that stands in the documentation.
type snippet struct {
	place string
	role  string // "server", "agent", or "" where the text has to say it
	text  string
	// whole is true for a file that SPIRE is started with.
	whole bool
	// wrong is true for one that shows a mistake.
	wrong bool
}

// pluginData is what SPIRE hands to the plugin.
type pluginData struct {
	role string // "server" or "agent"
	text string
	// inFile is true where the text is in a file of its own.
	inFile bool
}

// data returns the plugin_data, in the words in which SPIRE hands it over.
func (s snippet) data() (pluginData, error) {
	config, err := s.parse()
	if err != nil {
		return pluginData{}, err
	}
	p, err := attestorOf(config)
	if err != nil {
		return pluginData{}, err
	}
	d := pluginData{role: s.role}
	switch {
	case config.Server != nil || strings.HasSuffix(p.Cmd, "tpm-attestor-server"):
		d.role = "server"
	case config.Agent != nil || strings.HasSuffix(p.Cmd, "tpm-attestor-agent"):
		d.role = "agent"
	}
	switch {
	case d.role == "":
		return pluginData{}, errors.New("is it the server's or the agent's? write it behind the fence")
	case p.Data == nil && p.DataFile == nil:
		return pluginData{}, errors.New("neither plugin_data nor plugin_data_file")
	case p.Data == nil:
		d.inFile = true
		return d, nil
	}
	d.text, err = printed(p.Data)
	return d, err
}

func printed(data ast.Node) (string, error) {
	var b bytes.Buffer
	if err := printer.DefaultConfig.Fprint(&b, data); err != nil {
		return "", fmt.Errorf("print the plugin_data: %w", err)
	}
	return b.String(), nil
}

// otherRoles are the plugins "tpm" beside the node attestor, by SPIRE's type.
var otherRoles = map[string]string{"KeyManager": "key manager", "CredentialComposer": "composer"}

// others returns the plugin_data of the plugins "tpm" that are no node attestors.
func (s snippet) others() ([]pluginData, error) {
	config, err := s.parse()
	if err != nil {
		return nil, err
	}
	var found []pluginData
	var all []map[string]map[string]plugin
	if err := hcl.DecodeObject(&all, config.Plugins); err != nil {
		return nil, err
	}
	for _, types := range all {
		for kind, plugins := range types {
			p, ok := plugins["tpm"]
			if !ok || otherRoles[kind] == "" {
				continue
			}
			if p.Data == nil {
				return nil, fmt.Errorf("no plugin_data of the %s", otherRoles[kind])
			}
			text, err := printed(p.Data)
			if err != nil {
				return nil, err
			}
			found = append(found, pluginData{role: otherRoles[kind], text: text})
		}
	}
	return found, nil
}

// parse reads a whole configuration, or makes one of a part.
func (s snippet) parse() (*spireConfig, error) {
	text := s.text
	if !s.whole && !strings.HasPrefix(strings.TrimSpace(text), "{") {
		if !strings.Contains(text, `NodeAttestor "tpm"`) {
			text = "NodeAttestor \"tpm\" {\nplugin_data {\n" + text + "\n}\n}"
		}
		text = "plugins {\n" + text + "\n}"
	}
	var config spireConfig
	if err := hcl.Decode(&config, text); err != nil {
		return nil, err
	}
	if s.whole && (config.Server == nil) == (config.Agent == nil) {
		return nil, errors.New("a whole configuration has a server or an agent block")
	}
	return &config, nil
}

func attestorOf(config *spireConfig) (*plugin, error) {
	var all []map[string]map[string]plugin
	if err := hcl.DecodeObject(&all, config.Plugins); err != nil {
		return nil, err
	}
	for _, types := range all {
		if p, ok := types["NodeAttestor"]["tpm"]; ok {
			return &p, nil
		}
	}
	return nil, errors.New(`no NodeAttestor "tpm"`)
}

// hclFiles returns the example configurations.
func hclFiles(t *testing.T) []snippet {
	t.Helper()
	var all []snippet
	for _, file := range repoFiles(t, ".conf", ".hcl") {
		if strings.HasPrefix(file, "examples/") {
			s := snippet{place: file, text: read(t, file), whole: true}
			if filepath.Base(file) == "tpm.hcl" { // a plugin_data_file of the server
				s.role, s.whole = "server", false
				s.text = "NodeAttestor \"tpm\" {\nplugin_data {\n" + s.text + "}\n}\n"
			}
			all = append(all, s)
		}
	}
	if len(all) < 6 {
		t.Fatalf("found only %d example configurations", len(all))
	}
	return all
}

// hclBlocks returns the configurations in Markdown files: every block of HCL, and
// the blocks of JSON that configure this plugin.
func hclBlocks(t *testing.T) []snippet {
	t.Helper()
	var all []snippet
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			isJSON := b.lang() == "json" && strings.Contains(b.text, `"NodeAttestor"`)
			if b.lang() != "hcl" && !isJSON {
				continue
			}
			s := snippet{place: fmt.Sprintf("%s:%d", b.file, b.line), text: b.text, wrong: b.has("invalid")}
			for _, role := range []string{"server", "agent"} {
				if b.has(role) {
					s.role = role
				}
			}
			all = append(all, s)
		}
	}
	if len(all) < 16 {
		t.Fatalf("found only %d blocks of HCL", len(all))
	}
	return all
}

var absolutePath = regexp.MustCompile(`"(/(?:srv|etc|opt|var)/[^"]*)"`)

// underTemp moves the paths of a configuration into a new folder and makes what
// they name there: a certificate for a name with an ending, otherwise a folder
// with one in it.
func underTemp(t *testing.T, data string, ca []byte) string {
	t.Helper()
	dir := t.TempDir()
	return absolutePath.ReplaceAllStringFunc(data, func(quoted string) string {
		path := filepath.Join(dir, strings.Trim(quoted, `"`))
		folder, file := path, filepath.Join(path, "ca.pem")
		if filepath.Ext(path) != "" {
			folder, file = filepath.Dir(path), path
		}
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, ca, 0o600); err != nil {
			t.Fatal(err)
		}
		return `"` + path + `"`
	})
}

// newCA returns a CA certificate in PEM.
func newCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "Example EK CA"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
