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

// ParseConfig reads the plugin's configuration, the content of plugin_data, in HCL or
// JSON. If there are problems, it returns all of them and a zero configuration.
func ParseConfig(src string) (tpm.Config, []tpm.Problem) {
	settings, err := parseSettings(src)
	if err != nil {
		return tpm.Config{}, []tpm.Problem{{Message: err.Error()}}
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

// HasKeys reports whether src can be parsed and has a key of this plugin's configuration.
// It tells the agent's plugin_data from the server's, which has none of these keys.
func HasKeys(src string) bool {
	settings, err := parseSettings(src)
	fields := new(configReader).fields()
	return err == nil && slices.ContainsFunc(settings, func(s setting) bool { return fields[s.key] != nil })
}

// setting is a key at the top level of a configuration, and its value.
type setting struct {
	key      string
	value    string // if isString
	isString bool
}

// parseSettings parses a configuration. It keeps duplicate keys, so that they are
// reported like any other problem. It ignores a byte order mark and the carriage returns
// in the line ends of Windows, which an editor may have left.
func parseSettings(src string) (_ []setting, err error) {
	defer func() {
		if r := recover(); r != nil { // the HCL parser may panic
			err = errors.New("the configuration is not valid HCL")
		}
	}()
	if len(src) > maxConfigSize {
		return nil, fmt.Errorf("the configuration is %d bytes long; at most %d are allowed", len(src), maxConfigSize)
	}
	src = strings.ReplaceAll(strings.TrimPrefix(src, "\ufeff"), "\r\n", "\n")
	if strings.HasPrefix(strings.TrimSpace(src), "{") {
		settings, err := parseJSON(src)
		if err != nil { // err may quote a password
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

// maxBrackets is how many opening brackets a configuration may have, including those in
// comments and strings. The parser's time grows with the square of their depth.
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

// parseHCL reads HCL whose lines end with a line feed. It may panic, since the HCL parser
// may.
func parseHCL(src string) ([]setting, error) {
	// The parser accepts some texts that were cut off, for example within a comment.
	// After such a text, the key end is not parsed as a key of its own.
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

// place returns where the error of a parser is, but not its text, which may quote a
// password.
func place(err error) string {
	var at *hclparser.PosError
	if !errors.As(err, &at) {
		return ""
	}
	return fmt.Sprintf(": see line %d, column %d", at.Pos.Line, at.Pos.Column)
}

// configReader collects the configuration and its problems.
type configReader struct {
	config   tpm.Config
	seen     map[string]bool
	problems []tpm.Problem
}

func (r *configReader) problem(key, format string, args ...any) {
	r.problems = append(r.problems, tpm.Problem{Key: key, Message: fmt.Sprintf(format, args...)})
}

// fields returns a function for each key, which sets the key's value.
func (r *configReader) fields() map[string]func(string) error {
	keep := func(target *string) func(string) error {
		return func(value string) error {
			*target = value
			return nil
		}
	}
	return map[string]func(string) error{
		"ak":                   r.setAK,
		"device":               keep(&r.config.Device),
		"ek":                   r.setEK,
		"endorsement_password": keep(&r.config.EndorsementPassword),
		"event_log_path":       keep(&r.config.EventLogPath),
		"owner_password":       keep(&r.config.OwnerPassword),
	}
}

// read reads one key with its value.
func (r *configReader) read(s setting) {
	fields := r.fields()
	set, ok := fields[s.key]
	if !ok {
		r.problem(s.key, "unknown key: the keys are %s", strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		return
	}
	if r.seen[s.key] {
		r.problem(s.key, "set twice: keep one")
		return
	}
	r.seen[s.key] = true
	if !s.isString {
		r.problem(s.key, `not a string: write %s = "…"`, s.key)
		return
	}
	if err := set(s.value); err != nil {
		r.problem(s.key, "%v", err)
	}
}

func (r *configReader) setEK(value string) (err error) {
	r.config.EK, err = tpm.ParseEK(value)
	return err
}

func (r *configReader) setAK(value string) (err error) {
	r.config.AK, err = tpm.ParseAK(value)
	return err
}

// stringOf returns the value of a token that is a string or a key without quotes.
func stringOf(t token.Token) (string, bool) {
	switch t.Type {
	case token.STRING, token.IDENT, token.HEREDOC:
	default:
		return "", false
	}
	s, ok := t.Value().(string)
	return s, ok
}
