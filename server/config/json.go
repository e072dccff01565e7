package config

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/hashicorp/hcl/hcl/token"
)

// parseJSON reads a configuration in JSON, as in a plugin_data_file. An object with a duplicate name is refused,
// since RFC 8259, 4, leaves open what it means.
func parseJSON(text string) (*node, error) {
	d := &jsonReader{Decoder: jsontext.NewDecoder(strings.NewReader(text)), text: text, line: 1}
	n, err := fromJSON(d, 0)
	if err != nil {
		return nil, badSyntax("JSON", text, inJSON(text, err))
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the configuration is not valid JSON: there is something after the object")
	}
	return n, nil
}

// inJSON adds the line and the column to an error of the decoder.
func inJSON(text string, err error) error {
	syntax, ok := errors.AsType[*jsontext.SyntacticError](err)
	if !ok || syntax.ByteOffset < 0 || syntax.ByteOffset > int64(len(text)) {
		return err
	}
	before := text[:syntax.ByteOffset]
	return at(token.Pos{
		Line: 1 + strings.Count(before, "\n"), Column: len(before) - strings.LastIndexByte(before, '\n'),
	}, "%w", syntax.Err)
}

// A jsonReader knows at which line it is.
type jsonReader struct {
	*jsontext.Decoder
	text    string
	counted int64 // so many bytes have been looked at for line feeds
	line    int
}

// lineNow returns the line at which the last token ends.
func (d *jsonReader) lineNow() int {
	to := d.InputOffset()
	d.line += strings.Count(d.text[d.counted:to], "\n")
	d.counted = to
	return d.line
}

// fromJSON reads one value.
func fromJSON(d *jsonReader, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("more than %d levels of braces", maxDepth)
	}
	t, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch t.Kind() {
	case jsontext.KindBeginObject:
		return objectFromJSON(d, depth)
	case jsontext.KindBeginArray:
		return listFromJSON(d, depth)
	case jsontext.KindString:
		return &node{kind: text, text: t.String()}, nil
	case jsontext.KindNumber:
		return &node{kind: number, text: t.String()}, nil
	case jsontext.KindTrue, jsontext.KindFalse:
		return &node{kind: boolean, flag: t.Bool()}, nil
	default:
		return &node{kind: null}, nil
	}
}

func objectFromJSON(d *jsonReader, depth int) (*node, error) {
	n := &node{kind: object}
	for d.PeekKind() != jsontext.KindEndObject {
		key, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		name, line := key.String(), d.lineNow() // the token does not outlive the next read
		val, err := fromJSON(d, depth+1)
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, item{name, line, val})
	}
	_, err := d.ReadToken()
	return n, err
}

func listFromJSON(d *jsonReader, depth int) (*node, error) {
	n := &node{kind: list}
	for d.PeekKind() != jsontext.KindEndArray {
		elem, err := fromJSON(d, depth+1)
		if err != nil {
			return nil, err
		}
		n.elems = append(n.elems, elem)
	}
	_, err := d.ReadToken()
	return n, err
}
