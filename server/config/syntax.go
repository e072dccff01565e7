package config

import (
	"errors"
	"fmt"
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
	// A parser's panic is a mistake in the text as well.
	defer func() {
		if r := recover(); r != nil {
			n, err = nil, fmt.Errorf("the configuration is neither HCL nor JSON: %v", r)
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
		return nil, fmt.Errorf("the configuration is not valid HCL: %w", err)
	}
	// SPIRE prints a list of blocks in JSON as one key several times.
	file, err := parser.ParseDontErrorOnDuplicateKeys([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("the configuration is not valid HCL: %w", err)
	}
	n, err := fromHCL(file.Node)
	if err != nil {
		return nil, fmt.Errorf("the configuration is not valid HCL: %w", err)
	}
	return n, nil
}

// scanHCL refuses, before it is parsed, a text that is nested deeper than
// maxDepth, and one that ends behind an equals sign, as one that was cut does.
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
				return fmt.Errorf("at %s: a value is missing at the end", last.Pos)
			}
			return nil
		case token.LBRACE, token.LBRACK:
			depth++
		case token.RBRACE, token.RBRACK:
			depth--
		}
		if depth > maxDepth {
			return fmt.Errorf("at %s: more than %d levels of braces", t.Pos, maxDepth)
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
			val = &node{kind: object, folded: true, items: []item{{key, val}}}
		}
		key, err := keyOf(it.Keys[0])
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, item{key, val})
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
		return nil, fmt.Errorf("at %s: %s is not a value", t.Pos, printable(t.Text))
	}
}

// unquote returns the string that a token stands for.
func unquote(t token.Token) (s string, err error) {
	defer func() {
		// Value has no other way to report an escape that it cannot read.
		if recover() != nil {
			err = fmt.Errorf("at %s: %s cannot be read as a string", t.Pos, printable(t.Text))
		}
	}()
	s, ok := t.Value().(string)
	if !ok {
		return "", errors.New("a string is missing")
	}
	return s, nil
}
