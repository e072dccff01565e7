package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/hcl/ast"
	hclparser "github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/token"
	jsonparser "github.com/hashicorp/hcl/json/parser"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
)

// maxConfigSize is the size of the longest configuration that is read, in bytes.
const maxConfigSize = 64 << 10

// parseConfig reads the plugin's configuration, HCL or JSON. It returns all that
// is wrong with it, each by its key and with what to write instead; no problem
// shows a value that may be a password.
func parseConfig(src string) (config tpm.Config, problems []string) {
	defer func() {
		if r := recover(); r != nil { // of the parser
			config, problems = tpm.Config{}, []string{"the configuration is no HCL"}
		}
	}()
	items, err := parseItems(src)
	if err != nil {
		return tpm.Config{}, []string{err.Error()}
	}
	r := &configReader{seen: make(map[string]bool)}
	for _, item := range items {
		r.read(item)
	}
	r.problems = append(r.problems, r.config.Problems()...)
	if len(r.problems) > 0 {
		return tpm.Config{}, r.problems
	}
	return r.config, nil
}

// parseItems parses the top level of a configuration. Duplicate keys are kept:
// they are found, and named, as every other problem is.
func parseItems(src string) ([]*ast.ObjectItem, error) {
	if len(src) > maxConfigSize {
		return nil, fmt.Errorf("the configuration has %d bytes: at most %d are read", len(src), maxConfigSize)
	}
	if strings.HasPrefix(strings.TrimSpace(src), "{") {
		if !json.Valid([]byte(src)) {
			return nil, errors.New("the configuration is no JSON")
		}
		return items(jsonparser.Parse([]byte(src)))
	}
	// A text that was cut behind a key or an equals sign, or within a comment,
	// shows in what follows it: this key is then not the last one.
	all, err := items(hclparser.ParseDontErrorOnDuplicateKeys([]byte(src + "\nend = true\n")))
	if err != nil {
		return nil, err
	}
	last := len(all) - 1
	if last < 0 || all[last].Pos().Offset != len(src)+1 {
		return nil, errors.New("the configuration is no HCL: it ends too early")
	}
	return all[:last], nil
}

// items returns the top level of what a parser has read.
func items(file *ast.File, err error) ([]*ast.ObjectItem, error) {
	if err != nil {
		return nil, fmt.Errorf("the configuration is no HCL%s", place(err))
	}
	list, ok := file.Node.(*ast.ObjectList)
	if !ok {
		return nil, errors.New("the configuration is not a set of keys")
	}
	return list.Items, nil
}

// place returns where a parser's error is. What it is may quote a password.
func place(err error) string {
	var at *hclparser.PosError
	if !errors.As(err, &at) {
		return ""
	}
	return fmt.Sprintf(": see line %d, column %d", at.Pos.Line, at.Pos.Column)
}

// configReader collects the configuration and what is wrong with it.
type configReader struct {
	config   tpm.Config
	seen     map[string]bool
	problems []string
}

func (r *configReader) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// fields are the keys and what takes their values. A function reports what is
// wrong with a value, or nothing.
func (r *configReader) fields() map[string]func(string) string {
	keep := func(target *string) func(string) string {
		return func(value string) string {
			*target = value
			return ""
		}
	}
	return map[string]func(string) string{
		"device":               keep(&r.config.Device),
		"ek":                   r.setEK,
		"endorsement_password": keep(&r.config.EndorsementPassword),
		"owner_password":       keep(&r.config.OwnerPassword),
	}
}

// read takes one key and its value.
func (r *configReader) read(item *ast.ObjectItem) {
	key, ok := stringOf(item.Keys[0].Token)
	if !ok {
		r.problem("%s is no key", item.Keys[0].Token.Text)
		return
	}
	fields := r.fields()
	set, ok := fields[key]
	if !ok {
		r.problem("%s: unknown key: the keys are %s", key, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		return
	}
	if r.seen[key] {
		r.problem("%s: it is there twice: write it once", key)
		return
	}
	r.seen[key] = true
	literal, ok := item.Val.(*ast.LiteralType)
	if !ok || len(item.Keys) != 1 {
		r.problem(`%s: it is not a string: write %s = "…"`, key, key)
		return
	}
	value, ok := stringOf(literal.Token)
	if !ok {
		r.problem(`%s: it is not a string: write %s = "…"`, key, key)
		return
	}
	if wrong := set(value); wrong != "" {
		r.problem("%s: %s", key, wrong)
	}
}

func (r *configReader) setEK(value string) string {
	var err error
	if r.config.EK, err = tpm.ParseEK(value); err != nil {
		return err.Error()
	}
	return ""
}

// stringOf returns the value of a token that is a string, or a key without quotes.
func stringOf(t token.Token) (string, bool) {
	switch t.Type {
	case token.STRING, token.IDENT, token.HEREDOC:
	default:
		return "", false
	}
	if t.Text == "" { // null in JSON
		return "", false
	}
	s, ok := t.Value().(string)
	return s, ok
}
