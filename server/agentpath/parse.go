package agentpath

import (
	"errors"
	"fmt"
	"strings"
	"text/template/parse"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Parse reads a template. It refuses a template that could give two machines the same ID: a template must use
// .PubHash, .Name, .DevIDFingerprint, or .Serial together with .Issuer or .CA, and if one segment of the path has
// two values of variable length, the text between them must separate them.
func Parse(text string) (*Template, error) {
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("is %d bytes long; at most %d are allowed", len(text), maxTemplate)
	}
	tree := parse.New("agent_path_template")
	// Every function is unknown here, whatever its name: the check of the nodes below has
	// better errors than the parser.
	tree.Mode = parse.SkipFuncCheck
	trees := map[string]*parse.Tree{}
	if _, err := tree.Parse(text, "", "", trees); err != nil {
		return nil, fmt.Errorf("is not a valid template: %w", err)
	}
	if len(trees) > 1 {
		return nil, errors.New("defines a template: only fields such as {{ .PubHash }} are allowed")
	}
	t := &Template{text: text}
	if tree.Root != nil {
		for _, n := range tree.Root.Nodes {
			if err := t.add(n); err != nil {
				return nil, err
			}
		}
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	return t, nil
}

// add appends one node of the parsed template to t.
func (t *Template) add(n parse.Node) error {
	if text, ok := n.(*parse.TextNode); ok {
		t.parts = append(t.parts, part{text: string(text.Text)})
		return nil
	}
	name, ok := plainField(n)
	if !ok {
		return fmt.Errorf("contains %.80q: only fields are allowed, %s", n.String(), allFields())
	}
	if name == pluginName {
		t.parts = append(t.parts, part{text: pluginNameValue})
		return nil
	}
	for f, known := range fieldNames {
		if name == known {
			t.parts = append(t.parts, part{field: Field(f), isField: true})
			t.uses[f] = true
			return nil
		}
	}
	return fmt.Errorf("contains the unknown field .%.80s: the fields are %s", name, allFields())
}

// plainField returns the name of a field that is written as {{ .Name }}.
func plainField(n parse.Node) (string, bool) {
	action, ok := n.(*parse.ActionNode)
	if !ok || len(action.Pipe.Decl) != 0 || len(action.Pipe.Cmds) != 1 || len(action.Pipe.Cmds[0].Args) != 1 {
		return "", false
	}
	field, ok := action.Pipe.Cmds[0].Args[0].(*parse.FieldNode)
	if !ok || len(field.Ident) != 1 {
		return "", false
	}
	return field.Ident[0], true
}

// allFields lists the fields, for messages.
func allFields() string {
	all := make([]string, 0, numFields+1)
	for f := range numFields {
		all = append(all, "{{ "+f.String()+" }}")
	}
	return strings.Join(append(all, "{{ ."+pluginName+" }}"), ", ")
}

// check refuses a template that forms no path, or the same path for two machines.
func (t *Template) check() error {
	if !strings.HasPrefix(t.text, "/") {
		return errors.New("must begin with a slash: it is the path below /spire/agent")
	}
	sample := Values{PubHash: "0", Name: "0", CA: "0", Issuer: "0", Serial: "0", DevIDFingerprint: "0"}
	if err := spiffeid.ValidatePath(t.path(&sample)); err != nil {
		return fmt.Errorf("does not form a valid SPIFFE ID path: %w", err)
	}
	if !t.uses[PubHash] && !t.uses[Name] && !t.uses[DevIDFingerprint] &&
		(!t.uses[Serial] || !t.uses[Issuer] && !t.uses[CA]) {
		return errors.New("would give several machines the same ID: it must use {{ .PubHash }}, or {{ .Name }}, " +
			"or {{ .DevIDFingerprint }}, or {{ .Serial }} together with {{ .Issuer }} or {{ .CA }}")
	}
	return t.checkSegments()
}

// checkSegments checks that the values of all fields can be read back from a path: then
// different values give different paths.
//
// No value contains a slash, so the segments can be told apart. Within a segment, values of
// fixed length do not matter. If one value has variable length, it is what the others leave.
// Two such values can be told apart if the text between them has a byte that one of them never
// has: if the first value never has it, the first such byte ends that value; if the second
// never has it, the last such byte comes before that value.
func (t *Template) checkSegments() error {
	var inSegment []Field // the fields of variable length
	var between string    // the text since the last field of any kind
	for _, p := range t.parts {
		if !p.isField {
			between += p.text
			if i := strings.LastIndexByte(between, '/'); i >= 0 {
				inSegment = inSegment[:0]
				between = between[i+1:]
			}
			continue
		}
		if p.field.fixedLength() {
			between = ""
			continue
		}
		inSegment = append(inSegment, p.field)
		if n := len(inSegment); n > 2 || n == 2 && !separates(between, inSegment[0], inSegment[1]) {
			return fmt.Errorf("would give several machines the same ID: where %s ends and %s begins "+
				"is ambiguous; put a slash between them", inSegment[n-2], inSegment[n-1])
		}
		between = ""
	}
	return nil
}

// separates reports whether text has a byte that a or b never has.
func separates(text string, a, b Field) bool {
	return strings.ContainsFunc(text, func(r rune) bool {
		return !strings.ContainsRune(a.alphabet(), r) || !strings.ContainsRune(b.alphabet(), r)
	})
}
