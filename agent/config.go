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
	r := new(configReader)
	r.readAll("", settings, r.fields())
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
	return err == nil && slices.ContainsFunc(settings, func(s setting) bool {
		_, ok := fields[s.key]
		return ok
	})
}

// setting is a key of a configuration or of a block in it, and its value.
type setting struct {
	key   string
	kind  kind
	value string    // of a text
	block []setting // of a block
}

// kind is what a value is.
type kind int

const (
	other kind = iota // neither of the following
	text
	block
)

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
		return nil, fmt.Errorf("the configuration has more than %d brackets: no key but devid takes a block",
			maxBrackets)
	}
	return parseHCL(src)
}

// maxBrackets is how many opening brackets a configuration may have, including those in
// comments and strings. The parser's time grows with the square of their depth.
const maxBrackets = 256

// parseJSON reads a JSON object and nothing else.
func parseJSON(src string) ([]setting, error) {
	d := jsontext.NewDecoder(strings.NewReader(src), jsontext.AllowDuplicateNames(true))
	all, err := readObject(d)
	if err != nil {
		return nil, err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something after the object")
	}
	return all, nil
}

// maxBlocks is how deep blocks are read. No key is nested deeper.
const maxBlocks = 2

// readObject reads a JSON object.
func readObject(d *jsontext.Decoder) ([]setting, error) {
	if _, err := d.ReadToken(); err != nil { // the brace
		return nil, err
	}
	var all []setting
	for d.PeekKind() != jsontext.KindEndObject {
		key, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		s := setting{key: key.String()}
		if err := s.readJSON(d); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	_, err := d.ReadToken()
	return all, err
}

// readJSON reads the value of a key. A list of one object is a block too, as in HCL.
func (s *setting) readJSON(d *jsontext.Decoder) (err error) {
	switch kind := d.PeekKind(); {
	case kind == jsontext.KindString:
		value, err := d.ReadToken()
		if err == nil {
			s.kind, s.value = text, value.String()
		}
		return err
	case kind == jsontext.KindBeginObject && d.StackDepth() < maxBlocks:
		s.kind = block
		s.block, err = readObject(d)
		return err
	case kind == jsontext.KindBeginArray && d.StackDepth() < maxBlocks:
		return s.readList(d)
	}
	return d.SkipValue()
}

func (s *setting) readList(d *jsontext.Decoder) error {
	if _, err := d.ReadToken(); err != nil { // the bracket
		return err
	}
	n := 0
	for ; d.PeekKind() != jsontext.KindEndArray; n++ {
		if n > 0 || d.PeekKind() != jsontext.KindBeginObject {
			if err := d.SkipValue(); err != nil {
				return err
			}
			s.kind, s.block = other, nil
			continue
		}
		var err error
		if s.block, err = readObject(d); err != nil {
			return err
		}
		s.kind = block
	}
	_, err := d.ReadToken()
	return err
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
	return readItems(list.Items[:last], 1)
}

// readItems reads the keys of a block at depth, which is 1 for the whole configuration.
func readItems(items []*ast.ObjectItem, depth int) ([]setting, error) {
	var all []setting
	for _, item := range items {
		key, ok := stringOf(item.Keys[0].Token)
		if !ok {
			return nil, fmt.Errorf("%s is not a key", item.Keys[0].Token.Text)
		}
		s := setting{key: key}
		if len(item.Keys) == 1 {
			if err := s.readHCL(item.Val, depth); err != nil {
				return nil, err
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// readHCL reads the value of a key. SPIRE may print a block as a list of one.
func (s *setting) readHCL(value ast.Node, depth int) (err error) {
	if list, ok := value.(*ast.ListType); ok && len(list.List) == 1 {
		value = list.List[0]
		if _, ok := value.(*ast.ObjectType); !ok {
			return nil // a list of something else
		}
	}
	switch value := value.(type) {
	case *ast.LiteralType:
		if v, ok := stringOf(value.Token); ok {
			s.kind, s.value = text, v
		}
	case *ast.ObjectType:
		if depth < maxBlocks {
			s.kind = block
			s.block, err = readItems(value.List.Items, depth+1)
		}
	}
	return err
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
	problems []tpm.Problem
}

func (r *configReader) problem(key, format string, args ...any) {
	r.problems = append(r.problems, tpm.Problem{Key: key, Message: fmt.Sprintf(format, args...)})
}

// field takes the value of a key. Exactly one of text and block is set.
type field struct {
	text  func(string) error
	block func([]setting)
}

// keep returns a field that keeps a text.
func keep(target *string) field {
	return field{text: func(value string) error {
		*target = value
		return nil
	}}
}

// fields returns the fields of the configuration by their keys.
func (r *configReader) fields() map[string]field {
	return map[string]field{
		"ak":                   {text: r.setAK},
		"device":               keep(&r.config.Device),
		"devid":                {block: r.readDevID},
		"ek":                   {text: r.setEK},
		"endorsement_password": keep(&r.config.EndorsementPassword),
		"event_log_path":       keep(&r.config.EventLogPath),
		"owner_password":       keep(&r.config.OwnerPassword),
		"svid_key_directory":   keep(&r.config.SVIDKeyDirectory),
	}
}

// readDevID reads the block devid.
func (r *configReader) readDevID(settings []setting) {
	d := new(tpm.DevIDConfig)
	r.config.DevID = d
	r.readAll("devid: ", settings, map[string]field{
		"cert_path": keep(&d.CertPath),
		"handle":    keep(&d.Handle),
		"idevid":    keep(&d.IDevID),
		"password":  keep(&d.Password),
		"priv_path": keep(&d.PrivPath),
		"pub_path":  keep(&d.PubPath),
	})
}

// readAll reads the keys of a block. Problems name a key after the path of its block.
func (r *configReader) readAll(path string, settings []setting, fields map[string]field) {
	seen := make(map[string]bool)
	for _, s := range settings {
		f, ok := fields[s.key]
		switch {
		case !ok:
			r.problem(path+s.key, "unknown key: the keys are %s", strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		case seen[s.key]:
			r.problem(path+s.key, "set twice: keep one")
		default:
			seen[s.key] = true
			r.read(path+s.key, s, f)
		}
	}
}

// read reads one key with its value; name is the key with its path.
func (r *configReader) read(name string, s setting, f field) {
	switch {
	case f.block != nil && s.kind == block:
		f.block(s.block)
	case f.block != nil:
		r.problem(name, "not a block: write %s { … }", s.key)
	case s.kind != text:
		r.problem(name, `not a string: write %s = "…"`, s.key)
	default:
		if err := f.text(s.value); err != nil {
			r.problem(name, "%v", err)
		}
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
