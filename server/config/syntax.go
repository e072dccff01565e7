package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/scanner"
	"github.com/hashicorp/hcl/hcl/token"
)

// The limits of a configuration's text.
const (
	maxText  = 1 << 20 // bytes
	maxDepth = 16      // of braces and brackets
)

// parseSyntax reads a configuration's text, HCL or JSON, into an object.
func parseSyntax(text string) (n *node, err error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("the configuration is %d bytes long; at most %d are allowed", len(text), maxText)
	}
	// A parser that panics has found a mistake.
	defer func() {
		if r := recover(); r != nil {
			n, err = nil, errors.New("the configuration is neither HCL nor JSON")
		}
	}()
	text = strings.TrimPrefix(text, "\ufeff")
	if strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{") {
		return parseJSON(text)
	}
	return parseHCL(text)
}

func parseHCL(text string) (*node, error) {
	if err := scanHCL(text); err != nil {
		return nil, badSyntax("HCL", text, err)
	}
	// If blocks are in a list in JSON, SPIRE prints one key several times.
	file, err := parser.ParseDontErrorOnDuplicateKeys([]byte(text))
	if err != nil {
		return nil, badSyntax("HCL", text, err)
	}
	n, err := fromHCL(file.Node)
	if err != nil {
		return nil, badSyntax("HCL", text, err)
	}
	return n, nil
}

// at returns a mistake at a place.
func at(pos token.Pos, format string, args ...any) error {
	return &parser.PosError{Pos: pos, Err: fmt.Errorf(format, args...)}
}

// badSyntax returns the error for a text that cannot be parsed, with the line of the mistake. The line is right,
// since a text with a syntax error is as the operator wrote it: SPIRE prints anew only what it could parse.
func badSyntax(form, text string, err error) error {
	line := 0
	if pos, ok := errors.AsType[*parser.PosError](err); ok {
		line = pos.Pos.Line
		place := fmt.Sprintf("line %d, column %d", line, pos.Pos.Column)
		if shown := lineOf(text, line); shown != "" {
			place += " (" + shown + ")"
		}
		err = fmt.Errorf("%s: %s", place, whatIsWrong(pos.Err))
	}
	return &syntaxError{line, fmt.Errorf("the configuration is not valid %s: %w", form, err)}
}

// A syntaxError is the error of a text that cannot be parsed. line is where that shows; 0 if it is not known.
type syntaxError struct {
	line int
	error
}

// whatIsWrong returns what the parser says, without quoting the text, which may have a
// password in it.
func whatIsWrong(err error) string {
	switch what := err.Error(); {
	case strings.HasPrefix(what, "Unknown token:"):
		return "a value is missing here, or has no quotes"
	case strings.HasPrefix(what, "key '"):
		return "a key is not followed by = or {, or a value has no quotes"
	default:
		return what
	}
}

// shownLine matches the part of a line that an error shows: the beginning of a block, or a
// key without its value, which may be a secret.
var shownLine = regexp.MustCompile(`^\s*\{?\s*((?:[A-Za-z0-9_-]{1,64}|"[A-Za-z0-9_-]{1,64}")\s*[=:]\s|` +
	`(?:source|allow|deny|quote|bundles|ek_certificate_urls)\b[A-Za-z0-9_" -]{0,99}\{)`)

// lineOf returns what may be shown of a line of a text, or nothing.
func lineOf(text string, number int) string {
	lines := strings.SplitN(text, "\n", number+1)
	if number < 1 || len(lines) < number {
		return ""
	}
	shown := shownLine.FindStringSubmatch(lines[number-1] + "\n")
	if shown == nil {
		return ""
	}
	return strings.TrimSpace(shown[1]) + " …"
}

// scanHCL refuses a text before it is parsed if it is nested deeper than maxDepth, or if it ends after an equals
// sign and so was cut off.
func scanHCL(text string) error {
	s := scanner.New([]byte(text))
	s.Error = func(token.Pos, string) {} // the parser reports it
	depth := 0
	var last token.Token
	for {
		t := s.Scan()
		switch t.Type {
		case token.EOF:
			if last.Type == token.ASSIGN {
				return at(last.Pos, "a value is missing at the end")
			}
			return nil
		case token.LBRACE, token.LBRACK:
			depth++
		case token.RBRACE, token.RBRACK:
			depth--
		}
		if depth > maxDepth {
			return at(t.Pos, "more than %d levels of braces", maxDepth)
		}
		if t.Type != token.COMMENT {
			last = t
		}
	}
}

// fromHCL turns a syntax tree into a node. Further keys of an item become
// objects of their own.
func fromHCL(tree ast.Node) (*node, error) {
	switch t := tree.(type) {
	case *ast.ObjectList:
		return fromItems(t.Items)
	case *ast.ObjectType:
		return fromItems(t.List.Items)
	case *ast.ListType:
		n := &node{kind: list}
		for _, e := range t.List {
			elem, err := fromHCL(e)
			if err != nil {
				return nil, err
			}
			n.elems = append(n.elems, elem)
		}
		return n, nil
	case *ast.LiteralType:
		return fromLiteral(t.Token)
	default:
		return nil, errors.New("a value is missing")
	}
}

func fromItems(items []*ast.ObjectItem) (*node, error) {
	n := &node{kind: object}
	for _, it := range items {
		val, err := fromHCL(it.Val)
		if err != nil {
			return nil, err
		}
		for i := len(it.Keys) - 1; i > 0; i-- {
			key, err := keyOf(it.Keys[i])
			if err != nil {
				return nil, err
			}
			val = &node{kind: object, folded: true, items: []item{{key, it.Keys[i].Pos().Line, val}}}
		}
		key, err := keyOf(it.Keys[0])
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, item{key, it.Keys[0].Pos().Line, val})
	}
	return n, nil
}

func keyOf(k *ast.ObjectKey) (string, error) {
	if k.Token.Type == token.IDENT {
		return k.Token.Text, nil
	}
	return unquote(k.Token)
}

func fromLiteral(t token.Token) (*node, error) {
	switch t.Type {
	case token.STRING, token.HEREDOC:
		s, err := unquote(t)
		return &node{kind: text, text: s}, err
	case token.BOOL:
		return &node{kind: boolean, flag: t.Text == "true"}, nil
	case token.NUMBER, token.FLOAT:
		return &node{kind: number, text: t.Text}, nil
	default:
		return nil, at(t.Pos, "this is not a value")
	}
}

// unquote returns the string that a token stands for.
func unquote(t token.Token) (s string, err error) {
	defer func() {
		// Value has no other way to report an escape that it cannot read.
		if recover() != nil {
			err = at(t.Pos, "a string cannot be read: write a backslash and a quote in it as \\\\ and \\\"")
		}
	}()
	s, ok := t.Value().(string)
	if !ok {
		return "", at(t.Pos, "a string is missing")
	}
	return s, nil
}
