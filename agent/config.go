package agent

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/hashicorp/hcl/hcl/ast"
	hclparser "github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/token"

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
			config, problems = tpm.Config{}, []string{"the configuration is not valid HCL"}
		}
	}()
	settings, err := parseSettings(src)
	if err != nil {
		return tpm.Config{}, []string{err.Error()}
	}
	r := &configReader{seen: make(map[string]bool)}
	for _, s := range settings {
		r.read(s)
	}
	r.problems = append(r.problems, r.config.Problems()...)
	if len(r.problems) > 0 {
		return tpm.Config{}, r.problems
	}
	return r.config, nil
}

// setting is a key at the top level of a configuration, and its value.
type setting struct {
	key, value string
	isString   bool // or the value is of another type, and not here
}

// parseSettings parses a configuration. Duplicate keys are kept: they are found,
// and named, as every other problem is. A byte order mark and the line ends of
// Windows, which an editor may have left, mean nothing.
func parseSettings(src string) ([]setting, error) {
	if len(src) > maxConfigSize {
		return nil, fmt.Errorf("the configuration is %d bytes long; at most %d are allowed", len(src), maxConfigSize)
	}
	src = strings.ReplaceAll(strings.TrimPrefix(src, "\ufeff"), "\r\n", "\n")
	if strings.HasPrefix(strings.TrimSpace(src), "{") {
		settings, err := parseJSON(src)
		if err != nil { // which may quote a password
			return nil, errors.New("the configuration is not valid JSON")
		}
		return settings, nil
	}
	if strings.Count(src, "[")+strings.Count(src, "{") > maxBrackets {
		return nil, fmt.Errorf("the configuration has more than %d brackets: no key takes a list or a block",
			maxBrackets)
	}
	return parseHCL(src)
}

// maxBrackets is how many brackets a configuration may have, those in comments and
// strings included. The parser's time grows with the square of how deep they are.
const maxBrackets = 256

// parseJSON reads a JSON object.
func parseJSON(src string) ([]setting, error) {
	d := jsontext.NewDecoder(strings.NewReader(src), jsontext.AllowDuplicateNames(true))
	if _, err := d.ReadToken(); err != nil { // the brace
		return nil, err
	}
	var all []setting
	for d.PeekKind() != jsontext.KindEndObject {
		key, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		s := setting{key: key.String(), isString: d.PeekKind() == jsontext.KindString}
		if !s.isString {
			err = d.SkipValue()
		} else if value, e := d.ReadToken(); e == nil {
			s.value = value.String()
		} else {
			err = e
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something after the object")
	}
	return all, nil
}

// parseHCL reads HCL, whose lines end with a line feed. It may panic, since the
// parser does.
func parseHCL(src string) ([]setting, error) {
	// A text that was cut behind a key or an equals sign, or within a comment,
	// shows in what follows it: this key is then not the last one.
	file, err := hclparser.ParseDontErrorOnDuplicateKeys([]byte(src + "\nend = true\n"))
	if err != nil {
		return nil, fmt.Errorf("the configuration is not valid HCL%s", place(err))
	}
	list, ok := file.Node.(*ast.ObjectList)
	if !ok {
		return nil, errors.New("the configuration is not a set of keys")
	}
	last := len(list.Items) - 1
	if last < 0 || list.Items[last].Pos().Offset != len(src)+1 {
		return nil, errors.New("the configuration is not valid HCL: it ends too early")
	}
	var all []setting
	for _, item := range list.Items[:last] {
		var s setting
		if s.key, ok = stringOf(item.Keys[0].Token); !ok {
			return nil, fmt.Errorf("%s is not a key", item.Keys[0].Token.Text)
		}
		if literal, ok := item.Val.(*ast.LiteralType); ok && len(item.Keys) == 1 {
			s.value, s.isString = stringOf(literal.Token)
		}
		all = append(all, s)
	}
	return all, nil
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
		"ak":                   r.setAK,
		"device":               keep(&r.config.Device),
		"ek":                   r.setEK,
		"endorsement_password": keep(&r.config.EndorsementPassword),
		"owner_password":       keep(&r.config.OwnerPassword),
	}
}

// read takes one key and its value.
func (r *configReader) read(s setting) {
	fields := r.fields()
	set, ok := fields[s.key]
	if !ok {
		r.problem("%s: unknown key: the keys are %s", s.key, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		return
	}
	if r.seen[s.key] {
		r.problem("%s: set twice: keep one", s.key)
		return
	}
	r.seen[s.key] = true
	if !s.isString {
		r.problem(`%s: not a string: write %s = "…"`, s.key, s.key)
		return
	}
	if wrong := set(s.value); wrong != "" {
		r.problem("%s: %s", s.key, wrong)
	}
}

func (r *configReader) setEK(value string) string {
	var err error
	if r.config.EK, err = tpm.ParseEK(value); err != nil {
		return err.Error()
	}
	return ""
}

func (r *configReader) setAK(value string) string {
	var err error
	if r.config.AK, err = tpm.ParseAK(value); err != nil {
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
	s, ok := t.Value().(string)
	return s, ok
}
